"""An L1 data cache between a double of its core and a double of an exclusive L2, which check what they can see."""

import dataclasses
import random

from hw.bus.core import AtomicFunction
from hw.bus.l1 import L1Use
from hw.bus.tilelink import LINE_BYTES, Cap, Grow, OpcodeA, OpcodeB, OpcodeC, OpcodeD, Shrink
from hw.config import CoreConfig, L1Config, load_machine
from hw.lib.observe import collect
from hw.lib.probe import Counter
from hw.mem.l1 import L1Cache
from tests.hw.simulate import simulate

__all__ = ["FULL", "Bench", "LevelBelow", "atomic_result", "core_config", "initial", "l1_config"]

TINY = load_machine("tiny")
FULL = (1 << LINE_BYTES) - 1


def l1_config(**changes) -> L1Config:
    return dataclasses.replace(TINY.l1, **changes)


def core_config(**changes) -> CoreConfig:
    return dataclasses.replace(TINY.core, **changes)


def byte_mask(mask: int) -> int:
    return sum(0xFF << 8 * i for i in range(LINE_BYTES) if mask >> i & 1)


def atomic_result(atomic, old, mask):
    """What x86-64 writes."""
    operand = atomic["operand"]
    match atomic["function"]:
        case AtomicFunction.EXCHANGE:
            return operand & mask
        case AtomicFunction.ADD:
            return (old + operand) & mask
        case AtomicFunction.AND:
            return old & operand
        case AtomicFunction.OR:
            return (old | operand) & mask
        case AtomicFunction.XOR:
            return (old ^ operand) & mask
        case AtomicFunction.COMPARE_EXCHANGE:
            return operand & mask if old == atomic["compare"] & mask else old


def initial(line: int) -> int:
    return random.Random(line).getrandbits(8 * LINE_BYTES)


class LevelBelow:
    """Serves Acquires line by line from a memory, and probes at will for another agent, which then writes the line.

    It is exclusive, as the L2 is: what is released to it dirty it may grant as dirty again.
    """

    def __init__(
        self,
        bench,
        *,
        delay=(0, 12),
        ack_delay=None,
        stall=0.0,
        stall_until=None,
        probe_rate=0.0,
        exclusive=0.5,
        rng=None,
    ):
        self.bench, self.rng = bench, rng or random.Random(1)
        self.ack_delay = ack_delay or delay  # of Releases
        self.stall_until = stall_until  # edge
        self.delays = {}  # of the Grants of some lines, instead of ``delay``
        self.delay, self.stall, self.probe_rate, self.exclusive = delay, stall, probe_rate, exclusive
        self.memory = {}
        self.held = {}  # line -> "N", "B" or "T", once every message sent has arrived
        self.dirty_here = set()  # lines released dirty
        self.dirty_above = set()  # lines that the cache has to give back with their data
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
        self.writes_back = 0.2  # how often a dirty line is written back before it is granted again
        self.steal = False  # take away every line as soon as the protocol allows it

    def read(self, line):
        return self.memory.setdefault(line, initial(line))

    def later(self, delay):
        return self.bench.cycle + self.rng.randint(*delay)

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
        stall = 0.0 if self.stall_until is not None and now >= self.stall_until else self.stall
        for channel in (tilelink.a, tilelink.c, tilelink.e):
            ctx.set(channel.ready, self.rng.random() >= stall)

    def grant(self, line, message):
        assert self.read(line) == self.bench.now_holds(line), "the level below lost a write"
        del self.acquires[line]
        grow, source = message
        if self.rng.random() < self.writes_back:
            self.dirty_here.discard(line)
        dirty = line in self.dirty_here
        trunk = grow is not Grow.N_TO_B or dirty or self.rng.random() < self.exclusive
        if dirty:
            self.dirty_here.remove(line)
            self.dirty_above.add(line)
        self.held[line] = "T" if trunk else "B"
        sink, self.sinks = self.sinks % 64, self.sinks + 1
        self.granting[sink] = line
        cap = Cap.TO_T if trunk else Cap.TO_B
        self.log.append((self.bench.cycle, "grant", line, cap))
        grant = {"opcode": OpcodeD.GRANT_DATA, "param": cap, "source": source, "sink": sink, "data": self.read(line)}
        grant["dirty"] = dirty
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
        self.acquires[line] = (self.later(self.delays.get(line, self.delay)), (grow, a.source))
        self.log.append((self.bench.cycle, "acquire", line, grow))

    def take_c(self, c):
        line, opcode, shrink = c.line, OpcodeC(c.opcode), Shrink(c.param)
        self.log.append((self.bench.cycle, opcode.name.lower(), line, shrink))
        before, after = shrink.name.split("_TO_")
        assert before == self.held.get(line, "N"), f"{shrink} of a line held {self.held.get(line)}"
        dirty = line in self.dirty_above
        if opcode is OpcodeC.RELEASE_DATA:
            assert c.dirty == dirty
        else:
            assert (opcode is OpcodeC.PROBE_ACK_DATA) == dirty
        if opcode in (OpcodeC.RELEASE_DATA, OpcodeC.PROBE_ACK_DATA):
            assert c.data == self.bench.now_holds(line)
            assert before == "T" or not dirty
            self.memory[line] = c.data
        self.dirty_above.discard(line)
        assert self.read(line) == self.bench.now_holds(line), "a dirty line was given up without its data"
        self.held[line] = after
        if before != "N" and after == "N":
            self.bench.gone(line)
        assert opcode is not OpcodeC.RELEASE, "the L2 wants the data of clean lines, too"
        if opcode is OpcodeC.RELEASE_DATA:
            assert after == "N"
            if dirty:
                self.dirty_here.add(line)
            assert c.source not in self.releasing and len(self.releasing) < 2
            self.releasing[c.source] = line
            ack = {"opcode": OpcodeD.RELEASE_ACK, "source": c.source}
            self.release_acks.append((self.later(self.ack_delay), ack))
        else:
            cap = self.probing.pop(line)
            assert after == "N" if cap is Cap.TO_N else after in "NB"
            if after == "N" and self.rng.random() < 0.7:
                data = self.rng.getrandbits(8 * LINE_BYTES)
                self.memory[line] = data
                self.dirty_here.discard(line)
                self.bench.write(line, data)


class Bench:
    """A core's loads, stores and atomics.

    Each load, and each atomic, is checked against what its line held at the edge at which it was sampled; a walk, which
    is not reported as sampled, against every value its line had while it was under way. ``lost`` is checked for
    line ``watch``.
    """

    def __init__(self, l1=TINY.l1, core=TINY.core, seed=1, **below):
        self.dut = L1Cache(l1, core, "core0")
        self.load_queue = core.load_queue
        self.rng = random.Random(seed)
        self.cycle = 0
        self.versions = {}  # line -> [(edge, value)]
        self.to_load, self.to_walk, self.to_store, self.to_atomic = [], [], [], []
        self.loads, self.walks, self.stores, self.atomics = {}, {}, [], {}  # accepted, not done
        self.accepted, self.sampled, self.answered, self.stored = {}, {}, {}, []
        self.expected, self.values = {}, {}
        self.ids = 0
        self.quiet_edges = 0
        self.progress = 0  # edge of the last answer or store
        self.watch = 0
        self.lost = []  # edges
        self.losses = 0  # edges at which it had to be high
        self.unlost = False  # the watched line has been read and not been lost since
        self.below = LevelBelow(self, rng=random.Random(seed + 1), **below)

    def history(self, line):
        return self.versions.setdefault(line, [(-1, initial(line))])

    def now_holds(self, line):
        return self.history(line)[-1][1]

    def write(self, line, value):
        """From the next edge on."""
        assert not (self.unlost and line == self.watch), "written and not lost"
        self.history(line).append((self.cycle, value))

    def gone(self, line):
        """The cache says that it has a line no more."""
        if line == self.watch:
            assert not self.unlost, "gone and not lost"
            self.losses += 1

    def new_id(self):
        self.ids += 1
        return (self.ids - 1) % 256

    def load(self, line, offset=0, size=64, use=L1Use.LOAD):
        load = {"use": use, "id": self.new_id(), "line": line, "offset": offset, "size": size}
        (self.to_walk if use is L1Use.WALK else self.to_load).append(load)
        return load["id"]

    def prefetch(self, line):
        return self.load(line, use=L1Use.PREFETCH)

    def walk(self, line, offset=0, size=8):
        return self.load(line, offset, size, use=L1Use.WALK)

    def store(self, line, mask=FULL, data=None):
        data = self.rng.getrandbits(8 * LINE_BYTES) if data is None else data
        self.to_store.append({"line": line, "mask": mask, "data": data})

    def atomic(self, line, offset, size, function, operand, compare=0):
        atomic = {"id": self.new_id(), "line": line, "offset": offset, "size": size}
        atomic |= {"function": function, "operand": operand, "compare": compare}
        self.to_atomic.append(atomic)
        return atomic["id"]

    def done(self):
        asked = (self.to_load, self.to_walk, self.to_store, self.to_atomic)
        return not any((*asked, self.loads, self.walks, self.stores, self.atomics))

    def next_load(self):
        """What is on the load port: the walker goes first, one walk at a time. Nothing passes an atomic."""
        if self.to_walk and not self.walks:
            return self.to_walk
        if self.to_load and len(self.loads) < self.load_queue and not self.to_atomic and not self.atomics:
            return self.to_load
        return []

    async def edge(self, ctx):
        """Drive and sample one edge of the core's clock."""
        port, dut = self.dut.port, self.dut
        loads = self.next_load()
        stores = self.to_store if not (self.to_atomic or self.atomics) else []
        atomics = self.to_atomic if not (self.loads or self.stores or self.atomics) else []
        for stream, offered in ((port.load, loads), (port.store, stores), (port.atomic, atomics)):
            ctx.set(stream.valid, bool(offered))
            if offered:
                ctx.set(stream.payload, offered[0])
        ctx.set(port.watch, self.watch)
        self.below.drive(ctx)
        if ctx.get(port.load_done_valid):
            self.answer(ctx.get(port.load_done))
        if ctx.get(port.sampled):
            self.sample(ctx.get(port.sampled_id))
        visible, lost = ctx.get(port.visible), ctx.get(port.lost)
        if lost:
            self.lost.append(self.cycle)
            self.unlost = False
        if visible:
            self.make_visible()
        for stream, offered, accept in (
            (port.load, loads, self.accept_load),
            (port.store, stores, self.stores.append),
            (port.atomic, atomics, self.accept_atomic),
        ):
            if offered and ctx.get(stream.ready):
                accept(offered.pop(0))
        quiet = ctx.get(dut.quiet)
        before = self.registers(ctx) if quiet else None
        self.quiet_edges += quiet
        assert not (quiet and lost)
        self.below.sample(ctx)
        await ctx.tick("core0")
        if quiet:
            assert self.registers(ctx) == before, f"changed while quiet at edge {self.cycle}"
        self.cycle += 1

    def accept_load(self, load):
        self.accepted[load["id"]] = self.cycle
        if load["use"] is not L1Use.PREFETCH:
            in_flight = self.walks if load["use"] is L1Use.WALK else self.loads
            assert load["id"] not in in_flight
            in_flight[load["id"]] = load

    def accept_atomic(self, atomic):
        self.accepted[atomic["id"]] = self.cycle
        self.atomics[atomic["id"]] = atomic

    def sample(self, load_id):
        load = self.loads.get(load_id) or self.atomics[load_id]
        assert load_id not in self.expected, "sampled twice"
        line = self.now_holds(load["line"])
        self.expected[load_id] = line >> 8 * load["offset"] & (1 << 8 * load["size"]) - 1
        self.sampled[load_id] = self.cycle
        if load["line"] == self.watch:
            self.unlost = True

    def make_visible(self):
        if self.stores:
            store = self.stores.pop(0)
            mask, data = byte_mask(store["mask"]), store["data"]
        else:
            [store] = self.atomics.values()
            assert self.sampled[store["id"]] == self.cycle, "not in one step"
            shift = 8 * store["offset"]
            mask = (1 << 8 * store["size"]) - 1
            data = atomic_result(store, self.expected[store["id"]], mask) << shift
            mask <<= shift
        line = store["line"]
        assert self.below.held[line] == "T", "written without permission"
        self.below.dirty_above.add(line)
        if line == self.watch:
            assert self.lost and self.lost[-1] == self.cycle, "written and not lost"
            self.losses += 1
        self.write(line, self.now_holds(line) & ~mask | data & mask)
        self.stored.append(self.cycle)
        self.progress = self.cycle

    def registers(self, ctx):
        dut = self.dut
        signals = [v for k, v in vars(dut).items() if k in REGISTERS]
        signals += [dut.tilelink.a.valid, dut.tilelink.c.valid, dut.tilelink.e.valid]
        counters = collect(dut, Counter).values()
        return [ctx.get(s) for s in signals] + [ctx.get(c.value) for c in counters]

    def answer(self, done):
        if done.use is L1Use.WALK:
            self.check_walk(done)
        else:
            assert done.use is L1Use.LOAD
            (self.atomics if done.id in self.atomics else self.loads).pop(done.id)
            assert done.data == self.expected.pop(done.id)
        self.answered[done.id] = self.progress = self.cycle
        self.values[done.id] = done.data

    def check_walk(self, done):
        load = self.walks.pop(done.id)
        line, shift, mask = load["line"], 8 * load["offset"], (1 << 8 * load["size"]) - 1
        history = self.history(line)
        ends = [edge for edge, _ in history[1:]] + [self.cycle]
        since = self.accepted[done.id]
        possible = {
            value >> shift & mask
            for (start, value), end in zip(history, ends, strict=True)
            if start <= self.cycle and end >= since
        }
        assert done.data in possible, f"walk {load} at {since}..{self.cycle}: {done.data:x}"

    async def settle(self, ctx, limit=2000):
        """Run until everything asked for is done and the level below is idle."""
        end = self.cycle + limit
        while not (self.done() and self.below.idle()):
            assert self.cycle < end, f"stuck: {self.loads} {self.stores} {self.atomics} {vars(self.below)}"
            await self.edge(ctx)
        assert len(self.lost) == self.losses, "lost without a reason"

    def run(self, process):
        async def bench(ctx):
            await process(ctx, self)

        simulate(self.dut, bench, domain="core0")
        return self

    def counters(self, ctx):
        return {name: ctx.get(counter.value) for name, counter in collect(self.dut, Counter).items()}

    def log_of(self, *kinds):
        return [entry for entry in self.below.log if entry[1] in kinds]


REGISTERS = {
    "_valid",
    "_answer",
    "_send",
    "_modify",
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
