"""Where TCP finds the socket of a segment (net/ipv4/inet_hashtables.c).

Two tables of slots, each the address of its first socket: connections by both ends, listening sockets by their port.
"""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.tcp_sock import TCP_SOCK

__all__ = [
    "INET_EHASH_BYTES",
    "INET_LHASH_BYTES",
    "inet_children",
    "inet_ehash_insert",
    "inet_hash_listener",
    "inet_lookup",
    "inet_port_in_use",
    "inet_unhash",
]

INET_EHASH_SIZE = 256
INET_EHASH_BYTES = 8 * INET_EHASH_SIZE
INET_LHASH_SIZE = 32
INET_LHASH_BYTES = 8 * INET_LHASH_SIZE
#: Fibonacci hashing (include/linux/hash.h, ``GOLDEN_RATIO_32``); the kernel's is jhash with a secret.
_GOLDEN_RATIO = 0x61C8_8647


def _ehash_slot(cpu: Cpu, daddr: int, dport: int, num: int) -> int:
    value = (daddr ^ dport << 16 ^ num) * _GOLDEN_RATIO & 0xFFFF_FFFF
    return cpu.kernel.inet_ehash + 8 * (value * INET_EHASH_SIZE >> 32)


def _listener_slot(cpu: Cpu, num: int) -> int:
    return cpu.kernel.inet_lhash + 8 * (num % INET_LHASH_SIZE)


async def _insert(cpu: Cpu, slot: int, sk: int) -> None:
    cpu.put(sk, TCP_SOCK.ehash_next, await cpu.load(slot, 8))
    cpu.store(slot, sk, 8)
    cpu.put(sk, TCP_SOCK.hashed, 1)


async def inet_ehash_insert(cpu: Cpu, sk: int) -> None:
    """Enter a connection."""
    daddr, dport, num = await cpu.get_all(sk, TCP_SOCK.daddr, TCP_SOCK.dport, TCP_SOCK.num)
    await _insert(cpu, _ehash_slot(cpu, daddr, dport, num), sk)


async def inet_hash_listener(cpu: Cpu, sk: int) -> None:
    """Enter a listening socket."""
    await _insert(cpu, _listener_slot(cpu, await cpu.get(sk, TCP_SOCK.num)), sk)


async def inet_unhash(cpu: Cpu, sk: int, listens: bool) -> None:
    """Take a socket out of its table, if it is in one."""
    daddr, dport, num, hashed = await cpu.get_all(sk, TCP_SOCK.daddr, TCP_SOCK.dport, TCP_SOCK.num, TCP_SOCK.hashed)
    if not hashed:
        return
    place = _listener_slot(cpu, num) if listens else _ehash_slot(cpu, daddr, dport, num)
    each, loaded = await cpu.chase(place, 8)
    while each != sk:
        place = each + TCP_SOCK.ehash_next.offset
        each, loaded = await cpu.chase(place, 8, after=loaded)
    cpu.store(place, await cpu.get(sk, TCP_SOCK.ehash_next), 8)
    cpu.put(sk, TCP_SOCK.hashed, 0)


@function()
async def inet_lookup(cpu: Cpu, daddr: int, dport: int, num: int, after: int) -> tuple[int, int]:
    """The socket for a segment from ``daddr`` and ``dport`` to port ``num``, known since load ``after``, or 0.

    Also the handle of the load that led to it. A connection goes before a listening socket.
    """
    sk, loaded = await cpu.chase(_ehash_slot(cpu, daddr, dport, num), 8, after=after)
    while sk:
        found = await cpu.get_all(sk, TCP_SOCK.daddr, TCP_SOCK.dport, TCP_SOCK.num, after=loaded)
        if found == [daddr, dport, num]:
            return sk, loaded
        sk, loaded = await cpu.chase(*TCP_SOCK.ehash_next.at(sk), after=loaded)
    return await _lookup_listener(cpu, num, after)


@function()
async def _lookup_listener(cpu: Cpu, num: int, after: int) -> tuple[int, int]:
    sk, loaded = await cpu.chase(_listener_slot(cpu, num), 8, after=after)
    while sk and await cpu.get(sk, TCP_SOCK.num, after=loaded) != num:
        sk, loaded = await cpu.chase(*TCP_SOCK.ehash_next.at(sk), after=loaded)
    return sk, loaded


async def inet_children(cpu: Cpu, listener: int) -> list[int]:
    """Connections that nobody has accepted from a listening socket, half-open ones too."""
    children = []
    for slot in range(INET_EHASH_SIZE):
        sk, loaded = await cpu.chase(cpu.kernel.inet_ehash + 8 * slot, 8)
        while sk:
            parent = await cpu.get(sk, TCP_SOCK.parent, after=loaded)
            if parent == listener:
                children.append(sk)
            sk, loaded = await cpu.chase(*TCP_SOCK.ehash_next.at(sk), after=loaded)
    return children


async def inet_port_in_use(cpu: Cpu, num: int) -> bool:
    """Whether a socket listens on the port."""
    sk, _ = await _lookup_listener(cpu, num, -1)
    return bool(sk)
