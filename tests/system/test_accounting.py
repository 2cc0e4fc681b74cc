"""Every frame has one fate, whatever it holds and whoever receives: offered is what became of it, each counted once."""

from collections import Counter

import pytest
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from hw.config import load_machine
from sim.experiment import Experiment
from sim.wire.frames import CLIENT_IP, CLIENT_MAC, HOST_IP, HOST_MAC, at_rate, parse_rate
from sim.wire.traffic import Traffic

TINY = load_machine("tiny")


def mac(address):
    return ":".join(f"{byte:02x}" for byte in address)


def ether(**fields):
    return Ether(**{"dst": mac(HOST_MAC), "src": mac(CLIENT_MAC)} | fields)


def ip(**fields):
    return IP(**{"src": str(CLIENT_IP), "dst": str(HOST_IP)} | fields)


def udp(size=18, **fields):
    return UDP(**{"sport": 4000, "dport": 9} | fields) / Raw(bytes(size))


#: What comes, and what becomes of it where the stack receives.
FRAMES = [
    (ether() / ip() / udp(), "delivered"),
    (ether() / ip() / udp(0), "delivered"),
    (ether() / ip() / udp(1472), "delivered"),
    (ether() / ip() / udp(chksum=0), "delivered"),
    (ether() / ip(options=[("NOP"), ("EOL")]) / udp(), "delivered"),
    (ether() / ip() / udp(1473), "oversize"),
    (ether() / ip() / udp(8000), "oversize"),
    (ether(type=0x88CC) / Raw(bytes(46)), "UNHANDLED_PROTO"),
    (ether() / Dot1Q(vlan=5) / ip() / udp(), "UNHANDLED_PROTO"),
    (ether() / IPv6() / udp(), "UNHANDLED_PROTO"),
    (ether(dst="ff:ff:ff:ff:ff:ff") / ARP(), "UNHANDLED_PROTO"),
    (ether(type=0x0800) / Raw(bytes(46)), "IP_INHDR"),
    (ether() / ip(flags="MF") / udp(24), "FRAG_REASM_TIMEOUT"),
    (ether() / ip(frag=3) / udp(), "FRAG_REASM_TIMEOUT"),
    (ether() / ip(chksum=0x1234) / udp(), "IP_CSUM"),
    (ether() / ip(len=900) / udp(), "PKT_TOO_SMALL"),
    (ether() / ip() / udp(chksum=0x1234), "UDP_CSUM"),
    (ether() / ip() / udp(dport=80), "NO_SOCKET"),
    (ether() / ip() / TCP(dport=9, flags="S"), "IP_NOPROTO"),
    (ether() / ip() / ICMP() / Raw(bytes(30)), "IP_NOPROTO"),
    (ether(dst="01:00:5e:00:00:01") / ip(dst="224.0.0.1") / udp(), "filtered"),
    (ether(dst="02:00:00:00:00:77") / ip() / udp(), "filtered"),
]
FATES = [fate for _, fate in FRAMES]


def run(path, application, rate, out, **options):
    """Packet counts of result.json, and the fate of each frame as the written capture tells it."""
    frames = [bytes(frame).ljust(60, b"\0") for frame, _ in FRAMES]
    traffic = Traffic(tuple(at_rate(frames, *parse_rate(rate))), "odd frames", {"description": "odd frames"})
    packets = Experiment(path, TINY, traffic, application, out=out, options=options).run()["packets"]
    with (out / "wire.pcapng").open("rb") as file:
        blocks = [block for block in FileScanner(file) if isinstance(block, EnhancedPacket)]
    told = [str(block.options["opt_comment"]) for block in blocks]
    fates = [text.split(": ", 1)[1] for text in told if text.startswith("packet ")]
    return packets, [fate.removeprefix("dropped: ").split(" after")[0] for fate in fates]


@pytest.mark.parametrize("rate", ["200kpps", "line"])
@pytest.mark.parametrize(
    ("path", "application", "options"),
    [
        ("interrupt", "sink", {}),
        ("interrupt", "rawdrop", {}),
        ("napi", "sink", {"app_core": 1}),
        ("napi", "echo", {}),
        ("napi", "sink", {"napi_thread": 1}),
        ("busypoll", "sink", {}),
        ("busypoll", "kthread", {}),
        ("xdp", "drop", {}),
        ("xdp", "tx", {}),
        ("xdp", "firewall", {}),
        ("af-xdp", "rxdrop", {"xdp_mode": "copy"}),
        ("af-xdp", "echo", {"wakeup": "poll"}),
        ("af-xdp", "echo", {"xdp_mode": "copy", "app_core": 1}),
        ("dpdk", "rxonly", {}),
        ("dpdk", "l2fwd", {"batch": 4}),
        ("dpdk", "echo", {}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_every_frame_is_counted_once(tmp_path, path, application, options, rate):
    packets, fates = run(path, application, rate, tmp_path, **options)
    assert packets["offered"] == len(FRAMES) and packets["in_flight"] == 0
    # A frame with two fates would be told under the first of them and counted under both.
    counted = {kind: packets[kind] for kind in ("delivered", "transmitted")} | packets["dropped"]
    assert Counter(fates) == Counter({kind: count for kind, count in counted.items() if count})


@pytest.mark.parametrize(("path", "application"), [("interrupt", "sink"), ("napi", "sink"), ("xdp", "count")])
def test_the_stack_names_what_it_drops(tmp_path, path, application):
    _, fates = run(path, application, "100kpps", tmp_path)
    assert fates == FATES
