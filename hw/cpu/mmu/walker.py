"""The page walker: one walk at a time, one load per table."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.bus.l1 import L1Load, L1LoadDone, L1Use
from hw.bus.translate import FRAME_WIDTH, PAGE_WIDTH
from hw.lib.probe import Counter

from .page import LEVEL_BITS, LEVELS, PageSize, PageTableEntry

__all__ = ["Walker"]

#: Bytes of an entry of a page table.
ENTRY_BYTES = 8


class Walker(wiring.Component):
    """Walks x86-64's four levels of page tables, from the table it is told to the page.

    Started at edge t, it offers its first load from t + 1 on, and the next one in the cycle after each answer. ``done``
    is high at the edge at which the last answer comes. An entry that is not present ends the walk with ``fault``.

    Ports:
        start: begin at this edge, unless ``busy``: ``page`` is looked for from a table of ``level`` (0: page table; 3:
            the top) at frame ``table``.
        drop: forget the walk. It stays ``busy`` until the load in flight has been answered, and is never ``done``.
        busy: a load is offered or in flight.
        table_found: at this edge, the entry for ``page`` says that the table of ``found_level`` lies at ``frame``.
        outside: with ``fault``: a table or the page lies where there is no memory, else an entry is not present.
        done: at this edge, the walk has ended: ``fault``, or a page of ``size`` at ``frame`` (its address bits 39:12,
            the lowest of which mean nothing for a large page), after ``loads`` loads.
        load: to the L1 data cache.
        answer_valid, answer: from it; of a use that is not WALK, not for the walker.
        quiet: see docs/architecture.md.

    Attributes:
        loads_made: counter.
    """

    def __init__(self, domain: str, memory_frames: int = 1 << FRAME_WIDTH):
        self.domain = domain
        self._memory_width = exact_log2(memory_frames)
        super().__init__(
            {
                "start": In(1),
                "page": In(PAGE_WIDTH),
                "level": In(range(LEVELS)),
                "table": In(FRAME_WIDTH),
                "drop": In(1),
                "busy": Out(1),
                "table_found": Out(1),
                "found_level": Out(range(LEVELS)),
                "done": Out(1),
                "fault": Out(1),
                "outside": Out(1),
                "size": Out(PageSize),
                "frame": Out(FRAME_WIDTH),
                "loads": Out(range(LEVELS + 1)),
                "load": Out(stream.Signature(L1Load)),
                "answer_valid": In(1),
                "answer": In(L1LoadDone),
                "quiet": Out(1),
            }
        )
        self.loads_made = Counter(domain, "loads of page table entries")
        self._offered = Signal(name="offered")
        self._in_flight = Signal(name="in_flight")
        self._dropped = Signal(name="dropped")
        self._page = Signal(PAGE_WIDTH, name="page")
        self._level = Signal(range(LEVELS), name="level")
        self._table = Signal(FRAME_WIDTH, name="table")
        self._loads = Signal(range(LEVELS + 1), name="loads")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync = m.d[self.domain]
        load, sent, answered = self.load, Signal(), Signal()
        m.d.comb += [
            self.busy.eq(self._offered | self._in_flight),
            sent.eq(load.valid & load.ready),
            answered.eq(self._in_flight & self.answer_valid & (self.answer.use == L1Use.WALK)),
            self.quiet.eq(~(self.start | sent | answered | (self.drop & self.busy & ~self._dropped))),
        ]

        # Load
        m.d.comb += load.valid.eq(self._offered)
        with m.If(self._offered):
            number = Cat(self._page.word_select(self._level, LEVEL_BITS), self._table)
            m.d.comb += [
                Cat(load.payload.offset, load.payload.line).eq(Cat(Const(0, exact_log2(ENTRY_BYTES)), number)),
                load.payload.use.eq(L1Use.WALK),
                load.payload.size.eq(ENTRY_BYTES),
            ]
        with m.If(sent):
            sync += [self._offered.eq(0), self._in_flight.eq(1), self._loads.eq(self._loads + 1)]
        self.loads_made.increment(m, sent)

        # Answer
        with m.If(answered):
            entry = data.View(PageTableEntry, self.answer.data[: PageTableEntry.size])
            maps_page = Signal()
            within = Signal(PageSize.GIB_1.value * LEVEL_BITS)  # number of the small page in a large one
            m.d.comb += [
                maps_page.eq((self._level == 0) | (entry.page_size & (self._level <= PageSize.GIB_1))),
                self.size.eq(self._level),
                self.frame.eq(entry.frame),
                self.loads.eq(self._loads),
                self.found_level.eq(self._level - 1),
            ]
            with m.Switch(self._level):
                for size in (PageSize.MIB_2, PageSize.GIB_1):
                    with m.Case(size):
                        m.d.comb += within.eq(Mux(maps_page, self._page[: size.value * LEVEL_BITS], 0))
            m.d.comb += [
                self.outside.eq(entry.present & (entry.frame | within)[self._memory_width :].any()),
                self.fault.eq(~entry.present | self.outside),
            ]
            with m.If(~self._dropped & ~self.drop):
                m.d.comb += [self.done.eq(maps_page | self.fault), self.table_found.eq(~maps_page & ~self.fault)]
            sync += [
                self._in_flight.eq(0),
                self._offered.eq(self.table_found),
                self._level.eq(self.found_level),
                self._table.eq(entry.frame),
            ]

        # Begin and drop
        with m.If(self.start & ~self.busy):
            sync += [
                self._offered.eq(1),
                self._page.eq(self.page),
                self._level.eq(self.level),
                self._table.eq(self.table),
                self._loads.eq(0),
                self._dropped.eq(0),
            ]
        with m.Elif(self.drop & self.busy):
            sync += self._dropped.eq(1)
        return m
