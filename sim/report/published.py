"""Published figures beside what the model predicts: facts from published.toml, predictions read off results."""

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hw.config import ConfigError, load_machine
from sim.compare import run_all
from sim.experiment import Experiment
from sim.result import machine_dict
from sim.wire.traffic import Traffic

__all__ = [
    "COLUMNS",
    "KINDS",
    "Beside",
    "Figure",
    "Run",
    "as_json",
    "beside",
    "curve",
    "figures",
    "measure",
    "print_published",
    "runs",
]

Result = Mapping[str, Any]

FILE = Path(__file__).with_name("published.toml")

#: How the model's figure came about.
KINDS = ("predicted", "fitted")


@dataclass(frozen=True)
class Run:
    """What the model runs for a figure: generated frames through one path on a preset."""

    machine: str
    path: str
    application: str
    size: int  #: bytes of a frame, FCS included
    rate: str
    count: int  #: frames; more are as good
    options: Mapping[str, Any] = field(default_factory=dict)  #: of the software
    background: bool = True
    idle: str = "poll"

    def experiment(self, out: Path, seed: int = 1) -> Experiment:
        """The run, on the native engine."""
        return Experiment(
            path=self.path,
            application=self.application,
            machine=load_machine(self.machine),
            traffic=Traffic.make(size=self.size, rate=self.rate, count=self.count, seed=seed),
            options=self.options,
            background=self.background,
            idle=self.idle,
            out=out,
        )

    def is_of(self, result: Result) -> bool:
        """Whether that result is one of this run, on the preset as it is."""
        traffic, software = result["traffic"], result["software"]
        return (
            (result["path"], result["application"]) == (self.path, self.application)
            and (traffic.get("size"), traffic.get("rate")) == (self.size, self.rate)
            and traffic["count"] >= self.count
            and software
            == {"mitigations": [], "background": self.background, "idle": self.idle, "options": self.options}
            and result["machine"] == _preset(self.machine)
        )


@cache
def _preset(name: str) -> dict[str, Any]:
    return machine_dict(load_machine(name))


@dataclass(frozen=True)
class Figure:
    """One published figure."""

    what: str
    label: str  #: the source in short
    source: str
    conditions: str  #: it was measured under
    published: float
    unit: str
    quantity: str  #: one of :data:`QUANTITIES`
    kind: str  #: one of :data:`KINDS`
    run: Run
    against: Run | None = None  #: the figure is a factor, this the run that is 1

    @property
    def runs(self) -> tuple[Run, ...]:
        """What it takes."""
        return (self.run,) if self.against is None else (self.run, self.against)


@dataclass(frozen=True)
class Beside:
    """A figure and what the model says."""

    figure: Figure
    predicted: float

    @property
    def error(self) -> float:
        """Of the prediction, in percent of the published figure."""
        return 100 * (self.predicted / self.figure.published - 1)


#: How a prediction is read off a result.
QUANTITIES: Mapping[str, Callable[[Result], float]] = {
    "delivered_mpps": lambda result: result["rates"]["delivered_mpps"],
    "delivered_gbps": lambda result: result["rates"]["delivered_gbps"],
    "mean_latency_us": lambda result: result["latency_ns"]["mean"] / 1000,
    "busy_percent": lambda result: _percent(result["cores"][0]["busy"], result["cores"][0]["idle"]),
    "packets_per_core_cycle": lambda result: 1 / sum(result["stages"].values()),
    "ddio_hit_percent": lambda result: _percent(
        result["counters"]["llc.itom_hit"], result["counters"]["llc.itom_miss"]
    ),
}


def _percent(part: float, rest: float) -> float:
    return 100 * part / max(part + rest, 1)


@cache
def curve(name: str) -> Mapping[str, Any]:
    """A published curve: lists of equal length, and ``cite``, where it is from."""
    tree = tomllib.loads(FILE.read_text())
    found = tree["curves"][name]
    return {**found, "cite": tree["sources"][found["source"]]["cite"]}


@cache
def figures() -> tuple[Figure, ...]:
    """All of them, in the order of the file.

    Raises:
        ValueError: for a quantity or a kind that does not exist.
    """
    tree = tomllib.loads(FILE.read_text())
    result = []
    for entry in tree["figures"]:
        source = tree["sources"][entry["source"]]
        run = Run(**entry["run"])
        against = entry.get("against")
        if entry["quantity"] not in QUANTITIES or entry["kind"] not in KINDS:
            raise ValueError(f"{entry['what']}: no quantity {entry['quantity']!r} or no kind {entry['kind']!r}")
        result.append(
            Figure(
                what=entry["what"],
                label=source["label"],
                source=source["cite"],
                conditions=source["conditions"],
                published=entry["published"],
                unit=entry["unit"],
                quantity=entry["quantity"],
                kind=entry["kind"],
                run=run,
                against=None if against is None else replace(run, options={**run.options, **against}),
            )
        )
    return tuple(result)


def runs(chosen: Iterable[Figure]) -> list[Run]:
    """What those figures take, each run once."""
    result: list[Run] = []
    for figure in chosen:
        result += [run for run in figure.runs if run not in result]
    return result


def beside(results: Iterable[Result]) -> Sequence[Beside]:
    """The figures that those results are runs of, with the model's own."""
    results = list(results)
    found = []
    for figure in figures():
        values = []
        for run in figure.runs:
            values += [QUANTITIES[figure.quantity](result) for result in results if run.is_of(result)][:1]
        if len(values) == len(figure.runs):
            found.append(Beside(figure, values[0] if figure.against is None else values[0] / values[1]))
    return found


def measure(machine: str | None, out: Path, console: Console | None = None) -> Sequence[Beside]:
    """Run what the figures of one machine take, or of all; each run's results go to a directory of ``out``.

    Raises:
        ConfigError: when nothing was published for that machine, in one line.
        ToolError: when a machine cannot be built.
    """
    chosen = [figure for figure in figures() if machine in (None, figure.run.machine)]
    if not chosen:
        there = ", ".join(sorted({figure.run.machine for figure in figures()}))
        raise ConfigError(f"nothing is published of machine {machine!r}; there are: {there}")
    experiments = [run.experiment(out / f"{n:02}") for n, run in enumerate(runs(chosen), 1)]
    return beside(run_all(experiments, console, "runs of what is published"))


#: Headings of the table, and what stands below them.
COLUMNS: Mapping[str, Callable[[Beside], str]] = {
    "one core": lambda b: b.figure.what,
    "published": lambda b: f"{b.figure.published:g} {b.figure.unit}",
    "source": lambda b: b.figure.label,
    "model": lambda b: f"{b.predicted:.3g} {b.figure.unit}",
    "error": lambda b: f"{b.error:+.0f} %",
    "": lambda b: b.figure.kind,
}


def sources(found: Iterable[Beside]) -> dict[str, str]:
    """What the labels stand for: the source, what was measured on, and the machine that stands for that."""
    return {
        line.figure.label: f"{line.figure.source}: {line.figure.conditions}. Model: {line.figure.run.machine}."
        for line in found
    }


def print_published(found: Sequence[Beside], console: Console) -> None:
    """Print them; nothing where there are none."""
    if not found:
        return
    table = Table(title="Published figures and the model's", title_justify="left")
    for heading in COLUMNS:
        right = heading in ("published", "model", "error")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "one core")
    for line in found:
        table.add_row(*(tell(line) for tell in COLUMNS.values()))
    console.print(table)
    for label, text in sources(found).items():
        console.print(f"{label}: {text}", highlight=False)


def as_json(found: Sequence[Beside]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [{**asdict(line.figure), "predicted": line.predicted, "error_percent": line.error} for line in found]
