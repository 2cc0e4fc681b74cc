"""Every packet is accounted for, whatever it is, and the result says so in the documented keys."""

import json

import numpy as np
import pytest
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from hw.config import load_machine
from sim.experiment import Experiment
from sim.result import summarise
from sim.session import observe
from sim.wire.frames import CLIENT_IP, CLIENT_MAC, HOST_IP, HOST_MAC, Frame, generate, with_fcs
from sim.wire.traffic import Traffic

ETHER = Ether(dst=HOST_MAC.hex(":"), src=CLIENT_MAC.hex(":"))
PACKET = ETHER / IP(src=str(CLIENT_IP), dst=str(HOST_IP))

KEYS = {
    "software",
    "per_packet",
    "stages",
    "schema",
    "path",
    "application",
    "machine",
    "traffic",
    "packets",
    "time",
    "rates",
    "latency_ns",
    "cycles_per_packet",
    "cores",
    "interrupts",
    "counters",
    "host",
    "log_sha256",
}


def padded(packet) -> bytes:
    return bytes(packet).ljust(60, b"\0")


def spoiled(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


#: What is sent, with its FCS, and what must become of it.
ZOO = {
    "good": (with_fcs(padded(PACKET / UDP(dport=9) / b"hello")), "delivered"),
    "no checksum": (with_fcs(padded(PACKET / UDP(dport=53, chksum=0) / b"hello")), "delivered"),
    "full size": (with_fcs(bytes(PACKET / UDP(dport=9) / bytes(1472))), "delivered"),
    "bad FCS": (spoiled(with_fcs(padded(PACKET / UDP(dport=9) / b"hello"))), "crc_error"),
    "runt": (with_fcs(bytes(PACKET / UDP(dport=9) / b"short")), "runt"),
    "giant": (with_fcs(bytes(PACKET / UDP(dport=9) / bytes(1473))), "oversize"),
    "for another station": (with_fcs(padded(Ether(dst="02:00:00:00:00:77") / bytes(50))), "filtered"),
    "unknown port": (with_fcs(padded(PACKET / UDP(dport=4242) / b"hello")), "NO_SOCKET"),
    "bad UDP checksum": (with_fcs(padded(PACKET / UDP(dport=9, chksum=0x1234) / b"hello")), "UDP_CSUM"),
    "bad IP checksum": (
        with_fcs(padded(ETHER / IP(src=str(CLIENT_IP), dst=str(HOST_IP), chksum=1) / UDP(dport=9) / b"hello")),
        "IP_CSUM",
    ),
    "for another host": (with_fcs(padded(ETHER / IP(dst="10.9.9.9") / UDP(dport=9))), None),
    "TCP": (with_fcs(padded(PACKET / TCP(dport=80))), "IP_NOPROTO"),
    "ping": (with_fcs(padded(PACKET / ICMP())), "IP_NOPROTO"),
    "ARP": (with_fcs(padded(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP())), "UNHANDLED_PROTO"),
    "truncated IP": (with_fcs(padded(ETHER / IP(dst=str(HOST_IP), len=900) / UDP(dport=9))), None),
    "bytes": (with_fcs(HOST_MAC + CLIENT_MAC + b"\x12\x34" + bytes(range(46))), "UNHANDLED_PROTO"),
    "last good": (with_fcs(padded(PACKET / UDP(dport=11211) / b"bye")), "delivered"),
}


@pytest.fixture(scope="module")
def native():
    from sim.build.design import Design
    from sim.build.native import build_native
    from sim.engine.native import NativeEngine

    build = build_native(Design(load_machine("tiny")))
    return lambda: NativeEngine(build)


def run(native, frames):
    machine = load_machine("tiny")
    observation = native().execute(lambda engine: observe(engine, machine, frames))
    return summarise(observation, machine, "napi", "sink", {})


def test_a_zoo_of_packets(native):
    result, fates = run(native, [(3000 * index, data) for index, (data, _) in enumerate(ZOO.values())])
    for (name, (_, expected)), fate in zip(ZOO.items(), fates, strict=True):
        became = "delivered" if fate.delivered_tick is not None else fate.dropped
        assert became is not None, name
        assert expected in (None, became), f"{name}: {became}"
        assert fate.arrived_tick is not None, name
    packets = result["packets"]
    assert packets["offered"] == packets["delivered"] + sum(packets["dropped"].values()) + packets["in_flight"]
    assert packets["in_flight"] == 0
    assert packets["received"] == packets["delivered"] + sum(
        count for reason, count in packets["dropped"].items() if reason.isupper()
    )


def test_overload_loses_nothing_unsaid(native):
    frames = [(0, with_fcs(frame)) for frame in generate(64, 300, 3)]
    result, _ = run(native, frames)
    packets = result["packets"]
    assert packets["in_flight"] == 0 and packets["delivered"] > 0
    assert packets["offered"] == 300 == packets["delivered"] + sum(packets["dropped"].values())
    # At line rate the wire carries one 64-byte frame every 67.2 ns.
    assert result["rates"]["offered_mpps"] == pytest.approx(14.88, rel=0.01)


def test_a_run_leaves_what_the_documentation_says(tmp_path):
    frames = tuple(Frame(index * 4000, frame) for index, frame in enumerate(generate(200, 6, 1)))
    experiment = Experiment(
        path="napi",
        application="sink",
        machine=load_machine("tiny"),
        traffic=Traffic(frames, "six frames", {"description": "six frames"}),
        out=tmp_path,
    )
    result = experiment.run()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(experiment.files())
    assert result.keys() == KEYS
    assert result["software"] == {"mitigations": [], "background": True, "idle": "poll", "options": {}}
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["latency_ns"]["min"] <= result["latency_ns"]["p50"] <= result["latency_ns"]["max"]
    for core in result["cores"]:
        parts = sum(core[name] for name in ("irq", "softirq", "system", "user"))
        assert core["busy"] == pytest.approx(parts)
        # All of a core's time since the first frame is accounted for, to the cycle.
        assert core["busy"] + core["idle"] == pytest.approx(result["cores"][0]["busy"] + result["cores"][0]["idle"])
    log = np.load(tmp_path / "log.npy")
    assert (np.diff(log["tick"].astype(np.int64)) >= 0).all()
    with (tmp_path / "wire.pcapng").open("rb") as file:
        blocks = [block for block in FileScanner(file) if isinstance(block, EnhancedPacket)]
    assert [block.packet_data for block in blocks] == [frame.data for frame in frames]
    assert all("delivered after" in str(block.options["opt_comment"]) for block in blocks)
