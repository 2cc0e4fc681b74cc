"""Page tables of x86-64, four levels, as software writes them to memory.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, section 4.5. Every page is mapped to the frame
of its own number: virtual addresses below 2^40 are the physical ones, and bits 47:40 only choose which tables describe
an address (docs/core.md). :data:`REGIONS` says which page size the kernel of this model uses where.
"""

import enum
from collections.abc import Callable, Iterator

__all__ = ["PHYSICAL_MASK", "REGIONS", "PageSize", "PageTables", "virtual"]

_PRESENT = 1 << 0
_WRITABLE = 1 << 1
_USER = 1 << 2
_PAGE_SIZE = 1 << 7

_TABLE_BYTES = 4096
_ENTRY_BYTES = 8

#: Bits of a virtual address that are those of the physical one.
PHYSICAL_MASK = (1 << 40) - 1


class PageSize(enum.IntEnum):
    """Sizes of pages, as bits of an address within the page."""

    KIB_4 = 12
    MIB_2 = 21
    GIB_1 = 30

    @property
    def bytes(self) -> int:
        """Bytes of the page."""
        return 1 << self.value


#: Bits 47:40 of the addresses that are mapped by pages of each size.
REGIONS = {PageSize.GIB_1: 0, PageSize.MIB_2: 1, PageSize.KIB_4: 2}


def virtual(physical: int, page: PageSize) -> int:
    """The address under which ``physical`` is mapped by pages of that size."""
    return REGIONS[page] << 40 | physical


class PageTables:
    """Tables that grow as pages are mapped; where they lie is decided here, what they hold is stored by the caller.

    Arguments:
        allocate: hands out so many bytes of zeroed memory at such an alignment.

    Attributes:
        root: physical address of the top table, for CR3.
    """

    def __init__(self, allocate: Callable[[int, int], int]):
        self._allocate = allocate
        self.root = allocate(_TABLE_BYTES, _TABLE_BYTES)
        self._tables: dict[tuple[int, int], int] = {}  # physical address of a table, by level and what it maps

    def map(self, physical: int, size: int, page: PageSize) -> Iterator[tuple[int, int]]:
        """Map ``size`` bytes from ``physical`` on in the region of ``page``; what is not aligned is rounded outwards.

        Yields (address, entry) of each 8-byte entry to be stored, upper levels first.
        """
        first = virtual(physical, page) >> page
        last = virtual(physical + size - 1, page) >> page
        for number in range(first, last + 1):
            yield from self._map_page(number << page, page)

    def _map_page(self, address: int, page: PageSize) -> Iterator[tuple[int, int]]:
        table = self.root
        level = 39
        while level > page:
            key = (level, address >> level)
            if key not in self._tables:
                self._tables[key] = self._allocate(_TABLE_BYTES, _TABLE_BYTES)
                yield self._entry(table, address, level), self._tables[key] | _PRESENT | _WRITABLE | _USER
            table = self._tables[key]
            level -= 9
        frame = address & PHYSICAL_MASK & -page.bytes
        large = _PAGE_SIZE if page is not PageSize.KIB_4 else 0
        yield self._entry(table, address, level), frame | _PRESENT | _WRITABLE | _USER | large

    @staticmethod
    def _entry(table: int, address: int, level: int) -> int:
        return table + (address >> level & 511) * _ENTRY_BYTES
