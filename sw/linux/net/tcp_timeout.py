"""TCP: what happens when its timers go off (net/ipv4/tcp_timer.c; RFC 6298, RFC 9293 section 3.8.6.1)."""

import errno

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.list import list_first
from sw.linux.net.tcp_cong import tcp_enter_loss
from sw.linux.net.tcp_minisocks import reqsk_queue_removed, sock_put, tcp_done, tcp_purge
from sw.linux.net.tcp_output import (
    TCP_ATO_MIN,
    tcp_push_pending_frames,
    tcp_retransmit_skb,
    tcp_send_ack,
    tcp_send_probe,
    tcp_send_synack,
)
from sw.linux.net.tcp_sock import TCP_SOCK, AckPending, TcpState
from sw.linux.net.tcp_timer import (
    ICSK_TIME_PROBE0,
    ICSK_TIME_RETRANS,
    TCP_RTO_MAX,
    inet_csk_reset_xmit_timer,
    tcp_mstamp_refresh,
)
from sw.linux.spinlock import raw_spin_lock, raw_spin_unlock
from sw.linux.timer import mod_timer, us_to_jiffies

__all__ = [
    "DELACK_TIMER_DEFERRED",
    "KEEPALIVE_TIMER_DEFERRED",
    "WRITE_TIMER_DEFERRED",
    "tcp_delack_timer",
    "tcp_delack_timer_handler",
    "tcp_keepalive_timer",
    "tcp_write_timer",
    "tcp_write_timer_handler",
]

#: Bits of ``deferred``: a timer went off while a program had the socket (``TCPF_*_DEFERRED``).
WRITE_TIMER_DEFERRED, DELACK_TIMER_DEFERRED, KEEPALIVE_TIMER_DEFERRED = 1, 2, 4

#: Time-outs in a row before a connection is given up (``net.ipv4.tcp_retries2``, ``tcp_synack_retries``).
TCP_RETR2 = 15
TCP_SYNACK_RETRIES = 5


async def _defer(cpu: Cpu, sk: int, bit: int) -> bool:
    """Take the socket's lock; if a program has the socket, leave the work to it and return true."""
    await raw_spin_lock(cpu, sk + TCP_SOCK.slock.offset)
    owned, deferred = await cpu.get_all(sk, TCP_SOCK.owned, TCP_SOCK.deferred)
    if owned:
        cpu.put(sk, TCP_SOCK.deferred, deferred | bit)
    return bool(owned)


async def _let_go(cpu: Cpu, sk: int) -> None:
    raw_spin_unlock(cpu, sk + TCP_SOCK.slock.offset)
    await sock_put(cpu, sk)


@function()
async def tcp_write_timer(cpu: Cpu, timer: int) -> None:
    """The retransmission timer."""
    sk = timer - TCP_SOCK.retransmit_timer.offset
    if not await _defer(cpu, sk, WRITE_TIMER_DEFERRED):
        await tcp_write_timer_handler(cpu, sk)
    await _let_go(cpu, sk)


@function()
async def tcp_delack_timer(cpu: Cpu, timer: int) -> None:
    """The delayed ACK's timer."""
    sk = timer - TCP_SOCK.delack_timer.offset
    if not await _defer(cpu, sk, DELACK_TIMER_DEFERRED):
        await tcp_delack_timer_handler(cpu, sk)
    await _let_go(cpu, sk)


@function()
async def tcp_keepalive_timer(cpu: Cpu, timer: int) -> None:
    """The end of TIME_WAIT, and of an orphan's FIN_WAIT2; keepalive itself is not there."""
    sk = timer - TCP_SOCK.sk_timer.offset
    if not await _defer(cpu, sk, KEEPALIVE_TIMER_DEFERRED):
        state = await cpu.get(sk, TCP_SOCK.state)
        if state == TcpState.TIME_WAIT or state == TcpState.FIN_WAIT2:
            await tcp_done(cpu, sk)
    await _let_go(cpu, sk)


async def tcp_delack_timer_handler(cpu: Cpu, sk: int) -> None:
    """Send the ACK that has waited; the socket is locked."""
    state, pending, due, ato = await cpu.get_all(
        sk, TCP_SOCK.state, TCP_SOCK.ack_pending, TCP_SOCK.ack_timeout, TCP_SOCK.ack_ato
    )
    if state in (TcpState.CLOSE, TcpState.LISTEN) or not pending & AckPending.TIMER:
        return
    now = us_to_jiffies(await tcp_mstamp_refresh(cpu, sk))
    if due > now:
        await mod_timer(cpu, sk + TCP_SOCK.delack_timer.offset, due, now)
        return
    cpu.put(sk, TCP_SOCK.ack_pending, pending & ~AckPending.TIMER)
    if pending & AckPending.SCHED:
        if await cpu.get(sk, TCP_SOCK.ack_pingpong):
            # The program did not answer in time: it is not that kind of conversation.
            cpu.put(sk, TCP_SOCK.ack_pingpong, 0)
            cpu.put(sk, TCP_SOCK.ack_ato, TCP_ATO_MIN)
        else:
            cpu.put(sk, TCP_SOCK.ack_ato, min(ato << 1, TCP_RTO_MAX))
        await tcp_send_ack(cpu, sk)


async def tcp_write_timer_handler(cpu: Cpu, sk: int) -> None:
    """What the retransmission timer is for; the socket is locked."""
    state, pending, due = await cpu.get_all(sk, TCP_SOCK.state, TCP_SOCK.pending, TCP_SOCK.timeout)
    if state in (TcpState.CLOSE, TcpState.LISTEN) or not pending:
        return
    now = us_to_jiffies(await tcp_mstamp_refresh(cpu, sk))
    if due > now:
        await mod_timer(cpu, sk + TCP_SOCK.retransmit_timer.offset, due, now)
        return
    cpu.put(sk, TCP_SOCK.pending, 0)
    if state == TcpState.SYN_RECV:
        await _retransmit_synack(cpu, sk, now)
    elif pending == ICSK_TIME_RETRANS:
        await tcp_retransmit_timer(cpu, sk, now)
    else:
        await tcp_probe_timer(cpu, sk, now)


async def _give_up(cpu: Cpu, sk: int) -> None:
    """Too many time-outs (``tcp_write_err``)."""
    cpu.put(sk, TCP_SOCK.err, errno.ETIMEDOUT)
    await tcp_purge(cpu, sk)
    await tcp_done(cpu, sk)


async def _retransmit_synack(cpu: Cpu, sk: int, now: int) -> None:
    retransmits, rto = await cpu.get_all(sk, TCP_SOCK.retransmits, TCP_SOCK.rto)
    if retransmits >= TCP_SYNACK_RETRIES:
        await reqsk_queue_removed(cpu, sk)
        await tcp_done(cpu, sk)
        return
    cpu.put(sk, TCP_SOCK.retransmits, retransmits + 1)
    await tcp_send_synack(cpu, sk)
    cpu.put(sk, TCP_SOCK.rto, min(rto << 1, TCP_RTO_MAX))
    await inet_csk_reset_xmit_timer(cpu, sk, ICSK_TIME_RETRANS, rto << 1, now)


@function()
async def tcp_retransmit_timer(cpu: Cpu, sk: int, now: int) -> None:
    """The first segment under way has not been acknowledged in time."""
    packets_out, retransmits, rto, backoff = await cpu.get_all(
        sk, TCP_SOCK.packets_out, TCP_SOCK.retransmits, TCP_SOCK.rto, TCP_SOCK.backoff
    )
    if not packets_out:
        return
    if retransmits >= TCP_RETR2:
        await _give_up(cpu, sk)
        return
    cpu.note("timeout", sock=sk, retransmits=retransmits)
    await tcp_enter_loss(cpu, sk)
    cpu.put(sk, TCP_SOCK.retransmits, retransmits + 1)
    skb = (await list_first(cpu, sk + TCP_SOCK.rtx_queue.offset)).address
    if not await tcp_retransmit_skb(cpu, sk, skb):
        # The last copy has not even left: soon again (TCP_RESOURCE_PROBE_INTERVAL, half a second).
        await inet_csk_reset_xmit_timer(cpu, sk, ICSK_TIME_RETRANS, min(rto, 125), now)
        return
    cpu.put(sk, TCP_SOCK.backoff, backoff + 1)
    cpu.put(sk, TCP_SOCK.rto, min(rto << 1, TCP_RTO_MAX))
    await inet_csk_reset_xmit_timer(cpu, sk, ICSK_TIME_RETRANS, rto << 1, now)


@function()
async def tcp_probe_timer(cpu: Cpu, sk: int, now: int) -> None:
    """The other end has had no room for a while: ask again (persist)."""
    packets_out, backoff, rto = await cpu.get_all(sk, TCP_SOCK.packets_out, TCP_SOCK.backoff, TCP_SOCK.rto)
    if packets_out:
        return
    await tcp_push_pending_frames(cpu, sk)
    if await cpu.get(sk, TCP_SOCK.packets_out):
        return
    if backoff >= TCP_RETR2:
        await _give_up(cpu, sk)
        return
    await tcp_send_probe(cpu, sk)
    cpu.put(sk, TCP_SOCK.backoff, backoff + 1)
    await inet_csk_reset_xmit_timer(cpu, sk, ICSK_TIME_PROBE0, rto << backoff + 1, now)
