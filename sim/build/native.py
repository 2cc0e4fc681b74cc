"""Verilog to a native Python module: Verilator, the loop of ``sim/engine/native.cpp``, one shared object.

The compiler is called directly, one process per core: no make, no CMake.
"""

import concurrent.futures
import functools
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from . import tools
from .cache import cached, digest
from .design import Design, Verilog, build_verilog
from .manifest import Layout, Manifest

__all__ = ["NativeBuild", "build_native"]

LOOP = Path(__file__).parents[1] / "engine" / "native.cpp"
MODULE = "nicscope_native"
CLASS = "Vnicscope"
ROOT = f"{CLASS}___024root"

VERILATOR_FLAGS = (
    "--cc --prefix Vnicscope --top-module nicscope --make json -O3 --x-assign fast --x-initial fast --noassert "
    "--no-timing -Wno-fatal -Wno-lint --output-split 20000 --output-split-cfuncs 8000"
).split()
#: Not traced: signals nested deeper than 6 instances, arrays of more than 64 rows, signals wider than 640 bits, and
#: what begins with an underscore.
TRACE_FLAGS = "--trace-fst --trace-depth 6 --trace-max-array 64 --trace-max-width 640".split()
#: Names that Amaranth and Yosys invent, about half of all: with an underscore in front they stay out of the waves.
ANONYMOUS = re.compile(r"\\\$(?=\S)")

CXX_FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -DNDEBUG -DVERILATOR=1 -DVM_COVERAGE=0 -DVM_SC=0 "
    "-DVM_TIMING=0 -DVM_TRACE_VCD=0 -DVM_TRACE_SAIF=0 -fcf-protection=none -fno-plt -w"
).split()
#: Several machines in one process must not share what is static in them; clang makes no such symbols.
GCC_FLAGS = ["-fno-gnu-unique"]
#: Code that runs once.
SLOW_FLAGS = ["-O0"]
#: As nanobind's nb_combined.cpp says.
NANOBIND_FLAGS = "-fno-strict-aliasing -DNB_COMPACT_ASSERTIONS -ffunction-sections -fdata-sections".split()


@dataclass(frozen=True)
class NativeBuild:
    """A machine compiled for this process."""

    manifest: Manifest
    module_file: Path
    waves: bool
    seconds: float  #: it took; 0 when it was found in the cache

    def load(self) -> ModuleType:
        """Import the compiled module, once per process."""
        return _load(self.module_file)


@functools.cache
def _load(file: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(file))
    spec = importlib.util.spec_from_loader(MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def build_native(design: Design, waves: bool = False) -> NativeBuild:
    """Build a design, or find it in the cache.

    Arguments:
        waves: with FST tracing (a separate, slower module).

    Raises:
        ToolError: in one line, when a tool is missing or fails.
    """
    begin = time.monotonic()
    verilog = build_verilog(design)
    flags = VERILATOR_FLAGS + (TRACE_FLAGS if waves else [])
    key = digest(
        verilog.key(),
        *(file.read_bytes() for file in (LOOP, LOOP.with_name("issuer.h"), LOOP.with_name("shadow.h"))),
        Path(__file__).read_bytes(),
        json.dumps([flags, _cxx_flags(), tools.verilator().version, tools.compiler().version, _python_abi()]),
    )
    built = False

    def build(directory: Path) -> None:
        nonlocal built
        built = True
        _compile(verilog, flags, waves, directory, f"n{key}")

    directory = cached("native", key, build)
    seconds = time.monotonic() - begin if built else 0.0
    return NativeBuild(verilog.manifest, directory / _module_file(), waves, seconds)


def _module_file() -> str:
    return MODULE + str(sysconfig.get_config_var("EXT_SUFFIX"))


def _cxx_flags() -> list[str]:
    return CXX_FLAGS if tools.compiler().is_clang else [*CXX_FLAGS, *GCC_FLAGS]


def _python_abi() -> list[str]:
    return [_module_file(), tools.versions("nanobind")["nanobind"]]


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"]
        told = [line for line in lines if "rror" in line] or lines
        raise tools.ToolError(f"{Path(command[0]).name} failed: {told[0]}")


def _compile(verilog: Verilog, flags: list[str], waves: bool, directory: Path, domain: str) -> None:
    verilator, compiler = tools.verilator(), tools.compiler()
    if waves:
        tools.require_headers(compiler, "lz4.h", "liblz4-dev")
        tools.require_headers(compiler, "zlib.h", "zlib1g-dev")
    work = directory / "work"
    work.mkdir()
    source = verilog.file
    if waves:
        source = work / "waves.v"
        source.write_text(ANONYMOUS.sub(r"\\_", verilog.file.read_text()))
    _run([str(verilator.executable), *flags, "-Mdir", str(work), str(source)], verilator.environment())
    # Tracing wants to know of every evaluation.
    direct = not waves and _has_direct_evaluation(work)
    seen = _clocks_seen(work) if direct else []
    (work / "ports.h").write_text(_ports_header(verilog.manifest, direct, seen))

    sources = json.loads((work / f"{CLASS}.json").read_text())
    includes = [f"-I{path}" for path in (work, verilator.include, verilator.include / "vltstd")]
    defines = [f"-DNICSCOPE_WAVES={int(waves)}", f"-DVM_TRACE={int(waves)}", f"-DVM_TRACE_FST={int(waves)}"]
    base = [compiler.executable, *_cxx_flags(), *defines, *includes]
    jobs: list[list[str]] = []
    objects: list[Path] = []

    def add(source: Path, *more: str) -> None:
        objects.append(work / f"{source.stem}.o")
        jobs.append([*base, *more, "-c", str(source), "-o", str(objects[-1])])

    nanobind = _nanobind_includes()
    add(LOOP, *nanobind, f"-DNB_DOMAIN={domain}")
    for group in ("classes_fast", "support_fast", "global", "classes_slow", "support_slow"):
        # Largest first: the last to finish should be small.
        found = sorted((Path(p) for p in sources["sources"].get(group, [])), key=lambda p: -p.stat().st_size)
        for source in found:
            add(source, *(SLOW_FLAGS if group.endswith("slow") else []))
    objects.append(_nanobind_object(compiler, nanobind))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, jobs))
    libraries = sources["options"].get("ldflags", []) + (["-llz4"] if waves else [])
    link = [compiler.executable, "-shared", "-pthread", "-Wl,-s", "-Wl,--gc-sections", *map(str, objects)]
    _run([*link, "-o", str(directory / _module_file()), *libraries])
    shutil.rmtree(work)


def _has_direct_evaluation(work: Path) -> bool:
    """Whether the two functions that evaluate an edge, and nothing else, are as native.cpp knows them."""
    declared = (work / f"{CLASS}.cpp").read_text()
    return all(f"bool {ROOT}___eval_{region}({ROOT}* vlSelf);" in declared for region in ("act", "nba"))


def _clocks_seen(work: Path) -> list[str]:
    """Where the model keeps what it saw of each clock at its last evaluation."""
    header = (work / f"{ROOT}.h").read_text()
    return sorted(set(re.findall(r"\b__Vtrigprevexpr___TOP__clk_\w+?__\d+\b", header)))


def _nanobind_includes() -> list[str]:
    import nanobind

    root = Path(nanobind.include_dir())
    robin_map = root.parent / "ext" / "robin_map" / "include"
    return [f"-I{tools.require_python_headers()}", f"-I{root}", f"-I{robin_map}"]


def _nanobind_object(compiler: tools.Compiler, includes: list[str]) -> Path:
    """nanobind's own part, the same for every machine."""
    import nanobind

    flags = [*_cxx_flags(), *NANOBIND_FLAGS]
    key = digest(json.dumps([*_python_abi(), compiler.version, flags]))

    def build(directory: Path) -> None:
        source = Path(nanobind.source_dir()) / "nb_combined.cpp"
        target = directory / "nanobind.o"
        _run([compiler.executable, *flags, *includes, "-c", str(source), "-o", str(target)])

    return cached("nanobind", key, build) / "nanobind.o"


# ---- ports.h

#: One iteration: no clock is made inside.
DIRECT = f"{ROOT}___eval_act(top.rootp); {ROOT}___eval_nba(top.rootp);"


def _ports_header(manifest: Manifest, direct: bool, seen: list[str]) -> str:
    width = {port.name: port.width for port in manifest.ports}
    cores = range(len(manifest.core_domains))
    names = [domain.name for domain in manifest.domains]
    timed = [(d, domain.name) for d, domain in enumerate(manifest.domains) if domain.time]
    periods = [domain.period for domain in manifest.domains]
    waiting = {timer.domain for timer in manifest.timers}
    quiet = " | ".join(f"uint64_t{{top.quiet_{name}}} << {d}" for d, name in enumerate(names))
    lines = [
        "// Generated from the manifest.",
        "#pragma once",
        '#include "Vnicscope.h"',
        '#include "Vnicscope___024root.h"',
        "#if NICSCOPE_WAVES",
        '#include "verilated_fst_c.h"',
        "#endif",
        "#include <cstdint>",
        f"#define NICSCOPE_SENDS {int(manifest.sends)}",
        f"bool {ROOT}___eval_act({ROOT}* vlSelf);",
        f"bool {ROOT}___eval_nba({ROOT}* vlSelf);",
        "namespace ports {",
        f"constexpr unsigned DOMAINS = {len(names)};",
        f"constexpr unsigned CORES = {len(cores)};",
        f"constexpr unsigned COUNTERS = {len(manifest.counters)};",
        f"constexpr unsigned WIRE_DOMAIN = {manifest.wire_domain};",
        f"constexpr int DEVICE_DOMAIN = {manifest.device_domain};",
        f"constexpr int64_t PERIOD[] = {_braces(domain.period for domain in manifest.domains)};",
        "// The first domain with the same period.",
        f"constexpr unsigned CLOCK[] = {_braces(periods.index(period) for period in periods)};",
        f"constexpr unsigned CORE_DOMAIN[] = {_braces(manifest.core_domains)};",
        "// Sets of domains, a bit each: with a time, with timers, of each core.",
        f"constexpr uint64_t TIMED = {_mask(d for d, _ in timed)};",
        f"constexpr uint64_t WAITING = {_mask(waiting)};",
        f"constexpr uint64_t CORE_PARTS[] = {_braces(_mask(parts) for parts in manifest.core_parts)};",
        f"constexpr uint64_t TICKS_PER_SECOND = {manifest.ticks_per_second}u;",
        *_layout_constants("OPERATION", manifest.operation),
        *_layout_constants("COMPLETION", manifest.completion),
        *_layout_constants("INTERRUPT", manifest.interrupt),
        *_layout_constants("FRAME_BEAT", manifest.frame_beat),
        *_layout_constants("SENT_BEAT", manifest.sent_beat),
        "struct Ports {",
        "VerilatedContext context;",
        'Vnicscope top{&context, ""};',
        "void eval() { top.eval(); }",
        "// The same when no input but clocks and `advance` has changed: all that can happen is that registers take",
        "// new values. Verilator's own evaluation looks at every input, wide ones too, for logic that hangs on it.",
        f"void eval_clocks() {{ {DIRECT if direct else 'eval();'} }}",
        "// Have the model take every clock for low, as it would be after another evaluation; whether it can.",
        *_function(
            "bool see_clocks_low()", [*(f"top.rootp->{name} = 0;" for name in seen), f"return {int(bool(seen))};"]
        ),
        f"uint64_t quiet() const {{ return {quiet}; }}",
        "bool wire_ready() const { return top.wire_ready; }",
        "void set_wire_valid(bool valid) { top.wire_valid = valid; }",
        "uint32_t* wire() { return &top.wire_payload[0]; }",
        "#if NICSCOPE_SENDS",
        "bool wire_out_valid() const { return top.wire_out_valid; }",
        "const uint32_t* wire_out() const { return &top.wire_out_payload[0]; }",
        "#endif",
    ]
    lines += _function(
        "void set_clocks(uint64_t which)", (f"top.clk_{n} = which >> {d} & 1;" for d, n in enumerate(names))
    )
    lines += _function(
        "void set_time_clocks(uint64_t which)",
        (f"top.clk_{name}_time = which >> {d} & 1;" for d, name in timed),
    )
    lines += _switch(
        "void set_advance(unsigned d, uint64_t n)",
        "d",
        (f"top.advance_{name} = n; return;" if (d, name) in timed else "return;" for d, name in enumerate(names)),
    )
    for signature, member in (
        ("bool operation_ready(unsigned i) const", "operation_ready"),
        ("bool issue(unsigned i) const", "issue"),
        ("uint8_t issue_id(unsigned i) const", "issue_id"),
        ("bool sampled(unsigned i) const", "sampled"),
        ("uint8_t sampled_id(unsigned i) const", "sampled_id"),
        ("bool visible(unsigned i) const", "visible"),
        ("bool fault(unsigned i) const", "fault"),
        ("uint8_t fault_id(unsigned i) const", "fault_id"),
        ("bool fault_outside(unsigned i) const", "fault_outside"),
        ("bool completion_valid(unsigned i) const", "completion_valid"),
        ("bool interrupt_taken(unsigned i) const", "interrupt_taken"),
        ("uint64_t interrupt(unsigned i) const", "interrupt"),
    ):
        lines += _switch(signature, "i", (f"return top.core{i}_{member};" for i in cores), "return 0;")
    for signature, member in (
        ("uint32_t* operation(unsigned i)", "operation_payload"),
        ("const uint32_t* completion(unsigned i)", "completion"),
    ):
        lines += _switch(signature, "i", (f"return &top.core{i}_{member}[0];" for i in cores), "return nullptr;")
    lines += _device_write(manifest.device_domain >= 0)
    lines += _switch(
        "void set_operation_valid(unsigned i, bool valid)",
        "i",
        (f"top.core{i}_operation_valid = valid; return;" for i in cores),
    )
    lines += _switch(
        "uint64_t counter(unsigned n) const",
        "n",
        (f"return top.counter_{n};" for n in range(len(manifest.counters))),
        "return 0;",
    )
    lines += _switch(
        "void payload(unsigned n, uint64_t* fields) const",
        "n",
        (
            " ".join(f"fields[{k}] = top.probe_{n}_{name};" for k, (name, _) in enumerate(probe.fields)) + " return;"
            for n, probe in enumerate(manifest.probes)
        ),
    )
    lines += _function(
        "template <class F> void probes(uint64_t due, F&& found)",
        (
            f"if (due >> {word.domain} & 1) if (const uint64_t valid = top.{word.port}) found({word.first}u, valid);"
            for word in manifest.probe_words
        ),
    )
    lines.append("// The earliest deadline of domain d; whether a timer that is not in the background is armed.")
    cases = []
    for d in range(len(names)):
        tests = []
        for timer in manifest.timers:
            if timer.domain == d:
                more = "" if timer.background else " foreground = true;"
                tests.append(
                    f"if (top.{timer.port}_armed) {{ if (top.{timer.port}_deadline < earliest) "
                    f"earliest = top.{timer.port}_deadline;{more} }}"
                )
        cases.append(" ".join(tests) + " return foreground;")
    lines += _switch(
        "bool deadline(unsigned d, uint64_t& earliest) const", "d", cases, "return false;", "bool foreground = false;"
    )
    lines += ["};", "}", ""]
    assert width["core0_operation_payload"] > 64 and width["core0_interrupt"] <= 64 and width["wire_payload"] > 64
    return "\n".join(lines)


def _device_write(there: bool) -> list[str]:
    values = (
        ("bool", "accepted", "top.device_write_accepted", "false"),
        ("uint64_t", "line", "top.device_write_line", "0"),
        ("uint64_t", "mask", "top.device_write_mask", "0"),
        ("const uint32_t*", "data", "&top.device_write_data[0]", "nullptr"),
        ("bool", "done", "top.device_write_done", "false"),
    )
    return [
        f"{kind} device_write_{name}() const {{ return {value if there else missing}; }}"
        for kind, name, value, missing in values
    ]


def _mask(domains: Iterable[int]) -> str:
    return f"{sum(1 << domain for domain in domains):#x}u"


def _braces(values) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _layout_constants(name: str, layout: Layout) -> list[str]:
    lines = [f"constexpr unsigned {name}_WORDS = {(layout.width + 31) // 32};"]
    for field in layout.fields:
        lines.append(f"constexpr unsigned {name}_{field.name.upper()} = {field.offset};")
        lines.append(f"constexpr unsigned {name}_{field.name.upper()}_WIDTH = {field.width};")
    return lines


def _function(signature: str, body) -> list[str]:
    return [signature + " {", *body, "}"]


def _switch(signature: str, on: str, cases, otherwise: str = "return;", before: str = "") -> list[str]:
    body = [f"case {number}: {case}" for number, case in enumerate(cases)]
    return [signature + " {", before, f"switch ({on}) {{", *body, f"default: {otherwise}", "}", "}"]
