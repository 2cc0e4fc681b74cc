"""The kernel's way out: bytes, a full ring, a full queue, a full socket buffer, errors, and all memory given back."""

import asyncio
from ipaddress import IPv4Network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from sw.costs import load_costs
from sw.linux.net.route import Route
from sw.linux.net.sch_generic import NETDEV_QUEUE
from sw.options import Options
from sw.port import WakeKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine

MAC, PEER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
HOST, CLIENT = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
COSTS = load_costs()


def udp(sport=1000, size=18, src="10.0.0.2"):
    ether = Ether(src=PEER.hex(":"), dst=MAC.hex(":"))
    payload = bytes((sport + i) & 0xFF for i in range(size))
    return bytes(ether / IP(src=src, dst="10.0.0.1") / UDP(sport=sport, dport=9) / payload).ljust(60, b"\0")


class Bench:
    """Path "napi" that echoes, on the functional machine."""

    def __init__(self, **options):
        self.machine = FunctionalMachine(cores=2)
        self.sent: list[int] = []  #: received frames, in the order in which their answers went to the card
        self.dropped: dict[int, str] = {}
        given = {"ring_size": 64, "itr_us": 0.0, "neighbours": {CLIENT: PEER}, "application": "echo"} | options
        self.system = System(
            self.machine, 2, 8 << 20, COSTS, "napi", Options(mac=MAC, addresses=(HOST,), **given), on_note=self.noted
        )
        asyncio.run(self.system.boot())

    def noted(self, note):
        if note.kind == "sent":
            assert note.data["frame"] == (0, len(self.sent))
            self.sent.append(self.frame(note))
        elif note.kind == "dropped":
            assert self.frame(note) not in self.dropped
            self.dropped[self.frame(note)] = note.data["reason"]
        done = len(self.sent) + len(self.dropped) + len(self.machine.nic.no_descriptor)
        if self.machine.sent and done == self.machine.sent:
            self.system.stop()

    def frame(self, note) -> int:
        return self.machine.nic.written_back[note.data["packet"][1]]

    def send(self, frames, gap=10_000, stall=0):
        """Send the frames, the card sending nothing for the first ``stall`` ticks."""
        for index, frame in enumerate(frames):
            self.machine.send(frame, self.machine.tick + 5000 + index * gap)
        if stall:
            self.machine.nic.tx_stalled = True
            asyncio.run(self.system.run(self.machine.tick + stall))
            self.at_resume = len(self.sent)
            [queue] = self.system.kernel.tx_queues
            qlen, size = NETDEV_QUEUE.qlen.at(queue)
            self.waiting = int.from_bytes(self.machine.memory[qlen : qlen + size], "little")
            self.machine.nic.resume_tx()
        assert asyncio.run(self.system.run(self.machine.tick + 80_000_000)) is not WakeKind.LIMIT
        return self

    def check_answers(self, frames):
        assert len(self.machine.nic.transmitted) == len(self.sent)
        last = -1
        for number, answer in zip(self.sent, self.machine.nic.transmitted, strict=True):
            asked = Ether(frames[number])
            identification = Ether(bytes(answer))[IP].id
            assert last < identification
            last = identification
            expected = Ether(src=asked.dst, dst=asked.src) / IP(
                src=asked[IP].dst, dst=asked[IP].src, id=identification, flags="DF", ttl=64
            )
            expected /= (
                UDP(sport=asked[UDP].dport, dport=asked[UDP].sport) / bytes(asked[UDP].payload)[: asked[UDP].len - 8]
            )
            assert bytes(answer) == bytes(expected).ljust(len(answer), b"\0")


def test_every_datagram_comes_back_with_its_bytes():
    frames = [udp(1000 + n, n * 7 % 1473) for n in range(220)]
    bench = Bench().send(frames)
    assert bench.sent == list(range(220)) and not bench.dropped
    bench.check_answers(frames)


def test_under_overload_every_packet_is_accounted_for():
    frames = [udp(1000 + n, n % 300) for n in range(400)]
    bench = Bench().send(frames, gap=400)
    assert bench.sent and set(bench.dropped.values()) <= {"SOCKET_RCVBUFF"}
    assert bench.sent == sorted(bench.sent)
    bench.check_answers(frames)


@pytest.mark.parametrize("app_core", [0, 1])
def test_a_full_ring_stops_the_queue_and_room_starts_it(app_core):
    """While the card sends nothing, packets wait in the queue; they leave in order when it does."""
    frames = [udp(1000 + n, n % 200) for n in range(200)]
    bench = Bench(app_core=app_core, sndbuf=1 << 20).send(frames, gap=10_000, stall=1_500_000)
    assert 0 < bench.at_resume <= 63 - 3 and bench.waiting > 50
    assert bench.sent == list(range(200)) and not bench.dropped
    bench.check_answers(frames)


def test_a_full_queue_drops():
    """The kernel's reason, on the account of the packet that was to be answered."""
    frames = [udp(1000 + n) for n in range(200)]
    bench = Bench(sndbuf=1 << 20)
    object.__setattr__(bench.system.kernel.tx_queue, "limit", 10)
    bench.send(frames, stall=1_500_000)
    assert bench.waiting == 10
    assert set(bench.dropped.values()) == {"QDISC_DROP"}
    assert bench.sent == sorted(set(range(200)) - set(bench.dropped))
    bench.check_answers(frames)


def test_a_full_send_buffer_makes_the_program_wait():
    """Who has as much on the way as its send buffer takes sleeps until the card has sent some of it."""
    frames = [udp(1000 + n) for n in range(100)]
    bench = Bench(sndbuf=10_000).send(frames, stall=1_000_000)
    assert bench.at_resume == 3 and not bench.waiting  # of 4352 bytes each
    assert len(bench.sent) == 100 - len(bench.machine.nic.no_descriptor) - len(bench.dropped) >= 40
    bench.check_answers(frames)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"neighbours": {}}, "NEIGH_FAILED"),
        ({"routes": ()}, "ENETUNREACH"),
        ({"routes": (Route(IPv4Network("192.168.0.0/16")),)}, "ENETUNREACH"),
    ],
)
def test_an_answer_that_cannot_go_anywhere_is_a_counted_drop(options, reason):
    bench = Bench(**options).send([udp(1000 + n) for n in range(20)])
    assert bench.dropped == dict.fromkeys(range(20), reason)
    assert not bench.machine.nic.transmitted


def test_the_longest_prefix_wins():
    """A host beyond a gateway gets its answers by way of that."""
    gateway = bytes.fromhex("02000000000f")
    routes = (
        Route(IPv4Network("0.0.0.0/0"), gateway=IPv4Network("10.0.0.254/32").network_address),
        Route(IPv4Network("10.0.0.0/24")),
    )
    neighbours = {CLIENT: PEER, bytes([10, 0, 0, 254]): gateway}
    bench = Bench(routes=routes, neighbours=neighbours).send([udp(), udp(src="172.16.3.4")])
    assert [bytes(frame[:6]) for frame in bench.machine.nic.transmitted] == [PEER, gateway]


def test_all_memory_comes_back():
    """Pages and skbs in use at the end are those in use at the start: many more pass than there are."""
    frames = [udp(1000 + n, n % 1000) for n in range(2000)]
    bench = Bench().send(frames, gap=6000)
    assert len(bench.sent) + len(bench.machine.nic.no_descriptor) + len(bench.dropped) == 2000
    assert not bench.system.kernel.packet_of
