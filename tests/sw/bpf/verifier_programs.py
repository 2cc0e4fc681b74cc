"""Programs at random that do what XDP programs do, most of them nearly right: bounds are checked, sometimes wrongly."""

import random

from sw.bpf.instruction import Instruction
from sw.bpf.maps import MapDefinition, MapType
from tests.sw.bpf.assembly import assemble

__all__ = ["MAPS", "mutated", "random_program"]

MAPS = {
    3: MapDefinition(MapType.HASH, 4, 8, 16),
    4: MapDefinition(MapType.ARRAY, 4, 64, 1),
    7: MapDefinition(MapType.ARRAY, 4, 8, 8),
}
_SMALL = (0, 1, 2, 3, 4, 7, 8, 12, 14, 15, 16, 31, 32, 60, 63, 64, 100, 255, -1, -2, -8, -16, 0x7FFFFFFF, -0x80000000)
_CONDITIONS = ("==", "!=", ">", ">=", "<", "<=", "s>", "s>=", "s<", "s<=", "&")
_OPERATIONS = ("+", "-", "*", "/", "|", "&", "<<", ">>", "%", "^", "", "s>>", "s/", "s%")


class _Writer:
    """Writes one program: r6 is the context, r7 the packet, r8 its end, r0 to r5 and r9 are numbers."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.labels = 0
        self.depth = 0

    def number(self) -> int:
        return self.random.choice(_SMALL) if self.random.random() < 0.8 else self.random.randrange(-1 << 31, 1 << 31)

    def scalar(self) -> int:
        return self.random.choice((0, 1, 2, 3, 4, 5, 9))

    def label(self) -> str:
        self.labels += 1
        return f"l{self.labels}"

    def write(self, text: str) -> None:
        self.lines.append(text)

    def program(self) -> str:
        self.write("r6 = r1; r7 = *(u32 *)(r1 +0); r8 = *(u32 *)(r1 +4); r9 = *(u32 *)(r1 +16)")
        self.write(f"r0 = {self.number()}; r1 = {self.number()}; r2 = r9; r3 = r9; r3 <<= 32; r4 = {self.number()}")
        self.write(f"r5 = r9; *(u64 *)(r10 -8) = {self.number()}; *(u64 *)(r10 -16) = r9; *(u64 *)(r10 -24) = 0")
        self.write(f"r1 = r7; r1 += {self.random.choice((8, 16, 20))}; if r1 > r8 goto out")
        for to in self.random.sample((0, 1, 2, 3, 4, 5), 4):
            self.write(f"r{to} = *({self.load(self.random.choice((8, 16, 32)))} *)(r7 +{self.random.randrange(5)})")
        self.write(f"r1 = *(u64 *)(r7 +0); r5 = {self.number()}")
        for _ in range(self.random.randrange(2, 9)):
            self.block()
        self.write("out: r0 = 2; exit")
        self.write(f"function: r0 = r1; r0 += r2; r6 = r0; if r0 > {self.random.choice(_SMALL[:18])} goto f")
        self.write("*(u64 *)(r10 -8) = r0; r0 = *(u32 *)(r10 -8); f: r3 = r6; exit")
        return "\n".join(self.lines)

    def load(self, bits: int) -> str:
        return f"{self.random.choice('us')}{bits}"

    def block(self) -> None:
        blocks = [self.compute] * 5 + [self.branch] * 3 + [self.packet, self.indexed, self.stack, self.value] * 2
        blocks += [self.indexed_stack, self.lookup, self.loop, self.call, self.spill, self.adjust, self.checksum]
        blocks += [self.spilled_index]
        self.random.choice(blocks)()

    def compute(self) -> None:
        for _ in range(self.random.randrange(1, 4)):
            operation, letter = self.random.choice(_OPERATIONS), self.random.choice("rrw")
            operand = f"{letter}{self.scalar()}" if self.random.random() < 0.4 else str(self.number())
            if operation in ("<<", ">>", "s>>") and operand[0] not in "rw":
                operand = str(self.random.randrange(64 if letter == "r" else 32))
            if operation in ("/", "%", "s/", "s%") and operand == "0":
                operand = "3"
            extension = ""
            if operation == "" and operand[0] in "rw" and self.random.random() < 0.4:
                extension = f"(s{self.random.choice((8, 16, 32) if letter == 'r' else (8, 16))})"
            self.write(f"{letter}{self.scalar()} {operation}= {extension}{operand}")
        if self.random.random() < 0.2:
            to, order = self.scalar(), self.random.choice(("be", "le", "bswap"))
            self.write(f"r{to} = {order}{self.random.choice((16, 32, 64))} r{to}")

    def condition(self) -> str:
        """Of two different registers: what a number says of itself older kernels do not see."""
        letter = self.random.choice("rrw")
        register, other = self.random.sample((0, 1, 2, 3, 4, 5, 9), 2)
        operand = f"{letter}{other}" if self.random.random() < 0.35 else str(self.number())
        return f"if {letter}{register} {self.random.choice(_CONDITIONS)} {operand} goto"

    def branch(self) -> None:
        if self.depth >= 3:
            return
        self.depth += 1
        after, other = self.label(), self.label()
        self.write(f"{self.condition()} {other}")
        self.compute()
        if self.random.random() < 0.5:
            self.block()
        if self.random.random() < 0.5:
            self.write(f"goto {after}")
            self.write(f"{other}: r9 = r9")
            self.block()
        else:
            self.write(f"{other}: r9 = r9")
        self.write(f"{after}: r9 = r9")
        self.depth -= 1

    def check_packet(self, register: int) -> None:
        """Leave if a pointer is behind the packet's end, in one of the ways to say so."""
        end = self.random.choice((f"r{register} > r8", f"r{register} >= r8", f"r8 < r{register}", f"r8 <= r{register}"))
        if self.random.random() < 0.7:
            self.write(f"if {end} goto out")
        else:
            inside = self.label()
            text = self.random.choice((f"r{register} <= r8", f"r{register} < r8", f"r8 >= r{register}"))
            self.write(f"if {text} goto {inside}")
            self.write("goto out")
            self.write(f"{inside}: r9 = r9")

    def packet(self) -> None:
        reach = self.random.choice((1, 4, 8, 14, 20, 64))
        self.write(f"r1 = r7; r1 += {reach}")
        self.check_packet(1)
        bits = self.random.choice((8, 16, 32, 64))
        offset = max(0, reach - bits // 8 + self.random.choice((-1, 0, 0, 0, 0, 1)))
        if self.random.random() < 0.5:
            self.write(f"r{self.random.choice((0, 2, 3))} = *(u{bits} *)(r7 +{offset})")
        else:
            self.write(f"*(u{bits} *)(r7 +{offset}) = r{self.random.choice((2, 9))}")
        self.write("r1 = r9")

    def bound(self, register: int, most: int) -> None:
        """Make a number lie from 0 to about ``most``, in one of the ways to do so."""
        way = self.random.randrange(5)
        if way == 0:
            self.write(f"r{register} &= {most}")
        elif way == 1:
            self.write(f"if r{register} > {most} goto out")
        elif way == 2:
            self.write(f"w{register} = w{register}; if w{register} >= {most} goto out")
        elif way == 3:
            low = self.random.choice((0, 0, 0, -1, -2))
            self.write(f"if r{register} s> {most} goto out; if r{register} s< {low} goto out")
        else:
            other = self.scalar()
            self.write(f"r{register} %= {most + 1}; if r{register} > {most} goto out; r{other} = r{register}")

    def indexed(self) -> None:
        index, reach = self.scalar(), self.random.choice((1, 2, 4, 8))
        index = 2 if index == 1 else index
        self.bound(index, self.random.choice((7, 15, 60, 1023)))
        self.write(f"r1 = r7; r1 += r{index}")
        if self.random.random() < 0.3:
            self.write(f"r1 += {self.random.choice((1, 2, 14, -1))}")
        where = self.random.choice((0, 0, 0, 1, -1))
        other = 3 if index != 3 else 4
        self.write(f"r{other} = r1; r{other} += {reach}")
        self.check_packet(other)
        self.write(f"r{other} = *(u{8 * reach} *)(r1 {where:+d}); r1 = r9")

    def stack(self) -> None:
        bits = self.random.choice((8, 16, 32, 64))
        offset = -8 * self.random.randrange(1, 5) + self.random.randrange(8) // (bits // 8) * (bits // 8)
        if self.random.random() < 0.5:
            bits_text = f"u{bits}" if bits == 64 else self.load(bits)
            self.write(f"r{self.scalar()} = *({bits_text} *)(r10 {offset:+d})")
        elif self.random.random() < 0.7:
            self.write(f"*(u{bits} *)(r10 {offset:+d}) = r{self.scalar()}")
        else:
            self.write(f"*(u{bits} *)(r10 {offset:+d}) = {self.number()}")
        if self.random.random() < 0.2:
            self.write(f"r{self.scalar()} = atomic_fetch_add(*(u64 *)(r10 -16), r{self.scalar()})")

    def indexed_stack(self) -> None:
        index = self.random.choice((2, 3, 4, 5))
        self.bound(index, self.random.choice((7, 15, 31, 33)))
        self.write(f"r1 = r10; r1 += -32; r1 += r{index}")
        if self.random.random() < 0.5:
            self.write(f"*(u8 *)(r1 +0) = {self.random.choice((0, 5))}")
        else:
            self.write(f"r{index} = *(u8 *)(r1 +0)")
        self.write("r1 = r9")

    def spill(self) -> None:
        slot = -8 * self.random.randrange(1, 5)
        kept = self.random.choice((7, 9, 10, 6))
        self.write(f"*(u64 *)(r10 {slot}) = r{kept}")
        self.block()
        self.write(f"r1 = *(u64 *)(r10 {slot})")
        if kept == 7 and self.random.random() < 0.5:
            self.write("r1 = *(u8 *)(r1 +0)")
        self.write("r1 = r9")

    def spilled_index(self) -> None:
        """A bounded number goes by the stack before it is used."""
        index, most = self.random.choice((2, 3, 4)), self.random.choice((31, 56, 60))
        self.bound(index, most)
        self.write(f"*(u64 *)(r10 -32) = r{index}")
        self.branch()
        self.write(f"r5 = *(u{self.random.choice((64, 32, 8))} *)(r10 -32); r1 = value 4 + 0; r1 += r5")
        self.write(f"r5 = *(u{self.random.choice((8, 32))} *)(r1 +0); r1 = r9")

    def value(self) -> None:
        index = self.random.choice((2, 3, 4, 5))
        self.bound(index, self.random.choice((31, 55, 56, 60)))
        if self.random.random() < 0.4:
            self.write(self.condition() + " out")
        self.write(f"r1 = value 4 + {self.random.choice((0, 0, 8))}; r1 += r{index}")
        if self.random.random() < 0.3:
            self.write(f"r1 += {self.random.choice((-1, 1, 4, -4))}")
        if self.random.random() < 0.5:
            self.write(f"*(u64 *)(r1 +0) = r{self.random.choice((2, 3, 9))}; r1 = r9")
        else:
            self.write(f"r{index} = *(u{self.random.choice((8, 32, 64))} *)(r1 +0); r1 = r9")

    def lookup(self) -> None:
        fd, after = self.random.choice((3, 7)), self.label()
        key = self.random.choice(("*(u32 *)(r10 -8) = 2", "*(u32 *)(r10 -8) = r9", "*(u32 *)(r10 -8) = 9"))
        self.write(f"{key}; r1 = map {fd}; r2 = r10; r2 += -8; call map_lookup_elem")
        if self.random.random() < 0.4:
            self.write("*(u64 *)(r10 -32) = r0")
        if self.random.random() < 0.9:
            self.write(f"if r0 {self.random.choice(('==', '==', '!='))} 0 goto {after}")
        self.write(f"r3 = *(u64 *)(r0 +{self.random.choice((0, 0, 0, 4))})")
        self.write(f"{after}: " + "; ".join(f"r{n} = {self.number()}" for n in range(6)))

    def loop(self) -> None:
        if self.depth >= 2:
            return
        self.depth += 1
        again, counter = self.label(), self.random.choice((2, 3))
        self.write(f"r{counter} = 0")
        self.write(f"{again}: r9 = r9")
        way = self.random.randrange(4)
        if way == 0:
            self.write(f"r5 = r10; r5 += -32; r5 += r{counter}; *(u8 *)(r5 +0) = {self.random.choice((0, 1))}; r5 = 0")
        elif way == 1:
            self.write(f"r5 = value 4 + 0; r5 += r{counter}; r4 = *(u8 *)(r5 +0); r5 = r4")
        elif way == 2:
            self.write(f"r4 = r7; r4 += r{counter}; r5 = r4; r5 += 1; if r5 > r8 goto out; r4 = *(u8 *)(r4 +0); r5 = 0")
        else:
            self.write("r4 += r5")
        self.write(f"r{counter} += {self.random.choice((1, 1, 2))}")
        condition = self.random.choice(("<", "!=", "s<"))
        self.write(f"if r{counter} {condition} {self.random.choice((4, 8, 30, 70))} goto {again}")
        self.depth -= 1

    def call(self) -> None:
        self.write("call function; " + "; ".join(f"r{n} = {self.number()}" for n in range(1, 6)))

    def adjust(self) -> None:
        self.write(f"r1 = r6; r2 = {self.random.choice((4, -8, 2))}; call xdp_adjust_head")
        if self.random.random() < 0.9:
            self.write("r7 = *(u32 *)(r6 +0); r8 = *(u32 *)(r6 +4)")
        self.write("; ".join(f"r{n} = {self.number()}" for n in range(1, 6)))

    def checksum(self) -> None:
        self.bound(9, self.random.choice((8, 16, 33)))
        self.write("r1 = 0; r2 = 0; r3 = r10; r3 += -32; r4 = r9; r5 = 0; call csum_diff")
        self.write("; ".join(f"r{n} = {self.number()}" for n in range(1, 6)))


def random_program(seed: int) -> tuple[Instruction, ...]:
    """A program; the same for the same seed."""
    text = _Writer(seed).program()
    if "call function" not in text:
        text = text[: text.index("function:")]
    return assemble(text)


def mutated(code: tuple[Instruction, ...], seed: int) -> tuple[Instruction, ...]:
    """The program with a small change in one instruction."""
    chance = random.Random(seed)
    found = list(code)
    slot = chance.choice(
        [n for n, one in enumerate(code) if not (one.is_call or one.is_exit or one.opcode in (0, 0x18))]
    )
    one = found[slot]
    if one.is_memory:
        change = {"offset": one.offset + chance.choice((-8, -4, -1, 1, 4, 8))}
    elif one.is_branch:
        change = {
            "opcode": one.opcode & 0x0F
            | chance.choice((0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0))
        }
    elif one.from_register:
        change = {"source": chance.randrange(10)}
    else:
        change = {"immediate": max(-1 << 31, min((1 << 31) - 1, one.immediate + chance.choice((-2, -1, 1, 2, 8))))}
    found[slot] = one._replace(**change)
    return tuple(found)
