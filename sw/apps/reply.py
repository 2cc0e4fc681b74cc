"""Answering a UDP datagram in place, for programs that have whole frames in their hands."""

from sw.linux.cpu import Cpu

__all__ = ["exchange_addresses"]

_ETHER_BYTES, _IPV4_BYTES, _UDP_BYTES = 14, 20, 8
_ETHERTYPE_IPV4 = b"\x08\x00"
_IPPROTO_UDP = 17


async def exchange_addresses(cpu: Cpu, data: int, length: int) -> bool:
    """Exchange source and destination in the Ethernet, IPv4 and UDP headers of the frame at ``data``.

    Their checksums stay right. False, and nothing is written, if the frame is no UDP datagram without IP options.
    """
    header = await cpu.load_bytes(data, min(length, _ETHER_BYTES + _IPV4_BYTES + _UDP_BYTES))
    ip = header[_ETHER_BYTES:]
    if len(ip) < _IPV4_BYTES + _UDP_BYTES or header[12:14] != _ETHERTYPE_IPV4:
        return False
    if ip[0] != 0x45 or ip[9] != _IPPROTO_UDP:
        return False
    udp = ip[_IPV4_BYTES:]
    cpu.store(data, header[6:12] + header[:6], 12)
    cpu.store(data + _ETHER_BYTES + 12, ip[16:20] + ip[12:16], 8)
    cpu.store(data + _ETHER_BYTES + _IPV4_BYTES, udp[2:4] + udp[:2], 4)
    return True
