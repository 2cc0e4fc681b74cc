"""Results as tables on the terminal (drawn by rich)."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_result"]

#: Functions shown in the table of cycles; the rest is summed up in one line, and result.json has them all.
FUNCTIONS_SHOWN = 12


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print what became of every packet, how fast, how late, and where the core's cycles went."""
    packets, rates, latency = result["packets"], result["rates"], result["latency_ns"]
    time, host = result["time"], result["host"]
    console.print()
    console.print(
        f"[bold]{result['path']}[/] on [bold]{result['machine']['name']}[/]: {result['traffic']['description']}"
    )

    table = Table(title="Packets", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("offered on the wire", f"{packets['offered']:,}")
    table.add_row("received into memory by the card", f"{packets['received']:,}")
    table.add_row("delivered to an application", f"[green]{packets['delivered']:,}[/]")
    for reason, count in sorted(packets["dropped"].items(), key=lambda item: -item[1]):
        table.add_row(f"dropped: {reason}", f"[yellow]{count:,}[/]")
    if packets["transmitted"]:
        table.add_row("sent back or on", f"[green]{packets['transmitted']:,}[/]")
    if packets["consumed"]:
        table.add_row("consumed by the protocol", f"{packets['consumed']:,}")
    table.add_row("in flight at the end", f"{packets['in_flight']:,}")
    console.print(table)

    table = Table(title="Rates and latency", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("offered", f"{rates['offered_mpps']:.3f} Mpps")
    table.add_row("delivered", f"{rates['delivered_mpps']:.3f} Mpps, {rates['delivered_gbps']:.3f} Gb/s")
    if "goodput_gbps" in rates:
        table.add_row("byte stream read", f"{rates['goodput_gbps']:.3f} Gb/s")
    if latency["min"] is not None:
        for name in ("p50", "p99", "max"):
            table.add_row(f"wire to return from recv, {name}", f"{latency[name]:,.0f} ns")
    interrupts = result["interrupts"]
    table.add_row("interrupts raised, taken", f"{interrupts['raised']:,}, {interrupts['taken']:,}")
    table.add_row("polls", f"{interrupts['polls']:,}")
    console.print(table)

    for message in result.get("dmar", ()):
        console.print(message, style="yellow", highlight=False, markup=False)

    functions = sorted(result["cycles_per_packet"].items(), key=lambda item: -item[1])
    if functions:
        table = Table(title="Core cycles per received packet", title_justify="left")
        table.add_column("function")
        table.add_column("cycles", justify="right")
        for name, cycles in functions[:FUNCTIONS_SHOWN]:
            table.add_row(name, f"{cycles:,.1f}")
        rest = functions[FUNCTIONS_SHOWN:]
        if rest:
            table.add_row(f"{len(rest)} more", f"{sum(cycles for _, cycles in rest):,.1f}")
        table.add_row("total", f"[bold]{sum(result['cycles_per_packet'].values()):,.1f}[/]", style="bold")
        console.print(table)

    table = Table(title="Cores, % of the time from the first frame to the end", title_justify="left")
    for heading in ("core", "idle", "interrupt", "softirq", "system", "user"):
        table.add_column(heading, justify="left" if heading == "core" else "right")
    for index, core in enumerate(result["cores"]):
        total = core["busy"] + core["idle"] or 1
        shares = [core["idle"], core["irq"], core["softirq"], core["system"], core["user"]]
        table.add_row(str(index), *(f"{100 * share / total:.1f}" for share in shares))
    console.print(table)
    console.print(
        f"{time['simulated_ns'] / 1000:,.1f} us simulated, {time['cycles']['core']:,} core cycles,"
        f" in {host['wall_s']:.1f} s ({host['core_cycles_per_s'] / 1e6:.2f} M core cycles/s)",
        highlight=False,
    )
