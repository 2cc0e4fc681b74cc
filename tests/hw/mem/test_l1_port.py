"""What the L1 data cache tells its core: atomics, walks, the watched line, and lines that arrive dirty."""

import pytest

from hw.bus.core import AtomicFunction
from hw.bus.tilelink import LINE_BYTES, Cap, Grow
from hw.mem.l1.atomic import AtomicUnit
from tests.hw.mem.l1_bench import Bench, atomic_result, core_config, initial, l1_config
from tests.hw.simulate import simulate

WORD = (1 << 64) - 1


async def until(ctx, bench, condition, limit=200):
    for _ in range(limit):
        if condition():
            return
        await bench.edge(ctx)
    raise AssertionError("never")


@pytest.mark.parametrize("latency", [4, 6])
def test_atomic_times(latency):
    """Of an atomic whose line is writable, clean or dirty, and the loads and stores around it."""

    async def process(ctx, bench):
        bench.store(5)
        bench.load(9)
        await bench.settle(ctx)
        for line in (5, 9):
            atomic = bench.atomic(line, 8, 8, AtomicFunction.ADD, 1)
            after = bench.load(line, 8, 8)
            bench.store(line, mask=1 << 8, data=0)
            await bench.settle(ctx)
            times = [edges[atomic] - bench.accepted[atomic] for edges in (bench.sampled, bench.answered)]
            assert times == [2, 1 + latency]
            assert bench.stored[-2] == bench.sampled[atomic]
            assert bench.values[after] == (bench.values[atomic] + 1) & WORD

    Bench(l1=l1_config(latency=latency), exclusive=1).run(process)


def test_the_next_pass_sees_what_an_atomic_wrote():
    """A walk comes as close behind an atomic as it can; one in front of it sees what was before."""

    async def process(ctx, bench):
        bench.store(5)
        await bench.settle(ctx)
        old = bench.now_holds(5) & WORD
        seen = set()
        for gap in range(6):
            bench.atomic(5, 0, 8, AtomicFunction.ADD, 1)
            for _ in range(gap):
                await bench.edge(ctx)
            walk = bench.walk(5)
            await bench.settle(ctx)
            assert bench.values[walk] == (old + gap + (bench.accepted[walk] >= bench.stored[-1])) & WORD
            seen.add(bench.accepted[walk] - bench.stored[-1])
        assert {-2, 1} <= seen, "nearer than this nothing passes"

    Bench().run(process)


def test_atomic_misses():
    async def process(ctx, bench):
        for held in (False, True):
            if held:
                bench.load(6)
                await bench.settle(ctx)
            line = 6 if held else 7
            atomic = bench.atomic(line, 60, 4, AtomicFunction.EXCHANGE, 0x11)
            await bench.settle(ctx)
            asked, _, _, grow = bench.log_of("acquire")[-1]
            assert grow is (Grow.B_TO_T if held else Grow.N_TO_T)
            assert asked == bench.accepted[atomic] + 3
            granted = bench.log_of("grant")[-1][0]
            assert bench.sampled[atomic] == granted + 3
            assert bench.values[atomic] == initial(line) >> 480
        assert bench.counters(ctx)["store_misses"] == 2

    Bench(exclusive=0, delay=(10, 10)).run(process)


def test_atomics_under_hostile_probing():
    """Another agent takes the line the moment it may: never between the read and the write."""

    async def process(ctx, bench):
        bench.below.steal = True
        for i in range(20):
            bench.atomic(i % 2, 8 * (i % 3), 8, AtomicFunction.ADD, i)
        await until(ctx, bench, bench.done, limit=2000)
        assert len(bench.log_of("acquire")) <= 20, "no line comes in vain"

    Bench(delay=(0, 3), stall=0.2, exclusive=0.3).run(process)


@pytest.mark.parametrize("function", list(AtomicFunction))
def test_atomic_functions(function):
    dut = AtomicUnit()
    dut_line = initial(1)

    async def bench(ctx):
        ctx.set(dut.line_data, dut_line)
        for size in (1, 2, 4, 8):
            ones = (1 << 8 * size) - 1
            for offset in range(0, LINE_BYTES, size):
                old = dut_line >> 8 * offset & ones
                for compare in (old, old ^ 1 << 8 * size - 1, old | 1 << 63):
                    atomic = {"id": 0, "line": 0, "offset": offset, "size": size, "function": function}
                    atomic |= {"operand": initial(offset) & WORD, "compare": compare}
                    ctx.set(dut.valid, 1)
                    ctx.set(dut.atomic, atomic)
                    assert ctx.get(dut.mask) == ((1 << size) - 1) << offset
                    assert ctx.get(dut.word) >> 8 * (offset % 8) & ones == atomic_result(atomic, old, ones)
        ctx.set(dut.valid, 0)
        assert not ctx.get(dut.mask)

    simulate(dut, bench, domain="core0")


def test_a_walk_has_a_place_when_the_load_queue_is_full():
    async def process(ctx, bench):
        loads = [bench.load(0x100 + 8 * i) for i in range(4)]
        await until(ctx, bench, lambda: len(bench.loads) == 4)
        walk = bench.walk(0x201, 8)
        await bench.settle(ctx)
        assert bench.values[walk] == initial(0x201) >> 64 & WORD
        assert all(bench.values[i] == initial(0x100 + 8 * i) for i in loads)
        counted = bench.counters(ctx)
        assert (counted["loads"], counted["load_misses"], counted["walk_misses"]) == (4, 4, 1)

    Bench(l1=l1_config(mshrs=1), core=core_config(load_queue=4), delay=(20, 20)).run(process)


def test_walks_are_not_reported_as_sampled():
    async def process(ctx, bench):
        walk = bench.walk(3)  # past the array
        await bench.settle(ctx)
        assert bench.answered[walk] == bench.log_of("grant")[-1][0] + 2
        walk = bench.walk(3)
        await bench.settle(ctx)
        assert bench.answered[walk] == bench.accepted[walk] + bench.dut.l1.latency
        assert not bench.sampled

    Bench().run(process)


def test_stranded_loads_go_in_order():
    async def process(ctx, bench):
        loads = [bench.load(0x100 + i // 2) for i in range(20)]
        await bench.settle(ctx)
        assert list(bench.answered) == loads

    Bench(l1=l1_config(mshrs=1), core=core_config(load_queue=20), delay=(6, 6)).run(process)


def test_dirty_lines_go_up_and_down():
    """A line written once is released as dirty until the level below has written it back."""

    async def process(ctx, bench):
        sets, below = bench.dut.l1.sets, bench.below
        below.writes_back = 0
        bench.store(0)
        await bench.settle(ctx)
        for _ in range(2):
            bench.load(sets)
            await bench.settle(ctx)
            assert below.dirty_here == {0} and not below.dirty_above
            bench.load(0)
            await bench.settle(ctx)
            assert below.dirty_above == {0} and not below.dirty_here
        counted = bench.counters(ctx)
        assert (counted["evictions_dirty"], counted["evictions_clean"]) == (2, 2)
        below.probe(0, Cap.TO_B)
        await bench.settle(ctx)
        assert below.log[-1][1] == "probe_ack_data"
        bench.load(sets)
        await bench.settle(ctx)
        assert bench.counters(ctx)["evictions_clean"] == 3

    Bench(l1=l1_config(ways=1), exclusive=0).run(process)


def test_lost():
    """Every way to lose the watched line, at the edge at which it happens, and what does not count."""

    async def process(ctx, bench):
        sets = bench.dut.l1.sets
        bench.watch = 6

        async def losses(of):
            before = len(bench.lost)
            of()
            await bench.settle(ctx)
            return bench.lost[before:]

        assert not await losses(lambda: bench.load(6))
        assert not await losses(lambda: bench.load(6))
        assert not await losses(lambda: bench.load(7))
        assert await losses(lambda: bench.store(6)) == bench.stored[-1:]
        assert not await losses(lambda: bench.store(7))
        assert await losses(lambda: bench.atomic(6, 0, 1, AtomicFunction.OR, 0)) == bench.stored[-1:]
        assert not await losses(lambda: bench.below.probe(6, Cap.TO_B))
        assert not await losses(lambda: bench.below.probe(7, Cap.TO_N))
        assert not await losses(lambda: bench.load(6 + sets))
        start = bench.cycle
        assert await losses(lambda: bench.load(6 + 2 * sets)) == [start + 1]
        assert not await losses(lambda: bench.below.probe(6, Cap.TO_N))
        assert not await losses(lambda: bench.load(6))
        start = bench.cycle
        assert await losses(lambda: bench.below.probe(6, Cap.TO_N)) == [start + 1]

    Bench(exclusive=0, delay=(4, 4)).run(process)
