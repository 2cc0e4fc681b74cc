"""Path "xdp": an eBPF program at the driver's hook; what it passes on takes the kernel's way."""

from pathlib import Path as File

from sw.bpf.elf import load_object
from sw.bpf.syscall import Bpf
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.options import Options
from sw.paths.napi import NapiPath

__all__ = ["XdpPath"]

PROGRAMS = File(__file__).parents[1] / "bpf" / "programs"

#: Object file of each application.
_OBJECTS = {"drop": "drop_all", "tx": "mac_swap_tx", "firewall": "firewall", "count": "packet_counter"}

#: UDP and TCP ports that the firewall does not let through: DNS.
BLOCKED_PORTS = (53,)


class XdpPath(NapiPath):
    """The kernel's path with a program before any skb is made."""

    name = "xdp"
    summary = "an eBPF program in the driver, before any skb; then the kernel's path"
    costs = ("linux", "bpf")
    applications = {
        "drop": "the program drops every packet",
        "tx": "the program sends every packet back with its addresses exchanged",
        "firewall": "the program drops datagrams to blocked ports, programs receive the others",
        "count": "the program counts packets on each core, programs receive them",
    }

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        self.xdp = self.adapter.add_xdp()
        self.bpf = Bpf(kernel.memblock.allocate, len(kernel.cpus), costs=kernel.costs, jit_enable=options.bpf_jit)
        self.maps: dict[str, int] = {}  #: file descriptors by name
        self.object = load_object(PROGRAMS / f"{_OBJECTS[self.application(options.application)]}.o")

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """Programs receive what the eBPF program passes on."""
        return super().uses(application) - ({"app_core"} if application in ("drop", "tx") else set())

    @classmethod
    def receivers(cls, options: Options) -> tuple[int, ...]:
        """Programs receive what the eBPF program passes on."""
        return options.ports if cls.application(options.application) in ("firewall", "count") else ()

    async def prepare(self, cpu: Cpu) -> None:
        """Load the program, as ``ip link set dev eth0 xdp object ...`` does."""
        self.xdp.program, self.maps = await self.bpf.load_object(cpu, self.object)
        if "blocked" in self.maps:
            for port in BLOCKED_PORTS:
                await self.bpf.map_update_elem(cpu, self.maps["blocked"], port.to_bytes(2, "big"), bytes(8))
