"""Busy polling (include/net/busy_poll.h, net/core/dev.c): who waits for packets polls the card itself."""

from collections.abc import Awaitable, Callable

from sw.core import function
from sw.linux.atomic import fetch_and, fetch_or, try_cmpxchg
from sw.linux.clock import local_clock
from sw.linux.cpu import Cpu, local_irq_restore, local_irq_save
from sw.linux.list import list_empty
from sw.linux.napi import NAPI_STRUCT, Napi, NapiState, napi_schedule
from sw.linux.sched import need_resched, schedule
from sw.linux.socket import SOCK
from sw.linux.softirq import local_bh_disable, local_bh_enable

__all__ = ["BUSY_POLL_BUDGET", "busy_poll_wait", "napi_busy_loop", "napi_resume_irqs", "sk_busy_loop"]

#: Packets of one poll.
BUSY_POLL_BUDGET = 8

#: Cycles after which a loop that polls in vain looks at the clock and at what else could end it.
_LOOKS_CYCLES = 2000


async def sk_busy_loop(cpu: Cpu, sock: int) -> None:
    """Poll the source that ``sock`` last had a packet from until it has one, for ``net.core.busy_read`` at most.

    A socket that never had one does not know whom to poll.
    """
    address, loaded = await cpu.chase(*SOCK.napi_id.at(sock))
    if not address:
        return
    kernel = cpu.kernel
    end = await local_clock(cpu) + kernel.busy_read_us * 1000

    async def sk_busy_loop_end() -> bool:
        return (
            not await list_empty(cpu, sock + SOCK.receive_queue.offset)
            or not await list_empty(cpu, sock + SOCK.reader_queue.offset)
            or await local_clock(cpu) >= end
            or kernel.stopping
        )

    await napi_busy_loop(cpu, kernel.napi[address], sk_busy_loop_end, loaded)


@function()
async def napi_busy_loop(cpu: Cpu, napi: Napi, loop_end: Callable[[], Awaitable[bool]], after: int) -> None:
    """Poll ``napi``, known since load ``after``, until ``loop_end`` says so; its interrupt stays off meanwhile."""
    owned = False
    while True:
        work = 0
        local_bh_disable(cpu)
        owned = owned or await _take(cpu, napi, after)
        if owned:
            work = await napi.poll(napi, cpu, BUSY_POLL_BUDGET)
            if work:
                cpu.note("poll", work=work)
        await local_bh_enable(cpu)
        if await loop_end():
            break
        if await need_resched(cpu):
            if owned:
                await busy_poll_stop(cpu, napi)
                owned = False
            await schedule(cpu, preempt=True)
            if await loop_end():
                return
        elif not work:
            await busy_poll_wait(cpu, napi, loop_end)
    if owned:
        await busy_poll_stop(cpu, napi)


async def _take(cpu: Cpu, napi: Napi, after: int) -> bool:
    """Become the one who polls, unless somebody else does; the softirq is asked to leave it to the program."""
    state = await cpu.get(napi.address, NAPI_STRUCT.state, after=after)
    address = napi.address + NAPI_STRUCT.state.offset
    if state & (NapiState.SCHED | NapiState.IN_BUSY_POLL):
        if napi.suspends_irqs and not state & NapiState.PREFER_BUSY_POLL:
            await fetch_or(cpu, address, NapiState.PREFER_BUSY_POLL)
        return False
    return await try_cmpxchg(cpu, address, state, state | NapiState.SCHED | NapiState.IN_BUSY_POLL)


@function()
async def busy_poll_wait(cpu: Cpu, napi: Napi, loop_end: Callable[[], Awaitable[bool]]) -> None:
    """What polling in vain comes to, until there is a packet or something else to do."""
    status = await napi.watch(cpu)
    while not await cpu.poll(status, 8, 0, _LOOKS_CYCLES, cpu.costs["busy_poll_empty"].cycles):
        if await loop_end() or await need_resched(cpu):
            return


@function()
async def busy_poll_stop(cpu: Cpu, napi: Napi) -> None:
    """Stop being the one who polls, with a last poll, since packets may have come for which no interrupt will.

    With interrupts suspended (``prefer_busy_poll`` and ``napi_defer_hard_irqs``) the card's stays masked: the program
    is expected to poll again.
    """
    address = napi.address + NAPI_STRUCT.state.offset
    await fetch_and(cpu, address, ~(NapiState.MISSED | NapiState.IN_BUSY_POLL))
    local_bh_disable(cpu)
    if napi.suspends_irqs:
        cpu.put(napi.address, NAPI_STRUCT.defer_hard_irqs_count, 1)
    work = await napi.poll(napi, cpu, BUSY_POLL_BUDGET)
    if work:
        cpu.note("poll", work=work)
    if work >= BUSY_POLL_BUDGET:
        await fetch_and(cpu, address, ~NapiState.SCHED)
        if not napi.suspends_irqs:
            await _schedule(cpu, napi)
    await local_bh_enable(cpu)


async def napi_resume_irqs(cpu: Cpu, sock: int) -> None:
    """The program is about to sleep: a last poll, in the softirq, unmasks the card's interrupt."""
    address = await cpu.get(sock, SOCK.napi_id)
    if address and cpu.kernel.napi[address].suspends_irqs:
        cpu.put(address, NAPI_STRUCT.defer_hard_irqs_count, 0)
        local_bh_disable(cpu)
        await _schedule(cpu, cpu.kernel.napi[address])
        await local_bh_enable(cpu)


async def _schedule(cpu: Cpu, napi: Napi) -> None:
    enabled = local_irq_save(cpu)
    await napi_schedule(cpu, napi)
    local_irq_restore(cpu, enabled)
