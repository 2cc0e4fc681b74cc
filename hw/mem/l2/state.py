"""What the tag array of the L2 cache holds for each way, and what passes through the pipeline."""

from amaranth.lib import data, enum

from hw.bus.tilelink import LINE_ADDRESS_WIDTH
from hw.mem.l1.state import LineState
from hw.mem.llc_bits import index_width

__all__ = ["Kind", "tag_row"]


class Kind(enum.Enum, shape=3):
    """What a pass through the pipeline does."""

    ACQUIRE = 0  #: the L1 asks for a line, for the first time or again once a prefetch has brought it
    FETCH = 1  #: the instruction cache asks for a line
    PREFETCH = 2  #: a prefetcher would like a line
    FILL = 3  #: a line arrives that the L2 itself has asked for
    RELEASE = 4  #: a line that the L1 has given up gets its place
    PROBE = 5  #: the last level takes back permissions
    ANSWER = 6  #: ... and the L1 has answered


def tag_row(sets: int, ways: int, misses: int) -> data.ArrayLayout:
    """Layout of one row of the tag array: the entries of all ways of a set.

    ``pending`` reserves the way, in state NOTHING, for the line named by ``tag``: own miss ``miss`` brings it.
    ``prefetched``: nobody has asked for the line yet.
    """
    tag_width = LINE_ADDRESS_WIDTH - (sets - 1).bit_length()
    entry = data.StructLayout(
        {"tag": tag_width, "state": LineState, "pending": 1, "prefetched": 1, "miss": index_width(misses)}
    )
    return data.ArrayLayout(entry, ways)
