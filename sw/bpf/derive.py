"""Derives the interpreter's entries of ``sw/costs/bpf.toml`` by llvm-mca, from what its code has to do.

``python -m sw.bpf.derive`` prints them; needs llvm-mca (Debian package llvm-19). The code is ours: the steps of
``___bpf_prog_run`` (``kernel/bpf/core.c``) as a compiler writes them for x86-64: instructions are read at RBX,
registers lie on the stack at RSP, the table of handlers at R12. Loads and stores that programs ask for are left out:
the model issues them itself.
"""

import json
import subprocess
from typing import NamedTuple

from sw.costs.derive.mca import CPUS, find_mca, version

__all__ = ["HANDLERS", "JHASH", "Figures", "derive", "derive_handler", "derive_jhash"]

#: To the next instruction.
_DISPATCH = "add rbx, 8; movzx eax, byte ptr [rbx]; jmp qword ptr [r12 + rax*8]"
#: Numbers of the destination (RAX) and source (RDX) register.
_REGISTERS = "movzx edx, byte ptr [rbx + 1]; mov eax, edx; shr edx, 4; and eax, 15"
_SOURCE = "mov rdx, qword ptr [rsp + rdx*8]"
_OFFSET = "movsx rcx, word ptr [rbx + 2]"

#: Code of each kind of instruction.
HANDLERS = {
    "alu": f"{_REGISTERS}; {_SOURCE}; add qword ptr [rsp + rax*8], rdx; {_DISPATCH}",
    "divide": (
        f"{_REGISTERS}; mov rcx, qword ptr [rsp + rdx*8]; mov rsi, rax; mov rax, qword ptr [rsp + rsi*8]; "
        f"test rcx, rcx; je elsewhere; xor edx, edx; div ecx; mov qword ptr [rsp + rsi*8], rax; {_DISPATCH}"
    ),
    "swap": (
        f"{_REGISTERS}; mov edx, dword ptr [rbx + 4]; "
        f"cmp edx, 32; je elsewhere; cmp edx, 64; je elsewhere; "
        f"mov rdx, qword ptr [rsp + rax*8]; rol dx, 8; movzx edx, dx; mov qword ptr [rsp + rax*8], rdx; {_DISPATCH}"
    ),
    "branch": (
        f"{_REGISTERS}; {_SOURCE}; cmp qword ptr [rsp + rax*8], rdx; jne elsewhere; "
        f"{_OFFSET}; lea rbx, [rbx + rcx*8]; {_DISPATCH}"
    ),
    "goto": f"{_OFFSET}; lea rbx, [rbx + rcx*8]; {_DISPATCH}",
    "load": f"{_REGISTERS}; {_SOURCE}; {_OFFSET}; add rdx, rcx; mov qword ptr [rsp + rax*8], rdx; {_DISPATCH}",
    "store": f"{_REGISTERS}; {_SOURCE}; {_OFFSET}; add rcx, qword ptr [rsp + rax*8]; {_DISPATCH}",
    "atomic": (
        f"{_REGISTERS}; mov esi, dword ptr [rbx + 4]; cmp esi, 64; jg elsewhere; test esi, esi; je elsewhere; "
        f"{_SOURCE}; {_OFFSET}; add rcx, qword ptr [rsp + rax*8]; {_DISPATCH}"
    ),
    "immediate64": (
        f"{_REGISTERS}; mov ecx, dword ptr [rbx + 4]; mov edx, dword ptr [rbx + 12]; shl rdx, 32; or rdx, rcx; "
        f"mov qword ptr [rsp + rax*8], rdx; add rbx, 8; {_DISPATCH}"
    ),
    "call": (
        "mov rdi, qword ptr [rsp + 8]; mov rsi, qword ptr [rsp + 16]; mov rdx, qword ptr [rsp + 24]; "
        "mov rcx, qword ptr [rsp + 32]; mov r8, qword ptr [rsp + 40]; movsxd rax, dword ptr [rbx + 4]; add rax, r13; "
        f"mov qword ptr [rsp - 8], rax; mov rax, qword ptr [rsp - 8]; mov qword ptr [rsp], rax; {_DISPATCH}"
    ),
    "call_local": (
        "mov rdi, qword ptr [rsp + 8]; mov rsi, qword ptr [rsp + 16]; mov rdx, qword ptr [rsp + 24]; "
        "mov rcx, qword ptr [rsp + 32]; mov r8, qword ptr [rsp + 40]; movsxd rax, dword ptr [rbx + 4]; "
        "lea r9, [rbx + rax*8]; sub rsp, 616; mov qword ptr [rsp + 8], rdi; mov qword ptr [rsp + 16], rsi; "
        "mov qword ptr [rsp + 24], rdx; mov qword ptr [rsp + 32], rcx; mov qword ptr [rsp + 40], r8; "
        f"mov rax, qword ptr [rsp]; add rsp, 616; mov qword ptr [rsp], rax; {_DISPATCH}"
    ),
    "exit": "mov rax, qword ptr [rsp]; mov rbx, qword ptr [rsp + 600]; jmp elsewhere",
}

#: Entry of a round of jhash, and bytes of its code: 30 instructions of 2 to 4 bytes, in lines of 64.
JHASH = "jhash_round"
_JHASH_BYTES = 128
#: Lines of __jhash_mix: ``a -= c; a ^= rol32(c, n); c += b``, turned around.
_JHASH_MIX = "; ".join(
    f"sub {a}, {c}; mov r8d, {c}; rol r8d, {count}; xor {a}, r8d; add {c}, {b}"
    for (a, b, c), count in zip(
        (("eax", "ecx", "edx"), ("ecx", "edx", "eax"), ("edx", "eax", "ecx")) * 2, (4, 6, 8, 16, 19, 4), strict=True
    )
)

#: Cycles from a result to the next one's: registers lie in memory, so a value is forwarded from a store to a load (5
#: cycles, Fog, The microarchitecture of Intel, AMD and VIA CPUs) and computed with.
_CHAINS = {"alu": 5 + 1, "swap": 5 + 2, "divide": 5 + 26}

#: Two numbers of repetitions; their difference is free of filling and draining the pipeline.
_FEW, _MANY = 10, 30


class Figures(NamedTuple):
    """What a piece of code takes."""

    cycles: int
    uops: int
    low: int
    high: int


def _run(code: str, cpu: str, iterations: int, *flags: str) -> dict[str, float]:
    lines = [".intel_syntax noprefix", *code.split("; ")]
    command = [str(find_mca()), f"-mcpu={cpu}", "-json", f"-iterations={iterations}", *flags, "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]


def derive(code: str, chain: int = 0) -> Figures:
    """Figures of a piece of code, as ``sw.costs.derive.mca.analyse`` makes them.

    Arguments:
        chain: cycles that the next of a row waits for the result of this one, at least.

    Raises:
        sw.costs.derive.mca.McaError: if there is no llvm-mca.
    """
    version()  # says so if there is none
    few, many = (_run(code, CPUS[0], count) for count in (_FEW, _MANY))
    alone = [_run(code, cpu, 1, "-noalias=false") for cpu in CPUS]
    row = round((many["TotalCycles"] - few["TotalCycles"]) / (_MANY - _FEW))
    cycles = max(row, chain)
    return Figures(
        cycles=cycles,
        uops=round(few["TotaluOps"] / _FEW),
        low=min(row, round(min(one["BlockRThroughput"] for one in alone))),
        high=max(cycles, round(max(one["TotalCycles"] for one in alone))),
    )


def derive_handler(name: str) -> Figures:
    """Figures of an instruction of the interpreter."""
    return derive(HANDLERS[name], _CHAINS.get(name, 0))


def derive_jhash() -> Figures:
    """Figures of a round of the hash."""
    return derive(_JHASH_MIX)


def _entry(name: str, figures: Figures, text_bytes: int, source: str) -> str:
    return (
        f'["{name}"]\ncycles = {figures.cycles}\nuops = {figures.uops}\ntext_bytes = {text_bytes}\n'
        f'low = {figures.low}\nhigh = {figures.high}\nkind = "derived"\n'
        f'source = "sw/bpf/derive.py: {source}, llvm-mca {version()}"\n'
    )


def main() -> None:
    """Print the entries; the interpreter's text is fetched by ``___bpf_prog_run``."""
    for name in HANDLERS:
        print(_entry(f"bpf_interpreter.{name}", derive_handler(name), 0, "steps of ___bpf_prog_run"))
    print(_entry(JHASH, derive_jhash(), _JHASH_BYTES, "__jhash_mix"))


if __name__ == "__main__":
    main()
