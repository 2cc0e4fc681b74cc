"""XDP: each verdict does what it says, every packet is accounted for, no page is lost."""

import asyncio
import struct

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from sw.costs import load_tables
from sw.options import Options
from sw.port import WakeKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine

MAC = bytes.fromhex("020000000001")
COSTS = load_tables(("linux", "bpf"))


def udp(dport=9, size=18, sport=1000):
    """A UDP datagram for the host, padded as Ethernet demands."""
    packet = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src="10.0.0.2", dst="10.0.0.1")
    return bytes(packet / UDP(sport=sport, dport=dport) / bytes(size)).ljust(60, b"\0")


ARP_REQUEST = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:02") / ARP()).ljust(60, b"\0")


class Bench:
    """Path "xdp" on the functional machine."""

    def __init__(self, application, **options):
        self.machine = FunctionalMachine(cores=1)
        self.delivered: dict[int, int] = {}
        self.sent: list[tuple[int, int]] = []
        self.dropped: dict[int, str] = {}
        small = {"ring_size": 64, "ports": (9, 53), "itr_us": 0.0} | options
        options = Options(mac=MAC, addresses=(bytes([10, 0, 0, 1]),), application=application, **small)
        self.system = System(self.machine, 1, 4 << 20, COSTS, "xdp", options, on_note=self.noted)
        asyncio.run(self.system.boot())

    def noted(self, note):
        if note.kind == "delivered":
            self.delivered[self.frame(note)] = note.data["length"]
        elif note.kind == "sent":
            queue, number = note.data["frame"]
            assert queue == 1, "XDP sends by a queue of its own"
            self.sent.append((self.frame(note), number))
        elif note.kind == "dropped":
            self.dropped[self.frame(note)] = note.data["reason"]
        done = len(self.delivered) + len(self.sent) + len(self.dropped) + len(self.machine.nic.no_descriptor)
        if self.machine.sent and done == self.machine.sent:
            self.system.stop()

    def frame(self, note) -> int:
        return self.machine.nic.written_back[note.data["packet"][1]]

    def send(self, frames, gap=3000):
        for index, frame in enumerate(frames):
            self.machine.send(frame, self.machine.tick + 5000 + index * gap)
        assert asyncio.run(self.system.run(self.machine.tick + 50_000_000)) is not WakeKind.LIMIT


@pytest.mark.parametrize("jit", [True, False])
def test_drop_all(jit):
    bench = Bench("drop", bpf_jit=jit)
    assert bench.system.path.xdp.program.is_jited is jit
    bench.send([udp(size=n) for n in (18, 300, 1400)] * 100, gap=200)
    lost = set(bench.machine.nic.no_descriptor)
    assert set(bench.delivered) == set(range(300)) - lost and not bench.dropped and not bench.sent


def test_the_firewall_drops_blocked_ports_and_passes_the_rest_to_sockets():
    bench = Bench("firewall")
    bench.send([udp(9), udp(53), udp(9, 200), ARP_REQUEST, udp(4000), udp(53)])
    # The program is told whole frames, a socket its payload.
    assert bench.delivered == {0: 18, 1: 60, 2: 200, 5: 60}
    assert bench.dropped == {3: "UNHANDLED_PROTO", 4: "NO_SOCKET"}


def test_the_counter_counts_what_it_passes():
    bench = Bench("count")
    frames = [udp(9, size) for size in (18, 100, 900)]
    bench.send(frames)
    assert bench.delivered == {0: 18, 1: 100, 2: 900}
    counters = bench.system.path.bpf.map(bench.system.path.maps["counters"])
    value = counters.area.on_core(counters.variables[0], 0)
    assert struct.unpack_from("<QQ", bench.machine.memory, value) == (3, sum(map(len, frames)))


@pytest.mark.parametrize("gap", [200, 3000])
def test_tx_sends_every_frame_back_with_addresses_exchanged(gap):
    bench = Bench("tx")
    frames = [udp(9, size, sport=n + 1) for n, size in enumerate((0, 18, 300, 1400) * 60)]
    bench.send(frames, gap)
    nic = bench.machine.nic
    kept = [n for n in range(len(frames)) if n not in nic.no_descriptor]
    assert bench.sent == list(zip(kept, range(len(kept)), strict=True))
    assert nic.transmitted == [frames[n][6:12] + frames[n][:6] + frames[n][12:] for n in kept]


def test_a_full_transmit_ring_is_a_counted_drop_and_pages_come_back():
    bench = Bench("tx")
    bench.machine.nic.tx_stalled = True
    bench.send([udp()] * 200)
    assert len(bench.sent) == 63 and set(bench.dropped.values()) == {"XDP_TX_FULL"}
    assert len(bench.dropped) == 200 - 63


def test_the_interpreter_takes_longer():
    ticks = []
    for jit in (True, False):
        bench = Bench("firewall", bpf_jit=jit)
        begin = bench.machine.tick
        bench.send([udp(53)] * 20, gap=1)
        ticks.append(bench.machine.tick - begin)
    assert ticks[0] < ticks[1]
