"""Decoding, encoding and the text of instructions."""

import re
from errno import EINVAL

import pytest

from sw.bpf.errors import BpfError
from sw.bpf.instruction import (
    CallKind,
    Immediate64,
    Instruction,
    decode,
    disassemble,
    encode,
    immediate64,
    jump_target,
    listing,
)
from tests.sw.bpf import host_bpf
from tests.sw.bpf.harness import Generator

#: Code, text as kernel/bpf/disasm.c has it.
TEXTS = [
    ("0f21000000000000", "r1 += r2"),
    ("0421000005000000", "w1 += 5"),
    ("a7010000ffffffff", "r1 ^= -1"),
    ("3f21010000000000", "r1 s/= r2"),
    ("9401010007000000", "w1 s%= 7"),
    ("c701000003000000", "r1 s>>= 3"),
    ("8701000000000000", "r1 = -r1"),
    ("8401000000000000", "w1 = -w1"),
    ("bf21000000000000", "r1 = r2"),
    ("bf21080000000000", "r1 = (s8)r2"),
    ("bf21200000000000", "r1 = (s32)r2"),
    ("bc21100000000000", "w1 = (s16)w2"),
    ("d401000010000000", "r1 = le16 r1"),
    ("dc01000040000000", "r1 = be64 r1"),
    ("d701000020000000", "r1 = bswap32 r1"),
    ("6161000000000000", "r1 = *(u32 *)(r6 +0)"),
    ("91a1f8ff00000000", "r1 = *(s8 *)(r10 -8)"),
    ("7b1af0ff00000000", "*(u64 *)(r10 -16) = r1"),
    ("6a0afeff09000000", "*(u16 *)(r10 -2) = 9"),
    ("c321000000000000", "lock *(u32 *)(r1 +0) += r2"),
    ("db21080050000000", "lock *(u64 *)(r1 +8) &= r2"),
    ("db21080041000000", "r2 = atomic64_fetch_or((u64 *)(r1 +8), r2)"),
    ("c321080001000000", "r2 = atomic_fetch_add((u32 *)(r1 +8), r2)"),
    ("db210800e1000000", "r2 = atomic64_xchg((u64 *)(r1 +8), r2)"),
    ("c3210800f1000000", "r0 = atomic_cmpxchg((u32 *)(r1 +8), r0, r2)"),
    ("0500030000000000", "goto pc+3"),
    ("06000000fdffffff", "gotol pc-3"),
    ("1521010000000000", "if r1 == 0x0 goto pc+1"),
    ("5e21feff00000000", "if w1 != w2 goto pc-2"),
    ("c501020000000080", "if r1 s< 0x80000000 goto pc+2"),
    ("4501020008000000", "if r1 & 0x8 goto pc+2"),
    ("8500000001000000", "call bpf_map_lookup_elem#1"),
    ("8510000007000000", "call pc+7"),
    ("9500000000000000", "exit"),
    ("18010000112233440000000055667788", "r1 = 0x8877665544332211"),
    ("2000000004000000", "r0 = *(u32 *)skb[4]"),
    ("5010000004000000", "r0 = *(u8 *)skb[r1 + 4]"),
]


@pytest.mark.parametrize(("code", "text"), TEXTS)
def test_text(code, text):
    instructions = decode(bytes.fromhex(code))
    assert disassemble(instructions, 0, {1: "bpf_map_lookup_elem"}) == text
    assert encode(instructions) == bytes.fromhex(code)


def test_the_hosts_verifier_writes_the_same_text():
    """Every line of its log for programs at random; it shows those that a path reaches."""
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    compared = set()
    for seed in range(60):
        code = Generator(seed).program()
        ours = dict(line.split(": ", 1) for line in listing(code))
        with host_bpf.HostProgram(encode(code), log_level=2) as there:
            for slot, text in re.findall(r"^(\d+): (\([0-9a-f]{2}\) [^;\n]*?) *(?:;.*)?$", there.log, re.M):
                # The log shows what a register is known to hold in place of a large number, and helpers' calls by name.
                assert ours[slot] == text
                compared.add(int(text[1:3], 16))
    assert len(compared) > 100, "kinds of instruction that were compared"


@pytest.mark.parametrize("opcode", range(256))
def test_text_of_any_opcode(opcode):
    """No opcode breaks it, whatever it is."""
    code = (Instruction(opcode, 1, 2, 1, 1), Instruction(0))
    assert disassemble(code, 0)


def test_parts():
    wide = Instruction(0x18, 3, Immediate64.MAP_FD, 0, -1)
    assert wide.is_wide and immediate64((wide, Instruction(0, immediate=1)), 0) == 0x1_FFFFFFFF
    call = Instruction(0x85, 0, CallKind.LOCAL, 0, 4)
    assert call.is_call and jump_target((call,), 0) == 5
    assert jump_target((Instruction(0x06, 0, 0, 9, -1),), 0) == 0
    assert jump_target((Instruction(0x05, 0, 0, -1, 9),), 0) == 0


def test_half_an_instruction_is_refused():
    with pytest.raises(BpfError, match="9 bytes of code are not a multiple of 8") as error:
        decode(bytes(9))
    assert error.value.errno == EINVAL
