"""Path "napi": interrupt, NAPI poll in the softirq, IP, UDP, a socket for each program."""

from sw.apps.sink import BUFFER_BYTES, Sink
from sw.apps.udp_echo import ECHO_BYTES, UdpEcho
from sw.core import Mode
from sw.ixgbe.main import IxgbeAdapter, ixgbe_probe
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.linux.mm import PAGE_SIZE
from sw.linux.napi import NETDEV_BUDGET
from sw.linux.napi_threaded import napi_threaded_poll
from sw.linux.sched import PRIORITY_NORMAL
from sw.linux.skb import SK_BUFF
from sw.options import Options
from sw.paths.path import BOOT_CORE, Path, core_of

__all__ = ["NapiPath"]


class NapiPath(Path):
    """The kernel's stack behind NAPI."""

    name = "napi"
    summary = "interrupt, NAPI poll in the softirq, IP, UDP, a socket"
    applications = {
        "sink": "a program per port that receives every datagram and reads it",
        "echo": "a program per port that sends every datagram back to where it came from",
        "rawdrop": "no program: a rule in iptables' raw table drops UDP before routing",
    }

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        self.adapter = IxgbeAdapter.make(kernel, options.ring_size, options.itr_us, options.promiscuous, BOOT_CORE)
        if options.napi_thread is not None:
            self.add_napi_thread(options.napi_thread)
        ports = sorted(set(self.receivers(options)))
        if self.application(options.application) == "rawdrop":
            kernel.add_raw_table()
        kernel.reserve_socks(len(ports))
        if self.application(options.application) == "echo":
            self.adapter.add_tx()
            programs: list[Sink | UdpEcho] = [
                UdpEcho(port, kernel.allocate_user(ECHO_BYTES), options.rcvbuf, options.sndbuf) for port in ports
            ]
        else:
            programs = [Sink(port, kernel.allocate_user(BUFFER_BYTES), options.rcvbuf, options.read) for port in ports]
        self.tasks += [
            kernel.new_task(
                f"{type(program).__name__.lower()}:{program.port}", self.app_cpu, PRIORITY_NORMAL, program.main
            )
            for program in programs
        ]
        self.starting = len(programs)

    def add_napi_thread(self, core: int) -> None:
        """Let a thread on ``core`` poll instead of the softirq.

        Raises:
            ValueError: if there is no such core.
        """
        napi = self.adapter.napi

        async def main(cpu: Cpu) -> None:
            await napi_threaded_poll(cpu, napi)

        cpu = core_of(self.kernel, core, "poll")
        napi.thread = self.kernel.new_task("napi/eth0-0", cpu, PRIORITY_NORMAL, main, Mode.KERNEL)
        self.tasks.append(napi.thread)

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """Where no program receives, it needs no core."""
        return frozenset({"itr_us", "napi_thread"} | ({"app_core"} if application != "rawdrop" else set()))

    @classmethod
    def receivers(cls, options: Options) -> tuple[int, ...]:
        """Ports that programs receive from."""
        return options.ports if cls.application(options.application) in ("sink", "echo") else ()

    @classmethod
    def skbs(cls, options: Options) -> int:
        """One softirq's packets, and what fits the sockets."""
        queued = options.rcvbuf // (2048 + SK_BUFF.size) + 2
        if cls.application(options.application) == "echo":
            queued += options.sndbuf // PAGE_SIZE + 2
        return NETDEV_BUDGET + len(set(cls.receivers(options))) * queued

    async def start(self, cpu: Cpu) -> None:
        """Probe the card."""
        await ixgbe_probe(cpu, self.adapter)
