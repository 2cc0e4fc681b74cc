"""What programs send by AF_XDP sockets, as drivers take it in zero-copy mode (net/xdp/xsk.c)."""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.xdp.if_xdp import XDP_DESC, XDP_RING, XDP_RING_NEED_WAKEUP
from sw.linux.xdp.pool import XDP_WAKEUP_TX, XSK_BUFF_POOL, XskBuffPool
from sw.linux.xdp.queue import (
    XSK_QUEUE,
    XskQueue,
    xskq_cons_peek_entry,
    xskq_cons_publish,
    xskq_cons_release,
    xskq_count,
    xskq_prod_reserve_addr,
    xskq_prod_submit_n,
)

__all__ = [
    "xsk_set_tx_need_wakeup",
    "xsk_tx_completed",
    "xsk_tx_peek_desc",
    "xsk_tx_release",
    "xskq_cons_peek_desc",
]


async def xskq_cons_peek_desc(cpu: Cpu, tx: XskQueue, pool: XskBuffPool) -> tuple[int, int, int] | None:
    """The next descriptor of a transmit ring: address, length, number of the entry; None if there is none.

    Those that reach out of their chunk or out of the UMEM are counted and left out (``xskq_cons_read_desc``).
    """
    while True:
        number = await xskq_cons_peek_entry(cpu, tx)
        if number is None:
            return None
        address, length, options = XDP_DESC.unpack(await cpu.load(tx.entry(number), XDP_DESC.size))
        chunk = pool.umem.chunk_size
        if address % chunk + length <= chunk and address < pool.umem.size and not options:
            return address, length, number
        packet = pool.packet_of.pop(pool.chunk(address), None)
        if packet is not None:
            cpu.note("dropped", packet=packet, reason="tx_invalid_descs")
        await xskq_count(cpu, tx, XSK_QUEUE.invalid_descs)
        xskq_cons_release(cpu, tx, number)


@function()
async def xsk_tx_peek_desc(cpu: Cpu, pool: XskBuffPool) -> tuple[int, int] | None:
    """Take the next packet: its address and length, None if there is none or the completion ring is full."""
    assert pool.tx is not None
    descriptor = await xskq_cons_peek_desc(cpu, pool.tx, pool)
    if descriptor is None:
        await xskq_count(cpu, pool.tx, XSK_QUEUE.queue_empty_descs)
        return None
    address, length, number = descriptor
    # A place for it is kept on the completion ring: so nothing has to be kept back later.
    if not await xskq_prod_reserve_addr(cpu, pool.cq, address):
        return None
    xskq_cons_release(cpu, pool.tx, number)
    return address, length


@function()
async def xsk_tx_release(cpu: Cpu, pool: XskBuffPool) -> None:
    """Tell the program of the packets that were taken."""
    assert pool.tx is not None
    await xskq_cons_publish(cpu, pool.tx)


@function()
async def xsk_tx_completed(cpu: Cpu, pool: XskBuffPool, count: int) -> None:
    """Give back chunks that the card has sent."""
    await xskq_prod_submit_n(cpu, pool.cq, count)


async def xsk_set_tx_need_wakeup(cpu: Cpu, pool: XskBuffPool) -> None:
    """Have the program call when it has something to send."""
    cached = await cpu.get(pool.address, XSK_BUFF_POOL.cached_need_wakeup)
    if cached & XDP_WAKEUP_TX:
        return
    if pool.tx is not None:
        flags = await cpu.get(pool.tx.ring, XDP_RING.flags)
        cpu.put(pool.tx.ring, XDP_RING.flags, flags | XDP_RING_NEED_WAKEUP)
    cpu.put(pool.address, XSK_BUFF_POOL.cached_need_wakeup, cached | XDP_WAKEUP_TX)
