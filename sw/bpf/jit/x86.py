"""The x86-64 instructions that the kernel's JIT emits for each instruction of a program, and how long each is.

Source: ``arch/x86/net/bpf_jit_comp.c`` of Linux 6.12, for a processor with BMI2, without mitigations and indirect
branch tracking. The text (Intel's syntax) is for llvm-mc and llvm-mca; at run time only lengths and shapes are used.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from sw.bpf.instruction import (
    FRAME_POINTER,
    LD_IMM64,
    AluOperation,
    AtomicOperation,
    CallKind,
    Immediate64,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
)

__all__ = ["ADDR_PERCPU", "X86", "emit", "epilogue", "prologue", "shape"]

#: ``offset`` of a 64-bit MOV by which the kernel's verifier stands for "turn a per-CPU pointer into an address"
#: (``BPF_ADDR_PERCPU``); programs themselves cannot contain it.
ADDR_PERCPU = -1


class X86(NamedTuple):
    """One instruction."""

    text: str
    size: int  #: bytes; of a jump to a label, of its short form


#: Registers by number: r0 to r10, then the JIT's own two.
_AX, _AUX = 11, 12
_REG64 = ("rax", "rdi", "rsi", "rdx", "rcx", "r8", "rbx", "r13", "r14", "r15", "rbp", "r10", "r11")
_REG32 = ("eax", "edi", "esi", "edx", "ecx", "r8d", "ebx", "r13d", "r14d", "r15d", "ebp", "r10d", "r11d")
_REG16 = ("ax", "di", "si", "dx", "cx", "r8w", "bx", "r13w", "r14w", "r15w", "bp", "r10w", "r11w")
_REG8 = ("al", "dil", "sil", "dl", "cl", "r8b", "bl", "r13b", "r14b", "r15b", "bpl", "r10b", "r11b")
#: Registers that need a REX prefix, and those whose low byte does.
_EXTENDED = frozenset({5, 7, 8, 9, _AX, _AUX})
_EXTENDED8 = _EXTENDED | {1, 2, FRAME_POINTER}
_RAX, _RDX, _RCX = 0, 3, 4
_CALLEE_SAVED = (6, 7, 8, 9)

_ALU = {
    AluOperation.ADD: "add",
    AluOperation.SUB: "sub",
    AluOperation.AND: "and",
    AluOperation.OR: "or",
    AluOperation.XOR: "xor",
}
_SHIFTS = {
    AluOperation.LSH: ("shl", "shlx"),
    AluOperation.RSH: ("shr", "shrx"),
    AluOperation.ARSH: ("sar", "sarx"),
}
_JUMPS = {
    JumpOperation.JEQ: "je",
    JumpOperation.JNE: "jne",
    JumpOperation.JSET: "jne",
    JumpOperation.JGT: "ja",
    JumpOperation.JLT: "jb",
    JumpOperation.JGE: "jae",
    JumpOperation.JLE: "jbe",
    JumpOperation.JSGT: "jg",
    JumpOperation.JSLT: "jl",
    JumpOperation.JSGE: "jge",
    JumpOperation.JSLE: "jle",
}
_WIDTHS = {1: "byte", 2: "word", 4: "dword", 8: "qword"}
_NAMES = {1: _REG8, 2: _REG16, 4: _REG32, 8: _REG64}


def _rex(*registers: int) -> int:
    """Bytes of a REX prefix that is there only for the registers."""
    return int(any(register in _EXTENDED for register in registers))


def _imm8(value: int) -> bool:
    return -128 <= value <= 127


def _displacement(offset: int) -> int:
    """Bytes of ModR/M and displacement."""
    return 2 if _imm8(offset) else 5


def _place(size: int, base: int, offset: int) -> str:
    return f"{_WIDTHS[size]} ptr [{_REG64[base]} {'-' if offset < 0 else '+'} {abs(offset)}]"


def _move(wide: bool, to: int, source: int) -> list[X86]:
    if wide:
        return [] if to == source else [X86(f"mov {_REG64[to]}, {_REG64[source]}", 3)]
    return [X86(f"mov {_REG32[to]}, {_REG32[source]}", 2 + _rex(to, source))]


def _move_immediate(sign_extended: bool, to: int, value: int) -> list[X86]:
    if sign_extended and value < 0:
        return [X86(f"mov {_REG64[to]}, {value}", 7)]
    if value == 0:
        return [X86(f"xor {_REG32[to]}, {_REG32[to]}", 2 + _rex(to))]
    return [X86(f"mov {_REG32[to]}, {value & 0xFFFFFFFF}", 5 + _rex(to))]


def _alu(instruction: Instruction) -> list[X86]:
    _, to, source, offset, immediate = instruction
    wide = instruction.instruction_class is InstructionClass.ALU64
    register, operation = instruction.from_register, AluOperation(instruction.operation)
    names = _REG64 if wide else _REG32
    longer = 1 if wide else _rex(to)
    if operation in _ALU:
        name = _ALU[operation]
        if register:
            return [X86(f"{name} {names[to]}, {names[source]}", 3 if wide else 2 + _rex(to, source))]
        size = 3 if _imm8(immediate) else 5 if to == _RAX else 6
        return [X86(f"{name} {names[to]}, {immediate}", size + longer)]
    if operation is AluOperation.MOV:
        return _mov(instruction, wide)
    if operation is AluOperation.NEG:
        return [X86(f"neg {names[to]}", 2 + longer)]
    if operation is AluOperation.MUL:
        if register:
            return [X86(f"imul {names[to]}, {names[source]}", 4 if wide else 3 + _rex(to, source))]
        return [X86(f"imul {names[to]}, {names[to]}, {immediate}", (3 if _imm8(immediate) else 6) + longer)]
    if operation in _SHIFTS:
        return _shift(_SHIFTS[operation], wide, to, source if register else None, immediate)
    if operation is AluOperation.END:
        return _swap(instruction, wide)
    return _divide(operation is AluOperation.MOD, bool(offset), wide, to, source if register else None, immediate)


def _mov(instruction: Instruction, wide: bool) -> list[X86]:
    _, to, source, offset, immediate = instruction
    if not instruction.from_register:
        return _move_immediate(wide, to, immediate)
    if offset == ADDR_PERCPU:
        return [*_move(True, to, source), X86(f"add {_REG64[to]}, qword ptr gs:[0]", 9)]
    if not offset:
        return _move(wide, to, source)
    if offset == 32:
        return [X86(f"movsxd {_REG64[to]}, {_REG32[source]}", 3)]
    names, part = (_REG64 if wide else _REG32), _NAMES[offset // 8]
    rex = int(wide or offset == 8) or _rex(to, source)  # for a byte, the JIT always says it
    return [X86(f"movsx {names[to]}, {part[source]}", 3 + rex)]


def _shift(names: tuple[str, str], wide: bool, to: int, source: int | None, immediate: int) -> list[X86]:
    registers = _REG64 if wide else _REG32
    if source is None:
        size = (2 if immediate == 1 else 3) + (1 if wide else _rex(to))
        return [X86(f"{names[0]} {registers[to]}, {immediate}", size)]
    if source != _RCX:
        return [X86(f"{names[1]} {registers[to]}, {registers[to]}, {registers[source]}", 5)]
    target = _AUX if to == _RCX else to
    shift = X86(f"{names[0]} {registers[target]}, cl", 3 if wide else 2 + _rex(target))
    if to != _RCX:
        return [shift]
    return [*_move(True, _AUX, to), shift, *_move(True, to, _AUX)]


def _swap(instruction: Instruction, wide: bool) -> list[X86]:
    to, bits = instruction.destination, instruction.immediate
    extend = X86(f"movzx {_REG32[to]}, {_REG16[to]}", 3 + _rex(to))
    if wide or instruction.from_register:
        if bits == 16:
            return [X86(f"ror {_REG16[to]}, 8", 4 + _rex(to)), extend]
        return [X86(f"bswap {_REG64[to]}", 3) if bits == 64 else X86(f"bswap {_REG32[to]}", 2 + _rex(to))]
    if bits == 16:
        return [extend]
    return _move(False, to, to) if bits == 32 else []


def _divide(modulo: bool, signed: bool, wide: bool, to: int, source: int | None, immediate: int) -> list[X86]:
    code = []
    if to != _RAX:
        code.append(X86("push rax", 1))
    if to != _RDX:
        code.append(X86("push rdx", 1))
    if source is None:
        code.append(X86(f"mov r11, {immediate}", 7))
        source = _AUX
    elif source in (_RAX, _RDX):
        code += _move(True, _AUX, source)
        source = _AUX
    if to != _RAX:
        code += _move(wide, _RAX, to)
    names = _REG64 if wide else _REG32
    if signed:
        code.append(X86("cqo", 2) if wide else X86("cdq", 1))
    else:
        code.append(X86("xor edx, edx", 2))
    code.append(X86(f"{'idiv' if signed else 'div'} {names[source]}", 3 if wide else 2 + _rex(source)))
    if modulo and to != _RDX:
        code += _move(wide, to, _RDX)
    elif not modulo and to != _RAX:
        code += _move(wide, to, _RAX)
    if to != _RDX:
        code.append(X86("pop rdx", 1))
    if to != _RAX:
        code.append(X86("pop rax", 1))
    return code


def _load(size: int, to: int, base: int, offset: int, signed: bool = False) -> X86:
    place, tail = _place(size, base, offset), _displacement(offset)
    if signed:
        name = "movsxd" if size == 4 else "movsx"
        return X86(f"{name} {_REG64[to]}, {place}", (2 if size == 4 else 3) + tail)
    if size <= 2:
        return X86(f"movzx {_REG64[to]}, {place}", 3 + tail)
    return X86(f"mov {_NAMES[size][to]}, {place}", (2 if size == 8 else 1 + _rex(to, base)) + tail)


def _store(size: int, base: int, offset: int, source: int) -> X86:
    rex = size == 8 or _rex(base, source) or (size == 1 and source in _EXTENDED8)
    text = f"mov {_place(size, base, offset)}, {_NAMES[size][source]}"
    return X86(text, 1 + int(size == 2) + int(rex) + _displacement(offset))


def _store_immediate(size: int, base: int, offset: int, value: int) -> X86:
    rex = size == 8 or _rex(base)
    text = f"mov {_place(size, base, offset)}, {value if size == 8 else value & ((1 << 8 * size) - 1)}"
    return X86(text, 1 + int(size == 2) + int(rex) + _displacement(offset) + min(size, 4))


def _locked(name: str, opcode_bytes: int, size: int, base: int, offset: int, source: int) -> X86:
    text = f"lock {name} {_place(size, base, offset)}, {_NAMES[size][source]}"
    return X86(text, 1 + int(size == 8 or _rex(base, source)) + opcode_bytes + _displacement(offset))


def _atomic(instruction: Instruction) -> list[X86]:
    _, base, source, offset, immediate = instruction
    size, operation = instruction.bytes, AtomicOperation(immediate)
    if operation is AtomicOperation.XCHG:  # locked by itself, but the JIT says it
        return [_locked("xchg", 1, size, base, offset, source)]
    if operation is AtomicOperation.CMPXCHG:
        return [_locked("cmpxchg", 2, size, base, offset, source)]
    if operation is AtomicOperation.ADD_FETCH:
        return [_locked("xadd", 2, size, base, offset, source)]
    name = _ALU[AluOperation(immediate & ~AtomicOperation.FETCH)]
    if not immediate & AtomicOperation.FETCH:
        return [_locked(name, 1, size, base, offset, source)]
    wide = size == 8
    real_source, real_base = (_AX if register == _RAX else register for register in (source, base))
    names = _NAMES[size]
    alu = X86(f"{name} {names[_AUX]}, {names[real_source]}", 3)
    return [
        *_move(True, _AX, _RAX),
        _load(size, _RAX, real_base, offset),
        *_move(wide, _AUX, _RAX),
        alu,
        _locked("cmpxchg", 2, size, real_base, offset, _AUX),
        X86("jne -16", 2),
        *_move(wide, real_source, _RAX),
        *_move(True, _RAX, _AX),
    ]


def _memory(instruction: Instruction) -> list[X86]:
    _, to, source, offset, immediate = instruction
    size, kind = instruction.bytes, instruction.instruction_class
    if kind is InstructionClass.LDX:
        return [_load(size, to, source, offset, signed=instruction.mode == Mode.MEMSX)]
    if kind is InstructionClass.ST:
        return [_store_immediate(size, to, offset, immediate)]
    return _atomic(instruction) if instruction.mode == Mode.ATOMIC else [_store(size, to, offset, source)]


def _compare(instruction: Instruction) -> X86:
    _, to, source, _, immediate = instruction
    wide = instruction.instruction_class is InstructionClass.JMP
    names, longer = (_REG64 if wide else _REG32), (1 if wide else _rex(to))
    test = instruction.operation == JumpOperation.JSET
    if instruction.from_register:
        size = 3 if wide else 2 + _rex(to, source)
        return X86(f"{'test' if test else 'cmp'} {names[to]}, {names[source]}", size)
    if test:
        return X86(f"test {names[to]}, {immediate}", 6 + longer)
    if immediate == 0:
        return X86(f"test {names[to]}, {names[to]}", 2 + longer)
    return X86(f"cmp {names[to]}, {immediate}", (3 if _imm8(immediate) else 6) + longer)


def emit(instruction: Instruction, high: int = 0, label: str = "") -> list[X86]:
    """What stands for one instruction other than EXIT.

    Arguments:
        high: immediate of the second slot of LD_IMM64.
        label: where a jump or a call goes.
    """
    if instruction.is_alu:
        return _alu(instruction)
    if instruction.opcode == LD_IMM64:
        value = (high & 0xFFFFFFFF) << 32 | instruction.immediate & 0xFFFFFFFF
        # The kernel's addresses do not fit 32 bits, though the model's do.
        if value >> 32 == 0 and instruction.source == Immediate64.VALUE:
            return _move_immediate(False, instruction.destination, value)
        return [X86(f"movabs {_REG64[instruction.destination]}, {value}", 10)]
    if not instruction.is_jump:
        return _memory(instruction)
    if instruction.is_call:
        return [X86(f"call {label if instruction.source == CallKind.LOCAL else 'helper'}", 5)]
    if instruction.is_goto:
        return [X86(f"jmp {label}", 2)]
    return [_compare(instruction), X86(f"{_JUMPS[JumpOperation(instruction.operation)]} {label}", 2)]


def _saved(used: frozenset[int]) -> list[int]:
    return [register for register in _CALLEE_SAVED if register in used]


def _push_or_pop(name: str, register: int) -> X86:
    return X86(f"{name} {_REG64[register]}", 1 + _rex(register))


def prologue(used: frozenset[int], stack_depth: int) -> list[X86]:
    """What a function begins with.

    Arguments:
        used: registers that occur in it.
        stack_depth: bytes of stack it uses.
    """
    code = [X86("nop dword ptr [rax + rax]", 5), X86("nop dword ptr [rax]", 3)]
    code += [X86("push rbp", 1), X86("mov rbp, rsp", 3)]
    if stack_depth:
        code.append(X86(f"sub rsp, {(stack_depth + 7) // 8 * 8}", 7))
    return code + [_push_or_pop("push", register) for register in _saved(used)]


def epilogue(used: frozenset[int]) -> list[X86]:
    """What a function ends with; only one EXIT has it, the others jump there."""
    pops = [_push_or_pop("pop", register) for register in reversed(_saved(used))]
    return [*pops, X86("leave", 1), X86("ret", 1)]


# ---- Shapes: what two instructions of the same cost have in common

_SUBSTITUTES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(byte|word|dword|qword) ptr (gs:)?\[[^]]*\]"), r"\1"),
    (re.compile(rf"\b({'|'.join(_REG64)}|rsp)\b"), "r64"),
    (re.compile(rf"\b({'|'.join(_REG32)})\b"), "r32"),
    (re.compile(rf"\b({'|'.join(_REG16)})\b"), "r16"),
    (re.compile(r"^(s[ha][lr] .*), cl$"), r"\1, count"),
    (re.compile(rf"\b({'|'.join(_REG8)})\b"), "r8"),
    (re.compile(r"^(j(?!mp)\w+) .*"), "jcc"),
    (re.compile(r"^(jmp|call) .*"), r"\1"),
    (re.compile(r", -?\d+$"), ", i"),
]


@lru_cache(maxsize=4096)
def shape(text: str) -> str:
    """An instruction without the names of its registers, its numbers and places: the key of its cost."""
    if re.fullmatch(r"xor (\w+), \1", text):
        return "zero"  # known to give 0 without waiting
    for pattern, substitute in _SUBSTITUTES:
        text = pattern.sub(substitute, text)
    return text
