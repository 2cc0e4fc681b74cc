"""TCP: what is sent and when (net/ipv4/tcp_output.c; RFC 9293, RFC 5681)."""

import struct

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.list import LIST_HEAD, list_add_tail, list_del, list_empty, list_first
from sw.linux.net.checksum import fold, partial
from sw.linux.net.ip_output import ip_queue_xmit
from sw.linux.net.tcp_sock import (
    IPPROTO_TCP,
    TCP_HEADER_BYTES,
    TCP_SKB_CB,
    TCP_SOCK,
    AckPending,
    CaState,
    Sacked,
    TcpFlag,
    TcpState,
    after,
    before,
    cb,
    init_cb,
    put_cb,
    tcp_packets_in_flight,
    tcp_receive_window,
    tcp_win_from_space,
)
from sw.linux.net.tcp_timer import (
    ICSK_TIME_PROBE0,
    inet_csk_clear_delack,
    inet_csk_reset_delack_timer,
    inet_csk_reset_xmit_timer,
    tcp_mstamp_refresh,
    tcp_rearm_rto,
)
from sw.linux.skb import MAX_TCP_HEADER, SK_BUFF, __alloc_skb, skb_clone, skb_push
from sw.linux.socket import SOCK
from sw.linux.timer import HZ, jiffies, us_to_jiffies

__all__ = [
    "TCP_ATO_MIN",
    "TCP_MIN_MSS",
    "TCP_MSS_DEFAULT",
    "__tcp_select_window",
    "tcp_check_probe_timer",
    "tcp_push_pending_frames",
    "tcp_queue_skb",
    "tcp_retransmit_skb",
    "tcp_send_ack",
    "tcp_send_active_reset",
    "tcp_send_delayed_ack",
    "tcp_send_fin",
    "tcp_send_probe",
    "tcp_send_segment",
    "tcp_send_synack",
    "tcp_write_xmit",
    "tcp_xmit_retransmit_queue",
]

TCP_MSS_DEFAULT = 536
TCP_MIN_MSS = 88
#: Bounds of the delayed ACK's wait (``TCP_ATO_MIN``, ``TCP_DELACK_MAX``), jiffies.
TCP_ATO_MIN = HZ // 25
TCP_DELACK_MAX = HZ // 5

_OPTION_MSS, _OPTION_NOP, _OPTION_WINDOW = 2, 1, 3
_MOST_WINDOW = 0xFFFF


async def tcp_select_window(cpu: Cpu, sk: int) -> int:
    """The window for the next segment, which may not take back what was announced.

    It is noted in the socket as announced; unscaled.
    """
    wup, wnd, nxt, scale = await cpu.get_all(
        sk, TCP_SOCK.rcv_wup, TCP_SOCK.rcv_wnd, TCP_SOCK.rcv_nxt, TCP_SOCK.rcv_wscale
    )
    current = tcp_receive_window(wup, wnd, nxt)
    window = await __tcp_select_window(cpu, sk)
    if window < current:
        window = -(-current >> scale) << scale
    cpu.put(sk, TCP_SOCK.rcv_wnd, window)
    cpu.put(sk, TCP_SOCK.rcv_wup, nxt)
    window = min(window, _MOST_WINDOW << scale) >> scale
    if not window:
        cpu.put(sk, TCP_SOCK.pred_flags, 0)
    return window


@function()
async def __tcp_select_window(cpu: Cpu, sk: int) -> int:
    """The largest window that the receive buffer allows, in whole segments."""
    mss, clamp, ssthresh, wnd, scale = await cpu.get_all(
        sk, TCP_SOCK.rcv_mss, TCP_SOCK.window_clamp, TCP_SOCK.rcv_ssthresh, TCP_SOCK.rcv_wnd, TCP_SOCK.rcv_wscale
    )
    rcvbuf, allocated = await cpu.get_all(sk, SOCK.rcvbuf, SOCK.rmem_alloc)
    backlog = await cpu.get(sk, TCP_SOCK.backlog_len)
    free_space = tcp_win_from_space(max(rcvbuf - allocated - backlog, 0))
    allowed = tcp_win_from_space(rcvbuf)
    full_space = min(clamp, allowed)
    mss = min(mss, full_space)
    if free_space < full_space >> 1:
        cpu.put(sk, TCP_SOCK.ack_quick, 0)
        if free_space < allowed >> 4 or free_space < mss:
            return 0
    free_space = min(free_space, ssthresh)
    if scale:
        return -(-free_space >> scale) << scale
    if wnd <= free_space - mss or wnd > free_space:
        return free_space // mss * mss
    return wnd


async def tcp_acceptable_seq(cpu: Cpu, sk: int) -> int:
    """A sequence number that the other end accepts, whatever its window."""
    una, wnd, nxt = await cpu.get_all(sk, TCP_SOCK.snd_una, TCP_SOCK.snd_wnd, TCP_SOCK.snd_nxt)
    end = (una + wnd) % (1 << 32)
    return nxt if not before(end, nxt) else end


@function()
async def __tcp_transmit_skb(cpu: Cpu, sk: int, skb: int, seq: int, flags: int) -> bool:
    """Send a segment of this connection; the skb is IP's then. Whether it went out.

    With the ACK that it carries, no other is due (``tcp_event_ack_sent``).
    """
    syn = bool(flags & TcpFlag.SYN)
    ack, saddr, daddr = await cpu.get_all(sk, TCP_SOCK.rcv_nxt, TCP_SOCK.rcv_saddr, TCP_SOCK.daddr)
    sport, dport, nexthop = await cpu.get_all(sk, TCP_SOCK.num, TCP_SOCK.dport, TCP_SOCK.nexthop)
    if syn:
        window, options = min(await cpu.get(sk, TCP_SOCK.rcv_wnd), _MOST_WINDOW), await _syn_options(cpu, sk)
    else:
        window, options = await tcp_select_window(cpu, sk), b""
    source, destination = (saddr.to_bytes(4, "little"), sport), (daddr.to_bytes(4, "little"), dport)
    neighbour = nexthop.to_bytes(4, "little")
    sent = await tcp_send_segment(cpu, skb, source, destination, neighbour, seq, ack, flags, window, options)
    if flags & TcpFlag.ACK:
        quick = await cpu.get(sk, TCP_SOCK.ack_quick)
        if quick:
            cpu.put(sk, TCP_SOCK.ack_quick, quick - 1)
            if quick == 1:
                cpu.put(sk, TCP_SOCK.ack_ato, TCP_ATO_MIN)
        await inet_csk_clear_delack(cpu, sk)
    return sent


async def _syn_options(cpu: Cpu, sk: int) -> bytes:
    """MSS, and window scale if the other end has sent it (``tcp_synack_options``)."""
    advmss, rcv_wscale = await cpu.get_all(sk, TCP_SOCK.advmss, TCP_SOCK.rcv_wscale)
    options = struct.pack(">BBH", _OPTION_MSS, 4, advmss)
    if rcv_wscale:
        options += struct.pack(">BBBB", _OPTION_NOP, _OPTION_WINDOW, 3, rcv_wscale)
    return options


async def tcp_send_segment(
    cpu: Cpu,
    skb: int,
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    neighbour: bytes,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes = b"",
) -> bool:
    """Put the header before a segment and give it to IP; whether it went out.

    The card computes no checksums, so the payload is read here (``skb_checksum_help``).

    Arguments:
        source, destination: address and port of each end.
        neighbour: to whom the frame goes.
        window: as it is in the header.
    """
    data, loaded = await cpu.chase(*SK_BUFF.data.at(skb))
    length = await cpu.get(skb, SK_BUFF.len)
    header_bytes = TCP_HEADER_BYTES + len(options)
    fields = (source[1], destination[1], seq, ack if flags & TcpFlag.ACK else 0, header_bytes // 4 << 4, flags, window)
    header = struct.pack(">HHIIBBHHH", *fields, 0, 0) + options
    total = length + header_bytes
    pseudo = source[0] + destination[0] + struct.pack(">HH", IPPROTO_TCP, total)
    cpu.execute("csum_partial_64", (total + LINE - 1) // LINE)
    payload = await cpu.load_bytes(data, length, after=loaded)
    checksum = fold(partial(pseudo + header + payload)) ^ 0xFFFF
    header = header[:16] + checksum.to_bytes(2, "big") + header[18:]
    cpu.store(await skb_push(cpu, skb, header_bytes), header, header_bytes)
    return not await ip_queue_xmit(cpu, skb, source[0], destination[0], IPPROTO_TCP, total, neighbour)


async def _send_empty(cpu: Cpu, sk: int, seq: int, flags: int) -> bool:
    """Send a segment without payload that nobody keeps."""
    skb = await __alloc_skb(cpu, MAX_TCP_HEADER, 0)
    return bool(skb) and await __tcp_transmit_skb(cpu, sk, skb, seq, flags)


@function()
async def tcp_send_ack(cpu: Cpu, sk: int) -> None:
    """Acknowledge what has come. If there is no memory for it, the delayed ACK's timer tries again."""
    if await cpu.get(sk, TCP_SOCK.state) == TcpState.CLOSE:
        return
    if not await _send_empty(cpu, sk, await tcp_acceptable_seq(cpu, sk), TcpFlag.ACK):
        pending = await cpu.get(sk, TCP_SOCK.ack_pending)
        cpu.put(sk, TCP_SOCK.ack_pending, pending | AckPending.SCHED)
        now = await jiffies(cpu)
        await inet_csk_reset_delack_timer(cpu, sk, now + TCP_DELACK_MAX, now)


@function()
async def tcp_send_delayed_ack(cpu: Cpu, sk: int) -> None:
    """Let an ACK wait for company, but not long."""
    ato, pending, timeout = await cpu.get_all(sk, TCP_SOCK.ack_ato, TCP_SOCK.ack_pending, TCP_SOCK.ack_timeout)
    now = us_to_jiffies(await cpu.get(sk, TCP_SOCK.mstamp))
    ato = min(ato, TCP_DELACK_MAX)
    due = now + ato
    if pending & AckPending.TIMER:
        if timeout <= now + (ato >> 2):
            await tcp_send_ack(cpu, sk)
            return
        due = min(due, timeout)
    cpu.put(sk, TCP_SOCK.ack_pending, pending | AckPending.SCHED | AckPending.TIMER)
    await inet_csk_reset_delack_timer(cpu, sk, due, now)


async def tcp_send_synack(cpu: Cpu, sk: int) -> None:
    """Answer a SYN (``tcp_v4_send_synack``)."""
    await _send_empty(cpu, sk, await cpu.get(sk, TCP_SOCK.iss), TcpFlag.SYN | TcpFlag.ACK)


async def tcp_send_active_reset(cpu: Cpu, sk: int) -> None:
    """Tell the other end that this one is gone."""
    await _send_empty(cpu, sk, await tcp_acceptable_seq(cpu, sk), TcpFlag.RST | TcpFlag.ACK)


async def tcp_send_probe(cpu: Cpu, sk: int) -> None:
    """Ask for the other end's window with a segment that it must answer (``tcp_xmit_probe_skb``)."""
    una = await cpu.get(sk, TCP_SOCK.snd_una)
    await _send_empty(cpu, sk, (una - 1) % (1 << 32), TcpFlag.ACK)


async def tcp_queue_skb(cpu: Cpu, sk: int, skb: int) -> None:
    """Append a segment to what is to be sent; its sequence numbers follow what is there (``tcp_queue_skb``)."""
    end_seq, truesize = await cpu.load_all(cb(skb, TCP_SKB_CB.end_seq), SK_BUFF.truesize.at(skb))
    cpu.put(sk, TCP_SOCK.write_seq, end_seq)
    cpu.put(sk, TCP_SOCK.wmem_queued, await cpu.get(sk, TCP_SOCK.wmem_queued) + truesize)
    await list_add_tail(cpu, skb, sk + TCP_SOCK.write_queue.offset)


async def tcp_send_fin(cpu: Cpu, sk: int) -> None:
    """Send a FIN behind everything else; on the last segment if that still waits."""
    last = await cpu.get(sk + TCP_SOCK.write_queue.offset, LIST_HEAD.prev)
    write_seq = await cpu.get(sk, TCP_SOCK.write_seq)
    if last != sk + TCP_SOCK.write_queue.offset:
        flags = await cpu.load(*cb(last, TCP_SKB_CB.tcp_flags))
        put_cb(cpu, last, TCP_SKB_CB.tcp_flags, flags | TcpFlag.FIN)
        put_cb(cpu, last, TCP_SKB_CB.end_seq, (write_seq + 1) % (1 << 32))
        cpu.put(sk, TCP_SOCK.write_seq, (write_seq + 1) % (1 << 32))
    else:
        skb = await __alloc_skb(cpu, MAX_TCP_HEADER, 0)
        if not skb:
            return  # the other end will find out when it sends
        init_cb(cpu, skb, write_seq, (write_seq + 1) % (1 << 32), TcpFlag.ACK | TcpFlag.FIN)
        await tcp_queue_skb(cpu, sk, skb)
    await tcp_push_pending_frames(cpu, sk, nonagle=True)


async def tcp_push_pending_frames(cpu: Cpu, sk: int, nonagle: bool = False) -> None:
    """Send what may be sent; if nothing is under way and more waits, ask for the window in a while."""
    if not await list_empty(cpu, sk + TCP_SOCK.write_queue.offset) and await tcp_write_xmit(cpu, sk, nonagle):
        await tcp_check_probe_timer(cpu, sk)


async def tcp_check_probe_timer(cpu: Cpu, sk: int) -> None:
    """Start the persist timer, unless the retransmission timer has something to do."""
    packets_out, pending, rto = await cpu.get_all(sk, TCP_SOCK.packets_out, TCP_SOCK.pending, TCP_SOCK.rto)
    if not packets_out and not pending:
        now = us_to_jiffies(await cpu.get(sk, TCP_SOCK.mstamp))
        await inet_csk_reset_xmit_timer(cpu, sk, ICSK_TIME_PROBE0, rto, now)


@function()
async def tcp_write_xmit(cpu: Cpu, sk: int, nonagle: bool = False) -> bool:
    """Send segments as far as both windows and Nagle's rule (RFC 896) allow.

    Returns:
        whether nothing is under way and segments wait.
    """
    await tcp_mstamp_refresh(cpu, sk)
    queue = sk + TCP_SOCK.write_queue.offset
    sent, limited = 0, False
    while True:
        skb, loaded = await list_first(cpu, queue)
        if not skb:
            break
        packets_out, cwnd = await cpu.get_all(sk, TCP_SOCK.packets_out, TCP_SOCK.snd_cwnd)
        sacked, lost, retrans = await cpu.get_all(sk, TCP_SOCK.sacked_out, TCP_SOCK.lost_out, TCP_SOCK.retrans_out)
        if tcp_packets_in_flight(packets_out, sacked, lost, retrans) >= cwnd:
            limited = True
            break
        una, wnd, mss, sml = await cpu.get_all(
            sk, TCP_SOCK.snd_una, TCP_SOCK.snd_wnd, TCP_SOCK.mss_cache, TCP_SOCK.snd_sml
        )
        end_seq, flags, length = await cpu.load_all(
            cb(skb, TCP_SKB_CB.end_seq), cb(skb, TCP_SKB_CB.tcp_flags), SK_BUFF.len.at(skb), after=loaded
        )
        if after(end_seq, (una + wnd) % (1 << 32)):
            break
        small = length < mss and not flags & TcpFlag.FIN
        if small and not nonagle and packets_out and after(sml, una):
            break
        if not await _transmit_queued(cpu, sk, skb):
            break
        await _event_new_data_sent(cpu, sk, skb, end_seq)
        if length < mss:
            cpu.put(sk, TCP_SOCK.snd_sml, end_seq)
        sent += 1
    packets_out = await cpu.get(sk, TCP_SOCK.packets_out)
    if sent or limited:
        await _cwnd_validate(cpu, sk, packets_out, limited)
    return not packets_out and not await list_empty(cpu, queue)


async def _transmit_queued(cpu: Cpu, sk: int, skb: int) -> bool:
    """Send a clone of a queued segment, which stays until it is acknowledged."""
    clone = await skb_clone(cpu, skb)
    if not clone:
        return False
    seq, flags, mstamp = await cpu.load_all(
        cb(skb, TCP_SKB_CB.seq), cb(skb, TCP_SKB_CB.tcp_flags), TCP_SOCK.mstamp.at(sk)
    )
    put_cb(cpu, skb, TCP_SKB_CB.skb_mstamp, mstamp)
    return await __tcp_transmit_skb(cpu, sk, clone, seq, flags)


async def _event_new_data_sent(cpu: Cpu, sk: int, skb: int, end_seq: int) -> None:
    """A segment has been sent for the first time (``tcp_event_new_data_sent``)."""
    cpu.put(sk, TCP_SOCK.snd_nxt, end_seq)
    await list_del(cpu, skb)
    await list_add_tail(cpu, skb, sk + TCP_SOCK.rtx_queue.offset)
    packets_out, pending = await cpu.get_all(sk, TCP_SOCK.packets_out, TCP_SOCK.pending)
    cpu.put(sk, TCP_SOCK.packets_out, packets_out + 1)
    if not packets_out or pending == ICSK_TIME_PROBE0:
        await tcp_rearm_rto(cpu, sk)


async def _cwnd_validate(cpu: Cpu, sk: int, packets_out: int, limited: bool) -> None:
    """Remember whether the congestion window is what holds the sender up (``tcp_cwnd_validate``)."""
    usage_seq, most, una, nxt = await cpu.get_all(
        sk, TCP_SOCK.cwnd_usage_seq, TCP_SOCK.max_packets_out, TCP_SOCK.snd_una, TCP_SOCK.snd_nxt
    )
    was_limited = await cpu.get(sk, TCP_SOCK.is_cwnd_limited)
    if not before(una, usage_seq) or limited or (not was_limited and packets_out > most):
        cpu.put(sk, TCP_SOCK.is_cwnd_limited, limited)
        cpu.put(sk, TCP_SOCK.max_packets_out, packets_out)
        cpu.put(sk, TCP_SOCK.cwnd_usage_seq, nxt)


@function()
async def tcp_retransmit_skb(cpu: Cpu, sk: int, skb: int) -> bool:
    """Send a segment again; false if that cannot be done now.

    Not while the card still has the last copy (``skb_still_in_host_queue``): its header would change under the card.
    """
    page, sacked = await cpu.load_all(SK_BUFF.page.at(skb), cb(skb, TCP_SKB_CB.sacked))
    if await cpu.load(cpu.kernel.pages.refcount(page), 4) > 1:
        return False
    if not await _transmit_queued(cpu, sk, skb):
        return False
    seq, retrans_out = await cpu.load_all(cb(skb, TCP_SKB_CB.seq), TCP_SOCK.retrans_out.at(sk))
    cpu.note("retransmitted", seq=seq)
    put_cb(cpu, skb, TCP_SKB_CB.sacked, sacked | Sacked.RETRANS | Sacked.EVER_RETRANS)
    if not sacked & Sacked.RETRANS:
        cpu.put(sk, TCP_SOCK.retrans_out, retrans_out + 1)
    return True


@function()
async def tcp_xmit_retransmit_queue(cpu: Cpu, sk: int) -> None:
    """Send again what is taken to be lost, as far as the congestion window allows."""
    queue = sk + TCP_SOCK.rtx_queue.offset
    if not await cpu.get(sk, TCP_SOCK.lost_out):
        return
    first = skb = (await list_first(cpu, queue)).address
    while skb and skb != queue:
        packets_out, cwnd, sacked_out, lost, retrans = await cpu.get_all(
            sk,
            TCP_SOCK.packets_out,
            TCP_SOCK.snd_cwnd,
            TCP_SOCK.sacked_out,
            TCP_SOCK.lost_out,
            TCP_SOCK.retrans_out,
        )
        if tcp_packets_in_flight(packets_out, sacked_out, lost, retrans) >= cwnd:
            return
        sacked, loaded = await cpu.chase(*cb(skb, TCP_SKB_CB.sacked))
        following = await cpu.get(skb, LIST_HEAD.next, after=loaded)
        if sacked & Sacked.LOST and not sacked & Sacked.RETRANS:
            if not await tcp_retransmit_skb(cpu, sk, skb):
                return
            state, prr_out = await cpu.get_all(sk, TCP_SOCK.ca_state, TCP_SOCK.prr_out)
            if state in (CaState.CWR, CaState.RECOVERY):
                cpu.put(sk, TCP_SOCK.prr_out, prr_out + 1)
            if skb == first:
                await tcp_rearm_rto(cpu, sk)
        skb = following
