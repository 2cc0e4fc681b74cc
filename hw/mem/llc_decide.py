"""The coherence protocol: what one pass of a slot through the last-level cache does."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import Cap

from .llc_bits import one_hot
from .llc_layouts import LlcLayouts, SlotKind
from .llc_tags import TagArray

__all__ = ["Decide"]


class Decide(wiring.Component):
    """Combinational: from a slot's request and progress and the rows of its set to updates and actions.

    A transaction passes here until it is done. Each pass does the first of these that is due:

    1. the back-invalidated line has come back: drop it from the snoop filter; its dirty data go into the cache
       if that holds the line, else to DRAM; then pass again;
    2. a Release updates filter and cache and is acknowledged;
    3. other holders must give up the line (before a write), or its owner must share it (before a read): probe;
    4. an Acquire finds no room in the snoop filter: back-invalidate the least recently acquired line;
    5. the cache is inclusive, and the line that has to make room in it is held: back-invalidate that line. When it has
       come back (1.) it leaves the cache too;
    6. everybody else has answered: use the line a core returned, else the cache's, else fetch it from DRAM
       and pass again when it is there. A device write that is ready but not the oldest waits for its turn.

    Where a dirty line returned by a core goes: into the cache on a hit; on a miss, it allocates, except
    for a device read, which never allocates and writes it to DRAM.
    """

    def __init__(self, layouts: LlcLayouts, tags: TagArray, snoop_filter: TagArray):
        self._layouts = layouts
        super().__init__(
            {
                "valid": In(1),
                "request": In(layouts.request),
                "progress": In(layouts.progress),
                "line": In(layouts.line_width),
                "cache": In(tags.result_layout),
                "filter": In(snoop_filter.result_layout),
                "owner": In(layouts.owner_width),  # of what the request allocates
                "victim_held": In(1),  # inclusive: the line to be replaced is in private caches,
                "victim_sharers": In(layouts.clients),  # ... these
                "cache_update": Out(tags.update_layout),
                "filter_update": Out(snoop_filter.update_layout),
                "actions": Out(layouts.actions),
                "next": Out(layouts.next),
                "events": Out(layouts.events),
            }
        )
        # How the branches below use the cache: at most one of these is high.
        self._store = Signal()  # the line buffer's line goes into the cache, replacing a line on a miss
        self._reserve = Signal()  # a way is given to a line that DRAM will bring
        self._load = Signal()  # the cache's line goes to the line buffer
        self._store_dirty = Signal()

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        request, progress = self.request, self.progress
        holder = self.filter.found
        client = Signal(self._layouts.clients)
        others = Signal(self._layouts.clients)
        for_writing = Signal()
        to_probe = Signal(self._layouts.clients)

        with m.If(self.valid):
            with m.Switch(request.kind):
                with m.Case(SlotKind.ACQUIRE):
                    m.d.comb += for_writing.eq(request.exclusive)
                with m.Case(SlotKind.DEVICE_WRITE):
                    m.d.comb += for_writing.eq(1)
            with m.If((request.kind == SlotKind.ACQUIRE) | (request.kind == SlotKind.RELEASE)):
                m.d.comb += client.eq(one_hot(request.client, self._layouts.clients))
            with m.If(self.filter.hit):
                m.d.comb += others.eq(holder.sharers & ~client)
            with m.If(~progress.probed & (for_writing | holder.exclusive)):
                m.d.comb += to_probe.eq(others)

            with m.If(progress.evicting):
                self._finish_back_invalidation(m)
            with m.Elif(request.kind == SlotKind.RELEASE):
                self._release(m, others)
            with m.Elif(to_probe.any()):
                m.d.comb += [
                    self.actions.probe.eq(to_probe),
                    self.actions.probe_line.eq(self.line),
                    self.actions.cap.eq(Mux(for_writing, Cap.TO_N, Cap.TO_B)),
                    self.next.probed.eq(1),
                ]
            with m.Elif((request.kind == SlotKind.ACQUIRE) & ~self.filter.hit & self.filter.victim.valid):
                self._back_invalidate(m)
            with m.Elif(self._displaces_held()):
                self._call_victim_back(m)
            with m.Else():
                remaining = Signal(self._layouts.clients)
                with m.If(~progress.probed | (progress.kept & ~for_writing)):
                    m.d.comb += remaining.eq(others)
                with m.Switch(request.kind):
                    with m.Case(SlotKind.ACQUIRE):
                        self._acquire(m, client, remaining)
                    with m.Case(SlotKind.DEVICE_READ):
                        self._device_read(m, remaining)
                    with m.Case(SlotKind.DEVICE_WRITE):
                        self._device_write(m)
            self._use_cache(m)
        return m

    def _back_invalidate(self, m):
        victim = self.filter.victim
        m.d.comb += [
            self.actions.probe.eq(victim.sharers),
            self.actions.probe_line.eq(Cat(self.line[: self._layouts.filter_set_width], victim.tag)),
            self.actions.cap.eq(Cap.TO_N),
            self.next.evicting.eq(1),
            self.events.back_invalidate.eq(1),
        ]

    def _displaces_held(self):
        """Whether the request will take the place of a line that private caches hold and may not keep."""
        if not self._layouts.inclusive:
            return Const(0)
        kind = self.request.kind
        allocates = (kind == SlotKind.ACQUIRE) | ((kind == SlotKind.DEVICE_WRITE) & ~self.request.around)
        return allocates & ~self.cache.hit & self.cache.victim.valid & self.victim_held

    def _call_victim_back(self, m):
        m.d.comb += [
            self.actions.probe.eq(self.victim_sharers),
            self.actions.probe_line.eq(Cat(self.line[: self._layouts.set_width], self.cache.victim.tag)),
            self.actions.cap.eq(Cap.TO_N),
            self.next.evicting.eq(1),
            self.next.replacing.eq(1),
            self.events.back_invalidate.eq(1),
        ]

    def _finish_replacing(self, m):
        """The line called back leaves the cache, too: to DRAM what a core returned, else what the cache has."""
        returned, found = self.progress.dirty, self.cache.found
        m.d.comb += [
            self.cache_update.write.eq(self.cache.hit),
            self.cache_update.way.eq(self.cache.way),
            self.actions.dram_write.eq(returned | found.dirty),
            self.actions.write_spare.eq(1),
            self.actions.write_line.eq(self.line),
            self.actions.load.eq(~returned & found.dirty),
            self.actions.load_spare.eq(1),
            self.events.evict.eq(1),
            self.events.evict_dirty.eq(returned | found.dirty),
            self.events.evict_unread.eq(found.unread),
            self.events.leave.eq(1),
        ]

    def _finish_back_invalidation(self, m):
        m.d.comb += [
            self.filter_update.write.eq(1),
            self.filter_update.way.eq(self.filter.way),
            self.next.evicted.eq(1),
        ]
        if self._layouts.inclusive:
            with m.If(self.progress.replacing):
                self._finish_replacing(m)
        with m.If(self.progress.dirty & ~self.progress.replacing):
            with m.If(self.cache.hit):
                m.d.comb += [self._store.eq(1), self._store_dirty.eq(1), self.actions.fill_spare.eq(1)]
            with m.Else():
                m.d.comb += [
                    self.actions.dram_write.eq(1),
                    self.actions.write_spare.eq(1),
                    self.actions.write_line.eq(self.line),
                ]

    def _release(self, m, others):
        request = self.request
        left = Mux(request.keeps, self.filter.found.sharers, others)
        held = self.filter.hit & (self.filter.found.sharers != others)
        with m.If(~self.progress.taken):
            with m.If(held):
                self._set_holders(m, self.filter.way, left, 0)
            m.d.comb += [
                self._store.eq(request.with_data),
                self._store_dirty.eq(1),
                self.actions.unlock.eq(1),
            ]
        m.d.comb += [self.actions.release_ack.eq(1), self.actions.free.eq(1)]

    def _acquire(self, m, client, remaining):
        alone = self.request.exclusive | ~remaining.any()
        way = Mux(self.filter.hit, self.filter.way, self.filter.victim_way)
        self._set_holders(m, way, client | remaining, alone)
        m.d.comb += self.filter_update.touch.eq(1)
        with m.If(self.progress.have_line):
            m.d.comb += [self._store.eq(1), self._store_dirty.eq(self.progress.dirty)]
        with m.Elif(self.cache.hit):
            m.d.comb += self._load.eq(1)
        with m.Else():
            m.d.comb += [self._reserve.eq(1), self.actions.dram_read.eq(1), self.events.core_miss.eq(1)]
        with m.If(self.progress.have_line | self.cache.hit):
            m.d.comb += [
                self.actions.grant.eq(1),
                self.actions.cap.eq(Mux(alone, Cap.TO_T, Cap.TO_B)),
                self.events.core_hit.eq(~self.progress.fetched),
            ]

    def _device_read(self, m, remaining):
        with m.If(self.progress.probed & self.filter.hit):
            self._set_holders(m, self.filter.way, remaining, 0)
        with m.If(self.progress.have_line):
            with m.If(self.progress.dirty):
                m.d.comb += [
                    self._store.eq(self.cache.hit),
                    self._store_dirty.eq(1),
                    self.actions.dram_write.eq(~self.cache.hit),
                    self.actions.write_line.eq(self.line),
                ]
        with m.Elif(self.cache.hit):
            m.d.comb += self._load.eq(1)
        with m.Else():
            m.d.comb += [self.actions.dram_read.eq(1), self.events.read_miss.eq(1)]
        with m.If(self.progress.have_line | self.cache.hit):
            m.d.comb += [
                self.actions.respond.eq(1),
                self.actions.unlock.eq(1),
                self.events.read_hit.eq(~self.progress.fetched),
            ]

    def _device_write(self, m):
        request, progress, cache = self.request, self.progress, self.cache
        whole = request.full | progress.have_line
        with m.If(~(whole | cache.hit | request.empty)):
            m.d.comb += self.actions.dram_read.eq(1)
        with m.Elif(~progress.oldest):
            m.d.comb += self.next.prepared.eq(1)
        with m.Else():
            m.d.comb += [
                self.actions.commit.eq(1),
                self.actions.unlock.eq(1),
                self.actions.free.eq(1),
                # The cache's bytes join those of the device in the line buffer before it is read.
                self.actions.load.eq(~whole & cache.hit),
                self.filter_update.write.eq(self.filter.hit),
                self.filter_update.way.eq(self.filter.way),
            ]
            with m.If(~request.around):
                m.d.comb += [
                    self._store.eq(1),
                    self._store_dirty.eq(1),
                    self.events.write_update.eq(cache.hit),
                    self.events.write_allocate.eq(~cache.hit),
                ]
            with m.Else():
                returned = progress.have_line & progress.dirty
                held = ~progress.have_line & cache.hit & cache.found.dirty
                m.d.comb += [
                    self.actions.dram_write.eq(~request.empty | returned | held),
                    self.actions.write_line.eq(self.line),
                    self.cache_update.write.eq(cache.hit),
                    self.cache_update.way.eq(cache.way),
                    self.events.write_dram.eq(1),
                    self.events.leave.eq(cache.hit),
                ]

    def _set_holders(self, m, way, sharers, exclusive):
        """Write the filter's entry; one without sharers is free."""
        m.d.comb += [
            self.filter_update.write.eq(1),
            self.filter_update.way.eq(way),
            self.filter_update.entry.tag.eq(self.line >> self._layouts.filter_set_width),
            self.filter_update.entry.valid.eq(sharers.any()),
            self.filter_update.entry.sharers.eq(sharers),
            self.filter_update.entry.exclusive.eq(exclusive),
        ]

    def _use_cache(self, m):
        """Carry out ``_store``, ``_reserve`` and ``_load``."""
        cache, entry = self.cache, self.cache_update.entry
        by_device = self.request.kind == SlotKind.DEVICE_WRITE
        m.d.comb += self.actions.way.eq(Mux(cache.hit, cache.way, cache.victim_way))
        with m.If(self._load):
            m.d.comb += [
                self.actions.load.eq(1),
                self.cache_update.touch.eq(1),
                self.cache_update.way.eq(cache.way),
                self.cache_update.write.eq(cache.found.unread),
                entry.eq(cache.found),
                entry.unread.eq(0),
            ]
        with m.If(self._store | self._reserve):
            m.d.comb += [
                self.actions.fill.eq(self._store),
                self.cache_update.touch.eq(1),
                self.cache_update.way.eq(self.actions.way),
                self.cache_update.write.eq(1),
                entry.tag.eq(self.line >> self._layouts.set_width),
                entry.valid.eq(1),
                entry.dirty.eq(self._store_dirty | (cache.hit & cache.found.dirty)),
                entry.unread.eq(by_device),
                entry.owner.eq(Mux(cache.hit, cache.found.owner, self.owner)),
                self.events.enter.eq(~cache.hit),
            ]
            with m.If(~cache.hit & cache.victim.valid):
                m.d.comb += [
                    self.events.evict.eq(1),
                    self.events.evict_unread.eq(cache.victim.unread),
                    self.events.leave.eq(1),
                ]
                with m.If(cache.victim.dirty):
                    m.d.comb += [
                        self.actions.load.eq(1),
                        self.actions.load_spare.eq(1),
                        self.actions.dram_write.eq(1),
                        self.actions.write_spare.eq(1),
                        self.actions.write_line.eq(Cat(self.line[: self._layouts.set_width], cache.victim.tag)),
                        self.events.evict_dirty.eq(1),
                    ]
