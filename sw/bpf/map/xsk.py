"""XSKMAP: sockets of AF_XDP by index, for ``bpf_redirect_map`` (``net/xdp/xskmap.c``)."""

from collections.abc import Callable
from errno import E2BIG, EBADF, EEXIST, EINVAL, ENOENT

from sw.bpf.errors import BpfError
from sw.bpf.map.area import Area
from sw.bpf.map.base import BPF_MAP, KernelMap
from sw.bpf.maps import MapDefinition, UpdateFlag
from sw.core import Core, function
from sw.structs import Struct

__all__ = ["XSK_MAP", "FindSocket", "XskMap"]

#: ``struct xsk_map``: behind it a pointer for each index.
XSK_MAP = Struct(BPF_MAP.size + 16, map=BPF_MAP.size, lock=4, count=8)
_POINTER_BYTES = 8

#: Address of the ``struct xdp_sock`` of a file descriptor; None if it is no such socket.
FindSocket = Callable[[int], int | None]


@function()
async def xsk_map_lookup_elem(core: Core, xsks: "XskMap", index: int) -> int:
    """Address of the socket at an index, 0 if there is none (``__xsk_map_lookup_elem``)."""
    return await core.load(xsks.slot(index), _POINTER_BYTES) if index < xsks.definition.max_entries else 0


class XskMap(KernelMap):
    """``BPF_MAP_TYPE_XSKMAP``.

    Arguments:
        find_socket: what a file descriptor names.
    """

    head_bytes = XSK_MAP.size

    def __init__(self, definition: MapDefinition, number: int, area: Area, find_socket: FindSocket):
        super().__init__(definition, number, area)
        self.find_socket = find_socket

    def body_bytes(self) -> int:
        """Of the pointers."""
        return _POINTER_BYTES * self.definition.max_entries

    def slot(self, index: int) -> int:
        """Address of the pointer with an index."""
        return self.address + XSK_MAP.size + index * _POINTER_BYTES

    async def socket(self, core: Core, index: int) -> int:
        """Address of the socket at an index, 0 if there is none."""
        return await xsk_map_lookup_elem(core, self, index)

    async def lookup(self, core: Core, key: int) -> int:
        """Address of the socket of a key."""
        return await self.socket(core, await core.load(key, self.definition.key_size))

    async def update(self, core: Core, key: int, value: int, flags: int) -> int:
        """Refused to programs: they have no file descriptors."""
        return -EINVAL

    async def delete(self, core: Core, key: int) -> int:
        """Take a socket out."""
        index = await core.load(key, self.definition.key_size)
        if index >= self.definition.max_entries:
            return -EINVAL
        core.store(self.slot(index), 0, _POINTER_BYTES)
        return 0

    async def user_lookup(self, core: Core, key: bytes) -> bytes:
        """Refused: sockets are not told."""
        raise self._unsupported("a lookup by user space")

    async def user_update(self, core: Core, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set a socket: the value is its file descriptor."""
        self._check_value(value)
        self._copy_key(core, key)
        index, fd = int.from_bytes(key, "little"), int.from_bytes(value, "little")
        if flags > UpdateFlag.EXIST:
            raise BpfError(EINVAL, f"{self.name}: flags = {flags} must be at most {UpdateFlag.EXIST}")
        if index >= self.definition.max_entries:
            raise BpfError(E2BIG, f"{self.name}: index {index} must be below {self.definition.max_entries}")
        socket = self.find_socket(fd)
        if socket is None:
            raise BpfError(EBADF, f"{self.name}: file descriptor {fd} is not an AF_XDP socket")
        old = await core.load(self.slot(index), _POINTER_BYTES)
        if old and flags == UpdateFlag.NOEXIST:
            raise BpfError(EEXIST, f"{self.name}: there is a socket at index {index}")
        if not old and flags == UpdateFlag.EXIST:
            raise BpfError(ENOENT, f"{self.name}: there is no socket at index {index}")
        core.store(self.slot(index), socket, _POINTER_BYTES)
