"""How long the bytes of frames take on the wire, in either direction."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_BYTES
from hw.config import INTER_FRAME_GAP_BYTES, PREAMBLE_BYTES, MachineConfig
from hw.lib.time import NOW_WIDTH

__all__ = ["FRACTION_BITS", "WireClock"]

#: Wire time is kept in cycles with this many fraction bits, and a byte's time is rounded down: a deadline is exact as
#: long as traffic without a pause has less than 2**32 / d bytes, d being the denominator of a byte's time in
#: cycles (5 at 10G and 500 MHz); beyond, a cycle early for every so many bytes.
FRACTION_BITS = 32


class WireClock(wiring.Component):
    """Counts preamble, bytes and inter-frame gap, one beat at each edge at which ``take`` is high.

    ``start``, with the first beat of a frame: the cycle before which its preamble does not start; it starts later if
    the wire is not free. From the next edge on, until the next beat is taken, ``octets`` are the bytes in the
    beat, ``deadline`` the number of the edge by which the last of them has passed in full (its time rounded up), and
    ``began`` the cycle in which the frame's preamble started (rounded down).
    """

    take: In(1)
    first: In(1)
    last: In(1)
    length: In(16)  #: bytes of the whole frame, FCS included
    start: In(NOW_WIDTH)
    deadline: Out(NOW_WIDTH)
    octets: Out(range(LINE_BYTES + 1))
    began: Out(NOW_WIDTH)

    def __init__(self, config: MachineConfig):
        super().__init__()
        self.cycles_per_byte = int(config.cycles_per_byte(config.nic.line_gbps) * 2**FRACTION_BITS)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        # The end of the last byte so far, or of the gap behind the last frame
        cycle, fraction = Signal(NOW_WIDTH), Signal(FRACTION_BITS)
        left = Signal(16)  # bytes of the frame not yet counted
        with m.If(self.take):
            from_cycle, from_fraction = Signal.like(cycle), Signal.like(fraction)
            rest, octets = Signal(16), Signal.like(self.octets)
            end, line = Signal(63), Signal(63)  # fixed point, from from_cycle on
            late = self.first & (self.start > cycle)
            before = Mux(self.first, PREAMBLE_BYTES, 0)
            m.d.comb += [
                from_cycle.eq(Mux(late, self.start, cycle)),
                from_fraction.eq(Mux(late, 0, fraction)),
                rest.eq(Mux(self.first, self.length, left)),
                octets.eq(Mux(rest > LINE_BYTES, LINE_BYTES, rest)),
                end.eq(from_fraction + (octets + before) * self.cycles_per_byte),
                line.eq(end + Mux(self.last, INTER_FRAME_GAP_BYTES * self.cycles_per_byte, 0)),
            ]
            m.d.nic += [
                cycle.eq(from_cycle + (line >> FRACTION_BITS)),
                fraction.eq(line[:FRACTION_BITS]),
                left.eq(rest - octets),
                self.octets.eq(octets),
                self.deadline.eq(from_cycle + ((end + (2**FRACTION_BITS - 1)) >> FRACTION_BITS)),
            ]
            with m.If(self.first):
                m.d.nic += self.began.eq(from_cycle)
        return m
