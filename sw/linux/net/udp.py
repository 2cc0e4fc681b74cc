"""UDP (net/ipv4/udp.c; RFC 768)."""

import struct

from sw.core import LINE, function
from sw.linux.atomic import atomic_add
from sw.linux.busy_poll import napi_resume_irqs, sk_busy_loop
from sw.linux.cpu import Cpu
from sw.linux.list import Entry, list_add_tail, list_del, list_empty, list_first, list_splice_tail_init
from sw.linux.net.checksum import IPPROTO_UDP, fold, partial, pseudo_header, udp_lib_checksum_complete
from sw.linux.skb import SK_BUFF, IpSummed, consume_skb, kfree_skb_reason
from sw.linux.socket import (
    SOCK,
    lock_receive_queue,
    skb_wait_for_more_packets,
    sock_def_readable,
    unlock_receive_queue,
)
from sw.linux.softirq import local_bh_disable, local_bh_enable, spin_lock_bh, spin_unlock_bh
from sw.linux.spinlock import SPINLOCK_BYTES, raw_spin_lock, raw_spin_unlock
from sw.linux.uaccess import copy_to_user, csum_and_copy_to_user
from sw.structs import Struct

__all__ = [
    "AF_INET",
    "IPPROTO_UDP",
    "SOCKADDR_IN",
    "UDP_BUSYLOCKS_BYTES",
    "UDP_HEADER_BYTES",
    "UDP_TABLE_BYTES",
    "udp_bind",
    "udp_rcv",
    "udp_recvmsg",
]

UDP_HEADER_BYTES = 8

#: ``struct sockaddr_in``; port and address are in network order.
SOCKADDR_IN = Struct(sin_family=2, sin_port=2, sin_addr=4, sin_zero=8)
AF_INET = 2

#: Source and destination address in the IPv4 header.
_IP_ADDRESSES_OFFSET = 12
_IP_ADDRESSES_BYTES = 8

#: ``CHECKSUM_BREAK``: up to this length the checksum is computed on arrival, beyond it while copying to the program.
CHECKSUM_BREAK = 76

#: Slots of the socket table: the address of the first socket in each, 8 bytes.
UDP_HTABLE_SIZE = 256
UDP_TABLE_BYTES = 8 * UDP_HTABLE_SIZE

#: Locks that line up those who queue to a socket that is half full (``udp_busylocks``), by the socket's address.
_UDP_BUSYLOCKS = 64
UDP_BUSYLOCKS_BYTES = SPINLOCK_BYTES * _UDP_BUSYLOCKS


def _slot(cpu: Cpu, port: int) -> int:
    return cpu.kernel.udp_table + 8 * (port % UDP_HTABLE_SIZE)


async def udp_bind(cpu: Cpu, sock: int, port: int) -> None:
    """Enter a socket in the table, first in its slot."""
    slot = _slot(cpu, port)
    cpu.put(sock, SOCK.port, port)
    cpu.put(sock, SOCK.hash_next, await cpu.load(slot, 8))
    cpu.store(slot, sock, 8)


@function()
async def udp_rcv(cpu: Cpu, skb: int, data: int, ip_header: bytes, length: int) -> None:
    """Check length and checksum, find the socket, queue.

    A checksum of 0 means that the sender computed none. Long datagrams are checked while the program copies them
    (``udp4_csum_init``, ``skb_copy_and_csum_datagram_msg``).
    """
    if length < UDP_HEADER_BYTES:
        await kfree_skb_reason(cpu, skb, "PKT_TOO_SMALL")
        return
    header, loaded = await cpu.chase(data, UDP_HEADER_BYTES)
    _, port, udp_length, checksum = struct.unpack(">4H", header.to_bytes(UDP_HEADER_BYTES, "little"))
    if udp_length > length or udp_length < UDP_HEADER_BYTES:
        await kfree_skb_reason(cpu, skb, "PKT_TOO_SMALL")
        return
    if udp_length < length:
        cpu.put(skb, SK_BUFF.len, udp_length)
    valid = checksum == 0 or await cpu.get(skb, SK_BUFF.ip_summed) == IpSummed.UNNECESSARY
    if not valid and udp_length <= CHECKSUM_BREAK:
        if not await udp_lib_checksum_complete(cpu, data, ip_header[12:20], udp_length):
            await kfree_skb_reason(cpu, skb, "UDP_CSUM")
            return
        valid = True
    sock, loaded = await udp4_lib_lookup(cpu, port, loaded)
    if not sock:
        valid = valid or await udp_lib_checksum_complete(cpu, data, ip_header[12:20], udp_length)
        await kfree_skb_reason(cpu, skb, "NO_SOCKET" if valid else "UDP_CSUM")
        return
    if valid:
        cpu.put(skb, SK_BUFF.ip_summed, IpSummed.UNNECESSARY)
    await udp_queue_rcv_skb(cpu, sock, skb, loaded)


@function()
async def udp4_lib_lookup(cpu: Cpu, port: int, after: int) -> tuple[int, int]:
    """The socket bound to ``port``, known since load ``after``, or 0; the handle of the load that led to it."""
    sock, loaded = await cpu.chase(_slot(cpu, port), after=after)
    while sock:
        bound = await cpu.get(sock, SOCK.port, after=loaded)
        following = await cpu.chase(*SOCK.hash_next.at(sock), after=loaded)
        if bound == port:
            break
        sock, loaded = following
    return sock, loaded


@function()
async def udp_queue_rcv_skb(cpu: Cpu, sock: int, skb: int, after: int) -> None:
    """Queue a datagram to ``sock``, known since load ``after``, unless that holds too much already."""
    if cpu.kernel.busy_read_us:
        await _sk_mark_napi_id(cpu, sock, skb, after)
    await udp_enqueue_schedule_skb(cpu, sock, skb, after)


async def _sk_mark_napi_id(cpu: Cpu, sock: int, skb: int, after: int) -> None:
    """Remember where the datagram came from; ``sock`` is known since load ``after``."""
    napi_id = await cpu.get(skb, SK_BUFF.napi_id)
    if await cpu.get(sock, SOCK.napi_id, after=after) != napi_id:
        cpu.put(sock, SOCK.napi_id, napi_id)


@function()
async def udp_enqueue_schedule_skb(cpu: Cpu, sock: int, skb: int, after: int) -> None:
    """Charge the datagram to the socket, append it, wake the reader (``__udp_enqueue_schedule_skb``).

    While the reader falls behind, those who queue wait for each other at another lock than the reader's.
    """
    rmem_alloc = sock + SOCK.rmem_alloc.offset
    allocated, limit = await cpu.get_all(sock, SOCK.rmem_alloc, SOCK.rcvbuf, after=after)
    truesize = await cpu.get(skb, SK_BUFF.truesize)
    if allocated > limit:
        await atomic_add(cpu, 1, sock + SOCK.drops.offset)
        await kfree_skb_reason(cpu, skb, "SOCKET_RCVBUFF")
        return
    busy = cpu.kernel.udp_busylocks + sock // LINE % _UDP_BUSYLOCKS * SPINLOCK_BYTES if allocated > limit // 2 else 0
    if busy:
        await raw_spin_lock(cpu, busy)
    await atomic_add(cpu, truesize, rmem_alloc)
    enabled = await lock_receive_queue(cpu, sock)
    await list_add_tail(cpu, skb, sock + SOCK.receive_queue.offset)
    unlock_receive_queue(cpu, sock, enabled)
    await sock_def_readable(cpu, sock)
    if busy:
        raw_spin_unlock(cpu, busy)


@function()
async def udp_recvmsg(cpu: Cpu, sock: int, buffer: int, size: int, name: int = 0) -> tuple[int, tuple[int, int]]:
    """Take the next datagram whose checksum is right, copy it, free it.

    Where it came from is written as a :data:`SOCKADDR_IN` to the program's ``name``, unless that is 0.
    """
    while True:
        skb, loaded = await skb_recv_udp(cpu, sock)
        head, length, summed, network_header = await cpu.get_all(
            skb, SK_BUFF.head, SK_BUFF.len, SK_BUFF.ip_summed, SK_BUFF.network_header, after=loaded
        )
        data, loaded = await cpu.chase(*SK_BUFF.data.at(skb), after=loaded)
        payload = data + UDP_HEADER_BYTES
        payload_length = length - UDP_HEADER_BYTES
        copied = min(payload_length, size)
        if summed == IpSummed.UNNECESSARY:
            await copy_to_user(cpu, buffer, payload, copied, loaded)
            valid = True
        else:
            valid = await _copy_and_check(cpu, buffer, head + network_header, data, length, copied, loaded)
        if valid and name:
            address = await cpu.load(head + network_header + _IP_ADDRESSES_OFFSET, 4, after=loaded)
            port = await cpu.load(data, 2, after=loaded)
            values = {"sin_family": AF_INET, "sin_port": port, "sin_addr": address}
            cpu.store(name, SOCKADDR_IN.pack(**values), SOCKADDR_IN.size)
        local_bh_disable(cpu)
        if valid:
            packet = await consume_skb(cpu, skb)
        else:
            await kfree_skb_reason(cpu, skb, "UDP_CSUM")
        await local_bh_enable(cpu)
        if valid:
            return copied, packet


async def _copy_and_check(cpu: Cpu, buffer: int, ip: int, data: int, length: int, copied: int, after: int) -> bool:
    """Copy and checksum in one go (``skb_copy_and_csum_datagram_msg``), what is not copied too.

    ``data`` is known since load ``after``.
    """
    addresses = await cpu.load_bytes(ip + _IP_ADDRESSES_OFFSET, _IP_ADDRESSES_BYTES, after=after)
    if copied < length - UDP_HEADER_BYTES:
        if not await udp_lib_checksum_complete(cpu, data, addresses, length, after):
            return False
        await copy_to_user(cpu, buffer, data + UDP_HEADER_BYTES, copied, after)
        return True
    header = await cpu.load_bytes(data, UDP_HEADER_BYTES, after=after)
    total = partial(pseudo_header(addresses, length) + header)
    total += await csum_and_copy_to_user(cpu, buffer, data + UDP_HEADER_BYTES, copied, after)
    return fold(total) == 0xFFFF


@function()
async def skb_recv_udp(cpu: Cpu, sock: int) -> Entry:
    """Dequeue a datagram, busy-polling if it may, then sleeping, until there is one (``__skb_recv_udp``).

    The reader has a queue of its own, to which it moves what has arrived all at once.
    """
    queue, lock = sock + SOCK.reader_queue.offset, sock + SOCK.reader_queue_lock.offset
    receive_queue = sock + SOCK.receive_queue.offset
    while True:
        await spin_lock_bh(cpu, lock)
        skb = await list_first(cpu, queue)
        if skb.address:
            await _dequeue(cpu, sock, skb)
        elif not await list_empty(cpu, receive_queue):
            enabled = await lock_receive_queue(cpu, sock)
            await list_splice_tail_init(cpu, receive_queue, queue)
            skb = await list_first(cpu, queue)
            await _dequeue(cpu, sock, skb, locked=True)
            unlock_receive_queue(cpu, sock, enabled)
        await spin_unlock_bh(cpu, lock)
        if skb.address:
            return skb
        if cpu.kernel.busy_read_us:
            await sk_busy_loop(cpu, sock)
            if not await list_empty(cpu, receive_queue):
                continue
            await napi_resume_irqs(cpu, sock)
        await skb_wait_for_more_packets(cpu, sock)


async def _dequeue(cpu: Cpu, sock: int, skb: Entry, locked: bool = False) -> None:
    """Take a datagram off the reader's queue; ``locked``: the receive queue's lock is held."""
    empty = await list_del(cpu, skb.address, after=skb.loaded)
    truesize = await cpu.get(skb.address, SK_BUFF.truesize, after=skb.loaded)
    await _rmem_release(cpu, sock, truesize, empty, locked)


async def _rmem_release(cpu: Cpu, sock: int, size: int, empty: bool, locked: bool) -> None:
    """Take ``size`` bytes off the socket's account, in batches as long as the reader's queue is not ``empty``.

    With the receive queue locked for that, what has arrived meanwhile is moved to the reader's, too.
    """
    deficit, rcvbuf = await cpu.get_all(sock, SOCK.forward_deficit, SOCK.rcvbuf)
    size += deficit
    if size < rcvbuf >> 2 and not empty:
        cpu.put(sock, SOCK.forward_deficit, size)
        return
    cpu.put(sock, SOCK.forward_deficit, 0)
    receive_queue = sock + SOCK.receive_queue.offset
    enabled = False if locked else await lock_receive_queue(cpu, sock)
    await atomic_add(cpu, -size, sock + SOCK.rmem_alloc.offset)
    if not await list_empty(cpu, receive_queue):
        await list_splice_tail_init(cpu, receive_queue, sock + SOCK.reader_queue.offset)
    if not locked:
        unlock_receive_queue(cpu, sock, enabled)
