"""AF_XDP: every packet is accounted for once, no chunk is lost, the kernel refuses what it refuses."""

import asyncio

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from sw.costs import load_tables
from sw.options import Options
from sw.port import WakeKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine

MAC = bytes.fromhex("020000000001")
COSTS = load_tables(("linux", "bpf", "xsk"))


def udp(sport=1000, size=18, dport=9):
    """A UDP datagram for the host, padded as Ethernet demands."""
    packet = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src="10.0.0.2", dst="10.0.0.1")
    return bytes(packet / UDP(sport=sport, dport=dport) / bytes(size)).ljust(60, b"\0")


class Bench:
    """Path "af-xdp" on the functional machine."""

    def __init__(self, application="rxdrop", **options):
        self.machine = FunctionalMachine(cores=1)
        self.delivered: list[tuple[int, int]] = []  #: received frame, length
        self.sent: list[tuple[int, int]] = []  #: received frame, number of the frame sent
        self.dropped: dict[int, str] = {}
        small = {"ring_size": 64, "itr_us": 0.0} | options
        options = Options(mac=MAC, addresses=(), application=application, **small)
        self.system = System(self.machine, 1, 4 << 20, COSTS, "af-xdp", options, on_note=self.noted)
        asyncio.run(self.system.boot())

    def noted(self, note):
        if note.kind == "delivered":
            self.delivered.append((self.frame(note), note.data["length"]))
        elif note.kind == "sent":
            self.sent.append((self.frame(note), note.data["frame"][1]))
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


@pytest.mark.parametrize("wakeup", ["spin", "poll"])
@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
@pytest.mark.parametrize("gap", [100, 600, 5000, 40_000])
def test_every_packet_is_delivered_once_in_order(gap, mode, wakeup):
    bench = Bench(xdp_mode=mode, wakeup=wakeup)
    bench.send([udp(1000 + n, size=n % 1400) for n in range(300)], gap)
    lost = set(bench.machine.nic.no_descriptor) | set(bench.dropped)
    kept = [n for n in range(300) if n not in lost]
    assert bench.delivered == [(n, max(42 + n % 1400, 60)) for n in kept]
    assert not lost or gap < 5000


@pytest.mark.parametrize("wakeup", ["spin", "poll"])
@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
@pytest.mark.parametrize("gap", [100, 600, 5000, 40_000])
def test_echo_sends_every_datagram_back_once_in_order(gap, mode, wakeup):
    bench = Bench("echo", xdp_mode=mode, wakeup=wakeup)
    frames = [udp(1000 + n, size=n % 1400) for n in range(300)]
    bench.send(frames, gap)
    lost = set(bench.machine.nic.no_descriptor) | set(bench.dropped)
    kept = [n for n in range(300) if n not in lost]
    assert bench.sent == list(zip(kept, range(len(kept)), strict=True))
    assert len(bench.machine.nic.transmitted) == len(kept)
    for number, frame in zip(kept, bench.machine.nic.transmitted, strict=True):
        came = frames[number]
        assert (
            frame
            == came[6:12] + came[:6] + came[12:26] + came[30:34] + came[26:30] + came[36:38] + came[34:36] + came[38:]
        )
    assert not lost or gap < 5000
