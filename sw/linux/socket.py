"""Sockets: what the protocol fills and the program empties, and how a sleeping reader is woken."""

from sw.core import LINE, function
from sw.linux.cpu import Cpu, local_irq_restore, local_irq_save
from sw.linux.list import init_list_head, list_add_tail, list_del, list_first
from sw.linux.sched import TASK_INTERRUPTIBLE, TASK_RUNNING, schedule, set_current_state, try_to_wake_up
from sw.structs import Struct

__all__ = ["SOCK", "SOCK_RCVBUF", "skb_wait_for_more_packets", "sock_def_readable"]

#: Receive buffer of a socket in bytes of ``truesize``, ``net.core.rmem_default``.
SOCK_RCVBUF = 212_992

#: ``struct sock``: what lookup reads, then what the receive path writes.
SOCK = Struct(
    2 * LINE,
    hash_next=8,
    port=2,
    rcvbuf=4,
    pad=48,
    receive_queue=16,
    wait_queue=16,
    rmem_alloc=4,
    drops=4,
)

#: ``struct wait_queue_entry``, on the sleeper's kernel stack.
_WAIT_QUEUE_ENTRY = Struct(entry=16, task=8)


@function()
async def skb_wait_for_more_packets(cpu: Cpu, sock: int) -> None:
    """Sleep unless a datagram has come: first enter the wait queue, then look again, then schedule."""
    task = cpu.task
    task.stack_pointer -= _WAIT_QUEUE_ENTRY.size
    entry = task.stack_pointer
    enabled = local_irq_save(cpu)
    cpu.put(entry, _WAIT_QUEUE_ENTRY.task, task.address)
    await list_add_tail(cpu, entry, sock + SOCK.wait_queue.offset)
    set_current_state(cpu, TASK_INTERRUPTIBLE)
    local_irq_restore(cpu, enabled)
    if not await list_first(cpu, sock + SOCK.receive_queue.offset):
        await schedule(cpu)
    set_current_state(cpu, TASK_RUNNING)
    enabled = local_irq_save(cpu)
    if await list_first(cpu, entry):
        await list_del(cpu, entry)
    local_irq_restore(cpu, enabled)
    task.stack_pointer += _WAIT_QUEUE_ENTRY.size


@function()
async def sock_def_readable(cpu: Cpu, sock: int) -> None:
    """Wake the first reader that sleeps, if any, and take it off the wait queue (``autoremove_wake_function``)."""
    entry = await list_first(cpu, sock + SOCK.wait_queue.offset)
    if entry and await try_to_wake_up(cpu, await cpu.get(entry, _WAIT_QUEUE_ENTRY.task)):
        enabled = local_irq_save(cpu)
        await list_del(cpu, entry)
        init_list_head(cpu, entry)
        local_irq_restore(cpu, enabled)
