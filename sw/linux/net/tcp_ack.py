"""TCP: acknowledgments of what was sent (net/ipv4/tcp_input.c, ``tcp_ack`` and what it calls; RFC 9293, RFC 6298)."""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.list import list_del, list_empty, list_first
from sw.linux.net.tcp_cong import tcp_cong_control, tcp_fastretrans_alert
from sw.linux.net.tcp_output import tcp_xmit_retransmit_queue
from sw.linux.net.tcp_sock import (
    TCP_SKB_CB,
    TCP_SOCK,
    CaState,
    Sacked,
    TcpFlag,
    TcpSegment,
    after,
    before,
    cb,
)
from sw.linux.net.tcp_timer import (
    ICSK_TIME_PROBE0,
    TCP_RTO_MAX,
    inet_csk_reset_xmit_timer,
    tcp_rearm_rto,
)
from sw.linux.skb import SK_BUFF, kfree_skb
from sw.linux.socket import sock_def_readable
from sw.linux.timer import HZ, us_to_jiffies

__all__ = ["TCP_TIMEOUT_INIT", "tcp_ack", "tcp_ack_update_window", "tcp_fast_path_check", "tcp_fast_path_on"]

#: First time-out (RFC 6298 section 2), and the least that one becomes, jiffies.
TCP_TIMEOUT_INIT = HZ
TCP_RTO_MIN = HZ // 5
_US_PER_JIFFY = 1_000_000 // HZ
_RTO_MIN_US = TCP_RTO_MIN * _US_PER_JIFFY
_HEADER_WORDS_ACK = 5 << 28 | TcpFlag.ACK << 16


async def tcp_fast_path_on(cpu: Cpu, sk: int) -> None:
    """Say what the header of an ordinary segment looks like: no options, ACK, the window as it is (``pred_flags``)."""
    wnd, scale = await cpu.get_all(sk, TCP_SOCK.snd_wnd, TCP_SOCK.snd_wscale)
    cpu.put(sk, TCP_SOCK.pred_flags, _HEADER_WORDS_ACK | wnd >> scale)


@function()
async def tcp_ack(cpu: Cpu, sk: int, segment: TcpSegment, slow: bool) -> bool:
    """Take the acknowledgment of a segment; false if it acknowledges what was never sent.

    Arguments:
        slow: the header was not as predicted.
    """
    ack = segment.ack_seq
    una, nxt = await cpu.get_all(sk, TCP_SOCK.snd_una, TCP_SOCK.snd_nxt)
    packets_out, retransmits, state, mstamp = await cpu.get_all(
        sk, TCP_SOCK.packets_out, TCP_SOCK.retransmits, TCP_SOCK.ca_state, TCP_SOCK.mstamp
    )
    if after(ack, nxt):
        return False
    if before(ack, una):
        return True
    advanced = after(ack, una)
    if advanced and retransmits:
        cpu.put(sk, TCP_SOCK.retransmits, 0)
    opened = False
    if not slow and advanced:
        cpu.put(sk, TCP_SOCK.snd_wl1, segment.seq)
        cpu.put(sk, TCP_SOCK.snd_una, ack)
    else:
        opened = await tcp_ack_update_window(cpu, sk, segment)
    if not packets_out:
        await _ack_probe(cpu, sk)
        return True
    acked = await tcp_clean_rtx_queue(cpu, sk, ack, mstamp) if advanced else 0
    duplicate = not advanced and not opened and segment.seq == segment.end_seq
    arrived = newly_lost = 0
    if duplicate or state != CaState.OPEN:
        arrived, newly_lost = await tcp_fastretrans_alert(cpu, sk, advanced, duplicate)
    await tcp_cong_control(cpu, sk, acked + arrived, newly_lost, advanced)
    if duplicate or state != CaState.OPEN:
        await tcp_xmit_retransmit_queue(cpu, sk)
    return True


async def tcp_ack_update_window(cpu: Cpu, sk: int, segment: TcpSegment) -> bool:
    """Take the window that a segment announces, if it is newer; whether that changed it (RFC 9293 section 3.10.7.4)."""
    ack = segment.ack_seq
    una, wl1, wnd, scale, most = await cpu.get_all(
        sk, TCP_SOCK.snd_una, TCP_SOCK.snd_wl1, TCP_SOCK.snd_wnd, TCP_SOCK.snd_wscale, TCP_SOCK.max_window
    )
    window = segment.window if segment.flags & TcpFlag.SYN else segment.window << scale
    changed = False
    # tcp_may_update_window
    if after(ack, una) or after(segment.seq, wl1) or (segment.seq == wl1 and window > wnd):
        cpu.put(sk, TCP_SOCK.snd_wl1, segment.seq)
        if window != wnd:
            changed = True
            cpu.put(sk, TCP_SOCK.snd_wnd, window)
            cpu.put(sk, TCP_SOCK.pred_flags, 0)
            await tcp_fast_path_check(cpu, sk)
            if window > most:
                cpu.put(sk, TCP_SOCK.max_window, window)
    cpu.put(sk, TCP_SOCK.snd_una, ack)
    return changed


async def tcp_fast_path_check(cpu: Cpu, sk: int) -> None:
    """Predict headers again, if nothing unusual is going on."""
    ofo, window = await cpu.get_all(sk, TCP_SOCK.ofo_pending, TCP_SOCK.rcv_wnd)
    if not ofo and window:
        await tcp_fast_path_on(cpu, sk)


@function()
async def tcp_clean_rtx_queue(cpu: Cpu, sk: int, una: int, now_us: int) -> int:
    """Free what has arrived, learn the round trip's time, restart the timer; how many segments that were."""
    queue = sk + TCP_SOCK.rtx_queue.offset
    acked, retransmitted, sent_us = 0, False, -1
    retrans_acked = lost_acked = freed = 0
    while True:
        skb, loaded = await list_first(cpu, queue)
        if not skb:
            break
        end_seq, sacked, mstamp, truesize = await cpu.load_all(
            cb(skb, TCP_SKB_CB.end_seq),
            cb(skb, TCP_SKB_CB.sacked),
            cb(skb, TCP_SKB_CB.skb_mstamp),
            SK_BUFF.truesize.at(skb),
            after=loaded,
        )
        if after(end_seq, una):
            break
        if sacked & Sacked.EVER_RETRANS:
            retransmitted = True
        elif sent_us < 0:
            sent_us = mstamp
        retrans_acked += bool(sacked & Sacked.RETRANS)
        lost_acked += bool(sacked & Sacked.LOST)
        freed += truesize
        acked += 1
        await list_del(cpu, skb, after=loaded)
        await kfree_skb(cpu, skb)
    if not acked:
        return 0
    packets_out, sacked_out, lost_out, retrans_out, queued = await cpu.get_all(
        sk,
        TCP_SOCK.packets_out,
        TCP_SOCK.sacked_out,
        TCP_SOCK.lost_out,
        TCP_SOCK.retrans_out,
        TCP_SOCK.wmem_queued,
    )
    cpu.put(sk, TCP_SOCK.packets_out, packets_out - acked)
    cpu.put(sk, TCP_SOCK.lost_out, lost_out - lost_acked)
    cpu.put(sk, TCP_SOCK.retrans_out, retrans_out - retrans_acked)
    cpu.put(sk, TCP_SOCK.wmem_queued, queued - freed)
    # One of those that arrived closed a hole, the others are those the duplicate ACKs spoke of (tcp_remove_reno_sacks).
    cpu.put(sk, TCP_SOCK.sacked_out, min(max(sacked_out - (acked - 1), 0), packets_out - acked))
    if sent_us >= 0 and not retransmitted:
        await _rtt_estimator(cpu, sk, max(now_us - sent_us, 1))
    await tcp_rearm_rto(cpu, sk)
    await sock_def_readable(cpu, sk)
    return acked


@function()
async def _rtt_estimator(cpu: Cpu, sk: int, rtt: int) -> None:
    """Smoothed round trip, its variation, the time-out (``tcp_rtt_estimator``, ``tcp_set_rto``).

    In microseconds; ``srtt_us`` is eight times the average, ``mdev_us`` four times the mean deviation.
    """
    srtt, mdev, mdev_max, rttvar, una, rtt_seq, nxt = await cpu.get_all(
        sk,
        TCP_SOCK.srtt_us,
        TCP_SOCK.mdev_us,
        TCP_SOCK.mdev_max_us,
        TCP_SOCK.rttvar_us,
        TCP_SOCK.snd_una,
        TCP_SOCK.rtt_seq,
        TCP_SOCK.snd_nxt,
    )
    if srtt:
        deviation = rtt - (srtt >> 3)
        srtt += deviation
        if deviation < 0:
            # When the round trip becomes shorter, that is no reason to wait longer (Eifel).
            deviation = -deviation - (mdev >> 2)
            if deviation > 0:
                deviation >>= 3
        else:
            deviation -= mdev >> 2
        mdev += deviation
        if mdev > mdev_max:
            mdev_max = mdev
            rttvar = max(rttvar, mdev_max)
        if after(una, rtt_seq):
            if mdev_max < rttvar:
                rttvar -= (rttvar - mdev_max) >> 2
            rtt_seq, mdev_max = nxt, _RTO_MIN_US
    else:
        srtt, mdev = rtt << 3, rtt << 1
        rttvar = mdev_max = max(mdev, _RTO_MIN_US)
        rtt_seq = nxt
    values = (srtt, mdev, mdev_max, rttvar, rtt_seq)
    fields = (TCP_SOCK.srtt_us, TCP_SOCK.mdev_us, TCP_SOCK.mdev_max_us, TCP_SOCK.rttvar_us, TCP_SOCK.rtt_seq)
    for field, value in zip(fields, values, strict=True):
        cpu.put(sk, field, value)
    rto = -(-((srtt >> 3) + rttvar) // _US_PER_JIFFY)
    cpu.put(sk, TCP_SOCK.rto, min(rto, TCP_RTO_MAX))
    cpu.put(sk, TCP_SOCK.backoff, 0)


async def _ack_probe(cpu: Cpu, sk: int) -> None:
    """Nothing is under way: the answer to a window probe, perhaps (``tcp_ack_probe``)."""
    if await list_empty(cpu, sk + TCP_SOCK.write_queue.offset):
        return
    skb, loaded = await list_first(cpu, sk + TCP_SOCK.write_queue.offset)
    end_seq = await cpu.load(*cb(skb, TCP_SKB_CB.end_seq), after=loaded)
    una, wnd, rto, mstamp = await cpu.get_all(sk, TCP_SOCK.snd_una, TCP_SOCK.snd_wnd, TCP_SOCK.rto, TCP_SOCK.mstamp)
    if not after(end_seq, (una + wnd) % (1 << 32)):
        cpu.put(sk, TCP_SOCK.backoff, 0)
        cpu.put(sk, TCP_SOCK.pending, 0)
    else:
        await inet_csk_reset_xmit_timer(cpu, sk, ICSK_TIME_PROBE0, rto, us_to_jiffies(mstamp))
