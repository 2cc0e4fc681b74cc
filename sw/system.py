"""The software of one run: kernel, driver and programs on the cores of a machine."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from sw.apps.compute import Compute
from sw.apps.sink import BUFFER_BYTES, Sink
from sw.core import LINE, Dispatcher, Mode, Note, Record, function
from sw.costs import Cost
from sw.ixgbe.main import IxgbeAdapter, ixgbe_probe
from sw.linux.cpu import Cpu
from sw.linux.cpuidle import Cpuidle
from sw.linux.kernel import Kernel
from sw.linux.napi import NETDEV_BUDGET
from sw.linux.sched import PRIORITY_BATCH, PRIORITY_NORMAL, cpu_idle
from sw.linux.skb import SK_BUFF
from sw.linux.socket import SOCK_RCVBUF
from sw.port import CorePort, WakeKind

__all__ = ["System"]

#: The core that boots, takes the card's interrupt and runs the receivers.
BOOT_CORE = 0

#: Lines of a computing program's array.
_COMPUTE_LINES = 16


class System:
    """Path "napi": interrupt, NAPI, UDP sockets, a receiving program per port, computing programs beside them.

    Arguments:
        port: the engine's side of the cores.
        cores: number of cores.
        dram_bytes: size of memory.
        costs: cycles per function (``sw.costs.load_costs``).
        mac: station address, 6 bytes.
        addresses: the host's IPv4 addresses, 4 bytes each in network order.
        ports: UDP ports that a program listens on.
        compute: cores that run a computing program.
        ring_size: receive descriptors.
        itr_us: least time between two interrupts in microseconds, 0 for no moderation.
        rcvbuf: receive buffer of each socket, in bytes of ``truesize``.
        promiscuous: the card accepts frames for others too; the stack drops them as ``OTHERHOST``.
        netdev_budget: packets per receive softirq.
        read: the receiving programs read what they get.
        cpuidle: how deep idle cores sleep.
        on_note: called with every note as it is made.

    Notes (``sw.core.Note``) tell what happened to each packet: exactly one of ``delivered`` (packet, port, length)
    and ``dropped`` (packet, reason). ``packet`` counts completed receive descriptors from 0, in ring order: the nth
    is the nth write-back of the card. Further notes: ``interrupt`` (vector), ``poll`` (work), ``read`` (packet,
    crc32), ``bound`` (port), ``up``, ``computed`` (task, chunks, intact).

    Raises:
        ValueError: for numbers that cannot be.
        OutOfMemoryError: when DRAM is too small.
    """

    def __init__(
        self,
        port: CorePort,
        cores: int,
        dram_bytes: int,
        costs: Mapping[str, Cost],
        *,
        mac: bytes,
        addresses: Sequence[bytes],
        ports: Iterable[int] = (9,),
        compute: Iterable[int] = (0,),
        ring_size: int = 512,
        itr_us: float = 10.0,
        rcvbuf: int = SOCK_RCVBUF,
        promiscuous: bool = False,
        netdev_budget: int = NETDEV_BUDGET,
        read: bool = True,
        cpuidle: Cpuidle = Cpuidle(),
        on_note: Callable[[Note], None] | None = None,
    ):
        ports = sorted(set(ports))
        truesize = 2048 + SK_BUFF.size
        skbs = NETDEV_BUDGET + len(ports) * (rcvbuf // truesize + 2)
        self.on_note = on_note
        self.record = Record(self._noted)
        self.kernel = Kernel(port, cores, dram_bytes, costs, self.record, mac, addresses, skbs, netdev_budget, cpuidle)
        kernel = self.kernel
        boot = kernel.cpus[BOOT_CORE]
        self.adapter = IxgbeAdapter.make(kernel, ring_size, itr_us, promiscuous, BOOT_CORE)
        kernel.reserve_socks(len(ports))
        allocate = kernel.allocate_user
        self.sinks = [Sink(number, allocate(BUFFER_BYTES), rcvbuf, read) for number in ports]
        self.computes: list[Compute] = []
        self._tasks = [kernel.new_task(f"sink:{sink.port}", boot, PRIORITY_NORMAL, sink.main) for sink in self.sinks]
        for index in compute:
            if not 0 <= index < cores:
                raise ValueError(f"there is no core {index} to compute on; cores: 0 to {cores - 1}")
            program = Compute(f"compute/{index}", allocate(_COMPUTE_LINES * LINE), _COMPUTE_LINES)
            self.computes.append(program)
            self._tasks.append(kernel.new_task(program.name, kernel.cpus[index], PRIORITY_BATCH, program.main))
        self.dispatcher = Dispatcher(port, kernel.cpus, self.record)
        self._unbound = len(ports)
        self.ready = False  #: the card is up and every port bound: traffic may start

    async def boot(self) -> None:
        """Start the kernel, the driver and the programs; returns when :attr:`ready`.

        Raises:
            IxgbeError: if the card does not answer as it should.
            RuntimeError: if the machine stops before it is ready.
        """
        boot = self.kernel.cpus[BOOT_CORE]
        self.dispatcher.start(boot, boot.new_context(self._boot(boot), Mode.IDLE))
        ended = await self.dispatcher.run(stop=lambda: self.ready, only_notes=True)
        if ended is not None:
            raise RuntimeError("the machine came to rest before the system was up")

    async def run(self, until: int | None = None) -> WakeKind | None:
        """Run until :meth:`stop` has taken effect (None), to tick ``until`` (LIMIT), or to the end of work (IDLE)."""
        ended = await self.dispatcher.run(until, lambda: self.kernel.stopping, only_notes=True)
        return await self.dispatcher.run(until, self._at_rest) if ended is None else ended

    def stop(self) -> None:
        """Let the programs end: :meth:`run` returns once all that was begun is done and the cores are at rest.

        To be called from ``on_note``, or between two calls of :meth:`run`.
        """
        self.kernel.stopping = True

    def _at_rest(self) -> bool:
        return all(cpu.at_rest for cpu in self.kernel.cpus)

    async def _boot(self, cpu: Cpu) -> None:
        """The boot core's first context: the kernel's start, the driver, then the idle loop."""
        await start_kernel(cpu, self)
        for other in self.kernel.cpus:
            if other is not cpu:
                self.dispatcher.start(other, other.idle_task.context)
        cpu.note("up")
        await cpu_idle(cpu)

    def _noted(self, note: Note) -> None:
        if note.kind == "bound":
            self._unbound -= 1
        if note.kind in ("bound", "up") and not self._unbound:
            self.ready = True
        if self.on_note is not None:
            self.on_note(note)


@function(mode=Mode.KERNEL)
async def start_kernel(cpu: Cpu, system: System) -> None:
    """Memory, tasks, and the card."""
    await system.kernel.start_kernel(cpu, system._tasks)
    await ixgbe_probe(cpu, system.adapter)
