"""The L1 cache against a double of the last level that checks every rule of the protocol it can see."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator

from hw.bus.tilelink import LINE_BYTES, Cap, Grow, OpcodeA, OpcodeB, OpcodeC, OpcodeD, Shrink
from hw.config import CoreConfig, L1Config, load_machine
from hw.lib.observe import collect
from hw.lib.probe import Counter
from hw.mem.l1 import L1Cache
from hw.mem.l1.misses import MissFile
from hw.mem.l1.replacement import TreePlru

TINY = load_machine("tiny")
FULL = (1 << LINE_BYTES) - 1


def l1_config(**changes) -> L1Config:
    return dataclasses.replace(TINY.l1, **changes)


def core_config(**changes) -> CoreConfig:
    return dataclasses.replace(TINY.core, **changes)


def byte_mask(mask: int) -> int:
    return sum(0xFF << 8 * i for i in range(LINE_BYTES) if mask >> i & 1)


def initial(line: int) -> int:
    return random.Random(line).getrandbits(8 * LINE_BYTES)


class LastLevel:
    """Serves Acquires line by line from a memory, and probes at will for another agent, which then writes the line."""

    def __init__(self, bench, *, delay=(0, 12), stall=0.0, probe_rate=0.0, exclusive=0.5, rng=None):
        self.bench, self.rng = bench, rng or random.Random(1)
        self.delay, self.stall, self.probe_rate, self.exclusive = delay, stall, probe_rate, exclusive
        self.memory = {}
        self.held = {}  # line -> "N", "B" or "T", once every message sent has arrived
        self.acquires = {}  # line -> (not before, message): not granted yet
        self.granting = {}  # sink -> line: until the GrantAck
        self.probing = {}  # line -> Cap: until the ProbeAck
        self.releasing = {}  # source -> line: until the ReleaseAck is taken
        self.grants = []  # channel D: (not before, message)
        self.release_acks = []
        self.d = None
        self.b = []
        self.sinks = 0
        self.log = []
        self.steal = False  # take away every line as soon as the protocol allows it

    def read(self, line):
        return self.memory.setdefault(line, initial(line))

    def later(self):
        return self.bench.cycle + self.rng.randint(*self.delay)

    def probe(self, line, cap):
        assert line not in self.probing and line not in self.granting.values()
        self.probing[line] = cap
        self.b.append({"opcode": OpcodeB.PROBE_BLOCK, "param": cap, "line": line})

    def idle(self):
        return not (self.acquires or self.granting or self.probing or self.releasing)

    def drive(self, ctx):
        tilelink, now = self.bench.dut.tilelink, self.bench.cycle
        for line, (when, message) in list(self.acquires.items()):
            if now >= when and line not in self.probing and line not in self.granting.values():
                self.grant(line, message)
        if self.rng.random() < self.probe_rate or self.steal:
            free = [x for x in self.held if x not in self.probing and x not in self.granting.values()]
            if self.steal:
                free = [x for x in free if self.held[x] != "N"]
            if free:
                self.probe(self.rng.choice(free), self.rng.choice((Cap.TO_N, Cap.TO_B)) if not self.steal else Cap.TO_N)
        if self.d is None:
            ready = [q for q in (self.grants, self.release_acks) if q and q[0][0] <= now]
            if ready:
                self.d = self.rng.choice(ready).pop(0)[1]
        ctx.set(tilelink.d.valid, self.d is not None)
        if self.d is not None:
            ctx.set(tilelink.d.payload, self.d)
        ctx.set(tilelink.b.valid, bool(self.b))
        if self.b:
            ctx.set(tilelink.b.payload, self.b[0])
        for channel in (tilelink.a, tilelink.c, tilelink.e):
            ctx.set(channel.ready, self.rng.random() >= self.stall)

    def grant(self, line, message):
        assert self.read(line) == self.bench.now_holds(line), "the last level lost a write"
        del self.acquires[line]
        grow, source = message
        trunk = grow is not Grow.N_TO_B or self.rng.random() < self.exclusive
        self.held[line] = "T" if trunk else "B"
        sink, self.sinks = self.sinks % 64, self.sinks + 1
        self.granting[sink] = line
        cap = Cap.TO_T if trunk else Cap.TO_B
        self.log.append((self.bench.cycle, "grant", line, cap))
        grant = {"opcode": OpcodeD.GRANT_DATA, "param": cap, "source": source, "sink": sink, "data": self.read(line)}
        self.grants.append((self.bench.cycle, grant))

    def sample(self, ctx):
        tilelink = self.bench.dut.tilelink
        if ctx.get(tilelink.a.valid) and ctx.get(tilelink.a.ready):
            self.take_a(ctx.get(tilelink.a.payload))
        if ctx.get(tilelink.c.valid) and ctx.get(tilelink.c.ready):
            self.take_c(ctx.get(tilelink.c.payload))
        if ctx.get(tilelink.e.valid) and ctx.get(tilelink.e.ready):
            line = self.granting.pop(ctx.get(tilelink.e.payload.sink))
            self.log.append((self.bench.cycle, "grant ack", line, None))
        if self.b and ctx.get(tilelink.b.ready):
            self.b.pop(0)
        if self.d is not None and ctx.get(tilelink.d.ready):
            if self.d["opcode"] is OpcodeD.RELEASE_ACK:
                del self.releasing[self.d["source"]]
            self.d = None

    def take_a(self, a):
        assert OpcodeA(a.opcode) is OpcodeA.ACQUIRE_BLOCK
        line, grow = a.line, Grow(a.param)
        assert line not in self.acquires and line not in self.granting.values()
        assert line not in self.releasing.values(), "acquired before the ReleaseAck"
        assert a.source < self.bench.dut.l1.mshrs
        assert a.source not in [source for _, (_, source) in self.acquires.values()]
        held = self.held.setdefault(line, "N")
        assert held == "N" if grow is not Grow.B_TO_T else held == "B" or line in self.probing or held == "N"
        self.acquires[line] = (self.later(), (grow, a.source))
        self.log.append((self.bench.cycle, "acquire", line, grow))

    def take_c(self, c):
        line, opcode, shrink = c.line, OpcodeC(c.opcode), Shrink(c.param)
        self.log.append((self.bench.cycle, opcode.name.lower(), line, shrink))
        before, after = shrink.name.split("_TO_")
        assert before == self.held.get(line, "N"), f"{shrink} of a line held {self.held.get(line)}"
        if opcode in (OpcodeC.RELEASE_DATA, OpcodeC.PROBE_ACK_DATA):
            assert before == "T"
            self.memory[line] = c.data
        assert self.read(line) == self.bench.now_holds(line), "a dirty line was given up without its data"
        self.held[line] = after
        if opcode in (OpcodeC.RELEASE, OpcodeC.RELEASE_DATA):
            assert after == "N"
            assert c.source not in self.releasing and len(self.releasing) < 2
            self.releasing[c.source] = line
            self.release_acks.append((self.later(), {"opcode": OpcodeD.RELEASE_ACK, "source": c.source}))
        else:
            cap = self.probing.pop(line)
            assert after == "N" if cap is Cap.TO_N else after in "NB"
            if after == "N" and self.rng.random() < 0.7:
                data = self.rng.getrandbits(8 * LINE_BYTES)
                self.memory[line] = data
                self.bench.write(line, data)


class Bench:
    """One core's loads and stores, each load checked against every value its line had while it was under way."""

    def __init__(self, l1=TINY.l1, core=TINY.core, seed=1, **last_level):
        self.dut = L1Cache(l1, core, "core0")
        self.load_queue = core.load_queue
        self.rng = random.Random(seed)
        self.cycle = 0
        self.versions = {}  # line -> [(edge, value)]
        self.to_load, self.to_store = [], []
        self.loads, self.stores = {}, []  # accepted, not done
        self.accepted, self.answered, self.stored = {}, {}, []
        self.values = {}
        self.ids = 0
        self.quiet_edges = 0
        self.progress = 0  # edge of the last answer or store
        self.last_level = LastLevel(self, rng=random.Random(seed + 1), **last_level)

    def history(self, line):
        return self.versions.setdefault(line, [(-1, initial(line))])

    def now_holds(self, line):
        return self.history(line)[-1][1]

    def write(self, line, value):
        self.history(line).append((self.cycle, value))

    def load(self, line, offset=0, size=64, prefetch=0):
        load = {"id": self.ids % 256, "line": line, "offset": offset, "size": size, "prefetch": prefetch}
        self.ids += 1
        self.to_load.append(load)
        return load["id"]

    def store(self, line, mask=FULL, data=None):
        data = self.rng.getrandbits(8 * LINE_BYTES) if data is None else data
        self.to_store.append({"line": line, "mask": mask, "data": data})

    def done(self):
        return not (self.to_load or self.to_store or self.loads or self.stores)

    async def edge(self, ctx):
        """Drive and sample one edge of the core's clock."""
        port, dut = self.dut.port, self.dut
        may_load = self.to_load and len(self.loads) < self.load_queue
        ctx.set(port.load.valid, bool(may_load))
        if may_load:
            ctx.set(port.load.payload, self.to_load[0])
        ctx.set(port.store.valid, bool(self.to_store))
        if self.to_store:
            ctx.set(port.store.payload, self.to_store[0])
        self.last_level.drive(ctx)
        if ctx.get(port.load_done_valid):
            self.answer(ctx.get(port.load_done))
        if ctx.get(port.store_done):
            store = self.stores.pop(0)
            mask = byte_mask(store["mask"])
            assert self.last_level.held[store["line"]] == "T", "written without permission"
            self.write(store["line"], self.now_holds(store["line"]) & ~mask | store["data"] & mask)
            self.stored.append(self.cycle)
            self.progress = self.cycle
        if may_load and ctx.get(port.load.ready):
            load = self.to_load.pop(0)
            self.accepted[load["id"]] = self.cycle
            if not load["prefetch"]:
                assert load["id"] not in self.loads
                self.loads[load["id"]] = load
        if self.to_store and ctx.get(port.store.ready):
            self.stores.append(self.to_store.pop(0))
        quiet = ctx.get(dut.quiet)
        before = self.registers(ctx) if quiet else None
        self.quiet_edges += quiet
        self.last_level.sample(ctx)
        await ctx.tick("core0")
        if quiet:
            assert self.registers(ctx) == before, f"changed while quiet at edge {self.cycle}"
        self.cycle += 1

    def registers(self, ctx):
        dut = self.dut
        signals = [v for k, v in vars(dut).items() if k in REGISTERS]
        signals += [dut.tilelink.a.valid, dut.tilelink.c.valid, dut.tilelink.e.valid]
        counters = collect(dut, Counter).values()
        return [ctx.get(s) for s in signals] + [ctx.get(c.value) for c in counters]

    def answer(self, done):
        load = self.loads.pop(done.id)
        line, shift, mask = load["line"], 8 * load["offset"], (1 << 8 * load["size"]) - 1
        history = self.history(line)
        ends = [edge for edge, _ in history[1:]] + [self.cycle]
        since = self.accepted[done.id]
        possible = {
            value >> shift & mask
            for (start, value), end in zip(history, ends, strict=True)
            if start <= self.cycle and end >= since
        }
        assert done.data in possible, f"load {load} at {since}..{self.cycle}: {done.data:x}"
        self.answered[done.id] = self.progress = self.cycle
        self.values[done.id] = done.data

    async def settle(self, ctx, limit=2000):
        """Run until everything asked for is done and the last level is idle."""
        end = self.cycle + limit
        while not (self.done() and self.last_level.idle()):
            assert self.cycle < end, f"stuck: {self.loads} {self.stores} {vars(self.last_level)}"
            await self.edge(ctx)

    def run(self, process):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-9, domain="core0")

        async def testbench(ctx):
            await process(ctx, self)

        simulator.add_testbench(testbench)
        simulator.run()
        return self


REGISTERS = {
    "_valid",
    "_answer",
    "_send",
    "_store_valid",
    "_store_asleep",
    "_store_missed",
    "_store_starved",
    "_draining",
    "_drain_store",
    "_blocked",
    "_releases",
    "_probed_last",
}


def counters(ctx, bench):
    return {name: ctx.get(counter.value) for name, counter in collect(bench.dut, Counter).items()}


@pytest.mark.parametrize("latency", [4, 5, 9])
def test_hit_answers_exactly_at_latency(latency):
    async def process(ctx, bench):
        bench.load(3)
        await bench.settle(ctx)
        ids = [bench.load(3, offset=8 * i, size=8) for i in range(4)]
        await bench.settle(ctx)
        edges = [bench.accepted[i] for i in ids]
        assert edges == list(range(edges[0], edges[0] + 4)), "one load per cycle"
        for i in ids:
            assert bench.answered[i] - bench.accepted[i] == latency  # not at latency - 1, but at latency

    Bench(l1=l1_config(latency=latency), delay=(3, 3)).run(process)


def test_miss_latencies():
    async def process(ctx, bench):
        first, second = bench.load(3), bench.load(3, offset=60, size=4)
        await bench.settle(ctx)
        [(asked, *_)] = [e for e in bench.last_level.log if e[1] == "acquire"]
        [(granted, *_)] = [e for e in bench.last_level.log if e[1] == "grant"]
        assert asked == bench.accepted[first] + 4
        assert bench.answered[first] == granted + 2 + bench.dut.l1.latency
        assert bench.answered[second] == bench.answered[first] + 1

    Bench(delay=(10, 10)).run(process)


def test_bytes_outside_the_size_are_zero():
    async def process(ctx, bench):
        ids = {bench.load(9, offset, size): (offset, size) for offset, size in [(0, 64), (63, 1), (5, 0x20), (56, 8)]}
        await bench.settle(ctx)
        for i, (offset, size) in ids.items():
            assert bench.values[i] == initial(9) >> 8 * offset & (1 << 8 * size) - 1

    Bench().run(process)


def test_stores_hit_every_other_cycle_and_are_read_by_the_next_load():
    async def process(ctx, bench):
        bench.store(5)
        await bench.settle(ctx)
        start = bench.cycle
        for i in range(6):
            bench.store(5, mask=1 << i, data=(0xA0 + i) << 8 * i)
        while not bench.done():
            await bench.edge(ctx)
        done = bench.stored[1:]
        assert done == [start + 2 + 2 * i for i in range(6)]
        after = bench.load(5, size=6)
        await bench.settle(ctx)
        assert bench.values[after] == 0xA5A4A3A2A1A0

        # A load that enters the cycle after the store reads what it wrote; one a cycle before does not.
        bench.store(5, mask=1, data=0x77)
        before = bench.load(5, size=1)
        await bench.edge(ctx)
        await bench.edge(ctx)
        after = bench.load(5, size=1)
        await bench.settle(ctx)
        assert (bench.values[before], bench.values[after]) == (0xA0, 0x77)
        assert bench.accepted[after] == bench.stored[-1]

    Bench().run(process)


def test_misses_overlap_and_hits_pass_them():
    async def process(ctx, bench):
        hit = bench.load(1)
        await bench.settle(ctx)
        start = bench.cycle
        misses = [bench.load(8 * i + 2 + i) for i in range(4)]
        hit = bench.load(1)
        await bench.settle(ctx)
        acquires = [edge for edge, kind, *_ in bench.last_level.log if kind == "acquire" and edge >= start]
        grants = [edge for edge, kind, *_ in bench.last_level.log if kind == "grant" and edge >= start]
        assert len(acquires) == 4 and acquires[-1] < grants[0]
        assert bench.answered[hit] == bench.accepted[hit] + bench.dut.l1.latency
        assert all(bench.answered[hit] < bench.answered[i] for i in misses)

    Bench(l1=l1_config(mshrs=4), core=core_config(load_queue=8), delay=(60, 60)).run(process)


def test_loads_of_one_line_share_an_mshr():
    async def process(ctx, bench):
        for i in range(4):
            bench.load(7, offset=i, size=1)
        await bench.settle(ctx)
        assert [e[1] for e in bench.last_level.log] == ["acquire", "grant", "grant ack"]
        assert counters(ctx, bench)["load_misses"] == 4

    Bench(delay=(30, 30)).run(process)


def test_more_misses_than_mshrs():
    async def process(ctx, bench):
        for i in range(6):
            bench.load(i)
        bench.store(10)
        await bench.settle(ctx)
        assert len(bench.answered) == 6 and len(bench.stored) == 1

    Bench(l1=l1_config(mshrs=1), core=core_config(load_queue=6)).run(process)


def test_waiting_is_quiet():
    async def process(ctx, bench):
        bench.load(1)
        bench.store(2)
        bench.store(3)
        bench.load(4)
        for _ in range(25):
            await bench.edge(ctx)
        assert bench.to_store, "the second store waits outside"
        for _ in range(100):
            assert ctx.get(bench.dut.quiet)
            await bench.edge(ctx)
        await bench.settle(ctx)
        assert len(bench.stored) == 2

    Bench(delay=(150, 150)).run(process)


def test_evictions():
    async def process(ctx, bench):
        sets = bench.dut.l1.sets
        bench.store(0)
        await bench.settle(ctx)
        bench.load(sets)
        await bench.settle(ctx)
        bench.load(0)  # now line `sets` is the older one
        await bench.settle(ctx)
        bench.load(2 * sets)
        await bench.settle(ctx)
        bench.load(3 * sets)
        await bench.settle(ctx)
        released = [(kind, line) for _, kind, line, _ in bench.last_level.log if "release" in kind]
        assert released == [("release", sets), ("release_data", 0)]
        assert counters(ctx, bench)["evictions_clean"] == 1
        assert counters(ctx, bench)["evictions_dirty"] == 1
        again = bench.load(0)
        await bench.settle(ctx)
        assert bench.values[again] == bench.now_holds(0)

    Bench().run(process)


def test_a_set_full_of_outstanding_misses_waits():
    async def process(ctx, bench):
        sets = bench.dut.l1.sets
        for i in range(4):
            bench.load(i * sets)
        await bench.settle(ctx)
        acquires = [edge for edge, kind, *_ in bench.last_level.log if kind == "acquire"]
        first_grant = next(edge for edge, kind, *_ in bench.last_level.log if kind == "grant")
        assert acquires[1] < first_grant < acquires[2]

    Bench(l1=l1_config(mshrs=4), delay=(30, 30)).run(process)


@pytest.mark.parametrize("cap", [Cap.TO_B, Cap.TO_N])
@pytest.mark.parametrize("state", ["absent", "shared", "exclusive", "modified"])
def test_probe_answers(state, cap):
    async def process(ctx, bench):
        if state == "modified":
            bench.store(6)
        elif state != "absent":
            bench.load(6)
        await bench.settle(ctx)
        bench.last_level.probe(6, cap)
        await bench.settle(ctx)
        had = {"absent": "N", "shared": "B"}.get(state, "T")
        left = "N" if cap is Cap.TO_N or had == "N" else "B"
        _, kind, line, shrink = bench.last_level.log[-1]
        assert (line, shrink.name) == (6, f"{had}_TO_{left}")
        assert kind == ("probe_ack_data" if state == "modified" else "probe_ack")
        assert counters(ctx, bench)["probes_received"] == 1
        bench.load(6)
        await bench.settle(ctx)

    Bench(exclusive=float(state == "exclusive")).run(process)


def test_upgrade_race():
    """The line is taken away between the Acquire for Trunk and its Grant: the Grant's data count."""

    async def process(ctx, bench):
        bench.load(6)
        await bench.settle(ctx)
        bench.store(6, mask=1, data=0x55)
        for _ in range(10):
            await bench.edge(ctx)
        assert bench.last_level.log[-1][3] is Grow.B_TO_T
        bench.last_level.probe(6, Cap.TO_N)
        load = bench.load(6)
        await bench.settle(ctx)
        assert [e[3] for e in bench.last_level.log if e[1] == "probe_ack"] == [Shrink.B_TO_N]
        assert len(bench.stored) == 1
        assert bench.answered[load] > bench.accepted[load] + bench.dut.l1.latency

    Bench(delay=(40, 40), exclusive=0).run(process)


def test_store_attaches_to_the_miss_of_a_load():
    """A load's Acquire that has not been sent yet asks for what the store needs."""

    async def process(ctx, bench):
        bench.store(6)
        bench.load(6)
        await bench.settle(ctx)
        assert [e[3] for e in bench.last_level.log if e[1] == "acquire"] == [Grow.N_TO_T]

    Bench(l1=l1_config(mshrs=1), exclusive=0).run(process)


def test_an_upgrade_keeps_its_way_when_probed():
    async def process(ctx, bench):
        sets = bench.dut.l1.sets
        bench.load(6)
        await bench.settle(ctx)
        bench.store(6)
        for _ in range(10):
            await bench.edge(ctx)
        bench.last_level.probe(6, Cap.TO_N)
        for _ in range(10):
            await bench.edge(ctx)
        bench.load(6 + sets)
        bench.load(6 + 2 * sets)
        await bench.settle(ctx)
        asked = {line: edge for edge, kind, line, _ in bench.last_level.log if kind == "acquire"}
        done = {line: edge for edge, kind, line, _ in bench.last_level.log if kind == "grant"}
        assert asked[6 + 2 * sets] > done[6], "of two ways, one is kept for the upgrade"

    Bench(l1=l1_config(mshrs=3), delay=(60, 60), exclusive=0).run(process)


def test_prefetch():
    async def process(ctx, bench):
        bench.load(6, prefetch=1)
        await bench.settle(ctx)
        for _ in range(20):
            await bench.edge(ctx)
        bench.load(7, prefetch=1)
        bench.load(7, prefetch=1)
        bench.load(8, prefetch=1)
        bench.load(9, prefetch=1)  # no MSHR left
        for _ in range(20):
            await bench.edge(ctx)
        await bench.settle(ctx)
        hit = bench.load(6)
        await bench.settle(ctx)
        assert bench.answered[hit] == bench.accepted[hit] + bench.dut.l1.latency
        assert [e[2] for e in bench.last_level.log if e[1] == "acquire"] == [6, 7, 8]
        assert list(bench.answered) == [hit]
        assert counters(ctx, bench)["loads"] == 1

    Bench(delay=(8, 8)).run(process)


def test_a_store_gets_the_next_free_mshr():
    async def process(ctx, bench):
        bench.load(1)
        bench.store(2)
        for _ in range(10):
            await bench.edge(ctx)
        for i in range(100):
            bench.load(0x100 + i, prefetch=1)
        await bench.settle(ctx)
        assert [e[2] for e in bench.last_level.log if e[1] == "acquire"][:2] == [1, 2]

    Bench(l1=l1_config(mshrs=1), delay=(30, 30)).run(process)


def test_no_load_is_passed_for_ever():
    async def process(ctx, bench):
        for i in range(60):
            bench.load(0x100 + i)
            bench.store(0x200 + i)
        await bench.settle(ctx, limit=10_000)
        waits = [bench.answered[i] - bench.accepted[i] for i in range(60)]
        assert max(waits) < 10 * 45, "each waits for at most the loads and stores before it"

    Bench(l1=l1_config(mshrs=1), core=core_config(load_queue=4), delay=(20, 20)).run(process)


def test_progress_under_hostile_probing():
    """Another agent takes every line the moment it may: each Grant still serves what waited for it."""

    async def process(ctx, bench):
        bench.last_level.steal = True
        for i in range(30):
            bench.store(i % 3, mask=1 << i, data=i << 8 * i)
            bench.load(i % 3, offset=i, size=1)
            bench.load(3, offset=i, size=1)
        start = bench.cycle
        while not bench.done():
            await bench.edge(ctx)
            assert bench.cycle < start + 4000
        kinds = [e[1] for e in bench.last_level.log]
        assert kinds.count("acquire") <= 90, "no line comes in vain"

    Bench(delay=(0, 3), stall=0.2, exclusive=0.3).run(process)


RANDOM_CASES = [
    pytest.param({}, {}, dict(delay=(0, 10), probe_rate=0.02), id="tiny"),
    pytest.param({}, {}, dict(delay=(0, 30), stall=0.5, probe_rate=0.1), id="stalled"),
    pytest.param({"mshrs": 1}, {"load_queue": 1}, dict(delay=(0, 4), probe_rate=0.1, exclusive=0.2), id="one-mshr"),
    pytest.param({"ways": 1, "latency": 5}, {}, dict(delay=(0, 20), probe_rate=0.05), id="direct-mapped"),
    pytest.param({"latency": 5}, {}, dict(delay=(5, 20), stall=0.2, probe_rate=0.6), id="probe-storm"),
    pytest.param({"ways": 16, "mshrs": 5}, {"load_queue": 6}, dict(stall=0.3, probe_rate=0.05), id="one-set"),
    pytest.param({"ways": 4, "mshrs": 8}, {"load_queue": 10}, dict(delay=(10, 50), stall=0.2), id="many-mshrs"),
]


@pytest.mark.parametrize("l1, core, last_level", RANDOM_CASES)
def test_random(l1, core, last_level):
    async def process(ctx, bench):
        rng, sets = bench.rng, bench.dut.l1.sets
        tags = [rng.getrandbits(20) for _ in range(max(4, 2 * bench.dut.l1.ways))]
        pool = [tag * sets + rng.randrange(sets) % 3 for tag in tags] + [0, sets]
        operations = 400
        while operations > 0:
            assert bench.cycle < bench.progress + 1000
            hot = rng.random() < 0.5
            line = rng.choice(pool[:2] if hot else pool)
            offset = rng.randrange(LINE_BYTES)
            size = rng.randint(1, LINE_BYTES - offset)
            if len(bench.to_load) < 3 and rng.random() < 0.5:
                bench.load(line, offset, size, prefetch=int(rng.random() < 0.1))
                operations -= 1
            if len(bench.to_store) < 3 and rng.random() < 0.3:
                bench.store(line, mask=((1 << size) - 1) << offset)
                operations -= 1
            await bench.edge(ctx)
        bench.last_level.probe_rate = 0
        await bench.settle(ctx, limit=5000)
        for line in list(bench.last_level.held):
            bench.load(line)
        await bench.settle(ctx, limit=5000)
        for _ in range(10):
            await bench.edge(ctx)
        assert ctx.get(bench.dut.quiet)

    Bench(l1=l1_config(**l1), core=core_config(**core), **last_level).run(process)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="power of two of ways, not 3"):
        TreePlru(sets=2, ways=3, domain="core0")
    with pytest.raises(ValueError, match="1 to 32 MSHRs, not 0"):
        MissFile(count=0, loads=1, ways=1, domain="core0")


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_plru_evicts_in_turn(ways):
    """Touched in order, the ways become victims in a permutation of that order, the first one first."""
    dut = TreePlru(sets=2, ways=ways, domain="core0")

    async def testbench(ctx):
        ctx.set(dut.set, 1)
        ctx.set(dut.touch, 1)
        for way in range(ways):
            ctx.set(dut.way, way)
            await ctx.tick("core0")
        victims = []
        for _ in range(ways):
            victims.append(ctx.get(dut.victim))
            ctx.set(dut.way, victims[-1])
            await ctx.tick("core0")
        assert sorted(victims) == list(range(ways)) and victims[0] == 0
        ctx.set(dut.set, 0)
        assert ctx.get(dut.victim) == 0

    simulator = Simulator(dut)
    simulator.add_clock(1e-9, domain="core0")
    simulator.add_testbench(testbench)
    simulator.run()
