"""When a core takes an interrupt: flag, sleep, and what entry and return cost."""

import math
from fractions import Fraction

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import MachineConfig
from hw.lib.time import NOW_WIDTH, Timer

__all__ = ["InterruptUnit", "sleep_exit_cycles"]


def sleep_exit_cycles(config: MachineConfig) -> list[int]:
    """Exit latency of each sleep state in cycles of the core's clock, rounded up."""
    return [math.ceil(Fraction(str(ns)) * config.clocks.khz("core") / 1_000_000) for ns in config.core.sleep_exit_ns]


class InterruptUnit(wiring.Component):
    """Decides at which edge an interrupt is taken.

    It is taken at any edge at which one is pending, the flag is set and nothing says ``blocked``. A core asleep first
    wakes: it is taken as many cycles after that edge as the sleep state costs. Taking it clears the flag.

    Arguments:
        exit_cycles: what waking from each sleep state costs.
        domain: clock domain.

    Attributes:
        pending: ``In(1)``, from the interrupt controller.
        blocked: ``In(1)``, none may be taken at this edge.
        set_flag, clear_flag: ``In(1)``, STI or IRET, or CLI, issues at this edge; the flag is set at the start.
        halt: ``In(1)``, a HALT issues at this edge, to sleep in ``state``: ``In(16)``, the last one if there are fewer.
        taking: ``Out(1)``, an interrupt is taken at this edge. It wakes a HALT that issues at the same edge.
        halted: ``Out(1)``, asleep or waking.
        flag: ``Out(1)``.
        now: ``In(48)``.
        quiet: ``Out(1)``, the next edge changes nothing.
        wake: when it has woken.
    """

    def __init__(self, exit_cycles: list[int], domain: str):
        self.exit_cycles, self.domain = exit_cycles, domain
        super().__init__(
            {
                "pending": In(1),
                "blocked": In(1),
                "set_flag": In(1),
                "clear_flag": In(1),
                "halt": In(1),
                "state": In(16),
                "taking": Out(1),
                "halted": Out(1),
                "flag": Out(1, init=1),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )
        self.wake = Timer(domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync, wake = m.d[self.domain], self.wake
        cost = Signal(range(max(self.exit_cycles) + 1))
        wanted, waking = Signal(), Signal()
        m.d.comb += wanted.eq(self.pending & self.flag & ~self.blocked)
        with m.If(self.halted & cost.any()):
            m.d.comb += [
                self.taking.eq(wanted & wake.armed & (self.now >= wake.deadline)),
                waking.eq(wanted & ~wake.armed),
            ]
        with m.Else():
            m.d.comb += self.taking.eq(wanted)

        with m.If(self.halt):
            sync += self.halted.eq(1)
            with m.Switch(self.state):
                for state, cycles in enumerate(self.exit_cycles[:-1]):
                    with m.Case(state):
                        sync += cost.eq(cycles)
                with m.Default():
                    sync += cost.eq(self.exit_cycles[-1])
        with m.If(waking):
            sync += [wake.armed.eq(1), wake.deadline.eq(self.now + cost)]
        with m.If(self.set_flag):
            sync += self.flag.eq(1)
        with m.If(self.clear_flag | self.taking):
            sync += self.flag.eq(0)
        with m.If(self.taking):
            sync += [self.halted.eq(0), wake.armed.eq(0)]
        m.d.comb += self.quiet.eq(~(self.taking | waking | self.set_flag | self.clear_flag | self.halt))
        return m
