"""Page walks of the IOMMU: reads of root, context and page tables in memory."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.memory import DeviceRequest, DeviceResponse, MemoryOp
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BYTES
from hw.bus.translate import FRAME_WIDTH
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH

from .choice import steady_choice
from .entry import Entry
from .layouts import LEVEL_WIDTH, PAGE_WIDTH, REASON_WIDTH, Fill, Level, Translated, WalkContext
from .read_delay import ReadDelay
from .registers import FaultReason
from .tables import CONTEXT_ENTRY_BYTES, PAGE_ENTRY_BYTES, REQUESTER_ID, ROOT_ENTRY_BYTES, TABLE_BYTES

__all__ = ["WalkStart", "Walkers"]


class WalkStart(data.Struct):
    """A page to be looked for, and from which table on."""

    page: PAGE_WIDTH
    level: LEVEL_WIDTH
    table: FRAME_WIDTH


class WalkRead(data.Struct):
    """A line to be read."""

    line: LINE_ADDRESS_WIDTH
    tag: 8


class _State(enum.Enum, shape=3):
    IDLE = 0
    ASK = 1  #: wants to read the entry at its level
    WAIT = 2  #: for the entry
    FILL = 3  #: the caches
    TELL = 4  #: the requests that wait


class _Walk:
    """One walk's registers."""

    def __init__(self, number: int, slots: int):
        def signal(shape, name):
            return Signal(shape, name=f"walk{number}_{name}")

        self.state = signal(_State, "state")
        self.page = signal(PAGE_WIDTH, "page")
        self.level = signal(LEVEL_WIDTH, "level")
        self.table = signal(FRAME_WIDTH, "table")  # number of the page of the table being read
        self.found = signal(Translated, "found")
        self.large = signal(1, "large")
        self.directory = signal(FRAME_WIDTH, "directory")
        self.directory_known = signal(1, "directory_known")
        self.open = signal(1, "open")  # every table so far may be read and written through
        self.loads = signal(3, "loads")
        self.waiting = signal(slots, "waiting")  # requests


class Walkers(wiring.Component):
    """``walks`` page walks at once, one per page of 4 KiB, in domain ``uncore``.

    A request whose page is not being walked starts a walk, if one is free (``start.ready``); one whose page is joins
    that walk. A walk reads one entry after the other, each a line from memory: four for a page of 4 KiB, three for
    one of 2 MiB, fewer where the caches knew a table, two more if the context entry is unknown. The first read is
    offered in the cycle after ``start``, each further one in the cycle after the answer, both ``read_cycles`` later if
    the way to memory takes that long. Then what has been learned
    enters the caches (two cycles), and the requests that wait are told, one per cycle; only then is the walk free.

    What cannot be translated is told likewise and enters no cache.

    Ports:
        start: a request, ``slot``, looks for a page.
        request, response_valid, response: line reads; tags are 0 to ``walks`` - 1.
        fill: to the caches.
        told, told_slot, translated: request ``told_slot`` has its answer, at this edge.
        context_found, context: the device's context entry has been read, at this edge.
        busy: a walk is under way.
        now: number of the next edge.
        moving: the next edge changes something here, given the inputs as they are.

    Arguments:
        walks: at least 1.
        read_cycles: what a read takes besides the memory's own time.
        slots: requests that can wait.
        memory_bytes: size of memory, from address 0; tables beyond it are errors.
    """

    def __init__(self, walks: int, slots: int, memory_bytes: int, read_cycles: int = 0):
        if walks < 1 or slots < 1:
            raise ValueError(f"an IOMMU has at least one walk for one request, not {walks} for {slots}")
        self.memory_pages = memory_bytes // TABLE_BYTES
        self.entry = Entry()
        self.read_delay = ReadDelay(WalkRead, cycles=read_cycles, depth=walks)
        super().__init__(
            {
                "start": In(stream.Signature(WalkStart)),
                "start_slot": In(range(max(2, slots))),
                "request": Out(stream.Signature(DeviceRequest)),
                "response_valid": In(1),
                "response": In(DeviceResponse),
                "fill": Out(stream.Signature(Fill)),
                "told": Out(1),
                "told_slot": Out(range(max(2, slots))),
                "translated": Out(Translated),
                "context_found": Out(1),
                "context": Out(WalkContext),
                "now": In(NOW_WIDTH),
                "busy": Out(1),
                "moving": Out(1),
            }
        )
        self.walked = Probe(
            "uncore", "an IOMMU page walk ended", page=PAGE_WIDTH, loads=3, large=1, reason=REASON_WIDTH
        )
        self.walks_made = Counter("uncore", "IOMMU page walks")
        self.loads_made = Counter("uncore", "entries read by IOMMU page walks")
        self._walks = [_Walk(number, slots) for number in range(walks)]

    def elaborate(self, platform):
        """Starting and joining, asking, taking entries, filling, telling."""
        m = Module()
        m.submodules.entry = self.entry
        m.submodules.read_delay = self.read_delay
        began = self._start(m)
        asked = self._ask(m)
        self._take(m)
        filled = self._fill(m)
        self._tell(m, began)
        m.d.comb += [
            self.busy.eq(Cat(walk.state != _State.IDLE for walk in self._walks).any()),
            self.moving.eq(
                (self.start.valid & self.start.ready)
                | asked
                | self.read_delay.moving
                | self.response_valid
                | filled
                | self.told
            ),
        ]
        return m

    def _start(self, m: Module) -> Signal:
        """Take a request; returns which walk it joins at this edge, one-hot."""
        start = self.start.payload
        count = len(self._walks)
        same, free, chosen = (Signal(count, name=name) for name in ("same", "free", "chosen"))
        with m.If(self.start.valid):
            m.d.comb += [
                same.eq(Cat((walk.state != _State.IDLE) & (walk.page == start.page) for walk in self._walks)),
                free.eq(Cat(walk.state == _State.IDLE for walk in self._walks)),
                self.start.ready.eq(same.any() | free.any()),
            ]
            with m.If(same.any()):
                m.d.comb += chosen.eq(same)
            with m.Else():
                m.d.comb += chosen.eq(free & (~free + 1)[:count])
        for walk, new in zip(self._walks, chosen & ~same, strict=True):
            with m.If(new):
                m.d.uncore += [
                    walk.state.eq(_State.ASK),
                    walk.page.eq(start.page),
                    walk.level.eq(start.level),
                    walk.table.eq(start.table),
                    walk.found.eq(Translated.const({"read": 1, "write": 1})),
                    walk.large.eq(0),
                    walk.directory_known.eq(0),
                    walk.open.eq(1),
                    walk.loads.eq(0),
                ]
        return chosen

    def _ask(self, m: Module) -> Signal:
        """Offer the next read of one walk; returns whether something happens."""
        wanting = Signal(len(self._walks))
        m.d.comb += wanting.eq(Cat(walk.state == _State.ASK for walk in self._walks))
        gone, bad = Signal(), Signal()
        choice, changes = steady_choice(m, wanting, gone, "ask")
        page, level, table = Signal(PAGE_WIDTH), Signal(LEVEL_WIDTH), Signal(FRAME_WIDTH)
        with m.If(wanting.any()):
            with m.Switch(choice):
                for number, walk in enumerate(self._walks):
                    with m.Case(number):
                        m.d.comb += [page.eq(walk.page), level.eq(walk.level), table.eq(walk.table)]
            # A table beyond the end of memory is an error and not read
            m.d.comb += bad.eq(table >= self.memory_pages)
        delay, read = self.read_delay, self.request.payload
        m.d.comb += [
            delay.now.eq(self.now),
            delay.input.valid.eq(wanting.any() & ~bad),
            delay.input.payload.line.eq(Cat(_offset(m, page, level)[ceil_log2(LINE_BYTES) :], table)),
            delay.input.payload.tag.eq(choice),
            gone.eq(bad | delay.input.ready),
            self.request.valid.eq(delay.output.valid),
            delay.output.ready.eq(self.request.ready),
            read.op.eq(MemoryOp.READ),
            read.line.eq(delay.output.payload.line),
            read.tag.eq(delay.output.payload.tag),
        ]
        reason = Signal(REASON_WIDTH)
        with m.Switch(level):
            with m.Case(Level.ROOT):
                m.d.comb += reason.eq(FaultReason.ROOT_TABLE_POINTER)
            with m.Case(Level.CONTEXT):
                m.d.comb += reason.eq(FaultReason.CONTEXT_TABLE_POINTER)
            with m.Default():
                m.d.comb += reason.eq(FaultReason.PAGE_TABLE_POINTER)
        for number, walk in enumerate(self._walks):
            with m.If(wanting[number] & gone & (choice == number)):
                with m.If(bad):
                    m.d.uncore += [walk.state.eq(_State.TELL), walk.found.reason.eq(reason)]
                with m.Else():
                    m.d.uncore += [walk.state.eq(_State.WAIT), walk.loads.eq(walk.loads + 1)]
        self.loads_made.increment(m, self.request.valid & self.request.ready)
        return changes | (wanting.any() & gone)

    def _take(self, m: Module) -> None:
        """Take an entry from memory: it names the next table, or the page, or it is an error."""
        page, level, was = Signal(PAGE_WIDTH), Signal(LEVEL_WIDTH), Signal(Translated)
        of = Signal(len(self._walks))  # whose answer it is
        low, high = Signal(64), Signal(64)
        with m.If(self.response_valid):
            m.d.comb += of.eq(1 << self.response.tag[: ceil_log2(len(self._walks))])
            for number, walk in enumerate(self._walks):
                with m.If(of[number]):
                    m.d.comb += [page.eq(walk.page), level.eq(walk.level), was.eq(walk.found)]
            word = _offset(m, page, level)[3 : ceil_log2(LINE_BYTES)]
            m.d.comb += [
                low.eq(self.response.data.word_select(word, 64)),
                high.eq(self.response.data.word_select(word | 1, 64)),
            ]

        entry = self.entry
        m.d.comb += [
            entry.level.eq(level),
            entry.low.eq(low),
            entry.high.eq(high),
            entry.readable.eq(was.read),
            entry.writable.eq(was.write),
            self.context_found.eq(self.response_valid & (level == Level.CONTEXT) & (entry.reason == 0)),
            self.context.eq(entry.context),
        ]
        pass_through = self.context_found & entry.context.pass_through
        open_ = entry.may_read & entry.may_write
        frame = entry.frame
        ends = Signal()
        paging = level <= Level.TOP
        m.d.comb += ends.eq((entry.reason != 0) | pass_through | (paging & entry.leaf))
        for number, walk in enumerate(self._walks):
            with m.If(of[number]):
                m.d.uncore += [
                    walk.found.reason.eq(entry.reason),
                    walk.large.eq(paging & entry.large),
                    walk.table.eq(frame),
                    walk.level.eq(Mux(level == Level.CONTEXT, Level.TOP, level - 1)),
                    walk.state.eq(_State.ASK),
                ]
                with m.If(paging):
                    m.d.uncore += [walk.found.read.eq(entry.may_read), walk.found.write.eq(entry.may_write)]
                    with m.If(level == Level.TOP - 1):
                        m.d.uncore += [walk.directory.eq(frame), walk.directory_known.eq(open_)]
                    with m.If(~entry.leaf):
                        m.d.uncore += walk.open.eq(open_)
                with m.If(ends):
                    m.d.uncore += [
                        walk.state.eq(_State.TELL),
                        walk.level.eq(level),
                        walk.table.eq(walk.table),
                        walk.found.frame.eq(frame),
                    ]
                    with m.If(paging & entry.large):
                        m.d.uncore += walk.found.frame.eq(Cat(page[:9], frame[9:]))
                    with m.If(pass_through):
                        m.d.uncore += walk.found.frame.eq(page)
                    with m.Elif((entry.reason == 0) & (entry.may_read | entry.may_write)):
                        m.d.uncore += walk.state.eq(_State.FILL)

    def _fill(self, m: Module) -> Signal:
        """Offer what a walk has learned to the caches; returns whether something happens."""
        wanting = Signal(len(self._walks))
        m.d.comb += wanting.eq(Cat(walk.state == _State.FILL for walk in self._walks))
        gone = self.fill.valid & self.fill.ready
        choice, changes = steady_choice(m, wanting, gone, "fill")
        m.d.comb += self.fill.valid.eq(wanting.any())
        with m.If(wanting.any()), m.Switch(choice):
            for number, walk in enumerate(self._walks):
                with m.Case(number):
                    fill = self.fill.payload
                    m.d.comb += [
                        fill.page.eq(walk.page),
                        fill.leaf.eq(1),
                        fill.large.eq(walk.large),
                        fill.frame.eq(walk.found.frame),
                        fill.read.eq(walk.found.read),
                        fill.write.eq(walk.found.write),
                        # What was read last names the page: it is in the page table, or in the directory
                        fill.table_known.eq(walk.open & ~walk.large),
                        fill.table.eq(walk.table),
                        fill.directory_known.eq(walk.directory_known),
                        fill.directory.eq(walk.directory),
                    ]
                    with m.If(gone):
                        m.d.uncore += walk.state.eq(_State.TELL)
        return changes | gone

    def _tell(self, m: Module, joining: Signal) -> None:
        """Tell the requests that wait, one per cycle; the last one ends the walk."""
        telling = Signal(len(self._walks))
        m.d.comb += [
            telling.eq(Cat(walk.state == _State.TELL for walk in self._walks)),
            self.told.eq(telling.any()),
        ]
        first = Signal(len(self._walks))
        m.d.comb += first.eq(telling & (~telling + 1)[: len(telling)])
        ended, ended_page, ended_loads, ended_large = Signal(), Signal(PAGE_WIDTH), Signal(3), Signal()
        for number, walk in enumerate(self._walks):
            left = Signal(len(walk.waiting), name=f"left{number}")
            joins = Signal(len(walk.waiting), name=f"joins{number}")
            m.d.comb += left.eq(walk.waiting)
            with m.If(joining[number]):
                m.d.comb += joins.eq(1 << self.start_slot)
            with m.If(first[number]):
                m.d.comb += [left.eq(walk.waiting & (walk.waiting - 1)), self.translated.eq(walk.found)]
                # The number of the lowest bit that is set
                for slot in reversed(range(len(walk.waiting))):
                    with m.If(walk.waiting[slot]):
                        m.d.comb += self.told_slot.eq(slot)
                with m.If(~(left | joins).any()):
                    m.d.uncore += walk.state.eq(_State.IDLE)
                    m.d.comb += [
                        ended.eq(1),
                        ended_page.eq(walk.page),
                        ended_loads.eq(walk.loads),
                        ended_large.eq(walk.large),
                    ]
            with m.If(joining[number] | first[number]):
                m.d.uncore += walk.waiting.eq(left | joins)
        self.walked.emit(m, ended, page=ended_page, loads=ended_loads, large=ended_large, reason=self.translated.reason)
        self.walks_made.increment(m, ended)


def _offset(m: Module, page: Signal, level: Signal) -> Signal:
    """Byte offset of the entry for ``page`` in a table of ``level``."""
    offset = Signal(ceil_log2(TABLE_BYTES), name="entry_offset")
    with m.Switch(level):
        with m.Case(Level.ROOT):
            m.d.comb += offset.eq((REQUESTER_ID >> 8) * ROOT_ENTRY_BYTES)
        with m.Case(Level.CONTEXT):
            m.d.comb += offset.eq(REQUESTER_ID % 256 * CONTEXT_ENTRY_BYTES)
        for paging in range(Level.TOP + 1):
            with m.Case(paging):
                m.d.comb += offset.eq(((page >> 9 * paging) % 512) * PAGE_ENTRY_BYTES)
    return offset
