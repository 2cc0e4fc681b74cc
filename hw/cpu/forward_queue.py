"""Loads answered from the store buffer, on their way to completion."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import OP_ID_WIDTH, Completion
from hw.bus.tilelink import LINE_BITS, LINE_BYTES
from hw.lib.ram import RAM

__all__ = ["ForwardQueue"]


class ForwardQueue(wiring.Component):
    """Delays forwarded loads so that they complete exactly as late as loads that hit the L1 cache.

    A load pushed at edge t is offered from edge t + ``latency`` on, in the order of ``push``, until it is taken.

    Arguments:
        depth: loads held at most.
        latency: cycles, at least 4.
        domain: clock domain.

    Raises:
        ValueError: when ``depth`` is not positive or ``latency`` below 4.

    Attributes:
        push: ``In(1)``, take load ``id``, ``size`` bytes from byte ``offset`` on.
        id, offset, size: ``In``.
        line: ``In(512)``, one cycle after ``push``: the line to take them from.
        valid: ``Out(1)``, a load is due.
        completion: ``Out(Completion)``, its result.
        ready: ``In(1)``, the load that is due completes at this edge.
        quiet: ``Out(1)``, the next edge changes nothing: no load is here.
    """

    def __init__(self, depth: int, latency: int, domain: str):
        if depth < 1:
            raise ValueError(f"a forward queue holds at least 1 load, not {depth}")
        if latency < 4:
            raise ValueError(f"the latency of a forwarded load must be at least 4 cycles, not {latency}")
        self.depth, self.latency, self.domain = depth, latency, domain
        super().__init__(
            {
                "push": In(1),
                "id": In(OP_ID_WIDTH),
                "offset": In(6),
                "size": In(7),
                "line": In(LINE_BITS),
                "valid": Out(1),
                "completion": Out(Completion),
                "ready": In(1),
                "quiet": Out(1),
            }
        )
        self.rows = RAM(width=Completion.as_shape().size, depth=depth, domain=domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.rows = self.rows
        sync = m.d[self.domain]

        # One cycle after the push: align the bytes and keep them
        arrived = Signal()
        arrived_id, offset, size = Signal(OP_ID_WIDTH), Signal(6), Signal(7)
        sync += arrived.eq(self.push)
        with m.If(self.push):
            sync += [arrived_id.eq(self.id), offset.eq(self.offset), size.eq(self.size)]
        row = Signal(Completion)
        tail, head = Signal(range(self.depth)), Signal(range(self.depth))
        unread = Signal(range(self.depth + 1))
        with m.If(arrived):
            kept = Const((1 << LINE_BITS) - 1) >> ((LINE_BYTES - size)[:7] << 3)
            m.d.comb += [row.id.eq(arrived_id), row.data.eq((self.line >> (offset << 3)) & kept)]
            sync += tail.eq(self._after(tail))
        m.d.comb += [
            self.rows.write_enable.eq(arrived),
            self.rows.write_address.eq(tail),
            self.rows.write_data.eq(row),
        ]

        # Read the oldest ahead of time
        taken = Signal()
        loaded = Signal()
        reading = Signal()
        m.d.comb += [
            taken.eq(self.valid & self.ready),
            reading.eq((unread != 0) & (~loaded | taken)),
            self.rows.read_enable.eq(reading),
            self.rows.read_address.eq(head),
            self.completion.eq(data.View(Completion, self.rows.read_data)),
        ]
        with m.If(reading):
            sync += [loaded.eq(1), head.eq(self._after(head))]
        with m.Elif(taken):
            sync += loaded.eq(0)
        with m.If(arrived != reading):
            sync += unread.eq(Mux(arrived, unread + 1, unread - 1))

        # Due: one bit per cycle of the latency, then a count of those that had to wait
        delay = Signal(self.latency - 1)
        due = Signal(range(self.depth + 1))
        with m.If(self.push | delay.any()):
            sync += delay.eq(Cat(self.push, delay))
        with m.If(delay[-1] != taken):
            sync += due.eq(Mux(taken, due - 1, due + 1))
        m.d.comb += [
            self.valid.eq(due != 0),
            self.quiet.eq(~(self.push | arrived | reading | delay.any() | self.valid)),
        ]
        return m

    def _after(self, pointer):
        return Mux(pointer == self.depth - 1, 0, pointer + 1)
