"""Which tags the reads of the card's parts have."""

from amaranth.hdl import Value

from hw.config import NicConfig

from .descriptor_fetch import PER_LINE

__all__ = ["ReadTags"]


class ReadTags:
    """Tags of descriptor reads, a range per queue, receive queues first; behind them those of payload reads.

    Attributes:
        rows: tags of one queue's descriptor reads.
        payload: first tag of payload reads.
        count: tags in all.
    """

    def __init__(self, nic: NicConfig):
        self._queues = nic.queues
        self.rows = nic.descriptor_cache // PER_LINE
        self.payload = 2 * nic.queues * self.rows
        self.count = self.payload + nic.payload_reads

    def receive(self, queue: int) -> int:
        """First tag of a receive queue."""
        return queue * self.rows

    def transmit(self, queue: int) -> int:
        """First tag of a transmit queue."""
        return (self._queues + queue) * self.rows

    def is_from(self, first: int, tag: Value) -> Value:
        """Whether ``tag`` belongs to the queue whose first tag is ``first``."""
        return tag // self.rows == first // self.rows

    def is_receive(self, tag: Value) -> Value:
        """Whether ``tag`` is of a receive queue."""
        return tag < self._queues * self.rows

    def is_payload(self, tag: Value) -> Value:
        """Whether ``tag`` is of a payload read."""
        return tag >= self.payload
