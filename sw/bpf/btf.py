"""The BPF Type Format: what an object file says about its types, as far as a loader needs it.

Source: Documentation/bpf/btf.rst of the kernel. ``.BTF`` has the types and strings, ``.BTF.ext`` the source lines.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from sw.bpf.errors import BpfError, LibbpfErrno
from sw.bpf.instruction import SLOT_BYTES
from sw.bpf.program import LineInfo

__all__ = ["Btf", "BtfKind", "BtfMember", "BtfType", "read_core_relocations", "read_lines"]

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
_EXT_HEADER = struct.Struct("<HBBIIIIIII")  # ..., func_info, line_info, core_relo: offset and length each
_EXT_HEADER_LEAST = 24
_TYPE = struct.Struct("<III")  # name_off, info, size or type
_WORD = struct.Struct("<I")
_MEMBER = struct.Struct("<III")
_LINE_INFO = struct.Struct("<IIII")
_MAX_DEPTH = 32
_POINTER_BYTES = 8


class BtfKind(IntEnum):
    """Bits 28:24 of ``info``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: Bytes behind a type's header: for the type, and for each of its ``vlen`` parts.
_TRAILERS = {
    BtfKind.INT: (4, 0),
    BtfKind.ARRAY: (12, 0),
    BtfKind.STRUCT: (0, 12),
    BtfKind.UNION: (0, 12),
    BtfKind.ENUM: (0, 8),
    BtfKind.FUNC_PROTO: (0, 8),
    BtfKind.VAR: (4, 0),
    BtfKind.DATASEC: (0, 12),
    BtfKind.DECL_TAG: (4, 0),
    BtfKind.ENUM64: (0, 12),
}
_MODIFIERS = {BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG}
_SIZED = {BtfKind.INT, BtfKind.STRUCT, BtfKind.UNION, BtfKind.ENUM, BtfKind.FLOAT, BtfKind.DATASEC, BtfKind.ENUM64}


class BtfMember(NamedTuple):
    """A member of a structure, or a variable of a section (whose ``offset`` is in bytes)."""

    name: str
    type: int
    offset: int


class BtfType(NamedTuple):
    """One type."""

    kind: BtfKind
    name: str
    size_or_type: int
    trailer: bytes
    parts: int  #: how many members, variables, …


class Btf:
    """The section ``.BTF``.

    Raises:
        BpfError: FORMAT, with the offset of what is wrong.
    """

    def __init__(self, data: bytes):
        types, self._strings = _sections(data)
        self.types = [BtfType(BtfKind.VOID, "", 0, b"", 0), *self._read(types)]

    def string(self, offset: int) -> str:
        """The string at that offset."""
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise _wrong(f"no string at offset {offset} of {len(self._strings)}")
        return self._strings[offset:end].decode(errors="replace")

    def type(self, number: int) -> BtfType:
        """A type by number."""
        if number >= len(self.types):
            raise _wrong(f"type {number} is named, but there are {len(self.types)}")
        return self.types[number]

    def resolve(self, number: int) -> BtfType:
        """A type with typedefs and qualifiers taken off."""
        for _ in range(_MAX_DEPTH):
            found = self.type(number)
            if found.kind not in _MODIFIERS:
                return found
            number = found.size_or_type
        raise _wrong(f"type {number} leads through more than {_MAX_DEPTH} typedefs")

    def size(self, number: int) -> int:
        """Bytes of a type."""
        count = 1
        for _ in range(_MAX_DEPTH):
            found = self.resolve(number)
            if found.kind is BtfKind.PTR:
                return count * _POINTER_BYTES
            if found.kind in _SIZED:
                return count * found.size_or_type
            if found.kind is not BtfKind.ARRAY:
                raise _wrong(f"a {found.kind.name} has no size")
            number, _, elements = _MEMBER.unpack(found.trailer)
            count *= elements
        raise _wrong(f"type {number} is an array of more than {_MAX_DEPTH} dimensions")

    def elements(self, of: BtfType) -> int:
        """Number of elements of an array."""
        return _MEMBER.unpack(of.trailer)[2]

    def members(self, of: BtfType) -> list[BtfMember]:
        """Members of a structure or union."""
        return [BtfMember(self.string(name), kind, offset) for name, kind, offset in _MEMBER.iter_unpack(of.trailer)]

    def variables(self, section: str) -> list[BtfMember]:
        """Variables of a section of data, in order, with their types."""
        for datasec in self.types:
            if datasec.kind is BtfKind.DATASEC and datasec.name == section:
                found = [(self.type(number), offset) for number, offset, _ in _MEMBER.iter_unpack(datasec.trailer)]
                return [BtfMember(var.name, var.size_or_type, offset) for var, offset in found]
        return []

    def _read(self, data: bytes) -> Iterator[BtfType]:
        position = 0
        while position < len(data):
            name, info, size_or_type = _unpack(_TYPE, data, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if kind not in BtfKind.__members__.values() or kind == BtfKind.VOID:
                raise _wrong(f"type of kind {kind} at offset {position}; valid: 1 to {max(BtfKind)}")
            fixed, each = _TRAILERS.get(BtfKind(kind), (0, 0))
            start = position + _TYPE.size
            position = start + fixed + each * count
            if position > len(data):
                raise _wrong(f"the type at offset {start - _TYPE.size} ends behind the section's {len(data)} bytes")
            yield BtfType(BtfKind(kind), self.string(name), size_or_type, data[start:position], count)


def read_lines(data: bytes, btf: Btf, section: str) -> dict[int, LineInfo]:
    """Source lines of a section's slots, from ``.BTF.ext``."""
    header = _ext_header(data)
    lines = {}
    for name, record in _records(data, btf, header[3], header[6], header[7]):
        if name == section:
            offset, file, text, place = _unpack(_LINE_INFO, record, 0)
            lines[offset // SLOT_BYTES] = LineInfo(
                btf.string(file), place >> 10, place & 0x3FF, btf.string(text).strip()
            )
    return lines


def read_core_relocations(data: bytes, btf: Btf, section: str) -> list[int]:
    """Slots of a section whose instructions wait for the running kernel's types (CO-RE), from ``.BTF.ext``."""
    header = _ext_header(data)
    records = _records(data, btf, header[3], header[8], header[9])
    return [_unpack(_WORD, record, 0)[0] // SLOT_BYTES for name, record in records if name == section]


def _ext_header(data: bytes) -> tuple[int, ...]:
    length = _unpack(_WORD, data, 4)[0]
    if _unpack(_WORD, data, 0)[0] & 0xFFFF != _MAGIC or length < _EXT_HEADER_LEAST:
        raise _wrong("the header of .BTF.ext is damaged")
    return _EXT_HEADER.unpack(data[: min(length, len(data))].ljust(_EXT_HEADER.size, b"\0")[: _EXT_HEADER.size])


def _records(data: bytes, btf: Btf, base: int, offset: int, length: int) -> Iterator[tuple[str, bytes]]:
    """Name of the section and bytes of each record of one kind."""
    if not length:
        return
    position, end = base + offset, base + offset + length
    (record_bytes,) = _unpack(_WORD, data, position)
    if record_bytes < _WORD.size or end > len(data):
        raise _wrong(f"records of {record_bytes} bytes up to {end} do not fit .BTF.ext's {len(data)} bytes")
    position += _WORD.size
    while position < end:
        name, count = _unpack(_WORD, data, position)[0], _unpack(_WORD, data, position + 4)[0]
        position += 2 * _WORD.size
        if position + count * record_bytes > end:
            raise _wrong(f"{count} records at offset {position} of .BTF.ext end behind it")
        for _ in range(count):
            yield btf.string(name), data[position : position + record_bytes]
            position += record_bytes


def _sections(data: bytes) -> tuple[bytes, bytes]:
    """Types and strings."""
    magic, version, _, length, type_offset, type_length, string_offset, string_length = _unpack(_HEADER, data, 0)
    if magic != _MAGIC or version != 1:
        raise _wrong(f"magic {magic:#06x} version {version} must be {_MAGIC:#06x} version 1")
    types, strings = length + type_offset, length + string_offset
    if types + type_length > len(data) or strings + string_length > len(data):
        raise _wrong(f"types or strings end behind the section's {len(data)} bytes")
    return data[types : types + type_length], data[strings : strings + string_length]


def _unpack(layout: struct.Struct, data: bytes, offset: int) -> tuple[int, ...]:
    if offset + layout.size > len(data):
        raise _wrong(f"{layout.size} bytes at offset {offset} end behind the {len(data)} there are")
    return layout.unpack_from(data, offset)


def _wrong(what: str) -> BpfError:
    return BpfError(LibbpfErrno.FORMAT, f".BTF: {what}")
