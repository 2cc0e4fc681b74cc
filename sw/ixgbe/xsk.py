"""Zero-copy AF_XDP in the driver: the card's buffers are chunks of a program's UMEM (ixgbe_xsk.c)."""

from errno import ENOBUFS

from hw.nic.descriptors import DESCRIPTOR_BYTES, TX_WRITE_BACK
from hw.nic.registers import REG
from sw.bpf.context import XDP_BUFF, XdpAction
from sw.core import LINE, function
from sw.ixgbe.hw import IxgbeHw, tx_data
from sw.ixgbe.ring import IXGBE_RX_BUFFER, IXGBE_RX_BUFFER_WRITE, IXGBE_RX_BUFSZ, IXGBE_SKB_PAD, RX_RING, IxgbeRing
from sw.ixgbe.rx import (
    _EOP_SHIFT,
    _FRAME_ERRORS,
    _LENGTH_MASK,
    _LENGTH_SHIFT,
    _UPPER,
    _process_skb_fields,
)
from sw.ixgbe.tx import IXGBE_TX_BUFFER, TX_RING, IxgbeTxRing
from sw.ixgbe.xdp import IxgbeXdp, XdpResult, ixgbe_xdp_ring_update_tail
from sw.linux.cpu import Cpu
from sw.linux.mm import alloc_page, put_page
from sw.linux.net.dev import napi_gro_receive
from sw.linux.net.ethernet import ETH_HLEN
from sw.linux.skb import napi_build_skb
from sw.linux.xdp.pool import (
    XDP_BUFF_XSK,
    XskBuffPool,
    xp_alloc,
    xp_free,
    xsk_clear_rx_need_wakeup,
    xsk_set_rx_need_wakeup,
)
from sw.linux.xdp.redirect import redirect_drop_reason, xdp_do_redirect
from sw.linux.xdp.tx import xsk_set_tx_need_wakeup, xsk_tx_completed, xsk_tx_peek_desc, xsk_tx_release
from sw.linux.xdp.xsk import xdp_do_flush_map
from sw.structs import Struct

__all__ = [
    "ixgbe_alloc_rx_buffers_zc",
    "ixgbe_clean_rx_irq_zc",
    "ixgbe_clean_xdp_tx_irq",
    "ixgbe_xmit_zc",
    "ixgbe_xsk_clean_rx_ring",
]

#: ``struct ixgbe_rx_buffer`` of such a ring: the buffer, and whether it begins in the middle of a frame.
RX_BUFFER_ZC = Struct(IXGBE_RX_BUFFER.size, discard=1, xdp=8)

_DD_OFFSET, _DD_MASK = TX_WRITE_BACK.fields["dd"]


@function()
async def ixgbe_alloc_rx_buffers_zc(cpu: Cpu, ring: IxgbeRing, hw: IxgbeHw, count: int) -> bool:
    """Give the card ``count`` chunks; whether the fill ring had them."""
    next_to_use, _ = await cpu.chase(*RX_RING.next_to_use.at(ring.state))
    given = 0
    while given < count:
        xskb = await xp_alloc(cpu, ring.xsk_pool)
        if not xskb:
            break
        cpu.execute("ixgbe_alloc_rx_descriptor_zc")
        cpu.put(ring.buffers + next_to_use * RX_BUFFER_ZC.size, RX_BUFFER_ZC.xdp, xskb)
        dma = await cpu.get(xskb, XDP_BUFF_XSK.dma)
        cpu.store(ring.descriptors + next_to_use * DESCRIPTOR_BYTES, dma, _UPPER)
        next_to_use = (next_to_use + 1) % ring.count
        cpu.store(ring.descriptors + next_to_use * DESCRIPTOR_BYTES + _UPPER, 0, _UPPER)
        given += 1
    if given:
        cpu.put(ring.state, RX_RING.next_to_use, next_to_use)
        hw.write(cpu, REG.RDT, next_to_use, ring.queue)
    return given == count


@function()
async def ixgbe_clean_rx_irq_zc(cpu: Cpu, ring: IxgbeRing, hw: IxgbeHw, budget: int) -> int:
    """Take up to ``budget`` packets from the ring; returns how many.

    When chunks are short, the program is asked to say when it has filled the fill ring, or (should it not want that)
    the poll is repeated until it has.
    """
    pool, xdp = ring.xsk_pool, ring.xdp
    state, loaded = await cpu.chase(ring.state, RX_RING.size)
    next_to_clean = RX_RING.next_to_clean.of(state)
    cleaned = (next_to_clean - RX_RING.next_to_use.of(state) - 1) % ring.count
    packets = total = 0
    failure = redirected = False
    while packets < budget:
        if cleaned >= IXGBE_RX_BUFFER_WRITE:
            failure |= not await ixgbe_alloc_rx_buffers_zc(cpu, ring, hw, cleaned)
            cleaned = 0
        descriptor = ring.descriptors + next_to_clean * DESCRIPTOR_BYTES
        upper = await cpu.load(descriptor + _UPPER, _UPPER, after=loaded)
        length = upper >> _LENGTH_SHIFT & _LENGTH_MASK
        if not length:
            break
        cpu.execute("ixgbe_clean_rx_descriptor_zc")
        buffer = ring.buffers + next_to_clean * RX_BUFFER_ZC.size
        following = (next_to_clean + 1) % ring.count
        last = upper >> _EOP_SHIFT & 1
        xskb, buffer_loaded = await cpu.chase(*RX_BUFFER_ZC.xdp.at(buffer))
        discard = await cpu.get(buffer, RX_BUFFER_ZC.discard)
        packet = (ring.queue, ring.completed)
        if discard or not last or upper & _FRAME_ERRORS or length < ETH_HLEN:
            # Chunks hold the largest frame the card is told to accept, so no frame should take two.
            if last:
                reason = "PKT_TOO_BIG" if discard else "NOT_SPECIFIED" if upper & _FRAME_ERRORS else "PKT_TOO_SMALL"
                cpu.kernel.drops[reason] = cpu.kernel.drops.get(reason, 0) + 1
                cpu.note("dropped", reason=reason, packet=packet)
            cpu.put(buffer, RX_BUFFER_ZC.discard, 0)
            if not last:
                cpu.put(ring.buffers + following * RX_BUFFER_ZC.size, RX_BUFFER_ZC.discard, 1)
            await xp_free(cpu, pool, xskb)
        else:
            data = await cpu.get(xskb, XDP_BUFF.data, after=buffer_loaded)
            cpu.put(xskb, XDP_BUFF.data_end, data + length)
            result = await ixgbe_run_xdp_zc(cpu, xdp, pool, xskb, packet)
            if result is XdpResult.EXIT:
                failure = True
                break
            if result is XdpResult.REDIRECT:
                redirected = True
            elif result is XdpResult.CONSUMED:
                await xp_free(cpu, pool, xskb)
            else:
                await ixgbe_construct_skb_zc(cpu, pool, xskb, packet, upper)
            packets += 1
            total += length
        cpu.put(buffer, RX_BUFFER_ZC.xdp, 0)
        cleaned += 1
        ring.completed += 1
        next_to_clean = following
        cpu.put(ring.state, RX_RING.next_to_clean, next_to_clean)
        cpu.prefetch(ring.descriptors + next_to_clean * DESCRIPTOR_BYTES)
    if redirected:
        await xdp_do_flush_map(cpu, xdp.sockets)
    if packets:
        cpu.put(ring.state, RX_RING.packets, RX_RING.packets.of(state) + packets)
        cpu.put(ring.state, RX_RING.bytes, RX_RING.bytes.of(state) + total)
    if not pool.uses_need_wakeup:
        return budget if failure else packets
    if failure or next_to_clean == await cpu.get(ring.state, RX_RING.next_to_use):
        await xsk_set_rx_need_wakeup(cpu, pool)
    else:
        await xsk_clear_rx_need_wakeup(cpu, pool)
    return packets


@function()
async def ixgbe_run_xdp_zc(cpu: Cpu, xdp: IxgbeXdp, pool: XskBuffPool, xskb: int, packet: tuple[int, int]) -> XdpResult:
    """Run the program on a packet in a chunk and do what it says."""
    assert xdp.program is not None
    verdict = await xdp.program.run(cpu, xskb)
    if verdict == XdpAction.REDIRECT:
        error = await xdp_do_redirect(cpu, xdp.program.runtime, xdp.sockets, xskb, packet)
        if not error:
            return XdpResult.REDIRECT
        if pool.uses_need_wakeup and error == -ENOBUFS:
            return XdpResult.EXIT
        cpu.note("dropped", packet=packet, reason=redirect_drop_reason(error))
    elif verdict == XdpAction.PASS:
        return XdpResult.PASS
    elif verdict == XdpAction.DROP:
        data, end = await cpu.get_all(xskb, XDP_BUFF.data, XDP_BUFF.data_end)
        cpu.note("delivered", packet=packet, length=end - data)
    else:
        # TX would copy the packet to a page: not modelled.
        cpu.note("dropped", packet=packet, reason="XDP_TX" if verdict == XdpAction.TX else "XDP_ABORTED")
    cpu.execute("xdp_consumed")
    return XdpResult.CONSUMED


@function()
async def ixgbe_construct_skb_zc(cpu: Cpu, pool: XskBuffPool, xskb: int, packet: tuple[int, int], upper: int) -> None:
    """Copy a packet that is the kernel's to an skb, and hand that up; the chunk is free again."""
    data, end = await cpu.get_all(xskb, XDP_BUFF.data, XDP_BUFF.data_end)
    length = end - data
    page = await alloc_page(cpu)
    skb = 0
    if page and length <= IXGBE_RX_BUFSZ - IXGBE_SKB_PAD:
        skb = await napi_build_skb(cpu, page, page, IXGBE_RX_BUFSZ, IXGBE_SKB_PAD, length)
    if not skb:
        cpu.kernel.drops["NOMEM"] = cpu.kernel.drops.get("NOMEM", 0) + 1
        cpu.note("dropped", reason="NOMEM", packet=packet)
        await xp_free(cpu, pool, xskb)
        if page:
            await put_page(cpu, page)
        return
    cpu.execute("xsk_copy_64", (length + LINE - 1) // LINE)
    cpu.store(page + IXGBE_SKB_PAD, await cpu.load_bytes(data, length), length)
    await xp_free(cpu, pool, xskb)
    cpu.kernel.packet_of[skb] = packet
    await _process_skb_fields(cpu, skb, page + IXGBE_SKB_PAD, upper, length, -1)
    await napi_gro_receive(cpu, skb)


async def ixgbe_xsk_clean_rx_ring(cpu: Cpu, ring: IxgbeRing) -> None:
    """Take every chunk from a ring that the card no longer has."""
    for number in range(ring.count):
        buffer = ring.buffers + number * RX_BUFFER_ZC.size
        xskb = await cpu.get(buffer, RX_BUFFER_ZC.xdp)
        if xskb:
            await xp_free(cpu, ring.xsk_pool, xskb)
            cpu.put(buffer, RX_BUFFER_ZC.xdp, 0)


@function()
async def ixgbe_clean_xdp_tx_irq(cpu: Cpu, hw: IxgbeHw, ring: IxgbeTxRing, budget: int) -> bool:
    """Give back what the card has sent, then send up to ``budget`` packets more; whether that was all there is."""
    (next_to_clean, next_to_use) = await cpu.load_all(
        (ring.state + TX_RING.next_to_clean.offset, 2), (ring.state + TX_RING.next_to_use.offset, 2)
    )
    frames = total = 0
    while next_to_clean != next_to_use:
        status = ring.descriptors + next_to_clean * DESCRIPTOR_BYTES + _DD_OFFSET // 8
        if not await cpu.load(status, 1) & _DD_MASK:
            break
        cpu.execute("ixgbe_clean_xdp_tx_descriptor")
        total += await cpu.get(ring.buffers + next_to_clean * IXGBE_TX_BUFFER.size, IXGBE_TX_BUFFER.bytecount)
        frames += 1
        next_to_clean = (next_to_clean + 1) % ring.count
        cpu.prefetch(ring.descriptors + next_to_clean * DESCRIPTOR_BYTES)
    if frames:
        cpu.put(ring.state, TX_RING.next_to_clean, next_to_clean)
        packets, count = await cpu.get_all(ring.state, TX_RING.packets, TX_RING.bytes)
        cpu.put(ring.state, TX_RING.packets, packets + frames)
        cpu.put(ring.state, TX_RING.bytes, count + total)
        await xsk_tx_completed(cpu, ring.xsk_pool, frames)
    if ring.xsk_pool.uses_need_wakeup:
        await xsk_set_tx_need_wakeup(cpu, ring.xsk_pool)
    if ring.xsk_pool.tx is None:
        return True
    return await ixgbe_xmit_zc(cpu, hw, ring, budget)


@function()
async def ixgbe_xmit_zc(cpu: Cpu, hw: IxgbeHw, ring: IxgbeTxRing, budget: int) -> bool:
    """Give the card what the program has put on its transmit ring; false if there may be more."""
    pool = ring.xsk_pool
    next_to_use, next_to_clean = await cpu.load_all(
        (ring.state + TX_RING.next_to_use.offset, 2), (ring.state + TX_RING.next_to_clean.offset, 2)
    )
    frames = 0
    room = True
    while frames < budget:
        room = (next_to_clean - next_to_use - 1) % ring.count > 0
        descriptor = await xsk_tx_peek_desc(cpu, pool) if room else None
        if descriptor is None:
            break
        address, length = descriptor
        cpu.execute("ixgbe_xmit_zc_descriptor")
        cpu.put(ring.buffers + next_to_use * IXGBE_TX_BUFFER.size, IXGBE_TX_BUFFER.bytecount, length)
        packet = pool.packet_of.pop(pool.chunk(address), None)
        if packet is not None:
            cpu.note("sent", packet=packet, frame=(ring.queue, ring.frames))
        place = ring.descriptors + next_to_use * DESCRIPTOR_BYTES
        cpu.store(place, tx_data(pool.raw_dma(address), length), DESCRIPTOR_BYTES)
        ring.frames += 1
        frames += 1
        next_to_use = (next_to_use + 1) % ring.count
    if frames:
        cpu.put(ring.state, TX_RING.next_to_use, next_to_use)
        await ixgbe_xdp_ring_update_tail(cpu, hw, ring)
        await xsk_tx_release(cpu, pool)
    return frames < budget and room
