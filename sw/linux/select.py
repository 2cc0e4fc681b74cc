"""poll(2): sleeping until a file is ready (fs/select.c)."""

import enum
from collections.abc import Awaitable, Callable

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.list import init_list_head, list_add_tail, list_del, list_empty_careful
from sw.linux.sched import TASK_INTERRUPTIBLE, TASK_RUNNING, schedule, set_current_state
from sw.linux.sched import __set_current_state as set_current_state_unordered
from sw.linux.socket import SOCK, WAIT_QUEUE_ENTRY
from sw.linux.spinlock import spin_lock_irqsave, spin_unlock_irqrestore

__all__ = ["PollEvent", "do_poll"]


class PollEvent(enum.IntFlag):
    """Events (include/uapi/asm-generic/poll.h)."""

    POLLIN = 0x001
    POLLOUT = 0x004


@function()
async def do_poll(cpu: Cpu, sock: int, poll: Callable[[Cpu], Awaitable[PollEvent]], events: PollEvent) -> PollEvent:
    """Sleep until one socket is ready for one of ``events``; gives those it is ready for.

    The task enters the wait queue before it looks: a packet that comes after the look wakes it. Who wakes it takes it
    off the queue, so it enters again before the next look.

    Arguments:
        sock: address of the ``struct sock``.
        poll: the file's own function, which says what it is ready for.
    """
    task = cpu.task
    task.stack_pointer -= WAIT_QUEUE_ENTRY.size
    entry = task.stack_pointer
    lock = sock + SOCK.wait_queue_lock.offset
    cpu.put(entry, WAIT_QUEUE_ENTRY.task, task.address)
    while True:
        enabled = await spin_lock_irqsave(cpu, lock)
        await list_add_tail(cpu, entry, sock + SOCK.wait_queue.offset)
        await set_current_state(cpu, TASK_INTERRUPTIBLE)
        spin_unlock_irqrestore(cpu, lock, enabled)
        ready = await poll(cpu) & events
        if not ready:
            await schedule(cpu)
        set_current_state_unordered(cpu, TASK_RUNNING)
        if not await list_empty_careful(cpu, entry):
            enabled = await spin_lock_irqsave(cpu, lock)
            # Not if somebody has woken this task between the two looks.
            if not await list_empty_careful(cpu, entry):
                await list_del(cpu, entry)
                init_list_head(cpu, entry)
            spin_unlock_irqrestore(cpu, lock, enabled)
        if ready:
            task.stack_pointer += WAIT_QUEUE_ENTRY.size
            return ready
