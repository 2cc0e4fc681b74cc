"""Queued spinlocks (include/asm-generic/qspinlock.h, kernel/locking/qspinlock.c): 4 bytes each, 0 when free.

Byte 0 says that the lock is held, byte 1 that somebody waits for it (*pending*). Taking a free lock is one
compare-and-exchange, releasing it a plain store, which x86 orders after everything before it.
"""

from sw.core import AtomicFunction, function
from sw.linux.atomic import try_cmpxchg
from sw.linux.cpu import Cpu, local_irq_restore, local_irq_save

__all__ = [
    "SPINLOCK_BYTES",
    "raw_spin_lock",
    "raw_spin_unlock",
    "spin_lock_irqsave",
    "spin_unlock_irqrestore",
]

SPINLOCK_BYTES = 4

_LOCKED = 1
_LOCKED_MASK = 0xFF
_PENDING = 1 << 8

#: Cycles from one look at a lock to the next: a turn of the loop, with a PAUSE as short as before Skylake.
SPIN_PERIOD = 10
#: A holder that does not let go for so many looks never will: the model's lockup detector, 1 to 2 s.
LOCKUP_LOOKS = 1 << 29
#: Looks of one POLL.
_POLL_LOOKS = 1 << 24


async def raw_spin_lock(cpu: Cpu, lock: int) -> None:
    """Take the lock at ``lock``; what may interrupt the holder on its core and wants the lock has to be kept off."""
    if not await try_cmpxchg(cpu, lock, 0, _LOCKED):
        await native_queued_spin_lock_slowpath(cpu, lock)


def raw_spin_unlock(cpu: Cpu, lock: int) -> None:
    """Release the lock."""
    cpu.store(lock, 0, 1)


async def spin_lock_irqsave(cpu: Cpu, lock: int) -> bool:
    """Disable interrupts and take the lock; returns whether they were enabled."""
    enabled = local_irq_save(cpu)
    await raw_spin_lock(cpu, lock)
    return enabled


def spin_unlock_irqrestore(cpu: Cpu, lock: int, enabled: bool) -> None:
    """Undo :func:`spin_lock_irqsave`."""
    raw_spin_unlock(cpu, lock)
    local_irq_restore(cpu, enabled)


@function()
async def native_queued_spin_lock_slowpath(cpu: Cpu, lock: int) -> None:
    """Wait for a lock that is held: the first to wait owns the pending byte and is next.

    Further ones try to become pending whenever the lock changes; the kernel has them queue.

    Raises:
        RuntimeError: if the lock does not change for :data:`LOCKUP_LOOKS`.
    """
    seen = await cpu.atomic(lock, SPINLOCK_BYTES, AtomicFunction.OR, _PENDING)
    while seen & ~_LOCKED_MASK:
        await _cond_read(cpu, lock, SPINLOCK_BYTES, seen)
        seen = await cpu.atomic(lock, SPINLOCK_BYTES, AtomicFunction.OR, _PENDING)
    if seen:
        await _cond_read(cpu, lock, 1, _LOCKED)
    cpu.store(lock, _LOCKED, 2)  # held, and nobody pending


async def _cond_read(cpu: Cpu, address: int, size: int, unwanted: int) -> None:
    """Spin while the bytes at ``address`` are ``unwanted``."""
    for _ in range(0, LOCKUP_LOOKS, _POLL_LOOKS):
        if await cpu.poll(address, size, unwanted, _POLL_LOOKS * SPIN_PERIOD, SPIN_PERIOD) != unwanted:
            return
    raise RuntimeError(f"core {cpu.index}: spinlock lockup at {address:#x}")
