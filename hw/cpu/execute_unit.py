"""EXECUTE: computing, for as many cycles as text and reorder window let it."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.fetch import TextPort
from hw.bus.tilelink import LINE_ADDRESS_WIDTH
from hw.lib.time import NOW_WIDTH, Timer

from .reorder_window import POSITION_WIDTH

__all__ = ["ExecuteUnit"]


class ExecuteUnit(wiring.Component):
    """Runs one EXECUTE at a time.

    Started at edge t, it is ``busy`` until t + ``cycles``, plus the edges at which it stands still:

    * while the fetch unit waits for a line of its text (``text.stall``);
    * while the reorder window has no room for its next micro-operations. They enter evenly over its cycles: with f
      places free it stands still after floor(f * ``cycles`` / ``uops``) cycles, and goes on at the edge at which
      ``oldest`` has moved far enough.

    It is ``busy`` until all its text is there, too: more lines than cycles cost a cycle each.

    A division is made when an EXECUTE with more micro-operations than places starts behind a load in flight, and
    when the oldest load changes while such an EXECUTE is here; never otherwise.

    Arguments:
        window: micro-operations in the reorder window.
        domain: clock domain.

    Attributes:
        start: ``In(1)``, an EXECUTE issues at this edge; only when not ``busy``.
        cycles, uops: ``In``, its size.
        line, lines: ``In``, its text: so many lines from ``line`` on; 0: none.
        position: ``In(18)``, at ``start``: its place in the reorder window.
        occupied: ``In(1)``, a load is in flight.
        oldest: ``In(18)``, its position.
        cancel: ``In(1)``, an interrupt cuts it short at this edge, if one is here.
        busy: ``Out(1)``, nothing else may issue.
        waits_for_window: ``Out(1)``, it stands still because the window is full.
        remaining: ``Out(32)``, while ``cancel``: cycles it would still compute, this edge included.
        began: ``Out(18)``, the position it started at.
        text: ``Out(TextPort())``.
        now: ``In(48)``.
        quiet: ``Out(1)``, the next edge changes nothing.
        timer: when its cycles have passed or the window is full.
    """

    def __init__(self, window: int, domain: str):
        self.window, self.domain = window, domain
        super().__init__(
            {
                "start": In(1),
                "cycles": In(32),
                "uops": In(16),
                "line": In(LINE_ADDRESS_WIDTH),
                "lines": In(16),
                "position": In(POSITION_WIDTH),
                "occupied": In(1),
                "oldest": In(POSITION_WIDTH),
                "cancel": In(1),
                "busy": Out(1),
                "waits_for_window": Out(1),
                "remaining": Out(32),
                "began": Out(POSITION_WIDTH),
                "text": Out(TextPort()),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )
        self.timer = Timer(domain)
        # Of its cycles, those for which the window has no room yet; never more than remain
        self._held_back = Signal(32)
        # Standing still with so many cycles left; else computing if the timer is armed
        self._still = Signal()
        self._left = Signal(32)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync, timer = m.d[self.domain], self.timer
        moved, held_back = self._room_in_window(m)
        reached = Signal()
        unfinished = Signal(32)
        m.d.comb += reached.eq(timer.armed & (self.now >= timer.deadline))
        with m.If(timer.armed):
            m.d.comb += unfinished.eq(Mux(reached, 0, timer.deadline - self.now) + self._held_back)

        def compute(cycles):
            """Stand still with these cycles left, or compute as many of them as the window has room for."""
            with m.If(cycles > held_back):
                m.d[self.domain] += [
                    timer.armed.eq(1),
                    timer.deadline.eq(self.now + cycles - held_back),
                    self._still.eq(0),
                ]
            with m.Else():
                m.d[self.domain] += [self._still.eq(1), self._left.eq(cycles)]

        with m.If(self.cancel):
            sync += [timer.armed.eq(0), self._still.eq(0), self._held_back.eq(0)]
        with m.Elif(self.start):
            compute(self.cycles)
        with m.Elif(self._still):
            with m.If(~self.text.stall):
                compute(self._left)
        with m.Elif(timer.armed):
            with m.If(self.text.stall & ~reached):
                sync += [timer.armed.eq(0), self._still.eq(1), self._left.eq(unfinished)]
            with m.Elif(moved):
                sync += timer.deadline.eq(timer.deadline + self._held_back - held_back)
            with m.Elif(reached):
                sync += timer.armed.eq(0)
                with m.If(self._held_back.any()):
                    sync += [self._still.eq(1), self._left.eq(self._held_back)]

        m.d.comb += [
            self.text.start.eq(self.start & self.lines.any()),
            self.text.line.eq(self.line),
            self.text.lines.eq(self.lines),
            self.text.cancel.eq(self.cancel & self.text.busy),
            self.busy.eq(self._still | (timer.armed & (~reached | self._held_back.any())) | self.text.busy),
            self.waits_for_window.eq(self._still & (self._left <= self._held_back)),
        ]
        with m.If(self.cancel):
            m.d.comb += self.remaining.eq(Mux(self._still, self._left, unfinished))

        changes = Signal()
        with m.If(self._still):
            m.d.comb += changes.eq(~self.text.stall & (self._left > self._held_back))
        with m.Elif(timer.armed):
            m.d.comb += changes.eq(reached | self.text.stall)
        m.d.comb += self.quiet.eq(~(self.start | self.cancel | moved | changes))
        return m

    def _room_in_window(self, m):
        """Whether the oldest load has changed, which matters; and the cycles for which there is no room now."""
        sync = m.d[self.domain]
        cycles, uops = Signal(32), Signal(16)
        oldest = Signal(POSITION_WIDTH)
        with m.If(self.start):
            sync += [cycles.eq(self.cycles), uops.eq(self.uops), self.began.eq(self.position)]
        moved, changed = Signal(), Signal()
        with m.If(self._held_back.any()):
            m.d.comb += moved.eq(~self.occupied | (self.oldest != oldest))
        m.d.comb += changed.eq(self.start | moved)

        # Intermediate values matter only where they are wanted: a constant there would make a compiled model compute
        # the division always and mask the result.
        free, own_uops = Signal(range(self.window + 1)), Signal(16)
        short = Signal()
        with m.If(changed & self.occupied):
            m.d.comb += [
                free.eq(self.window - (Mux(self.start, self.position, self.began) - self.oldest)[:POSITION_WIDTH]),
                own_uops.eq(Mux(self.start, self.uops, uops)),
                short.eq(free < own_uops),
            ]
        held_back = Signal(32)
        with m.If(short):
            own_cycles = Mux(self.start, self.cycles, cycles)
            m.d.comb += held_back.eq(own_cycles - free * own_cycles // own_uops)
        with m.Elif(changed):
            m.d.comb += held_back.eq(0)
        with m.Else():
            m.d.comb += held_back.eq(self._held_back)
        with m.If(changed):
            sync += [self._held_back.eq(held_back), oldest.eq(self.oldest)]
        return moved, held_back
