"""wire.pcapng of a run holds what came and what went, in the order of time; scapy reads it."""

from fractions import Fraction

from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from sim.experiment import captured
from sim.result import Fate
from sim.wire.capture import read_capture, write_capture
from sim.wire.frames import CLIENT_MAC, HOST_MAC, generate, with_fcs

#: Three ticks are a nanosecond: most times are none in whole ones.
NS_PER_TICK = Fraction(1, 3)


def test_both_ways_in_order(tmp_path):
    frames = generate(100, 4, 3)
    fates = [
        Fate(packet=1, delivered_tick=9000, dropped=None, arrived_tick=3001),
        Fate(packet=2, delivered_tick=None, dropped="NO_SOCKET", arrived_tick=6000),
        Fate(packet=3, delivered_tick=None, dropped=None, arrived_tick=6_000_000_000_000_001),
        Fate(packet=4, delivered_tick=None, dropped=None, arrived_tick=None),
    ]
    replies = [CLIENT_MAC + HOST_MAC + data[12:] for data in generate(64, 2, 4)]
    sent = [(4503, 1, with_fcs(replies[0])), (6002, 2, with_fcs(replies[1]))]
    write_capture(tmp_path / "wire.pcapng", captured(fates, frames, sent, NS_PER_TICK))

    packets = rdpcap(str(tmp_path / "wire.pcapng"))
    assert [(int(p.time * 10**9), p.direction, p.comments[0].decode(), bytes(p)) for p in packets] == [
        (1000, 1, "packet 1: delivered after 2000 ns", frames[0]),
        (1501, 2, "sent packet 1", replies[0]),
        (2000, 1, "packet 2: dropped: NO_SOCKET", frames[1]),
        (2000, 2, "sent packet 2", replies[1]),
        (2_000_000_000_000_000, 1, "packet 3: in flight at the end", frames[2]),
    ]
    assert all(isinstance(packet, Ether) for packet in packets)
    # As traffic it is what came: what the host sent itself is left out.
    came, left_out = read_capture(tmp_path / "wire.pcapng")
    assert [frame.data for frame in came] == frames[:3]
    assert left_out == 2
