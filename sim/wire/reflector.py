"""A peer that answers for its addresses and sends datagrams back."""

import ipaddress
import struct
from collections import Counter
from fractions import Fraction

from .arp import ETHERTYPE_ARP, arp_reply
from .frames import CLIENT_IP, CLIENT_MAC, HEADER_BYTES_ETHERNET
from .peer import Wire

__all__ = ["Reflector"]

ETHERTYPE_IPV4 = 0x0800
PROTOCOL_UDP = 17
BROADCAST = b"\xff" * 6
#: Least bytes of an IPv4 header (RFC 791), bytes of a UDP header (RFC 768).
IPV4_HEADER_BYTES, UDP_HEADER_BYTES = 20, 8
#: Of the flags and offset of an IPv4 header: more fragments, and the offset (RFC 791).
FRAGMENT_MASK = 0x3FFF


class Reflector:
    """Answers ARP requests for its address, and sends each UDP datagram back to where it came from (as RFC 862 says,
    but on every port).

    Arguments:
        mac, ip: its addresses.
        turnaround_ns: from the arrival of a frame to the beginning of its answer.

    Attributes:
        counts: frames by what they were: ``arp``, ``udp``, ``other``.
    """  # fmt: skip

    def __init__(
        self,
        mac: bytes = CLIENT_MAC,
        ip: ipaddress.IPv4Address = CLIENT_IP,
        turnaround_ns: Fraction | float = 0,
    ):
        self.mac, self.ip, self.turnaround_ns = mac, ip, turnaround_ns
        self.counts: Counter[str] = Counter()
        self._wire: Wire | None = None

    def connect(self, wire: Wire) -> None:
        """Take the wire to answer on."""
        self._wire = wire

    def frame(self, tick: int, data: bytes) -> None:
        """Take a frame, and answer it if there is something to say."""
        kind, answer = self._answer(data)
        self.counts[kind] += 1
        if answer is not None:
            assert self._wire is not None, "a frame has come over no wire"
            self._wire.send(answer, self.turnaround_ns)

    def _answer(self, data: bytes) -> tuple[str, bytes | None]:
        (ethertype,) = struct.unpack_from(">H", data, 12)
        if data[:6] in (self.mac, BROADCAST):
            if ethertype == ETHERTYPE_ARP and (reply := arp_reply(data, self.mac, self.ip.packed)) is not None:
                return "arp", reply
            if ethertype == ETHERTYPE_IPV4 and (echo := self._udp_echo(data)) is not None:
                return "udp", echo
        return "other", None

    def _udp_echo(self, data: bytes) -> bytes | None:
        """A datagram with both ends exchanged. Its checksums are sums, to which the order of the ends is all one."""
        header = 4 * (data[14] & 15)
        ports = HEADER_BYTES_ETHERNET + header
        (fragment,) = struct.unpack_from(">H", data, 20)
        if data[14] >> 4 != 4 or header < IPV4_HEADER_BYTES or len(data) < ports + UDP_HEADER_BYTES:
            return None
        if fragment & FRAGMENT_MASK or data[23] != PROTOCOL_UDP or data[30:34] != self.ip.packed:
            return None
        ethernet = data[6:12] + self.mac + data[12:14]
        ip = data[14:26] + data[30:34] + data[26:30] + data[34:ports]
        return ethernet + ip + data[ports + 2 : ports + 4] + data[ports : ports + 2] + data[ports + 4 :]
