"""Copies between kernel and programs."""

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.net.checksum import partial

__all__ = ["copy_from_user", "copy_to_user", "csum_and_copy_from_user", "csum_and_copy_to_user"]


@function()
async def copy_to_user(cpu: Cpu, to: int, source: int, size: int, after: int = -1) -> None:
    """Copy ``size`` bytes: a load per line of the source, a store per line of the destination, overlapping.

    ``source`` is known since load ``after``.
    """
    if size:
        cpu.execute("copy_to_user_64", (size + LINE - 1) // LINE)
        cpu.store(to, await cpu.load_bytes(source, size, after=after), size)


@function()
async def copy_from_user(cpu: Cpu, to: int, source: int, size: int, after: int = -1) -> None:
    """Copy ``size`` bytes of a program, line by line; ``to`` is known since load ``after``."""
    if size:
        cpu.execute("copy_to_user_64", (size + LINE - 1) // LINE, after=after)
        cpu.store(to, await cpu.load_bytes(source, size), size)


async def csum_and_copy_to_user(cpu: Cpu, to: int, source: int, size: int, after: int = -1) -> int:
    """:func:`copy_to_user`, and return the partial checksum of the bytes copied."""
    return await _csum_and_copy(cpu, to, source, size, after)


async def csum_and_copy_from_user(cpu: Cpu, to: int, source: int, size: int) -> int:
    """Copy from a program, and return the partial checksum of the bytes copied."""
    return await _csum_and_copy(cpu, to, source, size)


async def _csum_and_copy(cpu: Cpu, to: int, source: int, size: int, after: int = -1) -> int:
    if not size:
        return 0
    cpu.execute("csum_partial_64", (size + LINE - 1) // LINE)
    data = await cpu.load_bytes(source, size, after=after)
    cpu.store(to, data, size)
    return partial(data)
