"""The JIT's machine code: as long as the host's kernel makes it, and what it costs."""

import errno
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

import sw.bpf.jit
from sw.bpf.elf import load_object
from sw.bpf.instruction import (
    FRAME_POINTER,
    AluOperation,
    AtomicOperation,
    Instruction,
    InstructionClass,
    JumpOperation,
    Mode,
    Size,
    Source,
    encode,
    listing,
)
from sw.bpf.jit.cost import block_cost, shapes
from sw.bpf.jit.derive import derive, every_instruction, example_images, examples
from sw.bpf.jit.layout import lay_out
from sw.bpf.jit.x86 import ADDR_PERCPU, X86, emit, epilogue, prologue
from sw.bpf.verifier import verify
from sw.costs import load_costs
from sw.costs.derive.mca import find_mca
from tests.sw.bpf import host_bpf
from tests.sw.bpf.bench import PROGRAMS, Bench
from tests.sw.bpf.harness import ALU64, EXIT, JMP, ldx, stx

#: Bytes by which the host's code is longer: its return goes to a thunk that defends against speculation.
THUNK_BYTES = 4
#: Where a register that is a base points: 448 bytes below the frame pointer.
BASE = -448


def _surroundings(pointer: int | None) -> list[Instruction]:
    """All registers hold numbers of which nothing is known, but one that points to the stack; all of that is used."""
    mov = ALU64 | AluOperation.MOV | Source.X
    code = [ldx(Size.W, 0, 1, 16), stx(Size.DW, FRAME_POINTER, 0, -512)]
    code += [Instruction(mov, register, 0) for register in range(1, 10)]
    if pointer is not None:
        code.append(Instruction(mov, pointer, FRAME_POINTER))
        code.append(Instruction(ALU64 | AluOperation.ADD | Source.K, pointer, 0, 0, BASE))
    return code


def _pointer(instruction: Instruction) -> int | None:
    if not instruction.is_memory or instruction.is_wide:
        return None
    return instruction.source if instruction.instruction_class is InstructionClass.LDX else instruction.destination


def _rewritten(instruction: Instruction) -> bool:
    """What the kernel's verifier turns into something else before the JIT sees it, or refuses."""
    if instruction.is_goto or instruction.is_call or instruction.offset == ADDR_PERCPU:
        return True
    if instruction.is_alu:
        operation, immediate = instruction.operation, instruction.immediate
        if operation in (AluOperation.DIV, AluOperation.MOD):
            return instruction.from_register or immediate == 0
        if operation in (AluOperation.LSH, AluOperation.RSH, AluOperation.ARSH):
            return not 0 <= immediate < 32
    return instruction.is_branch and instruction.from_register and instruction.destination == instruction.source


def _host_length(code: list[Instruction]) -> int:
    with host_bpf.HostProgram(encode([*code, Instruction(ALU64 | AluOperation.MOV | Source.K), EXIT])) as program:
        return len(program.machine_code())


def test_lengths_are_the_hosts():
    """Each instruction's code is as long as what the host's JIT makes of it."""
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    if " bmi2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the host's processor has no BMI2: its kernel shifts otherwise")
    lengths = {pointer: _host_length(_surroundings(pointer)) for pointer in (None, *range(10))}
    if not all(lengths.values()):
        pytest.skip("the host's kernel does not show machine code, or has no JIT")
    compared = refused = 0
    for instruction, high in every_instruction():
        if _rewritten(instruction):
            continue
        code = [instruction, Instruction(0, immediate=high)] if instruction.is_wide else [instruction]
        pointer = _pointer(instruction)
        try:
            theirs = _host_length([*_surroundings(pointer), *code]) - lengths[pointer]
        except OSError as error:
            assert error.errno in (errno.EACCES, errno.EINVAL)
            refused += 1
            continue
        ours = emit(instruction, high, "target")
        assert sum(x86.size for x86 in ours) == theirs, (listing(code), ours)
        compared += 1
    assert compared > 450 and refused < 20, (compared, refused)


@pytest.mark.parametrize("name", ["drop_all", "mac_swap_tx", "packet_counter", "xsk_redirect"])
def test_the_examples_code_is_the_hosts(name):
    """As long as the host's, fix-ups and lookups written out and all; the firewall's differs by long jumps."""
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    found = load_object(PROGRAMS / f"{name}.o")
    maps = [
        host_bpf.HostMap(d.type, d.key_size, d.value_size, d.max_entries)
        for d in (one.definition for one in found.maps)
    ]
    program = found.bind(found.program(), {n: one.fd for n, one in enumerate(maps)})
    with host_bpf.HostProgram(encode(program.instructions)) as there:
        theirs = len(there.machine_code())
    for one in maps:
        one.close()
    if not theirs:
        pytest.skip("the host's kernel does not show machine code, or has no JIT")
    ours, _ = Bench(verify=verify).load(name)
    assert ours.runner.image.size + THUNK_BYTES == theirs


def test_texts_assemble():
    """Every text is an instruction, of the length that is claimed, but where an assembler finds a shorter one."""
    assembler = shutil.which("llvm-mc-19") or shutil.which("llvm-mc")
    if assembler is None:
        pytest.skip("there is no llvm-mc on PATH (Debian package llvm-19)")
    everything = frozenset(range(11))
    codes = [*prologue(everything, 400), *epilogue(everything)]
    for instruction, high in every_instruction():
        codes += emit(instruction, high, "target")
    codes = [x86 for x86 in dict.fromkeys(codes) if not x86.text.startswith("j")]
    lines = "\n".join([".intel_syntax noprefix", *(x86.text for x86 in codes), "target:", "helper:"])
    command = [assembler, "-triple=x86_64", "-mattr=+bmi2", "-show-encoding"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    encodings = [line.split("encoding: [")[1].split("]")[0] for line in done.stdout.splitlines() if "encoding:" in line]
    assert len(encodings) == len(codes)
    for x86, encoding in zip(codes, encodings, strict=True):
        length = encoding.count(",") + 1
        shorter = "+ 0]" in x86.text or "rsp," in x86.text or x86.text.startswith(("nop", "movsx "))
        assert x86.size == length or (shorter and x86.size == length + 1), (x86, encoding)


def test_a_shape_for_everything():
    assert examples().keys() == shapes().keys()


def test_the_table_is_what_llvm_mca_says():
    if find_mca() is None:
        pytest.skip("there is no llvm-mca on PATH (Debian package llvm-19)")
    assert {name: tuple(figures) for name, figures in shapes().items()} == {
        name: (uops, pytest.approx(cycles, abs=1e-3), latency) for name, (uops, cycles, latency) in derive().items()
    }


def test_block_cost():
    """Four additions a cycle, a multiplication by itself, what the model issues taken off."""
    add, multiply = X86("add rax, rdi", 3), X86("imul rax, rdi", 4)
    load = X86("mov rax, qword ptr [rdi + 8]", 4)
    assert block_cost([add] * 8, 0, 24)[0].cycles == 2
    assert block_cost([add] * 8, 0, 24)[0].uops == 8
    assert block_cost([multiply] * 3, 0, 12)[0].cycles == 3
    cost, _ = block_cost([load] * 4 + [add] * 16, 4, 64)
    assert cost.cycles == 1
    assert cost.low <= cost.cycles <= cost.high and cost.high == 16


def test_fractions_of_a_cycle_are_carried():
    """Five blocks of an addition take a cycle together, and a quarter is left."""
    add, carry, cycles = X86("add rax, rdi", 3), 0.0, 0
    for _ in range(5):
        cost, carry = block_cost([add], 0, 3, carry)
        cycles += cost.cycles
    assert (cycles, carry) == (1, pytest.approx(0.25))


def test_the_evidence_is_what_is_emitted():
    """examples.s has the code and the figures of today, and llvm-mca's of whole blocks are no lower."""
    lines = (Path(sw.bpf.jit.__file__).parent / "examples.s").read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    today = []
    for name, image in example_images():
        today.append(f"{name}:")
        for block in image.blocks:
            cost, fraction = block_cost(block.code, 0, block.size)
            today.append(f"slot_{block.start}:  # {cost.cycles + fraction:.2f}")
            today += [f"    {x86.text}" for x86 in block.code]
    assert [line.split(";")[0] for line in kept] == today
    assert sum("lock" in line for line in kept) == 1, "llvm-mca is not asked about locked instructions"
    for line, code in pairwise(kept):
        if "#" in line:
            ours, whole = (float(figure) for figure in line.split("#")[1].split(";"))
            assert ours <= whole or "mov esi, 1" in code, line  # the block with the locked addition


def test_jumps_grow_when_their_target_is_far():
    add = Instruction(ALU64 | AluOperation.ADD | Source.K, 1, 0, 0, 100_000)
    for count, size in ((18, 2), (19, 6)):  # 7 bytes each; 126 and 133 of them
        code = [Instruction(JMP | JumpOperation.JEQ | Source.K, 2, 0, count, 5), *[add] * count, EXIT]
        image = lay_out(code, [0], {})
        assert image.blocks[0].code[-1].size == size
        assert image.blocks[-1].offset == image.blocks[0].size + 7 * count


def test_code_that_repeats_is_charged_each_time():
    """A loop of ten turns is charged ten times: cycles go with what runs, not with what is there."""
    turns = 10
    code = [
        Instruction(ALU64 | AluOperation.MOV | Source.K, 1, 0, 0, turns),
        *[Instruction(ALU64 | AluOperation.ADD | Source.X, 0, 1)] * 16,
        Instruction(ALU64 | AluOperation.SUB | Source.K, 1, 0, 0, 1),
        Instruction(JMP | JumpOperation.JNE | Source.K, 1, 0, -18, 0),
        EXIT,
    ]
    bench = Bench(costs=load_costs("bpf"))
    program = bench.program([Instruction(ALU64 | AluOperation.MOV | Source.K, 0), *code])
    before = bench.core.cycles
    assert bench.run(program, bytes(64))[0] == 16 * sum(range(1, turns + 1))
    turn = next(block for block in program.runner.image.blocks if block.start == 2)
    assert turns * turn.cost.cycles <= bench.core.cycles - before <= turns * turn.cost.cycles + 8


def test_fetch_loops_of_atomics():
    """AND, OR and XOR that give the old value are loops of CMPXCHG in machine code."""
    fetch = Instruction(InstructionClass.STX | Mode.ATOMIC | Size.DW, 1, 2, 0, AtomicOperation.OR_FETCH)
    assert any(x86.text.startswith("lock cmpxchg") for x86 in emit(fetch))
