"""Between a core port and its L1 data cache."""

from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from .core import OP_ID_WIDTH, AtomicFunction
from .tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES

__all__ = ["L1Atomic", "L1Load", "L1LoadDone", "L1Port", "L1Store", "L1Use"]


class L1Use(enum.Enum, shape=2):
    """Who reads."""

    LOAD = 0  #: an operation
    PREFETCH = 1  #: nobody: only fetch the line, no answer
    WALK = 2  #: the page walker


class L1Load(data.Struct):
    """A read of up to 64 bytes of one line."""

    use: L1Use
    id: OP_ID_WIDTH  #: comes back with the data
    line: LINE_ADDRESS_WIDTH
    offset: 6  #: first byte in the line
    size: 7  #: bytes, 1 to 64; ``offset + size`` may not exceed 64


class L1LoadDone(data.Struct):
    """The answer to an :class:`L1Load` or :class:`L1Atomic`."""

    use: L1Use
    id: OP_ID_WIDTH
    data: LINE_BITS  #: first byte in bits 7:0; zero beyond the size asked for


class L1Store(data.Struct):
    """A write of part of one line."""

    line: LINE_ADDRESS_WIDTH
    mask: LINE_BYTES  #: which bytes
    data: LINE_BITS  #: in the byte lanes of the line


class L1Atomic(data.Struct):
    """A read and a write of 1, 2, 4 or 8 bytes, aligned, in one step."""

    id: OP_ID_WIDTH  #: comes back with the old value
    line: LINE_ADDRESS_WIDTH
    offset: 6
    size: 7
    function: AtomicFunction
    operand: 64
    compare: 64


class L1Port(wiring.Signature):
    """As seen from the core port.

    A load that hits and is accepted at edge t answers at edge t + ``l1.latency``; loads that miss answer later, in
    any order, at most one answer per cycle. Answers cannot be refused. ``sampled`` is high at the edge at which
    the load ``sampled_id`` (of use LOAD), or an atomic, reads its line.

    Stores are accepted and become visible in order; ``visible`` is high for one cycle per store, at the edge that
    writes it. Atomics are offered only while no load and no store is in flight; they give ``visible``, too,
    and answer as loads do.

    ``lost`` is high at an edge at which line ``watch`` leaves the cache or is written.
    """

    def __init__(self):
        super().__init__(
            {
                "load": Out(stream.Signature(L1Load)),
                "load_done_valid": In(1),
                "load_done": In(L1LoadDone),
                "sampled": In(1),
                "sampled_id": In(OP_ID_WIDTH),
                "store": Out(stream.Signature(L1Store)),
                "atomic": Out(stream.Signature(L1Atomic)),
                "visible": In(1),
                "watch": Out(LINE_ADDRESS_WIDTH),
                "lost": In(1),
            }
        )

    def __eq__(self, other):
        return isinstance(other, L1Port)
