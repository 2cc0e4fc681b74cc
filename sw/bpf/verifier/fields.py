"""Parts of an instruction that its opcode does not use must be 0, and immediates must make sense.

The kernel says so when it comes by the instruction (``check_alu_op``, ``do_check``), and in this order.
"""

from errno import EINVAL

from sw.bpf.instruction import (
    AluOperation,
    AtomicOperation,
    CallKind,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
    Size,
)
from sw.bpf.verifier.errors import Refusal

__all__ = ["check_atomic_operation", "check_fields", "check_operands"]

_DIVISIONS = (AluOperation.DIV, AluOperation.MOD)
_SHIFTS = (AluOperation.LSH, AluOperation.RSH, AluOperation.ARSH)
#: Immediates of atomic instructions, and widths of sign extension by class.
_ATOMICS = frozenset(AtomicOperation)
_EXTENSIONS = {InstructionClass.ALU: (0, 8, 16), InstructionClass.ALU64: (0, 8, 16, 32)}


def check_fields(instruction: Instruction) -> None:
    """Refuse reserved parts that are not 0."""
    name = _misused(instruction)
    if name:
        raise Refusal(EINVAL, f"{name} uses reserved fields")
    if instruction.instruction_class is InstructionClass.LD and not instruction.is_wide:
        raise Refusal(EINVAL, "BPF_LD_[ABS|IND] instructions not allowed for this program type")


def _misused(instruction: Instruction) -> str:
    """The kernel's name of what is wrong; empty if nothing is."""
    if instruction.is_alu:
        return _misused_alu(instruction)
    if instruction.is_jump:
        return _misused_jump(instruction)
    kind = instruction.instruction_class
    if kind is InstructionClass.LD:
        return "BPF_LD_IMM64" if instruction.is_wide and instruction.offset else ""
    if kind is InstructionClass.ST and (instruction.mode != Mode.MEM or instruction.source):
        return "BPF_ST"
    if kind is InstructionClass.STX and instruction.mode == Mode.MEM and instruction.immediate:
        return "BPF_STX"
    return ""


def _misused_alu(instruction: Instruction) -> str:
    _, _, source, offset, immediate = instruction
    operation = instruction.operation
    if operation == AluOperation.NEG:
        return "BPF_NEG" if source or offset or immediate else ""
    if operation == AluOperation.END:
        return "BPF_END" if source or offset or immediate not in (16, 32, 64) else ""
    if operation == AluOperation.MOV:
        if instruction.from_register:
            return "BPF_MOV" if immediate or offset not in _EXTENSIONS[instruction.instruction_class] else ""
        return "BPF_MOV" if source or offset else ""
    unused = immediate if instruction.from_register else source
    return "BPF_ALU" if unused or offset not in ((0, 1) if operation in _DIVISIONS else (0,)) else ""


def _misused_jump(instruction: Instruction) -> str:
    _, destination, source, offset, immediate = instruction
    if instruction.is_call:
        bad = source not in (CallKind.HELPER, CallKind.LOCAL) or destination or offset
        return "BPF_CALL" if bad else ""
    if instruction.is_exit:
        return "BPF_EXIT" if destination or source or offset or immediate else ""
    if instruction.operation == JumpOperation.JA:
        unused = immediate if instruction.instruction_class is InstructionClass.JMP else offset
        return "BPF_JA" if destination or source or unused else ""
    return "BPF_JMP/JMP32" if (immediate if instruction.from_register else source) else ""


def check_operands(instruction: Instruction) -> None:
    """Refuse constant operands that make no sense; asked after the registers are known to be readable."""
    if instruction.from_register:
        return
    immediate, operation = instruction.immediate, instruction.operation
    if operation in _DIVISIONS and immediate == 0:
        raise Refusal(EINVAL, "div by zero")
    width = 64 if instruction.instruction_class is InstructionClass.ALU64 else 32
    if operation in _SHIFTS and not 0 <= immediate < width:
        raise Refusal(EINVAL, f"invalid shift {immediate}")


def check_atomic_operation(instruction: Instruction) -> None:
    """Refuse atomic instructions that there are not."""
    if instruction.immediate not in _ATOMICS:
        raise Refusal(EINVAL, f"BPF_ATOMIC uses invalid atomic opcode {instruction.immediate & 0xFFFFFFFF:02x}")
    if instruction.size not in (Size.W, Size.DW):
        raise Refusal(EINVAL, "invalid atomic operand size")
