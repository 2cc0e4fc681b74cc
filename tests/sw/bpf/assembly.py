"""Programs as text, in the syntax that ``disassemble`` and the verifier's log use, with labels.

One instruction a line (or behind ``;``), ``name:`` before one, ``//`` before a remark. ``goto name``, ``call name`` for
a function of the program, ``call helper_name`` without its ``bpf_``, ``r1 = map 3`` and ``r1 = value 3 + 8`` for maps,
``raw 61 0 1 0 0`` (opcode in hexadecimal, destination, source, offset, immediate) for what has no text.
"""

import re

from sw.bpf.helpers import HelperId
from sw.bpf.instruction import (
    LD_IMM64,
    AluOperation,
    AtomicOperation,
    CallKind,
    Immediate64,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
    Size,
    Source,
)

__all__ = ["assemble"]

_ALU = {
    "+": AluOperation.ADD,
    "-": AluOperation.SUB,
    "*": AluOperation.MUL,
    "/": AluOperation.DIV,
    "|": AluOperation.OR,
    "&": AluOperation.AND,
    "<<": AluOperation.LSH,
    ">>": AluOperation.RSH,
    "%": AluOperation.MOD,
    "^": AluOperation.XOR,
    "": AluOperation.MOV,
    "s>>": AluOperation.ARSH,
    "s/": AluOperation.DIV,
    "s%": AluOperation.MOD,
}
_JUMPS = {
    "==": JumpOperation.JEQ,
    ">": JumpOperation.JGT,
    ">=": JumpOperation.JGE,
    "&": JumpOperation.JSET,
    "!=": JumpOperation.JNE,
    "s>": JumpOperation.JSGT,
    "s>=": JumpOperation.JSGE,
    "<": JumpOperation.JLT,
    "<=": JumpOperation.JLE,
    "s<": JumpOperation.JSLT,
    "s<=": JumpOperation.JSLE,
}
_SIZES = {"8": Size.B, "16": Size.H, "32": Size.W, "64": Size.DW}
_ATOMICS = {
    "+": AtomicOperation.ADD,
    "|": AtomicOperation.OR,
    "&": AtomicOperation.AND,
    "^": AtomicOperation.XOR,
    "add": AtomicOperation.ADD_FETCH,
    "or": AtomicOperation.OR_FETCH,
    "and": AtomicOperation.AND_FETCH,
    "xor": AtomicOperation.XOR_FETCH,
    "xchg": AtomicOperation.XCHG,
    "cmpxchg": AtomicOperation.CMPXCHG,
}
_NUMBER = r"[+-]?\s*(?:0x[0-9a-f]+|\d+)"
_PLACE = rf"\*\((?P<sign>[us])(?P<bits>\d+) \*\)\(r(?P<base>\d+) ?(?P<offset>{_NUMBER})\)"
_OPERAND = rf"(?:(?P<letter2>[rw])(?P<source>\d+)|(?P<number>{_NUMBER}))"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


_LOAD = _pattern(rf"r(?P<destination>\d+) = {_PLACE}")
_STORE = _pattern(rf"{_PLACE} = {_OPERAND}")
_LOCK = _pattern(rf"lock {_PLACE} (?P<operation>[+|&^])= r(?P<source>\d+)")
_FETCH = _pattern(rf"r\d+ = atomic_(?:fetch_)?(?P<operation>\w+)\({_PLACE}, (?:r0, )?r(?P<source>\d+)\)")
_SWAP = _pattern(r"r(?P<destination>\d+) = (?P<order>be|le|bswap)(?P<bits>\d+) r\d+")
_NEGATE = _pattern(r"(?P<letter>[rw])(?P<destination>\d+) = -[rw]\d+")
_WIDE = _pattern(rf"r(?P<destination>\d+) = (?P<number>{_NUMBER}) ll")
_MAP = _pattern(r"r(?P<destination>\d+) = (?P<kind>map|value) (?P<fd>\d+)(?: \+ (?P<offset>\d+))?")
_COMPUTE = _pattern(rf"(?P<letter>[rw])(?P<destination>\d+) (?P<operation>[^ =]*)= (?:\(s(?P<extend>\d+)\))?{_OPERAND}")
_BRANCH = _pattern(rf"if (?P<letter>[rw])(?P<destination>\d+) (?P<operation>\S+) {_OPERAND} goto (?P<target>\S+)")
_GOTO = _pattern(r"goto(?P<long>l?) (?P<target>\S+)")
_CALL = _pattern(r"call (?P<target>\w+)")
_RAW = _pattern(r"raw (\w+) (\d+) (\d+) (-?\d+) (-?\d+)")
_LABEL = _pattern(r"(\w+):\s*")


def _number(text: str) -> int:
    return int(text.replace(" ", ""), 0)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def assemble(text: str) -> tuple[Instruction, ...]:
    """Instructions of a text."""
    lines = [part.strip() for line in text.splitlines() for part in line.split("//")[0].split(";")]
    labels: dict[str, int] = {}
    waiting: list[tuple[str, int]] = []
    slot = 0
    for line in lines:
        while found := _LABEL.match(line):
            labels[found[1]] = slot
            line = line[found.end() :]
        if line:
            waiting.append((line, slot))
            slot += 2 if _WIDE.fullmatch(line) or _MAP.fullmatch(line) else 1
    return tuple(instruction for line, slot in waiting for instruction in _assemble(line, slot, labels))


def _assemble(line: str, slot: int, labels: dict[str, int]) -> list[Instruction]:
    if found := _RAW.fullmatch(line):
        return [Instruction(int(found[1], 16), *(int(found[i]) for i in range(2, 6)))]
    if line == "exit":
        return [Instruction(InstructionClass.JMP | JumpOperation.EXIT)]
    for pattern, make in _FORMS:
        if found := pattern.fullmatch(line):
            return make(found, slot, labels)
    raise ValueError(f"no instruction: {line!r}")


def _place(found: re.Match[str], mode: int) -> tuple[int, int, int]:
    base = int(found["base"])
    return mode | _SIZES[found["bits"]], base, _number(found["offset"])


def _load(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    opcode, base, offset = _place(found, Mode.MEMSX if found["sign"] == "s" else Mode.MEM)
    return [Instruction(InstructionClass.LDX | opcode, int(found["destination"]), base, offset)]


def _store(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    opcode, base, offset = _place(found, Mode.MEM)
    if found["source"]:
        return [Instruction(InstructionClass.STX | opcode, base, int(found["source"]), offset)]
    return [Instruction(InstructionClass.ST | opcode, base, 0, offset, _signed(_number(found["number"])))]


def _atomic(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    opcode, base, offset = _place(found, Mode.ATOMIC)
    operation = _ATOMICS[found["operation"]]
    return [Instruction(InstructionClass.STX | opcode, base, int(found["source"]), offset, operation)]


def _swap(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    wide = found["order"] == "bswap"
    opcode = (InstructionClass.ALU64 if wide else InstructionClass.ALU) | AluOperation.END
    opcode |= Source.X if found["order"] == "be" else Source.K
    return [Instruction(opcode, int(found["destination"]), 0, 0, int(found["bits"]))]


def _negate(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    kind = InstructionClass.ALU64 if found["letter"] == "r" else InstructionClass.ALU
    return [Instruction(kind | AluOperation.NEG, int(found["destination"]))]


def _wide(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    value = _number(found["number"])
    first = Instruction(LD_IMM64, int(found["destination"]), Immediate64.VALUE, 0, _signed(value))
    return [first, Instruction(0, 0, 0, 0, _signed(value >> 32))]


def _map(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    kind = Immediate64.MAP_FD if found["kind"] == "map" else Immediate64.MAP_VALUE
    first = Instruction(LD_IMM64, int(found["destination"]), kind, 0, int(found["fd"]))
    return [first, Instruction(0, 0, 0, 0, int(found["offset"] or 0))]


def _compute(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    kind = InstructionClass.ALU64 if found["letter"] == "r" else InstructionClass.ALU
    opcode = kind | _ALU[found["operation"]]
    offset = int(found["extend"] or 0) or int(found["operation"] in ("s/", "s%"))
    if found["source"]:
        return [Instruction(opcode | Source.X, int(found["destination"]), int(found["source"]), offset)]
    return [Instruction(opcode, int(found["destination"]), 0, offset, _signed(_number(found["number"])))]


def _target(name: str, slot: int, labels: dict[str, int]) -> int:
    return labels[name] - slot - 1 if name in labels else _number(name.removeprefix("pc"))


def _branch(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    kind = InstructionClass.JMP if found["letter"] == "r" else InstructionClass.JMP32
    opcode = kind | _JUMPS[found["operation"]]
    offset = _target(found["target"], slot, labels)
    if found["source"]:
        return [Instruction(opcode | Source.X, int(found["destination"]), int(found["source"]), offset)]
    return [Instruction(opcode, int(found["destination"]), 0, offset, _signed(_number(found["number"])))]


def _goto(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    offset = _target(found["target"], slot, labels)
    if found["long"]:
        return [Instruction(InstructionClass.JMP32 | JumpOperation.JA, 0, 0, 0, offset)]
    return [Instruction(InstructionClass.JMP | JumpOperation.JA, 0, 0, offset)]


def _call(found: re.Match[str], slot: int, labels: dict[str, int]) -> list[Instruction]:
    opcode, target = InstructionClass.JMP | JumpOperation.CALL, found["target"]
    if target in labels:
        return [Instruction(opcode, 0, CallKind.LOCAL, 0, labels[target] - slot - 1)]
    number = int(target) if target.isdigit() else HelperId[target.upper()]
    return [Instruction(opcode, 0, CallKind.HELPER, 0, number)]


_FORMS = (
    (_LOAD, _load),
    (_STORE, _store),
    (_LOCK, _atomic),
    (_FETCH, _atomic),
    (_SWAP, _swap),
    (_NEGATE, _negate),
    (_WIDE, _wide),
    (_MAP, _map),
    (_COMPUTE, _compute),
    (_BRANCH, _branch),
    (_GOTO, _goto),
    (_CALL, _call),
)
