"""Reads an object file made by ``clang -target bpf``: programs, maps, what has to be filled in.

It follows libbpf (``src/libbpf.c``): sections by name, maps as variables in ``.maps`` described by BTF or as ``struct
bpf_map_def`` in ``maps``, global variables as maps of one value, subprograms put behind the program that calls them.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from errno import EINVAL, ENOENT, ENOTSUP
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from sw.bpf.btf import Btf, BtfKind, read_core_relocations, read_lines
from sw.bpf.errors import BpfError, LibbpfErrno
from sw.bpf.instruction import SLOT_BYTES, CallKind, Immediate64, Instruction, decode, jump_target
from sw.bpf.maps import OBJ_NAME_LEN, MapDefinition, MapFlag, MapType
from sw.bpf.program import LineInfo, Program

__all__ = ["MapSpecification", "ObjectFile", "load_object"]

_R_BPF_64_64 = 1  #: the immediate of LD_IMM64
_R_BPF_64_32 = 10  #: the immediate of a CALL
_RELOCATIONS = {_R_BPF_64_64: "R_BPF_64_64", _R_BPF_64_32: "R_BPF_64_32"}

_SHF_EXECINSTR = 0x4
_TEXT = ".text"
_BTF_MAPS, _LEGACY_MAPS = ".maps", "maps"
_LICENSE = "license"
_DATA_SECTIONS = (".rodata", ".data", ".bss")
#: ``struct bpf_map_def``: type, key_size, value_size, max_entries, map_flags.
_MAP_DEF = struct.Struct("<IIIII")
#: Members of a map's type that say something a loader can do.
_NUMBERS = ("type", "max_entries", "map_flags", "key_size", "value_size")
_TYPES = {"key": "key_size", "value": "value_size"}


@dataclass(frozen=True, slots=True)
class MapSpecification:
    """A map that an object file wants, and with what it begins."""

    definition: MapDefinition
    initial: bytes = b""  #: the first value, if it is a section of global variables


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """What an object file holds.

    In a program, LD_IMM64 names a map by its position in ``maps`` (which are also the keys of ``program.maps``) until
    :meth:`bind` puts file descriptors there.
    """

    path: str
    maps: tuple[MapSpecification, ...]
    programs: Mapping[str, Program] = field(default_factory=lambda: MappingProxyType({}))

    def program(self, name: str | None = None) -> Program:
        """A program by name, or the only one.

        Raises:
            BpfError: ENOENT, naming those that there are.
        """
        if name is None and len(self.programs) == 1:
            return next(iter(self.programs.values()))
        if name is None or name not in self.programs:
            there = ", ".join(self.programs) or "none"
            raise BpfError(ENOENT, f"{self.path}: no program {name!r}; there are: {there}")
        return self.programs[name]

    def bind(self, program: Program, fds: Mapping[int, int]) -> Program:
        """``program`` with maps named by file descriptor: ``fds[position]``."""
        bound = tuple(
            instruction._replace(immediate=fds[instruction.immediate]) if _names_map(instruction) else instruction
            for instruction in program.instructions
        )
        return replace(program, instructions=bound, maps={fds[n]: found for n, found in program.maps.items()})


def load_object(source: str | Path | bytes, name: str = "") -> ObjectFile:
    """Read an object file from a path, or from its bytes under a ``name``.

    Raises:
        BpfError: one line that names the section and the offset, and what would be valid there.
    """
    if isinstance(source, bytes):
        contents, path = source, name or "object"
    else:
        path = str(source)
        try:
            contents = Path(source).read_bytes()
        except OSError as error:
            raise BpfError(error.errno or EINVAL, f"{path}: {error.strerror}") from None
    try:
        return _Loader(path, _parse(contents)).load()
    except BpfError as error:
        raise BpfError(error.errno, f"{path}: {error.message}") from None


# ---- ELF


class _Symbol(NamedTuple):
    name: str
    type: str
    section: int
    value: int
    size: int


class _Relocation(NamedTuple):
    offset: int
    kind: int
    symbol: int


class _Section(NamedTuple):
    number: int
    name: str
    data: bytes
    executable: bool
    relocations: tuple[_Relocation, ...]


class _Elf(NamedTuple):
    sections: dict[int, _Section]
    symbols: list[_Symbol]


def _parse(contents: bytes) -> _Elf:
    if not contents.startswith(b"\x7fELF"):
        raise BpfError(LibbpfErrno.LIBELF, "not an ELF file")
    try:
        elf = ELFFile(BytesIO(contents))
        machine, kind, little = elf["e_machine"], elf["e_type"], elf.little_endian and elf.elfclass == 64
        sections, symbols = _read_sections(elf, contents) if (machine, little) == ("EM_BPF", True) else ({}, [])
    except Exception as error:  # a damaged file can raise about anything in there
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BpfError(LibbpfErrno.FORMAT, f"damaged ELF file: {reason}") from None
    if machine != "EM_BPF":
        raise BpfError(LibbpfErrno.FORMAT, f"for machine {machine}; valid: EM_BPF (clang -target bpf)")
    if not little:
        raise BpfError(LibbpfErrno.ENDIAN, "must be 64 bits wide and little-endian (clang -target bpfel)")
    if kind != "ET_REL":
        raise BpfError(LibbpfErrno.FORMAT, f"of type {kind}; valid: ET_REL")
    return _Elf(sections, symbols)


def _read_sections(elf: ELFFile, contents: bytes) -> tuple[dict[int, _Section], list[_Symbol]]:
    relocations: dict[int, list[_Relocation]] = {}
    plain, symbols = [], []
    for index in range(elf.num_sections()):
        section = elf.get_section(index)
        if section["sh_type"] != "SHT_NOBITS" and section["sh_offset"] + section["sh_size"] > len(contents):
            raise ValueError(f"section {index} ends behind the file's {len(contents)} bytes")
        if isinstance(section, RelocationSection):
            relocations.setdefault(section["sh_info"], []).extend(
                _Relocation(one["r_offset"], one["r_info_type"], one["r_info_sym"])
                for one in section.iter_relocations()
            )
        elif isinstance(section, SymbolTableSection):
            for symbol in section.iter_symbols():
                where = symbol["st_shndx"] if isinstance(symbol["st_shndx"], int) else -1
                kind = str(symbol["st_info"]["type"])
                symbols.append(_Symbol(symbol.name, kind, where, symbol["st_value"], symbol["st_size"]))
        elif section["sh_type"] in ("SHT_PROGBITS", "SHT_NOBITS"):
            plain.append((index, section))
    found = {}
    for index, section in plain:
        if section["sh_type"] == "SHT_NOBITS":
            if section["sh_size"] > _BSS_MOST:
                raise ValueError(f"section {index} has {section['sh_size']} bytes of zeros")
            data = bytes(section["sh_size"])
        else:
            data = contents[section["sh_offset"] : section["sh_offset"] + section["sh_size"]]
        executable = bool(section["sh_flags"] & _SHF_EXECINSTR)
        found[index] = _Section(index, section.name, data, executable, tuple(relocations.get(index, ())))
    return found, symbols


#: A value of a map is at most this large, and ``.bss`` becomes one.
_BSS_MOST = 4 << 20


# ---- Programs and maps


def _names_map(instruction: Instruction) -> bool:
    return instruction.is_wide and instruction.source in (Immediate64.MAP_FD, Immediate64.MAP_VALUE)


class _Function(NamedTuple):
    """Where a function lies: section, first slot and number of slots."""

    section: int
    start: int
    slots: int


class _Loader:
    """Turns one parsed file into programs and maps."""

    def __init__(self, path: str, elf: _Elf):
        self.path = path
        self.sections = elf.sections
        self.symbols = elf.symbols
        btf = self._section(".BTF")
        self.btf = None if btf is None else Btf(btf.data)
        self.maps: list[MapSpecification] = []
        self.places: dict[tuple[int, int], int] = {}  #: position of the map at a place: (section, offset)
        self.values: dict[int, int] = {}  #: position of the map of a section of global variables
        self.code: dict[int, tuple[Instruction, ...]] = {}

    def load(self) -> ObjectFile:
        for section in self.sections.values():
            if section.name == _BTF_MAPS:
                self._read_btf_maps(section)
            elif section.name == _LEGACY_MAPS:
                self._read_legacy_maps(section)
            elif section.data and any(section.name == n or section.name.startswith(n + ".") for n in _DATA_SECTIONS):
                self._read_variables(section)
        programs = {}
        for section in self.sections.values():
            if section.executable and section.data and section.name != _TEXT:
                self._check_program_section(section)
                for symbol in self._functions_of(section):
                    programs[symbol.name] = self._program(section, symbol)
        if not programs:
            raise BpfError(ENOENT, 'no program: no function lies in a section SEC("xdp")')
        return ObjectFile(self.path, tuple(self.maps), MappingProxyType(programs))

    def _section(self, name: str) -> _Section | None:
        return next((section for section in self.sections.values() if section.name == name), None)

    # Maps

    def _read_btf_maps(self, section: _Section) -> None:
        if self.btf is None:
            raise BpfError(ENOENT, f"section {_BTF_MAPS}: there is no .BTF that describes its maps")
        symbols = {s.name: s for s in self.symbols if s.section == section.number}
        for name, number, _ in self.btf.variables(_BTF_MAPS):
            if name not in symbols:
                raise BpfError(LibbpfErrno.FORMAT, f"section {_BTF_MAPS}: no symbol of map {name!r}")
            self._add_map(section, symbols[name].value, name, self._btf_map(name, number))

    def _btf_map(self, name: str, number: int) -> dict[str, int]:
        assert self.btf is not None
        where = f"section {_BTF_MAPS}, map {name!r}"
        structure = self.btf.resolve(number)
        if structure.kind is not BtfKind.STRUCT:
            raise BpfError(EINVAL, f"{where}: must be a structure, not {structure.kind.name}")
        values: dict[str, int] = {}
        for member, kind, _ in self.btf.members(structure):
            pointer = self.btf.resolve(kind)
            if member not in _NUMBERS and member not in _TYPES:
                valid = ", ".join((*_NUMBERS, *_TYPES))
                raise BpfError(ENOTSUP, f"{where}: unknown member {member!r}; valid: {valid}")
            if pointer.kind is not BtfKind.PTR:
                raise BpfError(EINVAL, f"{where}: member {member!r} must be a pointer, not {pointer.kind.name}")
            if member in _TYPES:
                values[_TYPES[member]] = self.btf.size(pointer.size_or_type)
                continue
            array = self.btf.resolve(pointer.size_or_type)
            if array.kind is not BtfKind.ARRAY:
                raise BpfError(EINVAL, f"{where}: member {member!r} must point to an array, not {array.kind.name}")
            values[member] = self.btf.elements(array)
        return values

    def _read_legacy_maps(self, section: _Section) -> None:
        for symbol in self.symbols:
            if symbol.section == section.number and symbol.type != "STT_SECTION":
                end = symbol.value + _MAP_DEF.size
                if end > len(section.data):
                    raise BpfError(
                        EINVAL,
                        f"section {_LEGACY_MAPS}, offset {symbol.value}: a struct bpf_map_def needs {_MAP_DEF.size} "
                        f"bytes, the section has {len(section.data)}",
                    )
                kind, key, value, entries, flags = _MAP_DEF.unpack(section.data[symbol.value : end])
                numbers = dict(type=kind, key_size=key, value_size=value, max_entries=entries, map_flags=flags)
                self._add_map(section, symbol.value, symbol.name, numbers)

    def _add_map(self, section: _Section, offset: int, name: str, numbers: Mapping[str, int]) -> None:
        where = f"section {section.name}, map {name!r}"
        kind = numbers.get("type", 0)
        if kind not in MapType.__members__.values():
            valid = ", ".join(f"{one.value} ({one.name})" for one in MapType)
            raise BpfError(EINVAL, f"{where}: unknown type {kind}; valid: {valid}")
        definition = MapDefinition(
            type=MapType(kind),
            key_size=numbers.get("key_size", 0),
            value_size=numbers.get("value_size", 0),
            max_entries=numbers.get("max_entries", 0),
            flags=numbers.get("map_flags", 0),
            name=name[: OBJ_NAME_LEN - 1],
        )
        self.places[section.number, offset] = len(self.maps)
        self.maps.append(MapSpecification(definition))

    def _read_variables(self, section: _Section) -> None:
        constant = section.name.startswith(".rodata")
        flags = MapFlag.MMAPABLE | (MapFlag.RDONLY_PROG if constant else 0)
        definition = MapDefinition(MapType.ARRAY, 4, len(section.data), 1, flags, section.name[: OBJ_NAME_LEN - 1])
        self.values[section.number] = len(self.maps)
        self.maps.append(MapSpecification(definition, section.data))

    # Programs

    def _check_program_section(self, section: _Section) -> None:
        if section.name != "xdp":
            raise BpfError(
                LibbpfErrno.PROGTYPE, f'section {section.name!r}: not a kind of program there is; valid: SEC("xdp")'
            )
        extension = self._section(".BTF.ext")
        if self.btf is not None and extension is not None:
            if slots := read_core_relocations(extension.data, self.btf, section.name):
                raise BpfError(
                    ENOTSUP, f"section {section.name}, offset {slots[0] * SLOT_BYTES}: CO-RE relocations are not done"
                )

    def _functions_of(self, section: _Section) -> list[_Symbol]:
        found = [s for s in self.symbols if s.section == section.number and s.type == "STT_FUNC"]
        for symbol in found:
            if symbol.value % SLOT_BYTES or symbol.size % SLOT_BYTES or not symbol.size:
                raise BpfError(
                    LibbpfErrno.FORMAT,
                    f"section {section.name}, offset {symbol.value}: {symbol.size} bytes "
                    f"of function {symbol.name!r} are not whole instructions",
                )
            if symbol.value + symbol.size > len(section.data):
                raise BpfError(
                    LibbpfErrno.FORMAT,
                    f"section {section.name}, offset {symbol.value}: function "
                    f"{symbol.name!r} of {symbol.size} bytes ends behind the section's {len(section.data)}",
                )
        return sorted(found, key=lambda symbol: symbol.value)

    def _program(self, section: _Section, symbol: _Symbol) -> Program:
        instructions, lines = self._link(_function(symbol))
        used = {i.immediate for i in instructions if _names_map(i)}
        return Program(
            instructions=tuple(instructions),
            maps=MappingProxyType({n: self.maps[n].definition for n in sorted(used)}),
            name=symbol.name[: OBJ_NAME_LEN - 1],
            license=self._license(),
            lines=MappingProxyType(lines),
        )

    def _license(self) -> str:
        section = self._section(_LICENSE)
        return "" if section is None else section.data.split(b"\0")[0].decode(errors="replace")

    def _link(self, main: _Function) -> tuple[list[Instruction], dict[int, LineInfo]]:
        """A function and behind it what it calls, calls and maps filled in."""
        starts: dict[_Function, int] = {}
        calls: list[tuple[int, _Function]] = []
        instructions: list[Instruction] = []
        lines: dict[int, LineInfo] = {}
        waiting = [main]
        while waiting:
            function = waiting.pop(0)
            if function in starts:
                continue
            start = starts[function] = len(instructions)
            body, called = self._relocated(function)
            calls += [(start + slot, callee) for slot, callee in called]
            waiting += [callee for _, callee in called]
            instructions += body
            lines.update({start + slot: line for slot, line in self._lines(function).items()})
        for slot, callee in calls:
            instructions[slot] = instructions[slot]._replace(immediate=starts[callee] - slot - 1)
        return instructions, lines

    def _lines(self, function: _Function) -> dict[int, LineInfo]:
        extension = self._section(".BTF.ext")
        if self.btf is None or extension is None:
            return {}
        lines = read_lines(extension.data, self.btf, self.sections[function.section].name)
        end = function.start + function.slots
        return {slot - function.start: line for slot, line in lines.items() if function.start <= slot < end}

    def _relocated(self, function: _Function) -> tuple[list[Instruction], list[tuple[int, _Function]]]:
        """Instructions of one function with maps filled in, and its calls: (slot, function)."""
        section = self.sections[function.section]
        code = self._code(section)
        end = function.start + function.slots
        body = list(code[function.start : end])
        calls = {}
        for relocation in section.relocations:
            slot, rest = divmod(relocation.offset, SLOT_BYTES)
            if not function.start <= slot < end:
                continue
            where = f"section {section.name}, offset {relocation.offset:#x}"
            if rest or relocation.symbol >= len(self.symbols):
                raise BpfError(LibbpfErrno.RELOC, f"{where}: a relocation of no instruction or to no symbol")
            symbol, instruction = self.symbols[relocation.symbol], code[slot]
            if relocation.kind == _R_BPF_64_64 and instruction.is_wide and slot + 1 < end:
                body[slot - function.start : slot - function.start + 2] = self._map_load(where, instruction, symbol)
            elif relocation.kind == _R_BPF_64_32 and instruction.is_call:
                calls[slot] = self._callee(where, instruction, symbol)
            else:
                name = _RELOCATIONS.get(relocation.kind, f"type {relocation.kind}")
                raise BpfError(
                    LibbpfErrno.RELOC,
                    f"{where}: relocation {name} of opcode {instruction.opcode:#04x} by symbol {symbol.name!r}; valid: "
                    "R_BPF_64_64 of LD_IMM64, R_BPF_64_32 of a CALL",
                )
        for slot in range(function.start, end):
            if code[slot].is_call and code[slot].source == CallKind.LOCAL and slot not in calls:
                where = f"section {section.name}, offset {slot * SLOT_BYTES:#x}"
                calls[slot] = self._function_at(where, section.number, jump_target(code, slot))
        return body, [(slot - function.start, callee) for slot, callee in sorted(calls.items())]

    def _code(self, section: _Section) -> tuple[Instruction, ...]:
        if section.number not in self.code:
            if len(section.data) % SLOT_BYTES:
                raise BpfError(
                    LibbpfErrno.FORMAT, f"section {section.name}: {len(section.data)} bytes are not whole instructions"
                )
            self.code[section.number] = decode(section.data)
        return self.code[section.number]

    def _map_load(self, where: str, instruction: Instruction, symbol: _Symbol) -> list[Instruction]:
        position = self.places.get((symbol.section, symbol.value + instruction.immediate))
        if position is not None and symbol.type != "STT_SECTION":
            return [instruction._replace(source=Immediate64.MAP_FD, immediate=position), Instruction(0)]
        if symbol.section in self.values:
            offset = symbol.value + instruction.immediate
            if not -(1 << 31) <= offset < 1 << 31:
                raise BpfError(LibbpfErrno.RELOC, f"{where}: offset {offset} of {symbol.name!r} does not fit 32 bits")
            first = instruction._replace(source=Immediate64.MAP_VALUE, immediate=self.values[symbol.section])
            return [first, Instruction(0, immediate=offset)]
        there = ", ".join(repr(one.definition.name) for one in self.maps) or "none"
        raise BpfError(
            LibbpfErrno.RELOC, f"{where}: symbol {symbol.name!r} is neither a map nor a variable; maps: {there}"
        )

    def _callee(self, where: str, instruction: Instruction, symbol: _Symbol) -> _Function:
        section = self.sections.get(symbol.section)
        if section is None or not section.executable:
            raise BpfError(LibbpfErrno.RELOC, f"{where}: call of {symbol.name!r}, which is not a function of this file")
        if symbol.type == "STT_SECTION":  # a static function: its place is in the immediate
            return self._function_at(where, section.number, symbol.value // SLOT_BYTES + instruction.immediate + 1)
        return self._function_at(where, section.number, symbol.value // SLOT_BYTES)

    def _function_at(self, where: str, section: int, slot: int) -> _Function:
        for symbol in self._functions_of(self.sections[section]):
            if symbol.value == slot * SLOT_BYTES:
                return _function(symbol)
        raise BpfError(
            LibbpfErrno.RELOC,
            f"{where}: call to slot {slot} of {self.sections[section].name}, where no function begins",
        )


def _function(symbol: _Symbol) -> _Function:
    return _Function(symbol.section, symbol.value // SLOT_BYTES, symbol.size // SLOT_BYTES)
