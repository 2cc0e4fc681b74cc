"""A TCP socket in memory, and what is said of sequence numbers (include/linux/tcp.h, include/net/tcp.h)."""

import enum
from typing import NamedTuple

from sw.core import LINE
from sw.linux.cpu import Cpu
from sw.linux.skb import SKB_CB
from sw.linux.socket import SOCK
from sw.linux.spinlock import SPINLOCK_BYTES
from sw.linux.timer import HZ, TIMER_LIST
from sw.structs import Field, Struct

__all__ = [
    "IPPROTO_TCP",
    "TCP_HEADER_BYTES",
    "TCP_SKB_CB",
    "TCP_SOCK",
    "AckPending",
    "CaState",
    "Sacked",
    "Shutdown",
    "TcpFlag",
    "TcpSegment",
    "TcpState",
    "after",
    "before",
    "cb",
    "init_cb",
    "put_cb",
    "sequence_distance",
    "tcp_packets_in_flight",
    "tcp_receive_window",
    "tcp_win_from_space",
]

IPPROTO_TCP = 6
TCP_HEADER_BYTES = 20
_SEQUENCES = 1 << 32

#: ``struct tcp_sock``. It begins as every socket does (``struct sock``, see SOCK); the rest is in lines by who touches
#: it when: the connection and its lock, what a received segment reads and writes, what sending does, congestion,
#: acknowledgments and timers, queues.
TCP_SOCK = Struct(
    12 * LINE,
    sock=SOCK.size,
    # Connection and lock (sock_common, socket_lock_t)
    ehash_next=8,
    daddr=4,
    rcv_saddr=4,
    dport=2,
    num=2,
    state=1,
    shutdown=1,
    dead=1,  #: SOCK_DEAD: no program has it any more
    hashed=1,
    slock=SPINLOCK_BYTES,
    owned=4,
    backlog_head=8,
    backlog_tail=8,
    backlog_len=4,
    deferred=4,  #: TCP timers that went off while a program had the lock
    err=4,
    nexthop=4,  #: the neighbour on the way to the other end, as the kernel caches the route
    # Receiving
    pred_flags=4,
    rcv_nxt=4,
    copied_seq=4,
    rcv_wup=4,
    rcv_wnd=4,
    window_clamp=4,
    rcv_ssthresh=4,
    snd_una=4,
    snd_wl1=4,
    snd_wnd=4,
    max_window=4,
    snd_nxt=4,
    rcv_mss=2,
    advmss=2,
    snd_wscale=1,
    rcv_wscale=1,
    last_seg_size=2,  #: of the last segment that was shorter than rcv_mss but no small one
    ofo_pending=4,  #: the out-of-order queue holds something
    irs=4,
    # Sending
    mstamp=8,
    write_seq=4,
    pushed_seq=4,
    snd_sml=4,
    mss_cache=2,
    nonagle=1,
    is_cwnd_limited=1,
    packets_out=4,
    max_packets_out=4,
    snd_cwnd=4,
    snd_cwnd_cnt=4,
    snd_ssthresh=4,
    wmem_queued=4,
    iss=4,
    cwnd_usage_seq=4,
    pad_tx=8,
    # Recovery and round trip
    ca_state=1,
    retransmits=1,
    backoff=1,
    pending=1,  #: ICSK_TIME_*: what the retransmission timer is for
    reordering=4,
    high_seq=4,
    sacked_out=4,
    lost_out=4,
    retrans_out=4,
    prior_cwnd=4,
    prr_delivered=4,
    prr_out=4,
    delivered=4,
    srtt_us=4,
    mdev_us=4,
    mdev_max_us=4,
    rttvar_us=4,
    rtt_seq=4,
    rto=4,
    # Acknowledgments
    ack_pending=1,
    ack_quick=1,
    ack_pingpong=1,
    pad_ack=1,
    ack_ato=4,
    ack_timeout=8,
    lrcvtime=8,
    timeout=8,
    accept_head=8,  #: of a listening socket: connections that nobody has accepted; else the next of those
    accept_tail=8,
    parent=8,
    ack_backlog=4,
    max_ack_backlog=4,
    # Queues and timers
    out_of_order_queue=16,
    write_queue=16,  #: not sent yet
    rtx_queue=16,  #: sent and not acknowledged
    retransmit_timer=TIMER_LIST.size,
    delack_timer=TIMER_LIST.size,
    sk_timer=TIMER_LIST.size,
)

#: ``struct tcp_skb_cb``, in the control block of an skb.
TCP_SKB_CB = Struct(seq=4, end_seq=4, ack_seq=4, tcp_flags=1, sacked=1, pad=2, skb_mstamp=8)


class TcpState(enum.IntEnum):
    """``sk_state`` (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


class CaState(enum.IntEnum):
    """``icsk_ca_state`` (include/net/inet_connection_sock.h, ``enum tcp_ca_state``)."""

    OPEN = 0
    DISORDER = 1
    CWR = 2
    RECOVERY = 3
    LOSS = 4


class TcpFlag(enum.IntFlag):
    """Control bits of the header (RFC 9293)."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


class Sacked(enum.IntFlag):
    """What is known of a segment that was sent (``TCPCB_*``)."""

    RETRANS = 2
    LOST = 4
    EVER_RETRANS = 0x80


class AckPending(enum.IntFlag):
    """``icsk_ack.pending``."""

    SCHED = 1
    TIMER = 2
    PUSHED = 4
    PUSHED2 = 8
    NOW = 16


class Shutdown(enum.IntFlag):
    """``sk_shutdown``: which directions are closed."""

    RCV = 1
    SEND = 2


#: TIME_WAIT and an orphan's FIN_WAIT2 (``TCP_TIMEWAIT_LEN``), jiffies.
TCP_TIMEWAIT_LEN = 60 * HZ


class TcpSegment(NamedTuple):
    """A received segment as its header says; its skb's ``data`` is at the TCP header."""

    skb: int
    data: int  #: address of the header
    loaded: int  #: handle of the load that gave that address
    seq: int
    end_seq: int
    ack_seq: int
    flags: int
    window: int  #: unscaled
    header_bytes: int
    length: int  #: bytes from the header on

    @property
    def payload(self) -> int:
        """Bytes behind the header."""
        return self.length - self.header_bytes


def cb(skb: int, field: Field) -> tuple[int, int]:
    """Address and size of a member of the control block of ``skb``."""
    return skb + SKB_CB + field.offset, field.size


def put_cb(cpu: Cpu, skb: int, field: Field, value: int) -> None:
    """Store a member of the control block of ``skb``."""
    cpu.store(skb + SKB_CB + field.offset, value, field.size)


def init_cb(cpu: Cpu, skb: int, seq: int, end_seq: int, flags: int, ack_seq: int = 0) -> None:
    """Write the control block of ``skb``."""
    packed = TCP_SKB_CB.pack(seq=seq, end_seq=end_seq, ack_seq=ack_seq, tcp_flags=flags)
    cpu.store(skb + SKB_CB, packed, TCP_SKB_CB.size)


def before(first: int, second: int) -> bool:
    """Whether sequence number ``first`` comes before ``second``."""
    return (first - second) % _SEQUENCES >= _SEQUENCES // 2


def after(first: int, second: int) -> bool:
    """Whether sequence number ``first`` comes after ``second``."""
    return before(second, first)


def sequence_distance(first: int, second: int) -> int:
    """How many sequence numbers ``first`` is behind ``second``, modulo 2^32."""
    return (second - first) % _SEQUENCES


def tcp_receive_window(rcv_wup: int, rcv_wnd: int, rcv_nxt: int) -> int:
    """Bytes of the window that was announced last and that have not come yet."""
    window = (rcv_wup + rcv_wnd - rcv_nxt) % _SEQUENCES
    return 0 if window >= _SEQUENCES // 2 else window


def tcp_win_from_space(space: int) -> int:
    """Payload that fits so many bytes of ``truesize`` (``tcp_adv_win_scale`` of 1)."""
    return space >> 1


def tcp_packets_in_flight(packets_out: int, sacked_out: int, lost_out: int, retrans_out: int) -> int:
    """Segments that are taken to be on their way."""
    return packets_out - sacked_out - lost_out + retrans_out
