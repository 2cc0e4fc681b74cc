"""The software of one run: kernel, driver and programs on the cores of a machine."""

from collections.abc import Callable, Mapping

from sw.apps.compute import Compute
from sw.core import LINE, Dispatcher, Mode, Note, Record, function
from sw.costs import Cost
from sw.linux.cpu import Cpu
from sw.linux.ddio import check_ddio_ways, set_ddio
from sw.linux.kernel import Kernel
from sw.linux.sched import PRIORITY_BATCH, cpu_idle
from sw.options import Options
from sw.paths import path_named
from sw.paths.path import BOOT_CORE, core_of
from sw.port import CorePort, WakeKind

__all__ = ["System"]

#: Lines of a computing program's array.
_COMPUTE_LINES = 16


class System:
    """A kernel, one path with its application, and computing programs beside them.

    Arguments:
        port: the engine's side of the cores.
        cores: number of cores.
        dram_bytes: size of memory.
        costs: cycles per function (``sw.costs.load_costs``).
        path: name of the path (``sw.paths.PATHS``).
        options: what the run asks for.
        on_note: called with every note as it is made.

    Notes (``sw.core.Note``) tell what happened to each packet: exactly one of ``delivered`` (packet, length),
    ``dropped`` (packet, reason) and ``sent`` (packet, queue, frame). ``packet`` is (receive queue, number): completed
    descriptors of a queue are counted from 0 in the order of its ring, so the nth is the card's nth write-back there.
    ``frame`` counts the frames given to a transmit queue likewise. Further notes: ``interrupt`` (vector), ``poll``
    (work), ``read`` (packet, crc32), ``ready`` (program), ``up``, ``computed`` (task, chunks, intact).

    Raises:
        PathError: for a path or an application that does not exist.
        ValueError: for numbers that cannot be.
        OutOfMemoryError: when DRAM is too small.
    """

    def __init__(
        self,
        port: CorePort,
        cores: int,
        dram_bytes: int,
        costs: Mapping[str, Cost],
        path: str,
        options: Options,
        on_note: Callable[[Note], None] | None = None,
    ):
        kind = path_named(path, options.application)
        kind.check_ring(options.ring_size)
        check_ddio_ways(options.ddio_ways, options.llc_ways)
        self.options = options
        self.on_note = on_note
        self.record = Record(self._noted)
        self.kernel = kernel = Kernel(
            port,
            cores,
            dram_bytes,
            costs,
            self.record,
            options.mac,
            options.addresses,
            skbs=kind.skbs(options),
            netdev_budget=options.netdev_budget,
            cpuidle=options.cpuidle,
            tsc_khz=options.tsc_khz,
            routes=options.routes,
            neighbours=options.neighbours,
            iommu=options.iommu,
        )
        self.path = kind(kernel, options)
        self.computes: list[Compute] = []
        self._tasks = list(self.path.tasks)
        for index in options.compute:
            cpu = core_of(kernel, index, "compute")
            program = Compute(f"compute/{index}", kernel.allocate_user(_COMPUTE_LINES * LINE), _COMPUTE_LINES)
            self.computes.append(program)
            self._tasks.append(kernel.new_task(program.name, cpu, PRIORITY_BATCH, program.main))
        self.dispatcher = Dispatcher(port, kernel.cpus, self.record)
        self._starting = self.path.starting + 1  # the kernel itself: "up"
        self.ready = False  #: the card is up and every program is: traffic may start

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
        if note.kind in ("ready", "up"):
            self._starting -= 1
            self.ready = self._starting == 0
        if self.on_note is not None:
            self.on_note(note)


@function(mode=Mode.KERNEL)
async def start_kernel(cpu: Cpu, system: System) -> None:
    """Memory, tasks, and the card."""
    if system.options.ddio is not None or system.options.ddio_ways is not None:
        await set_ddio(cpu, system.options.ddio, system.options.ddio_ways, system.options.llc_ways)
    await system.path.prepare(cpu)
    await system.kernel.start_kernel(cpu, system._tasks)
    await system.path.start(cpu)
