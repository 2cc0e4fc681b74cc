"""The cocotb engine: the same Verilog under cocotb's runner on Verilator, the software inside the test process.

cocotb runs its tests in the simulator's process, so an experiment is named by ``module:function``, gets plain
arguments, and its result comes back in a file.
"""

import contextlib
import io
import json
import pickle
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocotb_tools import runner

from sim.build import tools
from sim.build.cache import cached, digest
from sim.build.design import Design, Verilog, build_verilog

from .engine import Jump

__all__ = ["CocotbError", "build_for_cocotb", "run_in_cocotb"]

TOP_MODULE = "nicscope"
BUILD_ARGUMENTS = (
    "-O3 --x-assign fast --x-initial fast --noassert --no-timing -Wno-fatal -Wno-lint --output-split 20000"
).split()
OPTIMISE = ["OPT_FAST=-O2", "OPT_SLOW=-O0", "OPT_GLOBAL=-O2"]
CLANG = ["CFG_CXXFLAGS_PCH_I=-include-pch", "CFG_GCH_IF_CLANG=.gch", "CFG_CXXFLAGS_NO_UNUSED=-Wno-everything"]
PROCESS = "sim.engine.cocotb_process"
#: Finest time step of the simulator; ticks become whole numbers of it.
PRECISION = "1fs"


class CocotbError(RuntimeError):
    """cocotb's process ended without a result."""


class _Verilator(runner.Verilator):
    """cocotb's runner, with the Verilator that was found and only the ports public: three times as fast."""

    def _simulator_in_path_build_only(self) -> None:
        self.executable = str(tools.verilator().executable)

    def _build_command(self) -> list:
        self.env.update(tools.verilator().environment())
        verilate, make = super()._build_command()
        compiler = tools.compiler()
        overrides = [*OPTIMISE, f"CXX={compiler.executable}", f"LINK={compiler.executable}"]
        return [
            [argument for argument in verilate if argument != "--public-flat-rw"],
            [*make, *overrides, *(CLANG if compiler.is_clang else [])],
        ]


def build_for_cocotb(verilog: Verilog) -> Path:
    """Build with cocotb's runner, or find it in the cache; returns the build directory.

    Raises:
        ToolError: in one line, when a tool is missing or fails.
    """
    described = [tools.verilator().version, tools.compiler().version, tools.versions("cocotb"), sys.executable]
    key = digest(verilog.key(), Path(__file__).read_bytes(), json.dumps(described))

    def build(directory: Path) -> None:
        ports = "\n".join(
            f'public_flat_{"rd" if port.output else "rw"} -module "{TOP_MODULE}" -var "{port.name}"'
            for port in verilog.manifest.ports
        )
        (directory / "ports.vlt").write_text(f"`verilator_config\n{ports}\n")
        log = directory / "build.log"
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                _Verilator().build(
                    sources=[
                        runner.VerilatorControlFile(directory / "ports.vlt"),
                        runner.Verilog(verilog.file),
                    ],
                    hdl_toplevel=TOP_MODULE,
                    build_args=BUILD_ARGUMENTS,
                    build_dir=directory,
                    timescale=(PRECISION, PRECISION),
                    log_file=log,
                )
        except (RuntimeError, SystemExit, OSError) as error:
            raise tools.ToolError(f"cocotb's build failed: {_first_error(log) or error}") from None
        for scratch in (*directory.glob("*.o"), *directory.glob("*.gch"), *directory.glob("*.a")):
            scratch.unlink()

    return cached("cocotb", key, build)


def run_in_cocotb(
    design: Design,
    entry: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    jump: Jump = Jump.ALL,
    seed: int = 0,
    record: bool = False,
    directory: Path | None = None,
) -> Any:
    """Run ``await function(engine, **arguments)`` inside cocotb and return its result.

    Arguments:
        entry: ``module:function``; the module must be importable with this process's ``sys.path``.
        arguments: anything that can be pickled, as is the result.
        jump, seed, record: as for the other engines.
        directory: where cocotb's log and results file stay; by default they do not.

    Raises:
        CocotbError: when cocotb's process fails; an exception of the experiment is raised here as itself.
    """
    verilog = build_verilog(design)
    build_directory = build_for_cocotb(verilog)
    with contextlib.ExitStack() as stack:
        work = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nicscope-")))
        work.mkdir(parents=True, exist_ok=True)
        job, result, log = work / "job.pickle", work / "result.pickle", work / "cocotb.log"
        result.unlink(missing_ok=True)
        job.write_bytes(
            pickle.dumps(
                {
                    "manifest": verilog.manifest.to_json(),
                    "entry": entry,
                    "arguments": dict(arguments or {}),
                    "engine": {"jump": int(jump), "seed": seed, "record": record},
                    "result": str(result),
                }
            )
        )
        simulator = _Verilator()
        error: BaseException | None = None
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                simulator.test(
                    test_module=PROCESS,
                    hdl_toplevel=TOP_MODULE,
                    hdl_toplevel_lang="verilog",
                    build_dir=build_directory,
                    test_dir=work,
                    results_xml=str(work / "results.xml"),
                    extra_env={"NICSCOPE_JOB": str(job), "COCOTB_LOG_LEVEL": "WARNING"},
                    log_file=log,
                )
        except (RuntimeError, SystemExit) as failed:
            error = failed
        if not result.is_file():
            raise CocotbError(f"cocotb ended without a result: {_first_error(log) or error}")
        ended = pickle.loads(result.read_bytes())
    if "exception" in ended:
        raise ended["exception"]
    return ended["value"]


def _first_error(log: Path) -> str:
    if not log.is_file():
        return ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in lines if "rror" in line), "")
