"""InterruptController: latency, priority, merging, messages out of range, quiet."""

import random

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.cpu.interrupt_controller import FIRST_VECTOR, VECTORS, InterruptController

COUNTERS = ("messages", "merged", "dropped")


class Bench:
    """Steps a controller edge by edge."""

    def __init__(self):
        self.controller = InterruptController("core0")
        m = Module()
        m.domains += ClockDomain("core0", reset_less=True)
        m.submodules.controller = self.controller
        self.simulator = Simulator(m)
        self.simulator.add_clock(1e-9, domain="core0")

    async def step(self, ctx, vector: int | None = None, acknowledge: bool = False) -> bool:
        """One edge; returns whether it was quiet."""
        ctx.set(self.controller.message.valid, vector is not None)
        ctx.set(self.controller.message.payload.vector, vector or 0)
        ctx.set(self.controller.acknowledge, acknowledge)
        assert ctx.get(self.controller.message.ready)
        quiet = bool(ctx.get(self.controller.quiet))
        await ctx.tick("core0")
        return quiet

    def shown(self, ctx) -> int | None:
        return ctx.get(self.controller.vector) if ctx.get(self.controller.pending) else None

    def counts(self, ctx) -> dict[str, int]:
        return {name: ctx.get(getattr(self.controller, name).value) for name in COUNTERS}

    def run(self, testbench) -> None:
        self.simulator.add_testbench(testbench)
        self.simulator.run()


def test_pending_one_cycle_after_the_message_until_acknowledged():
    bench = Bench()

    async def testbench(ctx):
        assert await bench.step(ctx)
        assert bench.shown(ctx) is None
        assert not await bench.step(ctx, 0x31)
        for _ in range(3):
            assert bench.shown(ctx) == 0x31
            assert await bench.step(ctx)
        assert not await bench.step(ctx, acknowledge=True)
        assert bench.shown(ctx) is None

    bench.run(testbench)


def test_higher_vector_first():
    bench = Bench()

    async def testbench(ctx):
        for vector in (0x22, 0x3F, 0x20, 0x2A):
            await bench.step(ctx, vector)
        seen = []
        while (vector := bench.shown(ctx)) is not None:
            seen.append(vector)
            await bench.step(ctx, acknowledge=True)
        assert seen == [0x3F, 0x2A, 0x22, 0x20]

    bench.run(testbench)


def test_message_at_the_edge_that_acknowledges_its_vector():
    bench = Bench()

    async def testbench(ctx):
        await bench.step(ctx, 0x25)
        await bench.step(ctx, 0x25, acknowledge=True)
        assert bench.shown(ctx) == 0x25
        assert bench.counts(ctx) == {"messages": 2, "merged": 0, "dropped": 0}

    bench.run(testbench)


@pytest.mark.parametrize("vector", [0, FIRST_VECTOR - 1, FIRST_VECTOR + VECTORS, 0xFF])
def test_unknown_vectors_are_counted_and_dropped(vector):
    bench = Bench()

    async def testbench(ctx):
        await bench.step(ctx, vector)
        assert bench.shown(ctx) is None
        assert bench.counts(ctx) == {"messages": 1, "merged": 0, "dropped": 1}

    bench.run(testbench)


def test_random_against_a_set():
    bench = Bench()
    draw = random.Random(1)

    async def testbench(ctx):
        pending: set[int] = set()
        expected = dict.fromkeys(COUNTERS, 0)
        for _ in range(1500):
            assert bench.shown(ctx) == max(pending, default=None)
            message = draw.randrange(0x1C, 0x44) if draw.random() < 0.4 else None
            acknowledge = bool(pending) and draw.random() < 0.4
            if acknowledge:
                pending.remove(max(pending))
            if message is not None:
                known = FIRST_VECTOR <= message < FIRST_VECTOR + VECTORS
                expected["messages"] += 1
                expected["merged"] += message in pending
                expected["dropped"] += not known
                pending |= {message} if known else set()
            quiet = await bench.step(ctx, message, acknowledge)
            assert quiet == (message is None and not acknowledge)
        assert bench.counts(ctx) == expected

    bench.run(testbench)
