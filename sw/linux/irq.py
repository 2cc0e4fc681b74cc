"""Interrupt entry and exit."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from sw.core import LINE, Mode, function
from sw.linux.cpu import HARDIRQ_OFFSET, Cpu
from sw.linux.ptrace import restore_registers, save_registers
from sw.linux.sched import need_resched, schedule
from sw.linux.smp import RESCHEDULE_VECTOR
from sw.linux.softirq import invoke_softirq
from sw.linux.spinlock import SPINLOCK_BYTES, raw_spin_lock, raw_spin_unlock
from sw.structs import Struct

__all__ = ["FIRST_EXTERNAL_VECTOR", "IRQ_DESC_BYTES", "interrupt_entry"]

#: Vectors below are the processor's own (arch/x86/include/asm/irq_vectors.h).
FIRST_EXTERNAL_VECTOR = 0x20
#: Vectors that a device can have here.
EXTERNAL_VECTORS = 32

#: ``struct irq_desc``, one per external vector.
IRQ_DESC = Struct(LINE, lock=SPINLOCK_BYTES)
IRQ_DESC_BYTES = EXTERNAL_VECTORS * IRQ_DESC.size


def interrupt_entry(cpu: Cpu, vector: int) -> Coroutine[Any, Any, None]:
    """What the interrupt descriptor table has for ``vector``."""
    return sysvec_reschedule_ipi(cpu, vector) if vector == RESCHEDULE_VECTOR else common_interrupt(cpu, vector)


@function(mode=Mode.IRQ)
async def sysvec_reschedule_ipi(cpu: Cpu, vector: int) -> None:
    """Another core has woken a task here: all that is to be done is done on the way back."""
    context = cpu.current
    interrupted = context.parent
    cpu.note("interrupt", vector=vector)
    registers = save_registers(cpu, interrupted.registers)
    context.preempt_count = await cpu.load(cpu.preempt_count_address, 4)
    await irqentry_exit(cpu, user=interrupted.mode in (Mode.USER, Mode.IDLE))
    interrupted.registers = await restore_registers(cpu, registers)
    cpu.iret()


@function(mode=Mode.IRQ)
async def common_interrupt(cpu: Cpu, vector: int) -> None:
    """Save the interrupted registers, call the handler, run softirqs, maybe schedule, return."""
    context = cpu.current
    interrupted = context.parent
    cpu.note("interrupt", vector=vector)
    registers = save_registers(cpu, interrupted.registers)
    count = await cpu.load(cpu.preempt_count_address, 4)
    context.preempt_count = count + HARDIRQ_OFFSET
    cpu.store(cpu.preempt_count_address, context.preempt_count, 4)
    handler = cpu.kernel.irq_handlers.get(vector)
    if handler is None:
        cpu.kernel.spurious_interrupts += 1
    else:
        await _handle_edge_irq(cpu, vector, handler)
    await irq_exit_rcu(cpu)
    await irqentry_exit(cpu, user=interrupted.mode in (Mode.USER, Mode.IDLE))
    interrupted.registers = await restore_registers(cpu, registers)
    cpu.iret()


async def _handle_edge_irq(cpu: Cpu, vector: int, handler: Callable[[Cpu], Awaitable[None]]) -> None:
    """Acknowledge, call the handler: the descriptor is locked before and after it (``handle_irq_event``)."""
    lock = cpu.kernel.irq_desc + (vector - FIRST_EXTERNAL_VECTOR) * IRQ_DESC.size + IRQ_DESC.lock.offset
    await raw_spin_lock(cpu, lock)
    raw_spin_unlock(cpu, lock)
    await handler(cpu)
    await raw_spin_lock(cpu, lock)
    raw_spin_unlock(cpu, lock)


@function()
async def irq_exit_rcu(cpu: Cpu) -> None:
    """Leave hardirq context; softirqs run here unless the interrupted code had them disabled."""
    context = cpu.current
    context.preempt_count -= HARDIRQ_OFFSET
    cpu.store(cpu.preempt_count_address, context.preempt_count, 4)
    if context.preempt_count == 0 and await cpu.load(cpu.softirq_pending_address, 4):
        await invoke_softirq(cpu)


@function()
async def irqentry_exit(cpu: Cpu, user: bool) -> None:
    """On the way back to a program (or to the idle loop), let a better task run first.

    The kernel is not preempted (as with ``PREEMPT_VOLUNTARY``): a system call looks when it returns. The idle loop
    is, which spares it the race between its test and HALT.
    """
    if user and cpu.current.preempt_count == 0 and await need_resched(cpu):
        await schedule(cpu, preempt=True)
