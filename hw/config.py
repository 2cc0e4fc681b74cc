"""Every size, latency and frequency of a machine, validated, from a TOML preset.

A preset lies in ``hw/presets/NAME.toml``; a user's own file has the same form and may begin from a preset with
``base = "NAME"``. Each field's unit stands beside it. :class:`ConfigError` carries one line that names the
field and what would be valid.
"""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from hw.bus.tilelink import LINE_BYTES
from hw.grades import grade_names, grade_values, most_clock_mhz
from hw.memory_map import BAR0_BASE

__all__ = [
    "CLASSES_OF_SERVICE",
    "INCLUSIONS",
    "REPLACEMENTS",
    "ClockConfig",
    "ConfigError",
    "CoreConfig",
    "DramConfig",
    "IommuConfig",
    "L1Config",
    "L1iConfig",
    "L2Config",
    "LlcConfig",
    "MachineConfig",
    "NicConfig",
    "PcieConfig",
    "TlbConfig",
    "is_contiguous",
    "load_machine",
    "preset_names",
]

PRESETS = Path(__file__).with_name("presets")

#: Bytes a TLP costs beside its payload: framing, sequence number, header, LCRC (the published
#: pcie-model of Neugebauer et al., SIGCOMM 2018: 64-bit addressing for requests).
TLP_OVERHEAD_REQUEST = 24
TLP_OVERHEAD_COMPLETION = 20

#: Bytes on the wire beside a frame's own: preamble and SFD before it, inter-frame gap after it (IEEE 802.3).
PREAMBLE_BYTES = 8
INTER_FRAME_GAP_BYTES = 12


class ConfigError(ValueError):
    """A machine that cannot be; the message is one line for the user."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _power_of_two(name: str, value: int, least: int = 1) -> None:
    _require(
        value >= least and value & (value - 1) == 0, f"{name} must be a power of two of at least {least}, not {value}"
    )


def _between(name: str, value: float, least: float, most: float) -> None:
    _require(least <= value <= most, f"{name} must be between {least} and {most}, not {value}")


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    _require(value in valid, f"{name} must be one of {', '.join(valid)}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """Frequencies in MHz, at most three decimals. All clocks rise together at tick 0."""

    core: float
    uncore: float
    nic: float
    dram: float

    def __post_init__(self):
        for f in fields(self):
            mhz = getattr(self, f.name)
            _between(f"clocks.{f.name}", mhz, 1, 10_000)
            _require(
                (Fraction(str(mhz)) * 1000).denominator == 1, f"clocks.{f.name} has more than three decimals: {mhz}"
            )

    def khz(self, name: str) -> int:
        """Frequency of one clock in kHz."""
        return int(Fraction(str(getattr(self, name))) * 1000)


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """The cores and their ports. Latencies in cycles of the core's clock."""

    count: int  #: cores
    window: int  #: micro-operations between the oldest that is not complete and the youngest issued (reorder buffer)
    load_queue: int  #: loads in flight
    store_buffer: int  #: stores not yet visible
    reservation_station: int  #: loads that wait for the result of another
    write_combining: int  #: lines of non-temporal stores being combined or on their way
    atomic_latency: int  #: from the issue of an atomic whose line is in L1 until the next operation may issue, at least
    interrupt_entry: int  #: from taking an interrupt until the handler may issue
    interrupt_return: int  #: from the issue of IRET until the next operation may issue
    sleep_exit_ns: tuple[float, ...]  #: exit latency of each sleep state that HALT can name

    def __post_init__(self):
        _between("core.count", self.count, 1, 8)
        _between("core.window", self.window, 4, 4096)
        _between("core.load_queue", self.load_queue, 1, 128)
        _between("core.store_buffer", self.store_buffer, 1, 64)
        _between("core.reservation_station", self.reservation_station, 1, 64)
        _between("core.write_combining", self.write_combining, 1, 16)
        _between("core.atomic_latency", self.atomic_latency, 8, 255)
        _between("core.interrupt_entry", self.interrupt_entry, 1, 65535)
        _between("core.interrupt_return", self.interrupt_return, 1, 65535)
        _between("the number of core.sleep_exit_ns", len(self.sleep_exit_ns), 1, 8)
        for ns in self.sleep_exit_ns:
            _between("core.sleep_exit_ns", ns, 0, 1_000_000)
        _require(
            list(self.sleep_exit_ns) == sorted(self.sleep_exit_ns),
            f"core.sleep_exit_ns must rise from state to state, not {list(self.sleep_exit_ns)}",
        )


@dataclass(frozen=True, kw_only=True)
class L1Config:
    """The L1 data cache of each core."""

    size_kib: int
    ways: int
    latency: int  #: core cycles from issue to completion of a load that hits, at least 4
    mshrs: int  #: lines missed at once

    def __post_init__(self):
        _power_of_two("l1.size_kib", self.size_kib)
        _power_of_two("l1.ways", self.ways)
        _require(self.size_kib * 1024 >= self.ways * LINE_BYTES, "l1.size_kib is too small for l1.ways")
        _between("l1.latency", self.latency, 4, 64)
        _between("l1.mshrs", self.mshrs, 1, 32)

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.size_kib * 1024 // LINE_BYTES // self.ways


@dataclass(frozen=True, kw_only=True)
class L1iConfig:
    """The L1 instruction cache of each core."""

    size_kib: int
    ways: int
    mshrs: int  #: lines missed at once

    def __post_init__(self):
        _power_of_two("l1i.size_kib", self.size_kib)
        _power_of_two("l1i.ways", self.ways)
        _power_of_two("l1i.size_kib * 1024 / 64 / l1i.ways (sets)", self.size_kib * 1024 // LINE_BYTES // self.ways, 2)
        _between("l1i.mshrs", self.mshrs, 1, 8)

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.size_kib * 1024 // LINE_BYTES // self.ways


@dataclass(frozen=True, kw_only=True)
class L2Config:
    """The L2 cache of each core, exclusive of its L1 data cache, and its prefetchers."""

    size_kib: int
    ways: int
    latency: int  #: core cycles from issue to completion of a load that misses L1 and hits here
    releases: int  #: evicted lines on their way to the last level, until it has acknowledged them
    prefetches: (
        int  #: lines being prefetched at once, and requests under way below, of any kind, that leave room for one
    )
    prefetch_adjacent: bool  #: a missed line brings the other half of its aligned 128 bytes
    prefetch_stream: bool  #: misses that go up or down in a page bring the lines ahead
    prefetch_distance: int  #: lines ahead of the last miss that a stream brings

    def __post_init__(self):
        _power_of_two("l2.size_kib", self.size_kib)
        _power_of_two("l2.ways", self.ways)
        _power_of_two("l2.size_kib * 1024 / 64 / l2.ways (sets)", self.size_kib * 1024 // LINE_BYTES // self.ways, 2)
        _between("l2.latency", self.latency, 8, 255)
        _between("l2.releases", self.releases, 1, 16)
        _between("l2.prefetches", self.prefetches, 1, 16)
        _between("l2.prefetch_distance", self.prefetch_distance, 1, 32)

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.size_kib * 1024 // LINE_BYTES // self.ways


@dataclass(frozen=True, kw_only=True)
class TlbConfig:
    """Translation of data addresses: one first-level TLB per page size, a shared second level, a page walker."""

    l1_4k: int  #: entries for 4 KiB pages
    l1_2m: int  #: ... 2 MiB pages
    l1_1g: int  #: ... 1 GiB pages, fully associative
    l1_ways: int  #: of the first two
    l2: int  #: entries for 4 KiB and 2 MiB pages
    l2_ways: int
    l2_1g: int  #: entries for 1 GiB pages, fully associative
    l2_latency: int  #: core cycles that a hit in the second level adds, at least 4
    walk_cache: int  #: entries of the paging-structure cache that names page tables, fully associative

    def __post_init__(self):
        for name in ("l1_ways", "l2_ways", "l1_1g", "l2_1g", "walk_cache"):
            _between(f"tlb.{name}", getattr(self, name), 1, 64)
        for name, ways in (("l1_4k", self.l1_ways), ("l1_2m", self.l1_ways), ("l2", self.l2_ways)):
            _require(
                getattr(self, name) % ways == 0, f"tlb.{name} = {getattr(self, name)} is no multiple of {ways} ways"
            )
            _power_of_two(f"tlb.{name} / ways (sets)", getattr(self, name) // ways)
        _between("tlb.l2_latency", self.l2_latency, 4, 64)


#: What the last level may be. Inclusive: it holds every line that a private cache holds, and evicting one calls that
#: back (Broadwell). Non-inclusive: evicting a line leaves private copies alone (Skylake-SP).
INCLUSIONS = ("non-inclusive", "inclusive")

#: How a way is chosen, see ``hw.mem.llc_tags``.
REPLACEMENTS = ("bit-plru", "random")

#: Classes of service: CPUID.(EAX=10H,ECX=1):EDX of Xeon E5 v4 and Xeon Scalable says 15 as the highest.
CLASSES_OF_SERVICE = 16


def is_contiguous(mask: int) -> bool:
    """Whether a mask is one run of ones (Intel SDM, volume 3, section 17.19.4.3: nothing else is allowed)."""
    low = mask & -mask
    return mask > 0 and (mask // low) & (mask // low + 1) == 0


@dataclass(frozen=True, kw_only=True)
class LlcConfig:
    """The last-level cache, its snoop filter and DDIO."""

    size_kib: int
    ways: int
    latency: int  #: uncore cycles from Acquire accepted to Grant offered for a line that hits unshared
    slots: int  #: transactions in flight
    slices: int  #: which a hash of the address divides the lines among, see ``hw.mem.llc_hash``
    inclusion: str  #: of what private caches hold, one of :data:`INCLUSIONS`
    replacement: str  #: which way is replaced, one of :data:`REPLACEMENTS`
    ddio: bool  #: device writes go to the cache, not to DRAM, at the start (perfctrlsts_0)
    ddio_ways: int  #: the last ways, in which device writes may allocate. At the start: IIO LLC WAYS
    class_masks: tuple[int, ...]  #: ways in which cores of class of service 0, 1, … may allocate at the start (CAT)
    core_classes: tuple[int, ...]  #: class of service of cores 0, 1, … at the start; 0 for the others
    snoop_filter_lines: int  #: lines of private caches that can be tracked
    snoop_filter_ways: int

    def __post_init__(self):
        _between("llc.size_kib", self.size_kib, 1, 65536)
        _between("llc.ways", self.ways, 1, 32)
        _between("llc.slices", self.slices, 1, 32)
        lines = self.size_kib * 1024 // LINE_BYTES
        _require(lines % self.ways == 0, f"llc.ways must divide the {lines} lines of llc.size_kib, not {self.ways}")
        rows = lines // self.ways
        _require(
            rows % self.slices == 0, f"llc.slices must divide the {rows} sets of the whole cache, not {self.slices}"
        )
        _power_of_two("llc.size_kib * 1024 / 64 / llc.ways / llc.slices (sets)", self.sets, 2)
        _between("llc.latency", self.latency, 8, 255)
        _between("llc.slots", self.slots, 2, 32)
        _one_of("llc.inclusion", self.inclusion, INCLUSIONS)
        _one_of("llc.replacement", self.replacement, REPLACEMENTS)
        _between("llc.ddio_ways", self.ddio_ways, 1, self.ways)
        _between("the number of llc.class_masks", len(self.class_masks), 0, CLASSES_OF_SERVICE)
        for mask in self.class_masks:
            _between("llc.class_masks", mask, 1, (1 << self.ways) - 1)
            _require(is_contiguous(mask), f"llc.class_masks must be contiguous ones, not {mask:#b}")
        _between("the number of llc.core_classes", len(self.core_classes), 0, 8)
        for number in self.core_classes:
            _between("llc.core_classes", number, 0, CLASSES_OF_SERVICE - 1)
        _between("llc.snoop_filter_ways", self.snoop_filter_ways, 1, 32)
        tracked = self.snoop_filter_ways * self.slices
        _require(
            self.snoop_filter_lines % tracked == 0,
            f"llc.snoop_filter_lines must be a multiple of llc.snoop_filter_ways * llc.slices = {tracked}, "
            f"not {self.snoop_filter_lines}",
        )
        _power_of_two("llc.snoop_filter_lines / llc.snoop_filter_ways / llc.slices (sets)", self.snoop_filter_sets, 2)
        _require(
            self.snoop_filter_sets <= self.sets,
            f"llc.snoop_filter_lines / llc.snoop_filter_ways = {self.snoop_filter_sets} sets must be at most the "
            f"{self.sets} sets of the cache",
        )

    @property
    def sets(self) -> int:
        """Number of sets of a slice."""
        return self.size_kib * 1024 // LINE_BYTES // self.ways // self.slices

    @property
    def snoop_filter_sets(self) -> int:
        """Number of sets of a slice's snoop filter."""
        return self.snoop_filter_lines // self.snoop_filter_ways // self.slices

    @property
    def io_mask(self) -> int:
        """Ways in which device writes may allocate at the start."""
        return ((1 << self.ddio_ways) - 1) << (self.ways - self.ddio_ways)

    def class_mask(self, number: int) -> int:
        """Ways in which a class of service may allocate at the start: all that there are unless told."""
        return self.class_masks[number] if number < len(self.class_masks) else (1 << self.ways) - 1

    def core_class(self, core: int) -> int:
        """Class of service of a core at the start."""
        return self.core_classes[core] if core < len(self.core_classes) else 0


#: Fields of a place in DRAM, for ``dram.mapping``; the first two may be left out where there is one of them.
DRAM_PLACE = ("channel", "rank", "group", "column", "bank", "row")


@dataclass(frozen=True, kw_only=True)
class DramConfig:
    """Channels and ranks of DDR4 or DDR5. Timings in cycles of the DRAM clock, JEDEC's names.

    What a machine does not say of organisation and timings comes from its ``grade`` (:mod:`hw.grades`).
    """

    grade: str  #: such as "DDR4-2400"; "none": the machine says everything itself
    size_mib: int  #: over all channels and ranks
    channels: int  #: each with a controller and buses of its own
    ranks: int  #: of each channel; they share its buses
    controller_ns: float  #: from the last level's request to where commands are chosen: interconnect, queues, pipeline
    phy_ns: float  #: what a burst takes beside CL or CWL: PHY, both ways, and the way of read data back
    bank_groups: int
    banks_per_group: int
    columns: int  #: per row, in 8-byte words
    burst_length: int  #: transfers that carry a line, on both edges of the clock
    mapping: str  #: where the bits of a line's number go, the lowest first: :data:`DRAM_PLACE` in some order
    channel_hash: bool  #: the channel's number is XORed with every other bit of the line's, folded to its width
    bank_hash: bool  #: the bank's number, group included, is XORed with the low bits of the row's
    page_policy: str  #: "open": rows stay open until another is wanted; "closed": until nobody in the queue wants them
    queue: int  #: requests a controller holds
    command_clocks: int  #: ACT, RD and WR occupy the command bus for so long: 1 in DDR4, 2 in DDR5
    bus_turn: int  #: from the end of a read's burst to a write's: 1 + tWPRE (1) in DDR4, 2 + tWPRE (2) in DDR5
    CL: int
    CWL: int
    tRCD: int
    tRP: int
    tRAS: int
    tRFC: int
    tREFI: int
    tFAW: int
    tRRD_S: int
    tRRD_L: int
    tCCD_S: int
    tCCD_L: int
    tCCD_L_WR: int  #: between writes; longer than tCCD_L where a device reads before it writes (DDR5)
    tWR: int
    tWTR_S: int
    tWTR_L: int
    tRTP: int
    tPPD: int  #: PRE to PRE; DDR4 has no such rule: 1
    tRTRS: int  #: between bursts of different ranks on the data bus: the controller's, for preamble and termination

    #: Names of what a grade says.
    OF_GRADE: ClassVar[tuple[str, ...]] = tuple(grade_values("DDR4-2400", 1200))

    @property
    def BURST(self) -> int:
        """Cycles the data bus is busy with one line."""
        return self.burst_length // 2

    def __post_init__(self):
        _power_of_two("dram.size_mib", self.size_mib)
        _require(
            self.size_mib <= BAR0_BASE >> 20, f"dram.size_mib must be at most {BAR0_BASE >> 20}, not {self.size_mib}"
        )
        for name in ("bank_groups", "banks_per_group"):
            _power_of_two(f"dram.{name}", getattr(self, name))
            _between(f"dram.{name}", getattr(self, name), 1, 8)
        for name in ("channels", "ranks"):
            _power_of_two(f"dram.{name}", getattr(self, name))
            _between(f"dram.{name}", getattr(self, name), 1, 8 if name == "channels" else 4)
        _power_of_two("dram.columns", self.columns, 16)
        _require(self.burst_length in (8, 16), f"dram.burst_length must be 8 or 16, not {self.burst_length}")
        alone = {name for name, count in (("channel", self.channels), ("rank", self.ranks)) if count == 1}
        named = self.mapping.split()
        _require(
            set(DRAM_PLACE) - alone <= set(named) <= set(DRAM_PLACE) and len(set(named)) == len(named),
            f"dram.mapping must name each of {', '.join(n for n in DRAM_PLACE if n not in alone)} once, "
            f"not {self.mapping!r}",
        )
        _known("dram.page_policy", self.page_policy, ("open", "closed"))
        _require(
            self.rows >= 2,
            f"dram.size_mib = {self.size_mib} leaves {self.rows} rows in each bank; at least 2 are needed",
        )
        _between("dram.queue", self.queue, 2, 64)
        _between("dram.command_clocks", self.command_clocks, 1, 2)
        _between("dram.bus_turn", self.bus_turn, 1, 16)
        for name in ("controller_ns", "phy_ns"):
            _between(f"dram.{name}", getattr(self, name), 0, 100)
        for f in fields(self):
            if f.name == "CL" or f.name.startswith("t") or f.name == "CWL":
                _between(f"dram.{f.name}", getattr(self, f.name), 1, 65535)
        _require(
            self.tRAS >= self.tRCD,
            f"dram.tRAS must be at least tRCD = {self.tRCD} (a row stays open to be read), not {self.tRAS}",
        )
        _require(self.CWL <= self.CL, f"dram.CWL must be at most CL = {self.CL}, not {self.CWL}")
        for long, short in (
            ("tRRD_L", "tRRD_S"),
            ("tCCD_L", "tCCD_S"),
            ("tCCD_L_WR", "tCCD_L"),
            ("tWTR_L", "tWTR_S"),
        ):
            _require(
                getattr(self, long) >= getattr(self, short),
                f"dram.{long} must be at least {short} = {getattr(self, short)}, not {getattr(self, long)}",
            )
        _require(self.tCCD_S >= self.BURST, f"dram.tCCD_S must be at least the burst's {self.BURST}, not {self.tCCD_S}")
        _require(self.tFAW >= self.tRRD_S, f"dram.tFAW must be at least tRRD_S = {self.tRRD_S}, not {self.tFAW}")
        served = self.tRFC + self.tRP + self.tRAS + self.tRCD + self.CL + self.BURST
        _require(
            self.tREFI // self.ranks > served,
            f"dram.tREFI must exceed {self.ranks * served}, for each rank tRFC + tRP + tRAS + tRCD + CL + BURST, "
            f"not {self.tREFI}",
        )
        for name in ("tWR", "tRTP", "tFAW", "tWTR_L", "tRRD_L", "tCCD_L_WR", "tPPD", "tRTRS"):
            _require(
                getattr(self, name) < self.tREFI,
                f"dram.{name} must be below tREFI = {self.tREFI}, not {getattr(self, name)}",
            )

    @property
    def lines(self) -> int:
        """Cache lines held, over all channels."""
        return self.size_mib * 1024 * 1024 // LINE_BYTES

    @property
    def channel_lines(self) -> int:
        """Cache lines of one channel."""
        return self.lines // self.channels

    @property
    def lines_per_row(self) -> int:
        """Cache lines in one row of one bank."""
        return self.columns * 8 // LINE_BYTES

    @property
    def banks(self) -> int:
        """Number of banks of a rank, over all groups."""
        return self.bank_groups * self.banks_per_group

    @property
    def channel_banks(self) -> int:
        """Number of banks of a channel, over all ranks."""
        return self.banks * self.ranks

    @property
    def rows(self) -> int:
        """Rows per bank."""
        return self.channel_lines // self.lines_per_row // self.channel_banks


@dataclass(frozen=True, kw_only=True)
class PcieConfig:
    """The link between root complex and card."""

    gbps: float  #: each way, after line code and data-link packets, before TLP overhead
    latency_ns: float  #: one way, wire to wire, besides serialisation
    mps: int  #: maximum payload size, bytes
    mrrs: int  #: maximum read request size, bytes
    posted_credits: int  #: posted TLPs the receiver can hold
    non_posted_credits: int  #: read requests the receiver can hold
    completion_credits: int  #: completions the receiver can hold

    def __post_init__(self):
        _between("pcie.gbps", self.gbps, 0.1, 1000)
        _between("pcie.latency_ns", self.latency_ns, 0, 10_000)
        for name in ("mps", "mrrs"):
            _power_of_two(f"pcie.{name}", getattr(self, name), 128)
            _between(f"pcie.{name}", getattr(self, name), 128, 4096)
        for name in ("posted_credits", "non_posted_credits", "completion_credits"):
            _between(f"pcie.{name}", getattr(self, name), 1, 128)


@dataclass(frozen=True, kw_only=True)
class IommuConfig:
    """Translation of the card's addresses, by a unit after Intel's VT-d in the root complex."""

    enabled: bool  #: there is one; software switches translation on
    iotlb_entries: int  #: translations of 4 KiB pages kept, and as many of 2 MiB pages
    iotlb_ways: int
    walk_cache: int  #: page tables known without a walk from the top (entries of directories), fully associative
    walks: int  #: page walks at once
    walk_read_ns: float  #: what reading an entry of a table takes besides the memory's own time
    lookup_cycles: int  #: uncore cycles from a request's arrival to when it is handed on, at least 2
    address_width: int  #: bits of the card's addresses that are translated

    def __post_init__(self):
        _between("iommu.iotlb_entries", self.iotlb_entries, 1, 4096)
        _between("iommu.iotlb_ways", self.iotlb_ways, 1, 128)
        _require(
            self.iotlb_entries % self.iotlb_ways == 0,
            f"iommu.iotlb_entries = {self.iotlb_entries} is no multiple of {self.iotlb_ways} ways",
        )
        _power_of_two("iommu.iotlb_entries / iommu.iotlb_ways (sets)", self.iotlb_entries // self.iotlb_ways)
        _between("iommu.walk_cache", self.walk_cache, 1, 128)
        _between("iommu.walks", self.walks, 1, 16)
        _between("iommu.walk_read_ns", self.walk_read_ns, 0, 2000)
        _between("iommu.lookup_cycles", self.lookup_cycles, 2, 64)
        _between("iommu.address_width", self.address_width, 36, 40)


@dataclass(frozen=True, kw_only=True)
class NicConfig:
    """The card."""

    line_gbps: float  #: line rate of the port
    packet_buffer_kib: int  #: receive packet buffer
    max_frame: int  #: largest frame the packet buffer and the data path are built for, FCS included
    tx_packet_buffer_kib: int  #: transmit packet buffer
    queues: int  #: receive queues, and as many transmit queues
    descriptor_cache: int  #: descriptors held on the card for each queue, a power of two
    read_tags: int  #: DMA reads in flight
    payload_reads: int  #: reads of payload to be sent that are in flight or wait for their turn
    msix_vectors: int
    dca_gates: bool  #: extension: the root complex lets into the cache only what DCA_RXCTRL and DCA_TXCTRL enable

    def __post_init__(self):
        _between("nic.line_gbps", self.line_gbps, 0.01, 400)
        _power_of_two("nic.packet_buffer_kib", self.packet_buffer_kib)
        _between("nic.max_frame", self.max_frame, 64, 16 * 1024 - 1)
        _require(
            self.packet_buffer_kib * 1024 >= 2 * self.max_frame,
            f"nic.packet_buffer_kib = {self.packet_buffer_kib} must hold two frames of {self.max_frame} bytes",
        )
        _power_of_two("nic.tx_packet_buffer_kib", self.tx_packet_buffer_kib)
        _require(
            self.tx_packet_buffer_kib * 1024 >= 2 * self.max_frame,
            f"nic.tx_packet_buffer_kib = {self.tx_packet_buffer_kib} must hold two frames of {self.max_frame} bytes",
        )
        _between("nic.queues", self.queues, 1, 16)
        _power_of_two("nic.descriptor_cache", self.descriptor_cache, 8)
        _between("nic.read_tags", self.read_tags, 1, 256)
        _power_of_two("nic.payload_reads", self.payload_reads, 2)
        tags = 2 * self.queues * self.descriptor_cache // 4 + self.payload_reads
        _require(
            tags <= 256,
            f"nic.queues = {self.queues} with nic.descriptor_cache = {self.descriptor_cache} and nic.payload_reads = "
            f"{self.payload_reads} take {tags} tags; a read has one of 256",
        )
        _between("nic.msix_vectors", self.msix_vectors, 1, 64)


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """A whole machine."""

    name: str
    description: str
    clocks: ClockConfig
    core: CoreConfig
    l1: L1Config
    l1i: L1iConfig
    l2: L2Config
    tlb: TlbConfig
    llc: LlcConfig
    dram: DramConfig
    pcie: PcieConfig
    iommu: IommuConfig
    nic: NicConfig
    sources: Mapping[str, str] = field(default_factory=dict)  #: where figures come from, by field

    def __post_init__(self):
        clock = f"clocks.nic = {self.clocks.nic:g} MHz"
        limit = LINE_BYTES * 8 * self.clocks.nic / 1000
        _require(
            self.pcie.gbps <= limit,
            f"pcie.gbps = {self.pcie.gbps:g} exceeds the {limit:g} Gb/s that {LINE_BYTES} bytes per cycle of {clock} "
            "carry",
        )
        # The most beats for their time on the wire: frames one byte longer than a beat.
        wire_bytes = LINE_BYTES + 1 + PREAMBLE_BYTES + INTER_FRAME_GAP_BYTES
        limit = wire_bytes * 8 / 2 * self.clocks.nic / 1000
        _require(
            self.nic.line_gbps <= limit,
            f"nic.line_gbps = {self.nic.line_gbps:g} exceeds the {limit:g} Gb/s of {LINE_BYTES + 1}-byte frames that "
            f"one {LINE_BYTES}-byte beat per cycle of {clock} carries",
        )

    @property
    def ticks_per_second(self) -> int:
        """The unit of simulated time: the finest common measure of all periods."""
        return 1000 * math.lcm(*(self.clocks.khz(f.name) for f in fields(self.clocks)))

    def period_ticks(self, clock: str) -> int:
        """Period of ``clock`` ("core", "uncore", "nic" or "dram") in ticks."""
        return self.ticks_per_second // (1000 * self.clocks.khz(clock))

    def cycles(self, clock: str, ns: float) -> int:
        """``ns`` nanoseconds in whole cycles of ``clock``, rounded up."""
        return math.ceil(Fraction(str(ns)) * self.clocks.khz(clock) / 1_000_000)

    def cycles_per_byte(self, gbps: float) -> Fraction:
        """Card cycles one byte takes at ``gbps``, exact."""
        return Fraction(self.clocks.khz("nic")) * 8 / (Fraction(str(gbps)) * 1_000_000)

    def _of_grade(self) -> dict[str, int]:
        return grade_values(self.dram.grade, self.clocks.dram) if self.dram.grade != "none" else {}

    def replace(self, settings: Iterable[str]) -> "MachineConfig":
        """Apply ``--set`` arguments such as ``llc.ddio_ways=4``."""
        tree = dataclasses.asdict(self)
        # What the grade said it says anew: of another grade, or another clock.
        of_grade = self._of_grade()
        tree["dram"] = {key: value for key, value in tree["dram"].items() if of_grade.get(key) != value}
        for setting in settings:
            key, separator, text = setting.partition("=")
            section, dot, name = key.strip().partition(".")
            _require(
                bool(separator and dot), f"--set takes section.key=value (such as llc.ddio_ways=4), not {setting!r}"
            )
            _known("machine section", section, SECTIONS)
            _known(f"key of [{section}]", name, (f.name for f in fields(SECTIONS[section])))
            try:
                value = _value(text.strip(), {f.name: f.type for f in fields(SECTIONS[section])}[name])
            except tomllib.TOMLDecodeError:
                raise ConfigError(f"{key.strip()} takes a number or true/false, not {text.strip()!r}") from None
            tree[section][name] = value
        return _machine(tree)


SECTIONS: dict[str, type] = {
    "clocks": ClockConfig,
    "core": CoreConfig,
    "l1": L1Config,
    "l1i": L1iConfig,
    "l2": L2Config,
    "tlb": TlbConfig,
    "llc": LlcConfig,
    "dram": DramConfig,
    "pcie": PcieConfig,
    "iommu": IommuConfig,
    "nic": NicConfig,
}


_FLOATS = tuple[float, ...]
_INTS = tuple[int, ...]

#: Types of the fields of the sections, in words.
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a word in quotes"} | {
    _FLOATS: "a list of numbers",
    _INTS: "a list of whole numbers",
}


def _is(value: Any, wanted: Any) -> bool:
    """Whether a value from TOML is what a field wants."""
    if wanted in (_FLOATS, _INTS):
        return isinstance(value, tuple) and all(_is(item, float if wanted == _FLOATS else int) for item in value)
    number = isinstance(value, int | float if wanted is float else wanted)
    return number and (wanted is bool) == isinstance(value, bool)


def _value(text: str, wanted: Any) -> Any:
    """What stands behind ``--set key=``: TOML, but that words need no quotes."""
    if wanted is str and not text.startswith(('"', "'")):
        return text
    return tomllib.loads(f"v = {text}")["v"]


def _known(what: str, name: str, valid: Iterable[str]) -> None:
    valid = list(valid)
    if name not in valid:
        near = difflib.get_close_matches(name, valid, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(valid)}"
        raise ConfigError(f"unknown {what} {name!r}{hint}")


def _machine(tree: Mapping[str, Any]) -> MachineConfig:
    for key in tree:
        _known("machine key", key, [*SECTIONS, "name", "description", "sources"])
    parts: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        given = tree.get(section, {})
        if section == "dram":
            given = _with_grade(given, parts["clocks"])
        _require(isinstance(given, Mapping), f"[{section}] must be a table")
        values = {}
        for key, value in given.items():
            _known(f"key of [{section}]", key, (f.name for f in fields(cls)))
            wanted = {f.name: f.type for f in fields(cls)}[key]
            if isinstance(value, list):
                value = tuple(value)
            _require(_is(value, wanted), f"{section}.{key} must be {_WANTED[wanted]}, not {given[key]!r}")
            values[key] = value
        missing = [f.name for f in fields(cls) if f.name not in given]
        _require(not missing, f"[{section}] lacks {', '.join(missing)}")
        parts[section] = cls(**values)
    return MachineConfig(
        name=tree.get("name", "unnamed"),
        description=tree.get("description", ""),
        sources=tree.get("sources", {}),
        **parts,
    )


def _with_grade(given: Any, clocks: ClockConfig) -> Any:
    """The table ``[dram]`` with what its grade says beside."""
    if not isinstance(given, Mapping) or given.get("grade", "none") == "none":
        return given
    grade = given["grade"]
    _known("dram.grade", str(grade), ["none", *grade_names()])
    most = most_clock_mhz(grade)
    _require(
        Fraction(str(clocks.dram)) <= most,
        f"clocks.dram must be at most {float(most):g} MHz for dram.grade = {grade!r}, not {clocks.dram:g}",
    )
    return {**grade_values(grade, clocks.dram), **given}


def preset_names() -> list[str]:
    """Names of the machines that come with nicscope."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_machine(name_or_file: str, settings: Iterable[str] = ()) -> MachineConfig:
    """Load a preset by name, or a TOML file by path, and apply ``--set`` settings.

    Raises:
        ConfigError: with one line that says what is wrong and what would be valid.
    """
    return _machine(_read(name_or_file)).replace(settings)


def _read(name_or_file: str) -> dict[str, Any]:
    path = PRESETS / f"{name_or_file}.toml"
    if "/" in name_or_file or name_or_file.endswith(".toml"):
        path = Path(name_or_file)
        _require(path.is_file(), f"no machine file {name_or_file!r}")
    else:
        _known("machine", name_or_file, preset_names())
    try:
        tree = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    base = tree.pop("base", None)
    if base is None:
        return tree
    _require(isinstance(base, str), f"base must be the name of a machine in quotes, not {base!r}")
    _known("base machine", base, preset_names())
    merged = _read(base)
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged
