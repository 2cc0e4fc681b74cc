"""Memory: addresses fixed at boot, and pages with reference counts, whose free list has a lock."""

from collections.abc import Mapping

from sw.core import LINE, function
from sw.costs import Cost
from sw.linux.atomic import atomic_sub_return
from sw.linux.cpu import Cpu
from sw.linux.spinlock import SPINLOCK_BYTES, spin_lock_irqsave, spin_unlock_irqrestore
from sw.structs import Struct

__all__ = ["PAGE_SIZE", "MemBlock", "OutOfMemoryError", "PageAllocator", "lay_out_text"]

PAGE_SIZE = 4096

_TEXT_ALIGNMENT = 16

#: ``struct page``: a line each, in an array by page frame number.
STRUCT_PAGE = Struct(LINE, next=8, refcount=4)

#: A free list: its first entry (0: none), never-used memory, a lock.
_FREE_LIST = Struct(LINE, first=8, fresh=8, end=8, lock=SPINLOCK_BYTES)
_FREE_LIST_BYTES = 28


class OutOfMemoryError(MemoryError):
    """The modelled DRAM is too small; the message is one line."""


class MemBlock:
    """Hands out DRAM from the bottom up, for good, before anything runs (``memblock_alloc``)."""

    def __init__(self, size: int):
        self.size = size
        self.next = PAGE_SIZE  # the first page stays unused, so that no structure has address 0

    def allocate(self, size: int, alignment: int = LINE) -> int:
        """Address of ``size`` bytes that nobody else has."""
        address = (self.next + alignment - 1) // alignment * alignment
        self.next = address + size
        if self.next > self.size:
            raise OutOfMemoryError(f"{self.size} bytes of DRAM are too few: {self.next} are needed at boot")
        return address


def lay_out_text(costs: Mapping[str, Cost], memblock: MemBlock) -> Mapping[str, int]:
    """Where the code of each function lies: one after another, on 16 bytes each, as GCC aligns functions.

    No instructions are there; a function's lines take room in the instruction cache when it runs.
    """
    sizes = {
        name: (cost.text_bytes + _TEXT_ALIGNMENT - 1) // _TEXT_ALIGNMENT * _TEXT_ALIGNMENT
        for name, cost in costs.items()
    }
    address = memblock.allocate(sum(sizes.values()), PAGE_SIZE)
    text = {}
    for name, size in sizes.items():
        text[name] = address
        address += size
    return text


class PageAllocator:
    """Pages from what :class:`MemBlock` left, with a reference count for each."""

    def __init__(self, memblock: MemBlock):
        self.mem_map = memblock.allocate(memblock.size // PAGE_SIZE * STRUCT_PAGE.size)
        self.list = memblock.allocate(_FREE_LIST.size)
        self.lock = self.list + _FREE_LIST.lock.offset
        self.memblock = memblock

    def init(self, cpu: Cpu) -> None:
        """Take over all memory that is left."""
        first = (self.memblock.next + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        _init_free_list(cpu, self.list, first, self.memblock.size)

    def refcount(self, page: int) -> int:
        """Address of the reference count of the page at ``page``."""
        return self.mem_map + page // PAGE_SIZE * STRUCT_PAGE.size + STRUCT_PAGE.refcount.offset


@function()
async def alloc_page(cpu: Cpu, refcount: int = 1) -> int:
    """A page with that many references, or 0 when there is none."""
    pages = cpu.kernel.pages
    enabled = await spin_lock_irqsave(cpu, pages.lock)
    page = await _take_page(cpu, pages)
    spin_unlock_irqrestore(cpu, pages.lock, enabled)
    if page:
        cpu.store(pages.refcount(page), refcount, 4)
    return page


async def _take_page(cpu: Cpu, pages: PageAllocator) -> int:
    first, fresh, end, loaded = await _load_free_list(cpu, pages.list)
    if first:
        structure = pages.mem_map + first // PAGE_SIZE * STRUCT_PAGE.size
        cpu.put(pages.list, _FREE_LIST.first, await cpu.get(structure, STRUCT_PAGE.next, after=loaded))
    elif fresh < end:
        first = fresh
        cpu.put(pages.list, _FREE_LIST.fresh, fresh + PAGE_SIZE)
    return first


@function()
async def put_page(cpu: Cpu, page: int, references: int = 1) -> None:
    """Give back references; the last one frees the page."""
    left = await atomic_sub_return(cpu, references, cpu.kernel.pages.refcount(page))
    if left == 0:
        await free_page(cpu, page)
    elif left < 0:
        raise RuntimeError(f"page {page:#x} was freed {-left} times too often")


@function()
async def free_page(cpu: Cpu, page: int) -> None:
    """Put a page without references back."""
    pages = cpu.kernel.pages
    structure = pages.mem_map + page // PAGE_SIZE * STRUCT_PAGE.size
    enabled = await spin_lock_irqsave(cpu, pages.lock)
    cpu.put(structure, STRUCT_PAGE.next, await cpu.get(pages.list, _FREE_LIST.first))
    cpu.put(pages.list, _FREE_LIST.first, page)
    spin_unlock_irqrestore(cpu, pages.lock, enabled)


async def _load_free_list(cpu: Cpu, address: int) -> tuple[int, int, int, int]:
    """First entry, never-used memory, its end; the handle of the load that gave them."""
    loaded = cpu.load_begin(address, _FREE_LIST_BYTES)
    first, fresh, end, _ = _FREE_LIST.unpack(await cpu.result(loaded))
    return first, fresh, end, loaded


def _init_free_list(cpu: Cpu, address: int, start: int, end: int) -> None:
    cpu.put(address, _FREE_LIST.first, 0)
    cpu.put(address, _FREE_LIST.fresh, start)
    cpu.put(address, _FREE_LIST.end, end)
