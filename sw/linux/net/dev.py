"""From the driver to the protocols (net/core/dev.c)."""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.ipv4 import ETH_P_IP, ip_rcv
from sw.linux.skb import SK_BUFF, PacketType, kfree_skb_reason

__all__ = ["init_packet_types", "napi_gro_receive", "netif_receive_skb"]

#: Buckets of ``ptype_base``, the handlers by EtherType: 8 bytes each.
PTYPE_HASH_SIZE = 16
PTYPE_BYTES = 8 * PTYPE_HASH_SIZE


def init_packet_types(cpu: Cpu) -> None:
    """Register the protocols there are (``dev_add_pack``)."""
    cpu.store(_bucket(cpu, ETH_P_IP), ETH_P_IP, 8)


def _bucket(cpu: Cpu, protocol: int) -> int:
    return cpu.kernel.ptype_base + 8 * (protocol % PTYPE_HASH_SIZE)


@function()
async def napi_gro_receive(cpu: Cpu, skb: int) -> None:
    """Look for a flow to merge with; UDP without a tunnel or forwarding has none."""
    await netif_receive_skb(cpu, skb)


@function()
async def netif_receive_skb(cpu: Cpu, skb: int) -> None:
    """Hand a packet to the protocol of its EtherType."""
    head, data, kind = await cpu.get_all(skb, SK_BUFF.head, SK_BUFF.data, SK_BUFF.pkt_type)
    protocol, loaded = await cpu.chase(*SK_BUFF.protocol.at(skb))
    cpu.put(skb, SK_BUFF.network_header, data - head)
    if await cpu.load(_bucket(cpu, protocol), 8, after=loaded) != protocol or not protocol:
        reason = "OTHERHOST" if kind == PacketType.OTHERHOST else "UNHANDLED_PROTO"
        await kfree_skb_reason(cpu, skb, reason)
        return
    await ip_rcv(cpu, skb)
