"""Spinlocks exclude each other, wait for a bounded time, and cost a free lock one atomic."""

import asyncio

import pytest

from sw.core import AtomicFunction, Core, Dispatcher, Mode, Record
from sw.linux import spinlock
from sw.linux.atomic import atomic_add, atomic_sub_return, smp_store_mb, try_cmpxchg
from sw.linux.spinlock import raw_spin_lock, raw_spin_unlock
from sw.port import OperationKind as K
from sw.port import WakeKind
from tests.sw.functional_machine import FunctionalMachine

LOCK, COUNTER, OTHER = 0x1000, 0x1040, 0x1080


class LockMachine(FunctionalMachine):
    """Counts operations by kind."""

    def __init__(self, cores):
        super().__init__(cores)
        self.kinds = []

    def push(self, context, kind, *operands, **named):
        self.kinds.append(K(kind))
        return super().push(context, kind, *operands, **named)

    def word(self, address):
        return int.from_bytes(self.memory[address : address + 4], "little")


def run(software, cores=1):
    """Run ``software(core)`` on each core to its end."""
    machine, record = LockMachine(cores), Record()
    all_cores = [Core(index, machine, record, {}) for index in range(cores)]
    dispatcher = Dispatcher(machine, all_cores, record)
    for core in all_cores:
        dispatcher.start(core, core.new_context(software(core), Mode.KERNEL))
    assert asyncio.run(dispatcher.run()) is WakeKind.IDLE
    return machine, record


async def lock_with_a_hole(core, lock):
    """A lock with a hole between its look and its store."""
    while await core.load(lock, 4):
        pass
    core.store(lock, 1, 4)


TURNS = 60


def counted(lock, cores):
    """What a counter says that each core adds 1 to, under the lock, :data:`TURNS` times."""

    async def software(core):
        for turn in range(TURNS):
            core.execute(1 + (7 * turn + 3 * core.index) % 23)
            await lock(core, LOCK)
            value = await core.load(COUNTER, 4)
            core.execute(1 + turn % 5)
            core.store(COUNTER, value + 1, 4)
            raw_spin_unlock(core, LOCK)

    machine, record = run(software, cores)
    return machine.word(COUNTER), machine, record


@pytest.mark.parametrize("cores", (2, 3, 4))
def test_contended_locks_exclude(cores):
    total, machine, record = counted(raw_spin_lock, cores)
    assert total == cores * TURNS
    assert machine.word(LOCK) == 0
    assert K.POLL in machine.kinds
    waiters = {record.function_of(h) for h, kind in enumerate(machine.kinds) if kind is K.POLL}
    assert waiters == {"native_queued_spin_lock_slowpath"}


def test_a_lock_that_does_not_exclude_is_noticed():
    assert counted(lock_with_a_hole, 2)[0] < 2 * TURNS


def test_a_free_lock_is_one_atomic_and_one_store():
    async def software(core):
        await raw_spin_lock(core, LOCK)
        raw_spin_unlock(core, LOCK)

    machine, _ = run(software)
    assert machine.kinds == [K.ATOMIC, K.STORE]


def test_the_first_to_wait_is_next():
    """Core 1 has waited when core 2, which took its time, asks for the lock just released: it has to wait."""
    order = []

    async def software(core):
        core.execute(1 + (0, 50, 2000)[core.index])
        await raw_spin_lock(core, LOCK)
        order.append(core.index)
        core.execute((2500, 400, 1)[core.index])
        await core.fence()
        raw_spin_unlock(core, LOCK)

    run(software, 3)
    assert order == [0, 1, 2]


def test_a_lock_that_is_never_released_is_reported(monkeypatch):
    monkeypatch.setattr(spinlock, "LOCKUP_LOOKS", 30)
    monkeypatch.setattr(spinlock, "_POLL_LOOKS", 10)

    async def software(core):
        await raw_spin_lock(core, LOCK)
        await raw_spin_lock(core, LOCK)

    with pytest.raises(RuntimeError, match="core 0: spinlock lockup at 0x1000"):
        run(software)


def test_atomics():
    seen = []

    async def software(core):
        seen.append(await try_cmpxchg(core, OTHER, 1, 5))
        seen.append(await try_cmpxchg(core, OTHER, 0, 5))
        await atomic_add(core, -7, OTHER)
        seen.append(await atomic_sub_return(core, -4, OTHER))
        seen.append(await atomic_sub_return(core, 3, OTHER))
        await smp_store_mb(core, OTHER, 9)
        seen.append(await core.atomic(OTHER, 4, AtomicFunction.OR, 0))

    run(software)
    assert seen == [False, True, 2, -1, 9]
