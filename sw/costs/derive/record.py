"""Runs Debian's own kernel under QEMU and notes which code a packet takes it through.

QEMU interprets every instruction (TCG) and logs the address of each straight-line piece of code that it runs. What
is kept of it: the order of the addresses. How long anything took is not: nothing here is a measurement of time.
"""

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from sw.costs.derive.scenarios import CARDS, PROGRAMS, Link, Scenario

__all__ = ["MODULES", "RecordError", "Recorder", "package_of", "unpack"]

#: Modules and their parameters, in the order in which they are loaded; ixgbe without a card.
MODULES = {
    **dict.fromkeys(("dca", "xfrm_algo", "libphy", "mdio_devres", "mdio", "ixgbe", "e1000e"), ""),
    **dict.fromkeys(("x_tables", "ip_tables", "iptable_raw"), ""),
    "e1000": "copybreak=0",  #: skbs are built around the card's buffers, however short the packet
}

#: The machine: two processors, so that the kernel keeps its LOCK prefixes; everything of interest runs on the first.
CPU = "Broadwell-noTSX,+invtsc"
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet rdinit=/init nokaslr norandmaps tsc=reliable "
    "mitigations=off init_on_alloc=0 randomize_kstack_offset=off"
)

_HERE = Path(__file__).parent
_SECONDS_TO_BOOT = 240
_SECONDS_FOR_AN_ANSWER = 30


class RecordError(RuntimeError):
    """The recording did not work; the message is one line."""


#: Programs it takes, and the Debian packages they are in.
_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "dpkg-deb": "dpkg",
    "gcc": "gcc",
}


def _need_tools() -> None:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise RecordError(f"recording takes Debian's {', '.join(missing)}")


def package_of(package: Path) -> str:
    """Name and version of a Debian package."""
    command = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(package)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def unpack(package: Path, root: Path) -> Path:
    """Unpack a Debian package to ``root``, anew."""
    _need_tools()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    return root


class Recorder:
    """One boot of the kernel.

    Arguments:
        root: the kernel package, unpacked (``dpkg-deb --extract``).
        work: directory for what comes out: ``symbols``, ``text-ADDRESS`` per piece of the kernel's code as patched by
            itself at boot, and a log per recording.
    """

    def __init__(self, root: Path, work: Path):
        _need_tools()
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        for old in (work / "console", *work.glob("text-*")):
            old.unlink(missing_ok=True)
        kernels = sorted(root.glob("boot/vmlinuz-*"))
        if len(kernels) != 1:
            raise RecordError(f"{root}/boot holds {len(kernels)} kernels, not 1")
        self._monitor_path = work / "monitor"
        self._sockets = [self._udp_socket() for _ in range(2)]
        ports = [self._udp_socket() for _ in range(2)]
        self._card_addresses = [port.getsockname() for port in ports]
        for port in ports:
            port.close()
        nets: list[str] = []
        for number, (model, own, far) in enumerate(
            zip(CARDS.values(), self._sockets, self._card_addresses, strict=True)
        ):
            nets += [
                "-netdev",
                f"socket,id=n{number},udp=127.0.0.1:{own.getsockname()[1]},localaddr=127.0.0.1:{far[1]}",
                "-device",
                f"{model},netdev=n{number},mac=02:00:00:00:00:0{number}",
            ]
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", CPU, "-smp", "2", "-m", "512"),
            *("-kernel", str(kernels[0]), "-initrd", str(self._initramfs(root)), "-append", KERNEL_ARGUMENTS),
            *("-nodefaults", "-display", "none", "-d", "nochain", "-D", str(work / "qemu.log")),
            *("-serial", f"file:{work / 'console'}", "-serial", f"file:{work / 'symbols'}"),
            *("-qmp", f"unix:{self._monitor_path},server,nowait", *nets),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        self._wait_for_the_guest()
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.settimeout(_SECONDS_FOR_AN_ANSWER)
        self._monitor.connect(str(self._monitor_path))
        self._answers = self._monitor.makefile("rb")
        self._ask("qmp_capabilities")
        self._save_text(self.work)

    def close(self) -> None:
        """Stop the machine."""
        self._process.terminate()
        self._process.wait()

    def record(self, name: str, scenario: Scenario, card: int) -> Path:
        """Log while the frames of ``scenario`` arrive at ``card``; returns the log, ``NAME.log``."""
        log = self.work / f"{name}.log"
        link = Link(card, self._sockets[card])
        self._log("exec,nochain", log)
        for burst in scenario.frames(link):
            self._ask("stop")
            for frame in burst:
                self._sockets[card].sendto(frame, self._card_addresses[card])
            self._ask("cont")
            time.sleep(scenario.seconds)
        self._log("nochain", self.work / "qemu.log")
        if scenario.patches:
            self._save_text(self.work / f"{name}.text")
        return log

    @staticmethod
    def _udp_socket() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
        return made

    def _initramfs(self, root: Path) -> Path:
        tree = self.work / "initramfs"
        shutil.rmtree(tree, ignore_errors=True)
        for directory in ("bin", "proc", "sys", "dev"):
            (tree / directory).mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin/busybox")
        shutil.copy(_HERE / "guest_init.sh", tree / "init")
        (tree / "init").chmod(0o755)
        (tree / "modules").write_text("".join(f"{module} {words}\n" for module, words in MODULES.items()))
        for module in MODULES:
            found = list(root.glob(f"lib/modules/*/kernel/**/{module}.ko"))
            if len(found) != 1:
                raise RecordError(f"the kernel package has {len(found)} modules named {module}.ko, not 1")
            shutil.copy(found[0], tree)
        (tree / "programs.list").write_text("".join(f"{words}\n" for words in PROGRAMS))
        programs = [*("gcc", "-O2", "-static", "-o"), str(tree / "programs"), str(_HERE / "guest_programs.c")]
        subprocess.run(programs, check=True)
        archive = self.work / "initramfs.cpio"
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        with archive.open("wb") as out:
            cpio = ["cpio", "--quiet", "-o", "-H", "newc"]
            subprocess.run(cpio, input=names.encode(), stdout=out, cwd=tree, check=True)
        return archive

    def _wait_for_the_guest(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_BOOT
        console = self.work / "console"
        while "READY" not in (console.read_text(errors="replace") if console.exists() else ""):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise RecordError(f"the kernel did not come up in {_SECONDS_TO_BOOT} s; its words are in {console}")
            time.sleep(1)

    def _ask(self, command: str, **arguments: str | int) -> None:
        """Give QEMU's monitor (QMP) a command and wait until it is done."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._monitor.sendall(json.dumps(request).encode() + b"\n")
        while "return" not in (answer := json.loads(self._answers.readline())):
            if "error" in answer:
                raise RecordError(f"QEMU refuses {command} {arguments}: {answer['error']['desc']}")

    def _log(self, items: str, file: Path) -> None:
        """Log ``items`` (as in QEMU's option -d) to ``file`` from now on."""
        self._ask("human-monitor-command", **{"command-line": f"logfile {file}"})
        self._ask("human-monitor-command", **{"command-line": f"log {items}"})

    def _save_text(self, directory: Path) -> None:
        """Save the code of the kernel and of each module from the memory of the machine."""
        directory.mkdir(exist_ok=True)
        symbols = (self.work / "symbols").read_text()
        bounds = [int(re.search(rf"^(\w+) . {name}$", symbols, re.M)[1], 16) for name in ("_stext", "_etext")]  # type: ignore[index]
        places = [(bounds[0], bounds[1] - bounds[0])]
        console = (self.work / "console").read_text(errors="replace")
        places += [(int(base, 16), int(size)) for size, base in re.findall(r"^\w+ (\d+) \d+ .* (0x\w+)", console, re.M)]
        for base, size in places:
            # QMP's integers have a sign.
            self._ask("memsave", val=base - (1 << 64), size=size, filename=str(directory / f"text-{base:x}"))
