"""A port of a DPDK program: its queues, its mempool, and the bursts in and out (lib/ethdev)."""

from collections.abc import Callable, Sequence

from sw.core import function
from sw.dpdk.ixgbe_rx import (
    RTE_IXGBE_RXQ_REARM_THRESH,
    IxgbeRxQueue,
    ixgbe_dev_rx_queue_start,
    ixgbe_recv_pkts_vec,
)
from sw.dpdk.ixgbe_rx_bulk import ixgbe_recv_pkts_bulk_alloc
from sw.dpdk.ixgbe_tx import IxgbeTxQueue, ixgbe_xmit_pkts_vec
from sw.dpdk.mbuf import iova, mbuf_pool_bytes, rte_pktmbuf_free_bulk, rte_pktmbuf_pool_create
from sw.dpdk.mempool import Mempool
from sw.ixgbe.hw import (
    IxgbeHw,
    ixgbe_reset_hw,
    ixgbe_rx_enable,
    ixgbe_rx_unit_configure,
    ixgbe_tx_queue_start,
    ixgbe_wait_link,
)
from sw.linux.cpu import Cpu

__all__ = ["EthDev", "free", "rte_eth_dev_start", "rte_eth_rx_burst", "rte_eth_tx_burst"]

#: Pointers in the mempool's cache, as DPDK's example programs have them; fewer in a small pool.
_CACHE = 256


class EthDev:
    """One port with a queue pair and a pool of mbufs, all in huge pages.

    Arguments:
        allocate: hands out memory in huge pages.
        mac: station address.
        ring: descriptors of the receive queue, a power of two.
        tx_ring: descriptors of the transmit queue, likewise; None: as many.
        dma_offset: what is added to a physical address to have the card's (VFIO).
        vector: receive with vector instructions, as DPDK does unless told ``--force-max-simd-bitwidth=64``.

    Raises:
        ValueError: for a ring that the driver does not take.
    """

    def __init__(
        self,
        allocate: Callable[[int], int],
        mac: bytes,
        ring: int,
        promiscuous: bool = False,
        vector: bool = True,
        *,
        tx_ring: int | None = None,
        dma_offset: int = 0,
    ):
        tx_ring = ring if tx_ring is None else tx_ring
        self.hw = IxgbeHw()
        self.mac = mac
        self.promiscuous = promiscuous
        self.dma_offset = dma_offset
        self.rx = IxgbeRxQueue(allocate(IxgbeRxQueue.bytes_needed(ring, vector)), ring, vector=vector)
        self.tx = IxgbeTxQueue(allocate(IxgbeTxQueue.bytes_needed(tx_ring)), tx_ring)
        # What both rings hold, what may be in the program's hands, and what the cache may keep back.
        self._cache = min(_CACHE, ring // 2)
        self._mbufs = ring + tx_ring + 2 * RTE_IXGBE_RXQ_REARM_THRESH + 2 * self._cache
        self._pool_memory = allocate(mbuf_pool_bytes(self._mbufs, self._cache))
        self.pool: Mempool | None = None  #: from :func:`rte_eth_dev_start` on

    def packet(self, mbuf: int) -> tuple[int, int]:
        """Which received packet is in an mbuf, for observers."""
        return self.rx.packet_of[mbuf]


@function()
async def rte_eth_dev_start(cpu: Cpu, dev: EthDev) -> None:
    """Make the pool, reset the card, start both queues. No interrupt is unmasked.

    Raises:
        IxgbeError: if the card does not answer as it should.
    """
    dev.pool = dev.rx.pool = await rte_pktmbuf_pool_create(
        cpu, dev._pool_memory, dev._mbufs, dev._cache, dev.dma_offset
    )
    await ixgbe_reset_hw(cpu, dev.hw, dev.mac)
    await ixgbe_rx_unit_configure(cpu, dev.hw, dev.promiscuous)
    await ixgbe_tx_queue_start(cpu, dev.hw, dev.tx.queue, iova(dev.tx.ring, dev.dma_offset), dev.tx.count)
    dev.tx.init(cpu)
    await ixgbe_dev_rx_queue_start(cpu, dev.hw, dev.rx, dev.dma_offset)
    await ixgbe_rx_enable(cpu, dev.hw)
    await ixgbe_wait_link(cpu, dev.hw)


async def rte_eth_rx_burst(cpu: Cpu, dev: EthDev, most: int) -> Sequence[int]:
    """Take up to ``most`` packets; returns their mbufs."""
    receive = ixgbe_recv_pkts_vec if dev.rx.vector else ixgbe_recv_pkts_bulk_alloc
    mbufs = await receive(cpu, dev.hw, dev.rx, most)
    cpu.note("poll", work=len(mbufs))
    return mbufs


async def rte_eth_tx_burst(cpu: Cpu, dev: EthDev, mbufs: Sequence[int]) -> int:
    """Send packets that this port received; returns how many the card took. The others are the caller's still."""
    assert dev.pool is not None
    packets = [dev.packet(mbuf) for mbuf in mbufs]
    return await ixgbe_xmit_pkts_vec(cpu, dev.hw, dev.tx, dev.pool, mbufs, packets)


async def free(cpu: Cpu, dev: EthDev, mbufs: Sequence[int]) -> None:
    """Give mbufs back to the pool."""
    assert dev.pool is not None
    if mbufs:
        await rte_pktmbuf_free_bulk(cpu, dev.pool, mbufs)
