"""Pages, their sizes, and the entries of page tables (Intel SDM volume 3, "4-level paging")."""

from amaranth.hdl import Cat, Const, Value
from amaranth.lib import data, enum

from hw.bus.translate import FRAME_WIDTH, PAGE_WIDTH

__all__ = ["LEVELS", "LEVEL_BITS", "PageSize", "PageTableEntry", "frame_of", "key_of", "key_width", "value_width"]

#: Tables on the way to a 4 KiB page.
LEVELS = 4
#: Bits of the page number that choose the entry in one table: 512 entries of 8 bytes.
LEVEL_BITS = 9


class PageSize(enum.IntEnum, shape=2):
    """Sizes, numbered by how many of the lower levels of tables they do without."""

    KIB_4 = 0
    MIB_2 = 1
    GIB_1 = 2


#: An entry, of any level: what the walker looks at. Accessed and dirty bits are neither looked at nor written, nor
#: are rights. Bits 12 to 20 (29) of the address of a 2 MiB (1 GiB) page are not part of it and ignored.
PageTableEntry = data.FlexibleLayout(
    64,
    {
        "present": data.Field(1, 0),
        "page_size": data.Field(1, 7),  #: in a directory or directory-pointer table: names a page, not a table
        "frame": data.Field(FRAME_WIDTH, 12),
    },
)


def key_width(size: PageSize) -> int:
    """Bits of the number of a page of this size."""
    return PAGE_WIDTH - LEVEL_BITS * size


def value_width(size: PageSize) -> int:
    """Bits of the number of a frame of this size."""
    return FRAME_WIDTH - LEVEL_BITS * size


def key_of(page: Value, size: PageSize) -> Value:
    """The number of the page of this size that holds 4 KiB page number ``page``; likewise for frames."""
    return page >> (LEVEL_BITS * size)


def frame_of(value: Value, page: Value, size: PageSize) -> Value:
    """The 4 KiB frame of ``page``, which lies in a page of this size in frame ``value`` of this size."""
    return Cat(page[: LEVEL_BITS * size] if size else Const(0, 0), value)
