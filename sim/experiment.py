"""One run: traffic through one receive path on one machine and engine, and what it leaves behind."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hw.config import ConfigError, MachineConfig
from sim.build.design import Design
from sim.engine.engine import Jump
from sim.observe.log import EventLog
from sim.observe.waves import gtkwave_view
from sim.result import Fate, Observation, summarise
from sim.session import Software, observe
from sim.wire.capture import Captured, Direction, write_capture
from sim.wire.frames import FCS_BYTES, TrafficError, with_fcs
from sim.wire.traffic import Traffic
from sw.options import OPTIONAL
from sw.paths import PathError, path_named

__all__ = ["Experiment", "captured", "switch"]

#: Until the last frame starts; the engines count to twice as many.
MOST_CARD_CYCLES = 1 << 47

#: Shortest time between two samples.
LEAST_SAMPLE_NS = 100


def switch(option: str) -> str:
    """How the command line calls an option of the software."""
    return "--" + option.removesuffix("_us").removesuffix("_size").replace("_", "-")


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run."""

    path: str
    machine: MachineConfig
    traffic: Traffic
    application: str | None = None  #: None: the first of the path's
    engine: str = "native"
    seed: int = 1
    waves: bool = False
    out: Path = Path("runs/last")
    options: Mapping[str, Any] = field(default_factory=dict)  #: of ``sw.options.Options``, where they differ
    mitigations: tuple[str, ...] = ()  #: names in the cost tables
    background: bool = True  #: a program computes whenever there is nothing to receive
    idle: str = "poll"  #: how an idle core sleeps, one of ``sw.linux.cpuidle.IDLE``
    jump: Jump = Jump.ALL
    sample_ns: float | None = None  #: read the counters so often and keep them

    def run(self, console: Console | None = None) -> dict[str, Any]:
        """Run it, write the directory of results and return result.json.

        Arguments:
            console: where progress is shown; None for none.

        Raises:
            ConfigError, TrafficError: in one line, when what the user asked for cannot be.
            ToolError: when the machine cannot be built.
        """
        try:
            path = path_named(self.path, self.application)
        except PathError as error:
            raise ConfigError(str(error)) from None
        unused = sorted(OPTIONAL & set(self.options) - path.uses(self.application_name))
        if unused:
            raise ConfigError(f"{switch(unused[0])} has no effect on {self.path} with --app {self.application_name}")
        largest = max(self.traffic.sizes)
        if largest > 65535:
            raise TrafficError(
                f"frame {self.traffic.sizes.index(largest) + 1} has {largest} bytes; the wire takes 65535"
            )
        last_s = max(frame.time_ns for frame in self.traffic.frames) / 10**9
        most_s = MOST_CARD_CYCLES * self.machine.period_ticks("nic") // self.machine.ticks_per_second
        if last_s > most_s:
            raise TrafficError(
                f"the last frame starts {float(last_s):.3g} s after the first, and a run has at most {most_s:,} s; "
                "--speed and --rate make it sooner"
            )
        if self.waves and self.engine != "native":
            raise ConfigError(f"--waves needs --engine native, not {self.engine}")
        if self.idle != "poll" and self.background:
            raise ConfigError(f"--idle {self.idle} needs --no-background: a core that computes is never idle")
        if self.sample_ns is not None and not self.sample_ns >= LEAST_SAMPLE_NS:
            raise ConfigError(f"--sample must be at least {LEAST_SAMPLE_NS} ns, not {self.sample_ns:g} ns")
        self.out.mkdir(parents=True, exist_ok=True)
        observation = self._observe(console)
        result, fates = summarise(
            observation, self.machine, self.path, self.application_name, self._traffic_parameters()
        )
        result["software"] = {
            "mitigations": list(self.mitigations),
            "background": self.background,
            "idle": self.idle,
            "options": dict(self.options),
        }
        self._write(result, fates, observation)
        return result

    def _traffic_parameters(self) -> dict[str, Any]:
        """Those of the traffic; with a peer, what it makes of the frames."""
        parameters = self.traffic.parameters
        if not path_named(self.path).needs_peer:
            return parameters
        return {**parameters, "description": f"a peer's segments, as {parameters['description']}"}

    @property
    def application_name(self) -> str:
        """What receives."""
        return path_named(self.path, self.application).application(self.application)

    def files(self) -> list[str]:
        """Names of what a run writes."""
        return [
            "result.json",
            "wire.pcapng",
            "log.npy",
            "probes.json",
            *(["occupancy.svg"] if self.sample_ns else []),
            *(["waves.fst", "waves.gtkw"] if self.waves else []),
        ]

    def job(self) -> dict[str, Any]:
        """What :func:`observe` needs, as plain data."""
        return {
            "machine": self.machine,
            "frames": [(frame.time_ns, with_fcs(frame.data)) for frame in self.traffic.frames],
            "software": Software(
                self.path, self.application, self.options, self.mitigations, self.background, self.idle
            ),
            "sample_ns": self.sample_ns,
        }

    def _observe(self, console: Console | None) -> Observation:
        design = Design(self.machine)
        if self.engine == "cocotb":
            from sim.engine.cocotb import run_in_cocotb

            with _status(console, "building for cocotb (once), then running"):
                return run_in_cocotb(design, "sim.session:observe", self.job(), jump=self.jump, seed=self.seed)
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
        if self.sample_ns:
            from sim.report.occupancy import plot_occupancy

            title = f"{self.machine.name}, {self.path} {self.application_name}: the last level"
            plot_occupancy(result["samples"], title, self.out / "occupancy.svg")
        if self.waves:
            (self.out / "waves.gtkw").write_text(gtkwave_view(EventLog(observation.manifest, observation.log)))
        ns_per_tick = Fraction(10**9, self.machine.ticks_per_second)
        write_capture(self.out / "wire.pcapng", captured(fates, observation.offered, observation.sent, ns_per_tick))


def captured(
    fates: Sequence[Fate],
    frames: Sequence[bytes],
    sent: Sequence[tuple[int, int, bytes]],
    ns_per_tick: Fraction,
) -> list[Captured]:
    """What passed the card's port, both ways, when its last bit did.

    Arguments:
        fates: of the packets that were offered.
        frames: those packets without FCS, in the order of their ids.
        sent: tick, id and bytes (FCS included) of each frame that the card sent.
    """
    into = [
        Captured(fate.arrived_tick * ns_per_tick, frames[fate.packet - 1], fate.told(ns_per_tick))
        for fate in fates
        if fate.arrived_tick is not None
    ]
    out_of = [
        Captured(tick * ns_per_tick, data[:-FCS_BYTES], f"sent packet {packet}", Direction.OUTBOUND)
        for tick, packet, data in sent
    ]
    return sorted(into + out_of, key=lambda frame: frame.time_ns)


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
