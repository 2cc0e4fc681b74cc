"""How the verifier walks: what it skips, when it gives up, what it reports."""

import dataclasses
import errno
import platform
import re
from pathlib import Path

import pytest

from sw.bpf.elf import load_object
from sw.bpf.errors import BpfError
from sw.bpf.instruction import Instruction, encode
from sw.bpf.maps import MapDefinition, MapType
from sw.bpf.program import Program, Verification
from sw.bpf.verifier import VerifierError, verify
from tests.sw.bpf import host_bpf
from tests.sw.bpf.assembly import assemble

EXAMPLES = sorted((Path(__file__).parents[3] / "sw/bpf/programs").glob("*.o"))
MAPS = {4: MapDefinition(MapType.ARRAY, 4, 64, 1)}


def _verify(text, log_level=1, **options):
    return verify(Program(assemble(text), MAPS), log_level, **options)


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_accepted(path):
    loaded = load_object(path)
    for program in loaded.programs.values():
        verified = verify(program)
        assert verified.processed >= 2
        assert not verified.dead


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem in ("firewall", "mac_swap_tx")], ids=lambda p: p.stem)
def test_examples_broken_are_refused(path):
    """Without its first comparison a program that looks at packets is not let through."""
    (program,) = load_object(path).programs.values()
    branches = [n for n, one in enumerate(program.instructions) if one.is_branch]
    code = list(program.instructions)
    code[branches[0]] = Instruction(0x05, offset=0)
    with pytest.raises(VerifierError):
        verify(dataclasses.replace(program, instructions=tuple(code)))


# ---- What is reported


def test_what_is_found_out():
    verified = _verify(
        """
        r6 = *(u32 *)(r1 +16)
        *(u64 *)(r10 -24) = r6
        call function
        if r0 == 0 goto end
        r0 = 9 ll
        r0 = 1
        end: exit
        function: r1 = r10; r1 += -40; *(u8 *)(r1 +0) = 1; r0 = 0; exit
        """
    )
    assert isinstance(verified, Verification)
    assert verified.context_accesses == {0}
    assert verified.stack_depths == {0: 24, 8: 40}
    assert verified.dead == {4, 5, 6}  # the function always gives 0
    assert verified.processed == 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.processed = 0


def test_the_error_is_one_of_bpf():
    with pytest.raises(BpfError, match="EACCES: R0 !read_ok") as refused:
        _verify("exit")
    assert isinstance(refused.value, VerifierError)
    assert refused.value.log.splitlines()[-1] == "R0 !read_ok"
    with pytest.raises(VerifierError) as silent:
        _verify("exit", 0)
    assert silent.value.log == ""


LOGGED = """
    r2 = *(u32 *)(r1 +0); r3 = *(u32 *)(r1 +4); r9 = *(u32 *)(r1 +16)
    r4 = r2; r4 += 14; if r4 > r3 goto out
    r5 = *(u16 *)(r2 +12); r6 = r5; r6 &= 255; r6 += -20; *(u64 *)(r10 -8) = r9; *(u32 *)(r10 -16) = 70000
    r7 = *(s8 *)(r2 +3); r7 <<= 3; w8 = w7; r9 = *(u32 *)(r10 -8); r0 = r10; *(u64 *)(r10 -24) = r0
    if r6 s< 5 goto out
    r0 = *(u32 *)(r2 +11)
    out: r0 = 2; exit
"""


def _states(log):
    """Lines of instructions, as far as they do not depend on the machine; marks of precision taken off."""
    return [re.sub(r"=P(?=[a-z0-9-])", "=", line) for line in log.splitlines() if re.match(r"\d+: \(", line)]


def test_the_log():
    with pytest.raises(VerifierError) as refused:
        _verify(LOGGED)
    lines = refused.value.log.splitlines()
    assert lines[:2] == [
        "0: R1=ctx() R10=fp0",
        "0: (61) r2 = *(u32 *)(r1 +0)          ; R1=ctx() R2=pkt(r=0)",
    ]
    assert "5: (2d) if r4 > r3 goto pc+14         ; R3=pkt_end() R4=pkt(off=14,r=14)" in lines
    assert lines[-3:] == [
        "19: (61) r0 = *(u32 *)(r2 +11)",
        "invalid access to packet, off=11 size=4, R2(id=0,off=11,r=14)",
        "R2 offset is outside of the packet",
    ]


def test_the_host_writes_the_same_log():
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    if not platform.release().startswith("6.18."):
        pytest.skip(f"the log is that of Linux 6.18, not {platform.release()}")
    code = assemble(LOGGED)
    with pytest.raises(host_bpf.HostError) as refused:
        host_bpf.HostProgram(encode(code), log_level=1)
    with pytest.raises(VerifierError) as ours:
        _verify(LOGGED)
    assert _states(ours.value.log) == _states(refused.value.log)


def test_levels_of_the_log():
    text = "r2 = *(u32 *)(r1 +16); if r2 > 5 goto a; r0 = 1; exit; a: r0 = 2; exit"
    assert _verify(text, 0).log == ""
    assert re.fullmatch(r"processed 6 insns \(limit 1000000\) .*", _verify(text).log)
    everything = _verify(text, 2).log
    assert "\nfrom 1 to 4: R1=ctx() R2=scalar(smin=umin=umin32=6," in everything
    assert len(_states(everything)) == 6


# ---- What is skipped

DIAMOND = "if r6 > {0} goto a{0}; r7 += 1; goto b{0}; a{0}: r7 += 2; b{0}: r6 >>= 1;"


def test_paths_that_differ_in_nothing_that_matters_meet():
    """Forty choices are not 2**40 paths, for what is counted on the way is never used."""
    text = "r6 = *(u32 *)(r1 +16); r7 = 0;" + "".join(DIAMOND.format(n) for n in range(40)) + "r0 = 0; exit"
    assert _verify(text).processed < 2000


def test_paths_that_differ_in_what_matters_do_not_meet():
    start = "r6 = *(u32 *)(r1 +16); r7 = 0; r8 = value 4 + 0;"
    choices = "".join(DIAMOND.format(n) for n in range(12))
    used = start + choices + "r8 += r7; r0 = *(u8 *)(r8 +0); exit"
    unused = start + choices + "r0 = 0; exit"
    assert _verify(used).processed > 1.5 * _verify(unused).processed
    with pytest.raises(VerifierError, match="value_size=64 off=64 size=1"):
        _verify(used.replace("r7 = 0;", "r7 = 41;"))


def test_a_spilled_number_matters_only_if_it_is_used():
    start = "r6 = *(u32 *)(r1 +16); r7 = 0; r8 = value 4 + 0;"
    choices = "".join(DIAMOND.format(n) for n in range(8)) + "*(u64 *)(r10 -8) = r7; goto pc+0; goto pc+0;"
    used = start + choices + "r7 = *(u64 *)(r10 -8); r8 += r7; r0 = *(u8 *)(r8 +0); exit"
    with pytest.raises(VerifierError, match="value_size=64 off=64 size=1"):
        _verify(used.replace("r7 = 0;", "r7 = 49;"))
    _verify(used.replace("r7 = 0;", "r7 = 47;"))
    unused = start + choices + "r7 = *(u64 *)(r10 -8); r0 = r7; exit"
    assert _verify(unused).processed < _verify(used).processed


def test_a_branch_that_was_foreseen_matters():
    """Only one of two ways to the same place makes the last branch go to what is wrong."""
    text = """
        r6 = *(u32 *)(r1 +16)
        r7 = 0
        if r6 > 5 goto big
        r7 = 1
        goto pc+0
        goto pc+0
        goto pc+0
        goto join
        big: r7 = 2
        join: r0 = 0; r0 = 1; r0 = 2
        if r7 == 2 goto wrong
        exit
        wrong: r0 = *(u64 *)(r6 +0)
        exit
    """
    with pytest.raises(VerifierError, match="R6 invalid mem access 'scalar'"):
        _verify(text)


def test_numbers_lost_alike_are_not_equal():
    """Two pointers into a packet that was moved are unknown, and not by that the same."""
    text = """
        r6 = *(u32 *)(r1 +0); r7 = r6; r7 += 8; r2 = 4
        call xdp_adjust_head
        r0 = 0
        if r6 s<= r7 goto out
        r0 = *(u64 *)(r6 +0)
        out: exit
    """
    with pytest.raises(VerifierError, match="R6 invalid mem access 'scalar'"):
        _verify(text)


def test_a_number_and_itself():
    """What is never reached is not looked at."""
    text = "r2 = *(u32 *)(r1 +16); r0 = 0; if r2 {} r2 goto out; r0 = *(u64 *)(r2 +0); out: exit"
    for condition in ("==", ">=", "<=", "s>=", "s<="):
        assert _verify(text.format(condition)).dead == {3}
    for condition in ("!=", ">", "<", "s>", "s<", "&"):
        with pytest.raises(VerifierError, match="R2 invalid mem access 'scalar'"):
            _verify(text.format(condition))


def test_a_loop_is_walked_through():
    text = "r0 = 0; a: r0 += 1; if r0 < {} goto a; exit"
    assert _verify(text.format(1000)).processed == 2002
    assert _verify(text.format(10)).processed == 22


def test_a_loop_around_memory():
    text = "r2 = 0; a: r3 = value 4 + 0; r3 += r2; r4 = *(u8 *)(r3 +0); r2 += 1; if r2 < {} goto a; r0 = 0; exit"
    _verify(text.format(64))
    with pytest.raises(VerifierError, match="value_size=64 off=64 size=1"):
        _verify(text.format(65))


# ---- When it gives up


def test_the_budget():
    text = "r0 = 0; a: r0 += 1; if r0 < 1000000 goto a; exit"
    with pytest.raises(VerifierError) as refused:
        _verify(text, limit=5000)
    assert refused.value.errno == errno.E2BIG
    assert refused.value.message == "BPF program is too large. Processed 5001 insn"
    assert len(refused.value.log.splitlines()) > 5000


@pytest.mark.slow
def test_the_whole_budget():
    with pytest.raises(VerifierError, match=r"BPF program is too large\. Processed 1000001 insn") as refused:
        _verify("r0 = 0; a: r0 += 1; if r0 < 1000000 goto a; exit")
    assert len(refused.value.log.splitlines()) < 1 << 17


def test_size_of_a_program():
    for count in (0, 1_000_001):
        with pytest.raises(VerifierError) as refused:
            verify(Program((Instruction(0x95),) * count))
        assert refused.value.errno == errno.E2BIG


MANY = "r2 = *(u32 *)(r1 +16); r3 = *(u32 *)(r1 +12); r0 = 0;" + "if r2 > r3 goto end; r2 /= 3;" * 8200 + "end: exit"


def test_paths_that_wait():
    with pytest.raises(VerifierError) as refused:
        _verify(MANY, 0)
    assert refused.value.errno == errno.E2BIG
    assert refused.value.message == "The sequence of 8193 jumps is too complex."


def test_the_host_gives_up_as_well():
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    with pytest.raises(host_bpf.HostError) as refused:
        host_bpf.HostProgram(encode(assemble(MANY)))
    assert refused.value.errno in (errno.E2BIG, errno.EFAULT)  # of both, by version
