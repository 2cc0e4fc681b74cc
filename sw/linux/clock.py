"""The scheduler's clock (kernel/sched/clock.c, arch/x86/kernel/tsc.c)."""

from sw.linux.cpu import Cpu

__all__ = ["local_clock"]


async def local_clock(cpu: Cpu) -> int:
    """Nanoseconds that the cores' time-stamp counter has counted.

    The kernel's RDTSC may be read before earlier loads are complete; the model's may not.
    """
    cpu.execute("local_clock")
    return await cpu.rdtsc() * 1_000_000 // cpu.kernel.tsc_khz
