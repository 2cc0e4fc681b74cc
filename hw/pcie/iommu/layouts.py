"""What passes between the parts of the IOMMU."""

from amaranth.lib import data

from hw.bus.translate import FRAME_WIDTH

__all__ = ["DOMAIN_WIDTH", "LEVEL_WIDTH", "PAGE_WIDTH", "REASON_WIDTH", "Fill", "Level", "Translated", "WalkContext"]

#: Bits of the number of a page as the card has it: its addresses have as many bits as physical ones.
PAGE_WIDTH = FRAME_WIDTH
#: Bits of a domain's number.
DOMAIN_WIDTH = 16
REASON_WIDTH = 4
LEVEL_WIDTH = 3


class Level:
    """Which table a walk reads."""

    PAGE_TABLE = 0
    DIRECTORY = 1
    TOP = 3
    CONTEXT = 4
    ROOT = 5


class Translated(data.Struct):
    """What has been found out about a page."""

    frame: FRAME_WIDTH
    read: 1
    write: 1
    reason: REASON_WIDTH  #: not 0: no access whatever its kind, for that reason


class WalkContext(data.Struct):
    """What a device's context entry says."""

    pass_through: 1
    domain: DOMAIN_WIDTH
    table: FRAME_WIDTH  #: the top page table


class Fill(data.Struct):
    """What a walk has learned that can be kept."""

    page: PAGE_WIDTH
    leaf: 1  #: ``frame``, ``read`` and ``write`` are those of a page, ...
    large: 1  #: ... of 2 MiB
    frame: FRAME_WIDTH
    read: 1
    write: 1
    table_known: 1  #: the page table of the page, if it has one
    table: FRAME_WIDTH
    directory_known: 1
    directory: FRAME_WIDTH
