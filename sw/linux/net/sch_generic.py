"""A transmit queue with its queueing discipline, pfifo_fast with one band (net/sched/sch_generic.c, net/core/dev.c).

A packet goes straight to the driver if none waits and nobody is sending; else it waits, and who is sending takes it
along. When the driver's ring is full the queue is stopped, until frames that the card has sent make room.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sw.core import LINE, function
from sw.linux.atomic import fetch_and, fetch_or
from sw.linux.cpu import NET_TX_SOFTIRQ, Cpu, local_irq_restore, local_irq_save
from sw.linux.list import init_list_head, list_add_tail, list_del, list_first
from sw.linux.mm import MemBlock
from sw.linux.skb import kfree_skb_reason
from sw.linux.softirq import raise_softirq_irqoff
from sw.linux.spinlock import SPINLOCK_BYTES, raw_spin_lock, raw_spin_unlock
from sw.structs import Struct

__all__ = [
    "DEV_TX_WEIGHT",
    "NETDEV_QUEUE",
    "TX_QUEUE_LEN",
    "NetdevQueue",
    "dev_direct_xmit",
    "init_netdev_queue",
    "net_tx_action",
    "netif_stop_subqueue",
    "netif_wake_subqueue",
    "qdisc_xmit",
]

#: Packets that may wait (``txqueuelen``, ``DEFAULT_TX_QUEUE_LEN``).
TX_QUEUE_LEN = 1000
#: Packets that one who is sending takes along (``dev_tx_weight``).
DEV_TX_WEIGHT = 64

#: ``struct netdev_queue``, a line, and ``struct Qdisc``.
NETDEV_QUEUE = Struct(
    2 * LINE,
    state=4,
    xmit_lock=SPINLOCK_BYTES,
    pad=56,
    lock=SPINLOCK_BYTES,
    qdisc_state=4,
    running=4,
    qlen=4,
    queue=16,
    requeued=8,  #: the packet that the driver did not take (``gso_skb``)
    next_sched=8,  #: the next of ``softnet_data.output_queue``
)

#: ``QUEUE_STATE_DRV_XOFF``: the driver has no room.
_DRV_XOFF = 1
#: ``__QDISC_STATE_SCHED``: the transmit softirq will send.
_SCHED = 1


@dataclass(frozen=True, slots=True, eq=False)
class NetdevQueue:
    """One transmit queue of a device.

    Attributes:
        start_xmit: the driver's ``ndo_start_xmit``: takes the frame of an skb and owns it; false if there is no room.
        limit: packets that may wait.
        address: of its :data:`NETDEV_QUEUE`.
    """

    memblock: MemBlock
    start_xmit: Callable[[Cpu, int], Awaitable[bool]]
    limit: int = TX_QUEUE_LEN
    address: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "address", self.memblock.allocate(NETDEV_QUEUE.size))


def init_netdev_queue(cpu: Cpu, queue: NetdevQueue) -> None:
    """An open queue in which nothing waits; the rest of its memory is zero."""
    init_list_head(cpu, queue.address + NETDEV_QUEUE.queue.offset)
    cpu.kernel.tx_queues[queue.address] = queue


async def qdisc_xmit(cpu: Cpu, queue: NetdevQueue, skb: int) -> bool:
    """Send a packet or have it wait; false if it was dropped (``__dev_xmit_skb``). Softirqs are disabled."""
    address, lock = queue.address, queue.address + NETDEV_QUEUE.lock.offset
    await raw_spin_lock(cpu, lock)
    qlen, running = await cpu.get_all(address, NETDEV_QUEUE.qlen, NETDEV_QUEUE.running)
    taken = True
    if not qlen and not running:
        cpu.put(address, NETDEV_QUEUE.running, 1)
        if await sch_direct_xmit(cpu, queue, skb):
            await _qdisc_run(cpu, queue)
        cpu.put(address, NETDEV_QUEUE.running, 0)
    elif qlen >= queue.limit:
        taken = False
    else:
        await pfifo_fast_enqueue(cpu, address, skb, qlen)
        if not running:
            cpu.put(address, NETDEV_QUEUE.running, 1)
            await _qdisc_run(cpu, queue)
            cpu.put(address, NETDEV_QUEUE.running, 0)
    raw_spin_unlock(cpu, lock)
    if not taken:
        await kfree_skb_reason(cpu, skb, "QDISC_DROP")
    return taken


@function()
async def pfifo_fast_enqueue(cpu: Cpu, address: int, skb: int, qlen: int) -> None:
    """Have a packet wait."""
    await list_add_tail(cpu, skb, address + NETDEV_QUEUE.queue.offset)
    cpu.put(address, NETDEV_QUEUE.qlen, qlen + 1)


@function()
async def pfifo_fast_dequeue(cpu: Cpu, address: int) -> int:
    """The packet that is next, 0 if there is none or the driver has no room (``dequeue_skb``)."""
    if await cpu.get(address, NETDEV_QUEUE.state) & _DRV_XOFF:
        return 0
    requeued, qlen = await cpu.get_all(address, NETDEV_QUEUE.requeued, NETDEV_QUEUE.qlen)
    if requeued:
        cpu.put(address, NETDEV_QUEUE.requeued, 0)
    else:
        requeued, loaded = await list_first(cpu, address + NETDEV_QUEUE.queue.offset)
        if not requeued:
            return 0
        await list_del(cpu, requeued, after=loaded)
    cpu.put(address, NETDEV_QUEUE.qlen, qlen - 1)
    return requeued


@function()
async def sch_direct_xmit(cpu: Cpu, queue: NetdevQueue, skb: int) -> bool:
    """Give a packet to the driver, or keep it if that has no room; whether more wait and the driver goes on.

    The discipline's lock is held before and after, and not meanwhile: others may queue.
    """
    address, lock = queue.address, queue.address + NETDEV_QUEUE.lock.offset
    raw_spin_unlock(cpu, lock)
    sent = await dev_direct_xmit(cpu, queue, skb)
    await raw_spin_lock(cpu, lock)
    qlen = await cpu.get(address, NETDEV_QUEUE.qlen)
    if not sent:
        cpu.put(address, NETDEV_QUEUE.requeued, skb)
        cpu.put(address, NETDEV_QUEUE.qlen, qlen + 1)
        await _netif_schedule(cpu, queue)  # the queue may have been woken while the lock was free
        return False
    return qlen > 0


async def dev_direct_xmit(cpu: Cpu, queue: NetdevQueue, skb: int) -> bool:
    """Give a packet to the driver, under its lock, unless the queue is stopped; false if it was not taken."""
    lock = queue.address + NETDEV_QUEUE.xmit_lock.offset
    await raw_spin_lock(cpu, lock)
    stopped = await cpu.get(queue.address, NETDEV_QUEUE.state) & _DRV_XOFF
    sent = not stopped and await dev_hard_start_xmit(cpu, queue, skb)
    raw_spin_unlock(cpu, lock)
    return sent


@function()
async def dev_hard_start_xmit(cpu: Cpu, queue: NetdevQueue, skb: int) -> bool:
    """Call the driver."""
    return await queue.start_xmit(cpu, skb)


async def _qdisc_run(cpu: Cpu, queue: NetdevQueue) -> None:
    """Send what waits, up to a quota; the rest is the transmit softirq's (``__qdisc_run``)."""
    for _ in range(DEV_TX_WEIGHT):
        skb = await pfifo_fast_dequeue(cpu, queue.address)
        if not skb or not await sch_direct_xmit(cpu, queue, skb):
            return
    await _netif_schedule(cpu, queue)


async def _netif_schedule(cpu: Cpu, queue: NetdevQueue) -> None:
    """Have the transmit softirq send what waits (``__netif_schedule``)."""
    if await fetch_or(cpu, queue.address + NETDEV_QUEUE.qdisc_state.offset, _SCHED) & _SCHED:
        return
    enabled = local_irq_save(cpu)
    cpu.put(queue.address, NETDEV_QUEUE.next_sched, await cpu.load(cpu.output_queue, 8))
    cpu.store(cpu.output_queue, queue.address, 8)
    await raise_softirq_irqoff(cpu, NET_TX_SOFTIRQ)
    local_irq_restore(cpu, enabled)


@function()
async def net_tx_action(cpu: Cpu) -> None:
    """The transmit softirq: queues that were woken, or whose sender had done enough, go on."""
    cpu.cli()
    address, loaded = await cpu.chase(cpu.output_queue, 8)
    cpu.store(cpu.output_queue, 0, 8)
    cpu.sti()
    while address:
        following, after = await cpu.chase(*NETDEV_QUEUE.next_sched.at(address), after=loaded)
        queue = cpu.kernel.tx_queues[address]
        lock = address + NETDEV_QUEUE.lock.offset
        await raw_spin_lock(cpu, lock)
        await fetch_and(cpu, address + NETDEV_QUEUE.qdisc_state.offset, ~_SCHED)
        if not await cpu.get(address, NETDEV_QUEUE.running):
            cpu.put(address, NETDEV_QUEUE.running, 1)
            await _qdisc_run(cpu, queue)
            cpu.put(address, NETDEV_QUEUE.running, 0)
        raw_spin_unlock(cpu, lock)
        address, loaded = following, after


async def netif_stop_subqueue(cpu: Cpu, queue: NetdevQueue) -> None:
    """The driver has no room; a full barrier, so that it may look again."""
    await fetch_or(cpu, queue.address + NETDEV_QUEUE.state.offset, _DRV_XOFF)


async def netif_wake_subqueue(cpu: Cpu, queue: NetdevQueue) -> None:
    """The driver has room again: if the queue is stopped, what waits is sent."""
    if await cpu.get(queue.address, NETDEV_QUEUE.state) & _DRV_XOFF:
        await fetch_and(cpu, queue.address + NETDEV_QUEUE.state.offset, ~_DRV_XOFF)
        await _netif_schedule(cpu, queue)
