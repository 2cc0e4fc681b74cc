"""The MMU against a memory full of page tables and a model that says which TLB has what, to the cycle."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator

from hw.bus.l1 import L1Use
from hw.config import ConfigError, TlbConfig, load_machine
from hw.cpu.mmu import Mmu, PageSize
from hw.cpu.mmu.first_level import FirstLevelTlb
from hw.cpu.mmu.table import Table
from hw.lib.observe import collect
from hw.lib.probe import Counter

TINY = load_machine("tiny").tlb
#: Ways that are no power of two
SMALL = dataclasses.replace(TINY, l1_4k=6, l1_2m=3, l1_1g=2, l1_ways=3, l2=12, l2_ways=3, l2_1g=3, walk_cache=3)
SIZES = list(PageSize)
ROOT = 0x12345
LATENCY = 5  # of a walk's load that is taken at once


class Tables:
    """Page tables in a memory of 8-byte entries by physical address; bits that mean nothing are noise."""

    def __init__(self, seed=1):
        self.rng = random.Random(seed)
        self.memory = {}
        self.frames = {ROOT}

    def table(self):
        while (frame := self.rng.getrandbits(28)) in self.frames:
            pass
        self.frames.add(frame)
        return frame

    def entry(self, *, frame, page_size=0, present=1):
        noise = self.rng.getrandbits(64) & ~(0xFFF_FFFF << 12 | 0x81)
        return noise | frame << 12 | page_size << 7 | present

    def place(self, table, page, level):
        return table * 4096 + (page >> 9 * level & 511) * 8

    def map(self, page, size=PageSize.KIB_4, frame=None, root=ROOT, present=1):
        """Let ``page`` lie in a random frame; replace what is in the way. Returns the frame of the 4 KiB page."""
        table = root
        for level in (3, 2, 1):
            if level == size:
                break
            address = self.place(table, page, level)
            entry = self.memory.get(address, 0)
            if not entry & 1 or (level < 3 and entry & 0x80):
                self.memory[address] = self.entry(frame=self.table())
            table = self.memory[address] >> 12 & 0xFFF_FFFF
        frame = self.rng.getrandbits(28) if frame is None else frame
        page_size = 1 if size else self.rng.getrandbits(1)
        self.memory[self.place(table, page, size)] = self.entry(frame=frame, page_size=page_size, present=present)
        return self.within(frame, page, size)

    @staticmethod
    def within(frame, page, size):
        low = (1 << 9 * size) - 1
        return frame & ~low | page & low

    def walk(self, page, level, table):
        """Entries on the way from a table: ``[(level, frame)]``, and the size of the page; None: not present."""
        path = []
        while True:
            entry = self.memory.get(self.place(table, page, level), 0)
            path.append((level, table := entry >> 12 & 0xFFF_FFFF))
            if not entry & 1:
                return path, None
            if level == 0 or (level < 3 and entry & 0x80):
                return path, PageSize(level)
            level -= 1

    def translate(self, page, root=ROOT):
        path, size = self.walk(page, 3, root)
        return None if size is None else self.within(path[-1][1], page, size)


class Ways:
    """A set, replaced by bit pseudo-LRU."""

    def __init__(self, ways):
        self.keys, self.values, self.recent = [None] * ways, [None] * ways, set()

    def touch(self, way):
        self.recent.add(way)
        if len(self.recent) == len(self.keys):
            self.recent = {way}

    def find(self, key):
        if key not in self.keys:
            return None
        way = self.keys.index(key)
        self.touch(way)
        return self.values[way]

    def insert(self, key, value):
        ways = range(len(self.keys))
        victims = [w for w in ways if self.keys[w] is None] or [w for w in ways if w not in self.recent] or [0]
        self.keys[victims[0]], self.values[victims[0]] = key, value
        self.touch(victims[0])

    def forget(self, key):
        self.keys = [None if k == key else k for k in self.keys]

    def flush(self):
        self.keys = [None] * len(self.keys)


class TableWays(Ways):
    """A set of a table: an empty way is not recently used."""

    def forget(self, key):
        if key in self.keys:
            self.recent.discard(self.keys.index(key))
        super().forget(key)

    def flush(self):
        super().flush()
        self.recent = set()


class Model:
    """Which TLB has what, and what that costs."""

    def __init__(self, tlb: TlbConfig, tables: Tables):
        self.tlb, self.tables, self.root = tlb, tables, ROOT
        sets = {PageSize.KIB_4: tlb.l1_4k // tlb.l1_ways, PageSize.MIB_2: tlb.l1_2m // tlb.l1_ways}
        self.l1 = {size: [Ways(tlb.l1_ways) for _ in range(n)] for size, n in sets.items()}
        self.l1[PageSize.GIB_1] = [Ways(tlb.l1_1g)]
        self.l2 = [TableWays(tlb.l2_ways) for _ in range(tlb.l2 // tlb.l2_ways)]
        self.l2_1g = TableWays(tlb.l2_1g)
        self.caches = {0: TableWays(tlb.walk_cache), 1: TableWays(4)}  # by level of the tables they name

    def first(self, page, size):
        sets, key = self.l1[size], page >> 9 * size
        return sets[key % len(sets)], key

    def second(self, page, size):
        if size is PageSize.GIB_1:
            return self.l2_1g, page >> 18
        key = page >> 9 * size
        return self.l2[(key ^ key // len(self.l2)) % len(self.l2)], (size, key)

    def everything(self):
        sets = [s for level in (*self.l1.values(), self.l2) for s in level]
        return [*sets, self.l2_1g, *self.caches.values()]

    def flush(self, root):
        self.root = root
        for each in self.everything():
            each.flush()

    def forget(self, page):
        for size in PageSize:
            for ways, key in (self.first(page, size), self.second(page, size)):
                ways.forget(key)
        for cache in self.caches.values():
            cache.flush()

    def ask(self, page):
        """Frame of the page, None for a fault; loads of the walk; whether the first level had it."""
        frame = None
        for size in PageSize:
            ways, key = self.first(page, size)
            if (value := ways.find(key)) is not None:
                frame = self.tables.within(value, page, size)
        if frame is not None:
            return frame, 0, True
        for size in PageSize:
            ways, key = self.second(page, size)
            if (value := ways.find(key)) is not None:
                return self.fill(page, size, value), 0, False
        level, table = 3, self.root
        for known, cache in self.caches.items():
            if (value := cache.find(page >> 9 * (known + 1))) is not None:
                level, table = known, value
                break
        path, size = self.tables.walk(page, level, table)
        for at, frame in path[:-1]:
            if at < 3:
                self.caches[at - 1].insert(page >> 9 * at, frame)
        if size is None:
            return None, len(path), False
        ways, key = self.second(page, size)
        ways.insert(key, path[-1][1])
        return self.fill(page, size, path[-1][1]), len(path), False

    def fill(self, page, size, frame):
        ways, key = self.first(page, size)
        ways.insert(key, frame)
        return self.tables.within(frame, page, size)


class Bench:
    """An MMU, and an L1 that answers the walker's loads, among answers to others."""

    def __init__(self, tlb=TINY, *, seed=1, random_latency=False, memory_frames=1 << 28):
        self.dut = Mmu(tlb, "core0", memory_frames)
        self.tlb, self.rng, self.random_latency = tlb, random.Random(seed), random_latency
        self.tables = Tables(seed)
        self.cycle = 0
        self.answer = None  # (edge, data)
        self.load = None  # offered since edge
        self.load_cycles = 0  # spent by walks between offer and answer, and one for the next
        self.loads = []
        self.busy_edges = 0  # not quiet

    async def edge(self, ctx):
        dut, rng = self.dut, self.rng
        ctx.set(dut.now, self.cycle)
        ready = not self.random_latency or rng.random() < 0.5
        ctx.set(dut.walk.ready, ready)
        answers = self.answer is not None and self.answer[0] == self.cycle
        other = not answers and rng.random() < 0.5
        ctx.set(dut.done_valid, answers or other)
        use = L1Use.WALK if answers else L1Use.LOAD
        ctx.set(dut.done, {"use": use, "id": 0, "data": self.answer[1] if answers else rng.getrandbits(512)})
        if answers:
            self.load_cycles += self.cycle - self.load + 1
            self.answer = self.load = None
        if ctx.get(dut.walk.valid):
            assert self.answer is None, "two loads in flight"
            load = ctx.get(dut.walk.payload)
            assert L1Use(load.use) is L1Use.WALK and load.size == 8 and load.offset % 8 == 0
            self.load = self.cycle if self.load is None else self.load
            if ready:
                address = load.line * 64 + load.offset
                self.loads.append(address)
                delay = rng.randint(4, 12) if self.random_latency else LATENCY
                self.answer = (self.cycle + delay, self.tables.memory.get(address, 0))
        self.busy_edges += not ctx.get(dut.quiet)
        await ctx.tick("core0")
        self.cycle += 1

    async def idle(self, ctx, edges):
        for _ in range(edges):
            await self.edge(ctx)

    async def set_root(self, ctx, root):
        ctx.set(self.dut.port.set_root, 1)
        ctx.set(self.dut.port.root, root << 12 | self.rng.getrandbits(12))
        await self.edge(ctx)
        ctx.set(self.dut.port.set_root, 0)

    async def forget(self, ctx, page):
        ctx.set(self.dut.port.forget, 1)
        ctx.set(self.dut.port.page, page)
        await self.edge(ctx)
        ctx.set(self.dut.port.forget, 0)

    async def ask(self, ctx, page, limit=400):
        """Ask until it hits or faults: ``(edges it took, frame)``, ``None`` for a fault; sampled, not yet ticked on."""
        port = self.dut.port
        ctx.set(port.valid, 1)
        ctx.set(port.page, page)
        start, self.load_cycles = self.cycle, 0
        while not (ctx.get(port.hit) or ctx.get(port.fault)):
            assert self.cycle < start + limit, "no answer"
            await self.edge(ctx)
        assert not (ctx.get(port.hit) and ctx.get(port.fault))
        result = self.cycle - start, ctx.get(port.frame) if ctx.get(port.hit) else None
        await self.edge(ctx)
        ctx.set(port.valid, 0)
        return result

    async def see(self, ctx, page, *, edges, frame):
        assert await self.ask(ctx, page) == (edges, frame)
        await self.idle(ctx, 2)

    def count(self, ctx):
        return {name: ctx.get(counter.value) for name, counter in collect(self.dut, Counter).items()}

    def run(self, process):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-9, domain="core0")

        async def testbench(ctx):
            await process(ctx, self)

        simulator.add_testbench(testbench)
        simulator.run()
        return self


def test_off():
    """Without a root, a page is its own frame at once."""

    async def process(ctx, bench):
        for page in (0, 1, (1 << 28) - 1, 0xABCDEF1):
            assert await bench.ask(ctx, page) == (0, page)
        assert not any(bench.count(ctx).values())

    Bench().run(process)


@pytest.mark.parametrize("l2_latency", [4, 7, 20])
@pytest.mark.parametrize("size", PageSize)
def test_latencies(size, l2_latency):
    """Not ready at t - 1, ready at t: first level, second level, walks shortened by either cache, whole walks."""
    step = 1 << 9 * size
    first = 0x123456789
    near, same_table, other_table = (first + i * step for i in (0, 2, 512))
    whole, table_known, directory_known = {
        PageSize.KIB_4: (4, 1, 2),
        PageSize.MIB_2: (3, 1, 3),
        PageSize.GIB_1: (2, 2, 2),
    }[size]

    def walk(loads):
        return l2_latency + loads * (LATENCY + 1)

    async def process(ctx, bench):
        frames = {page: bench.tables.map(page, size) for page in (near, same_table, other_table)}
        other_root = bench.tables.table()
        elsewhere = bench.tables.map(near, size, root=other_root)
        await bench.set_root(ctx, ROOT)
        await bench.see(ctx, near, edges=walk(whole), frame=frames[near])
        await bench.see(ctx, near, edges=0, frame=frames[near])
        # These two share a set of two ways with the first page
        await bench.see(ctx, other_table, edges=walk(directory_known), frame=frames[other_table])
        await bench.see(ctx, same_table, edges=walk(table_known), frame=frames[same_table])
        await bench.see(ctx, near, edges=l2_latency, frame=frames[near])
        await bench.see(ctx, near, edges=0, frame=frames[near])
        counts = bench.count(ctx)
        assert (counts["l1_misses"], counts["l2_misses"]) == (4, 3)
        assert counts["walker.loads_made"] == len(bench.loads) == whole + directory_known + table_known
        await bench.set_root(ctx, other_root)
        await bench.see(ctx, near, edges=walk(whole), frame=elsewhere)

    Bench(dataclasses.replace(TINY, l2_latency=l2_latency, l2=16, l2_ways=4, l2_1g=4)).run(process)


FRAMES = 1 << 20


@pytest.mark.parametrize(
    "frames, loads",
    [
        ([0x10, 0x11, 0x12, FRAMES - 1], 4),
        ([0x10, 0x11, 0x12, FRAMES], 4),
        ([0x10, 0x11, 1 << 27, 0x13], 3),
        ([0x10, FRAMES | 5, 0x12, 0x13], 2),
        ([FRAMES + 0x10, 0x11, 0x12, 0x13], 1),
    ],
    ids=["the last frame", "page", "page table", "directory", "directory pointers"],
)
def test_outside_memory(frames, loads):
    """A walk ends where an entry leads outside memory, and its page is refused, with the reason."""
    page = 0x123456789

    async def process(ctx, bench):
        table, port = ROOT, bench.dut.port
        for level, frame in zip((3, 2, 1, 0), frames, strict=True):
            bench.tables.memory[bench.tables.place(table, page, level)] = frame << 12 | 1
            table = frame
        await bench.set_root(ctx, ROOT)
        inside = frames[3] if max(frames) < FRAMES else None
        assert await bench.ask(ctx, page) == (TINY.l2_latency + loads * (LATENCY + 1), inside)
        ctx.set(port.valid, 1)
        for _ in range(3):
            assert ctx.get(port.outside) == ctx.get(port.fault) == (inside is None)
            await bench.edge(ctx)
        assert len(bench.loads) == loads and all(address < FRAMES << 12 for address in bench.loads)

    Bench(memory_frames=FRAMES).run(process)


def test_root_outside_memory_and_no_translation():
    """A root outside memory is not walked; without translation the page itself is looked at."""

    async def process(ctx, bench):
        port = bench.dut.port
        await bench.set_root(ctx, FRAMES + 3)
        _, found = await bench.ask(ctx, 0x1234)
        ctx.set(port.valid, 1)
        assert found is None and ctx.get(port.fault & port.outside) and not bench.loads
        ctx.set(port.valid, 0)
        await bench.edge(ctx)
        await bench.set_root(ctx, 0)
        ctx.set(port.valid, 1)
        for asked, outside in ((FRAMES - 1, 0), (FRAMES, 1), (FRAMES + 1, 1), (0, 0)):
            ctx.set(port.page, asked)
            assert (ctx.get(port.hit), ctx.get(port.fault), ctx.get(port.outside)) == (1 - outside, outside, outside)
            await bench.edge(ctx)

    Bench(memory_frames=FRAMES).run(process)


@pytest.mark.parametrize("level", range(4))
def test_fault(level):
    """It shows when the walk ends, for as long as the page is asked for; nothing is remembered."""
    page = 0x123456789
    loads = 4 - level
    loads_again = {3: 4, 2: 4, 1: 2, 0: 1}[level]  # the caches know the tables above

    async def process(ctx, bench):
        tables, port = bench.tables, bench.dut.port
        frame = tables.map(page)
        other = tables.map(0x1)
        table = ROOT
        for at in range(3, level, -1):
            table = tables.memory[tables.place(table, page, at)] >> 12 & 0xFFF_FFFF
        address = tables.place(table, page, level)
        tables.memory[address] &= ~1
        await bench.set_root(ctx, ROOT)
        await bench.ask(ctx, 0x1)
        assert await bench.ask(ctx, page) == (TINY.l2_latency + loads * (LATENCY + 1), None)
        ctx.set(port.valid, 1)
        for _ in range(5):
            assert ctx.get(port.fault) and ctx.get(bench.dut.quiet)
            await bench.edge(ctx)
        ctx.set(port.page, 0x1)
        assert ctx.get(port.hit) and not ctx.get(port.fault) and ctx.get(port.frame) == other
        await bench.edge(ctx)
        tables.memory[address] |= 1
        edges, found = await bench.ask(ctx, page)
        assert found == frame and edges == TINY.l2_latency + loads_again * (LATENCY + 1)

    Bench().run(process)


@pytest.mark.parametrize("seed", range(2))
def test_random(seed):
    """Pages of all sizes, stale ones too, in the edges the model says, and the counters agree."""

    async def process(ctx, bench):
        rng, tables, model = bench.rng, bench.tables, Model(bench.tlb, bench.tables)
        places = [rng.getrandbits(36) & 0xC_00C3_0603 for _ in range(60)]
        for page in places:
            tables.map(page, rng.choice(SIZES))
        await bench.set_root(ctx, ROOT)
        kinds = {"first": 0, "second": 0, 1: 0, 2: 0, 3: 0, 4: 0, "fault": 0}
        page = places[0]
        for _ in range(500):
            choice = rng.random()
            if choice < 0.9:
                page = rng.choice(places) if rng.random() < 0.6 else page ^ rng.choice((1, 2, 512, 1 << 18))
                frame, loads, first = model.ask(page)
                edges, found = await bench.ask(ctx, page)
                assert found == frame
                assert edges == (0 if first else bench.tlb.l2_latency + bench.load_cycles)
                kinds["first" if first else loads or "second"] += 1
                kinds["fault"] += frame is None
                await bench.idle(ctx, 2)
            elif choice < 0.98:
                page = rng.choice(places)
                tables.map(page, rng.choice(SIZES), present=rng.random() < 0.9)
                if rng.random() < 0.8:
                    model.forget(page)
                    await bench.forget(ctx, page)
                    await bench.idle(ctx, 3)
            else:
                model.flush(ROOT)
                await bench.set_root(ctx, ROOT)
        assert min(kinds.values()) > 3, kinds
        counts = bench.count(ctx)
        assert counts["walker.loads_made"] == sum(kinds[n] * n for n in (1, 2, 3, 4)) == len(bench.loads)
        assert counts["l2_misses"] == sum(kinds[n] for n in (1, 2, 3, 4))
        assert counts["l1_misses"] == counts["l2_misses"] + kinds["second"]

    Bench(SMALL, seed=seed, random_latency=True).run(process)


@pytest.mark.parametrize("op", ["forget", "set_root"])
def test_forgets_at_any_time(op):
    """Nothing read before an INVLPG or WRITE_CR3 is seen after it, wherever a walk stands when it comes."""

    async def process(ctx, bench):
        tables, port = bench.tables, bench.dut.port
        await bench.set_root(ctx, ROOT)
        for after in range(36):
            page = bench.rng.getrandbits(36)
            size = bench.rng.choice(SIZES)
            tables.map(page, size)
            ctx.set(port.valid, 1)
            ctx.set(port.page, page)
            await bench.idle(ctx, after)
            ctx.set(port.valid, 0)
            frame = tables.map(page, size)
            await (bench.forget(ctx, page) if op == "forget" else bench.set_root(ctx, ROOT))
            await bench.idle(ctx, bench.rng.choice((0, 0, 1, 2, 30)))
            assert (await bench.ask(ctx, page))[1] == frame
            assert (await bench.ask(ctx, page)) == (0, frame)

    Bench(SMALL).run(process)


def test_forget_twice():
    """Pages forgotten in consecutive cycles are gone, from the second level too, and nothing comes back."""

    async def process(ctx, bench):
        tables = bench.tables
        await bench.set_root(ctx, ROOT)
        for size in PageSize:
            for gap in (0, 1, 2):
                pages = [0x765432100 + i * (1 << 9 * size) for i in range(6)]
                for page in pages:
                    tables.map(page, size)
                    await bench.ask(ctx, page)
                await bench.idle(ctx, 2)
                frames = [tables.map(page, size) for page in pages]
                for page in pages:
                    await bench.forget(ctx, page)
                    await bench.idle(ctx, gap)
                for page, frame in zip(pages, frames, strict=True):
                    assert (await bench.ask(ctx, page))[1] == frame

    Bench(SMALL).run(process)


def test_gives_up():
    """The requester turns elsewhere at any edge: pages that hit do so at once, every frame is right."""

    async def process(ctx, bench):
        tables, port, rng = bench.tables, bench.dut.port, bench.rng
        places = [rng.getrandbits(36) & 0x8_0081_0403 for _ in range(30)]
        for page in places:
            tables.map(page, rng.choice(SIZES))
        frames = {page: frame for page in places if (frame := tables.translate(page)) is not None}
        places = list(frames)
        await bench.set_root(ctx, ROOT)
        hits = 0
        for _ in range(150):
            page = rng.choice(places)
            ctx.set(port.valid, 1)
            ctx.set(port.page, page)
            for _ in range(rng.randint(1, 20)):
                assert not ctx.get(port.fault)
                if ctx.get(port.hit):
                    assert ctx.get(port.frame) == frames[page]
                    hits += 1
                await bench.edge(ctx)
            ctx.set(port.valid, 0)
            await bench.idle(ctx, rng.choice((0, 0, 3)))
        assert hits > 300
        for page in places:
            assert (await bench.ask(ctx, page))[1] == frames[page]

    Bench(SMALL, random_latency=True).run(process)


def test_quiet_while_waiting():
    """For the second level, for the memory, and with nothing to do; a page that hits again and again."""

    async def process(ctx, bench):
        port, page = bench.dut.port, 0x1000
        bench.tables.map(page)
        await bench.set_root(ctx, ROOT)
        assert bench.busy_edges == 1
        await bench.idle(ctx, 5)
        assert bench.busy_edges == 1
        ctx.set(port.page, page)
        ctx.set(port.valid, 1)
        await bench.idle(ctx, 60)
        assert ctx.get(port.hit)
        # Begins, looks twice, begins to walk, sends and is answered four times, fills the second level
        assert bench.busy_edges == 1 + 3 + 1 + 2 * 4 + 1

    Bench(dataclasses.replace(TINY, l2_latency=9)).run(process)


def test_refusals():
    with pytest.raises(ConfigError, match=r"tlb.l2_latency must be between 4 and 64, not 3"):
        dataclasses.replace(TINY, l2_latency=3)
    widths = {"key_width": 9, "value_width": 9, "domain": "core0"}
    with pytest.raises(ValueError, match="power of two, not 3"):
        FirstLevelTlb(sets=3, ways=2, **widths)
    with pytest.raises(ValueError, match="power of two, not 3"):
        Table(sets=3, ways=2, **widths)
