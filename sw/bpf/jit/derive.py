"""Derives ``x86.toml``: what each shape of x86-64 instruction that the JIT emits takes, by llvm-mca's tables.

``python -m sw.bpf.jit.derive`` writes the file, and as evidence ``examples.s``: the code of the example programs, each
block with what the table says and what llvm-mca says of the whole. It needs llvm-mca (Debian package llvm-19). Locked
instructions, of which LLVM knows too little, take the published 18 cycles of ``sw/costs/derive/special.toml``.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from sw.bpf.elf import load_object
from sw.bpf.instruction import (
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
from sw.bpf.jit.cost import block_cost
from sw.bpf.jit.layout import Block, Image
from sw.bpf.jit.translate import JitProgram
from sw.bpf.jit.x86 import ADDR_PERCPU, emit, epilogue, prologue, shape
from sw.bpf.memory import FunctionalCore, complete
from sw.bpf.syscall import Bpf
from sw.costs.derive.mca import CPUS, find_mca, version
from sw.linux.mm import MemBlock

__all__ = ["TABLE", "block_by_mca", "derive", "every_instruction", "example_images", "examples"]

TABLE = Path(__file__).with_name("x86.toml")

#: Two numbers of repetitions; their difference is free of filling and draining the pipeline.
_FEW, _MANY = 20, 60

#: What the stack engine makes of an instruction, as shapes that LLVM has right.
_STACK = {
    "push r64": ("mov qword, r64",),
    "pop r64": ("mov r64, qword",),
    "call": ("mov qword, r64", "jmp"),
    "ret": ("mov r64, qword", "jmp"),
    "leave": ("mov r64, r64", "mov r64, qword"),
}
#: Divisions: micro-operations, cycles, latency.
_DIVISIONS = {"div r32": (10, 10, 26), "div r64": (36, 32, 60), "idiv r32": (9, 10, 26), "idiv r64": (59, 40, 70)}

#: An uncontended locked instruction: cycles, as in sw/costs/derive/special.toml.
_LOCK_CYCLES = 18

_HEADER = """\
# What each shape of x86-64 instruction that the JIT emits takes. Written by `python -m sw.bpf.jit.derive`.
#
# uops: micro-operations of the issue width, cycles: reciprocal throughput, latency: cycles until its result is there
# with every access hitting L1; all on {cpu} by the tables of llvm-mca {version}. A jump on a condition fuses with the
# comparison before it; a load with the arithmetic on it counts as two, as LLVM has it; PUSH, POP, CALL, RET and LEAVE
# count as their loads, stores, moves and jumps (docs/costs.md). Locked: the published figure of
# sw/costs/derive/special.toml. Divisions: Fog, Instruction tables, Haswell (LLVM has one figure for all widths).
kind = "derived"
source = "arch/x86/net/bpf_jit_comp.c of Linux 6.12; llvm-mca {version}, {cpu}"

"""


def every_instruction() -> Iterator[tuple[Instruction, int]]:
    """Instructions of every kind and width, with what makes the JIT choose other forms; and a second immediate."""
    kinds = (InstructionClass.ALU, InstructionClass.ALU64)
    registers, immediates = ((1, 2), (4, 3), (3, 4), (0, 5), (9, 0)), (0, 1, 8, -5, 70000)
    for kind, operation, (to, source) in product(kinds, AluOperation, registers):
        if operation is AluOperation.END:
            for bits, order in product((16, 32, 64), Source):
                if kind is InstructionClass.ALU or order is Source.K:
                    yield Instruction(kind | operation | order, to, 0, 0, bits), 0
        elif operation is AluOperation.NEG:
            yield Instruction(kind | operation, to), 0
        else:
            signs: tuple[int, ...] = (0, 1) if operation in (AluOperation.DIV, AluOperation.MOD) else (0,)
            if operation is AluOperation.MOV:
                signs = (0, 8, 16) if kind is InstructionClass.ALU else (0, 8, 16, 32)
            for offset in signs:
                yield Instruction(kind | operation | Source.X, to, source, offset), 0
            shift = operation in (AluOperation.LSH, AluOperation.RSH, AluOperation.ARSH)
            valid = immediates[:3] if shift else immediates
            for immediate, offset in product(valid, signs[:1] if operation is AluOperation.MOV else signs):
                yield Instruction(kind | operation | Source.K, to, 0, offset, immediate), 0
    yield Instruction(InstructionClass.ALU64 | AluOperation.MOV | Source.X, 0, 1, ADDR_PERCPU), 0
    for kind, jump in product((InstructionClass.JMP, InstructionClass.JMP32), JumpOperation):
        if jump in (JumpOperation.CALL, JumpOperation.EXIT):
            continue
        for source, immediate in ((Source.X, 0), (Source.K, 0), (Source.K, 7), (Source.K, 70000)):
            yield Instruction(kind | jump | source, 1, 5 if source else 0, 0, immediate), 0
    for source in (CallKind.HELPER, CallKind.LOCAL):
        yield Instruction(InstructionClass.JMP | JumpOperation.CALL, 0, source, 0, 1), 0
    for size, (to, base), offset in product(Size, registers, (0, -8, 400)):
        yield Instruction(InstructionClass.LDX | Mode.MEM | size, to, base, offset), 0
        if size is not Size.DW:
            yield Instruction(InstructionClass.LDX | Mode.MEMSX | size, to, base, offset), 0
        yield Instruction(InstructionClass.ST | Mode.MEM | size, to, 0, offset, 7), 0
        yield Instruction(InstructionClass.STX | Mode.MEM | size, to, base, offset), 0
        if size in (Size.W, Size.DW):
            for atomic in AtomicOperation:
                yield Instruction(InstructionClass.STX | Mode.ATOMIC | size, to, base, offset, atomic), 0
    for low, high in ((0, 0), (5, 0), (-1, 0), (5, 6)):
        yield Instruction(LD_IMM64, 1, 0, 0, low), high


def examples() -> dict[str, str]:
    """An instruction of each shape."""
    everything = frozenset(range(11))
    texts = [x86.text for x86 in (*prologue(everything, 8), *epilogue(everything))]
    for instruction, high in every_instruction():
        texts += [x86.text for x86 in emit(instruction, high, "target")]
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(shape(text), text)
    return dict(sorted(found.items()))


def derive(cpu: str = CPUS[0]) -> dict[str, tuple[float, float, int]]:
    """Micro-operations, cycles and latency by shape.

    Raises:
        sw.costs.derive.mca.McaError: if there is no llvm-mca.
    """
    found = examples()
    version()  # says so if there is none
    lines = [".intel_syntax noprefix", *found.values(), "target:", "helper:"]
    command = [str(find_mca()), f"-mcpu={cpu}", "-json", "-iterations=1", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout)["CodeRegions"][0]["InstructionInfoView"]["InstructionList"]
    if len(listed) != len(found):
        raise RuntimeError(f"llvm-mca knows {len(listed)} of {len(found)} instructions: {done.stderr}")
    table = {}
    for (name, text), facts in zip(found.items(), listed, strict=True):
        uops, cycles, latency = facts["NumMicroOpcodes"], facts["RThroughput"], facts["Latency"]
        if name == "jcc":
            uops, cycles = 0, 0
        elif "lock " in text or "xchg" in text:
            cycles = latency = _LOCK_CYCLES
        table[name] = (float(uops), float(cycles), int(latency))
    for name, parts in _STACK.items():
        uops, cycles, latency = (sum(figures) for figures in zip(*(table[part] for part in parts), strict=True))
        table[name] = (uops, max(table[part][1] for part in parts), latency)
    return table | {name: (float(uops), float(cycles), latency) for name, (uops, cycles, latency) in _DIVISIONS.items()}


def _toml(table: dict[str, tuple[float, float, int]]) -> str:
    rows = [
        f'[shapes."{name}"]\nuops = {uops:g}\ncycles = {cycles:.4g}\nlatency = {latency}\n'
        for name, (uops, cycles, latency) in table.items()
    ]
    return _HEADER.format(cpu=CPUS[0], version=version()) + "\n".join(rows)


# ---- Evidence: blocks of the example programs

#: What stands for an instruction that llvm-mca would count otherwise.
_STAND_INS = (
    (re.compile(r"^push (\w+)$"), r"mov qword ptr [rsp - 8], \1"),
    (re.compile(r"^pop (\w+)$"), r"mov \1, qword ptr [rsp]"),
    (re.compile(r"^call .*$"), "mov qword ptr [rsp - 8], r11\njmp elsewhere"),
    (re.compile(r"^ret$"), "mov r11, qword ptr [rsp]\njmp elsewhere"),
    (re.compile(r"^leave$"), "mov rsp, rbp\nmov rbp, qword ptr [rsp]"),
    (re.compile(r"^(j(?!mp)\w+|lock) .*$"), ""),
)


def example_images() -> Iterator[tuple[str, Image]]:
    """The code of each example program, at whatever address its maps lie here."""
    for path in sorted((TABLE.parents[1] / "programs").glob("*.o")):
        memory = bytearray(1 << 20)
        core: Any = FunctionalCore(memory)
        bpf = Bpf(MemBlock(len(memory)).allocate, cores=1)
        program, _ = complete(bpf.load_object(core, load_object(path)))
        assert isinstance(program.runner, JitProgram)
        yield path.stem, program.runner.image


def block_by_mca(block: Block, cpu: str = CPUS[0]) -> float:
    """Cycles of a whole block, as one of a row of itself, by llvm-mca.

    Raises:
        sw.costs.derive.mca.McaError: if there is no llvm-mca.
    """
    version()
    lines = [".intel_syntax noprefix"]
    for x86 in block.code:
        text = x86.text
        for pattern, stand_in in _STAND_INS:
            text = pattern.sub(stand_in, text)
        lines.append(text)
    totals = []
    for count in (_FEW, _MANY):
        command = [str(find_mca()), f"-mcpu={cpu}", "-json", f"-iterations={count}", "-"]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
        totals.append(json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]["TotalCycles"])
    return (totals[1] - totals[0]) / (_MANY - _FEW)


def _evidence() -> str:
    text = [
        f"# What the JIT emits for sw/bpf/programs, by `python -m sw.bpf.jit.derive`: llvm-mca {version()}, {CPUS[0]}."
    ]
    text.append(
        "# Of each block: cycles by x86.toml, loads and stores included; cycles by llvm-mca, in a row of itself: a"
    )
    text.append("# block that loads into the register it loads from waits for itself, which in a program it does not.")
    for name, image in example_images():
        text.append(f"\n{name}:")
        for block in image.blocks:
            cost, fraction = block_cost(block.code, 0, block.size)
            text.append(f"slot_{block.start}:  # {cost.cycles + fraction:.2f}; {block_by_mca(block):.2f}")
            text += [f"    {x86.text}" for x86 in block.code]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    TABLE.write_text(_toml(derive()))
    TABLE.with_name("examples.s").write_text(_evidence())
    print(f"{TABLE}: {len(examples())} shapes", file=sys.stderr)
