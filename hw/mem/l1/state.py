"""What the tag array holds for each way, and what passes through the pipeline."""

from amaranth.lib import data, enum

from hw.bus.tilelink import LINE_ADDRESS_WIDTH

__all__ = ["Kind", "LineState", "tag_row"]


class LineState(enum.Enum, shape=2):
    """MESI in terms of TileLink permissions. Any state but NOTHING is readable."""

    NOTHING = 0  #: Invalid
    BRANCH = 1  #: Shared
    TRUNK = 2  #: Exclusive: writable and as in the last level or DRAM
    DIRTY = 3  #: Modified


class Kind(enum.Enum, shape=3):
    """What a pass through the pipeline does."""

    LOAD = 0  #: a load of the core, new or replayed
    STORE = 1  #: the oldest store of the core, or an atomic
    PROBE = 2  #: the level below takes back permissions
    ALLOCATE = 3  #: a miss that could not ask for its line at once does so now
    REFILL = 4  #: a line arrives


def tag_row(sets: int, ways: int) -> data.ArrayLayout:
    """Layout of one row of the tag array: the entries of all ways of a set.

    ``pending`` reserves the way for the outstanding miss of the line named by ``tag``. The state may be BRANCH at
    the same time when it is an upgrade.
    """
    tag_width = LINE_ADDRESS_WIDTH - (sets - 1).bit_length()
    entry = data.StructLayout({"tag": tag_width, "state": LineState, "pending": 1})
    return data.ArrayLayout(entry, ways)
