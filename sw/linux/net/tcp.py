"""TCP as programs use it (net/ipv4/tcp.c, inet_connection_sock.c)."""

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.list import LIST_HEAD, list_del, list_empty, list_first
from sw.linux.net.inet_hashtables import (
    inet_children,
    inet_hash_listener,
    inet_port_in_use,
    inet_unhash,
)
from sw.linux.net.sock import lock_sock, release_sock
from sw.linux.net.tcp_minisocks import (
    sock_put,
    tcp_done,
    tcp_fin_timeout,
    tcp_init_sock,
    tcp_purge,
    tcp_purge_receive_queue,
)
from sw.linux.net.tcp_output import (
    __tcp_select_window,
    tcp_push_pending_frames,
    tcp_queue_skb,
    tcp_send_ack,
    tcp_send_active_reset,
    tcp_send_fin,
)
from sw.linux.net.tcp_sock import (
    TCP_SKB_CB,
    TCP_SOCK,
    AckPending,
    Shutdown,
    TcpFlag,
    TcpState,
    cb,
    init_cb,
    put_cb,
    sequence_distance,
    tcp_receive_window,
)
from sw.linux.net.tcp_timer import tcp_mstamp_refresh
from sw.linux.skb import MAX_TCP_HEADER, SK_BUFF, __alloc_skb, kfree_skb
from sw.linux.socket import SOCK, sk_wait_event
from sw.linux.softirq import local_bh_disable, local_bh_enable
from sw.linux.timer import us_to_jiffies
from sw.linux.uaccess import copy_from_user, copy_to_user

__all__ = [
    "inet_csk_accept",
    "inet_csk_get_port",
    "inet_csk_listen_start",
    "tcp_close",
    "tcp_recvmsg",
    "tcp_sendmsg",
    "tcp_socket",
]

#: ``net.core.somaxconn``.
SOMAXCONN = 4096

T = TypeVar("T")

#: A received packet: its queue, and its number there.
Packet = tuple[int, int]


async def _bh_disabled(cpu: Cpu, work: Awaitable[T]) -> T:
    """Do something that softirqs do, too."""
    local_bh_disable(cpu)
    result = await work
    await local_bh_enable(cpu)
    return result


async def tcp_socket(cpu: Cpu, rcvbuf: int) -> int:
    """A new socket; or an errno, negative, as all of these."""
    return await _bh_disabled(cpu, tcp_init_sock(cpu, rcvbuf)) or -errno.ENOBUFS


async def inet_csk_get_port(cpu: Cpu, sk: int, port: int) -> int:
    """Bind to a port of all addresses; EINVAL if it is bound, EADDRINUSE if another socket listens there."""
    if await cpu.get(sk, TCP_SOCK.num):
        return -errno.EINVAL
    if await inet_port_in_use(cpu, port):
        return -errno.EADDRINUSE
    cpu.put(sk, TCP_SOCK.num, port)
    return 0


async def inet_csk_listen_start(cpu: Cpu, sk: int, backlog: int) -> int:
    """Take connections, up to ``backlog`` that nobody has accepted; EINVAL unless it is bound, EADDRINUSE."""
    state, num = await cpu.get_all(sk, TCP_SOCK.state, TCP_SOCK.num)
    if state not in (TcpState.CLOSE, TcpState.LISTEN) or not num:
        return -errno.EINVAL
    cpu.put(sk, TCP_SOCK.max_ack_backlog, min(backlog, SOMAXCONN))
    if state == TcpState.LISTEN:
        return 0
    if await inet_port_in_use(cpu, num):
        return -errno.EADDRINUSE
    cpu.put(sk, TCP_SOCK.state, TcpState.LISTEN)
    await _bh_disabled(cpu, inet_hash_listener(cpu, sk))
    return 0


@function()
async def inet_csk_accept(cpu: Cpu, sk: int) -> int:
    """The next connection, sleeping until there is one; EINVAL if the socket does not listen."""
    if await cpu.get(sk, TCP_SOCK.state) != TcpState.LISTEN:
        return -errno.EINVAL

    async def waiting() -> bool:
        return bool(await cpu.get(sk, TCP_SOCK.accept_head))

    while not await waiting():
        await sk_wait_event(cpu, sk, waiting)
    local_bh_disable(cpu)
    child, loaded = await cpu.chase(*TCP_SOCK.accept_head.at(sk))
    following = await cpu.get(child, TCP_SOCK.accept_head, after=loaded)
    cpu.put(sk, TCP_SOCK.accept_head, following)
    if not following:
        cpu.put(sk, TCP_SOCK.accept_tail, 0)
    cpu.put(sk, TCP_SOCK.ack_backlog, await cpu.get(sk, TCP_SOCK.ack_backlog) - 1)
    cpu.put(child, TCP_SOCK.dead, 0)
    cpu.put(child, TCP_SOCK.parent, 0)
    await local_bh_enable(cpu)
    return child


# Receiving


@function()
async def tcp_recvmsg(cpu: Cpu, sk: int, buffer: int, size: int) -> tuple[int, list[Packet]]:
    """Copy what has come of the stream, at least one byte unless it has ended, at most ``size``.

    Returns:
        bytes copied, 0 at the end of the stream, an errno if the connection ended otherwise (ECONNRESET, ETIMEDOUT) or
        there was none (ENOTCONN); and the received packets that have been read to their end.
    """
    await lock_sock(cpu, sk)
    copied = 0
    packets: list[Packet] = []
    while True:
        count, ended, eaten = await _copy_received(cpu, sk, buffer + copied, size - copied)
        copied += count
        packets += eaten
        if copied or ended or not size:
            break
        error, shutdown, state = await cpu.get_all(sk, TCP_SOCK.err, TCP_SOCK.shutdown, TCP_SOCK.state)
        if error:
            cpu.put(sk, TCP_SOCK.err, 0)
            await release_sock(cpu, sk)
            return -error, packets
        if shutdown & Shutdown.RCV:
            break
        if state in (TcpState.CLOSE, TcpState.LISTEN):
            await release_sock(cpu, sk)
            return -errno.ENOTCONN, packets
        await tcp_cleanup_rbuf(cpu, sk, copied)
        await release_sock(cpu, sk)
        cpu.execute("sk_wait_data")
        await sk_wait_event(cpu, sk, _something_to_read(cpu, sk))
        await lock_sock(cpu, sk)
    await tcp_cleanup_rbuf(cpu, sk, copied)
    await release_sock(cpu, sk)
    return copied, packets


def _something_to_read(cpu: Cpu, sk: int) -> Callable[[], Awaitable[bool]]:
    """What a reader waits for: data, the end, an error."""

    async def happened() -> bool:
        if not await list_empty(cpu, sk + SOCK.receive_queue.offset):
            return True
        error, shutdown = await cpu.get_all(sk, TCP_SOCK.err, TCP_SOCK.shutdown)
        return bool(error or shutdown & Shutdown.RCV)

    return happened


async def _copy_received(cpu: Cpu, sk: int, buffer: int, size: int) -> tuple[int, bool, list[Packet]]:
    """Copy from the receive queue: bytes, whether the stream has ended there, packets that are done with."""
    queue = sk + SOCK.receive_queue.offset
    copied, ended = 0, False
    packets: list[Packet] = []
    seq = await cpu.get(sk, TCP_SOCK.copied_seq)
    while copied < size or not size:
        skb, loaded = await list_first(cpu, queue)
        if not skb:
            break
        first, flags, length = await cpu.load_all(
            cb(skb, TCP_SKB_CB.seq), cb(skb, TCP_SKB_CB.tcp_flags), SK_BUFF.len.at(skb), after=loaded
        )
        data, loaded = await cpu.chase(*SK_BUFF.data.at(skb), after=loaded)
        offset = sequence_distance(first, seq)
        used = min(length - offset, size - copied)
        if used:
            cpu.execute("skb_copy_datagram_iter")
            await copy_to_user(cpu, buffer + copied, data + offset, used, loaded)
            copied += used
            seq = (seq + used) % (1 << 32)
            cpu.put(sk, TCP_SOCK.copied_seq, seq)
        if offset + used < length:
            break
        if flags & TcpFlag.FIN:
            seq = (seq + 1) % (1 << 32)
            cpu.put(sk, TCP_SOCK.copied_seq, seq)
            ended = True
        packets += await _eat_skb(cpu, sk, skb, data=bool(length))
        if ended:
            break
    return copied, ended, packets


async def _eat_skb(cpu: Cpu, sk: int, skb: int, data: bool) -> list[Packet]:
    """Take a segment that has been copied out of the queue and free it (``tcp_eat_recv_skb``)."""
    local_bh_disable(cpu)
    await list_del(cpu, skb)
    truesize, allocated = await cpu.load_all(SK_BUFF.truesize.at(skb), SOCK.rmem_alloc.at(sk))
    cpu.put(sk, SOCK.rmem_alloc, allocated - truesize)
    packets = [cpu.kernel.packet_of.pop(skb), *cpu.kernel.coalesced.pop(skb, ())]
    if not data:
        cpu.note("consumed", packet=packets.pop())
    await kfree_skb(cpu, skb)
    await local_bh_enable(cpu)
    return packets


@function()
async def tcp_cleanup_rbuf(cpu: Cpu, sk: int, copied: int) -> None:
    """Send an ACK if one is due or the window has opened much."""
    pending, pingpong, nxt, wup, mss = await cpu.get_all(
        sk, TCP_SOCK.ack_pending, TCP_SOCK.ack_pingpong, TCP_SOCK.rcv_nxt, TCP_SOCK.rcv_wup, TCP_SOCK.rcv_mss
    )
    allocated, shutdown = await cpu.load_all(SOCK.rmem_alloc.at(sk), TCP_SOCK.shutdown.at(sk))
    due = False
    if pending & AckPending.SCHED:
        pushed = pending & AckPending.PUSHED2 or (pending & AckPending.PUSHED and not pingpong)
        due = sequence_distance(wup, nxt) > mss or bool(copied > 0 and pushed and not allocated)
    if copied > 0 and not due and not shutdown & Shutdown.RCV:
        wnd, clamp = await cpu.get_all(sk, TCP_SOCK.rcv_wnd, TCP_SOCK.window_clamp)
        window = tcp_receive_window(wup, wnd, nxt)
        if 2 * window <= clamp:
            opened = await __tcp_select_window(cpu, sk)
            due = bool(opened) and opened >= 2 * window
    if due:
        await _bh_disabled(cpu, tcp_send_ack(cpu, sk))


# Sending


@function()
async def tcp_sendmsg(cpu: Cpu, sk: int, buffer: int, size: int) -> int:
    """Take ``size`` bytes to be sent, sleeping while the send buffer is full; how many, or EPIPE and the like."""
    await lock_sock(cpu, sk)
    taken = 0
    while taken < size:
        error, shutdown, state = await cpu.get_all(sk, TCP_SOCK.err, TCP_SOCK.shutdown, TCP_SOCK.state)
        if error or shutdown & Shutdown.SEND or state not in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT):
            cpu.put(sk, TCP_SOCK.err, 0)
            await release_sock(cpu, sk)
            return taken or -(error or errno.EPIPE)
        queued, sndbuf = await cpu.get_all(sk, TCP_SOCK.wmem_queued, SOCK.sndbuf)
        if queued >= sndbuf:
            await _bh_disabled(cpu, tcp_push_pending_frames(cpu, sk))
            await release_sock(cpu, sk)
            await sk_wait_event(cpu, sk, _room_to_write(cpu, sk))
            await lock_sock(cpu, sk)
            continue
        count = await _queue_bytes(cpu, sk, buffer + taken, size - taken)
        if not count:
            break
        taken += count
    await tcp_mstamp_refresh(cpu, sk)
    await _event_data_sent(cpu, sk)
    await _bh_disabled(cpu, tcp_push_pending_frames(cpu, sk))
    await release_sock(cpu, sk)
    return taken or (-errno.ENOBUFS if size else 0)


def _room_to_write(cpu: Cpu, sk: int) -> Callable[[], Awaitable[bool]]:
    """What a writer waits for: a third of the send buffer free (``sk_stream_is_writeable``), an error."""

    async def happened() -> bool:
        queued, sndbuf, error = await cpu.get_all(sk, TCP_SOCK.wmem_queued, SOCK.sndbuf, TCP_SOCK.err)
        return bool(error) or sndbuf - queued >= queued >> 1

    return happened


async def _queue_bytes(cpu: Cpu, sk: int, buffer: int, size: int) -> int:
    """Copy bytes behind the last segment that waits, if it has room, else to a new one; how many."""
    head = sk + TCP_SOCK.write_queue.offset
    mss, write_seq = await cpu.get_all(sk, TCP_SOCK.mss_cache, TCP_SOCK.write_seq)
    last, loaded = await cpu.chase(*LIST_HEAD.prev.at(head))
    length = await cpu.get(last, SK_BUFF.len, after=loaded) if last != head else mss
    skb = last
    if length >= mss:
        skb = await _bh_disabled(cpu, __alloc_skb(cpu, MAX_TCP_HEADER, 0))
        if not skb:
            return 0
        init_cb(cpu, skb, write_seq, write_seq, TcpFlag.ACK)
        await tcp_queue_skb(cpu, sk, skb)
        length = 0
    count = min(mss - length, size)
    data, loaded = await cpu.chase(*SK_BUFF.data.at(skb))
    await copy_from_user(cpu, data + length, buffer, count, loaded)
    cpu.put(skb, SK_BUFF.len, length + count)
    put_cb(cpu, skb, TCP_SKB_CB.end_seq, (write_seq + count) % (1 << 32))
    flags = TcpFlag.ACK | (TcpFlag.PSH if count == size else 0)
    put_cb(cpu, skb, TCP_SKB_CB.tcp_flags, flags)
    cpu.put(sk, TCP_SOCK.write_seq, (write_seq + count) % (1 << 32))
    return count


async def _event_data_sent(cpu: Cpu, sk: int) -> None:
    """An answer soon after something was received: ACKs go with answers here (``tcp_event_data_sent``)."""
    ato, lrcvtime, mstamp = await cpu.get_all(sk, TCP_SOCK.ack_ato, TCP_SOCK.lrcvtime, TCP_SOCK.mstamp)
    if ato and us_to_jiffies(mstamp) - lrcvtime < ato:
        cpu.put(sk, TCP_SOCK.ack_pingpong, 1)


# Closing


@function()
async def tcp_close(cpu: Cpu, sk: int) -> int:
    """No program has the socket any more: a FIN, or a reset if data came that nobody read (RFC 2525 section 2.17)."""
    await lock_sock(cpu, sk)
    local_bh_disable(cpu)
    cpu.put(sk, TCP_SOCK.shutdown, Shutdown.RCV | Shutdown.SEND)
    state = await cpu.get(sk, TCP_SOCK.state)
    if state == TcpState.LISTEN:
        await _listen_stop(cpu, sk)
        cpu.put(sk, TCP_SOCK.state, TcpState.CLOSE)
    else:
        await tcp_mstamp_refresh(cpu, sk)
        unread = await tcp_purge_receive_queue(cpu, sk)
        cpu.put(sk, SOCK.rmem_alloc, 0)
        if unread and state not in (TcpState.CLOSE, TcpState.TIME_WAIT):
            await tcp_send_active_reset(cpu, sk)
            await tcp_purge(cpu, sk)
            await tcp_done(cpu, sk)
        else:
            await _close_state(cpu, sk, state)
    cpu.put(sk, TCP_SOCK.dead, 1)
    await local_bh_enable(cpu)
    await release_sock(cpu, sk)
    return 0


async def _close_state(cpu: Cpu, sk: int, state: int) -> None:
    """What follows on a close in each state (``tcp_close_state``; RFC 9293 section 3.10.4)."""
    if state in (TcpState.ESTABLISHED, TcpState.SYN_RECV):
        cpu.put(sk, TCP_SOCK.state, TcpState.FIN_WAIT1)
        await tcp_send_fin(cpu, sk)
    elif state == TcpState.CLOSE_WAIT:
        cpu.put(sk, TCP_SOCK.state, TcpState.LAST_ACK)
        await tcp_send_fin(cpu, sk)
    elif state == TcpState.FIN_WAIT2:
        await tcp_fin_timeout(cpu, sk)


async def _listen_stop(cpu: Cpu, sk: int) -> None:
    """Reset the connections that nobody will accept, and forget the half-open ones (``inet_csk_listen_stop``)."""
    await inet_unhash(cpu, sk, listens=True)
    child = await cpu.get(sk, TCP_SOCK.accept_head)
    while child:
        following, state = await cpu.get_all(child, TCP_SOCK.accept_head, TCP_SOCK.state)
        cpu.put(child, TCP_SOCK.parent, 0)
        if state != TcpState.CLOSE:
            await tcp_send_active_reset(cpu, child)
            await tcp_done(cpu, child)
        await sock_put(cpu, child)
        child = following
    for child in await inet_children(cpu, sk):
        cpu.put(child, TCP_SOCK.parent, 0)
        await tcp_done(cpu, child)
        await sock_put(cpu, child)
