"""What computing instructions make of what is known of their operands.

Sound for every pair of values; as exact as Linux 6.18 is: it knows nothing of quotients, remainders and of shifts by an
unknown count.
"""

from collections.abc import Callable

from sw.bpf.arithmetic import compute, swap_bytes
from sw.bpf.instruction import AluOperation
from sw.bpf.verifier.bounds import (
    FULL32,
    FULL64,
    UNKNOWN,
    Bounds,
    Range,
    constant,
    sharpen,
    signed,
    truncate,
    zero_extended,
)
from sw.bpf.verifier.tnum import Tnum

__all__ = ["result", "sign_extended", "swapped"]

_FULL = {64: FULL64, 32: FULL32}


def result(operation: int, width: int, a: Bounds, b: Bounds) -> Bounds:
    """What is known of the result of an operation other than MOV and END.

    Arguments:
        width: 64 or 32 bits.
        a, b: destination and second operand.
    """
    if operation == AluOperation.NEG:
        operation, a, b = AluOperation.SUB, constant(0), a
    if operation not in _RANGES:
        return UNKNOWN
    if operation in _SHIFTS and not (b.is_known and b.bits.value < width):
        return UNKNOWN
    if a.is_known and b.is_known:
        return constant(compute(operation, width, a.bits.value, b.bits.value))
    if width == 32:
        bits = _BITS[operation](a.bits.low(32), b.bits.low(32), 32).low(32)
        return zero_extended(bits, _RANGES[operation](a.half, b.half, bits, 32))
    bits = _BITS[operation](a.bits, b.bits, 64)
    whole = _RANGES[operation](a.whole, b.whole, bits, 64)
    if operation == AluOperation.LSH and b.bits.value == 32:  # the first half of how compilers extend a sign
        whole = whole._replace(smin=a.half.smin << 32, smax=a.half.smax << 32)
    half = FULL32 if operation in _SHIFTS else _RANGES[operation](a.half, b.half, bits.low(32), 32)
    found = sharpen(bits, whole, half)
    return found if found is not None else UNKNOWN


def sign_extended(bounds: Bounds, bits: int, width: int) -> Bounds:
    """What is known of the low ``bits`` of a value, extended by their sign to ``width``, zeros above that."""
    tnum = bounds.bits.sign_extend(bits)
    top = 1 << (bits - 1)
    least, most = bounds.whole.smin, bounds.whole.smax
    span = Range(0, FULL64.umax, -top, top - 1)
    if least >> bits == most >> bits:
        low, high = signed(least % (1 << bits), bits), signed(most % (1 << bits), bits)
        if low <= high:
            span = Range(0, FULL64.umax, low, high)
    if bits == 32:
        span = Range(0, FULL64.umax, max(span.smin, bounds.half.smin), min(span.smax, bounds.half.smax))
    found = sharpen(tnum, span)
    extended = found if found is not None else UNKNOWN
    return extended if width == 64 else truncate(extended, 4)


def swapped(bounds: Bounds, bits: int, swaps: bool) -> Bounds:
    """What is known of the low ``bits`` in the other byte order, or (without ``swaps``) as they are, zeros above."""
    if not swaps:
        return truncate(bounds, bits // 8)
    found = sharpen(Tnum(swap_bytes(bounds.bits.value, bits), swap_bytes(bounds.bits.mask, bits)))
    return found if found is not None else UNKNOWN


# ---- Ranges: of both operands' ranges and the bits of the result, at one width


def _sum(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    return _wrapped(a.umin + b.umin, a.umax + b.umax, a.smin + b.smin, a.smax + b.smax, width)


def _difference(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    return _wrapped(a.umin - b.umax, a.umax - b.umin, a.smin - b.smax, a.smax - b.smin, width)


def _wrapped(umin: int, umax: int, smin: int, smax: int, width: int) -> Range:
    """A range of results that may not fit: kept if none overflows, the unsigned one also if all do."""
    full = _FULL[width]
    if umin >> width == umax >> width:
        umin, umax = umin & full.umax, umax & full.umax
    else:
        umin, umax = 0, full.umax
    if smin < full.smin or smax > full.smax:
        smin, smax = full.smin, full.smax
    return Range(umin, umax, smin, smax)


def _product(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    full = _FULL[width]
    umin, umax = a.umin * b.umin, a.umax * b.umax
    if umax > full.umax:
        umin, umax = 0, full.umax
    corners = (a.smin * b.smin, a.smin * b.smax, a.smax * b.smin, a.smax * b.smax)
    smin, smax = min(corners), max(corners)
    if smin < full.smin or smax > full.smax:
        smin, smax = full.smin, full.smax
    return Range(umin, umax, smin, smax)


def _signed_too(umin: int, umax: int, width: int) -> Range:
    """An unsigned range; signed the same if it does not change sign."""
    low, high = signed(umin, width), signed(umax, width)
    full = _FULL[width]
    return Range(umin, umax, low, high) if low <= high else Range(umin, umax, full.smin, full.smax)


def _conjunction(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    return _signed_too(bits.value, min(a.umax, b.umax), width)


def _disjunction(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    return _signed_too(max(a.umin, b.umin), bits.value | bits.mask, width)


def _exclusive(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    return _signed_too(bits.value, bits.value | bits.mask, width)


def _left(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    full, count = _FULL[width], b.umin
    umin, umax = a.umin << count, a.umax << count
    if umax > full.umax:
        umin, umax = 0, full.umax
    return Range(umin, umax, full.smin, full.smax)


def _right(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    return _signed_too(a.umin >> b.umin, a.umax >> b.umin, width)


def _signed_right(a: Range, b: Range, bits: Tnum, width: int) -> Range:
    return Range(0, _FULL[width].umax, a.smin >> b.umin, a.smax >> b.umin)


# ---- Bits


def _arithmetic_shift(a: Tnum, b: Tnum, width: int) -> Tnum:
    extended = a if width == 64 else a.sign_extend(32)
    shifted = Tnum(signed(extended.value, 64) >> b.value, signed(extended.mask, 64) >> b.value)
    full = FULL64.umax
    return Tnum(shifted.value & full, shifted.mask & full)


_SHIFTS = (AluOperation.LSH, AluOperation.RSH, AluOperation.ARSH)
_BITS: dict[int, Callable[[Tnum, Tnum, int], Tnum]] = {
    AluOperation.ADD: lambda a, b, width: a.add(b),
    AluOperation.SUB: lambda a, b, width: a.subtract(b),
    AluOperation.MUL: lambda a, b, width: a.multiply(b),
    AluOperation.AND: lambda a, b, width: a.bit_and(b),
    AluOperation.OR: lambda a, b, width: a.bit_or(b),
    AluOperation.XOR: lambda a, b, width: a.bit_xor(b),
    AluOperation.LSH: lambda a, b, width: a.shift_left(b.value),
    AluOperation.RSH: lambda a, b, width: a.shift_right(b.value),
    AluOperation.ARSH: _arithmetic_shift,
}
_RANGES: dict[int, Callable[[Range, Range, Tnum, int], Range]] = {
    AluOperation.ADD: _sum,
    AluOperation.SUB: _difference,
    AluOperation.MUL: _product,
    AluOperation.AND: _conjunction,
    AluOperation.OR: _disjunction,
    AluOperation.XOR: _exclusive,
    AluOperation.LSH: _left,
    AluOperation.RSH: _right,
    AluOperation.ARSH: _signed_right,
}
