"""Runs inside cocotb's test process: the machine as a backend for the loop, and the experiment on it."""

import importlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cocotb
from cocotb.triggers import Timer

from sim.build.manifest import Manifest

from .engine import Jump
from .loop import LoopEngine

__all__ = ["CocotbBackend", "CocotbEngine", "experiment"]

FEMTOSECONDS = 10**15
#: Steps of the simulator's clock that one tick needs at least: room for a catch-up pulse before an edge.
LEAST_STEPS = 8


class CocotbBackend:
    """Ports of the toplevel as cocotb's handles. An edge at tick t is at t in real time, in whole femtoseconds."""

    def __init__(self, toplevel: Any, manifest: Manifest):
        self._handles = {port.name: getattr(toplevel, port.name) for port in manifest.ports}
        # Clocks without a common measure of a few femtoseconds run on a stretched time scale.
        self._scale = max(FEMTOSECONDS, LEAST_STEPS * manifest.ticks_per_second)
        self._ticks_per_second = manifest.ticks_per_second
        self._now = 0

    async def begin(self) -> None:
        """Give every input its first value and let the machine settle."""
        for name, handle in self._handles.items():
            if name.startswith(("clk_", "advance_", "wire_valid", "wire_payload")) or "_operation_" in name:
                if not name.endswith("_ready"):
                    handle.value = 0
        await self._until(1)

    def peek(self, port: str) -> int:
        """Value of an output."""
        return int(self._handles[port].value)

    def poke(self, port: str, value: int) -> None:
        """Set an input; it is there before the next pulse."""
        self._handles[port].value = int(value)

    async def pulse(self, clocks: Sequence[str], tick: int) -> None:
        """Raise clocks in one write phase, and lower them."""
        handles = [self._handles[clock] for clock in clocks]
        at = 1 + tick * self._scale // self._ticks_per_second
        await self._until(max(at, self._now + 2))
        for handle in handles:
            handle.value = 1
        await self._until(self._now + 1)
        for handle in handles:
            handle.value = 0

    async def _until(self, step: int) -> None:
        await Timer(step - self._now, unit="step")
        self._now = step


class CocotbEngine(LoopEngine):
    """A machine under cocotb."""


@cocotb.test
async def experiment(dut: Any) -> None:
    """The job that :func:`sim.engine.cocotb.run_in_cocotb` has left."""
    job = pickle.loads(Path(os.environ["NICSCOPE_JOB"]).read_bytes())
    manifest = Manifest.from_json(job["manifest"])
    options = {**job["engine"], "jump": Jump(job["engine"]["jump"])}
    ended: dict[str, Any]
    try:
        backend = CocotbBackend(dut, manifest)
        await backend.begin()
        module, _, name = job["entry"].partition(":")
        function = getattr(importlib.import_module(module), name)
        engine = CocotbEngine(manifest, backend, **options)
        ended = {"value": await function(engine, **job["arguments"])}
    except Exception as error:
        ended = {"exception": error}
    Path(job["result"]).write_bytes(pickle.dumps(ended))
