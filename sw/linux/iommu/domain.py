"""The address space of a device: second-level page tables (drivers/iommu/intel/iommu.c, ``dmar_domain``)."""

from collections.abc import Callable, Generator, Iterator

from hw.pcie.iommu.tables import PAGE_ENTRY_BYTES, TABLE_BYTES, PageEntry
from sw.paging import PageSize

__all__ = ["DmarDomain"]


class DmarDomain:
    """Four levels of tables; where they lie is decided here, what they hold is stored by the caller.

    Arguments:
        allocate: hands out so many bytes of zeroed memory at such an alignment.
        number: of the domain, with which the unit marks what it caches.

    Attributes:
        pgd: physical address of the top table.
    """

    def __init__(self, allocate: Callable[[int, int], int], number: int):
        self.number = number
        self._allocate = allocate
        self.pgd = allocate(TABLE_BYTES, TABLE_BYTES)
        self._tables: dict[tuple[int, int], int] = {}

    def map(self, iova: int, physical: int, size: int, page: PageSize) -> Iterator[tuple[int, int]]:
        """Map ``size`` bytes, rounded outwards to pages, to be read and written.

        Yields (address, entry) of each 8-byte entry to be stored, upper levels first.

        Raises:
            ValueError: when both addresses do not lie at the same place in a page.
        """
        if (iova - physical) % page.bytes:
            raise ValueError(f"{iova:#x} and {physical:#x} do not lie at the same place in pages of {page.bytes} bytes")
        rights = PageEntry.R.mask | PageEntry.W.mask | (PageEntry.PS.mask if page is PageSize.MIB_2 else 0)
        for number in range(iova >> page, (iova + size - 1 >> page) + 1):
            table = yield from self._table(number << page, page)
            yield _entry(table, number << page, page), (number << page) + physical - iova | rights

    def prepare(self, iova: int, size: int, page: PageSize) -> Iterator[tuple[int, int]]:
        """Set aside the tables that mapping so much will need; yields as :meth:`map` does."""
        for number in range(iova >> page, (iova + size - 1 >> page) + 1):
            yield from self._table(number << page, page)

    def _table(self, iova: int, page: PageSize) -> Generator[tuple[int, int], None, int]:
        """The table that holds the entry of a page, and what leads to it if that is new."""
        table = self.pgd
        for level in range(39, page, -9):
            key = level, iova >> level
            if key not in self._tables:
                self._tables[key] = self._allocate(TABLE_BYTES, TABLE_BYTES)
                yield _entry(table, iova, level), self._tables[key] | PageEntry.R.mask | PageEntry.W.mask
            table = self._tables[key]
        return table


def _entry(table: int, iova: int, level: int) -> int:
    return table + (iova >> level & 511) * PAGE_ENTRY_BYTES
