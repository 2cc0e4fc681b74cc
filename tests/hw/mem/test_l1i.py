"""The L1 instruction cache against an L2 that answers in any order, and a model of which lines it has."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator

from hw.config import ConfigError, load_machine
from hw.lib.observe import collect
from hw.lib.probe import Counter
from hw.mem.l1i import L1ICache

TINY = load_machine("tiny", ["l1i.size_kib=1", "l1i.ways=2"]).l1i  # 8 sets, 2 MSHRs
TEACHING = load_machine("teaching").l1i


class Sets:
    """The lines that are there, replaced by bit pseudo-LRU; a way is chosen when its line is missed."""

    def __init__(self, sets, ways):
        self.lines = [[None] * ways for _ in range(sets)]
        self.recent = [set() for _ in range(sets)]
        self.sets, self.ways = sets, ways

    def touch(self, index, way):
        self.recent[index].add(way)
        if len(self.recent[index]) == self.ways:
            self.recent[index] = {way}

    def use(self, line):
        index = line % self.sets
        self.touch(index, self.lines[index].index(line))

    def __contains__(self, line):
        return line in self.lines[line % self.sets]

    def choose(self, line):
        index = line % self.sets
        unused = [way for way in range(self.ways) if way not in self.recent[index]] or [0]
        way = ([way for way in unused if self.lines[index][way] is None] or unused)[0]
        self.touch(index, way)
        return way

    def fill(self, line, way):
        index = line % self.sets
        gone, self.lines[index][way] = self.lines[index][way], line
        return gone


class Bench:
    """A cache, its core port and its L2."""

    def __init__(self, l1i=TINY, *, seed=1, latency=(6, 6), stall=0.0):
        self.dut, self.l1i = L1ICache(l1i, "core0"), l1i
        self.rng, self.latency, self.stall = random.Random(seed), latency, stall
        self.cycle = 0
        self.asked = {}  # by tag: line, edge of the answer; not answered yet
        self.log = []  # (edge, line) of requests
        self.answered = []  # edges
        self.model, self.chosen = Sets(l1i.sets, l1i.ways), {}
        self.gone = {}  # line -> edge at which it was replaced
        self.expected = []  # lines still to be looked up
        self.seen = 0  # lines looked up
        self.progress = 0  # edge of the last lookup that got on
        self.stalls = self.busy_edges = 0

    async def edge(self, ctx):
        dut, request, now = self.dut, self.dut.l2.request, self.cycle
        ready = self.rng.random() >= self.stall
        ctx.set(request.ready, ready)
        due = [tag for tag, (_, edge) in self.asked.items() if edge <= now]
        tag = self.rng.choice(due) if due else None
        ctx.set(dut.l2.done_valid, tag is not None)
        if tag is not None:
            ctx.set(dut.l2.done.tag, tag)
        offered = ctx.get(request.valid) and ready
        if offered:
            payload = ctx.get(request.payload)
            assert payload.tag not in self.asked and payload.tag < self.l1i.mshrs
            assert payload.line not in [line for line, _ in self.asked.values()], "asked for twice"
            self.asked[payload.tag] = payload.line, now + self.rng.randint(*self.latency)
            self.log.append((now, payload.line))
        self.stalls += ctx.get(dut.text.stall)
        assert ctx.get(dut.text.busy) or not ctx.get(dut.text.stall)
        quiet = ctx.get(dut.quiet)
        missed = ctx.get(dut.miss.fields["line"]) if ctx.get(dut.miss.valid) else None
        before = self.visible(ctx)
        await ctx.tick("core0")
        after = self.visible(ctx)
        assert before == after or not quiet
        self.follow(ctx, missed)
        if tag is not None:
            line = self.asked.pop(tag)[0]
            self.answered.append(now)
            self.gone[self.model.fill(line, self.chosen.pop(line, 0))] = now
        self.busy_edges += not quiet
        self.cycle += 1

    def visible(self, ctx):
        dut = self.dut
        signals = [dut.text.busy, dut.text.stall, dut.l2.request.valid, dut._line, dut._looking]
        return [ctx.get(s) for s in (*signals, *(c.value for c in collect(dut, Counter).values()))]

    def follow(self, ctx, missed):
        """Look the lines up in the model that were looked up at this edge."""
        count = ctx.get(self.dut.lines.value) - self.seen
        self.seen += count
        assert count or missed is None
        for i in range(count):
            line = self.expected.pop(0)
            if line in self.model:
                self.model.use(line)
                assert line != missed
            elif line in self.chosen:  # on its way
                assert line != missed
            elif i == count - 1 and line == missed:
                self.chosen[line] = self.model.choose(line)
            else:
                # It was replaced while the lookup stood still after reading its tag
                assert self.gone[line] >= self.progress
        self.progress = self.cycle if count else self.progress

    async def start(self, ctx, line, lines):
        text = self.dut.text
        assert not ctx.get(text.busy)
        self.stalls = 0
        self.expected = list(range(line, line + lines))
        ctx.set(text.start, 1)
        ctx.set(text.line, line)
        ctx.set(text.lines, lines)
        await self.edge(ctx)
        ctx.set(text.start, 0)

    async def fetch(self, ctx, line, lines, limit=2000):
        """Cycles for which it was busy."""
        await self.start(ctx, line, lines)
        start = self.cycle
        while ctx.get(self.dut.text.busy):
            assert self.cycle < start + limit, "stuck"
            await self.edge(ctx)
        assert not self.expected
        return self.cycle - start

    async def cancel(self, ctx):
        ctx.set(self.dut.text.cancel, 1)
        await self.edge(ctx)
        ctx.set(self.dut.text.cancel, 0)
        assert not ctx.get(self.dut.text.busy)
        self.expected = []

    def run(self, process):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-9, domain="core0")

        async def testbench(ctx):
            await process(ctx, self)

        simulator.add_testbench(testbench)
        simulator.run()
        return self


@pytest.mark.parametrize("lines", [1, 3, 4, 5, 13])
def test_hits_cost_nothing(lines):
    """Four lines per cycle, from any line on, never a stall."""

    async def process(ctx, bench):
        await bench.fetch(ctx, 0x1000, 32)
        for first in (0x1000, 0x1001, 0x1002, 0x1003):
            assert await bench.fetch(ctx, first, lines) == -(-lines // 4)
            assert bench.stalls == 0
        assert len(bench.log) == 32

    Bench(TEACHING).run(process)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_miss(before):
    """Found missing in the cycle that looks it up, asked for in the next, there at the edge of the answer."""

    async def process(ctx, bench):
        if before:
            await bench.fetch(ctx, 0x777, before)
        found = bench.cycle + 1 + before // 4  # the edge of the start, then four lines per cycle
        await bench.start(ctx, 0x777, before + 1)
        while not bench.answered or bench.answered[-1] < found:
            assert ctx.get(bench.dut.text.busy)
            assert ctx.get(bench.dut.text.stall) == (bench.cycle > found)
            await bench.edge(ctx)
        assert bench.log[-1] == (found + 1, 0x777 + before)
        assert bench.answered[-1] == found + 1 + 6 == bench.cycle - 1
        assert not ctx.get(bench.dut.text.busy)
        assert bench.stalls == 7

    Bench(TEACHING).run(process)


def test_runs_ahead():
    """As many lines at once as there are MSHRs, one request per cycle, in order; then one per answer."""

    async def process(ctx, bench):
        start = bench.cycle
        await bench.fetch(ctx, 0x40, 6)
        first = [start + 2 + i for i in range(4)]
        # An answer at edge d frees its MSHR; it is taken in the cycle after, and offered in the next
        later = [first[i] + 20 + 2 for i in range(2)]
        assert bench.log == [(edge, 0x40 + i) for i, edge in enumerate(first + later)]
        assert bench.answered[-1] == later[-1] + 20 == bench.cycle - 1
        assert bench.stalls == bench.cycle - first[0]

    Bench(TEACHING, latency=(20, 20)).run(process)


def test_cancel():
    """It ends at once; what was asked for comes still, and is not asked for again."""

    async def process(ctx, bench):
        await bench.start(ctx, 0x10, 20)
        for _ in range(4):
            await bench.edge(ctx)
        await bench.cancel(ctx)
        asked = [line for _, line in bench.log]
        assert asked == [0x10, 0x11]
        # Wanted again while one is on its way: nobody asks twice
        await bench.fetch(ctx, 0x10, 2)
        assert [line for _, line in bench.log] == asked
        assert await bench.fetch(ctx, 0x10, 2) == 1
        await bench.cancel(ctx)

    Bench(latency=(9, 9)).run(process)


def test_answer_and_lookup_at_once():
    """A line that comes while its tags are being read, at any edge of that, is not asked for again."""

    async def process(ctx, bench):
        for gap in range(14):
            line = 0x1000 * gap
            await bench.start(ctx, line, 1)
            await bench.edge(ctx)
            await bench.edge(ctx)
            await bench.cancel(ctx)
            for _ in range(gap):
                await bench.edge(ctx)
            await bench.fetch(ctx, line, 1)
            assert len(bench.log) == gap + 1

    Bench(latency=(8, 8)).run(process)


@pytest.mark.parametrize("changes", [{}, {"ways": 4}, {"size_kib": 2, "ways": 8, "mshrs": 8}, {"ways": 1, "mshrs": 1}])
def test_random(changes):
    """Ranges over more lines than fit, cancelled at times: misses exactly when the model has the line not."""
    l1i = dataclasses.replace(TINY, **changes)

    async def process(ctx, bench):
        rng = bench.rng
        for _ in range(45):
            line = rng.choice((0, 5, 0x100, 0x3_FFFF_FF00)) + rng.randrange(8)
            lines = rng.choice((1, 2, 3, 4, 6, 9, 24))
            if rng.random() < 0.25:
                await bench.start(ctx, line, lines)
                for _ in range(rng.randrange(20)):
                    await bench.edge(ctx)
                await bench.cancel(ctx)
            else:
                await bench.fetch(ctx, line, lines)
        assert ctx.get(bench.dut.misses.value) - len(bench.log) in (0, 1)
        assert ctx.get(bench.dut.lines.value) > len(bench.log) > 40

    Bench(l1i, latency=(3, 25), stall=0.3, seed=l1i.ways).run(process)


@pytest.mark.parametrize("ways", [8, 4])
def test_few_sets(ways):
    """Two and four sets: one and two banks, and every line is looked up."""
    l1i = dataclasses.replace(TINY, ways=ways)

    async def process(ctx, bench):
        for _ in range(2):
            for line in (3, 6, 1):
                await bench.fetch(ctx, line, 7)
        assert len(bench.log) == 12
        assert ctx.get(bench.dut.lines.value) == 42
        banks = 16 // ways // 2
        assert await bench.fetch(ctx, 2, 7) == -(-7 // banks)

    Bench(l1i).run(process)


def test_quiet():
    """While it waits for the L2, and with nothing to do."""

    async def process(ctx, bench):
        await bench.fetch(ctx, 0x10, 4)
        busy = bench.busy_edges
        assert busy < 20 < bench.cycle
        for _ in range(10):
            await bench.edge(ctx)
        assert bench.busy_edges == busy

    Bench(latency=(60, 60)).run(process)


def test_refuses_one_set():
    with pytest.raises(ConfigError, match=r"\(sets\) must be a power of two of at least 2, not 1"):
        dataclasses.replace(TINY, ways=16)
