"""The amaranth engine: Amaranth's own simulator, its clocks raised by hand on the integer schedule."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Signal
from amaranth.sim import Simulator

from sim.build.design import Design
from sim.build.toplevel import Toplevel

from .engine import Experiment, Jump
from .loop import LoopEngine

__all__ = ["AmaranthBackend", "AmaranthEngine", "run_on_amaranth"]


class AmaranthBackend:
    """Ports of a toplevel inside a running simulation."""

    def __init__(self, ports: dict[str, Signal], context: Any):
        self._ports = ports
        self._context = context
        self._pending: dict[str, int] = {}

    def peek(self, port: str) -> int:
        """Value of an output."""
        return self._context.get(self._ports[port])

    def poke(self, port: str, value: int) -> None:
        """Set an input from the next pulse on."""
        self._pending[port] = value

    async def pulse(self, clocks: Sequence[str], tick: int) -> None:
        """Raise clocks in one assignment, and lower them."""
        for port, value in self._pending.items():
            self._context.set(self._ports[port], value)
        self._pending.clear()
        # One assignment: registers of all clocks sample what was before any of them rose.
        together = Cat(self._ports[clock] for clock in clocks)
        self._context.set(together, (1 << len(clocks)) - 1)
        self._context.set(together, 0)


class AmaranthEngine(LoopEngine):
    """A machine on Amaranth's simulator; see :func:`run_on_amaranth`."""


def run_on_amaranth(
    design: Design, experiment: Experiment, *, jump: Jump = Jump.ALL, seed: int = 0, record: bool = False
) -> Any:
    """Elaborate a design, run ``await experiment(engine)`` on it and return its result."""
    toplevel = Toplevel(design.make())
    result: Any = None

    async def testbench(context: Any) -> None:
        nonlocal result
        backend = AmaranthBackend(toplevel.ports, context)
        engine = AmaranthEngine(toplevel.manifest, backend, jump=jump, seed=seed, record=record)
        result = await experiment(engine)

    simulator = Simulator(toplevel)
    simulator.add_testbench(testbench)
    simulator.run()
    return result
