"""System calls of the programs."""

from sw.core import Mode, function
from sw.linux.cpu import Cpu
from sw.linux.list import init_list_head
from sw.linux.net.udp import SOCKADDR_IN, udp_bind, udp_recvmsg
from sw.linux.net.udp_output import udp_sendmsg
from sw.linux.ptrace import restore_registers, save_registers
from sw.linux.sched import need_resched, schedule, yield_task
from sw.linux.socket import SOCK, SOCK_RCVBUF, SOCK_SNDBUF
from sw.linux.softirq import local_bh_disable, local_bh_enable

__all__ = ["recvfrom", "sched_yield", "sendto", "sys_bind", "sys_socket"]


async def _syscall_enter(cpu: Cpu) -> int:
    """Into the kernel: the program's registers go on the kernel stack."""
    cpu.execute("entry_SYSCALL_64")
    return save_registers(cpu, cpu.current.registers)


async def _syscall_exit(cpu: Cpu, registers: int) -> None:
    """Back to the program, unless a better task wants to run first."""
    cpu.execute("syscall_exit_to_user_mode")
    while await need_resched(cpu):
        await schedule(cpu, preempt=True)
    cpu.current.registers = await restore_registers(cpu, registers)


@function(mode=Mode.KERNEL)
async def sys_socket(cpu: Cpu, rcvbuf: int = SOCK_RCVBUF, sndbuf: int = SOCK_SNDBUF) -> int:
    """Make a UDP socket; its address stands for the file descriptor."""
    registers = await _syscall_enter(cpu)
    sock = cpu.kernel.allocate_sock()
    cpu.store(sock, SOCK.pack(rcvbuf=rcvbuf, sndbuf=sndbuf), SOCK.size)
    init_list_head(cpu, sock + SOCK.receive_queue.offset)
    init_list_head(cpu, sock + SOCK.wait_queue.offset)
    init_list_head(cpu, sock + SOCK.reader_queue.offset)
    await _syscall_exit(cpu, registers)
    return sock


@function(mode=Mode.KERNEL)
async def sys_bind(cpu: Cpu, sock: int, port: int) -> None:
    """Bind to ``port`` on all addresses."""
    registers = await _syscall_enter(cpu)
    local_bh_disable(cpu)
    await udp_bind(cpu, sock, port)
    await local_bh_enable(cpu)
    await _syscall_exit(cpu, registers)


@function(mode=Mode.KERNEL)
async def recvfrom(cpu: Cpu, sock: int, buffer: int, size: int, name: int = 0) -> tuple[int, tuple[int, int]]:
    """Wait for a datagram and copy at most ``size`` bytes of it to ``buffer``, its source to ``name`` unless that is 0.

    Returns:
        the bytes copied, and which received packet it was (queue and number, for observers).
    """
    registers = await _syscall_enter(cpu)
    copied, packet = await udp_recvmsg(cpu, sock, buffer, size, name)
    await _syscall_exit(cpu, registers)
    return copied, packet


@function(mode=Mode.KERNEL)
async def sendto(cpu: Cpu, sock: int, buffer: int, size: int, name: int, packet: tuple[int, int] | None = None) -> int:
    """Send ``size`` bytes at ``buffer`` as one datagram to the address at ``name``, a ``SOCKADDR_IN``.

    Waits while the socket has more on the way than its send buffer takes. ``packet`` is the received one that this
    answers, for observers.

    Returns:
        the bytes sent, or a negative errno as :func:`~sw.linux.net.udp_output.udp_sendmsg` says.
    """
    registers = await _syscall_enter(cpu)
    _, port, address, _ = SOCKADDR_IN.unpack(await cpu.load(name, SOCKADDR_IN.size))
    to = address.to_bytes(4, "little")
    sent = await udp_sendmsg(cpu, sock, buffer, size, to, int.from_bytes(port.to_bytes(2, "little"), "big"), packet)
    await _syscall_exit(cpu, registers)
    return sent


@function(mode=Mode.KERNEL)
async def sched_yield(cpu: Cpu) -> None:
    """Let other tasks of the same rank run first, ksoftirqd for one."""
    registers = await _syscall_enter(cpu)
    cpu.cli()
    await yield_task(cpu)
    await _syscall_exit(cpu, registers)
