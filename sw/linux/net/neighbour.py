"""Neighbours: link-layer addresses by IPv4 address (net/core/neighbour.c). All are permanent entries."""

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.structs import Struct

__all__ = ["NEIGH_TABLE_BYTES", "init_neigh_table", "neigh_lookup"]

_NEIGH = Struct(16, primary_key=4, ha=6)
_ENTRIES = LINE // _NEIGH.size
NEIGH_TABLE_BYTES = LINE


def init_neigh_table(cpu: Cpu, neighbours: dict[bytes, bytes]) -> None:
    """Write permanent entries, at most four (``ip neigh add``)."""
    for number, (ip, mac) in enumerate(neighbours.items()):
        cpu.store(cpu.kernel.neigh_table + number * _NEIGH.size, ip + mac, len(ip + mac))


@function()
async def neigh_lookup(cpu: Cpu, destination: bytes) -> bytes | None:
    """The address of the station that has ``destination``."""
    table = await cpu.load(cpu.kernel.neigh_table, NEIGH_TABLE_BYTES)
    for start in range(0, NEIGH_TABLE_BYTES, _NEIGH.size):
        if table[start : start + 4] == destination:
            return table[start + 4 : start + 10]
    return None
