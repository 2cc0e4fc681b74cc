"""The IOMMU: translation of what the card reads and writes, after Intel's VT-d."""

from .iommu import Iommu

__all__ = ["Iommu"]
