"""What an atomic writes."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import AtomicFunction
from hw.bus.l1 import L1Atomic
from hw.bus.tilelink import LINE_BITS, LINE_BYTES

__all__ = ["AtomicUnit"]

WORD_BITS = 64


class AtomicUnit(wiring.Component):
    """From an atomic and its line, what to write, and where in the line; all combinational, zero unless ``valid``."""

    valid: In(1)
    atomic: In(L1Atomic)
    line_data: In(LINE_BITS)
    mask: Out(LINE_BYTES)
    data: Out(LINE_BITS)  #: in the byte lanes of the line

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        atomic = self.atomic
        lane = atomic.offset[3:]  # aligned: all bytes lie in one word
        shift = atomic.offset[:3] << 3
        size = atomic.size[:4]
        old, new, ones = Signal(WORD_BITS), Signal(WORD_BITS), Signal(WORD_BITS)
        with m.If(self.valid):
            m.d.comb += [
                ones.eq((1 << (size << 3)) - 1),
                old.eq((self.line_data.word_select(lane, WORD_BITS) >> shift) & ones),
            ]
            with m.Switch(atomic.function):
                with m.Case(AtomicFunction.EXCHANGE):
                    m.d.comb += new.eq(atomic.operand)
                with m.Case(AtomicFunction.ADD):
                    m.d.comb += new.eq(old + atomic.operand)
                with m.Case(AtomicFunction.AND):
                    m.d.comb += new.eq(old & atomic.operand)
                with m.Case(AtomicFunction.OR):
                    m.d.comb += new.eq(old | atomic.operand)
                with m.Case(AtomicFunction.XOR):
                    m.d.comb += new.eq(old ^ atomic.operand)
                with m.Case(AtomicFunction.COMPARE_EXCHANGE):
                    m.d.comb += new.eq(Mux(old == atomic.compare & ones, atomic.operand, old))
            m.d.comb += [
                self.mask.eq(((1 << size) - 1) << atomic.offset),
                self.data.eq(((new << shift)[:WORD_BITS]).replicate(LINE_BITS // WORD_BITS)),
            ]
        return m
