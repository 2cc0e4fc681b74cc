"""The prefetchers by themselves against what they should ask for, and in the L2 cache."""

import pytest
from amaranth.sim import Simulator

from hw.bus.tilelink import Cap
from hw.mem.l2.prefetch_adjacent import AdjacentPrefetcher
from hw.mem.l2.prefetch_stream import TRACKERS, StreamPrefetcher
from tests.hw.mem.l2_bench import Bench, machine

ADJACENT = {"prefetch_adjacent": True}
STREAM = {"prefetch_stream": True, "prefetch_distance": 4, "prefetches": 4}


def asked_after(dut, *accesses, take=True):
    """What a prefetcher asks for after each access."""
    asked = []

    async def testbench(ctx):
        for line in accesses:
            ctx.set(dut.train, 1)
            ctx.set(dut.train_line, line)
            await ctx.tick("core0")
            ctx.set(dut.train, 0)
            asked.append([])
            for _ in range(40 if take else 3):
                valid, line = ctx.get(dut.valid), ctx.get(dut.line)
                ctx.set(dut.take, valid and take)
                if valid:
                    asked[-1].append(line)
                await ctx.tick("core0")

    simulator = Simulator(dut)
    simulator.add_clock(1e-9, domain="core0")
    simulator.add_testbench(testbench)
    simulator.run()
    return asked


def stream(*accesses, distance=4):
    return asked_after(StreamPrefetcher(distance, "core0"), *accesses)


def test_adjacent_asks_for_the_other_line_of_the_pair():
    assert asked_after(AdjacentPrefetcher("core0"), 6, 9, 9) == [[7], [8], [8]]


def test_three_accesses_up_make_a_stream():
    assert stream(70, 71, 72, 73, 75) == [[], [], [73, 74, 75, 76], [77], [78, 79]]


def test_and_three_down():
    assert stream(90, 88, 86, 85) == [[], [], [85, 84, 83, 82], [81]]


def test_streams_end_with_their_page():
    assert stream(60, 61, 62, 63, 64) == [[], [], [63], [], []]
    assert stream(67, 66, 65, 64, 63) == [[], [], [64], [], []]


def test_accesses_far_apart_are_no_stream():
    assert stream(64, 70, 80, 90, 100) == [[]] * 5


def test_an_access_out_of_order_does_not_turn_a_stream():
    assert stream(70, 71, 72, 74, 73, 75) == [[], [], [73, 74, 75, 76], [77, 78], [], [79]]
    assert stream(70, 71, 72, 71, 70, 69, 68)[3:] == [[], [], [68, 67, 66, 65], [64]]


def test_streams_of_different_pages_do_not_disturb_each_other():
    pages = [64 * (2 * i + 1) for i in range(TRACKERS)]
    accesses = [page + step for step in range(3) for page in pages]
    asked = stream(*accesses)
    assert asked[: 2 * TRACKERS] == [[]] * (2 * TRACKERS)
    assert asked[2 * TRACKERS :] == [[page + step for step in range(3, 7)] for page in pages]
    # One page more than there are trackers, and the one used longest ago is forgotten
    asked = stream(*accesses, 64 * 100, pages[0] + 3, pages[2] + 3)
    assert asked[-2:] == [[], [pages[2] + 7]]


def test_a_candidate_waits_until_it_is_taken():
    dut = StreamPrefetcher(4, "core0")
    assert asked_after(dut, 70, 71, 72, take=False) == [[], [], [73, 73]]


def test_stream_refuses_a_distance_beyond_half_a_page():
    with pytest.raises(ValueError, match="1 to 32 lines ahead, not 33"):
        StreamPrefetcher(33, "core0")


def test_a_miss_brings_its_neighbour_and_a_demand_hits_it():
    async def process(ctx, bench):
        await bench.use(ctx, 6)
        assert len(bench.log_of(7, "acquire")) == 1
        await bench.use(ctx, 7)
        assert bench.l1.granted[7] == bench.l1.asked[7] + bench.dut.hit_cycles
        await bench.use(ctx, 6, write=True)
        assert len(bench.last_level.log) == 4, "neither again"
        counters = bench.counters(ctx)
        assert (counters["prefetches_issued"], counters["prefetches_used"]) == (1, 1)
        assert (counters["hits"], counters["misses"]) == (1, 1)

    Bench(machine(l2=ADJACENT), exclusive=1).run(process)


def test_a_demand_waits_for_the_prefetch_of_its_line():
    async def process(ctx, bench):
        assert bench.l1.want(6, write=False)
        await bench.idle_for(ctx, 20)
        assert bench.l1.want(7, write=True)
        await bench.idle_for(ctx, 10)
        assert bench.l1.want(32, write=False), "which holds up nobody else"
        await bench.idle_for(ctx, 10)
        assert len(bench.log_of(32, "acquire")) == 1
        await bench.settle(ctx)
        assert len(bench.log_of(7, "acquire")) == 1
        [(granted, *_)] = bench.log_of(7, "grant")
        assert granted < bench.l1.granted[7] <= granted + 6
        counters = bench.counters(ctx)
        assert (counters["prefetches_late"], counters["prefetches_used"], counters["misses"]) == (1, 1, 3)

    Bench(machine(l1={"mshrs": 3}, l2=ADJACENT), exclusive=1, delay=(80, 80)).run(process)


def test_no_prefetch_of_what_the_l1_has():
    async def process(ctx, bench):
        await bench.use(ctx, 6)
        await bench.use(ctx, 7, write=True)
        bench.last_level.probe(6, Cap.TO_N)
        await bench.settle(ctx)
        await bench.use(ctx, 6)
        await bench.idle_for(ctx, 20)
        assert len(bench.log_of(6, "acquire")) == 2
        assert len(bench.log_of(7, "acquire")) == 1

    Bench(machine(l2=ADJACENT), exclusive=1).run(process)


def test_a_stream_runs_ahead_and_its_lines_hit():
    async def process(ctx, bench):
        for line in range(64, 84):
            await bench.use(ctx, line)
            await bench.idle_for(ctx, 40)
            assert all(len(bench.log_of(x, "acquire")) <= 1 for x in range(64, 128))
        counters = bench.counters(ctx)
        assert (counters["misses"], counters["hits"], counters["prefetches_used"]) == (3, 17, 17)
        assert counters["prefetches_issued"] == 17 + 4

    Bench(machine(l1={"size_kib": 4}, l2={**STREAM, "size_kib": 4})).run(process)


def test_so_many_requests_at_once_leave_room_for_prefetches():
    """Two under way: the miss and one prefetch; the next prefetch follows when one of them arrives."""

    async def process(ctx, bench):
        for line in (64, 65):
            await bench.use(ctx, line)
        bench.last_level.delay = (300, 300)
        assert bench.l1.want(66, write=False)
        await bench.idle_for(ctx, 100)
        asked = [entry[2] for entry in bench.last_level.log if entry[1] == "acquire"]
        assert asked == [64, 65, 66, 67]
        assert bench.quiet_edges > 60, "waiting for room is quiet"
        await bench.settle(ctx)
        asked = [entry[2] for entry in bench.last_level.log if entry[1] == "acquire"]
        assert asked == [64, 65, 66, 67, 68, 69, 70]

    Bench(machine(l2={**STREAM, "prefetches": 2})).run(process)


def test_prefetched_lines_that_nobody_asked_for_are_counted():
    async def process(ctx, bench):
        await bench.use(ctx, 6)
        bench.last_level.probe(7, Cap.TO_N)
        await bench.settle(ctx)
        counters = bench.counters(ctx)
        assert (counters["prefetches_issued"], counters["prefetches_used"], counters["prefetches_unused"]) == (1, 0, 1)

    Bench(machine(l2=ADJACENT)).run(process)
