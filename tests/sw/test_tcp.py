"""TCP on the functional machine, against the peer's own TCP: what is written is read, whatever the network does."""

import asyncio
import errno
import random
import zlib
from fractions import Fraction
from itertools import pairwise

import pytest

from sim.wire.frames import CLIENT_IP, CLIENT_MAC
from sim.wire.impairment import Impairment
from sim.wire.tcp_endpoint import State, Tuning
from sim.wire.tcp_peer import TcpPeer
from sw.apps.stream import StreamSink
from sw.costs import load_costs
from sw.linux.net.tcp_sock import TCP_SOCK, TcpState
from sw.options import Options
from sw.port import WakeKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine
from tests.sw.functional_wire import FunctionalWire

MAC = bytes.fromhex("020000000001")
IP_ADDRESS = bytes([10, 0, 0, 1])
COSTS = load_costs()
US = 1_000
MS = 1_000_000


class Bench:
    """A system with the path tcp, one peer, and what became of every frame."""

    def __init__(self, writes=(), application="sink", port=9, closes=True, seed=1, peer=None, **options):
        self.machine = FunctionalMachine(cores=1, dram_bytes=8 << 20)
        self.fates: dict[tuple[int, int], str] = {}
        self.crc: int | None = None
        self.notes: list = []
        settings = {
            "mac": MAC,
            "addresses": (IP_ADDRESS,),
            "application": application,
            "ports": (9,),
            "ring_size": 64,
            "itr_us": 0.0,
            "neighbours": {CLIENT_IP.packed: CLIENT_MAC},
        }
        self.system = System(self.machine, 1, 8 << 20, COSTS, "tcp", Options(**settings | options), on_note=self.noted)
        self.peer = TcpPeer(writes, ticks_per_ns=Fraction(1), port=port, closes=closes, seed=seed, **(peer or {}))
        self.wire = FunctionalWire(self.machine, self.peer)
        asyncio.run(self.system.boot())

    def noted(self, note) -> None:
        self.notes.append(note)
        if note.kind in ("delivered", "dropped", "consumed"):
            packet = note.data["packet"]
            assert packet not in self.fates, f"{packet}: {self.fates[packet]} and {note.kind}"
            self.fates[packet] = note.data.get("reason", note.kind)

    def count(self, kind: str) -> int:
        return sum(note.kind == kind for note in self.notes)

    def run(self, until=None, limit_ns=100_000 * MS):
        """Connect, run until the peer has finished, or ``until()``, and nothing is in flight."""
        self.peer.start()
        return self.go_on(until, limit_ns)

    def go_on(self, until=None, limit_ns=100_000 * MS):
        until = until or (lambda: self.peer.finished)
        end = self.machine.tick + limit_ns
        while not until():
            step = min(self.machine.tick + MS, end)
            ended = asyncio.run(self.system.run(step))
            assert step < end, "not done in time"
            if ended is WakeKind.IDLE and not self.machine.calls:
                assert until(), "nothing will ever happen again"
        # What is on its way still arrives
        asyncio.run(self.system.run(self.machine.tick + 10 * MS))
        assert set(self.fates) == {(0, n) for n in range(len(self.machine.nic.written_back))}
        return self

    def streams(self) -> list:
        return [note.data for note in self.notes if note.kind == "stream"]

    def sock(self, field, index=0):
        """A field of the first connection's socket."""
        cache = self.system.kernel.tcp_cache
        address = cache.slots + (index + 1) * cache.object_size + field.offset
        return int.from_bytes(self.machine.memory[address : address + field.size], "little")


def stream(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def cut(data: bytes, size: int, gap_ns: float = 0) -> list[tuple[float, bytes]]:
    """Writes of ``size`` bytes each."""
    return [(i * gap_ns, data[start : start + size]) for i, start in enumerate(range(0, len(data), size))]


def test_a_stream_arrives_and_the_connection_closes():
    data = stream(100_000)
    bench = Bench(cut(data, 1460)).run()
    assert bench.streams() == [{"port": 9, "length": len(data), "crc32": zlib.crc32(data), "error": 0}]
    assert bench.peer.endpoint.error == "" and bench.peer.endpoint.state is State.TIME_WAIT
    assert bench.peer.endpoint.retransmissions == 0
    fates = list(bench.fates.values())
    assert fates.count("delivered") == -(-len(data) // 1460)
    assert set(fates) == {"delivered", "consumed"}
    assert bench.sock(TCP_SOCK.state) == TcpState.CLOSE


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_arrives_over_a_bad_network(seed):
    data = stream(60_000, seed)
    bad = Impairment(delay_ns=100 * US, loss=0.04, duplicate=0.1, reorder=0.1, reorder_ns=400 * US)
    bench = Bench(cut(data, 1000), seed=seed, peer={"to_host": bad, "from_host": bad}).run()
    assert [(s["length"], s["crc32"], s["error"]) for s in bench.streams()] == [(len(data), zlib.crc32(data), 0)]
    assert bench.peer.to_host.lost and bench.peer.to_host.duplicated and bench.peer.to_host.delayed
    assert {"TCP_OLD_DATA", "TCP_OLD_SEQUENCE", "TCP_OFOMERGE"} & set(bench.fates.values())


@pytest.mark.parametrize("seed", range(4))
def test_an_echo_over_a_bad_network(seed):
    """The host sends, too, and loses, too."""
    data = stream(60_000, seed)
    bad = Impairment(delay_ns=100 * US, loss=0.04, duplicate=0.1, reorder=0.1, reorder_ns=400 * US)
    bench = Bench(cut(data, 1000), "echo", seed=seed, peer={"to_host": bad, "from_host": bad}).run()
    assert bench.peer.received == data
    assert bench.streams()[0]["error"] == 0
    assert bench.peer.from_host.lost
    assert bench.count("retransmitted") > 0


def windows(bench) -> list[tuple[str, int]]:
    """The host's congestion window whenever it changed: why, and to how many segments."""
    return [(note.data["event"], note.data["cwnd"]) for note in bench.notes if note.kind == "cwnd"]


def test_slow_start_grows_by_a_segment_for_each_that_arrives():
    data = stream(150_000)
    bench = Bench(
        cut(data, 1460), "echo", peer={"from_host": Impairment(delay_ns=5 * MS), "to_host": Impairment(delay_ns=5 * MS)}
    ).run()
    assert bench.peer.received == data
    growth = windows(bench)
    assert {event for event, _ in growth} == {"slow start"}
    sizes = [10, *(cwnd for _, cwnd in growth)]
    assert all(0 < later - earlier <= 2 for earlier, later in pairwise(sizes))
    assert sizes[-1] > 20
    assert bench.count("retransmitted") == 0


def test_three_duplicate_acks_bring_back_one_segment_and_halve_the_window():
    data = stream(150_000)
    lose = Impairment(delay_ns=MS, lose=frozenset({45}))
    bench = Bench(cut(data, 1460), "echo", peer={"from_host": lose, "to_host": Impairment(delay_ns=MS)}).run()
    assert bench.peer.received == data
    assert (bench.count("fast_retransmit"), bench.count("timeout"), bench.count("retransmitted")) == (1, 0, 1)
    events = windows(bench)
    first = next(place for place, (event, _) in enumerate(events) if event == "reduction")
    before = events[first - 1][1]
    recovered = next(cwnd for event, cwnd in events if event == "recovered")
    assert recovered == before // 2
    later = [event for event, _ in events[events.index(("recovered", recovered)) :]]
    assert "slow start" not in later


def test_congestion_avoidance_grows_by_a_segment_for_each_window():
    data = stream(400_000)
    lose = Impairment(delay_ns=2 * MS, lose=frozenset({40}))
    bench = Bench(cut(data, 1460), "echo", peer={"from_host": lose, "to_host": Impairment(delay_ns=2 * MS)}).run()
    assert bench.peer.received == data
    sizes = [cwnd for event, cwnd in windows(bench) if event in ("recovered", "congestion avoidance")]
    assert len(sizes) > 3
    assert all(later - earlier == 1 for earlier, later in pairwise(sizes))


def test_a_lost_tail_comes_back_by_timeout():
    """The last segment that the host sends is lost: no duplicate ACKs, only the timer, with a window of one."""
    data = stream(2920)
    bench = Bench(cut(data, 1460), "echo", closes=False, peer={"from_host": Impairment(lose=frozenset({3}))})
    bench.run(lambda: len(bench.peer.received) == len(data))
    assert bench.peer.received == data
    assert (bench.count("fast_retransmit"), bench.count("timeout"), bench.count("retransmitted")) == (0, 1, 1)
    assert windows(bench)[-1][0] in ("timeout", "slow start") and ("timeout", 1) in windows(bench)


def test_timeouts_back_off():
    """From a second on (RFC 6298: nothing measured yet), each twice as long, until the peer hears again."""
    lost = Impairment(lose=frozenset(range(2, 5)))
    bench = Bench([(0, b"echo this")], "echo", closes=False, peer={"from_host": lost})
    sent: list[int] = []
    left = bench.wire._left
    bench.machine.nic.on_transmit = lambda frame: (sent.append(bench.machine.tick), left(frame))[1]
    bench.run(lambda: bytes(bench.peer.received) == b"echo this")
    assert bench.count("timeout") >= 2
    gaps = [later - earlier for earlier, later in pairwise(sent) if later - earlier > 150 * MS]
    assert gaps and all(1.8 < later / earlier < 2.3 for earlier, later in pairwise(gaps))


def test_the_syn_again_when_its_answer_is_lost():
    bench = Bench([(0, b"hello")], peer={"from_host": Impairment(lose=frozenset({0}))}).run()
    assert bench.streams()[0]["length"] == 5


class Leaver(StreamSink):
    """Closes after its first bytes."""

    async def use(self, cpu, sock, length, crc32):
        return zlib.crc32(await cpu.load_bytes(self.buffer, length), crc32), -errno.EIO


def leaver(writes, **options):
    bench = Bench(writes, closes=False, **options)
    for program in bench.system.path.programs:
        program.__class__ = Leaver
    return bench


def test_the_host_closes_first():
    """FIN_WAIT1, FIN_WAIT2, TIME_WAIT for a minute."""
    bench = leaver([(0, b"bye")])
    bench.run(lambda: bench.peer.endpoint.state is State.CLOSE_WAIT)
    assert bench.sock(TCP_SOCK.state) == TcpState.FIN_WAIT2
    bench.peer.endpoint.close()
    bench.go_on()
    assert bench.peer.endpoint.state is State.CLOSED and bench.peer.endpoint.error == ""
    assert bench.sock(TCP_SOCK.state) == TcpState.TIME_WAIT
    asyncio.run(bench.system.run(bench.machine.tick + 59_000 * MS))
    assert bench.sock(TCP_SOCK.state) == TcpState.TIME_WAIT
    # The wheel is coarse so far away: a bucket of its fourth level is two seconds.
    asyncio.run(bench.system.run(bench.machine.tick + 4_000 * MS))
    assert bench.sock(TCP_SOCK.state) == TcpState.CLOSE


def test_a_close_with_unread_data_resets():
    bench = leaver([(0, stream(40_000))])
    bench.run(lambda: bench.peer.endpoint.state is State.CLOSED)
    assert bench.peer.endpoint.error == "reset"
    assert "QUEUE_PURGE" in bench.fates.values() or "NO_SOCKET" in bench.fates.values()


def test_both_close_at_once():
    bench = leaver([(0, b"bye")], peer={"to_host": Impairment(delay_ns=MS), "from_host": Impairment(delay_ns=MS)})
    bench.run(lambda: bench.count("stream") == 1)
    bench.peer.endpoint.close()
    bench.go_on()
    assert bench.peer.endpoint.error == ""
    assert bench.sock(TCP_SOCK.state) == TcpState.TIME_WAIT


def test_a_reset_ends_the_stream_with_an_error():
    bench = Bench([(0, b"x" * 100)], closes=False)
    bench.run(lambda: bool(bench.fates) and "delivered" in bench.fates.values())
    bench.peer.endpoint.abort()
    bench.go_on(lambda: bool(bench.streams()))
    assert bench.streams() == [{"port": 9, "length": 100, "crc32": zlib.crc32(b"x" * 100), "error": errno.ECONNRESET}]


def test_a_port_without_a_socket_is_reset():
    bench = Bench([(0, b"hello")], port=4242).run()
    assert bench.peer.endpoint.error == "refused"
    assert list(bench.fates.values()) == ["NO_SOCKET"]


def test_small_segments_share_buffers():
    """Small segments do not exhaust the receive buffer: their bytes are copied together."""
    data = stream(1800)
    bench = Bench(cut(data, 6), tcp_rcvbuf=32_768).run()
    assert bench.streams()[0]["crc32"] == zlib.crc32(data)
    assert list(bench.fates.values()).count("delivered") == 300
    assert not bench.system.kernel.coalesced and not bench.system.kernel.packet_of


def test_acks_are_delayed():
    """One ACK for two full segments; a lone segment's waits for the delayed ACK's timer."""
    data = stream(146_000)
    bench = Bench(cut(data, 1460, gap_ns=20 * US), closes=False)
    bench.run(
        lambda: bench.peer.endpoint.all_acknowledged and bench.peer.writes == bench.peer.writes[: bench.peer._written]
    )
    acks = sum(len(frame) == 60 for frame in bench.machine.nic.transmitted)
    assert 100 // 2 <= acks <= 100 // 2 + 20


def test_small_segments_are_acknowledged_when_they_are_read():
    """No delayed ACK holds up a sender whose segments are smaller than full ones (``tcp_measure_rcv_mss``)."""
    data = stream(6 * 60)
    bench = Bench(cut(data, 6), closes=False, peer={"tuning": Tuning(sends_most=6, initial_window=1)})
    began = bench.machine.tick
    bench.run(lambda: bench.peer._written == len(bench.peer.writes) and bench.peer.endpoint.all_acknowledged)
    assert bench.machine.tick - began < 30 * MS
