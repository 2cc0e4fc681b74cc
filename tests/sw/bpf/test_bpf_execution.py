"""Every instruction of RFC 9669's base set, interpreted and translated, against a table and the host's kernel."""

import itertools

import pytest

from sw.bpf.errors import BpfError
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
)
from sw.bpf.interpreter import ExecutionError
from sw.bpf.verifier import verify
from tests.sw.bpf import host_bpf
from tests.sw.bpf.bench import Bench
from tests.sw.bpf.harness import (
    ALU,
    ALU64,
    EDGES,
    FREE_STACK,
    JMP,
    JMP32,
    NUMBERS,
    PACKET_BYTES,
    Generator,
    ldx,
    program,
    shown,
    signed32,
)

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
X, K = Source.X, Source.K
A, J, T = AluOperation, JumpOperation, AtomicOperation

#: Instruction, r1 (destination), r2 (source), what r1 is afterwards. Written from RFC 9669's text, section by section.
ALU_TABLE = [
    (ALU64 | A.ADD | X, 0, 0, M64, 1, 0),
    (ALU | A.ADD | X, 0, 0, 0x1_FFFFFFFF, 1, 0),
    (ALU64 | A.ADD | K, 0, -1, 0, 0, M64),
    (ALU | A.ADD | K, 0, -1, 0, 0, M32),
    (ALU64 | A.SUB | X, 0, 0, 0, 1, M64),
    (ALU | A.SUB | X, 0, 0, 0, 1, M32),
    (ALU64 | A.SUB | K, 0, -5, 3, 0, 8),
    (ALU64 | A.MUL | X, 0, 0, 1 << 63, 2, 0),
    (ALU64 | A.MUL | K, 0, -1, 3, 0, M64 - 2),
    (ALU | A.MUL | X, 0, 0, 0xFFFF_0001_0000, 0x10001, 0x00010000),
    (ALU64 | A.DIV | X, 0, 0, M64, 2, M64 >> 1),
    (ALU64 | A.DIV | X, 0, 0, 7, 0, 0),
    (ALU | A.DIV | X, 0, 0, 0x5_0000_0007, 0x9_0000_0002, 3),
    (ALU64 | A.DIV | K, 0, -1, 5, 0, 0),
    (ALU64 | A.DIV | X, 1, 0, M64 - 6, 2, M64 - 2),  # -7 / 2 = -3
    (ALU64 | A.DIV | X, 1, 0, 1 << 63, M64, 1 << 63),
    (ALU64 | A.DIV | X, 1, 0, 9, 0, 0),
    (ALU | A.DIV | X, 1, 0, 0x80000000, M32, 0x80000000),
    (ALU | A.DIV | K, 1, -2, 7, 0, M32 - 2),
    (ALU64 | A.MOD | X, 0, 0, 7, 0, 7),
    (ALU64 | A.MOD | X, 0, 0, M64, 10, 5),
    (ALU | A.MOD | X, 0, 0, 0x5_0000_0007, 0, 7),
    (ALU | A.MOD | X, 0, 0, 0x5_0000_0007, 4, 3),
    (ALU64 | A.MOD | X, 1, 0, M64 - 6, 2, M64),  # -7 % 2 = -1
    (ALU64 | A.MOD | X, 1, 0, 7, M64 - 1, 1),
    (ALU64 | A.MOD | X, 1, 0, 1 << 63, M64, 0),
    (ALU | A.MOD | K, 1, 3, M32 - 6, 0, M32),
    (ALU64 | A.OR | X, 0, 0, 0xF0, 0x0F, 0xFF),
    (ALU64 | A.OR | K, 0, -16, 1, 0, M64 - 14),
    (ALU | A.OR | X, 0, 0, 1 << 40, 1 << 41 | 3, 3),
    (ALU64 | A.AND | K, 0, -1, 0x123456789ABCDEF0, 0, 0x123456789ABCDEF0),
    (ALU | A.AND | K, 0, -1, 0x123456789ABCDEF0, 0, 0x9ABCDEF0),
    (ALU64 | A.XOR | X, 0, 0, M64, 0xFF, M64 - 0xFF),
    (ALU | A.XOR | K, 0, -1, 0, 0, M32),
    (ALU64 | A.LSH | X, 0, 0, 1, 63, 1 << 63),
    (ALU64 | A.LSH | X, 0, 0, 1, 64, 1),
    (ALU | A.LSH | X, 0, 0, 1, 32, 1),
    (ALU | A.LSH | K, 0, 31, 3, 0, 0x80000000),
    (ALU64 | A.RSH | X, 0, 0, 1 << 63, 63, 1),
    (ALU | A.RSH | X, 0, 0, 0xF_8000_0000, 31, 1),
    (ALU64 | A.ARSH | X, 0, 0, 1 << 63, 63, M64),
    (ALU | A.ARSH | X, 0, 0, 0x80000000, 31, M32),
    (ALU | A.ARSH | K, 0, 4, 0x7_7000_0000, 0, 0x07000000),
    (ALU64 | A.NEG, 0, 0, 1, 0, M64),
    (ALU | A.NEG, 0, 0, 1, 0, M32),
    (ALU64 | A.NEG, 0, 0, 1 << 63, 0, 1 << 63),
    (ALU64 | A.MOV | X, 0, 0, 5, M64, M64),
    (ALU | A.MOV | X, 0, 0, 5, M64, M32),
    (ALU64 | A.MOV | K, 0, -2, 5, 0, M64 - 1),
    (ALU | A.MOV | K, 0, -2, 5, 0, M32 - 1),
    (ALU64 | A.MOV | X, 8, 0, 0, 0x180, M64 - 0x7F),
    (ALU64 | A.MOV | X, 16, 0, 0, 0x18000, M64 - 0x7FFF),
    (ALU64 | A.MOV | X, 32, 0, 0, 0x180000000, 0xFFFFFFFF80000000),
    (ALU | A.MOV | X, 8, 0, 0, 0x180, M32 - 0x7F),
    (ALU | A.MOV | X, 16, 0, 0, 0x7FFF, 0x7FFF),
    (ALU | A.END | Source.K, 0, 16, 0x1122334455667788, 0, 0x7788),
    (ALU | A.END | Source.K, 0, 32, 0x1122334455667788, 0, 0x55667788),
    (ALU | A.END | Source.K, 0, 64, 0x1122334455667788, 0, 0x1122334455667788),
    (ALU | A.END | Source.X, 0, 16, 0x1122334455667788, 0, 0x8877),
    (ALU | A.END | Source.X, 0, 32, 0x1122334455667788, 0, 0x88776655),
    (ALU | A.END | Source.X, 0, 64, 0x1122334455667788, 0, 0x8877665544332211),
    (ALU64 | A.END, 0, 16, 0x1122334455667788, 0, 0x8877),
    (ALU64 | A.END, 0, 32, 0x1122334455667788, 0, 0x88776655),
    (ALU64 | A.END, 0, 64, 0x1122334455667788, 0, 0x8877665544332211),
]

#: Jump, r1, r2 or immediate, whether it is taken.
BRANCH_TABLE = [
    (J.JEQ, 64, 5, 5, True),
    (J.JEQ, 64, 1 << 32, 0, False),
    (J.JEQ, 32, 1 << 32, 0, True),
    (J.JNE, 64, 1 << 32, 0, True),
    (J.JNE, 32, 1 << 32, 0, False),
    (J.JGT, 64, M64, 1, True),
    (J.JGT, 32, 0x1_0000_0000, 1, False),
    (J.JGT, 64, 5, 5, False),
    (J.JGE, 64, 5, 5, True),
    (J.JGE, 32, 0xF_0000_0001, 2, False),
    (J.JLT, 64, 1, M64, True),
    (J.JLT, 32, 1, 0x7_0000_0000, False),
    (J.JLE, 64, 5, 5, True),
    (J.JLE, 64, M64, 5, False),
    (J.JLE, 32, 0x5_0000_0001, 1, True),
    (J.JSET, 64, 1 << 40, 1 << 40, True),
    (J.JSET, 32, 1 << 40, 1 << 40, False),
    (J.JSET, 64, 6, 1, False),
    (J.JSGT, 64, 1, M64, True),
    (J.JSGT, 32, M32, 0, False),
    (J.JSGE, 64, M64, M64, True),
    (J.JSGE, 32, 0x80000000, 0x7FFFFFFF, False),
    (J.JSLT, 64, 1 << 63, 0, True),
    (J.JSLT, 32, 0x80000000, 0, True),
    (J.JSLT, 64, 0x80000000, 0, False),
    (J.JSLE, 64, M64, 0, True),
    (J.JSLE, 32, 1, M32, False),
]


class Engines:
    """Runs the same program everywhere."""

    def __init__(self):
        self.benches = [Bench(jit=jit) for jit in (False, True)]

    def run(self, code, host: bool = False) -> tuple[int, list[int]]:
        results = []
        for bench in self.benches:
            mark = bench.memblock.next
            results.append(bench.run(bench.program(code), bytes(PACKET_BYTES)))
            bench.memblock.next = mark
        assert results[0] == results[1], "interpreter and JIT differ"
        if host:
            with host_bpf.HostProgram(encode(code)) as there:
                assert there.run(bytes(PACKET_BYTES)) == results[0], "the host's kernel differs"
        return results[0][0], shown(results[0][1])


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


@pytest.fixture(scope="module")
def host() -> bool:
    """Whether the host's kernel takes part."""
    return not host_bpf.why_not()


def registers(*given: int) -> list[int]:
    return [100, *given, *range(len(given) + 1, NUMBERS)]


@pytest.mark.parametrize(("opcode", "offset", "immediate", "a", "b", "expected"), ALU_TABLE)
def test_alu(engines, host, opcode, offset, immediate, a, b, expected):
    source = 2 if opcode & X and opcode & 0xF0 != A.END else 0
    _, after = engines.run(program(registers(a, b), [Instruction(opcode, 1, source, offset, immediate)]), host)
    assert after == [100, expected, b, *range(3, NUMBERS)]


@pytest.mark.parametrize(("operation", "bits", "a", "b", "taken"), BRANCH_TABLE)
@pytest.mark.parametrize("by_register", [True, False])
def test_branch(engines, host, operation, bits, a, b, taken, by_register):
    if not by_register and bits == 64 and b != signed32(b) & M64:
        pytest.skip("no immediate has this value")
    kind = JMP if bits == 64 else JMP32
    jump = Instruction(kind | operation | (X if by_register else K), 1, 2 if by_register else 0, 1, 0)
    if not by_register:
        jump = jump._replace(immediate=signed32(b))
    body = [jump, Instruction(ALU64 | A.MOV | K, 0, 0, 0, 1)]
    _, after = engines.run(program(registers(a, b), body), host)
    assert after[0] == (100 if taken else 1)


def test_the_tables_have_every_operation():
    covered = {(opcode & 0x07, opcode & 0xF0) for opcode, *_ in ALU_TABLE}
    assert covered == {(kind, operation) for kind in (ALU, ALU64) for operation in A}
    signed = {(opcode & 0x07, opcode & 0xF0) for opcode, offset, *_ in ALU_TABLE if offset}
    assert signed == {(kind, operation) for kind in (ALU, ALU64) for operation in (A.DIV, A.MOD, A.MOV)}
    branches = {(operation, bits) for operation, bits, *_ in BRANCH_TABLE}
    assert branches == {(o, bits) for o in J if o.name not in ("JA", "CALL", "EXIT") for bits in (32, 64)}
    assert {(o, taken) for o, _, _, _, taken in BRANCH_TABLE} == {(o, t) for o, _ in branches for t in (True, False)}


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("operation", [o for o in A if o not in (A.END, A.NEG)])
def test_alu_on_edges(engines, host, operation, wide):
    """Pairs of edge values: the engines agree with each other and with the host."""
    kind = ALU64 if wide else ALU
    offsets = {A.DIV: (0, 1), A.MOD: (0, 1), A.MOV: (0, 8, 16, 32) if wide else (0, 8, 16)}.get(operation, (0,))
    pairs = list(itertools.product(EDGES, EDGES))
    for offset, (a, b) in itertools.product(offsets, pairs[::23]):
        body = [Instruction(kind | operation | X, 1, 2, offset), Instruction(kind | operation | X, 3, 3, offset)]
        engines.run(program(registers(a, b, a), body), host)


@pytest.mark.parametrize(("size", "width"), [(Size.B, 1), (Size.H, 2), (Size.W, 4), (Size.DW, 8)])
def test_loads_and_stores(engines, host, size, width):
    value = 0x8182838485868788
    mask = (1 << 8 * width) - 1
    place = FREE_STACK + 8 - width
    body = [
        Instruction(InstructionClass.STX | Mode.MEM | size, FRAME_POINTER, 1, place),
        ldx(size, 2, FRAME_POINTER, place),
    ]
    if width < 8:
        body.append(ldx(size, 3, FRAME_POINTER, place, Mode.MEMSX))
    body.append(Instruction(InstructionClass.ST | Mode.MEM | size, FRAME_POINTER, 0, place, -2))
    body.append(ldx(size, 4, FRAME_POINTER, place))
    _, after = engines.run(program(registers(value, 0, 0, 0), body), host)
    assert after[2] == value & mask
    if width < 8:
        assert after[3] == (value & mask) - (1 << 8 * width) + (1 << 64)
    assert after[4] == (M64 - 1) & mask


@pytest.mark.parametrize(("size", "mask"), [(Size.W, M32), (Size.DW, M64)])
@pytest.mark.parametrize(
    ("operation", "expected", "kept"),
    [
        (T.ADD, lambda old, operand: old + operand, None),
        (T.OR, lambda old, operand: old | operand, None),
        (T.AND, lambda old, operand: old & operand, None),
        (T.XOR, lambda old, operand: old ^ operand, None),
        (T.ADD_FETCH, lambda old, operand: old + operand, 1),
        (T.OR_FETCH, lambda old, operand: old | operand, 1),
        (T.AND_FETCH, lambda old, operand: old & operand, 1),
        (T.XOR_FETCH, lambda old, operand: old ^ operand, 1),
        (T.XCHG, lambda old, operand: operand, 1),
        (T.CMPXCHG, lambda old, operand: operand, 0),
    ],
)
def test_atomics(engines, host, size, mask, operation, expected, kept):
    old, operand = 0xF0F1_8000_0003, 0x8000_0000_9000_0005
    atomic = Instruction(InstructionClass.STX | Mode.ATOMIC | size, FRAME_POINTER, 1, FREE_STACK, operation)
    body = [
        Instruction(InstructionClass.STX | Mode.MEM | Size.DW, FRAME_POINTER, 2, FREE_STACK),
        # CMPXCHG compares with r0: once equal, once not.
        Instruction(ALU64 | A.MOV | X, 0, 2),
        atomic,
        Instruction(ALU64 | A.MOV | X, 5, kept if kept is not None else 1),
        ldx(Size.DW, 3, FRAME_POINTER, FREE_STACK),
        Instruction(ALU64 | A.MOV | K, 0, 0, 0, 77),
        atomic,
        ldx(Size.DW, 4, FRAME_POINTER, FREE_STACK),
    ]
    _, after = engines.run(program(registers(operand, old), body), host)
    assert after[3] == (old & ~mask) | (expected(old, operand) & mask)
    if kept is not None:
        assert after[5] == old & mask
    if operation is T.CMPXCHG:
        assert after[4] == after[3] and after[0] == operand & mask


@pytest.mark.parametrize("jump", [Instruction(JMP | J.JA, 0, 0, 1), Instruction(JMP32 | J.JA, 0, 0, 0, 1)])
def test_gotos(engines, host, jump):
    skipped = Instruction(ALU64 | A.MOV | K, 0, 0, 0, 1)
    elsewhere = Instruction(JMP | J.JNE | K, 1, 0, 1, 5)  # so that a path leads to what is skipped
    _, after = engines.run(program(registers(5), [elsewhere, jump, skipped]), host)
    assert after[0] == 100
    _, after = engines.run(program(registers(6), [elsewhere, jump, skipped]), host)
    assert after[0] == 1


def test_interpreter_and_jit_agree(engines):
    for seed in range(250):
        engines.run(Generator(seed).program())


def test_the_verifier_lets_them_through_and_removes_what_is_dead():
    """With the real verifier: the host's accepts these programs, so must ours; dead code gone, results are the same."""
    trusting, verifying = Bench(), Bench(verify=verify)
    removed = 0
    for seed in range(120):
        code = Generator(seed).program()
        results = []
        for bench in (trusting, verifying):
            mark = bench.memblock.next
            results.append(bench.run(loaded := bench.program(code), bytes(PACKET_BYTES)))
            bench.memblock.next = mark
        removed += len(code) - len(loaded.ready.instructions)
        assert results[0] == results[1]
    assert removed > 100


@pytest.mark.slow
def test_interpreter_and_jit_agree_on_10000_programs(engines):
    for seed in range(10_000, 20_000):
        engines.run(Generator(seed).program())


def test_the_host_agrees_on_random_programs(engines):
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    for seed in range(100):
        engines.run(Generator(seed).program(), host=True)


def test_a_wrong_instruction_would_show(engines, monkeypatch):
    """The comparison can fail: with one operation of the interpreter broken, the random programs find it."""
    from sw.bpf import arithmetic

    monkeypatch.setitem(arithmetic._OPERATIONS, A.ARSH, lambda a, b, bits: a >> (b & (bits - 1)))
    with pytest.raises(AssertionError, match="differ"):
        for seed in range(200):
            engines.run(Generator(seed).program())


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("mode", [Mode.ABS, Mode.IND])
def test_legacy_packet_access_is_refused(jit, mode):
    bench = Bench(jit=jit)
    code = [Instruction(InstructionClass.LD | mode | Size.B), Instruction(JMP | J.EXIT)]
    with pytest.raises((ExecutionError, BpfError), match="legacy packet access"):
        bench.run(bench.program(code), bytes(64))
