"""``python -m sw.costs.derive record|analyse|table``."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sw.costs.derive.mca import CPUS, Analysis, McaError, version
from sw.costs.derive.mca import analyse as analyse_code
from sw.costs.derive.paths import CodePath, PathError, find_paths
from sw.costs.derive.record import BURSTS, CARDS, Recorder, RecordError, package_of, unpack
from sw.costs.derive.table import cost_of, rewrite

if TYPE_CHECKING:
    from sw.costs.derive.text import Text

HERE = Path(__file__).parent
EVIDENCE = HERE / "linux.evidence.json"
LINE = 64


@click.group()
def main() -> None:
    """Derive sw/costs/linux.toml from the code of Debian's kernel; docs/costs.md says how."""


@main.command()
@click.argument("package", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
def record(package: Path, work: Path) -> None:
    """Run the kernel of PACKAGE (linux-image-*.deb, from `apt-get download`) under QEMU; keep what it did in WORK.

    Needs Debian's qemu-system-x86, busybox-static, cpio, dpkg and gcc.
    """
    try:
        recorder = Recorder(unpack(package, work / "root"), work)
        (work / "package").write_text(package_of(package))
        try:
            for card in CARDS:
                for kind, (bursts, seconds) in BURSTS.items():
                    click.echo(f"{kind}{card}: {len(bursts)} times {bursts[0]} packets")
                    recorder.record(f"{kind}{card}", bursts, card, seconds)
        finally:
            recorder.close()
    except RecordError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
def analyse(work: Path) -> None:
    """Give what is recorded in WORK to llvm-mca; write linux.evidence.json.

    Needs the extra `costs` and Debian's llvm-19.
    """
    from sw.costs.derive.text import Text  # needs the extra `costs`, which the table does not

    text = Text.load(work)
    source = f"Debian {(work / 'package').read_text()}, llvm-mca {version()}"
    evidence: dict[str, Any] = {"source": source, "cpus": CPUS, "entries": {}}
    try:
        for name, paths in find_paths(text, work, _plan()).items():
            evidence["entries"][name] = [_part(path, text, analyse_code(path.code(text), path.also)) for path in paths]
            click.echo(name)
    except (McaError, PathError) as error:
        raise click.ClickException(str(error)) from None
    EVIDENCE.write_text(json.dumps(evidence, indent=1) + "\n")


@main.command()
def table() -> None:
    """Write the derived entries of sw/costs/linux.toml, from the evidence, the plan (linux.toml) and special.toml."""
    evidence = json.loads(EVIDENCE.read_text())
    entries = _plan()["entry"]
    source = evidence["source"]
    costs = {name: cost_of(entries[name], parts, source) for name, parts in evidence["entries"].items()}
    rewrite(HERE.parent / "linux.toml", costs)


def _plan() -> dict[str, Any]:
    return tomllib.loads((HERE / "linux.toml").read_text())


def _part(path: CodePath, text: "Text", analysis: Analysis) -> dict[str, Any]:
    lines = {line for start, end in path.runs for line in range(start // LINE, (end - 1) // LINE + 1)}
    return {
        "path": path.name,
        "seen": path.seen,
        "calls": path.calls,
        "of": path.of,
        "times": path.times,
        "instructions": analysis.instructions,
        "uops": round(analysis.uops, 1),
        "cycles": round(analysis.cycles, 1),
        "low": round(analysis.low, 1),
        "high": round(analysis.high, 1),
        "locked": analysis.locked,
        "indirect": analysis.indirect,
        "special": dict(analysis.special),
        "lines": sorted(f"{line * LINE:x}" for line in lines),
        "code": path.places(text),
    }


if __name__ == "__main__":
    main()
