"""One end of a TCP connection, in plain Python.

Written from RFC 9293 (the protocol), RFC 5681 (congestion control), RFC 6582 (NewReno), RFC 3042 (limited transmit),
RFC 6298 (retransmission timer) and RFC 7323 section 2 (window scale); without SACK and timestamps. It is the world
outside the machine: it takes no time of the machine's, and shares no code with the modelled kernel's TCP.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .tcp_segment import Flag, Segment

__all__ = ["Clock", "State", "TcpEndpoint", "Tuning"]

_MODULUS = 1 << 32
_MS = 1_000_000  # ns
_NOTHING = Flag(0)


class State(enum.Enum):
    """States of a connection (RFC 9293 section 3.3.2)."""

    CLOSED = enum.auto()
    LISTEN = enum.auto()
    SYN_SENT = enum.auto()
    SYN_RECEIVED = enum.auto()
    ESTABLISHED = enum.auto()
    FIN_WAIT_1 = enum.auto()
    FIN_WAIT_2 = enum.auto()
    CLOSE_WAIT = enum.auto()
    CLOSING = enum.auto()
    LAST_ACK = enum.auto()
    TIME_WAIT = enum.auto()


#: States in which the other end may still send data.
_RECEIVING = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
#: States in which what was written may still be sent.
_SENDING = (
    State.ESTABLISHED,
    State.CLOSE_WAIT,
    State.FIN_WAIT_1,
    State.CLOSING,
    State.LAST_ACK,
)


class Clock(Protocol):
    """Where an endpoint gets its time from, in ns."""

    def now(self) -> int:
        """The time."""

    def after(self, ns: int, function: Callable[[], object]) -> Any:
        """Have ``function()`` called in ``ns``; returns what :meth:`cancel` takes."""

    def cancel(self, call: Any) -> object:
        """Take back a call."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What an endpoint is free to choose.

    Attributes:
        mss: largest segment it takes, announced in its SYN.
        sends_most: largest segment it sends, if that is below what the other end takes; the congestion window is
            counted in these, so that it is one of segments (as Linux counts it) where all writes are that long.
        receive_buffer: bytes it takes beyond what the application has.
        window_scale: shift of the windows it announces, if the other end agrees; None: does not offer it.
        initial_window: segments of the first flight (RFC 6928).
        rto_min_ns, rto_max_ns, rto_initial_ns: bounds and start of the retransmission time-out.
        delayed_ack_ns: longest wait of an ACK that is not due at once; 0: every segment is acknowledged.
        msl_ns: maximum segment lifetime; TIME_WAIT takes two of them.
        retries: time-outs in a row after which it gives up.
    """

    mss: int = 1460
    sends_most: int | None = None
    receive_buffer: int = 1 << 20
    window_scale: int | None = 7
    initial_window: int = 10
    rto_min_ns: int = 200 * _MS
    rto_max_ns: int = 120_000 * _MS
    rto_initial_ns: int = 1000 * _MS
    delayed_ack_ns: int = 40 * _MS
    msl_ns: int = 30_000 * _MS
    retries: int = 15


@dataclass
class _Queued:
    """Something that takes sequence numbers: bytes of one write, or SYN or FIN."""

    seq: int  #: unwrapped
    data: bytes
    flags: Flag = _NOTHING
    sent_ns: int = -1
    transmissions: int = 0

    @property
    def end(self) -> int:
        return self.seq + len(self.data) + bool(self.flags)


class TcpEndpoint:
    """One end of one connection.

    Every write is a segment of its own, or several if it is longer than the other end takes (as with ``TCP_NODELAY``,
    but never joined).

    Arguments:
        clock: the time.
        transmit: takes segments to the network.
        port, peer_port: of this end and the other.
        iss: initial sequence number.
        on_data: takes the byte stream as it comes in order; the application reads at once.
        on_state: called with every new state.

    Attributes:
        state: where the connection stands.
        error: why it ended, if it did not by FIN: ``reset``, ``refused``, ``timeout``.
        cwnd, ssthresh: bytes.
        trace: (ns, cwnd, ssthresh, event) whenever the window changes.
        timeouts, fast_retransmits, retransmissions, duplicates: how often each happened.
    """

    def __init__(
        self,
        clock: Clock,
        transmit: Callable[[Segment], object],
        *,
        port: int,
        peer_port: int,
        iss: int = 0,
        tuning: Tuning = Tuning(),
        on_data: Callable[[bytes], object] = lambda data: None,
        on_state: Callable[[State], object] = lambda state: None,
    ):
        self.clock, self.tuning = clock, tuning
        self.port, self.peer_port, self.iss = port, peer_port, iss
        self.state, self.error = State.CLOSED, ""
        self.timeouts = self.fast_retransmits = self.retransmissions = self.duplicates = 0
        self.trace: list[tuple[int, int, int, str]] = []
        self._transmit, self._on_data, self._on_state = transmit, on_data, on_state
        # Sending (RFC 9293 section 3.3.1); sequence numbers are not wrapped here
        self.snd_una = self.snd_nxt = self._end = iss
        self.snd_wnd = self._snd_wl1 = self._snd_wl2 = 0
        self.mss = tuning.mss
        self._queue: list[_Queued] = []  # what is not acknowledged, oldest first
        self._next = 0  # place in the queue of what is sent next
        self._closing = False
        # Congestion
        self.cwnd = self.ssthresh = 0
        self._dupacks = 0
        self._recover = iss
        self._recovering = self._partial = False
        self._acked = 0  # in congestion avoidance, since the window last grew
        # Timer
        self.srtt = self.rttvar = 0
        self.rto = tuning.rto_initial_ns
        self._retransmission: Any = None
        self._backoff = 0
        # Receiving
        self.rcv_nxt = 0
        self._out_of_order: dict[int, bytes] = {}
        self._fin: int | None = None
        self._unacknowledged = 0  # segments since the last ACK
        self._delayed: Any = None
        self._time_wait: Any = None
        self._send_scale = self._receive_scale = 0

    # The application

    def open(self) -> None:
        """Begin a connection."""
        self._scaling = self.tuning.window_scale is not None
        self._enter(State.SYN_SENT)
        self._append(b"", Flag.SYN)
        self._output()

    def listen(self) -> None:
        """Wait for one."""
        self._enter(State.LISTEN)

    def write(self, data: bytes) -> None:
        """Send bytes as soon as the windows allow.

        Raises:
            ValueError: before there is a connection, and after :meth:`close`.
        """
        if self._closing or self.state in (State.CLOSED, State.LISTEN):
            raise ValueError("nothing can be written before a connection is opened and after it is closed")
        if data:
            self._append(data)
        self._output()

    def close(self) -> None:
        """Send no more."""
        if self._closing or self.state is State.CLOSED:
            return
        self._closing = True
        if self.state is State.LISTEN:
            self._enter(State.CLOSED)
            return
        self._append(b"", Flag.FIN)
        if self.state is State.ESTABLISHED:
            self._enter(State.FIN_WAIT_1)
        elif self.state is State.CLOSE_WAIT:
            self._enter(State.LAST_ACK)
        self._output()

    def abort(self) -> None:
        """Reset the connection."""
        if self.state not in (State.CLOSED, State.LISTEN, State.SYN_SENT, State.TIME_WAIT):
            self._send(self.snd_nxt, b"", Flag.RST | Flag.ACK)
        self._end_connection("")

    @property
    def all_acknowledged(self) -> bool:
        """Everything written has arrived."""
        return not self._queue

    # The network

    def segment(self, segment: Segment) -> None:
        """Take a segment for this connection (RFC 9293 section 3.10.7)."""
        if self.state is State.CLOSED:
            self._refuse(segment)
        elif self.state is State.LISTEN:
            self._in_listen(segment)
        elif self.state is State.SYN_SENT:
            self._in_syn_sent(segment)
        else:
            self._otherwise(segment)

    def _refuse(self, segment: Segment) -> None:
        if segment.flags & Flag.RST:
            return
        if segment.flags & Flag.ACK:
            self._emit(segment.ack, b"", Flag.RST, 0)
        else:
            self.rcv_nxt = segment.seq + segment.length
            self._emit(0, b"", Flag.RST | Flag.ACK, 0)

    def _in_listen(self, segment: Segment) -> None:
        if segment.flags & Flag.RST:
            return
        if segment.flags & Flag.ACK:
            self._emit(segment.ack, b"", Flag.RST, 0)
            return
        if segment.flags & Flag.SYN:
            self.peer_port = segment.source_port
            self._take_syn(segment)
            self._enter(State.SYN_RECEIVED)
            self._append(b"", Flag.SYN)
            self._output()

    def _in_syn_sent(self, segment: Segment) -> None:
        ack = self._unwrap(segment.ack, self.snd_una)
        acceptable = bool(segment.flags & Flag.ACK) and self.snd_una < ack <= self.snd_nxt
        if segment.flags & Flag.ACK and not acceptable:
            if not segment.flags & Flag.RST:
                self._emit(segment.ack, b"", Flag.RST, 0)
            return
        if segment.flags & Flag.RST:
            if acceptable:
                self._end_connection("refused")
            return
        if not segment.flags & Flag.SYN:
            return
        self._take_syn(segment)
        if acceptable:
            self._acknowledged(ack)
            self._enter(State.FIN_WAIT_1 if self._closing else State.ESTABLISHED)
            self._start_congestion_control()
            self._acknowledge()
            self._output()
        else:
            self._enter(State.SYN_RECEIVED)
            self._next = 0
            self._output()

    def _otherwise(self, segment: Segment) -> None:
        seq = self._unwrap(segment.seq, self.rcv_nxt)
        if not self._acceptable(seq, segment):
            self.duplicates += 1
            if not segment.flags & Flag.RST:
                if segment.flags & Flag.FIN and self.state is State.TIME_WAIT:
                    self._enter_time_wait()
                self._acknowledge()
            return
        if segment.flags & Flag.RST:
            if seq == self.rcv_nxt:
                self._end_connection("refused" if self.state is State.SYN_RECEIVED else "reset")
            else:
                self._acknowledge()  # a challenge (RFC 5961 section 3)
            return
        if segment.flags & Flag.SYN:
            self._acknowledge()  # likewise (RFC 5961 section 4)
            return
        if not segment.flags & Flag.ACK:
            return
        if not self._take_ack(segment, seq):
            return
        if self.state in _RECEIVING:
            self._take_data(seq, segment)
        self._output()

    def _acceptable(self, seq: int, segment: Segment) -> bool:
        """Whether it is at least in part within the window (table 6 of RFC 9293)."""
        window = self.tuning.receive_buffer
        end = seq + segment.length
        if segment.length == 0:
            return self.rcv_nxt <= seq < self.rcv_nxt + max(window, 1)
        return window > 0 and seq < self.rcv_nxt + window and end > self.rcv_nxt

    # Acknowledgments

    def _take_ack(self, segment: Segment, seq: int) -> bool:
        """Whether the segment is to be looked at further."""
        ack = self._unwrap(segment.ack, self.snd_una)
        if self.state is State.SYN_RECEIVED:
            if not self.snd_una < ack <= self.snd_nxt:
                self._emit(segment.ack, b"", Flag.RST, 0)
                return False
            self._enter(State.FIN_WAIT_1 if self._closing else State.ESTABLISHED)
            self.snd_wnd, self._snd_wl1, self._snd_wl2 = segment.window << self._send_scale, seq, ack
            self._start_congestion_control()
        if ack > self.snd_nxt:
            self._acknowledge()
            return False
        window = segment.window << self._send_scale
        duplicate = (
            ack == self.snd_una
            and bool(self._queue)
            and self.snd_nxt > self.snd_una
            and not segment.length
            and window == self.snd_wnd
        )
        if ack >= self.snd_una and (self._snd_wl1 < seq or (self._snd_wl1 == seq and self._snd_wl2 <= ack)):
            self.snd_wnd, self._snd_wl1, self._snd_wl2 = window, seq, ack
        if ack > self.snd_una:
            self._new_ack(ack)
        elif duplicate:
            self._duplicate_ack()
        self._after_fin(ack)
        return self.state is not State.CLOSED

    def _after_fin(self, ack: int) -> None:
        """Our FIN may have arrived."""
        if not self._closing or self._queue:
            return
        if self.state is State.FIN_WAIT_1:
            self._enter(State.FIN_WAIT_2)
        elif self.state is State.CLOSING:
            self._enter_time_wait()
        elif self.state is State.LAST_ACK:
            self._end_connection("")

    def _new_ack(self, ack: int) -> None:
        acked = ack - self.snd_una
        flight = self.snd_nxt - self.snd_una
        # A later partial acknowledgment leaves the timer alone (RFC 6582 section 4, the Impatient variant): with many
        # segments lost, slow start after a time-out is faster than a round trip for each of them.
        later = self._recovering and self._partial and ack < self._recover
        self._acknowledged(ack, restart=not later)
        mss = self.mss
        if self._recovering:
            if ack >= self._recover:
                # A full acknowledgment (RFC 6582 section 3.2 step 3, option 1)
                self._recovering = False
                self._set_window(min(self.ssthresh, max(self.snd_nxt - ack, mss) + mss), "recovered")
            else:
                # A partial one: the next hole
                self._partial = True
                self._send_queued(self._queue[0])
                deflated = self.cwnd - acked + (mss if acked >= mss else 0)
                self._set_window(max(deflated, mss), "partial")
            return
        self._dupacks = 0
        if flight < self.cwnd // 2 and self.cwnd >= self.ssthresh:
            return  # the window is not what limits (RFC 7661 in spirit)
        if self.cwnd < self.ssthresh:
            self._set_window(self.cwnd + min(acked, 2 * mss), "slow start")
        else:
            self._acked += acked
            if self._acked >= self.cwnd:
                self._acked -= self.cwnd
                self._set_window(self.cwnd + mss, "congestion avoidance")

    def _duplicate_ack(self) -> None:
        self._dupacks += 1
        if self._recovering:
            self._set_window(self.cwnd + self.mss, "inflate")
        elif self._dupacks == 3 and self.snd_una >= self._recover:
            flight = self.snd_nxt - self.snd_una
            self.ssthresh = max(flight // 2, 2 * self.mss)
            self._recover, self._recovering, self._partial = self.snd_nxt, True, False
            self.fast_retransmits += 1
            self._send_queued(self._queue[0])
            self._cancel_retransmission()
            self._arm()
            self._set_window(self.ssthresh + 3 * self.mss, "fast retransmit")

    def _start_congestion_control(self) -> None:
        self.ssthresh = 1 << 30
        self._recover = self.snd_una - 1
        self._set_window(self.tuning.initial_window * self.mss, "start")

    def _set_window(self, cwnd: int, event: str) -> None:
        self.cwnd = cwnd
        self.trace.append((self.clock.now(), cwnd, self.ssthresh, event))

    def _acknowledged(self, ack: int, restart: bool = True) -> None:
        """Forget what has arrived, learn the round trip's time (RFC 6298); ``restart`` the timer."""
        self.snd_una = ack
        done = 0
        for item in self._queue:
            if item.end > ack:
                break
            done += 1
        for item in self._queue[:done][-1:]:
            if item.transmissions == 1:
                self._measured(self.clock.now() - item.sent_ns)
        del self._queue[:done]
        self._next = max(self._next - done, 0)
        if self._queue and self._queue[0].seq < ack:
            first = self._queue[0]
            first.data, first.seq = first.data[ack - first.seq :], ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self._backoff = 0
        if restart or not self._queue:
            self._cancel_retransmission()
        if self._retransmission is None and self._queue and self._next:
            self._arm()

    def _measured(self, rtt: int) -> None:
        if self.srtt == 0:
            self.srtt, self.rttvar = rtt, rtt // 2
        else:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) // 4
            self.srtt += (rtt - self.srtt) // 8
        rto = self.srtt + max(4 * self.rttvar, _MS)
        self.rto = min(max(rto, self.tuning.rto_min_ns), self.tuning.rto_max_ns)

    # Sending

    def _append(self, data: bytes, flags: Flag = _NOTHING) -> None:
        item = _Queued(self._end, data, flags)
        self._queue.append(item)
        self._end = item.end

    def _output(self) -> None:
        """Send what the windows allow."""
        if self.state in (State.SYN_SENT, State.SYN_RECEIVED):
            if self._next == 0 and self._queue:
                self._send_queued(self._queue[0])
                self._next = 1
            return
        if self.state not in _SENDING:
            return
        while self._next < len(self._queue):
            item = self._cut(self._next)
            limited = self.mss * self._dupacks if self._dupacks < 3 and not self._recovering else 0
            in_flight = item.seq - self.snd_una
            # At least one segment may always be under way; FIN takes no room in the receiver's buffer.
            if in_flight and in_flight + len(item.data) > self.cwnd + limited:
                break
            if in_flight + len(item.data) > self.snd_wnd:
                if self._retransmission is None:
                    self._arm()  # looks again whether the window has opened
                break
            self._next += 1
            self._send_queued(item)

    def _cut(self, place: int) -> _Queued:
        """What is queued at ``place``, no longer than a segment."""
        item = self._queue[place]
        if len(item.data) > self.mss:
            self._queue.insert(place + 1, _Queued(item.seq + self.mss, item.data[self.mss :]))
            item.data = item.data[: self.mss]
        return item

    def _send_queued(self, item: _Queued) -> None:
        item.transmissions += 1
        item.sent_ns = self.clock.now()
        if item.transmissions > 1:
            self.retransmissions += 1
        flags = item.flags
        if self.state is not State.SYN_SENT:
            flags |= Flag.ACK
        if item.data:
            flags |= Flag.PSH
        self.snd_nxt = max(self.snd_nxt, item.end)
        self._send(item.seq, item.data, flags)
        if self._retransmission is None:
            self._arm()

    def _arm(self) -> None:
        wait = min(self.rto << self._backoff, self.tuning.rto_max_ns)
        self._retransmission = self.clock.after(wait, self._timed_out)

    def _cancel_retransmission(self) -> None:
        if self._retransmission is not None:
            self.clock.cancel(self._retransmission)
            self._retransmission = None

    def _timed_out(self) -> None:
        """The retransmission timer, which is the persist timer when nothing is under way."""
        self._retransmission = None
        self._backoff += 1
        if self._backoff > self.tuning.retries:
            self._end_connection("timeout")
            return
        if self._next == 0:
            self._send(self.snd_una - 1, b"", Flag.ACK)  # is the window open again?
            self._arm()
            return
        self.timeouts += 1
        if self.state not in (State.SYN_SENT, State.SYN_RECEIVED):
            if self._queue[0].transmissions == 1:
                self.ssthresh = max((self.snd_nxt - self.snd_una) // 2, 2 * self.mss)
            self._recover, self._recovering, self._dupacks, self._acked = self.snd_nxt, False, 0, 0
            self._set_window(self.mss, "timeout")
        self._next = 1
        self._send_queued(self._queue[0])

    def _send(self, seq: int, data: bytes, flags: Flag) -> None:
        """Anything that carries our window: an ACK comes with it."""
        if flags & Flag.ACK:
            self._unacknowledged = 0
            if self._delayed is not None:
                self.clock.cancel(self._delayed)
                self._delayed = None
        scale = 0 if flags & Flag.SYN else self._receive_scale
        self._emit(seq, data, flags, min(self.tuning.receive_buffer >> scale, 0xFFFF))

    def _emit(self, seq: int, data: bytes, flags: Flag, window: int) -> None:
        syn = bool(flags & Flag.SYN)
        self._transmit(
            Segment(
                source_port=self.port,
                port=self.peer_port,
                seq=seq % _MODULUS,
                ack=self.rcv_nxt % _MODULUS if flags & Flag.ACK else 0,
                flags=flags,
                window=window,
                payload=data,
                mss=self.tuning.mss if syn else None,
                window_scale=self.tuning.window_scale if syn and self._scaling else None,
            )
        )

    # Receiving

    _scaling = False

    def _take_syn(self, segment: Segment) -> None:
        self.rcv_nxt = segment.seq + 1
        self.mss = min(self.tuning.mss, segment.mss or 536, self.tuning.sends_most or 65_535)
        self.snd_wnd, self._snd_wl1, self._snd_wl2 = segment.window, segment.seq, self.snd_una
        self._scaling = segment.window_scale is not None and self.tuning.window_scale is not None
        if self._scaling:
            self._send_scale = min(segment.window_scale or 0, 14)
            self._receive_scale = self.tuning.window_scale or 0

    def _take_data(self, seq: int, segment: Segment) -> None:
        data = segment.payload
        if segment.flags & Flag.FIN:
            self._fin = seq + len(data)
        if not segment.length:
            return
        in_order = seq <= self.rcv_nxt
        if data and seq > self.rcv_nxt:
            known = self._out_of_order.get(seq, b"")
            if len(data) > len(known):
                self._out_of_order[seq] = data
        filled = False
        if in_order:
            self._deliver(data[self.rcv_nxt - seq :])
            filled = self._drain()
        self._unacknowledged += 1
        if self._fin == self.rcv_nxt:
            self.rcv_nxt += 1
            self._fin = None
            self._take_fin()
            self._acknowledge()
        elif not in_order or filled or self._unacknowledged >= 2 or not self.tuning.delayed_ack_ns:
            self._acknowledge()
        elif self._delayed is None:
            self._delayed = self.clock.after(self.tuning.delayed_ack_ns, self._delay_over)

    def _drain(self) -> bool:
        """Deliver what a gap has held up; whether there was any."""
        before = len(self._out_of_order)
        for seq in sorted(self._out_of_order):
            if seq > self.rcv_nxt:
                break
            data = self._out_of_order.pop(seq)
            self._deliver(data[self.rcv_nxt - seq :])
        return len(self._out_of_order) != before

    def _deliver(self, data: bytes) -> None:
        if data:
            self.rcv_nxt += len(data)
            self._on_data(data)

    def _take_fin(self) -> None:
        if self.state is State.ESTABLISHED:
            self._enter(State.CLOSE_WAIT)
        elif self.state is State.FIN_WAIT_1:
            self._enter(State.CLOSING)
        elif self.state is State.FIN_WAIT_2:
            self._enter_time_wait()

    def _delay_over(self) -> None:
        self._delayed = None
        self._acknowledge()

    def _acknowledge(self) -> None:
        self._send(self.snd_nxt, b"", Flag.ACK)

    # Ends

    def _enter(self, state: State) -> None:
        self.state = state
        self._on_state(state)

    def _enter_time_wait(self) -> None:
        if self._time_wait is not None:
            self.clock.cancel(self._time_wait)
        self._cancel_retransmission()
        self._time_wait = self.clock.after(2 * self.tuning.msl_ns, lambda: self._end_connection(""))
        if self.state is not State.TIME_WAIT:
            self._enter(State.TIME_WAIT)

    def _end_connection(self, error: str) -> None:
        self._cancel_retransmission()
        for call in (self._delayed, self._time_wait):
            if call is not None:
                self.clock.cancel(call)
        self._delayed = self._time_wait = None
        self._queue.clear()
        self._next = 0
        self.error = error
        self._enter(State.CLOSED)

    def _unwrap(self, seq: int, near: int) -> int:
        """The sequence number that ``seq`` stands for, nearest to ``near``."""
        return near + (seq - near + _MODULUS // 2) % _MODULUS - _MODULUS // 2
