"""System calls on AF_XDP sockets. One that is refused returns the :class:`~sw.linux.xdp.errors.XskError`."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from sw.core import Mode, function
from sw.linux.cpu import Cpu
from sw.linux.select import PollEvent, do_poll
from sw.linux.syscall import _syscall_enter, _syscall_exit
from sw.linux.xdp.calls import xsk_poll, xsk_recvmsg, xsk_sendmsg
from sw.linux.xdp.errors import XskError
from sw.linux.xdp.if_xdp import XDP_STATISTICS, BindFlag, PageOffset, SocketOption
from sw.linux.xdp.umem import XdpUmem
from sw.linux.xdp.xsk import AfXdp, XdpSock

__all__ = [
    "sys_poll",
    "xsk_bind",
    "xsk_getsockopt",
    "xsk_mmap",
    "xsk_recvfrom",
    "xsk_sendto",
    "xsk_setsockopt",
    "xsk_socket",
]

T = TypeVar("T")


async def _system_call(cpu: Cpu, work: Coroutine[Any, Any, T]) -> T | XskError:
    registers = await _syscall_enter(cpu)
    result: T | XskError
    try:
        result = await work
    except XskError as error:
        result = error
    await _syscall_exit(cpu, registers)
    return result


@function(mode=Mode.KERNEL)
async def xsk_socket(cpu: Cpu, family: AfXdp) -> XdpSock | XskError:
    """``socket(AF_XDP, SOCK_RAW, 0)``."""
    return await _system_call(cpu, family.create(cpu))


@function(mode=Mode.KERNEL)
async def xsk_setsockopt(
    cpu: Cpu, family: AfXdp, xs: XdpSock, option: SocketOption, value: int | XdpUmem
) -> XskError | None:
    """``setsockopt(SOL_XDP)``: register the UMEM, or make a ring of ``value`` entries."""
    return await _system_call(cpu, family.setsockopt(cpu, xs, option, value))


@function(mode=Mode.KERNEL)
async def xsk_mmap(cpu: Cpu, family: AfXdp, xs: XdpSock, offset: PageOffset) -> int | XskError:
    """``mmap`` of a ring: where the program has it."""
    return await _system_call(cpu, family.mmap(cpu, xs, offset))


@function(mode=Mode.KERNEL)
async def xsk_bind(cpu: Cpu, family: AfXdp, xs: XdpSock, ifindex: int, queue: int, flags: BindFlag) -> XskError | None:
    """``bind`` to a queue of a device."""
    return await _system_call(cpu, family.bind(cpu, xs, ifindex, queue, flags))


@function(mode=Mode.KERNEL)
async def xsk_getsockopt(cpu: Cpu, family: AfXdp, xs: XdpSock, buffer: int) -> XskError | None:
    """``getsockopt(XDP_STATISTICS)``: write ``struct xdp_statistics`` to ``buffer``."""
    return await _system_call(cpu, _statistics(cpu, family, xs, buffer))


async def _statistics(cpu: Cpu, family: AfXdp, xs: XdpSock, buffer: int) -> None:
    values = await family.statistics(cpu, xs)
    cpu.execute("copy_to_user_64")
    cpu.store(buffer, XDP_STATISTICS.pack(**values), XDP_STATISTICS.size)


@function(mode=Mode.KERNEL)
async def xsk_sendto(cpu: Cpu, xs: XdpSock) -> int:
    """``sendto`` of nothing with ``MSG_DONTWAIT``: have the transmit ring looked at; 0 or a negative errno."""
    registers = await _syscall_enter(cpu)
    error = await xsk_sendmsg(cpu, xs)
    await _syscall_exit(cpu, registers)
    return error


@function(mode=Mode.KERNEL)
async def xsk_recvfrom(cpu: Cpu, xs: XdpSock) -> int:
    """``recvfrom`` of nothing with ``MSG_DONTWAIT``: have the fill ring looked at; 0 or a negative errno."""
    registers = await _syscall_enter(cpu)
    error = await xsk_recvmsg(cpu, xs)
    await _syscall_exit(cpu, registers)
    return error


@function(mode=Mode.KERNEL)
async def sys_poll(cpu: Cpu, xs: XdpSock, events: PollEvent) -> PollEvent:
    """``poll`` of one socket without a time-out: what it is ready for."""
    registers = await _syscall_enter(cpu)

    async def look(cpu: Cpu) -> PollEvent:
        return await xsk_poll(cpu, xs)

    ready = await do_poll(cpu, xs.address, look, events)
    await _syscall_exit(cpu, registers)
    return ready
