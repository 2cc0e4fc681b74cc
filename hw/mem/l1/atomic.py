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
    mask: Out(LINE_BYTES)  #: which bytes of the line
    word: Out(WORD_BITS)  #: what to write into the aligned word of the line that holds them

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        atomic = self.atomic
        lane = atomic.offset[3:]  # aligned: all bytes lie in one word
        shift = atomic.offset[:3] << 3
        word, old, new, ones = (Signal(WORD_BITS, name=name) for name in ("word", "old", "new", "ones"))
        with m.If(self.valid):
            with m.Switch(lane):
                for i in range(LINE_BITS // WORD_BITS):
                    with m.Case(i):
                        m.d.comb += word.eq(self.line_data.word_select(i, WORD_BITS))
            with m.Switch(atomic.size):
                for size in (1, 2, 4, 8):
                    with m.Case(size):
                        m.d.comb += [ones.eq((1 << 8 * size) - 1), self.mask.eq((1 << size) - 1 << atomic.offset)]
            m.d.comb += old.eq(word >> shift & ones)
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
            m.d.comb += self.word.eq(new << shift)
        return m
