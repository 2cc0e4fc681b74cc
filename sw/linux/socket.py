"""Sockets: what the protocol fills and the program empties, and how a sleeping reader is woken."""

from collections.abc import Awaitable, Callable

from sw.core import LINE, function
from sw.linux.atomic import smp_mb
from sw.linux.cpu import Cpu
from sw.linux.list import init_list_head, list_add_tail, list_del, list_empty, list_empty_careful, list_first
from sw.linux.sched import (
    TASK_INTERRUPTIBLE,
    TASK_RUNNING,
    __set_current_state,
    schedule,
    set_current_state,
    try_to_wake_up,
)
from sw.linux.spinlock import (
    SPINLOCK_BYTES,
    raw_spin_lock,
    raw_spin_unlock,
    spin_lock_irqsave,
    spin_unlock_irqrestore,
)
from sw.structs import Struct

__all__ = [
    "SOCK",
    "SOCK_RCVBUF",
    "WAIT_QUEUE_ENTRY",
    "lock_receive_queue",
    "sk_wait_event",
    "skb_wait_for_more_packets",
    "sock_def_readable",
    "unlock_receive_queue",
]

#: Receive buffer of a socket in bytes of ``truesize``, ``net.core.rmem_default``.
SOCK_RCVBUF = 212_992

#: ``struct udp_sock``: what lookup reads, then what the receive path writes, then what only readers write.
SOCK = Struct(
    3 * LINE,
    hash_next=8,
    port=2,
    rcvbuf=4,
    pad=40,
    napi_id=8,  #: address of the NAPI that the last datagram came from
    receive_queue=16,
    wait_queue=16,
    rmem_alloc=4,
    drops=4,
    receive_queue_lock=SPINLOCK_BYTES,
    wait_queue_lock=SPINLOCK_BYTES,
    pad_writers=16,
    reader_queue=16,
    reader_queue_lock=SPINLOCK_BYTES,
    forward_deficit=4,  #: bytes read and not yet taken off ``rmem_alloc``
)

#: ``struct wait_queue_entry``, on the sleeper's kernel stack.
WAIT_QUEUE_ENTRY = Struct(entry=16, task=8)


async def lock_receive_queue(cpu: Cpu, sock: int) -> bool:
    """Take the receive queue's lock, softirqs being disabled; returns what :func:`unlock_receive_queue` needs.

    Where packets come in from interrupt handlers, those are kept off, too: one that interrupted the holder would wait
    for ever.
    """
    lock = sock + SOCK.receive_queue_lock.offset
    if cpu.kernel.receives_in_hardirq:
        return await spin_lock_irqsave(cpu, lock)
    await raw_spin_lock(cpu, lock)
    return False


def unlock_receive_queue(cpu: Cpu, sock: int, enabled: bool) -> None:
    """Undo :func:`lock_receive_queue`."""
    lock = sock + SOCK.receive_queue_lock.offset
    if cpu.kernel.receives_in_hardirq:
        spin_unlock_irqrestore(cpu, lock, enabled)
    else:
        raw_spin_unlock(cpu, lock)


@function()
async def skb_wait_for_more_packets(cpu: Cpu, sock: int) -> None:
    """Sleep unless a datagram has come."""

    async def arrived() -> bool:
        return not await list_empty(cpu, sock + SOCK.receive_queue.offset)

    await sk_wait_event(cpu, sock, arrived)


async def sk_wait_event(cpu: Cpu, sock: int, happened: Callable[[], Awaitable[bool]]) -> None:
    """Sleep unless something has happened: first enter the wait queue, then look again, then schedule."""
    task = cpu.task
    task.stack_pointer -= WAIT_QUEUE_ENTRY.size
    entry = task.stack_pointer
    lock = sock + SOCK.wait_queue_lock.offset
    cpu.put(entry, WAIT_QUEUE_ENTRY.task, task.address)
    enabled = await spin_lock_irqsave(cpu, lock)
    await list_add_tail(cpu, entry, sock + SOCK.wait_queue.offset)
    await set_current_state(cpu, TASK_INTERRUPTIBLE)
    spin_unlock_irqrestore(cpu, lock, enabled)
    if not await happened():
        await schedule(cpu)
    __set_current_state(cpu, TASK_RUNNING)
    if not await list_empty_careful(cpu, entry):
        enabled = await spin_lock_irqsave(cpu, lock)
        await list_del(cpu, entry)
        spin_unlock_irqrestore(cpu, lock, enabled)
    task.stack_pointer += WAIT_QUEUE_ENTRY.size


@function()
async def sock_def_readable(cpu: Cpu, sock: int) -> None:
    """Wake a reader that sleeps, if any: whoever queued before may miss none that enters the wait queue first."""
    await smp_mb(cpu)
    if not await list_empty(cpu, sock + SOCK.wait_queue.offset):
        await _wake_up_sync_key(cpu, sock)


async def _wake_up_sync_key(cpu: Cpu, sock: int) -> None:
    """Wake the first sleeper and take it off the wait queue (``autoremove_wake_function``)."""
    lock = sock + SOCK.wait_queue_lock.offset
    enabled = await spin_lock_irqsave(cpu, lock)
    entry, loaded = await list_first(cpu, sock + SOCK.wait_queue.offset)
    if entry and await try_to_wake_up(cpu, await cpu.get(entry, WAIT_QUEUE_ENTRY.task, after=loaded)):
        await list_del(cpu, entry, after=loaded)
        init_list_head(cpu, entry)
    spin_unlock_irqrestore(cpu, lock, enabled)
