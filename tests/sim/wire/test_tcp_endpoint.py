"""The peer's TCP against itself, over networks that lose, reorder and repeat; each rule by itself."""

import heapq
import random
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from sim.wire.frames import CLIENT_IP, CLIENT_MAC, HOST_IP, HOST_MAC
from sim.wire.impairment import Impairment, Path
from sim.wire.tcp_endpoint import State, TcpEndpoint, Tuning
from sim.wire.tcp_segment import Flag, Segment

MS = 1_000_000
SOURCE, DESTINATION = (CLIENT_MAC, CLIENT_IP.packed), (HOST_MAC, HOST_IP.packed)


class Schedule:
    """A clock that jumps from one event to the next."""

    def __init__(self):
        self.time = 0
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._number = 0
        self._cancelled: set[int] = set()

    def now(self) -> int:
        return self.time

    def after(self, ns: float, function: Callable[[], object]) -> int:
        self._number += 1
        heapq.heappush(self._events, (self.time + int(ns), self._number, function))
        return self._number

    def cancel(self, call: int) -> None:
        self._cancelled.add(call)

    def run(self, until: Callable[[], bool] = lambda: False, limit_ns: int = 3_600_000 * MS) -> None:
        while self._events and not until():
            time, number, function = heapq.heappop(self._events)
            if number in self._cancelled:
                continue
            assert time <= limit_ns, "this takes too long"
            self.time = time
            function()


class Pair:
    """Two endpoints and the network between them."""

    def __init__(self, forth: Impairment, back: Impairment, seed: int = 1, **tuning: Any):
        self.schedule = Schedule()
        chance = random.Random(seed)
        self.paths = [Path(forth, f"{seed} forth"), Path(back, f"{seed} back")]
        self.received = [bytearray(), bytearray()]
        self.segments: list[tuple[int, int, Segment]] = []  #: time, sender, segment
        self.ends = [
            TcpEndpoint(
                self.schedule,
                lambda segment, index=index: self._carry(index, segment),
                port=1000 + index,
                peer_port=1001 - index,
                iss=chance.randrange(1 << 32),
                tuning=Tuning(**tuning),
                on_data=self.received[index].extend,
            )
            for index in range(2)
        ]
        self.ends[1].listen()
        self.ends[0].open()

    def _carry(self, sender: int, segment: Segment) -> None:
        self.segments.append((self.schedule.time, sender, segment))
        # As on the wire: what a segment says survives being bytes.
        found = Segment.of(segment.frame(SOURCE, DESTINATION))
        assert found is not None and found[2] == segment
        for delay in self.paths[sender].arrivals():
            self.schedule.after(delay, lambda: self.ends[1 - sender].segment(segment))

    def run(self, *states: State) -> None:
        self.schedule.run(lambda: tuple(end.state for end in self.ends) == states)
        assert tuple(end.state for end in self.ends) == states


def stream(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("seed", range(12))
def test_both_streams_arrive_over_a_bad_network(seed):
    bad = {"delay_ns": MS, "loss": 0.05, "duplicate": 0.05, "reorder": 0.1, "reorder_ns": 3 * MS}
    pair = Pair(Impairment(**bad), Impairment(**bad), seed)
    streams = stream(150_000, seed), stream(20_000, seed + 100)
    pair.schedule.run(lambda: pair.ends[1].state is State.ESTABLISHED)
    for end, data in zip(pair.ends, streams, strict=True):
        for start in range(0, len(data), 1000):
            end.write(data[start : start + 1000])
        end.close()
    pair.run(State.CLOSED, State.CLOSED)
    assert [end.error for end in pair.ends] == ["", ""]
    assert pair.received == [streams[1], streams[0]]
    assert all(path.lost and path.duplicated and path.delayed for path in pair.paths)


def test_no_loss_no_retransmission():
    pair = Pair(Impairment(delay_ns=MS), Impairment(delay_ns=MS))
    pair.ends[0].write(stream(1_000_000))
    pair.ends[0].close()
    pair.run(State.FIN_WAIT_2, State.CLOSE_WAIT)
    pair.ends[1].close()
    pair.run(State.TIME_WAIT, State.CLOSED)
    assert pair.received[1] == stream(1_000_000)
    assert pair.ends[0].retransmissions == pair.ends[1].retransmissions == 0
    data = [segment for _, sender, segment in pair.segments if sender == 0 and segment.payload]
    assert len(data) == -(-1_000_000 // 1460)
    began = pair.schedule.time
    pair.run(State.CLOSED, State.CLOSED)
    assert pair.schedule.time - began == 60_000 * MS - MS  # since the FIN came, one delay ago


def test_slow_start_doubles_each_round_trip():
    pair = Pair(Impairment(delay_ns=10 * MS), Impairment(delay_ns=10 * MS), delayed_ack_ns=0)
    pair.ends[0].write(stream(300_000))
    pair.run(State.ESTABLISHED, State.ESTABLISHED)
    pair.schedule.run(lambda: pair.ends[0].all_acknowledged)
    flights: dict[int, int] = {}
    for time, sender, segment in pair.segments:
        if sender == 0 and segment.payload:
            flights[time] = flights.get(time, 0) + 1
    assert list(flights.values())[:4] == [10, 20, 40, 80]


def test_three_duplicate_acks_bring_back_one_segment():
    # Frames of the sender: SYN, ACK, then data.
    pair = Pair(Impairment(delay_ns=MS, lose=frozenset({20})), Impairment(delay_ns=MS))
    pair.ends[0].write(stream(200_000))
    pair.run(State.ESTABLISHED, State.ESTABLISHED)
    pair.schedule.run(lambda: pair.ends[0].all_acknowledged)
    end = pair.ends[0]
    assert (end.fast_retransmits, end.timeouts, end.retransmissions) == (1, 0, 1)
    events = [event for *_, event in end.trace]
    assert events.index("fast retransmit") < events.index("recovered")
    assert "congestion avoidance" in events[events.index("recovered") :]
    flight = next(ssthresh for _, _, ssthresh, event in end.trace if event == "fast retransmit") * 2
    assert 10 * end.mss <= flight <= 100 * end.mss
    assert pair.received[1] == stream(200_000)


def test_a_lost_tail_comes_back_by_timeout():
    pair = Pair(Impairment(delay_ns=MS, lose=frozenset({11})), Impairment(delay_ns=MS))
    pair.ends[0].write(stream(14_600))
    pair.run(State.ESTABLISHED, State.ESTABLISHED)
    pair.schedule.run(lambda: pair.ends[0].all_acknowledged)
    end = pair.ends[0]
    assert (end.fast_retransmits, end.timeouts, end.retransmissions) == (0, 1, 1)
    assert next(cwnd for _, cwnd, _, event in end.trace if event == "timeout") == end.mss


def test_many_lost_segments_come_back_by_slow_start():
    """RFC 6582, the Impatient variant: only the first partial acknowledgment starts the timer anew."""
    delay = 10 * MS
    lose = frozenset(range(34, 72, 2))  # in the third flight of slow start
    pair = Pair(Impairment(delay_ns=delay, lose=lose), Impairment(delay_ns=delay), delayed_ack_ns=0)
    pair.run(State.ESTABLISHED, State.ESTABLISHED)
    data = stream(100 * 1460)
    pair.ends[0].write(data)
    pair.schedule.run(lambda: len(pair.received[1]) == len(data))
    assert pair.received[1] == data
    assert (pair.ends[0].fast_retransmits, pair.ends[0].timeouts) == (1, 1)
    partial = [time for time, _, _, event in pair.ends[0].trace if event == "partial"]
    (timeout,) = [time for time, _, _, event in pair.ends[0].trace if event == "timeout"]
    assert len(partial) > 5 and timeout == partial[0] + pair.ends[0].tuning.rto_min_ns


def test_the_window_is_counted_in_the_segments_that_are_sent():
    """With small segments as few of them in the first flight as with large ones."""
    pair = Pair(Impairment(delay_ns=MS), Impairment(delay_ns=MS), sends_most=6)
    pair.run(State.ESTABLISHED, State.ESTABLISHED)
    begin = len(pair.segments)
    pair.ends[0].write(stream(600))
    flight = [segment for _, sender, segment in pair.segments[begin:] if sender == 0]
    assert [len(segment.payload) for segment in flight] == [6] * 10


def test_timeouts_back_off_and_give_up():
    pair = Pair(Impairment(loss=1.0), Impairment(), retries=4)
    pair.run(State.CLOSED, State.LISTEN)
    assert pair.ends[0].error == "timeout"
    times = [time // MS for time, _, _ in pair.segments]
    assert times == [0, 1000, 3000, 7000, 15000]


def test_a_receiver_without_room_stops_the_sender():
    pair = Pair(Impairment(delay_ns=MS), Impairment(delay_ns=MS), receive_buffer=4000, window_scale=None)
    pair.ends[0].write(stream(50_000))
    pair.schedule.run(lambda: len(pair.received[1]) == 50_000)
    assert max(segment.window for _, _, segment in pair.segments) <= 4000
    assert pair.ends[0].retransmissions == 0


def test_nobody_listens():
    pair = Pair(Impairment(delay_ns=MS), Impairment(delay_ns=MS))
    pair.ends[1].close()
    pair.run(State.CLOSED, State.CLOSED)
    assert pair.ends[0].error == "refused"
    assert pair.segments[-1][2].flags == Flag.RST | Flag.ACK


def test_abort_resets():
    pair = Pair(Impairment(delay_ns=MS), Impairment(delay_ns=MS))
    pair.run(State.ESTABLISHED, State.ESTABLISHED)
    pair.ends[1].abort()
    pair.run(State.CLOSED, State.CLOSED)
    assert (pair.ends[0].error, pair.ends[1].error) == ("reset", "")


def test_both_close_at_once():
    pair = Pair(Impairment(delay_ns=MS), Impairment(delay_ns=MS))
    pair.run(State.ESTABLISHED, State.ESTABLISHED)
    for end in pair.ends:
        end.close()
    pair.run(State.TIME_WAIT, State.TIME_WAIT)


@pytest.mark.parametrize("payload", [b"", b"a", b"odd", bytes(range(200))])
def test_frames_are_those_of_scapy(payload):
    segment = Segment(
        source_port=1,
        port=2,
        seq=0xFFFF_FFF0,
        ack=5,
        flags=Flag.SYN | Flag.ACK,
        window=512,
        payload=payload,
        mss=1460,
        window_scale=7,
    )
    options = [("MSS", 1460), ("NOP", None), ("WScale", 7)]
    wanted = (
        Ether(src=CLIENT_MAC.hex(":"), dst=HOST_MAC.hex(":"))
        / IP(src=str(CLIENT_IP), dst=str(HOST_IP), flags="DF", id=77)
        / TCP(sport=1, dport=2, seq=0xFFFF_FFF0, ack=5, flags="SA", window=512, options=options)
        / payload
    )
    assert segment.frame(SOURCE, DESTINATION, 77) == bytes(wanted)
    assert Segment.of(bytes(wanted)) == (CLIENT_IP.packed, HOST_IP.packed, segment)


def test_damaged_frames_are_none():
    good = Segment(source_port=1, port=2, seq=3, payload=b"payload").frame(SOURCE, DESTINATION)
    assert Segment.of(good) is not None
    for place in range(12, len(good)):
        for bit in (0x01, 0x80):
            damaged = bytearray(good)
            damaged[place] ^= bit
            assert Segment.of(bytes(damaged)) is None, place
    for length in range(14, len(good)):
        assert Segment.of(good[:length]) is None


@pytest.mark.parametrize(
    "field, value", [("loss", 1.5), ("reorder", -0.1), ("delay_ns", -1), ("delay_ns", float("nan"))]
)
def test_impairments_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=field):
        Impairment(**{field: value})
