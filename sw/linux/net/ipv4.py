"""IPv4 (net/ipv4/ip_input.c; RFC 791)."""

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.net.checksum import fold, partial
from sw.linux.net.tcp_ipv4 import tcp_v4_rcv
from sw.linux.net.tcp_sock import IPPROTO_TCP
from sw.linux.net.udp import IPPROTO_UDP, udp_rcv
from sw.linux.netfilter import nf_hook_pre_routing
from sw.linux.skb import SK_BUFF, PacketType, kfree_skb, kfree_skb_reason

__all__ = ["ETH_P_IP", "LOCAL_TABLE_BYTES", "init_local_table", "ip_rcv"]

ETH_P_IP = 0x0800
_HEADER_BYTES = 20
_MORE_FRAGMENTS_OR_OFFSET = 0x3FFF

#: The host's own addresses: one line of 4-byte entries in network order, 0 for none.
LOCAL_TABLE_BYTES = LINE
MAX_LOCAL_ADDRESSES = LOCAL_TABLE_BYTES // 4


def init_local_table(cpu: Cpu, addresses: list[bytes]) -> None:
    """Write the host's addresses (at most 16)."""
    if len(addresses) > MAX_LOCAL_ADDRESSES:
        raise ValueError(f"a host has at most {MAX_LOCAL_ADDRESSES} addresses here, not {len(addresses)}")
    cpu.store(cpu.kernel.local_table, b"".join(addresses).ljust(LOCAL_TABLE_BYTES, b"\0"), LOCAL_TABLE_BYTES)


@function()
async def ip_rcv(cpu: Cpu, skb: int) -> None:
    """Check the header, find out whether the packet is for this host, deliver it."""
    length, kind = await cpu.get_all(skb, SK_BUFF.len, SK_BUFF.pkt_type)
    data, loaded = await cpu.chase(*SK_BUFF.data.at(skb))
    if kind == PacketType.OTHERHOST:
        await kfree_skb_reason(cpu, skb, "OTHERHOST")
        return
    if length < _HEADER_BYTES:
        await kfree_skb_reason(cpu, skb, "PKT_TOO_SMALL")
        return
    header = await cpu.load(data, _HEADER_BYTES, after=loaded)
    header_length = (header[0] & 0xF) * 4
    if header[0] >> 4 != 4 or header_length < _HEADER_BYTES:
        await kfree_skb_reason(cpu, skb, "IP_INHDR")
        return
    if length < header_length:
        await kfree_skb_reason(cpu, skb, "PKT_TOO_SMALL")
        return
    cpu.execute("ip_fast_csum")
    options = await cpu.load_bytes(data + _HEADER_BYTES, header_length - _HEADER_BYTES, after=loaded)
    if fold(partial(header + options)) != 0xFFFF:
        await kfree_skb_reason(cpu, skb, "IP_CSUM")
        return
    total_length = int.from_bytes(header[2:4], "big")
    if length < total_length:
        await kfree_skb_reason(cpu, skb, "PKT_TOO_SMALL")
        return
    if total_length < header_length:
        await kfree_skb_reason(cpu, skb, "IP_INHDR")
        return
    if not await nf_hook_pre_routing(cpu, header, total_length):
        await drop_by_rule(cpu, skb, total_length)
        return
    await ip_rcv_finish(cpu, skb, data, header, header_length, total_length)


async def drop_by_rule(cpu: Cpu, skb: int, length: int) -> None:
    """Free what a rule drops: it has come where the rule wanted it (``NETFILTER_DROP``)."""
    cpu.note("delivered", packet=cpu.kernel.packet_of.pop(skb), length=length)
    await kfree_skb(cpu, skb)


@function()
async def ip_rcv_finish(cpu: Cpu, skb: int, data: int, header: bytes, header_length: int, total_length: int) -> None:
    """Cut Ethernet's padding, look the destination up, go to the transport protocol."""
    if not await ip_route_input(cpu, header[16:20]):
        await kfree_skb_reason(cpu, skb, "IP_INADDRERRORS")
        return
    cpu.put(skb, SK_BUFF.data, data + header_length)
    cpu.put(skb, SK_BUFF.len, total_length - header_length)
    await ip_local_deliver(cpu, skb, data + header_length, header, total_length - header_length)


@function()
async def ip_route_input(cpu: Cpu, destination: bytes) -> bool:
    """Whether ``destination`` is one of the host's own addresses; nothing is forwarded."""
    table = await cpu.load(cpu.kernel.local_table, LOCAL_TABLE_BYTES)
    return destination != bytes(4) and any(
        table[start : start + 4] == destination for start in range(0, LOCAL_TABLE_BYTES, 4)
    )


@function()
async def ip_local_deliver(cpu: Cpu, skb: int, data: int, header: bytes, length: int) -> None:
    """Go to the protocol that the header names.

    Fragments are not put together: the kernel would keep them and drop them with this reason when the rest of the
    datagram does not come in time.
    """
    if int.from_bytes(header[6:8], "big") & _MORE_FRAGMENTS_OR_OFFSET:
        await kfree_skb_reason(cpu, skb, "FRAG_REASM_TIMEOUT")
    elif header[9] == IPPROTO_UDP:
        await udp_rcv(cpu, skb, data, header, length)
    elif header[9] == IPPROTO_TCP and cpu.kernel.tcp_cache is not None:
        await tcp_v4_rcv(cpu, skb, data, header, length)
    else:
        await kfree_skb_reason(cpu, skb, "IP_NOPROTO")
