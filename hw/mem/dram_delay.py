"""A way that takes time but keeps up: each entry leaves a fixed number of cycles after it came."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.lib.time import NOW_WIDTH, Timer

__all__ = ["DelayLine"]


class DelayLine(wiring.Component):
    """First in, first out, in domain ``dram``: what is accepted at edge t can be taken from edge t + ``cycles`` on.

    Entries follow each other at one per ``spacing`` cycles at least without end, and in bursts of up to ``depth`` at
    one per cycle; so the line delays and does not throttle. What is not taken in time waits, and nothing overtakes it.
    A line of 0 cycles is a wire.

    Arguments:
        shape: shape of an entry.
        cycles: the delay.
        spacing: cycles between entries that it must keep up with.

    Attributes:
        depth: entries it holds; 0 for a wire.
        input, output: entries in and out.
        now: the domain's time.
        timer: the edge at which the oldest entry can be taken, while the output is ready for it.
    """

    def __init__(self, shape, *, cycles: int, spacing: int):
        self.cycles = cycles
        self.depth = 1 << ceil_log2(-(-cycles // spacing) + 2) if cycles else 0
        self.timer = Timer("dram")
        self._shape = shape
        super().__init__(
            {"input": In(stream.Signature(shape)), "output": Out(stream.Signature(shape)), "now": In(NOW_WIDTH)}
        )

    def elaborate(self, platform):
        """A memory of entries with their deadlines, and two pointers, one bit wider than its address."""
        m = Module()
        if not self.cycles:
            wiring.connect(m, wiring.flipped(self.input), wiring.flipped(self.output))
            return m

        layout = data.StructLayout({"deadline": NOW_WIDTH, "entry": self._shape})
        entries: Memory = Memory(shape=layout, depth=self.depth, init=[])
        m.submodules.entries = entries
        pushed, first = entries.write_port(domain="dram"), entries.read_port(domain="comb")
        head, tail = (Signal(range(2 * self.depth), name=name) for name in ("head", "tail"))
        some = Signal()
        m.d.comb += [
            some.eq(head != tail),
            self.input.ready.eq((tail - head)[: len(tail)] != self.depth),
            pushed.en.eq(self.input.valid & self.input.ready),
            pushed.addr.eq(tail),
            pushed.data.deadline.eq(self.now + self.cycles),
            pushed.data.entry.eq(self.input.payload),
            first.addr.eq(head),
            self.output.valid.eq(some & (self.now >= first.data.deadline)),
            self.output.payload.eq(first.data.entry),
            self.timer.armed.eq(some & self.output.ready),
            self.timer.deadline.eq(first.data.deadline),
        ]
        with m.If(pushed.en):
            m.d.dram += tail.eq(tail + 1)
        with m.If(self.output.valid & self.output.ready):
            m.d.dram += head.eq(head + 1)
        return m
