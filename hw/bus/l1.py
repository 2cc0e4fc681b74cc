"""Between a core port and its L1 data cache."""

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .core import OP_ID_WIDTH
from .tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES

__all__ = ["L1Load", "L1LoadDone", "L1Port", "L1Store"]


class L1Load(data.Struct):
    """A read of up to 64 bytes of one line."""

    id: OP_ID_WIDTH  #: comes back with the data
    line: LINE_ADDRESS_WIDTH
    offset: 6  #: first byte in the line
    size: 7  #: bytes, 1 to 64; ``offset + size`` may not exceed 64
    prefetch: 1  #: only fetch the line; no answer


class L1LoadDone(data.Struct):
    """The answer to an :class:`L1Load`."""

    id: OP_ID_WIDTH
    data: LINE_BITS  #: first byte in bits 7:0; zero beyond the size asked for


class L1Store(data.Struct):
    """A write of part of one line."""

    line: LINE_ADDRESS_WIDTH
    mask: LINE_BYTES  #: which bytes
    data: LINE_BITS  #: in the byte lanes of the line


class L1Port(wiring.Signature):
    """As seen from the core port.

    A load that hits and is accepted at edge t answers at edge t + ``l1.latency``; loads that miss answer later, in
    any order, at most one answer per cycle. Stores are accepted and become visible in order;
    ``store_done`` is high for one cycle per store, at the edge that writes it. Answers cannot be refused.
    """

    def __init__(self):
        super().__init__(
            {
                "load": Out(stream.Signature(L1Load)),
                "load_done_valid": In(1),
                "load_done": In(L1LoadDone),
                "store": Out(stream.Signature(L1Store)),
                "store_done": In(1),
            }
        )

    def __eq__(self, other):
        return isinstance(other, L1Port)
