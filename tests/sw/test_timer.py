"""The timer wheel: nothing goes off early, or later than its level is coarse; what is stopped stays quiet."""

import asyncio
import random

from sw.core import Mode, function
from sw.linux.sched import PRIORITY_NORMAL
from sw.linux.timer import (
    HZ,
    TIMER_LIST,
    _calc_wheel_index,
    del_timer,
    jiffies,
    mod_timer,
    timer_setup,
)
from tests.sw.functional_machine import FunctionalMachine
from tests.sw.test_receive_path import make_system

TICKS_PER_JIFFY = 1_000_000_000 // HZ  # a tick is a nanosecond here


class TimerBench:
    """One task that starts and stops timers, and when they went off."""

    def __init__(self, timers: int):
        self.machine = FunctionalMachine(cores=2)
        self.system = make_system(self.machine, ports=(9,), ring_size=64, rcvbuf=16_384)
        self.timers = [self.system.kernel.memblock.allocate(TIMER_LIST.size) for _ in range(timers)]
        self.fired: dict[int, list[int]] = {}
        self.system.kernel.timer_functions[1] = self.action
        kernel = self.system.kernel
        self.system._tasks.append(kernel.new_task("timers", kernel.cpus[0], PRIORITY_NORMAL, self.main, Mode.KERNEL))
        self.script = lambda cpu: None

    async def action(self, cpu, timer):
        self.fired.setdefault(self.timers.index(timer), []).append(await jiffies(cpu))

    async def main(self, cpu):
        await start_timers(cpu, self)

    def run(self, script, seconds: float):
        self.script = script
        asyncio.run(self.system.boot())
        asyncio.run(self.system.run(int(seconds * 1e9)))
        return self.fired


@function()
async def start_timers(cpu, bench):
    """What the test wants."""
    for timer in bench.timers:
        timer_setup(cpu, timer, 1)
    await bench.script(cpu)


def coarseness(delta: int) -> int:
    """Jiffies of a bucket so far away."""
    level = 0
    while delta >= 63 << 3 * level:
        level += 1
    return 1 << 3 * level


def test_buckets_are_never_early_and_late_by_one_of_their_own_at_most():
    rng = random.Random(3)
    for _ in range(20_000):
        clk = rng.randrange(1 << rng.randrange(1, 40))
        delta = rng.randrange(1 << rng.randrange(1, 22))
        bucket, due = _calc_wheel_index(clk + delta, clk)
        assert clk + delta < due <= clk + delta + coarseness(delta)
        level = bucket // 64
        assert due >> 3 * level << 3 * level == due and (due >> 3 * level) % 64 == bucket % 64


def test_each_goes_off_once_and_in_time():
    rng = random.Random(5)
    delays = [rng.randrange(1 << rng.randrange(1, 12)) for _ in range(40)]
    bench = TimerBench(len(delays))
    began = 0

    async def script(cpu):
        nonlocal began
        began = await jiffies(cpu)
        for timer, delay in zip(bench.timers, delays, strict=True):
            await mod_timer(cpu, timer, began + delay, began)

    fired = bench.run(script, 30)
    assert {index: len(times) for index, times in fired.items()} == dict.fromkeys(range(len(delays)), 1)
    for index, delay in enumerate(delays):
        late = fired[index][0] - began - delay
        assert 0 < late <= coarseness(delay) + 1, (delay, late)


def test_stopped_and_changed_timers():
    bench = TimerBench(3)
    began = 0

    async def script(cpu):
        nonlocal began
        began = await jiffies(cpu)
        first, second, third = bench.timers
        await mod_timer(cpu, first, began + 20, began)
        await mod_timer(cpu, second, began + 20, began)
        await mod_timer(cpu, third, began + 500, began)
        assert await del_timer(cpu, second)
        assert not await del_timer(cpu, second)
        await mod_timer(cpu, third, began + 10, began)
        await mod_timer(cpu, third, began + 30, began)

    fired = bench.run(script, 5)
    assert set(fired) == {0, 2}
    assert 20 < fired[0][0] - began <= 22 and 30 < fired[2][0] - began <= 32
