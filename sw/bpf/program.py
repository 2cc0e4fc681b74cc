"""A program: instructions, the maps they name, and what the loader and the verifier know about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from sw.bpf.instruction import CallKind, Instruction, jump_target
from sw.bpf.maps import MapDefinition

__all__ = ["GPL_COMPATIBLE", "LineInfo", "Program", "ProgramType", "Verification", "functions"]

#: Licences under which GPL-only helpers may be called (``license_is_gpl_compatible``).
GPL_COMPATIBLE = frozenset(
    {"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}
)


class ProgramType(IntEnum):
    """``enum bpf_prog_type``."""

    XDP = 6


class LineInfo(NamedTuple):
    """Where a slot comes from."""

    file: str
    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class Program:
    """What ``BPF_PROG_LOAD`` is told.

    ``maps[fd]`` is what LD_IMM64 of kind MAP_FD or MAP_VALUE names by its immediate ``fd``.
    """

    instructions: tuple[Instruction, ...]
    maps: Mapping[int, MapDefinition] = field(default_factory=lambda: MappingProxyType({}))
    name: str = ""
    license: str = "GPL"
    type: ProgramType = ProgramType.XDP
    lines: Mapping[int, LineInfo] = field(default_factory=lambda: MappingProxyType({}))  #: by slot, from .BTF.ext

    @property
    def gpl_compatible(self) -> bool:
        """Whether it may call GPL-only helpers."""
        return self.license in GPL_COMPATIBLE


@dataclass(frozen=True, slots=True)
class Verification:
    """What the verifier has found out about a program that it accepts."""

    #: Slots of the loads whose base is the context; they are rewritten (``sw.bpf.context.convert_access``).
    context_accesses: frozenset[int]
    #: Bytes of stack that each function uses, by its first slot.
    stack_depths: Mapping[int, int]
    #: Slots that no path reaches; the kernel removes them.
    dead: frozenset[int] = frozenset()
    log: str = ""
    processed: int = 0  #: instructions that were looked at


def functions(instructions: tuple[Instruction, ...]) -> list[int]:
    """First slots of the functions of a program, in order; the program itself begins at slot 0."""
    starts = {0}
    for index, instruction in enumerate(instructions):
        if instruction.is_call and instruction.source == CallKind.LOCAL:
            starts.add(jump_target(instructions, index))
    return sorted(starts)
