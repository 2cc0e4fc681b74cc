"""TCP segments over IPv4 and Ethernet as bytes (RFC 9293 section 3.1, RFC 791, RFC 7323 section 2)."""

import enum
import struct
from dataclasses import dataclass

from .frames import HEADER_BYTES_ETHERNET

__all__ = [
    "IPV4_HEADER_BYTES",
    "PROTOCOL_TCP",
    "TCP_FRAME_HEADER_BYTES",
    "TCP_HEADER_BYTES",
    "Flag",
    "Segment",
    "internet_checksum",
]

PROTOCOL_TCP = 6
ETHERTYPE_IPV4 = 0x0800
IPV4_HEADER_BYTES = 20
TCP_HEADER_BYTES = 20
#: Ethernet, IPv4 and TCP headers without options.
TCP_FRAME_HEADER_BYTES = HEADER_BYTES_ETHERNET + IPV4_HEADER_BYTES + TCP_HEADER_BYTES
DEFAULT_TTL = 64
_DONT_FRAGMENT = 0x4000
_FRAGMENT_MASK = 0x3FFF
_OPTION_END, _OPTION_NOP, _OPTION_MSS, _OPTION_WINDOW_SCALE = 0, 1, 2, 3
_OPTION_BYTES = {_OPTION_MSS: 4, _OPTION_WINDOW_SCALE: 3}


class Flag(enum.IntFlag):
    """Control bits."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


def internet_checksum(data: bytes) -> int:
    """The checksum of RFC 1071 over ``data``: 0 if it holds a right one."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What a TCP says to another.

    Attributes:
        seq, ack: modulo 2^32; ``ack`` counts only with ``Flag.ACK``.
        window: as it is in the header, unscaled.
        mss: the option's value; None without it. Only in a SYN.
        window_scale: likewise.
    """

    source_port: int
    port: int
    seq: int
    ack: int = 0
    flags: Flag = Flag.ACK
    window: int = 0
    payload: bytes = b""
    mss: int | None = None
    window_scale: int | None = None

    @property
    def length(self) -> int:
        """Sequence numbers that it takes: its bytes, and one each for SYN and FIN."""
        return len(self.payload) + bool(self.flags & Flag.SYN) + bool(self.flags & Flag.FIN)

    def frame(self, source: tuple[bytes, bytes], destination: tuple[bytes, bytes], identification: int = 0) -> bytes:
        """The segment in an Ethernet frame, without padding and FCS.

        Arguments:
            source, destination: MAC and IPv4 address of each end.
        """
        options = b""
        if self.mss is not None:
            options += struct.pack(">BBH", _OPTION_MSS, _OPTION_BYTES[_OPTION_MSS], self.mss)
        if self.window_scale is not None:
            scale = (_OPTION_NOP, _OPTION_WINDOW_SCALE, _OPTION_BYTES[_OPTION_WINDOW_SCALE], self.window_scale)
            options += struct.pack(">BBBB", *scale)
        header_bytes = TCP_HEADER_BYTES + len(options)
        fields = (self.source_port, self.port, self.seq, self.ack, header_bytes // 4 << 4, self.flags, self.window)
        header = struct.pack(">HHIIBBH", *fields) + bytes(4) + options
        addresses = source[1] + destination[1]
        pseudo = addresses + struct.pack(">BBH", 0, PROTOCOL_TCP, header_bytes + len(self.payload))
        checksum = internet_checksum(pseudo + header + self.payload)
        segment = header[:16] + struct.pack(">H", checksum) + header[18:] + self.payload
        total = IPV4_HEADER_BYTES + len(segment)
        ip_fields = (0x45, 0, total, identification & 0xFFFF, _DONT_FRAGMENT, DEFAULT_TTL, PROTOCOL_TCP, 0)
        ip = struct.pack(">BBHHHBBH", *ip_fields) + addresses
        ip = ip[:10] + struct.pack(">H", internet_checksum(ip)) + ip[12:]
        return destination[0] + source[0] + struct.pack(">H", ETHERTYPE_IPV4) + ip + segment

    @classmethod
    def of(cls, frame: bytes) -> "tuple[bytes, bytes, Segment] | None":
        """Source and destination IPv4 address and the segment in an Ethernet frame.

        None if there is no whole one, if it is a fragment, or if a checksum is wrong.
        """
        packet = frame[HEADER_BYTES_ETHERNET:]
        if frame[12:14] != struct.pack(">H", ETHERTYPE_IPV4) or len(packet) < IPV4_HEADER_BYTES or packet[0] >> 4 != 4:
            return None
        ip_bytes, (total, _, fragment) = (packet[0] & 15) * 4, struct.unpack_from(">HHH", packet, 2)
        if ip_bytes < IPV4_HEADER_BYTES or total < ip_bytes + TCP_HEADER_BYTES or len(packet) < total:
            return None
        if internet_checksum(packet[:ip_bytes]) or fragment & _FRAGMENT_MASK or packet[9] != PROTOCOL_TCP:
            return None
        source, destination, segment = packet[12:16], packet[16:20], packet[ip_bytes:total]
        if internet_checksum(source + destination + struct.pack(">BBH", 0, PROTOCOL_TCP, len(segment)) + segment):
            return None
        source_port, port, seq, ack, offset, flags, window = struct.unpack_from(">HHIIBBH", segment)
        header_bytes = (offset >> 4) * 4
        if not TCP_HEADER_BYTES <= header_bytes <= len(segment):
            return None
        options = _options(segment[TCP_HEADER_BYTES:header_bytes]) if flags & Flag.SYN else {}
        return (
            source,
            destination,
            cls(
                source_port=source_port,
                port=port,
                seq=seq,
                ack=ack,
                flags=Flag(flags & 0x1F),
                window=window,
                payload=segment[header_bytes:],
                mss=options.get(_OPTION_MSS),
                window_scale=options.get(_OPTION_WINDOW_SCALE),
            ),
        )


def _options(data: bytes) -> dict[int, int]:
    """Options by kind; those behind a malformed one are left out."""
    found: dict[int, int] = {}
    while data and data[0] != _OPTION_END:
        if data[0] == _OPTION_NOP:
            data = data[1:]
            continue
        if len(data) < 2 or not 2 <= data[1] <= len(data):
            break
        if _OPTION_BYTES.get(data[0], data[1]) == data[1]:
            found[data[0]] = int.from_bytes(data[2 : data[1]], "big")
        data = data[data[1] :]
    return found
