"""Sending: descriptors for frames, and their buffers given back once the card is done with them."""

from dataclasses import dataclass, field

from hw.nic.descriptors import DESCRIPTOR_BYTES, TX_WRITE_BACK
from hw.nic.registers import REG
from sw.core import LINE, function
from sw.ixgbe.hw import IxgbeHw, tx_data
from sw.ixgbe.ring import DescriptorRing
from sw.linux.atomic import smp_mb
from sw.linux.cpu import Cpu
from sw.linux.mm import put_page
from sw.linux.net.sch_generic import NetdevQueue, init_netdev_queue, netif_stop_subqueue, netif_wake_subqueue
from sw.linux.skb import SK_BUFF, napi_consume_skb
from sw.structs import Struct

__all__ = [
    "IXGBE_TX_BUFFER",
    "TX_RING",
    "IxgbeTxRing",
    "ixgbe_clean_tx_irq",
    "ixgbe_init_tx_ring",
    "ixgbe_xmit_frame_ring",
    "ixgbe_xmit_xdp_ring",
    "tx_next_to_use",
]

#: ``struct ixgbe_tx_buffer``, one per descriptor: of an skb, or of a page that XDP sends.
IXGBE_TX_BUFFER = Struct(LINE // 2, next_to_watch=8, skb=8, page=8, bytecount=4)

#: The part of ``struct ixgbe_ring`` that changes: what is written while sending, and while cleaning.
TX_RING = Struct(2 * LINE, next_to_use=2, pad=62, next_to_clean=2, packets=8, bytes=8)

#: Descriptors that must be free for a frame to be taken (``DESC_NEEDED`` for one fragment).
_DESC_NEEDED = 4
#: Descriptors that must be free for a stopped queue to go on (``TX_WAKE_THRESHOLD``).
_TX_WAKE_THRESHOLD = 2 * _DESC_NEEDED

_DD = TX_WRITE_BACK.fields["dd"]


@dataclass(slots=True, eq=False)
class IxgbeTxRing(DescriptorRing):
    """A transmit ring."""

    direction = "transmit"
    buffer_struct = IXGBE_TX_BUFFER
    state_struct = TX_RING

    frames: int = field(default=0, init=False)  #: given to the card since the start, for observers
    netdev_queue: NetdevQueue | None = field(default=None, init=False)  #: the kernel's, if it sends by this ring


@function()
async def ixgbe_xmit_frame_ring(cpu: Cpu, hw: IxgbeHw, ring: IxgbeTxRing, skb: int) -> bool:
    """Give the card the frame of ``skb``, which it owns from then on; false if the ring is full.

    The caller holds the queue's lock.
    """
    next_to_use = await cpu.get(ring.state, TX_RING.next_to_use)
    if await ixgbe_maybe_stop_tx(cpu, ring, next_to_use):
        return False
    data, length = await cpu.get_all(skb, SK_BUFF.data, SK_BUFF.len)
    descriptor = ring.descriptors + next_to_use * DESCRIPTOR_BYTES
    buffer = ring.buffers + next_to_use * IXGBE_TX_BUFFER.size
    cpu.store(descriptor, tx_data(data + cpu.kernel.dma.page_offset, length), DESCRIPTOR_BYTES)
    values = {"next_to_watch": descriptor, "skb": skb, "bytecount": length}
    cpu.store(buffer, IXGBE_TX_BUFFER.pack(**values), IXGBE_TX_BUFFER.size)
    next_to_use = (next_to_use + 1) % ring.count
    cpu.put(ring.state, TX_RING.next_to_use, next_to_use)
    packet = cpu.kernel.packet_of.get(skb)
    if packet is not None:
        cpu.note("sent", packet=packet, frame=(ring.queue, ring.frames))
    ring.frames += 1
    await ixgbe_maybe_stop_tx(cpu, ring, next_to_use)
    hw.write(cpu, REG.TDT, next_to_use, ring.queue)
    return True


async def ixgbe_maybe_stop_tx(cpu: Cpu, ring: IxgbeTxRing, next_to_use: int) -> bool:
    """Stop the queue if the ring has no room for another frame; whether it has none.

    Who cleans the ring may make room between the look and the stop: so look again after it.
    """
    if await _tx_desc_unused(cpu, ring, next_to_use) >= _DESC_NEEDED:
        return False
    if ring.netdev_queue is None:
        return True
    await netif_stop_subqueue(cpu, ring.netdev_queue)
    if await _tx_desc_unused(cpu, ring, next_to_use) < _DESC_NEEDED:
        return True
    await netif_wake_subqueue(cpu, ring.netdev_queue)
    return False


async def _tx_desc_unused(cpu: Cpu, ring: IxgbeTxRing, next_to_use: int) -> int:
    return (await cpu.get(ring.state, TX_RING.next_to_clean) - next_to_use - 1) % ring.count


@function()
async def ixgbe_xmit_xdp_ring(
    cpu: Cpu, ring: IxgbeTxRing, page: int, data: int, length: int, packet: tuple[int, int]
) -> bool:
    """Put the frame at ``data`` in ``page`` into the ring, which owns that half of the page then; false if it is full.

    The card hears of it at the end of the poll. No lock: the ring is this core's alone.
    """
    next_to_use, next_to_clean = await cpu.load_all(
        (ring.state + TX_RING.next_to_use.offset, 2), (ring.state + TX_RING.next_to_clean.offset, 2)
    )
    if (next_to_clean - next_to_use - 1) % ring.count < 1:
        return False
    descriptor = ring.descriptors + next_to_use * DESCRIPTOR_BYTES
    buffer = ring.buffers + next_to_use * IXGBE_TX_BUFFER.size
    cpu.store(descriptor, tx_data(data + cpu.kernel.dma.page_offset, length), DESCRIPTOR_BYTES)
    values = {"next_to_watch": descriptor, "page": page, "bytecount": length}
    cpu.store(buffer, IXGBE_TX_BUFFER.pack(**values), IXGBE_TX_BUFFER.size)
    cpu.note("sent", packet=packet, frame=(ring.queue, ring.frames))
    ring.frames += 1
    cpu.put(ring.state, TX_RING.next_to_use, (next_to_use + 1) % ring.count)
    return True


async def tx_next_to_use(cpu: Cpu, ring: IxgbeTxRing) -> int:
    """The first descriptor that is not the card's."""
    return await cpu.get(ring.state, TX_RING.next_to_use)


def ixgbe_init_tx_ring(cpu: Cpu, ring: IxgbeTxRing) -> None:
    """An empty ring; buffers and descriptors are zero as memory was."""
    cpu.store(ring.state, bytes(TX_RING.size), TX_RING.size)
    if ring.netdev_queue is not None:
        init_netdev_queue(cpu, ring.netdev_queue)


@function()
async def ixgbe_clean_tx_irq(cpu: Cpu, ring: IxgbeTxRing, budget: int) -> bool:
    """Free what the card has sent, up to ``budget`` frames; whether that was all there is."""
    next_to_clean = await cpu.get(ring.state, TX_RING.next_to_clean)
    frames = total = 0
    while frames < budget:
        buffer = ring.buffers + next_to_clean * IXGBE_TX_BUFFER.size
        watched = cpu.load_begin(buffer, IXGBE_TX_BUFFER.size)
        next_to_watch, skb, page, length = IXGBE_TX_BUFFER.unpack(await cpu.result(watched))
        if not next_to_watch:
            break
        offset, mask = _DD
        if not await cpu.load(next_to_watch + offset // 8, 1, after=watched) & mask:
            break
        cpu.execute("ixgbe_clean_tx_descriptor")
        cpu.put(buffer, IXGBE_TX_BUFFER.next_to_watch, 0)
        if skb:
            await napi_consume_skb(cpu, skb)
        else:
            await put_page(cpu, page)
        next_to_clean = (next_to_clean + 1) % ring.count
        cpu.put(ring.state, TX_RING.next_to_clean, next_to_clean)
        frames += 1
        total += length
    if frames:
        packets, count = await cpu.get_all(ring.state, TX_RING.packets, TX_RING.bytes)
        cpu.put(ring.state, TX_RING.packets, packets + frames)
        cpu.put(ring.state, TX_RING.bytes, count + total)
        if ring.netdev_queue is not None:
            await smp_mb(cpu)
            next_to_use = await cpu.get(ring.state, TX_RING.next_to_use)
            if (next_to_clean - next_to_use - 1) % ring.count >= _TX_WAKE_THRESHOLD:
                await netif_wake_subqueue(cpu, ring.netdev_queue)
    return frames < budget
