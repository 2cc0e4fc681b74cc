"""The last-level cache between caches that behave, a device, and a DRAM that answers out of order."""

import random
from collections import defaultdict, deque

import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from hw.bus.memory import MemoryOp
from hw.bus.tilelink import Cap, Grow, OpcodeA, OpcodeC, OpcodeD, Shrink
from hw.config import load_machine
from hw.mem.llc import LastLevelCache

FULL = (1 << 64) - 1
SMALL = (
    "llc.size_kib=2",
    "llc.ways=4",
    "llc.ddio_ways=2",
    "llc.slots=6",
    "llc.snoop_filter_lines=16",
    "llc.snoop_filter_ways=4",
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

    def __init__(self, bench, index, lines, operations, *, stores=0.4, capacity=8, delay=0.3):
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
        free = [s for s in range(2) if s not in self.releasing]
        busy = {line for line, _ in self.acquiring.values()}
        candidates = [line for line in self.held if line not in busy]
        if free and candidates and (len(self.held) >= self.capacity or r.random() < 0.03):
            self.release(r.choice(candidates), free[0])
        if not self.left or len(self.held) >= self.capacity + 2 or r.random() < 0.2:
            return None
        line = self.lines(r)
        store = r.random() < self.stores
        if line in busy or line in self.releasing.values():
            return None
        self.left -= 1
        if line in self.held and (self.held[line][0] or not store):
            self.use(line, store)
            return None
        source = next((s for s in range(self.MSHRS) if s not in self.acquiring), None)
        if source is None:
            return None
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
            if cap == Cap.TO_B:
                answer["param"] = Shrink.T_TO_B if writable else Shrink.B_TO_B
                self.held[line] = [False, False, value]
            else:
                answer["param"] = Shrink.T_TO_N if writable else Shrink.B_TO_N
                del self.held[line]
        self.outbox.append(answer)

    def granted(self, message):
        line, store = self.acquiring.pop(message.source)
        assert message.opcode == OpcodeD.GRANT_DATA
        writable = message.param == Cap.TO_T
        assert writable or not store
        self.held[line] = [writable, False, message.data]
        self.bench.check_exclusive(line)
        self.acks.append(message.sink)
        self.use(line, store)

    async def run(self, ctx):
        port = self.bench.dut.client[self.index]
        a, b, c, d, e = port.a, port.b, port.c, port.d, port.e
        a_now = None
        c_on = e_on = False
        r = self.random
        while True:
            _, _, a_ready, c_ready, e_ready, b_fire, b_message, d_fire, d_message = await ctx.tick("uncore").sample(
                a.ready, c.ready, e.ready, b.valid & b.ready, b.payload, d.valid & d.ready, d.payload
            )
            if a_now is not None and a_ready:
                a_now = None
            if c_on and c_ready:
                self.outbox.popleft()
                c_on = False
            if e_on and e_ready:
                self.acks.popleft()
                e_on = False
            if d_fire:
                if d_message.opcode == OpcodeD.RELEASE_ACK:
                    del self.releasing[d_message.source]
                else:
                    self.granted(d_message)
            if b_fire:
                self.probes.append((b_message.line, b_message.param))
            if self.probes and r.random() > self.delay:
                self.answer(*self.probes.popleft())
            if a_now is None:
                a_now = self.think()
                ctx.set(a.valid, a_now is not None)
                if a_now is not None:
                    ctx.set(a.payload, a_now)
            if not c_on:
                c_on = bool(self.outbox) and r.random() > self.delay
                ctx.set(c.valid, c_on)
                if c_on:
                    ctx.set(c.payload, self.outbox[0])
            if not e_on:
                e_on = bool(self.acks) and r.random() > self.delay
                ctx.set(e.valid, e_on)
                if e_on:
                    ctx.set(e.payload.sink, self.acks[0])
            ctx.set(b.ready, r.random() > self.delay)
            ctx.set(d.ready, r.random() > self.delay)


class Device:
    """Reads and writes lines, whole and in part; checks reads, and applies writes as they become visible."""

    def __init__(self, bench, lines, operations, *, writes=0.6, partial=0.5, delay=0.3, script=()):
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
            mask = FULL if r.random() > self.partial else r.choice([0xFFFF, 0xFF << 16, r.getrandbits(64)])
            return {"op": MemoryOp.WRITE, "line": line, "mask": mask, "data": r.getrandbits(512), "packet": 7}
        return {"op": MemoryOp.READ, "line": line, "packet": 9}

    async def run(self, ctx):
        port = self.bench.dut.device
        request, response = port.request, port.response
        r, shadow = self.random, self.bench.shadow
        while True:
            _, _, ready, fire, message, write_done = await ctx.tick("uncore").sample(
                request.ready, response.valid & response.ready, response.payload, port.write_done
            )
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
            if fire:
                line, since = self.reading.pop(message.tag)
                assert message.data in shadow.values_since(line, since), f"device reads stale line {line:#x}"
                assert message.packet == 9
                self.checked += 1
            if self.offered is None and len(self.reading) < 256:
                self.offered = self.next_request()
                ctx.set(request.valid, self.offered is not None)
                if self.offered is not None:
                    self.offered["tag"] = next(t for t in range(256) if t not in self.reading)
                    ctx.set(request.payload, self.offered)
            ctx.set(response.ready, r.random() > self.delay)


class Dram:
    """Answers reads after random times, out of order."""

    def __init__(self, bench, *, latency=(5, 30), delay=0.3):
        self.bench, self.latency, self.delay = bench, latency, delay
        self.memory = defaultdict(int)
        self.pending = []
        self.reads = self.writes = 0

    async def run(self, ctx):
        request, response = self.bench.dut.dram.request, self.bench.dut.dram.response
        r = random.Random(f"{self.bench.seed}/dram")
        offered = False
        cycle = 0
        while True:
            _, _, fire, message, taken = await ctx.tick("uncore").sample(
                request.valid & request.ready, request.payload, response.ready
            )
            cycle += 1
            if offered and taken:
                offered = False
                self.pending.remove(current)
            if fire:
                if message.op == MemoryOp.WRITE:
                    self.memory[message.line] = message.data
                    self.writes += 1
                else:
                    due = cycle + r.randint(*self.latency)
                    self.pending.append((due, message.tag, self.memory[message.line]))
                    self.reads += 1
            if not offered:
                ready = [p for p in self.pending if p[0] <= cycle]
                offered = bool(ready)
                ctx.set(response.valid, offered)
                if offered:
                    current = r.choice(ready)
                    ctx.set(response.payload, {"tag": current[1], "data": current[2]})
            ctx.set(request.ready, r.random() >= self.delay)


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

    def check_exclusive(self, line):
        writers = [c.index for c in self.caches if line in c.held and c.held[line][0]]
        holders = [c.index for c in self.caches if line in c.held]
        assert not writers or len(holders) == 1, f"line {line:#x} writable in {writers}, held in {holders}"

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
        for agent in agents:
            sim.add_testbench(agent.run, background=True)

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
            names = [n for n in vars(self.dut) if hasattr(getattr(self.dut, n), "increment")]
            self.final = {n: ctx.get(getattr(self.dut, n).value) for n in names}

        sim.add_testbench(control)
        sim.run()


def pool(lines, skew=0.5):
    """Random lines, half of them from the first eight."""
    lines = list(lines)
    return lambda r: lines[r.randrange(8)] if r.random() < skew else r.choice(lines)


@pytest.mark.parametrize("ddio", ["true", "false"])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_traffic_is_coherent(seed, ddio):
    bench = Bench(*SMALL, f"llc.ddio={ddio}", seed=seed)
    lines = pool(range(0x100, 0x140))
    bench.caches = [Cache(bench, i, lines, 700) for i in range(2)]
    device = Device(bench, lines, 700)
    dram = Dram(bench)
    bench.others = [device, dram]
    bench.run(30_000)
    print(bench.shadow.cycle, bench.final)
    assert device.checked > 200 and all(c.checked > 300 for c in bench.caches)
    assert bench.counter("back_invalidations") > 0
    assert bench.counter("dram_reads") == dram.reads
    assert bench.counter("dram_writes") == dram.writes
