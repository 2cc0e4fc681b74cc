"""A queue that cannot overflow because its user never has more entries under way than it holds."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .llc_bits import index_width

__all__ = ["Queue"]


class Queue(wiring.Component):
    """First in, first out; an entry pushed at one edge is offered before the next.

    Arguments:
        shape: shape of an entry.
        depth: entries it holds; the user guarantees that there are never more.
        domain: clock domain.
    """

    def __init__(self, shape, depth: int, domain: str):
        self.depth = 1 << index_width(depth)
        self.domain = domain
        self._shape = shape
        super().__init__({"push": In(1), "entry": In(shape), "output": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        """A memory and two pointers, one bit wider than its address to tell full from empty."""
        m = Module()
        m.submodules.entries = entries = Memory(shape=self._shape, depth=self.depth, init=[])
        write = entries.write_port(domain=self.domain)
        read = entries.read_port(domain="comb")
        head = Signal(index_width(self.depth) + 1)
        tail = Signal.like(head)
        m.d.comb += [
            write.en.eq(self.push),
            write.addr.eq(tail),
            write.data.eq(self.entry),
            read.addr.eq(head),
            self.output.valid.eq(head != tail),
            self.output.payload.eq(read.data),
        ]
        with m.If(self.push):
            m.d[self.domain] += tail.eq(tail + 1)
        with m.If(self.output.valid & self.output.ready):
            m.d[self.domain] += head.eq(head + 1)
        return m
