"""Sockets of AF_XDP: what the driver hands them, and what programs ask of them (net/xdp/xsk.c)."""

import enum
from dataclasses import dataclass
from errno import EBUSY, EINVAL, ENOBUFS, ENODEV, ENOMEM, ENOSPC, ENXIO, EOPNOTSUPP
from typing import TYPE_CHECKING, Protocol

from sw.bpf.context import XDP_BUFF, XDP_RXQ_INFO
from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.list import LIST_HEAD, Entry, init_list_head, list_add_tail, list_del, list_first
from sw.linux.socket import SOCK, sock_def_readable
from sw.linux.xdp.area import XdpArea
from sw.linux.xdp.errors import XskError
from sw.linux.xdp.if_xdp import XDP_RING, XDP_RING_NEED_WAKEUP, BindFlag, PageOffset, SocketOption
from sw.linux.xdp.pool import (
    XskBuffPool,
    xp_alloc,
    xp_create_and_assign_umem,
    xp_free,
    xp_get_handle,
)
from sw.linux.xdp.queue import (
    XSK_QUEUE,
    XskQueue,
    xskq_cons_publish,
    xskq_create,
    xskq_prod_publish,
    xskq_prod_reserve_desc,
)
from sw.linux.xdp.umem import XdpUmem
from sw.structs import Struct

if TYPE_CHECKING:
    from sw.linux.kernel import Kernel

__all__ = [
    "MEM_TYPE_XSK_BUFF_POOL",
    "XDP_SOCK",
    "AfXdp",
    "XdpDevice",
    "XdpSock",
    "xdp_do_flush_map",
    "xsk_map_redirect",
]

#: Type of a receive queue's memory: chunks of a UMEM (include/net/xdp.h).
MEM_TYPE_XSK_BUFF_POOL = 3

#: ``struct xdp_sock``: what sockets have in common, then its own.
XDP_SOCK = Struct(
    SOCK.size + LINE, sk=SOCK.size, state=4, queue_id=4, flush_node=LIST_HEAD.size, rx_dropped=8, rx_queue_full=8
)
_FLUSH_NODE = XDP_SOCK.flush_node.offset


class _State(enum.IntEnum):
    """``enum xsk_state``."""

    READY = 0
    BOUND = 1


class XdpDevice(Protocol):
    """What a driver offers sockets (``struct net_device_ops``)."""

    ifindex: int
    queues: int  #: pairs of queues
    address: int  #: of the ``struct net_device``

    async def ndo_setup_xsk_pool(self, cpu: Cpu, pool: XskBuffPool, queue: int) -> int:
        """Use the pool's chunks as buffers of a queue pair; 0 or a negative errno (``XDP_SETUP_XSK_POOL``)."""

    async def ndo_start_xmit(self, cpu: Cpu, skb: int, queue: int) -> bool:
        """Send a packet by a transmit queue, softirqs being disabled; false if that is full."""

    async def ndo_xsk_wakeup(self, cpu: Cpu, queue: int, flags: int) -> int:
        """Look at the rings soon; 0 or a negative errno."""


@dataclass(slots=True, eq=False)
class XdpSock:
    """One socket; what the receive path changes lies in memory."""

    address: int  #: of the :data:`XDP_SOCK`
    fd: int  #: its file descriptor
    rx: XskQueue | None = None
    tx: XskQueue | None = None
    fq_tmp: XskQueue | None = None
    cq_tmp: XskQueue | None = None
    umem: XdpUmem | None = None
    pool: XskBuffPool | None = None
    device: XdpDevice | None = None
    queue: int = 0
    zc: bool = False


class AfXdp:
    """The protocol family of one kernel.

    Arguments:
        size: bytes for sockets, rings and pools.
        device: what sockets can be bound to.
    """

    #: Descriptors below are those of other files.
    _FIRST_FD = 64

    def __init__(self, kernel: "Kernel", size: int, device: XdpDevice):
        self.area = XdpArea(kernel, size)
        self.device = device
        self.sockets = kernel.xdp_sockets  #: by address
        self._flush_lists = self.area.allocate(LINE * len(kernel.cpus))
        self._pools: dict[int, XskBuffPool] = {}  #: by queue

    def init(self, cpu: Cpu) -> None:
        """Write what is there before any socket."""
        for other in cpu.kernel.cpus:
            init_list_head(cpu, self.flush_list(other))

    def flush_list(self, cpu: Cpu) -> int:
        """Address of the list of sockets that a core has handed packets to (``xskmap_flush_list``)."""
        return self._flush_lists + LINE * cpu.index

    def find_socket(self, fd: int) -> int | None:
        """The address of the socket with that file descriptor."""
        return next((xs.address for xs in self.sockets.values() if xs.fd == fd), None)

    async def create(self, cpu: Cpu) -> XdpSock:
        """``xsk_create``: a new socket.

        Raises:
            XskError: ENOMEM.
        """
        xs = XdpSock(self.area.allocate(XDP_SOCK.size), self._FIRST_FD + len(self.sockets))
        init_list_head(cpu, xs.address + SOCK.wait_queue.offset)
        self.sockets[xs.address] = xs
        return xs

    async def setsockopt(self, cpu: Cpu, xs: XdpSock, option: SocketOption, value: int | XdpUmem) -> None:
        """``xsk_setsockopt``: the UMEM, or a ring of ``value`` entries.

        Raises:
            XskError: as the kernel refuses it.
        """
        if await cpu.get(xs.address, XDP_SOCK.state) != _State.READY:
            raise XskError(EBUSY, f"{option.name}: the socket is bound")
        if isinstance(value, XdpUmem):
            if xs.umem is not None:
                raise XskError(EBUSY, f"{option.name}: the socket has a UMEM")
            xs.umem = value
            return
        name = _RINGS[option]
        if getattr(xs, name) is not None:
            raise XskError(EINVAL, f"{option.name}: the socket has that ring")
        try:
            queue = xskq_create(cpu, self.area, value, name in ("fq_tmp", "cq_tmp"))
        except XskError as error:
            raise XskError(error.errno, f"{option.name}: {error.message}") from None
        setattr(xs, name, queue)
        if option is SocketOption.TX_RING:
            cpu.put(queue.ring, XDP_RING.flags, XDP_RING_NEED_WAKEUP)

    async def mmap(self, cpu: Cpu, xs: XdpSock, offset: PageOffset) -> int:
        """``xsk_mmap``: the address under which the program has a ring.

        Raises:
            XskError: EBUSY, EINVAL.
        """
        if await cpu.get(xs.address, XDP_SOCK.state) != _State.READY:
            raise XskError(EBUSY, f"mmap of {offset.name}: the socket is bound")
        queue = getattr(xs, _RINGS[SocketOption[offset.name]])
        if queue is None:
            raise XskError(EINVAL, f"mmap of {offset.name}: the socket has no such ring")
        return self.area.user_address(queue.ring)

    async def bind(self, cpu: Cpu, xs: XdpSock, ifindex: int, queue: int, flags: BindFlag) -> None:
        """``xsk_bind``: from now on, packets may be redirected here.

        Raises:
            XskError: as the kernel refuses it.
        """
        if flags & BindFlag.SHARED_UMEM:
            raise XskError(EOPNOTSUPP, "bind: sockets that share a UMEM are not modelled")
        if await cpu.get(xs.address, XDP_SOCK.state) != _State.READY:
            raise XskError(EBUSY, "bind: the socket is bound")
        if ifindex != self.device.ifindex:
            raise XskError(ENODEV, f"bind: there is no device {ifindex}")
        if xs.rx is None and xs.tx is None:
            raise XskError(EINVAL, "bind: the socket has neither a receive nor a transmit ring")
        if xs.umem is None or xs.fq_tmp is None or xs.cq_tmp is None:
            raise XskError(EINVAL, "bind: the socket lacks a UMEM, a fill or a completion ring")
        pool = await xp_create_and_assign_umem(cpu, self.area, xs.umem, xs.fq_tmp, xs.cq_tmp)
        xs.zc = await self._assign_device(cpu, pool, queue, flags)
        pool.tx = xs.tx
        xs.pool = self._pools[queue] = pool
        xs.device, xs.queue = self.device, queue
        cpu.put(xs.address, XDP_SOCK.queue_id, queue)
        cpu.put(xs.address, XDP_SOCK.state, _State.BOUND)

    async def statistics(self, cpu: Cpu, xs: XdpSock) -> dict[str, int]:
        """The counters of ``struct xdp_statistics``, by name."""

        async def count(queue: XskQueue | None, counter: tuple[int, int]) -> int:
            return 0 if queue is None else await cpu.get(queue.address, counter)

        fq = None if xs.pool is None else xs.pool.fq
        return {
            "rx_dropped": await cpu.get(xs.address, XDP_SOCK.rx_dropped),
            "rx_invalid_descs": await count(xs.rx, XSK_QUEUE.invalid_descs),
            "tx_invalid_descs": await count(xs.tx, XSK_QUEUE.invalid_descs),
            "rx_ring_full": await cpu.get(xs.address, XDP_SOCK.rx_queue_full),
            "rx_fill_ring_empty_descs": await count(fq, XSK_QUEUE.queue_empty_descs),
            "tx_ring_empty_descs": await count(xs.tx, XSK_QUEUE.queue_empty_descs),
        }

    async def _assign_device(self, cpu: Cpu, pool: XskBuffPool, queue: int, flags: BindFlag) -> bool:
        """``xp_assign_dev``; whether the driver uses the chunks itself."""
        if flags & BindFlag.ZEROCOPY and flags & BindFlag.COPY:
            raise XskError(EINVAL, "bind: COPY and ZEROCOPY exclude each other")
        if queue in self._pools:
            raise XskError(EBUSY, f"bind: queue {queue} has a socket")
        if not 0 <= queue < self.device.queues:
            raise XskError(EINVAL, f"bind: there is no queue {queue}; the device has {self.device.queues}")
        pool.uses_need_wakeup = bool(flags & BindFlag.USE_NEED_WAKEUP)
        if flags & BindFlag.COPY:
            return False
        error = await self.device.ndo_setup_xsk_pool(cpu, pool, queue)
        if error and flags & BindFlag.ZEROCOPY:
            raise XskError(-error, f"bind: the driver does not take the UMEM for queue {queue}")
        return not error


_RINGS = {
    SocketOption.RX_RING: "rx",
    SocketOption.TX_RING: "tx",
    SocketOption.UMEM_FILL_RING: "fq_tmp",
    SocketOption.UMEM_COMPLETION_RING: "cq_tmp",
}


# Receiving


@function()
async def xsk_map_redirect(cpu: Cpu, family: AfXdp, address: int, buff: int, packet: tuple[int, int]) -> int:
    """Hand a packet to the socket at ``address`` (``__xsk_map_redirect``); 0 or a negative errno.

    Arguments:
        buff: address of the ``struct xdp_buff``.
        packet: which received packet it is, for observers.
    """
    xs = family.sockets[address]
    error = await xsk_rcv(cpu, xs, buff, packet)
    if error:
        return error
    if not await cpu.load(address + _FLUSH_NODE + LIST_HEAD.prev.offset, 8):
        await list_add_tail(cpu, address + _FLUSH_NODE, family.flush_list(cpu))
    return 0


@function()
async def xsk_rcv(cpu: Cpu, xs: XdpSock, buff: int, packet: tuple[int, int]) -> int:
    """Queue a packet; one that does not lie in the socket's UMEM yet is copied there."""
    state, queue = await cpu.get_all(xs.address, XDP_SOCK.state, XDP_SOCK.queue_id)
    if state != _State.BOUND:
        return -ENXIO
    rxq, loaded = await cpu.chase(*XDP_BUFF.rxq.at(buff))
    mem_type = await cpu.get(rxq, XDP_RXQ_INFO.mem_type, after=loaded)
    if queue != await cpu.get(rxq, XDP_RXQ_INFO.queue_index, after=loaded):
        return -EINVAL
    data, end = await cpu.get_all(buff, XDP_BUFF.data, XDP_BUFF.data_end)
    if mem_type == MEM_TYPE_XSK_BUFF_POOL:
        return await _rcv_zc(cpu, xs, buff, end - data, packet)
    return await _rcv_copy(cpu, xs, data, end - data, packet)


async def _rcv_zc(cpu: Cpu, xs: XdpSock, xskb: int, length: int, packet: tuple[int, int]) -> int:
    """Put a chunk on the receive ring (``__xsk_rcv_zc``)."""
    assert xs.pool is not None and xs.rx is not None
    address = await xp_get_handle(cpu, xs.pool, xskb)
    if not await xskq_prod_reserve_desc(cpu, xs.rx, address, length):
        full = await cpu.get(xs.address, XDP_SOCK.rx_queue_full)
        cpu.put(xs.address, XDP_SOCK.rx_queue_full, full + 1)
        return -ENOBUFS
    xs.pool.packet_of[xs.pool.chunk(address)] = packet
    return 0


async def _rcv_copy(cpu: Cpu, xs: XdpSock, data: int, length: int, packet: tuple[int, int]) -> int:
    """Copy a packet to a chunk and queue that (``__xsk_rcv``)."""
    assert xs.pool is not None
    error = 0
    xskb = 0
    if length > xs.pool.frame_len:
        error = -ENOSPC
    else:
        xskb = await xp_alloc(cpu, xs.pool)
        error = 0 if xskb else -ENOMEM
    if error:
        cpu.put(xs.address, XDP_SOCK.rx_dropped, await cpu.get(xs.address, XDP_SOCK.rx_dropped) + 1)
        return error
    await xsk_copy_xdp(cpu, await cpu.get(xskb, XDP_BUFF.data), data, length)
    error = await _rcv_zc(cpu, xs, xskb, length, packet)
    if error:
        await xp_free(cpu, xs.pool, xskb)
    return error


@function()
async def xsk_copy_xdp(cpu: Cpu, to: int, source: int, length: int) -> None:
    """Copy a packet: a load per line of the source, a store per line of the destination, overlapping."""
    cpu.execute("xsk_copy_64", (length + LINE - 1) // LINE)
    cpu.store(to, await cpu.load_bytes(source, length), length)


@function()
async def xdp_do_flush_map(cpu: Cpu, family: AfXdp) -> None:
    """Publish what this poll has handed to sockets, and wake their readers (``__xsk_map_flush``)."""
    while True:
        entry: Entry = await list_first(cpu, family.flush_list(cpu))
        if not entry.address:
            return
        xs = family.sockets[entry.address - _FLUSH_NODE]
        await xsk_flush(cpu, xs)
        await list_del(cpu, entry.address, after=entry.loaded)
        cpu.store(entry.address + LIST_HEAD.prev.offset, 0, 8)


@function()
async def xsk_flush(cpu: Cpu, xs: XdpSock) -> None:
    """Publish one socket's packets and what was taken of its fill ring."""
    assert xs.pool is not None and xs.rx is not None
    await xskq_prod_publish(cpu, xs.rx)
    await xskq_cons_publish(cpu, xs.pool.fq)
    await sock_def_readable(cpu, xs.address)
