"""A comparison as one table on the terminal (drawn by rich): a column for each way, a section for each traffic."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from sim.observe.stages import Stage

__all__ = ["print_comparison", "rows"]

Result = Mapping[str, Any]


def rows(results: Mapping[str, Result]) -> list[tuple[str, list[str]]]:
    """Heading and one cell for each result: what is told of one traffic.

    Arguments:
        results: result.json of each way.
    """
    lines: list[tuple[str, Callable[[Result], str]]] = [
        ("delivered, Mpps", lambda r: f"{r['rates']['delivered_mpps']:.3f}"),
        ("delivered, Gb/s", lambda r: f"{r['rates']['delivered_gbps']:.3f}"),
        ("latency p50, ns", lambda r: _nanoseconds(r["latency_ns"]["p50"])),
        ("latency p99, ns", lambda r: _nanoseconds(r["latency_ns"]["p99"])),
        ("core cycles per packet", lambda r: f"{sum(r['stages'].values()):,.0f}"),
        *((f"  {stage}", _stage(stage)) for stage in Stage if stage is not Stage.WAITING),
        ("interrupts per packet", lambda r: f"{r['per_packet']['interrupts']:.3f}"),
        ("polls per packet", lambda r: f"{r['per_packet']['polls']:.3f}"),
        ("DRAM accesses per packet", lambda r: f"{r['per_packet']['dram_accesses']:.2f}"),
        ("PCIe bytes per packet", lambda r: f"{r['per_packet']['pcie_bytes']:.0f}"),
        ("delivered, % of offered", lambda r: f"{100 * _done(r) / r['packets']['offered']:.1f}"),
    ]
    reasons = sorted({reason for result in results.values() for reason in result["packets"]["dropped"]})
    lines += [(f"  dropped: {reason}", _dropped(reason)) for reason in reasons]
    if any(result["packets"]["consumed"] for result in results.values()):
        lines.append(("  consumed by the protocol", lambda r: f"{r['packets']['consumed']:,}"))
    if any(result["packets"]["in_flight"] for result in results.values()):
        lines.append(("  in flight at the end", lambda r: f"{r['packets']['in_flight']:,}"))
    return [(heading, [tell(result) for result in results.values()]) for heading, tell in lines]


def _done(result: Result) -> int:
    return result["packets"]["delivered"] + result["packets"]["transmitted"]


def _nanoseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _stage(stage: Stage) -> Callable[[Result], str]:
    return lambda result: f"{result['stages'][stage]:,.0f}"


def _dropped(reason: str) -> Callable[[Result], str]:
    return lambda result: f"{result['packets']['dropped'].get(reason, 0):,}"


def print_comparison(comparison: Mapping[str, Mapping[str, Result]], console: Console) -> None:
    """Print it.

    Arguments:
        comparison: result.json by traffic, then by way.
    """
    ways = list(next(iter(comparison.values())))
    table = Table()
    table.add_column("")
    for way in ways:
        table.add_column(way.replace(":", "\n"), justify="right")
    for results in comparison.values():
        first = next(iter(results.values()))
        table.add_section()
        table.add_row(f"[bold]{first['traffic']['description']}[/]")
        for heading, cells in rows(results):
            table.add_row(heading, *cells)
    machine = next(iter(next(iter(comparison.values())).values()))["machine"]["name"]
    console.print(f"[bold]{', '.join(ways)}[/] on [bold]{machine}[/]")
    console.print(table)
