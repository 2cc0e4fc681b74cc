"""POLL: looking at memory again and again, without making the looks that would see nothing new."""

from amaranth.hdl import Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import OP_ID_WIDTH
from hw.bus.l1 import L1Load, L1Use
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BITS
from hw.lib.time import NOW_WIDTH, Timer

__all__ = ["PollUnit"]

#: Bytes that a POLL compares at most.
POLL_BYTES = 8


class PollUnit(wiring.Component):
    """Looks at edges t, t + ``interval``, t + 2 * ``interval``, … and finishes with what is not ``expected``.

    The first look is made by whoever starts it, at edge t. Later looks are made only when the line has left the
    cache or has been written since the one before was accepted: the others would hit and see the same. At most
    one look is in flight. None begins at t + ``cycles`` or later; from then on it finishes, with ``expected``, as
    soon as no look is in flight.

    A remainder is computed when the line is lost, never otherwise.

    Arguments:
        domain: clock domain.

    Attributes:
        start: ``In(1)``, the cache accepts ``first_look`` at this edge; only when not ``busy``.
        first_look: ``In(L1Load)``.
        expected: ``In(64)``; bytes beyond the size do not count.
        interval, cycles: ``In``, at least 1.
        look: ``Out(stream)``, later looks.
        seen: ``In(1)``, the look in flight is answered at this edge.
        seen_data: ``In(512)``, with it.
        watch: ``Out``, the line.
        lost: ``In(1)``, it leaves the cache or is written at this edge.
        finish: ``Out(1)``, with ``seen``: the POLL completes with ``seen_data``.
        timeout: ``Out(1)``, the POLL completes with ``timeout_data``, when ``timeout_ready``: ``In(1)``.
        timeout_data: ``Out(64)``.
        id: ``Out(8)``, the POLL's.
        busy: ``Out(1)``, a POLL is here.
        looking: ``Out(1)``, it may not be stopped: a look is offered or in flight, or its time is over.
        stop: ``In(1)``, an interrupt cuts it short, if one is here; only when not ``looking``.
        remaining: ``Out(32)``, while ``stop``: cycles until it gives up, this edge included.
        now: ``In(48)``.
        quiet: ``Out(1)``, the next edge changes nothing.
        next_look, give_up: the times of these.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__(
            {
                "start": In(1),
                "first_look": In(L1Load),
                "expected": In(8 * POLL_BYTES),
                "interval": In(16),
                "cycles": In(32),
                "look": Out(stream.Signature(L1Load)),
                "seen": In(1),
                "seen_data": In(LINE_BITS),
                "watch": Out(LINE_ADDRESS_WIDTH),
                "lost": In(1),
                "finish": Out(1),
                "timeout": Out(1),
                "timeout_ready": In(1),
                "timeout_data": Out(8 * POLL_BYTES),
                "id": Out(OP_ID_WIDTH),
                "busy": Out(1),
                "looking": Out(1),
                "stop": In(1),
                "remaining": Out(32),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )
        self.next_look = Timer(domain)
        self.give_up = Timer(domain)
        self._in_flight = Signal()
        # The line was lost after the look in flight had been accepted: what it sees may be old
        self._outdated = Signal()

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync, next_look, give_up = m.d[self.domain], self.next_look, self.give_up
        expected = self._operation(m)

        # What happens at this edge
        over, schedule = Signal(), Signal()
        with m.If(self.busy):
            m.d.comb += [
                over.eq(~give_up.armed | (self.now >= give_up.deadline)),
                self.look.valid.eq(next_look.armed & (self.now >= next_look.deadline)),
                self.looking.eq(self._in_flight | self.look.valid | over),
                self.timeout.eq(over & ~(self._in_flight | self.look.valid)),
            ]
        with m.If(self.seen):
            m.d.comb += [
                self.finish.eq(over | (self.seen_data[: 8 * POLL_BYTES] != expected)),
                schedule.eq(~self.finish & (self._outdated | self.lost)),
            ]
        with m.Elif(self.busy & ~self._in_flight & ~next_look.armed):
            m.d.comb += schedule.eq(self.lost & ~over)
        accepted = self.look.valid & self.look.ready
        done = self.finish | (self.timeout & self.timeout_ready) | self.stop

        # The next look: the first of its edges after this one
        first, interval = Signal(NOW_WIDTH), Signal(16)
        with m.If(self.start):
            sync += [first.eq(self.now), interval.eq(self.interval)]
        at = Signal(NOW_WIDTH)
        with m.If(schedule):
            m.d.comb += at.eq(self.now + interval - (self.now - first)[:32] % interval)
        with m.Else():
            # Anything but a constant, see ReservationStation
            m.d.comb += at.eq(next_look.deadline)
        with m.If(schedule):
            sync += [next_look.armed.eq(at < give_up.deadline), next_look.deadline.eq(at)]

        # From look to look
        with m.If(self.start):
            sync += [self.busy.eq(1), give_up.armed.eq(1), give_up.deadline.eq(self.now + self.cycles)]
        with m.If(self.start | accepted):
            sync += [self._in_flight.eq(1), self._outdated.eq(self.lost), next_look.armed.eq(0)]
        with m.Elif(self.seen):
            sync += self._in_flight.eq(0)
        with m.Elif(self._in_flight & self.lost):
            sync += self._outdated.eq(1)
        with m.If(over):
            sync += give_up.armed.eq(0)
        with m.If(done):
            sync += [self.busy.eq(0), next_look.armed.eq(0), give_up.armed.eq(0)]
        with m.If(self.stop):
            m.d.comb += self.remaining.eq(give_up.deadline - self.now)

        happens = self.start | self.seen | accepted | done | schedule | (over & give_up.armed)
        m.d.comb += self.quiet.eq(~(happens | (self._in_flight & self.lost & ~self._outdated)))
        return m

    def _operation(self, m):
        """Keep what to look at; returns what is expected there."""
        load, payload = self.first_look, self.look.payload
        expected = Signal(8 * POLL_BYTES)
        offset, size = Signal(6), Signal(7)
        with m.If(self.start):
            kept = Const((1 << 8 * POLL_BYTES) - 1) >> ((POLL_BYTES - load.size)[:4] << 3)
            m.d[self.domain] += [
                self.id.eq(load.id),
                self.watch.eq(load.line),
                offset.eq(load.offset),
                size.eq(load.size),
                expected.eq(self.expected & kept),
            ]
        m.d.comb += [
            payload.use.eq(L1Use.LOAD),
            payload.id.eq(self.id),
            payload.line.eq(self.watch),
            payload.offset.eq(offset),
            payload.size.eq(size),
            self.timeout_data.eq(expected),
        ]
        return expected
