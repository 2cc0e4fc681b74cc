"""Receiving: cleaning the ring, building skbs around the card's buffers, giving buffers back."""

from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ, RX_WRITE_BACK
from hw.nic.registers import REG
from sw.core import function
from sw.ixgbe.hw import IxgbeHw
from sw.ixgbe.ring import (
    IXGBE_RX_BUFFER,
    IXGBE_RX_BUFFER_WRITE,
    IXGBE_RX_BUFSZ,
    IXGBE_SKB_PAD,
    RX_RING,
    IxgbeRing,
)
from sw.ixgbe.xdp import XdpResult, ixgbe_run_xdp, ixgbe_xdp_ring_update_tail
from sw.linux.atomic import atomic_add
from sw.linux.cpu import Cpu
from sw.linux.mm import alloc_page, put_page
from sw.linux.net.ethernet import ETH_HLEN, eth_type_trans
from sw.linux.skb import SK_BUFF, IpSummed, napi_build_skb
from sw.linux.xdp.xsk import xdp_do_flush_map

__all__ = [
    "ixgbe_alloc_rx_buffers",
    "ixgbe_clean_rx_irq",
    "ixgbe_clean_rx_ring",
    "ixgbe_init_rx_ring",
    "ixgbe_next_status",
]

#: References taken on a page at once, so that handing half of it up changes only the driver's own count.
_PAGE_REFERENCES = 0xFFFF

#: The upper half of a write-back is read in one piece; it is there when its length is not zero.
_UPPER = DESCRIPTOR_BYTES // 2


def _upper_field(name: str) -> tuple[int, int]:
    """Shift and mask of a write-back field within the descriptor's upper half."""
    offset, mask = RX_WRITE_BACK.fields[name]
    return offset - 8 * _UPPER, mask


_LENGTH_SHIFT, _LENGTH_MASK = _upper_field("length")
_EOP_SHIFT, _ = _upper_field("eop")
_FRAME_ERRORS = 0
for _name in ("crc_error", "length_error", "receive_error"):
    _FRAME_ERRORS |= 1 << _upper_field(_name)[0]
_L4CS = 1 << _upper_field("l4cs")[0]
_CHECKSUM_ERRORS = 1 << _upper_field("l4_error")[0] | 1 << _upper_field("ip_error")[0]


def ixgbe_init_rx_ring(cpu: Cpu, ring: IxgbeRing) -> None:
    """An empty ring; buffers and descriptors are zero as memory was."""
    cpu.store(ring.state, bytes(RX_RING.size), RX_RING.size)


@function()
async def ixgbe_alloc_rx_buffers(cpu: Cpu, ring: IxgbeRing, hw: IxgbeHw, wanted: int) -> int:
    """Give up to ``wanted`` descriptors with buffers to the card; returns how many it got.

    The descriptor behind the last one is cleared, for what it announced has been taken and must not be read twice.
    """
    next_to_use, loaded = await cpu.chase(*RX_RING.next_to_use.at(ring.state))
    given = 0
    dma_offset = cpu.kernel.dma.page_offset
    while given < wanted:
        buffer = ring.buffers + next_to_use * IXGBE_RX_BUFFER.size
        page, page_offset, _ = IXGBE_RX_BUFFER.unpack(await cpu.load(buffer, IXGBE_RX_BUFFER.size, after=loaded))
        if not page:
            page = await alloc_page(cpu, _PAGE_REFERENCES)
            if not page:
                failed = await cpu.get(ring.state, RX_RING.alloc_rx_page_failed)
                cpu.put(ring.state, RX_RING.alloc_rx_page_failed, failed + 1)
                break
            page_offset = IXGBE_SKB_PAD
            values = {"page": page, "page_offset": page_offset, "pagecnt_bias": _PAGE_REFERENCES}
            cpu.store(buffer, IXGBE_RX_BUFFER.pack(**values), IXGBE_RX_BUFFER.size)
        cpu.execute("ixgbe_alloc_rx_descriptor")
        descriptor = RX_READ.pack(packet_address=page + page_offset + dma_offset)
        cpu.store(ring.descriptors + next_to_use * DESCRIPTOR_BYTES, descriptor, DESCRIPTOR_BYTES)
        next_to_use = (next_to_use + 1) % ring.count
        given += 1
    if given:
        cpu.store(ring.descriptors + next_to_use * DESCRIPTOR_BYTES + _UPPER, 0, _UPPER)
        cpu.put(ring.state, RX_RING.next_to_use, next_to_use)
        cpu.put(ring.state, RX_RING.next_to_alloc, next_to_use)
        hw.write(cpu, REG.RDT, next_to_use, ring.queue)
    return given


async def ixgbe_next_status(cpu: Cpu, ring: IxgbeRing) -> int:
    """Address of the 8 bytes that are 0 until the card has completed the next descriptor."""
    return ring.descriptors + await cpu.get(ring.state, RX_RING.next_to_clean) * DESCRIPTOR_BYTES + _UPPER


@function()
async def ixgbe_clean_rx_irq(cpu: Cpu, ring: IxgbeRing, hw: IxgbeHw, budget: int) -> int:
    """Take up to ``budget`` packets from the ring to the network stack; returns how many.

    ``budget`` is returned too when memory for new buffers was short, so that the poll is repeated: a card without
    descriptors would not interrupt again.
    """
    state, loaded = await cpu.chase(ring.state, RX_RING.size)
    next_to_clean = RX_RING.next_to_clean.of(state)
    unused = (next_to_clean - RX_RING.next_to_use.of(state) - 1) % ring.count
    packets = 0
    total_bytes = 0
    short = False
    sent_before = ring.xdp.ring.frames if ring.xdp is not None else 0
    while packets < budget:
        if unused >= IXGBE_RX_BUFFER_WRITE:
            given = await ixgbe_alloc_rx_buffers(cpu, ring, hw, unused)
            short = given < unused
            unused -= given
        upper = await cpu.load(ring.descriptors + next_to_clean * DESCRIPTOR_BYTES + _UPPER, _UPPER, after=loaded)
        length = upper >> _LENGTH_SHIFT & _LENGTH_MASK
        if not length:
            break
        cpu.execute("ixgbe_clean_rx_descriptor")
        buffer = ring.buffers + next_to_clean * IXGBE_RX_BUFFER.size
        next_to_clean = (next_to_clean + 1) % ring.count
        cpu.put(ring.state, RX_RING.next_to_clean, next_to_clean)
        cpu.prefetch(ring.descriptors + next_to_clean * DESCRIPTOR_BYTES)
        unused += 1
        ring.completed += 1
        skb = await _take_buffer(cpu, ring, buffer, upper, length, loaded)
        packets += upper >> _EOP_SHIFT & 1
        if skb:
            total_bytes += length
            if ring.napi_id:
                cpu.put(skb, SK_BUFF.napi_id, ring.napi_id)
            await ring.receive(cpu, skb)
    if ring.xdp is not None and ring.xdp.sockets is not None:
        await xdp_do_flush_map(cpu, ring.xdp.sockets)
    if ring.xdp is not None and ring.xdp.ring.frames != sent_before:
        await ixgbe_xdp_ring_update_tail(cpu, hw, ring.xdp.ring)
    if packets:
        cpu.put(ring.state, RX_RING.packets, RX_RING.packets.of(state) + packets)
        cpu.put(ring.state, RX_RING.bytes, RX_RING.bytes.of(state) + total_bytes)
    return budget if short else packets


async def _take_buffer(cpu: Cpu, ring: IxgbeRing, buffer: int, upper: int, length: int, after: int) -> int:
    """Make an skb of a completed buffer and recycle the other half of its page; 0 if the packet is dropped here.

    ``buffer`` is known since load ``after``.
    """
    contents, loaded = await cpu.chase(buffer, IXGBE_RX_BUFFER.size, after=after)
    page, page_offset, bias = IXGBE_RX_BUFFER.unpack(contents)
    data = page + page_offset
    cpu.prefetch(data)
    last = upper >> _EOP_SHIFT & 1
    packet = (ring.queue, ring.completed - 1)
    skb = 0
    reason = ""
    if not last or ring.in_frame:
        # Buffers hold the largest frame the card is told to accept, so no frame should take two.
        reason = "PKT_TOO_BIG"
    elif upper & _FRAME_ERRORS:
        reason = "NOT_SPECIFIED"
    elif length < ETH_HLEN:
        reason = "PKT_TOO_SMALL"
    else:
        start = data - IXGBE_SKB_PAD
        if ring.xdp is not None:
            result, data, length = await ixgbe_run_xdp(cpu, ring.xdp, packet, page, start, data, length, IXGBE_RX_BUFSZ)
            if result is not XdpResult.PASS:
                handed_on = result in (XdpResult.TX, XdpResult.REDIRECT)
                await _put_rx_buffer(cpu, ring, buffer, page, page_offset, bias, handed_on, loaded)
                return 0
        cpu.execute("ixgbe_build_skb")
        skb = await napi_build_skb(cpu, page, start, IXGBE_RX_BUFSZ, data - start, length)
        reason = "" if skb else "NOMEM"
    ring.in_frame = not last
    if reason and last:
        cpu.kernel.drops[reason] = cpu.kernel.drops.get(reason, 0) + 1
        cpu.note("dropped", reason=reason, packet=packet)
    await _put_rx_buffer(cpu, ring, buffer, page, page_offset, bias, bool(skb), loaded)
    if skb:
        cpu.kernel.packet_of[skb] = packet
        await _process_skb_fields(cpu, skb, data, upper, length, loaded)
    return skb


async def ixgbe_clean_rx_ring(cpu: Cpu, ring: IxgbeRing) -> None:
    """Free the pages of a ring that the card no longer has."""
    for number in range(ring.count):
        buffer = ring.buffers + number * IXGBE_RX_BUFFER.size
        page, _, bias = IXGBE_RX_BUFFER.unpack(await cpu.load(buffer, IXGBE_RX_BUFFER.size))
        if page:
            await put_page(cpu, page, bias)
            cpu.store(buffer, bytes(IXGBE_RX_BUFFER.size), IXGBE_RX_BUFFER.size)


async def _put_rx_buffer(
    cpu: Cpu, ring: IxgbeRing, buffer: int, page: int, page_offset: int, bias: int, handed_up: bool, after: int
) -> None:
    """Move a page whose other half is free to the next descriptor to be filled, else let go of it.

    The page's reference count less the driver's own count is the number of halves that packets still use. ``page`` is
    known since load ``after``.
    """
    reusable = True
    if handed_up:
        bias -= 1
        references = await cpu.load(cpu.kernel.pages.refcount(page), 4, after=after)
        reusable = references - bias <= 1
        page_offset ^= IXGBE_RX_BUFSZ
    cpu.store(buffer, bytes(IXGBE_RX_BUFFER.size), IXGBE_RX_BUFFER.size)
    if not reusable:
        await put_page(cpu, page, bias)
        return
    if bias == 1:
        await atomic_add(cpu, _PAGE_REFERENCES - 1, cpu.kernel.pages.refcount(page))
        bias = _PAGE_REFERENCES
    next_to_alloc = await cpu.get(ring.state, RX_RING.next_to_alloc)
    reused = IXGBE_RX_BUFFER.pack(page=page, page_offset=page_offset, pagecnt_bias=bias)
    cpu.store(ring.buffers + next_to_alloc * IXGBE_RX_BUFFER.size, reused, IXGBE_RX_BUFFER.size)
    cpu.put(ring.state, RX_RING.next_to_alloc, (next_to_alloc + 1) % ring.count)


async def _process_skb_fields(cpu: Cpu, skb: int, data: int, upper: int, length: int, after: int) -> None:
    """What the descriptor and the Ethernet header say of the packet at ``data``, known since load ``after``."""
    cpu.execute("ixgbe_process_skb_fields")
    if upper & _L4CS and not upper & _CHECKSUM_ERRORS:
        cpu.put(skb, SK_BUFF.ip_summed, IpSummed.UNNECESSARY)
    await eth_type_trans(cpu, skb, data, length, after)
