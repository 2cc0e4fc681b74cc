"""What a run says: ``result.json``, computed from the event log and the software's notes.

The schema is described in docs/results.md.
"""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from hw.config import MachineConfig
from sim.build.manifest import Manifest
from sim.observe.log import EventLog

__all__ = ["FUNCTION_MASK", "SCHEMA", "Fate", "Observation", "machine_dict", "summarise"]

SCHEMA = "nicscope-result-1"

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
    arrived_tick: int | None = None  #: last bit on the wire

    def told(self, ns_per_tick: Fraction) -> str:
        """One line that says it."""
        if self.delivered_tick is not None and self.arrived_tick is not None:
            after = (self.delivered_tick - self.arrived_tick) * ns_per_tick
            return f"packet {self.packet}: delivered after {round(after)} ns"
        if self.transmitted_tick is not None and self.arrived_tick is not None:
            after = (self.transmitted_tick - self.arrived_tick) * ns_per_tick
            return f"packet {self.packet}: transmitted after {round(after)} ns"
        return f"packet {self.packet}: " + (f"dropped: {self.dropped}" if self.dropped else "in flight at the end")


@dataclass(frozen=True)
class Observation:
    """Everything a run leaves behind, whichever engine it ran on."""

    manifest: Manifest
    log: np.ndarray  #: see sim.observe.log
    issued: Sequence[np.ndarray]  #: per core: handle of each issued operation, one per event of its issue probe
    tags: np.ndarray  #: by handle: index into ``functions`` in the lower twelve bits, mode above (as in sw.core.Record)
    functions: Sequence[str]
    delivered: Mapping[int, int]  #: packet id -> handle of the first operation after recv returned it
    transmitted: Mapping[int, int]  #: packet id -> tick at which the frame made of it left on the wire
    dropped: Mapping[int, str]  #: packet id -> reason, hardware and software
    polls: int  #: calls of the driver's poll function
    counters: Mapping[str, int]
    cycles: Mapping[str, int]  #: edges per domain, skipped ones included
    end_tick: int
    log_sha256: str
    wall_s: float

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
    sizes: Sequence[int],
) -> tuple[dict[str, Any], list[Fate]]:
    """Compute result.json and the fate of every packet.

    Arguments:
        sizes: bytes of each offered frame, FCS included, in order of packet id.
    """
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
            arrived_tick=arrived.get(packet),
        )
        for packet in range(1, len(sizes) + 1)
    ]
    delivered = [fate for fate in fates if fate.delivered_tick is not None]
    transmitted = [fate for fate in fates if fate.transmitted_tick is not None]
    dropped = Counter(fate.dropped for fate in fates if fate.dropped)
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
    by_function, by_class = _attribute(observation, machine, first_tick)

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
            "in_flight": len(sizes) - len(delivered) - len(transmitted) - sum(dropped.values()),
        },
        "time": {
            "simulated_ns": float(observation.end_tick * ns_per_tick),
            "cycles": {
                "core": max(count for name, count in observation.cycles.items() if name.startswith("core")),
                **{name: observation.cycles[name] for name in ("uncore", "nic", "dram")},
            },
        },
        "rates": {
            "offered_mpps": _per(len(sizes) * 1e3, arrival_ns),
            "delivered_mpps": _per(len(done) * 1e3, delivery_ns),
            "delivered_gbps": _per(delivered_bytes * 8, delivery_ns),
        },
        "latency_ns": _distribution(latencies),
        "cycles_per_packet": {
            name: cycles / max(received, 1) for name, cycles in sorted(by_function.items()) if cycles
        },
        "cores": by_class,
        "interrupts": {
            "raised": int(observation.select("nic.interrupt.msix").size),
            "taken": sum(
                int(observation.select(f"core{index}.port.interrupt").size) for index in range(machine.core.count)
            ),
            "polls": observation.polls,
        },
        "counters": dict(observation.counters),
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


def _attribute(
    observation: Observation, machine: MachineConfig, first_tick: int
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Divide each core's time since the first frame among functions and classes, in core cycles.

    A core's time between two issues belongs to the operation that issued first. Functions leave out idle
    time and the applications' own computing, which packets do not cause.
    """
    period = machine.period_ticks("core")
    by_function: defaultdict[str, float] = defaultdict(float)
    by_class = []
    for index in range(machine.core.count):
        ticks = observation.select(f"core{index}.port.issue")["tick"].astype(np.int64)
        handles = observation.issued[index][: ticks.size]
        ends = np.append(ticks[1:], observation.end_tick)
        spans = (np.maximum(ends, first_tick) - np.maximum(ticks, first_tick)) / period
        mode_of, function_of = observation.tags[handles] >> MODE_SHIFT, observation.tags[handles] & FUNCTION_MASK
        classes = np.bincount(mode_of, weights=spans, minlength=len(CLASSES))
        by_class.append(
            {
                "busy": float(classes.sum() - classes[0]),
                **{name: float(cycles) for name, cycles in zip(CLASSES, classes, strict=True)},
            }
        )
        caused = np.isin(mode_of, [CLASSES.index(c) for c in ("irq", "softirq", "system")])
        totals = np.bincount(function_of[caused], weights=spans[caused], minlength=len(observation.functions))
        for name, cycles in zip(observation.functions, totals, strict=True):
            by_function[name] += float(cycles)
    return dict(by_function), by_class


def _distribution(values: np.ndarray) -> dict[str, float | None]:
    if not values.size:
        return dict.fromkeys(("min", "p50", "p90", "p99", "max", "mean"))
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "min": float(values.min()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.max()),
        "mean": float(values.mean()),
    }
