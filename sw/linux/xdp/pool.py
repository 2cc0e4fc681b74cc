"""The chunks of a UMEM as buffers of the kernel and of the card (net/xdp/xsk_buff_pool.c).

Each chunk has a ``struct xdp_buff_xsk``. A buffer is taken from the free list if one came back unused, else the program
gives it by the fill ring; where it goes then, to the receive ring or back to the free list, is the receiver's choice.
"""

from dataclasses import dataclass, field

from sw.bpf.context import XDP_BUFF
from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.list import LIST_HEAD, init_list_head, list_add_tail, list_del, list_empty
from sw.linux.spinlock import SPINLOCK_BYTES
from sw.linux.xdp.area import XdpArea
from sw.linux.xdp.if_xdp import XDP_RING, XDP_RING_NEED_WAKEUP
from sw.linux.xdp.queue import XSK_QUEUE, XskQueue, xskq_cons_peek_addr, xskq_cons_release, xskq_count
from sw.linux.xdp.umem import XDP_PACKET_HEADROOM, XdpUmem
from sw.paging import PHYSICAL_MASK
from sw.structs import Struct

__all__ = [
    "XDP_BUFF_XSK",
    "XDP_WAKEUP_RX",
    "XDP_WAKEUP_TX",
    "XSK_BUFF_POOL",
    "XskBuffPool",
    "xp_alloc",
    "xp_create_and_assign_umem",
    "xp_dma_map",
    "xp_free",
    "xp_get_handle",
    "xp_set_rxq_info",
    "xsk_clear_rx_need_wakeup",
    "xsk_set_rx_need_wakeup",
]

#: What the kernel has to be woken for (include/linux/netdevice.h).
XDP_WAKEUP_RX = 1 << 0
XDP_WAKEUP_TX = 1 << 1

#: ``struct xsk_buff_pool``, the members that change.
XSK_BUFF_POOL = Struct(LINE, free_list=16, free_list_cnt=4, cq_lock=SPINLOCK_BYTES, cached_need_wakeup=1)

#: ``struct xdp_buff_xsk``, one per chunk; it begins with the ``struct xdp_buff`` that a program is run on.
XDP_BUFF_XSK = Struct(
    2 * LINE, xdp=XDP_BUFF.size, cb=24, dma=8, frame_dma=8, pool=8, orig_addr=8, free_list_node=LIST_HEAD.size
)
_NODE = XDP_BUFF_XSK.free_list_node.offset


@dataclass(slots=True, eq=False)
class XskBuffPool:
    """The buffers of one socket."""

    address: int  #: of the :data:`XSK_BUFF_POOL`
    heads: int  #: address of the array of :data:`XDP_BUFF_XSK`, by chunk
    umem: XdpUmem
    fq: XskQueue
    cq: XskQueue
    tx: XskQueue | None = None  #: transmit ring of the socket, once it is bound
    uses_need_wakeup: bool = False
    dma_offset: int = 0  #: what is added to a physical address to have the card's
    #: Which received packet is in each chunk that has one, for observers.
    packet_of: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def frame_len(self) -> int:
        """Bytes of a packet that a chunk has room for (``xsk_pool_get_rx_frame_size``)."""
        return self.umem.chunk_size - self.umem.headroom - XDP_PACKET_HEADROOM

    @staticmethod
    def bytes_needed(chunks: int) -> int:
        """Memory for a pool."""
        return XSK_BUFF_POOL.size + chunks * XDP_BUFF_XSK.size

    def head(self, address: int) -> int:
        """The :data:`XDP_BUFF_XSK` of the chunk that ``address``, counted from the start of the UMEM, lies in."""
        return self.heads + self.chunk(address) * XDP_BUFF_XSK.size

    def chunk(self, address: int) -> int:
        """Number of the chunk that ``address``, counted from the start of the UMEM, lies in."""
        return address // self.umem.chunk_size

    def raw_data(self, address: int) -> int:
        """Where the kernel has what lies at ``address`` of the UMEM (``xp_raw_get_data``)."""
        return self.umem.address + address

    def raw_dma(self, address: int) -> int:
        """Where the card has it (``xp_raw_get_dma``): pages are pinned."""
        return (self.raw_data(address) & PHYSICAL_MASK) + self.dma_offset


async def xp_create_and_assign_umem(cpu: Cpu, area: XdpArea, umem: XdpUmem, fq: XskQueue, cq: XskQueue) -> XskBuffPool:
    """Make a pool with a buffer for each chunk.

    Raises:
        XskError: ENOMEM.
    """
    pool = XskBuffPool(
        area.allocate(XSK_BUFF_POOL.size), area.allocate(umem.chunks * XDP_BUFF_XSK.size, 2 * LINE), umem, fq, cq
    )
    init_list_head(cpu, pool.address + XSK_BUFF_POOL.free_list.offset)
    cpu.put(pool.address, XSK_BUFF_POOL.cached_need_wakeup, XDP_WAKEUP_TX)
    for number in range(umem.chunks):
        xskb = pool.heads + number * XDP_BUFF_XSK.size
        address = number * umem.chunk_size
        start = pool.raw_data(address) + umem.headroom
        buff = XDP_BUFF.pack(data_hard_start=start, frame_sz=umem.chunk_size - umem.headroom)
        cpu.store(xskb, buff, XDP_BUFF.size)
        cpu.put(xskb, XDP_BUFF_XSK.pool, pool.address)
        cpu.put(xskb, XDP_BUFF_XSK.orig_addr, address)
        init_list_head(cpu, xskb + _NODE)
        if number % 32 == 31:
            await cpu.drain()
    return pool


async def xp_dma_map(cpu: Cpu, pool: XskBuffPool) -> None:
    """Note down where the card finds each chunk, and in it the packet."""
    physical = pool.umem.address & PHYSICAL_MASK
    pool.dma_offset = cpu.kernel.dma.address(physical) - physical
    for number in range(pool.umem.chunks):
        xskb = pool.heads + number * XDP_BUFF_XSK.size
        frame = pool.raw_dma(number * pool.umem.chunk_size)
        cpu.put(xskb, XDP_BUFF_XSK.frame_dma, frame)
        cpu.put(xskb, XDP_BUFF_XSK.dma, frame + pool.umem.headroom + XDP_PACKET_HEADROOM)
        if number % 64 == 63:
            await cpu.drain()


async def xp_set_rxq_info(cpu: Cpu, pool: XskBuffPool, rxq: int) -> None:
    """Say on which receive queue (address of the ``struct xdp_rxq_info``) the buffers are used."""
    for number in range(pool.umem.chunks):
        cpu.put(pool.heads + number * XDP_BUFF_XSK.size, XDP_BUFF.rxq, rxq)
        if number % 64 == 63:
            await cpu.drain()


@function()
async def xp_alloc(cpu: Cpu, pool: XskBuffPool) -> int:
    """Take a buffer: the address of its :data:`XDP_BUFF_XSK`, 0 if there is none."""
    free, loaded = await cpu.chase(*XSK_BUFF_POOL.free_list_cnt.at(pool.address))
    if free:
        cpu.put(pool.address, XSK_BUFF_POOL.free_list_cnt, free - 1)
        node, loaded = await cpu.chase(*LIST_HEAD.next.at(pool.address + XSK_BUFF_POOL.free_list.offset))
        await list_del(cpu, node, after=loaded)
        init_list_head(cpu, node)
        xskb = node - _NODE
    else:
        xskb = await _alloc_from_fill_ring(cpu, pool)
        if not xskb:
            return 0
    start = await cpu.get(xskb, XDP_BUFF.data_hard_start)
    cpu.put(xskb, XDP_BUFF.data, start + XDP_PACKET_HEADROOM)
    cpu.put(xskb, XDP_BUFF.data_meta, start + XDP_PACKET_HEADROOM)
    return xskb


async def _alloc_from_fill_ring(cpu: Cpu, pool: XskBuffPool) -> int:
    """The next chunk of the fill ring (``__xp_alloc``); addresses outside the UMEM are counted and left out."""
    while True:
        entry = await xskq_cons_peek_addr(cpu, pool.fq)
        if entry is None:
            await xskq_count(cpu, pool.fq, XSK_QUEUE.queue_empty_descs)
            return 0
        address, number = entry
        xskq_cons_release(cpu, pool.fq, number)
        if address < pool.umem.size:
            return pool.head(address)
        await xskq_count(cpu, pool.fq, XSK_QUEUE.invalid_descs)


@function()
async def xp_free(cpu: Cpu, pool: XskBuffPool, xskb: int) -> None:
    """Put a buffer that carries nothing on the free list, unless it is there already.

    The kernel puts it first; here the list is in order.
    """
    node = xskb + _NODE
    if not await list_empty(cpu, node):
        return
    free = await cpu.get(pool.address, XSK_BUFF_POOL.free_list_cnt)
    cpu.put(pool.address, XSK_BUFF_POOL.free_list_cnt, free + 1)
    await list_add_tail(cpu, node, pool.address + XSK_BUFF_POOL.free_list.offset)


async def xp_get_handle(cpu: Cpu, pool: XskBuffPool, xskb: int) -> int:
    """Where a buffer's packet begins, counted from the start of the UMEM."""
    data, start = await cpu.get_all(xskb, XDP_BUFF.data, XDP_BUFF.data_hard_start)
    return await cpu.get(xskb, XDP_BUFF_XSK.orig_addr) + pool.umem.headroom + data - start


async def xsk_set_rx_need_wakeup(cpu: Cpu, pool: XskBuffPool) -> None:
    """Have the program call when it has filled the fill ring."""
    await _change_rx_need_wakeup(cpu, pool, True)


async def xsk_clear_rx_need_wakeup(cpu: Cpu, pool: XskBuffPool) -> None:
    """Undo :func:`xsk_set_rx_need_wakeup`."""
    await _change_rx_need_wakeup(cpu, pool, False)


async def _change_rx_need_wakeup(cpu: Cpu, pool: XskBuffPool, needed: bool) -> None:
    cached = await cpu.get(pool.address, XSK_BUFF_POOL.cached_need_wakeup)
    if bool(cached & XDP_WAKEUP_RX) == needed:
        return
    flags = await cpu.get(pool.fq.ring, XDP_RING.flags)
    cpu.put(pool.fq.ring, XDP_RING.flags, flags ^ XDP_RING_NEED_WAKEUP)
    cpu.put(pool.address, XSK_BUFF_POOL.cached_need_wakeup, cached ^ XDP_WAKEUP_RX)
