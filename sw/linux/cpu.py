"""A core as the kernel knows it: per-CPU data, preemption count, interrupt flag, current task."""

from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from sw.core import LINE, Context, Core, Mode, Record
from sw.costs import Cost
from sw.port import CorePort
from sw.structs import Struct

if TYPE_CHECKING:
    from sw.linux.cpuidle import MenuGovernor
    from sw.linux.kernel import Kernel
    from sw.linux.sched import Task
    from sw.linux.timer import TimerBase

__all__ = [
    "HARDIRQ_OFFSET",
    "NET_RX_SOFTIRQ",
    "NET_TX_SOFTIRQ",
    "PERCPU",
    "SOFTIRQ_DISABLE_OFFSET",
    "SOFTIRQ_OFFSET",
    "TIMER_SOFTIRQ",
    "Cpu",
    "KernelContext",
    "local_irq_restore",
    "local_irq_save",
]

#: ``preempt_count``: softirq count in bits 15:8, hardirq count in bits 19:16 (include/linux/preempt.h).
SOFTIRQ_OFFSET = 1 << 8
SOFTIRQ_DISABLE_OFFSET = 2 * SOFTIRQ_OFFSET
HARDIRQ_OFFSET = 1 << 16

#: Bits of ``__softirq_pending`` (include/linux/interrupt.h).
TIMER_SOFTIRQ = 1
NET_TX_SOFTIRQ = 2
NET_RX_SOFTIRQ = 3

#: Per-CPU variables; the second line is ``softnet_data``.
PERCPU = Struct(2 * LINE, preempt_count=4, softirq_pending=4, pad=56, poll_list=16, output_queue=8)


class KernelContext(Context):
    """A context that knows what it has added to ``preempt_count``: interrupts leave the count as they found it."""

    __slots__ = ("preempt_count",)

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, None], mode: Mode, parent: Context | None = None):
        super().__init__(number, coroutine, mode, parent)
        self.preempt_count = 0


class Cpu(Core):
    """One core with the kernel's per-CPU data.

    Arguments:
        text: address of each function's code.
        kernel: the kernel that runs here.
        percpu: address of this core's :data:`PERCPU`.
        runqueue: address of this core's run queue (``sw.linux.sched.RQ``).
        timer_base: its timers.
    """

    __slots__ = (
        "governor",
        "idle_context",
        "idle_task",
        "kernel",
        "ksoftirqd",
        "offline",
        "output_queue",
        "poll_list",
        "preempt_count_address",
        "runqueue",
        "sleeping",
        "softirq_pending_address",
        "task",
        "timer_base",
    )

    context_class = KernelContext

    def __init__(
        self,
        index: int,
        port: CorePort,
        record: Record,
        costs: Mapping[str, Cost],
        text: Mapping[str, int],
        kernel: "Kernel",
        percpu: int,
        runqueue: int,
        timer_base: "TimerBase",
    ):
        super().__init__(index, port, record, costs, text)
        self.kernel = kernel
        self.preempt_count_address = percpu + PERCPU.preempt_count.offset
        self.softirq_pending_address = percpu + PERCPU.softirq_pending.offset
        self.poll_list = percpu + PERCPU.poll_list.offset
        self.output_queue = percpu + PERCPU.output_queue.offset
        self.runqueue = runqueue
        self.timer_base = timer_base
        self.task: Task = None  # type: ignore[assignment]  # set when the core starts
        self.idle_task: Task = None  # type: ignore[assignment]
        self.ksoftirqd: Task = None  # type: ignore[assignment]
        self.idle_context: Context | None = None
        self.governor: MenuGovernor | None = None
        self.offline = False  #: the idle loop has ended with the kernel's
        self.sleeping = False  #: the idle loop has nothing to do

    @property
    def at_rest(self) -> bool:
        """Whether this core sleeps in its idle loop or has left it."""
        return self.current is None or (self.current is self.idle_context and (self.sleeping or self.offline))

    def interrupt(self, vector: int) -> Coroutine[Any, Any, None]:
        """The kernel's entry for external interrupts."""
        return self.kernel.interrupt_entry(self, vector)


def local_irq_save(cpu: Cpu) -> bool:
    """Disable interrupts; returns whether they were enabled."""
    enabled = cpu.current.interrupts
    if enabled:
        cpu.cli()
    return enabled


def local_irq_restore(cpu: Cpu, enabled: bool) -> None:
    """Undo :func:`local_irq_save`."""
    if enabled:
        cpu.sti()
