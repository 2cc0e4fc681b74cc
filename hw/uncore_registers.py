"""Registers of the uncore that software reaches: which ways of the last level are whose, and DDIO.

On the parts most are model-specific registers, read and written by RDMSR and WRMSR. Here each lies in a window of
memory-mapped registers, 8 bytes apart, at the address of its number (:func:`msr`); what WRMSR would answer by #GP(0)
changes nothing.
"""

from hw.memory_map import MSR_BASE, ROOT_PORT_BASE

__all__ = [
    "IA32_L3_QOS_MASK_0",
    "IA32_PQR_ASSOC",
    "IIO_LLC_WAYS",
    "PERFCTRLSTS_0",
    "PQR_CLASS_SHIFT",
    "USE_ALLOCATING_FLOW_WR",
    "msr",
]

#: Ways in which device writes may allocate, contiguous (Farshin et al., ATC 2020, section 4.4; 0x600 of 11 ways by
#: default).
IIO_LLC_WAYS = 0xC8B
#: Class of service of the core that accesses it, in bits 63:32 (Intel SDM, volume 3, section 17.19.4.4).
IA32_PQR_ASSOC = 0xC8F
PQR_CLASS_SHIFT = 32
#: Ways in which cores of class of service n may allocate: this number + n, contiguous ones (section 17.19.4.3).
IA32_L3_QOS_MASK_0 = 0xC90

#: Address of a register of the card's root port (Xeon Scalable datasheet, volume 2, perfctrlsts_0: 0x180), 32 bits.
PERFCTRLSTS_0 = ROOT_PORT_BASE + 0x180
#: Its bit: writes of the devices behind the port allocate in the last level, which is DDIO.
USE_ALLOCATING_FLOW_WR = 1 << 7


def msr(number: int) -> int:
    """Address at which a core finds a model-specific register."""
    return MSR_BASE + 8 * number
