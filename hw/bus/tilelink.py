"""TileLink Cached (TL-C), as in the SiFive TileLink Specification 1.8, between a private cache and the last level.

Every message is one beat: the data bus is one 64-byte cache line wide, and addresses are line numbers.
Requests from devices do not speak TL-C; see :mod:`hw.bus.memory`.
"""

from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "LINE_ADDRESS_WIDTH",
    "LINE_BITS",
    "LINE_BYTES",
    "PHYSICAL_ADDRESS_WIDTH",
    "Cap",
    "ChannelA",
    "ChannelB",
    "ChannelC",
    "ChannelD",
    "ChannelE",
    "Grow",
    "OpcodeA",
    "OpcodeB",
    "OpcodeC",
    "OpcodeD",
    "Shrink",
    "TileLink",
]

LINE_BYTES = 64
LINE_BITS = 8 * LINE_BYTES
PHYSICAL_ADDRESS_WIDTH = 40
LINE_ADDRESS_WIDTH = PHYSICAL_ADDRESS_WIDTH - 6


class OpcodeA(enum.Enum, shape=3):
    """Messages from the cache that wants a line."""

    ACQUIRE_BLOCK = 6
    ACQUIRE_PERM = 7


class OpcodeB(enum.Enum, shape=3):
    """Messages from the last level to a cache that may hold a line."""

    PROBE_BLOCK = 6


class OpcodeC(enum.Enum, shape=3):
    """Answers to probes, and voluntary write-backs."""

    PROBE_ACK = 4
    PROBE_ACK_DATA = 5
    RELEASE = 6
    RELEASE_DATA = 7


class OpcodeD(enum.Enum, shape=3):
    """Answers from the last level."""

    GRANT = 4
    GRANT_DATA = 5
    RELEASE_ACK = 6


class Grow(enum.Enum, shape=3):
    """Permissions asked for: Nothing, Branch (shared, read-only), Trunk (exclusive, writable)."""

    N_TO_B = 0
    N_TO_T = 1
    B_TO_T = 2


class Cap(enum.Enum, shape=3):
    """The most a cache may hold after a Probe, or holds after a Grant."""

    TO_T = 0
    TO_B = 1
    TO_N = 2


class Shrink(enum.Enum, shape=3):
    """What a cache gave up, or (last three) had in any case."""

    T_TO_B = 0
    T_TO_N = 1
    B_TO_N = 2
    T_TO_T = 3
    B_TO_B = 4
    N_TO_N = 5


#: Widths of transaction numbers: ``source`` names an MSHR of the cache, ``sink`` a slot of the last level.
SOURCE_WIDTH = 6
SINK_WIDTH = 6


class ChannelA(data.Struct):
    """Acquire: cache to last level."""

    opcode: OpcodeA
    param: Grow
    source: SOURCE_WIDTH  #: the MSHR that asks; comes back in the Grant
    line: LINE_ADDRESS_WIDTH


class ChannelB(data.Struct):
    """Probe: last level to cache."""

    opcode: OpcodeB
    param: Cap
    line: LINE_ADDRESS_WIDTH


class ChannelC(data.Struct):
    """ProbeAck and Release: cache to last level."""

    opcode: OpcodeC
    param: Shrink
    source: SOURCE_WIDTH  #: in a Release: comes back in the ReleaseAck
    #: In RELEASE_DATA from an L1 to its exclusive L2, which gets clean lines with their data, too: the line differs
    #: from what is below. Elsewhere a message with data is always of a dirty line.
    dirty: 1
    line: LINE_ADDRESS_WIDTH
    data: LINE_BITS  #: in PROBE_ACK_DATA and RELEASE_DATA


class ChannelD(data.Struct):
    """Grant and ReleaseAck: last level to cache."""

    opcode: OpcodeD
    param: Cap  #: in a Grant: TO_T or TO_B
    #: In a Grant from an L2 cache to its L1: the line differs from what is below, and the L1 must give it back.
    #: (TileLink leaves such a line in the L2; this L2 is exclusive.) The last level never sets it.
    dirty: 1
    source: SOURCE_WIDTH  #: that of the Acquire or Release answered
    sink: SINK_WIDTH  #: in a Grant: must come back in the GrantAck
    data: LINE_BITS  #: in GRANT_DATA


class ChannelE(data.Struct):
    """GrantAck: cache to last level."""

    sink: SINK_WIDTH


class TileLink(wiring.Signature):
    """The five channels, directions as seen from the cache (the client).

    A cache sends a Release for a line before any ProbeAck that says it no longer has it, on the one
    channel C; it does not acquire a line again before the ReleaseAck.
    """

    def __init__(self):
        super().__init__(
            {
                "a": Out(stream.Signature(ChannelA)),
                "b": In(stream.Signature(ChannelB)),
                "c": Out(stream.Signature(ChannelC)),
                "d": In(stream.Signature(ChannelD)),
                "e": Out(stream.Signature(ChannelE)),
            }
        )

    def __eq__(self, other):
        return isinstance(other, TileLink)
