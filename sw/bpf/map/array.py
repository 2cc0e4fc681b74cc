"""Array maps: one allocation, a value per index (``kernel/bpf/arraymap.c``)."""

from errno import E2BIG, EEXIST, EINVAL

from sw.bpf.map.area import Area
from sw.bpf.map.base import BPF_MAP, KernelMap, copy, store_lines
from sw.bpf.maps import MapDefinition, UpdateFlag
from sw.core import Core, function
from sw.structs import Struct

__all__ = ["BPF_ARRAY", "ArrayMap", "PerCpuArrayMap"]

#: ``struct bpf_array``: behind it the values, or a per-CPU pointer for each.
BPF_ARRAY = Struct(BPF_MAP.size + 16, map=BPF_MAP.size, elem_size=4, index_mask=4, aux=8)
_KEY_BYTES = 4
_POINTER_BYTES = 8


@function()
async def array_map_lookup_elem(core: Core, array: "ArrayMap", key: int) -> int:
    """Address of a value, 0 if the index is too large."""
    index = await core.load(key, _KEY_BYTES)
    return array.value(index) if index < array.definition.max_entries else 0


@function()
async def array_map_update_elem(core: Core, array: "ArrayMap", key: int, value: int, flags: int) -> int:
    """Set a value, this core's own in a per-CPU array."""
    index = await core.load(key, _KEY_BYTES)
    if flags > UpdateFlag.EXIST:
        return -EINVAL
    if index >= array.definition.max_entries:
        return -E2BIG
    if flags == UpdateFlag.NOEXIST:
        return -EEXIST
    await copy(core, await array.place(core, index), value, array.definition.value_size)
    return 0


@function()
async def percpu_array_map_lookup_elem(core: Core, array: "PerCpuArrayMap", key: int) -> int:
    """Address of this core's value, 0 if the index is too large."""
    index = await core.load(key, _KEY_BYTES)
    return await array.place(core, index) if index < array.definition.max_entries else 0


class ArrayMap(KernelMap):
    """``BPF_MAP_TYPE_ARRAY``."""

    head_bytes = BPF_ARRAY.size

    def body_bytes(self) -> int:
        """Of the values."""
        return self.value_stride * self.definition.max_entries

    def value(self, index: int) -> int:
        """Address of the value with an index."""
        return self.address + BPF_ARRAY.size + index * self.value_stride

    async def place(self, core: Core, index: int) -> int:
        """Address of what a core may write at an index."""
        return self.value(index)

    async def init(self, core: Core) -> None:
        """Write the head; values begin as zeros, as memory does."""
        await super().init(core)
        core.put(self.address, BPF_ARRAY.elem_size, self.value_stride)

    async def lookup(self, core: Core, key: int) -> int:
        """As :class:`KernelMap` says."""
        return await array_map_lookup_elem(core, self, key)

    async def update(self, core: Core, key: int, value: int, flags: int) -> int:
        """As :class:`KernelMap` says."""
        return await array_map_update_elem(core, self, key, value, flags)

    async def delete(self, core: Core, key: int) -> int:
        """Refused: an array is always full."""
        return -EINVAL


class PerCpuArrayMap(ArrayMap):
    """``BPF_MAP_TYPE_PERCPU_ARRAY``: an array of per-CPU pointers."""

    def __init__(self, definition: MapDefinition, number: int, area: Area):
        super().__init__(definition, number, area)
        self.variables = [area.allocate_percpu(self.value_stride) for _ in range(definition.max_entries)]

    def body_bytes(self) -> int:
        """Of the pointers."""
        return _POINTER_BYTES * self.definition.max_entries

    def pointer(self, index: int) -> int:
        """Address of the per-CPU pointer with an index."""
        return self.address + BPF_ARRAY.size + index * _POINTER_BYTES

    async def place(self, core: Core, index: int) -> int:
        """Address of this core's value."""
        return self.area.on_core(await core.load(self.pointer(index), _POINTER_BYTES), core.index)

    async def init(self, core: Core) -> None:
        """Write the head and the pointers."""
        await super().init(core)
        pointers = b"".join(variable.to_bytes(_POINTER_BYTES, "little") for variable in self.variables)
        store_lines(core, self.pointer(0), pointers)

    async def lookup(self, core: Core, key: int) -> int:
        """As :class:`KernelMap` says."""
        return await percpu_array_map_lookup_elem(core, self, key)

    async def user_update(self, core: Core, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set the values of all cores (``bpf_percpu_array_update``)."""
        self._check_value(value)
        index = int.from_bytes(key, "little")
        address = self._copy_key(core, key)
        if index < self.definition.max_entries and flags in (UpdateFlag.ANY, UpdateFlag.EXIST):
            variable = await core.load(self.pointer(index), _POINTER_BYTES)
            for number in range(self.area.cores):
                part = value[number * self.value_stride :][: self.value_stride]
                core.store(self.area.on_core(variable, number), part, self.value_stride)
        else:
            self._raise(await self.update(core, address, self.value_buffer, flags), "update")
