"""Page tables, read back by a walk of their own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sw.paging import PHYSICAL_MASK, PageSize, PageTables, virtual

TABLES = 1 << 32


class Memory:
    """Tables from ``TABLES`` upwards, entries in a dictionary."""

    def __init__(self):
        self.next = TABLES
        self.entries: dict[int, int] = {}
        self.tables = PageTables(self.allocate)

    def allocate(self, size, alignment):
        address = -(-self.next // alignment) * alignment
        self.next = address + size
        return address

    def map(self, physical, size, page):
        for address, entry in self.tables.map(physical, size, page):
            assert address not in self.entries or self.entries[address] == entry
            self.entries[address] = entry

    def walk(self, address):
        """Physical address and page size of a virtual one; None if it is not mapped."""
        table = self.tables.root
        for level in (39, 30, 21, 12):
            entry = self.entries.get(table + (address >> level & 511) * 8, 0)
            if not entry & 1:
                return None
            target = entry & 0xFF_FFFF_F000
            if level == 12 or entry >> 7 & 1:
                assert level != 39, "the top level has no pages"
                return target + (address & (1 << level) - 1), 1 << level
            table = target
        raise AssertionError("unreachable")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 31), st.integers(1, 1 << 16), st.sampled_from(PageSize)), min_size=1, max_size=5
    )
)
def test_every_byte_is_mapped_to_itself(ranges):
    memory = Memory()
    for physical, size, page in ranges:
        memory.map(physical, size, page)
    for physical, size, page in ranges:
        for byte in {physical, physical + size // 2, physical + size - 1}:
            assert memory.walk(virtual(byte, page)) == (byte, page.bytes)
            assert virtual(byte, page) & PHYSICAL_MASK == byte


def test_what_is_not_mapped_is_absent():
    memory = Memory()
    memory.map(0x20_0000, 0x1000, PageSize.KIB_4)
    assert memory.walk(virtual(0x20_0000, PageSize.KIB_4)) is not None
    assert memory.walk(virtual(0x20_1000, PageSize.KIB_4)) is None
    assert memory.walk(virtual(0x20_0000, PageSize.MIB_2)) is None


def test_tables_are_shared():
    """512 pages of 4 KiB need one table of each level."""
    memory = Memory()
    memory.map(0, 512 * 4096, PageSize.KIB_4)
    assert memory.next == TABLES + 4 * 4096
