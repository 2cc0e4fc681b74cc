"""The instructions of eBPF: their parts by name, 64 bits to and from them, and their text as the kernel writes it.

Source: RFC 9669 (BPF Instruction Set Architecture). Names of constants are those of ``include/uapi/linux/bpf.h``
without the prefix ``BPF_``. One :class:`Instruction` is one 8-byte slot, as in the kernel: ``LD_IMM64`` takes two, and
jumps count slots.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from errno import EINVAL
from typing import NamedTuple

from sw.bpf.errors import BpfError

__all__ = [
    "ALU_TEXT",
    "FRAME_POINTER",
    "LD_IMM64",
    "MAX_CALL_FRAMES",
    "REGISTERS",
    "SLOT_BYTES",
    "STACK_BYTES",
    "AluOperation",
    "AtomicOperation",
    "CallKind",
    "Immediate64",
    "Instruction",
    "InstructionClass",
    "JumpOperation",
    "Mode",
    "Size",
    "Source",
    "decode",
    "disassemble",
    "encode",
    "immediate64",
    "jump_target",
    "listing",
]

#: r0 to r10; r10 is the read-only frame pointer.
REGISTERS = 11
FRAME_POINTER = 10
SLOT_BYTES = 8
#: Stack of one function (``MAX_BPF_STACK``).
STACK_BYTES = 512
#: Functions that can be active at once (``MAX_CALL_FRAMES``).
MAX_CALL_FRAMES = 8

_SLOT = struct.Struct("<BBhi")


class InstructionClass(IntEnum):
    """Bits 2:0 of the opcode."""

    LD = 0
    LDX = 1
    ST = 2
    STX = 3
    ALU = 4  #: 32 bits wide; the upper half of the destination becomes 0
    JMP = 5
    JMP32 = 6
    ALU64 = 7


class Source(IntEnum):
    """Bit 3 of an ALU or jump opcode; for END: to which byte order."""

    K = 0x00  #: the immediate; END: to little-endian
    X = 0x08  #: the source register; END: to big-endian


class AluOperation(IntEnum):
    """Bits 7:4 of an ALU opcode."""

    ADD = 0x00
    SUB = 0x10
    MUL = 0x20
    DIV = 0x30  #: signed if ``offset`` is 1
    OR = 0x40
    AND = 0x50
    LSH = 0x60
    RSH = 0x70
    NEG = 0x80
    MOD = 0x90  #: signed if ``offset`` is 1
    XOR = 0xA0
    MOV = 0xB0  #: sign-extending if ``offset`` is 8, 16 or 32
    ARSH = 0xC0
    END = 0xD0  #: byte order (ALU) or unconditional swap (ALU64) of ``immediate`` bits


class JumpOperation(IntEnum):
    """Bits 7:4 of a jump opcode."""

    JA = 0x00  #: class JMP: by ``offset``; class JMP32: by ``immediate``
    JEQ = 0x10
    JGT = 0x20
    JGE = 0x30
    JSET = 0x40
    JNE = 0x50
    JSGT = 0x60
    JSGE = 0x70
    CALL = 0x80
    EXIT = 0x90
    JLT = 0xA0
    JLE = 0xB0
    JSLT = 0xC0
    JSLE = 0xD0


class Size(IntEnum):
    """Bits 4:3 of a load or store opcode."""

    W = 0x00  #: 4 bytes
    H = 0x08  #: 2 bytes
    B = 0x10  #: 1 byte
    DW = 0x18  #: 8 bytes


class Mode(IntEnum):
    """Bits 7:5 of a load or store opcode."""

    IMM = 0x00  #: 64-bit immediate
    ABS = 0x20  #: legacy packet access, for classic filters only
    IND = 0x40  #: legacy packet access, for classic filters only
    MEM = 0x60
    MEMSX = 0x80  #: sign-extending load
    ATOMIC = 0xC0


class AtomicOperation(IntEnum):
    """The immediate of an atomic instruction."""

    ADD = 0x00
    ADD_FETCH = 0x01
    FETCH = 0x01  #: also the bit by which ADD, OR, AND and XOR give the old value to the source register
    OR = 0x40
    AND = 0x50
    XOR = 0xA0
    OR_FETCH = OR | FETCH
    AND_FETCH = AND | FETCH
    XOR_FETCH = XOR | FETCH
    XCHG = 0xE0 | FETCH
    CMPXCHG = 0xF0 | FETCH  #: compares with r0, which gets the old value


class CallKind(IntEnum):
    """Source register of a CALL: what its immediate names."""

    HELPER = 0  #: a helper by number
    LOCAL = 1  #: a function of the same program, relative to the next instruction (``BPF_PSEUDO_CALL``)
    KFUNC = 2  #: a kernel function by BTF id (``BPF_PSEUDO_KFUNC_CALL``)


class Immediate64(IntEnum):
    """Source register of LD_IMM64: what its immediate names (``BPF_PSEUDO_*``)."""

    VALUE = 0
    MAP_FD = 1  #: address of the map with that file descriptor
    MAP_VALUE = 2  #: address of the first value of the map with that file descriptor, plus the second immediate
    BTF_ID = 3  #: address of a variable of the kernel
    FUNC = 4  #: address of a function of the same program
    MAP_IDX = 5  #: as MAP_FD, by position in the loader's list of descriptors
    MAP_IDX_VALUE = 6


#: Opcode of the 64-bit immediate load, the one instruction of two slots.
LD_IMM64 = InstructionClass.LD | Size.DW | Mode.IMM

_BYTES = {Size.W: 4, Size.H: 2, Size.B: 1, Size.DW: 8}
_ALU_CLASSES = (InstructionClass.ALU, InstructionClass.ALU64)
_JUMP_CLASSES = (InstructionClass.JMP, InstructionClass.JMP32)


class Instruction(NamedTuple):
    """One slot."""

    opcode: int
    destination: int = 0
    source: int = 0
    offset: int = 0  #: signed, 16 bits
    immediate: int = 0  #: signed, 32 bits

    @property
    def instruction_class(self) -> InstructionClass:
        """Which kind of instruction it is."""
        return InstructionClass(self.opcode & 0x07)

    @property
    def is_alu(self) -> bool:
        """Whether it computes: class ALU or ALU64."""
        return self.instruction_class in _ALU_CLASSES

    @property
    def is_jump(self) -> bool:
        """Whether it is of class JMP or JMP32 (calls and EXIT included)."""
        return self.instruction_class in _JUMP_CLASSES

    @property
    def is_memory(self) -> bool:
        """Whether it loads or stores: class LD, LDX, ST or STX."""
        return self.instruction_class <= InstructionClass.STX

    @property
    def is_wide(self) -> bool:
        """Whether it is the first slot of a 64-bit immediate load."""
        return self.opcode == LD_IMM64

    @property
    def operation(self) -> int:
        """Bits 7:4 of an ALU or jump opcode: an :class:`AluOperation` or :class:`JumpOperation`, or unassigned."""
        return self.opcode & 0xF0

    @property
    def from_register(self) -> bool:
        """Whether the second operand of an ALU or jump instruction is a register."""
        return bool(self.opcode & Source.X)

    @property
    def size(self) -> Size:
        """Width of a load or store."""
        return Size(self.opcode & 0x18)

    @property
    def bytes(self) -> int:
        """Width of a load or store in bytes."""
        return _BYTES[self.size]

    @property
    def mode(self) -> int:
        """Bits 7:5 of a load or store opcode: a :class:`Mode`, or unassigned."""
        return self.opcode & 0xE0

    @property
    def is_call(self) -> bool:
        """Whether it is a CALL; ``source`` says of what (:class:`CallKind`)."""
        return self.opcode == InstructionClass.JMP | JumpOperation.CALL

    @property
    def is_exit(self) -> bool:
        """Whether it is EXIT."""
        return self.opcode == InstructionClass.JMP | JumpOperation.EXIT

    @property
    def is_goto(self) -> bool:
        """Whether it jumps always."""
        return self.is_jump and self.operation == JumpOperation.JA

    @property
    def is_branch(self) -> bool:
        """Whether it jumps on a condition."""
        return self.is_jump and self.operation not in (JumpOperation.JA, JumpOperation.CALL, JumpOperation.EXIT)


def jump_target(instructions: Sequence[Instruction], index: int) -> int:
    """Slot to which the jump, branch or local call at ``index`` may go; it may lie outside the program."""
    instruction = instructions[index]
    by_immediate = instruction.is_call or (
        instruction.instruction_class is InstructionClass.JMP32 and instruction.operation == JumpOperation.JA
    )
    return index + 1 + (instruction.immediate if by_immediate else instruction.offset)


def immediate64(instructions: Sequence[Instruction], index: int) -> int:
    """The unsigned 64-bit immediate of the LD_IMM64 at ``index``."""
    low, high = instructions[index].immediate, instructions[index + 1].immediate
    return (high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF


def decode(code: bytes) -> tuple[Instruction, ...]:
    """Instructions from little-endian code.

    Raises:
        BpfError: EINVAL, if it is not a whole number of slots.
    """
    if len(code) % SLOT_BYTES:
        raise BpfError(EINVAL, f"{len(code)} bytes of code are not a multiple of {SLOT_BYTES}")
    return tuple(
        Instruction(opcode, registers & 0xF, registers >> 4, offset, immediate)
        for opcode, registers, offset, immediate in _SLOT.iter_unpack(code)
    )


def encode(instructions: Iterable[Instruction]) -> bytes:
    """Little-endian code of instructions."""
    return b"".join(
        _SLOT.pack(opcode, source << 4 | destination, offset, immediate)
        for opcode, destination, source, offset, immediate in instructions
    )


# ---- Text, in the syntax of the kernel's kernel/bpf/disasm.c (what the verifier's log shows)

#: By operation, the operator of the assignment.
ALU_TEXT = {
    AluOperation.ADD: "+=",
    AluOperation.SUB: "-=",
    AluOperation.MUL: "*=",
    AluOperation.DIV: "/=",
    AluOperation.OR: "|=",
    AluOperation.AND: "&=",
    AluOperation.LSH: "<<=",
    AluOperation.RSH: ">>=",
    AluOperation.MOD: "%=",
    AluOperation.XOR: "^=",
    AluOperation.MOV: "=",
    AluOperation.ARSH: "s>>=",
}
_SIGNED_TEXT = {AluOperation.DIV: "s/=", AluOperation.MOD: "s%="}
_JUMP_TEXT = {
    JumpOperation.JEQ: "==",
    JumpOperation.JGT: ">",
    JumpOperation.JGE: ">=",
    JumpOperation.JSET: "&",
    JumpOperation.JNE: "!=",
    JumpOperation.JSGT: "s>",
    JumpOperation.JSGE: "s>=",
    JumpOperation.JLT: "<",
    JumpOperation.JLE: "<=",
    JumpOperation.JSLT: "s<",
    JumpOperation.JSLE: "s<=",
}
_ATOMIC_TEXT = {
    AtomicOperation.ADD: ("+=", "add"),
    AtomicOperation.OR: ("|=", "or"),
    AtomicOperation.AND: ("&=", "and"),
    AtomicOperation.XOR: ("^=", "xor"),
}


def disassemble(instructions: Sequence[Instruction], index: int, names: dict[int, str] | None = None) -> str:
    """The instruction at ``index`` as text.

    Arguments:
        names: helpers by number; one that is not there is ``unknown``.
    """
    instruction = instructions[index]
    if instruction.is_alu:
        return _alu_text(instruction)
    if instruction.is_jump:
        return _jump_text(instruction, names or {})
    if instruction.is_wide:
        value = immediate64(instructions, index) if index + 1 < len(instructions) else instruction.immediate
        return f"r{instruction.destination} = {value:#x}"
    return _memory_text(instruction)


def listing(instructions: Sequence[Instruction], names: dict[int, str] | None = None) -> list[str]:
    """Every instruction as ``slot: (opcode) text``, as in the verifier's log; LD_IMM64 has one line."""
    lines, index = [], 0
    while index < len(instructions):
        instruction = instructions[index]
        lines.append(f"{index}: ({instruction.opcode:02x}) {disassemble(instructions, index, names)}")
        index += 2 if instruction.is_wide else 1
    return lines


def _alu_text(instruction: Instruction) -> str:
    opcode, destination, source, offset, immediate = instruction
    wide = instruction.instruction_class is InstructionClass.ALU64
    letter = "r" if wide else "w"
    operation = instruction.operation
    if operation == AluOperation.END:
        order = "bswap" if wide else "be" if instruction.from_register else "le"
        return f"r{destination} = {order}{immediate} r{destination}"
    if operation == AluOperation.NEG:
        return f"{letter}{destination} = -{letter}{destination}"
    if operation not in ALU_TEXT:
        return f"BUG_alu_{opcode:02x}"
    symbol = _SIGNED_TEXT.get(AluOperation(operation)) if offset == 1 else None
    symbol = symbol or ALU_TEXT[AluOperation(operation)]
    if not instruction.from_register:
        return f"{letter}{destination} {symbol} {immediate}"
    extension = f"(s{offset})" if operation == AluOperation.MOV and offset else ""
    return f"{letter}{destination} {symbol} {extension}{letter}{source}"


def _jump_text(instruction: Instruction, names: dict[int, str]) -> str:
    opcode, destination, source, offset, immediate = instruction
    letter = "w" if instruction.instruction_class is InstructionClass.JMP32 else "r"
    operation = instruction.operation
    if operation == JumpOperation.JA:
        return f"gotol pc{immediate:+d}" if letter == "w" else f"goto pc{offset:+d}"
    if instruction.is_exit:
        return "exit"
    if instruction.is_call:
        if source == CallKind.LOCAL:
            return f"call pc{immediate:+d}"
        return f"call {names.get(immediate, 'unknown')}#{immediate}"
    if operation not in _JUMP_TEXT:
        return f"BUG_jmp_{opcode:02x}"
    symbol = _JUMP_TEXT[JumpOperation(operation)]
    operand = f"{letter}{source}" if instruction.from_register else f"{immediate & 0xFFFFFFFF:#x}"
    return f"if {letter}{destination} {symbol} {operand} goto pc{offset:+d}"


def _memory_text(instruction: Instruction) -> str:
    opcode, destination, source, offset, immediate = instruction
    kind, mode, bits = instruction.instruction_class, instruction.mode, 8 * instruction.bytes
    place = f"(u{bits} *)(r{destination} {offset:+d})"
    if kind is InstructionClass.LDX and mode in (Mode.MEM, Mode.MEMSX):
        sign = "s" if mode == Mode.MEMSX else "u"
        return f"r{destination} = *({sign}{bits} *)(r{source} {offset:+d})"
    if kind is InstructionClass.ST and mode == Mode.MEM:
        return f"*{place} = {immediate}"
    if kind is InstructionClass.STX and mode == Mode.MEM:
        return f"*{place} = r{source}"
    if kind is InstructionClass.STX and mode == Mode.ATOMIC:
        return _atomic_text(instruction, place)
    if kind is InstructionClass.LD and mode == Mode.ABS:
        return f"r0 = *(u{bits} *)skb[{immediate}]"
    if kind is InstructionClass.LD and mode == Mode.IND:
        return f"r0 = *(u{bits} *)skb[r{source} + {immediate}]"
    return f"BUG_{kind.name.lower()}_{opcode:02x}"


def _atomic_text(instruction: Instruction, place: str) -> str:
    source, immediate = instruction.source, instruction.immediate
    width = "64" if instruction.size is Size.DW else ""
    if immediate == AtomicOperation.XCHG:
        return f"r{source} = atomic{width}_xchg({place}, r{source})"
    if immediate == AtomicOperation.CMPXCHG:
        return f"r0 = atomic{width}_cmpxchg({place}, r0, r{source})"
    plain = immediate & ~AtomicOperation.FETCH
    if plain not in _ATOMIC_TEXT:
        return f"BUG_{instruction.opcode:02x}"
    symbol, name = _ATOMIC_TEXT[AtomicOperation(plain)]
    if immediate & AtomicOperation.FETCH:
        return f"r{source} = atomic{width}_fetch_{name}({place}, r{source})"
    return f"lock *{place} {symbol} r{source}"
