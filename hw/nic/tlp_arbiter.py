"""Merges streams of TLPs into one."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tlp import TlpBeat, TlpStream

__all__ = ["TlpArbiter"]


class TlpArbiter(wiring.Component):
    """Whole packets of ``count`` inputs, the first input first; a packet once begun is not interrupted.

    A beat accepted at edge t is offered from edge t + 1 on, one beat per cycle. Packets leave in the order in which
    their first beats were accepted: whoever waits for its packet to be accepted before another is offered elsewhere
    has them in order on the link.

    Raises:
        ValueError: for fewer than one input.
    """

    def __init__(self, count: int):
        if count < 1:
            raise ValueError(f"an arbiter has at least one input, not {count}")
        self.count = count
        super().__init__({"inputs": In(TlpStream).array(count), "output": Out(TlpStream), "quiet": Out(1)})

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        valid, beat = Signal(), Signal(TlpBeat)
        owned, owner = Signal(), Signal(range(self.count))
        chosen = Signal(range(self.count))
        room, taken = Signal(), Signal()
        m.d.comb += [
            room.eq(~valid | self.output.ready),
            self.output.valid.eq(valid),
            self.output.payload.eq(beat),
            chosen.eq(owner),
        ]
        with m.If(~owned):
            for index in reversed(range(self.count)):
                with m.If(self.inputs[index].valid):
                    m.d.comb += chosen.eq(index)
        with m.If(room):
            m.d.nic += valid.eq(taken)
            with m.Switch(chosen):
                for index, source in enumerate(self.inputs):
                    with m.Case(index):
                        m.d.comb += [source.ready.eq(1), taken.eq(source.valid)]
                        with m.If(source.valid):
                            m.d.nic += [beat.eq(source.payload), owned.eq(~source.payload.last), owner.eq(index)]
        waiting = Signal()
        for source in self.inputs:
            with m.If(source.valid):
                m.d.comb += waiting.eq(1)
        m.d.comb += self.quiet.eq(~valid & ~waiting)
        return m
