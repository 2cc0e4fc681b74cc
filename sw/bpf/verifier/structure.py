"""What can be said about a program without following it: opcodes, maps, functions, jumps, reachability.

Sources, in the order in which the kernel looks: ``add_subprog_and_kfunc``, ``check_subprogs``,
``resolve_pseudo_ldimm64``, ``check_cfg`` in ``kernel/bpf/verifier.c``; ``bpf_opcode_in_insntable`` in
``kernel/bpf/core.c``.
"""

from bisect import bisect_right
from collections.abc import Sequence
from errno import E2BIG, EBADF, EINVAL

from sw.bpf.instruction import (
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
from sw.bpf.maps import MapDefinition, MapType
from sw.bpf.program import Program, functions
from sw.bpf.verifier.errors import Refusal

__all__ = ["COMPLEXITY_LIMIT_INSNS", "Structure", "successors"]

#: Instructions that a program may have, and that the verifier looks at.
COMPLEXITY_LIMIT_INSNS = 1_000_000

_GOTOS = (InstructionClass.JMP | JumpOperation.JA, InstructionClass.JMP32 | JumpOperation.JA)


def _opcodes() -> frozenset[int]:
    """Those of the instruction set, without LD_IMM64."""
    alu = [operation | source for operation in AluOperation for source in Source if operation != AluOperation.NEG]
    alu.append(AluOperation.NEG)
    found = {kind | code for kind in (InstructionClass.ALU, InstructionClass.ALU64) for code in alu}
    found.discard(InstructionClass.ALU64 | AluOperation.END | Source.X)
    branches = [o for o in JumpOperation if o not in (JumpOperation.JA, JumpOperation.CALL, JumpOperation.EXIT)]
    for kind in (InstructionClass.JMP, InstructionClass.JMP32):
        found |= {kind | operation | source for operation in branches for source in Source}
    found |= {*_GOTOS, InstructionClass.JMP | JumpOperation.CALL, InstructionClass.JMP | JumpOperation.EXIT}
    for kind in (InstructionClass.LDX, InstructionClass.ST, InstructionClass.STX):
        found |= {kind | Mode.MEM | size for size in Size}
    found |= {InstructionClass.LDX | Mode.MEMSX | size for size in (Size.B, Size.H, Size.W)}
    found |= {InstructionClass.STX | Mode.ATOMIC | size for size in Size}
    found |= {InstructionClass.LD | mode | size for mode in (Mode.ABS, Mode.IND) for size in (Size.B, Size.H, Size.W)}
    return frozenset(found)


_OPCODES = _opcodes()


def successors(instructions: Sequence[Instruction], index: int) -> list[int]:
    """Slots that may follow within the same function."""
    instruction = instructions[index]
    if instruction.is_wide:
        return [index + 2]
    if not instruction.is_jump or instruction.is_call:
        return [index + 1]
    if instruction.is_exit:
        return []
    target = jump_target(instructions, index)
    return [target] if instruction.is_goto else [index + 1, target]


class Structure:
    """A program whose form is right.

    Raises:
        Refusal: at the first rule that it breaks.
    """

    def __init__(self, program: Program):
        self.instructions = program.instructions
        self.maps = program.maps
        count = len(self.instructions)
        if not 0 < count <= COMPLEXITY_LIMIT_INSNS:
            raise Refusal(E2BIG, f"a program of {count} instructions is outside 1 to {COMPLEXITY_LIMIT_INSNS}")
        self._check_calls()
        #: First slots of the functions, in order.
        self.functions = functions(self.instructions)
        self._check_functions()
        self._check_opcodes()
        self._check_reachability()

    def function_of(self, index: int) -> int:
        """First slot of the function that a slot is in."""
        return self.functions[bisect_right(self.functions, index) - 1]

    def _check_calls(self) -> None:
        count = len(self.instructions)
        for index, instruction in enumerate(self.instructions):
            if instruction.is_call and instruction.source == CallKind.LOCAL:
                if not 0 <= jump_target(self.instructions, index) < count:
                    raise Refusal(EINVAL, "call to invalid destination")
            elif instruction.is_wide and instruction.source == Immediate64.FUNC:
                raise Refusal(EINVAL, "unrecognized bpf_ld_imm64 insn")
            elif instruction.is_call and instruction.source == CallKind.KFUNC:
                raise Refusal(EINVAL, f"kernel btf_id {instruction.immediate} is not a function")

    def _check_functions(self) -> None:
        """Jumps stay in their function, and it ends with one."""
        ends = [*self.functions[1:], len(self.instructions)]
        for start, end in zip(self.functions, ends, strict=True):
            for index in range(start, end):
                instruction = self.instructions[index]
                if instruction.is_jump and not instruction.is_call and not instruction.is_exit:
                    target = jump_target(self.instructions, index)
                    if not start <= target < end:
                        raise Refusal(EINVAL, f"jump out of range from insn {index} to {target}")
            last = self.instructions[end - 1]
            if not last.is_exit and last.opcode not in _GOTOS:
                raise Refusal(EINVAL, "last insn is not an exit or jmp")

    def _check_opcodes(self) -> None:
        index, count = 0, len(self.instructions)
        while index < count:
            instruction = self.instructions[index]
            is_load = instruction.instruction_class is InstructionClass.LDX
            if is_load and (instruction.mode not in (Mode.MEM, Mode.MEMSX) or instruction.immediate):
                raise Refusal(EINVAL, "BPF_LDX uses reserved fields")
            if instruction.is_wide:
                second = self.instructions[index + 1] if index + 1 < count else None
                if second is None or second[:4] != (0, 0, 0, 0):
                    raise Refusal(EINVAL, "invalid bpf_ld_imm64 insn")
                self._check_wide(instruction, second)
                index += 1
            elif instruction.opcode not in _OPCODES:
                raise Refusal(EINVAL, f"unknown opcode {instruction.opcode:02x}")
            index += 1

    def _check_wide(self, instruction: Instruction, second: Instruction) -> None:
        kind, fd = instruction.source, instruction.immediate
        if kind == Immediate64.VALUE:
            return
        if kind in (Immediate64.MAP_IDX, Immediate64.MAP_IDX_VALUE):
            raise Refusal(EINVAL, "fd_idx without fd_array is invalid")
        if kind not in (Immediate64.MAP_FD, Immediate64.MAP_VALUE) or (kind == Immediate64.MAP_FD and second.immediate):
            raise Refusal(EINVAL, "unrecognized bpf_ld_imm64 insn")
        found = self.maps.get(fd)
        if found is None:
            raise Refusal(EBADF, f"fd {fd} is not pointing to valid bpf_map")
        if kind == Immediate64.MAP_VALUE:
            _check_value_address(found, second.immediate & 0xFFFFFFFF)

    def _check_reachability(self) -> None:
        """Some path leads to every instruction, and none into the middle of one."""
        seen, waiting = {0}, [0]
        while waiting:
            index = waiting.pop()
            followers = successors(self.instructions, index)
            instruction = self.instructions[index]
            if instruction.is_call and instruction.source == CallKind.LOCAL:
                followers.append(jump_target(self.instructions, index))
            for follower in followers:
                if follower not in seen:
                    seen.add(follower)
                    waiting.append(follower)
        index = 0
        while index < len(self.instructions):
            if index not in seen:
                raise Refusal(EINVAL, f"unreachable insn {index}")
            if self.instructions[index].is_wide:
                if index + 1 in seen:
                    raise Refusal(EINVAL, f"jump into the middle of ldimm64 insn {index}")
                index += 1
            index += 1


def _check_value_address(definition: MapDefinition, offset: int) -> None:
    """The address of a value can be had of arrays of one value only (``array_map_direct_value_addr``)."""
    if definition.type is not MapType.ARRAY or definition.max_entries != 1:
        raise Refusal(EINVAL, "no direct value access support for this map type")
    if offset >= 1 << 29:
        raise Refusal(EINVAL, f"direct value offset of {offset} is not allowed")
    if offset >= definition.value_size:
        raise Refusal(EINVAL, f"invalid access to map value pointer, value_size={definition.value_size} off={offset}")
