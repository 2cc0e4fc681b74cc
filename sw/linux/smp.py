"""One core interrupts another (arch/x86/kernel/smp.c)."""

from hw.memory_map import MSI_BASE
from sw.core import function
from sw.linux.cpu import Cpu

__all__ = ["RESCHEDULE_VECTOR", "smp_send_reschedule"]

#: The highest vector there is here, as the kernel takes a high one (0xFD) on a machine that has 256.
RESCHEDULE_VECTOR = 0x3F


@function()
async def smp_send_reschedule(cpu: Cpu, target: Cpu) -> None:
    """Interrupt ``target``, so that it looks at its flags: one write that waits for every store before it.

    A local APIC in x2APIC mode takes it as a write of its interrupt command register, ``x2apic_send_IPI`` with a fence
    before it; here it is the write of an uncached word that names the core by its address.
    """
    cpu.mmio_write(MSI_BASE | target.index << 12, RESCHEDULE_VECTOR)
