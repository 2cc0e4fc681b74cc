"""Statistics registers: what is counted, and that reading clears without losing anything."""

import random

from hw.nic.registers import REG
from hw.nic.statistics import OctetStatistic, Statistic
from tests.hw.simulate import simulate


def access(ctx, bus, offset=None, *, write=False, table=False):
    """Put a read (or write) of ``offset`` on the bus, or nothing."""
    ctx.set(bus.read, offset is not None and not write)
    ctx.set(bus.write, offset is not None and write)
    ctx.set(bus.table, table)
    ctx.set(bus.offset, offset or 0)


def test_statistic():
    """Under random events and accesses the readings add up, and only a read of the register itself clears it."""
    statistic, rng = Statistic(REG.QPRC, 3), random.Random(1)
    own, bus = REG.QPRC.offset(3), statistic.bus

    async def bench(ctx):
        value = events = readings = at_edge = 0
        for _ in range(2000):
            event, kind = rng.random() < 0.5, rng.randrange(8)
            access(ctx, bus)
            if kind == 0:
                access(ctx, bus, own)
            elif kind == 1:
                access(ctx, bus, rng.choice([REG.QPRC.offset(2), REG.QPRC.offset(4), own ^ 0x10000, 0]))
            elif kind == 2:
                access(ctx, bus, own, write=True)
            elif kind == 3:
                access(ctx, bus, own, table=True)
            ctx.set(statistic.event, event)
            assert ctx.get(statistic.value) == value
            events += event
            if kind == 0:
                readings, at_edge, value = readings + value, at_edge + event, 0
            value += event
            await ctx.tick("nic")
        assert readings + ctx.get(statistic.value) == events
        assert at_edge > 50

    simulate(statistic, bench)


def test_statistic_sticks():
    """At its largest value it stays until it is read, the event at that edge counting for the next reading."""
    statistic = Statistic(REG.CRCERRS)

    async def bench(ctx):
        ctx.set(statistic.value, 2**32 - 2)
        ctx.set(statistic.event, 1)
        await ctx.tick("nic")
        assert ctx.get(statistic.value) == 2**32 - 1
        await ctx.tick("nic").repeat(2)
        assert ctx.get(statistic.value) == 2**32 - 1
        access(ctx, statistic.bus, REG.CRCERRS.offset())
        await ctx.tick("nic")
        assert ctx.get(statistic.value) == 1

    simulate(statistic, bench)


def test_statistic_reset():
    """Reset wins over an event and a read at the same edge."""
    statistic = Statistic(REG.GPRC)

    async def bench(ctx):
        ctx.set(statistic.event, 1)
        await ctx.tick("nic").repeat(5)
        assert ctx.get(statistic.value) == 5
        ctx.set(statistic.reset, 1)
        access(ctx, statistic.bus, REG.GPRC.offset())
        await ctx.tick("nic")
        assert ctx.get(statistic.value) == 0

    simulate(statistic, bench)


def whole(ctx, octets):
    return ctx.get(octets.high) << 32 | ctx.get(octets.low)


def test_octets():
    """Readings of either half at any time add up to what was counted; other accesses change nothing."""
    octets, rng = OctetStatistic(REG.QBRC_L, REG.QBRC_H, 1), random.Random(2)
    low, high = REG.QBRC_L.offset(1), REG.QBRC_H.offset(1)

    async def bench(ctx):
        total = counted = readings = at_edge = 0
        for _ in range(3000):
            event, amount, kind = rng.random() < 0.6, rng.choice([0, 60, 0xFFFF, rng.getrandbits(16)]), rng.randrange(8)
            access(ctx, octets.bus)
            assert whole(ctx, octets) == total
            if kind == 0:
                access(ctx, octets.bus, low)
                readings, at_edge, total = readings + total, at_edge + event, 0
            elif kind == 1:
                access(ctx, octets.bus, high)
            elif kind == 2:
                access(ctx, octets.bus, rng.choice([low - 0x40, high + 0x40, high + 4]))
            elif kind == 3:
                access(ctx, octets.bus, rng.choice([low, high]), table=True)
            elif kind == 4:
                access(ctx, octets.bus, rng.choice([low, high]), write=True)
            ctx.set(octets.event, event)
            ctx.set(octets.amount, amount)
            total, counted = total + event * amount, counted + event * amount
            await ctx.tick("nic")
        assert readings + whole(ctx, octets) == counted
        assert at_edge > 50

    simulate(octets, bench)


def test_octets_carry():
    """A carry at the edge of a read stays in the high half; a low half being read carries nothing."""
    octets = OctetStatistic(REG.GORCL, REG.GORCH)

    async def almost_full(ctx):
        """From a low half of zero to one event before the carry."""
        access(ctx, octets.bus)
        ctx.set(octets.event, 1)
        ctx.set(octets.amount, 0xFFFF)
        await ctx.tick("nic").repeat(0x1_0001)
        assert ctx.get(octets.low) == 0xFFFF_FFFF

    async def bench(ctx):
        await almost_full(ctx)
        ctx.set(octets.amount, 60)
        access(ctx, octets.bus, REG.GORCH.offset())
        await ctx.tick("nic")
        assert (ctx.get(octets.high), ctx.get(octets.low)) == (1, 59)
        ctx.set(octets.amount, 0xFFFF)
        access(ctx, octets.bus, REG.GORCL.offset())
        await ctx.tick("nic")
        assert (ctx.get(octets.high), ctx.get(octets.low)) == (1, 0xFFFF)
        ctx.set(octets.event, 0)
        await ctx.tick("nic")
        assert (ctx.get(octets.high), ctx.get(octets.low)) == (1, 0)
        await almost_full(ctx)
        access(ctx, octets.bus, REG.GORCL.offset())
        await ctx.tick("nic")
        assert (ctx.get(octets.high), ctx.get(octets.low)) == (1, 0xFFFF)
        access(ctx, octets.bus, REG.GORCH.offset())
        await ctx.tick("nic")
        assert (ctx.get(octets.high), ctx.get(octets.low)) == (0, 0x1_FFFE)

    simulate(octets, bench)


def test_octets_reset():
    """Reset wins over an event and a read at the same edge."""
    octets = OctetStatistic(REG.GORCL, REG.GORCH)

    async def bench(ctx):
        ctx.set(octets.event, 1)
        ctx.set(octets.amount, 1500)
        await ctx.tick("nic").repeat(3)
        assert whole(ctx, octets) == 4500
        ctx.set(octets.reset, 1)
        access(ctx, octets.bus, REG.GORCH.offset())
        await ctx.tick("nic")
        assert whole(ctx, octets) == 0

    simulate(octets, bench)
