"""TCP: how sockets begin and end (net/ipv4/tcp.c, tcp_minisocks.c, inet_connection_sock.c)."""

import errno

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.list import init_list_head, list_del, list_empty, list_first
from sw.linux.net.inet_hashtables import inet_unhash
from sw.linux.net.tcp_ack import TCP_TIMEOUT_INIT
from sw.linux.net.tcp_cong import TCP_INFINITE_SSTHRESH, TCP_INIT_CWND
from sw.linux.net.tcp_sock import (
    TCP_SOCK,
    TCP_TIMEWAIT_LEN,
    Shutdown,
    TcpState,
)
from sw.linux.net.tcp_timer import inet_csk_clear_xmit_timers
from sw.linux.skb import free_undelivered_skb, kfree_skb
from sw.linux.slab import kmem_cache_alloc, kmem_cache_free
from sw.linux.socket import SOCK, sock_def_readable
from sw.linux.timer import jiffies, mod_timer, timer_setup

__all__ = [
    "reqsk_queue_removed",
    "sock_put",
    "tcp_done",
    "tcp_fin_timeout",
    "tcp_init_sock",
    "tcp_purge",
    "tcp_purge_receive_queue",
    "tcp_reset",
    "tcp_time_wait",
]

#: ``net.ipv4.tcp_wmem``: send buffer in bytes of ``truesize``.
TCP_SNDBUF = 262_144


async def tcp_init_sock(cpu: Cpu, rcvbuf: int) -> int:
    """A socket without connection, or 0 when there is no memory (``sk_alloc``, ``tcp_init_sock``)."""
    sk = await kmem_cache_alloc(cpu, cpu.kernel.tcp_cache)
    if not sk:
        return 0
    cpu.store(sk, bytes(TCP_SOCK.size), TCP_SOCK.size)
    cpu.put(sk, SOCK.rcvbuf, rcvbuf)
    for head in (SOCK.receive_queue, SOCK.wait_queue, SOCK.reader_queue):
        init_list_head(cpu, sk + head.offset)
    for head in (TCP_SOCK.out_of_order_queue, TCP_SOCK.write_queue, TCP_SOCK.rtx_queue):
        init_list_head(cpu, sk + head.offset)
    values = {
        TCP_SOCK.state: TcpState.CLOSE,
        SOCK.sndbuf: TCP_SNDBUF,
        TCP_SOCK.snd_cwnd: TCP_INIT_CWND,
        TCP_SOCK.snd_ssthresh: TCP_INFINITE_SSTHRESH,
        TCP_SOCK.reordering: 3,
        TCP_SOCK.rto: TCP_TIMEOUT_INIT,
    }
    for field, value in values.items():
        cpu.put(sk, field, value)
    text = cpu.kernel.text
    timer_setup(cpu, sk + TCP_SOCK.retransmit_timer.offset, text["tcp_write_timer"])
    timer_setup(cpu, sk + TCP_SOCK.delack_timer.offset, text["tcp_delack_timer"])
    timer_setup(cpu, sk + TCP_SOCK.sk_timer.offset, text["tcp_keepalive_timer"])
    return sk


async def tcp_purge(cpu: Cpu, sk: int) -> None:
    """Free what was to be sent, and what waits out of order."""
    for queue in (TCP_SOCK.write_queue, TCP_SOCK.rtx_queue):
        while not await list_empty(cpu, sk + queue.offset):
            skb, loaded = await list_first(cpu, sk + queue.offset)
            await list_del(cpu, skb, after=loaded)
            await kfree_skb(cpu, skb)
    await _purge_received(cpu, sk + TCP_SOCK.out_of_order_queue.offset)
    cpu.put(sk, TCP_SOCK.ofo_pending, 0)
    cpu.put(sk, TCP_SOCK.packets_out, 0)


async def _purge_received(cpu: Cpu, queue: int) -> bool:
    """Free received segments that nobody will read; whether there was any."""
    found = False
    while not await list_empty(cpu, queue):
        skb, loaded = await list_first(cpu, queue)
        await list_del(cpu, skb, after=loaded)
        await free_undelivered_skb(cpu, skb)
        found = True
    return found


async def tcp_purge_receive_queue(cpu: Cpu, sk: int) -> bool:
    """Free what no program has read; whether there was any."""
    return await _purge_received(cpu, sk + SOCK.receive_queue.offset)


@function()
async def tcp_done(cpu: Cpu, sk: int) -> None:
    """A connection has ended. The socket goes with the last who uses it, see :func:`sock_put`."""
    cpu.put(sk, TCP_SOCK.state, TcpState.CLOSE)
    await inet_csk_clear_xmit_timers(cpu, sk)
    await inet_unhash(cpu, sk, listens=False)
    cpu.put(sk, TCP_SOCK.shutdown, Shutdown.RCV | Shutdown.SEND)
    await sock_def_readable(cpu, sk)


async def sock_put(cpu: Cpu, sk: int) -> None:
    """Who has worked on a socket lets go of it: one that is dead and closed goes (``inet_csk_destroy_sock``)."""
    state, dead, parent = await cpu.get_all(sk, TCP_SOCK.state, TCP_SOCK.dead, TCP_SOCK.parent)
    if not dead or state != TcpState.CLOSE or parent:
        return
    await tcp_purge(cpu, sk)
    await tcp_purge_receive_queue(cpu, sk)
    await kmem_cache_free(cpu, cpu.kernel.tcp_cache, sk)


async def tcp_reset(cpu: Cpu, sk: int) -> None:
    """The other end has reset the connection."""
    state = await cpu.get(sk, TCP_SOCK.state)
    error = errno.EPIPE if state == TcpState.CLOSE_WAIT else errno.ECONNRESET
    cpu.put(sk, TCP_SOCK.err, error)
    if state == TcpState.SYN_RECV:
        await reqsk_queue_removed(cpu, sk)
    await tcp_purge(cpu, sk)
    await tcp_done(cpu, sk)


async def reqsk_queue_removed(cpu: Cpu, sk: int) -> None:
    """A half-open connection comes to nothing: its listening socket has room for another."""
    parent = await cpu.get(sk, TCP_SOCK.parent)
    cpu.put(parent, TCP_SOCK.ack_backlog, await cpu.get(parent, TCP_SOCK.ack_backlog) - 1)
    cpu.put(sk, TCP_SOCK.parent, 0)


async def tcp_time_wait(cpu: Cpu, sk: int) -> None:
    """Stay for a while to answer what is still under way. The kernel keeps a smaller structure meanwhile."""
    cpu.put(sk, TCP_SOCK.state, TcpState.TIME_WAIT)
    cpu.put(sk, TCP_SOCK.pending, 0)
    if await cpu.get(sk, TCP_SOCK.dead):
        await tcp_purge_receive_queue(cpu, sk)  # the FIN, which no program will read
    now = await jiffies(cpu)
    await mod_timer(cpu, sk + TCP_SOCK.sk_timer.offset, now + TCP_TIMEWAIT_LEN, now)


async def tcp_fin_timeout(cpu: Cpu, sk: int) -> None:
    """An orphan waits for the other end's FIN, but not for ever (``net.ipv4.tcp_fin_timeout``)."""
    now = await jiffies(cpu)
    await mod_timer(cpu, sk + TCP_SOCK.sk_timer.offset, now + TCP_TIMEWAIT_LEN, now)
