"""Lines on their way from the L1 to their places in the L2 cache."""

from amaranth.hdl import Array, Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, SOURCE_WIDTH
from hw.lib.ram import RAM
from hw.mem.l1.state import LineState
from hw.mem.llc_bits import encode, index_width

__all__ = ["ReleaseQueue"]


class ReleaseQueue(wiring.Component):
    """First in, first out, with a place for every Release the L1 can have without an answer: always open.

    A Probe may find its line here and take permissions, and the data, from it. An entry in state NOTHING only waits
    for its answer.

    The data of entry ``read_index`` are in ``read_data`` after an edge with ``read`` high.

    Arguments:
        depth: entries, a power of two.
        domain: clock domain.
    """

    def __init__(self, depth: int, domain: str):
        if depth < 1 or depth & (depth - 1):
            raise ValueError(f"a queue of Releases has a power of two of places, not {depth}")
        self.depth, self.domain = depth, domain
        index = index_width(depth)
        super().__init__(
            {
                "full": Out(1),  #: only a broken L1 releases more
                "push": In(1),
                "new_line": In(LINE_ADDRESS_WIDTH),
                "new_state": In(LineState),
                "new_source": In(SOURCE_WIDTH),
                "new_data": In(LINE_BITS),
                "valid": Out(1),  #: there is a first entry: the four below
                "line": Out(LINE_ADDRESS_WIDTH),
                "state": Out(LineState),
                "source": Out(SOURCE_WIDTH),
                "index": Out(index),
                "pop": In(1),
                "active": In(1),  #: ``sought`` is to be looked up
                "sought": In(LINE_ADDRESS_WIDTH),
                "match": Out(1),
                "match_index": Out(index),
                "match_state": Out(LineState),  #: NOTHING without a match
                "change": In(1),  #: it gets ``change_state``
                "change_state": In(LineState),
                "read": In(1),
                "read_index": In(index),
                "read_data": Out(LINE_BITS),
            }
        )
        self.data = RAM(width=LINE_BITS, depth=depth, domain=domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.data = self.data
        valid = Signal(self.depth)
        head = Signal(index_width(self.depth))
        tail = Signal(index_width(self.depth))
        lines = Array(Signal(LINE_ADDRESS_WIDTH, name=f"line{i}") for i in range(self.depth))
        states = Array(Signal(LineState, name=f"state{i}") for i in range(self.depth))
        sources = Array(Signal(SOURCE_WIDTH, name=f"source{i}") for i in range(self.depth))

        # In and out
        pushed = Signal(self.depth)
        popped = Signal(self.depth)
        m.d.comb += [
            self.full.eq(valid.bit_select(tail, 1)),
            self.valid.eq(valid.bit_select(head, 1)),
            self.line.eq(lines[head]),
            self.state.eq(states[head]),
            self.source.eq(sources[head]),
            self.index.eq(head),
        ]
        with m.If(self.push):
            m.d.comb += pushed.eq(1 << tail)
            m.d[self.domain] += [
                lines[tail].eq(self.new_line),
                states[tail].eq(self.new_state),
                sources[tail].eq(self.new_source),
                tail.eq((tail + 1) % self.depth),
            ]
        with m.If(self.pop):
            m.d.comb += popped.eq(1 << head)
            m.d[self.domain] += head.eq((head + 1) % self.depth)
        with m.If(self.push | self.pop):
            m.d[self.domain] += valid.eq((valid & ~popped) | pushed)

        # Look-up
        with m.If(self.active):
            matches = Signal(self.depth)
            m.d.comb += [
                matches.eq(valid & Cat(line == self.sought for line in lines)),
                self.match.eq(matches.any()),
                self.match_index.eq(encode(matches)),
            ]
            with m.If(self.match):
                m.d.comb += self.match_state.eq(states[self.match_index])
        with m.If(self.change):
            m.d[self.domain] += states[self.match_index].eq(self.change_state)

        # Data
        m.d.comb += [
            self.data.write_enable.eq(self.push),
            self.data.write_address.eq(tail),
            self.data.write_data.eq(self.new_data),
            self.data.read_enable.eq(self.read),
            self.data.read_address.eq(self.read_index),
            self.read_data.eq(self.data.read_data),
        ]
        return m
