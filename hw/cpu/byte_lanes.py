"""Virtual addresses and the byte lanes of a cache line."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import VIRTUAL_ADDRESS_WIDTH
from hw.bus.tilelink import LINE_BYTES, PHYSICAL_ADDRESS_WIDTH
from hw.bus.translate import FRAME_WIDTH

__all__ = ["LaneMask", "VirtualAddress"]


class VirtualAddress(data.Struct):
    """A virtual address, split into the page, the line in it, and the byte in that."""

    offset: 6
    line_in_page: 6
    frame: FRAME_WIDTH  #: the frame that every table maps this page to, see docs/core.md
    tables: VIRTUAL_ADDRESS_WIDTH - PHYSICAL_ADDRESS_WIDTH  #: only choose which tables describe the page

    @property
    def page(self):
        """Number of the page."""
        return Cat(self.frame, self.tables)

    def line_in(self, frame):
        """Number of the line when the page lies in ``frame`` of physical memory."""
        return Cat(self.line_in_page, frame)

    @property
    def line(self):
        """Number of the line in physical memory, by what every table says."""
        return self.line_in(self.frame)


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
