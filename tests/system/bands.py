"""Inequalities between paths, and whether they hold whatever is true of each cost within its band.

Core cycles rise with the cost of everything that a path calls. So what is worst for ``less < more`` is known once the
calls are counted: each cost that ``less`` calls more often for a packet at the high end of its band, each other one at
the low end. An inequality that turns round there must not be claimed.
"""

import dataclasses
import functools
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hw.config import load_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine
from sim.experiment import Experiment
from sim.session import observe
from sim.wire.traffic import Traffic
from sw.core import Record, _functions
from sw.costs import load_tables
from sw.issue import Issuer
from sw.paths import path_named


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to a packet under generated frames."""

    way: str  #: path:application
    machine: str
    settings: tuple[str, ...] = ()
    size: int = 64
    rate: str = "line"
    count: int = 600
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def costs(self) -> tuple[str, ...]:
        return path_named(self.way.partition(":")[0]).costs

    def experiment(self, out: Path) -> Experiment:
        path, _, application = self.way.partition(":")
        traffic = Traffic.make(size=self.size, rate=self.rate, count=self.count)
        machine = load_machine(self.machine, self.settings)
        return Experiment(path, machine, traffic, application, options=dict(self.options), out=out)


#: Ends of the bands: of all costs, or of each.
Ends = str | frozenset[str]


@functools.cache
def result(case: Case, ends: Ends = "cycles") -> dict:
    """result.json of a case with costs as they are ("cycles"), all "low", all "high", or those of a set high."""
    costs = {}
    for name, cost in load_tables(case.costs).items():
        end = ends if isinstance(ends, str) else "high" if name in ends else "low"
        costs[name] = dataclasses.replace(cost, cycles=getattr(cost, end))
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.session._costs", lambda names, mitigations: costs)
        return case.experiment(Path(directory)).run()


def cycles(case: Case, ends: Ends = "cycles") -> float:
    """Core cycles per packet."""
    return sum(result(case, ends)["stages"].values())


class _Counting:
    """An engine whose software counts what it charges, from the first frame on."""

    def __init__(self, engine: NativeEngine, calls: Counter[str]):
        self._engine = engine
        self._calls = calls
        self._frames = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def push_frame(self, *frame: Any) -> None:
        if not self._frames:
            self._calls.clear()
        self._frames += 1
        self._engine.push_frame(*frame)


@functools.cache
def calls(case: Case) -> Mapping[str, float]:
    """How often a packet causes each cost."""
    counted: Counter[str] = Counter()

    class Charges(dict):
        def get(self, name, default=None):  # a function is called
            if name in self:
                counted[name] += 1
            return super().get(name, default)

    class Counter_(Issuer):
        def execute(self, cost, count=1, /, *, after=-1):
            if isinstance(cost, str):
                counted[cost] += count
            super().execute(cost, count, after=after)

    def issuer(record: Record, port: Any, costs: Mapping[str, Any]) -> Issuer:
        return Counter_(port, record._tags, Charges(costs), _functions)

    experiment = case.experiment(Path())
    engine = NativeEngine(build_native(Design(experiment.machine)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "issuer", issuer)
        run = engine.execute(lambda engine: observe(_Counting(engine, counted), **experiment.job()))
    received = len(run.written_back())
    return {name: count / received for name, count in counted.items()}


def worst_ends(less: Case, more: Case) -> frozenset[str]:
    """The costs that are to be high for ``less < more`` to be least true; the others low."""
    mine, its = calls(less), calls(more)
    return frozenset(name for name, count in mine.items() if count > its.get(name, 0))


def worst(less: Case, more: Case) -> tuple[float, float]:
    """Core cycles per packet of both where their order is least true."""
    ends = worst_ends(less, more)
    return cycles(less, ends), cycles(more, ends)
