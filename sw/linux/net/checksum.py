"""The Internet checksum (RFC 1071), by itself and over a UDP datagram."""

from sw.core import LINE
from sw.linux.cpu import Cpu

__all__ = ["IPPROTO_UDP", "fold", "partial", "pseudo_header", "udp_lib_checksum_complete"]

IPPROTO_UDP = 17


def partial(data: bytes) -> int:
    """A number congruent, modulo 0xFFFF, to the sum of the big-endian 16-bit words of ``data``."""
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0", "big")


def fold(total: int) -> int:
    """The sum as 16 bits: 0xFFFF for correct data that includes its checksum."""
    return total % 0xFFFF or (0xFFFF if total else 0)


def pseudo_header(addresses: bytes, length: int) -> bytes:
    """What UDP's checksum covers before the header (RFC 768): both addresses, protocol, length."""
    return addresses + IPPROTO_UDP.to_bytes(2, "big") + length.to_bytes(2, "big")


async def udp_lib_checksum_complete(cpu: Cpu, data: int, addresses: bytes, length: int, after: int = -1) -> bool:
    """Whether the checksum over pseudo header and the ``length`` bytes at ``data``, known since ``after``, is right."""
    cpu.execute("csum_partial_64", (length + LINE - 1) // LINE)
    datagram = await cpu.load_bytes(data, length, after=after)
    return fold(partial(pseudo_header(addresses, length) + datagram)) == 0xFFFF
