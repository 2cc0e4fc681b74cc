"""Locked instructions and memory barriers (arch/x86/include/asm/atomic.h, cmpxchg.h, barrier.h)."""

from sw.core import AtomicFunction
from sw.linux.cpu import Cpu

__all__ = ["atomic_add", "atomic_sub_return", "fetch_and", "fetch_or", "smp_mb", "smp_store_mb", "try_cmpxchg"]

_BYTES = 4
_WORD = 0xFFFF_FFFF


async def try_cmpxchg(cpu: Cpu, address: int, old: int, new: int) -> bool:
    """Write ``new`` to the 4 bytes at ``address`` if they are ``old``; whether they were."""
    return await cpu.atomic(address, _BYTES, AtomicFunction.COMPARE_EXCHANGE, new, old) == old


async def atomic_add(cpu: Cpu, amount: int, address: int) -> None:
    """Add to the 4 bytes at ``address``, modulo 2^32."""
    await cpu.atomic(address, _BYTES, AtomicFunction.ADD, amount & _WORD)


async def atomic_sub_return(cpu: Cpu, amount: int, address: int) -> int:
    """Subtract from the 4 bytes at ``address`` and return what is left, signed."""
    left = await cpu.atomic(address, _BYTES, AtomicFunction.ADD, -amount & _WORD) - amount & _WORD
    return left - (_WORD + 1) if left > _WORD // 2 else left


async def fetch_or(cpu: Cpu, address: int, bits: int) -> int:
    """Set bits of the 4 bytes at ``address``; what they were."""
    return await cpu.atomic(address, _BYTES, AtomicFunction.OR, bits)


async def fetch_and(cpu: Cpu, address: int, mask: int) -> int:
    """Keep the bits of the 4 bytes at ``address`` that are in ``mask``; what they were."""
    return await cpu.atomic(address, _BYTES, AtomicFunction.AND, mask & _WORD)


async def smp_store_mb(cpu: Cpu, address: int, value: int) -> None:
    """Write 4 bytes; nothing later is read before that is visible (XCHG)."""
    await cpu.atomic(address, _BYTES, AtomicFunction.EXCHANGE, value)


async def smp_mb(cpu: Cpu) -> None:
    """Read nothing later before what was written is visible: a locked addition of 0 to the word below the stack."""
    await atomic_add(cpu, 0, cpu.task.stack_pointer - _BYTES)
