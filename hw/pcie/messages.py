"""What passes between the parts of the root complex."""

from amaranth.lib import data

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import PHYSICAL_ADDRESS_WIDTH
from hw.memory_map import MSI_BASE, MSI_BYTES

__all__ = [
    "CORE_WIDTH",
    "WRITE_COUNT_WIDTH",
    "HostMessage",
    "InterruptMessage",
    "ReadRequest",
    "interrupt_core",
    "is_interrupt",
]

#: Bits of a core's number, as in :class:`hw.bus.core.MmioRequest`.
CORE_WIDTH = 4

#: Device writes are numbered in order of arrival and never wrap: at one per cycle of 10 GHz, 2**48 take 7 hours.
WRITE_COUNT_WIDTH = 48


class ReadRequest(data.Struct):
    """A MEMORY_READ that has arrived."""

    address: PHYSICAL_ADDRESS_WIDTH
    length: 13  #: bytes
    tag: 8
    packet: PACKET_WIDTH
    supported: 1  #: low: to be answered with UNSUPPORTED_REQUEST
    after: WRITE_COUNT_WIDTH  #: that many line writes came before it and must be visible first


class HostMessage(data.Struct):
    """Something for a core that may not overtake earlier writes: an interrupt or the answer to an MMIO read."""

    interrupt: 1
    core: CORE_WIDTH
    data: 64  #: the vector, or the answer
    after: WRITE_COUNT_WIDTH  #: that many line writes came before it and must be visible first


class InterruptMessage(data.Struct):
    """An interrupt that one core sends to another, or to itself."""

    core: CORE_WIDTH  #: whom it is for
    vector: 8


def interrupt_core(address):
    """Whom an interrupt written to ``address`` is for: bits 19:12."""
    return (address >> 12) % 256


def is_interrupt(address, length, cores: int):
    """Whether a write of ``length`` bytes is an interrupt for one of ``cores`` cores: one aligned 32-bit word."""
    return (
        (address >= MSI_BASE)
        & (address < MSI_BASE + MSI_BYTES)
        & (address % 4 == 0)
        & (length == 4)
        & (interrupt_core(address) < cores)
    )
