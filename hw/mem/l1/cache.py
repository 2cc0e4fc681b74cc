"""The L1 data cache: private, write-back, write-allocate, coherent by TileLink."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.l1 import L1Atomic, L1Load, L1Port, L1Store, L1Use
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
from .atomic import AtomicUnit
from .encode import first_set, one_of
from .misses import MissFile
from .replacement import TreePlru
from .state import Kind, LineState, tag_row
from .waiting import WaitingLoads

__all__ = ["L1Cache"]

#: Releases without an answer; the level below keeps a buffer for this many.
RELEASES = 2


class L1Cache(wiring.Component):
    """A non-blocking L1 data cache with real data, as many lines missed at once as it has MSHRs.

    **Pipeline.** One pass per cycle, everything in order. Stage 0 chooses what to do and reads the tags of a set.
    Stage 1 compares them, reads or writes one line of the data array, and does all that changes state. Stage 2
    has the line that was read: bytes for the core, or a line for channel C. After a pass that wrote a tag, stage 0
    pauses for a cycle.

    **Times.** In cycles of the core, if no one else wants the pipeline or a channel:

    * a load accepted at edge t that hits reads its line at t + 1 (``sampled``) and answers at t + ``l1.latency``; one
      load per cycle;
    * a load accepted at t that misses offers its Acquire at t + 2; a store at t + 3;
    * with the Grant offered at g, the oldest load that waits for the line reads it at g + 1, straight from channel D,
      and answers at g + 2 (should a hit answer then, in the first cycle in which none does); the next one enters
      stage 0 at g + 2, so that it reads at g + 3 and answers at g + 2 + ``l1.latency``, and one more in each cycle
      after. Lines arrive every 2 cycles;
    * a store accepted at t whose line is writable is visible at t + 2; one every 2 cycles;
    * an atomic accepted at t whose line is writable is ``sampled`` and visible at t + 2 and answers at
      t + 1 + ``l1.latency``. It writes one edge later, before the pipeline does anything else.

    **Misses.** A missed line gets an MSHR at once, and in the same pass a way and its Acquire, if that can be:
    no older miss waits for its own, the channels are free, and no line has to leave while a Probe is there, which
    takes turns on channel C with the Releases. Otherwise a pass of its own (ALLOCATE) does it later. What is in the
    way leaves by a Release for every valid line, with its data, which says whether they are dirty: the L2 below is
    exclusive. An arriving line therefore finds its place empty, needs neither channel A nor C, and can always be taken.

    **Progress.** When a line arrives, the loads that wait for it, and the oldest store or atomic if it may write the
    line now, go before any Probe, any eviction and any other Grant. So no line comes in vain, whatever the levels below
    do, and a Probe waits for at most ``core.load_queue`` loads, a walk, a store, and for channel C. Loads and stores
    that found no free MSHR get the next ones by turns, before newcomers. GrantAcks, ProbeAcks and Releases that were
    there first leave before an Acquire; the Release that makes room for a line follows its Acquire.

    The core never has more than ``core.load_queue`` loads and one walk without an answer in this cache (prefetches
    not counted), and no load and no store while it offers an atomic. A dirty line is granted in Trunk.

    Arguments:
        l1: sizes and latencies.
        core: ``load_queue`` bounds the loads in flight.
        domain: clock domain of the core.

    Attributes:
        miss, refill, probe: observability probes.
        loads, load_misses, walk_misses, store_misses, evictions_clean, evictions_dirty, probes_received: counters.
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
        self.misses = MissFile(count=l1.mshrs, ways=l1.ways, domain=domain)
        loads = core.load_queue + 1  # and a walk
        self.waiting = WaitingLoads(depth=loads, mshrs=l1.mshrs, domain=domain)
        self.answers = LoadAnswers(delay=l1.latency - 2, domain=domain)
        self.atomic = AtomicUnit()

        self.miss = Probe(domain, "a line was missed", line=LINE_ADDRESS_WIDTH, write=1)
        self.refill = Probe(domain, "a line arrived", line=LINE_ADDRESS_WIDTH, state=LineState)
        self.probe = Probe(domain, "the level below took back permissions", line=LINE_ADDRESS_WIDTH, cap=Cap)
        self.loads = Counter(domain, "loads of the core accepted, prefetches and walks not counted")
        self.load_misses = Counter(domain, "loads of the core that did not find their line")
        self.walk_misses = Counter(domain, "loads of the page walker that did not find their line")
        self.store_misses = Counter(domain, "stores and atomics that did not find their line writable")
        self.evictions_clean = Counter(domain, "clean lines released")
        self.evictions_dirty = Counter(domain, "dirty lines released")
        self.probes_received = Counter(domain, "probes taken")

        # Stage 1
        self._valid = Signal(name="s1_valid")
        self._kind = Signal(Kind, name="s1_kind")
        self._load = Signal(L1Load, name="s1_load")  # its line is that of every kind
        self._replay = Signal(name="s1_replay")
        self._slot = Signal(range(loads), name="s1_slot")
        self._cap = Signal(Cap, name="s1_cap")
        # What it found
        self._entries = data.View(self.row, self.tags.read_data)
        self._matches = Signal(l1.ways, name="matches")
        self._match_way = Signal(range(l1.ways), name="match_way")
        self._state = Signal(LineState, name="state")
        self._hit = Signal(name="hit")
        # What it does
        self._ask = Signal(name="ask")  # ask for the line, if possible
        self._execute = Signal(name="execute")  # the atomic reads its line, and writes it in stage 2
        self._write_tag = Signal(name="write_tag")
        self._way = Signal(range(l1.ways), name="way")
        self._entry = Signal(self.row.elem_shape, name="entry")
        # Stage 2
        self._answer = Signal(name="s2_answer")
        self._answer_load = Signal(L1Load, name="s2_load")
        self._send = Signal(name="s2_send")
        self._modify = Signal(name="s2_modify")
        self._modify_row = Signal(self.data.address_width, name="s2_modify_row")
        # The oldest store, or the atomic
        self._store = Signal(L1Store, name="store")
        self._store_valid = Signal(name="store_valid")
        self._store_atomic = Signal(name="store_atomic")  # it is an atomic: of ``store``, only the line counts
        self._atomic = Signal(L1Atomic, name="atomic")
        self._store_asleep = Signal(name="store_asleep")  # until an MSHR retires
        self._store_missed = Signal(name="store_missed")
        self._store_starved = Signal(name="store_starved")  # the next free MSHR is for it
        self._store_allocated_last = Signal(name="store_allocated_last")  # then waiting loads come first
        # The line that arrived last, and what waits for it
        self._draining = Signal(name="draining")
        self._drain_index = Signal(range(l1.mshrs), name="drain_index")
        self._drain_store = Signal(name="drain_store")
        self._drained = Signal(name="drained")  # a line arrives for which nothing more waits
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
        m.submodules.atomic = self.atomic
        self._send_messages(m)
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
        with m.If(self._ask):
            self._ask_for_line(m)
        self._arrays(m)
        self._stage_2(m)
        # Below the passes: what wakes wins over what puts to sleep at the same edge.
        self._finish_drain(m)
        self._release_acks(m)
        self._report_quiet(m)
        return m

    @property
    def _line(self):
        return self._load.line

    def _set_of(self, line):
        return line[: (self.l1.sets - 1).bit_length()]

    def _tag_of(self, line):
        return line[(self.l1.sets - 1).bit_length() :]

    def _send_messages(self, m: Module) -> None:
        """A message stays until it is taken. Above the passes: they may offer the next at that edge."""
        for channel in (self.tilelink.a, self.tilelink.c, self.tilelink.e):
            with m.If(channel.valid & channel.ready):
                m.d[self.domain] += channel.valid.eq(0)

    @staticmethod
    def _free(channel):
        """A pass may offer a message on ``channel`` at the next edge."""
        return ~channel.valid | channel.ready

    def _take_store(self, m: Module) -> None:
        """Hold one store, the oldest, until it is done; or an atomic."""
        store, atomic = self.port.store, self.port.atomic
        takes_store, takes_atomic = store.valid & store.ready, atomic.valid & atomic.ready
        m.d.comb += [
            store.ready.eq(~self._store_valid | self.port.visible),
            atomic.ready.eq(~self._store_valid & ~store.valid),
        ]
        with m.If(store.ready):
            m.d[self.domain] += self._store_valid.eq(takes_store | takes_atomic)
        with m.If(takes_store):
            m.d[self.domain] += self._store.eq(store.payload)
        with m.If(takes_atomic):
            m.d[self.domain] += [self._store.line.eq(atomic.payload.line), self._atomic.eq(atomic.payload)]
        with m.If(takes_store | takes_atomic):
            m.d[self.domain] += [
                self._store_atomic.eq(takes_atomic),
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
        may_allocate = Signal()
        store_ready = Signal()
        in_stage_1 = {k: self._valid & (self._kind == k) for k in Kind}
        in_replay = self._valid & (self._kind == Kind.LOAD) & self._replay
        m.d.comb += [
            granted.eq(tilelink.d.valid & (tilelink.d.payload.opcode != OpcodeD.RELEASE_ACK)),
            misses.granted.eq(granted),
            misses.source.eq(tilelink.d.payload.source),
            waiting.may_retry.eq(misses.free & ~self._store_starved & ~in_replay),
            # A Release that stage 1 sends now comes with a tag, see below
            c_free.eq(self._free(tilelink.c) & ~self._send & ~in_stage_1[Kind.PROBE]),
            may_allocate.eq(
                misses.unissued & ~self._blocked & ~granted & self._may_acquire & c_free & ~in_stage_1[Kind.ALLOCATE]
            ),
            store_ready.eq(self._store_valid & ~self._store_asleep & ~in_stage_1[Kind.STORE]),
        ]

        with m.If(self._write_tag | self._execute):
            pass  # the tags would be read as they were before; an atomic wants the next cycle of the array for itself
        with m.Elif(granted & ~self._draining & self._free(tilelink.e)):
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
        self.loads.increment(m, accept & (self.port.load.payload.use == L1Use.LOAD))

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
        with m.If(take & (kind == Kind.STORE) & self._store_atomic):
            m.d[self.domain] += [
                self._load.use.eq(L1Use.LOAD),
                self._load.id.eq(self._atomic.id),
                self._load.offset.eq(self._atomic.offset),
                self._load.size.eq(self._atomic.size),
            ]

    @property
    def _may_acquire(self):
        """Channel A is free, and no earlier GrantAck or message on channel C would leave after the Acquire."""
        free = [self._free(channel) for channel in (self.tilelink.a, self.tilelink.c, self.tilelink.e)]
        return Cat(free).all() & ~self._send

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
            self.replacement.set.eq(self._set_of(self._line)),
            self.replacement.way.eq(self._way),
            self.waiting.load.eq(self._load),
            self.waiting.replay.eq(self._replay),
            self.waiting.replay_slot.eq(self._slot),
            self.waiting.mshr.eq(self.misses.index),
            self.port.sampled_id.eq(self._load.id),
        ]

    def _each_entry(self):
        return [self._entries[way] for way in range(self.l1.ways)]

    def _do_load(self, m: Module) -> None:
        """Read the line, or wait for it. A prefetch only makes sure that it comes, if there is an MSHR left."""
        misses, waiting, use = self.misses, self.waiting, self._load.use
        prefetch = use == L1Use.PREFETCH
        with m.If(self._hit):
            m.d.comb += [
                self.replacement.touch.eq(1),
                self.data.read_enable.eq(~prefetch),
                self.port.sampled.eq(use == L1Use.LOAD),
                waiting.done.eq(1),
            ]
        with m.Else():
            first_come = self._replay | ~waiting.any_stranded
            allocate = Signal()
            m.d.comb += [
                allocate.eq(~misses.match & misses.free & ~self._store_starved & first_come),
                misses.allocate.eq(allocate),
                self._ask.eq(allocate & ~misses.unissued & self._may_acquire),
                waiting.attach.eq((misses.match | allocate) & ~prefetch),
                waiting.strand.eq(~misses.match & ~allocate & ~prefetch),
            ]
            with m.If(allocate):
                m.d[self.domain] += self._store_allocated_last.eq(0)
            self.miss.emit(m, allocate, line=self._line, write=0)
            self.load_misses.increment(m, ~self._replay & (use == L1Use.LOAD))
            self.walk_misses.increment(m, ~self._replay & (use == L1Use.WALK))

    def _do_store(self, m: Module) -> None:
        """Write the line if it is held in Trunk, or sleep until it is. An atomic reads now, and writes in stage 2."""
        misses = self.misses
        with m.If((self._state == LineState.TRUNK) | (self._state == LineState.DIRTY)):
            m.d.comb += [
                self.port.visible.eq(1),
                self.port.lost.eq(self._line == self.port.watch),
                self.replacement.touch.eq(1),
                self._write_tag.eq(self._state == LineState.TRUNK),
                self._entry.state.eq(LineState.DIRTY),
            ]
            with m.If(self._store_atomic):
                m.d.comb += [self._execute.eq(1), self.data.read_enable.eq(1), self.port.sampled.eq(1)]
            with m.Else():
                m.d.comb += self.data.write_enable.eq(self._store.mask)
            m.d[self.domain] += [self._store_starved.eq(0), self._drain_store.eq(0)]
        with m.Else():
            allocate = Signal()
            m.d.comb += [
                allocate.eq(~misses.match & misses.free & ~(self._store_allocated_last & self.waiting.any_stranded)),
                misses.allocate.eq(allocate),
                misses.want_trunk.eq(misses.match | allocate),
                self._ask.eq(allocate & ~misses.unissued & self._may_acquire),
            ]
            with m.If(allocate):
                m.d[self.domain] += self._store_allocated_last.eq(1)
            m.d[self.domain] += [
                # Not after it let a load go first: that one may find its line, and then no MSHR would end for it.
                self._store_asleep.eq(misses.match | allocate | ~misses.free),
                self._store_missed.eq(1),
                self._store_starved.eq(~misses.match & ~misses.free),
            ]
            self.store_misses.increment(m, ~self._store_missed)
            self.miss.emit(m, allocate, line=self._line, write=1)

    def _do_probe(self, m: Module) -> None:
        """Give up permissions and say so, with the data if the level below does not have them."""
        c = self.tilelink.c.payload
        to_none = self._cap == Cap.TO_N
        dirty = self._state == LineState.DIRTY
        m.d.comb += [
            self._write_tag.eq(self._hit & (to_none | (self._state != LineState.BRANCH))),
            self._entry.state.eq(Mux(to_none, LineState.NOTHING, LineState.BRANCH)),
            self.data.read_enable.eq(dirty),
            self.port.lost.eq(self._hit & to_none & (self._line == self.port.watch)),
        ]
        m.d[self.domain] += [
            self._send.eq(1),
            c.opcode.eq(Mux(dirty, OpcodeC.PROBE_ACK_DATA, OpcodeC.PROBE_ACK)),
            c.dirty.eq(dirty),
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
        """Ask for the line now, or when a miss has ended or a Release been answered."""
        m.d.comb += self._ask.eq(1)
        m.d[self.domain] += self._blocked.eq(1)  # unless it succeeds

    def _ask_for_line(self, m: Module) -> None:
        """If possible, find a way for the missed line, release the line in it, and ask for the missed one."""
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

        # Whether: not without a way or a place for the Release, nor while the line's own Release is under way. A pass
        # of its own has had its turn on channel C, others let a Probe go first.
        old = Signal(self.row.elem_shape)
        with m.Switch(victim):
            for way, entry in enumerate(entries):
                with m.Case(way):
                    m.d.comb += old.eq(entry)
        evict = ~self._hit & (old.state != LineState.NOTHING)
        leaving = Cat(self._releases[i] & (self._release_lines[i] == self._line) for i in range(RELEASES)).any()
        may_release = ~self._releases.all() & ((self._kind == Kind.ALLOCATE) | ~self.tilelink.b.valid)
        to_write = misses.trunk | misses.want_trunk
        go = Signal()
        m.d.comb += go.eq(~leaving & (self._hit | available.any()) & (~evict | may_release))
        with m.If(go):
            m.d.comb += [
                misses.issue.eq(1),
                self.replacement.touch.eq(1),
                self._write_tag.eq(1),
                self._entry.pending.eq(1),
            ]
            m.d[self.domain] += [
                self._blocked.eq(0),
                self.tilelink.a.valid.eq(1),
                a.opcode.eq(OpcodeA.ACQUIRE_BLOCK),
                a.param.eq(Mux(to_write, Mux(self._hit, Grow.B_TO_T, Grow.N_TO_T), Grow.N_TO_B)),
                a.source.eq(misses.index),
                a.line.eq(self._line),
            ]
            with m.If(evict):
                dirty = old.state == LineState.DIRTY
                shared = old.state == LineState.BRANCH
                slot = first_set(m, ~self._releases, "release_slot")
                victim_line = Cat(self._set_of(self._line), old.tag)
                m.d.comb += [
                    self.data.read_enable.eq(1),
                    self._release_sent.eq(1 << slot),
                    self.port.lost.eq(victim_line == self.port.watch),
                ]
                m.d[self.domain] += [
                    self._send.eq(1),
                    c.opcode.eq(OpcodeC.RELEASE_DATA),
                    c.dirty.eq(dirty),
                    c.param.eq(Mux(shared, Shrink.B_TO_N, Shrink.T_TO_N)),
                    c.source.eq(self.l1.mshrs + slot),
                    c.line.eq(victim_line),
                ]
                for i, line in enumerate(self._release_lines):
                    with m.If(slot == i):
                        m.d[self.domain] += line.eq(victim_line)
                self.evictions_dirty.increment(m, dirty)
                self.evictions_clean.increment(m, ~dirty)

    def _do_refill(self, m: Module) -> None:
        """Put the line where there is room for it, acknowledge it, answer the oldest load and wake what else waits."""
        d, e, misses, waiting, answers = self.tilelink.d, self.tilelink.e, self.misses, self.waiting, self.answers
        grant = d.payload
        has_data, trunk = grant.opcode == OpcodeD.GRANT_DATA, grant.param == Cap.TO_T
        store_waits = trunk & self._store_valid & (self._store.line == self._line)
        m.d.comb += [
            d.ready.eq(1),
            self._way.eq(misses.way),
            self._write_tag.eq(1),
            self._entry.state.eq(Mux(trunk, Mux(grant.dirty, LineState.DIRTY, LineState.TRUNK), LineState.BRANCH)),
            self._entry.pending.eq(0),
            self.data.write_enable.eq(has_data.replicate(LINE_BYTES)),
            waiting.wake.eq(1),
            waiting.served.eq(waiting.any_attached & has_data & answers.first_ready),
            answers.first_valid.eq(waiting.served),
            self.port.sampled.eq(waiting.served & (waiting.next.use == L1Use.LOAD)),
            self.port.sampled_id.eq(waiting.next.id),
            self._drained.eq(~waiting.left & ~store_waits),
        ]
        m.d[self.domain] += [
            e.valid.eq(1),
            e.payload.sink.eq(grant.sink),
            self._draining.eq(~self._drained),
            self._drain_index.eq(misses.index),
        ]
        with m.If(store_waits):
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

        # An atomic in stage 2: stage 1 is empty
        m.d[self.domain] += self._modify.eq(self._execute)
        with m.If(self._execute):
            m.d[self.domain] += self._modify_row.eq(address)
        m.d.comb += [
            self.atomic.valid.eq(self._modify),
            self.atomic.atomic.eq(self._atomic),
            self.atomic.line_data.eq(self.data.read_data),
        ]
        with m.If(self._modify):
            m.d.comb += [
                self.data.write_address.eq(self._modify_row),
                self.data.write_enable.eq(self.atomic.mask),
                self.data.write_data.eq(self.atomic.word.replicate(LINE_BITS // len(self.atomic.word))),
            ]

    def _stage_2(self, m: Module) -> None:
        """The line read by stage 1 goes to the core or to channel C."""
        is_load = self._valid & (self._kind == Kind.LOAD)
        answer = (is_load & self._hit & (self._load.use != L1Use.PREFETCH)) | self._execute
        m.d[self.domain] += self._answer.eq(answer)
        with m.If(answer):
            m.d[self.domain] += self._answer_load.eq(self._load)
        m.d.comb += [
            self.answers.valid.eq(self._answer),
            self.answers.load.eq(self._answer_load),
            self.answers.line_data.eq(self.data.read_data),
            self.answers.first.eq(self.waiting.next),
            self.answers.first_data.eq(self.tilelink.d.payload.data),
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
        done = self._drained | (self._draining & ~self.waiting.woken & ~self._drain_store)
        m.d.comb += [
            self.misses.retire.eq(done),
            self.misses.retire_index.eq(Mux(self._draining, self._drain_index, self.misses.index)),
        ]
        with m.If(done):
            m.d[self.domain] += [self._draining.eq(0), self._store_asleep.eq(0), self._blocked.eq(0)]

    def _release_acks(self, m: Module) -> None:
        """Answers to Releases are taken at once."""
        d = self.tilelink.d
        with m.If(d.valid & (d.payload.opcode == OpcodeD.RELEASE_ACK)):
            m.d.comb += d.ready.eq(1)
            for slot in range(RELEASES):
                m.d.comb += self._release_done[slot].eq(d.payload.source == self.l1.mshrs + slot)
            m.d[self.domain] += self._blocked.eq(0)
        m.d[self.domain] += self._releases.eq((self._releases | self._release_sent) & ~self._release_done)

    def _report_quiet(self, m: Module) -> None:
        """Nothing passes, leaves, can be done or arrives."""
        port, (a, b, c, d, e) = self.port, (getattr(self.tilelink, name) for name in "abcde")
        passes = self._valid | self._answer | self._send | self._modify | self.answers.busy | self._draining
        leaving = a.valid | c.valid | e.valid
        to_do = (
            (self._store_valid & ~self._store_asleep)
            | self.waiting.woken
            | self.waiting.retry
            | (self.misses.unissued & ~self._blocked)
        )
        store_arrives = (port.store.valid | port.atomic.valid) & ~self._store_valid
        arriving = port.load.valid | b.valid | d.valid | store_arrives
        m.d.comb += self.quiet.eq(~(passes | leaving | to_do | arriving))
