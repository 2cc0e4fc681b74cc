"""A component by itself on Amaranth's simulator."""

from collections.abc import Awaitable, Callable
from typing import Any

from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator

from hw.lib.time import NOW_WIDTH

__all__ = ["simulate"]

Bench = Callable[[Any], Awaitable[None]]


def simulate(
    component: wiring.Component, bench: Bench, *, domain: str = "nic", background: Bench | None = None
) -> None:
    """Run ``bench`` to its end, with ``background`` beside it.

    The component's one clock is ``domain``, of any frequency. If it has an input ``now``, that counts the edges.
    """
    m = Module()
    m.domains += ClockDomain(domain, reset_less=True)
    m.submodules.dut = component
    if "now" in component.signature.members:
        now = Signal(NOW_WIDTH)
        m.d[domain] += now.eq(now + 1)
        m.d.comb += component.now.eq(now)
    simulator = Simulator(m)
    simulator.add_clock(1e-9, domain=domain)
    if background is not None:
        simulator.add_testbench(background, background=True)
    simulator.add_testbench(bench)
    simulator.run()
