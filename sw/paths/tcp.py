"""Path "tcp": NAPI and IP as in "napi", then TCP and a socket with a stream."""

from sw.apps.stream import STREAM_BUFFER_BYTES, StreamEcho, StreamProgram, StreamSink
from sw.ixgbe.main import IxgbeAdapter, ixgbe_probe
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.linux.napi import NETDEV_BUDGET
from sw.linux.sched import PRIORITY_NORMAL
from sw.linux.skb import SK_BUFF
from sw.options import Options
from sw.paths.path import BOOT_CORE, Path

__all__ = ["TcpPath"]

#: Sockets that there may be at once, those in TIME_WAIT included.
_SOCKETS = 16
#: Socket buffers beside those that receive buffers hold: copies of what is sent.
_SENT_SKBS = 256


class TcpPath(Path):
    """TCP behind NAPI; a peer holds the connection."""

    name = "tcp"
    summary = "interrupt, NAPI poll in the softirq, IP, TCP, a socket; a peer holds the connection"
    applications = {
        "sink": "a program that receives a byte stream and reads it",
        "echo": "a program that sends the byte stream back",
    }
    needs_peer = True

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        self.adapter = IxgbeAdapter.make(kernel, options.ring_size, options.itr_us, options.promiscuous, BOOT_CORE)
        self.adapter.add_tx()
        kernel.add_tcp(_SOCKETS)
        echo = self.application(options.application) == "echo"
        self.programs: list[StreamProgram] = []
        for port in sorted(set(options.ports)):
            buffer = kernel.allocate_user(STREAM_BUFFER_BYTES)
            rcvbuf = options.tcp_rcvbuf
            program = StreamEcho(port, buffer, rcvbuf) if echo else StreamSink(port, buffer, rcvbuf, options.read)
            self.programs.append(program)
            self.tasks.append(kernel.new_task(f"{program.name}:{port}", self.app_cpu, PRIORITY_NORMAL, program.main))
        self.starting = len(self.programs)

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """The softirq polls."""
        return frozenset({"app_core", "itr_us"})

    @classmethod
    def skbs(cls, options: Options) -> int:
        """One softirq's packets, what fits the socket that is used, its backlog, and what is being sent."""
        per_socket = (3 * options.tcp_rcvbuf + (64 << 10)) // (2048 + SK_BUFF.size)
        return NETDEV_BUDGET + per_socket + 2 * _SENT_SKBS + options.ring_size

    async def start(self, cpu: Cpu) -> None:
        """Probe the card."""
        await ixgbe_probe(cpu, self.adapter)
