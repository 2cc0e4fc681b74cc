"""What the kernel's verifier does to a program that it has accepted, before the program runs.

Accesses to ``struct xdp_md`` become loads from the kernel's structures, code that nothing reaches goes, maps become
addresses, and for the JIT lookups in maps are written out where they are called (``do_misc_fixups`` and the types'
``map_gen_lookup``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import EINVAL, ERANGE

from sw.bpf.context import convert_access
from sw.bpf.errors import BpfError
from sw.bpf.helpers import HelperId
from sw.bpf.instruction import (
    LD_IMM64,
    AluOperation,
    CallKind,
    Immediate64,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
    Size,
    Source,
    jump_target,
)
from sw.bpf.jit.x86 import ADDR_PERCPU
from sw.bpf.map.array import BPF_ARRAY, ArrayMap, PerCpuArrayMap
from sw.bpf.map.base import KernelMap
from sw.bpf.map.hash import HashMap, PerCpuHashMap
from sw.bpf.program import Program, Verification, functions

__all__ = ["HTAB_LOOKUP", "Ready", "fix_up"]

#: Number by which a program calls ``__htab_map_lookup_elem``, which is no helper: it gives the element.
HTAB_LOOKUP = 1 << 16

_JUMP, _JUMP32, _ALU64 = InstructionClass.JMP, InstructionClass.JMP32, InstructionClass.ALU64
_GOTO = _JUMP | JumpOperation.JA
_CALL = _JUMP | JumpOperation.CALL
_OFFSETS = range(-(1 << 15), 1 << 15)


@dataclass(frozen=True, slots=True)
class Ready:
    """A program that can run."""

    instructions: tuple[Instruction, ...]
    functions: tuple[int, ...]  #: first slots
    stack_depths: Mapping[int, int]  #: by first slot


def fix_up(program: Program, verification: Verification, maps: Mapping[int, KernelMap], jit: bool) -> Ready:
    """Make a program ready.

    Arguments:
        maps: by file descriptor, as the program names them.
        jit: whether to write out lookups.
    """
    code = program.instructions
    replacements: dict[int, list[Instruction]] = {slot: [] for slot in verification.dead}
    for slot, instruction in enumerate(code):
        if slot in verification.dead:
            continue
        if slot in verification.context_accesses:
            replacements[slot] = convert_access(instruction)
        elif instruction.is_branch and (wired := _hard_wired(code, slot, verification.dead)) is not None:
            replacements[slot] = wired
    resolved = [_resolve(code, slot, maps) for slot in range(len(code))]
    if jit:
        replacements |= _lookups(code, maps, verification.dead)
    starts = [start for start in functions(code) if start not in verification.dead]
    patched, places = _patch(resolved, replacements)
    return Ready(
        instructions=patched,
        functions=tuple(places[start] for start in starts),
        stack_depths={places[start]: verification.stack_depths.get(start, 0) for start in starts},
    )


def _hard_wired(code: Sequence[Instruction], slot: int, dead: frozenset[int]) -> list[Instruction] | None:
    """What becomes of a branch of which one side is dead."""
    if jump_target(code, slot) in dead:
        return []
    if slot + 1 in dead:
        return [Instruction(_GOTO, offset=code[slot].offset)]
    return None


def _resolve(code: Sequence[Instruction], slot: int, maps: Mapping[int, KernelMap]) -> Instruction:
    """The slot with an address where a map was named; its kind stays, so that the JIT knows an address."""
    first = slot
    if not code[slot].is_wide:
        first = slot - 1
        if slot == 0 or not code[first].is_wide:
            return code[slot]
    kind = code[first].source
    if kind == Immediate64.VALUE:
        return code[slot]
    if kind not in (Immediate64.MAP_FD, Immediate64.MAP_VALUE):
        raise BpfError(EINVAL, f"LD_IMM64 of kind {kind} at slot {first} cannot be loaded")
    found = maps[code[first].immediate]
    address = found.address
    if kind == Immediate64.MAP_VALUE:
        if not isinstance(found, ArrayMap):
            raise BpfError(EINVAL, f"{found.name} has no value at a fixed address (slot {first})")
        address = found.value(0) + code[first + 1].immediate
    half = address & 0xFFFFFFFF if slot == first else address >> 32
    signed = half - (1 << 32) if half >> 31 else half
    return code[slot]._replace(immediate=signed)


def _lookups(code: Sequence[Instruction], maps: Mapping[int, KernelMap], dead: frozenset[int]) -> dict[int, list]:
    """What takes the place of each lookup whose map is known from the instructions before it."""
    found = {}
    for slot, instruction in enumerate(code):
        is_lookup = instruction.is_call and instruction.source == CallKind.HELPER
        if not is_lookup or instruction.immediate != HelperId.MAP_LOOKUP_ELEM or slot in dead:
            continue
        map_ = _map_in_r1(code, slot, maps)
        if map_ is not None and (inlined := _inline(map_)):
            found[slot] = inlined
    return found


def _map_in_r1(code: Sequence[Instruction], slot: int, maps: Mapping[int, KernelMap]) -> KernelMap | None:
    """The map that r1 holds at a call, if the straight code before it says so."""
    targets = {jump_target(code, n) for n, i in enumerate(code) if i.is_jump and not i.is_exit and not _is_helper(i)}
    for before in range(slot - 1, -1, -1):
        if before + 1 in targets:
            return None
        instruction = code[before]
        if instruction.is_wide and instruction.destination == 1:
            return maps.get(instruction.immediate) if instruction.source == Immediate64.MAP_FD else None
        writes = instruction.is_alu or instruction.instruction_class is InstructionClass.LDX
        if instruction.is_jump or (writes and instruction.destination == 1):
            return None
    return None


def _is_helper(instruction: Instruction) -> bool:
    return instruction.is_call and instruction.source == CallKind.HELPER


def _alu(operation: AluOperation, to: int, source: int | None = None, immediate: int = 0) -> Instruction:
    if source is None:
        return Instruction(_ALU64 | operation | Source.K, to, 0, 0, immediate)
    return Instruction(_ALU64 | operation | Source.X, to, source)


def _load(size: Size, to: int, base: int, offset: int = 0) -> Instruction:
    return Instruction(InstructionClass.LDX | Mode.MEM | size, to, base, offset)


def _inline(map_: KernelMap) -> list[Instruction]:
    """A lookup written out; r1 is the map, r2 the key's address. Empty if it stays a call."""
    entries = map_.definition.max_entries
    fits = entries < 1 << 31
    out_of_range = _JUMP | JumpOperation.JGE | Source.K
    if isinstance(map_, PerCpuArrayMap) and fits:  # percpu_array_map_gen_lookup
        return [
            _alu(AluOperation.ADD, 1, immediate=BPF_ARRAY.size),
            _load(Size.W, 0, 2),
            Instruction(out_of_range, 0, 0, 5, entries),
            _alu(AluOperation.LSH, 0, immediate=3),
            _alu(AluOperation.ADD, 0, 1),
            _load(Size.DW, 0, 0),
            Instruction(_ALU64 | AluOperation.MOV | Source.X, 0, 0, ADDR_PERCPU),
            Instruction(_GOTO, offset=1),
            _alu(AluOperation.MOV, 0, immediate=0),
        ]
    if isinstance(map_, ArrayMap) and fits:  # array_map_gen_lookup
        power = map_.value_stride.bit_length() - 1
        scale = (
            _alu(AluOperation.LSH, 0, immediate=power)
            if map_.value_stride == 1 << power
            else _alu(AluOperation.MUL, 0, immediate=map_.value_stride)
        )
        return [
            _alu(AluOperation.ADD, 1, immediate=BPF_ARRAY.size),
            _load(Size.W, 0, 2),
            Instruction(out_of_range, 0, 0, 3, entries),
            scale,
            _alu(AluOperation.ADD, 0, 1),
            Instruction(_GOTO, offset=1),
            _alu(AluOperation.MOV, 0, immediate=0),
        ]
    if isinstance(map_, HashMap) and not isinstance(map_, PerCpuHashMap):  # htab_map_gen_lookup
        return [
            Instruction(_CALL, 0, CallKind.HELPER, 0, HTAB_LOOKUP),
            Instruction(_JUMP | JumpOperation.JEQ | Source.K, 0, 0, 1, 0),
            _alu(AluOperation.ADD, 0, immediate=map_.value_offset),
        ]
    return []


def _patch(
    code: Sequence[Instruction], replacements: Mapping[int, list[Instruction]]
) -> tuple[tuple[Instruction, ...], list[int]]:
    """Put replacements in, and make jumps go where they went; gives where each slot has come to lie, too."""
    places, position = [], 0
    for slot in range(len(code)):
        places.append(position)
        position += len(replacements[slot]) if slot in replacements else 1
    places.append(position)
    patched: list[Instruction] = []
    for slot, instruction in enumerate(code):
        if slot not in replacements:
            patched.append(_retarget(code, slot, instruction, places, len(patched)))
            continue
        for new in replacements[slot]:
            # A branch that became a jump goes where it went; other new jumps stay among the new instructions.
            moved = instruction.is_branch and new.opcode == _GOTO
            patched.append(_retarget(code, slot, new, places, len(patched)) if moved else new)
    return tuple(patched), places


def _retarget(
    code: Sequence[Instruction], slot: int, new: Instruction, places: list[int], position: int
) -> Instruction:
    if slot and code[slot - 1].opcode == LD_IMM64 and not new.opcode:
        return new
    if not new.is_jump or new.is_exit or _is_helper(new):
        return new
    target = jump_target(code, slot)
    if not 0 <= target < len(places):
        raise BpfError(EINVAL, f"slot {slot} jumps to slot {target}, outside the program")
    distance = places[target] - position - 1
    if new.is_call or (new.instruction_class is _JUMP32 and new.is_goto):
        return new._replace(immediate=distance)
    if distance not in _OFFSETS:
        raise BpfError(ERANGE, f"slot {slot} jumps {distance} slots, more than 16 bits hold")
    return new._replace(offset=distance)
