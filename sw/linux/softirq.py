"""Softirqs: work that interrupts leave for later, on their way out or in ksoftirqd."""

from sw.core import Mode, function
from sw.linux.cpu import SOFTIRQ_DISABLE_OFFSET, SOFTIRQ_OFFSET, Cpu, local_irq_restore, local_irq_save
from sw.linux.sched import (
    TASK_INTERRUPTIBLE,
    TASK_RUNNING,
    TASK_STRUCT,
    need_resched,
    others_wait,
    schedule,
    set_current_state,
    try_to_wake_up,
    yield_task,
)
from sw.linux.spinlock import raw_spin_lock, raw_spin_unlock

__all__ = [
    "MAX_SOFTIRQ_RESTART",
    "do_softirq",
    "invoke_softirq",
    "ksoftirqd",
    "local_bh_disable",
    "local_bh_enable",
    "raise_softirq_irqoff",
    "spin_lock_bh",
    "spin_unlock_bh",
]

#: Rounds before what keeps coming is left to ksoftirqd (kernel/softirq.c). The time limit beside it, 2 ms, is not
#: modelled: nothing reads a clock.
MAX_SOFTIRQ_RESTART = 10


async def raise_softirq_irqoff(cpu: Cpu, number: int) -> None:
    """Mark softirq ``number`` pending; interrupts are off."""
    pending = await cpu.load(cpu.softirq_pending_address, 4)
    cpu.store(cpu.softirq_pending_address, pending | 1 << number, 4)


@function(mode=Mode.SOFTIRQ)
async def do_softirq(cpu: Cpu) -> None:
    """Run pending softirqs; called and returns with interrupts off, runs them with interrupts on."""
    context = cpu.current
    pending = await cpu.load(cpu.softirq_pending_address, 4)
    context.preempt_count += SOFTIRQ_OFFSET
    cpu.store(cpu.preempt_count_address, context.preempt_count, 4)
    restart = MAX_SOFTIRQ_RESTART
    while pending:
        cpu.store(cpu.softirq_pending_address, 0, 4)
        cpu.sti()
        for number, action in cpu.kernel.softirq_vec.items():
            if pending & 1 << number:
                await action(cpu)
        cpu.cli()
        pending = await cpu.load(cpu.softirq_pending_address, 4)
        restart -= 1
        if restart == 0 or await need_resched(cpu) or (cpu.task is cpu.ksoftirqd and await others_wait(cpu)):
            break
    if pending:
        await wakeup_softirqd(cpu)
    context.preempt_count -= SOFTIRQ_OFFSET
    cpu.store(cpu.preempt_count_address, context.preempt_count, 4)


async def ksoftirqd_running(cpu: Cpu) -> bool:
    """Whether pending softirqs are left to this core's thread, at its own rate, as Linux 4.9 to 6.4 do.

    Else a program that receives would run them in every system call and not get on.
    """
    return await cpu.get(cpu.ksoftirqd.address, TASK_STRUCT.state) == TASK_RUNNING


async def invoke_softirq(cpu: Cpu) -> None:
    """Run softirqs at the end of an interrupt; called and returns with interrupts off."""
    if not await ksoftirqd_running(cpu):
        await do_softirq(cpu)


@function()
async def wakeup_softirqd(cpu: Cpu) -> None:
    """Leave pending softirqs to this core's thread."""
    await try_to_wake_up(cpu, cpu.ksoftirqd.address)


@function(mode=Mode.KERNEL)
async def ksoftirqd(cpu: Cpu) -> None:
    """The thread that runs softirqs which keep coming, at the rank of a normal task."""
    while True:
        cpu.cli()
        if await cpu.load(cpu.softirq_pending_address, 4):
            await do_softirq(cpu)
            await yield_task(cpu)
        else:
            await set_current_state(cpu, TASK_INTERRUPTIBLE)
            await schedule(cpu)


def local_bh_disable(cpu: Cpu) -> None:
    """Keep softirqs off this core: interrupts leave them pending."""
    context = cpu.current
    context.preempt_count += SOFTIRQ_DISABLE_OFFSET
    cpu.store(cpu.preempt_count_address, context.preempt_count, 4)


async def local_bh_enable(cpu: Cpu) -> None:
    """Undo :func:`local_bh_disable` and run what became pending meanwhile."""
    context = cpu.current
    context.preempt_count -= SOFTIRQ_DISABLE_OFFSET
    cpu.store(cpu.preempt_count_address, context.preempt_count, 4)
    pending = context.preempt_count == 0 and await cpu.load(cpu.softirq_pending_address, 4)
    if pending and not await ksoftirqd_running(cpu):
        enabled = local_irq_save(cpu)
        await do_softirq(cpu)
        local_irq_restore(cpu, enabled)


async def spin_lock_bh(cpu: Cpu, lock: int) -> None:
    """Keep softirqs off this core and take the lock."""
    local_bh_disable(cpu)
    await raw_spin_lock(cpu, lock)


async def spin_unlock_bh(cpu: Cpu, lock: int) -> None:
    """Undo :func:`spin_lock_bh`."""
    raw_spin_unlock(cpu, lock)
    await local_bh_enable(cpu)
