"""Fair choice between several requesters."""

from collections.abc import Sequence

from amaranth.hdl import Module, Signal, Value

__all__ = ["round_robin"]


def round_robin(m: Module, requests: Sequence[Value], last: Value) -> Signal:
    """Index of the first of ``requests`` that is high after index ``last``, going round.

    Combinational. Without any request it is 0. The caller keeps ``last``, the index it served before.
    """
    count = len(requests)
    choice = Signal(range(max(2, count)), name="choice")
    with m.Switch(last):
        for index in range(count):
            with m.Case(index):
                # Later assignments win: the nearest requester after ``last`` comes last.
                for distance in range(count, 0, -1):
                    candidate = (index + distance) % count
                    with m.If(requests[candidate]):
                        m.d.comb += choice.eq(candidate)
    return choice
