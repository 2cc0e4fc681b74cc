"""Helper functions, against the host's kernel where it has the same."""

import random

import pytest

from sw.bpf.context import NET_DEVICE, XDP_MD, XDP_RXQ_INFO
from sw.bpf.helpers import HELPERS, HelperId
from sw.bpf.instruction import (
    FRAME_POINTER,
    AluOperation,
    CallKind,
    Instruction,
    InstructionClass,
    JumpOperation,
    Size,
    Source,
    encode,
)
from tests.sw.bpf import host_bpf
from tests.sw.bpf.bench import FRAME_BYTES, HEADROOM, IFINDEX, QUEUE, Bench
from tests.sw.bpf.harness import ALU64, EXIT, JMP, ldx, load_immediate, stx

MOV = ALU64 | AluOperation.MOV
CALL = InstructionClass.JMP | JumpOperation.CALL


def call(helper: HelperId) -> Instruction:
    return Instruction(CALL, 0, CallKind.HELPER, 0, helper)


def moved(helper: HelperId, distance: int) -> list[Instruction]:
    """Calls a helper with the context and a number; DROP if it refuses, else PASS."""
    return [
        Instruction(MOV | Source.K, 2, 0, 0, distance),
        call(helper),
        Instruction(JMP | JumpOperation.JEQ | Source.K, 0, 0, 2, 0),
        Instruction(MOV | Source.K, 0, 0, 0, 1),
        EXIT,
        Instruction(MOV | Source.K, 0, 0, 0, 2),
        EXIT,
    ]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("helper", [HelperId.XDP_ADJUST_HEAD, HelperId.XDP_ADJUST_TAIL])
def test_packets_grow_and_shrink(jit, helper):
    packet = bytes(range(200))
    bench = Bench(jit=jit)
    host = not host_bpf.why_not()
    for distance in (0, 4, -4, 60, -60, 186, 187, -186, -187, 300, -216, -217, -250, 4000):
        code = moved(helper, distance)
        ours = bench.run(bench.program(code), packet)
        if helper is HelperId.XDP_ADJUST_HEAD:
            fits = -(HEADROOM - 40) <= distance <= len(packet) - 14
            if fits:
                assert ours[1][max(0, -distance) :] == packet[max(0, distance) :]
        else:
            fits = 14 - len(packet) <= distance <= FRAME_BYTES - 320 - HEADROOM - len(packet)
            if fits:
                assert ours[1] == (packet + bytes(max(0, distance)))[: len(packet) + distance]
        assert ours[0] == (2 if fits else 1)
        if host and abs(distance) < 200:  # its frame has other bounds
            with host_bpf.HostProgram(encode(code)) as there:
                verdict, theirs = there.run(packet)
                if distance < 0 and helper is HelperId.XDP_ADJUST_HEAD:  # what was in front of its packet is not known
                    assert (verdict, theirs[-distance:]) == (ours[0], ours[1][-distance:])
                else:
                    assert (verdict, theirs) == ours


@pytest.mark.parametrize("jit", [False, True])
def test_csum_diff(jit):
    """Old and new bytes lie on the stack; the result is the verdict."""
    chance = random.Random(3)
    bench = Bench(jit=jit)
    host = not host_bpf.why_not()
    for _ in range(60):
        old, new = chance.choice((0, 4, 8, 12, 16)), chance.choice((0, 4, 8, 12, 16))
        seed = chance.choice((0, 1, 0xFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
        code = []
        for word in range(4):
            code += load_immediate(1, chance.choice((0, (1 << 64) - 1, chance.getrandbits(64))))
            code.append(stx(Size.DW, FRAME_POINTER, 1, -32 + 8 * word))
        for register, size, offset in ((1, old, -32), (3, new, -16)):
            if size:
                code.append(Instruction(MOV | Source.X, register, FRAME_POINTER))
                code.append(Instruction(ALU64 | AluOperation.ADD | Source.K, register, 0, 0, offset))
            else:
                code.append(Instruction(MOV | Source.K, register))
            code.append(Instruction(MOV | Source.K, register + 1, 0, 0, size))
        code += [*load_immediate(5, seed), call(HelperId.CSUM_DIFF), EXIT]
        ours, _ = bench.run(bench.program(code), bytes(64))
        assert ours < 1 << 16
        if host:
            with host_bpf.HostProgram(encode(code)) as there:
                assert there.run(bytes(64))[0] == ours


@pytest.mark.parametrize("jit", [False, True])
def test_clock_core_and_chance(jit):
    bench = Bench(cores=2, jit=jit, clock=lambda core: 1000 + core.index)
    for helper, results in ((HelperId.KTIME_GET_NS, (1000, 1001)), (HelperId.GET_SMP_PROCESSOR_ID, (0, 1))):
        program = bench.program([call(helper), EXIT])
        assert tuple(bench.run(program, bytes(64), core)[0] for core in (0, 1)) == results
    program = bench.program([call(HelperId.GET_PRANDOM_U32), EXIT])
    bench.do(bench.bpf.runtime.init(bench.core))
    numbers = [bench.run(program, bytes(64), core)[0] for core in (0, 1) for _ in range(50)]
    assert len(set(numbers)) == 100 and max(numbers) > 1 << 31


@pytest.mark.parametrize("jit", [False, True])
def test_every_member_of_the_context(jit):
    """Loads from struct xdp_md give what the kernel's structures hold."""
    bench = Bench(jit=jit)
    data = bench.frame + HEADROOM
    expected = {
        "data": data,
        "data_end": data + 64,
        "data_meta": data,
        "ingress_ifindex": IFINDEX,
        "rx_queue_index": QUEUE,
    }
    for offset, field in XDP_MD.items():
        if field.name in expected:
            program = bench.program([ldx(Size.W, 0, 1, offset), EXIT])
            assert bench.run(program, bytes(64))[0] == expected[field.name], field.name


def test_structures_are_where_the_kernel_has_them():
    """Offsets that the host's JIT shows in its code for the context's members: data 0, data_end 8."""
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    with host_bpf.HostProgram(encode([ldx(Size.W, 0, 1, 4), EXIT])) as there:
        code = there.machine_code()
    if not code:
        pytest.skip("the host's kernel does not show machine code, or has no JIT")
    assert b"\x48\x8b\x47\x08" in code  # mov rax, [rdi + 8]
    assert (XDP_RXQ_INFO.queue_index.offset, NET_DEVICE.ifindex.size) == (8, 4)


def test_names():
    assert HELPERS[HelperId.MAP_LOOKUP_ELEM].name == "bpf_map_lookup_elem"
    assert [h for h in HELPERS.values() if h.changes_packet] == [
        HELPERS[HelperId.XDP_ADJUST_HEAD],
        HELPERS[HelperId.XDP_ADJUST_TAIL],
    ]
