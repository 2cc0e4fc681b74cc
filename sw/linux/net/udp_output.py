"""Sending UDP (net/ipv4/udp.c, net/ipv4/ip_output.c; RFC 768)."""

import struct
from errno import EMSGSIZE, ENETUNREACH, ENOBUFS, errorcode

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.checksum import IPPROTO_UDP, fold, partial, pseudo_header
from sw.linux.net.ip_output import IP_HEADER_BYTES, MTU, ip_header, ip_output
from sw.linux.net.route import ip_route_output_flow
from sw.linux.net.udp import UDP_HEADER_BYTES
from sw.linux.skb import MAX_TCP_HEADER, SK_BUFF
from sw.linux.socket import SOCK, sock_alloc_send_pskb
from sw.linux.uaccess import csum_and_copy_from_user

__all__ = ["UDP_MAX_PAYLOAD", "udp_sendmsg"]

#: Most bytes of a datagram that is not fragmented.
UDP_MAX_PAYLOAD = MTU - IP_HEADER_BYTES - UDP_HEADER_BYTES


@function()
async def udp_sendmsg(
    cpu: Cpu, sock: int, buffer: int, size: int, address: bytes, port: int, packet: tuple[int, int] | None
) -> int:
    """Send ``size`` bytes of the program's as one datagram; the bytes sent, or a negative errno.

    Errors: EMSGSIZE beyond :data:`UDP_MAX_PAYLOAD`, ENETUNREACH without a route, ENOBUFS without memory, EHOSTUNREACH
    without a neighbour. A datagram that the queue of the device drops counts as sent. The card computes no checksums,
    so the copy does.
    """
    if size > UDP_MAX_PAYLOAD:
        return _refuse(cpu, EMSGSIZE, packet)
    neighbour = await ip_route_output_flow(cpu, address)
    if neighbour is None:
        return _refuse(cpu, ENETUNREACH, packet)
    skb, total = await ip_make_skb(cpu, sock, buffer, size, packet)
    if skb < 0:
        return _refuse(cpu, -skb, packet)
    error = await udp_send_skb(cpu, sock, skb, size, total, address, port, neighbour)
    return size if error in (0, -ENOBUFS) else error


def _refuse(cpu: Cpu, error: int, packet: tuple[int, int] | None) -> int:
    """An answer that is not even made is the end of what it answers."""
    if packet is not None:
        cpu.note("dropped", reason=errorcode[error], packet=packet)
    return -error


@function()
async def ip_make_skb(cpu: Cpu, sock: int, buffer: int, size: int, packet: tuple[int, int] | None) -> tuple[int, int]:
    """An skb with the program's bytes, and their partial checksum; or a negative errno."""
    return await __ip_append_data(cpu, sock, buffer, size, packet)


@function()
async def __ip_append_data(
    cpu: Cpu, sock: int, buffer: int, size: int, packet: tuple[int, int] | None
) -> tuple[int, int]:
    """Allocate and copy."""
    skb = await sock_alloc_send_pskb(cpu, sock, MAX_TCP_HEADER, size, packet)
    if skb < 0:
        return skb, 0
    data = await cpu.get(skb, SK_BUFF.data)
    return skb, await ip_generic_getfrag(cpu, data, buffer, size)


@function()
async def ip_generic_getfrag(cpu: Cpu, to: int, buffer: int, size: int) -> int:
    """Copy from the program with a checksum."""
    return await csum_and_copy_from_user(cpu, to, buffer, size)


@function()
async def udp_send_skb(
    cpu: Cpu, sock: int, skb: int, size: int, total: int, address: bytes, port: int, neighbour: bytes
) -> int:
    """Put the UDP and IP headers in front, with both checksums, and send; ``total`` is the payload's partial one."""
    source_port, identification = await cpu.get_all(sock, SOCK.port, SOCK.inet_id)
    cpu.put(sock, SOCK.inet_id, identification + 1 & 0xFFFF)
    source = cpu.kernel.addresses[0]
    length = UDP_HEADER_BYTES + size
    header = struct.pack(">4H", source_port, port, length, 0)
    checksum = 0xFFFF - fold(total + partial(header) + partial(pseudo_header(source + address, length))) or 0xFFFF
    packet_length = IP_HEADER_BYTES + length
    headers = ip_header(source, address, IPPROTO_UDP, packet_length, identification) + header[:6]
    data = await cpu.get(skb, SK_BUFF.data) - UDP_HEADER_BYTES - IP_HEADER_BYTES
    cpu.store(data, headers + checksum.to_bytes(2, "big"), IP_HEADER_BYTES + UDP_HEADER_BYTES)
    cpu.put(skb, SK_BUFF.data, data)
    cpu.put(skb, SK_BUFF.len, packet_length)
    return await ip_output(cpu, skb, data, packet_length, neighbour)
