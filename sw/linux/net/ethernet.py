"""Ethernet (net/ethernet/eth.c; IEEE 802.3)."""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.skb import SK_BUFF, PacketType

__all__ = ["ETH_HLEN", "eth_type_trans"]

ETH_HLEN = 14
#: Values below are a length, not an EtherType (``ETH_P_802_3_MIN``).
_LEAST_ETHERTYPE = 0x600
#: What such frames are handed up as (``ETH_P_802_2``).
_ETH_P_802_2 = 0x0004


@function()
async def eth_type_trans(cpu: Cpu, skb: int, data: int, length: int, after: int) -> None:
    """Read the header at ``data``, known since load ``after``, set protocol and packet type, move past it."""
    header = await cpu.load(data, ETH_HLEN, after=after)
    destination = header[:6]
    if destination == cpu.kernel.mac:
        kind = PacketType.HOST
    elif destination == b"\xff" * 6:
        kind = PacketType.BROADCAST
    elif destination[0] & 1:
        kind = PacketType.MULTICAST
    else:
        kind = PacketType.OTHERHOST
    protocol = int.from_bytes(header[12:14], "big")
    cpu.put(skb, SK_BUFF.protocol, protocol if protocol >= _LEAST_ETHERTYPE else _ETH_P_802_2)
    cpu.put(skb, SK_BUFF.pkt_type, kind)
    cpu.put(skb, SK_BUFF.data, data + ETH_HLEN)
    cpu.put(skb, SK_BUFF.len, length - ETH_HLEN)
