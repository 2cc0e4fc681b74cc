"""The plots of a report, as SVG (drawn by matplotlib)."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sim.observe.stages import Stage
from sim.report.occupancy import draw_occupancy
from sim.report.study import DDIO, QUIET_SHARE, SHARES, Study
from sim.result import PERCENTILES
from sim.wire.frames import WIRE_OVERHEAD_BYTES

__all__ = ["PLOTS"]

Result = Mapping[str, Any]

#: One colour per stage and per way: told apart by the colour-blind too (after Okabe and Ito, 2008).
STAGE_COLOURS = {
    Stage.SWITCHING: "#e69f00",
    Stage.CROSSING: "#56b4e9",
    Stage.DRIVER: "#009e73",
    Stage.PROTOCOL: "#0072b2",
    Stage.COPY: "#cc79a7",
    Stage.APPLICATION: "#d55e00",
    Stage.STALLS: "#a3a3a3",
}
WAY_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3b08", "#525252")
MARKERS = "osD^vPX*"
#: When colours and markers begin again.
LINES = ("-", "--", ":")
#: Line rates of the last plot, in Gb/s, and the frame in bytes.
LINE_RATES = (10, 40, 100)
FRAME_BYTES = 64


@contextmanager
def _axes(height: float = 4.2) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; the SVG is put into the list at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn: list[str] = []
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        yield axes, drawn
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    # Without prolog and fixed size it goes into a page as it is.
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    drawn.append(re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"|^', r"\1\2", svg, count=1))


def _logarithmic(axis: Any) -> None:
    """Make an axis logarithmic, its ticks plain numbers: 0.1, 0.2, 0.5, 1, and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _way_style(index: int) -> dict[str, Any]:
    turn, place = divmod(index, len(WAY_COLOURS))
    return {
        "color": WAY_COLOURS[place],
        "marker": MARKERS[place],
        "markersize": 5,
        "linestyle": LINES[turn % len(LINES)],
    }


def _beside(axes: Any, x: float, y: float, text: str) -> None:
    """Write behind the end of a bar."""
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=9)


def _burst(study: Study) -> Mapping[str, Result]:
    """The comparison's last traffic: under load."""
    return list(study.comparison.values())[-1]


def cycles_by_stage(study: Study) -> str:
    """Core cycles per packet, a bar for each way, stacked by stage."""
    results = _burst(study)
    ways = list(results)[::-1]
    with _axes(0.6 + 0.5 * len(ways) + 0.9) as (axes, drawn):
        left = [0.0] * len(ways)
        for stage, colour in STAGE_COLOURS.items():
            widths = [results[way]["stages"][stage] for way in ways]
            axes.barh(ways, widths, left=left, color=colour, label=str(stage), height=0.65)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, total in enumerate(left):
            _beside(axes, total, place, f"{total:,.0f}")
        axes.set_xlim(0, max(left) * 1.1)
        axes.set_xlabel("core cycles per received packet")
        axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False, fontsize=9)
    return drawn[0]


def delivered_against_offered(study: Study) -> str:
    """Delivered packet rate as the offered one rises."""
    with _axes() as (axes, drawn):
        for index, (way, results) in enumerate(study.sweep.items()):
            offered = [result["rates"]["offered_mpps"] for result in results]
            axes.plot(offered, [r["rates"]["delivered_mpps"] for r in results], label=way, **_way_style(index))
        most = max(result["rates"]["offered_mpps"] for results in study.sweep.values() for result in results)
        axes.plot([0, most], [0, most], color="#a3a3a3", linestyle=":", linewidth=1, label="all of it")
        axes.set_xlabel("offered, million 64-byte frames per second")
        axes.set_ylabel("delivered, Mpps")
        _logarithmic(axes.xaxis)
        _logarithmic(axes.yaxis)
        axes.grid(color="#e5e5e5")
        axes.legend(frameon=False, fontsize=9)
    return drawn[0]


def latency(study: Study) -> str:
    """Distribution of the latency at a load that every way keeps up with."""
    place = SHARES.index(QUIET_SHARE)
    with _axes() as (axes, drawn):
        for index, (way, results) in enumerate(study.sweep.items()):
            values = results[place]["latency_ns"]["percentiles"]
            if values is not None:
                style = _way_style(index) | {"marker": ""}
                axes.plot([value / 1000 for value in values], PERCENTILES, label=way, drawstyle="steps-post", **style)
        _logarithmic(axes.xaxis)
        axes.set_xlabel("last bit on the wire to the application, microseconds")
        axes.set_ylabel("% of packets at most so late")
        axes.grid(color="#e5e5e5")
        axes.legend(frameon=False, fontsize=9)
    return drawn[0]


def ddio(study: Study) -> str:
    """Core cycles per packet with DDIO on and off."""
    ways = list(study.ddio["on"])[::-1]
    with _axes(0.9 + 0.75 * len(ways)) as (axes, drawn):
        for shift, (switch, colour) in zip((0.2, -0.2), zip(DDIO, ("#0072b2", "#e69f00"), strict=True), strict=True):
            totals = [sum(study.ddio[switch][way]["stages"].values()) for way in ways]
            places = [place + shift for place in range(len(ways))]
            axes.barh(places, totals, height=0.38, color=colour, label=f"DDIO {switch}")
            for place, way, total in zip(places, ways, totals, strict=True):
                accesses = study.ddio[switch][way]["per_packet"]["dram_accesses"]
                _beside(axes, total, place, f"{total:,.0f}; DRAM {accesses:.1f}")
        axes.set_yticks(range(len(ways)), ways)
        axes.set_xlabel("core cycles per packet")
        axes.margins(x=0.2)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return drawn[0]


def occupancy(study: Study) -> str:
    """Who holds the last level over time."""
    way, result = next((way, result) for way, result in study.ddio["on"].items() if "samples" in result)
    with _axes() as (axes, drawn):
        draw_occupancy(axes, result["samples"])
        axes.set_title(way, fontsize=10)
    return drawn[0]


def budget(study: Study) -> str:
    """Nanoseconds that a packet takes on its core, against what the wire leaves for one and a DRAM access."""
    results = _burst(study)
    ways = list(results)[::-1]
    machine = next(iter(results.values()))["machine"]
    spent = [sum(results[way]["stages"].values()) * 1000 / machine["clocks"]["core"] for way in ways]
    with _axes(0.6 + 0.5 * len(ways) + 0.9) as (axes, drawn):
        axes.barh(ways, spent, color="#0072b2", height=0.6)
        for place, ns in enumerate(spent):
            _beside(axes, ns, place, f"{ns:,.1f} ns")
        for gbps, style in zip(LINE_RATES, ("-", "--", ":"), strict=True):
            ns = (FRAME_BYTES + WIRE_OVERHEAD_BYTES) * 8 / gbps
            axes.axvline(ns, color="#d55e00", linestyle=style, linewidth=1.2, label=f"{ns:.1f} ns: {gbps} Gb/s")
        access = study.dram_access_ns
        axes.axvline(access, color="#525252", linewidth=1.2, label=f"{access:.0f} ns: one load from DRAM")
        _logarithmic(axes.xaxis)
        axes.set_xlim(right=max(spent) * 2.2)
        axes.set_xlabel("ns per 64-byte packet on one core")
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False, fontsize=9)
    return drawn[0]


#: Heading, what to see in it, and how it is drawn.
PLOTS: Sequence[tuple[str, str, Callable[[Study], str]]] = (
    (
        "Where the cycles go",
        "Core cycles for each received packet under the last traffic of the table. Memory stalls are what the same "
        "work would not take if every access hit the first-level cache at once.",
        cycles_by_stage,
    ),
    (
        "Delivered against offered",
        "64-byte frames; below the dotted line packets are lost. A way that falls again as the load grows spends its "
        "time on packets that it then drops.",
        delivered_against_offered,
    ),
    (
        "Latency",
        "From the last bit on the wire to the application, at a load that every way keeps up with.",
        latency,
    ),
    (
        "DDIO on and off",
        "1024-byte frames. With DDIO the card writes into the last-level cache, without it into DRAM. Behind each bar: "
        "core cycles, and DRAM accesses, for each packet.",
        ddio,
    ),
    (
        "Who holds the last level",
        "What of the last-level cache the card and the cores have allocated over time, in the run of one way with DDIO "
        "on; the broken line counts what the card wrote and nobody had read when it was evicted.",
        occupancy,
    ),
    (
        "The budget of a packet",
        "What one packet takes on its core, the time that the wire leaves for one at three line rates, and one load "
        "from DRAM.",
        budget,
    ),
)
