"""IPv4, sending (net/ipv4/ip_output.c)."""

import struct

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.checksum import fold, partial
from sw.linux.net.dev_xmit import dev_queue_xmit
from sw.linux.net.neighbour import neigh_lookup
from sw.linux.skb import SK_BUFF, kfree_skb

__all__ = ["MAX_HEADER", "ip_queue_xmit"]

_IP_HEADER_BYTES = 20
_ETH_HLEN = 14
#: Room for the headers of IP and Ethernet.
MAX_HEADER = 64
_TTL = 64
_ETH_P_IP = 0x0800
_DONT_FRAGMENT = 0x4000


@function()
async def ip_queue_xmit(cpu: Cpu, skb: int, source: bytes, destination: bytes, protocol: int) -> bool:
    """Put IP's and Ethernet's headers before a segment and give it to the device; whether it was sent."""
    data, length = await cpu.get_all(skb, SK_BUFF.data, SK_BUFF.len)
    total = length + _IP_HEADER_BYTES
    fields = (0x45, 0, total, 0, _DONT_FRAGMENT, _TTL, protocol, 0)
    header = struct.pack(">BBHHHBBH", *fields) + source + destination
    cpu.execute("ip_fast_csum")
    header = header[:10] + (fold(partial(header)) ^ 0xFFFF).to_bytes(2, "big") + header[12:]
    mac = await neigh_lookup(cpu, destination)
    if mac is None:
        await kfree_skb(cpu, skb)
        return False
    data -= _IP_HEADER_BYTES + _ETH_HLEN
    ethernet = mac + cpu.kernel.mac + _ETH_P_IP.to_bytes(2, "big")
    cpu.store(data, ethernet + header, _ETH_HLEN + _IP_HEADER_BYTES)
    cpu.put(skb, SK_BUFF.data, data)
    cpu.put(skb, SK_BUFF.len, total + _ETH_HLEN)
    return await dev_queue_xmit(cpu, skb)
