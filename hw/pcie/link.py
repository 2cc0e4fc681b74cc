"""The PCI Express link between the card and the root complex."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.tlp import TlpPort
from hw.config import MachineConfig
from hw.lib.time import NOW_WIDTH

from .direction import LinkDirection

__all__ = ["Link"]


class Link(wiring.Component):
    """Both directions of the link, independent of each other, in domain ``nic``.

    Each end hands over the packets it sends and takes those it receives; for rate, latency, credits and order
    see :class:`~hw.pcie.direction.LinkDirection`.

    Ports:
        card: the card's end.
        root: the root complex's end.
        now: the domain's time.
        quiet: nothing but time would change.
    """

    def __init__(self, config: MachineConfig):
        #: From the card to the root complex.
        self.upstream = LinkDirection(config)
        #: From the root complex to the card.
        self.downstream = LinkDirection(config)
        super().__init__({"card": In(TlpPort()), "root": In(TlpPort()), "now": In(NOW_WIDTH), "quiet": Out(1)})

    def elaborate(self, platform):
        """Join each end's output to the other end's input."""
        m = Module()
        m.submodules.upstream = self.upstream
        m.submodules.downstream = self.downstream
        for direction, source, sink in (
            (self.upstream, self.card, self.root),
            (self.downstream, self.root, self.card),
        ):
            connect(m, flipped(source.send), direction.input)
            connect(m, direction.output, flipped(sink.receive))
            m.d.comb += direction.now.eq(self.now)
        m.d.comb += self.quiet.eq(self.upstream.quiet & self.downstream.quiet)
        return m
