"""The adjacent-line prefetcher."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH

__all__ = ["AdjacentPrefetcher"]


class AdjacentPrefetcher(wiring.Component):
    """Would like the other line of the aligned pair, 128 bytes, whose one line was missed last.

    Called the spatial prefetcher in Intel's optimization reference manual. A miss at an edge with ``train`` high
    is a candidate from the next edge on, until it is taken or another takes its place.

    Arguments:
        domain: clock domain.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__(
            {
                "train": In(1),  #: ``train_line`` was missed
                "train_line": In(LINE_ADDRESS_WIDTH),
                "valid": Out(1),
                "line": Out(LINE_ADDRESS_WIDTH),
                "take": In(1),
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        with m.If(self.take):
            m.d[self.domain] += self.valid.eq(0)
        with m.If(self.train):
            m.d[self.domain] += [self.valid.eq(1), self.line.eq(self.train_line ^ 1)]
        return m
