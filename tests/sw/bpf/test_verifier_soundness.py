"""What the verifier lets through does nothing wrong: random programs, watched at every instruction."""

import random

import pytest

from sw.bpf.instruction import AluOperation, JumpOperation, encode
from sw.bpf.program import Program
from sw.bpf.verifier import VerifierError, alu, branches, memory, pointers, verify
from sw.bpf.verifier.bounds import Range
from sw.bpf.verifier.errors import Refusal
from tests.sw.bpf import host_bpf
from tests.sw.bpf.assembly import assemble
from tests.sw.bpf.guarded import Forbidden, Machine, Untrue, states_of
from tests.sw.bpf.verifier_programs import MAPS, mutated, random_program

LIMIT = 30_000
PACKETS = (14, 16, 20, 21, 64, 100)


def _code(seed):
    code = random_program(seed)
    return mutated(code, seed) if seed % 2 else code


def _packets(seed):
    chance = random.Random(seed)
    return [bytes(chance.choice((0, 1, 2, 8, 255, chance.randrange(256))) for _ in range(n)) for n in PACKETS]


def _watch(program, seed, walk=verify):
    """Run a program that is let through on several packets; gives how many times."""
    walk(program, 0, limit=LIMIT)
    try:
        believed = states_of(program)
    except Refusal:
        believed = None  # too long without skipping what was seen; then only accesses are watched
    machine = Machine(program, seed)
    for packet in _packets(seed):
        machine.run(packet, believed)
    return len(PACKETS)


def _runs(seeds):
    accepted = refused = 0
    for seed in seeds:
        try:
            _watch(Program(_code(seed), MAPS), seed)
        except VerifierError:
            refused += 1
        else:
            accepted += 1
    return accepted, refused


def test_what_is_accepted_does_nothing_wrong():
    accepted, refused = _runs(range(160))
    assert accepted > 60
    assert refused > 40


@pytest.mark.slow
def test_what_is_accepted_does_nothing_wrong_for_long():
    accepted, refused = _runs(range(10_000, 16_000))
    assert min(accepted, refused) > 2000


# ---- The watch can fail: what a wrong verifier lets through is caught


def _caught(seeds):
    for seed in seeds:
        try:
            _watch(Program(_code(seed), MAPS), seed)
        except (Forbidden, Untrue):
            return True
        except VerifierError:
            continue
    return False


_extend = pointers.PacketComparison._extend


def _always_strict(comparison, state, strict):
    _extend(comparison, state, True)


@pytest.mark.parametrize(
    "plant",
    [
        lambda m: m.setitem(alu._RANGES, AluOperation.SUB, lambda a, b, bits, width: Range(0, 50, 0, 50)),
        lambda m: m.setitem(branches.OPPOSITES, JumpOperation.JGT, JumpOperation.JLT),
        lambda m: m.setattr(memory, "check_packet", lambda *arguments: None),
        lambda m: m.setattr(pointers.PacketComparison, "_extend", _always_strict),
        lambda m: m.setattr("sw.bpf.verifier.stack._forget", lambda kind: 3),
        lambda m: m.setattr("sw.bpf.verifier.walker.PACKET_POINTERS", frozenset()),
    ],
    ids=["bounds", "branch", "packet", "comparison", "stack", "moved packet"],
)
def test_a_wrong_verifier_is_caught(plant, monkeypatch):
    plant(monkeypatch)
    assert _caught(range(250))


#: Two paths meet with different offsets; the gotos make the verifier keep the state where they meet.
MEETING = """
    r6 = *(u32 *)(r1 +16); r7 = 0; r8 = value 4 + 0
    if r6 > 5 goto big
    r7 = 8
    goto join
    big: r7 = 200
    join: r0 = 0; r0 = 1; r0 = 2; goto pc+0
    goto pc+0
    r8 += r7
    r0 = *(u8 *)(r8 +0)
    exit
"""


def test_a_path_that_matters_is_not_skipped(monkeypatch):
    program = Program(assemble(MEETING), MAPS)
    with pytest.raises(VerifierError, match="invalid access to map value, value_size=64 off=200"):
        verify(program)
    # Were it not remembered that the offset mattered, the second path would be taken for the first one; the watch sees.
    monkeypatch.setattr("sw.bpf.verifier.walker.mark", lambda origins: None)
    verify(program)
    with pytest.raises(Forbidden):
        for seed in range(20):
            Machine(program, seed).run(bytes(64))


# ---- The host's kernel


def test_the_host_decides_the_same():
    """Of programs at random, nearly all: bounds are a little sharper here or there in each version of the kernel."""
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    fds = {n: host_bpf.HostMap(m.type, m.key_size, m.value_size, m.max_entries, m.flags) for n, m in MAPS.items()}
    different = []
    seeds = range(1000, 1400)
    for seed in seeds:
        code = _code(seed)
        try:
            verify(Program(code, MAPS), 0, limit=LIMIT)
            ours = 0
        except VerifierError as error:
            ours = error.errno
        bound = [
            one._replace(immediate=fds[one.immediate].fd) if one.is_wide and one.source in (1, 2) else one
            for one in code
        ]
        try:
            with host_bpf.HostProgram(encode(bound)):
                hosts = 0
        except host_bpf.HostError as error:
            hosts = error.errno or 0
        if ours != hosts:
            different.append(seed)
    for one in fds.values():
        one.close()
    assert len(different) <= len(seeds) // 50, different
