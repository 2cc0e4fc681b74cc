"""The runs behind a report: a comparison, the same ways under rising load, and with DDIO off."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from sim.bench.memory import dram_latency_ns
from sim.compare import Comparison, run_all
from sim.experiment import LEAST_SAMPLE_NS, Experiment
from sim.report.published import Beside, measure
from sim.wire.frames import WIRE_OVERHEAD_BYTES
from sim.wire.traffic import Traffic

__all__ = ["Study", "study"]

Result = Mapping[str, Any]

#: Shares of line rate in the sweep over offered load.
SHARES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
#: The share at which latencies are drawn: all ways keep up with it.
QUIET_SHARE = 0.005
#: Frames of each run of the sweep, of :data:`SIZE` bytes.
COUNT = 600
SIZE = 64
DDIO = ("on", "off")
#: The machine of the published figures that a report shows.
PUBLISHED_MACHINE = "xdp-paper"
#: Frames with DDIO on and off: large, so that there is payload to touch.
DDIO_SIZE, DDIO_COUNT, DDIO_SHARE = 1024, 300, 0.1
#: Readings of the last level's occupancy while those frames arrive.
READINGS = 100


@dataclass(frozen=True)
class Study:
    """Results, all as in result.json.

    Attributes:
        comparison: by traffic, then by way.
        sweep: by way, in order of the offered load.
        ddio: by "on" and "off", then by way; the first way with DDIO on has ``samples``.
    """

    comparison: Mapping[str, Mapping[str, Result]]
    sweep: Mapping[str, Sequence[Result]]
    ddio: Mapping[str, Mapping[str, Result]]
    dram_access_ns: float  #: from a load to its data, caches missed, the row closed
    published: Sequence[Beside]  #: figures with the model's own, on the machine they were measured on


def study(
    comparison: Comparison, compared: Mapping[str, Mapping[str, Result]], console: Console | None = None
) -> Study:
    """Run what a report needs beside the comparison.

    Raises:
        ConfigError, TrafficError, ToolError: as ``sim.compare.compare``.
    """
    ways = comparison.ways
    traffics = {f"sweep/{share:g}": _traffic(comparison, share, SIZE, COUNT) for share in SHARES}
    sweeping = dataclasses.replace(comparison, traffics=traffics)
    runs: list[Experiment] = [sweeping.experiment(way, traffic) for way in ways for traffic in traffics]
    machine = comparison.machine
    for ddio in DDIO:
        name = f"ddio/{ddio}"
        other = dataclasses.replace(
            comparison,
            options={**comparison.options, "ddio": ddio == "on"},
            traffics={name: _traffic(comparison, DDIO_SHARE, DDIO_SIZE, DDIO_COUNT)},
        )
        runs += [other.experiment(way, name) for way in ways]
        if ddio == "on":
            runs[-len(ways)] = dataclasses.replace(runs[-len(ways)], sample_ns=_period_ns(comparison))
    results = iter(run_all(runs, console, "runs for the report"))
    sweep = {str(way): [next(results) for _ in SHARES] for way in ways}
    access_ns = dram_latency_ns(machine)
    by_ddio = {ddio: {str(way): next(results) for way in ways} for ddio in DDIO}
    published = measure(PUBLISHED_MACHINE, comparison.out / "published", console)
    return Study(compared, sweep, by_ddio, access_ns, published)


def _period_ns(comparison: Comparison) -> float:
    """Time between readings of the occupancy."""
    frame_ns = (DDIO_SIZE + WIRE_OVERHEAD_BYTES) * 8 / (comparison.machine.nic.line_gbps * DDIO_SHARE)
    return max(LEAST_SAMPLE_NS, frame_ns * DDIO_COUNT / READINGS)


def _traffic(comparison: Comparison, share: float, size: int, count: int) -> Traffic:
    """Frames at a share of line rate."""
    rate = f"{comparison.machine.nic.line_gbps * share * 1e3:.0f}Mbps"
    return Traffic.make(size=size, rate=rate, count=count, seed=comparison.seed)
