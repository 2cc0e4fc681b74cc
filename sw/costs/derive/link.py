"""DPDK's own code, as a program that is linked statically has it: nothing of it is run.

Debian's package libdpdk-dev has the driver and the libraries as archives, with their symbols, dpdk-doc the source of
the examples, dpdk-dev the program testpmd. The example l2fwd is compiled and linked with the first; testpmd, which has
no symbols, is taken as it is, with the addresses of two functions that were found by reading.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from sw.costs.derive.record import RecordError, package_of

__all__ = ["PACKAGES", "TESTPMD", "link"]

#: The packages, in the order in which :func:`link` takes them.
PACKAGES = ("libdpdk-dev", "dpdk-dev", "dpdk-doc")

#: Functions of testpmd by address. pkt_burst_receive: the fourth pointer behind the name "rxonly" in
#: ``rx_only_engine``; run_pkt_fwd_on_lcore: what ``start_pkt_forward_on_core`` calls.
TESTPMD = {"pkt_burst_receive": 0x83B00, "run_pkt_fwd_on_lcore": 0x84CB0}

#: Where testpmd, which is position-independent, is put: away from l2fwd.
_TESTPMD_BASE = 0x4000_0000

#: Whole archives, for nothing refers to what registers itself; the others as needed.
_WHOLE = ("net_ixgbe", "mempool_ring")
_LIBRARIES = (
    *("eal", "mbuf", "mempool", "ring", "ethdev", "kvargs", "telemetry", "net", "hash", "security", "cryptodev"),
    *("rcu", "meter", "pci", "bus_pci", "bus_vdev"),
)


def link(packages: Iterable[Path], work: Path) -> None:
    """Unpack the packages, build l2fwd, and keep code and symbols in ``work`` as a recording does.

    Raises:
        RecordError: if something cannot be built.
    """
    shutil.rmtree(work, ignore_errors=True)
    tree = work / "root"
    tree.mkdir(parents=True)
    versions = []
    for package, name in zip(packages, PACKAGES, strict=True):
        versions.append(package_of(package))
        if versions[-1].split()[0] != name:
            raise RecordError(f"{package} is {versions[-1]}, not a version of {name}")
        _run("dpkg-deb", "--extract", str(package), str(tree))
    program = _l2fwd(tree, work)
    symbols = _run("nm", str(program))
    _save_text(program, 0, work)
    testpmd = tree / "usr/bin/dpdk-testpmd"
    _save_text(testpmd, _TESTPMD_BASE, work)
    symbols += "".join(f"{_TESTPMD_BASE + address:016x} t {name}\n" for name, address in TESTPMD.items())
    (work / "symbols").write_text(symbols)
    (work / "package").write_text(versions[0])


def _l2fwd(tree: Path, work: Path) -> Path:
    include = tree / "usr/include"
    # A header that libdpdk-dev wants of libbsd-dev; nothing of it is in the code that is looked at.
    bsd = work / "include/bsd"
    bsd.mkdir(parents=True)
    (bsd / "string.h").write_text("")
    machine = include / "x86_64-linux-gnu/dpdk"
    places = [f"-I{place}" for place in (bsd.parent, include / "dpdk", machine)]
    # As `pkg-config --cflags libdpdk` and the example's Makefile say.
    flags = ["-O3", "-march=corei7", "-w", "-DALLOW_EXPERIMENTAL_API", "-include", str(machine / "rte_config.h")]
    source, made = tree / "usr/share/dpdk/examples/l2fwd/main.c", work / "l2fwd.o"
    _run("gcc", *flags, *places, "-c", str(source), "-o", str(made))
    archives = tree / "usr/lib/x86_64-linux-gnu"
    program = work / "l2fwd"
    _run(
        *("gcc", "-static", "-no-pie", "-Wl,--unresolved-symbols=ignore-all", "-o", str(program), str(made)),
        *("-Wl,--whole-archive", *(str(archives / f"librte_{name}.a") for name in _WHOLE), "-Wl,--no-whole-archive"),
        *("-Wl,--start-group", *(str(archives / f"librte_{name}.a") for name in _LIBRARIES), "-Wl,--end-group", "-lm"),
    )
    return program


def _save_text(program: Path, base: int, work: Path) -> None:
    """Save the section .text of ``program`` as ``text-ADDRESS``."""
    found = re.search(r" \.text +PROGBITS +(\w+) ", _run("readelf", "--wide", "--sections", str(program)))
    if found is None:
        raise RecordError(f"{program} has no section .text")
    target = work / f"text-{base + int(found[1], 16):x}"
    _run("objcopy", "--only-section=.text", "--output-target=binary", str(program), str(target))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RecordError(f"{command[0]} fails: {' '.join(done.stderr.split())[:300]}")
    return done.stdout
