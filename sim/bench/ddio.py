"""``nicscope bench ddio``: how many of a card's writes hit the last level, by the ways that they may allocate in.

The experiment of Farshin et al., "Reexamining Direct Cache Access to Optimize I/O Intensive Applications for
Multi-hundred-gigabit Networks", ATC 2020, section 4.4: one core forwards frames of 1024 bytes that come at 100 Gb/s, by
a poll-mode driver with 4096 receive descriptors. What it counts are writes of whole lines (``ItoM``). One build serves
for all: the ways are a register.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hw.config import ConfigError, MachineConfig
from sim.experiment import Experiment
from sim.report.published import curve
from sim.wire.traffic import Traffic

__all__ = ["RING", "TX_RING", "ddio", "plot_ddio", "print_ddio", "write_hits"]

#: Of the experiment's configuration (aliireza/ddio-bench, ddio-tune.testie).
SIZE, RING = 1024, 4096
#: FastClick leaves the transmit ring to the driver, and mlx5 takes 256 for up to two queues
#: (``mlx5_set_default_params``).
TX_RING = 256

#: Turns of the receive ring before counting begins, and while it lasts.
WARM_TURNS, COUNTED_TURNS = 2, 2
#: Of simulated time between two readings.
_SAMPLE_NS = 20_000.0


def ddio(
    machine: MachineConfig,
    out: Path,
    console: Console,
    *,
    ways: Sequence[int] | None = None,
    ring: int = RING,
    tx_ring: int = TX_RING,
) -> dict[str, Any]:
    """Run the experiment for each number of ways; returns figures for :func:`print_ddio`.

    Arguments:
        out: where each run's results go.
        ways: None: those that are published and that the machine has.
        ring: receive descriptors.
        tx_ring: transmit descriptors.

    Raises:
        ConfigError: for ways that the machine has not.
    """
    published = curve("ddio_ways")
    if ways is None:
        ways = [number for number in published["ways"] if number <= machine.llc.ways]
    beyond = [number for number in ways if not 1 <= number <= machine.llc.ways]
    if beyond:
        raise ConfigError(
            f"--ways must be between 1 and {machine.llc.ways}, the ways of {machine.name}, not {beyond[0]}"
        )
    hits = dict(zip(published["ways"], published["pcie_write_hit_percent"], strict=True))
    gbps = dict(zip(published["ways"], published["goodput_gbps"], strict=True))
    rows = []
    for number in ways:
        with console.status(f"{number} of {machine.llc.ways} ways"):
            row = write_hits(machine, number, out / f"ways{number}", ring=ring, tx_ring=tx_ring)
        rows.append({**row, "published_percent": hits.get(number), "published_gbps": gbps.get(number)})
    return {
        "machine": machine.name,
        "size": SIZE,
        "ring": ring,
        "tx_ring": tx_ring,
        "ways": rows,
        "cite": published["cite"],
    }


def write_hits(
    machine: MachineConfig, ways: int, out: Path, *, ring: int = RING, tx_ring: int = TX_RING
) -> dict[str, Any]:
    """One run: hits among the card's writes of whole lines, once every buffer has been in use."""
    count = (WARM_TURNS + COUNTED_TURNS) * ring
    experiment = Experiment(
        "dpdk",
        machine,
        Traffic.make(size=SIZE, rate="line", count=count),
        application="l2fwd",
        options={"ring_size": ring, "tx_ring": tx_ring, "ddio_ways": ways},
        background=False,
        sample_ns=_SAMPLE_NS,
        out=out,
    )
    result = experiment.run()
    samples = result["samples"]
    counters, readings = samples["counters"], len(samples["time_ns"])

    def counted(name: str) -> int:
        """What a counter gained from the end of the first turns on, to the last frame's arrival."""
        values = counters.get(name, [0] * readings)
        return values[last] - values[first]

    # Frames arrive evenly, those that are dropped too
    arrived_ns = count * 1e3 / result["rates"]["offered_mpps"]
    first, last = (
        max(index for index, ns in enumerate(samples["time_ns"]) if ns <= arrived_ns * share)
        for share in (WARM_TURNS / (WARM_TURNS + COUNTED_TURNS), 1)
    )
    hit, missed = counted("llc.itom_hit"), counted("llc.itom_miss")
    read_hit, read_missed = counted("llc.device_read_hit"), counted("llc.device_read_miss")
    return {
        "ways": ways,
        "write_hit_percent": 100 * hit / max(hit + missed, 1),
        "read_hit_percent": 100 * read_hit / max(read_hit + read_missed, 1),
        "leaked_lines": counted("llc.io_lines_evicted_unread"),
        "written_lines": hit + missed,
        "goodput_gbps": result["rates"]["delivered_gbps"],
        "dropped": sum(result["packets"]["dropped"].values()),
    }


def print_ddio(figures: dict[str, Any], console: Console) -> None:
    """The curve as a table."""
    title = (
        f"{figures['machine']}: l2fwd of {figures['size']}-byte frames at line rate, {figures['ring']} receive and "
        f"{figures['tx_ring']} transmit descriptors"
    )
    table = Table(title=title)
    for heading in (
        "ways",
        "PCIe writes\nthat hit, %",
        "published",
        "PCIe reads\nthat hit, %",
        "evicted unread, %",
        "Gb/s",
        "published",
    ):
        table.add_column(heading, justify="right")
    for row in figures["ways"]:
        told = [row["published_percent"], row["published_gbps"]]
        percent, gbps = ("" if value is None else f"{value:g}" for value in told)
        leaked = 100 * row["leaked_lines"] / max(row["written_lines"], 1)
        table.add_row(
            str(row["ways"]), f"{row['write_hit_percent']:.1f}", percent, f"{row['read_hit_percent']:.1f}",
            f"{leaked:.1f}", f"{row['goodput_gbps']:.1f}", gbps,
        )  # fmt: skip
    console.print(table)
    console.print(f"Published: {figures['cite']}", highlight=False)


def plot_ddio(figures: dict[str, Any], path: Path) -> None:
    """Draw hits against ways, beside what is published."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    rows = figures["ways"]
    told = [row for row in rows if row["published_percent"] is not None]
    axes.plot(
        [r["ways"] for r in told], [r["published_percent"] for r in told], "--s", color="#94a3b8", label="published"
    )
    axes.plot([r["ways"] for r in rows], [r["write_hit_percent"] for r in rows], "-o", color="#c2410c", label="model")
    axes.set_xlabel("ways of the last level in which device writes may allocate")
    axes.set_ylabel("PCIe writes of whole lines that hit, %")
    axes.set_ylim(0, 103)
    axes.set_title(f"{figures['machine']}, {figures['ring']} receive descriptors, {figures['size']}-byte frames")
    axes.grid(axis="y", color="#e2e8f0")
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)
