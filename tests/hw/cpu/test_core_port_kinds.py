"""CorePort: atomics, fences, polls, writes around the caches, translation, text, sleep, to the cycle."""

import pytest

from hw.bus.core import AtomicFunction
from hw.bus.core import OperationKind as Kind
from hw.config import load_machine
from hw.cpu.interrupt_unit import sleep_exit_cycles
from tests.hw.cpu.host_driver import TINY, CoreBench, Op, machine
from tests.hw.cpu.neighbours import DeviceDouble, atomic_result

HIT = TINY.l1.latency
ATOMIC = TINY.core.atomic_latency
ALL = (1 << 64) - 1
VECTOR = 0x21


def at(log, what):
    return [entry[0] for entry in log if entry[1] == what]


def paging(**options):
    """A bench in which every page must be looked up first."""
    bench = CoreBench(**options)
    bench.mmu.known = set()
    return bench


# Atomics


@pytest.mark.parametrize("function", AtomicFunction)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("same", [False, True])
def test_atomic(function, size, same):
    old, operand = 0x8F9EADBCCBDAE9F8, 0x1122334455667788
    compare = old if same else old ^ 1
    bench = CoreBench()
    bench.cache.memory.update({0x1008 + i: old >> 8 * i & 0xFF for i in range(8)})
    atomic = bench.push(
        Kind.ATOMIC, address=0x1008, size=size, data=operand | compare << 64, argument=function.value, cycles=7
    )
    bench.run()
    [offer] = [entry for entry in bench.cache.log if entry[1] == "atomic"]
    assert offer == (atomic.issued, "atomic", 0, 0x40, 8, size)
    mask = (1 << 8 * size) - 1
    assert atomic.result == old & mask
    new = atomic_result(function, old & mask, operand, compare, size)
    assert bench.cache.read(0x1008, size) == new
    assert bench.host.visible == [atomic.completed - 1]


def test_atomic_holds_issue_for_its_latency():
    bench = CoreBench()
    atomic, after = bench.push(Kind.ATOMIC, address=0x1000, size=8), bench.push(Kind.CLI)
    bench.run()
    assert (atomic.issued, atomic.completed) == (1, 1 + HIT)
    assert after.issued == 1 + ATOMIC


def test_atomic_holds_issue_until_it_completes():
    bench = CoreBench(hit=0, miss=(50, 50))
    atomic, after = bench.push(Kind.ATOMIC, address=0x1000, size=8), bench.push(Kind.CLI)
    bench.run()
    assert atomic.completed == 1 + 50 + 1
    assert after.issued == atomic.completed + 1


def test_atomic_waits_for_loads_stores_and_writes_around_the_caches():
    for before, what in ((Kind.LOAD, "completed"), (Kind.STORE, "visible"), (Kind.STORE_NT, "done")):
        bench = CoreBench(hit=0, miss=(30, 30), store_delay=(30, 30), around_delay=(30, 30))
        op = bench.push(before, address=0x1000, size=8, data=3)
        atomic = bench.push(Kind.ATOMIC, address=0x1000, size=8)
        bench.run()
        log = bench.around.log if what == "done" else bench.cache.log
        end = op.completed if what == "completed" else at(log, what)[0]
        assert atomic.issued == end + 1 > 30


def test_atomic_is_not_interrupted():
    bench = CoreBench()
    bench.interrupts[2] = VECTOR
    atomic, after = bench.push(Kind.ATOMIC, address=0x1000, size=8), bench.push(Kind.CLI)
    bench.run()
    [interruption] = bench.host.interruptions
    assert (interruption.at, interruption.squashed) == (atomic.issued + ATOMIC, after)


def test_store_after_atomic():
    """The atomic's ``visible`` is not the store's."""
    bench = CoreBench()
    bench.push(Kind.ATOMIC, address=0x1000, size=8, data=5)
    bench.push(Kind.STORE, address=0x1000, size=1, data=7)
    load = bench.push(Kind.LOAD, address=0x1000, size=1)
    bench.run()
    assert load.result == 7
    assert len(bench.host.visible) == 2


# Fences


@pytest.mark.parametrize("kind", [Kind.FENCE, Kind.LFENCE, Kind.SFENCE])
def test_fence_with_nothing_to_wait_for(kind):
    bench = CoreBench()
    fence, after = bench.push(kind), bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert (fence.issued, fence.completed, after.issued) == (1, 2, 3)


@pytest.mark.parametrize("load,store,around", [(40, 10, 70), (10, 70, 40), (70, 40, 10)])
@pytest.mark.parametrize("kind", [Kind.FENCE, Kind.LFENCE, Kind.SFENCE])
def test_what_each_fence_waits_for(kind, load, store, around):
    bench = CoreBench(hit=0, miss=(load, load), store_delay=(store, store), around_delay=(around, around))
    bench.push(Kind.STORE_NT, address=0x1080, size=8)
    bench.push(Kind.STORE, address=0x1000, size=8)
    loaded = bench.push(Kind.LOAD, address=0x1040, size=8)
    fence, after = bench.push(kind), bench.push(Kind.CLI)
    bench.run()
    assert fence.issued == 4
    stores = max([*at(bench.cache.log, "visible"), *at(bench.around.log, "done")], default=0)
    loads = loaded.completed
    end = {Kind.FENCE: max(loads, stores), Kind.LFENCE: loads, Kind.SFENCE: stores}[kind]
    assert fence.completed in (end + 1, end + 2)  # it waits for a gap: other completions go first
    assert after.issued == fence.completed + 1


# Around the caches


def test_a_full_line_leaves_at_once():
    bench = CoreBench()
    stores = [bench.push(Kind.STORE_NT, address=0x1000 + 16 * i, size=16, data=i + 1) for i in range(4)]
    bench.push(Kind.EXECUTE, cycles=50)
    bench.push(Kind.CLI)
    bench.run()
    assert [store.issued for store in stores] == [1, 2, 3, 4]
    line = sum(i + 1 << 128 * i for i in range(4))
    assert bench.around.log == [(6, "write", 0x40, ALL, line), (26, "done", 0x40)]


def test_part_of_a_line_stays():
    bench = CoreBench()
    bench.push(Kind.STORE_NT, address=0x1000, size=16, data=1)
    bench.push(Kind.EXECUTE, cycles=100)
    bench.push(Kind.CLI)
    bench.run()
    assert not bench.around.log


@pytest.mark.parametrize(
    "kind", [Kind.FENCE, Kind.SFENCE, Kind.ATOMIC, Kind.MMIO_READ, Kind.MMIO_WRITE, Kind.HALT, Kind.LFENCE, Kind.CLI]
)
def test_what_sends_part_of_a_line(kind):
    bench = CoreBench()
    bench.push(Kind.STORE_NT, address=0x1004, size=2, data=0x1234)
    op = bench.push(kind, address=0xF0000000 if kind in (Kind.MMIO_READ, Kind.MMIO_WRITE) else 0x1000, size=8)
    bench.run(cycles=100, drain=False)
    if kind in (Kind.LFENCE, Kind.CLI):
        assert not bench.around.log
        return
    [written, done] = bench.around.log
    assert written == (4, "write", 0x40, 0b11 << 4, 0x1234 << 32)
    first = {Kind.HALT: op.issued, Kind.FENCE: op.completed, Kind.SFENCE: op.completed}.get(kind, op.issued)
    assert first == (2 if kind == Kind.HALT else done[0] + 1)


def test_a_line_makes_room_for_another():
    bench = CoreBench()
    stores = [bench.push(Kind.STORE_NT, address=0x1000 + 64 * i, size=8, data=i + 1) for i in range(4)]
    bench.run()
    assert [entry[2] for entry in bench.around.log if entry[1] == "write"] == [0x40, 0x41]
    done = at(bench.around.log, "done")
    assert [store.issued for store in stores] == [1, 2, done[0] + 1, done[1] + 1]


@pytest.mark.parametrize("kind", [Kind.LOAD, Kind.STORE, Kind.POLL])
def test_who_wants_a_line_that_is_combined_waits(kind):
    bench = CoreBench()
    bench.push(Kind.STORE_NT, address=0x1000, size=8, data=5)
    op = bench.push(kind, address=0x1008, size=8, cycles=1, argument=1)
    bench.run()
    assert op.issued == at(bench.around.log, "done")[0] + 1


def test_around_the_caches_waits_for_a_store_of_the_line():
    for kind in (Kind.STORE_NT, Kind.CLFLUSH):
        bench = CoreBench(store_delay=(30, 30))
        bench.push(Kind.STORE, address=0x1000, size=8, data=5)
        op = bench.push(kind, address=0x1020, size=8, data=7)
        bench.push(Kind.FENCE)
        bench.run()
        assert op.issued == at(bench.cache.log, "visible")[0] + 1


@pytest.mark.parametrize("younger", [False, True])
def test_around_the_caches_waits_for_earlier_loads(younger):
    """A line that is full stays until the loads before its last store have gone, whatever follows it."""
    bench = CoreBench(hit=0, miss=(50, 50))
    load = bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    bench.push(Kind.STORE_NT, address=0x1000, size=64, data=5, uops=1)
    if younger:
        bench.push(Kind.LOAD, address=0x2000, size=8, uops=1)
        bench.push(Kind.EXECUTE, cycles=30, uops=1)
        bench.push(Kind.LOAD, address=0x2040, size=8, uops=1)
    else:
        bench.push(Kind.SFENCE)
    bench.push(Kind.EXECUTE, cycles=100)
    bench.push(Kind.CLI)
    bench.run()
    assert load.result == 0
    # Complete at t; gone, or known to be the last, at t + 1; then retired; then read; then offered
    assert at(bench.around.log, "write") == [load.completed + (4 if younger else 3)]


def test_flush():
    bench = CoreBench()
    flush = bench.push(Kind.CLFLUSH, address=0x1008)
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.run()
    assert flush.issued == 1
    assert bench.around.log == [(3, "write", 0x40, 0, 0), (23, "done", 0x40)]
    assert load.issued == 24


def test_flush_of_a_line_that_is_combined():
    bench = CoreBench()
    bench.push(Kind.STORE_NT, address=0x1000, size=1, data=9)
    flush = bench.push(Kind.CLFLUSH, address=0x1000)
    bench.push(Kind.SFENCE)
    bench.run()
    assert [entry[1:4] for entry in bench.around.log if entry[1] == "write"] == [("write", 0x40, 1), ("write", 0x40, 0)]
    assert flush.issued == at(bench.around.log, "done")[0] + 1


# Polls


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("interval", [1, 3, 10, 40])
@pytest.mark.parametrize("change", [2, 30, 31, 39, 40, 41, 42, 77])
def test_poll_sees_a_change_with_its_next_look(interval, change, skip):
    bench = CoreBench(skip=skip)
    bench.cache.writes[change] = (0x1000, 9)
    poll = bench.push(Kind.POLL, address=0x1000, size=8, cycles=500, argument=interval)
    after = bench.push(Kind.CLI)
    bench.run()
    looks = at(bench.cache.log, "load")
    assert poll.issued == looks[0] == 1
    # The look that is first after the change sees it, unless the one in flight did
    look = 1 + -(-(change + 1 - 1) // interval) * interval
    if len(looks) == 1:
        assert change <= 1 + HIT and poll.completed == 1 + HIT
    else:
        assert looks[1:] == [max(look, 1 + -(-(HIT + 1) // interval) * interval) if change < 1 + HIT else look]
        assert poll.completed == looks[1] + HIT
    assert poll.result == 9
    assert after.issued == poll.completed + 1
    if skip:
        assert bench.skipped >= change - 15


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("cycles", [1, 3, 4, 5, 6, 100])
def test_poll_gives_up(cycles, skip):
    bench = CoreBench(skip=skip)
    bench.cache.memory[0x1004] = 3
    poll = bench.push(Kind.POLL, address=0x1004, size=2, data=0x77770003, cycles=cycles, argument=10)
    after = bench.push(Kind.CLI)
    bench.run()
    assert poll.completed == 1 + max(cycles, HIT)
    assert (poll.result, after.issued) == (3, poll.completed + 1)
    assert at(bench.cache.log, "load") == [1]


def test_poll_that_differs_at_once():
    bench = CoreBench()
    bench.cache.memory[0x1004] = 4
    poll = bench.push(Kind.POLL, address=0x1004, size=1, data=3, cycles=100, argument=10)
    bench.run()
    assert (poll.completed, poll.result) == (1 + HIT, 4)


def test_poll_looks_again_when_the_line_leaves_and_nothing_has_changed():
    bench = CoreBench()
    bench.cache.losses.update({20, 21, 55})
    poll = bench.push(Kind.POLL, address=0x1000, size=8, cycles=100, argument=10)
    bench.run()
    assert at(bench.cache.log, "load") == [1, 21, 31, 61]
    assert (poll.completed, poll.result) == (101, 0)


def test_poll_misses_no_change_while_a_look_is_in_flight():
    """It is read when accepted, and old when answered."""
    for seed in range(20):
        bench = CoreBench(seed=seed, hit=0, miss=(30, 30))
        bench.cache.writes[10] = (0x1000, 9)
        poll = bench.push(Kind.POLL, address=0x1000, size=8, cycles=500, argument=7)
        bench.run()
        assert poll.result == 9
        assert poll.completed in (31, 36 + 30)


def test_poll_makes_no_look_when_its_time_is_over():
    bench = CoreBench()
    bench.cache.writes[95] = (0x1000, 9)
    poll = bench.push(Kind.POLL, address=0x1000, size=8, cycles=100, argument=10)
    bench.run()
    assert at(bench.cache.log, "load") == [1]
    assert (poll.completed, poll.result) == (101, 0)


def test_poll_waits_for_a_store_of_these_bytes():
    bench = CoreBench(store_delay=(30, 30))
    bench.push(Kind.STORE, address=0x1000, size=8, data=5)
    poll = bench.push(Kind.POLL, address=0x1000, size=8, cycles=100, argument=10)
    bench.run()
    assert poll.issued == at(bench.cache.log, "visible")[0] + 1
    assert poll.result == 5


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("when", [3, 4, 5, 6, 7, 50, 100, 101, 102])
def test_interrupt_cuts_poll_short_but_not_a_look(when, skip):
    bench = CoreBench(skip=skip)
    bench.interrupts[when - 1] = VECTOR
    poll = bench.push(Kind.POLL, address=0x1000, size=8, cycles=100, argument=10)
    last = bench.push(Kind.CLI)
    bench.run()
    [interruption] = bench.host.interruptions
    # The answer at 1 + HIT; the end at 101
    assert interruption.at == (2 + HIT if when <= 1 + HIT else 102 if when >= 101 else when)
    assert interruption.remaining == max(101 - interruption.at, 0)
    assert interruption.squashed is last
    if interruption.remaining:
        assert poll.completed < 0 and poll.rest is not None
        assert poll.rest.completed == poll.rest.issued + max(interruption.remaining, HIT)


def test_poll_beside_loads_in_flight():
    """Answers to others are not its own, and its own wait in no queue."""
    bench = CoreBench(hit=0, miss=(60, 60))
    load = bench.push(Kind.LOAD, address=0x2000, size=8)
    waiting = bench.push(Kind.LOAD, address=0x2040, size=8, after=load)
    bench.cache.memory.update({0x2000: 1, 0x2040: 2})
    poll = bench.push(Kind.POLL, address=0x1000, size=8, cycles=200, argument=7)
    bench.cache.writes[100] = (0x1000, 9)
    bench.run()
    assert (load.result, waiting.result, poll.result) == (1, 2, 9)
    assert waiting.completed == load.completed + 60


# Translation


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "kind", [Kind.LOAD, Kind.STORE, Kind.PREFETCH, Kind.ATOMIC, Kind.POLL, Kind.STORE_NT, Kind.CLFLUSH]
)
def test_a_page_is_looked_up_before_its_line_is_used(kind, skip):
    bench = paging(mmu_walk=(25, 25), skip=skip)
    virtual = 0x5A_0012_3048
    op = bench.push(kind, address=virtual | 0x80 << 40, size=8, cycles=10, argument=3)
    bench.push(Kind.FENCE)
    bench.run()
    assert bench.mmu.log == [(1, "walk", (0x80 << 40 | virtual) >> 12)]
    assert op.issued == 26
    lines = [
        entry[3 if entry[1] in ("load", "atomic") else 2]
        for entry in (*bench.cache.log, *bench.around.log)
        if entry[1] in ("load", "atomic", "store", "write")
    ]
    assert set(lines) == {virtual >> 6}


def test_a_dependent_load_is_looked_up_when_it_goes():
    bench = paging(hit=0, miss=(40, 40), mmu_walk=(25, 25))
    bench.mmu.known.add(1)
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    second = bench.push(Kind.LOAD, address=0x2000, size=8, after=first)
    third = bench.push(Kind.LOAD, address=0x1040, size=8)
    fourth = bench.push(Kind.LOAD, address=0x1080, size=8, after=second)
    bench.run()
    assert (first.issued, second.issued, third.issued, fourth.issued) == (1, 2, 3, 4)
    assert bench.mmu.log == [(first.completed, "walk", 2)]
    assert second.completed == first.completed + 25 + 40
    assert fourth.completed == second.completed + 40


def test_what_issues_gives_way_to_a_walk_for_what_has_issued():
    bench = paging(hit=0, miss=(10, 10), mmu_walk=(25, 25))
    bench.mmu.known.add(1)
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    second = bench.push(Kind.LOAD, address=0x2000, size=8, after=first)
    bench.push(Kind.EXECUTE, cycles=15)
    third = bench.push(Kind.LOAD, address=0x1040, size=8)
    bench.run()
    assert third.issued == first.completed + 25 + 1 < second.completed


def test_prefetch_of_a_page_that_is_not_present_is_dropped():
    bench = paging(mmu_walk=(25, 25))
    bench.mmu.absent.add(1)
    prefetch, after = bench.push(Kind.PREFETCH, address=0x1000, size=8), bench.push(Kind.CLI)
    bench.run()
    assert (prefetch.issued, after.issued) == (26, 27)
    assert not bench.cache.log and not bench.host.faults


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_a_page_that_is_not_present_stops_the_core(waits, skip, outside):
    """Or one that is not memory, which is counted."""
    bench, counted = paging(mmu_walk=(25, 25), skip=skip), []
    bench.on_edge = lambda ctx, now, op: counted.append(ctx.get(bench.port.outside.value))
    bench.mmu.absent.add(2)
    bench.mmu.outside |= {2} if outside else set()
    bench.mmu.known.add(1)
    bench.interrupts[60] = VECTOR
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    fault = bench.push(Kind.LOAD, address=0x2000, size=8, after=first if waits else None)
    bench.push(Kind.CLI)
    bench.run(cycles=200, drain=False)
    asked = first.completed if waits else 2
    assert bench.host.faults == [(asked + 25, fault.id)]
    assert (fault.issued >= 0) == waits
    assert counted[-1] == outside
    assert not bench.host.interruptions
    assert first.completed == 1 + HIT


def test_root_and_forget_wait_for_loads_and_stores():
    bench = CoreBench(hit=0, miss=(40, 40), store_delay=(50, 50))
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    root = bench.push(Kind.WRITE_CR3, address=0x12_3456_7000)
    bench.push(Kind.STORE, address=0x3000, size=8)
    forget = bench.push(Kind.INVLPG, address=0x7F12_3456_7ABC)
    bench.run()
    assert root.issued == load.completed + 1
    assert forget.issued == at(bench.cache.log, "visible")[0] + 1
    walk = bench.mmu.log[1]
    assert bench.mmu.log == [(root.issued, "root", 0x12_3456_7000), walk, (forget.issued, "forget", 0x7F1234567)]
    assert walk[1:] == ("walk", 3)


# Text


def test_text_that_hits_costs_nothing():
    bench = CoreBench()
    execute = bench.push(Kind.EXECUTE, cycles=20, argument=19, address=0x12345678)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert bench.text.log == [(1, "start", 0x12345678 >> 6, 19)]
    assert last.issued == execute.issued + 20


def test_more_lines_than_cycles_cost_a_cycle_each():
    bench = CoreBench()
    execute = bench.push(Kind.EXECUTE, cycles=5, argument=19)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert last.issued == execute.issued + 20


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("cycles,lines", [(100, 1), (100, 4), (1, 1), (2, 1), (3, 1)])
def test_computing_stands_still_while_a_line_is_missing(cycles, lines, skip):
    bench = CoreBench(text_miss=1.0, text_stall=(30, 30), skip=skip)
    execute = bench.push(Kind.EXECUTE, cycles=cycles, argument=lines)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    # Of one cycle nothing is left to stand still; it waits for its text
    assert last.issued == execute.issued + (cycles + 30 * lines if cycles > 1 else 1 + 30 + 1)
    if skip:
        assert bench.skipped > 20


@pytest.mark.parametrize("when", range(2, 40, 3))
def test_an_interrupt_forgets_the_text(when):
    bench = CoreBench(text_miss=1.0, text_stall=(10, 10))
    execute = bench.push(Kind.EXECUTE, cycles=20, argument=2)
    bench.interrupts[when - 1] = VECTOR
    bench.run()
    [interruption] = bench.host.interruptions
    # It stands still at 2 to 11 and 13 to 22
    stalled = sum(edge < when for edge in (*range(2, 12), *range(13, 23)))
    assert interruption.remaining == 20 - (when - execute.issued - stalled)
    assert bench.text.log[1:2] == ([(when, "cancel")] if when <= 23 else [(when + 3, "start", 0, 2)])


def test_text_and_window_together():
    """The line is there at 32, the window has room from 101 on."""
    bench = CoreBench(hit=0, miss=(100, 100), text_miss=1.0, text_stall=(30, 30))
    bench.push(Kind.LOAD, address=0x1000, size=8, uops=1)
    execute = bench.push(Kind.EXECUTE, cycles=62, uops=62, argument=1)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert execute.issued == 2
    assert last.issued == 102 + 62 - 31


# Interrupts and sleep


@pytest.mark.parametrize("entry,leave", [(1, 1), (6, 4), (90, 60)])
def test_entry_and_return_take_time(entry, leave):
    bench = CoreBench(machine(core={"interrupt_entry": entry, "interrupt_return": leave}))
    handler = [Op(Kind.EXECUTE, cycles=1), Op(Kind.IRET)]
    bench.host.handler = lambda interruption: handler
    bench.interrupts[9] = VECTOR
    bench.push(Kind.EXECUTE, cycles=20)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert handler[0].issued == 10 + max(entry, 2)  # the handler is handed over at 11
    assert handler[1].issued == handler[0].issued + 1
    rest = bench.host.interruptions[0].remaining
    assert rest == 11
    assert last.issued == handler[1].issued + leave + rest


def test_no_interrupt_is_taken_during_entry_and_return():
    bench = CoreBench(machine(core={"interrupt_entry": 6, "interrupt_return": 14}))
    bench.host.handler = lambda interruption: (
        [Op(Kind.STI), Op(Kind.IRET)] if interruption.vector == 0x21 else [Op(Kind.IRET)]
    )
    bench.interrupts.update({9: 0x21, 15: 0x31, 30: 0x3F})
    bench.push(Kind.EXECUTE, cycles=100)
    bench.run()
    # Taken at 10; STI at 16, then 0x31 before the IRET; its own IRET at 17 + 6, 14 more before anything else
    assert [(i.at, i.vector) for i in bench.host.interruptions] == [(10, 0x21), (17, 0x31), (17 + 6 + 14, 0x3F)]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("state,cycles", [(0, 0), (1, 20), (2, 333), (9, 333)])
def test_sleep_states_take_time_to_leave(state, cycles, skip):
    bench = CoreBench(machine(core={"sleep_exit_ns": (0.0, 20.0, 332.5)}), skip=skip)
    bench.push(Kind.HALT, argument=state)
    bench.interrupts[49] = VECTOR
    bench.run()
    assert [i.at for i in bench.host.interruptions] == [50 + cycles]


def test_a_halt_that_meets_an_interrupt_does_not_fall_asleep():
    bench = CoreBench(machine(core={"sleep_exit_ns": (0.0, 20.0)}))
    bench.push(Kind.EXECUTE, cycles=9)
    halt = bench.push(Kind.HALT, argument=1)
    second = bench.push(Kind.HALT, argument=1)
    bench.interrupts.update({9: VECTOR, 60: VECTOR})
    bench.run()
    assert halt.issued == 10
    assert [i.at for i in bench.host.interruptions] == [10, 61 + 20]
    assert second.issued < 20


def test_sleep_exit_in_cycles_of_the_core():
    config = load_machine("teaching", ["clocks.core=2999.999", "core.sleep_exit_ns=[0.0, 0.1, 2000.0]"])
    assert sleep_exit_cycles(config) == [0, 1, 6000]
    assert sleep_exit_cycles(load_machine("teaching"))[1] == 6000


# Quiet, observers


@pytest.mark.parametrize(
    "kind,options",
    [
        (Kind.POLL, {}),
        (Kind.ATOMIC, {"hit": 0, "miss": (100, 100)}),
        (Kind.STORE_NT, {"around_delay": (100, 100)}),
        (Kind.CLFLUSH, {"around_delay": (100, 100)}),
        (Kind.EXECUTE, {"text_miss": 1.0, "text_stall": (90, 90)}),
    ],
)
def test_waiting_is_quiet(kind, options):
    bench = CoreBench(**options)
    bench.push(kind, address=0x1000, size=8, cycles=100, argument=1)
    bench.push(Kind.FENCE)
    bench.run()
    assert len(bench.quiet) >= 90


def test_waiting_for_a_walk_and_in_the_station_is_quiet():
    bench = paging(hit=0, miss=(50, 50), mmu_walk=(50, 50))
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.push(Kind.LOAD, address=0x2000, size=8, after=first)
    bench.run()
    assert len(bench.quiet) >= 185


def test_counters():
    bench = CoreBench(store_delay=(20, 20))
    sequence = [
        (Kind.LOAD, "loads", 3),
        (Kind.STORE, "stores", 1),
        (Kind.PREFETCH, "prefetches", 1),
        (Kind.MMIO_READ, "mmio_reads", 1),
        (Kind.MMIO_WRITE, "mmio_writes", 1),
        (Kind.FENCE, "fences", 3),
        (Kind.ATOMIC, "atomics", 1),
        (Kind.POLL, "polls", 1),
        (Kind.STORE_NT, "nontemporal_stores", 1),
        (Kind.CLFLUSH, "line_flushes", 1),
        (Kind.EXECUTE, "executes", 1),
    ]
    for kind, _, _ in sequence:
        bench.push(kind, address=0x1000, size=8, cycles=2, argument=1)
    bench.push(Kind.STORE, address=0x1000, size=8)
    first = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.push(Kind.LOAD, address=0x2000, size=8, after=first)
    for kind in (Kind.LFENCE, Kind.SFENCE, Kind.HALT):
        bench.push(kind)
    bench.interrupts[300] = VECTOR
    port, seen = bench.port, {}
    counters = {name: getattr(port.issued, name) for _, name, _ in sequence} | {"halts": port.issued.halts}
    counters |= {name: getattr(port, name) for name in ("forwarded_loads", "dependent_loads", "interrupts")}
    bench.on_edge = lambda ctx, now, op: seen.update({name: ctx.get(c.value) for name, c in counters.items()})
    bench.run()
    expected = {name: count for _, name, count in sequence} | {"stores": 2, "halts": 1}
    assert seen == expected | {"forwarded_loads": 1, "dependent_loads": 1, "interrupts": 1}


def test_mmio_value():
    bench = CoreBench()
    read = bench.push(Kind.MMIO_READ, address=0xF0000008, size=4)
    bench.run()
    assert read.result == DeviceDouble.value(0xF0000008) % 2**32
