"""A machine as one flat module: every clock, host port, probe, counter and timer a port of its own.

Inputs go nowhere but to the machine's own inputs, which registers take up: compiled models evaluate logic behind
inputs at every evaluation, whatever clock rises.
"""

import re
from typing import Any, Protocol, cast

from amaranth.back import verilog
from amaranth.hdl import Cat, ClockDomain, Elaboratable, Module, Mux, Shape, Signal, Value
from amaranth.lib import data

from hw.bus.core import Completion, InterruptTaken, Operation
from hw.bus.wire import FrameBeat, SentBeat
from hw.config import ConfigError
from hw.lib import probe as hw_probe
from hw.lib import time as hw_time
from hw.lib.observe import collect
from hw.lib.platform import CompiledSimulation
from hw.lib.ram import RAM_VERILOG
from hw.lib.time import NOW_WIDTH, time_domain

from .manifest import Counter, Domain, Field, Layout, Manifest, Port, Probe, ProbeWord, Timer

__all__ = ["TOP_MODULE", "MachineLike", "Toplevel", "to_verilog", "with_constants"]

#: Name of the Verilog module.
TOP_MODULE = "nicscope"

#: Ticks of the longest period: a tick count then stays below 2**62 for 2**48 cycles of any clock.
MAX_PERIOD = 1 << 14

#: What a core tells its host, beside ``operation.ready``: see ``hw.bus.core.CoreHost``.
HOST_OUTPUTS = (
    "issue",
    "issue_id",
    "sampled",
    "sampled_id",
    "visible",
    "completion_valid",
    "completion",
    "interrupt_taken",
    "interrupt",
    "fault",
    "fault_id",
    "fault_outside",
)

#: Probes per ``probes_<domain>_<k>`` port: what fits the simulator's widest plain integer.
PROBES_PER_WORD = 64


class MachineLike(Protocol):
    """What a design offers to be wrapped, see ``hw.machine.Machine``. It elaborates like any Amaranth design
    and leaves the creation of its clock domains to its parent. It may have a ``device_write``, see
    ``hw.machine.DeviceWrite``, and a ``wire_out``, a stream of ``hw.bus.wire.SentBeat`` in the domain of ``wire``.
    """  # fmt: skip

    config: Any
    domains: list[str]
    host: list
    wire: Any
    quiet: dict[str, Signal]
    now: dict[str, hw_time.Now]  #: of the domains that have a time


class Toplevel(Elaboratable):
    """The flat module.

    Attributes:
        manifest: what its ports are.
        ports: the ports, by name.
    """

    def __init__(self, machine: MachineLike):
        self.machine = machine
        self._tree = cast(Elaboratable, machine)
        self.ports: dict[str, Signal] = {}
        self._outputs: set[str] = set()
        self._connections: list = []

        config, names = machine.config, machine.domains
        domains = tuple(Domain(name, config.period_ticks(_clock_of(name)), name in machine.now) for name in names)
        for domain in domains:
            if domain.period > MAX_PERIOD:
                raise ConfigError(
                    f"clocks have no common measure that makes a period of {domain.name} at most {MAX_PERIOD} "
                    f"ticks: it has {domain.period}; choose rounder frequencies"
                )
        for name in names:
            self._input(f"clk_{name}", 1)
            if name in machine.now:
                self._input(f"clk_{time_domain(name)}", 1)
                self._drive(machine.now[name].advance, f"advance_{name}")
        # A port each: a compiled model then looks at a domain's again only when something of that domain has changed.
        for name in names:
            self._output(f"quiet_{name}", machine.quiet[name])

        timers = self._timers()
        probes, words = self._probes()
        counters = self._counters()
        for index, host in enumerate(machine.host):
            self._core(index, host)
        self._drive(machine.wire.valid, "wire_valid")
        self._drive(machine.wire.payload, "wire_payload")
        self._output("wire_ready", machine.wire.ready)
        wire_out = getattr(machine, "wire_out", None)
        if wire_out is not None:
            self._output("wire_out_valid", wire_out.valid)
            self._output("wire_out_payload", wire_out.payload)
        device_write = getattr(machine, "device_write", None)
        if device_write is not None:
            self._device_write(device_write)

        self.manifest = Manifest(
            name=config.name,
            ticks_per_second=config.ticks_per_second,
            domains=domains,
            probes=probes,
            probe_words=words,
            counters=counters,
            timers=timers,
            core_domains=tuple(names.index(f"core{index}") for index in range(len(machine.host))),
            core_parts=tuple(_parts(names, f"core{index}") for index in range(len(machine.host))),
            wire_domain=names.index("nic"),
            device_domain=-1 if device_write is None else names.index("uncore"),
            operation=_layout(Operation),
            completion=_layout(Completion),
            interrupt=_layout(InterruptTaken),
            frame_beat=_layout(FrameBeat),
            sent_beat=Layout(0, ()) if wire_out is None else _layout(SentBeat),
            ports=tuple(Port(name, len(port), name in self._outputs) for name, port in self.ports.items()),
        )

    def elaborate(self, platform):
        """Make the clock domains from their ports and join machine and ports."""
        m = Module()
        for domain in (*self.machine.domains, *map(time_domain, self.machine.now)):
            clock = ClockDomain(domain, reset_less=True)
            clock.clk = self.ports[f"clk_{domain}"]  # type: ignore[attr-defined]
            m.domains += clock
        m.submodules.machine = self._tree
        m.d.comb += self._connections
        return m

    def _input(self, name: str, width: int) -> Signal:
        self.ports[name] = Signal(width, name=name)
        return self.ports[name]

    def _drive(self, target: Any, name: str) -> None:
        value = Value.cast(target)
        self._connections.append(value.eq(self._input(name, len(value))))

    def _output(self, name: str, source: Any) -> None:
        value = Value.cast(source)
        self.ports[name] = port = Signal(len(value), name=name)
        self._outputs.add(name)
        self._connections.append(port.eq(value))

    def _timers(self) -> tuple[Timer, ...]:
        result: list[Timer] = []
        count = dict.fromkeys(self.machine.domains, 0)
        for path, timer in collect(self._tree, hw_time.Timer).items():
            port = f"timer_{timer.domain}_{count[timer.domain]}"
            count[timer.domain] += 1
            self._output(f"{port}_armed", _named(timer.armed, path, "armed"))
            self._output(f"{port}_deadline", _named(timer.deadline, path, "deadline"))
            result.append(Timer(path, self.machine.domains.index(timer.domain), port, timer.background))
        return tuple(result)

    def _probes(self) -> tuple[tuple[Probe, ...], tuple[ProbeWord, ...]]:
        found = collect(self._tree, hw_probe.Probe)
        order = sorted(found, key=lambda path: (self.machine.domains.index(found[path].domain), path))
        probes: list[Probe] = []
        words: list[ProbeWord] = []
        for path in order:
            probe = found[path]
            fields = tuple((name, len(signal)) for name, signal in probe.fields.items())
            _named(probe.valid, path, "valid")
            for name, signal in probe.fields.items():
                _named(signal, path, name)
                # Nobody reads the payload of an event that does not happen: let the model skip it.
                self._output(f"probe_{len(probes)}_{name}", Mux(probe.valid, signal, 0))
            domain = self.machine.domains.index(probe.domain)
            probes.append(Probe(path, domain, probe.doc, fields))
        for domain, name in enumerate(self.machine.domains):
            numbers = [number for number, probe in enumerate(probes) if probe.domain == domain]
            for k, start in enumerate(range(0, len(numbers), PROBES_PER_WORD)):
                part = numbers[start : start + PROBES_PER_WORD]
                self._output(f"probes_{name}_{k}", Cat(found[order[number]].valid for number in part))
                words.append(ProbeWord(f"probes_{name}_{k}", domain, part[0], len(part)))
        return tuple(probes), tuple(words)

    def _counters(self) -> tuple[Counter, ...]:
        result: list[Counter] = []
        for path, counter in sorted(collect(self._tree, hw_probe.Counter).items()):
            self._output(f"counter_{len(result)}", _named(counter.value, path, "count"))
            result.append(Counter(path, self.machine.domains.index(counter.domain), counter.doc))
        return tuple(result)

    def _core(self, index: int, host: Any) -> None:
        self._drive(host.operation.valid, f"core{index}_operation_valid")
        self._drive(host.operation.payload, f"core{index}_operation_payload")
        self._output(f"core{index}_operation_ready", host.operation.ready)
        for name in HOST_OUTPUTS:
            self._output(f"core{index}_{name}", getattr(host, name))

    def _device_write(self, write: Any) -> None:
        self._output("device_write_accepted", write.accepted)
        for name in ("line", "mask", "data"):
            self._output(f"device_write_{name}", Mux(write.accepted, getattr(write, name), 0))
        self._output("device_write_done", write.done)


#: ``always @*`` around one assignment of one constant.
CONSTANT_PROCESS = re.compile(r"always @\*(\s+[^;=\n]+ = \d+'[bdh][0-9a-f]+;)")


def to_verilog(machine: MachineLike) -> tuple[str, Manifest]:
    """Convert a machine for compiled simulation: the Verilog of everything, and its manifest."""
    toplevel = Toplevel(machine)
    platform = CompiledSimulation()
    text = verilog.convert(
        toplevel,
        name=TOP_MODULE,
        platform=platform,
        ports=list(toplevel.ports.values()),
        emit_src=False,
        strip_internal_attrs=True,
    )
    modules = [RAM_VERILOG.read_text(), *platform.files.values()]
    return "\n".join([with_constants(text), *modules]), toplevel.manifest


def with_constants(verilog_text: str) -> str:
    """Let constants reach parts of a variable.

    Where a process drives some bits of a variable and constants others, Yosys writes ``always @* x[1:0] = 2'h2;``.
    Nothing in it can change, so by the language it never runs, and Verilator leaves the bits at zero.
    """
    return CONSTANT_PROCESS.sub(r"initial\1", verilog_text)


def _clock_of(domain: str) -> str:
    """The clock that a domain runs on: all ``core<i>`` and ``core<i>_<part>`` share one frequency."""
    return domain.partition("_")[0].rstrip("0123456789")


def _parts(domains: list[str], core: str) -> tuple[int, ...]:
    """Numbers of a core's domains."""
    return tuple(number for number, name in enumerate(domains) if name.partition("_")[0] == core)


def _named(signal: Signal, path: str, field: str) -> Signal:
    """Name a signal of a probe, counter or timer after it: that is how waves show it."""
    signal.name = f"{path.rpartition('.')[2]}__{field}"
    return signal


def _layout(struct: Any) -> Layout:
    layout = data.Layout.cast(struct)
    fields = tuple(Field(str(name), field.offset, Shape.cast(field.shape).width) for name, field in layout)
    return Layout(Shape.cast(struct).width, fields)


assert NOW_WIDTH < 64, "engines keep cycle numbers in 64-bit integers"
