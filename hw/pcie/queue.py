"""A small first-in, first-out queue."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["Queue"]


class Queue(wiring.Component):
    """``depth`` values of ``shape``, first in, first out, in ``domain``.

    A value accepted at edge t is offered from edge t + 1 on. Nothing changes at an edge without a transfer.

    Raises:
        ValueError: when ``depth`` is not positive.
    """

    def __init__(self, shape, depth: int, domain: str):
        if depth < 1:
            raise ValueError(f"a queue needs at least 1 entry, not {depth}")
        self.shape, self.depth, self.domain = shape, depth, domain
        super().__init__({"input": In(stream.Signature(shape)), "output": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        """Place the entries, the two pointers and the level."""
        m = Module()
        m.submodules.entries = entries = Memory(shape=self.shape, depth=self.depth, init=[])
        write = entries.write_port(domain=self.domain)
        read = entries.read_port(domain="comb")
        level = Signal(range(self.depth + 1))
        push = self.input.valid & self.input.ready
        pop = self.output.valid & self.output.ready
        m.d.comb += [
            self.input.ready.eq(level != self.depth),
            self.output.valid.eq(level != 0),
            write.en.eq(push),
            write.data.eq(self.input.payload),
            self.output.payload.eq(read.data),
        ]
        for port, moves in ((write, push), (read, pop)):
            pointer = Signal(max(1, ceil_log2(self.depth)))
            m.d.comb += port.addr.eq(pointer)
            with m.If(moves):
                m.d[self.domain] += pointer.eq(Mux(pointer == self.depth - 1, 0, pointer + 1))
        with m.If(push != pop):
            m.d[self.domain] += level.eq(Mux(push, level + 1, level - 1))
        return m
