"""Sockets: what the protocol fills and the program empties, and how a sleeping reader is woken."""

from collections.abc import Awaitable, Callable
from errno import ENOBUFS

from sw.core import LINE, function
from sw.linux.atomic import atomic_add, atomic_sub_return, smp_mb
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
from sw.linux.skb import SK_BUFF, __alloc_skb
from sw.linux.softirq import local_bh_disable, local_bh_enable
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
    "SOCK_SNDBUF",
    "WAIT_QUEUE_ENTRY",
    "lock_receive_queue",
    "sk_wait_event",
    "skb_wait_for_more_packets",
    "sock_alloc_send_pskb",
    "sock_def_readable",
    "sock_wfree",
    "unlock_receive_queue",
]

#: Receive buffer of a socket in bytes of ``truesize``, ``net.core.rmem_default``.
SOCK_RCVBUF = 212_992

#: Send buffer of a socket in bytes of ``truesize``, ``net.core.wmem_default``.
SOCK_SNDBUF = 212_992

#: ``struct udp_sock``: what lookup reads, then what the receive path writes, then what only readers write, then what
#: is sent.
SOCK = Struct(
    4 * LINE,
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
    pad_readers=40,
    wmem_alloc=4,  #: bytes that are being sent
    sndbuf=4,
    inet_id=2,  #: identification of the next datagram
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

    async def has_come() -> bool:
        return not await list_empty(cpu, sock + SOCK.receive_queue.offset)

    await sk_wait_event(cpu, sock, has_come)


async def sk_wait_event(cpu: Cpu, sock: int, ready: Callable[[], Awaitable[bool]]) -> None:
    """Sleep on the socket's wait queue: first enter it, then look whether ``ready``, then schedule."""
    task = cpu.task
    task.stack_pointer -= WAIT_QUEUE_ENTRY.size
    entry = task.stack_pointer
    lock = sock + SOCK.wait_queue_lock.offset
    cpu.put(entry, WAIT_QUEUE_ENTRY.task, task.address)
    enabled = await spin_lock_irqsave(cpu, lock)
    await list_add_tail(cpu, entry, sock + SOCK.wait_queue.offset)
    await set_current_state(cpu, TASK_INTERRUPTIBLE)
    spin_unlock_irqrestore(cpu, lock, enabled)
    if not await ready():
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


@function()
async def sock_alloc_send_pskb(cpu: Cpu, sock: int, headroom: int, length: int, packet: tuple[int, int] | None) -> int:
    """Make an skb for ``length`` bytes to be sent, charged to the socket; sleep while that has too many on the way.

    ``packet`` is the received one that it answers, for observers. Returns the skb or a negative errno.
    """
    wmem_alloc = sock + SOCK.wmem_alloc.offset

    async def has_room() -> bool:
        allocated, limit = await cpu.get_all(sock, SOCK.wmem_alloc, SOCK.sndbuf)
        return allocated < limit

    while not await has_room():
        await sk_wait_event(cpu, sock, has_room)
    local_bh_disable(cpu)
    skb = await __alloc_skb(cpu, headroom, length)
    await local_bh_enable(cpu)
    if not skb:
        return -ENOBUFS
    await atomic_add(cpu, await cpu.get(skb, SK_BUFF.truesize), wmem_alloc)
    cpu.put(skb, SK_BUFF.sk, sock)
    cpu.put(skb, SK_BUFF.destructor, cpu.kernel.text["sock_wfree"])
    if packet is not None:
        cpu.kernel.packet_of[skb] = packet
    return skb


@function()
async def sock_wfree(cpu: Cpu, skb: int) -> None:
    """What was charged for a packet is free again; wake a sleeping sender when half of the buffer is."""
    sock, truesize = await cpu.get_all(skb, SK_BUFF.sk, SK_BUFF.truesize)
    left = await atomic_sub_return(cpu, truesize, sock + SOCK.wmem_alloc.offset)
    if left * 2 <= await cpu.get(sock, SOCK.sndbuf):  # the atomic is a barrier, too
        if not await list_empty(cpu, sock + SOCK.wait_queue.offset):
            await _wake_up_sync_key(cpu, sock)
