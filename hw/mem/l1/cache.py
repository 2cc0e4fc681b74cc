"""The L1 data cache: private, write-back, write-allocate, coherent by TileLink."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.l1 import L1Load, L1Port, L1Store
from hw.bus.tilelink import (
    LINE_ADDRESS_WIDTH,
    LINE_BITS,
    LINE_BYTES,
    SOURCE_WIDTH,
    Cap,
    Grow,
    OpcodeA,
    OpcodeC,
    OpcodeD,
    Shrink,
    TileLink,
)
from hw.config import CoreConfig, L1Config
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM

from .answers import LoadAnswers
from .encode import first_set, one_of
from .misses import MissFile
from .replacement import TreePlru
from .state import Kind, LineState, tag_row
from .waiting import WaitingLoads

__all__ = ["L1Cache"]

#: Releases without an answer; the last level keeps a buffer for this many from each cache.
RELEASES = 2


class L1Cache(wiring.Component):
    """A non-blocking L1 data cache with real data, as many lines missed at once as it has MSHRs.

    **Pipeline.** One pass per cycle, everything in order. Stage 0 chooses what to do and reads the tags of a set.
    Stage 1 compares them, reads or writes one line of the data array, and does all that changes state. Stage 2
    has the line that was read: bytes for the core, or a line for channel C. After a pass that wrote a tag, stage 0
    pauses for a cycle.

    A load accepted at edge t that hits answers at edge t + ``l1.latency``. A store accepted at edge t that hits a
    writable line is done at edge t + 2, if no one else wants the pipeline; one every 2 cycles. A load that
    misses offers its Acquire at edge t + 4 at the earliest; with the Grant offered at edge g, it answers at
    edge g + 2 + ``l1.latency``, and one more load of the same line in each cycle after.

    **Misses.** A missed line gets an MSHR at once, its way later, in a pass of its own (ALLOCATE) that also evicts
    what is in that way: a Release for every valid line, so that the snoop filter stays exact. An arriving line
    therefore finds its place empty, needs neither channel A nor C, and can always be taken.

    **Progress.** When a line arrives, the loads that wait for it, and the oldest store if it may write the line now,
    go before any Probe, any eviction and any other Grant. So no line comes in vain, whatever the last level does,
    and a Probe waits for at most ``core.load_queue`` loads, a store, and for channel C, on which it takes turns with
    the Releases. Loads and stores that found no free MSHR get the next ones by turns, before newcomers. A
    GrantAck leaves before any later Acquire.

    The core never has more than ``core.load_queue`` loads without an answer in this cache (prefetches
    not counted).

    Arguments:
        l1: sizes and latencies.
        core: ``load_queue`` bounds the loads in flight.
        domain: clock domain of the core.

    Attributes:
        miss, refill, probe: observability probes.
        loads, load_misses, store_misses, evictions_clean, evictions_dirty, probes_received: counters.
    """

    def __init__(self, l1: L1Config, core: CoreConfig, domain: str):
        if l1.latency < 4:
            raise ValueError(f"the pipeline needs an l1.latency of at least 4 cycles, not {l1.latency}")
        if l1.mshrs + RELEASES > 1 << SOURCE_WIDTH:
            raise ValueError(f"l1.mshrs must be at most {(1 << SOURCE_WIDTH) - RELEASES}, not {l1.mshrs}")
        self.l1, self.domain = l1, domain
        super().__init__({"port": In(L1Port()), "tilelink": Out(TileLink()), "quiet": Out(1)})

        self.row = tag_row(l1.sets, l1.ways)
        self.tags = RAM(width=self.row.size, depth=l1.sets, lanes=l1.ways, domain=domain)
        self.data = RAM(width=LINE_BITS, depth=l1.sets * l1.ways, lanes=LINE_BYTES, domain=domain)
        self.replacement = TreePlru(sets=l1.sets, ways=l1.ways, domain=domain)
        self.misses = MissFile(count=l1.mshrs, loads=core.load_queue, ways=l1.ways, domain=domain)
        self.waiting = WaitingLoads(depth=core.load_queue, domain=domain)
        self.answers = LoadAnswers(delay=l1.latency - 2, domain=domain)

        self.miss = Probe(domain, "a line was missed", line=LINE_ADDRESS_WIDTH, write=1)
        self.refill = Probe(domain, "a line arrived", line=LINE_ADDRESS_WIDTH, state=LineState)
        self.probe = Probe(domain, "the last level took back permissions", line=LINE_ADDRESS_WIDTH, cap=Cap)
        self.loads = Counter(domain, "loads accepted, prefetches not counted")
        self.load_misses = Counter(domain, "loads that did not find their line")
        self.store_misses = Counter(domain, "stores that did not find their line writable")
        self.evictions_clean = Counter(domain, "lines released without data")
        self.evictions_dirty = Counter(domain, "lines released with data")
        self.probes_received = Counter(domain, "probes taken")

        # Stage 1
        self._valid = Signal(name="s1_valid")
        self._kind = Signal(Kind, name="s1_kind")
        self._load = Signal(L1Load, name="s1_load")  # its line is that of every kind
        self._replay = Signal(name="s1_replay")
        self._slot = Signal(range(core.load_queue), name="s1_slot")
        self._cap = Signal(Cap, name="s1_cap")
        # What it found
        self._entries = data.View(self.row, self.tags.read_data)
        self._matches = Signal(l1.ways, name="matches")
        self._match_way = Signal(range(l1.ways), name="match_way")
        self._state = Signal(LineState, name="state")
        self._hit = Signal(name="hit")
        # What it does
        self._write_tag = Signal(name="write_tag")
        self._way = Signal(range(l1.ways), name="way")
        self._entry = Signal(self.row.elem_shape, name="entry")
        # Stage 2
        self._answer = Signal(name="s2_answer")
        self._answer_load = Signal(L1Load, name="s2_load")
        self._send = Signal(name="s2_send")
        # The oldest store
        self._store = Signal(L1Store, name="store")
        self._store_valid = Signal(name="store_valid")
        self._store_asleep = Signal(name="store_asleep")  # until an MSHR retires
        self._store_missed = Signal(name="store_missed")
        self._store_starved = Signal(name="store_starved")  # the next free MSHR is for it
        self._store_allocated_last = Signal(name="store_allocated_last")  # then waiting loads come first
        # The line that arrived last, and what waits for it
        self._draining = Signal(name="draining")
        self._drain_index = Signal(range(l1.mshrs), name="drain_index")
        self._drain_store = Signal(name="drain_store")
        # Allocation
        self._blocked = Signal(name="blocked")  # until an MSHR retires or a Release is answered
        self._probed_last = Signal(name="probed_last")  # whose turn it is on channel C
        self._releases = Signal(RELEASES, name="releases")
        self._release_sent = Signal(RELEASES, name="release_sent")
        self._release_done = Signal(RELEASES, name="release_done")
        self._release_lines = [Signal(LINE_ADDRESS_WIDTH, name=f"release_line{i}") for i in range(RELEASES)]

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.tags = self.tags
        m.submodules.data = self.data
        m.submodules.replacement = self.replacement
        m.submodules.misses = self.misses
        m.submodules.waiting = self.waiting
        m.submodules.answers = self.answers
        self._take_store(m)
        self._stage_0(m)
        self._look_up(m)
        with m.If(self._valid):
            with m.Switch(self._kind):
                with m.Case(Kind.LOAD):
                    self._do_load(m)
                with m.Case(Kind.STORE):
                    self._do_store(m)
                with m.Case(Kind.PROBE):
                    self._do_probe(m)
                with m.Case(Kind.ALLOCATE):
                    self._do_allocate(m)
                with m.Case(Kind.REFILL):
                    self._do_refill(m)
        self._arrays(m)
        self._stage_2(m)
        # Below the passes: what wakes wins over what puts to sleep at the same edge.
        self._finish_drain(m)
        self._channels(m)
        return m

    @property
    def _line(self):
        return self._load.line

    def _set_of(self, line):
        return line[: (self.l1.sets - 1).bit_length()]

    def _tag_of(self, line):
        return line[(self.l1.sets - 1).bit_length() :]

    def _take_store(self, m: Module) -> None:
        """Hold one store, the oldest, until it is done."""
        store = self.port.store
        m.d.comb += store.ready.eq(~self._store_valid | self.port.store_done)
        with m.If(store.ready):
            m.d[self.domain] += self._store_valid.eq(store.valid)
        with m.If(store.valid & store.ready):
            m.d[self.domain] += [
                self._store.eq(store.payload),
                self._store_asleep.eq(0),
                self._store_missed.eq(0),
            ]

    def _stage_0(self, m: Module) -> None:
        """Choose the next pass and read the tags of its set."""
        tilelink, waiting, misses = self.tilelink, self.waiting, self.misses
        take = Signal()
        kind = Signal(Kind)
        line = Signal(LINE_ADDRESS_WIDTH)
        replay = Signal()
        allocate = Signal()
        granted = Signal()
        c_free = Signal()
        store_ready = Signal()
        in_stage_1 = {k: self._valid & (self._kind == k) for k in Kind}
        idle_c = ~tilelink.c.valid & ~self._send
        m.d.comb += [
            granted.eq(tilelink.d.valid & (tilelink.d.payload.opcode != OpcodeD.RELEASE_ACK)),
            misses.granted.eq(granted),
            misses.source.eq(tilelink.d.payload.source),
            waiting.may_retry.eq(misses.free & ~self._store_starved),
            c_free.eq(idle_c & ~in_stage_1[Kind.PROBE] & ~in_stage_1[Kind.ALLOCATE]),
            store_ready.eq(self._store_valid & ~self._store_asleep & ~in_stage_1[Kind.STORE]),
        ]
        may_allocate = misses.unissued & ~self._blocked & ~granted & ~tilelink.a.valid & ~tilelink.e.valid & c_free

        with m.If(self._write_tag):
            pass  # the tags would be read as they were before
        with m.Elif(granted & ~self._draining & ~tilelink.e.valid):
            m.d.comb += [take.eq(1), kind.eq(Kind.REFILL), line.eq(misses.next_line)]
        with m.Elif(waiting.woken):
            m.d.comb += replay.eq(1)
        with m.Elif(store_ready & self._drain_store):
            m.d.comb += [take.eq(1), kind.eq(Kind.STORE), line.eq(self._store.line)]
        with m.Elif(may_allocate & self._probed_last):
            m.d.comb += allocate.eq(1)
        with m.Elif(tilelink.b.valid & c_free):
            m.d.comb += [take.eq(1), kind.eq(Kind.PROBE), line.eq(tilelink.b.payload.line), tilelink.b.ready.eq(1)]
        with m.Elif(waiting.retry):
            m.d.comb += replay.eq(1)
        with m.Elif(store_ready):
            m.d.comb += [take.eq(1), kind.eq(Kind.STORE), line.eq(self._store.line)]
        with m.Elif(may_allocate):
            m.d.comb += allocate.eq(1)
        with m.Else():
            m.d.comb += self.port.load.ready.eq(1)
        with m.If(replay):
            m.d.comb += [take.eq(1), waiting.take.eq(1), line.eq(waiting.next.line)]
        with m.If(allocate):
            m.d.comb += [take.eq(1), kind.eq(Kind.ALLOCATE), line.eq(misses.next_line)]
            m.d[self.domain] += self._probed_last.eq(0)
        with m.Elif(tilelink.b.ready):
            m.d[self.domain] += self._probed_last.eq(1)
        accept = self.port.load.ready & self.port.load.valid
        with m.If(accept):
            m.d.comb += [take.eq(1), line.eq(self.port.load.payload.line)]
        self.loads.increment(m, accept & ~self.port.load.payload.prefetch)

        m.d.comb += [
            self.tags.read_enable.eq(take),
            self.tags.read_address.eq(self._set_of(line)),
        ]
        m.d[self.domain] += self._valid.eq(take)
        with m.If(take):
            m.d[self.domain] += [
                self._kind.eq(kind),
                self._load.eq(Mux(replay, waiting.next, self.port.load.payload)),
                self._load.line.eq(line),
                self._replay.eq(replay),
                self._slot.eq(waiting.next_slot),
                self._cap.eq(tilelink.b.payload.param),
            ]

    def _look_up(self, m: Module) -> None:
        """Stage 1: is the line there, and has it an MSHR?"""
        tag = self._tag_of(self._line)
        for way in range(self.l1.ways):
            entry = self._entries[way]
            m.d.comb += self._matches[way].eq((entry.tag == tag) & (entry.state != LineState.NOTHING))
        states = [self._entries[way].state for way in range(self.l1.ways)]
        m.d.comb += [
            self._hit.eq(self._matches.any()),
            self._match_way.eq(one_of(list(self._matches), list(range(self.l1.ways)))),
            self._state.eq(LineState(one_of(list(self._matches), states))),
            self._way.eq(self._match_way),
            self._entry.tag.eq(tag),
            self._entry.state.eq(self._state),
            self._entry.pending.eq((self._matches & Cat(e.pending for e in self._each_entry())).any()),
            self.misses.line.eq(self._line),
            self.misses.issue_way.eq(self._way),
            self.misses.retire_index.eq(self._drain_index),
            self.replacement.set.eq(self._set_of(self._line)),
            self.replacement.way.eq(self._way),
            self.waiting.load.eq(self._load),
            self.waiting.replay.eq(self._replay),
            self.waiting.replay_slot.eq(self._slot),
            self.waiting.waiters.eq(self.misses.waiters),
            self.misses.waiter.eq(self.waiting.slot),
        ]

    def _each_entry(self):
        return [self._entries[way] for way in range(self.l1.ways)]

    def _do_load(self, m: Module) -> None:
        """Read the line, or wait for it. A prefetch only makes sure that it comes, if there is an MSHR left."""
        misses, waiting, prefetch = self.misses, self.waiting, self._load.prefetch
        with m.If(self._hit):
            m.d.comb += [
                self.replacement.touch.eq(1),
                self.data.read_enable.eq(~prefetch),
                waiting.hit.eq(1),
            ]
        with m.Else():
            first_come = self._replay | ~waiting.any_stranded
            may_allocate = ~misses.match & misses.free & ~self._store_starved & first_come
            m.d.comb += [
                misses.allocate.eq(may_allocate),
                misses.attach.eq((misses.match | may_allocate) & ~prefetch),
                waiting.miss.eq(~prefetch),
                waiting.stranded.eq(~misses.match & ~may_allocate & ~prefetch),
            ]
            with m.If(may_allocate):
                m.d[self.domain] += self._store_allocated_last.eq(0)
            self.miss.emit(m, may_allocate, line=self._line, write=0)
            self.load_misses.increment(m, ~self._replay & ~prefetch)

    def _do_store(self, m: Module) -> None:
        """Write the line if it is held in Trunk, or sleep until it is."""
        misses = self.misses
        with m.If((self._state == LineState.TRUNK) | (self._state == LineState.DIRTY)):
            m.d.comb += [
                self.port.store_done.eq(1),
                self.replacement.touch.eq(1),
                self._write_tag.eq(self._state == LineState.TRUNK),
                self._entry.state.eq(LineState.DIRTY),
                self.data.write_enable.eq(self._store.mask),
            ]
            m.d[self.domain] += [self._store_starved.eq(0), self._drain_store.eq(0)]
        with m.Else():
            allocate = ~misses.match & misses.free & ~(self._store_allocated_last & self.waiting.any_stranded)
            m.d.comb += [misses.allocate.eq(allocate), misses.want_trunk.eq(misses.match | allocate)]
            with m.If(allocate):
                m.d[self.domain] += self._store_allocated_last.eq(1)
            m.d[self.domain] += [
                self._store_asleep.eq(1),
                self._store_missed.eq(1),
                self._store_starved.eq(~misses.match & ~misses.free),
            ]
            self.store_misses.increment(m, ~self._store_missed)
            self.miss.emit(m, allocate, line=self._line, write=1)

    def _do_probe(self, m: Module) -> None:
        """Give up permissions and say so, with the data if the last level does not have them."""
        c = self.tilelink.c.payload
        to_none = self._cap == Cap.TO_N
        dirty = self._state == LineState.DIRTY
        m.d.comb += [
            self._write_tag.eq(self._hit & (to_none | (self._state != LineState.BRANCH))),
            self._entry.state.eq(Mux(to_none, LineState.NOTHING, LineState.BRANCH)),
            self.data.read_enable.eq(dirty),
        ]
        m.d[self.domain] += [
            self._send.eq(1),
            c.opcode.eq(Mux(dirty, OpcodeC.PROBE_ACK_DATA, OpcodeC.PROBE_ACK)),
            c.source.eq(0),
            c.line.eq(self._line),
        ]
        with m.Switch(self._state):
            with m.Case(LineState.NOTHING):
                m.d[self.domain] += c.param.eq(Shrink.N_TO_N)
            with m.Case(LineState.BRANCH):
                m.d[self.domain] += c.param.eq(Mux(to_none, Shrink.B_TO_N, Shrink.B_TO_B))
            with m.Default():
                m.d[self.domain] += c.param.eq(Mux(to_none, Shrink.T_TO_N, Shrink.T_TO_B))
        self.probe.emit(m, 1, line=self._line, cap=self._cap)
        self.probes_received.increment(m, 1)

    def _do_allocate(self, m: Module) -> None:
        """Find a way for the missed line, release the line in it, and ask for the missed one."""
        a, c, misses = self.tilelink.a.payload, self.tilelink.c.payload, self.misses
        entries = self._each_entry()

        # Where: the line's own way for an upgrade, else an empty one, else the victim; never one that is awaited.
        available = Signal(self.l1.ways)
        empty = Signal(self.l1.ways)
        victim = Signal(range(self.l1.ways))
        m.d.comb += [
            available.eq(Cat(~e.pending for e in entries)),
            empty.eq(available & Cat(e.state == LineState.NOTHING for e in entries)),
        ]
        with m.If(empty.any()):
            m.d.comb += victim.eq(first_set(m, empty, "empty_way"))
        with m.Elif(available.bit_select(self.replacement.victim, 1)):
            m.d.comb += victim.eq(self.replacement.victim)
        with m.Else():
            m.d.comb += victim.eq(first_set(m, available, "available_way"))
        m.d.comb += self._way.eq(Mux(self._hit, self._match_way, victim))

        # Whether: not without a way or a place for the Release, nor while the line's own Release is under way.
        old = Signal(self.row.elem_shape)
        m.d.comb += old.eq(self._entries[victim])
        evict = ~self._hit & (old.state != LineState.NOTHING)
        leaving = Cat(self._releases[i] & (self._release_lines[i] == self._line) for i in range(RELEASES)).any()
        go = Signal()
        m.d.comb += go.eq(~leaving & (self._hit | available.any()) & (~evict | ~self._releases.all()))
        with m.If(~go):
            m.d[self.domain] += self._blocked.eq(1)

        with m.Else():
            m.d.comb += [
                misses.issue.eq(1),
                self.replacement.touch.eq(1),
                self._write_tag.eq(1),
                self._entry.pending.eq(1),
            ]
            m.d[self.domain] += [
                self.tilelink.a.valid.eq(1),
                a.opcode.eq(OpcodeA.ACQUIRE_BLOCK),
                a.param.eq(Mux(misses.trunk, Mux(self._hit, Grow.B_TO_T, Grow.N_TO_T), Grow.N_TO_B)),
                a.source.eq(misses.index),
                a.line.eq(self._line),
            ]
            with m.If(evict):
                dirty = old.state == LineState.DIRTY
                shared = old.state == LineState.BRANCH
                slot = first_set(m, ~self._releases, "release_slot")
                victim_line = Cat(self._set_of(self._line), old.tag)
                m.d.comb += self.data.read_enable.eq(dirty)
                m.d[self.domain] += [
                    self._send.eq(1),
                    c.opcode.eq(Mux(dirty, OpcodeC.RELEASE_DATA, OpcodeC.RELEASE)),
                    c.param.eq(Mux(shared, Shrink.B_TO_N, Shrink.T_TO_N)),
                    c.source.eq(self.l1.mshrs + slot),
                    c.line.eq(victim_line),
                ]
                m.d.comb += self._release_sent.eq(1 << slot)
                for i, line in enumerate(self._release_lines):
                    with m.If(slot == i):
                        m.d[self.domain] += line.eq(victim_line)
                self.evictions_dirty.increment(m, dirty)
                self.evictions_clean.increment(m, ~dirty)

    def _do_refill(self, m: Module) -> None:
        """Put the line where ALLOCATE made room, acknowledge it, and wake what waits."""
        d, e, misses = self.tilelink.d, self.tilelink.e, self.misses
        trunk = d.payload.param == Cap.TO_T
        m.d.comb += [
            d.ready.eq(1),
            self._way.eq(misses.way),
            self._write_tag.eq(1),
            self._entry.state.eq(Mux(trunk, LineState.TRUNK, LineState.BRANCH)),
            self._entry.pending.eq(0),
            self.data.write_enable.eq((d.payload.opcode == OpcodeD.GRANT_DATA).replicate(LINE_BYTES)),
            self.waiting.wake.eq(1),
        ]
        m.d[self.domain] += [
            e.valid.eq(1),
            e.payload.sink.eq(d.payload.sink),
            self._draining.eq(1),
            self._drain_index.eq(misses.index),
        ]
        with m.If(trunk & self._store_valid & (self._store.line == self._line)):
            m.d[self.domain] += [self._drain_store.eq(1), self._store_asleep.eq(0)]
        self.refill.emit(m, 1, line=self._line, state=self._entry.state)

    def _arrays(self, m: Module) -> None:
        """Stage 1's access to the tags and to the one line of data."""
        address = Cat(self._set_of(self._line), self._way)
        m.d.comb += [
            self.tags.write_address.eq(self._set_of(self._line)),
            self.tags.write_data.eq(Cat(self._entry for _ in range(self.l1.ways))),
            self.data.read_address.eq(address),
            self.data.write_address.eq(address),
        ]
        with m.If(self._write_tag):
            m.d.comb += self.tags.write_enable.eq(1 << self._way)
        with m.If(self._kind == Kind.REFILL):
            m.d.comb += self.data.write_data.eq(self.tilelink.d.payload.data)
        with m.Else():
            m.d.comb += self.data.write_data.eq(self._store.data)

    def _stage_2(self, m: Module) -> None:
        """The line read by stage 1 goes to the core or to channel C."""
        is_load = self._valid & (self._kind == Kind.LOAD)
        m.d[self.domain] += self._answer.eq(is_load & self._hit & ~self._load.prefetch)
        with m.If(is_load):
            m.d[self.domain] += self._answer_load.eq(self._load)
        m.d.comb += [
            self.answers.valid.eq(self._answer),
            self.answers.load.eq(self._answer_load),
            self.answers.line_data.eq(self.data.read_data),
            self.port.load_done_valid.eq(self.answers.done_valid),
            self.port.load_done.eq(self.answers.done),
        ]
        c = self.tilelink.c
        with m.If(self._send):
            m.d[self.domain] += [self._send.eq(0), c.valid.eq(1)]
            with m.If((c.payload.opcode == OpcodeC.PROBE_ACK_DATA) | (c.payload.opcode == OpcodeC.RELEASE_DATA)):
                m.d[self.domain] += c.payload.data.eq(self.data.read_data)

    def _finish_drain(self, m: Module) -> None:
        """When nothing waits any more for the line that arrived, its MSHR is free for another."""
        done = self._draining & ~self.waiting.woken & ~self._drain_store
        m.d.comb += self.misses.retire.eq(done)
        with m.If(done):
            m.d[self.domain] += [self._draining.eq(0), self._store_asleep.eq(0), self._blocked.eq(0)]

    def _channels(self, m: Module) -> None:
        """Messages leave; answers to Releases are taken at once; what is left to do decides ``quiet``."""
        a, b, c, d, e = (getattr(self.tilelink, name) for name in "abcde")
        for channel in (a, c, e):
            with m.If(channel.valid & channel.ready):
                m.d[self.domain] += channel.valid.eq(0)
        with m.If(d.valid & (d.payload.opcode == OpcodeD.RELEASE_ACK)):
            m.d.comb += d.ready.eq(1)
            for slot in range(RELEASES):
                m.d.comb += self._release_done[slot].eq(d.payload.source == self.l1.mshrs + slot)
            m.d[self.domain] += self._blocked.eq(0)
        m.d[self.domain] += self._releases.eq((self._releases | self._release_sent) & ~self._release_done)

        passes = self._valid | self._answer | self._send | self.answers.busy | self._draining
        leaving = a.valid | c.valid | e.valid
        to_do = (
            (self._store_valid & ~self._store_asleep)
            | self.waiting.woken
            | self.waiting.retry
            | (self.misses.unissued & ~self._blocked)
        )
        arriving = self.port.load.valid | b.valid | d.valid | (self.port.store.valid & ~self._store_valid)
        m.d.comb += self.quiet.eq(~(passes | leaving | to_do | arriving))
