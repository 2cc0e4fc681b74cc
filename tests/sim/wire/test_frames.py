"""Generated frames are what scapy takes for valid UDP, at the rate asked for."""

import binascii
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from sim.wire.frames import TrafficError, at_rate, generate, parse_rate, with_fcs


@given(size=st.integers(46, 16_000), seed=st.integers(0, 2**32))
def test_checksums_are_right(size, seed):
    (frame,) = generate(size, 1, seed)
    assert len(frame) + 4 == size
    packet = Ether(frame)
    ip, udp = packet[IP].chksum, packet[UDP].chksum
    del packet[IP].chksum, packet[UDP].chksum
    again = Ether(bytes(packet))
    assert (again[IP].chksum, again[UDP].chksum) == (ip, udp)


def test_seed_decides_everything():
    assert generate(128, 10, 7) == generate(128, 10, 7) != generate(128, 10, 8)


def test_fcs_is_that_of_ethernet():
    # The residue of a frame with a right FCS is a constant (IEEE 802.3, section 3.2.9).
    assert binascii.crc32(with_fcs(generate(64, 1, 0)[0])) == 0x2144DF1C


@pytest.mark.parametrize(
    "text, rate",
    [
        ("5Mpps", (None, 5_000_000)),
        ("3.2Gbps", (3_200_000_000, None)),
        ("10 kpps", (None, 10_000)),
        ("1gb/s", (10**9, None)),
        ("line", (None, None)),
    ],
)
def test_rates(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "5", "Mpps", "-1Mpps", "0pps", "5Tpps", "fast"])
def test_bad_rates_are_one_clear_line(text):
    with pytest.raises(TrafficError, match="--rate takes a rate such as 5Mpps"):
        parse_rate(text)


def test_spacing():
    frames = generate(64, 3, 0)
    assert [f.time_ns for f in at_rate(frames, None, Fraction(5_000_000))] == [0, 200, 400]
    # 84 bytes of wire time each at 10 Gb/s: 14.88 million a second.
    assert [f.time_ns for f in at_rate(frames, Fraction(10**10), None)] == [0, Fraction(336, 5), Fraction(672, 5)]
    assert [f.time_ns for f in at_rate(frames, None, None)] == [0, 0, 0]


@pytest.mark.parametrize(
    "size, count, message", [(45, 1, "--size takes 46 to 16000"), (64, 0, "--count takes at least 1")]
)
def test_impossible_frames(size, count, message):
    with pytest.raises(TrafficError, match=message):
        generate(size, count, 0)
