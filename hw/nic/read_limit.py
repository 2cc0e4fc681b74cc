"""How many DMA reads the card has in flight."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ReadLimit"]


class ReadLimit(wiring.Component):
    """Lets at most ``reads`` be in flight, of all parts together: the root complex keeps no more.

    Raises:
        ValueError: for fewer than one.
    """

    sent: In(1)  #: a read leaves the card
    answered: In(1)  #: its last completion comes
    free: Out(1)  #: another one may be sent

    def __init__(self, reads: int):
        if reads < 1:
            raise ValueError(f"the card must be able to have at least one read in flight, not {reads}")
        super().__init__()
        self.reads = reads

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        in_flight = Signal(range(self.reads + 1))
        with m.If(self.sent != self.answered):
            m.d.nic += in_flight.eq(Mux(self.sent, in_flight + 1, in_flight - 1))
        m.d.comb += self.free.eq(in_flight != self.reads)
        return m
