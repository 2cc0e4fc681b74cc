"""TCP's timers (net/ipv4/tcp_timer.c, include/net/inet_connection_sock.h; RFC 6298).

Only the part that everything else needs stands here: starting and stopping. What happens when one goes off is in
``tcp_timeout``.
"""

from sw.linux.cpu import Cpu
from sw.linux.net.tcp_sock import TCP_SOCK
from sw.linux.timer import HZ, del_timer, ktime_get_us, mod_timer, us_to_jiffies

__all__ = [
    "ICSK_TIME_PROBE0",
    "ICSK_TIME_RETRANS",
    "TCP_RTO_MAX",
    "inet_csk_clear_delack",
    "inet_csk_clear_xmit_timers",
    "inet_csk_reset_delack_timer",
    "inet_csk_reset_xmit_timer",
    "tcp_mstamp_refresh",
    "tcp_rearm_rto",
]

#: What the retransmission timer is for (``icsk_pending``).
ICSK_TIME_RETRANS, ICSK_TIME_PROBE0 = 1, 3

#: ``TCP_RTO_MAX``, jiffies.
TCP_RTO_MAX = 120 * HZ


async def tcp_mstamp_refresh(cpu: Cpu, sk: int) -> int:
    """Look at the clock once for all that is done to a segment; microseconds."""
    now = await ktime_get_us(cpu)
    cpu.put(sk, TCP_SOCK.mstamp, now)
    return now


async def inet_csk_reset_xmit_timer(cpu: Cpu, sk: int, what: int, when: int, now: int) -> None:
    """Let the retransmission timer go off in ``when`` jiffies, for ``what``."""
    when = min(when, TCP_RTO_MAX)
    cpu.put(sk, TCP_SOCK.pending, what)
    cpu.put(sk, TCP_SOCK.timeout, now + when)
    await mod_timer(cpu, sk + TCP_SOCK.retransmit_timer.offset, now + when, now)


async def inet_csk_reset_delack_timer(cpu: Cpu, sk: int, due: int, now: int) -> None:
    """Let the delayed ACK's timer go off at jiffy ``due``."""
    cpu.put(sk, TCP_SOCK.ack_timeout, due)
    await mod_timer(cpu, sk + TCP_SOCK.delack_timer.offset, due, now)


async def inet_csk_clear_delack(cpu: Cpu, sk: int) -> None:
    """No ACK is due. The timer goes off in vain: that costs less than to stop it (``INET_CSK_CLEAR_TIMERS``)."""
    cpu.put(sk, TCP_SOCK.ack_pending, 0)


async def tcp_rearm_rto(cpu: Cpu, sk: int) -> None:
    """Restart the retransmission timer, or stop it when nothing is under way (RFC 6298, section 5)."""
    packets_out, rto, mstamp = await cpu.get_all(sk, TCP_SOCK.packets_out, TCP_SOCK.rto, TCP_SOCK.mstamp)
    if not packets_out:
        cpu.put(sk, TCP_SOCK.pending, 0)
        return
    await inet_csk_reset_xmit_timer(cpu, sk, ICSK_TIME_RETRANS, rto, us_to_jiffies(mstamp))


async def inet_csk_clear_xmit_timers(cpu: Cpu, sk: int) -> None:
    """Stop every timer of a connection."""
    cpu.put(sk, TCP_SOCK.pending, 0)
    cpu.put(sk, TCP_SOCK.ack_pending, 0)
    for timer in (TCP_SOCK.retransmit_timer, TCP_SOCK.delack_timer, TCP_SOCK.sk_timer):
        await del_timer(cpu, sk + timer.offset)
