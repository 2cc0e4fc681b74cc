"""C structures in modelled memory: names for offsets and sizes."""

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

__all__ = ["Field", "Struct"]


class Field(NamedTuple):
    """Where a member lies in its structure."""

    offset: int  #: bytes from the start
    size: int  #: bytes

    def at(self, base: int) -> tuple[int, int]:
        """Address and size of the member in the structure at ``base``."""
        return base + self.offset, self.size

    def of(self, data: bytes) -> int:
        """The member's value (little-endian) in the bytes of a whole structure."""
        return int.from_bytes(data[self.offset : self.offset + self.size], "little")


class Struct:
    """A structure with members of 1, 2, 4 or 8 bytes, or byte arrays, laid out as C does.

    Arguments:
        size: bytes of the whole, at least what the members take; default: that, rounded up to 8.
        members: name and size in bytes, in order. Sizes 2, 4 and 8 are aligned to
            themselves, their multiples of 8 to 8, all others not at all.

    Each member is an attribute, a :class:`Field`.

    Raises:
        ValueError: if ``size`` is too small for the members.
    """

    def __init__(self, size: int | None = None, /, **members: int):
        offset = 0
        self.fields: dict[str, Field] = {}
        for name, length in members.items():
            alignment = length if length in (1, 2, 4, 8) else 1 if length % 8 else 8
            offset = (offset + alignment - 1) // alignment * alignment
            self.fields[name] = Field(offset, length)
            offset += length
        self.size = (offset + 7) // 8 * 8 if size is None else size
        if offset > self.size:
            raise ValueError(f"the members take {offset} bytes, more than the structure's {self.size}")
        self.__dict__.update(self.fields)
        self._shifts = {name: (8 * offset, 8 * length) for name, (offset, length) in self.fields.items()}
        self._unpack = struct.Struct(_format(self.fields)).unpack_from

    if TYPE_CHECKING:  # at run time it would make every access to a member slow

        def __getattr__(self, name: str) -> Field: ...

    def unpack(self, contents: bytes) -> tuple[Any, ...]:
        """Every member, in order: integers, and bytes for arrays. What lies behind the last one need not be there."""
        return self._unpack(contents)

    def pack(self, **values: int) -> bytes:
        """The structure's bytes with the given members set and all others zero.

        Raises:
            OverflowError: if a value does not fit its member.
        """
        total = 0
        shifts = self._shifts
        for name, value in values.items():
            shift, bits = shifts[name]
            if value >> bits:
                raise OverflowError(f"{name} = {value} does not fit {bits // 8} bytes")
            total |= value << shift
        return total.to_bytes(self.size, "little")


#: Integers of so many bytes, as the module ``struct`` calls them.
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _format(fields: dict[str, Field]) -> str:
    """The structure as the module ``struct`` describes it."""
    format_, end = "<", 0
    for offset, length in fields.values():
        format_ += f"{offset - end}x{_CODES.get(length, f'{length}s')}"
        end = offset + length
    return format_
