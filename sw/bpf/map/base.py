"""What all maps have in common: ``struct bpf_map``, and what programs and the bpf() system call do with them."""

from abc import ABC, abstractmethod
from errno import EINVAL, ENOENT, EOPNOTSUPP

from sw.bpf.errors import BpfError
from sw.bpf.map.area import Area
from sw.bpf.maps import MapDefinition
from sw.core import LINE, Core
from sw.structs import Struct

__all__ = ["BPF_MAP", "KernelMap", "copy", "round_up", "store_lines"]

#: ``struct bpf_map`` (``include/linux/bpf.h``): what the model's functions read of it.
BPF_MAP = Struct(256, ops=8, inner_map_meta=8, map_type=4, key_size=4, value_size=4, max_entries=4, map_flags=4, id=4)


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return (value + multiple - 1) // multiple * multiple


def store_lines(core: Core, address: int, data: bytes) -> None:
    """Write many bytes, a line at a time."""
    core.store(address, data, len(data))


async def copy(core: Core, to: int, source: int, size: int) -> None:
    """Copy bytes from one place to another (``memcpy``)."""
    core.store(to, await core.load_bytes(source, size), size)


class KernelMap(ABC):
    """A map.

    Programs name keys and values by address. The system call brings bytes: they are copied to a buffer of the kernel
    first, as there.

    Arguments:
        definition: checked already.
        number: the kernel's id of the map.
        area: where it gets its memory.
    """

    #: Bytes of the structure that begins with ``struct bpf_map``.
    head_bytes = BPF_MAP.size

    def __init__(self, definition: MapDefinition, number: int, area: Area):
        self.definition = definition
        self.number = number
        self.area = area
        self.value_stride = round_up(definition.value_size, 8)
        self.address = area.allocate(self.head_bytes + self.body_bytes(), LINE)
        self.key_buffer = area.allocate(round_up(definition.key_size, 8), 8)
        self.value_buffer = area.allocate(self.user_value_bytes, 8)

    @abstractmethod
    def body_bytes(self) -> int:
        """Bytes behind the head."""

    async def init(self, core: Core) -> None:
        """Write what the map begins with."""
        definition = self.definition
        head = BPF_MAP.pack(
            map_type=definition.type,
            key_size=definition.key_size,
            value_size=definition.value_size,
            max_entries=definition.max_entries,
            map_flags=definition.flags,
            id=self.number,
        )
        store_lines(core, self.address, head)

    # For programs: addresses, and 0 or a negative errno

    @abstractmethod
    async def lookup(self, core: Core, key: int) -> int:
        """Address of the value of the key at address ``key``, 0 if there is none."""

    @abstractmethod
    async def update(self, core: Core, key: int, value: int, flags: int) -> int:
        """Set a value; both are given by address."""

    @abstractmethod
    async def delete(self, core: Core, key: int) -> int:
        """Take an element out."""

    # For the system call: bytes, and errors raised

    @property
    def user_value_bytes(self) -> int:
        """Bytes of a value as user space sees it: of a per-CPU map, the values of all cores, on 8 bytes each."""
        return self.value_stride * self.area.cores if self.definition.is_percpu else self.definition.value_size

    async def user_lookup(self, core: Core, key: bytes) -> bytes:
        """The value of a key.

        Raises:
            BpfError: ENOENT.
        """
        value = await self.lookup(core, self._copy_key(core, key))
        if not value:
            raise BpfError(ENOENT, f"{self.name}: no such key")
        return await self._read(core, value)

    async def user_update(self, core: Core, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set a value.

        Raises:
            BpfError: as the kernel refuses it.
        """
        self._check_value(value)
        core.store(self.value_buffer, value, len(value))
        self._raise(await self.update(core, self._copy_key(core, key), self.value_buffer, flags), "update")

    async def user_delete(self, core: Core, key: bytes) -> None:
        """Take an element out.

        Raises:
            BpfError: as the kernel refuses it.
        """
        self._raise(await self.delete(core, self._copy_key(core, key)), "delete")

    @property
    def name(self) -> str:
        """For messages."""
        return f"map {self.definition.name!r} ({self.definition.type.name})"

    async def _read(self, core: Core, value: int) -> bytes:
        """The value at an address; of a per-CPU map, those of all cores."""
        if not self.definition.is_percpu:
            return await core.load_bytes(value, self.definition.value_size)
        first = value - core.index * self.area.percpu_stride
        places = [self.area.on_core(first, index) for index in range(self.area.cores)]
        return b"".join([await core.load_bytes(place, self.value_stride) for place in places])

    def _copy_key(self, core: Core, key: bytes) -> int:
        if len(key) != self.definition.key_size:
            raise BpfError(EINVAL, f"{self.name}: a key has {self.definition.key_size} bytes, not {len(key)}")
        core.store(self.key_buffer, key, len(key))
        return self.key_buffer

    def _check_value(self, value: bytes) -> None:
        if len(value) != self.user_value_bytes:
            raise BpfError(EINVAL, f"{self.name}: a value has {self.user_value_bytes} bytes, not {len(value)}")

    def _raise(self, result: int, what: str) -> None:
        if result < 0:
            raise BpfError(-result, f"{self.name}: {what} of a key is refused")

    def _unsupported(self, what: str) -> BpfError:
        return BpfError(EOPNOTSUPP, f"{self.name}: {what} is not supported for this type")
