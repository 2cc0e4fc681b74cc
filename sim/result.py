"""What a run says: ``result.json``, computed from the event log and the software's notes.

The schema is described in docs/results.md.
"""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from hw.config import MachineConfig
from sim.build.manifest import Manifest
from sim.observe.log import EventLog
from sim.observe.samples import Samples
from sim.observe.stages import Stage
from sim.wire.frames import FCS_BYTES

__all__ = ["FUNCTION_MASK", "PERCENTILES", "SCHEMA", "Fate", "Observation", "machine_dict", "summarise"]

SCHEMA = "nicscope-result-2"

#: Of which percentages of the packets ``latency_ns.percentiles`` tells.
PERCENTILES = (*range(0, 100, 2), 99, 99.5, 100)

#: Classes of work a core's cycles are divided into.
CLASSES = ("idle", "irq", "softirq", "system", "user")  # in the order of sw.core.Mode
FUNCTION_MASK = 0xFFF
MODE_SHIFT = 12


@dataclass(frozen=True)
class Fate:
    """What became of one packet."""

    packet: int  #: id, counted from 1 in the order on the wire
    delivered_tick: int | None = None  #: the application has it
    transmitted_tick: int | None = None  #: the last bit of what the application sent back or on has left
    dropped: str | None = None  #: reason
    consumed: bool = False  #: it has done what it came for and has nothing for a program: SYN, ACK, FIN
    arrived_tick: int | None = None  #: last bit on the wire

    def told(self, ns_per_tick: Fraction) -> str:
        """One line that says it."""
        if self.delivered_tick is not None and self.arrived_tick is not None:
            after = (self.delivered_tick - self.arrived_tick) * ns_per_tick
            return f"packet {self.packet}: delivered after {round(after)} ns"
        if self.transmitted_tick is not None and self.arrived_tick is not None:
            after = (self.transmitted_tick - self.arrived_tick) * ns_per_tick
            return f"packet {self.packet}: transmitted after {round(after)} ns"
        if self.consumed:
            return f"packet {self.packet}: consumed by the protocol"
        return f"packet {self.packet}: " + (f"dropped: {self.dropped}" if self.dropped else "in flight at the end")


@dataclass(frozen=True)
class Observation:
    """Everything a run leaves behind, whichever engine it ran on."""

    manifest: Manifest
    log: np.ndarray  #: see sim.observe.log
    issued: Sequence[np.ndarray]  #: per core: handle of each issued operation, one per event of its issue probe
    issued_cycles: Sequence[np.ndarray]  #: of each of those, the cycles that an EXECUTE asked for, else 0
    tags: np.ndarray  #: by handle: index into ``functions`` in the lower twelve bits, mode above (as in sw.core.Record)
    functions: Sequence[str]
    stages: Sequence[Stage]  #: of each function
    delivered: Mapping[int, int]  #: packet id -> handle of the first operation after recv returned it
    transmitted: Mapping[int, int]  #: packet id -> tick at which the frame made of it left on the wire
    dropped: Mapping[int, str]  #: packet id -> reason, hardware and software
    consumed: Collection[int]  #: ids of packets that a protocol took for itself
    offered: Sequence[bytes]  #: frames that came to the card, without FCS, in order of packet id
    peer: Mapping[str, Any]  #: what the other end of the wire says of the conversation, nothing if there was none
    sent: Sequence[tuple[int, int, bytes]]  #: by the card: tick at which its last bit left, id, bytes with FCS
    polls: int  #: calls of the driver's poll function
    counters: Mapping[str, int]
    counters_at_ready: Mapping[str, int]  #: when the software was up, before the first frame
    samples: Samples | None  #: readings of the counters on the way, if they were asked for
    cycles: Mapping[str, int]  #: edges per domain, skipped ones included
    end_tick: int
    log_sha256: str
    wall_s: float
    blocked: Sequence[str] = ()  #: what the kernel printed of accesses that the IOMMU blocked

    def select(self, probe: str) -> np.ndarray:
        """Events of one probe, with its fields by name."""
        return EventLog(self.manifest, self.log).select(probe)

    def written_back(self) -> set[int]:
        """Ids of the packets the card wrote to memory."""
        paths = [p.path for p in self.manifest.probes if p.path.startswith("nic.rx.write_back")]
        return {int(packet) for path in paths for packet in self.select(path)["packet"]}


def machine_dict(machine: MachineConfig) -> dict[str, Any]:
    """Every parameter of a machine."""
    parameters = {**dataclasses.asdict(machine), "sources": dict(machine.sources)}
    return json.loads(json.dumps(parameters))  # as it will be read again: lists, no tuples


def summarise(
    observation: Observation,
    machine: MachineConfig,
    path: str,
    application: str,
    traffic: Mapping[str, Any],
) -> tuple[dict[str, Any], list[Fate]]:
    """Compute result.json and the fate of every packet."""
    sizes = [len(frame) + FCS_BYTES for frame in observation.offered]
    ns_per_tick = Fraction(10**9, machine.ticks_per_second)
    frames = observation.select("nic.mac.frame")
    arrived = {int(packet): int(tick) for packet, tick in zip(frames["packet"], frames["tick"], strict=True)}
    issue_tick = _issue_ticks(observation, machine)

    fates = [
        Fate(
            packet=packet,
            delivered_tick=issue_tick.get(observation.delivered.get(packet, -1)),
            transmitted_tick=observation.transmitted.get(packet),
            dropped=observation.dropped.get(packet),
            consumed=packet in observation.consumed,
            arrived_tick=arrived.get(packet),
        )
        for packet in range(1, len(sizes) + 1)
    ]
    delivered = [fate for fate in fates if fate.delivered_tick is not None]
    transmitted = [fate for fate in fates if fate.transmitted_tick is not None]
    dropped = Counter(fate.dropped for fate in fates if fate.dropped)
    consumed = sum(fate.consumed for fate in fates)
    received = len(observation.written_back())

    first_tick = _first_frame_start(fates, sizes, machine)
    last_arrival = max((fate.arrived_tick or 0 for fate in fates), default=0)
    done = delivered + transmitted
    last_delivery = max((_end(fate) for fate in done), default=0)
    arrival_ns = float((last_arrival - first_tick) * ns_per_tick)
    delivery_ns = float((max(last_delivery, last_arrival) - first_tick) * ns_per_tick)
    delivered_bytes = sum(sizes[fate.packet - 1] for fate in done)
    waits = [(_end(fate) - fate.arrived_tick) * ns_per_tick for fate in done if fate.arrived_tick is not None]
    latencies = np.array([float(wait) for wait in waits])
    account = _attribute(observation, machine, first_tick)
    rates: dict[str, float] = {
        "offered_mpps": _per(len(sizes) * 1e3, arrival_ns),
        "delivered_mpps": _per(len(done) * 1e3, delivery_ns),
        "delivered_gbps": _per(delivered_bytes * 8, delivery_ns),
        **_goodput(observation, delivery_ns),
    }

    result = {
        "schema": SCHEMA,
        "path": path,
        "application": application,
        "machine": machine_dict(machine),
        "traffic": dict(traffic),
        "packets": {
            "offered": len(sizes),
            "received": received,
            "delivered": len(delivered),
            "transmitted": len(transmitted),
            "dropped": dict(sorted(dropped.items())),
            "consumed": consumed,
            "in_flight": len(sizes) - len(delivered) - len(transmitted) - sum(dropped.values()) - consumed,
        },
        "time": {
            "simulated_ns": float(observation.end_tick * ns_per_tick),
            "cycles": {
                **{
                    clock: max(count for name, count in observation.cycles.items() if name.startswith(clock))
                    for clock in ("core", "uncore", "nic", "dram")
                },
            },
        },
        "rates": rates,
        "latency_ns": _distribution(latencies),
        "cycles_per_packet": {
            name: cycles / max(received, 1) for name, cycles in sorted(account.functions.items()) if cycles
        },
        "stages": {
            str(stage): cycles / max(received, 1)
            for stage, cycles in account.stages.items()
            if stage is not Stage.WAITING
        },
        "per_packet": _per_packet(observation, received),
        "cores": account.cores,
        "interrupts": {
            "raised": int(observation.select("nic.interrupt.msix").size),
            "taken": sum(
                int(observation.select(f"core{index}.port.interrupt").size) for index in range(machine.core.count)
            ),
            "polls": observation.polls,
        },
        **({"dmar": list(observation.blocked)} if observation.blocked else {}),
        **({"peer": dict(observation.peer)} if observation.peer else {}),
        "counters": dict(observation.counters),
        **({"samples": observation.samples.as_json(machine.ticks_per_second)} if observation.samples else {}),
        "host": {
            "wall_s": observation.wall_s,
            "core_cycles_per_s": observation.cycles["core0"] / max(observation.wall_s, 1e-9),
        },
        "log_sha256": observation.log_sha256,
    }
    return result, fates


def _end(fate: Fate) -> int:
    """Tick at which a packet was delivered or transmitted."""
    return fate.delivered_tick or fate.transmitted_tick or 0


def _per_packet(observation: Observation, received: int) -> dict[str, float]:
    """What each received packet costs besides cycles, from when the software was up."""

    def counted(*names: str) -> float:
        return sum(observation.counters[name] - observation.counters_at_ready[name] for name in names)

    translation = "root_complex.iommu."
    amounts = {
        "dram_accesses": counted("llc.dram_reads", "llc.dram_writes"),
        "pcie_bytes": counted("link.upstream.link_bytes", "link.downstream.link_bytes"),
        "interrupts": counted("nic.interrupt.messages"),
        "polls": observation.polls,
    }
    if translation + "lookups" in observation.counters:
        amounts["iotlb_misses"] = counted(translation + "misses")
    return {name: amount / max(received, 1) for name, amount in amounts.items()}


def _goodput(observation: Observation, ns: float) -> dict[str, float]:
    """Bits of the streams that programs read, in Gb/s; nothing without a stream."""
    streams = observation.peer.get("streams")
    return {"goodput_gbps": _per(sum(stream["length"] for stream in streams) * 8, ns)} if streams else {}


def _per(amount: float, ns: float) -> float:
    return amount / ns if ns > 0 else 0.0


def _first_frame_start(fates: Sequence[Fate], sizes: Sequence[int], machine: MachineConfig) -> int:
    """Tick at which the first frame's preamble began: its last bit less its time on the wire."""
    arrivals = [(fate.arrived_tick, sizes[fate.packet - 1]) for fate in fates if fate.arrived_tick is not None]
    if not arrivals:
        return 0
    tick, size = min(arrivals)
    cycles = machine.cycles_per_byte(machine.nic.line_gbps) * (size + 8)
    return max(0, tick - int(cycles * machine.period_ticks("nic")))


def _issue_ticks(observation: Observation, machine: MachineConfig) -> dict[int, int]:
    """Tick at which each delivery's operation issued."""
    wanted = np.array(sorted(observation.delivered.values()), dtype=np.int64)
    ticks: dict[int, int] = {}
    for index in range(machine.core.count):
        handles = observation.issued[index]
        rows = np.flatnonzero(np.isin(handles, wanted))
        issue = observation.select(f"core{index}.port.issue")["tick"]
        for row in rows[::-1]:  # an operation cut short issues again: its first issue counts
            ticks[int(handles[row])] = int(issue[row])
    return ticks


@dataclass
class _Account:
    """Where the cores' cycles since the first frame went."""

    functions: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  #: stalls included
    stages: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 0.0))
    cores: list[dict[str, float]] = field(default_factory=list)  #: by class


def _attribute(observation: Observation, machine: MachineConfig, first_tick: int) -> _Account:
    """Divide each core's time since the first frame among functions, stages and classes, in core cycles.

    A core's time between two issues belongs to the operation that issued first, but from the moment at which an
    interrupt is taken to the next issue it belongs to the interrupt. What an operation takes beyond its own time (the
    cycles of an EXECUTE, one cycle to issue for all others) is a memory stall.
    """
    account = _Account()
    waiting = np.array([stage is Stage.WAITING for stage in observation.stages], dtype=bool)
    order = list(Stage)
    stage_numbers = np.array([order.index(stage) for stage in observation.stages])
    for index in range(machine.core.count):
        ticks = observation.select(f"core{index}.port.issue")["tick"].astype(np.int64)
        handles = observation.issued[index][: ticks.size]
        tags = observation.tags[handles]
        mode_of, function_of = tags >> MODE_SHIFT, tags & FUNCTION_MASK
        entry = _interrupt_entry(observation, machine, index, ticks, first_tick)
        spans = _spans(ticks, observation.end_tick, first_tick, machine) - entry

        classes = np.bincount(mode_of, weights=spans, minlength=len(CLASSES))
        classes[CLASSES.index("irq")] += entry.sum()
        named = {name: float(cycles) for name, cycles in zip(CLASSES, classes, strict=True)}
        account.cores.append({"busy": float(classes.sum() - classes[0]), **named})

        caused = (mode_of != CLASSES.index("idle")) & ~waiting[function_of]
        totals = np.bincount(function_of[caused], weights=spans[caused], minlength=len(observation.functions))
        for name, cycles in zip(observation.functions, totals, strict=True):
            account.functions[name] += float(cycles)
        own = np.minimum(spans, np.maximum(observation.issued_cycles[index][: ticks.size], 1))
        worked = np.bincount(stage_numbers[function_of[caused]], weights=own[caused], minlength=len(order))
        for stage, cycles in zip(order, worked, strict=True):
            account.stages[stage] += float(cycles)
        account.stages[Stage.STALLS] += float((spans - own)[caused].sum())
        account.stages[Stage.SWITCHING] += float(entry.sum())
        account.stages[Stage.WAITING] += float(spans[~caused].sum())
        account.functions["interrupt entry"] += float(entry.sum())
    return account


def _spans(ticks: np.ndarray, end: int, first_tick: int, machine: MachineConfig) -> np.ndarray:
    """Core cycles from each tick to the next one, the last to ``end``; nothing before ``first_tick`` counts."""
    ends = np.append(ticks[1:], end)
    return (np.maximum(ends, first_tick) - np.maximum(ticks, first_tick)) / machine.period_ticks("core")


def _interrupt_entry(
    observation: Observation, machine: MachineConfig, index: int, ticks: np.ndarray, first_tick: int
) -> np.ndarray:
    """Core cycles from each interrupt that was taken to the next issue, at the place of the issue before it."""
    result = np.zeros(ticks.size)
    taken = observation.select(f"core{index}.port.interrupt")["tick"].astype(np.int64)
    before = np.searchsorted(ticks, taken, side="right") - 1
    ends = np.append(ticks[1:], observation.end_tick)
    cycles = (np.maximum(ends[before], first_tick) - np.maximum(taken, first_tick)) / machine.period_ticks("core")
    np.add.at(result, before[before >= 0], cycles[before >= 0])
    return result


def _distribution(values: np.ndarray) -> dict[str, Any]:
    if not values.size:
        return {**dict.fromkeys(("min", "p50", "p90", "p99", "max", "mean")), "percentiles": None}
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "min": float(values.min()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "percentiles": [float(value) for value in np.percentile(values, PERCENTILES)],
    }
