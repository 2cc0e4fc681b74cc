"""Programs that show all their registers: the same code for the interpreter, the JIT and the host's kernel.

The body finds numbers in r0 to r9 and may use the stack below ``FREE_STACK``; behind it the registers are written to
the packet. So one run tells everything, and the host's verifier sees no pointer leave the program.
"""

import random
from collections.abc import Iterable, Sequence

from sw.bpf.instruction import (
    FRAME_POINTER,
    LD_IMM64,
    AluOperation,
    AtomicOperation,
    CallKind,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
    Size,
    Source,
)

ALU, ALU64, JMP, JMP32 = InstructionClass.ALU, InstructionClass.ALU64, InstructionClass.JMP, InstructionClass.JMP32
NUMBERS = 10
PACKET_BYTES = 8 * NUMBERS
#: The packet's address is kept in the first 8 bytes of the stack.
_KEPT = -8
FREE_STACK = -16
STACK_WORDS = 8
EXIT = Instruction(JMP | JumpOperation.EXIT)

EDGES = (
    0,
    1,
    2,
    7,
    31,
    32,
    63,
    64,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x100000000,
    0x123456789ABCDEF0,
    0x7FFFFFFFFFFFFFFF,
    0x8000000000000000,
    0x8000000000000001,
    0xFFFFFFFF80000000,
    0xFFFFFFFFFFFFFFFE,
    0xFFFFFFFFFFFFFFFF,
)


def signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def load_immediate(register: int, value: int) -> list[Instruction]:
    return [
        Instruction(LD_IMM64, register, 0, 0, signed32(value)),
        Instruction(0, 0, 0, 0, signed32(value >> 32)),
    ]


def ldx(size: Size, to: int, base: int, offset: int, mode: Mode = Mode.MEM) -> Instruction:
    return Instruction(InstructionClass.LDX | mode | size, to, base, offset)


def stx(size: Size, base: int, source: int, offset: int) -> Instruction:
    return Instruction(InstructionClass.STX | Mode.MEM | size, base, source, offset)


def program(
    registers: Sequence[int], body: Iterable[Instruction], functions: Iterable[Instruction] = ()
) -> tuple[Instruction, ...]:
    """A whole program: registers set, the body, registers shown."""
    code = [
        ldx(Size.W, 2, 1, 0),
        ldx(Size.W, 3, 1, 4),
        Instruction(ALU64 | AluOperation.MOV | Source.X, 4, 2),
        Instruction(ALU64 | AluOperation.ADD | Source.K, 4, 0, 0, PACKET_BYTES),
        Instruction(JMP | JumpOperation.JLE | Source.X, 4, 3, 2),
        Instruction(ALU64 | AluOperation.MOV | Source.K, 0, 0, 0, 0),
        EXIT,
        stx(Size.DW, FRAME_POINTER, 2, _KEPT),
    ]
    for word in range(STACK_WORDS):
        code.append(
            Instruction(
                InstructionClass.ST | Mode.MEM | Size.DW, FRAME_POINTER, 0, FREE_STACK - 8 * word, 257 * word - 3
            )
        )
    for register, value in enumerate(registers):
        code += load_immediate(register, value)
    code += body
    # One register has to make room for the packet's address: it goes by the stack.
    code.append(stx(Size.DW, FRAME_POINTER, 9, FREE_STACK))
    code.append(ldx(Size.DW, 9, FRAME_POINTER, _KEPT))
    code += [stx(Size.DW, 9, register, 8 * register) for register in range(9)]
    code.append(ldx(Size.DW, 0, FRAME_POINTER, FREE_STACK))
    code.append(stx(Size.DW, 9, 0, 72))
    # What the body left on the stack counts, too: mixed into the verdict.
    code.append(Instruction(ALU64 | AluOperation.MOV | Source.K, 0, 0, 0, 0))
    for word in range(1, STACK_WORDS):
        code.append(ldx(Size.DW, 1, FRAME_POINTER, FREE_STACK - 8 * word))
        code.append(Instruction(ALU64 | AluOperation.MUL | Source.K, 0, 0, 0, 31))
        code.append(Instruction(ALU64 | AluOperation.ADD | Source.X, 0, 1))
    code.append(EXIT)
    start = len(code)
    functions = list(functions)
    code += functions
    return tuple(
        one._replace(immediate=start - slot - 1)
        if one.is_call and one.source == CallKind.LOCAL and slot < start
        else one
        for slot, one in enumerate(code)
    )


def shown(packet: bytes) -> list[int]:
    """Registers r0 to r9 as the program has shown them."""
    return [int.from_bytes(packet[n : n + 8], "little") for n in range(0, PACKET_BYTES, 8)]


# ---- Programs at random


class Generator:
    """Makes bodies that any verifier lets through: initialised registers, the stack, jumps forward, loops that end."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def number(self) -> int:
        return self.random.choice(EDGES) if self.random.random() < 0.6 else self.random.getrandbits(64)

    def registers(self) -> list[int]:
        return [self.number() for _ in range(NUMBERS)]

    def body(self, length: int = 30, writable: Sequence[int] = range(NUMBERS), calls: bool = True) -> list[Instruction]:
        code: list[Instruction] = []
        while len(code) < length:
            kind = self.random.random()
            if kind < 0.55:
                code.append(self.alu(writable))
            elif kind < 0.75:
                code += self.memory(writable)
            elif kind < 0.9:
                code += self.branch(writable, length - len(code))
            elif kind < 0.94 and len(writable) > 4:
                code += self.loop(writable)
            elif kind < 0.97 and calls and set(range(6)) <= set(writable):
                code += self.call()
            else:
                code += load_immediate(self.random.choice(writable), self.number())
        return code

    def function(self) -> list[Instruction]:
        """A function of r1 to r5 that gives r0."""
        start = [Instruction(ALU64 | AluOperation.MOV | Source.X, 0, self.random.randrange(1, 6))]
        start += [
            Instruction(ALU64 | AluOperation.MOV | Source.K, register, 0, 0, register) for register in range(6, 10)
        ]
        start += [
            stx(Size.DW, FRAME_POINTER, self.random.randrange(6), FREE_STACK - 8 * word) for word in range(STACK_WORDS)
        ]
        return [*start, *self.body(8, calls=False), EXIT]

    def alu(self, writable: Sequence[int]) -> Instruction:
        choose = self.random.choice
        kind, operation, to = choose((ALU, ALU64)), choose(tuple(AluOperation)), choose(writable)
        if operation is AluOperation.END:
            order = choose(tuple(Source)) if kind is ALU else Source.K
            return Instruction(kind | operation | order, to, 0, 0, choose((16, 32, 64)))
        if operation is AluOperation.NEG:
            return Instruction(kind | operation, to)
        offset = 0
        if operation in (AluOperation.DIV, AluOperation.MOD):
            offset = choose((0, 1))
        if self.random.random() < 0.5:
            if operation is AluOperation.MOV:
                offset = choose((0, 8, 16) if kind is ALU else (0, 8, 16, 32))
            return Instruction(kind | operation | Source.X, to, choose(range(NUMBERS)), offset)
        immediate = signed32(self.number())
        if operation in (AluOperation.LSH, AluOperation.RSH, AluOperation.ARSH):
            immediate &= 31 if kind is ALU else 63
        if operation in (AluOperation.DIV, AluOperation.MOD):
            immediate = immediate or 3
        return Instruction(kind | operation | Source.K, to, 0, offset, immediate)

    def memory(self, writable: Sequence[int]) -> list[Instruction]:
        choose = self.random.choice
        size = choose(tuple(Size))
        width = {Size.B: 1, Size.H: 2, Size.W: 4, Size.DW: 8}[size]
        offset = FREE_STACK - 8 * self.random.randrange(STACK_WORDS) + width * self.random.randrange(8 // width)
        kind = self.random.random()
        if kind < 0.35:
            mode = choose((Mode.MEM, Mode.MEMSX)) if size is not Size.DW else Mode.MEM
            return [ldx(size, choose(writable), FRAME_POINTER, offset, mode)]
        if kind < 0.55:
            return [stx(size, FRAME_POINTER, choose(range(NUMBERS)), offset)]
        if kind < 0.7:
            immediate = signed32(self.number())
            return [Instruction(InstructionClass.ST | Mode.MEM | size, FRAME_POINTER, 0, offset, immediate)]
        size = choose((Size.W, Size.DW))
        width = 4 if size is Size.W else 8
        offset = FREE_STACK - 8 * self.random.randrange(STACK_WORDS) + width * self.random.randrange(8 // width)
        operation = choose(tuple(AtomicOperation))
        source = choose(writable)
        if operation is AtomicOperation.CMPXCHG and 0 not in writable:
            operation = AtomicOperation.XCHG
        return [Instruction(InstructionClass.STX | Mode.ATOMIC | size, FRAME_POINTER, source, offset, operation)]

    def condition(self, offset: int) -> Instruction:
        choose = self.random.choice
        operation = choose([o for o in JumpOperation if o.name not in ("JA", "CALL", "EXIT")])
        kind, to = choose((JMP, JMP32)), choose(range(NUMBERS))
        if self.random.random() < 0.5:
            return Instruction(kind | operation | Source.X, to, choose(range(NUMBERS)), offset)
        return Instruction(kind | operation | Source.K, to, 0, offset, signed32(self.number()))

    def branch(self, writable: Sequence[int], room: int) -> list[Instruction]:
        taken = self.body(min(room, 4), writable, calls=False)
        if self.random.random() < 0.5:
            return [self.condition(len(taken)), *taken]
        other = self.body(2, writable, calls=False)
        skip = self.random.choice(
            (
                Instruction(JMP | JumpOperation.JA, 0, 0, len(other)),
                Instruction(JMP32 | JumpOperation.JA, 0, 0, 0, len(other)),
            )
        )
        return [self.condition(len(taken) + 1), *taken, skip, *other]

    def loop(self, writable: Sequence[int]) -> list[Instruction]:
        counter = writable[-1]
        inside = self.body(3, writable[:-1], calls=False)
        turns = self.random.randrange(1, 5)
        return [
            Instruction(ALU64 | AluOperation.MOV | Source.K, counter, 0, 0, turns),
            *inside,
            Instruction(ALU64 | AluOperation.SUB | Source.K, counter, 0, 0, 1),
            Instruction(JMP | JumpOperation.JNE | Source.K, counter, 0, -len(inside) - 2, 0),
        ]

    def call(self) -> list[Instruction]:
        after = [one for register in range(1, 6) for one in load_immediate(register, self.number())]
        return [Instruction(JMP | JumpOperation.CALL, 0, CallKind.LOCAL), *after]

    def program(self) -> tuple[Instruction, ...]:
        registers, body = self.registers(), self.body()
        called = any(one.is_call for one in body)
        return program(registers, body, self.function() if called else ())
