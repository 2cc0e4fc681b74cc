"""Timers: a wheel for each core (kernel/time/timer.c) behind the core's TSC-deadline timer.

There is no tick. The hardware is told of the earliest bucket that holds a timer, as on a tickless core that has only
timers to wait for; jiffies are counted from the time-stamp counter.
"""

from collections.abc import Awaitable, Callable

from sw.core import LINE, function
from sw.linux.cpu import TIMER_SOFTIRQ, Cpu
from sw.linux.mm import MemBlock
from sw.linux.softirq import raise_softirq_irqoff
from sw.linux.spinlock import SPINLOCK_BYTES, spin_lock_irqsave, spin_unlock_irqrestore
from sw.structs import Struct

__all__ = [
    "HZ",
    "TIMER_LIST",
    "TimerBase",
    "TimerFunction",
    "del_timer",
    "init_timer_base",
    "jiffies",
    "ktime_get_us",
    "local_apic_timer_interrupt",
    "mod_timer",
    "run_timer_softirq",
    "timer_setup",
]

#: Jiffies of a second, as Debian's kernels have them (CONFIG_HZ).
HZ = 250

#: Buckets of a level, and how much coarser each level is than the one before, as powers of two.
_LVL_BITS, _LVL_CLK_SHIFT = 6, 3
_LVL_SIZE = 1 << _LVL_BITS
_LVL_DEPTH = 9
_WHEEL_SIZE = _LVL_SIZE * _LVL_DEPTH
#: Timers farther away than the wheel reaches are put into its last bucket.
_WHEEL_TIMEOUT_MAX = (_LVL_SIZE - 1 << (_LVL_DEPTH - 1) * _LVL_CLK_SHIFT) - 1
#: ``next_expiry`` of a wheel without timers: no time that ever comes.
_NEVER = 1 << 62

#: ``struct timer_list``: place in its bucket (``pprev`` 0: not in any), when, what then, where.
TIMER_LIST = Struct(next=8, pprev=8, expires=8, function=8, bucket=4)

#: The part of ``struct timer_base`` before its map and its buckets; ``programmed`` is what the hardware waits for.
_TIMER_BASE = Struct(LINE, lock=SPINLOCK_BYTES, clk=8, next_expiry=8, programmed=8)

#: What a timer does, with the timer's address, on the core it was started on.
TimerFunction = Callable[[Cpu, int], Awaitable[None]]


class TimerBase:
    """One core's wheel in memory.

    Attributes:
        address: of its ``struct timer_base``.
        pending_map: of a word for each level, of which bit b says that bucket b holds timers.
        vectors: of the first of its buckets, 8 bytes each: the first timer, 0 if there is none.
    """

    def __init__(self, memblock: MemBlock):
        self.address = memblock.allocate(_TIMER_BASE.size)
        self.pending_map = memblock.allocate(8 * _LVL_DEPTH)
        self.vectors = memblock.allocate(8 * _WHEEL_SIZE)


def init_timer_base(cpu: Cpu, base: TimerBase) -> None:
    """A wheel without timers; its buckets are zero as memory was."""
    cpu.put(base.address, _TIMER_BASE.next_expiry, _NEVER)
    cpu.put(base.address, _TIMER_BASE.programmed, _NEVER)


async def ktime_get_us(cpu: Cpu) -> int:
    """Microseconds since the machine was switched on."""
    cpu.execute("ktime_get")
    return await cpu.rdtsc() * 1000 // cpu.kernel.tsc_khz


async def jiffies(cpu: Cpu) -> int:
    """Ticks that would have been since then."""
    return us_to_jiffies(await ktime_get_us(cpu))


def us_to_jiffies(us: int) -> int:
    """Whole ticks in so many microseconds."""
    return us * HZ // 1_000_000


def timer_setup(cpu: Cpu, timer: int, action: int) -> None:
    """Initialise a timer that calls the function whose code is at ``action`` (``Kernel.timer_functions``)."""
    cpu.store(timer, TIMER_LIST.pack(function=action), TIMER_LIST.size)


def _lvl_shift(level: int) -> int:
    return level * _LVL_CLK_SHIFT


def _calc_wheel_index(expires: int, clk: int) -> tuple[int, int]:
    """The bucket for a time, seen from ``clk``, and the time at which that bucket is due: never too early."""
    delta = expires - clk
    if delta < 0:
        return clk % _LVL_SIZE, clk
    expires = min(expires, clk + _WHEEL_TIMEOUT_MAX)
    for level in range(_LVL_DEPTH - 1):
        if delta < (_LVL_SIZE - 1) << _lvl_shift(level):
            break
    else:
        level = _LVL_DEPTH - 1
    expires = (expires >> _lvl_shift(level)) + 1
    return level * _LVL_SIZE + expires % _LVL_SIZE, expires << _lvl_shift(level)


@function()
async def mod_timer(cpu: Cpu, timer: int, expires: int, now: int) -> None:
    """Start a timer on this core, or change when it goes off.

    Arguments:
        expires: jiffies.
        now: jiffies, at which the caller has looked already.
    """
    base = cpu.timer_base
    pprev, before = await cpu.get_all(timer, TIMER_LIST.pprev, TIMER_LIST.expires)
    if pprev and before == expires:
        return
    enabled = await spin_lock_irqsave(cpu, base.address + _TIMER_BASE.lock.offset)
    if pprev:
        await _detach_timer(cpu, base, timer)
    clk, next_expiry = await cpu.get_all(base.address, _TIMER_BASE.clk, _TIMER_BASE.next_expiry)
    if now > clk:
        clk = min(now, next_expiry)
        cpu.put(base.address, _TIMER_BASE.clk, clk)
    bucket, due = _calc_wheel_index(expires, clk)
    cpu.put(timer, TIMER_LIST.expires, expires)
    await _enqueue_timer(cpu, base, timer, bucket)
    if due < next_expiry:
        cpu.put(base.address, _TIMER_BASE.next_expiry, due)
        await _program(cpu, base, due)
    spin_unlock_irqrestore(cpu, base.address + _TIMER_BASE.lock.offset, enabled)


@function()
async def del_timer(cpu: Cpu, timer: int) -> bool:
    """Stop a timer of this core; whether it was started."""
    if not await cpu.get(timer, TIMER_LIST.pprev):
        return False
    base = cpu.timer_base
    enabled = await spin_lock_irqsave(cpu, base.address + _TIMER_BASE.lock.offset)
    await _detach_timer(cpu, base, timer)
    spin_unlock_irqrestore(cpu, base.address + _TIMER_BASE.lock.offset, enabled)
    return True


async def _enqueue_timer(cpu: Cpu, base: TimerBase, timer: int, bucket: int) -> None:
    head = base.vectors + 8 * bucket
    first, loaded = await cpu.chase(head, 8)
    cpu.put(timer, TIMER_LIST.next, first)
    if first:
        cpu.put(first, TIMER_LIST.pprev, timer + TIMER_LIST.next.offset)
    cpu.store(head, timer, 8)
    cpu.put(timer, TIMER_LIST.pprev, head)
    cpu.put(timer, TIMER_LIST.bucket, bucket)
    word, bit = _map_place(base, bucket)
    cpu.store(word, await cpu.load(word, 8, after=loaded) | bit, 8)


async def _detach_timer(cpu: Cpu, base: TimerBase, timer: int) -> None:
    following, pprev, bucket = await cpu.get_all(timer, TIMER_LIST.next, TIMER_LIST.pprev, TIMER_LIST.bucket)
    cpu.store(pprev, following, 8)
    if following:
        cpu.put(following, TIMER_LIST.pprev, pprev)
    cpu.put(timer, TIMER_LIST.pprev, 0)
    if not following and pprev == base.vectors + 8 * bucket:
        word, bit = _map_place(base, bucket)
        cpu.store(word, await cpu.load(word, 8) & ~bit, 8)


def _map_place(base: TimerBase, bucket: int) -> tuple[int, int]:
    """Address of the word of the map that has the bucket's bit, and the bit."""
    return base.pending_map + 8 * (bucket // 64), 1 << bucket % 64


async def _program(cpu: Cpu, base: TimerBase, due: int) -> None:
    """Have the hardware interrupt at jiffy ``due`` at the latest (``tick_program_event``)."""
    if due < await cpu.get(base.address, _TIMER_BASE.programmed):
        cpu.put(base.address, _TIMER_BASE.programmed, due)
        cpu.execute("lapic_next_deadline")
        cpu.write_tsc_deadline(-(-due * cpu.kernel.tsc_khz * 1000 // HZ))


@function()
async def local_apic_timer_interrupt(cpu: Cpu) -> None:
    """The deadline has come: the softirq looks which timers are due."""
    cpu.put(cpu.timer_base.address, _TIMER_BASE.programmed, _NEVER)
    await raise_softirq_irqoff(cpu, TIMER_SOFTIRQ)


@function()
async def run_timer_softirq(cpu: Cpu) -> None:
    """Call what is due (``__run_timers``), then have the hardware wait for the next."""
    base = cpu.timer_base
    now = await jiffies(cpu)
    enabled = await spin_lock_irqsave(cpu, base.address + _TIMER_BASE.lock.offset)
    next_expiry = await cpu.get(base.address, _TIMER_BASE.next_expiry)
    while next_expiry <= now:
        cpu.put(base.address, _TIMER_BASE.clk, next_expiry + 1)
        for bucket in await _due_buckets(cpu, base, next_expiry):
            while timer := await cpu.load(base.vectors + 8 * bucket, 8):
                await _call(cpu, base, timer, enabled)
        next_expiry = await _next_timer_interrupt(cpu, base, next_expiry + 1)
        cpu.put(base.address, _TIMER_BASE.next_expiry, next_expiry)
    if next_expiry != _NEVER:
        await _program(cpu, base, next_expiry)
    spin_unlock_irqrestore(cpu, base.address + _TIMER_BASE.lock.offset, enabled)


async def _call(cpu: Cpu, base: TimerBase, timer: int, enabled: bool) -> None:
    """Take a timer off the wheel and call its function, without the lock meanwhile."""
    function_address = await cpu.get(timer, TIMER_LIST.function)
    await _detach_timer(cpu, base, timer)
    spin_unlock_irqrestore(cpu, base.address + _TIMER_BASE.lock.offset, enabled)
    await cpu.kernel.timer_functions[function_address](cpu, timer)
    await spin_lock_irqsave(cpu, base.address + _TIMER_BASE.lock.offset)


async def _due_buckets(cpu: Cpu, base: TimerBase, clk: int) -> list[int]:
    """Buckets with timers that are due at ``clk`` (``collect_expired_timers``)."""
    due = []
    for level in range(_LVL_DEPTH):
        bucket = level * _LVL_SIZE + clk % _LVL_SIZE
        word, bit = _map_place(base, bucket)
        if await cpu.load(word, 8) & bit:
            due.append(bucket)
        if clk % (1 << _LVL_CLK_SHIFT):
            break
        clk >>= _LVL_CLK_SHIFT
    return due


async def _next_timer_interrupt(cpu: Cpu, base: TimerBase, clk: int) -> int:
    """When the first bucket from ``clk`` on is due."""
    earliest = _NEVER
    for level in range(_LVL_DEPTH):
        pending = await cpu.load(base.pending_map + 8 * level, 8)
        position = clk % _LVL_SIZE
        ahead = pending >> position | (pending & (1 << position) - 1) << _LVL_SIZE - position
        if ahead:
            distance = (ahead & -ahead).bit_length() - 1
            earliest = min(earliest, (clk + distance) << _lvl_shift(level))
        # The next level's clock as it will be when its bucket comes round: rounded up.
        clk = -(-clk >> _LVL_CLK_SHIFT)
    return earliest
