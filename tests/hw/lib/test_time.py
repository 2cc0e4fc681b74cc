"""Time: steps of ``now``, skipped edges, deadlines."""

import random

import pytest
from amaranth.hdl import Cat, Module, Signal
from amaranth.sim import Simulator

from hw.lib.time import NOW_WIDTH, Now, Timer, clock_domains, time_domain

STEP = 1e-9  # seconds


class Bench:
    """``now`` of domain uncore, with both of its clocks driven by hand."""

    def __init__(self):
        self.m = Module()
        self.real, self.time = clock_domains("uncore")
        self.m.domains += [self.real, self.time]
        self.m.submodules.now = self.now = Now("uncore")

    async def pulse(self, ctx, *clocks):
        """All ``clocks`` rise together."""
        lines = Cat(clock.clk for clock in clocks)
        ctx.set(lines, -1)
        await ctx.delay(STEP)
        ctx.set(lines, 0)
        await ctx.delay(STEP)

    async def edge(self, ctx, skipped=0):
        """An executed edge, after ``skipped`` ones that are not."""
        if skipped:
            ctx.set(self.now.advance, skipped - 1)
            await self.pulse(ctx, self.time)
            ctx.set(self.now.advance, 0)
        await self.pulse(ctx, self.real, self.time)

    def run(self, bench):
        sim = Simulator(self.m)
        sim.add_testbench(bench)
        sim.run()


def test_domains():
    """Neither domain has a reset; the time domain is named after the other."""
    names = [domain.name for domain in clock_domains("core", "nic")]
    assert names == ["core", "core_time", "nic", "nic_time"]
    assert time_domain("nic") == "nic_time"
    assert all(domain.rst is None for domain in clock_domains("core", "nic"))


def test_steps():
    """0 before the first edge, then one more at every edge of the time clock, none at one of the domain alone."""
    bench = Bench()
    edges = Signal(8)
    bench.m.d.uncore += edges.eq(edges + 1)

    async def run(ctx):
        for number in range(20):
            assert ctx.get(bench.now.now) == ctx.get(edges) == number
            await bench.edge(ctx)
        await bench.pulse(ctx, bench.real)
        assert (ctx.get(bench.now.now), ctx.get(edges)) == (20, 21)

    bench.run(run)


def test_advance():
    """``now`` counts skipped edges, however many, and nothing else sees them."""
    bench, rng = Bench(), random.Random(1)
    executed = Signal(16)
    bench.m.d.uncore += executed.eq(executed + 1)

    async def run(ctx):
        now = 0
        for done in range(100):
            assert ctx.get(executed) == done
            skipped = rng.choice([0, 1, 2, rng.randrange(1 << 40)])
            await bench.edge(ctx, skipped)
            now += skipped + 1
            assert ctx.get(bench.now.now) == now

    bench.run(run)
    assert len(bench.now.now) == len(bench.now.advance) == NOW_WIDTH


@pytest.mark.parametrize("skipping", [False, True])
def test_timer(skipping):
    """What waits for deadlines happens at the same ``now`` whether the edges before are executed or skipped."""
    bench, rng = Bench(), random.Random(2)
    waits = [rng.randint(1, 40) for _ in range(15)]
    timer, start, wait, fired = Timer("uncore"), Signal(), Signal(NOW_WIDTH), Signal(8)
    now, m = bench.now.now, bench.m
    with m.If(start):
        m.d.uncore += [timer.armed.eq(1), timer.deadline.eq(now + wait)]
    with m.If(timer.armed & (now == timer.deadline)):
        m.d.uncore += [timer.armed.eq(0), fired.eq(fired + 1)]

    async def run(ctx):
        executed, at = 0, 0
        for number, cycles in enumerate(waits):
            ctx.set(start, 1)
            ctx.set(wait, cycles)
            await bench.edge(ctx)
            ctx.set(start, 0)
            assert ctx.get(timer.armed) and ctx.get(timer.deadline) == at + cycles
            while ctx.get(timer.armed):
                assert ctx.get(fired) == number
                skipped = ctx.get(timer.deadline) - ctx.get(now) if skipping else 0
                await bench.edge(ctx, skipped)
                executed += 1
            assert ctx.get(fired) == number + 1
            assert ctx.get(now) == at + cycles + 1
            at += cycles + 1
        assert executed == (len(waits) if skipping else sum(waits))

    bench.run(run)


def test_timer_attributes():
    timer = Timer("core")
    assert timer.domain == "core" and not timer.background
    assert (len(timer.armed), len(timer.deadline)) == (1, NOW_WIDTH)
    assert Timer("uncore", background=True).background
