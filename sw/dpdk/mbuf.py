"""Packet buffers: ``struct rte_mbuf``, two lines, in front of the packet's bytes (lib/mbuf)."""

from collections.abc import Sequence

from sw.core import LINE, function
from sw.dpdk.mempool import Mempool, rte_mempool_create, rte_mempool_put_bulk
from sw.linux.cpu import Cpu
from sw.paging import PHYSICAL_MASK
from sw.structs import Struct

__all__ = [
    "RTE_MBUF",
    "RTE_MBUF_DEFAULT_BUF_SIZE",
    "RTE_PKTMBUF_HEADROOM",
    "mbuf_pool_bytes",
    "rte_pktmbuf_free_bulk",
    "rte_pktmbuf_pool_create",
    "rte_pktmbuf_prefree_seg",
]

RTE_PKTMBUF_HEADROOM = 128
#: Bytes behind the structure: headroom and 2048 bytes of packet.
RTE_MBUF_DEFAULT_BUF_SIZE = RTE_PKTMBUF_HEADROOM + 2048

#: ``struct rte_mbuf`` (lib/mbuf/rte_mbuf_core.h).
RTE_MBUF = Struct(
    2 * LINE,
    buf_addr=8,
    buf_iova=8,
    # rearm_data, written as one when a descriptor completes
    data_off=2,
    refcnt=2,
    nb_segs=2,
    port=2,
    ol_flags=8,
    # rx_descriptor_fields1, likewise
    packet_type=4,
    pkt_len=4,
    data_len=2,
    vlan_tci=2,
    rss=4,
    pad=6,
    buf_len=2,
    pool=8,
    # second line
    next=8,
)

_MBUF_BYTES = RTE_MBUF.size + RTE_MBUF_DEFAULT_BUF_SIZE


def mbuf_pool_bytes(count: int, cache_size: int) -> int:
    """Memory for a pool of ``count`` mbufs."""
    return Mempool.bytes_needed(count, _MBUF_BYTES, cache_size)


@function()
async def rte_pktmbuf_pool_create(cpu: Cpu, memory: int, count: int, cache_size: int, dma_offset: int = 0) -> Mempool:
    """Make a pool of ``count`` mbufs and initialise each (``rte_pktmbuf_init``)."""
    pool = Mempool(memory, count, _MBUF_BYTES, cache_size)
    await rte_mempool_create(cpu, pool)
    for index in range(count):
        mbuf = pool.object(index)
        buffer = mbuf + RTE_MBUF.size
        cpu.store(
            mbuf,
            RTE_MBUF.pack(
                buf_addr=buffer,
                buf_iova=iova(buffer, dma_offset),
                data_off=RTE_PKTMBUF_HEADROOM,
                refcnt=1,
                nb_segs=1,
                buf_len=RTE_MBUF_DEFAULT_BUF_SIZE,
                pool=pool.cache,
            ),
            RTE_MBUF.size,
        )
        if index % 32 == 31:
            await cpu.drain()
    return pool


def iova(address: int, dma_offset: int = 0) -> int:
    """The address under which the card sees ``address``: the physical one (``RTE_IOVA_PA``), or one chosen (VFIO)."""
    return (address & PHYSICAL_MASK) + dma_offset


@function()
async def rte_pktmbuf_free_bulk(cpu: Cpu, pool: Mempool, mbufs: Sequence[int]) -> None:
    """Give mbufs of one segment and one reference back to their pool."""
    cpu.execute("__rte_pktmbuf_free_seg_via_array", len(mbufs))
    for mbuf in mbufs:
        rte_pktmbuf_prefree_seg(cpu, mbuf)
    await rte_mempool_put_bulk(cpu, pool, mbufs)


def rte_pktmbuf_prefree_seg(cpu: Cpu, mbuf: int) -> None:
    """Look at the reference count and at the second line of an mbuf; it is inlined, its cost part of the loop's."""
    cpu.touch(mbuf + RTE_MBUF.refcnt.offset, 2)
    cpu.touch(mbuf + RTE_MBUF.next.offset, 8)
