"""A comparison on the terminal (drawn by rich): a table for each traffic, a column for each way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sim.observe.stages import Stage

__all__ = ["print_comparison", "rows"]

Result = Mapping[str, Any]

#: Characters between two columns.
_GAP = 2


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
    """Print it: a table for each traffic, or several where not all ways fit beside each other.

    Arguments:
        comparison: result.json by traffic, then by way.
    """
    for results in comparison.values():
        first = next(iter(results.values()))
        console.print(f"[bold]{first['traffic']['description']}[/], on {first['machine']['name']}", highlight=False)
        lines = rows(results)
        headings = [way.replace(":", "\n") for way in results]
        for some in _beside(headings, lines, console.width):
            table = Table(box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("", no_wrap=True)
            for place in some:
                table.add_column(headings[place], justify="right", no_wrap=True)
            for heading, cells in lines:
                table.add_row(heading, *(cells[place] for place in some))
            console.print(table)


def _beside(headings: Sequence[str], lines: Sequence[tuple[str, list[str]]], width: int) -> list[list[int]]:
    """Which ways stand in one table of at most ``width`` characters: at least one, about as many in each."""
    label = max(len(heading) for heading, _ in lines)
    columns = [
        max(len(text) for text in (*heading.split("\n"), *(cells[place] for _, cells in lines))) + _GAP
        for place, heading in enumerate(headings)
    ]
    most = max(1, (width - label) // max(columns))
    tables = -(-len(columns) // most)
    each = -(-len(columns) // tables)
    return [list(range(start, min(start + each, len(columns)))) for start in range(0, len(columns), each)]
