"""The program's side of an AF_XDP socket (libxdp's xsk.h, xsk.c): UMEM, rings, making a socket.

A ring is handled by inlined functions on a small structure of the program's own, which keeps copies of producer and
consumer. Their acquiring loads and releasing stores are plain ones on x86, see ``sw.linux.xdp.queue``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.xdp.errors import XskError
from sw.linux.xdp.if_xdp import XDP_DESC, XDP_RING, XDP_RING_NEED_WAKEUP, BindFlag, PageOffset, SocketOption
from sw.linux.xdp.syscall import xsk_bind, xsk_mmap, xsk_setsockopt, xsk_socket
from sw.linux.xdp.umem import XdpUmem
from sw.linux.xdp.xsk import AfXdp, XdpSock
from sw.structs import Struct

__all__ = [
    "XSK_RING",
    "XskRing",
    "XskSocket",
    "xsk_ring_cons_comp_addr",
    "xsk_ring_cons_peek",
    "xsk_ring_cons_release",
    "xsk_ring_cons_rx_desc",
    "xsk_ring_prod_fill",
    "xsk_ring_prod_needs_wakeup",
    "xsk_ring_prod_reserve",
    "xsk_ring_prod_submit",
    "xsk_ring_prod_tx",
    "xsk_ring_wait",
    "xsk_socket_create",
]

#: ``struct xsk_ring_prod`` and ``struct xsk_ring_cons``, which are alike.
XSK_RING = Struct(LINE, cached_prod=4, cached_cons=4, mask=4, ring_size=4, producer=8, consumer=8, ring=8, flags=8)

_WORD = 0xFFFF_FFFF
_ADDRESS_BYTES = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class XskRing:
    """A ring as the program knows it; all addresses are the program's."""

    address: int  #: of the :data:`XSK_RING`
    ring: int  #: where mmap() has put the ring
    entries: int
    entry_bytes: int

    def entry(self, index: int) -> int:
        """Address of the entry with that number since the start."""
        return self.ring + XDP_RING.size + (index & self.entries - 1) * self.entry_bytes

    def place(self, member: tuple[int, int]) -> int:
        """Address of a member of the shared part."""
        return self.ring + member[0]


@dataclass(frozen=True, slots=True)
class XskSocket:
    """A socket of a program with its UMEM (``struct xsk_socket``, ``struct xsk_umem``)."""

    xs: XdpSock
    umem: XdpUmem
    fill: XskRing
    completion: XskRing
    rx: XskRing
    tx: XskRing | None

    def data(self, address: int) -> int:
        """Where the program has what lies at ``address`` of the UMEM (``xsk_umem__get_data``)."""
        return self.umem.address + address

    def packet(self, address: int) -> tuple[int, int]:
        """Which received packet is there, for observers; it is the program's from now on."""
        assert self.xs.pool is not None
        return self.xs.pool.packet_of.pop(self.xs.pool.chunk(address))

    def send(self, address: int, packet: tuple[int, int]) -> None:
        """Say which received packet is about to be sent, for observers."""
        assert self.xs.pool is not None
        self.xs.pool.packet_of[self.xs.pool.chunk(address)] = packet


def _checked(result: T | XskError) -> T:
    if isinstance(result, XskError):
        raise result
    return result


async def xsk_socket_create(
    cpu: Cpu,
    family: AfXdp,
    umem: XdpUmem,
    memory: int,
    entries: int,
    flags: BindFlag,
    *,
    queue: int = 0,
    transmit: bool = True,
    fill: Sequence[int] = (),
) -> XskSocket:
    """Make a socket and bind it to a queue (``xsk_umem__create``, ``xsk_socket__create``).

    Arguments:
        memory: the program's, for four lines of its own.
        entries: of each ring.
        transmit: whether it has a transmit ring.
        fill: addresses in the UMEM that the fill ring begins with.

    Raises:
        XskError: as the kernel refuses it.
    """
    xs = _checked(await xsk_socket(cpu, family))
    _checked(await xsk_setsockopt(cpu, family, xs, SocketOption.UMEM_REG, umem))
    wanted = [
        (SocketOption.UMEM_FILL_RING, PageOffset.UMEM_FILL_RING, _ADDRESS_BYTES),
        (SocketOption.UMEM_COMPLETION_RING, PageOffset.UMEM_COMPLETION_RING, _ADDRESS_BYTES),
        (SocketOption.RX_RING, PageOffset.RX_RING, XDP_DESC.size),
    ]
    if transmit:
        wanted.append((SocketOption.TX_RING, PageOffset.TX_RING, XDP_DESC.size))
    rings = []
    for number, (option, offset, size) in enumerate(wanted):
        _checked(await xsk_setsockopt(cpu, family, xs, option, entries))
        address = _checked(await xsk_mmap(cpu, family, xs, offset))
        ring = XskRing(memory + number * XSK_RING.size, address, entries, size)
        # Of what it produces, a program keeps how far the consumer was plus the size.
        produces = option in (SocketOption.UMEM_FILL_RING, SocketOption.TX_RING)
        values = {"producer": ring.place(XDP_RING.producer), "consumer": ring.place(XDP_RING.consumer)}
        values |= {
            "ring": ring.entry(0),
            "flags": ring.place(XDP_RING.flags),
            "mask": entries - 1,
            "ring_size": entries,
        }
        cpu.store(ring.address, XSK_RING.pack(**values, cached_cons=entries * produces), XSK_RING.size)
        rings.append(ring)
    socket = XskSocket(xs, umem, *rings[:3], rings[3] if transmit else None)
    if fill:
        first = await xsk_ring_prod_reserve(cpu, socket.fill, len(fill))
        assert first is not None
        for number, chunk in enumerate(fill):
            xsk_ring_prod_fill(cpu, socket.fill, first + number, chunk)
        await xsk_ring_prod_submit(cpu, socket.fill, len(fill))
    _checked(await xsk_bind(cpu, family, xs, family.device.ifindex, queue, flags))
    return socket


async def _cached(cpu: Cpu, ring: XskRing) -> tuple[int, int]:
    both = await cpu.load(ring.address, 8)
    return both & _WORD, both >> 32


async def xsk_ring_cons_peek(cpu: Cpu, ring: XskRing, most: int) -> tuple[int, int]:
    """Take up to ``most`` entries: how many, and the number of the first."""
    produced, consumed = await _cached(cpu, ring)
    if produced == consumed:
        produced = await cpu.get(ring.ring, XDP_RING.producer)
        cpu.put(ring.address, XSK_RING.cached_prod, produced)
    count = min(produced - consumed & _WORD, most)
    if count:
        cpu.put(ring.address, XSK_RING.cached_cons, consumed + count & _WORD)
    return count, consumed


async def xsk_ring_cons_release(cpu: Cpu, ring: XskRing, count: int) -> None:
    """Give entries back."""
    consumer = await cpu.get(ring.ring, XDP_RING.consumer)
    cpu.put(ring.ring, XDP_RING.consumer, consumer + count & _WORD)


async def xsk_ring_cons_rx_desc(cpu: Cpu, ring: XskRing, number: int) -> tuple[int, int]:
    """Address and length of a received packet."""
    address, length, _ = XDP_DESC.unpack(await cpu.load(ring.entry(number), XDP_DESC.size))
    return address, length


async def xsk_ring_cons_comp_addr(cpu: Cpu, ring: XskRing, number: int) -> int:
    """Address of a packet that has been sent."""
    return await cpu.load(ring.entry(number), _ADDRESS_BYTES)


async def xsk_ring_prod_reserve(cpu: Cpu, ring: XskRing, count: int) -> int | None:
    """Set ``count`` entries aside: the number of the first, None if there are not so many."""
    produced, consumed = await _cached(cpu, ring)
    if consumed - produced & _WORD < count:
        consumed = await cpu.get(ring.ring, XDP_RING.consumer) + ring.entries & _WORD
        cpu.put(ring.address, XSK_RING.cached_cons, consumed)
        if consumed - produced & _WORD < count:
            return None
    cpu.put(ring.address, XSK_RING.cached_prod, produced + count & _WORD)
    return produced


async def xsk_ring_prod_submit(cpu: Cpu, ring: XskRing, count: int) -> None:
    """Hand entries to the kernel."""
    producer = await cpu.get(ring.ring, XDP_RING.producer)
    cpu.put(ring.ring, XDP_RING.producer, producer + count & _WORD)


def xsk_ring_prod_fill(cpu: Cpu, ring: XskRing, number: int, address: int) -> None:
    """Write a chunk's address to an entry of the fill ring (``xsk_ring_prod__fill_addr``)."""
    cpu.store(ring.entry(number), address, _ADDRESS_BYTES)


def xsk_ring_prod_tx(cpu: Cpu, ring: XskRing, number: int, address: int, length: int) -> None:
    """Write a packet's place to an entry of the transmit ring (``xsk_ring_prod__tx_desc``)."""
    entry = ring.entry(number)
    cpu.put(entry, XDP_DESC.addr, address)
    cpu.put(entry, XDP_DESC.len, length)


async def xsk_ring_prod_needs_wakeup(cpu: Cpu, ring: XskRing) -> bool:
    """Whether the kernel has to be called."""
    return bool(await cpu.get(ring.ring, XDP_RING.flags) & XDP_RING_NEED_WAKEUP)


@function()
async def xsk_ring_wait(cpu: Cpu, ring: XskRing, cycles: int) -> bool:
    """What peeking at an empty ring in vain comes to, for ``cycles`` or until there is something; whether there is."""
    _, consumed = await _cached(cpu, ring)
    seen = await cpu.poll(ring.place(XDP_RING.producer), 4, consumed, cycles, cpu.costs["xsk_ring_empty"].cycles)
    return seen != consumed
