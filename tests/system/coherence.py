"""What loads may return: a shadow of memory that knows when each write became visible.

All times are ticks. A write becomes visible at some moment of an interval, which is one tick where the event log tells
it exactly. A read may give, for every byte by itself, any value that the byte had at some moment between its issue and
its completion; and it sees the earlier writes of whoever reads, in order.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["DEVICE", "Access", "Shadow"]

#: The agent that reads and writes without a store buffer.
DEVICE = -1


@dataclass(eq=False)
class Access:
    """A read or write by one agent (a core, or the device)."""

    agent: int  #: number of the core, or DEVICE
    number: int  #: its place in the agent's program
    address: int
    data: bytes  #: written, or returned
    first: int  #: of a write: visible at ``first`` at the earliest; of a read: the tick of its issue
    last: int  #: of a write: visible at ``last`` at the latest; of a read: the tick of its completion

    def __str__(self) -> str:
        return (
            f"access {self.number} of agent {self.agent}, {len(self.data)} bytes at {self.address:#x}, "
            f"ticks {self.first} to {self.last}"
        )


@dataclass
class _Byte:
    """All writes of one byte, by ``first``."""

    writes: list[Access] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    own: dict[int, list[Access]] = field(default_factory=lambda: defaultdict(list))  #: by agent, in program order


class Shadow:
    """Memory, zero at the start, over all of a run."""

    def __init__(self, writes: Iterable[Access]):
        self._bytes: dict[int, _Byte] = defaultdict(_Byte)
        self._longest = 0
        ordered = sorted(writes, key=lambda write: write.first)
        for write in ordered:
            self._longest = max(self._longest, write.last - write.first)
            for offset in range(len(write.data)):
                byte = self._bytes[write.address + offset]
                byte.writes.append(write)
                byte.firsts.append(write.first)
                byte.own[write.agent].append(write)
        for byte in self._bytes.values():
            for own in byte.own.values():
                own.sort(key=lambda write: write.number)

    def wrong(self, read: Access) -> str:
        """What is wrong with what a read returned; empty if nothing is."""
        for offset, value in enumerate(read.data):
            address = read.address + offset
            allowed = self._allowed(read, address)
            if value not in allowed:
                values = ", ".join(f"{v:#04x}" for v in sorted(allowed))
                return f"{read}: byte {address:#x} is {value:#04x}, but was one of {values}"
        return ""

    def _allowed(self, read: Access, address: int) -> set[int]:
        """Values the byte may have for this read."""
        byte = self._bytes.get(address)
        if byte is None:
            return {0}
        own = byte.own.get(read.agent, [])
        earlier = bisect_right(own, read.number, key=lambda write: write.number)
        latest_own = own[earlier - 1] if earlier else None
        if latest_own and latest_own.first > read.first and read.agent != DEVICE:
            # Not visible to anybody when the read was issued: it was forwarded from the store buffer
            return {latest_own.data[address - latest_own.address]}

        allowed = set()
        settled = None  # start of the interval of the last write that is over when the read is issued
        for place in range(bisect_right(byte.firsts, read.last) - 1, -1, -1):
            write = byte.writes[place]
            if settled is not None and write.first < settled - self._longest:
                break
            over = write.last <= read.first
            if settled is None and over:
                settled = write.first
            elif settled is not None and write.last <= settled:
                continue
            if not (latest_own and write is not latest_own and self._before(write, latest_own)):
                allowed.add(write.data[address - write.address])
        if settled is None and latest_own is None:
            allowed.add(0)
        return allowed

    @staticmethod
    def _before(write: Access, other: Access) -> bool:
        """Whether ``write`` surely came before ``other``."""
        return write.last <= other.first or (write.agent == other.agent and write.number < other.number)
