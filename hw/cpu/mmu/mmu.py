"""Joins the TLBs, the paging-structure caches and the walker."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw.bus.l1 import L1Load, L1LoadDone
from hw.bus.translate import FRAME_WIDTH, PAGE_WIDTH, TranslatePort
from hw.config import TlbConfig
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH, Timer

from .first_level import FirstLevelTlb
from .page import LEVELS, PageSize, frame_of, key_of, key_width, value_width
from .table import Table
from .walker import Walker

__all__ = ["Mmu"]

#: Entries of the cache of directory-pointer-table entries; a few, as each spares a walk two loads in a whole GiB.
DIRECTORY_CACHE = 4

#: Levels of the tables that the two caches name.
PAGE_TABLE, DIRECTORY = 0, 1


class _State(enum.Enum, shape=4):
    """What the unit does about one page that missed the first level."""

    IDLE = 0
    LOOK_SMALL = 1  #: the second level is asked for a page of 4 KiB
    LOOK_LARGE = 2  #: ... of 2 MiB; of 1 GiB; and the caches of paging structures
    WAIT = 3  #: until the second level answers
    BLOCKED = 4  #: by a walk that was dropped
    WALK = 5
    FILL = 6  #: the second level
    FAULT = 7  #: until another page is asked for, or none
    FORGET_SMALL = 8  #: in the second level
    FORGET_LARGE = 9


class Mmu(wiring.Component):
    """Translates for one core.

    Timing, for a page first asked for at edge t and in no first-level TLB: it hits at edge t + ``tlb.l2_latency`` if
    the second level has it. If not, the first load of the walk is offered at that edge, each further one in the cycle
    after the answer to the one before it, and the page hits in the cycle after the last: with n loads that each take
    ``a`` cycles from offer to answer, at edge t + ``tlb.l2_latency`` + n * (a + 1). A fault shows then, too. Filling
    the second level takes one more cycle, in which the next miss waits.

    A miss is seen through even if nobody asks for the page any more; pages that hit do so meanwhile. WRITE_CR3 and
    INVLPG cut it short, so that nothing read before them enters a TLB.

    A walk to a 4 KiB page needs 4 loads, 2 if the cache of directories knows the directory, 1 if that of page tables
    knows the table; to a 2 MiB page 3 or 1, to a 1 GiB page 2. INVLPG drops the page from all TLBs and empties these
    caches, as the architecture asks (Intel SDM volume 3, 4.10.4.1); two INVLPG in consecutive cycles empty the second
    level for pages up to 2 MiB, which is allowed. No PCIDs, no global pages, no rights; accessed and dirty bits are not
    written.

    Ports:
        port: the core port asks, see :class:`hw.bus.translate.TranslatePort`.
        walk: loads of page table entries.
        done_valid, done: the L1's answers; those to others are ignored.
        now: number of the next edge of ``domain``.
        quiet: see docs/architecture.md.

    Arguments:
        tlb: sizes and latency, in cycles of the core.
        domain: clock domain of the core.
        memory_frames: 4 KiB frames of memory, a power of two; those beyond are outside.

    Attributes:
        walked: probe.
        l1_misses, l2_misses: counters; loads are counted by ``walker.loads_made``.
        answer_timer: when the second level answers.
    """

    def __init__(self, tlb: TlbConfig, domain: str, memory_frames: int = 1 << FRAME_WIDTH):
        if tlb.l2_latency < 4:
            raise ValueError(
                f"looking up the second level takes at least 4 cycles, not tlb.l2_latency = {tlb.l2_latency}"
            )
        self.tlb, self.domain = tlb, domain
        super().__init__(
            {
                "port": In(TranslatePort()),
                "walk": Out(stream.Signature(L1Load)),
                "done_valid": In(1),
                "done": In(L1LoadDone),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )

        def widths(size: PageSize) -> dict[str, int]:
            return {"key_width": key_width(size), "value_width": value_width(size)}

        def first_level(entries: int, ways: int, size: PageSize) -> FirstLevelTlb:
            return FirstLevelTlb(sets=entries // ways, ways=ways, **widths(size), domain=domain)

        def structures(entries: int, size: PageSize) -> Table:
            """A cache of tables that each cover what a page of this size does."""
            return Table(sets=1, ways=entries, key_width=key_width(size), value_width=FRAME_WIDTH, domain=domain)

        self.l1_4k = first_level(tlb.l1_4k, tlb.l1_ways, PageSize.KIB_4)
        self.l1_2m = first_level(tlb.l1_2m, tlb.l1_ways, PageSize.MIB_2)
        self.l1_1g = first_level(tlb.l1_1g, tlb.l1_1g, PageSize.GIB_1)
        # A large page's number is marked as such by one more bit above it
        self.l2 = Table(
            sets=tlb.l2 // tlb.l2_ways,
            ways=tlb.l2_ways,
            key_width=PAGE_WIDTH + 1,
            value_width=FRAME_WIDTH,
            domain=domain,
        )
        self.l2_1g = Table(sets=1, ways=tlb.l2_1g, **widths(PageSize.GIB_1), domain=domain)
        self.page_tables = structures(tlb.walk_cache, PageSize.MIB_2)
        self.directories = structures(DIRECTORY_CACHE, PageSize.GIB_1)
        self.walker = Walker(domain, memory_frames)
        self._memory_width = exact_log2(memory_frames)

        self.walked = Probe(domain, "a page walk ended", page=PAGE_WIDTH, size=PageSize, loads=3, fault=1)
        self.l1_misses = Counter(domain, "pages looked for beyond the first-level TLBs")
        self.l2_misses = Counter(domain, "pages looked for beyond the second-level TLB")
        self.answer_timer = Timer(domain)

        self._root = Signal(FRAME_WIDTH, name="root")
        self._on = Signal(name="on")
        self._look = Signal(name="look")
        self._missed = Signal(name="missed")
        self._abort = Signal(name="abort")
        self._outside = Signal(name="outside")  # with State.FAULT: why
        self._state = Signal(_State, name="state")
        # The page that missed, or is to be forgotten; whether the second level has it as a small one; where a walk
        # found it
        self._page = Signal(PAGE_WIDTH, name="page")
        self._asked = Signal(PAGE_WIDTH, name="asked")  # of the tables in this cycle
        self._large = Signal(name="large")  # as a large page
        self._small = Signal(name="small")
        self._frame = Signal(FRAME_WIDTH, name="frame")
        # What enters the first level
        self._fill = Signal(name="fill")
        self._fill_size = Signal(PageSize, name="fill_size")
        self._fill_frame = Signal(FRAME_WIDTH, name="fill_frame")

    @property
    def _first_level(self):
        return {PageSize.KIB_4: self.l1_4k, PageSize.MIB_2: self.l1_2m, PageSize.GIB_1: self.l1_1g}

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        for name in ("l1_4k", "l1_2m", "l1_1g", "l2", "l2_1g", "page_tables", "directories", "walker"):
            m.submodules[name] = getattr(self, name)
        self._hit_or_miss(m)
        self._keys(m)
        with m.Switch(self._state):
            self._look_further(m)
            self._walk(m)
            self._forget(m)
        self._fill_first_level(m)
        self._set_root_or_forget(m)
        self._observe(m)
        return m

    def _hit_or_miss(self, m: Module) -> None:
        """The first level, in the cycle in which it is asked."""
        port = self.port
        m.d.comb += [
            self._on.eq(self._root.any()),
            self._look.eq(port.valid & self._on),
            self._abort.eq(port.set_root | port.forget),
        ]
        for size, tlb in self._first_level.items():
            m.d.comb += [
                tlb.look.eq(self._look),
                tlb.forget.eq(port.forget),
                tlb.flush.eq(port.set_root),
                tlb.key.eq(key_of(port.page, size)),
            ]
        with m.If(self._look):
            for size, tlb in self._first_level.items():
                with m.If(tlb.hit):
                    m.d.comb += [port.hit.eq(1), port.frame.eq(frame_of(tlb.value, port.page, size))]
            m.d.comb += [
                port.fault.eq((self._state == _State.FAULT) & (port.page == self._page)),
                port.outside.eq(self._outside),
                self._missed.eq(~port.hit & ~port.fault),
            ]
        with m.Elif(port.valid):
            m.d.comb += [
                port.outside.eq(port.page[self._memory_width :].any()),
                port.fault.eq(port.outside),
                port.hit.eq(~port.outside),
                port.frame.eq(port.page),
            ]

    def _keys(self, m: Module) -> None:
        """What is asked of, and written to, the tables behind the first level."""
        walker, asked = self.walker, self._asked
        small, large = key_of(asked, PageSize.KIB_4), key_of(asked, PageSize.MIB_2)
        m.d.comb += [
            asked.eq(self._page),
            self.l2.key.eq(Cat(Mux(self._large, large, small), self._large)),
            self.l2.write_value.eq(self._frame),
            self.l2_1g.key.eq(key_of(asked, PageSize.GIB_1)),
            self.l2_1g.write_value.eq(key_of(walker.frame, PageSize.GIB_1)),
            walker.page.eq(self._page),
        ]
        for level, size, cache in (
            (PAGE_TABLE, PageSize.MIB_2, self.page_tables),
            (DIRECTORY, PageSize.GIB_1, self.directories),
        ):
            m.d.comb += [
                cache.key.eq(key_of(asked, size)),
                cache.write.eq(walker.table_found & (walker.found_level == level)),
                cache.write_value.eq(walker.frame),
            ]

    def _go(self, m: Module, state: _State) -> None:
        m.d[self.domain] += self._state.eq(state)

    def _look_further(self, m: Module) -> None:
        """A miss begins; the second level is asked for each size, and answers when its latency is over."""
        sync = m.d[self.domain]
        l2, l2_1g = self.l2, self.l2_1g
        with m.Case(_State.IDLE):
            with m.If(self._missed):
                m.d.comb += [l2.look.eq(1), self._asked.eq(self.port.page)]
                sync += [
                    self._page.eq(self.port.page),
                    self.answer_timer.deadline.eq(self.now + (self.tlb.l2_latency - 1)),
                ]
                self._go(m, _State.LOOK_SMALL)
        with m.Case(_State.LOOK_SMALL):
            m.d.comb += [l2.look.eq(~l2.hit), self._large.eq(1)]
            m.d.comb += [table.look.eq(1) for table in (l2_1g, self.page_tables, self.directories)]
            sync += self._small.eq(l2.hit)
            self._go(m, _State.LOOK_LARGE)
        with m.Case(_State.LOOK_LARGE):
            self._go(m, _State.WAIT)
        with m.Case(_State.WAIT):
            with m.If(self.now >= self.answer_timer.deadline):
                m.d.comb += self._fill.eq(l2.hit | l2_1g.hit)
                self._go(m, _State.IDLE)
                with m.If(l2.hit):
                    m.d.comb += [
                        l2.touch.eq(1),
                        self._fill_size.eq(Mux(self._small, PageSize.KIB_4, PageSize.MIB_2)),
                        self._fill_frame.eq(l2.value),
                    ]
                with m.Elif(l2_1g.hit):
                    m.d.comb += [
                        l2_1g.touch.eq(1),
                        self._fill_size.eq(PageSize.GIB_1),
                        self._fill_frame.eq(frame_of(l2_1g.value, self._page, PageSize.GIB_1)),
                    ]
                with m.Else():
                    self._begin_walk(m)

    def _begin_walk(self, m: Module) -> None:
        """From the lowest table that is known. A walk that was dropped ends first."""
        walker, page_tables, directories = self.walker, self.page_tables, self.directories
        self._go(m, _State.BLOCKED)
        with m.If(~walker.busy):
            m.d.comb += [walker.start.eq(~self._abort), walker.level.eq(LEVELS - 1), walker.table.eq(self._root)]
            with m.If(page_tables.hit):
                m.d.comb += [
                    page_tables.touch.eq(1),
                    walker.level.eq(PAGE_TABLE),
                    walker.table.eq(page_tables.value),
                ]
            with m.Elif(directories.hit):
                m.d.comb += [
                    directories.touch.eq(1),
                    walker.level.eq(DIRECTORY),
                    walker.table.eq(directories.value),
                ]
            self._go(m, _State.WALK)
            with m.If(~(page_tables.hit | directories.hit) & self._root[self._memory_width :].any()):
                m.d.comb += walker.start.eq(0)
                m.d[self.domain] += self._outside.eq(1)
                self._go(m, _State.FAULT)

    def _walk(self, m: Module) -> None:
        """The walk's end fills the first level and, one cycle later, the second."""
        sync = m.d[self.domain]
        walker, l2 = self.walker, self.l2
        with m.Case(_State.BLOCKED):
            self._begin_walk(m)
        with m.Case(_State.WALK):
            with m.If(walker.done):
                sync += [self._frame.eq(walker.frame), self._outside.eq(walker.outside)]
                with m.If(walker.fault):
                    self._go(m, _State.FAULT)
                with m.Else():
                    m.d.comb += [
                        self._fill.eq(1),
                        self._fill_size.eq(walker.size),
                        self._fill_frame.eq(walker.frame),
                        self._large.eq(walker.size == PageSize.MIB_2),
                    ]
                    with m.If(walker.size == PageSize.GIB_1):
                        m.d.comb += self.l2_1g.write.eq(1)
                        self._go(m, _State.IDLE)
                    with m.Else():
                        m.d.comb += l2.look.eq(1)
                        self._go(m, _State.FILL)
        with m.Case(_State.FILL):
            m.d.comb += l2.write.eq(~self._abort)
            self._go(m, _State.IDLE)
        with m.Case(_State.FAULT):
            with m.If(~self.port.fault):
                self._go(m, _State.IDLE)

    def _forget(self, m: Module) -> None:
        """INVLPG in the second level, one size after the other; the first level has forgotten already."""
        l2, l2_1g = self.l2, self.l2_1g
        with m.Case(_State.FORGET_SMALL):
            m.d.comb += [l2.forget.eq(1), l2_1g.forget.eq(1), l2.look.eq(1), self._large.eq(1)]
            self._go(m, _State.FORGET_LARGE)
        with m.Case(_State.FORGET_LARGE):
            m.d.comb += l2.forget.eq(1)
            self._go(m, _State.IDLE)

    def _fill_first_level(self, m: Module) -> None:
        for size, tlb in self._first_level.items():
            m.d.comb += [tlb.write_key.eq(key_of(self._page, size)), tlb.write_value.eq(key_of(self._fill_frame, size))]
        with m.If(self._fill & ~self._abort):
            with m.Switch(self._fill_size):
                for size, tlb in self._first_level.items():
                    with m.Case(size):
                        m.d.comb += tlb.write.eq(1)

    def _set_root_or_forget(self, m: Module) -> None:
        """Wins over whatever is under way."""
        sync = m.d[self.domain]
        port, l2, l2_1g = self.port, self.l2, self.l2_1g
        m.d.comb += [
            self.walker.drop.eq(self._abort),
            self.page_tables.flush.eq(self._abort),
            self.directories.flush.eq(self._abort),
        ]
        with m.If(port.set_root):
            m.d.comb += [l2.flush.eq(1), l2_1g.flush.eq(1), l2.look.eq(0)]
            sync += self._root.eq(port.root[-FRAME_WIDTH:])
            self._go(m, _State.IDLE)
        with m.Elif(port.forget):
            m.d.comb += [self._asked.eq(port.page), self._large.eq(0), l2.look.eq(1), l2_1g.look.eq(1)]
            sync += self._page.eq(port.page)
            self._go(m, _State.FORGET_SMALL)
            # The page forgotten just before is not looked for as a large one, then: forget all
            m.d.comb += l2.flush.eq(self._state == _State.FORGET_SMALL)

    def _observe(self, m: Module) -> None:
        """Probes, counters, time, quiet."""
        walker, state = self.walker, self._state
        connect(m, walker.load, flipped(self.walk))
        m.d.comb += [
            walker.answer_valid.eq(self.done_valid),
            walker.answer.eq(self.done),
            self.answer_timer.armed.eq(state == _State.WAIT),
        ]
        self.walked.emit(m, walker.done, page=self._page, size=walker.size, loads=walker.loads, fault=walker.fault)
        self.l1_misses.increment(m, (state == _State.IDLE) & self._missed)
        self.l2_misses.increment(m, walker.start)

        resting = Signal()
        with m.Switch(state):
            with m.Case(_State.IDLE):
                m.d.comb += resting.eq(~self._missed)
            with m.Case(_State.WAIT, _State.WALK):
                m.d.comb += resting.eq(1)
            with m.Case(_State.BLOCKED):
                m.d.comb += resting.eq(walker.busy)
            with m.Case(_State.FAULT):
                m.d.comb += resting.eq(self.port.fault)
        uses = self.l1_4k.changes | self.l1_2m.changes | self.l1_1g.changes
        m.d.comb += self.quiet.eq(resting & walker.quiet & ~self._abort & ~uses)
