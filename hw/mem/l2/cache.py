"""The L2 cache: private to a core, unified, write-back, exclusive of the L1 data cache, coherent by TileLink."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.fetch import FETCH_TAG_WIDTH, FetchPort, FetchRequest
from hw.bus.tilelink import (
    LINE_ADDRESS_WIDTH,
    LINE_BITS,
    SOURCE_WIDTH,
    Cap,
    ChannelA,
    Grow,
    OpcodeA,
    OpcodeC,
    OpcodeD,
    Shrink,
    TileLink,
)
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM
from hw.mem.l1.cache import RELEASES as L1_RELEASES
from hw.mem.l1.encode import one_of
from hw.mem.l1.replacement import TreePlru
from hw.mem.l1.state import LineState
from hw.mem.llc_bits import encode, lowest
from hw.mem.llc_queue import Queue

from .delay_queue import DelayQueue
from .directory import Directory
from .l1_transactions import L1Transactions
from .own_misses import OwnMisses
from .prefetch_adjacent import AdjacentPrefetcher
from .prefetch_stream import StreamPrefetcher
from .release_queue import ReleaseQueue
from .state import Kind, tag_row

__all__ = ["HIT_CYCLES", "L2Cache"]

#: Core cycles from Acquire offered to Grant offered for a line that is here: queued, tags read, compared, line read.
HIT_CYCLES = 4


class L2Cache(wiring.Component):
    """A non-blocking L2 cache with real data, between the caches of a core and the last level.

    Ports:
        l1: the L1 data cache.
        fetch: the instruction cache.
        tilelink: the last level.
        quiet: see docs/architecture.md.

    **Exclusive.** A line is here or in the L1. An Acquire that hits moves it up, in the permissions and with the
    ``dirty`` that it has here; a Release, which always brings data, moves it down again. A miss is passed on under the
    same source, and the last level's Grant goes through to the L1 without a trace here. A shared line that the L1
    wants to write is dropped and asked for anew. A :class:`Directory` of what the L1 has or has asked for tells which
    Probes concern it, and which lines need not be fetched or prefetched. (A fetch of a line that is in the L1 is
    done as a hit: text is never written, and the fetch brings no data.)

    **Pipeline.** Stage 0 chooses a pass and reads two rows, of the tags and of the directory. Stage 1 compares and does
    all that changes state. Stage 2 has the line that was read, for channel D above or C below. A pass enters
    in every cycle, but not behind another of the same kind, nor of lines that may have the same rows.

    An Acquire offered at edge t that hits has its Grant offered at edge t + ``hit_cycles``; a fetch is done after
    as many. An Acquire that misses is offered below at edge t + ``hit_cycles`` - 1, its Grant above one edge after
    it is offered below.

    **Own misses.** A fetch or a prefetch that misses gets an entry and a way at once, and evicts what is in that way
    before it asks: the line arrives in an empty place. An Acquire of the L1 for a line that is being brought waits with
    the entry and then is looked up again, as is one fetch. Prefetches that find no place are dropped; while
    ``l2.prefetches`` requests are under way below, of any kind, none is made.

    **Probes.** One at a time. A line that is here, or still in the queue of Releases, is answered for from here. One
    that the directory has goes to the L1; if the L1 says that it has nothing, it has released the line
    meanwhile and the answer is looked for here once more. A Probe waits while the line's Grant from here is not
    acknowledged; an Acquire of a line that is being probed in the L1 waits for the answer.

    **No deadlock.** Channel C above is always taken: a Release has its place in a queue, since the L1 has at most
    ``L1_RELEASES`` outstanding, and a ProbeAck needs only channel C below, which the last level always takes. So every
    Probe is answered, whatever waits here: it needs, beside channel C, at most a GrantAck or a ProbeAck, which the L1
    gives without waiting for anything but channel E, or C. Grants from below go on to the L1, or to the empty way kept
    for them, and need channel D above or E below, which are always taken. So the last level gets all it may wait
    for from here without any Acquire, Release or fetch going forward. These wait for it: for room on channel A, and
    for the ReleaseAck of a line that leaves, which comes when Probes are answered and Grants acknowledged.

    Arguments:
        config: ``l2``; what the L1 can have outstanding (``l1``), fetches in flight (``l1i``).
        domain: clock domain of the core.
        hit_cycles: see above; at least :data:`HIT_CYCLES`, which is the default.

    Attributes:
        miss, evict, prefetch: observability probes.

    Raises:
        ValueError: when ``hit_cycles`` is too small, or the misses do not fit into ``source``.
    """

    def __init__(self, config: MachineConfig, domain: str, *, hit_cycles: int = HIT_CYCLES):
        l1, l2 = config.l1, config.l2
        if hit_cycles < HIT_CYCLES:
            raise ValueError(f"hit_cycles must be at least the pipeline's {HIT_CYCLES}, not {hit_cycles}")
        self.l2, self.domain, self.hit_cycles, self.l1_sources = l2, domain, hit_cycles, l1.mshrs
        self.own = OwnMisses(fetches=config.l1i.mshrs, prefetches=l2.prefetches, domain=domain)
        self.release_source = l1.mshrs + self.own.count  #: source of the first of the Releases
        if self.release_source + l2.releases > 1 << SOURCE_WIDTH:
            raise ValueError(
                f"l1.mshrs, l1i.mshrs, l2.prefetches and l2.releases may be {1 << SOURCE_WIDTH} together, "
                f"not {self.release_source + l2.releases}"
            )
        super().__init__({"l1": In(TileLink()), "fetch": In(FetchPort()), "tilelink": Out(TileLink()), "quiet": Out(1)})

        # Arrays
        self.row = tag_row(l2.sets, l2.ways, self.own.count)
        self.tags = RAM(width=self.row.size, depth=l2.sets, lanes=l2.ways, domain=domain)
        self.data = RAM(width=LINE_BITS, depth=l2.sets * l2.ways, domain=domain)
        self.replacement = TreePlru(sets=l2.sets, ways=l2.ways, domain=domain)
        # Every way of a set of the L1 is awaited or holds a line; on top come lines on their way down: in Releases,
        # and one in a ProbeAck.
        self.directory = Directory(sets=l1.sets, ways=l1.ways + L1_RELEASES + 1, domain=domain)

        # Queues and tables
        delay = hit_cycles - HIT_CYCLES + 1
        self.acquires = DelayQueue(ChannelA, depth=l1.mshrs, delay=delay, domain=domain)
        self.fetches = DelayQueue(FetchRequest, depth=1 << FETCH_TAG_WIDTH, delay=delay, domain=domain)
        self.releases = ReleaseQueue(L1_RELEASES, domain)
        self.release_acks = Queue(SOURCE_WIDTH, L1_RELEASES, domain)
        self.transactions = L1Transactions(l1.mshrs, domain)
        self.prefetchers: list[AdjacentPrefetcher | StreamPrefetcher] = []
        if l2.prefetch_adjacent:
            self.prefetchers.append(AdjacentPrefetcher(domain))
        if l2.prefetch_stream:
            self.prefetchers.append(StreamPrefetcher(l2.prefetch_distance, domain))

        self._observe()
        self._registers()

    def _observe(self):
        domain = self.domain
        self.miss = Probe(domain, "a line that was wanted is not here", line=LINE_ADDRESS_WIDTH, write=1, fetch=1)
        self.evict = Probe(domain, "a line leaves to make room", line=LINE_ADDRESS_WIDTH, state=LineState)
        self.prefetch = Probe(domain, "a line is asked for in advance", line=LINE_ADDRESS_WIDTH)
        self.hits = Counter(domain, "Acquires of the L1 that found their line")
        self.misses = Counter(domain, "Acquires of the L1 that did not")
        self.upgrades = Counter(domain, "Acquires passed on for permission to write alone")
        self.fetch_hits = Counter(domain, "fetches that found their line")
        self.fetch_misses = Counter(domain, "fetches that did not")
        self.prefetches_issued = Counter(domain, "lines prefetched")
        self.prefetches_used = Counter(domain, "prefetched lines that somebody then asked for")
        self.prefetches_late = Counter(domain, "... before they had arrived")
        self.prefetches_unused = Counter(domain, "prefetched lines that left before anybody asked for them")
        self.evictions_clean = Counter(domain, "lines released without data")
        self.evictions_dirty = Counter(domain, "lines released with data")
        self.probes_received = Counter(domain, "Probes taken")
        self.probes_forwarded = Counter(domain, "... of lines of the L1")

    def _registers(self):
        l2 = self.l2
        # Stage 1
        self._valid = Signal(name="s1_valid")
        self._kind = Signal(Kind, name="s1_kind")
        self._line = Signal(LINE_ADDRESS_WIDTH, name="s1_line")
        self._source = Signal(SOURCE_WIDTH, name="s1_source")  # of an Acquire
        self._grow = Signal(Grow, name="s1_grow")
        self._replay = Signal(name="s1_replay")  # an Acquire that has waited
        self._index = Signal.like(self.own.index, name="s1_index")  # ... with this own miss; or the one filled
        # What it found
        self._entries = data.View(self.row, self.tags.read_data)
        self._match_way = Signal(range(l2.ways), name="match_way")
        self._match = Signal(self.row.elem_shape, name="match_entry")
        self._hit = Signal(name="hit")
        # What it does
        self._write_tag = Signal(name="write_tag")
        self._way = Signal(range(l2.ways), name="way")
        self._entry = Signal(self.row.elem_shape, name="entry")
        self._making_room = Signal(name="making_room")  # would like a way
        self._room = Signal(name="room")  # there is one
        self._evicting = Signal(name="evicting")  # takes it
        self._leaving = Signal(name="leaving")  # the line's own Release is not answered yet
        self._answering = Signal(name="answering")  # gives the answer to the Probe
        self._released = Signal(l2.releases, name="released")  # releases a line under this number
        self._missing = Signal(name="missing")  # the line is asked for, for the first time, and not here
        self._claimed = Signal(name="claimed")  # a prefetched line is asked for
        self._unclaimed = Signal(name="unclaimed")  # ... or leaves before
        # Stage 2
        self._grant = Signal(name="s2_grant")
        self._grant_state = Signal(LineState, name="s2_state")
        self._grant_source = Signal(SOURCE_WIDTH, name="s2_source")
        self._send = Signal(name="s2_send")
        self._send_array = Signal(name="s2_send_array")
        self._send_queue = Signal(name="s2_send_queue")
        self._fetched = Signal(name="s2_fetched")
        self._fetched_tag = Signal(FETCH_TAG_WIDTH, name="s2_fetched_tag")
        # What waits
        self._acquire_blocked = Signal(name="acquire_blocked")  # until a ReleaseAck, or the answer to a Probe
        self._fetch_blocked = Signal(name="fetch_blocked")  # until a ReleaseAck, or an own miss is done
        self._release_blocked = Signal(name="release_blocked")  # likewise, or until a Probe has taken the line
        self._probe_blocked = Signal(name="probe_blocked")  # until a GrantAck
        self._probing = Signal(name="probing")  # the L1 is asked
        self._leaving_valid = Signal(l2.releases, name="leaving_valid")
        self._leaving_lines = [Signal(LINE_ADDRESS_WIDTH, name=f"leaving_line{i}") for i in range(l2.releases)]
        # What arrives
        self._release_ack = Signal(name="release_ack")  # from below
        self._own_grant = Signal(name="own_grant")
        self._probe_ack = Signal(name="probe_ack")  # from above
        # What has not arrived
        self._asking = Signal(name="asking")  # one more is asked for
        self._under_way = Signal(range(self.l1_sources + self.own.count + 1), name="under_way")
        # What may leave
        self._d_open = Signal(name="d_open")  # the L1 takes what is offered on channel D, if anything is

    def elaborate(self, platform):
        """Join the parts; each method below is one of them."""
        m = Module()
        for name in ("tags", "data", "replacement", "directory", "own", "transactions"):
            m.submodules[name] = getattr(self, name)
        for name in ("acquires", "fetches", "releases", "release_acks"):
            m.submodules[name] = getattr(self, name)
        m.submodules += self.prefetchers
        self._take_requests(m)
        self._stage_0(m)
        self._look_up(m)
        self._fetch_done(m)
        with m.If(self._valid):
            with m.Switch(self._kind):
                with m.Case(Kind.ACQUIRE):
                    self._do_acquire(m)
                with m.Case(Kind.FETCH):
                    self._do_fetch(m)
                with m.Case(Kind.PREFETCH):
                    self._do_prefetch(m)
                with m.Case(Kind.FILL):
                    self._do_fill(m)
                with m.Case(Kind.RELEASE):
                    self._do_release(m)
                with m.Case(Kind.PROBE):
                    self._do_probe(m)
                with m.Case(Kind.ANSWER):
                    self._do_answer(m)
        self._make_room(m)
        self._answer_from_here(m)
        self._arrays(m)
        self._channel_b(m)
        self._channel_c(m)
        self._channel_d(m)
        self._channel_e(m)
        self._train_prefetchers(m)
        self._wake(m)
        self._tell_quiet(m)
        return m

    def _set_of(self, line):
        return line[: (self.l2.sets - 1).bit_length()]

    def _tag_of(self, line):
        return line[(self.l2.sets - 1).bit_length() :]

    # Stage 0

    def _take_requests(self, m: Module) -> None:
        """Acquires, fetches and Releases go into their queues, which always have room."""
        a, c, fetch = self.l1.a, self.l1.c, self.fetch.request
        is_release = (c.payload.opcode == OpcodeC.RELEASE_DATA) | (c.payload.opcode == OpcodeC.RELEASE)
        m.d.comb += [
            a.ready.eq(1),
            self.acquires.push.eq(a.valid),
            self.acquires.entry.eq(a.payload),
            fetch.ready.eq(1),
            self.fetches.push.eq(fetch.valid),
            self.fetches.entry.eq(fetch.payload),
            self.releases.push.eq(c.valid & is_release & ~self.releases.full),
            self.releases.new_line.eq(c.payload.line),
            self.releases.new_source.eq(c.payload.source),
            self.releases.new_data.eq(c.payload.data),
            self._probe_ack.eq(c.valid & ~is_release),
            c.ready.eq(self.releases.push),
        ]
        with m.If(c.payload.param == Shrink.B_TO_N):
            m.d.comb += self.releases.new_state.eq(LineState.BRANCH)
        with m.Elif(c.payload.dirty):
            m.d.comb += self.releases.new_state.eq(LineState.DIRTY)
        with m.Else():
            m.d.comb += self.releases.new_state.eq(LineState.TRUNK)

    def _stage_0(self, m: Module) -> None:
        """Choose the next pass and read the rows of its line."""
        tilelink, own, acquire = self.tilelink, self.own, self.acquires.output
        take = Signal()
        kind = Signal(Kind)
        line = Signal(LINE_ADDRESS_WIDTH)

        # An own miss is looked at, whose line arrives or whose Acquire is to be looked up again
        d = tilelink.d
        m.d.comb += [
            self._release_ack.eq(d.valid & (d.payload.opcode == OpcodeD.RELEASE_ACK)),
            self._own_grant.eq(d.valid & ~self._release_ack & (d.payload.source >= self.l1_sources)),
            own.look_index.eq(
                Mux(self._own_grant, (d.payload.source - self.l1_sources)[: len(own.index)], own.replay_index)
            ),
        ]

        # What is free. Only a Grant can be held up in stage 2; no pass may read a line behind it then.
        in_stage_1 = {k: self._valid & (self._kind == k) for k in Kind}
        asks = [Kind.ACQUIRE, Kind.FETCH, Kind.PREFETCH]
        sends = [Kind.FETCH, Kind.PREFETCH, Kind.RELEASE, Kind.PROBE, Kind.ANSWER]
        a_free = Signal()
        c_free = Signal()
        held_up = self._grant & ~self._d_open
        m.d.comb += [
            a_free.eq((~tilelink.a.valid | tilelink.a.ready) & ~held_up & ~Cat(in_stage_1[k] for k in asks).any()),
            c_free.eq(
                (~tilelink.c.valid | tilelink.c.ready)
                & ~(self._send | held_up)
                & ~Cat(in_stage_1[k] for k in (*sends, Kind.ACQUIRE)).any()
            ),
        ]

        # Who goes
        replay = own.replay
        candidates = Cat(prefetcher.valid for prefetcher in self.prefetchers)
        with m.If(self._own_grant & ~tilelink.e.valid & ~in_stage_1[Kind.FILL]):
            m.d.comb += [take.eq(1), kind.eq(Kind.FILL), line.eq(own.look_line)]
        with m.Elif(self._probing & self._probe_ack & c_free):
            m.d.comb += [take.eq(1), kind.eq(Kind.ANSWER), line.eq(tilelink.b.payload.line)]
        with m.Elif(self._probe_to_do() & c_free):
            m.d.comb += [take.eq(1), kind.eq(Kind.PROBE), line.eq(tilelink.b.payload.line)]
        with m.Elif(Mux(replay, ~self._own_grant, acquire.valid) & ~self._acquire_blocked & a_free):
            m.d.comb += [
                take.eq(1),
                kind.eq(Kind.ACQUIRE),
                line.eq(Mux(replay, own.look_line, acquire.payload.line)),
            ]
        with m.Elif(self.releases.valid & ~self._release_blocked & c_free):
            m.d.comb += [take.eq(1), kind.eq(Kind.RELEASE), line.eq(self.releases.line)]
        with m.Elif(self.fetches.output.valid & ~self._fetch_blocked & a_free & c_free):
            m.d.comb += [take.eq(1), kind.eq(Kind.FETCH), line.eq(self.fetches.output.payload.line)]
        with m.Elif(self._may_prefetch(candidates) & a_free & c_free):
            m.d.comb += [take.eq(1), kind.eq(Kind.PREFETCH)]
            for prefetcher in reversed(self.prefetchers):
                with m.If(prefetcher.valid):
                    m.d.comb += line.eq(prefetcher.line)

        # Not behind a pass that may write the rows it reads
        shared = min(self.l2.sets, self.directory.sets) - 1
        clear = Signal()
        m.d.comb += clear.eq(take & ~(self._valid & ((line & shared) == (self._line & shared))))
        m.d[self.domain] += self._valid.eq(clear)
        with m.If(clear):
            m.d.comb += [
                self.tags.read_enable.eq(1),
                self.tags.read_address.eq(self._set_of(line)),
                self.directory.read.eq(1),
                self.directory.read_line.eq(line),
            ]
            m.d[self.domain] += [
                self._kind.eq(kind),
                self._line.eq(line),
                self._replay.eq(replay),
                self._index.eq(own.look_index),
                self._source.eq(Mux(replay, own.look_source, acquire.payload.source)),
                self._grow.eq(Mux(replay, own.look_grow, acquire.payload.param)),
            ]
            with m.Switch(kind):
                with m.Case(Kind.RELEASE):
                    m.d.comb += self.releases.read.eq(1)
                with m.Case(Kind.PREFETCH):
                    for i, prefetcher in enumerate(self.prefetchers):
                        m.d.comb += prefetcher.take.eq(prefetcher.valid & ~candidates[:i].any())

    def _may_prefetch(self, candidates):
        return candidates.any() & self.own.prefetch_free & (self._under_way < self.l2.prefetches)

    def _probe_to_do(self):
        return self.tilelink.b.valid & ~self._probing & ~self._probe_blocked

    # Stage 1

    def _look_up(self, m: Module) -> None:
        """Find the line of the pass in its rows."""
        entries = [self._entries[i] for i in range(self.l2.ways)]
        m.d.comb += [
            self.directory.line.eq(self._line),
            self.replacement.set.eq(self._set_of(self._line)),
            self.replacement.way.eq(self._way),
            self._way.eq(self._match_way),
            self.own.index.eq(self._match.miss),
            self.own.line.eq(self._line),
            self.own.source.eq(self._source),
            self.own.grow.eq(self._grow),
            self.own.tag.eq(self.fetches.output.payload.tag),
            self.transactions.line.eq(self._line),
            self.transactions.source.eq(self._source),
            self.releases.sought.eq(self._line),
        ]
        with m.If(self._valid):
            matches = Signal(self.l2.ways)
            m.d.comb += [
                matches.eq(
                    Cat(
                        (e.tag == self._tag_of(self._line)) & (e.pending | (e.state != LineState.NOTHING))
                        for e in entries
                    )
                ),
                self._match_way.eq(encode(matches)),
                self._match.eq(one_of([matches[i] for i in range(self.l2.ways)], entries)),
                self._hit.eq(self._match.state != LineState.NOTHING),
                self._leaving.eq(
                    Cat(
                        v & (line == self._line)
                        for v, line in zip(self._leaving_valid, self._leaving_lines, strict=True)
                    ).any()
                ),
            ]

    def _do_acquire(self, m: Module) -> None:
        """Grant the line, or pass the Acquire on; or let it wait for what the L2 has asked for."""
        acquire, own, transactions = self.acquires.output, self.own, self.transactions
        for_writing = self._grow != Grow.N_TO_B
        upgrade = (self._grow == Grow.B_TO_T) & self.directory.holds
        probed = self._probing & (self.tilelink.b.payload.line == self._line)
        done = Signal()
        first = done & ~self._replay
        pass_on = Signal()
        with m.If(self._leaving | probed | (self._replay & self._match.pending)):
            m.d[self.domain] += self._acquire_blocked.eq(1)

        with m.Elif(self._match.pending):
            m.d.comb += [done.eq(1), own.wait_demand.eq(1)]
            self._claim(m)

        with m.Else():
            m.d.comb += [
                done.eq(1),
                self.directory.insert.eq(1),
                self._write_tag.eq(self._hit),  # it is gone
                self._claimed.eq(self._match.prefetched),
            ]
            with m.If(self._hit & ~(for_writing & (self._match.state == LineState.BRANCH))):
                m.d.comb += [transactions.hit.eq(1), self.data.read_enable.eq(1)]
                m.d[self.domain] += [
                    self._grant.eq(1),
                    self._grant_state.eq(self._match.state),
                    self._grant_source.eq(self._source),
                ]
            with m.Else():
                m.d.comb += [pass_on.eq(1), transactions.pass_on.eq(1)]
                self._ask(m, Mux(for_writing, Mux(upgrade, Grow.B_TO_T, Grow.N_TO_T), Grow.N_TO_B), self._source)

        with m.If(done & self._replay):
            m.d.comb += [own.index.eq(self._index), own.replayed.eq(1)]
        with m.If(first):
            m.d.comb += acquire.ready.eq(1)
        m.d.comb += self._missing.eq(first & ~self._hit & ~upgrade)
        self.hits.increment(m, first & transactions.hit)
        self.misses.increment(m, self._missing)
        self.upgrades.increment(m, first & pass_on & (self._hit | upgrade))

    def _do_fetch(self, m: Module) -> None:
        """Say that the line is here, or ask for it."""
        own = self.own
        done = Signal()
        with m.If(self._hit | self.directory.holds):
            m.d.comb += [done.eq(1), self.replacement.touch.eq(self._hit)]
            m.d[self.domain] += [self._fetched.eq(1), self._fetched_tag.eq(own.tag)]
            self._claim(m)
        with m.Elif(self._match.pending & ~own.fetch_waits):
            m.d.comb += [done.eq(1), own.wait_fetch.eq(1)]
            self._claim(m)
        with m.Elif(~self._match.pending & ~self._leaving & self._room & own.fetch_free):
            m.d.comb += done.eq(1)
            self._ask_for_myself(m, prefetch=0)
        with m.Else():
            m.d[self.domain] += self._fetch_blocked.eq(1)

        m.d.comb += [
            self.fetches.output.ready.eq(done),
            self._missing.eq(done & ~self._hit & ~self.directory.holds),
        ]
        self.fetch_hits.increment(m, done & ~self._missing)
        self.fetch_misses.increment(m, self._missing)

    def _do_prefetch(self, m: Module) -> None:
        """Ask for the line, if it is nowhere and there is a place for it."""
        with m.If(~(self._hit | self._match.pending | self.directory.holds | self._leaving) & self._room):
            self._ask_for_myself(m, prefetch=1)
            self.prefetch.emit(m, 1, line=self._line)
            self.prefetches_issued.increment(m, 1)

    def _do_fill(self, m: Module) -> None:
        """Put a line that arrives where a way is kept for it, and acknowledge it."""
        d, e, own = self.tilelink.d, self.tilelink.e, self.own
        m.d.comb += [
            d.ready.eq(1),
            own.index.eq(self._index),
            own.fill.eq(1),
            self._write_tag.eq(1),
            self._entry.eq(self._match),
            self._entry.pending.eq(0),
            self._entry.state.eq(Mux(d.payload.param == Cap.TO_T, LineState.TRUNK, LineState.BRANCH)),
            self.data.write_enable.eq(1),
        ]
        m.d[self.domain] += [
            e.valid.eq(1),
            e.payload.sink.eq(d.payload.sink),
            self._fetched.eq(own.fetch_waits),
            self._fetched_tag.eq(own.fetch_tag),
        ]

    def _do_release(self, m: Module) -> None:
        """Put a line that the L1 has given up into a way, unless a Probe has taken it meanwhile."""
        releases = self.releases
        taken = releases.state == LineState.NOTHING
        with m.If(taken | self._room):
            m.d.comb += [
                releases.pop.eq(1),
                self.directory.remove.eq(1),
                self.release_acks.push.eq(1),
                self.release_acks.entry.eq(releases.source),
            ]
            with m.If(~taken):
                m.d.comb += [
                    self._evicting.eq(1),
                    self._entry.state.eq(releases.state),
                    self.data.write_enable.eq(1),
                ]
        with m.Else():
            m.d[self.domain] += self._release_blocked.eq(1)

    def _do_probe(self, m: Module) -> None:
        """Answer for the line, or ask the L1."""
        self._seek_elsewhere(m)
        with m.If(self.transactions.unacknowledged):
            m.d[self.domain] += self._probe_blocked.eq(1)
        with m.Elif(~self._hit & ~self.releases.match & self.directory.holds):
            m.d[self.domain] += [self._probing.eq(1), self.l1.b.valid.eq(1)]
            self.probes_forwarded.increment(m, 1)
        with m.Else():
            m.d.comb += self._answering.eq(1)

    def _do_answer(self, m: Module) -> None:
        """Pass the answer of the L1 on, or answer for what it has released since it was asked."""
        ack, c = self.l1.c, self.tilelink.c
        self._seek_elsewhere(m)
        m.d.comb += ack.ready.eq(1)
        m.d[self.domain] += self._probing.eq(0)
        with m.If(ack.payload.param == Shrink.N_TO_N):
            m.d.comb += self._answering.eq(1)
        with m.Else():
            gone = (ack.payload.param == Shrink.T_TO_N) | (ack.payload.param == Shrink.B_TO_N)
            m.d.comb += [
                self.tilelink.b.ready.eq(1),
                self.directory.remove.eq(gone & ~self.transactions.asked),
            ]
            self._send_below(m, ack.payload.opcode, ack.payload.param, self._line)
            with m.If(ack.payload.opcode == OpcodeC.PROBE_ACK_DATA):
                m.d[self.domain] += c.payload.data.eq(ack.payload.data)

    # Parts of these

    def _claim(self, m: Module) -> None:
        """Somebody asks for the line; it stays here."""
        with m.If(self._match.prefetched):
            m.d.comb += [
                self._claimed.eq(1),
                self._write_tag.eq(1),
                self._entry.eq(self._match),
                self._entry.prefetched.eq(0),
            ]

    def _ask(self, m: Module, grow, source) -> None:
        """Ask the last level for the line."""
        a = self.tilelink.a
        m.d.comb += self._asking.eq(1)
        m.d[self.domain] += [
            a.valid.eq(1),
            a.payload.opcode.eq(OpcodeA.ACQUIRE_BLOCK),
            a.payload.param.eq(grow),
            a.payload.source.eq(source),
            a.payload.line.eq(self._line),
        ]

    def _ask_for_myself(self, m: Module, *, prefetch: int) -> None:
        """Make an entry and a place for the line, and ask for it."""
        m.d.comb += [
            self.own.allocate.eq(1),
            self.own.prefetch.eq(prefetch),
            self._evicting.eq(1),
            self._entry.pending.eq(1),
            self._entry.prefetched.eq(prefetch),
            self._entry.miss.eq(self.own.new_index),
        ]
        self._ask(m, Grow.N_TO_B, self.l1_sources + self.own.new_index)

    def _seek_elsewhere(self, m: Module) -> None:
        """A probed line may also be on its way between here and the L1."""
        m.d.comb += [self.releases.active.eq(1), self.transactions.active.eq(1)]

    def _send_below(self, m: Module, opcode, param, line, *, source=0, array=0, queue=0) -> None:
        """Send on channel C, with the data that are read from the array, or from the queue of Releases."""
        c = self.tilelink.c.payload
        m.d[self.domain] += [
            self._send.eq(1),
            self._send_array.eq(array),
            self._send_queue.eq(queue),
            c.opcode.eq(opcode),
            c.param.eq(param),
            c.source.eq(source),
            c.line.eq(line),
        ]

    def _make_room(self, m: Module) -> None:
        """Find a way for the line; if it is taken, release what is in it."""
        entries = [self._entries[i] for i in range(self.l2.ways)]
        available = Signal(self.l2.ways)
        empty = Signal(self.l2.ways)
        way = Signal(range(self.l2.ways))
        old = Signal(self.row.elem_shape)
        release = Signal()
        kinds = (Kind.FETCH, Kind.PREFETCH, Kind.RELEASE)
        with m.If(self._valid & Cat(self._kind == k for k in kinds).any()):
            m.d.comb += [
                available.eq(~Cat(e.pending for e in entries)),
                empty.eq(available & Cat(e.state == LineState.NOTHING for e in entries)),
                old.eq(self._entries[way]),
                release.eq(old.state != LineState.NOTHING),
                self._room.eq(available.any() & (~release | ~self._leaving_valid.all())),
            ]
            with m.If(empty.any()):
                m.d.comb += way.eq(encode(lowest(empty)))
            with m.Elif(available.bit_select(self.replacement.victim, 1)):
                m.d.comb += way.eq(self.replacement.victim)
            with m.Else():
                m.d.comb += way.eq(encode(lowest(available)))

        with m.If(self._evicting):
            m.d.comb += [
                self._way.eq(way),
                self._write_tag.eq(1),
                self._entry.tag.eq(self._tag_of(self._line)),
                self.replacement.touch.eq(1),
            ]
        with m.If(self._evicting & release):
            slot = Signal(self.l2.releases)
            dirty = old.state == LineState.DIRTY
            line = Cat(self._set_of(self._line), old.tag)
            param = Mux(old.state == LineState.BRANCH, Shrink.B_TO_N, Shrink.T_TO_N)
            m.d.comb += [
                slot.eq(lowest(~self._leaving_valid)),
                self._released.eq(slot),
                self._unclaimed.eq(old.prefetched),
                self.data.read_enable.eq(dirty),
            ]
            opcode = Mux(dirty, OpcodeC.RELEASE_DATA, OpcodeC.RELEASE)
            self._send_below(m, opcode, param, line, source=self.release_source + encode(slot), array=dirty)
            for i, leaving_line in enumerate(self._leaving_lines):
                with m.If(slot[i]):
                    m.d[self.domain] += leaving_line.eq(line)
            self.evict.emit(m, 1, line=line, state=old.state)
            self.evictions_dirty.increment(m, dirty)
            self.evictions_clean.increment(m, ~dirty)

    def _answer_from_here(self, m: Module) -> None:
        """Give up permissions for the line, if it is in the cache or in the queue of Releases, and say so."""
        releases, b = self.releases, self.tilelink.b
        to_none = b.payload.param == Cap.TO_N
        state = Signal(LineState)
        left = Signal(LineState)
        with m.If(self._answering):
            dirty = state == LineState.DIRTY
            shrink = Signal(Shrink)
            m.d.comb += [
                b.ready.eq(1),
                state.eq(Mux(self._hit, self._match.state, releases.match_state)),
                self.data.read_enable.eq(self._hit & dirty),
                self._write_tag.eq(self._hit & (left != state)),
                self._unclaimed.eq(self._hit & to_none & self._match.prefetched),
                releases.read.eq(~self._hit & dirty),
                releases.change.eq(~self._hit & releases.match),
                releases.change_state.eq(left),
            ]
            with m.If(self._hit):
                m.d.comb += [self._entry.eq(self._match), self._entry.state.eq(left)]
            with m.Switch(state):
                with m.Case(LineState.NOTHING):
                    m.d.comb += shrink.eq(Shrink.N_TO_N)
                with m.Case(LineState.BRANCH):
                    m.d.comb += shrink.eq(Mux(to_none, Shrink.B_TO_N, Shrink.B_TO_B))
                with m.Default():
                    m.d.comb += shrink.eq(Mux(to_none, Shrink.T_TO_N, Shrink.T_TO_B))
            with m.If(~to_none & (state != LineState.NOTHING)):
                m.d.comb += left.eq(LineState.BRANCH)
            opcode = Mux(dirty, OpcodeC.PROBE_ACK_DATA, OpcodeC.PROBE_ACK)
            self._send_below(m, opcode, shrink, self._line, array=self._hit & dirty, queue=~self._hit & dirty)

    def _arrays(self, m: Module) -> None:
        """Stage 1's access to the tags and to one line of data; lines in the queue of Releases."""
        releases = self.releases
        address = Cat(self._set_of(self._line), self._way)
        m.d.comb += [
            self.tags.write_address.eq(self._set_of(self._line)),
            self.tags.write_data.eq(self._entry.as_value().replicate(self.l2.ways)),
            self.data.read_address.eq(address),
            self.data.write_address.eq(address),
        ]
        with m.If(self._write_tag):
            m.d.comb += self.tags.write_enable.eq(1 << self._way)
        with m.If(self._answering):
            m.d.comb += releases.read_index.eq(releases.match_index)
        with m.Else():
            m.d.comb += releases.read_index.eq(releases.index)
        with m.If(self._kind == Kind.FILL):
            m.d.comb += self.data.write_data.eq(self.tilelink.d.payload.data)
        with m.Else():
            m.d.comb += self.data.write_data.eq(releases.read_data)

    # Channels

    def _channel_c(self, m: Module) -> None:
        """Stage 2: messages to the last level leave, with the data that stage 1 has read."""
        a, c = self.tilelink.a, self.tilelink.c
        for channel in (a, c):
            with m.If(channel.valid & channel.ready):
                m.d[self.domain] += channel.valid.eq(0)
        with m.If(self._send):
            m.d[self.domain] += [self._send.eq(0), c.valid.eq(1)]
            with m.If(self._send_array):
                m.d[self.domain] += c.payload.data.eq(self.data.read_data)
            with m.Elif(self._send_queue):
                m.d[self.domain] += c.payload.data.eq(self.releases.read_data)

    def _channel_d(self, m: Module) -> None:
        """Stage 2: the L1 gets Grants from here and from below, and when there are none, answers to its Releases."""
        above, below, acks = self.l1.d, self.tilelink.d, self.release_acks.output
        open_ = self._d_open
        passing = Signal()
        m.d.comb += [
            open_.eq(~above.valid | above.ready),
            passing.eq(below.valid & ~self._release_ack & ~self._own_grant & ~self._grant),
            self.transactions.granted.eq(passing & open_),
            self.transactions.granted_source.eq(below.payload.source),
            self.transactions.granted_sink.eq(below.payload.sink),
            acks.ready.eq(open_ & ~self._grant & ~passing),
        ]
        with m.If(self._release_ack | self.transactions.granted):
            m.d.comb += below.ready.eq(1)
        with m.If(open_):
            m.d[self.domain] += above.valid.eq(self._grant | passing | acks.valid)
            with m.If(self._grant):
                m.d[self.domain] += self._grant.eq(0)
                trunk = self._grant_state != LineState.BRANCH
                m.d[self.domain] += [
                    above.payload.opcode.eq(OpcodeD.GRANT_DATA),
                    above.payload.param.eq(Mux(trunk, Cap.TO_T, Cap.TO_B)),
                    above.payload.dirty.eq(self._grant_state == LineState.DIRTY),
                    above.payload.source.eq(self._grant_source),
                    above.payload.sink.eq(self._grant_source),
                    above.payload.data.eq(self.data.read_data),
                ]
            with m.Elif(passing):
                m.d[self.domain] += [above.payload.eq(below.payload), above.payload.sink.eq(below.payload.source)]
            with m.Elif(acks.valid):
                m.d[self.domain] += [
                    above.payload.opcode.eq(OpcodeD.RELEASE_ACK),
                    above.payload.source.eq(acks.payload),
                ]

    def _channel_e(self, m: Module) -> None:
        """GrantAcks for Grants from below go there; the others end here."""
        above, below, transactions = self.l1.e, self.tilelink.e, self.transactions
        m.d.comb += [
            transactions.sink.eq(above.payload.sink),
            transactions.acknowledge.eq(above.valid & transactions.local),
            above.ready.eq(transactions.local | (~below.valid & ~self._own_grant)),
        ]
        with m.If(below.valid & below.ready):
            m.d[self.domain] += below.valid.eq(0)
        with m.If(above.valid & above.ready & ~transactions.local):
            m.d[self.domain] += [below.valid.eq(1), below.payload.sink.eq(transactions.sink_below)]

    def _channel_b(self, m: Module) -> None:
        """Probes go to the L1 as they are; this cache takes them when they are answered."""
        above, below = self.l1.b, self.tilelink.b
        m.d.comb += above.payload.eq(below.payload)
        with m.If(above.valid & above.ready):
            m.d[self.domain] += above.valid.eq(0)
        self.probes_received.increment(m, below.valid & below.ready)

    # Beside the passes

    def _fetch_done(self, m: Module) -> None:
        """Stage 2 and one more, so that a fetch takes as long as an Acquire. Before a pass that has the next one."""
        m.d[self.domain] += self.fetch.done_valid.eq(self._fetched)
        with m.If(self._fetched):
            m.d[self.domain] += [self.fetch.done.tag.eq(self._fetched_tag), self._fetched.eq(0)]

    def _train_prefetchers(self, m: Module) -> None:
        """Misses train, and so do lines found thanks to a prefetch: else a stream that works would end."""
        for prefetcher in self.prefetchers:
            with_hits = isinstance(prefetcher, StreamPrefetcher)
            m.d.comb += [
                prefetcher.train.eq((self._missing & ~self._claimed) | (with_hits & self._claimed)),
                prefetcher.train_line.eq(self._line),
            ]
        is_fetch = self._kind == Kind.FETCH
        writes = ~is_fetch & (self._grow != Grow.N_TO_B)
        self.miss.emit(m, self._missing, line=self._line, write=writes, fetch=is_fetch)
        self.prefetches_used.increment(m, self._claimed)
        self.prefetches_late.increment(m, self._claimed & self._match.pending)
        self.prefetches_unused.increment(m, self._unclaimed)

    def _wake(self, m: Module) -> None:
        """What has waited may go on. Last, so that it wins over what goes to sleep at the same edge."""
        acked = Signal(self.l2.releases)
        with m.If(self._release_ack):
            m.d.comb += acked.eq(
                Cat(self.tilelink.d.payload.source == self.release_source + i for i in range(self.l2.releases))
            )
        with m.If(self._released.any() | self._release_ack):
            m.d[self.domain] += self._leaving_valid.eq((self._leaving_valid | self._released) & ~acked)

        filled = self.own.fill
        answered = self.tilelink.b.ready
        with m.If(self._release_ack | filled | answered):
            m.d[self.domain] += [self._acquire_blocked.eq(0), self._release_blocked.eq(0)]
        with m.If(self._release_ack | filled | answered | self.own.replayed):
            m.d[self.domain] += self._fetch_blocked.eq(0)
        with m.If(self.transactions.acknowledge):
            m.d[self.domain] += self._probe_blocked.eq(0)

        arrived = filled | self.transactions.granted
        with m.If(self._asking & ~arrived):
            m.d[self.domain] += self._under_way.eq(self._under_way + 1)
        with m.Elif(arrived & ~self._asking):
            m.d[self.domain] += self._under_way.eq(self._under_way - 1)

    def _tell_quiet(self, m: Module) -> None:
        """Nothing in the pipeline, nothing leaves, nothing arrives, and what is left waits for somebody."""
        above, below = self.l1, self.tilelink
        passes = self._valid | self._grant | self._send | self._fetched | self.fetch.done_valid
        leaving = below.a.valid | below.c.valid | below.e.valid | above.b.valid | above.d.valid
        streams = [p.pending for p in self.prefetchers if isinstance(p, StreamPrefetcher)]
        to_do = (
            self.acquires.travelling
            | self.fetches.travelling
            | ((self.acquires.output.valid | self.own.replay) & ~self._acquire_blocked)
            | (self.fetches.output.valid & ~self._fetch_blocked)
            | (self.releases.valid & ~self._release_blocked)
            | self.release_acks.output.valid
            | self._may_prefetch(Cat(p.valid for p in self.prefetchers))
            | Cat(streams).any()
        )
        arriving = above.a.valid | above.c.valid | above.e.valid | self.fetch.request.valid
        arriving_below = below.d.valid | self._probe_to_do()
        m.d.comb += self.quiet.eq(~(passes | leaving | to_do | arriving | arriving_below))
