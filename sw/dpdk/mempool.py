"""Pools of equal objects with a cache per core in front of a shared ring (lib/mempool, lib/ring)."""

from collections.abc import Sequence

from sw.core import LINE, AtomicFunction, function
from sw.linux.cpu import Cpu
from sw.structs import Struct

__all__ = ["Mempool", "rte_mempool_create", "rte_mempool_get_bulk", "rte_mempool_put_bulk"]

_POINTER = 8
#: ``struct rte_mempool_objhdr``, rounded up so that objects begin on a line.
_HEADER_BYTES = LINE

#: ``struct rte_mempool_cache``: behind the first line come the pointers.
_CACHE = Struct(LINE, capacity=4, flushthresh=4, len=4)
#: ``struct rte_ring``: producer and consumer each on a line of their own, then the pointers.
_RING = Struct(3 * LINE, capacity=4, mask=4, pad=56, prod_head=4, prod_tail=4, pad2=56, cons_head=4, cons_tail=4)

#: A cache is flushed when it holds 1.5 times its size (``CACHE_FLUSHTHRESH_MULTIPLIER``).
_FLUSH = 1.5


class Mempool:
    """Where a pool lies; nothing else of it is kept here.

    Arguments:
        memory: address of :meth:`bytes_needed` bytes for it.
        count: objects.
        object_size: bytes of an object, a multiple of a line.
        cache_size: pointers that the cache of the core in use holds before it is refilled no further.

    Raises:
        ValueError: for a cache that all objects would fit into, as DPDK refuses it.
    """

    def __init__(self, memory: int, count: int, object_size: int, cache_size: int):
        if count < 1:
            raise ValueError(f"a mempool has at least 1 object, not {count}")
        if cache_size * _FLUSH > count:
            raise ValueError(f"a mempool of {count} objects takes a cache of at most {int(count / _FLUSH)}")
        self.count = count
        self.object_size = object_size
        self.cache_size = cache_size
        self.flush_threshold = int(cache_size * _FLUSH)
        self.ring_size = 1 << count.bit_length()  # one slot of a ring stays empty
        self.cache = memory
        self.ring = memory + _cache_bytes(self.flush_threshold)
        self.objects = self.ring + _RING.size + self.ring_size * _POINTER

    @staticmethod
    def bytes_needed(count: int, object_size: int, cache_size: int) -> int:
        """Memory for a pool of that shape."""
        ring = _RING.size + (1 << count.bit_length()) * _POINTER
        return _cache_bytes(int(cache_size * _FLUSH)) + ring + count * (_HEADER_BYTES + object_size)

    def object(self, index: int) -> int:
        """Address of an object."""
        return self.objects + index * (_HEADER_BYTES + self.object_size) + _HEADER_BYTES

    def _slot(self, index: int) -> int:
        return self.ring + _RING.size + (index & self.ring_size - 1) * _POINTER

    def _cached(self, index: int) -> int:
        return self.cache + _CACHE.size + index * _POINTER


def _cache_bytes(flush_threshold: int) -> int:
    # A burst may go on top of what is just below the threshold.
    return _CACHE.size + -(-2 * flush_threshold * _POINTER // LINE) * LINE


@function()
async def rte_mempool_create(cpu: Cpu, pool: Mempool) -> None:
    """An empty cache, and every object in the ring."""
    cpu.store(pool.cache, _CACHE.pack(capacity=pool.cache_size, flushthresh=pool.flush_threshold), _CACHE.size)
    cpu.store(pool.ring, _RING.pack(capacity=pool.ring_size, mask=pool.ring_size - 1), _RING.size)
    for index in range(pool.count):
        cpu.store(pool._slot(index), pool.object(index), _POINTER)
        if index % 64 == 63:
            await cpu.drain()
    cpu.put(pool.ring, _RING.prod_head, pool.count)
    cpu.put(pool.ring, _RING.prod_tail, pool.count)


@function()
async def rte_mempool_get_bulk(cpu: Cpu, pool: Mempool, to: int, count: int) -> Sequence[int]:
    """Take ``count`` objects, write their addresses to the array at ``to``, and return them; none if there are fewer.

    From the cache, the last put first; when it has too few, it is filled from the ring first.
    """
    length = await cpu.get(pool.cache, _CACHE.len)
    if length < count:
        wanted = count + pool.cache_size - length
        taken = await rte_ring_mc_dequeue_bulk(cpu, pool, wanted)
        if not taken:
            return ()
        _write_pointers(cpu, pool._cached(length), taken)
        length += wanted
    first = pool._cached(length - count)
    pointers = _pointers(await cpu.load_bytes(first, count * _POINTER))[::-1]
    _write_pointers(cpu, to, pointers)
    cpu.put(pool.cache, _CACHE.len, length - count)
    return pointers


@function()
async def rte_mempool_put_bulk(cpu: Cpu, pool: Mempool, pointers: Sequence[int]) -> None:
    """Give objects back, to the cache; when that is full, all it holds goes to the ring first."""
    length = await cpu.get(pool.cache, _CACHE.len)
    if length + len(pointers) > pool.flush_threshold:
        cached = _pointers(await cpu.load_bytes(pool._cached(0), length * _POINTER))
        await rte_ring_mp_enqueue_bulk(cpu, pool, cached)
        length = 0
    _write_pointers(cpu, pool._cached(length), pointers)
    cpu.put(pool.cache, _CACHE.len, length + len(pointers))


@function()
async def rte_ring_mc_dequeue_bulk(cpu: Cpu, pool: Mempool, count: int) -> Sequence[int]:
    """Take ``count`` pointers from the ring, or none: move the consumers' head by CMPXCHG, copy, move the tail."""
    while True:
        head, tail = await cpu.load_all(
            (pool.ring + _RING.cons_head.offset, 4), (pool.ring + _RING.prod_tail.offset, 4)
        )
        if tail - head & 0xFFFF_FFFF < count:
            return ()
        if await _move_head(cpu, pool.ring + _RING.cons_head.offset, head, head + count):
            break
    pointers: list[int] = []
    for start, length in _runs(pool, head, count):
        pointers += _pointers(await cpu.load_bytes(pool._slot(start), length * _POINTER))
    cpu.put(pool.ring, _RING.cons_tail, head + count & 0xFFFF_FFFF)
    return pointers


@function()
async def rte_ring_mp_enqueue_bulk(cpu: Cpu, pool: Mempool, pointers: Sequence[int]) -> None:
    """Append pointers to the ring, which has room for all there are."""
    while True:
        head = await cpu.get(pool.ring, _RING.prod_head)
        if await _move_head(cpu, pool.ring + _RING.prod_head.offset, head, head + len(pointers)):
            break
    done = 0
    for start, length in _runs(pool, head, len(pointers)):
        _write_pointers(cpu, pool._slot(start), pointers[done : done + length])
        done += length
    cpu.put(pool.ring, _RING.prod_tail, head + len(pointers) & 0xFFFF_FFFF)


async def _move_head(cpu: Cpu, address: int, head: int, to: int) -> bool:
    exchange = AtomicFunction.COMPARE_EXCHANGE
    return await cpu.atomic(address, 4, exchange, to & 0xFFFF_FFFF, head) == head


def _runs(pool: Mempool, start: int, count: int) -> list[tuple[int, int]]:
    """Start and length of each part of the ring that does not wrap around."""
    first = min(count, pool.ring_size - (start & pool.ring_size - 1))
    return [(start, first)] + ([(start + first, count - first)] if count > first else [])


def _pointers(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + _POINTER], "little") for i in range(0, len(data), _POINTER)]


def _write_pointers(cpu: Cpu, to: int, pointers: Sequence[int]) -> None:
    cpu.store(to, b"".join(pointer.to_bytes(_POINTER, "little") for pointer in pointers), len(pointers) * _POINTER)
