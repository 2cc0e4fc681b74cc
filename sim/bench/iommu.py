"""``nicscope bench iommu``: DMA reads of 64 bytes over windows of growing size, with and without translation.

The experiment of Neugebauer et al., SIGCOMM 2018, section 6.5 (pcie-bench): a device reads lines of a window in random
order, as fast as it may (bandwidth) and one by one (latency). Here the card reads them as frames to be sent, 64 bytes
each, on a port that is made fast enough not to hold it up; a program on core 0 gives it descriptors. All times are
simulated ones. The ring of descriptors is mapped by pages of 2 MiB in every case, so that it takes none of the IOTLB's
entries for pages of 4 KiB, and the window is in no cache.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hw.bus.tilelink import LINE_BYTES
from hw.bus.tlp import TlpType
from hw.config import ConfigError, MachineConfig
from hw.memory_map import IOMMU_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES
from hw.nic.registers import REG, Register
from hw.pcie.iommu.registers import DMAR, Granularity
from hw.pcie.iommu.registers import Register as DmarRegister
from hw.pcie.iommu.tables import (
    AW_4_LEVELS,
    REQUESTER_ID,
    ROOT_ENTRY_BYTES,
    TABLE_BYTES,
    Context,
    Root,
    TranslationType,
)
from sim.bare_metal import BareMetal, StuckError
from sim.build.design import Design
from sim.build.native import NativeBuild, build_native
from sim.engine.native import NativeEngine
from sw.ixgbe.hw import tx_data
from sw.linux.iommu.domain import DmarDomain
from sw.paging import PageSize

__all__ = ["MODES", "Reads", "iommu", "iommu_machine", "plot_iommu", "print_iommu", "window_sizes"]

KIB, MIB = 1 << 10, 1 << 20

#: How the card's addresses are translated: not at all, not although the unit is on, by pages of a size.
MODES = ("off", "pass-through", "4 KiB", "2 MiB")

#: Descriptors of the ring; reads that are not timed, that are, and that are timed one by one.
RING = 4096
WARM, TIMED, SINGLE = 800, 2400, 100
#: What lies between two single reads, in ns: more than any takes.
GAP_NS = 3000
#: What is added to a physical address to have the card's, in the window and in the ring.
OFFSET, RING_OFFSET = 0x8000_0000, 0x8_0000_0000
#: Reads of a register that is to change.
PATIENCE = 1000


def iommu_machine(machine: MachineConfig) -> MachineConfig:
    """The machine with an IOMMU and with a port that is no bottleneck."""
    fast = machine.replace(["iommu.enabled=true"])
    for gbps in (400, 200, 100, 50, 40, 25):
        try:
            return fast.replace([f"nic.line_gbps={gbps}.0"]) if gbps > machine.nic.line_gbps else fast
        except ConfigError:
            continue
    return fast


def window_sizes(machine: MachineConfig, most: int = 4 * MIB) -> list[int]:
    """4 KiB, 8 KiB, … and around what the IOTLB covers, as far as memory has room."""
    most = min(most, machine.dram.size_mib * MIB // 4)
    covered = machine.iommu.iotlb_entries * 4 * KIB
    sizes = {4 * KIB << n for n in range(20)} | {covered, covered * 5 // 4 & -4096, covered * 3 // 2 & -4096}
    return sorted(size for size in sizes if size <= most)


class Reads:
    """A card that reads lines of a window, on a fresh machine.

    Arguments:
        build: of a machine with an IOMMU.
        mode: one of :data:`MODES`.
        window: bytes that are read from.
    """

    def __init__(self, build: NativeBuild, machine: MachineConfig, mode: str, window: int, seed: int = 1):
        if mode not in MODES:
            raise ValueError(f"addresses are translated as {', '.join(MODES)}, not {mode!r}")
        self.machine, self.mode, self.window = machine, mode, window
        self.bench = BareMetal(NativeEngine(build))
        self.bench.mask_interrupts(0)
        self._top = machine.dram.size_mib * MIB
        self.ring = self._allocate(RING * DESCRIPTOR_BYTES, min(2 * MIB, self._top // 4))
        self._next = 0  # descriptor
        through = mode in ("off", "pass-through")
        self.offset, self.ring_offset = (0, 0) if through else (OFFSET, RING_OFFSET)
        if window > self.ring // 2:
            raise ValueError(f"a window of {window} bytes leaves no room for tables in dram.size_mib")
        if mode != "off":
            self._translate()
        self._start_card()
        rng = random.Random(seed)
        lines = window // LINE_BYTES
        order: list[int] = []
        while len(order) < RING:
            order += rng.sample(range(lines), min(lines, RING))
        self._order = order

    def _allocate(self, size: int, alignment: int) -> int:
        self._top = self._top - size & -alignment
        return self._top

    # Set-up

    def _translate(self) -> None:
        """Root, context and page tables at the top of memory; then the unit is switched on."""
        bench = self.bench
        root, contexts = (self._allocate(TABLE_BYTES, TABLE_BYTES) for _ in range(2))
        domain = DmarDomain(self._allocate, number=1)
        through = self.mode == "pass-through"
        kind = TranslationType.PASS_THROUGH if through else TranslationType.TRANSLATE
        entry = contexts + REQUESTER_ID % 256 * ROOT_ENTRY_BYTES
        words = {
            root + (REQUESTER_ID >> 8) * ROOT_ENTRY_BYTES: contexts | Root.P.mask,
            entry: domain.pgd | Context.TT.put(kind) | Context.P.mask,
            entry + 8: Context.AW.put(AW_4_LEVELS) | Context.DID.put(domain.number),
        }
        if not through:
            page = PageSize.KIB_4 if self.mode == "4 KiB" else PageSize.MIB_2
            words |= dict(domain.map(self.offset, 0, self.window, page))
            words |= dict(domain.map(self.ring + self.ring_offset, self.ring, RING * DESCRIPTOR_BYTES, PageSize.MIB_2))
        for address, value in words.items():
            bench.store(0, address, value.to_bytes(8, "little"))
        bench.settle(0)
        self._write_dmar(DMAR.RTADDR, root)
        self._command(DMAR.GCMD, DMAR.GCMD.SRTP.mask, DMAR.GSTS, DMAR.GSTS.RTPS.mask, DMAR.GSTS.RTPS.mask)
        ccmd, iotlb = DMAR.CCMD, DMAR.IOTLB
        everything = ccmd.ICC.mask | ccmd.CIRG.put(Granularity.GLOBAL)
        self._command(ccmd, everything, ccmd, ccmd.ICC.mask, 0)
        self._command(iotlb, iotlb.IVT.mask | iotlb.IIRG.put(Granularity.GLOBAL), iotlb, iotlb.IVT.mask, 0)
        self._command(DMAR.GCMD, DMAR.GCMD.TE.mask, DMAR.GSTS, DMAR.GSTS.TES.mask, DMAR.GSTS.TES.mask)

    def _write_dmar(self, register: DmarRegister, value: int) -> None:
        self.bench.mmio_write(0, IOMMU_BASE + register.offset, value, register.width // 8)

    def _command(self, register: DmarRegister, value: int, status: DmarRegister, mask: int, wanted: int) -> None:
        self._write_dmar(register, value)
        for _ in range(PATIENCE):
            read = self.bench.mmio_read(0, IOMMU_BASE + status.offset, status.width // 8)
            answer = self.bench.complete(0, read)
            assert isinstance(answer, int)
            if answer & mask == wanted:
                return
        raise StuckError(f"{status.name} does not change")

    def _wait(self, register: Register, mask: int, wanted: int) -> None:
        for _ in range(PATIENCE):
            if self.bench.read(register) & mask == wanted:
                return
        raise StuckError(f"{register.name} does not change")

    def _start_card(self) -> None:
        """One transmit queue, whose frames get padding and FCS."""
        bench, base = self.bench, self.ring + self.ring_offset
        bench.write(REG.CTRL, REG.CTRL.RST.mask)
        self._wait(REG.CTRL, REG.CTRL.RST.mask, 0)
        bench.write(REG.HLREG0, bench.read(REG.HLREG0) | REG.HLREG0.TXCRCEN.mask | REG.HLREG0.TXPADEN.mask)
        for register, value in (
            (REG.TDBAL, base & 0xFFFF_FFFF),
            (REG.TDBAH, base >> 32),
            (REG.TDLEN, RING * DESCRIPTOR_BYTES),
            (REG.TDH, 0),
            (REG.TDT, 0),
            (REG.DMATXCTL, REG.DMATXCTL.TE.mask),
            (REG.TXDCTL, REG.TXDCTL.ENABLE.mask),
        ):
            bench.write(register, value)
        self._wait(REG.TXDCTL, REG.TXDCTL.ENABLE.mask, REG.TXDCTL.ENABLE.mask)

    # Reading

    def _post(self, count: int) -> None:
        """Descriptors for so many reads more."""
        for _ in range(count):
            buffer = self._order[self._next] * LINE_BYTES + self.offset
            place = self.ring + self._next * DESCRIPTOR_BYTES
            self.bench.store(0, place, tx_data(buffer, LINE_BYTES, report=False))
            self._next += 1

    def _ring(self) -> None:
        self.bench.write(REG.TDT, self._next)

    def _pause(self, ns: float) -> None:
        self.bench.execute(0, round(ns * self.machine.clocks.core / 1000))
        self.bench.settle(0)

    def _reads(self) -> np.ndarray:
        return self.bench.log().select("nic.tx.dma.dma_read")

    def measure(self) -> dict[str, float]:
        """Million reads and gigabits per second, median nanoseconds of one by itself, share of lookups that missed."""
        counters = self.bench.engine.counters
        self._post(WARM + TIMED)
        self.bench.settle(0)
        before = counters()
        self._ring()
        while len(self._reads()) < WARM + TIMED:
            self._pause(10_000)
        after = counters()
        self._pause(GAP_NS)
        ns_per_tick = 1e9 / self.machine.ticks_per_second
        ticks = self._reads()["tick"][WARM:].astype(np.int64)
        rate = (len(ticks) - 1) / ((ticks[-1] - ticks[0]) * ns_per_tick)

        for _ in range(SINGLE):
            self._post(1)
            self._ring()
            self._pause(GAP_NS)
        began = self._reads()[-SINGLE:]
        arrived = self.bench.log().select("link.downstream.delivered")
        arrived = arrived[arrived["kind"] == TlpType.COMPLETION.value]
        when = dict(zip(arrived["packet"].tolist(), arrived["tick"].tolist(), strict=True))
        latencies = [
            (when[packet] - tick) * ns_per_tick
            for packet, tick in zip(began["packet"].tolist(), began["tick"].tolist(), strict=True)
        ]
        if self.bench.engine.counters().get("nic.tx.dma.packets_dropped"):
            raise StuckError("reads were refused")
        prefix = "root_complex.iommu."
        counted = {name: after[prefix + name] - before[prefix + name] for name in ("lookups", "misses")}
        return {
            "mreads_per_s": rate * 1000,
            "gbps": rate * LINE_BYTES * 8,
            "ns": float(np.median(latencies)),
            "misses": counted["misses"] / max(1, counted["lookups"]),
        }


def iommu(
    machine: MachineConfig,
    console: Console | None = None,
    *,
    modes: Sequence[str] = MODES,
    sizes: Sequence[int] | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure.

    Arguments:
        console: where progress is shown.
        modes: of :data:`MODES`.
        sizes: windows in bytes.
        quick: only every second window.

    Raises:
        ToolError: when the machine cannot be built.
    """
    machine = iommu_machine(machine)
    sizes = list(window_sizes(machine)[:: 2 if quick else 1] if sizes is None else sizes)
    rows: list[dict[str, Any]] = []
    with (console or Console(quiet=True)).status("") as status:
        status.update(f"building {machine.name} with an IOMMU")
        build = build_native(Design(machine))
        for mode in modes:
            for size in sizes:
                status.update(f"reads of 64 bytes, translation {mode}, a window of {_bytes(size)}")
                rows.append({"mode": mode, "bytes": size, **Reads(build, machine, mode, size).measure()})
    covered = machine.iommu.iotlb_entries * 4 * KIB
    return {"machine": machine.name, "line_gbps": machine.nic.line_gbps, "covered": covered, "reads": rows}


def _bytes(size: int) -> str:
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size // KIB} KiB"


def print_iommu(figures: dict[str, Any], console: Console) -> None:
    """A table of what :func:`iommu` measured."""
    modes = list(dict.fromkeys(row["mode"] for row in figures["reads"]))
    table = Table(
        title=f"{figures['machine']}: 64-byte DMA reads in random order, Gb/s (median ns of one by itself, misses)"
    )
    table.add_column("window", justify="right")
    for mode in modes:
        table.add_column(mode, justify="right")
    found = {(row["bytes"], row["mode"]): row for row in figures["reads"]}
    for size in sorted({row["bytes"] for row in figures["reads"]}):
        cells = [found[size, mode] for mode in modes]
        table.add_row(_bytes(size), *(f"{c['gbps']:.2f} ({c['ns']:.0f}, {100 * c['misses']:.0f}%)" for c in cells))
    console.print(table)


def plot_iommu(figures: dict[str, Any], path: Path) -> None:
    """Draw bandwidth and latency against the window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    colours = dict(zip(MODES, ("#475569", "#15803d", "#c2410c", "#1d4ed8"), strict=True))
    for mode in dict.fromkeys(row["mode"] for row in figures["reads"]):
        rows = [row for row in figures["reads"] if row["mode"] == mode]
        sizes = [row["bytes"] for row in rows]
        for axis, key in zip(axes, ("gbps", "ns"), strict=True):
            axis.plot(sizes, [row[key] for row in rows], marker=".", color=colours[mode], label=mode)
    for axis, label in zip(axes, ("Gb/s", "ns of a read by itself, median"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_ylim(0)
        axis.set_ylabel(label)
        axis.grid(axis="y", color="#e2e8f0")
        axis.axvline(figures["covered"], color="#94a3b8", linewidth=0.8, linestyle=":")
    axes[0].set_title(f"{figures['machine']}: 64-byte DMA reads; dotted: what the IOTLB covers with pages of 4 KiB")
    axes[0].legend(title="translation")
    sizes = sorted({row["bytes"] for row in figures["reads"]})
    axes[1].set_xticks(sizes, [_bytes(size) for size in sizes], rotation=45, ha="right", fontsize=8)
    axes[1].set_xlabel("window")
    figure.savefig(path)
    pyplot.close(figure)
