"""One L1 load port for two: the core port and the page walker."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.l1 import L1Load

__all__ = ["LoadArbiter"]


class LoadArbiter(wiring.Component):
    """The walker goes first, since a load waits for it; but who has been offered stays.

    Arguments:
        domain: clock domain of the core.

    Attributes:
        walk: ``In(stream)``, of the page walker.
        load: ``In(stream)``, of the core port.
        output: ``Out(stream)``, to the cache.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    walk: In(stream.Signature(L1Load))
    load: In(stream.Signature(L1Load))
    output: Out(stream.Signature(L1Load))
    quiet: Out(1)

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__()

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        held, offers_load, following = Signal(), Signal(), Signal()  # held: the load has been offered
        m.d.comb += [
            offers_load.eq(held | ~self.walk.valid),
            self.output.valid.eq(Mux(offers_load, self.load.valid, self.walk.valid)),
            self.output.payload.eq(self.load.payload),
            self.load.ready.eq(offers_load & self.output.ready),
            self.walk.ready.eq(~offers_load & self.output.ready),
            following.eq(offers_load & self.load.valid & ~self.output.ready),
            self.quiet.eq(following == held),
        ]
        with m.If(~offers_load):
            m.d.comb += self.output.payload.eq(self.walk.payload)
        m.d[self.domain] += held.eq(following)
        return m
