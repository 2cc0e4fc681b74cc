"""Several paths on the same machine with the same traffic, side by side."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hw.config import ConfigError, MachineConfig
from sim.build.design import Design
from sim.build.native import build_native
from sim.experiment import Experiment, switch
from sim.wire.traffic import Traffic
from sw.options import OPTIONAL
from sw.paths import PATHS, PathError, path_named

__all__ = ["Comparison", "Way", "by_path", "compare", "parse_ways", "run_all"]


@dataclass(frozen=True)
class Way:
    """A path and what receives at its end."""

    path: str
    application: str
    asked: str = field(default="", compare=False)  #: how ``--paths`` names it

    def __str__(self) -> str:
        return f"{self.path}:{self.application}"


def parse_ways(paths: str | None, application: str | None) -> list[Way]:
    """What ``--paths`` and ``--app`` ask for.

    Arguments:
        paths: comma-separated, each ``path`` or ``path:application``; None: all.
        application: of paths that have it and do not name one; others keep their first.

    Raises:
        ConfigError: in one line that names what there is.
    """
    if application is not None and not any(application in path.applications for path in PATHS.values()):
        there = sorted({name for path in PATHS.values() for name in path.applications})
        raise ConfigError(f"no path has an application {application!r}; there are: {', '.join(there)}")
    ways = []
    for entry in (paths or ",".join(PATHS)).split(","):
        name, _, named = entry.strip().partition(":")
        try:
            path = path_named(name, named or None)
        except PathError as error:
            raise ConfigError(str(error)) from None
        if not named and application in path.applications:
            named = application or ""
        ways.append(Way(name, path.application(named or None), entry.strip()))
    return list(dict.fromkeys(ways))


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        ways: one column each.
        traffics: by a short name, such as "capture"; each goes through every way.
        options: of ``sw.options.Options``, where they differ; a way goes without those it has no use for.
        out: directory; each run's results go to a directory of their own in it.
    """

    machine: MachineConfig
    ways: Sequence[Way]
    traffics: Mapping[str, Traffic]
    engine: str = "native"
    seed: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    mitigations: tuple[str, ...] = ()
    background: bool = True
    idle: str = "poll"
    out: Path = Path("runs/compare")

    def experiment(self, way: Way, traffic: str) -> Experiment:
        """The run of one way with one traffic."""
        unused = OPTIONAL - path_named(way.path).uses(way.application)
        return Experiment(
            path=way.path,
            application=way.application,
            machine=self.machine,
            traffic=self.traffics[traffic],
            engine=self.engine,
            seed=self.seed,
            options={name: value for name, value in self.options.items() if name not in unused},
            mitigations=self.mitigations,
            background=self.background,
            idle=self.idle,
            out=self.out / traffic / str(way).replace(":", "-"),
        )


def compare(comparison: Comparison, console: Console | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Run every way with every traffic; returns {traffic: {way: result.json}}.

    Raises:
        ConfigError, TrafficError: in one line, when what the user asked for cannot be.
        ToolError: when the machine cannot be built.
    """
    used = frozenset[str]().union(*(path_named(way.path).uses(way.application) for way in comparison.ways))
    unused = sorted(OPTIONAL & set(comparison.options) - used)
    if unused:
        raise ConfigError(f"{switch(unused[0])} has no effect on any of {', '.join(map(str, comparison.ways))}")
    cases = [(traffic, way) for traffic in comparison.traffics for way in comparison.ways]
    results = run_all([comparison.experiment(way, traffic) for traffic, way in cases], console)
    by_traffic: dict[str, dict[str, dict[str, Any]]] = {traffic: {} for traffic in comparison.traffics}
    for (traffic, way), result in zip(cases, results, strict=True):
        by_traffic[traffic][str(way)] = result
    return by_traffic


def by_path(
    comparison: Comparison, results: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Mapping[str, Any]]:
    """Results by path as ``--paths`` names it, each a result.json.

    Of several traffics, the last has the plain names; before it come ``path@traffic``.

    Arguments:
        results: of :func:`compare`.
    """
    *before, last = comparison.traffics
    return {
        (way.asked or str(way)) + (f"@{traffic}" if traffic != last else ""): results[traffic][str(way)]
        for traffic in (*before, last)
        for way in comparison.ways
    }


def run_all(
    experiments: Sequence[Experiment], console: Console | None = None, what: str = "runs"
) -> list[dict[str, Any]]:
    """Run experiments in processes of their own, as many at a time as the host has cores; results in their order.

    Raises:
        ConfigError, TrafficError, ToolError: of the first that fails.
    """
    console = console or Console(quiet=True)
    machines: list[MachineConfig] = []
    for experiment in experiments:
        if experiment.engine == "native" and experiment.machine not in machines:
            machines.append(experiment.machine)
    for machine in machines:
        with console.status(f"building {machine.name} (once for each machine; kept in .cache)"):
            build_native(Design(machine))
    bar = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True
    )
    # Processes are started afresh: a fork would share the engine's state and locks.
    context = multiprocessing.get_context("spawn")
    workers = min(len(experiments), os.cpu_count() or 1)
    with bar, concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        task = bar.add_task("", total=len(experiments))
        futures = [pool.submit(experiment.run) for experiment in experiments]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                bar.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
