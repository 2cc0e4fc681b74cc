"""Cycles and micro-operations of a straight piece of code, by llvm-mca (LLVM's machine code analyser)."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sw.costs.derive.instruction import Instruction
from sw.costs.derive.special import special_figures

__all__ = ["CPUS", "Analysis", "McaError", "analyse", "find_mca", "prepare", "version"]

#: Processor models; the first gives the figure, all of them the band.
CPUS = ("broadwell", "skylake-avx512")

#: Two numbers of repetitions; their difference is free of the pipeline's filling and draining.
_FEW, _MANY = 10, 30

#: LLVM's latency for "microcoded, nobody knows".
_UNKNOWN_LATENCY = 100

#: Conditional jumps that fuse with ADD, SUB and CMP before them; with TEST and AND, all do (Intel's Optimization
#: Reference Manual, macro-fusion).
_FUSING_JUMPS = {"jc", "jb", "jae", "jnc", "je", "jz", "jne", "jnz", "jbe", "ja", "jl", "jge", "jle", "jg"}
_ANY_JUMP = re.compile(r"^(test|and)[bwlq]?$")
_CARRY_JUMP = re.compile(r"^(cmp|add|sub)[bwlq]?$")
_COUNT_JUMP = re.compile(r"^(inc|dec)[bwlq]?$")
_JUMPS_OF_COUNTS = {"je", "jz", "jne", "jnz", "jl", "jge", "jle", "jg"}


class McaError(RuntimeError):
    """llvm-mca is missing or does not understand the code; the message is one line."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a piece of code takes without its special instructions, with every access hitting L1."""

    instructions: int
    uops: float
    cycles: float  #: in a row of repetitions, on the first of :data:`CPUS`
    low: float  #: no dependencies, only issue width and ports, on the quickest model
    high: float  #: alone, no load before an earlier store, on the slowest model
    locked: int  #: locked instructions
    indirect: int  #: indirect jumps and calls
    special: Mapping[str, int]  #: instructions that were taken out: their figures are in special.toml


@cache
def find_mca() -> str | None:
    """Path of llvm-mca, or None."""
    return next(filter(None, map(shutil.which, ("llvm-mca-19", "llvm-mca"))), None)


@cache
def version() -> str:
    """Version of LLVM.

    Raises:
        McaError: if there is no llvm-mca.
    """
    said = subprocess.run([_mca(), "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"version (\S+)", said)[1]  # type: ignore[index]


def _mca() -> str:
    found = find_mca()
    if found is None:
        raise McaError("there is no llvm-mca on PATH (Debian package llvm-19)")
    return found


def prepare(code: Sequence[Instruction]) -> tuple[list[str], Counter[str]]:
    """Assembly for llvm-mca, and the special instructions that were taken out.

    PUSH, POP, CALL and RET become their store or load and their jump: the stack pointer's own changes cost nothing
    (stack engine). A comparison and the jump that fuses with it become the comparison. Jumps lead nowhere: the code
    lies in the order in which it runs.
    """
    lines: list[str] = []
    special: Counter[str] = Counter()
    for before, instruction in zip([None, *code], code, strict=False):
        name = _special_name(instruction)
        if name is not None:
            special[name] += 1
        elif before is None or not _fuses(before, instruction):
            lines += _assembly(instruction)
    return lines, special


def _special_name(instruction: Instruction) -> str | None:
    words = instruction.mnemonic.split()
    if "lock" in words or (words[-1].startswith("xchg") and "(" in instruction.operands):
        return "lock"
    if instruction.is_repeated:
        return "rep"
    name = words[0]
    if name.startswith(("div", "idiv")):
        return "div"
    return next((known for known in special_figures() if name in (known, known + "q", known + "l")), None)


def _fuses(before: Instruction, jump: Instruction) -> bool:
    if "$" in before.operands and "(" in before.operands:
        return False
    name = before.mnemonic
    if _ANY_JUMP.match(name):
        return jump.mnemonic.startswith("j") and not jump.mnemonic.startswith("jmp")
    if _CARRY_JUMP.match(name):
        return jump.mnemonic in _FUSING_JUMPS
    return bool(_COUNT_JUMP.match(name)) and jump.mnemonic in _JUMPS_OF_COUNTS


def _assembly(instruction: Instruction) -> list[str]:
    name, operands = instruction.mnemonic, instruction.operands
    if name == "pushq":
        if "(" not in operands and ":" not in operands:
            return [f"movq {operands}, -8(%rsp)"]
        return [f"movq {operands}, %r11", "movq %r11, -8(%rsp)"]
    if name == "popq":
        return [f"movq (%rsp), {operands}"]
    if instruction.is_return:
        return ["jmpq *(%rsp)"]
    if instruction.is_call:
        return ["movq %rsp, -8(%rsp)", f"jmpq {operands}" if instruction.is_indirect else "jmp start"]
    if instruction.is_control:
        return [f"{name} {operands}" if instruction.is_indirect else f"{name} start"]
    return [f"{name} {operands}".strip()]


def _run(lines: Sequence[str], cpu: str, iterations: int, *more: str) -> dict:
    text = "start:\n" + "\n".join(lines) + "\n"
    command = [_mca(), "-mtriple=x86_64", f"-mcpu={cpu}", f"-iterations={iterations}", "-json", *more]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise McaError(f"llvm-mca refuses the code: {' '.join(done.stderr.split())[:300]}")
    region = json.loads(done.stdout)["CodeRegions"][0]
    for line, info in zip(region["Instructions"], region["InstructionInfoView"]["InstructionList"], strict=True):
        if info["Latency"] >= _UNKNOWN_LATENCY:
            raise McaError(f"LLVM's model of {cpu} has no figure for {line.split()[0]}: add it to special.toml")
    return region["SummaryView"]


def analyse(code: Sequence[Instruction], also: Sequence[str] = ()) -> Analysis:
    """Analyse code that lies in the order in which it runs; ``also`` names special instructions that are not in it.

    Raises:
        McaError: if llvm-mca is missing or does not understand the code.
    """
    lines, special = prepare(code)
    special.update(also)
    few, many = (_run(lines, CPUS[0], n) for n in (_FEW, _MANY)) if lines else (None, None)
    cycles = uops = low = high = 0.0
    if few is not None and many is not None:
        cycles = (many["TotalCycles"] - few["TotalCycles"]) / (_MANY - _FEW)
        uops = few["TotaluOps"] / _FEW
        alone = [_run(lines, cpu, 1, "-noalias=false") for cpu in CPUS]
        low = min(one["BlockRThroughput"] for one in alone)
        high = max(one["TotalCycles"] for one in alone)
    return Analysis(
        instructions=len(code),
        uops=uops,
        cycles=cycles,
        low=min(low, cycles),
        high=max(high, cycles),
        locked=special["lock"],
        indirect=sum(instruction.is_control and instruction.is_indirect for instruction in code),
        special=dict(sorted(special.items())),
    )
