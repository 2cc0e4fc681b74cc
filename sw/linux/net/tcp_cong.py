"""TCP: congestion control (net/ipv4/tcp_cong.c, tcp_input.c; RFC 5681, RFC 6582, RFC 6937)."""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.list import LIST_HEAD, list_first
from sw.linux.net.tcp_sock import (
    TCP_SKB_CB,
    TCP_SOCK,
    CaState,
    Sacked,
    after,
    before,
    cb,
    put_cb,
    tcp_packets_in_flight,
)

__all__ = ["TCP_INFINITE_SSTHRESH", "TCP_INIT_CWND", "tcp_cong_control", "tcp_enter_loss", "tcp_fastretrans_alert"]

TCP_INFINITE_SSTHRESH = 0x7FFF_FFFF
#: Segments of the first flight (RFC 6928).
TCP_INIT_CWND = 10


def _note_window(cpu: Cpu, sk: int, cwnd: int, event: str) -> None:
    """Change the congestion window, in segments."""
    cpu.note("cwnd", sock=sk, cwnd=cwnd, event=event)
    cpu.put(sk, TCP_SOCK.snd_cwnd, cwnd)


async def _in_flight(cpu: Cpu, sk: int) -> int:
    counts = await cpu.get_all(sk, TCP_SOCK.packets_out, TCP_SOCK.sacked_out, TCP_SOCK.lost_out, TCP_SOCK.retrans_out)
    return tcp_packets_in_flight(*counts)


# Growth


@function()
async def tcp_cong_avoid(cpu: Cpu, sk: int, acked: int) -> None:
    """Grow the window for ``acked`` segments that have arrived (``tcp_reno_cong_avoid``)."""
    cwnd, ssthresh, most, limited = await cpu.get_all(
        sk, TCP_SOCK.snd_cwnd, TCP_SOCK.snd_ssthresh, TCP_SOCK.max_packets_out, TCP_SOCK.is_cwnd_limited
    )
    slow_start = cwnd < ssthresh
    if not (cwnd < 2 * most if slow_start else limited):
        return  # it is not the window that limits
    if slow_start:
        grown = min(cwnd + acked, ssthresh)
        acked -= grown - cwnd
        _note_window(cpu, sk, grown, "slow start")
        cwnd = grown
    if acked:
        await _cong_avoid_ai(cpu, sk, cwnd, acked)


async def _cong_avoid_ai(cpu: Cpu, sk: int, cwnd: int, acked: int) -> None:
    """One segment more for each whole window (``tcp_cong_avoid_ai``)."""
    count = await cpu.get(sk, TCP_SOCK.snd_cwnd_cnt)
    if count >= cwnd:
        count, cwnd = 0, cwnd + 1
        _note_window(cpu, sk, cwnd, "congestion avoidance")
    count += acked
    if count >= cwnd:
        grown = cwnd + count // cwnd
        count %= cwnd
        _note_window(cpu, sk, grown, "congestion avoidance")
    cpu.put(sk, TCP_SOCK.snd_cwnd_cnt, count)


async def tcp_cong_control(cpu: Cpu, sk: int, delivered: int, newly_lost: int, advanced: bool) -> None:
    """What an ACK does to the window: proportional reduction while recovering, else growth."""
    state = await cpu.get(sk, TCP_SOCK.ca_state)
    if state in (CaState.CWR, CaState.RECOVERY):
        await _cwnd_reduction(cpu, sk, delivered, newly_lost, advanced)
    elif advanced and delivered:
        await tcp_cong_avoid(cpu, sk, delivered)


async def _cwnd_reduction(cpu: Cpu, sk: int, delivered: int, newly_lost: int, advanced: bool) -> None:
    """Proportional rate reduction (``tcp_cwnd_reduction``; RFC 6937)."""
    ssthresh, prior_cwnd, prr_delivered, prr_out = await cpu.get_all(
        sk, TCP_SOCK.snd_ssthresh, TCP_SOCK.prior_cwnd, TCP_SOCK.prr_delivered, TCP_SOCK.prr_out
    )
    if delivered <= 0 or not prior_cwnd:
        return
    in_flight = await _in_flight(cpu, sk)
    prr_delivered += delivered
    cpu.put(sk, TCP_SOCK.prr_delivered, prr_delivered)
    delta = ssthresh - in_flight
    if delta < 0:
        sndcnt = (ssthresh * prr_delivered + prior_cwnd - 1) // prior_cwnd - prr_out
    else:
        sndcnt = max(prr_delivered - prr_out, delivered)
        if advanced and not newly_lost:
            sndcnt += 1
        sndcnt = min(delta, sndcnt)
    # Force a fast retransmit upon entering recovery
    sndcnt = max(sndcnt, 0 if prr_out else 1)
    _note_window(cpu, sk, in_flight + sndcnt, "reduction")


# Loss


async def _ssthresh(cpu: Cpu, sk: int) -> int:
    """Half of the window (``tcp_reno_ssthresh``)."""
    return max(await cpu.get(sk, TCP_SOCK.snd_cwnd) >> 1, 2)


async def _mark_head_lost(cpu: Cpu, sk: int) -> int:
    """Take the first segment that is not acknowledged to be lost; how many that are more than before."""
    skb, loaded = await list_first(cpu, sk + TCP_SOCK.rtx_queue.offset)
    if not skb:
        return 0
    sacked = await cpu.load(*cb(skb, TCP_SKB_CB.sacked), after=loaded)
    if sacked & Sacked.LOST:
        return 0
    put_cb(cpu, skb, TCP_SKB_CB.sacked, sacked | Sacked.LOST)
    lost_out, sacked_out, packets_out = await cpu.get_all(
        sk, TCP_SOCK.lost_out, TCP_SOCK.sacked_out, TCP_SOCK.packets_out
    )
    cpu.put(sk, TCP_SOCK.lost_out, lost_out + 1)
    if sacked_out + lost_out + 1 > packets_out:
        cpu.put(sk, TCP_SOCK.sacked_out, packets_out - lost_out - 1)
    return 1


async def _add_reno_sack(cpu: Cpu, sk: int) -> int:
    """A duplicate ACK says that some segment has arrived (``tcp_add_reno_sack``); 1 if there can be one."""
    sacked_out, lost_out, packets_out = await cpu.get_all(
        sk, TCP_SOCK.sacked_out, TCP_SOCK.lost_out, TCP_SOCK.packets_out
    )
    holes = min(max(lost_out, 1), packets_out)
    grown = min(sacked_out + 1, packets_out - holes)
    cpu.put(sk, TCP_SOCK.sacked_out, grown)
    return max(grown - sacked_out, 0)


def _reset_reno_sack(cpu: Cpu, sk: int) -> None:
    cpu.put(sk, TCP_SOCK.sacked_out, 0)


async def _enter_recovery(cpu: Cpu, sk: int) -> None:
    """Begin a fast recovery (``tcp_enter_recovery``, ``tcp_init_cwnd_reduction``)."""
    cwnd, nxt = await cpu.get_all(sk, TCP_SOCK.snd_cwnd, TCP_SOCK.snd_nxt)
    cpu.put(sk, TCP_SOCK.high_seq, nxt)
    cpu.put(sk, TCP_SOCK.snd_cwnd_cnt, 0)
    cpu.put(sk, TCP_SOCK.prior_cwnd, cwnd)
    cpu.put(sk, TCP_SOCK.prr_delivered, 0)
    cpu.put(sk, TCP_SOCK.prr_out, 0)
    cpu.put(sk, TCP_SOCK.snd_ssthresh, await _ssthresh(cpu, sk))
    cpu.note("fast_retransmit", sock=sk)
    cpu.put(sk, TCP_SOCK.ca_state, CaState.RECOVERY)


async def _end_recovery(cpu: Cpu, sk: int) -> None:
    """Everything sent before the loss was found has arrived: on with half the window."""
    _note_window(cpu, sk, await cpu.get(sk, TCP_SOCK.snd_ssthresh), "recovered")
    cpu.put(sk, TCP_SOCK.ca_state, CaState.OPEN)


@function()
async def tcp_fastretrans_alert(cpu: Cpu, sk: int, advanced: bool, duplicate: bool) -> tuple[int, int]:
    """What ACKs mean that are not as they should be, without SACK: NewReno.

    Arguments:
        advanced: the ACK acknowledges something new.
        duplicate: it is a duplicate.

    Returns:
        how many segments it says have arrived out of order, and how many are newly taken to be lost.
    """
    state, una, high_seq = await cpu.get_all(sk, TCP_SOCK.ca_state, TCP_SOCK.snd_una, TCP_SOCK.high_seq)
    if state == CaState.RECOVERY and not before(una, high_seq):
        _reset_reno_sack(cpu, sk)
        await _end_recovery(cpu, sk)
        return 0, 0
    arrived = 0
    if state == CaState.LOSS:
        if not before(una, high_seq):
            _reset_reno_sack(cpu, sk)
            cpu.put(sk, TCP_SOCK.ca_state, CaState.OPEN)
        elif advanced:
            _reset_reno_sack(cpu, sk)
        elif duplicate and after(await cpu.get(sk, TCP_SOCK.snd_nxt), high_seq):
            arrived = await _add_reno_sack(cpu, sk)
        return arrived, 0
    if state == CaState.RECOVERY:
        if duplicate:
            arrived = await _add_reno_sack(cpu, sk)
        return arrived, await _mark_head_lost(cpu, sk) if advanced else 0
    if advanced:
        _reset_reno_sack(cpu, sk)
    if duplicate:
        arrived = await _add_reno_sack(cpu, sk)
    sacked_out, reordering = await cpu.get_all(sk, TCP_SOCK.sacked_out, TCP_SOCK.reordering)
    if sacked_out < reordering:
        cpu.put(sk, TCP_SOCK.ca_state, CaState.DISORDER if sacked_out else CaState.OPEN)
        return arrived, 0
    await _enter_recovery(cpu, sk)
    return arrived, await _mark_head_lost(cpu, sk)


@function()
async def tcp_enter_loss(cpu: Cpu, sk: int) -> None:
    """A time-out: everything that is under way is taken to be lost; begin again with one segment."""
    state, una, high_seq, nxt, retransmits = await cpu.get_all(
        sk, TCP_SOCK.ca_state, TCP_SOCK.snd_una, TCP_SOCK.high_seq, TCP_SOCK.snd_nxt, TCP_SOCK.retransmits
    )
    if state <= CaState.DISORDER or not after(high_seq, una) or (state == CaState.LOSS and not retransmits):
        cpu.put(sk, TCP_SOCK.snd_ssthresh, await _ssthresh(cpu, sk))
    queue = sk + TCP_SOCK.rtx_queue.offset
    skb, loaded = await list_first(cpu, queue)
    while skb and skb != queue:
        sacked = await cpu.load(*cb(skb, TCP_SKB_CB.sacked), after=loaded)
        put_cb(cpu, skb, TCP_SKB_CB.sacked, (sacked | Sacked.LOST) & ~Sacked.RETRANS)
        skb, loaded = await cpu.chase(*LIST_HEAD.next.at(skb), after=loaded)
    packets_out = await cpu.get(sk, TCP_SOCK.packets_out)
    cpu.put(sk, TCP_SOCK.lost_out, packets_out)
    cpu.put(sk, TCP_SOCK.sacked_out, 0)
    cpu.put(sk, TCP_SOCK.retrans_out, 0)
    cpu.put(sk, TCP_SOCK.snd_cwnd_cnt, 0)
    cpu.put(sk, TCP_SOCK.ca_state, CaState.LOSS)
    cpu.put(sk, TCP_SOCK.high_seq, nxt)
    _note_window(cpu, sk, 1, "timeout")
