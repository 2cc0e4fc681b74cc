"""``nicscope bench core``: what the modelled core overlaps, and what it does not.

Bare-metal programs on the native engine; all times are simulated ones. Most loads miss the private caches and hit the
last level (prefetchers off), so that every miss takes the same time.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hw.bus.core import AtomicFunction
from hw.bus.tilelink import LINE_BYTES
from hw.config import MachineConfig
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import NativeBuild, build_native
from sim.engine.native import NativeEngine

__all__ = ["core", "print_core"]

#: Misses that are timed together.
MISSES = 200
#: Micro-operations a core issues per cycle, for the work beside a miss: Broadwell and Skylake rename four.
WIDTH = 4

KIB = 1 << 10


class _Bench:
    """A fresh machine, and lines that are in its last level but in no private cache."""

    def __init__(self, build: NativeBuild, machine: MachineConfig):
        self.machine = machine
        self.metal = BareMetal(NativeEngine(build))
        private = (machine.l1.size_kib + machine.l2.size_kib) * KIB // LINE_BYTES
        count = min(2 * private + 2 * MISSES, machine.llc.size_kib * KIB // LINE_BYTES * 3 // 4)
        order = list(range(count))
        random.Random(1).shuffle(order)
        for line in order:
            self.metal.touch(0, line * LINE_BYTES)
        self.metal.settle()
        #: Addresses, those touched longest ago first.
        self.far = [line * LINE_BYTES for line in order]
        #: An address that is in no cache.
        self.untouched = machine.dram.size_mib << 19

    def cycles(self, *cores: int) -> float:
        """Run what is queued and return core cycles."""
        engine = self.metal.engine
        begin = engine.tick
        self.metal.settle(*cores)
        return (engine.tick - begin) / self.machine.period_ticks("core")


def core(machine: MachineConfig, console: Console | None = None) -> dict[str, Any]:
    """Measure.

    Arguments:
        console: where progress is shown.

    Raises:
        ToolError: when the machine cannot be built.
    """
    console = console or Console(quiet=True)
    machine = machine.replace(["l2.prefetch_adjacent=false", "l2.prefetch_stream=false"])
    with console.status("") as status:
        status.update(f"building {machine.name}")
        build = build_native(Design(machine))

        def fresh() -> _Bench:
            return _Bench(build, machine)

        status.update("misses")
        dependent = _misses(fresh(), 0, chained=True)
        figures = {
            "machine": machine.name,
            "core_mhz": machine.clocks.core,
            "window": machine.core.window,
            "mshrs": machine.l1.mshrs,
            "store_buffer": machine.core.store_buffer,
            "dependent_miss_cycles": dependent,
            "independent_miss_cycles": _misses(fresh(), 0, chained=False),
            "window_bound": _window_bound(fresh, machine, dependent),
            "long_execute": _long_execute(fresh, machine),
            "store_bursts": _store_bursts(fresh, machine),
            "locks": _locks(fresh) if machine.core.count > 1 else None,
        }
    return figures


def _misses(bench: _Bench, between: int, *, chained: bool) -> float:
    """Cycles per miss, with so many micro-operations between two of them: they fill the window and take one cycle."""
    before = -1
    for address in bench.far[:MISSES]:
        before = bench.metal.touch(0, address, after=before if chained else -1)
        if between:
            bench.metal.execute(0, 1, between)
    return bench.cycles(0) / MISSES


def _window_bound(fresh: Callable[[], _Bench], machine: MachineConfig, miss: float) -> list[dict[str, Any]]:
    """Misses in flight against the work between them: the window holds fewer of them the more work lies between."""
    rows = []
    for between in (0, 7, 15, 23, 31, 47, 63, 95, 127, 191, 255):
        cycles = _misses(fresh(), between, chained=False)
        predicted = min(machine.l1.mshrs, max(1.0, machine.core.window / (between + 1)))
        rows.append({"uops_between": between, "cycles": cycles, "overlap": miss / cycles, "predicted": predicted})
    return rows


def _long_execute(fresh: Callable[[], _Bench], machine: MachineConfig) -> list[dict[str, Any]]:
    """A miss to DRAM and work that does not need it: what the work hides of the miss ends with the window."""
    alone = fresh()
    alone.metal.touch(0, alone.untouched)
    miss = alone.cycles(0)
    rows = []
    for uops in (
        machine.core.window // 4,
        machine.core.window // 2,
        machine.core.window,
        2 * machine.core.window,
        4 * machine.core.window,
    ):
        bench = fresh()
        work = math.ceil(uops / WIDTH)
        bench.metal.touch(0, bench.untouched)
        bench.metal.execute(0, work, uops)
        total = bench.cycles(0)
        rows.append({"uops": uops, "cycles": work, "miss": miss, "total": total, "hidden": miss + work - total})
    return rows


def _store_bursts(fresh: Callable[[], _Bench], machine: MachineConfig) -> list[dict[str, Any]]:
    """Cycles until a burst of stores that miss has issued: nothing, until the store buffer is full."""
    rows = []
    size = machine.core.store_buffer
    for count in (1, size // 2, size, size + size // 4, size + size // 2, 2 * size):
        bench = fresh()
        for address in bench.far[:count]:
            bench.metal.store(0, address, bytes(8))
        bench.metal.execute(0, 1)
        before = len(bench.metal.log().select("core0.port.issue"))
        bench.metal.settle(0)
        issues = bench.metal.log().select("core0.port.issue")["cycle"][before:]
        rows.append({"stores": count, "cycles": int(issues[count] - issues[0])})
    return rows


def _locks(fresh: Callable[[], _Bench]) -> dict[str, float]:
    """Core cycles of a locked operation, alone and in turn with another core, and of handing a flag to and fro."""
    rounds = 50
    line = 0

    def increments(cores: Sequence[int]) -> float:
        bench = fresh()
        for core in cores:
            bench.metal.atomic(core, line, 8, AtomicFunction.ADD, 1)
        bench.metal.settle()
        for _ in range(rounds):
            for core in cores:
                bench.metal.atomic(core, line, 8, AtomicFunction.ADD, 1)
        return bench.cycles() / (rounds * len(cores))

    bench = fresh()
    metal = bench.metal
    for turn in range(rounds):
        metal.poll(1, line, 8, 2 * turn, 1_000_000, 8)
        metal.store(1, line, (2 * turn + 2).to_bytes(8, "little"))
        metal.store(0, line, (2 * turn + 1).to_bytes(8, "little"))
        metal.poll(0, line, 8, 2 * turn + 1, 1_000_000, 8)
    return {
        "alone": increments([0]),
        "contended": increments([0, 1]),
        "hand_over": bench.cycles() / (2 * rounds),
    }


def print_core(figures: dict[str, Any], console: Console) -> None:
    """Tables of what :func:`core` measured."""
    per_ns = figures["core_mhz"] / 1000
    table = Table(title=f"{figures['machine']}: loads that hit the last level", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    rows = {
        "each needs the one before": figures["dependent_miss_cycles"],
        "independent": figures["independent_miss_cycles"],
    }
    if figures["locks"]:
        rows |= {
            "locked operation, one core": figures["locks"]["alone"],
            "locked operation, two cores in turn": figures["locks"]["contended"],
            "flag handed to the other core": figures["locks"]["hand_over"],
        }
    for name, cycles in rows.items():
        table.add_row(name, f"{cycles:.1f} cycles", f"{cycles / per_ns:.1f} ns")
    console.print(table)

    table = Table(title=f"misses in flight: window {figures['window']}, {figures['mshrs']} MSHRs")
    for heading in ("uops between", "cycles per miss", "in flight", "min(MSHRs, window / uops)"):
        table.add_column(heading, justify="right")
    for row in figures["window_bound"]:
        table.add_row(
            str(row["uops_between"]), f"{row['cycles']:.1f}", f"{row['overlap']:.1f}", f"{row['predicted']:.1f}"
        )
    console.print(table)

    table = Table(title="one miss to DRAM before independent work")
    for heading in ("uops", "work", "miss", "together", "hidden"):
        table.add_column(heading, justify="right")
    for row in figures["long_execute"]:
        table.add_row(*(f"{row[name]:.0f}" for name in ("uops", "cycles", "miss", "total", "hidden")))
    console.print(table)

    table = Table(title=f"bursts of stores that miss: store buffer {figures['store_buffer']}")
    table.add_column("stores", justify="right")
    table.add_column("cycles until all have issued", justify="right")
    for row in figures["store_bursts"]:
        table.add_row(str(row["stores"]), str(row["cycles"]))
    console.print(table)
