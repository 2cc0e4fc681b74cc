"""The ``nicscope`` command."""

import functools
import json
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from hw.config import ConfigError, MachineConfig, load_machine, preset_names
from sim.build.tools import ToolError
from sim.engine.engine import EngineError
from sim.wire.frames import TrafficError
from sw.costs import CostError, mitigations_of
from sw.linux.cpuidle import IDLE
from sw.linux.iommu import IOMMU_MODES
from sw.options import WAKEUPS, XDP_MODES
from sw.paths import PATHS

__all__ = ["main"]

#: Exit code when what the user gave cannot be used.
BAD_INPUT = 2

ENGINES = ["native", "cocotb", "amaranth"]

#: What ``nicscope machines`` tells of each.
DESCRIPTION: dict[str, Callable[[MachineConfig], str]] = {
    "cores": lambda m: f"{m.core.count} at {m.clocks.core / 1000:g} GHz",
    "L1 data cache": lambda m: f"{m.l1.size_kib} KiB, {m.l1.ways} ways",
    "last-level cache": lambda m: f"{m.llc.size_kib} KiB, {m.llc.ways} ways",
    "DDIO": lambda m: f"{m.llc.ddio_ways} ways" if m.llc.ddio else "off",
    "DRAM": lambda m: f"{m.dram.size_mib} MiB, {m.clocks.dram * 2:g} MT/s",
    "PCIe link": lambda m: f"{m.pcie.gbps:g} Gb/s, {m.pcie.latency_ns:g} ns",
    "IOMMU": lambda m: f"{m.iommu.iotlb_entries} IOTLB entries" if m.iommu.enabled else "none",
    "port": lambda m: f"{m.nic.line_gbps:g} Gb/s",
    "packet buffer": lambda m: f"{m.nic.packet_buffer_kib} KiB",
}

machine_options = [
    click.option(
        "--machine", default="teaching", metavar="NAME|FILE", help="A preset (see `nicscope machines`) or a TOML file."
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one parameter, e.g. llc.ddio_ways=4."
    ),
]


def with_options(options, into, build=dict):
    """Give a command click options, and an argument ``into`` in place of theirs: what ``build`` makes of them."""
    there = click.Command(None)
    for option in options:
        option(there)
    names = [parameter.name for parameter in there.params]

    def decorate(command):
        @functools.wraps(command)
        def gathered(*arguments, **values):
            group = {name: values.pop(name) for name in names}
            return command(*arguments, **values, **{into: build(**group)})

        for option in reversed(options):
            gathered = option(gathered)
        return gathered

    return decorate


with_machine = with_options(machine_options, "machine", lambda machine, settings: load_machine(machine, settings))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("nicscope"), prog_name="nicscope")
def cli():
    """What happens between a network wire and recv(): a network card, its memory and its driver, cycle by cycle."""


traffic_options = [
    click.option(
        "--traffic", "capture", type=click.Path(path_type=Path), metavar="FILE", help="Replay a pcap(ng) file."
    ),
    click.option("--speed", type=float, default=None, metavar="N", help="Replay a capture N times as fast."),
    click.option("--size", type=int, default=None, help="Generate UDP frames of this many bytes, FCS included."),
    click.option("--rate", default=None, help="Packet or bit rate, e.g. 5Mpps, 3.2Gbps, line.  [default: line]"),
    click.option("--count", type=int, default=None, help="Frames to generate, or to take of a capture."),
]

app_option = click.option("--app", default=None, metavar="NAME", help="What receives, see `nicscope paths`.")

software_options = [
    click.option(
        "--ring", type=int, default=None, help="Receive descriptors.  [default: 512; the least in small memories]"
    ),
    click.option("--tx-ring", type=int, default=None, help="Transmit descriptors of dpdk.  [default: as --ring]"),
    click.option(
        "--ddio/--no-ddio", default=None, help="Device writes allocate in the last level.  [default: as the machine]"
    ),
    click.option("--ddio-ways", type=int, default=None, metavar="N", help="... in N of its ways, without a new build."),
    click.option("--batch", type=int, default=None, help="Packets of a burst, where a program polls.  [default: 32]"),
    click.option(
        "--mitigations", default="off", show_default=True, metavar="off|auto|NAME,…", help="As on Linux's command line."
    ),
    click.option(
        "--background/--no-background",
        default=True,
        show_default=True,
        help="Let a program compute whenever there is nothing to receive.",
    ),
    click.option("--idle", type=click.Choice(IDLE), default="poll", show_default=True, help="How an idle core sleeps."),
    click.option(
        "--app-core", type=int, default=None, metavar="N", help="Core of the receiving programs.  [default: 0]"
    ),
    click.option(
        "--napi-thread", type=int, default=None, metavar="N", help="A thread on this core polls (threaded NAPI)."
    ),
    click.option("--busy-poll", type=float, default=None, metavar="US", help="How long a read polls.  [default: 50]"),
    click.option("--itr", type=float, default=None, metavar="US", help="Least time between two interrupts."),
    click.option(
        "--xdp-mode", type=click.Choice(XDP_MODES), default=None, help="Of AF_XDP sockets.  [default: zero-copy]"
    ),
    click.option(
        "--iommu",
        type=click.Choice(IOMMU_MODES),
        default=None,
        help="How the card's addresses are translated.  [default: off]",
    ),
    click.option("--wakeup", type=click.Choice(WAKEUPS), default=None, help="How af-xdp waits.  [default: spin]"),
]


engine_options = [
    click.option("--engine", type=click.Choice(ENGINES), default="native", show_default=True, help="Runs the RTL."),
    click.option(
        "--seed", type=click.IntRange(0, 2**64 - 1), default=1, show_default=True, help="Decides everything random."
    ),
]

#: Fields of ``sw.options.Options``, by the names of the options that set them.
OPTION_FIELDS = {
    "ring": "ring_size",
    "tx_ring": "tx_ring",
    "ddio": "ddio",
    "ddio_ways": "ddio_ways",
    "batch": "batch",
    "app_core": "app_core",
    "napi_thread": "napi_thread",
    "busy_poll": "busy_poll_us",
    "itr": "itr_us",
    "iommu": "iommu",
    "xdp_mode": "xdp_mode",
    "wakeup": "wakeup",
}


def setup(mitigations, **given):
    """What an ``Experiment`` and a ``Comparison`` are told of software and engine, but for the application."""
    options = {field: given.pop(name) for name, field in OPTION_FIELDS.items()}
    options = {field: value for field, value in options.items() if value is not None}
    return {"options": options, "mitigations": mitigations_of(mitigations), **given}


with_setup = with_options(software_options + engine_options, "setup", setup)


def duration_ns(text):
    """Nanoseconds of a time such as 500ns, 10us or 1ms."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ns|us|ms|s)", text.strip())
    if not found:
        raise ConfigError(f"--sample takes a time such as 500ns, 10us or 1ms, not {text!r}")
    return float(found[1]) * {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[found[2]]


@cli.command()
@click.argument("path", metavar="PATH", type=click.Choice(list(PATHS)))
@app_option
@with_options(traffic_options, "traffic")
@with_setup
@with_machine
@click.option("--waves", is_flag=True, help="Write waves.fst (native engine; several times slower).")
@click.option(
    "--sample", default=None, metavar="TIME", help="Read the counters so often, e.g. 10us: who has what of the cache."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Where results go.")
@click.option("--json", "as_json", is_flag=True, help="Print result.json instead of tables.")
def run(path, app, traffic, setup, machine, waves, sample, out, as_json):
    """Send traffic through one receive PATH (see `nicscope paths`) and say what became of every packet."""
    from sim.experiment import Experiment
    from sim.report.terminal import print_result
    from sim.wire.traffic import Traffic

    console = Console(stderr=as_json)
    experiment = Experiment(
        path=path,
        application=app,
        machine=machine,
        traffic=Traffic.make(**traffic, seed=setup["seed"]),
        waves=waves,
        sample_ns=None if sample is None else duration_ns(sample),
        out=out or Path("runs") / "last",
        **setup,
    )
    result = experiment.run(console)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        print_result(result, console)
        console.print(f"Results in {experiment.out}/: {', '.join(experiment.files())}", highlight=False)


@cli.command()
@click.option(
    "--paths", "chosen", default=None, metavar="PATH[:APP],...", help="Which, see `nicscope paths`.  [default: all]"
)
@app_option
@with_options(traffic_options, "traffic")
@with_setup
@with_machine
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Where results go.")
@click.option("--report", is_flag=True, help="Also sweep the load, switch DDIO off, and write report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print {path: result.json} instead of the table.")
def compare(chosen, app, traffic, setup, machine, out, report, as_json):
    """Send the same traffic through several paths and show them side by side.

    Without traffic options: the bundled capture, then 64-byte frames at line rate.
    """
    from sim.compare import Comparison, by_path, compare, parse_ways
    from sim.report.comparison import print_comparison
    from sim.report.published import beside, print_published

    console = Console(stderr=as_json)
    comparison = Comparison(
        machine=machine,
        ways=parse_ways(chosen, app),
        traffics=compared_traffics(traffic, setup["seed"]),
        out=out or Path("runs") / "compare",
        **setup,
    )
    results = compare(comparison, console)
    if as_json:
        click.echo(json.dumps(by_path(comparison, results), indent=2))
    else:
        print_comparison(results, console)
    found = beside(result for section in results.values() for result in section.values())
    if report:
        from sim.report.page import write_report
        from sim.report.study import study

        studied = study(comparison, results, console)
        found = studied.published
        write_report(studied, comparison.out, comparison.out / "report.html")
    if not as_json:
        print_published(found, console)
    told = f"Results in {comparison.out}/" + (f", report in {comparison.out}/report.html" if report else "")
    console.print(told, highlight=False)


def compared_traffics(given, seed):
    """What a comparison sends: what the options say, else the bundled capture and a burst of the smallest frames."""
    from sim.wire.traffic import BUNDLED_CAPTURE, Traffic

    if any(value is not None for value in given.values()):
        return {"traffic": Traffic.make(**given, seed=seed)}
    return {
        "capture": Traffic.make(capture=BUNDLED_CAPTURE, speed=100.0, seed=seed),
        "burst": Traffic.make(size=64, rate="line", count=2000, seed=seed),
    }


json_option = click.option("--json", "as_json", is_flag=True, help="Print figures as JSON.")


@cli.group(invoke_without_command=True)
@with_machine
@click.option("--quick", is_flag=True, help="Leave out what takes minutes: cocotb and the build from nothing.")
@json_option
@click.pass_context
def bench(context, machine, quick, as_json):
    """Measure the simulator: native engine against the bare model and against cocotb. Or one of the commands."""
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if given:
            raise click.UsageError(f"options of `bench {context.invoked_subcommand}` stand behind it")
        return
    from sim.bench.speed import BenchError, print_figures, speed

    console = Console(stderr=as_json)
    try:
        figures = speed(machine, console, quick=quick)
    except BenchError as error:
        raise click.exceptions.Exit(_complain(str(error), 1)) from None
    _show(figures, print_figures, console, as_json)


@bench.command("memory")
@with_machine
@click.option("--quick", is_flag=True, help="Every third size, and only 2 MiB pages.")
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Where the plot goes.")
@json_option
def bench_memory(machine, quick, out, as_json):
    """Measure the modelled memory: latency by working set and page size, bandwidth by pattern."""
    from sim.bench.memory import memory, plot_memory, print_memory

    console = Console(stderr=as_json)
    figures = memory(machine, console, quick=quick)
    out = out or Path("runs") / "bench"
    out.mkdir(parents=True, exist_ok=True)
    plot_memory(figures, machine, out / "memory.svg")
    _show(figures, print_memory, console, as_json)
    console.print(f"Plot in {out}/memory.svg", highlight=False)


@bench.command("ddio")
@with_options(
    [click.option("--machine", default="ddio-bench", show_default=True, metavar="NAME|FILE"), machine_options[1]],
    "machine",
    lambda machine, settings: load_machine(machine, settings),
)
@click.option("--ways", default=None, metavar="N,N,...", help="Which numbers of ways.  [default: those published]")
@click.option("--ring", type=int, default=4096, show_default=True, help="Receive descriptors.")
@click.option("--tx-ring", type=int, default=256, show_default=True, help="Transmit descriptors.")
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Where results go.")
@json_option
def bench_ddio(machine, ways, ring, tx_ring, out, as_json):
    """Measure how many of the card's writes hit the last level, by the ways they may allocate in."""
    from sim.bench.ddio import ddio, plot_ddio, print_ddio

    console = Console(stderr=as_json)
    out = out or Path("runs") / "ddio"
    out.mkdir(parents=True, exist_ok=True)
    figures = ddio(machine, out, console, ways=parse_ways_list(ways), ring=ring, tx_ring=tx_ring)
    plot_ddio(figures, out / "ddio.svg")
    _show(figures, print_ddio, console, as_json)
    console.print(f"Plot in {out}/ddio.svg", highlight=False)


def parse_ways_list(text):
    """Numbers of ways, as ``2,3,4``; None stays None."""
    if text is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text.replace(" ", "")):
        raise ConfigError(f"--ways takes numbers such as 2,3,4, not {text!r}")
    return [int(number) for number in text.split(",")]


@bench.command("iommu")
@with_machine
@click.option("--quick", is_flag=True, help="Every second window.")
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Where the plot goes.")
@json_option
def bench_iommu(machine, quick, out, as_json):
    """Measure 64-byte DMA reads over windows of growing size, with translation off, by 4 KiB and by 2 MiB pages."""
    from sim.bench.iommu import iommu, plot_iommu, print_iommu

    console = Console(stderr=as_json)
    figures = iommu(machine, console, quick=quick)
    out = out or Path("runs") / "bench"
    out.mkdir(parents=True, exist_ok=True)
    plot_iommu(figures, out / "iommu.svg")
    _show(figures, print_iommu, console, as_json)
    console.print(f"Plot in {out}/iommu.svg", highlight=False)


@bench.command("core")
@with_machine
@json_option
def bench_core(machine, as_json):
    """Measure the modelled core: overlap of misses, the window, the store buffer, locks between cores."""
    from sim.bench.core import core, print_core

    console = Console(stderr=as_json)
    _show(core(machine, console), print_core, console, as_json)


@bench.command("published")
@click.option("--machine", default=None, metavar="NAME", help="Only what was measured on it.  [default: all]")
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Where results go.")
@json_option
def bench_published(machine, out, as_json):
    """Run what has been published, and show the model's predictions beside it."""
    from sim.report.published import as_json as plain
    from sim.report.published import measure, print_published

    console = Console(stderr=as_json)
    found = measure(machine, out or Path("runs") / "published", console)
    _show(plain(found) if as_json else found, print_published, console, as_json)


def _show(figures, tables, console, as_json):
    """Figures as JSON on standard output, or as tables."""
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        tables(figures, console)


@cli.command()
def paths():
    """List the ways a packet can take, and what can receive at the end of each."""
    table = Table("path", "what it is", "--app", "what it does")
    for path in PATHS.values():
        first = (path.name, path.summary)
        for name, summary in path.applications.items():
            table.add_row(*first, name, summary)
            first = ("", "")
    Console().print(table)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print every parameter as JSON.")
def machines(as_json):
    """List the machines that come with nicscope."""
    presets = {name: load_machine(name) for name in preset_names()}
    if as_json:
        from sim.result import machine_dict

        click.echo(json.dumps({name: machine_dict(machine) for name, machine in presets.items()}, indent=2))
        return
    table = Table("", *presets)
    for heading, tell in DESCRIPTION.items():
        table.add_row(heading, *(tell(machine) for machine in presets.values()))
    Console().print(table)
    click.echo("Every parameter: nicscope machines --json; change one with --set section.key=value.")


def main() -> None:
    """Entry point: user errors are one line on standard error and exit code 2."""
    try:
        code: Any = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        code = BAD_INPUT
    except click.exceptions.Abort:
        code = _complain("interrupted", 130)
    except click.ClickException as error:
        code = _complain(error.format_message(), BAD_INPUT)
    except (ConfigError, CostError, TrafficError) as error:
        code = _complain(str(error), BAD_INPUT)
    except (EngineError, ToolError) as error:
        # What the machine did, or the compiler: not what was asked for.
        code = _complain(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", BAD_INPUT)
    sys.exit(code or 0)


def _complain(message: str, code: int) -> int:
    click.echo(f"nicscope: {' '.join(message.split())}", err=True)
    return code
