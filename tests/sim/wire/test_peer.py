"""A wire between the engines' small machine, which echoes what it is sent, and a peer."""

import struct
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.utils import rdpcap

from hw.config import load_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.amaranth import run_on_amaranth
from sim.engine.engine import Jump
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog
from sim.wire.capture import write_capture
from sim.wire.frames import CLIENT_IP, CLIENT_MAC, HOST_IP, HOST_MAC, generate, udp_frame, with_fcs
from sim.wire.peer import Passed, Wire
from sim.wire.reflector import Reflector

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from engine_design import Echo, PlantedPacket  # noqa: E402

MACHINE = load_machine("tiny")
NIC = MACHINE.period_ticks("nic")
#: Ticks of a nanosecond.
NS = MACHINE.ticks_per_second // 10**9
DESIGN = Design(MACHINE, "engine_design:SmallMachine", (TESTS / "engine_design.py",))
OTHER_MAC = bytes.fromhex("020000000003")
FIRST_PACKET = 50


@pytest.fixture(scope="module")
def build():
    return build_native(DESIGN)


class Listener:
    """Hears, and says nothing by itself."""

    def __init__(self):
        self.heard = []

    def connect(self, wire):
        self.wire = wire

    def frame(self, tick, data):
        assert tick == self.wire.tick
        self.heard.append((tick, data))


def from_host(data):
    """A frame of the host, made from one to it."""
    return CLIENT_MAC + HOST_MAC + data[12:]


def request(ip=CLIENT_IP):
    """An ARP request of the host."""
    packet = Ether(dst="ff:ff:ff:ff:ff:ff", src=HOST_MAC) / ARP(hwsrc=HOST_MAC, psrc=str(HOST_IP), pdst=str(ip))
    return bytes(packet).ljust(60, b"\0")


def datagram(size=64):
    """A UDP datagram of the host to the peer, whose checksums scapy has made."""
    ends = {"src": str(HOST_IP), "dst": str(CLIENT_IP)}
    return bytes(
        Ether(dst=CLIENT_MAC, src=HOST_MAC) / IP(**ends) / UDP(sport=7, dport=9) / bytes(n % 256 for n in range(size))
    )


async def to_the_end(engine):
    """Run until the engine is idle, whatever software is woken for."""
    while all(wake.core >= 0 for wake in await engine.run()):
        pass


def converse(peer, *frames, propagation_ns=0):
    """An experiment: the card echoes ``frames`` (without FCS), a µs apart, to ``peer``; gives the wire and the log."""

    async def experiment(engine):
        wire = Wire(engine, peer, propagation_ns=propagation_ns, first_packet=FIRST_PACKET)
        for number, data in enumerate(frames):
            wire.send(data, 1000 * number, packet=number + 1)
        await to_the_end(engine)
        return wire, EventLog(engine.manifest, engine.log())

    return experiment


def test_every_bit_takes_the_propagation(build):
    """Out: from the last beat to the peer. In: from the peer to the card's first edge that may see it."""
    data = generate(64, 1, 1)[0]
    for propagation_ns, ticks in ((0, 0), (Fraction(1, 8), 1), (10, 40), (Fraction(101, 4), 101)):
        peer = Listener()
        wire, log = NativeEngine(build).execute(converse(peer, data, propagation_ns=propagation_ns))
        came, left = wire.passed
        edge = -(-ticks // NIC) + 1
        assert log.select("end.frame_event")["tick"].tolist() == [edge * NIC]
        assert came == Passed(ticks, 1, data, outbound=False)
        assert left == Passed((edge + Echo.DELAY) * NIC, 1, data, outbound=True)
        assert peer.heard == [(left.tick + ticks, data)]


@pytest.mark.parametrize("delay_ns, cycles", [(0, 5), (Fraction(3, 4), 6), (1, 6), (2, 6), (Fraction(9, 4), 7)])
def test_a_frame_of_the_peer_starts_at_its_time(build, delay_ns, cycles):
    """10 ns of propagation are 5 cycles. The card takes what is there at an edge at the next."""
    peer = Listener()
    engine = NativeEngine(build)
    wire = Wire(engine, peer, propagation_ns=10)
    wire.send(generate(64, 1, 1)[0], delay_ns)
    engine.execute(to_the_end)
    arrived = EventLog(engine.manifest, engine.log()).select("end.frame_event")["tick"].tolist()
    assert arrived == [(cycles + 1) * NIC]
    assert wire.passed[0].tick == int(10 * NS + delay_ns * NS)


def test_frames_of_the_peer_arrive_in_the_order_of_their_times(build):
    """However they were sent; ids are given as they arrive."""
    engine = NativeEngine(build)
    wire = Wire(engine, Listener(), propagation_ns=5, first_packet=FIRST_PACKET)
    frames = generate(100, 3, 1)
    for data, delay in zip(frames, (3000, 1000, 2000), strict=True):
        wire.send(data, delay)
    assert wire.passed == []
    engine.execute(to_the_end)
    inbound = [(frame.packet, frame.data, frame.tick) for frame in wire.passed if not frame.outbound]
    assert inbound == [
        (FIRST_PACKET, frames[1], 1005 * NS),
        (FIRST_PACKET + 1, frames[2], 2005 * NS),
        (FIRST_PACKET + 2, frames[0], 3005 * NS),
    ]


def test_a_short_frame_is_padded(build):
    engine = NativeEngine(build)
    wire = Wire(engine, peer := Listener(), propagation_ns=0)
    wire.send(HOST_MAC + CLIENT_MAC + b"\x08\x00")
    engine.execute(to_the_end)
    assert len(wire.passed) == 2 and wire.damaged == 0
    assert peer.heard[0][1] == (HOST_MAC + CLIENT_MAC + b"\x08\x00").ljust(60, b"\0")


def test_damaged_frames_do_not_reach_the_peer(build):
    """One with a wrong bit, one too short, one that is whole."""
    whole = generate(100, 1, 1)[0]

    async def experiment(engine):
        wire = Wire(engine, Listener(), propagation_ns=20)
        engine.push_frame(with_fcs(whole), PlantedPacket.WRONG_BIT, 0)
        engine.push_frame(with_fcs(bytes(59)), 2, 500)
        engine.push_frame(with_fcs(whole), 3, 1000)
        await to_the_end(engine)
        return wire

    wire = NativeEngine(build).execute(experiment)
    assert [frame.damage for frame in wire.passed] == ["wrong FCS", "63 bytes are no frame", ""]
    assert wire.damaged == 2
    assert [data for _, data in wire._peer.heard] == [whole]
    comments = [frame.comment for frame in wire.captured()]
    assert comments == [
        "packet 1 from the card: wrong FCS",
        "packet 2 from the card: 63 bytes are no frame",
        "packet 3 from the card",
    ]


def test_timers_of_the_peer(build):
    engine = NativeEngine(build)
    rung = []
    wire = Wire(engine, Listener(), propagation_ns=0)
    wire.after(0, lambda: rung.append(("at once", wire.tick)))
    wire.after(Fraction(7, 4), lambda: rung.append(("late", wire.tick)))
    stopped = wire.after(1, lambda: rung.append(("never", wire.tick)))
    assert wire.cancel(stopped) and not wire.cancel(stopped)
    engine.run_now()
    assert rung == [("at once", 1), ("late", 7)]


@pytest.mark.parametrize("size", (13, 65532))
def test_what_is_no_frame_is_refused(build, size):
    wire = Wire(NativeEngine(build), Listener(), propagation_ns=0)
    with pytest.raises(ValueError, match=f"a frame has 14 to 65531 bytes without FCS, not {size}"):
        wire.send(bytes(size))


def test_the_past_is_refused(build):
    with pytest.raises(ValueError, match="cannot arrive 1 ns before it is sent"):
        Wire(NativeEngine(build), Listener(), propagation_ns=-1)
    wire = Wire(NativeEngine(build), Listener(), propagation_ns=5)
    with pytest.raises(ValueError, match="2 ns ago is too late"):
        wire.send(bytes(60), -2)
    with pytest.raises(ValueError, match="2 ns ago is too late"):
        wire.after(-2, print)


# ---- Reflector


def test_reflector_answers_arp_and_echoes_datagrams(build):
    strangers = [
        request(ip=HOST_IP),
        OTHER_MAC + datagram()[6:],
        datagram()[:20] + b"\x20\x00" + datagram()[22:],  # a first fragment
        datagram()[:14] + b"\x4f" + datagram()[15:60],  # options to where its end is
        datagram()[:23] + b"\x06" + datagram()[24:],
        datagram()[:33] + b"\x63" + datagram()[34:],
    ]
    peer = Reflector(turnaround_ns=100)
    wire, _ = NativeEngine(build).execute(converse(peer, request(), datagram(), *strangers, propagation_ns=15))
    # What the reflector answers comes back again, from the card, and is addressed to the host.
    assert peer.counts == {"arp": 1, "udp": 1, "other": len(strangers) + 2}
    _, asked, answered = wire.passed[:3]
    assert answered.tick - asked.tick == (15 + 100 + 15) * NS
    answers = [frame for frame in wire.passed if not frame.outbound and frame.packet >= FIRST_PACKET]
    assert [frame.packet for frame in answers] == [FIRST_PACKET, FIRST_PACKET + 1]

    arp, udp = (Ether(frame.data) for frame in answers)
    assert (arp.dst, arp.src) == (HOST_MAC.hex(":"), CLIENT_MAC.hex(":"))
    assert (arp[ARP].op, arp[ARP].hwsrc, arp[ARP].psrc) == (2, CLIENT_MAC.hex(":"), str(CLIENT_IP))
    assert (arp[ARP].hwdst, arp[ARP].pdst) == (HOST_MAC.hex(":"), str(HOST_IP))
    assert (udp.dst, udp.src, udp[IP].src, udp[IP].dst) == (arp.dst, arp.src, str(CLIENT_IP), str(HOST_IP))
    assert (udp[UDP].sport, udp[UDP].dport, bytes(udp[UDP].payload)) == (9, 7, bytes(range(64)))
    rebuilt = udp.copy()
    del rebuilt[IP].chksum, rebuilt[UDP].chksum
    assert bytes(rebuilt) == bytes(udp), "the checksums are right"


@pytest.mark.parametrize("jump", (Jump.ALL, Jump.RANDOM))
def test_engines_agree_on_what_passes(build, jump):
    def passed(run):
        wire, log = run(converse(Reflector(turnaround_ns=30), request(), datagram(), propagation_ns=15))
        return wire.passed, log.log.tobytes()

    frames, log = passed(NativeEngine(build, jump=Jump.OFF).execute)
    assert len(frames) == 8
    assert passed(lambda made: run_on_amaranth(DESIGN, made, jump=jump, seed=5)) == (frames, log)


def test_a_capture_of_the_wire_reads_back(build, tmp_path):
    """Through scapy: frames, nanoseconds, directions, ids."""
    experiment = converse(Reflector(), request(), udp_frame(b"x" * 100, 5), datagram(300), propagation_ns=7)
    wire, _ = NativeEngine(build).execute(experiment)
    write_capture(tmp_path / "wire.pcapng", wire.captured())
    packets = rdpcap(str(tmp_path / "wire.pcapng"))
    assert [bytes(packet) for packet in packets] == [frame.data for frame in wire.passed]
    assert [int(packet.time * 10**9) for packet in packets] == [frame.tick // NS for frame in wire.passed]
    assert [packet.direction for packet in packets] == [2 if frame.outbound else 1 for frame in wire.passed]
    assert {packet.sniffed_on for packet in packets} == {"wire"}
    told = [(packet.direction, packet.comments[0].decode()) for packet in packets]
    assert told[:4] == [
        (1, "packet 1 to the card"),
        (2, "packet 1 from the card"),
        (1, f"packet {FIRST_PACKET} to the card"),
        (2, "packet 2 from the card"),
    ]
    assert struct.unpack_from(">H", bytes(packets[2]), 20) == (2,), "an ARP reply"
