"""Path "napi": interrupt, NAPI poll in the softirq, IP, UDP, a socket for each program."""

from sw.apps.sink import BUFFER_BYTES, Sink
from sw.ixgbe.main import IxgbeAdapter, ixgbe_probe
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.linux.napi import NETDEV_BUDGET
from sw.linux.sched import PRIORITY_NORMAL
from sw.linux.skb import SK_BUFF
from sw.options import Options
from sw.paths.path import BOOT_CORE, Path

__all__ = ["NapiPath"]


class NapiPath(Path):
    """The kernel's stack behind NAPI."""

    name = "napi"
    summary = "interrupt, NAPI poll in the softirq, IP, UDP, a socket"
    applications = {
        "sink": "a program per port that receives every datagram and reads it",
        "rawdrop": "no program: a rule in iptables' raw table drops UDP before routing",
    }

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        self.adapter = IxgbeAdapter.make(kernel, options.ring_size, options.itr_us, options.promiscuous, BOOT_CORE)
        ports = sorted(set(self.receivers(options)))
        if self.application(options.application) == "rawdrop":
            kernel.add_raw_table()
        kernel.reserve_socks(len(ports))
        self.sinks = [Sink(port, kernel.allocate_user(BUFFER_BYTES), options.rcvbuf, options.read) for port in ports]
        self.tasks = [
            kernel.new_task(f"sink:{sink.port}", self.app_cpu, PRIORITY_NORMAL, sink.main) for sink in self.sinks
        ]
        self.starting = len(self.sinks)

    @classmethod
    def receivers(cls, options: Options) -> tuple[int, ...]:
        """Ports that programs receive from."""
        return options.ports if cls.application(options.application) == "sink" else ()

    @classmethod
    def skbs(cls, options: Options) -> int:
        """One softirq's packets, and what fits the sockets."""
        return NETDEV_BUDGET + len(set(cls.receivers(options))) * (options.rcvbuf // (2048 + SK_BUFF.size) + 2)

    async def start(self, cpu: Cpu) -> None:
        """Probe the card."""
        await ixgbe_probe(cpu, self.adapter)
