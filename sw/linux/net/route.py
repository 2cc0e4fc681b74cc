"""Routing of what the host sends (net/ipv4/route.c, net/ipv4/fib_semantics.c)."""

import ipaddress
from dataclasses import dataclass

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.structs import Struct

__all__ = ["FIB_BYTES", "Route", "init_fib", "ip_route_output_flow"]

#: A route: ``fib_alias`` and ``fib_info`` in one, addresses as numbers.
_FIB_ENTRY = Struct(LINE // 4, prefix=4, mask=4, gateway=4, valid=4)
_ENTRIES = 4
#: The table: one line, longest prefixes first. The kernel has a trie; of so few routes it would be one node.
FIB_BYTES = _ENTRIES * _FIB_ENTRY.size


@dataclass(frozen=True)
class Route:
    """``ip route add PREFIX [via GATEWAY]``: without a gateway, hosts of the prefix are neighbours."""

    prefix: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address | None = None


def init_fib(cpu: Cpu, routes: tuple[Route, ...]) -> None:
    """Write the table.

    Raises:
        ValueError: for more routes than fit.
    """
    if len(routes) > _ENTRIES:
        raise ValueError(f"a host has at most {_ENTRIES} routes here, not {len(routes)}")
    table = b"".join(
        _FIB_ENTRY.pack(
            prefix=int(route.prefix.network_address),
            mask=int(route.prefix.netmask),
            gateway=int(route.gateway) if route.gateway is not None else 0,
            valid=1,
        )
        for route in sorted(routes, key=lambda route: -route.prefix.prefixlen)
    )
    cpu.store(cpu.kernel.fib, table.ljust(FIB_BYTES, b"\0"), FIB_BYTES)


@function()
async def ip_route_output_flow(cpu: Cpu, destination: bytes) -> bytes | None:
    """The neighbour to send to for ``destination``, or None if there is no route."""
    table = await cpu.load(cpu.kernel.fib, FIB_BYTES)
    wanted = int.from_bytes(destination, "big")
    for start in range(0, FIB_BYTES, _FIB_ENTRY.size):
        prefix, mask, gateway, valid = _FIB_ENTRY.unpack(table[start : start + _FIB_ENTRY.size])
        if valid and wanted & mask == prefix:
            return gateway.to_bytes(4, "big") if gateway else destination
    return None
