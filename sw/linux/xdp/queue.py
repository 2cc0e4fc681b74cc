"""The kernel's side of the rings (net/xdp/xsk_queue.h).

Producer and consumer count entries since the start, modulo 2^32. Each side keeps copies of both and looks at the other
side's only when its copies say full or empty; its own it publishes once for many entries. On x86 a store is seen by the
other side after every earlier one and a load sees nothing older than an earlier one, so that
``smp_store_release`` and ``smp_load_acquire`` are plain stores and loads.
"""

from dataclasses import dataclass
from errno import EINVAL

from sw.core import LINE
from sw.linux.cpu import Cpu
from sw.linux.xdp.area import XdpArea
from sw.linux.xdp.errors import XskError
from sw.linux.xdp.if_xdp import XDP_DESC, XDP_RING
from sw.structs import Struct

__all__ = [
    "XSK_QUEUE",
    "XskQueue",
    "xskq_cons_peek_addr",
    "xskq_cons_peek_entry",
    "xskq_cons_publish",
    "xskq_cons_release",
    "xskq_count",
    "xskq_create",
    "xskq_prod_cancel",
    "xskq_prod_is_empty",
    "xskq_prod_publish",
    "xskq_prod_reserve",
    "xskq_prod_reserve_addr",
    "xskq_prod_reserve_desc",
    "xskq_prod_submit",
    "xskq_prod_submit_n",
]

#: ``struct xsk_queue``: one line.
XSK_QUEUE = Struct(
    LINE, ring_mask=4, nentries=4, cached_prod=4, cached_cons=4, ring=8, invalid_descs=8, queue_empty_descs=8
)

#: Bytes of an address, the entry of a fill or completion ring.
_ADDRESS_BYTES = 8
_WORD = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class XskQueue:
    """One ring of a socket as the kernel knows it; what changes lies in memory."""

    address: int  #: of the :data:`XSK_QUEUE`
    ring: int  #: the kernel's address of the :data:`~sw.linux.xdp.if_xdp.XDP_RING`
    entries: int
    entry_bytes: int

    def entry(self, index: int) -> int:
        """Address of the entry with that number since the start."""
        return self.ring + XDP_RING.size + (index & self.entries - 1) * self.entry_bytes

    @staticmethod
    def bytes_needed(entries: int, umem_queue: bool) -> int:
        """Memory for a ring."""
        return XdpArea.pages(XDP_RING.size + entries * (_ADDRESS_BYTES if umem_queue else XDP_DESC.size))


def xskq_create(cpu: Cpu, area: XdpArea, entries: int, umem_queue: bool) -> XskQueue:
    """Make an empty ring; ``umem_queue``: of addresses.

    Raises:
        XskError: EINVAL, ENOMEM.
    """
    if entries <= 0 or entries & entries - 1:
        raise XskError(EINVAL, f"a ring has a power of two of entries, not {entries}")
    size = _ADDRESS_BYTES if umem_queue else XDP_DESC.size
    queue = XskQueue(
        address=area.allocate(XSK_QUEUE.size),
        ring=area.allocate(XskQueue.bytes_needed(entries, umem_queue), 4096),
        entries=entries,
        entry_bytes=size,
    )
    packed = XSK_QUEUE.pack(ring_mask=entries - 1, nentries=entries, ring=queue.ring)
    cpu.store(queue.address, packed, XSK_QUEUE.size)
    return queue


async def _cached(cpu: Cpu, queue: XskQueue) -> tuple[int, int]:
    """The kernel's own copies of producer and consumer, which lie side by side."""
    both = await cpu.load(queue.address + XSK_QUEUE.cached_prod.offset, 8)
    return both & _WORD, both >> 32


async def xskq_count(cpu: Cpu, queue: XskQueue, counter: tuple[int, int]) -> None:
    """Add one to ``queue_empty_descs`` or ``invalid_descs``."""
    cpu.put(queue.address, counter, await cpu.get(queue.address, counter) + 1)


# What the kernel consumes: fill and transmit rings


async def xskq_cons_peek_entry(cpu: Cpu, queue: XskQueue) -> int | None:
    """Number of the next entry, None if there is none (``xskq_cons_get_entries``)."""
    produced, consumed = await _cached(cpu, queue)
    if produced == consumed:
        cpu.put(queue.ring, XDP_RING.consumer, consumed)
        produced = await cpu.get(queue.ring, XDP_RING.producer)
        cpu.put(queue.address, XSK_QUEUE.cached_prod, produced)
    return None if produced == consumed else consumed


async def xskq_cons_peek_addr(cpu: Cpu, queue: XskQueue) -> tuple[int, int] | None:
    """The next entry of a fill ring, not checked, and its number; None if there is none."""
    number = await xskq_cons_peek_entry(cpu, queue)
    return None if number is None else (await cpu.load(queue.entry(number), _ADDRESS_BYTES), number)


def xskq_cons_release(cpu: Cpu, queue: XskQueue, number: int) -> None:
    """Be done with entry ``number``, the one peeked at; :func:`xskq_cons_publish` tells the program."""
    cpu.put(queue.address, XSK_QUEUE.cached_cons, number + 1 & _WORD)


async def xskq_cons_publish(cpu: Cpu, queue: XskQueue) -> None:
    """Let the program have the entries that were released (``__xskq_cons_release``)."""
    cpu.put(queue.ring, XDP_RING.consumer, await cpu.get(queue.address, XSK_QUEUE.cached_cons))


async def xskq_cons_present(cpu: Cpu, queue: XskQueue) -> int:
    """Entries that the program has submitted and the kernel has not published (``xskq_cons_present_entries``)."""
    produced, consumed = await cpu.get_all(queue.ring, XDP_RING.producer, XDP_RING.consumer)
    return produced - consumed & _WORD


# What the kernel produces: receive and completion rings


async def _next_free(cpu: Cpu, queue: XskQueue) -> int | None:
    """Number of the next free entry, None if there is none (``xskq_prod_is_full``)."""
    produced, consumed = await _cached(cpu, queue)
    if produced - consumed & _WORD == queue.entries:
        consumed = await cpu.get(queue.ring, XDP_RING.consumer)
        cpu.put(queue.address, XSK_QUEUE.cached_cons, consumed)
        if produced - consumed & _WORD == queue.entries:
            return None
    return produced


async def xskq_prod_reserve(cpu: Cpu, queue: XskQueue) -> bool:
    """Set one entry aside; false if there is none."""
    number = await _next_free(cpu, queue)
    if number is None:
        return False
    cpu.put(queue.address, XSK_QUEUE.cached_prod, number + 1 & _WORD)
    return True


async def xskq_prod_cancel(cpu: Cpu, queue: XskQueue) -> None:
    """Undo the last :func:`xskq_prod_reserve`."""
    produced = await cpu.get(queue.address, XSK_QUEUE.cached_prod)
    cpu.put(queue.address, XSK_QUEUE.cached_prod, produced - 1 & _WORD)


async def xskq_prod_reserve_addr(cpu: Cpu, queue: XskQueue, address: int) -> bool:
    """Write an address to the next entry; false if there is none."""
    number = await _next_free(cpu, queue)
    if number is None:
        return False
    cpu.put(queue.address, XSK_QUEUE.cached_prod, number + 1 & _WORD)
    cpu.store(queue.entry(number), address, _ADDRESS_BYTES)
    return True


async def xskq_prod_reserve_desc(cpu: Cpu, queue: XskQueue, address: int, length: int) -> bool:
    """Write a descriptor to the next entry; false if there is none."""
    number = await _next_free(cpu, queue)
    if number is None:
        return False
    cpu.put(queue.address, XSK_QUEUE.cached_prod, number + 1 & _WORD)
    entry = queue.entry(number)
    cpu.put(entry, XDP_DESC.addr, address)
    cpu.put(entry, XDP_DESC.len, length)
    return True


async def xskq_prod_publish(cpu: Cpu, queue: XskQueue) -> None:
    """Let the program have every entry that was written (``xskq_prod_submit``)."""
    cpu.put(queue.ring, XDP_RING.producer, await cpu.get(queue.address, XSK_QUEUE.cached_prod))


async def xskq_prod_submit(cpu: Cpu, queue: XskQueue, address: int) -> None:
    """Write an address to the next entry, reserved before, and publish it (``xskq_prod_submit_addr``)."""
    number = await cpu.get(queue.ring, XDP_RING.producer)
    cpu.store(queue.entry(number), address, _ADDRESS_BYTES)
    cpu.put(queue.ring, XDP_RING.producer, number + 1 & _WORD)


async def xskq_prod_submit_n(cpu: Cpu, queue: XskQueue, count: int) -> None:
    """Publish ``count`` entries, written before."""
    number = await cpu.get(queue.ring, XDP_RING.producer)
    cpu.put(queue.ring, XDP_RING.producer, number + count & _WORD)


async def xskq_prod_is_empty(cpu: Cpu, queue: XskQueue) -> bool:
    """Whether the program has taken everything."""
    consumer, producer = await cpu.get_all(queue.ring, XDP_RING.consumer, XDP_RING.producer)
    return consumer == producer
