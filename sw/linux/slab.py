"""Slabs (mm/slub.c): fixed slots, lists of free ones for each core, and a shared list of chains behind a lock.

A core takes from and gives to its own list with interrupts off, without a lock. Slots that are freed on another core
than they were taken on go round in chains of a slab's size through the shared list.
"""

from sw.core import LINE, function
from sw.linux.cpu import Cpu, local_irq_restore, local_irq_save
from sw.linux.mm import PAGE_SIZE, MemBlock
from sw.linux.spinlock import SPINLOCK_BYTES, raw_spin_lock, raw_spin_unlock
from sw.structs import Struct

__all__ = ["KmemCache", "kmem_cache_alloc", "kmem_cache_free"]

#: A free slot: the next of its list; in the first of a chain, the next chain.
_OBJECT = Struct(next=8, next_chain=8)

#: ``struct kmem_cache_cpu``: a list of ``count`` free slots, a whole chain beside it (0: none), never-used slots.
_KMEM_CACHE_CPU = Struct(LINE, freelist=8, partial=8, fresh=8, end=8, count=4)
#: ``struct kmem_cache_node``: what all cores share.
_KMEM_CACHE_NODE = Struct(LINE, partial=8, fresh=8, end=8, list_lock=SPINLOCK_BYTES)


class KmemCache:
    """Fixed slots of one size.

    Arguments:
        name: for people.
        object_size: bytes of a slot.
        count: slots that can always be in use at once, whatever the cores keep on their lists.
        cores: number of cores.
    """

    def __init__(self, memblock: MemBlock, name: str, object_size: int, count: int, cores: int):
        self.name = name
        self.object_size = object_size
        self.chain = max(1, PAGE_SIZE // object_size)  #: slots of a chain, and of a slab
        # Each core may keep a full list, a chain beside it and never-used slots that others lack.
        self.count = count + cores * 3 * self.chain
        self.node = memblock.allocate(_KMEM_CACHE_NODE.size)
        self._cpu_slabs = memblock.allocate(_KMEM_CACHE_CPU.size * cores)
        self.slots = memblock.allocate(object_size * self.count)

    def cpu_slab(self, core: int) -> int:
        """Address of the lists of ``core``."""
        return self._cpu_slabs + core * _KMEM_CACHE_CPU.size

    def init(self, cpu: Cpu) -> None:
        """Make every slot free; the memory of the lists is zero."""
        cpu.put(self.node, _KMEM_CACHE_NODE.fresh, self.slots)
        cpu.put(self.node, _KMEM_CACHE_NODE.end, self.slots + self.object_size * self.count)


@function()
async def kmem_cache_alloc(cpu: Cpu, cache: KmemCache) -> int:
    """A slot, or 0 when there is none."""
    own = cache.cpu_slab(cpu.index)
    enabled = local_irq_save(cpu)
    loaded = cpu.load_begin(own, _KMEM_CACHE_CPU.size)
    slot, partial, fresh, end, count = _KMEM_CACHE_CPU.unpack(await cpu.result(loaded))
    if slot:
        cpu.put(own, _KMEM_CACHE_CPU.freelist, await cpu.get(slot, _OBJECT.next, after=loaded))
        cpu.put(own, _KMEM_CACHE_CPU.count, count - 1)
    elif fresh < end:
        slot = fresh
        cpu.put(own, _KMEM_CACHE_CPU.fresh, fresh + cache.object_size)
    else:
        slot = await slab_alloc(cpu, cache, own, partial, loaded)
    local_irq_restore(cpu, enabled)
    return slot


@function()
async def slab_alloc(cpu: Cpu, cache: KmemCache, own: int, partial: int, after: int) -> int:
    """The slow path: take the chain ``partial`` that this core keeps, known since load ``after``, else a shared one.

    Returns a slot, or 0 when there is none.
    """
    node = cache.node
    if partial:
        cpu.put(own, _KMEM_CACHE_CPU.partial, 0)
        chain = partial
    else:
        await raw_spin_lock(cpu, node + _KMEM_CACHE_NODE.list_lock.offset)
        after = cpu.load_begin(node, _KMEM_CACHE_NODE.size)
        chain, fresh, end, _ = _KMEM_CACHE_NODE.unpack(await cpu.result(after))
        if chain:
            cpu.put(node, _KMEM_CACHE_NODE.partial, await cpu.get(chain, _OBJECT.next_chain, after=after))
        elif fresh < end:
            taken = min(fresh + cache.chain * cache.object_size, end)
            cpu.put(node, _KMEM_CACHE_NODE.fresh, taken)
            cpu.put(own, _KMEM_CACHE_CPU.fresh, fresh + cache.object_size)
            cpu.put(own, _KMEM_CACHE_CPU.end, taken)
        raw_spin_unlock(cpu, node + _KMEM_CACHE_NODE.list_lock.offset)
        if not chain:
            return fresh if fresh < end else 0
    cpu.put(own, _KMEM_CACHE_CPU.freelist, await cpu.get(chain, _OBJECT.next, after=after))
    cpu.put(own, _KMEM_CACHE_CPU.count, cache.chain - 1)
    return chain


@function()
async def kmem_cache_free(cpu: Cpu, cache: KmemCache, slot: int) -> None:
    """Give a slot back, on whatever core."""
    own = cache.cpu_slab(cpu.index)
    enabled = local_irq_save(cpu)
    first, count, partial = await cpu.get_all(
        own, _KMEM_CACHE_CPU.freelist, _KMEM_CACHE_CPU.count, _KMEM_CACHE_CPU.partial
    )
    if count == cache.chain:
        await put_cpu_partial(cpu, cache, own, first, partial)
        first = count = 0
    cpu.put(slot, _OBJECT.next, first)
    cpu.put(own, _KMEM_CACHE_CPU.freelist, slot)
    cpu.put(own, _KMEM_CACHE_CPU.count, count + 1)
    local_irq_restore(cpu, enabled)


@function()
async def put_cpu_partial(cpu: Cpu, cache: KmemCache, own: int, chain: int, partial: int) -> None:
    """Keep the full ``chain`` beside the list; the one that was there, ``partial``, goes to the shared list."""
    if partial:
        node = cache.node
        await raw_spin_lock(cpu, node + _KMEM_CACHE_NODE.list_lock.offset)
        cpu.put(partial, _OBJECT.next_chain, await cpu.get(node, _KMEM_CACHE_NODE.partial))
        cpu.put(node, _KMEM_CACHE_NODE.partial, partial)
        raw_spin_unlock(cpu, node + _KMEM_CACHE_NODE.list_lock.offset)
    cpu.put(own, _KMEM_CACHE_CPU.partial, chain)
