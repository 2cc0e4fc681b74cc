"""How fast the simulator is: the native engine against the bare model and against cocotb.

*native* is the native engine with the software running on it, in Python. *bare* replays what the software handed over
on the same compiled model, in C++ alone: the least the model itself takes. Their logs must have the same digest.
Times are processor time of the thread, medians over pairs run in turn, since other work on the machine disturbs
wall-clock times; ratios are medians of each pair's own, since it slows processor time too. Building and starting are in
wall-clock time, since they use several processes.
"""

import base64
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hw.bus.core import OperationKind
from hw.config import MachineConfig
from sim.build.cache import REPOSITORY
from sim.build.design import Design
from sim.build.native import NativeBuild, build_native
from sim.build.tools import compiler, verilator
from sim.engine.engine import Engine, Jump, Recording
from sim.engine.native import NativeEngine
from sim.experiment import Experiment
from sim.session import observe
from sim.wire.traffic import Traffic
from sw.paths import PATHS

__all__ = ["BenchError", "first_cycle", "print_figures", "speed", "timed"]

#: Bytes of a frame, FCS included, and their rate: the smallest as fast as the port allows, most of them to be dropped;
#: the smallest at a rate the software keeps up with; the largest, which it copies.
WORKLOADS = ((64, "line"), (64, "500kpps"), (1518, "line"))
#: For cocotb and for runs without jumps, which take a hundred times as long.
SHORT = (64, "500kpps")
SHORT_COUNT = 10
#: The path of all else, and how often each path is timed with and without jumps.
PATH = "napi"
JUMP_ROUNDS = 3


class BenchError(RuntimeError):
    """Two runs that must be equal are not."""


@dataclass(frozen=True)
class Timed:
    """A run and what it took."""

    seconds: float  #: of processor time
    log_sha256: str
    cycles: Mapping[str, int]


def speed(
    machine: MachineConfig,
    console: Console | None = None,
    *,
    quick: bool = False,
    count: int = 500,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure.

    Arguments:
        console: where progress is shown.
        quick: leave out the build from nothing and cocotb, which take minutes.
        count: frames of each workload.
        rounds: how often each pair is timed.

    Raises:
        BenchError: when two runs of one workload give different logs.
        ToolError: when the machine cannot be built.
    """
    console = console or Console(quiet=True)
    with console.status("") as status:
        status.update(f"building {machine.name}")
        build = build_native(Design(machine))
        workloads = []
        for size, rate in WORKLOADS:
            workload = _Workload.make(machine, build, size, rate, count)
            status.update(f"native engine and bare model, {workload}")
            workloads.append(workload.measure(rounds))
        status.update("with and without jumps")
        short = _Workload.make(machine, build, *SHORT, SHORT_COUNT)
        jump_gains = {}
        for path in PATHS:
            status.update(f"with and without jumps, {path}")
            jump_gains[path] = _Workload.make(machine, build, *SHORT, SHORT_COUNT, path).jump_gain(JUMP_ROUNDS)
        status.update("starting a process")
        figures: dict[str, Any] = {
            "machine": machine.name,
            "compiler": compiler().version,
            "verilator": verilator().version,
            # The worst of them: a mix would say what its shares were chosen to say.
            "native_vs_bare": min(workload["native_vs_bare"] for workload in workloads),
            "native_vs_cocotb": None,
            "jump_gain": jump_gains[PATH],
            "jump_gains": jump_gains,
            "bare_core_cycles_per_s": _total(workloads, "core_cycles") / _total(workloads, "bare_s"),
            "first_build_s": None,
            "warm_start_s": _warm_start(machine, rounds),
            "workloads": workloads,
            "short_workload": str(short),
        }
        if not quick:
            status.update("cocotb (building it takes minutes, once)")
            figures["native_vs_cocotb"] = short.native_vs_cocotb(rounds)
            status.update("building from nothing")
            figures["first_build_s"] = _first_build(machine)
    return figures


def print_figures(figures: dict[str, Any], console: Console) -> None:
    """Tables of what :func:`speed` measured."""
    short = figures["short_workload"]
    rows = [
        (
            "native engine against bare model",
            _ratio(figures["native_vs_bare"]),
            "of its speed, worst workload; the rest is Python",
        ),
        ("native engine against cocotb", _ratio(figures["native_vs_cocotb"]), f"times as fast, {short}"),
        *(
            (f"jumps, {path}", _ratio(gain), f"times as fast as without, bare, {short}")
            for path, gain in figures["jump_gains"].items()
        ),
        ("bare model", f"{figures['bare_core_cycles_per_s'] / 1e3:,.0f} k", "core cycles per second"),
        ("build from nothing", _seconds(figures["first_build_s"]), "s"),
        ("start", _seconds(figures["warm_start_s"]), "s from a new process to its first cycle, all built"),
    ]
    table = Table(title=f"{figures['machine']}, {figures['compiler']}, {figures['verilator']}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for workload in figures["workloads"]:
        domains = Table(title=workload["workload"], title_justify="left", width=72)
        for heading in ("domain", "cycles", "executed", "ns per executed edge"):
            domains.add_column(heading, justify="left" if heading == "domain" else "right")
        for name, domain in workload["domains"].items():
            ns = domain["ns_per_edge"]
            cost = "" if ns is None else f"{ns:,.0f}"
            domains.add_row(name, f"{domain['cycles']:,}", f"{domain['executed']:,}", cost)
        console.print(domains)
        console.print("native {native_s:.3f} s, bare {bare_s:.3f} s: {native_vs_bare:.2f}".format(**workload))


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _total(workloads: Sequence[dict[str, Any]], key: str) -> float:
    return sum(workload[key] for workload in workloads)


async def timed(engine: Engine, **job: Any) -> Timed:
    """Run :func:`sim.experiment.observe` and time it from the software's set-up to the last simulated cycle."""
    ends: list[float] = []
    begin = time.thread_time()
    observation = await observe(engine, **job, advance=lambda done: ends.append(time.thread_time()))
    return Timed(ends[-1] - begin, observation.log_sha256, observation.cycles)


@dataclass(frozen=True)
class _Workload:
    """Frames on a machine, and what the software handed over when they came."""

    machine: MachineConfig
    build: NativeBuild
    size: int
    rate: str
    count: int
    job: dict[str, Any]
    recording: Recording
    log_sha256: str

    @classmethod
    def make(
        cls, machine: MachineConfig, build: NativeBuild, size: int, rate: str, count: int, path: str = PATH
    ) -> "_Workload":
        """Record the run of a path with its first application once."""
        traffic = Traffic.make(size=size, rate=rate, count=count)
        job = Experiment(path, machine, traffic).job()
        engine = NativeEngine(build, record=True)
        run = engine.execute(lambda engine: timed(engine, **job))
        return cls(machine, build, size, rate, count, job, engine.recording(), run.log_sha256)

    def __str__(self) -> str:
        return f"{self.count} frames of {self.size} bytes at {'line rate' if self.rate == 'line' else self.rate}"

    def measure(self, rounds: int) -> dict[str, Any]:
        """Native and bare in turn, then bare with every step timed."""
        native, bare, native_vs_bare = _in_turn(rounds, self._native, self._bare)
        engine = NativeEngine(self.build, profile=True)
        self._replay(engine)
        cycles, executed, costs = engine.cycles(), engine.executed(), engine.edge_costs()
        return {
            "workload": str(self),
            "frame_bytes": self.size,
            "rate": self.rate,
            "count": self.count,
            "native_s": native,
            "bare_s": bare,
            "native_vs_bare": native_vs_bare,
            "core_cycles": cycles["core0"],
            "bare_core_cycles_per_s": cycles["core0"] / bare,
            "log_sha256": self.log_sha256,
            "domains": {
                name: {
                    "cycles": cycles[name],
                    "executed": executed[name],
                    # Of steps that executed an edge of this domain alone.
                    "ns_per_edge": seconds / steps * 1e9 if steps else None,
                }
                for name, (steps, seconds) in costs.items()
            },
        }

    def jump_gain(self, rounds: int) -> float:
        """Bare without jumps against bare with them."""
        return 1 / _in_turn(rounds, lambda: self._bare(Jump.OFF), self._bare)[2]

    def native_vs_cocotb(self, rounds: int) -> float:
        """The same on cocotb; it is slow enough for one run to tell."""
        from sim.engine.cocotb import run_in_cocotb

        cocotb = run_in_cocotb(Design(self.machine), "sim.bench.speed:timed", self.job)
        self._check(cocotb.log_sha256, "cocotb")
        return cocotb.seconds / statistics.median(self._native() for _ in range(rounds))

    def _native(self) -> float:
        run = NativeEngine(self.build).execute(lambda engine: timed(engine, **self.job))
        self._check(run.log_sha256, "the native engine, run again,")
        return run.seconds

    def _bare(self, jump: Jump = Jump.ALL) -> float:
        return self._replay(NativeEngine(self.build, jump=jump))

    def _replay(self, engine: NativeEngine) -> float:
        begin = time.thread_time()
        engine.replay(self.recording)
        seconds = time.thread_time() - begin
        self._check(engine.log_sha256(), "the bare model")
        return seconds

    def _check(self, log_sha256: str, what: str) -> None:
        if log_sha256 != self.log_sha256:
            raise BenchError(
                f"{what} gives another log than the native engine for {self}: "
                f"{log_sha256[:16]}, not {self.log_sha256[:16]}"
            )


def _in_turn(rounds: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of both, and of the second's share of the first, in turn: what slows the machine down slows both."""
    pairs = [(first(), second()) for _ in range(rounds)]
    firsts, seconds = zip(*pairs, strict=True)
    share = statistics.median(two / one for one, two in pairs)
    return statistics.median(firsts), statistics.median(seconds), share


# ---- Building and starting, in processes of their own


def first_cycle(machine: MachineConfig) -> dict[str, float]:
    """What a process does until its first simulated cycle: when that was, and how long the build took."""
    build = build_native(Design(machine))
    engine = NativeEngine(build)
    context = engine.new_context()
    engine.switch(0, context)
    engine.push(context, OperationKind.EXECUTE.value, cycles=1)
    engine.run_now()
    return {"at": time.time(), "build_s": build.seconds}


_CHILD = """
import base64, json, pickle, sys
import sim.cli
from sim.bench.speed import first_cycle
print(json.dumps(first_cycle(pickle.loads(base64.b64decode(sys.stdin.read())))))
"""


def _start(machine: MachineConfig, **environment: str) -> tuple[float, float]:
    """Seconds from the start of a process to its first simulated cycle, and of its build."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    begin = time.time()
    ended = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=base64.b64encode(pickle.dumps(machine)).decode(),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    if ended.returncode:
        raise BenchError(f"a process that starts the machine failed: {ended.stderr.strip().splitlines()[-1]}")
    told = json.loads(ended.stdout)
    return told["at"] - begin, told["build_s"]


def _warm_start(machine: MachineConfig, rounds: int) -> float:
    return statistics.median(_start(machine)[0] for _ in range(rounds))


def _first_build(machine: MachineConfig) -> float:
    with tempfile.TemporaryDirectory(prefix="nicscope-") as empty:
        return _start(machine, NICSCOPE_CACHE=str(Path(empty)))[1]
