"""``nicscope bench memory``: what the modelled memory hierarchy takes, by size, page, pattern and prefetching.

Bare-metal programs on the native engine; all times are simulated ones. A *chase* is a chain of loads, each needing the
one before, over all lines of a buffer in random order: its time per load is the latency at that size. *Streams* go
through a buffer in order, with one 64-byte access per line; *random* touches its lines in random order, independently.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hw.bus.tilelink import LINE_BYTES
from hw.config import MachineConfig
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import NativeBuild, build_native
from sim.engine.native import NativeEngine
from sw.paging import PageSize, PageTables, virtual

__all__ = ["PAGES", "memory", "plot_memory", "print_memory"]

PAGES = {"4 KiB": PageSize.KIB_4, "2 MiB": PageSize.MIB_2, "1 GiB": PageSize.GIB_1}

#: Loads of a chase that are timed, after the buffer has been touched.
STEPS = 1500
#: Lines of a stream that are timed.
STREAM_LINES = 4000

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Arena:
    """A fresh machine with a buffer per core, mapped by pages of one size."""

    machine: MachineConfig
    bench: BareMetal
    bases: Sequence[int]  #: virtual address of each core's buffer
    rng: random.Random

    @classmethod
    def make(cls, build: NativeBuild, machine: MachineConfig, page: PageSize, size: int, cores: int) -> "Arena":
        """Write page tables to the top of memory, and use them on all ``cores``."""
        bench = BareMetal(NativeEngine(build))
        top = machine.dram.size_mib * MIB

        def allocate(length: int, alignment: int) -> int:
            nonlocal top
            top = (top - length) & -alignment
            if top < cores * size:
                raise ValueError(f"{cores} buffers of {size} bytes and their page tables exceed dram.size_mib")
            return top

        tables = PageTables(allocate)
        stride = -(-size // page.bytes) * page.bytes if page is not PageSize.GIB_1 else size
        for address, entry in tables.map(0, stride * (cores - 1) + size, page):
            bench.store(0, address, entry.to_bytes(8, "little"))
        bench.settle(0)
        for core in range(cores):
            bench.write_cr3(core, tables.root)
        bases = [virtual(core * stride, page) for core in range(cores)]
        return cls(machine, bench, bases, random.Random(1))

    def lines(self, size: int) -> list[int]:
        """Offsets of all lines of a buffer in random order."""
        offsets = list(range(0, size, LINE_BYTES))
        self.rng.shuffle(offsets)
        return offsets

    def warm(self, offsets: Sequence[int]) -> None:
        """Touch lines of every core's buffer, as many of the last ones as could still be cached."""
        machine = self.machine
        most = 2 * (machine.llc.size_kib + len(self.bases) * machine.l2.size_kib) * KIB // LINE_BYTES
        for core, base in enumerate(self.bases):
            for offset in offsets[-most:]:
                self.bench.touch(core, base + offset)
        self.bench.settle()

    def timed(self) -> float:
        """Run what is queued and return nanoseconds."""
        engine = self.bench.engine
        begin = engine.tick
        self.bench.settle()
        return (engine.tick - begin) / self.machine.ticks_per_second * 1e9


def _sizes(machine: MachineConfig, cores: int, most: int) -> Iterator[int]:
    """4 KiB, 8 KiB, … up to ``most`` bytes or what fits beside the page tables."""
    room = machine.dram.size_mib * MIB // cores
    size = 4 * KIB
    while size <= most and size + size // 256 + 64 * KIB <= room:
        yield size
        size *= 2


def _chase(build: NativeBuild, machine: MachineConfig, page: PageSize, size: int, cores: int) -> float:
    """Nanoseconds per load."""
    arena = Arena.make(build, machine, page, size, cores)
    offsets = arena.lines(size)
    arena.warm(offsets)
    for core, base in enumerate(arena.bases):
        before = -1
        for offset in itertools.islice(itertools.cycle(offsets), STEPS):
            before = arena.bench.touch(core, base + offset, after=before)
    return arena.timed() / STEPS


def _stream(build: NativeBuild, machine: MachineConfig, pattern: str, size: int, cores: int) -> float:
    """Gigabytes per second, over all cores."""
    arena = Arena.make(build, machine, PageSize.MIB_2, size, cores)
    offsets = arena.lines(size)
    if pattern != "random":
        offsets.sort()
    arena.warm(offsets)
    count = 0
    bench, data = arena.bench, bytes(LINE_BYTES)
    for core, base in enumerate(arena.bases):
        for offset in itertools.islice(itertools.cycle(offsets), STREAM_LINES):
            count += 1
            if pattern in ("read", "random"):
                bench.touch(core, base + offset, LINE_BYTES)
            elif pattern == "write":
                bench.store(core, base + offset, data)
            else:
                bench.store_nt(core, base + offset, data)
    return count * LINE_BYTES / arena.timed()


def dram_latency_ns(machine: MachineConfig) -> float:
    """Measured latency of a load from DRAM: a chase through four times the last level, in pages of 2 MiB.

    Raises:
        ToolError: when the machine cannot be built.
    """
    size = min(4 * machine.llc.size_kib * KIB, machine.dram.size_mib * MIB // 2)
    return _chase(build_native(Design(machine)), machine, PageSize.MIB_2, size, 1)


def memory(
    machine: MachineConfig, console: Console | None = None, *, quick: bool = False, most: int = 64 * MIB
) -> dict[str, Any]:
    """Measure.

    Arguments:
        console: where progress is shown.
        quick: fewer sizes, only 2 MiB pages.
        most: largest buffer in bytes.

    Raises:
        ToolError: when the machine cannot be built.
    """
    console = console or Console(quiet=True)
    without = machine.replace(["l2.prefetch_adjacent=false", "l2.prefetch_stream=false"])
    machines = {"on": machine, "off": without}
    chases: list[dict[str, Any]] = []
    streams: list[dict[str, Any]] = []
    with console.status("") as status:
        status.update(f"building {machine.name}, with prefetchers and without")
        builds = {prefetch: build_native(Design(config)) for prefetch, config in machines.items()}
        for prefetch, cores, (name, page) in itertools.product(machines, (1, 2), PAGES.items()):
            if cores > machine.core.count or (page is not PageSize.MIB_2 and (quick or cores == 2)):
                continue
            for size in list(_sizes(machine, cores, most))[:: 3 if quick else 1]:
                status.update(f"chase, {cores} cores, {_bytes(size)}, pages of {name}, prefetchers {prefetch}")
                ns = _chase(builds[prefetch], machines[prefetch], page, size, cores)
                cycles = ns * machine.clocks.core / 1000
                row = {"prefetch": prefetch, "cores": cores, "page": name, "bytes": size, "ns": ns, "cycles": cycles}
                chases.append(row)
        for level, size in _levels(machine).items():
            for prefetch, cores, pattern in itertools.product(
                machines, (1, 2), ("read", "write", "write-nt", "random")
            ):
                if cores > machine.core.count or cores * size > machine.dram.size_mib * MIB // 2:
                    continue
                status.update(f"{pattern} in {level}, {cores} cores, prefetchers {prefetch}")
                rate = _stream(builds[prefetch], machines[prefetch], pattern, size, cores)
                row = {"prefetch": prefetch, "cores": cores, "pattern": pattern, "level": level, "bytes": size}
                streams.append({**row, "gbytes_per_s": rate})
    return {"machine": machine.name, "core_mhz": machine.clocks.core, "chases": chases, "streams": streams}


def _levels(machine: MachineConfig) -> dict[str, int]:
    """A buffer size that lies in each level."""
    l1, l2, llc = (section.size_kib * KIB for section in (machine.l1, machine.l2, machine.llc))
    return {"L1": l1 // 2, "L2": l2 // 2, "last level": llc // 2, "DRAM": 4 * llc}


def _bytes(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def print_memory(figures: dict[str, Any], console: Console) -> None:
    """Tables of what :func:`memory` measured."""
    columns = list(dict.fromkeys((c["page"], c["cores"], c["prefetch"]) for c in figures["chases"]))
    table = Table(title=f"{figures['machine']}: pointer chase, core cycles (ns) per load")
    table.add_column("buffer", justify="right")
    for page, cores, prefetch in columns:
        table.add_column(f"{page} pages\n{cores} core{'s' * (cores > 1)}, prefetch {prefetch}", justify="right")
    found = {(c["bytes"], c["page"], c["cores"], c["prefetch"]): c for c in figures["chases"]}
    for size in sorted({c["bytes"] for c in figures["chases"]}):
        cells = [found.get((size, *column)) for column in columns]
        table.add_row(_bytes(size), *(f"{c['cycles']:.0f} ({c['ns']:.1f})" if c else "" for c in cells))
    console.print(table)

    kinds = list(dict.fromkeys((s["cores"], s["prefetch"]) for s in figures["streams"]))
    table = Table(title="one 64-byte access per line, GB/s")
    table.add_column("level")
    table.add_column("pattern")
    for cores, prefetch in kinds:
        table.add_column(f"{cores} core{'s' * (cores > 1)}\nprefetch {prefetch}", justify="right")
    rates = {(s["level"], s["pattern"], s["cores"], s["prefetch"]): s["gbytes_per_s"] for s in figures["streams"]}
    for level, pattern in dict.fromkeys((s["level"], s["pattern"]) for s in figures["streams"]):
        values = [rates.get((level, pattern, *kind)) for kind in kinds]
        table.add_row(level, pattern, *(f"{rate:.1f}" if rate else "" for rate in values))
    console.print(table)


def plot_memory(figures: dict[str, Any], machine: MachineConfig, path: Path) -> None:
    """Draw the staircase: nanoseconds per load of a chase against the size of its buffer, one core."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.2), layout="constrained")
    colours = dict(zip(PAGES, ("#c2410c", "#1d4ed8", "#15803d"), strict=True))
    for page, prefetch in dict.fromkeys((c["page"], c["prefetch"]) for c in figures["chases"]):
        rows = [c for c in figures["chases"] if (c["page"], c["prefetch"], c["cores"]) == (page, prefetch, 1)]
        style = "-" if prefetch == "on" else "--"
        label = f"{page} pages, prefetchers {prefetch}"
        axes.plot(
            [c["bytes"] for c in rows], [c["ns"] for c in rows], style, marker=".", color=colours[page], label=label
        )
    reaches = {
        "L1": machine.l1.size_kib * KIB,
        "L1 + L2": (machine.l1.size_kib + machine.l2.size_kib) * KIB,
        "last level": machine.llc.size_kib * KIB,
        "L1 DTLB x 4 KiB": machine.tlb.l1_4k * 4 * KIB,
        "L2 TLB x 4 KiB": machine.tlb.l2 * 4 * KIB,
    }
    top = max(c["ns"] for c in figures["chases"]) * 1.08
    for name, size in reaches.items():
        axes.axvline(size, color="#94a3b8", linewidth=0.8, linestyle=":")
        axes.text(size, top, f" {name}", rotation=90, va="top", ha="right", fontsize=8, color="#475569")
    sizes = sorted({c["bytes"] for c in figures["chases"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [_bytes(size) for size in sizes], rotation=45, ha="right", fontsize=8)
    axes.set_ylim(0, top)
    axes.set_xlabel("buffer")
    axes.set_ylabel("ns per dependent load")
    axes.set_title(f"{figures['machine']}: latency by working set, one core at {figures['core_mhz']:g} MHz")
    axes.legend(fontsize=8, loc="center left")
    axes.grid(axis="y", color="#e2e8f0")
    figure.savefig(path)
    pyplot.close(figure)
