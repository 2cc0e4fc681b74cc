"""Byte addresses and the byte lanes of a cache line."""

from amaranth.hdl import Const, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BYTES

__all__ = ["ByteAddress", "LaneMask"]


class ByteAddress(data.Struct):
    """A physical address, split into the line and the byte in it."""

    offset: 6
    line: LINE_ADDRESS_WIDTH


class LaneMask(wiring.Component):
    """One bit per byte of a line: those of ``size`` bytes from byte ``offset`` on.

    ``size`` is 1 to 64, and ``offset + size`` at most 64. Combinational.

    Attributes:
        offset: ``In(6)``, the first byte.
        size: ``In(7)``, how many.
        mask: ``Out(64)``.
    """

    offset: In(6)
    size: In(7)
    mask: Out(LINE_BYTES)

    def elaborate(self, platform):
        """Elaborate with right shifts of a constant: never wider than 64 bits, a word of a compiled model."""
        m = Module()
        ones = Const((1 << LINE_BYTES) - 1)
        from_offset, beyond = Signal(LINE_BYTES), Signal(7)
        m.d.comb += [
            beyond.eq(LINE_BYTES - self.offset - self.size),
            from_offset.eq(~(ones >> (LINE_BYTES - self.offset)[:7])),
            self.mask.eq(from_offset & (ones >> beyond)),
        ]
        return m
