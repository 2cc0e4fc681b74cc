"""Setting DDIO before a program starts, as FastClick's element DDIOTune does (Farshin et al., ATC 2020)."""

from hw.uncore_registers import IIO_LLC_WAYS, PERFCTRLSTS_0, USE_ALLOCATING_FLOW_WR, msr
from sw.core import function
from sw.linux.cpu import Cpu

__all__ = ["DdioError", "check_ddio_ways", "set_ddio"]


class DdioError(RuntimeError):
    """A register does not hold what was written; the message is one line."""


def check_ddio_ways(ways: int | None, llc_ways: int) -> None:
    """Refuse a number of ways that the last level has not.

    Raises:
        ValueError: in one line.
    """
    if ways is not None and not 1 <= ways <= llc_ways:
        raise ValueError(f"--ddio-ways must be between 1 and the {llc_ways} ways of the last level, not {ways}")


@function()
async def set_ddio(cpu: Cpu, ddio: bool | None, ways: int | None, llc_ways: int) -> None:
    """Switch DDIO on or off for the card's root port, and give device writes the last ``ways`` ways; None: leave it.

    Raises:
        DdioError: if a register does not take its value.
    """
    if ddio is not None:
        # Its other bits are kept
        value = await cpu.mmio_read(PERFCTRLSTS_0)
        wanted = value | USE_ALLOCATING_FLOW_WR if ddio else value & ~USE_ALLOCATING_FLOW_WR
        cpu.mmio_write(PERFCTRLSTS_0, wanted)
        await _check(cpu, "perfctrlsts_0", PERFCTRLSTS_0, 4, wanted)
    if ways is not None:
        mask = ((1 << ways) - 1) << (llc_ways - ways)
        cpu.mmio_write(msr(IIO_LLC_WAYS), mask, 8)
        await _check(cpu, "IIO LLC WAYS", msr(IIO_LLC_WAYS), 8, mask)


async def _check(cpu: Cpu, name: str, address: int, size: int, wanted: int) -> None:
    value = await cpu.mmio_read(address, size)
    if value != wanted:
        raise DdioError(f"{name} reads {value:#x} after {wanted:#x} was written")
