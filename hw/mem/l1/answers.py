"""From the data array to the core."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import OP_ID_WIDTH
from hw.bus.l1 import L1Load, L1LoadDone
from hw.bus.tilelink import LINE_BITS, LINE_BYTES

__all__ = ["LoadAnswers"]


class LoadAnswers(wiring.Component):
    """Picks a load's bytes out of its line and holds them until ``delay`` edges after ``valid``.

    With ``valid`` high at edge t, ``done_valid`` is high at edge t + ``delay``. Wide registers change only
    when an answer passes.

    Arguments:
        delay: cycles of ``domain``, at least 1.
        domain: clock domain.
    """

    def __init__(self, *, delay: int, domain: str):
        if delay < 1:
            raise ValueError(f"answers take at least 1 cycle, not {delay}")
        self.delay, self.domain = delay, domain
        super().__init__(
            {
                "valid": In(1),
                "load": In(L1Load),
                "line_data": In(LINE_BITS),
                "done_valid": Out(1),
                "done": Out(L1LoadDone),
                "busy": Out(1),  #: an answer is on its way, or being given
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        valid = [Signal(name=f"valid{i}") for i in range(self.delay)]
        ids = [Signal(OP_ID_WIDTH, name=f"id{i}") for i in range(self.delay)]
        data = [Signal(LINE_BITS, name=f"data{i}") for i in range(self.delay)]

        # Two right shifts: the bytes to the bottom, and a mask for as many of them as were asked for.
        empty = Signal(range(LINE_BYTES + 1))
        mask = Const((1 << LINE_BITS) - 1, LINE_BITS) >> (empty << 3)
        m.d.comb += empty.eq(LINE_BYTES - self.load.size)
        m.d[self.domain] += valid[0].eq(self.valid)
        with m.If(self.valid):
            m.d[self.domain] += [
                ids[0].eq(self.load.id),
                data[0].eq((self.line_data >> (self.load.offset << 3)) & mask),
            ]

        # Delay
        for i in range(1, self.delay):
            m.d[self.domain] += valid[i].eq(valid[i - 1])
            with m.If(valid[i - 1]):
                m.d[self.domain] += [ids[i].eq(ids[i - 1]), data[i].eq(data[i - 1])]
        m.d.comb += [
            self.done_valid.eq(valid[-1]),
            self.done.id.eq(ids[-1]),
            self.done.data.eq(data[-1]),
            self.busy.eq(Cat(*valid).any()),
        ]
        return m
