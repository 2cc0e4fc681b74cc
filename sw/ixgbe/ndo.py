"""What the driver offers the network stack (``ixgbe_netdev_ops``; ixgbe_xsk.c, ixgbe_main.c)."""

from dataclasses import dataclass
from errno import EINVAL

from hw.nic.descriptors import DESCRIPTOR_BYTES
from hw.nic.registers import REG
from sw.bpf.context import XDP_RXQ_INFO
from sw.core import function
from sw.ixgbe.hw import ixgbe_rx_queue_start, ixgbe_rx_queue_stop, ixgbe_tx_queue_start, ixgbe_tx_queue_stop
from sw.ixgbe.main import VECTOR, IxgbeAdapter
from sw.ixgbe.rx import ixgbe_clean_rx_ring, ixgbe_init_rx_ring
from sw.ixgbe.tx import IxgbeTxRing, ixgbe_init_tx_ring
from sw.ixgbe.xsk import ixgbe_alloc_rx_buffers_zc
from sw.linux.cpu import Cpu
from sw.linux.napi import napi_disable, napi_enable, napi_if_scheduled_mark_missed
from sw.linux.net.sch_generic import dev_direct_xmit
from sw.linux.xdp.pool import XDP_WAKEUP_RX, XskBuffPool, xp_dma_map, xp_set_rxq_info
from sw.linux.xdp.xsk import MEM_TYPE_XSK_BUFF_POOL

__all__ = ["IxgbeNetdev"]


@dataclass(slots=True, eq=False)
class IxgbeNetdev:
    """The adapter as a network device; see ``sw.linux.xdp.xsk.XdpDevice``."""

    adapter: IxgbeAdapter
    tx: IxgbeTxRing | None  #: by which the kernel itself sends, if it does
    ifindex: int = 2  #: the loopback device is 1
    queues: int = 1  #: pairs of queues in use

    async def ndo_setup_xsk_pool(self, cpu: Cpu, pool: XskBuffPool, queue: int) -> int:
        """Use a socket's chunks as buffers of a queue from now on; 0 or a negative errno."""
        if queue != self.adapter.ring.queue or self.adapter.ring.xdp is None:
            return -EINVAL
        await xp_dma_map(cpu, pool)
        await ixgbe_txrx_ring_disable(cpu, self.adapter)
        await ixgbe_txrx_ring_enable_zc(cpu, self.adapter, pool)
        return await self.ndo_xsk_wakeup(cpu, queue, XDP_WAKEUP_RX)

    async def ndo_start_xmit(self, cpu: Cpu, skb: int, queue: int) -> bool:
        """Send a packet by the kernel's transmit queue (``__dev_direct_xmit``); false if that is full."""
        if self.tx is None or self.tx.queue != queue:
            return False
        assert self.tx.netdev_queue is not None
        return await dev_direct_xmit(cpu, self.tx.netdev_queue, skb)

    async def ndo_xsk_wakeup(self, cpu: Cpu, queue: int, flags: int) -> int:
        """Have the queue polled soon; 0 or a negative errno."""
        return await ixgbe_xsk_wakeup(cpu, self.adapter, queue, flags)


@function()
async def ixgbe_txrx_ring_disable(cpu: Cpu, adapter: IxgbeAdapter) -> None:
    """Take the queue's rings from the card and free what is in them."""
    ring, xdp = adapter.ring, adapter.ring.xdp
    await ixgbe_tx_queue_stop(cpu, adapter.hw, xdp.ring.queue)
    await ixgbe_rx_queue_stop(cpu, adapter.hw, ring.queue)
    await napi_disable(cpu, adapter.napi)
    await ixgbe_clean_rx_ring(cpu, ring)


@function()
async def ixgbe_txrx_ring_enable_zc(cpu: Cpu, adapter: IxgbeAdapter, pool: XskBuffPool) -> None:
    """Give the card its rings again, with a socket's chunks as buffers (``ixgbe_txrx_ring_enable``)."""
    ring, xdp = adapter.ring, adapter.ring.xdp
    ring.xsk_pool = xdp.ring.xsk_pool = pool
    ixgbe_init_tx_ring(cpu, xdp.ring)
    await ixgbe_tx_queue_start(cpu, adapter.hw, xdp.ring.queue, xdp.ring.dma, xdp.ring.count)
    cpu.put(xdp.rxq, XDP_RXQ_INFO.mem_type, MEM_TYPE_XSK_BUFF_POOL)
    await xp_set_rxq_info(cpu, pool, xdp.rxq)
    cpu.store(ring.descriptors, bytes(DESCRIPTOR_BYTES), DESCRIPTOR_BYTES)
    # The card knows the size of its buffers in KiB: what it must not write to is left out.
    size = pool.frame_len // 1024 * 1024
    await ixgbe_rx_queue_start(cpu, adapter.hw, ring.queue, ring.dma, ring.count, size)
    ixgbe_init_rx_ring(cpu, ring)
    await ixgbe_alloc_rx_buffers_zc(cpu, ring, adapter.hw, ring.count - 1)
    napi_enable(cpu, adapter.napi)


@function()
async def ixgbe_xsk_wakeup(cpu: Cpu, adapter: IxgbeAdapter, queue: int, flags: int) -> int:
    """Have a poll repeated that is under way, or raise the queue's interrupt."""
    if queue != adapter.ring.queue or adapter.ring.xsk_pool is None:
        return -EINVAL
    if not await napi_if_scheduled_mark_missed(cpu, adapter.napi):
        adapter.hw.write(cpu, REG.EICS, 1 << VECTOR)
    return 0
