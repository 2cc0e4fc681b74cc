"""The last-level cache between caches that behave, a device, and a DRAM that answers out of order."""

import dataclasses
import gc
import random
import warnings
from collections import defaultdict, deque
from types import SimpleNamespace

import pytest
from amaranth.hdl import Cat, Const, Module, Shape, Signal, Value
from amaranth.lib.data import Layout
from amaranth.sim import Simulator

from hw.bus.memory import DeviceRequest, DeviceResponse, DramRequest, DramResponse, MemoryOp
from hw.bus.tilelink import (
    Cap,
    ChannelA,
    ChannelB,
    ChannelC,
    ChannelD,
    ChannelE,
    Grow,
    OpcodeA,
    OpcodeC,
    OpcodeD,
    Shrink,
)
from hw.config import load_machine
from hw.lib.probe import Counter
from hw.mem.llc import PIPELINE_LATENCY, LastLevelCache

FULL = (1 << 64) - 1
SMALL = (
    "llc.size_kib=2",
    "llc.ways=4",
    "llc.ddio_ways=2",
    "llc.slots=8",
    "llc.snoop_filter_lines=16",
    "llc.snoop_filter_ways=2",
)


def merge(old, new, mask):
    """Bytes of ``new`` where ``mask`` has a bit, else of ``old``."""
    if mask == FULL:
        return new
    bits = 0
    for i in range(64):
        if mask >> i & 1:
            bits |= 0xFF << 8 * i
    return old & ~bits | new & bits


class Wires:
    """One stream of the device under test, its payload as a plain integer: much faster than views."""

    def __init__(self, port, layout):
        self.valid, self.ready = port.valid, port.ready
        self.bits = Value.cast(port.payload)
        self.fields = {
            name: (field.offset, (1 << Shape.cast(field.shape).width) - 1) for name, field in Layout.cast(layout)
        }

    def pack(self, values):
        return sum(int(getattr(v, "value", v)) << self.fields[name][0] for name, v in values.items())

    def unpack(self, bits):
        return SimpleNamespace(**{n: bits >> offset & mask for n, (offset, mask) in self.fields.items()})


class Shadow:
    """What memory holds, from the points at which writes become visible, and when each line changed."""

    def __init__(self):
        self.history = defaultdict(lambda: [(0, 0)])
        self.cycle = 0

    def write(self, line, value):
        self.history[line].append((self.cycle, value))

    def read(self, line):
        return self.history[line][-1][1]

    def values_since(self, line, cycle):
        """Every value the line has had from ``cycle`` on."""
        entries = self.history[line]
        return [v for i, (c, v) in enumerate(entries) if i == len(entries) - 1 or entries[i + 1][0] >= cycle]


class Cache:
    """A private cache: loads and stores random lines, releases some, answers probes late."""

    MSHRS = 3

    def __init__(self, bench, index, lines, operations, *, stores=0.4, capacity=8, delay=0.15, releases=0.03):
        self.releases = releases
        self.bench, self.index, self.lines, self.left = bench, index, lines, operations
        self.stores, self.capacity, self.delay = stores, capacity, delay
        self.random = random.Random(f"{bench.seed}/{index}")
        self.held = {}  # line: [may write, dirty, value]
        self.acquiring = {}  # source: (line, store or not)
        self.releasing = {}  # source: line
        self.outbox = deque()
        self.acks = deque()
        self.probes = deque()
        self.checked = 0

    @property
    def done(self):
        return not (self.left or self.acquiring or self.releasing or self.outbox or self.acks or self.probes)

    def use(self, line, store):
        writable, _, value = self.held[line]
        assert value == self.bench.shadow.read(line), f"core {self.index} sees stale line {line:#x}"
        self.checked += 1
        if store:
            assert writable
            value = self.random.getrandbits(512)
            self.bench.shadow.write(line, value)
            self.held[line] = [True, True, value]

    def think(self):
        """Start at most one operation; None or the Acquire to send."""
        r = self.random
        # A release now and then, or when full
        free = [s for s in range(self.bench.config.l2.releases) if s not in self.releasing]
        busy = {line for line, _ in self.acquiring.values()}
        candidates = [line for line in self.held if line not in busy]
        if free and candidates and (len(self.held) >= self.capacity or r.random() < self.releases):
            self.release(r.choice(candidates), free[0])
        if not self.left or len(self.held) >= self.capacity + 2 or r.random() < 0.2:
            return None
        line = self.lines(r)
        store = r.random() < self.stores
        if line in busy or line in self.releasing.values():
            return None
        if line in self.held and (self.held[line][0] or not store):
            self.left -= 1
            self.use(line, store)
            return None
        source = next((s for s in range(self.MSHRS) if s not in self.acquiring), None)
        if source is None:
            return None
        self.left -= 1
        self.acquiring[source] = (line, store)
        param = Grow.N_TO_B if not store else Grow.B_TO_T if line in self.held else Grow.N_TO_T
        return {"opcode": OpcodeA.ACQUIRE_BLOCK, "param": param, "source": source, "line": line}

    def release(self, line, source):
        writable, dirty, value = self.held.pop(line)
        self.releasing[source] = line
        self.outbox.append(
            {
                "opcode": OpcodeC.RELEASE_DATA if dirty else OpcodeC.RELEASE,
                "param": Shrink.T_TO_N if writable else Shrink.B_TO_N,
                "source": source,
                "line": line,
                "data": value if dirty else 0,
            }
        )

    def answer(self, line, cap):
        answer = {"opcode": OpcodeC.PROBE_ACK, "param": Shrink.N_TO_N, "source": 0, "line": line, "data": 0}
        if line in self.held:
            writable, dirty, value = self.held[line]
            if dirty:
                answer.update(opcode=OpcodeC.PROBE_ACK_DATA, data=value)
            if cap == Cap.TO_B.value:
                answer["param"] = Shrink.T_TO_B if writable else Shrink.B_TO_B
                self.held[line] = [False, False, value]
            else:
                answer["param"] = Shrink.T_TO_N if writable else Shrink.B_TO_N
                del self.held[line]
        self.outbox.append(answer)

    def granted(self, message):
        line, store = self.acquiring.pop(message.source)
        assert message.opcode == OpcodeD.GRANT_DATA.value
        writable = message.param == Cap.TO_T.value
        assert writable or not store
        self.held[line] = [writable, False, message.data]
        self.bench.check_exclusive(line)
        self.acks.append(message.sink)
        self.use(line, store)

    async def run(self, ctx):
        port = self.bench.dut.client[self.index]
        a, b, c = Wires(port.a, ChannelA), Wires(port.b, ChannelB), Wires(port.c, ChannelC)
        d, e = Wires(port.d, ChannelD), Wires(port.e, ChannelE)
        r, delay = self.random, self.delay
        a_on = b_on = c_on = d_on = e_on = False
        edges = ctx.tick("uncore").sample(a.ready, b.valid, b.bits, c.ready, d.valid, d.bits, e.ready)
        async for _, _, a_ready, b_valid, b_bits, c_ready, d_valid, d_bits, e_ready in edges:
            if a_on and a_ready:
                a_on = False
            if c_on and c_ready:
                self.outbox.popleft()
                c_on = False
            if e_on and e_ready:
                self.acks.popleft()
                e_on = False
            if d_on and d_valid:
                message = d.unpack(d_bits)
                if message.opcode == OpcodeD.RELEASE_ACK.value:
                    del self.releasing[message.source]
                else:
                    self.granted(message)
            if b_on and b_valid:
                message = b.unpack(b_bits)
                self.probes.append((message.line, message.param))
            if self.probes and r.random() > delay:
                self.answer(*self.probes.popleft())
            if not a_on:
                acquire = self.think()
                a_on = acquire is not None
                ctx.set(a.valid, a_on)
                if a_on:
                    ctx.set(a.bits, a.pack(acquire))
            if not c_on:
                c_on = bool(self.outbox) and r.random() > delay
                ctx.set(c.valid, c_on)
                if c_on:
                    ctx.set(c.bits, c.pack(self.outbox[0]))
            if not e_on:
                e_on = bool(self.acks) and r.random() > delay
                ctx.set(e.valid, e_on)
                if e_on:
                    ctx.set(e.bits, self.acks[0])
            b_on, d_on = r.random() > delay, r.random() > delay
            ctx.set(b.ready, b_on)
            ctx.set(d.ready, d_on)


class Device:
    """Reads and writes lines, whole and in part; checks reads, and applies writes as they become visible."""

    def __init__(self, bench, lines, operations, *, writes=0.6, partial=0.5, delay=0.15, script=()):
        self.bench, self.lines, self.left, self.writes, self.partial = bench, lines, operations, writes, partial
        self.delay = delay
        self.script = deque(script)
        self.random = random.Random(f"{bench.seed}/device")
        self.posted = deque()
        self.reading = {}
        self.accepted = {}
        self.checked = 0
        self.offered = None

    @property
    def done(self):
        return not (self.left or self.script or self.posted or self.reading or self.offered)

    def next_request(self):
        r = self.random
        if self.script:
            return self.script.popleft()
        if not self.left or r.random() < 0.2:
            return None
        self.left -= 1
        line = self.lines(r)
        if r.random() < self.writes:
            mask = FULL if r.random() > self.partial else r.choice([0xFFFF, 0xFF << 16, r.getrandbits(64), 0])
            data, around = r.getrandbits(512), r.random() < 0.3
            return {"op": MemoryOp.WRITE, "line": line, "mask": mask, "data": data, "packet": 7, "around": around}
        return {"op": MemoryOp.READ, "line": line, "packet": 9}

    async def run(self, ctx):
        port = self.bench.dut.device
        request, response = Wires(port.request, DeviceRequest), Wires(port.response, DeviceResponse)
        r, shadow = self.random, self.bench.shadow
        response_on = False
        edges = ctx.tick("uncore").sample(request.ready, response.valid, response.bits, port.write_done)
        async for _, _, ready, valid, bits, write_done in edges:
            if write_done:
                line, data, mask = self.posted.popleft()
                for cache in self.bench.caches:
                    assert line not in cache.held, f"a core holds line {line:#x} while a device writes it"
                shadow.write(line, merge(shadow.read(line), data, mask))
            if self.offered is not None and ready:
                if self.offered["op"] == MemoryOp.WRITE:
                    self.posted.append((self.offered["line"], self.offered["data"], self.offered["mask"]))
                else:
                    self.reading[self.offered["tag"]] = (self.offered["line"], shadow.cycle)
                self.offered = None
            if response_on and valid:
                message = response.unpack(bits)
                line, since = self.reading.pop(message.tag)
                assert message.data in shadow.values_since(line, since), f"device reads stale line {line:#x}"
                assert message.packet == 9
                self.checked += 1
            if self.offered is None and len(self.reading) < 256:
                self.offered = self.next_request()
                ctx.set(request.valid, self.offered is not None)
                if self.offered is not None:
                    self.offered["tag"] = next(t for t in range(256) if t not in self.reading)
                    ctx.set(request.bits, request.pack(self.offered))
            response_on = r.random() > self.delay
            ctx.set(response.ready, response_on)


class Dram:
    """Answers reads after random times, out of order."""

    def __init__(self, bench, *, latency=(3, 20), delay=0.2):
        self.bench, self.latency, self.delay = bench, latency, delay
        self.memory = defaultdict(int)
        self.pending = []
        self.reads = self.writes = 0

    async def run(self, ctx):
        port = self.bench.dut.dram[0]
        request, response = Wires(port.request, DramRequest), Wires(port.response, DramResponse)
        r = random.Random(f"{self.bench.seed}/dram")
        offered, request_on = None, False
        cycle = 0
        edges = ctx.tick("uncore").sample(request.valid, request.bits, response.ready)
        async for _, _, valid, bits, taken in edges:
            cycle += 1
            if offered is not None and taken:
                self.pending.remove(offered)
                offered = None
            if request_on and valid:
                message = request.unpack(bits)
                if message.op == MemoryOp.WRITE.value:
                    self.memory[message.line] = message.data
                    self.writes += 1
                else:
                    due = cycle + r.randint(*self.latency)
                    self.pending.append((due, message.tag, self.memory[message.line]))
                    self.reads += 1
            if offered is None:
                ready = [p for p in self.pending if p[0] <= cycle]
                offered = r.choice(ready) if ready else None
                ctx.set(response.valid, offered is not None)
                if offered is not None:
                    ctx.set(response.bits, response.pack({"tag": offered[1], "data": offered[2]}))
            request_on = r.random() >= self.delay
            ctx.set(request.ready, request_on)


class Bench:
    """A cache with its surroundings, run until all of them are done."""

    def __init__(self, *settings, seed=1, machine="tiny"):
        self.seed = seed
        self.config = load_machine(machine, settings)
        self.dut = LastLevelCache(self.config)
        self.shadow = Shadow()
        self.caches = []
        self.others = []
        self.now = Signal(48)
        self.releases_taken = self.quiet_edges = 0

    async def watch(self, ctx):
        """Quiet means that nothing changes; count how often a probe met a release."""
        dut, timer = self.dut, self.dut.lookup_timer
        names = "free ready draining prepared released s1_valid s2_valid s3_fill s4_fill".split()
        state = [getattr(dut, f"_{name}") for name in names] + dut._awaiting + [dut.line_buffers.moving]
        state += [v.value for v in vars(dut).values() if isinstance(v, Counter)]
        state += [q.output.payload for q in (dut.write_order, dut.waiting)]
        state = Cat(Value.cast(signal) for signal in state)
        due = timer.armed & (self.now >= timer.deadline)
        before = None
        edges = ctx.tick("uncore").sample(dut.quiet, due, state, dut._take)
        async for _, _, quiet, due_now, now, take in edges:
            assert before is None or now == before, "something changed at an edge called quiet"
            before = now if quiet and not due_now else None
            self.quiet_edges += quiet
            self.releases_taken += take

    def check_exclusive(self, line):
        writers = [c.index for c in self.caches if line in c.held and c.held[line][0]]
        holders = [c.index for c in self.caches if line in c.held]
        assert not writers or len(holders) == 1, f"line {line:#x} writable in {writers}, held in {holders}"

    def check_occupancy(self, ctx):
        """What the gauges say is in the tag array, by way and by owner."""
        tags, size = self.dut.tags, self.dut.tags.entry.size
        memory = tags.rows._memory  # as Amaranth simulates it
        by_way = defaultdict(lambda: [0, 0])
        by_class = defaultdict(int)
        for row in range(tags.sets):
            bits = ctx.get(memory.data[row])
            for way in range(tags.ways):
                entry = tags.entry.from_bits(bits >> way * size & ((1 << size) - 1))
                if entry.valid:
                    by_way[way][entry.owner > 0] += 1
                    by_class[entry.owner - 1] += entry.owner > 0
        for way in range(tags.ways):
            assert [self.final_lists[f"occupancy_{name}"][way] for name in ("io", "core")] == by_way[way], way
        for number, count in enumerate(self.final_lists["occupancy_class"]):
            assert count == by_class[number], number

    def counter(self, name):
        return self.final[name]

    def run(self, limit, test=None):
        m = Module()
        m.submodules.dut = self.dut
        m.d.uncore += self.now.eq(self.now + 1)
        m.d.comb += self.dut.now.eq(self.now)
        sim = Simulator(m)
        sim.add_clock(1e-9, domain="uncore")
        agents = [*self.caches, *self.others]
        sim.add_process(self.watch)
        for agent in agents:
            sim.add_process(agent.run)

        async def control(ctx):
            if test is not None:
                await test(ctx)
            finished = 0
            while finished < 60:
                await ctx.tick("uncore")
                self.shadow.cycle += 1
                finished = finished + 1 if all(getattr(a, "done", True) for a in agents) else 0
                assert self.shadow.cycle < limit, "stuck"
            assert ctx.get(self.dut._free) == (1 << self.dut.layouts.all_slots) - 1
            assert ctx.get(self.dut.quiet)
            lists = {n: v for n, v in vars(self.dut).items() if n.startswith("occupancy_")}
            self.final_lists = {n: [ctx.get(gauge.value) for gauge in v] for n, v in lists.items()}
            self.check_occupancy(ctx)
            self.final = {n: ctx.get(v.value) for n, v in vars(self.dut).items() if isinstance(v, Counter)}

        sim.add_testbench(control)
        sim.run()


def pool(lines, skew=0.5):
    """Random lines, half of them from the first eight."""
    lines = list(lines)
    return lambda r: lines[r.randrange(8)] if r.random() < skew else r.choice(lines)


def random_bench(*settings, seed=1, operations=600):
    bench = Bench(*SMALL, *settings, seed=seed)
    lines = pool(range(0x100, 0x140))
    bench.caches = [Cache(bench, i, lines, operations) for i in range(bench.config.core.count)]
    bench.others = [Device(bench, lines, operations), Dram(bench)]
    return bench


INCLUSIVE = "llc.inclusion=inclusive"

#: What the last level can be: each is run through the same traffic, and must catch the same bugs.
MODES = {
    "non-inclusive": (),
    "inclusive": (INCLUSIVE,),
    "sliced": ("llc.size_kib=3", "llc.slices=3", "llc.snoop_filter_lines=24", "llc.replacement=random"),
    "inclusive, sliced, masked": (
        "llc.size_kib=2",
        "llc.slices=2",
        "llc.snoop_filter_lines=16",
        "llc.class_masks=[15, 6]",
        "llc.core_classes=[0, 1]",
        INCLUSIVE,
    ),
}


@pytest.mark.parametrize(
    ("settings", "operations"),
    [
        ((), 400),
        (("llc.ddio=false", "core.count=3"), 150),
        pytest.param((INCLUSIVE, "llc.ddio=false", "core.count=3"), 150, marks=pytest.mark.slow),
        pytest.param((INCLUSIVE, "llc.replacement=random"), 200, marks=pytest.mark.slow),
        (MODES["sliced"], 200),
        (MODES["inclusive, sliced, masked"], 200),
    ],
)
def test_random_traffic_is_coherent(settings, operations):
    """Each load and device read returns current data, writers are alone, and nothing is left over."""
    bench = random_bench(*settings, operations=operations)
    device, dram = bench.others
    dram.delay = 0.75  # victims queue up
    bench.run(20_000)
    assert device.checked > operations // 4 and all(c.checked == operations for c in bench.caches)
    assert bench.counter("back_invalidations") > 50
    assert bench.counter("probes_sent") > bench.counter("back_invalidations")
    assert bench.counter("dram_reads") == dram.reads
    assert bench.counter("dram_writes") == dram.writes
    assert bench.releases_taken > 0, "no probe ever met a release"
    assert bench.quiet_edges > 0


def lose_exclusive(decide, original):
    def set_holders(m, way, sharers, exclusive):
        original(m, way, sharers, 0)

    return set_holders


def lose_release(decide, original):
    def release(m, others):
        original(m, others)
        m.d.comb += decide._store.eq(0)

    return release


def lose_back_invalidated(decide, original):
    def finish(m):
        original(m)
        m.d.comb += [decide._store.eq(0), decide.actions.dram_write.eq(0)]

    return finish


def stale_hit(decide, original):
    def acquire(m, client, remaining):
        original(m, client, remaining)
        m.d.comb += decide._store_dirty.eq(0)

    return acquire


def lose_called_back(decide, original):
    """What a core returns of a line that leaves an inclusive cache does not reach DRAM."""

    def finish(m):
        original(m)
        with m.If(decide.progress.dirty):
            m.d.comb += decide.actions.dram_write.eq(0)

    return finish


def lose_replaced(decide, original):
    """A line that leaves an inclusive cache dirty, and clean in the cores, does not reach DRAM."""

    def finish(m):
        original(m)
        with m.If(~decide.progress.dirty):
            m.d.comb += decide.actions.dram_write.eq(0)

    return finish


@pytest.mark.parametrize(
    "mode",
    [
        "non-inclusive",
        "inclusive, sliced, masked",
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("inclusive", "sliced")),
    ],
)
@pytest.mark.parametrize(
    ("method", "bug"),
    [
        ("_set_holders", lose_exclusive),
        ("_release", lose_release),
        ("_finish_back_invalidation", lose_back_invalidated),
        ("_acquire", stale_hit),
        ("_finish_replacing", lose_called_back),
        ("_finish_replacing", lose_replaced),
    ],
)
def test_planted_bugs_are_caught(method, bug, mode):
    if method == "_finish_replacing" and INCLUSIVE not in MODES[mode]:
        pytest.skip("only an inclusive cache calls its victims back")
    bench = random_bench(*MODES[mode])
    setattr(bench.dut.decide, method, bug(bench.dut.decide, getattr(bench.dut.decide, method)))
    with pytest.raises(AssertionError):
        bench.run(20_000)


def inclusive_bench():
    """A way is needed of a line that a core has written."""
    bench = Bench("llc.size_kib=16", "llc.ways=4", "llc.ddio_ways=4", INCLUSIVE)
    line, sets = 5, bench.config.llc.sets
    writes = [
        {"op": MemoryOp.WRITE, "line": line + sets * n, "mask": FULL, "data": n, "packet": 1} for n in range(1, 5)
    ]
    bench.caches = [Cache(bench, 0, lambda r: line, 1, stores=1, releases=0)]
    bench.others = [Device(bench, None, 0, script=[None] * 100 + writes), Dram(bench)]
    return bench


def is_inclusive(bench):
    """The core loses it, DRAM gets what the core wrote."""
    bench.run(1000)
    assert bench.caches[0].held == {}
    assert bench.others[1].memory == {5: bench.shadow.read(5)}
    assert (bench.counter("back_invalidations"), bench.counter("evict_dirty")) == (1, 1)


def test_inclusive_means_that_cores_hold_nothing_the_cache_has_not():
    is_inclusive(inclusive_bench())


def test_an_inclusive_cache_that_calls_nothing_back_is_found():
    bench = inclusive_bench()
    bench.dut.decide._displaces_held = lambda: Const(0)
    with pytest.raises(AssertionError, match=r"{5: \[True"):
        is_inclusive(bench)


def masked_bench():
    """Core 0 may use ways 0 and 1, core 1 ways 2 and 3: one fills its ways, the other asks for a line of those."""
    bench = Bench(
        "llc.size_kib=16", "llc.ways=4", "llc.ddio_ways=1", "llc.class_masks=[3, 12]", "llc.core_classes=[0, 1]"
    )
    sets = bench.config.llc.sets
    lines = [7 + sets * n for n in range(6)]
    todo = deque(lines)
    first = Cache(bench, 0, lambda r: todo[0], 6, stores=0, releases=0, capacity=16)
    first.use = lambda line, store: (Cache.use(first, line, store), todo.popleft())
    second = Cache(bench, 1, lambda r: lines[-1], 0, stores=0, releases=0)
    bench.caches = [first, second]
    bench.others = [Dram(bench)]
    return bench


def keeps_to_its_ways(bench):
    """Lines are allocated in the ways of their class and found in all."""

    async def later(ctx):
        await ctx.tick("uncore").repeat(500)
        bench.caches[1].left = 1

    bench.run(2000, later)
    ways = [bench.final_lists["occupancy_core"][way] for way in range(4)]
    assert ways == [1, 1, 0, 0]
    assert bench.counter("core_misses") == 6 and bench.counter("core_hits") == 1
    assert bench.final_lists["occupancy_class"][:2] == [2, 0]
    assert bench.counter("evict_by_core") == 4


def test_lines_are_allocated_in_the_ways_of_their_class_and_found_in_all():
    keeps_to_its_ways(masked_bench())


def test_a_cache_that_ignores_its_masks_is_found():
    bench = masked_bench()
    original = bench.dut._pass

    def any_way(m):
        original(m)
        m.d.comb += bench.dut.tags.candidates.eq(~0)

    bench.dut._pass = any_way
    with pytest.raises(AssertionError, match=r"\[1, 1, 0, 0\]"):
        keeps_to_its_ways(bench)


class Reader(Cache):
    """Loads a flag, then the data it announces, again and again."""

    def __init__(self, bench, index, flag, data, operations):
        super().__init__(bench, index, None, operations, stores=0)
        self.flag, self.data, self.seen = flag, data, 0
        self.next = flag
        self.lines = lambda r: self.next

    def use(self, line, store):
        super().use(line, store)
        value = self.held[line][2] & 0xFFFF
        if line == self.flag:
            self.seen, self.next = value, self.data
        else:
            assert value >= self.seen, f"flag says {self.seen}, data are {value}"
            self.next = self.flag


def test_device_writes_become_visible_in_order():
    """Data that take long to prepare (part of a line that only DRAM has) come before a flag that hits."""
    bench = Bench(*SMALL)
    flag, first = 0x40, 0x101
    reader = Reader(bench, 0, flag, first, 250)
    script = []
    for n in range(1, 60):
        script.append({"op": MemoryOp.WRITE, "line": 0x203 + 8 * n, "mask": 0xFF, "data": n, "packet": 1})
        script.append({"op": MemoryOp.WRITE, "line": first, "mask": 0xF, "data": n, "packet": 1})
        script.append({"op": MemoryOp.WRITE, "line": flag, "mask": FULL, "data": n, "packet": 1})
    bench.caches = [reader]
    bench.others = [Device(bench, None, 0, script=script), Dram(bench, latency=(40, 60))]
    bench.run(20_000)
    assert reader.seen > 40


class Log:
    """Numbers of the edges at which something is offered or taken, watched without touching it."""

    def __init__(self, bench, **signals):
        self.bench, self.signals = bench, signals
        self.edges = {name: [] for name in signals}

    async def run(self, ctx):
        async for _, _, now, *values in ctx.tick("uncore").sample(self.bench.now, *self.signals.values()):
            for name, value in zip(self.signals, values, strict=True):
                if value:
                    self.edges[name].append(now)


@pytest.mark.parametrize("latency", [8, 21])
def test_latency_of_a_hit(latency):
    """Grant, and a device's data, are offered ``llc.latency`` edges after the request was taken: not one before."""
    bench = Bench(f"llc.latency={latency}")
    client, device = bench.dut.client[0], bench.dut.device
    log = Log(
        bench,
        a=client.a.valid & client.a.ready,
        d=client.d.valid,
        read=device.request.valid & device.request.ready & (device.request.payload.op == MemoryOp.READ),
        response=device.response.valid,
        quiet=bench.dut.quiet,
    )
    reads = Device(bench, None, 0, script=[{"op": MemoryOp.READ, "line": 5, "packet": 9}], delay=0)
    reads.script.appendleft({"op": MemoryOp.WRITE, "line": 5, "mask": FULL, "data": 1, "packet": 7})
    cache = Cache(bench, 0, lambda r: 5, 0, delay=0, stores=0)
    bench.caches = [cache]
    bench.others = [reads, log, Dram(bench)]

    async def acquire(ctx):
        await ctx.tick("uncore").repeat(80)
        cache.left = 1

    bench.run(400, acquire)
    taken, offered = log.edges["a"][0], log.edges["d"][0]
    assert offered == taken + latency
    assert log.edges["response"][0] == log.edges["read"][0] + latency
    # Quiet from the edge after the request until its lookup is due
    waiting = range(taken + 1, taken + latency - PIPELINE_LATENCY + 1)
    assert set(waiting) <= set(log.edges["quiet"])
    assert taken + latency not in log.edges["quiet"]


def device_writes(bench, lines, mask=FULL):
    script = [{"op": MemoryOp.WRITE, "line": n, "mask": mask, "data": n, "packet": 1} for n in lines]
    dram = Dram(bench, latency=(5, 5), delay=0)
    bench.others = [Device(bench, None, 0, script=script, delay=0), dram]
    bench.run(4000)
    return dram


def test_ddio_allocates_in_its_ways_and_updates_in_place():
    bench = Bench("llc.ways=8", "llc.ddio_ways=2")
    sets = bench.config.llc.sets
    one_set = [3 + sets * n for n in range(5)]
    dram = device_writes(bench, [*one_set, one_set[4], one_set[3]])
    assert bench.counter("device_write_allocate") == 5
    assert bench.counter("device_write_update") == 2
    assert bench.counter("evict_dirty") == bench.counter("io_lines_evicted_unread") == 3
    assert sorted(dram.memory) == one_set[:3]
    assert dram.reads == 0


def test_device_read_of_a_dirty_line_that_the_cache_has_evicted():
    """The owner's data go to the device and to DRAM, for the cache allocates nothing."""
    bench = Bench("llc.size_kib=16", "llc.ways=4", "llc.ddio_ways=4")
    line, sets = 5, bench.config.llc.sets
    script = [None] * 100
    script += [
        {"op": MemoryOp.WRITE, "line": line + sets * n, "mask": FULL, "data": n, "packet": 1} for n in range(1, 5)
    ]
    script += [{"op": MemoryOp.READ, "line": line, "packet": 9}] * 2
    dram = Dram(bench)
    bench.caches = [Cache(bench, 0, lambda r: line, 1, stores=1, releases=0)]
    bench.others = [Device(bench, None, 0, script=[dict(s) if s else s for s in script]), dram]
    bench.run(1000)
    assert dram.memory == {line: bench.shadow.read(line)}
    assert (bench.counter("device_read_hit"), bench.counter("device_read_miss")) == (1, 1)
    assert bench.counter("probes_sent") == 1


def forget_draining(dut, original):
    """Transactions go on while their victims' data still wait in the spare buffer."""

    def update_slots(m):
        original(m)
        m.d.uncore += dut._draining.eq(0)

    return update_slots


def test_a_spare_buffer_used_too_early_is_found():
    with pytest.raises(AssertionError):
        two_victims_of_one_acquire(forget_draining)


def test_two_victims_of_one_acquire_while_dram_is_stalled():
    two_victims_of_one_acquire()


def two_victims_of_one_acquire(plant=None):
    """The back-invalidated line and the cache's victim pass one after the other through the same spare buffer."""
    bench = Bench(
        "llc.size_kib=1", "llc.ways=4", "llc.ddio_ways=4", "llc.snoop_filter_lines=4", "llc.snoop_filter_ways=2"
    )
    stores = deque([0, 4, 24])  # two fill the snoop filter's set, the third needs room
    victims = [8, 12, 16, 20]  # fill the cache's set
    writes = [{"op": MemoryOp.WRITE, "line": n, "mask": FULL, "data": n, "packet": 1} for n in victims]
    cache = Cache(bench, 0, lambda r: stores[0], 2, stores=1, releases=0)
    cache.use = lambda line, store: (Cache.use(cache, line, store), stores.popleft())
    device, dram = Device(bench, None, 0, script=[None] * 100 + writes), Dram(bench)
    bench.caches, bench.others = [cache], [device, dram]
    if plant is not None:
        bench.dut._update_slots = plant(bench.dut, bench.dut._update_slots)

    async def scenario(ctx):
        await ctx.tick("uncore").repeat(200)
        dram.delay = 1
        device.script.append({"op": MemoryOp.WRITE, "line": 1, "mask": 1, "data": 1, "packet": 1})
        await ctx.tick("uncore").repeat(30)
        cache.left = 1
        await ctx.tick("uncore").repeat(60)
        dram.delay = 0
        await ctx.tick("uncore").repeat(60)
        device.script.extend({"op": MemoryOp.READ, "line": n, "packet": 9} for n in [0, 4, *victims, 24])

    bench.run(2000, scenario)
    assert device.checked == 7
    assert bench.counter("back_invalidations") == 1
    assert bench.counter("evict_dirty") == 1


def test_partial_device_writes_fetch_only_on_a_miss():
    bench = Bench()
    dram = device_writes(bench, [3, 3, 4], mask=0xFF00)
    assert (dram.reads, dram.writes) == (2, 0)
    assert bench.counter("device_write_allocate") == 2


def test_without_ddio_device_writes_go_to_dram():
    bench = Bench("llc.ddio=false")
    dram = device_writes(bench, [3, 4, 3])
    assert bench.counter("device_write_dram") == dram.writes == 3
    assert bench.counter("device_write_allocate") == bench.counter("device_write_update") == dram.reads == 0
    assert dram.memory == {3: 3, 4: 4}


def test_impossible_configurations_are_refused():
    config = load_machine("tiny")
    below = dataclasses.replace(config.llc)
    object.__setattr__(below, "latency", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what failed to be made is not elaborated either
        with pytest.raises(ValueError, match=r"llc\.latency must be at least the pipeline's 6, not 5"):
            LastLevelCache(dataclasses.replace(config, llc=below))
        gc.collect()
