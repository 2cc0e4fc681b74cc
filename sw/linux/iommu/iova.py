"""Addresses for the card (drivers/iommu/iova.c): from the top of 32 bits down, each range aligned to its size."""

from hw.memory_map import BAR0_BASE, BAR3_BASE, BAR3_BYTES, MSI_BASE, MSI_BYTES
from sw.linux.mm import PAGE_SIZE

__all__ = ["DMA_32BIT_END", "IovaDomain", "IovaError"]

#: Addresses are given out below this first (``dma_limit`` of dma-iommu.c); devices of this model need no more.
DMA_32BIT_END = 1 << 32


class IovaError(MemoryError):
    """No addresses are left; the message is one line."""


class IovaDomain:
    """Ranges of one device's address space.

    What the card would not send to memory is never given out: the window of interrupt messages
    (``intel_iommu_get_resv_regions``), and those of devices behind the same root (``iova_reserve_pci_windows``).
    Address 0 is not either (``IOVA_START_PFN``).
    """

    def __init__(self) -> None:
        self._taken = [(MSI_BASE, MSI_BASE + MSI_BYTES), (BAR0_BASE, BAR3_BASE + BAR3_BYTES)]

    def alloc(self, size: int, alignment: int = PAGE_SIZE) -> int:
        """The highest free range of ``size`` bytes, aligned to ``alignment`` and to its size rounded up.

        Raises:
            IovaError: when there is none.
        """
        pages = -(-size // PAGE_SIZE)
        alignment = max(alignment, PAGE_SIZE << (pages - 1).bit_length())
        end = DMA_32BIT_END
        while True:
            start = (end - pages * PAGE_SIZE) & -alignment
            if start < PAGE_SIZE:
                raise IovaError(f"no range of {size} bytes is left below {DMA_32BIT_END:#x} for the card")
            above = [first for first, last in self._taken if first < start + pages * PAGE_SIZE and start < last]
            if not above:
                self._taken.append((start, start + pages * PAGE_SIZE))
                return start
            end = min(above)
