"""DeadlineTimer: interrupts at its deadline and not one edge earlier, once; quiet until then."""

import random

from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.bus.core import TIMER_VECTOR
from hw.bus.core import OperationKind as Kind
from hw.cpu.deadline_timer import DeadlineTimer
from tests.hw.cpu.host_driver import CoreBench, machine

DOMAIN = "core0"


def fired(writes: dict[int, int], edges: int) -> tuple[list[int], list[int]]:
    """Edges at which a timer interrupts, and those that were not quiet, given what is written at which edge."""
    timer = DeadlineTimer(DOMAIN)
    m = Module()
    m.domains += ClockDomain(DOMAIN, reset_less=True)
    m.submodules.timer = timer
    simulator = Simulator(m)
    simulator.add_clock(1e-9, domain=DOMAIN)
    messages, busy = [], []

    async def testbench(ctx):
        for now in range(edges):
            ctx.set(timer.now, now)
            ctx.set(timer.write, now in writes)
            ctx.set(timer.value, writes.get(now, 0))
            if ctx.get(timer.message.valid):
                assert ctx.get(timer.message.payload.vector) == TIMER_VECTOR
                messages.append(now)
            if not ctx.get(timer.quiet):
                busy.append(now)
            await ctx.tick(DOMAIN)

    simulator.add_testbench(testbench)
    simulator.run()
    return messages, busy


def test_interrupts_once_at_the_deadline():
    assert fired({3: 10}, 20) == ([10], [3, 10])


def test_a_deadline_that_has_passed_interrupts_at_the_next_edge():
    assert fired({5: 2}, 12) == ([6], [5, 6])


def test_zero_disarms():
    assert fired({3: 10, 9: 0}, 20) == ([], [3, 9])


def test_a_deadline_written_at_the_edge_of_an_interrupt_counts():
    assert fired({3: 10, 10: 15}, 20) == ([10, 15], [3, 10, 15])


def test_random_writes():
    rng = random.Random(7)
    writes = {now: rng.choice((0, now + rng.randrange(20))) for now in range(1, 400) if rng.random() < 0.1}
    expected, deadline = [], 0
    for now in range(420):
        if deadline and now >= deadline:
            expected.append(now)
            deadline = 0
        deadline = writes.get(now, deadline)
    assert fired(writes, 420)[0] == expected


def test_a_core_writes_its_deadline_when_the_operation_issues():
    bench = CoreBench()
    written = []
    write = bench.push(Kind.TSC_DEADLINE, address=0x1234_5678_9ABC)
    bench.on_edge = lambda ctx, now, op: (
        written.append((now, ctx.get(bench.port.deadline))) if ctx.get(bench.port.deadline_write) else None
    )
    bench.run()
    assert written == [(write.issued, 0x1234_5678_9ABC)]


def test_rdtsc_gives_the_edge_at_which_it_completes():
    bench = CoreBench()
    first, second = bench.push(Kind.RDTSC, size=8), bench.push(Kind.RDTSC, size=8)
    bench.run()
    assert (first.issued, first.completed, first.result) == (1, 2, 2)
    assert (second.issued, second.completed, second.result) == (3, 4, 4)


def test_rdtsc_waits_for_loads():
    bench = CoreBench(machine(), hit=0, miss=(40, 40))
    load = bench.push(Kind.LOAD, address=0x1040, size=8)
    read = bench.push(Kind.RDTSC, size=8)
    bench.run()
    assert load.completed < read.completed == read.result
