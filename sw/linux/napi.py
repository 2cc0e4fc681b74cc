"""NAPI: the top half schedules a poll and leaves the card's interrupt masked; the poll re-arms it when done."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sw.core import LINE, function
from sw.linux.atomic import try_cmpxchg
from sw.linux.cpu import NET_RX_SOFTIRQ, Cpu, local_irq_restore, local_irq_save
from sw.linux.list import init_list_head, list_add_tail, list_del, list_first
from sw.linux.softirq import raise_softirq_irqoff
from sw.structs import Struct

__all__ = [
    "NAPI_POLL_WEIGHT",
    "NAPI_STRUCT",
    "NETDEV_BUDGET",
    "Napi",
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

NAPI_STRUCT = Struct(LINE, poll_list=16, state=4, weight=4)
_SCHED = 1 << 0  #: NAPIF_STATE_SCHED: a poll is scheduled or running
_MISSED = 1 << 1  #: NAPIF_STATE_MISSED: an interrupt came during the poll

#: Cycles between two looks at a poll that has to end (the kernel sleeps 20 to 200 us).
_DISABLE_WAIT_CYCLES = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Napi:
    """A polled source of packets: where its :data:`NAPI_STRUCT` lies and how it is polled."""

    address: int
    poll: Callable[["Napi", Cpu, int], Awaitable[int]]  #: handles up to so many packets, returns how many it did
    weight: int = NAPI_POLL_WEIGHT


def netif_napi_add(cpu: Cpu, napi: Napi) -> None:
    """Initialise ``napi`` in memory and make it known by its address."""
    init_list_head(cpu, napi.address)
    cpu.put(napi.address, NAPI_STRUCT.state, 0)
    cpu.put(napi.address, NAPI_STRUCT.weight, napi.weight)
    cpu.kernel.napi[napi.address] = napi


@function()
async def napi_schedule(cpu: Cpu, napi: Napi) -> None:
    """Have ``napi`` polled by the softirq; remembers the interrupt if a poll is under way. Interrupts are off."""
    if await _napi_schedule_prep(cpu, napi.address + NAPI_STRUCT.state.offset):
        await list_add_tail(cpu, napi.address, cpu.poll_list)
        await raise_softirq_irqoff(cpu, NET_RX_SOFTIRQ)


async def _napi_schedule_prep(cpu: Cpu, address: int) -> bool:
    """Whether the poll that ``address``, of a state, belongs to is the caller's to schedule."""
    while True:
        state = await cpu.load(address, 4)
        scheduled = state & _SCHED
        if await try_cmpxchg(cpu, address, state, state | (_MISSED if scheduled else _SCHED)):
            return not scheduled


@function()
async def napi_complete_done(cpu: Cpu, napi: Napi) -> bool:
    """End polling; false if an interrupt came meanwhile, and the poll has to be repeated."""
    address = napi.address + NAPI_STRUCT.state.offset
    while True:
        state = await cpu.load(address, 4)
        missed = state & _MISSED
        if await try_cmpxchg(cpu, address, state, state & ~(_MISSED if missed else _SCHED)):
            break
    if missed:
        enabled = local_irq_save(cpu)
        await list_add_tail(cpu, napi.address, cpu.poll_list)
        await raise_softirq_irqoff(cpu, NET_RX_SOFTIRQ)
        local_irq_restore(cpu, enabled)
    return not missed


async def napi_if_scheduled_mark_missed(cpu: Cpu, napi: Napi) -> bool:
    """Have a poll that is scheduled or running repeated; false if there is none."""
    address = napi.address + NAPI_STRUCT.state.offset
    while True:
        state = await cpu.load(address, 4)
        if not state & _SCHED:
            return False
        if await try_cmpxchg(cpu, address, state, state | _MISSED):
            return True


async def napi_disable(cpu: Cpu, napi: Napi) -> None:
    """Wait until no poll is scheduled and let none be; interrupts meanwhile find one scheduled."""
    while not await _napi_schedule_prep(cpu, napi.address + NAPI_STRUCT.state.offset):
        cpu.execute(_DISABLE_WAIT_CYCLES)
        await cpu.drain()


def napi_enable(cpu: Cpu, napi: Napi) -> None:
    """Undo :func:`napi_disable`."""
    cpu.put(napi.address, NAPI_STRUCT.state, 0)


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
    """Poll once; a source that used up its weight goes to the end of the list. Returns the packets handled."""
    work = await napi.poll(napi, cpu, napi.weight)
    cpu.note("poll", work=work)
    enabled = local_irq_save(cpu)
    if work >= napi.weight:
        await list_add_tail(cpu, napi.address, cpu.poll_list)
    local_irq_restore(cpu, enabled)
    return work
