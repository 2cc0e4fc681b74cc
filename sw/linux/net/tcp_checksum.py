"""The checksum of a received segment (RFC 9293 section 3.1)."""

from sw.core import LINE
from sw.linux.cpu import Cpu
from sw.linux.net.checksum import fold, partial
from sw.linux.net.tcp_sock import IPPROTO_TCP, TcpSegment
from sw.linux.skb import SK_BUFF, IpSummed

__all__ = ["tcp_checksum_complete"]

_IP_ADDRESSES_OFFSET = 12
_IP_ADDRESSES_BYTES = 8


async def tcp_checksum_complete(cpu: Cpu, segment: TcpSegment) -> bool:
    """Whether the checksum is right; computed once, unless the card has."""
    summed, network_header = await cpu.get_all(segment.skb, SK_BUFF.ip_summed, SK_BUFF.network_header)
    if summed == IpSummed.UNNECESSARY:
        return True
    head, loaded = await cpu.chase(*SK_BUFF.head.at(segment.skb))
    addresses = await cpu.load_bytes(head + network_header + _IP_ADDRESSES_OFFSET, _IP_ADDRESSES_BYTES, after=loaded)
    cpu.execute("csum_partial_64", (segment.length + LINE - 1) // LINE)
    data = await cpu.load_bytes(segment.data, segment.length, after=segment.loaded)
    pseudo = addresses + IPPROTO_TCP.to_bytes(2, "big") + segment.length.to_bytes(2, "big")
    if fold(partial(pseudo + data)) != 0xFFFF:
        return False
    cpu.put(segment.skb, SK_BUFF.ip_summed, IpSummed.UNNECESSARY)
    return True
