"""The L1 data cache: times, misses, the protocol, progress, and everything at once at random."""

import pytest

from hw.bus.core import AtomicFunction
from hw.bus.l1 import L1Use
from hw.bus.tilelink import LINE_BYTES, Cap, Grow, Shrink
from hw.mem.l1.misses import MissFile
from hw.mem.l1.replacement import TreePlru
from tests.hw.mem.l1_bench import Bench, core_config, initial, l1_config
from tests.hw.simulate import simulate


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
            assert bench.sampled[i] - bench.accepted[i] == 1

    Bench(l1=l1_config(latency=latency), delay=(3, 3)).run(process)


@pytest.mark.parametrize("latency", [4, 7])
def test_miss_latencies(latency):
    """The oldest load gets its bytes straight from channel D, the others follow at the latency of a hit."""

    async def process(ctx, bench):
        ids = [bench.load(3, offset=60 - i, size=4) for i in range(4)]
        await bench.settle(ctx)
        [(asked, *_)] = bench.log_of("acquire")
        [(granted, *_)] = bench.log_of("grant")
        assert asked == bench.accepted[ids[0]] + 2
        assert [bench.sampled[i] - granted for i in ids] == [1, 3, 4, 5]
        assert [bench.answered[i] - granted for i in ids] == [2, *(2 + i + latency for i in range(3))]

    Bench(l1=l1_config(latency=latency), delay=(10, 10)).run(process)


def test_store_miss_latencies():
    async def process(ctx, bench):
        start = bench.cycle
        bench.store(3)
        await bench.settle(ctx)
        [(asked, *_)] = bench.log_of("acquire")
        [(granted, *_)] = bench.log_of("grant")
        assert (asked - start, bench.stored[0] - granted) == (3, 3)

    Bench(delay=(10, 10)).run(process)


@pytest.mark.parametrize("evicting", [False, True])
def test_misses_pass_every_other_cycle(evicting):
    """Acquires, Releases and Grants."""

    async def process(ctx, bench):
        lines = [64 + i for i in range(8)]
        if evicting:
            for line in range(8):
                bench.load(line)
            await bench.settle(ctx)
        start = bench.cycle
        ids = [bench.load(line) for line in lines]
        await bench.settle(ctx)
        for kind, first in [("acquire", 2), *([("release_data", 3)] if evicting else [])]:
            edges = [edge - start for edge, what, *_ in bench.below.log if what == kind and edge >= start]
            assert edges == [first + 2 * i for i in range(8)]
        answered = [bench.answered[i] for i in ids]
        assert answered == list(range(answered[0], answered[0] + 16, 2))

    l1 = l1_config(mshrs=8, ways=1)
    Bench(l1=l1, core=core_config(load_queue=8), delay=(20, 20), ack_delay=(1, 1)).run(process)


def test_an_answer_past_the_array_waits_for_hits():
    """At most one answer per cycle: the line that arrives finds hits on their way."""

    async def process(ctx, bench):
        bench.load(1)
        await bench.settle(ctx)
        miss = bench.load(2)
        hits = []
        while miss not in bench.answered:
            hits += [bench.load(1, size=8)] if not bench.to_load else []
            await bench.edge(ctx)
        await bench.settle(ctx)
        granted = bench.log_of("grant")[-1][0]
        assert bench.sampled[miss] == granted + 1
        taken = set(bench.answered[i] for i in hits)
        free = next(edge for edge in range(granted + 2, granted + 20) if edge not in taken)
        assert bench.answered[miss] == free > granted + 2

    Bench(core=core_config(load_queue=16), delay=(10, 10)).run(process)


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
        acquires = [edge for edge, kind, *_ in bench.below.log if kind == "acquire" and edge >= start]
        grants = [edge for edge, kind, *_ in bench.below.log if kind == "grant" and edge >= start]
        assert len(acquires) == 4 and acquires[-1] < grants[0]
        assert bench.answered[hit] == bench.accepted[hit] + bench.dut.l1.latency
        assert all(bench.answered[hit] < bench.answered[i] for i in misses)

    Bench(l1=l1_config(mshrs=4), core=core_config(load_queue=8), delay=(60, 60)).run(process)


def test_loads_of_one_line_share_an_mshr():
    async def process(ctx, bench):
        for i in range(4):
            bench.load(7, offset=i, size=1)
        await bench.settle(ctx)
        assert [e[1] for e in bench.below.log] == ["acquire", "grant", "grant ack"]
        assert bench.counters(ctx)["load_misses"] == 4

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
        released = [(kind, line) for _, kind, line, _ in bench.below.log if "release" in kind]
        assert released == [("release_data", sets), ("release_data", 0)]
        assert bench.counters(ctx)["evictions_clean"] == 1
        assert bench.counters(ctx)["evictions_dirty"] == 1
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
        acquires = [edge for edge, kind, *_ in bench.below.log if kind == "acquire"]
        first_grant = next(edge for edge, kind, *_ in bench.below.log if kind == "grant")
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
        bench.below.probe(6, cap)
        await bench.settle(ctx)
        had = {"absent": "N", "shared": "B"}.get(state, "T")
        left = "N" if cap is Cap.TO_N or had == "N" else "B"
        _, kind, line, shrink = bench.below.log[-1]
        assert (line, shrink.name) == (6, f"{had}_TO_{left}")
        assert kind == ("probe_ack_data" if state == "modified" else "probe_ack")
        assert bench.counters(ctx)["probes_received"] == 1
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
        assert bench.below.log[-1][3] is Grow.B_TO_T
        bench.below.probe(6, Cap.TO_N)
        load = bench.load(6)
        await bench.settle(ctx)
        assert [e[3] for e in bench.below.log if e[1] == "probe_ack"] == [Shrink.B_TO_N]
        assert len(bench.stored) == 1
        assert bench.answered[load] > bench.accepted[load] + bench.dut.l1.latency

    Bench(delay=(40, 40), exclusive=0).run(process)


def test_store_attaches_to_the_miss_of_a_load():
    """A load's Acquire that has not been sent yet asks for what the store needs."""

    async def process(ctx, bench):
        bench.load(5)
        bench.load(6)
        for _ in range(2):
            await bench.edge(ctx)
        bench.store(6)
        await bench.settle(ctx)
        assert [e[3] for e in bench.log_of("acquire")] == [Grow.N_TO_B, Grow.N_TO_T]

    Bench(exclusive=0, stall=1, stall_until=20).run(process)


def test_an_upgrade_keeps_its_way_when_probed():
    async def process(ctx, bench):
        sets = bench.dut.l1.sets
        bench.load(6)
        await bench.settle(ctx)
        bench.store(6)
        for _ in range(10):
            await bench.edge(ctx)
        bench.below.probe(6, Cap.TO_N)
        for _ in range(10):
            await bench.edge(ctx)
        bench.load(6 + sets)
        bench.load(6 + 2 * sets)
        await bench.settle(ctx)
        asked = {line: edge for edge, kind, line, _ in bench.below.log if kind == "acquire"}
        done = {line: edge for edge, kind, line, _ in bench.below.log if kind == "grant"}
        assert asked[6 + 2 * sets] > done[6], "of two ways, one is kept for the upgrade"

    Bench(l1=l1_config(mshrs=3), delay=(60, 60), exclusive=0).run(process)


def test_prefetch():
    async def process(ctx, bench):
        bench.prefetch(6)
        await bench.settle(ctx)
        for _ in range(20):
            await bench.edge(ctx)
        bench.prefetch(7)
        bench.prefetch(7)
        bench.prefetch(8)
        bench.prefetch(9)  # no MSHR left
        for _ in range(20):
            await bench.edge(ctx)
        await bench.settle(ctx)
        hit = bench.load(6)
        await bench.settle(ctx)
        assert bench.answered[hit] == bench.accepted[hit] + bench.dut.l1.latency
        assert [e[2] for e in bench.below.log if e[1] == "acquire"] == [6, 7, 8]
        assert list(bench.answered) == [hit]
        assert bench.counters(ctx)["loads"] == 1

    Bench(delay=(8, 8)).run(process)


def test_a_store_gets_the_next_free_mshr():
    async def process(ctx, bench):
        bench.load(1)
        bench.store(2)
        for _ in range(10):
            await bench.edge(ctx)
        for i in range(100):
            bench.prefetch(0x100 + i)
        await bench.settle(ctx)
        assert [e[2] for e in bench.below.log if e[1] == "acquire"][:2] == [1, 2]

    Bench(l1=l1_config(mshrs=1), delay=(30, 30)).run(process)


@pytest.mark.parametrize("delay", range(10, 34))
def test_a_store_that_lets_a_load_go_first_tries_again(delay):
    """Two MSHRs: line 2 may arrive just before line 3, whose loads have none. They then hit, and end no miss."""

    async def process(ctx, bench):
        bench.below.delays = {2: (delay, delay)}
        bench.store(1)
        for _ in range(3):
            await bench.edge(ctx)
        bench.store(3)
        bench.store(4)
        bench.load(2)
        bench.load(3)
        bench.load(3)
        await bench.settle(ctx, limit=400)

    Bench(l1=l1_config(mshrs=2, ways=8), delay=(10, 10), exclusive=0.0).run(process)


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
        bench.below.steal = True
        for i in range(30):
            bench.store(i % 3, mask=1 << i, data=i << 8 * i)
            bench.load(i % 3, offset=i, size=1)
            bench.load(3, offset=i, size=1)
        start = bench.cycle
        while not bench.done():
            await bench.edge(ctx)
            assert bench.cycle < start + 4000
        kinds = [e[1] for e in bench.below.log]
        assert kinds.count("acquire") <= 90, "no line comes in vain"

    Bench(delay=(0, 3), stall=0.2, exclusive=0.3).run(process)


RANDOM_CASES = [
    pytest.param({}, {}, dict(delay=(0, 10), probe_rate=0.02), id="tiny"),
    pytest.param({}, {}, dict(delay=(0, 30), stall=0.5, probe_rate=0.1), id="stalled"),
    pytest.param({"mshrs": 1}, {"load_queue": 1}, dict(delay=(0, 4), probe_rate=0.1, exclusive=0.2), id="one-mshr"),
    pytest.param({"ways": 1, "latency": 5}, {}, dict(delay=(0, 20), probe_rate=0.05), id="direct-mapped"),
    pytest.param({"latency": 5}, {}, dict(delay=(5, 20), stall=0.2, probe_rate=0.6), id="probe-storm"),
    pytest.param({"ways": 16, "mshrs": 5}, {"load_queue": 6}, dict(stall=0.3, probe_rate=0.05), id="one-set"),
    pytest.param({"mshrs": 3}, {"load_queue": 24}, dict(delay=(0, 30), probe_rate=0.02), id="many-loads"),
    pytest.param({"ways": 4, "mshrs": 8}, {"load_queue": 10}, dict(delay=(10, 50), stall=0.2), id="many-mshrs"),
]


@pytest.mark.parametrize("l1, core, below", RANDOM_CASES)
def test_random(l1, core, below):
    async def process(ctx, bench):
        rng, sets = bench.rng, bench.dut.l1.sets
        tags = [rng.getrandbits(20) for _ in range(max(4, 2 * bench.dut.l1.ways))]
        pool = [tag * sets + rng.randrange(sets) % 3 for tag in tags] + [0, sets]
        bench.watch = pool[0]
        operations = 300
        while operations > 0:
            assert bench.cycle < bench.progress + 1000
            hot = rng.random() < 0.5
            line = rng.choice(pool[:2] if hot else pool)
            offset = rng.randrange(LINE_BYTES)
            size = rng.randint(1, LINE_BYTES - offset)
            aligned = 1 << rng.randrange(4)
            word = offset // aligned * aligned
            if len(bench.to_load) < 3 and rng.random() < 0.5:
                bench.load(line, offset, size, use=L1Use.PREFETCH if rng.random() < 0.1 else L1Use.LOAD)
                operations -= 1
            if not bench.to_walk and rng.random() < 0.05:
                bench.walk(line, word, aligned)
            if len(bench.to_store) < 3 and rng.random() < 0.3:
                bench.store(line, mask=((1 << size) - 1) << offset)
                operations -= 1
            if not bench.to_atomic and rng.random() < 0.03:
                function = rng.choice(list(AtomicFunction))
                held = bench.now_holds(line) >> 8 * word & (1 << 8 * aligned) - 1
                operand, compare = rng.getrandbits(64), rng.choice((held, rng.getrandbits(64)))
                bench.atomic(line, word, aligned, function, operand, compare)
                operations -= 1
            await bench.edge(ctx)
        bench.below.probe_rate = 0
        await bench.settle(ctx, limit=5000)
        for line in list(bench.below.held):
            bench.load(line)
        await bench.settle(ctx, limit=5000)
        for _ in range(10):
            await bench.edge(ctx)
        assert ctx.get(bench.dut.quiet)

    Bench(l1=l1_config(**l1), core=core_config(**core), **below).run(process)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="power of two of ways, not 3"):
        TreePlru(sets=2, ways=3, domain="core0")
    with pytest.raises(ValueError, match="1 to 32 MSHRs, not 0"):
        MissFile(count=0, ways=1, domain="core0")


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

    simulate(dut, testbench, domain="core0")
