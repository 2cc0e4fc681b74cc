"""Socket buffers: a packet's ``sk_buff`` in a slab, its bytes where the card put them."""

import enum

from sw.core import LINE, function
from sw.linux.atomic import atomic_add
from sw.linux.cpu import Cpu
from sw.linux.mm import PAGE_SIZE, alloc_page, put_page
from sw.linux.slab import kmem_cache_alloc, kmem_cache_free
from sw.structs import Struct

__all__ = [
    "MAX_TCP_HEADER",
    "SKB_CB",
    "SK_BUFF",
    "IpSummed",
    "PacketType",
    "__alloc_skb",
    "consume_control_skb",
    "consume_skb",
    "free_undelivered_skb",
    "kfree_skb",
    "kfree_skb_reason",
    "napi_build_skb",
    "napi_consume_skb",
    "skb_clone",
    "skb_push",
]

#: ``struct sk_buff``, four lines as in the kernel, the members in use in the first.
SK_BUFF = Struct(
    4 * LINE,
    next=8,
    prev=8,
    head=8,  #: start of the buffer
    data=8,  #: first byte of what the current layer looks at
    len=4,  #: bytes from ``data`` on
    truesize=4,  #: bytes charged to the receiver
    protocol=2,  #: EtherType
    pkt_type=1,
    ip_summed=1,
    network_header=2,  #: bytes from ``head``
    page=8,  #: the page that holds the buffer
    napi_id=8,  #: address of the NAPI it came from, where programs busy-poll
    sk=8,  #: the socket that sends the packet
    destructor=8,  #: address of the function that is called when the packet is freed
    destructor_arg=8,  #: what it needs
    end=4,  #: bytes from ``head`` to what lies behind the packet's room
    cb=48,  #: what the protocol keeps beside it
)
#: Where in an skb that is.
SKB_CB = SK_BUFF.cb.offset

#: ``struct skb_shared_info`` lies at the end of the buffer; one line of it is initialised per packet.
SHARED_INFO_BYTES = 320


#: Room in front of what is sent: for TCP, IP and Ethernet headers (``MAX_TCP_HEADER``, rounded to lines).
MAX_TCP_HEADER = 2 * LINE


class PacketType(enum.IntEnum):
    """Whom a frame is for (include/uapi/linux/if_packet.h)."""

    HOST = 0
    BROADCAST = 1
    MULTICAST = 2
    OTHERHOST = 3


class IpSummed(enum.IntEnum):
    """What is known of a packet's checksum (include/linux/skbuff.h)."""

    NONE = 0
    UNNECESSARY = 1


@function()
async def napi_build_skb(cpu: Cpu, page: int, head: int, size: int, headroom: int, length: int) -> int:
    """Make an skb around a buffer of ``size`` bytes at ``head`` in ``page``; 0 when the slab is empty."""
    skb = await kmem_cache_alloc(cpu, cpu.kernel.skb_cache)
    if not skb:
        return 0
    truesize = size + SK_BUFF.size
    values = {"head": head, "data": head + headroom, "len": length, "truesize": truesize, "page": page}
    packed = SK_BUFF.pack(**values, end=size - SHARED_INFO_BYTES)
    cpu.store(skb, packed, SK_BUFF.size)
    cpu.store(head + size - SHARED_INFO_BYTES, bytes(32), 32)
    return skb


@function()
async def __alloc_skb(cpu: Cpu, headroom: int, length: int) -> int:
    """Make an skb with a page of its own for ``length`` bytes behind ``headroom``; 0 if there is no memory."""
    page = await alloc_page(cpu)
    if not page:
        return 0
    skb = await napi_build_skb(cpu, page, page, PAGE_SIZE, headroom, length)
    if not skb:
        await put_page(cpu, page)
    return skb


async def skb_push(cpu: Cpu, skb: int, count: int) -> int:
    """Take ``count`` bytes of headroom in front of the packet; its first byte then."""
    data, length = await cpu.get_all(skb, SK_BUFF.data, SK_BUFF.len)
    cpu.put(skb, SK_BUFF.data, data - count)
    cpu.put(skb, SK_BUFF.len, length + count)
    return data - count


@function()
async def kfree_skb(cpu: Cpu, skb: int) -> None:
    """Free an skb, tell its sender and give its page back; softirqs are disabled."""
    page, destructor = await cpu.get_all(skb, SK_BUFF.page, SK_BUFF.destructor)
    if destructor:
        await cpu.kernel.skb_destructors[destructor](cpu, skb)
    await put_page(cpu, page)
    await kmem_cache_free(cpu, cpu.kernel.skb_cache, skb)


@function()
async def napi_consume_skb(cpu: Cpu, skb: int) -> None:
    """Free a packet that the card has sent."""
    cpu.kernel.packet_of.pop(skb, None)
    await kfree_skb(cpu, skb)


async def kfree_skb_reason(cpu: Cpu, skb: int, reason: str) -> None:
    """Drop a packet, for a reason named as in include/net/dropreason-core.h; noted if received or an answer."""
    kernel = cpu.kernel
    kernel.drops[reason] = kernel.drops.get(reason, 0) + 1
    packet = kernel.packet_of.pop(skb, None)
    if packet is not None:
        cpu.note("dropped", reason=reason, packet=packet)
    await kfree_skb(cpu, skb)


async def consume_skb(cpu: Cpu, skb: int) -> tuple[int, int]:
    """Free a packet that has been delivered; returns which it was."""
    packet = cpu.kernel.packet_of.pop(skb)
    await kfree_skb(cpu, skb)
    return packet


async def consume_control_skb(cpu: Cpu, skb: int) -> None:
    """Free a packet that has done what it came for and has nothing for a program."""
    cpu.note("consumed", packet=cpu.kernel.packet_of.pop(skb))
    await kfree_skb(cpu, skb)


async def free_undelivered_skb(cpu: Cpu, skb: int) -> None:
    """Free a packet that was accepted for a program that is gone (``QUEUE_PURGE``), and those joined to it."""
    if not await cpu.get(skb, SK_BUFF.len):
        await consume_control_skb(cpu, skb)
        return
    for packet in cpu.kernel.coalesced.pop(skb, ()):
        cpu.note("dropped", reason="QUEUE_PURGE", packet=packet)
    await kfree_skb_reason(cpu, skb, "QUEUE_PURGE")


@function()
async def skb_clone(cpu: Cpu, skb: int) -> int:
    """Another skb around the same bytes, which stay until both are freed; 0 when there is no memory."""
    clone = await kmem_cache_alloc(cpu, cpu.kernel.skb_cache)
    if not clone:
        return 0
    first = await cpu.load(skb, 2 * LINE)
    cpu.store(clone, bytes(16) + first[16:], 2 * LINE)
    await atomic_add(cpu, 1, cpu.kernel.pages.refcount(SK_BUFF.page.of(first)))
    return clone
