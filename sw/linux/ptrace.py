"""The registers of interrupted code on the kernel stack (``struct pt_regs``)."""

from sw.linux.cpu import Cpu

__all__ = ["PT_REGS_BYTES", "restore_registers", "save_registers"]

#: ``struct pt_regs``: 21 registers of 8 bytes.
PT_REGS_BYTES = 168


def save_registers(cpu: Cpu, registers: bytes) -> int:
    """Push ``registers`` on the current task's kernel stack; returns where they lie."""
    task = cpu.task
    task.stack_pointer -= PT_REGS_BYTES
    if task.stack_pointer < task.stack_bottom:
        raise RuntimeError(f"kernel stack overflow in task {task.name!r}")
    cpu.store(task.stack_pointer, registers.ljust(PT_REGS_BYTES, b"\0"), PT_REGS_BYTES)
    return task.stack_pointer


async def restore_registers(cpu: Cpu, address: int) -> bytes:
    """Pop what :func:`save_registers` pushed."""
    registers = await cpu.load(address, PT_REGS_BYTES)
    cpu.task.stack_pointer = address + PT_REGS_BYTES
    return registers
