"""TCP on the functional machine, against the peer's own TCP: what is written is read, whatever the network does."""

import asyncio
import random
import zlib
from fractions import Fraction

import pytest

from sim.wire.frames import CLIENT_IP, CLIENT_MAC
from sim.wire.impairment import Impairment
from sim.wire.tcp_endpoint import State
from sim.wire.tcp_peer import TcpPeer
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
            step = min(self.machine.tick + 200 * US, end)
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
