"""Neighbours: the hardware addresses of hosts on the link (net/core/neighbour.c).

There is no ARP: the entries are permanent, as ``ip neigh add ... nud permanent`` makes them.
"""

from collections.abc import Mapping

from sw.core import LINE
from sw.linux.cpu import Cpu
from sw.linux.mm import MemBlock
from sw.linux.net.ethernet import ETH_HLEN
from sw.structs import Struct

__all__ = ["NeighTable", "neigh_hh_output", "neigh_lookup"]

#: ``struct neighbour``: the next of its bucket, the address, and the Ethernet header for it (``hh_cache``).
NEIGHBOUR = Struct(LINE, next=8, primary_key=4, hh_data=ETH_HLEN)

_BUCKETS = 16
#: 32-bit golden ratio (include/linux/hash.h).
_GOLDEN_RATIO_32 = 0x61C88647


class NeighTable:
    """The neighbours of one device, in a hash table.

    Arguments:
        neighbours: hardware address (6 bytes) by IPv4 address (4 bytes).
    """

    def __init__(self, memblock: MemBlock, neighbours: Mapping[bytes, bytes]):
        self.neighbours = dict(neighbours)
        self.buckets = memblock.allocate(8 * _BUCKETS)
        self._entries = memblock.allocate(NEIGHBOUR.size * len(self.neighbours))

    def bucket(self, address: bytes) -> int:
        """Where the entries with the hash of ``address`` begin."""
        key = int.from_bytes(address, "little")
        return self.buckets + 8 * ((key * _GOLDEN_RATIO_32 & 0xFFFFFFFF) * _BUCKETS >> 32)

    def init(self, cpu: Cpu, protocol: int) -> None:
        """Write the table; ``protocol`` is the EtherType of what is sent to them."""
        first: dict[int, int] = {}
        for index, (address, hardware) in enumerate(self.neighbours.items()):
            entry, bucket = self._entries + index * NEIGHBOUR.size, self.bucket(address)
            cpu.put(entry, NEIGHBOUR.next, first.get(bucket, 0))
            cpu.put(entry, NEIGHBOUR.primary_key, int.from_bytes(address, "little"))
            cpu.put(entry, NEIGHBOUR.hh_data, hardware + cpu.kernel.mac + protocol.to_bytes(2, "big"))
            first[bucket] = entry
        for bucket, entry in first.items():
            cpu.store(bucket, entry, 8)


async def neigh_lookup(cpu: Cpu, address: bytes) -> tuple[int, int]:
    """The entry of a host on the link, or 0; the handle of the load that led to it (``__ipv4_neigh_lookup_noref``)."""
    key = int.from_bytes(address, "little")
    entry, loaded = await cpu.chase(cpu.kernel.arp_table.bucket(address), 8)
    while entry and await cpu.get(entry, NEIGHBOUR.primary_key, after=loaded) != key:
        entry, loaded = await cpu.chase(*NEIGHBOUR.next.at(entry), after=loaded)
    return entry, loaded


async def neigh_hh_output(cpu: Cpu, entry: int, data: int, after: int) -> None:
    """Write the Ethernet header in front of ``data``; ``entry`` is known since load ``after``."""
    header = await cpu.load(*NEIGHBOUR.hh_data.at(entry), after=after)
    cpu.store(data - ETH_HLEN, header, ETH_HLEN)
