"""The path of a load stage by stage, beside the latencies published of the parts that two machines stand for.

``PYTHONPATH=. python tests/system/latency_path.py`` writes docs/latency.md; a test holds that page to what is here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from textwrap import wrap

from walk import STAGES, Walk

from hw.config import MachineConfig, load_machine
from hw.mem.dram import DramController

__all__ = ["FIGURES", "MEASURED_CHASE_NS", "PAGE", "PARTS", "Figure", "LoadPath", "document", "dram_path", "phases"]

PAGE = Path(__file__).parents[2] / "docs" / "latency.md"
#: Columns of the text of the page.
WIDTH = 125
#: Machines that stand for a part.
PARTS = {"xdp-paper": "Xeon E5-1650 v4 (Broadwell-EP)", "ddio-bench": "Xeon Gold 6140 (Skylake-SP)"}


@dataclass(frozen=True)
class Step:
    """One stage: how long it took, ``cycles`` of ``clock`` for all but crossings, and where that comes from."""

    name: str
    clock: str
    kind: str
    source: str
    ticks: int
    cycles: int | None = None


@dataclass
class LoadPath:
    """A way through the machine that grows stage by stage."""

    config: MachineConfig
    clock: str
    edge: int
    steps: list[Step] = field(default_factory=list)

    @property
    def tick(self) -> int:
        """When the last stage ends."""
        return self.edge * self.config.period_ticks(self.clock)

    def stay(self, name: str, cycles: int, kind: str, source: str) -> None:
        """Take ``cycles`` in the clock domain the path is in."""
        ticks = cycles * self.config.period_ticks(self.clock)
        self.steps.append(Step(name, self.clock, kind, source, ticks, cycles))
        self.edge += cycles

    def cross(self, sink: str) -> None:
        """Pass an asynchronous FIFO: out at edge STAGES + 1 of ``sink`` after the one that wrote it."""
        name, begin = f"crossing, {self.clock} to {sink}", self.tick
        edge = begin // self.config.period_ticks(sink) + STAGES + 1
        self.clock, self.edge = sink, edge
        self.steps.append(Step(name, sink, "derived", "`hw/lib/crossing.py`: two flip-flops", self.tick - begin))


def dram_path(config: MachineConfig, issue: int) -> LoadPath:
    """A load that misses everywhere and finds its bank closed, from edge ``issue`` of core to its answer."""
    llc, dram = config.llc, config.dram
    controller, phy = (_cycles(config, "dram", ns) for ns in (dram.controller_ns, dram.phy_ns))
    jedec = "JEDEC DDR4-2400 (17-17-17)"
    path = LoadPath(config, "core", issue)
    path.stay("L1 lookup", 2, "derived", "`hw/mem/l1/`: offers its Acquire")
    path.stay("L2 lookup", config.l2.latency - 5, "published", "`l2.latency`: what a hit takes, less the L1's part")
    path.cross("uncore")
    path.stay("last level: lookup, request", llc.latency - 1, _kind(config, "llc.latency"), "`llc.latency` less 1")
    path.cross("dram")
    path.stay("way to the controller", controller, _kind(config, "dram.controller_ns"), "`dram.controller_ns`")
    path.stay("choice of the command", DramController.FRONT_END, "derived", "`hw/mem/dram.py`")
    path.stay("tRCD", dram.tRCD, "published", jedec)
    path.stay("CL", dram.CL, "published", jedec)
    path.stay("burst of 8", dram.BURST, "published", jedec)
    path.stay("PHY and way back", phy, _kind(config, "dram.phy_ns"), "`dram.phy_ns`")
    path.cross("uncore")
    path.stay("last level: fill, Grant", 7, "derived", "`hw/mem/llc.py`: second pass of the slot")
    path.cross("core")
    path.stay("L2 and L1: line to the load", 3, "derived", "`hw/mem/l2/`, `hw/mem/l1/`")
    return path


def phases(config: MachineConfig) -> range:
    """Edges of core over which the pattern of core, uncore and DRAM clocks repeats."""
    periods = [config.period_ticks(clock) for clock in ("core", "uncore", "dram")]
    edges = math.lcm(*periods) // periods[0]
    return range(100 * edges, 101 * edges)


def _cycles(config: MachineConfig, clock: str, ns: float) -> int:
    return math.ceil(Fraction(str(ns)) * config.clocks.khz(clock) / 10**6)


def _kind(config: MachineConfig, name: str) -> str:
    """What the machine's sources say of a figure."""
    source = config.sources[name]
    if "fitted" in source:
        return "fitted" if source.startswith("fitted") else "fitted in part"
    return "as another model" if "gem5" in source else "predicted"


@dataclass(frozen=True)
class Figure:
    """A published latency and what the model has for it."""

    machine: str
    level: str
    published: float
    unit: str  #: "cycles" of core, or "ns"
    quoted: str  #: what the source says, and the source
    kind: str  #: whether the model's figure is set to it, fitted to it, or comes out
    edges: Callable[[Walk, int], int]  #: from the edge of issue to that of the answer

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return load_machine(self.machine)

    def modelled(self, config: MachineConfig | None = None) -> float:
        """The mean over all phases of the clocks to each other, by arithmetic."""
        config = config or self.config
        walk = Walk(config)
        cycles = fmean(self.edges(walk, issue) - issue for issue in phases(config))
        return cycles if self.unit == "cycles" else cycles * 1000 / config.clocks.core

    def error(self, modelled: float) -> float:
        """Relative."""
        return modelled / self.published - 1


def _dram(walk: Walk, issue: int) -> int:
    return walk.llc_miss(issue, walk.dram(walk.config.dram.tRCD))


ANANDTECH = (
    "[AnandTech, Skylake-SP against EPYC, 2017](https://www.anandtech.com/show/11544/"
    "intel-skylake-ep-vs-amd-epyc-7000-cpu-battle-of-the-decade/13), LMBench, random"
)
INTEL = "Intel 64 and IA-32 Optimization Reference Manual"
L1_QUOTED = f"{INTEL}: 4 by base and small offset, 5 by any other address"

FIGURES = (
    Figure("xdp-paper", "L1", 5, "cycles", L1_QUOTED, "set", Walk.l1_hit),
    Figure("xdp-paper", "L2", 12, "cycles", f"{INTEL}: 12; {ANANDTECH}: 12 to 15", "set", Walk.l2_hit),
    Figure(
        "xdp-paper",
        "last level",
        44.5,
        "cycles",
        f"{ANANDTECH}: 38 to 51 on E5-2699 v4, 4 to 8 MiB; its middle",
        "predicted",
        Walk.llc_hit,
    ),
    Figure(
        "xdp-paper",
        "DRAM",
        85,
        "ns",
        "nothing found on the part itself; the middle of 95 (E5-2699 v4, 22 cores on two rings; same page) and 75 "
        "(E5-2690 v4, 14 cores; [TinyMemBench](https://gist.github.com/understeer/4d8ea07c18752989f6989deeb769b778))",
        "fitted in part",
        _dram,
    ),
    Figure("ddio-bench", "L1", 5, "cycles", L1_QUOTED, "set", Walk.l1_hit),
    Figure("ddio-bench", "L2", 14, "cycles", f"{INTEL}: 14; {ANANDTECH}: 14 to 22", "set", Walk.l2_hit),
    Figure(
        "ddio-bench",
        "last level",
        55,
        "cycles",
        f"{ANANDTECH}: 54 to 56 on Xeon Platinum 8176, 4 to 8 MiB; its middle",
        "fitted",
        Walk.llc_hit,
    ),
    Figure(
        "ddio-bench",
        "DRAM",
        89.6,
        "ns",
        "[KU Leuven, Genius](https://github.com/hpcleuven/VscDocumentation/blob/"
        "2ea7a95c46e3fe05986d9f0f257f6b8070deb70a/source/leuven/old_hardware/genius/skylake_mlc.txt), two Gold 6140, "
        "Intel MLC 3.10, random, idle, local: 90.2 and 89.1. Others: 89 to 91 (Platinum 8176, AnandTech as above), "
        "81 in order (Platinum 8180, FD.io CSIT calibration data, MLC 3.5)",
        "as another model",
        _dram,
    ),
)

#: Nanoseconds per load of a random chase through cold memory, refreshes included; measured by test_published_latency.
MEASURED_CHASE_NS: dict[str, float] = {"xdp-paper": 87.5, "ddio-bench": 92.0}


def document() -> str:
    """The page docs/latency.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (
        "# Latency of a load",
        "",
        *wrap(
            "What a load takes on the two machines that stand for a part, against what is published of it. All by "
            "arithmetic on the configuration, averaged over the phases of the clocks to each other; the chase is "
            "measured. `tests/system/test_published_latency.py` checks that this page is that arithmetic, that "
            "machines at rest meet it to the cycle, and that no figure is more than 10 % off. To write it again: "
            "`PYTHONPATH=. python tests/system/latency_path.py`.",
            WIDTH,
        ),
        "",
        *wrap(
            "Kinds. *set*: the parameter is the published figure; *published*: so is this stage. *derived*: what the "
            "RTL takes. *fitted*: chosen to meet the figure. *as another model*: gem5's static latencies of its memory "
            "controller, 10 ns each way; *fitted in part*: that, and the rest fitted. *predicted*: chosen without the "
            "figure in view.",
            WIDTH,
        ),
        "",
        "| machine | level | model | published | error | kind | what is quoted |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    )
    for figure in FIGURES:
        modelled = figure.modelled()
        yield (
            f"| {figure.machine} | {figure.level} | {modelled:.1f} {figure.unit} | {figure.published:g} {figure.unit} "
            f"| {figure.error(modelled):+.1%} | {figure.kind} | {figure.quoted} |"
        )
    yield from (
        "",
        *wrap(
            "The row of DRAM is a load that finds its bank closed, on an idle machine. The published figures are "
            "chases. A random chase through the model finds the bank's row taken by another line almost every second "
            "time, since its controller keeps rows open until they are in the way or a refresh is due, while a "
            "server's closes those it does not expect to use; now and then it waits for a refresh. Both are within "
            "10 % of the figure.",
            WIDTH,
        ),
        "",
        "| machine | row open | bank closed | another row open | random chase | error of the chase |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    )
    for machine in PARTS:
        cells = [f"{_by_row(machine, *before):.1f} ns" for before in ((), ("tRCD",), ("tRP", "tRCD"))]
        chase = MEASURED_CHASE_NS[machine]
        published = next(f for f in FIGURES if (f.machine, f.level) == (machine, "DRAM"))
        yield f"| {machine} | {' | '.join(cells)} | {chase:.1f} ns | {published.error(chase):+.1%} |"
    for machine, part in PARTS.items():
        yield from ("", f"## {machine}: {part}", "")
        yield from _stages(load_machine(machine))


def _by_row(machine: str, *before: str) -> float:
    config = load_machine(machine)
    walk = Walk(config)
    dram = walk.dram(*(getattr(config.dram, name) for name in before))
    return fmean(walk.llc_miss(issue, dram) - issue for issue in phases(config)) * 1000 / config.clocks.core


def _stages(config: MachineConfig) -> Iterator[str]:
    """A load from DRAM, bank closed. Crossings: the mean over the phases."""
    clocks = config.clocks
    yield f"Clocks: core {clocks.core:g} MHz, uncore {clocks.uncore:g} MHz, DRAM {clocks.dram:g} MHz."
    yield ""
    yield "| stage | cycles | of | ns | kind | source |"
    yield "| --- | ---: | --- | ---: | --- | --- |"
    total = 0.0
    for steps in zip(*(dram_path(config, issue).steps for issue in phases(config)), strict=True):
        ns = fmean(step.ticks for step in steps) * 1e9 / config.ticks_per_second
        total += ns
        step = steps[0]
        cycles = step.cycles if step.cycles is not None else f"{ns * clocks.khz(step.clock) / 1e6:.1f}"
        yield f"| {step.name} | {cycles} | {step.clock} | {ns:.1f} | {step.kind} | {step.source} |"
    yield f"| **sum** | | | **{total:.1f}** | | |"


if __name__ == "__main__":
    PAGE.write_text(document())
