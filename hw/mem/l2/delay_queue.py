"""Requests on their way to the tags."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.mem.llc_queue import Queue

__all__ = ["DelayQueue"]


class DelayQueue(wiring.Component):
    """A queue whose entries can be taken ``delay`` edges after they came, in order.

    An item pushed at edge t is offered from edge t + ``delay`` on. ``travelling``: some item will be offered soon
    without anything more happening.

    Arguments:
        shape: of an entry.
        depth: entries it holds; the user guarantees that there are never more.
        delay: cycles of ``domain``, at least 1.
        domain: clock domain.
    """

    def __init__(self, shape, *, depth: int, delay: int, domain: str):
        if delay < 1:
            raise ValueError(f"a queue delays by at least 1 cycle, not {delay}")
        self.delay, self.domain = delay, domain
        super().__init__(
            {"push": In(1), "entry": In(shape), "output": Out(stream.Signature(shape)), "travelling": Out(1)}
        )
        self.queue = Queue(shape, depth, domain)

    def elaborate(self, platform):
        """A queue, and a token for each entry that tells when its time has come."""
        m = Module()
        m.submodules.queue = queue = self.queue
        m.d.comb += [
            queue.push.eq(self.push),
            queue.entry.eq(self.entry),
            queue.output.ready.eq(self.output.valid & self.output.ready),
            self.output.payload.eq(queue.output.payload),
        ]
        if self.delay == 1:
            m.d.comb += self.output.valid.eq(queue.output.valid)
            return m

        tokens = Signal(self.delay - 1)
        due = Signal(range(queue.depth + 1))
        m.d.comb += [self.output.valid.eq(due.any()), self.travelling.eq(tokens.any())]
        with m.If(self.push | self.travelling):
            m.d[self.domain] += tokens.eq((tokens << 1) | self.push)
        taken = self.output.valid & self.output.ready
        with m.If(tokens[-1] & ~taken):
            m.d[self.domain] += due.eq(due + 1)
        with m.Elif(taken & ~tokens[-1]):
            m.d[self.domain] += due.eq(due - 1)
        return m
