"""The memory-management unit of a core: TLBs, page walker, paging-structure caches."""

from .mmu import Mmu
from .page import PageSize

__all__ = ["Mmu", "PageSize"]
