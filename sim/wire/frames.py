"""Frames to be put on the wire, and the addresses they are sent to."""

import binascii
import ipaddress
import random
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

__all__ = [
    "CLIENT_IP",
    "CLIENT_MAC",
    "FCS_BYTES",
    "GENERATOR_PORT",
    "HEADER_BYTES_ETHERNET",
    "HOST_IP",
    "HOST_MAC",
    "LEAST_FRAME_BYTES",
    "Frame",
    "TrafficError",
    "at_rate",
    "generate",
    "neighbours_in",
    "parse_rate",
    "udp_frame",
    "with_fcs",
]

#: The card's station address and the host's IPv4 address, as in traffic/record.sh.
HOST_MAC = bytes.fromhex("020000000001")
HOST_IP = ipaddress.IPv4Address("10.0.0.1")
#: The peer that generated frames come from.
CLIENT_MAC = bytes.fromhex("020000000002")
CLIENT_IP = ipaddress.IPv4Address("10.0.0.2")
_ETHERTYPE_IPV4 = b"\x08\x00"
#: UDP port of generated frames: discard (RFC 863).
GENERATOR_PORT = 9

#: Both addresses and the type.
HEADER_BYTES_ETHERNET = 14
FCS_BYTES = 4
#: Shorter frames are padded by the sending MAC (IEEE 802.3, section 3.2.8), FCS included.
LEAST_FRAME_BYTES = 64
#: Wire bytes beside a frame's own: preamble, SFD and inter-frame gap (IEEE 802.3).
WIRE_OVERHEAD_BYTES = 20
#: Ethernet, IPv4 and UDP headers, in bytes.
HEADER_BYTES = HEADER_BYTES_ETHERNET + 20 + 8
#: Sizes of generated frames, FCS included: no payload to all that one IPv4 packet holds. Those below 64 are runts,
#: those above 1518 giants: what the card does with them can be seen.
LEAST_SIZE = HEADER_BYTES + FCS_BYTES
MOST_SIZE = 16_000


class TrafficError(ValueError):
    """Traffic that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Frame:
    """One frame: destination address to the last byte before the FCS, and when it should start, in ns."""

    time_ns: Fraction
    data: bytes


def with_fcs(frame: bytes) -> bytes:
    """Append the frame check sequence (IEEE 802.3, section 3.2.9), as the bytes stand on the wire."""
    return frame + struct.pack("<I", binascii.crc32(frame))


def _checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of ``data``."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(payload: bytes, source_port: int, port: int = GENERATOR_PORT) -> bytes:
    """Make an Ethernet frame with an IPv4 UDP datagram from the client to the host (RFC 791, RFC 768)."""
    udp_length = 8 + len(payload)
    pseudo = CLIENT_IP.packed + HOST_IP.packed + struct.pack(">BBH", 0, 17, udp_length)
    udp = struct.pack(">HHHH", source_port, port, udp_length, 0) + payload
    checksum = _checksum(pseudo + udp) or 0xFFFF
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + udp_length, 0, 0x4000, 64, 17, 0) + CLIENT_IP.packed + HOST_IP.packed
    ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
    return HOST_MAC + CLIENT_MAC + b"\x08\x00" + ip + udp[:6] + struct.pack(">H", checksum) + payload


def generate(size: int, count: int, seed: int) -> list[bytes]:
    """Make ``count`` UDP frames of ``size`` bytes, FCS included in the size but not in the result.

    Source ports and payloads come from ``seed``.

    Raises:
        TrafficError: when the size is not that of an Ethernet frame, or the count not positive.
    """
    if not LEAST_SIZE <= size <= MOST_SIZE:
        raise TrafficError(f"--size takes {LEAST_SIZE} to {MOST_SIZE} bytes (FCS included), not {size}")
    if count < 1:
        raise TrafficError(f"--count takes at least 1, not {count}")
    chance = random.Random(seed)
    length = size - FCS_BYTES - HEADER_BYTES
    return [udp_frame(chance.randbytes(length), chance.randrange(1024, 65536)) for _ in range(count)]


def neighbours_in(frames: Iterable[bytes]) -> dict[bytes, bytes]:
    """Whom the host has to know to answer IPv4 frames: hardware address by IPv4 address of their senders."""
    found = {}
    for frame in frames:
        if frame[12:14] == _ETHERTYPE_IPV4 and len(frame) >= HEADER_BYTES:
            found[frame[26:30]] = frame[6:12]
    return found


def at_rate(
    frames: Sequence[bytes], bits_per_second: Fraction | None, packets_per_second: Fraction | None
) -> list[Frame]:
    """Give each frame a start: evenly at a packet rate, at a bit rate (preamble and gap included), or all at once.

    With both rates None every frame starts at 0, and the MAC sends them back to back: line rate.
    """
    result, time = [], Fraction(0)
    for data in frames:
        result.append(Frame(time, data))
        if packets_per_second is not None:
            time += 10**9 / packets_per_second
        elif bits_per_second is not None:
            time += (len(data) + FCS_BYTES + WIRE_OVERHEAD_BYTES) * 8 * 10**9 / bits_per_second
    return result


UNITS = {"pps": (None, 1), "bps": (1, None), "b/s": (1, None)}
PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parse_rate(text: str) -> tuple[Fraction | None, Fraction | None]:
    """Read ``5Mpps``, ``3.2Gbps`` or ``line`` as (bits per second, packets per second).

    Raises:
        TrafficError: for anything else.
    """
    if text.lower() == "line":
        return None, None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)(pps|bps|b/s)", text.strip().lower())
    if not match or not Fraction(match[1]):
        raise TrafficError(f"--rate takes a rate such as 5Mpps, 3.2Gbps or line, not {text!r}")
    value = Fraction(match[1]) * PREFIXES[match[2]]
    bits, _ = UNITS[match[3]]
    return (value, None) if bits else (None, value)
