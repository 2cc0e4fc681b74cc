"""The kernel's IOMMU driver (drivers/iommu): tables in memory, addresses for the card, faults."""

from .dmar import IOMMU_MODES, DmarFault, IntelIommu, init_dmars

__all__ = ["IOMMU_MODES", "DmarFault", "IntelIommu", "init_dmars"]
