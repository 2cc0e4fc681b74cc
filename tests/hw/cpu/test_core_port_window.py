"""CorePort: what the reorder window, the load queue and the reservation station let overlap."""

import pytest

from hw.bus.core import OperationKind as Kind
from tests.hw.cpu.host_driver import TINY, CoreBench, machine

HIT = TINY.l1.latency
WINDOW = TINY.core.window
MISS = 100


def missing(config=TINY, **options):
    """A bench in which every load misses."""
    return CoreBench(config, hit=0, miss=(MISS, MISS), **options)


def at(log, what):
    return [entry[0] for entry in log if entry[1] == what]


# EXECUTE in the window


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "cycles,uops", [(10, 31), (10, 32), (10, 40), (200, 100), (200, 33), (7, 6000), (31, 500), (500, 65535), (64, 64)]
)
def test_an_execute_hides_no_more_of_a_miss_than_the_window(cycles, uops, skip):
    """Load at 1 completes at 1 + MISS; EXECUTE from 2 on, until its part that the window has room for is done."""
    bench = missing(skip=skip)
    load = bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    execute = bench.push(Kind.EXECUTE, cycles=cycles, uops=uops)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run(drain=True)
    assert (load.issued, execute.issued, load.completed) == (1, 2, 1 + MISS)
    free = WINDOW - 1
    alone = min(cycles, free * cycles // uops)
    if alone == cycles or 2 + alone > load.completed:
        end = 2 + cycles
    else:
        end = load.completed + 1 + cycles - alone
    # An EXECUTE that just fills the window leaves no room behind it
    assert last.issued == max(end, load.completed + 1 if uops >= free else 0)


def test_an_execute_without_a_load_before_it_does_not_wait():
    bench = missing()
    first = bench.push(Kind.EXECUTE, cycles=50, uops=5000)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert last.issued == first.issued + 50


@pytest.mark.parametrize("skip", [False, True])
def test_an_execute_goes_on_as_far_as_each_completion_lets_it(skip):
    """Loads at 1 and 2 of 1 and 10 micro-operations; 64 in 64 cycles behind them."""
    bench = CoreBench(machine(l1={"latency": 40}), skip=skip)
    first = bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    bench.push(Kind.EXECUTE, cycles=10, uops=10)
    second = bench.push(Kind.LOAD, address=0x1040, size=8, uops=1)
    execute = bench.push(Kind.EXECUTE, cycles=64, uops=64)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert (first.issued, second.issued, execute.issued) == (1, 12, 13)
    # 20 free: it pauses at 33. The first completes at 41; at 43 the second is the oldest: 11 more, until 54.
    # The second completes at 52: it goes on without a pause
    assert (first.completed, second.completed) == (41, 52)
    assert last.issued == 43 + 64 - 20


def test_a_pause_between_two_completions():
    bench = CoreBench(machine(l1={"latency": 60}))
    bench.push(Kind.LOAD, address=0x1000, size=8, uops=4)
    second = bench.push(Kind.EXECUTE, cycles=25, uops=4)
    second = bench.push(Kind.LOAD, address=0x1040, size=8, uops=4)
    execute = bench.push(Kind.EXECUTE, cycles=100, uops=100)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    # 32 - 12 free: pauses at 48; the second is the oldest at 63: 8 more, until 71; it completes at 87
    assert (execute.issued, second.completed) == (28, 87)
    assert last.issued == 88 + 100 - 28


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("when", [20, 33, 34, 60, 110])
def test_an_interrupt_reports_what_a_paused_execute_has_left(when, skip):
    """It issues at 2 and pauses at 33 with 69 of 100 cycles left, until the load completes at 101."""
    bench = missing(skip=skip)
    bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    execute = bench.push(Kind.EXECUTE, cycles=100, uops=100)
    bench.interrupts[when - 1] = 0x30
    bench.run()
    [interruption] = bench.host.interruptions
    assert interruption.at == when
    assert interruption.remaining == (102 - when if when < 33 else 69 if when < 102 else 171 - when)
    assert execute.rest is not None


def test_what_an_interrupt_cuts_short_leaves_the_window():
    bench = missing()
    load = bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    bench.push(Kind.EXECUTE, cycles=100, uops=100)
    bench.interrupts[49] = 0x30
    bench.run()
    # IRET issues, although 100 micro-operations were to enter the window
    assert any(op.kind == Kind.IRET and op.issued < load.completed for op in bench.host.issued)


# Issue


@pytest.mark.parametrize("uops", [1, 5, 31, 32, 100])
def test_nothing_issues_while_the_window_is_full(uops):
    bench = missing()
    load = bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    ops = [bench.push(Kind.STORE, address=0x1040, size=8, uops=uops) for _ in range(2)]
    last = bench.push(Kind.CLI, uops=1)
    bench.run()
    assert ops[0].issued == 2
    assert ops[1].issued == (3 if 1 + uops < WINDOW else load.completed + 1)
    assert last.issued == (4 if 1 + 2 * uops < WINDOW else max(load.completed, ops[1].issued) + 1)


@pytest.mark.parametrize("between", [7, 15, 31])
def test_misses_overlap_by_the_window(between):
    """MLP = window / micro-operations from one miss to the next, when the cache has room for all."""
    bench = missing(machine(core={"load_queue": 16}))
    for i in range(12):
        bench.push(Kind.LOAD, address=0x1000 + 64 * i, size=8, uops=1)
        bench.push(Kind.EXECUTE, cycles=1, uops=between)
    bench.run(cycles=5000)
    loads = [op for op in bench.host.issued if op.kind == Kind.LOAD]
    edges = range(loads[0].issued, loads[-1].completed)
    together = max(sum(op.issued <= edge < op.completed for op in loads) for edge in edges)
    assert together == -(-WINDOW // (between + 1))
    # In steps of a miss each, but for the few cycles in which the loads of a step issue
    steps = 12 // together
    assert steps * MISS <= loads[-1].completed <= steps * (MISS + 4 * together)


def test_loads_retire_one_per_cycle():
    """The oldest misses; all behind it have completed when it does, and leave the window one by one."""
    config = machine(core={"load_queue": 16, "store_buffer": 16, "window": 8})
    bench = CoreBench(config, store_delay=(1, 1))
    bench.cache.hit, bench.cache.miss = 0, (MISS, MISS)
    first = bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    loads = [bench.push(Kind.LOAD, address=0x1040 + 64 * i, size=8, uops=1) for i in range(9)]

    def hits(ctx, now, op):
        bench.cache.hit = 1.0 if now >= 2 else 0.0

    bench.on_edge = hits
    bench.run()
    assert [load.issued for load in loads[:7]] == list(range(2, 9))
    assert max(load.completed for load in loads[:7]) < first.completed
    # No load is in flight one edge later: the window is empty. Then one is, and the first two have left it
    assert [load.issued for load in loads[7:]] == [first.completed + 1, first.completed + 3]


# The reservation station


def test_a_chain_takes_the_latency_per_load():
    bench = CoreBench()
    chain = [bench.push(Kind.LOAD, address=0x1000, size=8)]
    for i in range(1, 12):
        chain.append(bench.push(Kind.LOAD, address=0x1000 + 64 * (i % 4), size=8, after=chain[-1]))
    bench.run()
    assert [op.completed for op in chain] == [1 + HIT * (i + 1) for i in range(12)]
    # Younger operations issue meanwhile: 2 wait in the station, the third in the fetch register
    assert [op.issued for op in chain[:4]] == [1, 2, 3, 2 + HIT]


def test_a_load_that_waits_does_not_hold_up_others():
    bench = missing()
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    second = bench.push(Kind.LOAD, address=0x1040, size=8, after=first)
    other = bench.push(Kind.LOAD, address=0x1080, size=8)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert [op.issued for op in (first, second, other, last)] == [1, 2, 3, 4]
    assert second.completed == first.completed + MISS
    assert at(bench.cache.log, "load") == [1, 3, 1 + MISS]


def test_other_operations_wait_for_the_load_itself():
    bench = CoreBench()
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    second = bench.push(Kind.LOAD, address=0x1080, size=8, after=first)
    third = bench.push(Kind.EXECUTE, cycles=1, after=second)
    bench.run()
    assert (second.issued, second.completed) == (2, 1 + 2 * HIT)
    assert third.issued == second.completed + 1


def test_after_something_long_complete():
    bench = CoreBench()
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.push(Kind.EXECUTE, cycles=20)
    second = bench.push(Kind.LOAD, address=0x1080, size=8, after=first)
    bench.run()
    assert second.issued == 22


@pytest.mark.parametrize("stations", [1, 2, 5])
def test_the_station_holds_so_many(stations):
    bench = missing(machine(core={"reservation_station": stations, "load_queue": 16}))
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    loads = [bench.push(Kind.LOAD, address=0x1000, size=8, after=first) for _ in range(stations + 2)]
    bench.run()
    assert [load.issued for load in loads[:stations]] == list(range(2, 2 + stations))
    # The first two that have no place: one goes to the cache with the completion itself, unless those that waited do
    assert loads[stations].issued >= first.completed
    sent = at(bench.cache.log, "load")
    assert sent[1 : 1 + stations] == [first.completed + i for i in range(stations)]


def test_the_oldest_that_is_ready_goes_first_and_before_what_issues():
    bench = missing(machine(core={"reservation_station": 4, "load_queue": 16}))
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    waiting = [bench.push(Kind.LOAD, address=0x1040 + 64 * i, size=8, after=first) for i in range(4)]
    bench.push(Kind.EXECUTE, cycles=MISS - 5)
    new = bench.push(Kind.LOAD, address=0x2000, size=8)
    bench.run()
    sent = [(entry[0], entry[3] * 64) for entry in bench.cache.log if entry[1] == "load"]
    assert sent[1:] == [(1 + MISS + i, op.address) for i, op in enumerate([*waiting, new])]


def test_a_load_that_waits_takes_the_bytes_of_the_store_before_it():
    """Stores of the same bytes, before and after it, are visible or not when it goes."""
    bench = CoreBench(hit=0, miss=(MISS, MISS), store_delay=(3, 3))
    first = bench.push(Kind.LOAD, address=0x2000, size=8)
    bench.push(Kind.STORE, address=0x1000, size=8, data=0x1111)
    second = bench.push(Kind.LOAD, address=0x1000, size=4, after=first)
    bench.push(Kind.STORE, address=0x1000, size=8, data=0x2222)
    third = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.run()
    assert (second.issued, second.result, third.result) == (3, 0x1111, 0x2222)
    assert third.completed == third.issued + HIT < first.completed
    assert second.completed == first.completed + HIT
    assert len(at(bench.cache.log, "load")) == 1


def test_a_younger_store_waits_for_the_load_in_the_station():
    bench = CoreBench(hit=0, miss=(MISS, MISS))
    bench.cache.memory[0x1000] = 7
    first = bench.push(Kind.LOAD, address=0x2000, size=8)
    second = bench.push(Kind.LOAD, address=0x1000, size=8, after=first)
    bench.push(Kind.STORE, address=0x1000, size=8, data=9)
    bench.run()
    assert second.result == 7
    assert at(bench.cache.log, "store")[0] > second.completed


@pytest.mark.parametrize("gap", range(5))
def test_forwarding_right_before_the_predecessor_completes(gap):
    """The predecessor completes 0 to 4 edges after the load goes to the station."""
    bench = CoreBench(store_delay=(60, 60))
    bench.push(Kind.STORE, address=0x1000, size=64, data=sum(i << 8 * i for i in range(64)))
    bench.push(Kind.EXECUTE, cycles=20)
    first = bench.push(Kind.LOAD, address=0x2000, size=8)
    if gap < HIT - 1:
        bench.push(Kind.EXECUTE, cycles=HIT - 1 - gap)
    second = bench.push(Kind.LOAD, address=0x1005, size=2, after=first)
    third = bench.push(Kind.LOAD, address=0x1007, size=1)
    bench.run()
    assert (second.result, third.result) == (0x0605, 7)
    assert second.issued == max(first.completed - gap, first.issued + 1)
    assert second.completed == (first.completed if gap != 1 else first.completed + 1) + HIT


def test_partial_overlap_holds_up_the_issue_of_a_load_that_waits():
    bench = CoreBench(hit=0, miss=(30, 30), store_delay=(60, 60))
    bench.push(Kind.STORE, address=0x1004, size=4, data=0x55)
    bench.push(Kind.LOAD, address=0x2000, size=8)
    second = bench.push(Kind.LOAD, address=0x2040, size=8)
    third = bench.push(Kind.LOAD, address=0x1000, size=8, after=second)
    bench.run()
    [visible] = at(bench.cache.log, "visible")
    assert third.issued == visible + 1
    assert third.result == 0x55 << 32


# Stalls


def test_stalls_are_counted_once_each():
    bench = missing(store_delay=(40, 40))
    seen = {}
    port = bench.port
    counters = {name: getattr(port, name) for name in ("window_stalls", "load_queue_stalls", "store_buffer_stalls")}
    bench.on_edge = lambda ctx, now, op: seen.update({n: ctx.get(c.value) for n, c in counters.items()})
    bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    bench.push(Kind.EXECUTE, cycles=50, uops=50)
    for _ in range(2):
        for i in range(TINY.core.load_queue + 1):
            bench.push(Kind.LOAD, address=0x1000 + 64 * i, size=8)
    for i in range(TINY.core.store_buffer + 1):
        bench.push(Kind.STORE, address=0x1000 + 64 * i, size=8)
    bench.run()
    assert seen["window_stalls"] == 1
    assert seen["load_queue_stalls"] >= 2
    assert seen["store_buffer_stalls"] == 1
