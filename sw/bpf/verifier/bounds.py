"""What is known of a scalar: its bits and its least and greatest value, unsigned and signed, whole and of the low half.

Each kind of knowledge sharpens the others (``reg_bounds_sync`` in ``kernel/bpf/verifier.c``).
"""

from functools import lru_cache
from typing import NamedTuple

from sw.bpf.arithmetic import MASK32, MASK64
from sw.bpf.verifier.tnum import UNKNOWN as UNKNOWN_BITS
from sw.bpf.verifier.tnum import Tnum, spanning

__all__ = [
    "S32_MAX",
    "S32_MIN",
    "S64_MAX",
    "S64_MIN",
    "UNKNOWN",
    "UNKNOWN32",
    "Bounds",
    "Range",
    "constant",
    "from_low_half",
    "sharpen",
    "signed",
    "truncate",
    "zero_extended",
]

S64_MIN, S64_MAX = -(1 << 63), (1 << 63) - 1
S32_MIN, S32_MAX = -(1 << 31), (1 << 31) - 1
#: Rounds in which ranges sharpen each other; more find nothing new but in rare cases.
_ROUNDS = 3


def signed(value: int, bits: int) -> int:
    """``value`` of so many bits as a signed number."""
    return value - (1 << bits) if value >> (bits - 1) else value


class Range(NamedTuple):
    """Least and greatest value of one width."""

    umin: int
    umax: int
    smin: int
    smax: int

    def covers(self, other: "Range") -> bool:
        """Whether ``other`` lies within this one."""
        return (
            self.umin <= other.umin and self.umax >= other.umax and self.smin <= other.smin and self.smax >= other.smax
        )

    @property
    def is_empty(self) -> bool:
        """Whether no value is left."""
        return self.umin > self.umax or self.smin > self.smax

    def intersect(self, other: "Range") -> "Range":
        """What lies in both."""
        return Range(
            max(self.umin, other.umin),
            min(self.umax, other.umax),
            max(self.smin, other.smin),
            min(self.smax, other.smax),
        )


class Bounds(NamedTuple):
    """Knowledge of one 64-bit value."""

    bits: Tnum
    whole: Range  #: of all 64 bits
    half: Range  #: of the low 32 bits

    @property
    def is_known(self) -> bool:
        """Whether it is one value: ``bits.value``."""
        return not self.bits.mask

    def __contains__(self, number: object) -> bool:
        """Whether a value of 64 bits is possible."""
        if not isinstance(number, int) or number not in self.bits:
            return False
        low = number & MASK32
        return (
            self.whole.umin <= number <= self.whole.umax
            and self.whole.smin <= signed(number, 64) <= self.whole.smax
            and self.half.umin <= low <= self.half.umax
            and self.half.smin <= signed(low, 32) <= self.half.smax
        )

    def covers(self, other: "Bounds") -> bool:
        """Whether everything that ``other`` allows is allowed here."""
        return self.whole.covers(other.whole) and self.bits.covers(other.bits) and self.half.covers(other.half)


FULL64 = Range(0, MASK64, S64_MIN, S64_MAX)
FULL32 = Range(0, MASK32, S32_MIN, S32_MAX)
#: Any value.
UNKNOWN = Bounds(UNKNOWN_BITS, FULL64, FULL32)


def _point(value: int, bits: int) -> Range:
    number = signed(value, bits)
    return Range(value, value, number, number)


@lru_cache(maxsize=4096)
def constant(value: int) -> Bounds:
    """One value; negative ones are taken modulo 2**64."""
    value &= MASK64
    return Bounds(Tnum(value, 0), _point(value, 64), _point(value & MASK32, 32))


def _within_bits(span: Range, bits: Tnum, width: int) -> Range:
    """A range cut to what known bits allow."""
    value, mask = bits
    sign = 1 << (width - 1)
    return Range(
        max(span.umin, value),
        min(span.umax, value | mask),
        max(span.smin, signed(value | mask & sign, width)),
        min(span.smax, signed(value | mask & ~sign, width)),
    )


def _across_signs(span: Range, width: int) -> Range:
    """Unsigned and signed range of one width, each cut to what the other allows."""
    umin, umax, smin, smax = span
    top = 1 << width
    if signed(umin, width) <= signed(umax, width):  # all of one sign
        smin, smax = max(smin, signed(umin, width)), min(smax, signed(umax, width))
    if smin % top <= smax % top:
        return Range(max(umin, smin % top), min(umax, smax % top), smin, smax)
    # The signed range is two unsigned ones: up to smax, and from smin; the value may lie in one of them for sure.
    if umax < smin % top:
        return Range(umin, min(umax, smax), max(smin, umin), smax)
    if smax % top < umin:
        return Range(max(umin, smin % top), umax, smin, min(smax, umax - top))
    return Range(umin, umax, smin, smax)


def _half_of(whole: Range, half: Range) -> Range:
    """The range of the low half cut to what that of the whole allows."""
    umin, umax, smin, smax = half
    for least, most in ((whole.umin, whole.umax), (whole.smin, whole.smax)):
        low, high = least & MASK32, most & MASK32
        steps = (most >> 32) - (least >> 32)
        if steps == 0:
            umin, umax = max(umin, low), min(umax, high)
        # No wrap of the low half as a signed number: within one upper half, or from -n in one to +m in the next.
        if (steps == 0 and signed(low, 32) <= signed(high, 32)) or (steps == 1 and low > S32_MAX >= high):
            smin, smax = max(smin, signed(low, 32)), min(smax, signed(high, 32))
    return Range(umin, umax, smin, smax)


def _whole_of(whole: Range, half: Range) -> Range:
    """The range of the whole cut to what that of the low half allows."""
    umin, umax, smin, smax = whole
    above = ~MASK32
    umin, umax = max(umin, umin & above | half.umin), min(umax, umax & above | half.umax)
    smin, smax = max(smin, smin & above | half.umin), min(smax, smax & above | half.umax)
    if smin >= S32_MIN and smax <= S32_MAX:  # the upper half repeats the sign of the low one
        smin, smax = max(smin, half.smin), min(smax, half.smax)
    return Range(umin, umax, smin, smax)


def sharpen(bits: Tnum, whole: Range = FULL64, half: Range = FULL32) -> Bounds | None:
    """What three pieces of knowledge of one value say together; None if they contradict each other."""
    if not bits.mask and whole is FULL64 and half is FULL32:
        return constant(bits.value)
    whole, half = _within_bits(whole, bits, 64), _within_bits(half, bits.low(32), 32)
    for _ in range(_ROUNDS):
        before = whole, half
        half = _across_signs(_half_of(whole, half), 32)
        whole = _across_signs(_whole_of(whole, half), 64)
        if (whole, half) == before:
            break
    if whole.is_empty or half.is_empty:
        return None
    span = spanning(whole.umin, whole.umax)
    low = spanning(half.umin, half.umax)
    low = Tnum(low.value, low.mask | MASK64 & ~MASK32)
    for other in (span, low):
        if (bits.value ^ other.value) & ~bits.mask & ~other.mask & MASK64:
            return None
        bits = bits.intersect(other)
    whole, half = _within_bits(whole, bits, 64), _within_bits(half, bits.low(32), 32)
    return None if whole.is_empty or half.is_empty else Bounds(bits, whole, half)


def zero_extended(bits: Tnum, half: Range) -> Bounds:
    """A value whose upper half is zero."""
    found = sharpen(bits.low(32), Range(half.umin, half.umax, half.umin, half.umax), half)
    return found if found is not None else UNKNOWN32


def truncate(bounds: Bounds, size: int) -> Bounds:
    """The low ``size`` bytes, zeros above."""
    if size == 8:
        return bounds
    width = 8 * size
    most = (1 << width) - 1
    least_high, most_high = bounds.whole.umin >> width, bounds.whole.umax >> width
    span = Range(0, most, 0, most)
    if least_high == most_high:
        low, high = bounds.whole.umin & most, bounds.whole.umax & most
        span = Range(low, high, low, high)
    half = FULL32
    if size == 4:
        half = bounds.half
    found = sharpen(bounds.bits.low(width), span, half)
    return found if found is not None else _unknown_of(width)


def _unknown_of(width: int) -> Bounds:
    most = (1 << width) - 1
    found = sharpen(Tnum(0, most), Range(0, most, 0, most))
    assert found is not None
    return found


def from_low_half(bounds: Bounds) -> Bounds:
    """The low half, zeros above: what a 32-bit instruction leaves."""
    return truncate(bounds, 4)


#: Any value of 32 bits.
UNKNOWN32 = _unknown_of(32)
