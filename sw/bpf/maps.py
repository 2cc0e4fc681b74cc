"""What a map is, before memory: its type, sizes and limits, checked as ``BPF_MAP_CREATE`` checks them.

Names and numbers: ``enum bpf_map_type`` and ``union bpf_attr`` in ``include/uapi/linux/bpf.h``.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from errno import E2BIG, EINVAL

from sw.bpf.errors import BpfError

__all__ = ["OBJ_NAME_LEN", "PERCPU_MAPS", "MapDefinition", "MapFlag", "MapType", "UpdateFlag"]

#: Bytes of an object's name, the terminating zero included (``BPF_OBJ_NAME_LEN``).
OBJ_NAME_LEN = 16

#: Largest value of an array or hash map (``KMALLOC_MAX_SIZE``), and of a per-CPU one (``PCPU_MIN_UNIT_SIZE``).
_KMALLOC_MAX_SIZE = 4 << 20
_PCPU_MIN_UNIT_SIZE = 32 << 10
_MAX_BPF_STACK = 512


class MapType(IntEnum):
    """The kinds of map that the model has; the number is the kernel's."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    XSKMAP = 17


class MapFlag(IntFlag):
    """``map_flags``."""

    NO_PREALLOC = 1 << 0  #: refused: the model's hash maps are preallocated
    RDONLY = 1 << 3  #: user space cannot write
    WRONLY = 1 << 4  #: user space cannot read
    RDONLY_PROG = 1 << 7  #: programs cannot write
    WRONLY_PROG = 1 << 8  #: programs cannot read
    MMAPABLE = 1 << 10


class UpdateFlag(IntEnum):
    """Flags of an update."""

    ANY = 0  #: create or change
    NOEXIST = 1  #: create only
    EXIST = 2  #: change only


#: Types with one value per core.
PERCPU_MAPS = frozenset({MapType.PERCPU_ARRAY, MapType.PERCPU_HASH})
_ARRAYS = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.XSKMAP})
_FLAGS = {
    MapType.ARRAY: MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG | MapFlag.MMAPABLE,
    MapType.PERCPU_ARRAY: MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG,
    MapType.HASH: MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG,
    MapType.PERCPU_HASH: MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG,
    MapType.XSKMAP: MapFlag.RDONLY | MapFlag.WRONLY,
}


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """What ``BPF_MAP_CREATE`` is told."""

    type: MapType
    key_size: int  #: bytes
    value_size: int  #: bytes
    max_entries: int
    flags: int = 0  #: of :class:`MapFlag`
    name: str = ""

    @property
    def is_array(self) -> bool:
        """Whether its keys are indices below ``max_entries``."""
        return self.type in _ARRAYS

    @property
    def is_percpu(self) -> bool:
        """Whether each core has a value of its own."""
        return self.type in PERCPU_MAPS

    def check(self) -> None:
        """Refuse what the kernel's ``map_alloc_check`` of the type refuses.

        Raises:
            BpfError: EINVAL or E2BIG.
        """
        where = f"map {self.name!r} ({self.type.name})"
        if len(self.name.encode()) >= OBJ_NAME_LEN:
            raise BpfError(EINVAL, f"{where}: the name has more than {OBJ_NAME_LEN - 1} bytes")
        if not 1 <= self.max_entries < 1 << 32:
            raise BpfError(EINVAL, f"{where}: max_entries = {self.max_entries} must be at least 1")
        if stray := self.flags & ~_FLAGS[self.type]:
            raise BpfError(EINVAL, f"{where}: map_flags {stray:#x} are not valid for this type")
        if self.flags & MapFlag.RDONLY_PROG and self.flags & MapFlag.WRONLY_PROG:
            raise BpfError(EINVAL, f"{where}: RDONLY_PROG and WRONLY_PROG exclude each other")
        if self.flags & MapFlag.RDONLY and self.flags & MapFlag.WRONLY:
            raise BpfError(EINVAL, f"{where}: RDONLY and WRONLY exclude each other")
        if self.is_array and self.key_size != 4:
            raise BpfError(EINVAL, f"{where}: key_size = {self.key_size} must be 4")
        if self.type is MapType.XSKMAP and self.value_size != 4:
            raise BpfError(EINVAL, f"{where}: value_size = {self.value_size} must be 4")
        if self.key_size < 1 or self.value_size < 1:
            raise BpfError(
                EINVAL, f"{where}: key_size = {self.key_size} and value_size = {self.value_size} must be positive"
            )
        if self.key_size > _MAX_BPF_STACK:
            raise BpfError(
                E2BIG, f"{where}: key_size = {self.key_size} is more than the stack's {_MAX_BPF_STACK} bytes"
            )
        limit = _PCPU_MIN_UNIT_SIZE if self.is_percpu else _KMALLOC_MAX_SIZE
        if (self.value_size + 7) // 8 * 8 > limit:
            raise BpfError(E2BIG, f"{where}: value_size = {self.value_size} is more than {limit} bytes")
