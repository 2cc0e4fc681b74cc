"""Sending IPv4 (net/ipv4/ip_output.c; RFC 791)."""

import struct
from errno import EHOSTUNREACH, EMSGSIZE

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.checksum import fold, partial
from sw.linux.net.ethernet import ETH_HLEN
from sw.linux.net.neighbour import neigh_hh_output, neigh_lookup
from sw.linux.net.xmit import __dev_queue_xmit
from sw.linux.skb import kfree_skb_reason, skb_push
from sw.linux.softirq import local_bh_disable, local_bh_enable

__all__ = ["IP_HEADER_BYTES", "MTU", "ip_header", "ip_output", "ip_queue_xmit"]

IP_HEADER_BYTES = 20
#: Bytes of the largest IP packet on Ethernet.
MTU = 1500

_DONT_FRAGMENT = 0x4000
#: ``IPDEFTTL``.
_TTL = 64


def ip_header(source: bytes, destination: bytes, protocol: int, length: int, identification: int = 0) -> bytes:
    """The header of a packet of ``length`` bytes, header included, that must not be fragmented."""
    fields = (0x45, 0, length, identification, _DONT_FRAGMENT, _TTL, protocol, 0)
    header = struct.pack(">BBHHHBBH4s4s", *fields, source, destination)
    checksum = 0xFFFF - fold(partial(header))
    return header[:10] + checksum.to_bytes(2, "big") + header[12:]


@function()
async def ip_queue_xmit(
    cpu: Cpu, skb: int, source: bytes, destination: bytes, protocol: int, length: int, neighbour: bytes
) -> int:
    """Send the ``length`` bytes of a segment: put the IP header in front. 0 or a negative errno.

    The skb is gone either way. A connected socket has looked its route up before, as the kernel caches it: it knows the
    ``neighbour`` to send to.
    """
    data = await skb_push(cpu, skb, IP_HEADER_BYTES)
    cpu.store(data, ip_header(source, destination, protocol, IP_HEADER_BYTES + length), IP_HEADER_BYTES)
    return await ip_output(cpu, skb, data, IP_HEADER_BYTES + length, neighbour)


@function()
async def ip_output(cpu: Cpu, skb: int, data: int, length: int, neighbour: bytes) -> int:
    """Send a packet of ``length`` bytes with its IP header at ``data`` to a neighbour (``ip_finish_output``).

    0 or a negative errno: EMSGSIZE beyond the MTU, for nothing is fragmented. The skb is gone either way.
    """
    if length > MTU:
        await _drop(cpu, skb, "PKT_TOO_BIG")
        return -EMSGSIZE
    return await ip_finish_output2(cpu, skb, data, neighbour)


@function()
async def ip_finish_output2(cpu: Cpu, skb: int, data: int, neighbour: bytes) -> int:
    """Put the Ethernet header in front and send; EHOSTUNREACH if the neighbour is not known."""
    entry, loaded = await neigh_lookup(cpu, neighbour)
    if not entry:
        await _drop(cpu, skb, "NEIGH_FAILED")
        return -EHOSTUNREACH
    await skb_push(cpu, skb, ETH_HLEN)
    await neigh_hh_output(cpu, entry, data, loaded)
    return await __dev_queue_xmit(cpu, skb)


async def _drop(cpu: Cpu, skb: int, reason: str) -> None:
    local_bh_disable(cpu)
    await kfree_skb_reason(cpu, skb, reason)
    await local_bh_enable(cpu)
