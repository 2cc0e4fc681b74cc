"""One run: traffic through one receive path on one machine and engine, and what it leaves behind."""

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hw.config import ConfigError, MachineConfig
from hw.nic.drop import DropReason
from sim.build.design import Design
from sim.engine.engine import Engine, Jump
from sim.observe.log import EventLog
from sim.observe.waves import gtkwave_view
from sim.result import FUNCTION_MASK, Fate, Observation, summarise
from sim.wire.capture import read_capture, write_capture
from sim.wire.frames import (
    FCS_BYTES,
    GENERATOR_PORT,
    HOST_IP,
    HOST_MAC,
    Frame,
    TrafficError,
    at_rate,
    generate,
    parse_rate,
    with_fcs,
)
from sw.core import Note, Record
from sw.costs import load_costs
from sw.linux.cpuidle import Cpuidle
from sw.port import WakeKind
from sw.system import System

__all__ = ["Experiment", "Traffic", "observe"]

#: UDP ports a receiving program listens on: the generator's, DNS and memcached.
PORTS = (GENERATOR_PORT, 53, 11211)

#: How far the machine runs before the host looks whether every packet is accounted for, in ns.
STEP_NS = 20_000
#: A run ends when nothing has become of any packet for so long after the last arrived, in ns.
PATIENCE_NS = 2_000_000

DEFAULT_COUNT = 1000
DEFAULT_SIZE = 64


@dataclass(frozen=True)
class Traffic:
    """Frames for the wire, and where they come from."""

    frames: tuple[Frame, ...]
    description: str
    parameters: dict[str, Any]

    @classmethod
    def make(
        cls,
        *,
        capture: Path | None,
        speed: float | None,
        size: int | None,
        rate: str | None,
        count: int | None,
        seed: int,
    ) -> "Traffic":
        """Build what the options ask for: a capture (its own timing scaled, or at a rate), else generated frames.

        Raises:
            TrafficError: when options contradict each other or cannot be.
        """
        if count is not None and count < 1:
            raise TrafficError(f"--count takes at least 1, not {count}")
        if capture is None:
            if speed is not None:
                raise TrafficError("--speed scales the timing of a capture; with generated frames use --rate")
            size, count, rate = size or DEFAULT_SIZE, count or DEFAULT_COUNT, rate or "line"
            frames = at_rate(generate(size, count, seed), *parse_rate(rate))
            parameters: dict[str, Any] = {"size": size, "rate": rate, "count": count, "seed": seed}
            return cls._described(frames, f"{count:,} UDP frames of {size} bytes at {_spoken(rate)}", parameters)
        if size is not None:
            raise TrafficError("--size is for generated frames; a capture has its own sizes")
        if speed is not None and rate is not None:
            raise TrafficError("--speed keeps the timing of a capture and --rate replaces it: give one of them")
        frames, left_out = read_capture(capture)
        frames = frames[:count]
        parameters = {"file": str(capture), "left_out": left_out}
        if rate is not None:
            frames = at_rate([frame.data for frame in frames], *parse_rate(rate))
            parameters["rate"] = rate
            how = f"at {_spoken(rate)}"
        else:
            speed = 1.0 if speed is None else speed
            if not (math.isfinite(speed) and speed > 0):
                raise TrafficError(f"--speed takes a positive number, not {speed:g}")
            scale = 1 / Fraction(str(speed))
            frames = [Frame(frame.time_ns * scale, frame.data) for frame in frames]
            parameters["speed"] = speed
            how = "with its own timing" if speed == 1 else f"{speed:g} times as fast as recorded"
        return cls._described(frames, f"{len(frames):,} frames of {capture} {how}", parameters)

    @classmethod
    def _described(cls, frames: Sequence[Frame], description: str, parameters: dict[str, Any]) -> "Traffic":
        return cls(tuple(frames), description, {"description": description, **parameters})

    @property
    def sizes(self) -> list[int]:
        """Bytes of each frame, FCS included."""
        return [len(frame.data) + FCS_BYTES for frame in self.frames]


def _spoken(rate: str) -> str:
    return "line rate" if rate.lower() == "line" else rate


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run."""

    path: str
    application: str
    machine: MachineConfig
    traffic: Traffic
    engine: str = "native"
    seed: int = 1
    waves: bool = False
    out: Path = Path("runs/last")
    ring: int | None = None  #: receive descriptors; None: by the size of memory
    mitigations: tuple[str, ...] = ()  #: names in the cost table
    background: bool = True  #: a program computes whenever there is nothing to receive
    idle: str = "poll"  #: how an idle core sleeps, one of ``sw.linux.cpuidle.IDLE``
    jump: Jump = Jump.ALL

    def run(self, console: Console | None = None) -> dict[str, Any]:
        """Run it, write the directory of results and return result.json.

        Arguments:
            console: where progress is shown; None for none.

        Raises:
            ConfigError, TrafficError: in one line, when what the user asked for cannot be.
            ToolError: when the machine cannot be built.
        """
        largest = max(self.traffic.sizes)
        if largest > 65535:
            raise TrafficError(
                f"frame {self.traffic.sizes.index(largest) + 1} has {largest} bytes; the wire takes 65535"
            )
        if self.waves and self.engine != "native":
            raise ConfigError(f"--waves needs --engine native, not {self.engine}")
        if self.idle != "poll" and self.background:
            raise ConfigError(f"--idle {self.idle} needs --no-background: a core that computes is never idle")
        self.out.mkdir(parents=True, exist_ok=True)
        observation = self._observe(console)
        result, fates = summarise(observation, self.machine, self.path, self.traffic.parameters, self.traffic.sizes)
        result["software"] = {
            "mitigations": list(self.mitigations),
            "background": self.background,
            "idle": self.idle,
        }
        self._write(result, fates, observation)
        return result

    def files(self) -> list[str]:
        """Names of what a run writes."""
        return [
            "result.json",
            "wire.pcapng",
            "log.npy",
            "probes.json",
            *(["waves.fst", "waves.gtkw"] if self.waves else []),
        ]

    def job(self) -> dict[str, Any]:
        """What :func:`observe` needs, as plain data."""
        return {
            "machine": self.machine,
            "frames": [(frame.time_ns, with_fcs(frame.data)) for frame in self.traffic.frames],
            "ring": self.ring,
            "mitigations": self.mitigations,
            "background": self.background,
            "idle": self.idle,
        }

    def _observe(self, console: Console | None) -> Observation:
        design = Design(self.machine)
        if self.engine == "cocotb":
            from sim.engine.cocotb import run_in_cocotb

            with _status(console, "building for cocotb (once), then running"):
                return run_in_cocotb(design, "sim.experiment:observe", self.job(), jump=self.jump, seed=self.seed)
        if self.engine == "amaranth":
            from sim.engine.amaranth import run_on_amaranth

            with _progress(console, len(self.traffic.frames)) as advance:
                return run_on_amaranth(
                    design,
                    lambda engine: observe(engine, **self.job(), advance=advance),
                    jump=self.jump,
                    seed=self.seed,
                )
        from sim.build.native import build_native
        from sim.engine.native import NativeEngine

        with _status(console, f"building {self.machine.name} (once for each machine; kept in .cache)"):
            build = build_native(design, waves=self.waves)
        waves = self.out / "waves.fst" if self.waves else None
        engine = NativeEngine(build, jump=self.jump, seed=self.seed, waves=waves)
        with _progress(console, len(self.traffic.frames)) as advance:
            return engine.execute(lambda engine: observe(engine, **self.job(), advance=advance))

    def _write(self, result: dict[str, Any], fates: Sequence[Fate], observation: Observation) -> None:
        (self.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        np.save(self.out / "log.npy", observation.log)
        probes = [asdict(probe) for probe in observation.manifest.probes]
        (self.out / "probes.json").write_text(json.dumps(probes, indent=1) + "\n")
        if self.waves:
            (self.out / "waves.gtkw").write_text(gtkwave_view(EventLog(observation.manifest, observation.log)))
        ns_per_tick = Fraction(10**9, self.machine.ticks_per_second)
        arrived = [(fate.arrived_tick, fate) for fate in fates if fate.arrived_tick is not None]
        write_capture(
            self.out / "wire.pcapng",
            (
                (tick * ns_per_tick, self.traffic.frames[fate.packet - 1].data, fate.told(ns_per_tick))
                for tick, fate in sorted(arrived, key=lambda pair: pair[0])
            ),
        )


def _status(console: Console | None, text: str) -> Any:
    return (console or Console(quiet=True)).status(text)


class _progress:
    """A bar of packets accounted for."""

    def __init__(self, console: Console | None, total: int):
        self._bar = Progress(
            TextColumn("packets"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console or Console(quiet=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return lambda done: self._bar.update(self._task, completed=done)

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()


async def observe(
    engine: Engine,
    machine: MachineConfig,
    frames: Sequence[tuple[Fraction, bytes]],
    ring: int | None = None,
    mitigations: Sequence[str] = (),
    background: bool = True,
    idle: str = "poll",
    advance: Callable[[int], None] = lambda done: None,
) -> Observation:
    """Boot the software, send the frames, run until every packet is accounted for.

    Arguments:
        frames: start in ns after the system is ready, and bytes with FCS, in order of packet id.
        ring: receive descriptors.
        mitigations: names in the cost table.
        background: a program computes whenever there is nothing to receive.
        idle: one of ``sw.linux.cpuidle.IDLE``.
        advance: called with the number of packets accounted for so far.

    Raises:
        ConfigError: when the software cannot be set up on this machine.
    """
    begin = time.monotonic()
    account = _Account()
    system = _system(engine, machine, ring, account, mitigations, background, idle)
    await system.boot()

    ticks_per_ns = Fraction(machine.ticks_per_second, 10**9)
    nic_period = machine.period_ticks("nic")
    ready = engine.tick
    ticks, ns = ticks_per_ns.as_integer_ratio()
    for packet, (time_ns, data) in enumerate(frames, 1):
        # (ready + time_ns * ticks_per_ns) / nic_period, rounded up, in integers: many fractions take long.
        whole, parts = time_ns.as_integer_ratio()
        divisor = ns * parts
        start = -(-(ready * divisor + whole * ticks) // (divisor * nic_period)) + 1
        engine.push_frame(data, packet, start)
    last_start = ready + int(max(time_ns for time_ns, _ in frames) * ticks_per_ns)

    step, patience = int(STEP_NS * ticks_per_ns), int(PATIENCE_NS * ticks_per_ns)
    done, changed, until = 0, ready, ready
    dropped_by_card: dict[int, str] = {}
    while done < len(frames) and until - max(changed, last_start) < patience:
        until += step
        ended = await system.run(until)
        if account.count + len(dropped_by_card) == done:
            dropped_by_card = _dropped_by_card(engine)
        if account.count + len(dropped_by_card) != done:
            done, changed = account.count + len(dropped_by_card), until
        advance(done)
        if ended is not WakeKind.LIMIT:
            dropped_by_card = _dropped_by_card(engine)
            break
    end_tick = engine.tick
    engine.close()

    log = EventLog(engine.manifest, engine.log())
    written = _written_packets(log)
    functions, tags = _tags(system.record)
    return Observation(
        manifest=engine.manifest,
        log=log.log,
        issued=[engine.issued(core) for core in range(machine.core.count)],
        tags=tags,
        functions=functions,
        delivered={written[index]: handle for index, handle in account.delivered.items()},
        dropped={
            **_dropped_by_card(engine),
            **{written[index]: reason for index, reason in account.dropped.items()},
        },
        polls=account.polls,
        counters=engine.counters(),
        cycles=engine.cycles(),
        end_tick=end_tick,
        log_sha256=engine.log_sha256(),
        wall_s=time.monotonic() - begin,
    )


class _Account:
    """What the software says became of the packets it got, by the number of their descriptor."""

    def __init__(self):
        self.delivered: dict[int, int] = {}
        self.dropped: dict[int, str] = {}
        self.polls = 0

    @property
    def count(self) -> int:
        """Packets accounted for."""
        return len(self.delivered) + len(self.dropped)

    def note(self, note: Note) -> None:
        """Take one note of the software."""
        if note.kind == "delivered":
            self.delivered[note.data["packet"]] = note.handle
        elif note.kind == "dropped":
            self.dropped[note.data["packet"]] = note.data["reason"]
        elif note.kind == "poll":
            self.polls += 1


def _system(
    engine: Engine,
    machine: MachineConfig,
    ring: int | None,
    account: _Account,
    mitigations: Sequence[str],
    background: bool,
    idle: str,
) -> System:
    """Assemble the software; small memories get a small ring and small socket buffers."""
    small = machine.dram.size_mib < 8
    options: dict[str, Any] = {"rcvbuf": 16_384, "netdev_budget": 64} if small else {}
    try:
        return System(
            engine,
            machine.core.count,
            machine.dram.size_mib << 20,
            _costs(mitigations=tuple(mitigations)),
            mac=HOST_MAC,
            addresses=[HOST_IP.packed],
            ports=PORTS,
            compute=(0,) if background else (),
            ring_size=ring if ring is not None else (32 if small else 512),
            cpuidle=Cpuidle(idle=idle, exit_ns=machine.core.sleep_exit_ns, ticks_per_ns=machine.ticks_per_second / 1e9),
            on_note=account.note,
            **options,
        )
    except (ValueError, MemoryError) as error:
        raise ConfigError(str(error)) from None


_costs = functools.cache(load_costs)


def _tags(record: Record) -> tuple[list[str], np.ndarray]:
    """Names of the functions that ran, sorted, and each operation's tag with the function's place among them.

    The record numbers functions in the order in which a process came to know them; a result must not depend on that.
    """
    tags = np.frombuffer(record.tags, dtype=np.uint16)
    used = sorted(np.unique(tags & FUNCTION_MASK).tolist(), key=lambda number: record.function_names[number])
    place = np.zeros(FUNCTION_MASK + 1, dtype=np.uint16)
    place[used] = np.arange(len(used))
    return [record.function_names[number] for number in used], tags & ~np.uint16(FUNCTION_MASK) | place[
        tags & FUNCTION_MASK
    ]


def _dropped_by_card(engine: Engine) -> dict[int, str]:
    log = EventLog(engine.manifest, engine.log())
    return {
        int(packet): DropReason(int(reason)).name.lower()
        for probe in engine.manifest.probes
        if probe.path.startswith("nic.") and probe.path.endswith("drop")
        for packet, reason in log.select(probe.path)[["packet", "reason"]].tolist()
    }


def _written_packets(log: EventLog) -> list[int]:
    """Packet id of each completed receive descriptor, in the order of the ring."""
    numbers = [number for number, probe in enumerate(log.manifest.probes) if probe.path.startswith("nic.rx.write_back")]
    rows = log.log[np.isin(log.log["probe"], numbers)]
    return rows["fields"][:, 0].astype(int).tolist()
