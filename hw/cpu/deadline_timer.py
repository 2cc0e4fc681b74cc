"""The timer of a core: one interrupt at a time of the core's choice."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import TIMER_VECTOR, Interrupt
from hw.lib.probe import Probe
from hw.lib.time import NOW_WIDTH, Timer

__all__ = ["DeadlineTimer"]


class DeadlineTimer(wiring.Component):
    """The local APIC's timer in TSC-deadline mode (Intel SDM, volume 3, section 11.5.4.1).

    Writing a deadline arms it, writing 0 disarms it. At the first edge at which the time-stamp counter, which is the
    domain's ``now``, has reached the deadline, it sends its interrupt and is disarmed. A deadline that has passed when
    it is written at edge t interrupts at edge t + 1. One written at the edge of an interrupt is armed after it.

    Arguments:
        domain: clock domain.

    Attributes:
        write: ``In(1)``, ``value``: ``In(48)`` is written at this edge.
        message: ``Out(stream)``, to the interrupt controller, which is always ready.
        now: ``In(48)``.
        quiet: ``Out(1)``, the next edge changes nothing.
        timer: the deadline.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__(
            {
                "write": In(1),
                "value": In(NOW_WIDTH),
                "message": Out(stream.Signature(Interrupt)),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )
        self.timer = Timer(domain)
        self.expired = Probe(domain, "the core's timer interrupts", deadline=NOW_WIDTH)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync, timer = m.d[self.domain], self.timer
        expires = Signal()
        m.d.comb += [
            expires.eq(timer.armed & (self.now >= timer.deadline)),
            self.message.valid.eq(expires),
            self.message.payload.vector.eq(TIMER_VECTOR),
            self.quiet.eq(~(self.write | expires)),
        ]
        with m.If(expires):
            sync += timer.armed.eq(0)
        with m.If(self.write):
            sync += [timer.armed.eq(self.value.any()), timer.deadline.eq(self.value)]
        self.expired.emit(m, expires, deadline=timer.deadline)
        return m
