"""What one needs beside ``waves.fst``: how its times and names follow from the log, and a saved view for GTKWave.

**Time.** ``waves.fst`` counts picoseconds. The edge at tick t is at :func:`picoseconds` of t, rounded down; from then
on the waves show what registers hold after it. What makes an event of the log is there just before: one picosecond
earlier ``valid`` is high and the fields are those of the log. Edges less than a picosecond apart, which machines with
odd frequencies can have, come a picosecond after each other. Skipped edges are not in the waves: the clock stands
still and ``now`` leaps before the next executed edge.

**Names.** The probe ``nic.rx.write_back0`` is ``nicscope.machine.nic.rx.write_back0__valid`` and one signal for each of
its fields, ``…__packet`` and so on; counters end in ``__count``, timers in ``__armed`` and ``__deadline``.

**Not there:** arrays of more than 64 rows (contents of caches and memory), and names that a tool has invented.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim.build.manifest import Manifest

from .log import EventLog

__all__ = ["gtkwave_view", "picoseconds", "probe_signal"]

#: Groups of the view: title, signals of the toplevel, beginnings of the paths of probes.
_GROUPS: Sequence[tuple[str, Sequence[str], Sequence[str]]] = (
    ("Wire", ("wire_valid", "wire_ready"), ("nic.mac.", "nic.packet_buffer.")),
    ("Card: descriptors, DMA, interrupt", (), ("nic.rx.", "nic.interrupt.")),
    ("Link", (), ("link.",)),
    ("Last-level cache: DMA and DRAM", (), ("llc.device_", "llc.dram_")),
    ("Core 0", (), ("core0.port.issue", "core0.port.interrupt", "core0.l1.miss", "core0.l1.refill")),
)
#: Steps of a packet that get a marker: letter, name, probe.
_MARKERS = (
    ("A", "arrived", "nic.mac.frame"),
    ("B", "dma_write", "nic.rx.dma.writer.dma_write"),
    ("C", "write_back", "nic.rx.write_back"),
    ("D", "msix", "nic.interrupt.msix"),
    ("E", "interrupt", "core0.port.interrupt"),
)
#: Formats of GTKWave's save files: right-justified hexadecimal, binary, decimal; a comment that groups.
_HEX, _BINARY, _DECIMAL, _COMMENT = "@22", "@28", "@24", "@200"
#: About how many pixels a packet's way is drawn on.
_PIXELS = 800
_NAMED_MARKERS = 26
#: Pixels in what GTKWave calls a frame, the unit of its zoom.
_FRAME_PIXELS = 200


def picoseconds(tick: int, ticks_per_second: int) -> int:
    """Where ``waves.fst`` has the edge at ``tick``."""
    return tick * 10**12 // ticks_per_second


def probe_signal(path: str, field: str = "valid") -> str:
    """Name in ``waves.fst`` of a field of the probe ``path``, or of its ``valid``."""
    return f"nicscope.machine.{path}__{field}"


def gtkwave_view(log: EventLog, packet: int = 1) -> str:
    """A save file for GTKWave, for ``gtkwave waves.fst waves.gtkw``.

    It shows clocks, which domains sleep, and the probes along a packet's way, opens where ``packet`` was on its way
    and has markers at its steps.
    """
    marks = _marks(log, packet)
    lines = [
        "[*] Saved view of waves.fst: gtkwave waves.fst waves.gtkw",
        f"[timestart] {max(0, _first(marks) - _span(marks) // 10)}",
        "[treeopen] nicscope.",
        "[treeopen] nicscope.machine.",
        _zoom(marks),
        *(f"[markername] {mark.letter}{mark.name}" for mark in marks),
        "[sst_expanded] 1",
        *_signals(log.manifest),
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Mark:
    letter: str
    name: str
    picosecond: int


def _marks(log: EventLog, packet: int) -> list[_Mark]:
    """Each step of a packet, as far as it came; what does not name a packet is the first after the step before."""
    result, tick = [], 0
    for letter, name, beginning in _MARKERS:
        found = []
        for probe in log.manifest.probes:
            if probe.path.startswith(beginning):
                events = log.select(probe.path)
                if "packet" in dict(probe.fields):
                    events = events[events["packet"] == packet]
                found += events["tick"][events["tick"] >= tick].tolist()
        if not found:
            break
        tick = min(found)
        result.append(_Mark(letter, name, picoseconds(tick, log.manifest.ticks_per_second)))
    return result


def _first(marks: Sequence[_Mark]) -> int:
    return marks[0].picosecond if marks else 0


def _span(marks: Sequence[_Mark]) -> int:
    return max(1000, marks[-1].picosecond - _first(marks) if marks else 0)


def _zoom(marks: Sequence[_Mark]) -> str:
    """The line with the zoom (minus the logarithm of picoseconds per frame), the cursor, and every named marker."""
    places = {mark.letter: mark.picosecond for mark in marks}
    named = [places.get(chr(ord("A") + number), -1) for number in range(_NAMED_MARKERS)]
    zoom = -math.log2(1.2 * _span(marks) / _PIXELS * _FRAME_PIXELS)
    return f"*{zoom:.6f} {_first(marks)} " + " ".join(map(str, named))


def _signals(manifest: Manifest) -> list[str]:
    lines = [_COMMENT, "-Clocks, and which domains sleep", _BINARY]
    for domain in manifest.domains:
        lines += [f"nicscope.clk_{domain.name}", f"nicscope.quiet_{domain.name}"]
    for title, ports, beginnings in _GROUPS:
        lines += [_COMMENT, f"-{title}", _BINARY, *(f"nicscope.{port}" for port in ports)]
        for probe in manifest.probes:
            if probe.path.startswith(tuple(beginnings)):
                lines += [_BINARY, f"+{{{probe.path.replace('.', ' ')}}} {probe_signal(probe.path)}"]
                for name, width in probe.fields:
                    signal = probe_signal(probe.path, name)
                    lines.append(_DECIMAL if name in ("packet", "length", "count", "index") else _HEX)
                    lines.append(f"+{{  {name}}} {signal}{f'[{width - 1}:0]' if width > 1 else ''}")
    return lines
