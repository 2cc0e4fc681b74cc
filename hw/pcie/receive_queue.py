"""Book-keeping of one class of packets (posted, non-posted, completion) on the link and in its receiver."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.lib.time import NOW_WIDTH

from .queue import Queue

__all__ = ["BEATS_WIDTH", "Arrival", "ReceiveQueue"]

#: Bits of the number of beats of a packet: 4096 bytes that do not start on a line are 65 beats.
BEATS_WIDTH = 7


class Arrival(data.Struct):
    """A whole packet that has been sent."""

    due: NOW_WIDTH  #: cycle from which on it may be read from the buffer
    beats: BEATS_WIDTH


class ReceiveQueue(wiring.Component):
    """The receiver's queue of one class, in domain ``nic``.

    A packet takes one of ``credits`` when its transmission starts and gives it back as it leaves the buffer, so
    packets still on the wire are in the queue too, with the cycle at which they arrive. Its beats lie in rows
    ``base`` to ``base + rows - 1`` of a buffer that the owner keeps. Nothing changes at an edge
    without ``start``, ``write``, ``finish``, ``read`` or ``pop``.

    Ports:
        start: a packet starts; it may only when ``credit`` is high.
        write: a beat is written to row ``write_row``.
        finish: the packet is written and will be there as ``arrival`` says.
        head_valid, head: the oldest whole packet.
        read: a beat of the head is read from row ``read_row``.
        pop: it was the last one, the packet leaves.
    """

    def __init__(self, *, credits: int, base: int, rows: int):
        if rows < credits:
            raise ValueError(f"{credits} packets do not fit in {rows} rows of a beat each")
        self.credits, self.base, self.rows = credits, base, rows
        row_width = max(1, ceil_log2(base + rows))
        self.arrivals = Queue(Arrival, credits, "nic")
        super().__init__(
            {
                "credit": Out(1),
                "start": In(1),
                "write": In(1),
                "write_row": Out(row_width, init=base),
                "finish": In(1),
                "arrival": In(Arrival),
                "head_valid": Out(1),
                "head": Out(Arrival),
                "read": In(1),
                "read_row": Out(row_width, init=base),
                "pop": In(1),
            }
        )

    def elaborate(self, platform):
        """Place the queue of arrivals, the credits and the two row pointers."""
        m = Module()
        m.submodules.arrivals = arrivals = self.arrivals
        # A credit is an entry of the queue of arrivals, so that its input is always ready.
        m.d.comb += [
            arrivals.input.valid.eq(self.finish),
            arrivals.input.payload.eq(self.arrival),
            self.head_valid.eq(arrivals.output.valid),
            self.head.eq(arrivals.output.payload),
            arrivals.output.ready.eq(self.pop),
        ]

        # Credits
        used = Signal(range(self.credits + 1))
        m.d.comb += self.credit.eq(used != self.credits)
        with m.If(self.start != self.pop):
            m.d.nic += used.eq(Mux(self.start, used + 1, used - 1))

        # Rows
        for moves, row in ((self.write, self.write_row), (self.read, self.read_row)):
            with m.If(moves):
                m.d.nic += row.eq(Mux(row == self.base + self.rows - 1, self.base, row + 1))
        return m
