"""System calls of programs that use TCP. What they return is negative when it is an errno, as in the kernel."""

from collections.abc import Awaitable
from typing import TypeVar

from sw.core import Mode, function
from sw.linux.cpu import Cpu
from sw.linux.net.tcp import (
    Packet,
    inet_csk_accept,
    inet_csk_get_port,
    inet_csk_listen_start,
    tcp_close,
    tcp_recvmsg,
    tcp_sendmsg,
    tcp_socket,
)
from sw.linux.syscall import _syscall_enter, _syscall_exit

__all__ = ["TCP_RCVBUF", "recvfrom", "sendto", "sys_accept4", "sys_bind", "sys_close", "sys_listen", "sys_socket"]

#: ``net.ipv4.tcp_rmem``, its middle value: receive buffer of a socket in bytes of ``truesize``.
TCP_RCVBUF = 131_072

T = TypeVar("T")


async def _syscall(cpu: Cpu, work: Awaitable[T]) -> T:
    """Into the kernel, and back with the result."""
    registers = await _syscall_enter(cpu)
    result = await work
    await _syscall_exit(cpu, registers)
    return result


@function(mode=Mode.KERNEL)
async def sys_socket(cpu: Cpu, rcvbuf: int = TCP_RCVBUF) -> int:
    """Make a socket for streams; its address stands for the file descriptor. ENOBUFS."""
    return await _syscall(cpu, tcp_socket(cpu, rcvbuf))


@function(mode=Mode.KERNEL)
async def sys_bind(cpu: Cpu, sock: int, port: int) -> int:
    """Bind to ``port`` on all addresses. EINVAL, EADDRINUSE."""
    return await _syscall(cpu, inet_csk_get_port(cpu, sock, port))


@function(mode=Mode.KERNEL)
async def sys_listen(cpu: Cpu, sock: int, backlog: int) -> int:
    """Take connections. EINVAL, EADDRINUSE."""
    return await _syscall(cpu, inet_csk_listen_start(cpu, sock, backlog))


@function(mode=Mode.KERNEL)
async def sys_accept4(cpu: Cpu, sock: int) -> int:
    """Wait for a connection; its socket. EINVAL."""
    return await _syscall(cpu, inet_csk_accept(cpu, sock))


@function(mode=Mode.KERNEL)
async def recvfrom(cpu: Cpu, sock: int, buffer: int, size: int) -> tuple[int, list[Packet]]:
    """Wait for bytes of the stream and copy at most ``size`` of them to ``buffer``.

    Returns:
        bytes copied, 0 at the end of the stream, or ECONNRESET, ETIMEDOUT, ENOTCONN; and, for observers, which received
        packets have been read to their end.
    """
    return await _syscall(cpu, tcp_recvmsg(cpu, sock, buffer, size))


@function(mode=Mode.KERNEL)
async def sendto(cpu: Cpu, sock: int, buffer: int, size: int) -> int:
    """Send ``size`` bytes at ``buffer``, waiting for room; how many. EPIPE, ECONNRESET, ETIMEDOUT, ENOBUFS."""
    return await _syscall(cpu, tcp_sendmsg(cpu, sock, buffer, size))


@function(mode=Mode.KERNEL)
async def sys_close(cpu: Cpu, sock: int) -> int:
    """Close the socket: this program has it no more."""
    return await _syscall(cpu, tcp_close(cpu, sock))
