"""Captures are read strictly and written with nanoseconds; scapy and tcpdump's own format agree."""

from fractions import Fraction
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapWriter, RawPcapReader

from sim.wire.capture import Captured, Direction, read_capture, write_capture
from sim.wire.frames import CLIENT_MAC, HOST_MAC, TrafficError, generate

BUNDLED = Path(__file__).parents[3] / "traffic" / "programs.pcapng"
PCAP = bytes.fromhex("d4c3b2a1 0200 0400 00000000 00000000 ffff0000 01000000")
RECORD = bytes.fromhex("01000000 02000000")


def to_host(length=60):
    return HOST_MAC + CLIENT_MAC + bytes(length - 12)


def test_bundled_capture_holds_real_programs():
    frames, left_out = read_capture(BUNDLED)
    assert len(frames) > 200 and left_out > 200
    packets = [Ether(frame.data) for frame in frames]
    ports = {packet[UDP].dport for packet in packets if UDP in packet}
    assert {53, 11211, 9999} <= ports
    assert {packet[IP].proto for packet in packets if IP in packet} == {1, 6, 17}
    assert frames[0].time_ns == 0
    assert min(len(frame.data) for frame in frames) == 60, "short frames are padded as on a wire"


def test_what_is_written_reads_back_to_the_nanosecond(tmp_path):
    path = tmp_path / "out.pcapng"
    frames = [
        Captured(Fraction(67 * index), data, f"packet {index + 1}", Direction(1 + index % 2))
        for index, data in enumerate(generate(64, 20, 1))
    ]
    write_capture(path, frames)
    read, left_out = read_capture(path)
    assert [(frame.time_ns, frame.data) for frame in read] == [(frame.time_ns, frame.data) for frame in frames]
    assert left_out == 0
    told = [(meta.comments, meta.direction) for _, meta in RawPcapReader(str(path))]
    assert told == [([frame.comment.encode()], frame.direction) for frame in frames]


def test_pcap_is_read_in_order_of_time(tmp_path):
    path = tmp_path / "in.pcap"
    with PcapWriter(str(path), nano=True, linktype=1) as writer:
        writer.write_header(None)
        writer.write_packet(to_host(70), sec=5, usec=300)
        writer.write_packet(to_host(60), sec=5, usec=100)
        writer.write_packet(CLIENT_MAC + HOST_MAC + bytes(48), sec=5, usec=50)
    frames, left_out = read_capture(path)
    assert [(frame.time_ns, len(frame.data)) for frame in frames] == [(0, 60), (200, 70)]
    assert left_out == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a readable pcap or pcapng file"),
        (bytes(40), "not a readable pcap or pcapng file"),
        (PCAP, "no frame for the host in 0 packets"),
        (PCAP + RECORD + b"\xff\0\0\0\xff\0\0\0abc", "Pcap: packet has been truncated"),
        (PCAP + RECORD + b"\x03\0\0\0\x03\0\0\0abc", "packet 1 has 3 bytes; an Ethernet header has 14"),
        (PCAP + RECORD + b"\x0e\0\0\0\x3c\0\0\0" + bytes(14), "packet 1 holds 14 of its 60 bytes"),
        (PCAP + RECORD + b"\x3c\0\0\0\x3c\0\0\0" + to_host() + bytes(5), "damaged after packet 1: 5 bytes follow"),
        (PCAP[:20] + b"\x65\0\0\0" + RECORD + b"\x0e\0\0\0\x0e\0\0\0" + bytes(14), "has link type 101; only Ethernet"),
        (BUNDLED.read_bytes()[:5000], "damaged after packet"),
        # Packet 3 is bytes 312 to 443: cut behind the next one's type, its length, and before the last length.
        (BUNDLED.read_bytes()[:448], "damaged after packet 3: the last block is cut off after 4 bytes"),
        (BUNDLED.read_bytes()[:452], "damaged after packet 3: the last block is cut off after 8 bytes"),
        (BUNDLED.read_bytes()[:572], "damaged after packet 3: the last block is cut off after 128 bytes"),
        (BUNDLED.read_bytes()[:300] + b"\xff" * 40 + BUNDLED.read_bytes()[340:], "damaged after packet"),
    ],
    ids=[
        "empty",
        "zeros",
        "no-packets",
        "cut",
        "short",
        "snapped",
        "trailing",
        "raw-ip",
        "cut-ng",
        "type",
        "length",
        "body",
        "garbage-ng",
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, content, message):
    path = tmp_path / "bad.pcap"
    path.write_bytes(content)
    with pytest.raises(TrafficError, match=message) as caught:
        read_capture(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(TrafficError, match="no such capture file"):
        read_capture(tmp_path / "nowhere.pcap")
