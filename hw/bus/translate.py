"""Between a core port and its memory-management unit."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .core import VIRTUAL_ADDRESS_WIDTH
from .tilelink import PHYSICAL_ADDRESS_WIDTH

__all__ = ["FRAME_WIDTH", "PAGE_BITS", "PAGE_WIDTH", "TranslatePort"]

#: Address bits within the smallest page, 4 KiB.
PAGE_BITS = 12
#: Bits of the number of a page, and of a frame of physical memory.
PAGE_WIDTH = VIRTUAL_ADDRESS_WIDTH - PAGE_BITS
FRAME_WIDTH = PHYSICAL_ADDRESS_WIDTH - PAGE_BITS


class TranslatePort(wiring.Signature):
    """As seen from the core port.

    While ``valid``, ``hit`` tells in the same cycle whether ``page`` is in a first-level TLB, and ``frame`` where it
    lies; if not, the unit looks further and the requester keeps asking. It may give up at any edge. ``fault``: the
    page is not present, or with ``outside`` there is no memory where it lies; for as long as it is asked for.

    ``set_root`` makes ``root`` the physical address of the top page table (0: no translation, frame = page) and
    forgets everything; ``forget`` forgets ``page``. Neither together with ``valid``; both are done at that edge.
    """

    def __init__(self):
        super().__init__(
            {
                "valid": Out(1),
                "page": Out(PAGE_WIDTH),
                "hit": In(1),
                "frame": In(FRAME_WIDTH),
                "fault": In(1),
                "outside": In(1),
                "set_root": Out(1),
                "root": Out(PHYSICAL_ADDRESS_WIDTH),
                "forget": Out(1),
            }
        )

    def __eq__(self, other):
        return isinstance(other, TranslatePort)
