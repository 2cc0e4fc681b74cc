"""What an entry of a root, context or page table says."""

from amaranth.hdl import Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.translate import FRAME_WIDTH

from .layouts import LEVEL_WIDTH, REASON_WIDTH, Level, WalkContext
from .registers import FaultReason
from .tables import AW_4_LEVELS, Context, PageEntry, Root, TranslationType

__all__ = ["Entry"]

#: Bits of an entry above which no address of this machine lies; set ones are reserved.
_ADDRESS_TOP = 12 + FRAME_WIDTH


class Entry(wiring.Component):
    """Decodes an entry of ``level``, without delay.

    Ports:
        level: which table it is of.
        low, high: its 64 bits and the 64 behind them, which are the rest of a root or context entry.
        readable, writable: rights that the entries above give.
        reason: of the fault that it is, if any.
        frame: the page, or the page that the next table lies in.
        leaf: of a page table: nothing comes below, since it is a page or nothing; ``large``: a page of 2 MiB.
        may_read, may_write: rights down to here.
        context: of a context entry.
    """

    level: In(LEVEL_WIDTH)
    low: In(64)
    high: In(64)
    readable: In(1)
    writable: In(1)
    reason: Out(REASON_WIDTH)
    frame: Out(FRAME_WIDTH)
    leaf: Out(1)
    large: Out(1)
    may_read: Out(1)
    may_write: Out(1)
    context: Out(WalkContext)

    def elaborate(self, platform):
        """One case per kind of table."""
        m = Module()
        low, high = self.low, self.high
        beyond = low[_ADDRESS_TOP:].any()
        type_ = _get(Context.TT, low)
        m.d.comb += [
            self.frame.eq(low[12:_ADDRESS_TOP]),
            self.may_read.eq(self.readable & _get(PageEntry.R, low)),
            self.may_write.eq(self.writable & _get(PageEntry.W, low)),
            self.context.pass_through.eq(type_ == TranslationType.PASS_THROUGH),
            self.context.domain.eq(_get(Context.DID, high)),
            self.context.table.eq(_get(Context.SLPTPTR, low)),
        ]
        with m.Switch(self.level):
            with m.Case(Level.ROOT):
                with m.If(~_get(Root.P, low)):
                    m.d.comb += self.reason.eq(FaultReason.ROOT_NOT_PRESENT)
                with m.Elif(low[1:12].any() | beyond | high.any()):
                    m.d.comb += self.reason.eq(FaultReason.ROOT_RESERVED)
            with m.Case(Level.CONTEXT):
                known = (type_ == TranslationType.PASS_THROUGH) | (type_ == TranslationType.TRANSLATE)
                with m.If(~_get(Context.P, low)):
                    m.d.comb += self.reason.eq(FaultReason.CONTEXT_NOT_PRESENT)
                with m.Elif(low[4:12].any() | beyond | high[24:].any()):
                    m.d.comb += self.reason.eq(FaultReason.CONTEXT_RESERVED)
                with m.Elif(~known | (_get(Context.AW, high) != AW_4_LEVELS)):
                    m.d.comb += self.reason.eq(FaultReason.CONTEXT_INVALID)
            with m.Default():
                present = self.may_read | self.may_write
                misplaced = self.large & ((self.level != Level.DIRECTORY) | low[12:21].any())
                reserved = low[_ADDRESS_TOP:52].any() | misplaced
                m.d.comb += [
                    self.large.eq(_get(PageEntry.PS, low) & (self.level != Level.PAGE_TABLE)),
                    self.leaf.eq((self.level == Level.PAGE_TABLE) | self.large | ~present),
                    self.reason.eq(Mux(present & reserved, FaultReason.ENTRY_RESERVED, 0)),
                ]
        return m


def _get(field, word):
    """A field of a 64-bit word of an entry."""
    return word[field.low : field.low + field.width]
