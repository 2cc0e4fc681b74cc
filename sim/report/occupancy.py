"""Who has how much of the last level, over time: a plot of a run's samples."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw_occupancy", "plot_occupancy"]

_IO = re.compile(r"llc\.occupancy_io(\d+)$")
_CLASS = re.compile(r"llc\.occupancy_class(\d+)$")
#: Bytes of a line, in KiB.
_LINE_KIB = 64 / 1024


def draw_occupancy(axes: Any, samples: Mapping[str, Any]) -> None:
    """Draw the lines that devices and each class of service allocated, and how many of the devices' left unread.

    Arguments:
        axes: matplotlib's.
        samples: ``samples`` of result.json.
    """
    counters, time_us = samples["counters"], [ns / 1000 for ns in samples["time_ns"]]
    io = [values for name, values in counters.items() if _IO.match(name)]
    if io:
        axes.plot(time_us, [sum(at) * _LINE_KIB for at in zip(*io, strict=True)], color="#c2410c", label="devices")
    colours = iter(("#1d4ed8", "#15803d", "#7e22ce", "#0f766e"))
    for name, values in counters.items():
        found = _CLASS.match(name)
        if found:
            label = f"cores of class of service {found[1]}"
            axes.plot(time_us, [value * _LINE_KIB for value in values], color=next(colours, "#475569"), label=label)
    leaked = counters.get("llc.io_lines_evicted_unread")
    if leaked:
        kib = [(value - leaked[0]) * _LINE_KIB for value in leaked]
        axes.plot(time_us, kib, "--", color="#94a3b8", label="evicted before anyone read it, in all")
    axes.set_xlabel("us after the software was up")
    axes.set_ylabel("KiB of the last level")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(fontsize=8)
    axes.grid(axis="y", color="#e2e8f0")


def plot_occupancy(samples: Mapping[str, Any], title: str, path: Path) -> None:
    """Write :func:`draw_occupancy`'s drawing as an SVG of its own.

    Arguments:
        samples: ``samples`` of result.json.
        title: of the plot.
        path: of the SVG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    draw_occupancy(axes, samples)
    axes.set_title(title)
    figure.savefig(path)
    pyplot.close(figure)
