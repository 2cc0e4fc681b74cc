"""Hash maps: preallocated elements in lists that hang from buckets (``kernel/bpf/hashtab.c``).

Lookups take no lock; a list ends in a number that names its bucket, so that a reader notices when an element under its
feet moved to another list (``hlist_nulls``). Writers hold the bucket's lock.
"""

from errno import E2BIG, EEXIST, EINVAL, ENOENT

from sw.bpf.map.area import Area
from sw.bpf.map.base import BPF_MAP, KernelMap, copy, round_up, store_lines
from sw.bpf.map.jhash import jhash, jhash_rounds
from sw.bpf.maps import MapDefinition, UpdateFlag
from sw.core import LINE, Core, function
from sw.linux.cpu import local_irq_restore, local_irq_save
from sw.port import AtomicFunction
from sw.structs import Struct

__all__ = ["BUCKET", "HTAB", "HTAB_ELEM", "HashMap", "PerCpuHashMap"]

#: ``struct bpf_htab``: what lookups read of it.
HTAB = Struct(BPF_MAP.size + LINE, map=BPF_MAP.size, buckets=8, elems=8, n_buckets=4, elem_size=4, hashrnd=4)
#: ``struct bucket``.
BUCKET = Struct(head=8, raw_lock=4)
#: ``struct htab_elem`` up to its key; the value follows on 8 bytes. ``fnode`` links free elements.
HTAB_ELEM = Struct(48, next=8, fnode=8, lru_node=24, hash=4)
#: ``struct pcpu_freelist_head``: a line on each core.
FREELIST = Struct(LINE, first=8, lock=4)

_POINTER_BYTES = 8
#: Cycles between two looks at a lock that somebody holds: PAUSE on Broadwell (Intel's Optimization Reference Manual).
_PAUSE_CYCLES = 9
_SPIN_CYCLES = 1 << 20


async def _lock(core: Core, lock: int) -> None:
    while await core.atomic(lock, 4, AtomicFunction.COMPARE_EXCHANGE, 1, 0):
        await core.poll(lock, 4, 1, _SPIN_CYCLES, _PAUSE_CYCLES)


def _unlock(core: Core, lock: int) -> None:
    core.store(lock, 0, 4)


@function()
async def htab_map_hash(core: Core, htab: "HashMap", key: int) -> tuple[bytes, int]:
    """A key's bytes and hash."""
    core.execute("jhash_round", htab.hash_rounds)
    data = await core.load_bytes(key, htab.definition.key_size)
    return data, jhash(data, htab.seed)


async def _find(core: Core, htab: "HashMap", data: bytes, hash_: int) -> tuple[int, int]:
    """Element with a key, 0 if there is none, and what points to it or ends the list (``lookup_nulls_elem_raw``)."""
    size = htab.definition.key_size
    while True:
        link = htab.bucket(hash_)
        handle = core.load_begin(link, _POINTER_BYTES)
        element = await core.result(handle)
        while not element & 1:
            core.execute("lookup_nulls_elem")
            key = element + HTAB_ELEM.size
            found = await core.load(element + HTAB_ELEM.hash.offset, 4, after=handle)
            if found == hash_ and await core.load(key, size, after=handle) == htab.comparable(data):
                return element, link
            link = element
            handle = core.load_begin(link, _POINTER_BYTES, after=handle)
            element = await core.result(handle)
        if element == htab.nulls(hash_):
            return 0, link


@function()
async def htab_map_lookup_elem(core: Core, htab: "HashMap", key: int) -> int:
    """Element of a key, 0 if there is none."""
    data, hash_ = await htab_map_hash(core, htab, key)
    return (await _find(core, htab, data, hash_))[0]


@function()
async def htab_map_update_elem(core: Core, htab: "HashMap", key: int, value: int, flags: int) -> int:
    """Set a value: a new element in front of the list takes the old one's place."""
    if flags > UpdateFlag.EXIST:
        return -EINVAL
    data, hash_ = await htab_map_hash(core, htab, key)
    lock = htab.bucket(hash_) + BUCKET.raw_lock.offset
    enabled = local_irq_save(core)  # type: ignore[arg-type]  # needs of it what any core has
    await _lock(core, lock)
    result = await _update_locked(core, htab, data, hash_, value, flags)
    _unlock(core, lock)
    local_irq_restore(core, enabled)  # type: ignore[arg-type]
    return result


async def _update_locked(core: Core, htab: "HashMap", data: bytes, hash_: int, value: int, flags: int) -> int:
    old, _ = await _find(core, htab, data, hash_)
    if old and flags == UpdateFlag.NOEXIST:
        return -EEXIST
    if not old and flags == UpdateFlag.EXIST:
        return -ENOENT
    if old and htab.definition.is_percpu:
        await htab.write_value(core, old, value)
        return 0
    new = await htab.take_element(core, bool(old))
    if not new:
        return -E2BIG
    core.store(new + HTAB_ELEM.hash.offset, hash_, 4)
    core.store(new + HTAB_ELEM.size, data, len(data))
    await htab.write_value(core, new, value, fresh=True)
    head = htab.bucket(hash_)
    core.store(new, await core.load(head, _POINTER_BYTES), _POINTER_BYTES)
    core.store(head, new, _POINTER_BYTES)
    if old:  # what points to it may be the new element by now
        link = new
        while (following := await core.load(link, _POINTER_BYTES)) != old:
            link = following
        core.store(link, await core.load(old, _POINTER_BYTES), _POINTER_BYTES)
        htab.keep_extra(core, old)
    return 0


@function()
async def htab_map_delete_elem(core: Core, htab: "HashMap", key: int) -> int:
    """Take an element out and put it on this core's list of free ones."""
    data, hash_ = await htab_map_hash(core, htab, key)
    lock = htab.bucket(hash_) + BUCKET.raw_lock.offset
    enabled = local_irq_save(core)  # type: ignore[arg-type]
    await _lock(core, lock)
    element, link = await _find(core, htab, data, hash_)
    if element:
        core.store(link, await core.load(element, _POINTER_BYTES), _POINTER_BYTES)
        await htab.free_element(core, element)
    _unlock(core, lock)
    local_irq_restore(core, enabled)  # type: ignore[arg-type]
    return 0 if element else -ENOENT


class HashMap(KernelMap):
    """``BPF_MAP_TYPE_HASH``.

    Arguments:
        seed: what the hash begins with (``hashrnd``; random in a kernel).
    """

    head_bytes = HTAB.size

    def __init__(self, definition: MapDefinition, number: int, area: Area, seed: int = 0):
        self.seed = seed
        self.hash_rounds = jhash_rounds(definition.key_size)
        self.n_buckets = 1 << (definition.max_entries - 1).bit_length()
        self.value_offset = HTAB_ELEM.size + round_up(definition.key_size, 8)
        stored = _POINTER_BYTES if definition.is_percpu else round_up(definition.value_size, 8)
        self.elem_size = self.value_offset + stored
        super().__init__(definition, number, area)
        self.buckets = area.allocate(BUCKET.size * self.n_buckets, LINE)
        #: One more for each core, to have one at hand when a value is replaced in a full map.
        self.count = definition.max_entries + area.cores
        self.elems = area.allocate(self.elem_size * self.count, LINE)
        self.freelist = area.allocate_percpu(FREELIST.size, LINE)
        self.extra = area.allocate_percpu(_POINTER_BYTES)

    def body_bytes(self) -> int:
        """Nothing: buckets and elements lie elsewhere."""
        return 0

    def bucket(self, hash_: int) -> int:
        """Address of the bucket for a hash."""
        return self.buckets + (hash_ & (self.n_buckets - 1)) * BUCKET.size

    def nulls(self, hash_: int) -> int:
        """What ends the list of a hash's bucket."""
        return (hash_ & (self.n_buckets - 1)) << 1 | 1

    def comparable(self, data: bytes) -> int | bytes:
        """A key as a load gives it."""
        return int.from_bytes(data, "little") if len(data) <= 8 else data

    def element(self, index: int) -> int:
        """Address of an element."""
        return self.elems + index * self.elem_size

    async def init(self, core: Core) -> None:
        """Write the head, the ends of the lists, and a list of free elements for each core."""
        await super().init(core)
        for field, value in (
            (HTAB.buckets, self.buckets),
            (HTAB.elems, self.elems),
            (HTAB.n_buckets, self.n_buckets),
            (HTAB.elem_size, self.elem_size),
            (HTAB.hashrnd, self.seed),
        ):
            core.put(self.address, field, value)
        ends = b"".join(BUCKET.pack(head=self.nulls(index)) for index in range(self.n_buckets))
        store_lines(core, self.buckets, ends)
        cores = self.area.cores
        share = (self.definition.max_entries + cores - 1) // cores
        for number in range(cores):
            mine = range(min(number * share, self.count - cores), min((number + 1) * share, self.count - cores))
            link = self.area.on_core(self.freelist, number)
            for index in mine:
                core.store(link, self.element(index), _POINTER_BYTES)
                link = self.element(index) + HTAB_ELEM.fnode.offset
            core.store(link, 0, _POINTER_BYTES)
            core.store(self.area.on_core(self.extra, number), self.element(self.count - cores + number), _POINTER_BYTES)

    async def lookup(self, core: Core, key: int) -> int:
        """As :class:`KernelMap` says."""
        element = await self.lookup_element(core, key)
        return await self.value(core, element) if element else 0

    async def lookup_element(self, core: Core, key: int) -> int:
        """Element of a key, 0 if there is none."""
        return await htab_map_lookup_elem(core, self, key)

    async def update(self, core: Core, key: int, value: int, flags: int) -> int:
        """As :class:`KernelMap` says."""
        return await htab_map_update_elem(core, self, key, value, flags)

    async def delete(self, core: Core, key: int) -> int:
        """As :class:`KernelMap` says."""
        return await htab_map_delete_elem(core, self, key)

    async def value(self, core: Core, element: int) -> int:
        """Address of an element's value, this core's own in a per-CPU map."""
        return element + self.value_offset

    async def write_value(self, core: Core, element: int, value: int, fresh: bool = False) -> None:
        """Copy a value into an element.

        Arguments:
            fresh: the element is new.
        """
        await copy(core, element + self.value_offset, value, self.definition.value_size)

    # Free elements

    async def take_element(self, core: Core, replaces: bool) -> int:
        """A free element: the spare one if it takes the place of another, which becomes the spare then."""
        if replaces:
            return await core.load(self.area.on_core(self.extra, core.index), _POINTER_BYTES)
        for number in (core.index, *(n for n in range(self.area.cores) if n != core.index)):
            head = self.area.on_core(self.freelist, number)
            await _lock(core, head + FREELIST.lock.offset)
            first = await core.get(head, FREELIST.first)
            if first:
                core.put(head, FREELIST.first, await core.get(first, HTAB_ELEM.fnode))
            _unlock(core, head + FREELIST.lock.offset)
            if first:
                return first
        return 0

    def keep_extra(self, core: Core, element: int) -> None:
        """Make a replaced element the spare one."""
        core.store(self.area.on_core(self.extra, core.index), element, _POINTER_BYTES)

    async def free_element(self, core: Core, element: int) -> None:
        """Put an element on this core's list."""
        head = self.area.on_core(self.freelist, core.index)
        await _lock(core, head + FREELIST.lock.offset)
        core.put(element, HTAB_ELEM.fnode, await core.get(head, FREELIST.first))
        core.put(head, FREELIST.first, element)
        _unlock(core, head + FREELIST.lock.offset)


class PerCpuHashMap(HashMap):
    """``BPF_MAP_TYPE_PERCPU_HASH``: elements hold per-CPU pointers."""

    def __init__(self, definition: MapDefinition, number: int, area: Area, seed: int = 0):
        super().__init__(definition, number, area, seed)
        self.variables = [area.allocate_percpu(self.value_stride) for _ in range(self.count)]

    async def init(self, core: Core) -> None:
        """As :meth:`HashMap.init`, and the pointers."""
        await super().init(core)
        for index, variable in enumerate(self.variables):
            core.store(self.element(index) + self.value_offset, variable, _POINTER_BYTES)

    async def value(self, core: Core, element: int) -> int:
        """Address of this core's value."""
        pointer = await core.load(element + self.value_offset, _POINTER_BYTES)
        return self.area.on_core(pointer, core.index)

    async def write_value(self, core: Core, element: int, value: int, fresh: bool = False) -> None:
        """Copy a value to this core's place; in a new element the others' begin as zeros."""
        pointer = await core.load(element + self.value_offset, _POINTER_BYTES)
        for number in range(self.area.cores) if fresh else (core.index,):
            place = self.area.on_core(pointer, number)
            if number == core.index:
                await copy(core, place, value, self.definition.value_size)
            else:
                core.store(place, bytes(self.definition.value_size), self.definition.value_size)

    async def user_update(self, core: Core, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set the values of all cores (``bpf_percpu_hash_update``)."""
        await super().user_update(core, key, value, flags)
        element = await self.lookup_element(core, self.key_buffer)
        pointer = await core.load(element + self.value_offset, _POINTER_BYTES)
        for number in range(self.area.cores):
            part = value[number * self.value_stride :][: self.value_stride]
            core.store(self.area.on_core(pointer, number), part, self.value_stride)
