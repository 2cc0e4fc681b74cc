"""What the verifier computes of numbers contains them: every tristate number of few bits, and bounds at random."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sw.bpf.arithmetic import CONDITIONS, MASK32, MASK64, compute, swap_bytes
from sw.bpf.instruction import AluOperation, JumpOperation
from sw.bpf.verifier import alu, branches
from sw.bpf.verifier.bounds import UNKNOWN, Bounds, Range, constant, sharpen, truncate
from sw.bpf.verifier.tnum import Tnum, known, spanning

WIDTH = 4
TNUMS = [Tnum(value, mask) for mask in range(1 << WIDTH) for value in range(1 << WIDTH) if not value & mask]
MEMBERS = {tnum: [n for n in range(1 << WIDTH) if n in tnum] for tnum in TNUMS}
BINARY = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "bit_and": lambda a, b: a & b,
    "bit_or": lambda a, b: a | b,
    "bit_xor": lambda a, b: a ^ b,
}
#: Those whose results are the smallest sets there are.
OPTIMAL = {"add", "subtract", "bit_and", "bit_or", "bit_xor"}


def _smallest(numbers):
    found = known(numbers[0])
    for number in numbers:
        found = found.unite(known(number))
    return found


def test_the_tnums_are_all_of_their_width():
    assert len(TNUMS) == 3**WIDTH
    assert all(len(members) == 1 << tnum.mask.bit_count() for tnum, members in MEMBERS.items())


@pytest.mark.parametrize("name", BINARY)
def test_every_result_is_in_the_set(name):
    for a in TNUMS:
        for b in TNUMS:
            found = getattr(a, name)(b)
            results = [BINARY[name](x, y) & MASK64 for x in MEMBERS[a] for y in MEMBERS[b]]
            assert all(result in found for result in results), (a, b)
            if name in OPTIMAL:
                assert found == _smallest(results), (a, b)


def test_sets_of_tnums():
    for a in TNUMS:
        for b in TNUMS:
            both = set(MEMBERS[a]) & set(MEMBERS[b])
            assert a.covers(b) == (set(MEMBERS[b]) <= set(MEMBERS[a]))
            assert a.unite(b) == _smallest(MEMBERS[a] + MEMBERS[b])
            if both:
                assert a.intersect(b) == _smallest(sorted(both))


def test_one_operand():
    for a in TNUMS:
        for count in range(WIDTH + 2):
            assert a.shift_left(count) == _smallest([n << count for n in MEMBERS[a]])
            assert a.shift_right(count) == _smallest([n >> count for n in MEMBERS[a]])
        for bits in range(1, WIDTH + 1):
            low = (1 << bits) - 1
            assert a.low(bits) == _smallest([n & low for n in MEMBERS[a]])
            extended = [(n & low) - ((n >> (bits - 1) & 1) << bits) & MASK64 for n in MEMBERS[a]]
            assert a.sign_extend(bits) == _smallest(extended)


def test_spans():
    for least in range(64):
        for most in range(least, 64):
            found = spanning(least, most)
            assert all(n in found for n in range(least, most + 1))
            assert found.mask < 2 * max(1, least ^ most)


# ---- Bounds

INTERESTING = [0, 1, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, MASK32, 1 << 32, 1 << 62]
INTERESTING += [(1 << 63) - 1, 1 << 63, MASK64 - 0x7FFFFFFF, MASK64 - MASK32, MASK64 - 0x80000000, MASK64]
NUMBERS = st.one_of(
    st.builds(lambda n, more: n + more & MASK64, st.sampled_from(INTERESTING), st.integers(-3, 3)),
    st.integers(0, MASK64),
    st.integers(0, 255),
)
CONDITIONALS = sorted(branches.FLIPPED)
COMPUTED = [o for o in AluOperation if o not in (AluOperation.MOV, AluOperation.END)]


@st.composite
def numbers_and_bounds(draw) -> tuple[int, Bounds]:
    """A number, and something true of it, found as the verifier finds it."""
    number, bounds = draw(NUMBERS), UNKNOWN
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 4))
        if kind == 0:
            return number, constant(number)
        if kind == 1:
            mask = draw(NUMBERS)
            bounds = sharpen(bounds.bits.intersect(Tnum(number & ~mask, mask)), bounds.whole, bounds.half) or bounds
        elif kind == 2:
            size = draw(st.sampled_from((1, 2, 4)))
            number, bounds = number & ((1 << 8 * size) - 1), truncate(bounds, size)
        else:
            operation, width, other = (
                draw(st.sampled_from(CONDITIONALS)),
                draw(st.sampled_from((32, 64))),
                draw(NUMBERS),
            )
            mask = MASK64 if width == 64 else MASK32
            holds = CONDITIONS[operation](number & mask, other & mask, width)
            bounds, _ = branches.learn(operation, holds, bounds, constant(other), width)
    assert number in bounds
    return number, bounds


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(numbers_and_bounds(), numbers_and_bounds(), st.sampled_from(COMPUTED), st.sampled_from((32, 64)))
def test_results_are_within_bounds(a, b, operation, width):
    assert compute(operation, width, a[0], b[0]) in alu.result(operation, width, a[1], b[1])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(numbers_and_bounds(), st.sampled_from((8, 16, 32)), st.sampled_from((32, 64)))
def test_extended_and_swapped_numbers_are_within_bounds(a, bits, width):
    number, bounds = a
    assert compute(AluOperation.MOV, width, 0, number, bits) in alu.sign_extended(bounds, bits, width)
    assert number & ((1 << bits) - 1) in alu.swapped(bounds, bits, False)
    for order in (16, 32, 64):
        assert swap_bytes(number, order) in alu.swapped(bounds, order, True)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(numbers_and_bounds(), numbers_and_bounds(), st.sampled_from(CONDITIONALS), st.sampled_from((32, 64)))
def test_conditions(a, b, operation, width):
    (x, known_x), (y, known_y) = a, b
    mask = MASK64 if width == 64 else MASK32
    holds = CONDITIONS[operation](x & mask, y & mask, width)
    assert branches.decided(operation, known_x, known_y, width) in (None, holds)
    more_x, more_y = branches.learn(operation, holds, known_x, known_y, width)
    assert x in more_x
    assert y in more_y
    assert known_x.covers(more_x)
    assert known_y.covers(more_y)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(numbers_and_bounds(), numbers_and_bounds())
def test_what_covers_contains(a, b):
    if a[1].covers(b[1]):
        assert b[0] in a[1]


def _all_of(bounds, universe):
    return {n for n in universe if n in bounds}


def test_small_ranges_and_all_conditions():
    """Every range of small numbers around 0 and every condition: nothing untrue is learnt, and orders are decided."""
    universe = [n & MASK64 for n in range(-4, 4)]
    spans = [(low, high) for low in range(-4, 4) for high in range(low, 4)]
    for operation in CONDITIONALS:
        for low, high in spans:
            a = sharpen(UNKNOWN.bits, Range(0, MASK64, low, high))
            for n in range(-4, 4):
                b = constant(n)
                for holds in (True, False):
                    more, _ = branches.learn(operation, holds, a, b, 64)
                    wanted = {x for x in _all_of(a, universe) if CONDITIONS[operation](x, n & MASK64, 64) == holds}
                    assert wanted <= _all_of(more, universe)
                decision = branches.decided(operation, a, b, 64)
                possible = {CONDITIONS[operation](x, n & MASK64, 64) for x in _all_of(a, universe)}
                assert decision is None or possible == {decision}
                ordered = operation not in (JumpOperation.JEQ, JumpOperation.JNE, JumpOperation.JSET)
                if ordered and operation in (
                    JumpOperation.JSGT,
                    JumpOperation.JSGE,
                    JumpOperation.JSLT,
                    JumpOperation.JSLE,
                ):
                    assert (decision is None) == (len(possible) == 2)


def test_halves_and_wholes_sharpen_each_other():
    found = sharpen(UNKNOWN.bits, UNKNOWN.whole, Range(5, 9, 5, 9))
    assert found.half == (5, 9, 5, 9)
    assert found.bits.mask & MASK32 == 0xF
    whole = sharpen(UNKNOWN.bits, Range(0, MASK64, -3, 10), Range(0, 4, 0, 4))
    assert whole.whole == (0, 4, 0, 4)
    assert sharpen(Tnum(1, 0), Range(2, 3, 2, 3)) is None
    assert sharpen(Tnum(0, MASK64 - 1), Range(3, 3, 3, 3)) is None


def test_a_wrong_operation_would_show(monkeypatch):
    """The properties can fail: a sum that forgets to carry is found."""
    monkeypatch.setitem(alu._BITS, AluOperation.ADD, lambda a, b, width: a.bit_or(b))
    chance = random.Random(1)
    wrong = 0
    for _ in range(200):
        x, y = chance.randrange(256), chance.randrange(256)
        a = sharpen(Tnum(x & 0xF0, 0x0F))
        b = sharpen(Tnum(y & 0xF0, 0x0F))
        found = alu.result(AluOperation.ADD, 64, a, b)
        wrong += (x + y) & MASK64 not in found
    assert wrong > 20
