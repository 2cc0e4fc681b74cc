"""TCP: the byte stream that is received (net/ipv4/tcp_input.c, ``tcp_data_queue`` and what it calls)."""

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.list import LIST_HEAD, list_del, list_first
from sw.linux.net.tcp_ack import tcp_fast_path_check
from sw.linux.net.tcp_minisocks import tcp_time_wait
from sw.linux.net.tcp_output import (
    TCP_ATO_MIN,
    TCP_MIN_MSS,
    TCP_MSS_DEFAULT,
    __tcp_select_window,
    tcp_send_ack,
    tcp_send_delayed_ack,
)
from sw.linux.net.tcp_sock import (
    TCP_HEADER_BYTES,
    TCP_SKB_CB,
    TCP_SOCK,
    AckPending,
    Shutdown,
    TcpFlag,
    TcpSegment,
    TcpState,
    after,
    before,
    cb,
    put_cb,
    sequence_distance,
    tcp_receive_window,
    tcp_win_from_space,
)
from sw.linux.skb import SK_BUFF, consume_control_skb, kfree_skb, kfree_skb_reason
from sw.linux.socket import SOCK, sock_def_readable
from sw.linux.timer import us_to_jiffies

__all__ = [
    "inet_csk_schedule_ack",
    "tcp_ack_snd_check",
    "tcp_data_queue",
    "tcp_enter_quickack_mode",
    "tcp_event_data_recv",
    "tcp_queue_rcv",
]

#: ACKs that a connection sends at once at its start and after something unusual.
TCP_MAX_QUICKACKS = 16
#: A segment with one of these may be short without being the sender's choice (``TCP_REMNANT``; URG is not modelled).
TCP_REMNANT = TcpFlag.FIN | TcpFlag.SYN | TcpFlag.PSH
#: Segments shorter than this do not make the window grow.
_LEAST_GROWING = 128


async def inet_csk_schedule_ack(cpu: Cpu, sk: int) -> None:
    """An ACK is due."""
    pending = await cpu.get(sk, TCP_SOCK.ack_pending)
    cpu.put(sk, TCP_SOCK.ack_pending, pending | AckPending.SCHED)


async def tcp_incr_quickack(cpu: Cpu, sk: int, most: int = TCP_MAX_QUICKACKS) -> None:
    """Send the next ACKs at once: as many as half a window takes, up to ``most``."""
    wnd, mss, quick = await cpu.get_all(sk, TCP_SOCK.rcv_wnd, TCP_SOCK.rcv_mss, TCP_SOCK.ack_quick)
    wanted = min(wnd // (2 * mss) or 2, most)
    if wanted > quick:
        cpu.put(sk, TCP_SOCK.ack_quick, wanted)


async def tcp_enter_quickack_mode(cpu: Cpu, sk: int, most: int = TCP_MAX_QUICKACKS) -> None:
    """The other end needs to know soon what has come."""
    await tcp_incr_quickack(cpu, sk, most)
    cpu.put(sk, TCP_SOCK.ack_pingpong, 0)
    cpu.put(sk, TCP_SOCK.ack_ato, TCP_ATO_MIN)


@function()
async def tcp_data_queue(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """Put a segment where it belongs in the stream; nobody else frees it."""
    skb, seq, end_seq = segment.skb, segment.seq, segment.end_seq
    if seq == end_seq:
        await consume_control_skb(cpu, skb)
        return
    nxt, wup, wnd, ofo = await cpu.get_all(
        sk, TCP_SOCK.rcv_nxt, TCP_SOCK.rcv_wup, TCP_SOCK.rcv_wnd, TCP_SOCK.ofo_pending
    )
    window = tcp_receive_window(wup, wnd, nxt)
    if not after(end_seq, nxt):
        await _drop(cpu, sk, skb, "TCP_OLD_DATA")
        return
    if not before(seq, (nxt + window) % (1 << 32)):
        await _drop(cpu, sk, skb, "TCP_ZEROWINDOW" if not window else "TCP_OVERWINDOW")
        return
    if after(seq, nxt):
        await tcp_data_queue_ofo(cpu, sk, segment)
        return
    if not await tcp_try_rmem_schedule(cpu, sk):
        await inet_csk_schedule_ack(cpu, sk)
        await kfree_skb_reason(cpu, skb, "PROTO_MEM")
        return
    payload = segment.payload
    await tcp_queue_rcv(cpu, sk, segment)
    if payload:
        await tcp_event_data_recv(cpu, sk, segment)
    if segment.flags & TcpFlag.FIN:
        await tcp_fin(cpu, sk)
    if ofo:
        await tcp_ofo_queue(cpu, sk)
        # RFC 5681 section 4.2: at once when a gap is filled
        if not await cpu.get(sk, TCP_SOCK.ofo_pending):
            pending = await cpu.get(sk, TCP_SOCK.ack_pending)
            cpu.put(sk, TCP_SOCK.ack_pending, pending | AckPending.NOW)
    await tcp_fast_path_check(cpu, sk)
    await sock_def_readable(cpu, sk)


async def _drop(cpu: Cpu, sk: int, skb: int, reason: str) -> None:
    """What is not wanted is answered by an ACK that says what is."""
    await tcp_enter_quickack_mode(cpu, sk)
    await inet_csk_schedule_ack(cpu, sk)
    await kfree_skb_reason(cpu, skb, reason)


async def tcp_try_rmem_schedule(cpu: Cpu, sk: int) -> bool:
    """Whether the receive buffer takes a segment more, perhaps at the cost of what waits out of order."""
    rcvbuf, allocated = await cpu.get_all(sk, SOCK.rcvbuf, SOCK.rmem_alloc)
    if allocated <= rcvbuf:
        return True
    await tcp_prune_ofo_queue(cpu, sk, rcvbuf)
    return await cpu.get(sk, SOCK.rmem_alloc) <= rcvbuf


@function()
async def tcp_prune_ofo_queue(cpu: Cpu, sk: int, rcvbuf: int) -> None:
    """Drop what waits out of order, the last first, until the rest fits."""
    queue = sk + TCP_SOCK.out_of_order_queue.offset
    while await cpu.get(sk, TCP_SOCK.ofo_pending):
        last = await cpu.get(queue, LIST_HEAD.prev)
        await _unlink_ofo(cpu, sk, last)
        await kfree_skb_reason(cpu, last, "TCP_OFO_QUEUE_PRUNE")
        if await cpu.get(sk, SOCK.rmem_alloc) <= rcvbuf:
            break


async def _charge(cpu: Cpu, sk: int, skb: int) -> None:
    """``skb_set_owner_r``. The socket is locked: no atomic is needed for that, but the kernel uses one."""
    truesize, allocated = await cpu.load_all(SK_BUFF.truesize.at(skb), SOCK.rmem_alloc.at(sk))
    cpu.put(sk, SOCK.rmem_alloc, allocated + truesize)


@function()
async def tcp_queue_rcv(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """Append a segment that is next in the stream to the receive queue, or its bytes to the last one there."""
    skb = segment.skb
    cpu.put(skb, SK_BUFF.data, segment.data + segment.header_bytes)
    cpu.put(skb, SK_BUFF.len, segment.payload)
    cpu.put(sk, TCP_SOCK.rcv_nxt, segment.end_seq)
    last = await cpu.get(sk + SOCK.receive_queue.offset, LIST_HEAD.prev)
    if last != sk + SOCK.receive_queue.offset and await tcp_try_coalesce(cpu, last, segment):
        return
    await _charge(cpu, sk, skb)
    await _append(cpu, sk, skb, last)


async def _append(cpu: Cpu, sk: int, skb: int, last: int) -> None:
    """Behind ``last``, the last of the receive queue; the socket's lock guards it, too."""
    head = sk + SOCK.receive_queue.offset
    cpu.put(head, LIST_HEAD.prev, skb)
    cpu.put(skb, LIST_HEAD.next, head)
    cpu.put(skb, LIST_HEAD.prev, last)
    cpu.put(last, LIST_HEAD.next, skb)


@function()
async def tcp_try_coalesce(cpu: Cpu, to: int, segment: TcpSegment) -> bool:
    """Copy a segment's bytes behind those of ``to`` if its buffer has room for them; the segment's skb is gone then.

    Only segments that follow each other; a FIN ends what can be appended.
    """
    length = segment.payload
    end_seq, flags, held, end = await cpu.load_all(
        cb(to, TCP_SKB_CB.end_seq), cb(to, TCP_SKB_CB.tcp_flags), SK_BUFF.len.at(to), SK_BUFF.end.at(to)
    )
    data, head = await cpu.get_all(to, SK_BUFF.data, SK_BUFF.head)
    if end_seq != segment.seq or flags & TcpFlag.FIN or not length or data + held + length > head + end:
        return False
    cpu.execute("skb_copy_bits_64", (length + LINE - 1) // LINE)
    payload = await cpu.load_bytes(segment.data + segment.header_bytes, length, after=segment.loaded)
    cpu.store(data + held, payload, length)
    cpu.put(to, SK_BUFF.len, held + length)
    put_cb(cpu, to, TCP_SKB_CB.end_seq, segment.end_seq)
    put_cb(cpu, to, TCP_SKB_CB.tcp_flags, flags | segment.flags)
    cpu.kernel.coalesced.setdefault(to, []).append(cpu.kernel.packet_of.pop(segment.skb))
    await kfree_skb(cpu, segment.skb)
    return True


@function()
async def tcp_data_queue_ofo(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """Keep a segment that came too early, in order, without bytes that are there already."""
    skb, seq, end_seq = segment.skb, segment.seq, segment.end_seq
    if not await tcp_try_rmem_schedule(cpu, sk):
        await inet_csk_schedule_ack(cpu, sk)
        await kfree_skb_reason(cpu, skb, "PROTO_MEM")
        return
    cpu.put(sk, TCP_SOCK.pred_flags, 0)
    await inet_csk_schedule_ack(cpu, sk)
    cpu.put(skb, SK_BUFF.data, segment.data + segment.header_bytes)
    cpu.put(skb, SK_BUFF.len, segment.payload)
    queue = sk + TCP_SOCK.out_of_order_queue.offset
    # From the end: most segments come behind all others.
    before_it, loaded = await cpu.chase(*LIST_HEAD.prev.at(queue))
    while before_it != queue:
        held_seq, held_end = await cpu.load_all(
            cb(before_it, TCP_SKB_CB.seq), cb(before_it, TCP_SKB_CB.end_seq), after=loaded
        )
        if not after(held_seq, seq):
            if not after(end_seq, held_end):
                await kfree_skb_reason(cpu, skb, "TCP_OFOMERGE")
                return
            break
        if not before(end_seq, held_end):
            previous, following = await cpu.chase(*LIST_HEAD.prev.at(before_it), after=loaded)
            await _unlink_ofo(cpu, sk, before_it)
            await kfree_skb_reason(cpu, before_it, "TCP_OFOMERGE")
            before_it, loaded = previous, following
            continue
        before_it, loaded = await cpu.chase(*LIST_HEAD.prev.at(before_it), after=loaded)
    following = await cpu.get(before_it, LIST_HEAD.next, after=loaded)
    cpu.put(skb, LIST_HEAD.prev, before_it)
    cpu.put(skb, LIST_HEAD.next, following)
    cpu.put(before_it, LIST_HEAD.next, skb)
    cpu.put(following, LIST_HEAD.prev, skb)
    cpu.put(sk, TCP_SOCK.ofo_pending, 1)
    await _charge(cpu, sk, skb)


async def _unlink_ofo(cpu: Cpu, sk: int, skb: int) -> None:
    """Take a segment out of the queue of those that came too early."""
    empty = await list_del(cpu, skb)
    truesize, allocated = await cpu.load_all(SK_BUFF.truesize.at(skb), SOCK.rmem_alloc.at(sk))
    cpu.put(sk, SOCK.rmem_alloc, allocated - truesize)
    if empty:
        cpu.put(sk, TCP_SOCK.ofo_pending, 0)


@function()
async def tcp_ofo_queue(cpu: Cpu, sk: int) -> None:
    """Move what has become next in the stream to the receive queue."""
    queue = sk + TCP_SOCK.out_of_order_queue.offset
    while await cpu.get(sk, TCP_SOCK.ofo_pending):
        skb, loaded = await list_first(cpu, queue)
        seq, end_seq, flags, nxt = await cpu.load_all(
            cb(skb, TCP_SKB_CB.seq),
            cb(skb, TCP_SKB_CB.end_seq),
            cb(skb, TCP_SKB_CB.tcp_flags),
            TCP_SOCK.rcv_nxt.at(sk),
            after=loaded,
        )
        if after(seq, nxt):
            break
        await _unlink_ofo(cpu, sk, skb)
        if not after(end_seq, nxt):
            await kfree_skb_reason(cpu, skb, "TCP_OFO_DROP")
            continue
        cpu.put(sk, TCP_SOCK.rcv_nxt, end_seq)
        last = await cpu.get(sk + SOCK.receive_queue.offset, LIST_HEAD.prev)
        await _charge(cpu, sk, skb)
        await _append(cpu, sk, skb, last)
        if flags & TcpFlag.FIN:
            await tcp_fin(cpu, sk)


async def tcp_fin(cpu: Cpu, sk: int) -> None:
    """The other end sends no more."""
    await inet_csk_schedule_ack(cpu, sk)
    shutdown, state = await cpu.get_all(sk, TCP_SOCK.shutdown, TCP_SOCK.state)
    cpu.put(sk, TCP_SOCK.shutdown, shutdown | Shutdown.RCV)
    if state in (TcpState.SYN_RECV, TcpState.ESTABLISHED):
        cpu.put(sk, TCP_SOCK.state, TcpState.CLOSE_WAIT)
    elif state == TcpState.FIN_WAIT1:
        cpu.put(sk, TCP_SOCK.state, TcpState.CLOSING)
        await tcp_send_ack(cpu, sk)
    elif state == TcpState.FIN_WAIT2:
        await tcp_send_ack(cpu, sk)
        await tcp_time_wait(cpu, sk)
    # What waits out of order lies beyond the end of the stream.
    queue = sk + TCP_SOCK.out_of_order_queue.offset
    while await cpu.get(sk, TCP_SOCK.ofo_pending):
        skb = (await list_first(cpu, queue)).address
        await _unlink_ofo(cpu, sk, skb)
        await kfree_skb_reason(cpu, skb, "TCP_OVERWINDOW")
    await sock_def_readable(cpu, sk)


@function()
async def tcp_event_data_recv(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """Learn from a segment with data: its size, how fast they come, how far the window may open."""
    await inet_csk_schedule_ack(cpu, sk)
    await tcp_measure_rcv_mss(cpu, sk, segment)
    ato, lrcvtime, mstamp = await cpu.get_all(sk, TCP_SOCK.ack_ato, TCP_SOCK.lrcvtime, TCP_SOCK.mstamp)
    now = us_to_jiffies(mstamp)
    if not ato:
        await tcp_incr_quickack(cpu, sk)
        cpu.put(sk, TCP_SOCK.ack_ato, TCP_ATO_MIN)
    else:
        waited = now - lrcvtime
        if waited <= TCP_ATO_MIN // 2:
            cpu.put(sk, TCP_SOCK.ack_ato, (ato >> 1) + TCP_ATO_MIN // 2)
        elif waited < ato:
            cpu.put(sk, TCP_SOCK.ack_ato, (ato >> 1) + waited)
    cpu.put(sk, TCP_SOCK.lrcvtime, now)
    if segment.payload >= _LEAST_GROWING:
        await tcp_grow_window(cpu, sk, segment.payload)


async def tcp_measure_rcv_mss(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """Learn how long the other end's full segments are; a smaller one may be the end of what it has to say.

    After such a one the reader acknowledges what it has read, so that Nagle's algorithm (RFC 9293 section 3.7.4) at the
    other end does not wait for the delayed ACK.
    """
    length = segment.payload
    mss, advmss, last = await cpu.get_all(sk, TCP_SOCK.rcv_mss, TCP_SOCK.advmss, TCP_SOCK.last_seg_size)
    cpu.put(sk, TCP_SOCK.last_seg_size, 0)
    if length >= mss:
        cpu.put(sk, TCP_SOCK.rcv_mss, min(length, advmss))
        return
    full = segment.length >= TCP_MIN_MSS + TCP_HEADER_BYTES and not segment.flags & TCP_REMNANT
    if full or segment.length >= TCP_MSS_DEFAULT + TCP_HEADER_BYTES:
        length = segment.length - TCP_HEADER_BYTES
        cpu.put(sk, TCP_SOCK.last_seg_size, length)
        if length == last:
            cpu.put(sk, TCP_SOCK.rcv_mss, length)
            return
    pending = await cpu.get(sk, TCP_SOCK.ack_pending)
    again = AckPending.PUSHED2 if pending & AckPending.PUSHED else 0
    cpu.put(sk, TCP_SOCK.ack_pending, pending | AckPending.PUSHED | again)


async def tcp_grow_window(cpu: Cpu, sk: int, length: int) -> None:
    """Let the window open by two segments for each that fills its buffer well enough."""
    clamp, ssthresh, advmss = await cpu.get_all(sk, TCP_SOCK.window_clamp, TCP_SOCK.rcv_ssthresh, TCP_SOCK.advmss)
    rcvbuf, allocated = await cpu.get_all(sk, SOCK.rcvbuf, SOCK.rmem_alloc)
    room = min(clamp, tcp_win_from_space(max(rcvbuf - allocated, 0))) - ssthresh
    if room > 0:
        cpu.put(sk, TCP_SOCK.rcv_ssthresh, ssthresh + min(room, max(2 * advmss, 2 * length)))


@function()
async def tcp_ack_snd_check(cpu: Cpu, sk: int) -> None:
    """Send the ACK that is due, now or later (``__tcp_ack_snd_check``; RFC 9293 section 3.8.6.3)."""
    pending, quick, pingpong = await cpu.get_all(sk, TCP_SOCK.ack_pending, TCP_SOCK.ack_quick, TCP_SOCK.ack_pingpong)
    if not pending & AckPending.SCHED:
        return
    nxt, wup, mss, wnd, ofo = await cpu.get_all(
        sk, TCP_SOCK.rcv_nxt, TCP_SOCK.rcv_wup, TCP_SOCK.rcv_mss, TCP_SOCK.rcv_wnd, TCP_SOCK.ofo_pending
    )
    now = bool(pending & AckPending.NOW) or bool(quick and not pingpong) or bool(ofo)
    if not now and sequence_distance(wup, nxt) > mss:
        now = await __tcp_select_window(cpu, sk) >= wnd
    if now:
        await tcp_send_ack(cpu, sk)
    else:
        await tcp_send_delayed_ack(cpu, sk)
