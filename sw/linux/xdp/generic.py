"""Sending in copy mode: an skb for each packet, and the driver's ordinary way out (``xsk_generic_xmit``)."""

from errno import EAGAIN, ENOBUFS

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.mm import PAGE_SIZE, alloc_page, put_page
from sw.linux.skb import SK_BUFF, kfree_skb, napi_build_skb
from sw.linux.softirq import local_bh_disable, local_bh_enable
from sw.linux.spinlock import spin_lock_irqsave, spin_unlock_irqrestore
from sw.linux.xdp.pool import XSK_BUFF_POOL, XskBuffPool
from sw.linux.xdp.queue import (
    XSK_QUEUE,
    xskq_cons_release,
    xskq_count,
    xskq_prod_cancel,
    xskq_prod_reserve,
    xskq_prod_submit,
)
from sw.linux.xdp.tx import xskq_cons_peek_desc
from sw.linux.xdp.xsk import XdpSock

__all__ = ["xsk_destruct_skb", "xsk_generic_xmit"]

#: Most packets of one call.
TX_BATCH_SIZE = 32
#: Bytes in front of a packet (``NET_SKB_PAD``).
_HEADROOM = 64


@function()
async def xsk_generic_xmit(cpu: Cpu, xs: XdpSock) -> int:
    """Send what is on the transmit ring; 0 or a negative errno, EAGAIN when there is more.

    A place on the completion ring is kept for each packet: so nothing has to be kept back later.
    """
    pool, tx = xs.pool, xs.tx
    assert pool is not None and tx is not None and xs.device is not None
    sent = 0
    while True:
        descriptor = await xskq_cons_peek_desc(cpu, tx, pool)
        if descriptor is None:
            await xskq_count(cpu, tx, XSK_QUEUE.queue_empty_descs)
            return 0
        if sent == TX_BATCH_SIZE:
            return -EAGAIN
        address, length, number = descriptor
        if not await _reserve(cpu, pool):
            return 0
        local_bh_disable(cpu)
        skb = await xsk_build_skb(cpu, xs, address, length)
        error = 0 if skb else -ENOBUFS
        if skb and not await xs.device.ndo_start_xmit(cpu, skb, xs.queue):
            cpu.kernel.packet_of.pop(skb, None)
            cpu.put(skb, SK_BUFF.destructor, 0)
            await kfree_skb(cpu, skb)
            error = -EAGAIN
        await local_bh_enable(cpu)
        if error:
            await _cancel(cpu, pool)
            return error
        pool.packet_of.pop(pool.chunk(address), None)
        xskq_cons_release(cpu, tx, number)
        sent += 1


@function()
async def xsk_build_skb(cpu: Cpu, xs: XdpSock, address: int, length: int) -> int:
    """Copy a packet to an skb of its own; 0 if there is no memory."""
    pool = xs.pool
    assert pool is not None
    page = await alloc_page(cpu)
    if not page:
        return 0
    skb = await napi_build_skb(cpu, page, page, PAGE_SIZE, _HEADROOM, length)
    if not skb:
        await put_page(cpu, page)
        return 0
    await skb_store_bits(cpu, page + _HEADROOM, pool.raw_data(address), length)
    cpu.put(skb, SK_BUFF.sk, xs.address)
    cpu.put(skb, SK_BUFF.destructor_arg, address)
    cpu.put(skb, SK_BUFF.destructor, cpu.kernel.text["xsk_destruct_skb"])
    packet = pool.packet_of.get(pool.chunk(address))
    if packet is not None:
        cpu.kernel.packet_of[skb] = packet
    return skb


@function()
async def skb_store_bits(cpu: Cpu, to: int, source: int, length: int) -> None:
    """Copy a packet: a load per line of the source, a store per line of the destination, overlapping."""
    cpu.execute("xsk_copy_64", (length + LINE - 1) // LINE)
    cpu.store(to, await cpu.load_bytes(source, length), length)


@function()
async def xsk_destruct_skb(cpu: Cpu, skb: int) -> None:
    """The card has sent a packet: its chunk goes to the completion ring."""
    sk, address = await cpu.get_all(skb, SK_BUFF.sk, SK_BUFF.destructor_arg)
    pool = cpu.kernel.xdp_sockets[sk].pool
    lock = pool.address + XSK_BUFF_POOL.cq_lock.offset
    enabled = await spin_lock_irqsave(cpu, lock)
    await xskq_prod_submit(cpu, pool.cq, address)
    spin_unlock_irqrestore(cpu, lock, enabled)


async def _reserve(cpu: Cpu, pool: XskBuffPool) -> bool:
    """Keep a place on the completion ring, if there is one."""
    lock = pool.address + XSK_BUFF_POOL.cq_lock.offset
    enabled = await spin_lock_irqsave(cpu, lock)
    reserved = await xskq_prod_reserve(cpu, pool.cq)
    spin_unlock_irqrestore(cpu, lock, enabled)
    return reserved


async def _cancel(cpu: Cpu, pool: XskBuffPool) -> None:
    """Undo :func:`_reserve`."""
    lock = pool.address + XSK_BUFF_POOL.cq_lock.offset
    enabled = await spin_lock_irqsave(cpu, lock)
    await xskq_prod_cancel(cpu, pool.cq)
    spin_unlock_irqrestore(cpu, lock, enabled)
