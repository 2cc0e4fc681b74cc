"""System calls of the programs."""

from sw.core import Mode, function
from sw.linux.cpu import Cpu
from sw.linux.list import init_list_head
from sw.linux.net.udp import udp_bind, udp_recvmsg
from sw.linux.ptrace import restore_registers, save_registers
from sw.linux.sched import need_resched, schedule, yield_task
from sw.linux.socket import SOCK, SOCK_RCVBUF
from sw.linux.softirq import local_bh_disable, local_bh_enable

__all__ = ["recvfrom", "sched_yield", "sys_bind", "sys_socket"]


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
async def sys_socket(cpu: Cpu, rcvbuf: int = SOCK_RCVBUF) -> int:
    """Make a UDP socket; its address stands for the file descriptor."""
    registers = await _syscall_enter(cpu)
    sock = cpu.kernel.allocate_sock()
    cpu.store(sock, SOCK.pack(rcvbuf=rcvbuf), SOCK.size)
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
async def recvfrom(cpu: Cpu, sock: int, buffer: int, size: int) -> tuple[int, tuple[int, int]]:
    """Wait for a datagram and copy at most ``size`` bytes of it to ``buffer``.

    Returns:
        the bytes copied, and which received packet it was (queue and number, for observers).
    """
    registers = await _syscall_enter(cpu)
    copied, packet = await udp_recvmsg(cpu, sock, buffer, size)
    await _syscall_exit(cpu, registers)
    return copied, packet


@function(mode=Mode.KERNEL)
async def sched_yield(cpu: Cpu) -> None:
    """Let other tasks of the same rank run first, ksoftirqd for one."""
    registers = await _syscall_enter(cpu)
    cpu.cli()
    await yield_task(cpu)
    await _syscall_exit(cpu, registers)
