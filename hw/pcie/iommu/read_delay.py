"""The way of a walk's reads to memory and back."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.lib.time import NOW_WIDTH, Timer

__all__ = ["ReadDelay"]


class ReadDelay(wiring.Component):
    """First in, first out, in domain ``uncore``: what is accepted at edge t is offered from edge t + ``cycles`` on.

    A delay of 0 cycles is a wire.

    Ports:
        input, output: entries in and out; the input is always ready.
        now: number of the next edge.
        moving: the next edge changes something here.

    Arguments:
        shape: of an entry.
        cycles: the delay.
        depth: entries that can be inside; the caller has no more.

    Attributes:
        timer: the edge from which on the oldest entry is offered.
    """

    def __init__(self, shape, *, cycles: int, depth: int):
        self.cycles, self.depth = cycles, 1 << ceil_log2(depth)
        self.timer = Timer("uncore")
        self._shape = shape
        super().__init__(
            {
                "input": In(stream.Signature(shape)),
                "output": Out(stream.Signature(shape)),
                "now": In(NOW_WIDTH),
                "moving": Out(1),
            }
        )

    def elaborate(self, platform):
        """A memory of entries with their deadlines."""
        m = Module()
        if not self.cycles:
            wiring.connect(m, wiring.flipped(self.input), wiring.flipped(self.output))
            m.d.comb += self.moving.eq(self.output.valid & self.output.ready)
            return m
        layout = data.StructLayout({"deadline": NOW_WIDTH, "entry": self._shape})
        m.submodules.entries = entries = Memory(shape=layout, depth=self.depth, init=[])
        pushed, first = entries.write_port(domain="uncore"), entries.read_port(domain="comb")
        head, tail = (Signal(range(2 * self.depth), name=name) for name in ("head", "tail"))
        some, due, gone = Signal(), Signal(), Signal()
        m.d.comb += [
            some.eq(head != tail),
            due.eq(some & (self.now >= first.data.deadline)),
            gone.eq(due & self.output.ready),
            self.input.ready.eq(1),
            pushed.en.eq(self.input.valid),
            pushed.addr.eq(tail),
            pushed.data.deadline.eq(self.now + self.cycles),
            pushed.data.entry.eq(self.input.payload),
            first.addr.eq(head),
            self.output.valid.eq(due),
            self.output.payload.eq(first.data.entry),
            self.timer.armed.eq(some),
            self.timer.deadline.eq(first.data.deadline),
            self.moving.eq(self.input.valid | gone),
        ]
        with m.If(self.input.valid):
            m.d.uncore += tail.eq(tail + 1)
        with m.If(gone):
            m.d.uncore += head.eq(head + 1)
        return m
