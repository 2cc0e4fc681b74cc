"""ARP for IPv4 over Ethernet (RFC 826)."""

import struct

__all__ = ["ARP_ETHERNET_IPV4", "ARP_REPLY", "ARP_REQUEST", "ETHERTYPE_ARP", "arp_reply"]

ETHERTYPE_ARP = 0x0806
_ETHERTYPE_IPV4 = 0x0800
#: Hardware and protocol type and their lengths.
ARP_ETHERNET_IPV4 = struct.pack(">HHBB", 1, _ETHERTYPE_IPV4, 6, 4)
ARP_REQUEST, ARP_REPLY = 1, 2
_ARP_FRAME_BYTES = 42


def arp_reply(frame: bytes, mac: bytes, ip: bytes) -> bytes | None:
    """The reply to a frame of ARP's type that asks for ``ip``, by the station ``mac``; None if it does not."""
    if len(frame) < _ARP_FRAME_BYTES:
        return None
    fixed, operation, sender_mac, sender_ip, _, wanted = struct.unpack_from(">6sH6s4s6s4s", frame, 14)
    if fixed != ARP_ETHERNET_IPV4 or operation != ARP_REQUEST or wanted != ip:
        return None
    header = sender_mac + mac + struct.pack(">H", ETHERTYPE_ARP)
    return header + fixed + struct.pack(">H", ARP_REPLY) + mac + ip + sender_mac + sender_ip
