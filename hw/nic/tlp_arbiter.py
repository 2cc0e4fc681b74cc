"""Merges streams of TLPs into one."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tlp import TlpStream

__all__ = ["TlpArbiter"]


class TlpArbiter(wiring.Component):
    """Whole packets of ``count`` inputs, the first input first; a packet once begun is not interrupted.

    Combinational: a beat passes in the cycle in which the output is ready. Packets leave in the order in which their
    first beats pass: whoever waits for its packet to pass before another is offered elsewhere has them in order on
    the link.

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
        owned, owner = Signal(), Signal(range(self.count))
        chosen = Signal(range(self.count))
        m.d.comb += chosen.eq(owner)
        with m.If(~owned):
            for index in reversed(range(self.count)):
                with m.If(self.inputs[index].valid):
                    m.d.comb += chosen.eq(index)
        with m.Switch(chosen):
            for index, source in enumerate(self.inputs):
                with m.Case(index):
                    m.d.comb += [
                        self.output.valid.eq(source.valid),
                        self.output.payload.eq(source.payload),
                        source.ready.eq(self.output.ready),
                    ]
        # A packet that is offered keeps its turn, even while the output is not ready: an offer is not withdrawn
        with m.If(self.output.valid):
            m.d.nic += [owned.eq(~(self.output.ready & self.output.payload.last)), owner.eq(chosen)]
        m.d.comb += self.quiet.eq(~self.output.valid)
        return m
