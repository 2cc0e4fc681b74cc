"""NAPI: the top half schedules a poll and leaves the card's interrupt masked; the poll re-arms it when done.

The poll runs in the softirq, or in a thread of its own (sw.linux.napi_threaded), or in the program that reads
(sw.linux.busy_poll).
"""

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sw.core import LINE, function
from sw.linux.atomic import fetch_or, try_cmpxchg
from sw.linux.cpu import NET_RX_SOFTIRQ, Cpu, local_irq_restore, local_irq_save
from sw.linux.list import init_list_head, list_add_tail, list_del, list_first
from sw.linux.sched import Task, try_to_wake_up
from sw.linux.softirq import raise_softirq_irqoff
from sw.structs import Struct

__all__ = [
    "NAPI_POLL_WEIGHT",
    "NAPI_STRUCT",
    "NETDEV_BUDGET",
    "Napi",
    "NapiState",
    "napi_complete_done",
    "napi_disable",
    "napi_enable",
    "napi_if_scheduled_mark_missed",
    "napi_schedule",
    "net_rx_action",
    "netif_napi_add",
]

#: Packets of one poll (include/linux/netdevice.h).
NAPI_POLL_WEIGHT = 64
#: Packets of one softirq (net/core/hotdata.c, sysctl net.core.netdev_budget).
NETDEV_BUDGET = 300

#: ``struct napi_struct``, the members in use.
NAPI_STRUCT = Struct(LINE, poll_list=16, state=4, weight=4, defer_hard_irqs_count=4)

#: Cycles between two looks at a poll that has to end (the kernel sleeps 20 to 200 us).
_DISABLE_WAIT_CYCLES = 10_000


class NapiState(enum.IntFlag):
    """Bits of ``napi_struct.state`` (include/linux/netdevice.h)."""

    SCHED = 1 << 0  #: a poll is scheduled or running
    MISSED = 1 << 1  #: an interrupt came during the poll
    IN_BUSY_POLL = 1 << 6  #: who polls will not give it up by itself
    PREFER_BUSY_POLL = 1 << 7  #: a program would rather poll itself than wait for the softirq
    THREADED = 1 << 8  #: a thread polls, not the softirq
    SCHED_THREADED = 1 << 9  #: it is the thread's turn
    THREADED_BUSY_POLL = 1 << 10  #: the thread never stops


#: What the end of a poll always clears.
_CLEARED = NapiState.SCHED_THREADED | NapiState.PREFER_BUSY_POLL


@dataclass(slots=True, eq=False)
class Napi:
    """A polled source of packets: where its :data:`NAPI_STRUCT` lies and how it is polled."""

    address: int
    poll: Callable[["Napi", Cpu, int], Awaitable[int]]  #: handles up to so many packets, returns how many it did
    watch: Callable[[Cpu], Awaitable[int]]  #: address of 8 bytes that are 0 until there is a packet to be polled
    weight: int = NAPI_POLL_WEIGHT
    thread: Task | None = None  #: what polls instead of the softirq
    thread_spins: bool = False  #: without end
    suspends_irqs: bool = False  #: busy polling leaves the interrupt masked until the program sleeps


def netif_napi_add(cpu: Cpu, napi: Napi) -> None:
    """Initialise ``napi`` in memory and make it known by its address."""
    init_list_head(cpu, napi.address)
    cpu.put(napi.address, NAPI_STRUCT.state, _idle_state(napi).value)
    cpu.put(napi.address, NAPI_STRUCT.weight, napi.weight)
    cpu.kernel.napi[napi.address] = napi


def _idle_state(napi: Napi) -> NapiState:
    """The state when no poll is scheduled."""
    state = NapiState.THREADED if napi.thread is not None else NapiState(0)
    return state | NapiState.THREADED_BUSY_POLL if napi.thread_spins else state


@function()
async def napi_schedule(cpu: Cpu, napi: Napi) -> None:
    """Have ``napi`` polled; remembers the interrupt if a poll is under way. Interrupts are off."""
    state = await _napi_schedule_prep(cpu, napi.address + NAPI_STRUCT.state.offset)
    if not state & NapiState.SCHED:
        await _napi_schedule(cpu, napi, state)


async def _napi_schedule_prep(cpu: Cpu, address: int) -> int:
    """The state at ``address`` as it was; if it was not scheduled, the poll is the caller's to schedule."""
    while True:
        state = await cpu.load(address, 4)
        more = NapiState.MISSED if state & NapiState.SCHED else NapiState.SCHED
        if await try_cmpxchg(cpu, address, state, state | more):
            return state


async def _napi_schedule(cpu: Cpu, napi: Napi, state: int) -> None:
    """Leave the poll to the thread, if ``state`` says that there is one, else to the softirq (``__napi_schedule``)."""
    if state & NapiState.THREADED:
        assert napi.thread is not None
        await fetch_or(cpu, napi.address + NAPI_STRUCT.state.offset, NapiState.SCHED_THREADED)
        await try_to_wake_up(cpu, napi.thread.address)
    else:
        await list_add_tail(cpu, napi.address, cpu.poll_list)
        await raise_softirq_irqoff(cpu, NET_RX_SOFTIRQ)


@function()
async def napi_complete_done(cpu: Cpu, napi: Napi) -> bool:
    """End polling; whether the interrupt is to be unmasked.

    It is not if one came meanwhile, and the poll has to be repeated; if who polls goes on anyway; if that is put off.
    """
    address = napi.address + NAPI_STRUCT.state.offset
    while True:
        state = await cpu.load(address, 4)
        if state & NapiState.IN_BUSY_POLL:
            return False
        missed = state & NapiState.MISSED
        cleared = NapiState.MISSED if missed else NapiState.SCHED
        if await try_cmpxchg(cpu, address, state, state & ~(cleared | _CLEARED)):
            break
    if missed:
        enabled = local_irq_save(cpu)
        await _napi_schedule(cpu, napi, state)
        local_irq_restore(cpu, enabled)
    return not missed and not await _put_off(cpu, napi)


async def _put_off(cpu: Cpu, napi: Napi) -> bool:
    """Whether the interrupt stays masked for now (``napi_defer_hard_irqs``)."""
    if not napi.suspends_irqs:
        return False
    count = await cpu.get(napi.address, NAPI_STRUCT.defer_hard_irqs_count)
    if count:
        cpu.put(napi.address, NAPI_STRUCT.defer_hard_irqs_count, count - 1)
    return count > 0


async def napi_if_scheduled_mark_missed(cpu: Cpu, napi: Napi) -> bool:
    """Have a poll that is scheduled or running repeated; false if there is none."""
    address = napi.address + NAPI_STRUCT.state.offset
    while True:
        state = await cpu.load(address, 4)
        if not state & NapiState.SCHED:
            return False
        if await try_cmpxchg(cpu, address, state, state | NapiState.MISSED):
            return True


async def napi_disable(cpu: Cpu, napi: Napi) -> None:
    """Wait until no poll is scheduled and let none be; interrupts meanwhile find one scheduled."""
    while await _napi_schedule_prep(cpu, napi.address + NAPI_STRUCT.state.offset) & NapiState.SCHED:
        cpu.execute(_DISABLE_WAIT_CYCLES)
        await cpu.drain()


def napi_enable(cpu: Cpu, napi: Napi) -> None:
    """Undo :func:`napi_disable`."""
    cpu.put(napi.address, NAPI_STRUCT.state, _idle_state(napi).value)


@function()
async def net_rx_action(cpu: Cpu) -> None:
    """The receive softirq: polls every scheduled source until none is left or the budget is spent."""
    kernel = cpu.kernel
    budget = kernel.netdev_budget
    while True:
        cpu.cli()
        address, loaded = await list_first(cpu, cpu.poll_list)
        if not address:
            cpu.sti()
            return
        if budget <= 0:
            kernel.time_squeezes += 1
            await raise_softirq_irqoff(cpu, NET_RX_SOFTIRQ)
            cpu.sti()
            return
        await list_del(cpu, address, after=loaded)
        init_list_head(cpu, address)
        cpu.sti()
        budget -= await napi_poll(cpu, kernel.napi[address])


@function()
async def napi_poll(cpu: Cpu, napi: Napi) -> int:
    """Poll once; a source that used up its weight goes to the end of the list, unless a program wants to poll it.

    Returns the packets handled.
    """
    work = await napi.poll(napi, cpu, napi.weight)
    cpu.note("poll", work=work)
    if work >= napi.weight and napi.suspends_irqs and await _prefers_busy_poll(cpu, napi):
        return work
    enabled = local_irq_save(cpu)
    if work >= napi.weight:
        await list_add_tail(cpu, napi.address, cpu.poll_list)
    local_irq_restore(cpu, enabled)
    return work


async def _prefers_busy_poll(cpu: Cpu, napi: Napi) -> bool:
    """Whether a program wants to poll: then polling ends here, packets or not, with the interrupt still masked."""
    if not await cpu.get(napi.address, NAPI_STRUCT.state) & NapiState.PREFER_BUSY_POLL:
        return False
    cpu.put(napi.address, NAPI_STRUCT.defer_hard_irqs_count, 1)
    await napi_complete_done(cpu, napi)
    return True
