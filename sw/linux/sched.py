"""Tasks and the scheduler: a run queue per core, wake-up, context switch, the idle loop.

Two fixed ranks, first in first out within each, as ``SCHED_FIFO`` does with two priorities; there is no timer tick,
so a task runs until it sleeps, yields or a better one wakes. A task stays on the core it was made on; any core may
wake it.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from sw.core import LINE, Context, Mode, function
from sw.linux.atomic import fetch_and, fetch_or, smp_store_mb
from sw.linux.cpu import Cpu
from sw.linux.cpuidle import cpuidle_idle_call
from sw.linux.list import LIST_HEAD, init_list_head, list_add_tail, list_del
from sw.linux.smp import smp_send_reschedule
from sw.linux.spinlock import (
    SPIN_PERIOD,
    SPINLOCK_BYTES,
    raw_spin_lock,
    raw_spin_unlock,
    spin_lock_irqsave,
    spin_unlock_irqrestore,
)
from sw.structs import Struct

__all__ = [
    "PRIORITY_BATCH",
    "PRIORITY_NORMAL",
    "RQ",
    "TASK_INTERRUPTIBLE",
    "TASK_RUNNING",
    "Task",
    "__set_current_state",
    "need_resched",
    "others_wait",
    "schedule",
    "set_current_state",
    "try_to_wake_up",
    "yield_task",
]

TASK_RUNNING = 0
TASK_INTERRUPTIBLE = 1
TASK_DEAD = 0x80

#: ``thread_info.flags`` (arch/x86/include/asm/thread_info.h): the task should call :func:`schedule`.
_TIF_NEED_RESCHED = 1 << 3
#: The idle task looks at its flags all the time: it needs no interrupt to see them change.
_TIF_POLLING_NRFLAG = 1 << 21

PRIORITY_NORMAL = 0
PRIORITY_BATCH = 1  #: runs when no normal task wants to
PRIORITY_IDLE = 2
_PRIORITIES = 2

#: Callee-saved registers and stack pointer of a task that is switched out, 7 of 8 bytes.
_THREAD_BYTES = 56

#: ``struct task_struct``: what the scheduler looks at in one line, the saved registers in the next.
TASK_STRUCT = Struct(
    2 * LINE,
    flags=4,
    state=4,
    on_rq=4,
    priority=4,
    cpu=4,
    pi_lock=SPINLOCK_BYTES,
    run_list=16,
    pad=24,
    thread=_THREAD_BYTES,
)

#: Cycles after which an idle core that polls counts them anew.
_POLL_CYCLES = 1 << 31

#: ``struct rq`` with its priority array: bit p of ``bitmap`` says that list p of ``queues`` is not empty.
RQ = Struct(LINE, lock=SPINLOCK_BYTES, nr_running=4, current=8, bitmap=4, queues=16 * _PRIORITIES)

#: Bytes of a kernel stack.
STACK_BYTES = 4096


class Task:
    """A process or kernel thread. What the scheduler decides by lies at ``address``, as :data:`TASK_STRUCT`.

    Arguments:
        name: for people.
        address: of the task structure.
        stack: address of its kernel stack of :data:`STACK_BYTES`.
        main: what it runs, a coroutine function of the core.
        mode: on whose account it runs.
    """

    def __init__(
        self,
        name: str,
        address: int,
        stack: int,
        cpu: Cpu,
        priority: int,
        main: Callable[[Cpu], Coroutine[Any, Any, None]],
        mode: Mode = Mode.USER,
    ):
        self.name = name
        self.address = address
        self.stack_bottom = stack
        self.stack_pointer = stack + STACK_BYTES
        self.cpu = cpu
        self.priority = priority
        self._main = main
        self._mode = mode
        self._context: Context | None = None

    @property
    def context(self) -> Context:
        """Where the task goes on: its program's context, or that of the interrupt in which it was preempted."""
        if self._context is None:
            self._context = self.cpu.new_context(_task_entry(self.cpu, self._main), self._mode)
        return self._context

    @context.setter
    def context(self, context: Context) -> None:
        self._context = context


async def _task_entry(cpu: Cpu, main: Callable[[Cpu], Coroutine[Any, Any, None]]) -> None:
    await ret_from_fork(cpu)
    await main(cpu)
    await do_exit(cpu)


@function(mode=Mode.KERNEL)
async def ret_from_fork(cpu: Cpu) -> None:
    """First steps of a task: the scheduler's lock and interrupt flag are given back (``schedule_tail``)."""
    cpu.execute("kernel_thread_start")
    raw_spin_unlock(cpu, _rq_lock(cpu))
    cpu.sti()


@function(mode=Mode.KERNEL)
async def do_exit(cpu: Cpu) -> None:
    """Last steps of a task: the core goes on with the next one, for good."""
    __set_current_state(cpu, TASK_DEAD)
    await schedule(cpu)


def init_runqueue(cpu: Cpu, target: Cpu) -> None:
    """Make ``target``'s run queue, with only the idle task; the work is done by ``cpu``."""
    cpu.put(target.runqueue, RQ.current, target.idle_task.address)
    for priority in range(_PRIORITIES):
        init_list_head(cpu, _queue(target, priority))


def _queue(cpu: Cpu, priority: int) -> int:
    return cpu.runqueue + RQ.queues.offset + 16 * priority


def _rq_lock(cpu: Cpu) -> int:
    return cpu.runqueue + RQ.lock.offset


def init_task_struct(cpu: Cpu, task: Task, state: int = TASK_RUNNING) -> None:
    """Write a new task's structure, by the core that makes it."""
    values = {"state": state, "priority": task.priority, "cpu": task.cpu.index}
    cpu.store(task.address, TASK_STRUCT.pack(**values)[:LINE], LINE)


async def wake_up_new_task(cpu: Cpu, task: Task) -> None:
    """Put a task on its core's run queue for the first time. Another core's queue only before that core starts."""
    enabled = await spin_lock_irqsave(cpu, _rq_lock(task.cpu))
    await _activate_task(task.cpu, cpu, task.address, task.priority)
    spin_unlock_irqrestore(cpu, _rq_lock(task.cpu), enabled)


async def _activate_task(target: Cpu, cpu: Cpu, address: int, priority: int) -> None:
    """Enqueue on ``target``'s queue, the work being done by ``cpu``, which has its lock."""
    rq = target.runqueue
    running, bitmap = await cpu.get_all(rq, RQ.nr_running, RQ.bitmap)
    await list_add_tail(cpu, address + TASK_STRUCT.run_list.offset, _queue(target, priority))
    cpu.put(rq, RQ.nr_running, running + 1)
    cpu.put(rq, RQ.bitmap, bitmap | 1 << priority)
    cpu.put(address, TASK_STRUCT.on_rq, 1)


async def _deactivate_task(cpu: Cpu, address: int, priority: int) -> None:
    """Dequeue from this core's queue, whose lock is held."""
    rq = cpu.runqueue
    empty = await list_del(cpu, address + TASK_STRUCT.run_list.offset)
    running, bitmap = await cpu.get_all(rq, RQ.nr_running, RQ.bitmap)
    cpu.put(rq, RQ.nr_running, running - 1)
    if empty:
        cpu.put(rq, RQ.bitmap, bitmap & ~(1 << priority))
    cpu.put(address, TASK_STRUCT.on_rq, 0)


async def set_current_state(cpu: Cpu, state: int) -> None:
    """Say what the current task is about to do; with anything but RUNNING the next :func:`schedule` dequeues it.

    What is read after it cannot be older: a full barrier, against a waker that writes first and then looks.
    """
    await smp_store_mb(cpu, cpu.task.address + TASK_STRUCT.state.offset, state)


def __set_current_state(cpu: Cpu, state: int) -> None:
    """:func:`set_current_state` without the barrier."""
    cpu.put(cpu.task.address, TASK_STRUCT.state, state)


@function()
async def try_to_wake_up(cpu: Cpu, address: int) -> bool:
    """Make the task at ``address`` runnable on its core; ask that for a reschedule if it ranks above the running one.

    A task that says it will sleep may not have got there: what its run queue's lock guards decides.
    """
    pi_lock = address + TASK_STRUCT.pi_lock.offset
    enabled = await spin_lock_irqsave(cpu, pi_lock)
    state, priority, index = await cpu.get_all(address, TASK_STRUCT.state, TASK_STRUCT.priority, TASK_STRUCT.cpu)
    woken = state == TASK_INTERRUPTIBLE
    if woken:
        target = cpu.kernel.cpus[index]
        await raw_spin_lock(cpu, _rq_lock(target))
        on_rq = await cpu.get(address, TASK_STRUCT.on_rq)
        cpu.put(address, TASK_STRUCT.state, TASK_RUNNING)
        if not on_rq:
            await _activate_task(target, cpu, address, priority)
            running, loaded = await cpu.chase(*RQ.current.at(target.runqueue))
            if priority < await cpu.get(running, TASK_STRUCT.priority, after=loaded):
                await _resched_curr(cpu, target, running, loaded)
        raw_spin_unlock(cpu, _rq_lock(target))
    spin_unlock_irqrestore(cpu, pi_lock, enabled)
    return woken


async def _resched_curr(cpu: Cpu, target: Cpu, running: int, after: int) -> None:
    """Tell ``target`` that the task at ``running``, known since load ``after``, shall make way; its queue is locked.

    A core that sleeps or works is interrupted, one that polls its flags is not.
    """
    flags = await cpu.get(running, TASK_STRUCT.flags, after=after)
    if flags & _TIF_NEED_RESCHED:
        return
    if target is cpu:
        cpu.put(running, TASK_STRUCT.flags, flags | _TIF_NEED_RESCHED)
    elif not await fetch_or(cpu, running + TASK_STRUCT.flags.offset, _TIF_NEED_RESCHED) & _TIF_POLLING_NRFLAG:
        await smp_send_reschedule(cpu, target)


async def need_resched(cpu: Cpu) -> bool:
    """Whether the current task shall make way."""
    return bool(await cpu.get(cpu.task.address, TASK_STRUCT.flags) & _TIF_NEED_RESCHED)


async def others_wait(cpu: Cpu) -> bool:
    """Whether another task of the running one's rank waits.

    Linux's fair scheduler asks a task that has run for long to make way for one that has slept (``need_resched``);
    between tasks of one rank here, this is what a task that is willing to can look at.
    """
    head, mine = _queue(cpu, cpu.task.priority), cpu.task.address + TASK_STRUCT.run_list.offset
    following, previous = await cpu.get_all(head, LIST_HEAD.next, LIST_HEAD.prev)
    return (following, previous) != (mine, mine)


async def yield_task(cpu: Cpu) -> None:
    """Let other tasks of the same rank run first; called with interrupts off, returns with them on."""
    task = cpu.task
    await raw_spin_lock(cpu, _rq_lock(cpu))
    await list_del(cpu, task.address + TASK_STRUCT.run_list.offset)
    await list_add_tail(cpu, task.address + TASK_STRUCT.run_list.offset, _queue(cpu, task.priority))
    raw_spin_unlock(cpu, _rq_lock(cpu))
    await schedule(cpu)
    cpu.sti()


@function(mode=Mode.KERNEL)
async def schedule(cpu: Cpu, preempt: bool = False) -> None:
    """Run the best task; returns when the caller's task is chosen again. Interrupts are left as they were.

    The lock is held across the switch: the next task releases it (``finish_task_switch``).
    A preempted task stays on the run queue, whatever it was about to do.
    """
    enabled = await spin_lock_irqsave(cpu, _rq_lock(cpu))
    previous = cpu.task
    if previous is not cpu.idle_task and not preempt:
        if await cpu.get(previous.address, TASK_STRUCT.state) != TASK_RUNNING:
            await _deactivate_task(cpu, previous.address, previous.priority)
    flags = await cpu.get(previous.address, TASK_STRUCT.flags)
    cpu.put(previous.address, TASK_STRUCT.flags, flags & ~_TIF_NEED_RESCHED)
    following, loaded = await _pick_next_task(cpu)
    if following is not previous:
        cpu.put(cpu.runqueue, RQ.current, following.address)
        await context_switch(cpu, previous, following, loaded)
    spin_unlock_irqrestore(cpu, _rq_lock(cpu), enabled)


async def _pick_next_task(cpu: Cpu) -> tuple[Task, int]:
    """The first task of the best rank, else the idle task; the handle of the load that led to it."""
    bitmap, loaded = await cpu.chase(*RQ.bitmap.at(cpu.runqueue))
    if not bitmap:
        return cpu.idle_task, loaded
    best = (bitmap & -bitmap).bit_length() - 1
    entry, loaded = await cpu.chase(_queue(cpu, best), after=loaded)
    return cpu.kernel.tasks[entry - TASK_STRUCT.run_list.offset], loaded


@function()
async def context_switch(cpu: Cpu, previous: Task, following: Task, after: int) -> None:
    """Save one task's registers, load the other's, go on there; returns when ``previous`` is switched back to.

    ``following`` is known since load ``after``.
    """
    saved = previous.stack_pointer.to_bytes(8, "little").ljust(_THREAD_BYTES, b"\0")
    cpu.put(previous.address, TASK_STRUCT.thread, saved)
    cpu.touch(following.address + TASK_STRUCT.thread.offset, _THREAD_BYTES, after=after)
    previous.context = cpu.current
    cpu.task = following
    await cpu.switch_to(following.context)


@function()
async def cpu_idle(cpu: Cpu) -> None:
    """The idle task, the first on its core: switch translation on, then sleep until an interrupt brings work.

    An interrupt between STI and HALT, of a device or of a core that wakes a task here, is caught by its own exit, which
    preempts the idle task when a task has woken.
    """
    kernel = cpu.kernel
    cpu.idle_context = cpu.current
    cpu.write_cr3(kernel.page_tables.root)
    while True:
        cpu.cli()
        if await need_resched(cpu) or await cpu.get(cpu.runqueue, RQ.bitmap):
            await schedule(cpu)
            cpu.sti()
            continue
        cpu.sti()
        if kernel.stopping:
            await cpu.fence()
            cpu.offline = True
            return
        cpu.sleeping = True
        await default_idle(cpu)
        cpu.sleeping = False


@function()
async def default_idle(cpu: Cpu) -> None:
    """Wait for something to do: poll, or sleep as deep as ``idle=`` or the governor says."""
    if cpu.kernel.cpuidle.idle == "poll":
        await _cpu_idle_poll(cpu)
    else:
        await cpuidle_idle_call(cpu)


async def _cpu_idle_poll(cpu: Cpu) -> None:
    """Look at the idle task's flags until they change; who wakes a task here is told that no interrupt is needed.

    The flag is set before the flags are looked at, so that a waker before that is seen and one after it sees the flag.
    """
    flags = cpu.task.address + TASK_STRUCT.flags.offset
    if not await fetch_or(cpu, flags, _TIF_POLLING_NRFLAG) & _TIF_NEED_RESCHED:
        await cpu.poll(flags, TASK_STRUCT.flags.size, _TIF_POLLING_NRFLAG, _POLL_CYCLES, SPIN_PERIOD)
    await fetch_and(cpu, flags, ~_TIF_POLLING_NRFLAG)
