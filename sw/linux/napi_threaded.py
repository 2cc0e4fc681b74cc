"""Threaded NAPI (``/sys/class/net/*/threaded``, net/core/dev.c): a kernel thread polls, on any core."""

from sw.core import function
from sw.linux.atomic import fetch_and, fetch_or
from sw.linux.busy_poll import busy_poll_wait
from sw.linux.cpu import Cpu
from sw.linux.napi import NAPI_STRUCT, Napi, NapiState
from sw.linux.sched import (
    TASK_INTERRUPTIBLE,
    TASK_RUNNING,
    __set_current_state,
    need_resched,
    schedule,
    set_current_state,
    yield_task,
)
from sw.linux.softirq import local_bh_disable, local_bh_enable

__all__ = ["napi_threaded_poll"]


async def napi_threaded_poll(cpu: Cpu, napi: Napi) -> None:
    """The thread ``napi/eth0-0``: polls whenever it is woken, or from then on for ever."""
    address = napi.address + NAPI_STRUCT.state.offset
    while await _napi_thread_wait(cpu, address):
        spins = bool(await cpu.load(address, 4) & NapiState.THREADED_BUSY_POLL)
        if spins:
            await fetch_or(cpu, address, NapiState.IN_BUSY_POLL)
        await napi_threaded_poll_loop(cpu, napi, spins)
        if spins:
            await fetch_and(cpu, address, ~NapiState.IN_BUSY_POLL)


async def _napi_thread_wait(cpu: Cpu, address: int) -> bool:
    """Sleep until the state at ``address`` says that it is the thread's turn; false when the thread shall end."""
    await set_current_state(cpu, TASK_INTERRUPTIBLE)
    scheduled = False
    while not cpu.kernel.stopping and not scheduled:
        scheduled = bool(await cpu.load(address, 4) & NapiState.SCHED_THREADED)
        if not scheduled:
            await schedule(cpu)
            await set_current_state(cpu, TASK_INTERRUPTIBLE)
    __set_current_state(cpu, TASK_RUNNING)
    return scheduled


@function()
async def napi_threaded_poll_loop(cpu: Cpu, napi: Napi, spins: bool) -> None:
    """Poll until there is nothing left; with ``spins``, until the thread shall end."""

    async def kthread_should_stop() -> bool:
        return cpu.kernel.stopping

    while True:
        local_bh_disable(cpu)
        work = await napi.poll(napi, cpu, napi.weight)
        if work or not spins:
            cpu.note("poll", work=work)
        await local_bh_enable(cpu)
        if spins:
            if cpu.kernel.stopping:
                return
            if not work:
                await busy_poll_wait(cpu, napi, kthread_should_stop)
            if await need_resched(cpu):
                await schedule(cpu, preempt=True)
        elif work < napi.weight:
            return
        else:
            cpu.cli()
            await yield_task(cpu)
