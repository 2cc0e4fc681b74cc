"""TCP: a segment for a connection (net/ipv4/tcp_input.c; RFC 9293 section 3.10.7)."""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.tcp_ack import (
    tcp_ack,
    tcp_fast_path_on,
)
from sw.linux.net.tcp_checksum import tcp_checksum_complete
from sw.linux.net.tcp_data import (
    tcp_ack_snd_check,
    tcp_data_queue,
    tcp_enter_quickack_mode,
    tcp_event_data_recv,
    tcp_queue_rcv,
)
from sw.linux.net.tcp_minisocks import tcp_done, tcp_fin_timeout, tcp_reset, tcp_time_wait
from sw.linux.net.tcp_output import tcp_push_pending_frames, tcp_send_ack, tcp_send_synack
from sw.linux.net.tcp_sock import (
    TCP_SOCK,
    Shutdown,
    TcpFlag,
    TcpSegment,
    TcpState,
    after,
    before,
    tcp_receive_window,
)
from sw.linux.net.tcp_timer import inet_csk_clear_xmit_timers, tcp_mstamp_refresh
from sw.linux.skb import consume_control_skb, kfree_skb_reason
from sw.linux.socket import SOCK, sock_def_readable

__all__ = ["tcp_rcv_established", "tcp_rcv_state_process"]

#: What ``pred_flags`` is compared with: everything of the header's fourth word but PSH (``TCP_HP_BITS``).
_PREDICTED = ~(TcpFlag.PSH << 16) & 0xFFFF_FFFF


@function()
async def tcp_rcv_established(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """A segment of a connection in its middle; fast if the header is as predicted (Van Jacobson)."""
    await tcp_mstamp_refresh(cpu, sk)
    pred_flags, nxt, snd_nxt, una = await cpu.get_all(
        sk, TCP_SOCK.pred_flags, TCP_SOCK.rcv_nxt, TCP_SOCK.snd_nxt, TCP_SOCK.snd_una
    )
    words = segment.header_bytes // 4 << 28 | segment.flags << 16 | segment.window
    predicted = words & _PREDICTED == pred_flags and segment.seq == nxt and not after(segment.ack_seq, snd_nxt)
    if predicted and not segment.payload:
        await tcp_ack(cpu, sk, segment, slow=False)
        await consume_control_skb(cpu, segment.skb)
        await tcp_push_pending_frames(cpu, sk)
        return
    if not await tcp_checksum_complete(cpu, segment):
        await kfree_skb_reason(cpu, segment.skb, "TCP_CSUM")
        return
    rcvbuf, allocated = await cpu.get_all(sk, SOCK.rcvbuf, SOCK.rmem_alloc)
    if predicted and allocated <= rcvbuf:
        await tcp_queue_rcv(cpu, sk, segment)
        await tcp_event_data_recv(cpu, sk, segment)
        if segment.ack_seq != una:
            await tcp_ack(cpu, sk, segment, slow=False)
            await tcp_push_pending_frames(cpu, sk)
        await tcp_ack_snd_check(cpu, sk)
        await sock_def_readable(cpu, sk)
        return
    await _slow_path(cpu, sk, segment)


async def _slow_path(cpu: Cpu, sk: int, segment: TcpSegment) -> None:
    """Everything that was not predicted (step 5 and on of ``tcp_rcv_established``)."""
    if not segment.flags & (TcpFlag.ACK | TcpFlag.RST | TcpFlag.SYN):
        await kfree_skb_reason(cpu, segment.skb, "TCP_FLAGS")
        return
    if not await tcp_validate_incoming(cpu, sk, segment):
        return
    if not await tcp_ack(cpu, sk, segment, slow=True):
        await tcp_send_ack(cpu, sk)
        await kfree_skb_reason(cpu, segment.skb, "TCP_ACK_UNSENT_DATA")
        return
    await tcp_data_queue(cpu, sk, segment)
    await tcp_push_pending_frames(cpu, sk)
    await tcp_ack_snd_check(cpu, sk)


@function()
async def tcp_validate_incoming(cpu: Cpu, sk: int, segment: TcpSegment) -> bool:
    """Whether to go on with a segment; it is freed if not. First the window, then RST, then SYN (RFC 5961)."""
    nxt, wup, wnd = await cpu.get_all(sk, TCP_SOCK.rcv_nxt, TCP_SOCK.rcv_wup, TCP_SOCK.rcv_wnd)
    window = tcp_receive_window(wup, wnd, nxt)
    reason = ""
    if before(segment.end_seq, wup):
        reason = "TCP_OLD_SEQUENCE"
    elif after(segment.seq, (nxt + window) % (1 << 32)):
        reason = "TCP_INVALID_SEQUENCE"
    if reason:
        if not segment.flags & TcpFlag.RST:
            await tcp_enter_quickack_mode(cpu, sk)
            await tcp_send_ack(cpu, sk)
        await kfree_skb_reason(cpu, segment.skb, reason)
        return False
    if segment.flags & TcpFlag.RST:
        if segment.seq == nxt:
            await consume_control_skb(cpu, segment.skb)
            await tcp_reset(cpu, sk)
        else:
            await tcp_send_ack(cpu, sk)  # a challenge
            await kfree_skb_reason(cpu, segment.skb, "TCP_RESET")
        return False
    if segment.flags & TcpFlag.SYN:
        await tcp_send_ack(cpu, sk)  # likewise
        await kfree_skb_reason(cpu, segment.skb, "TCP_INVALID_SYN")
        return False
    return True


@function()
async def tcp_rcv_state_process(cpu: Cpu, sk: int, segment: TcpSegment) -> bool:
    """A segment for a connection that begins or ends; false if it is to be answered by a reset, by the caller."""
    await tcp_mstamp_refresh(cpu, sk)
    if not await tcp_checksum_complete(cpu, segment):
        await kfree_skb_reason(cpu, segment.skb, "TCP_CSUM")
        return True
    if not segment.flags & (TcpFlag.ACK | TcpFlag.RST | TcpFlag.SYN):
        await kfree_skb_reason(cpu, segment.skb, "TCP_FLAGS")
        return True
    state = await cpu.get(sk, TCP_SOCK.state)
    if state == TcpState.SYN_RECV and segment.flags & TcpFlag.SYN and not segment.flags & TcpFlag.ACK:
        # The SYN again: so is its answer (tcp_check_req).
        await tcp_send_synack(cpu, sk)
        await consume_control_skb(cpu, segment.skb)
        return True
    if not await tcp_validate_incoming(cpu, sk, segment):
        return True
    if not segment.flags & TcpFlag.ACK:
        await kfree_skb_reason(cpu, segment.skb, "TCP_FLAGS")
        return True
    if not await tcp_ack(cpu, sk, segment, slow=True):
        if state == TcpState.SYN_RECV:
            return False
        await tcp_send_ack(cpu, sk)
        await kfree_skb_reason(cpu, segment.skb, "TCP_ACK_UNSENT_DATA")
        return True
    if state == TcpState.SYN_RECV:
        if not await _established(cpu, sk, segment):
            await kfree_skb_reason(cpu, segment.skb, "TCP_OLD_ACK")
            return True
    elif await _fin_acknowledged(cpu, sk, segment, state):
        return True
    state, shutdown = await cpu.get_all(sk, TCP_SOCK.state, TCP_SOCK.shutdown)
    if state in (TcpState.ESTABLISHED, TcpState.FIN_WAIT1, TcpState.FIN_WAIT2):
        if state != TcpState.ESTABLISHED and shutdown & Shutdown.RCV and segment.payload:
            # Nobody will ever read that (RFC 9293 section 3.10.7.4, RFC 2525 section 2.17).
            await tcp_done(cpu, sk)
            return False
        await tcp_data_queue(cpu, sk, segment)
        if await cpu.get(sk, TCP_SOCK.state) == TcpState.TIME_WAIT:
            return True
    else:
        await consume_control_skb(cpu, segment.skb)
    await tcp_push_pending_frames(cpu, sk)
    await tcp_ack_snd_check(cpu, sk)
    return True


async def _established(cpu: Cpu, sk: int, segment: TcpSegment) -> bool:
    """The handshake's last ACK: the connection goes to who listens; false if it acknowledges something else."""
    una, nxt, parent = await cpu.get_all(sk, TCP_SOCK.snd_una, TCP_SOCK.snd_nxt, TCP_SOCK.parent)
    if una != nxt:
        return False
    await inet_csk_clear_xmit_timers(cpu, sk)
    cpu.put(sk, TCP_SOCK.state, TcpState.ESTABLISHED)
    await tcp_fast_path_on(cpu, sk)
    # inet_csk_complete_hashdance: to the end of the listening socket's queue
    last = await cpu.get(parent, TCP_SOCK.accept_tail)
    cpu.put(sk, TCP_SOCK.accept_head, 0)
    if last:
        cpu.put(last, TCP_SOCK.accept_head, sk)
    else:
        cpu.put(parent, TCP_SOCK.accept_head, sk)
    cpu.put(parent, TCP_SOCK.accept_tail, sk)
    await sock_def_readable(cpu, parent)
    return True


async def _fin_acknowledged(cpu: Cpu, sk: int, segment: TcpSegment, state: int) -> bool:
    """Whether our FIN's arrival ends the work on the segment, which is freed then."""
    una, write_seq, dead, shutdown = await cpu.get_all(
        sk, TCP_SOCK.snd_una, TCP_SOCK.write_seq, TCP_SOCK.dead, TCP_SOCK.shutdown
    )
    if una != write_seq:
        return False
    if state == TcpState.FIN_WAIT1:
        cpu.put(sk, TCP_SOCK.state, TcpState.FIN_WAIT2)
        cpu.put(sk, TCP_SOCK.shutdown, shutdown | Shutdown.SEND)
        if dead:
            await tcp_fin_timeout(cpu, sk)
        else:
            await sock_def_readable(cpu, sk)
        return False
    if state == TcpState.CLOSING:
        await tcp_time_wait(cpu, sk)
    elif state == TcpState.LAST_ACK:
        await tcp_done(cpu, sk)
    else:
        return False
    await consume_control_skb(cpu, segment.skb)
    return True
