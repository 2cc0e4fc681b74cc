"""Physical addresses, written once for the root complex, the card and the drivers."""

__all__ = [
    "BAR0_BASE",
    "BAR0_BYTES",
    "BAR3_BASE",
    "BAR3_BYTES",
    "DRAM_BASE",
    "IOMMU_BASE",
    "IOMMU_BYTES",
    "MSI_BASE",
    "MSI_BYTES",
    "MSR_BASE",
    "MSR_BYTES",
    "ROOT_PORT_BASE",
    "ROOT_PORT_BYTES",
]

#: DRAM starts at 0; its size is a machine parameter.
DRAM_BASE = 0x0000_0000

#: BAR0 of the card: its registers (512 KiB).
BAR0_BASE = 0xF000_0000
BAR0_BYTES = 0x8_0000

#: BAR3 of the card: MSI-X table (at 0) and pending bits (at half).
BAR3_BASE = 0xF010_0000
BAR3_BYTES = 0x4000

#: Registers of the IOMMU, if the machine has one, where firmware of Intel machines usually reports them.
IOMMU_BASE = 0xFED9_0000
IOMMU_BYTES = 0x1000

#: Writes here are interrupt messages: bits 19:12 name the core, data bits 7:0 the vector
#: (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, section 11.11). The card's are its MSI-X
#: messages; a core's stand for writes of the interrupt command register of its local APIC.
MSI_BASE = 0xFEE0_0000
MSI_BYTES = 0x10_0000

#: Model-specific registers of the uncore, 8 bytes apart (``hw.uncore_registers``), and behind them the configuration
#: space of the root port that the card is plugged into.
MSR_BASE = 0xFED2_0000
MSR_BYTES = 0x1_0000
ROOT_PORT_BASE = MSR_BASE + MSR_BYTES
ROOT_PORT_BYTES = 0x1000
