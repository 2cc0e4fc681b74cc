"""TCP over IPv4: from a packet to its socket (net/ipv4/tcp_ipv4.c, inet_connection_sock.c)."""

import struct

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.net.inet_hashtables import inet_ehash_insert, inet_lookup
from sw.linux.net.route import ip_route_output_flow
from sw.linux.net.tcp_checksum import tcp_checksum_complete
from sw.linux.net.tcp_input import tcp_rcv_established, tcp_rcv_state_process
from sw.linux.net.tcp_minisocks import sock_put, tcp_done, tcp_init_sock
from sw.linux.net.tcp_output import TCP_MIN_MSS, TCP_MSS_DEFAULT, tcp_send_ack, tcp_send_segment, tcp_send_synack
from sw.linux.net.tcp_sock import (
    TCP_HEADER_BYTES,
    TCP_SOCK,
    TCP_TIMEWAIT_LEN,
    TcpFlag,
    TcpSegment,
    TcpState,
    after,
    before,
    init_cb,
    tcp_win_from_space,
)
from sw.linux.net.tcp_timer import ICSK_TIME_RETRANS, inet_csk_reset_xmit_timer, tcp_mstamp_refresh
from sw.linux.skb import MAX_TCP_HEADER, SK_BUFF, __alloc_skb, consume_control_skb, kfree_skb_reason
from sw.linux.socket import SOCK
from sw.linux.spinlock import raw_spin_lock, raw_spin_unlock
from sw.linux.timer import jiffies, mod_timer, us_to_jiffies

__all__ = ["tcp_v4_do_rcv", "tcp_v4_rcv"]

#: Up to this length the checksum is computed on arrival (``CHECKSUM_BREAK``).
_CHECKSUM_BREAK = 76

#: MTU of 1500 less the headers.
TCP_MSS = 1460
_MOST_UNSCALED = 65_535
_MOST_SCALE = 14
#: ``net.ipv4.tcp_rmem``, its last value: what the window scale is chosen for.
TCP_RMEM_MAX = 6 << 20
_OPTION_END, _OPTION_NOP, _OPTION_MSS, _OPTION_WINDOW = 0, 1, 2, 3

#: Bytes of the queue for a program that has its socket locked (``tcp_add_backlog``: two buffers and 64 KiB).
_BACKLOG_ROOM = 64 << 10


@function()
async def tcp_v4_rcv(cpu: Cpu, skb: int, data: int, ip_header: bytes, length: int) -> None:
    """Check the header, find the socket, work on the segment or leave it to the program that has the socket."""
    if length < TCP_HEADER_BYTES:
        await kfree_skb_reason(cpu, skb, "PKT_TOO_SMALL")
        return
    header, loaded = await _tcp_hdr(cpu, data)
    segment = _parse(skb, data, loaded, header, length)
    if segment.header_bytes < TCP_HEADER_BYTES or length < segment.header_bytes:
        await kfree_skb_reason(cpu, skb, "PKT_TOO_SMALL")
        return
    if length <= _CHECKSUM_BREAK and not await tcp_checksum_complete(cpu, segment):
        await kfree_skb_reason(cpu, skb, "TCP_CSUM")
        return
    init_cb(cpu, skb, segment.seq, segment.end_seq, segment.flags, segment.ack_seq)
    daddr = int.from_bytes(ip_header[12:16], "little")
    sport, dport = struct.unpack_from(">HH", header)
    sk, loaded = await inet_lookup(cpu, daddr, sport, dport, loaded)
    if not sk:
        await _no_socket(cpu, segment, ip_header, sport, dport)
        return
    state = await cpu.get(sk, TCP_SOCK.state, after=loaded)
    if state == TcpState.LISTEN:
        await _listen_rcv(cpu, sk, segment, ip_header, sport, dport)
        return
    if state == TcpState.TIME_WAIT:
        await _timewait_rcv(cpu, sk, segment, ip_header, sport, dport)
        return
    lock = sk + TCP_SOCK.slock.offset
    await raw_spin_lock(cpu, lock)
    if await cpu.get(sk, TCP_SOCK.owned):
        added = await tcp_add_backlog(cpu, sk, skb)
        raw_spin_unlock(cpu, lock)
        if not added:
            await kfree_skb_reason(cpu, skb, "SOCKET_BACKLOG")
        return
    await _do_rcv(cpu, sk, segment)
    raw_spin_unlock(cpu, lock)
    await sock_put(cpu, sk)


async def _tcp_hdr(cpu: Cpu, data: int, after: int = -1) -> tuple[bytes, int]:
    """The header at ``data``, known since load ``after``, and the handle of the load of its first part."""
    first = min(LINE - data % LINE, TCP_HEADER_BYTES)
    loaded = cpu.load_begin(data, first, after=after)
    rest = await cpu.load_bytes(data + first, TCP_HEADER_BYTES - first, after=after)
    value = await cpu.result(loaded)
    return (value.to_bytes(first, "little") if isinstance(value, int) else value) + rest, loaded


def _parse(skb: int, data: int, loaded: int, header: bytes, length: int) -> TcpSegment:
    """The header's fields."""
    _, _, seq, ack_seq, offset, flags, window = struct.unpack_from(">HHIIBBH", header)
    header_bytes = (offset >> 4) * 4
    taken = length - header_bytes + bool(flags & TcpFlag.SYN) + bool(flags & TcpFlag.FIN)
    end_seq = (seq + taken) % (1 << 32)
    return TcpSegment(skb, data, loaded, seq, end_seq, ack_seq, flags, window, header_bytes, length)


async def tcp_v4_do_rcv(cpu: Cpu, sk: int, skb: int) -> None:
    """A segment that waited in the backlog; its header is read again."""
    data, loaded = await cpu.chase(*SK_BUFF.data.at(skb))
    length = await cpu.get(skb, SK_BUFF.len)
    header, _ = await _tcp_hdr(cpu, data, loaded)
    await _do_rcv(cpu, sk, _parse(skb, data, loaded, header, length))


async def _do_rcv(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """``tcp_v4_do_rcv``: the socket is locked."""
    if await cpu.get(sk, TCP_SOCK.state) == TcpState.ESTABLISHED:
        await tcp_rcv_established(cpu, sk, segment)
    elif not await tcp_rcv_state_process(cpu, sk, segment):
        daddr, saddr = await cpu.get_all(sk, TCP_SOCK.daddr, TCP_SOCK.rcv_saddr)
        dport, num = await cpu.get_all(sk, TCP_SOCK.dport, TCP_SOCK.num)
        ends = (saddr.to_bytes(4, "little"), num), (daddr.to_bytes(4, "little"), dport)
        await tcp_v4_send_reset(cpu, segment, *ends)
        await kfree_skb_reason(cpu, segment.skb, "NOT_SPECIFIED")


@function()
async def tcp_add_backlog(cpu: Cpu, sk: int, skb: int) -> bool:
    """Leave a segment to the program that has the socket locked; false if too many wait already."""
    held, rcvbuf, tail = await cpu.get_all(sk, TCP_SOCK.backlog_len, SOCK.rcvbuf, TCP_SOCK.backlog_tail)
    truesize = await cpu.get(skb, SK_BUFF.truesize)
    if held > 2 * rcvbuf + _BACKLOG_ROOM:
        return False
    cpu.put(skb, SK_BUFF.next, 0)
    if tail:
        cpu.put(tail, SK_BUFF.next, skb)
    else:
        cpu.put(sk, TCP_SOCK.backlog_head, skb)
    cpu.put(sk, TCP_SOCK.backlog_tail, skb)
    cpu.put(sk, TCP_SOCK.backlog_len, held + truesize)
    return True


async def _no_socket(cpu: Cpu, segment: TcpSegment, ip_header: bytes, sport: int, dport: int) -> None:
    """Nobody wants that (RFC 9293 section 3.10.7.1)."""
    if not await tcp_checksum_complete(cpu, segment):
        await kfree_skb_reason(cpu, segment.skb, "TCP_CSUM")
        return
    await tcp_v4_send_reset(cpu, segment, (ip_header[16:20], dport), (ip_header[12:16], sport))
    await kfree_skb_reason(cpu, segment.skb, "NO_SOCKET")


@function()
async def tcp_v4_send_reset(
    cpu: Cpu, segment: TcpSegment, source: tuple[bytes, int], destination: tuple[bytes, int]
) -> None:
    """Answer a segment by a reset that its sender will believe."""
    if segment.flags & TcpFlag.RST:
        return
    neighbour = await ip_route_output_flow(cpu, destination[0])
    skb = await __alloc_skb(cpu, MAX_TCP_HEADER, 0) if neighbour is not None else 0
    if not skb or neighbour is None:
        return
    if segment.flags & TcpFlag.ACK:
        seq, ack, flags = segment.ack_seq, 0, TcpFlag.RST
    else:
        seq, ack, flags = 0, segment.end_seq, TcpFlag.RST | TcpFlag.ACK
    await tcp_send_segment(cpu, skb, source, destination, neighbour, seq, ack, flags, 0)


# Connections that begin


async def _listen_rcv(cpu: Cpu, sk: int, segment: TcpSegment, ip_header: bytes, sport: int, dport: int) -> None:
    """A segment for a socket that listens (``tcp_rcv_state_process``, TCP_LISTEN)."""
    if segment.flags & TcpFlag.RST:
        await kfree_skb_reason(cpu, segment.skb, "TCP_RESET")
    elif segment.flags & TcpFlag.ACK:
        await tcp_v4_send_reset(cpu, segment, (ip_header[16:20], dport), (ip_header[12:16], sport))
        await kfree_skb_reason(cpu, segment.skb, "TCP_FLAGS")
    elif segment.flags & TcpFlag.SYN and not segment.flags & TcpFlag.FIN:
        if await tcp_conn_request(cpu, sk, segment, ip_header, sport, dport):
            await consume_control_skb(cpu, segment.skb)
        else:
            await kfree_skb_reason(cpu, segment.skb, "NOT_SPECIFIED")
    else:
        await kfree_skb_reason(cpu, segment.skb, "TCP_FLAGS")


@function()
async def tcp_conn_request(cpu: Cpu, sk: int, segment: TcpSegment, ip_header: bytes, sport: int, dport: int) -> bool:
    """Make a half-open connection of a SYN and answer it; false if there is no room.

    The kernel keeps a small structure until the handshake is over; here it is a socket from the start.
    """
    waiting, most, rcvbuf = await cpu.get_all(sk, TCP_SOCK.ack_backlog, TCP_SOCK.max_ack_backlog, SOCK.rcvbuf)
    if waiting > most:
        return False
    neighbour = await ip_route_output_flow(cpu, ip_header[12:16])
    child = await tcp_init_sock(cpu, rcvbuf) if neighbour is not None else 0
    if not child or neighbour is None:
        return False
    options = await cpu.load_bytes(segment.data + TCP_HEADER_BYTES, segment.header_bytes - TCP_HEADER_BYTES)
    cpu.execute("tcp_parse_options")
    mss, scale = tcp_parse_options(options)
    mss = max(min(mss or TCP_MSS_DEFAULT, TCP_MSS), TCP_MIN_MSS)
    window, rcv_wscale = tcp_select_initial_window(rcvbuf)
    iss = await _secure_tcp_seq(cpu)
    fields = {
        TCP_SOCK.daddr: int.from_bytes(ip_header[12:16], "little"),
        TCP_SOCK.rcv_saddr: int.from_bytes(ip_header[16:20], "little"),
        TCP_SOCK.nexthop: int.from_bytes(neighbour, "little"),
        TCP_SOCK.dport: sport,
        TCP_SOCK.num: dport,
        TCP_SOCK.state: TcpState.SYN_RECV,
        TCP_SOCK.parent: sk,
        TCP_SOCK.irs: segment.seq,
        TCP_SOCK.rcv_nxt: segment.end_seq,
        TCP_SOCK.rcv_wup: segment.end_seq,
        TCP_SOCK.copied_seq: segment.end_seq,
        TCP_SOCK.rcv_wnd: window,
        TCP_SOCK.window_clamp: tcp_win_from_space(rcvbuf),
        TCP_SOCK.rcv_ssthresh: window,
        TCP_SOCK.rcv_wscale: 0 if scale is None else rcv_wscale,
        TCP_SOCK.snd_wscale: min(scale or 0, _MOST_SCALE),
        TCP_SOCK.advmss: TCP_MSS,
        TCP_SOCK.mss_cache: mss,
        TCP_SOCK.rcv_mss: max(min(TCP_MSS_DEFAULT, mss, window // 2), TCP_MIN_MSS),
        TCP_SOCK.iss: iss,
        TCP_SOCK.snd_una: iss,
        TCP_SOCK.snd_nxt: (iss + 1) % (1 << 32),
        TCP_SOCK.write_seq: (iss + 1) % (1 << 32),
        TCP_SOCK.snd_sml: iss,
        TCP_SOCK.high_seq: iss,
        TCP_SOCK.cwnd_usage_seq: iss,
        TCP_SOCK.rtt_seq: iss,
        TCP_SOCK.snd_wl1: segment.seq,
        TCP_SOCK.snd_wnd: segment.window,
        TCP_SOCK.max_window: segment.window,
        TCP_SOCK.dead: 1,  # nobody has accepted it
    }
    for field, value in fields.items():
        cpu.put(child, field, value)
    cpu.put(sk, TCP_SOCK.ack_backlog, waiting + 1)
    await inet_ehash_insert(cpu, child)
    now = us_to_jiffies(await tcp_mstamp_refresh(cpu, child))
    await tcp_send_synack(cpu, child)
    await inet_csk_reset_xmit_timer(cpu, child, ICSK_TIME_RETRANS, await cpu.get(child, TCP_SOCK.rto), now)
    return True


async def _secure_tcp_seq(cpu: Cpu) -> int:
    """An initial sequence number: the clock of RFC 9293 section 3.4.1, four microseconds a number.

    The kernel adds a keyed hash of both ends (RFC 6528); there is nobody to keep it from here.
    """
    cpu.execute("secure_tcp_seq")
    return await cpu.rdtsc() * 250 // cpu.kernel.tsc_khz % (1 << 32)


def tcp_parse_options(options: bytes) -> tuple[int, int | None]:
    """MSS (0: none) and window scale of a SYN; others are passed over."""
    mss, scale = 0, None
    while options and options[0] != _OPTION_END:
        if options[0] == _OPTION_NOP:
            options = options[1:]
            continue
        if len(options) < 2 or not 2 <= options[1] <= len(options):
            break
        if options[0] == _OPTION_MSS and options[1] == 4:
            mss = int.from_bytes(options[2:4], "big")
        elif options[0] == _OPTION_WINDOW and options[1] == 3:
            scale = options[2]
        options = options[options[1] :]
    return mss, scale


def tcp_select_initial_window(rcvbuf: int) -> tuple[int, int]:
    """The window of a SYN, in whole segments, and the scale of later ones."""
    space = tcp_win_from_space(rcvbuf)
    window = min(space, _MOST_UNSCALED)
    if window > TCP_MSS:
        window = window // TCP_MSS * TCP_MSS
    scale = 0
    while scale < _MOST_SCALE and max(space, TCP_RMEM_MAX) >> scale > _MOST_UNSCALED:
        scale += 1
    return window, scale


# Connections that have ended


async def _timewait_rcv(cpu: Cpu, sk: int, segment: TcpSegment, ip_header: bytes, sport: int, dport: int) -> None:
    """A segment for a connection in TIME_WAIT (``tcp_timewait_state_process``; RFC 9293, RFC 1337)."""
    if not await tcp_checksum_complete(cpu, segment):
        await kfree_skb_reason(cpu, segment.skb, "TCP_CSUM")
        return
    nxt = await cpu.get(sk, TCP_SOCK.rcv_nxt)
    if segment.flags & TcpFlag.RST:
        if segment.seq == nxt:
            await tcp_done(cpu, sk)
            await sock_put(cpu, sk)
        await consume_control_skb(cpu, segment.skb)
        return
    if segment.flags & TcpFlag.SYN and not segment.flags & TcpFlag.ACK and after(segment.seq, nxt):
        # The other end begins anew
        await tcp_done(cpu, sk)
        await sock_put(cpu, sk)
        listener, _ = await inet_lookup(cpu, int.from_bytes(ip_header[12:16], "little"), sport, dport, -1)
        if listener:
            await _listen_rcv(cpu, listener, segment, ip_header, sport, dport)
        else:
            await _no_socket(cpu, segment, ip_header, sport, dport)
        return
    if segment.seq == segment.end_seq and not before(segment.seq, nxt):
        await consume_control_skb(cpu, segment.skb)
        return
    now = await jiffies(cpu)
    await mod_timer(cpu, sk + TCP_SOCK.sk_timer.offset, now + TCP_TIMEWAIT_LEN, now)
    await tcp_send_ack(cpu, sk)
    await kfree_skb_reason(cpu, segment.skb, "NOT_SPECIFIED")
