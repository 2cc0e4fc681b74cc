"""``python -m sw.costs.derive record|link|analyse|table``."""

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sw.costs.derive.link import PACKAGES, link
from sw.costs.derive.mca import CPUS, McaError, version
from sw.costs.derive.mca import analyse as analyse_code
from sw.costs.derive.paths import CodePath, PathError, find_paths
from sw.costs.derive.record import Recorder, RecordError, package_of, unpack
from sw.costs.derive.scenarios import SCENARIOS
from sw.costs.derive.table import cost_of, rewrite

if TYPE_CHECKING:
    from sw.costs.derive.text import Text

HERE = Path(__file__).parent
#: Tables of which entries are derived; each has its plan and its evidence here.
TABLES = ("linux", "xsk", "dpdk")
LINE = 64


@click.group()
def main() -> None:
    """Derive sw/costs from the code of Debian's kernel and DPDK; docs/costs.md says how."""


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
            for kind, scenario in SCENARIOS.items():
                for card in scenario.cards:
                    click.echo(f"{kind}{card}")
                    recorder.record(f"{kind}{card}", scenario, card)
        finally:
            recorder.close()
    except RecordError as error:
        raise click.ClickException(str(error)) from None


@main.command("link")
@click.argument("packages", nargs=len(PACKAGES), type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
def link_command(packages: tuple[Path, ...], work: Path) -> None:
    """Build DPDK's l2fwd of the PACKAGES libdpdk-dev, dpdk-dev and dpdk-doc; keep its code in WORK.

    Needs Debian's gcc, binutils and dpkg.
    """
    try:
        link(packages, work)
    except RecordError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--table", "name", type=click.Choice(TABLES), default="linux", show_default=True)
def analyse(work: Path, name: str) -> None:
    """Give what is recorded (linux) or linked (dpdk) in WORK to llvm-mca; write TABLE.evidence.json.

    Needs the extra `costs` and Debian's llvm-19.
    """
    from sw.costs.derive.text import Text  # needs the extra `costs`, which the table does not

    @cache
    def text_of(log: str) -> Text:
        if log and not (work / f"{log}.text").exists():
            return text_of("")
        return Text.load(work, log)

    source = f"Debian {(work / 'package').read_text()}, llvm-mca {version()}"
    evidence: dict[str, Any] = {"source": source, "cpus": CPUS, "entries": {}}
    try:
        for entry, paths in find_paths(text_of, work, _plan(name)).items():
            evidence["entries"][entry] = [_part(path, text_of(path.log)) for path in paths]
            click.echo(entry)
    except (McaError, PathError) as error:
        raise click.ClickException(str(error)) from None
    _evidence(name).write_text(json.dumps(evidence, indent=1) + "\n")


@main.command()
def table() -> None:
    """Write the derived entries of sw/costs/*.toml, from the evidence, the plans and special.toml."""
    for name in TABLES:
        evidence = json.loads(_evidence(name).read_text())
        entries = {entry: plan for entry, plan in _plan(name)["entry"].items() if "operations" in plan}
        source = evidence["source"]
        costs = {entry: cost_of(plan, evidence["entries"][entry], source) for entry, plan in entries.items()}
        rewrite(HERE.parent / f"{name}.toml", costs)


def _plan(table: str) -> dict[str, Any]:
    return tomllib.loads((HERE / f"{table}.toml").read_text())


def _evidence(table: str) -> Path:
    return HERE / f"{table}.evidence.json"


def _part(path: CodePath, text: "Text") -> dict[str, Any]:
    analysis = analyse_code(path.code(text), path.also)
    lines = {line for start, end in path.runs for line in range(start // LINE, (end - 1) // LINE + 1)}
    return {
        "path": path.name,
        "seen": path.seen,
        "calls": path.calls,
        "of": path.of,
        "times": path.times,
        **({"turns": path.turns} if path.turns > 1 else {}),
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
