"""The L2 cache between doubles of the L1 and the last level that check every rule of the protocol they can see."""

import dataclasses
import random

from amaranth.sim import Simulator

from hw.bus.fetch import FetchRequest
from hw.bus.tilelink import (
    LINE_BITS,
    Cap,
    ChannelA,
    ChannelB,
    ChannelC,
    ChannelD,
    ChannelE,
    Grow,
    OpcodeA,
    OpcodeB,
    OpcodeC,
    OpcodeD,
    Shrink,
)
from hw.config import MachineConfig, load_machine
from hw.lib.observe import collect
from hw.lib.probe import Counter
from hw.mem.l2 import L2Cache
from tests.hw.mem.test_llc import Wires

TINY = load_machine("tiny")
CHANNELS = {"a": ChannelA, "b": ChannelB, "c": ChannelC, "d": ChannelD, "e": ChannelE}


def machine(l1=None, l2=None) -> MachineConfig:
    """The tiny machine with other caches; no prefetchers unless asked for."""
    l2 = {"prefetch_adjacent": False, "prefetch_stream": False, **(l2 or {})}
    return dataclasses.replace(
        TINY, l1=dataclasses.replace(TINY.l1, **(l1 or {})), l2=dataclasses.replace(TINY.l2, **l2)
    )


class Offer:
    """Our side of a stream that we drive: messages leave in order, each not before its time."""

    def __init__(self, wires):
        self.wires, self.queue = wires, []

    def put(self, when, **message):
        self.queue.append((when, message))

    def drive(self, ctx, now):
        self.on = bool(self.queue) and self.queue[0][0] <= now
        ctx.set(self.wires.valid, self.on)
        if self.on:
            ctx.set(self.wires.bits, self.wires.pack(self.queue[0][1]))

    def sample(self, ctx):
        """The message that the other side takes at this edge, if any."""
        if self.on and ctx.get(self.wires.ready):
            return self.queue.pop(0)[1]
        return None


class Intake:
    """Our side of a stream that the device under test drives: we stall at will."""

    def __init__(self, wires, rng, stall):
        self.wires, self.rng, self.stall = wires, rng, stall
        self.offered = None  # edge at which the message now offered was first

    def drive(self, ctx):
        ctx.set(self.wires.ready, self.rng.random() >= self.stall)

    def sample(self, ctx, now):
        """What arrives at this edge, and since when it has been offered."""
        if not ctx.get(self.wires.valid):
            assert self.offered is None, "taken back"
            return None
        if self.offered is None:
            self.offered, self.bits = now, ctx.get(self.wires.bits)
        assert ctx.get(self.wires.bits) == self.bits, "changed while offered"
        if not ctx.get(self.wires.ready):
            return None
        since, self.offered = self.offered, None
        return since, self.wires.unpack(self.bits)


class L1:
    """The L1: acquires, writes and releases lines, answers probes late."""

    def __init__(self, bench, *, delay, stall):
        self.bench, self.rng, self.delay = bench, random.Random(f"{bench.seed}/l1"), delay
        port = bench.dut.l1
        wires = {name: Wires(getattr(port, name), CHANNELS[name]) for name in "abcde"}
        self.a, self.c, self.e = (Offer(wires[name]) for name in "ace")
        self.b, self.d = (Intake(wires[name], self.rng, stall) for name in "bd")
        self.config = bench.config.l1
        self.held = {}  # line -> [writable, dirty]
        self.data = {}
        self.acquiring = {}  # source -> (line, Grow)
        self.releasing = {}  # source -> line
        self.probes = []  # (not before, line, cap)
        self.unacknowledged = {}  # sink -> line
        self.granted = {}  # line -> edge at which its Grant was offered
        self.asked = {}  # line -> edge at which its Acquire was offered
        self.dirty_grants = 0

    def later(self):
        return self.bench.cycle + self.rng.randint(*self.delay)

    def idle(self):
        return not (self.acquiring or self.releasing or self.probes or self.c.queue or self.e.queue)

    def lines_of_set(self, line):
        same = [x for x in self.held if x % self.config.sets == line % self.config.sets]
        awaited = [x for x, _ in self.acquiring.values() if x % self.config.sets == line % self.config.sets]
        return same, awaited

    def want(self, line, write):
        """Use a line; True if nothing more has to be done for it."""
        if line in self.held and (self.held[line][0] or not write):
            if write:
                self.write(line)
            return True
        busy = [x for x, _ in self.acquiring.values()]
        free = [s for s in range(self.config.mshrs) if s not in self.acquiring and s not in self.unacknowledged]
        elsewhere = (*busy, *self.releasing.values(), *self.unacknowledged.values())
        if line in elsewhere or not free:
            return False
        same, awaited = self.lines_of_set(line)
        if line not in same and len(set(same) | set(awaited)) >= self.config.ways:
            victims = [x for x in same if x not in awaited]
            if not victims or not self.release(self.rng.choice(victims)):
                return False
        grow = Grow.N_TO_B if not write else Grow.B_TO_T if line in self.held else Grow.N_TO_T
        self.acquiring[free[0]] = (line, grow)
        self.a.put(self.bench.cycle, opcode=OpcodeA.ACQUIRE_BLOCK, param=grow, source=free[0], line=line)
        return True

    def write(self, line):
        data = self.rng.getrandbits(LINE_BITS)
        self.data[line] = self.bench.truth[line] = data
        self.held[line] = [True, True]

    def release(self, line):
        free = [s for s in (40, 41) if s not in self.releasing]
        if not free or line in [x for x, _ in self.acquiring.values()]:
            return False
        writable, dirty = self.held.pop(line)
        self.releasing[free[0]] = line
        self.c.put(
            self.later() if not self.c.queue else 0,
            opcode=OpcodeC.RELEASE_DATA,
            param=Shrink.T_TO_N if writable else Shrink.B_TO_N,
            source=free[0],
            dirty=dirty,
            line=line,
            data=self.data[line],
        )
        return True

    def answer(self, line, cap):
        message = {"opcode": OpcodeC.PROBE_ACK, "param": Shrink.N_TO_N, "line": line}
        if line in self.held:
            writable, dirty = self.held[line]
            if dirty:
                message.update(opcode=OpcodeC.PROBE_ACK_DATA, data=self.data[line])
            after = "N" if cap is Cap.TO_N else "B"
            message["param"] = Shrink[f"{'T' if writable else 'B'}_TO_{after}"]
            if after == "N":
                del self.held[line]
            else:
                self.held[line] = [False, False]
        self.c.put(0, **message)

    def drive(self, ctx):
        now = self.bench.cycle
        while self.probes and self.probes[0][0] <= now:
            self.answer(*self.probes.pop(0)[1:])
        for offer in (self.a, self.c, self.e):
            offer.drive(ctx, now)
        for intake in (self.b, self.d):
            intake.drive(ctx)

    def sample(self, ctx):
        now = self.bench.cycle
        if a := self.a.sample(ctx):
            self.asked[a["line"]] = now
        self.c.sample(ctx)
        if e := self.e.sample(ctx):
            del self.unacknowledged[e["sink"]]
        if arrived := self.b.sample(ctx, now):
            _, b = arrived
            assert b.line not in self.unacknowledged.values(), "probed before the GrantAck"
            self.probes.append((self.later(), b.line, Cap(b.param)))
        if arrived := self.d.sample(ctx, now):
            since, d = arrived
            if d.opcode == OpcodeD.RELEASE_ACK.value:
                del self.releasing[d.source]
                return
            assert d.opcode == OpcodeD.GRANT_DATA.value
            line, grow = self.acquiring.pop(d.source)
            trunk = d.param == Cap.TO_T.value
            assert trunk or grow is Grow.N_TO_B, f"{grow} granted {d.param}"
            assert d.data == self.bench.value(line), f"stale data for line {line:#x}"
            self.held[line] = [trunk, bool(d.dirty)]
            self.dirty_grants += d.dirty
            self.data[line] = d.data
            self.granted[line] = since
            assert d.sink not in self.unacknowledged
            self.unacknowledged[d.sink] = line
            self.e.put(self.later() if not self.e.queue else 0, sink=d.sink)
            if grow is not Grow.N_TO_B:
                self.write(line)


class LastLevel:
    """Grants line by line, probes at will for others, which then may write."""

    def __init__(self, bench, *, delay, stall, probe_rate, exclusive, locked):
        self.bench, self.rng, self.delay = bench, random.Random(f"{bench.seed}/below"), delay
        self.locked = locked  # answers to Releases wait until all Probes are answered, as if all were of one set
        self.probe_rate, self.exclusive = probe_rate, exclusive
        port = bench.dut.tilelink
        wires = {name: Wires(getattr(port, name), CHANNELS[name]) for name in "abcde"}
        self.a, self.c, self.e = (Intake(wires[name], self.rng, stall) for name in "ace")
        self.b, self.d = Offer(wires["b"]), Offer(wires["d"])
        self.memory = {}
        self.held = {}  # line -> "N", "B" or "T", once every message sent has arrived
        self.acquires = {}  # line -> (not before, Grow, source)
        self.granting = {}  # sink -> line, until the GrantAck
        self.probing = {}  # line -> Cap, until the ProbeAck
        self.releasing = {}  # source -> line, until the ReleaseAck is taken
        self.replies = []  # (not before, message) for channel D
        self.sinks = 0
        self.log = []  # (edge offered, what, line, param)

    def read(self, line):
        return self.memory.get(line, self.bench.initial(line))

    def later(self):
        return self.bench.cycle + self.rng.randint(*self.delay)

    def idle(self):
        return not (self.acquires or self.granting or self.probing or self.releasing or self.replies or self.d.queue)

    def probe(self, line, cap):
        assert line not in self.probing and line not in self.granting.values()
        self.probing[line] = cap
        self.b.put(0, opcode=OpcodeB.PROBE_BLOCK, param=cap, line=line)

    def drive(self, ctx):
        now = self.bench.cycle
        for line, (when, grow, source) in list(self.acquires.items()):
            if now >= when and line not in self.probing:
                self.grant(line, grow, source)
        overdue = any(when < now - 60 for when, _ in self.replies)
        if self.rng.random() < self.probe_rate and len(self.probing) < 4 and not overdue:
            free = [x for x in self.held if x not in self.probing and x not in self.granting.values()]
            if free:
                self.probe(self.rng.choice(free), self.rng.choice((Cap.TO_N, Cap.TO_N, Cap.TO_B)))
        locked = self.locked and self.probing
        due = [
            (when, reply)
            for when, reply in self.replies
            if when <= now and not (locked and reply["opcode"] is OpcodeD.RELEASE_ACK)
        ]
        if due and not self.d.queue:
            reply = self.rng.choice(due)
            self.replies.remove(reply)
            self.d.put(0, **reply[1])
        self.b.drive(ctx, now)
        self.d.drive(ctx, now)
        for intake in (self.a, self.c, self.e):
            intake.drive(ctx)

    def grant(self, line, grow, source):
        assert self.read(line) == self.bench.value(line), "a write was lost"
        del self.acquires[line]
        trunk = grow is not Grow.N_TO_B or self.rng.random() < self.exclusive
        self.held[line] = "T" if trunk else "B"
        free = [s for s in range(64) if s not in self.granting]
        sink = self.rng.choice(free)
        self.granting[sink] = line
        cap = Cap.TO_T if trunk else Cap.TO_B
        message = {"opcode": OpcodeD.GRANT_DATA, "param": cap, "source": source, "sink": sink, "data": self.read(line)}
        self.log.append((self.bench.cycle, "grant", line, cap))
        self.replies.append((0, message))

    def sample(self, ctx):
        now = self.bench.cycle
        self.b.sample(ctx)
        if (d := self.d.sample(ctx)) and d["opcode"] is OpcodeD.RELEASE_ACK:
            del self.releasing[d["source"]]
        if arrived := self.a.sample(ctx, now):
            self.take_a(*arrived)
        if arrived := self.c.sample(ctx, now):
            self.take_c(*arrived)
        if arrived := self.e.sample(ctx, now):
            del self.granting[arrived[1].sink]

    def take_a(self, since, a):
        line, grow = a.line, Grow(a.param)
        self.log.append((since, "acquire", line, grow))
        assert a.opcode == OpcodeA.ACQUIRE_BLOCK.value
        assert line not in self.acquires and line not in self.granting.values(), "acquired twice"
        assert line not in self.releasing.values(), "acquired before the ReleaseAck"
        assert a.source not in [source for _, _, source in self.acquires.values()]
        held = self.held.setdefault(line, "N")
        expected = {Grow.N_TO_B: "N", Grow.N_TO_T: "NB", Grow.B_TO_T: "B"}[grow]
        assert held in expected or line in self.probing, f"{grow} of a line held {held}"
        own = a.source >= self.bench.config.l1.mshrs
        assert not own or grow is Grow.N_TO_B
        self.acquires[line] = (self.later(), grow, a.source)

    def take_c(self, since, c):
        line, opcode, shrink = c.line, OpcodeC(c.opcode), Shrink(c.param)
        self.log.append((since, opcode.name.lower(), line, shrink))
        before, after = shrink.name.split("_TO_")
        dropped = before == "N" and self.held.get(line) == "B" and line in self.acquires  # to write it
        assert before == self.held.get(line, "N") or dropped, f"{shrink} of a line held {self.held.get(line)}"
        if opcode in (OpcodeC.RELEASE_DATA, OpcodeC.PROBE_ACK_DATA):
            assert before == "T"
            self.memory[line] = c.data
        assert self.read(line) == self.bench.value(line), f"line {line:#x} was given up without its data"
        self.held[line] = after
        if opcode in (OpcodeC.RELEASE, OpcodeC.RELEASE_DATA):
            assert after == "N"
            assert line not in self.acquires, "released while acquiring"
            assert c.source not in self.releasing and len(self.releasing) < self.bench.config.l2.releases
            self.releasing[c.source] = line
            self.replies.append((self.later(), {"opcode": OpcodeD.RELEASE_ACK, "source": c.source}))
        else:
            cap = self.probing.pop(line)
            assert after == "N" if cap is Cap.TO_N else after in "NB"
            if after == "N" and line not in self.bench.text and self.rng.random() < 0.7:
                self.memory[line] = self.bench.truth[line] = self.rng.getrandbits(LINE_BITS)


class Bench:
    """One L2 cache and its surroundings. ``truth`` is what each line holds, whoever holds it."""

    def __init__(
        self,
        config=None,
        *,
        seed=1,
        hit_cycles=4,
        text=(),
        delay=(0, 12),
        l1_delay=(0, 6),
        stall=0.0,
        probe_rate=0.0,
        exclusive=0.5,
        locked=False,
        design=L2Cache,
    ):
        self.config, self.seed, self.text = config or machine(), seed, text
        self.dut = design(self.config, "core0", hit_cycles=hit_cycles)
        self.rng = random.Random(seed)
        self.cycle = 0
        self.truth = {}
        self.l1 = L1(self, delay=l1_delay, stall=stall)
        self.last_level = LastLevel(
            self, delay=delay, stall=stall, probe_rate=probe_rate, exclusive=exclusive, locked=locked
        )
        self.fetch = Offer(Wires(self.dut.fetch.request, FetchRequest))
        self.fetching = {}  # tag -> line
        self.fetched = {}  # line -> (edge asked, edge done)
        self.quiet_edges = 0
        self.state = None

    def initial(self, line):
        return random.Random(line).getrandbits(LINE_BITS)

    def value(self, line):
        return self.truth.get(line, self.initial(line))

    def want_text(self, line):
        """Fetch a line; False if there are fetches enough already."""
        free = [t for t in range(self.config.l1i.mshrs) if t not in self.fetching]
        if not free or line in [x for x, _ in self.fetching.values()]:
            return False
        self.fetching[free[0]] = (line, None)
        self.fetch.put(self.cycle, tag=free[0], line=line)
        return True

    def idle(self):
        return self.l1.idle() and self.last_level.idle() and not self.fetching

    def pending(self):
        names = ("acquiring", "releasing", "probes"), ("acquires", "granting", "probing", "releasing", "replies")
        sides = zip((self.l1, self.last_level), names, strict=True)
        return [self.fetching, *((name, getattr(side, name)) for side, each in sides for name in each)]

    async def edge(self, ctx):
        """Drive and sample one edge of the core's clock."""
        self.l1.drive(ctx)
        self.last_level.drive(ctx)
        self.fetch.drive(ctx, self.cycle)
        quiet = ctx.get(self.dut.quiet)
        self.quiet_edges += quiet
        before = self.registers(ctx) if quiet else None
        if ctx.get(self.dut.fetch.done_valid):
            line, asked = self.fetching.pop(ctx.get(self.dut.fetch.done.tag))
            self.fetched[line] = (asked, self.cycle)
        if taken := self.fetch.sample(ctx):
            self.fetching[taken["tag"]] = (taken["line"], self.cycle)
        self.l1.sample(ctx)
        self.last_level.sample(ctx)
        await ctx.tick("core0")
        if quiet:
            assert self.registers(ctx) == before, f"changed while quiet at edge {self.cycle}"
        self.cycle += 1

    def registers(self, ctx):
        """Some of what must not change at a quiet edge; tests/formal proves it of everything."""
        dut = self.dut
        names = ("valid", "grant", "send", "fetched", "acquire_blocked", "fetch_blocked", "release_blocked")
        signals = [getattr(dut, f"_{n}") for n in (*names, "probing", "probe_blocked", "leaving_valid")]
        signals += [s.valid for s in (dut.tilelink.a, dut.tilelink.c, dut.tilelink.e, dut.l1.b, dut.l1.d)]
        return [ctx.get(s) for s in signals]

    async def settle(self, ctx, limit=3000):
        """Run until everything asked for is done and the last level is idle."""
        end = self.cycle + limit
        while not self.idle():
            assert self.cycle < end, f"stuck: {self.pending()}"
            await self.edge(ctx)

    async def idle_for(self, ctx, cycles):
        for _ in range(cycles):
            await self.edge(ctx)

    async def use(self, ctx, line, write=False):
        """Use a line and wait for it."""
        while not self.l1.want(line, write):
            await self.edge(ctx)
        await self.settle(ctx)

    async def drop(self, ctx, *lines):
        """Let the L1 release lines, and wait."""
        for line in lines:
            while not self.l1.release(line):
                await self.edge(ctx)
        await self.settle(ctx)

    def counters(self, ctx):
        return {name: ctx.get(counter.value) for name, counter in collect(self.dut, Counter).items()}

    def log_of(self, line, what):
        return [entry for entry in self.last_level.log if entry[1] == what and entry[2] == line]

    def run(self, process):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-9, domain="core0")

        async def testbench(ctx):
            await process(ctx, self)

        simulator.add_testbench(testbench)
        simulator.run()
        return self


async def random_use(ctx, bench, *, lines, text=(), steps=1000, writes=0.4, releases=0.1, fetches=0.2, limit=3000):
    """Use random lines for so many edges, then come to rest."""
    rng = bench.rng
    for _ in range(steps):
        if rng.random() < 0.5:
            bench.l1.want(rng.choice(lines), rng.random() < writes)
        if rng.random() < releases and bench.l1.held:
            bench.l1.release(rng.choice(list(bench.l1.held)))
        if text and rng.random() < fetches:
            bench.want_text(rng.choice(text))
        await bench.edge(ctx)
    bench.last_level.probe_rate = 0
    await bench.settle(ctx, limit)
