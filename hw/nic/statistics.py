"""Statistics registers: cleared by reading, sticking at their largest value (datasheet section 8.2.3.23)."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .layouts import RegisterBus
from .registers import Register

__all__ = ["OctetStatistic", "Statistic"]


class Statistic(wiring.Component):
    """One 32-bit counter. An event at the edge of the read counts for the next reading."""

    bus: In(RegisterBus())
    event: In(1)
    reset: In(1)
    value: Out(32)

    def __init__(self, register: Register, index: int = 0):
        super().__init__()
        self.offset = register.offset(index)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        with m.If(self.event & ~self.value.all()):
            m.d.nic += self.value.eq(self.value + 1)
        with m.If(self.bus.read & ~self.bus.table), m.Switch(self.bus.offset):
            with m.Case(self.offset):
                m.d.nic += self.value.eq(self.event)
        with m.If(self.reset):
            m.d.nic += self.value.eq(0)
        return m


class OctetStatistic(wiring.Component):
    """A 36-bit counter in two registers; each half is cleared by reading it.

    What the low half carries into the high one is never lost, whatever the order of reading: the readings add up.
    """

    bus: In(RegisterBus())
    event: In(1)
    amount: In(16)
    reset: In(1)
    low: Out(32)
    high: Out(32)

    def __init__(self, low: Register, high: Register, index: int = 0):
        super().__init__()
        self.offsets = low.offset(index), high.offset(index)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        total, following = Signal(36), Signal(37)
        m.d.comb += [self.low.eq(total[:32]), self.high.eq(total[32:])]
        base = Signal(36)
        m.d.comb += [base.eq(total), following.eq(base + Mux(self.event, self.amount, 0))]
        with m.If(self.bus.read & ~self.bus.table), m.Switch(self.bus.offset):
            for offset, half in zip(self.offsets, (base[:32], base[32:]), strict=True):
                with m.Case(offset):
                    m.d.comb += half.eq(0)
        with m.If(self.reset):
            m.d.nic += total.eq(0)
        with m.Elif(self.event | self.bus.read):
            m.d.nic += total.eq(Mux(following[36], 2**36 - 1, following))
        return m
