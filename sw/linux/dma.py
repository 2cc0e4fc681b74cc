"""Addresses of memory as the card has them (kernel/dma/direct.c): the physical ones, without an IOMMU.

Memory is mapped for good when it is set aside, before the card is brought up.
"""

__all__ = ["Dma"]


class Dma:
    """Who maps memory for the card.

    Attributes:
        page_offset: what is added to the address of a page of the page allocator.
        for_kernel: the kernel's own driver has the card, and pages of the page allocator are its buffers.
    """

    page_offset = 0
    for_kernel = False

    def map(self, physical: int, size: int) -> int:
        """Let the card reach ``size`` bytes; where it finds them."""
        return physical

    def map_user(self, physical: int, size: int) -> None:
        """Let the card reach memory of a program that drives it (``VFIO_IOMMU_MAP_DMA``)."""

    def address(self, physical: int) -> int:
        """Where the card finds what was mapped; memory that was not has its physical address, which faults."""
        return physical

    @property
    def user_offset(self) -> int:
        """What is added to the address of memory mapped by :meth:`map_user`."""
        return 0
