"""The reorder window: how many micro-operations may lie between the oldest load in flight and the youngest."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["POSITION_WIDTH", "ReorderWindow"]

#: Micro-operations are counted modulo 2**18: more than the largest window (4096) and an operation (65535) together.
POSITION_WIDTH = 18


class ReorderWindow(wiring.Component):
    """Counts micro-operations as they issue, and says when the window is full.

    An operation may enter while fewer than ``size`` micro-operations lie from the oldest load in flight on, however
    many it has itself.

    Arguments:
        size: micro-operations.
        domain: clock domain.

    Raises:
        ValueError: when ``size`` is not 1 to 4096.

    Attributes:
        enter: ``In(1)``, an operation of ``uops`` micro-operations issues at this edge.
        uops: ``In(16)``.
        withdraw: ``In(1)``, what entered from position ``withdrawn`` on has not been executed.
        withdrawn: ``In(18)``.
        occupied: ``In(1)``, a load is in flight.
        oldest: ``In(18)``, its position.
        position: ``Out(18)``, of what issues next.
        full: ``Out(1)``, nothing may issue.
    """

    def __init__(self, size: int, domain: str):
        if not 1 <= size <= 4096:
            raise ValueError(f"a reorder window holds 1 to 4096 micro-operations, not {size}")
        self.size, self.domain = size, domain
        super().__init__(
            {
                "enter": In(1),
                "uops": In(16),
                "withdraw": In(1),
                "withdrawn": In(POSITION_WIDTH),
                "occupied": In(1),
                "oldest": In(POSITION_WIDTH),
                "position": Out(POSITION_WIDTH),
                "full": Out(1),
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        with m.If(self.withdraw):
            m.d[self.domain] += self.position.eq(self.withdrawn)
        with m.Elif(self.enter):
            m.d[self.domain] += self.position.eq(self.position + self.uops)
        with m.If(self.occupied):
            m.d.comb += self.full.eq((self.position - self.oldest)[:POSITION_WIDTH] >= self.size)
        return m
