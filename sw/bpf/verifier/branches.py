"""What a condition between scalars says: whether it is decided, and what each side learns about both operands.

Sources: ``is_scalar_branch_taken`` and ``regs_refine_cond_op`` in ``kernel/bpf/verifier.c``.
"""

from sw.bpf.arithmetic import MASK32, MASK64
from sw.bpf.instruction import JumpOperation as Jump
from sw.bpf.verifier.bounds import Bounds, Range, sharpen, signed
from sw.bpf.verifier.tnum import Tnum

__all__ = ["FLIPPED", "OPPOSITES", "decided", "learn"]

#: What holds if a condition does not; JSET has none.
OPPOSITES = {
    Jump.JEQ: Jump.JNE,
    Jump.JNE: Jump.JEQ,
    Jump.JGT: Jump.JLE,
    Jump.JLE: Jump.JGT,
    Jump.JGE: Jump.JLT,
    Jump.JLT: Jump.JGE,
    Jump.JSGT: Jump.JSLE,
    Jump.JSLE: Jump.JSGT,
    Jump.JSGE: Jump.JSLT,
    Jump.JSLT: Jump.JSGE,
}
#: The same condition with its operands exchanged.
FLIPPED = {
    Jump.JEQ: Jump.JEQ,
    Jump.JNE: Jump.JNE,
    Jump.JSET: Jump.JSET,
    Jump.JGT: Jump.JLT,
    Jump.JLT: Jump.JGT,
    Jump.JGE: Jump.JLE,
    Jump.JLE: Jump.JGE,
    Jump.JSGT: Jump.JSLT,
    Jump.JSLT: Jump.JSGT,
    Jump.JSGE: Jump.JSLE,
    Jump.JSLE: Jump.JSGE,
}


def decided(operation: int, a: Bounds, b: Bounds, width: int) -> bool | None:
    """Whether a condition holds for all possible values, or for none; None if it depends."""
    if operation in (Jump.JEQ, Jump.JNE):
        equal = _equal(a, b, width)
        return equal if equal is None else equal == (operation == Jump.JEQ)
    if operation == Jump.JSET:
        return _share_bits(_bits(a, width), _bits(b, width))
    x, y = (a.whole, b.whole) if width == 64 else (a.half, b.half)
    if operation in (Jump.JLT, Jump.JGE):
        less = _less(x.umin, x.umax, y.umin, y.umax)
    elif operation in (Jump.JGT, Jump.JLE):
        less = _less(y.umin, y.umax, x.umin, x.umax)
    elif operation in (Jump.JSLT, Jump.JSGE):
        less = _less(x.smin, x.smax, y.smin, y.smax)
    else:
        less = _less(y.smin, y.smax, x.smin, x.smax)
    return less if less is None else less == (operation in (Jump.JLT, Jump.JGT, Jump.JSLT, Jump.JSGT))


def _bits(bounds: Bounds, width: int) -> Tnum:
    return bounds.bits if width == 64 else bounds.bits.low(32)


def _less(least: int, most: int, other_least: int, other_most: int) -> bool | None:
    if most < other_least:
        return True
    return False if least >= other_most else None


def _apart(x: Range, y: Range) -> bool:
    return x.intersect(y).is_empty


def _equal(a: Bounds, b: Bounds, width: int) -> bool | None:
    x, y = _bits(a, width), _bits(b, width)
    if x.is_known and y.is_known:
        return x.value == y.value
    if (x.value ^ y.value) & ~x.mask & ~y.mask or _apart(a.half, b.half):
        return False
    return False if width == 64 and _apart(a.whole, b.whole) else None


def _share_bits(x: Tnum, y: Tnum) -> bool | None:
    if x.value & y.value:
        return True
    return None if (x.value | x.mask) & (y.value | y.mask) else False


def learn(operation: int, holds: bool, a: Bounds, b: Bounds, width: int) -> tuple[Bounds, Bounds]:
    """What is known of both operands where a condition holds, or where it does not.

    What is known already stays as it is if the condition contradicts it: that path is never taken.
    """
    if operation == Jump.JSET:
        return _learn_bits(holds, a, b, width)
    if not holds:
        operation = OPPOSITES[Jump(operation)]
    if operation in (Jump.JGT, Jump.JGE, Jump.JSGT, Jump.JSGE):
        lower, higher = learn(FLIPPED[Jump(operation)], True, b, a, width)
        return higher, lower
    if operation == Jump.JEQ:
        return _learn_equal(a, b, width)
    if operation == Jump.JNE:
        return _learn_unequal(a, b, width), _learn_unequal(b, a, width)
    x, y = (a.whole, b.whole) if width == 64 else (a.half, b.half)
    strict = int(operation in (Jump.JLT, Jump.JSLT))
    if operation in (Jump.JLT, Jump.JLE):
        x, y = x._replace(umax=min(x.umax, y.umax - strict)), y._replace(umin=max(y.umin, x.umin + strict))
    else:
        x, y = x._replace(smax=min(x.smax, y.smax - strict)), y._replace(smin=max(y.smin, x.smin + strict))
    return _with(a, x, width), _with(b, y, width)


def _with(bounds: Bounds, span: Range, width: int) -> Bounds:
    if span.is_empty:
        return bounds
    if width == 64:
        return sharpen(bounds.bits, span, bounds.half) or bounds
    return sharpen(bounds.bits, bounds.whole, span) or bounds


def _learn_equal(a: Bounds, b: Bounds, width: int) -> tuple[Bounds, Bounds]:
    half = a.half.intersect(b.half)
    if _equal(a, b, width) is False or half.is_empty:
        return a, b
    if width == 64:
        whole = a.whole.intersect(b.whole)
        found = None if whole.is_empty else sharpen(a.bits.intersect(b.bits), whole, half)
        return (found, found) if found is not None else (a, b)
    low = a.bits.low(32).intersect(b.bits.low(32))
    pair = []
    for side in (a, b):
        above = side.bits.value & ~MASK32, side.bits.mask & ~MASK32
        pair.append(sharpen(Tnum(above[0] | low.value, above[1] | low.mask), side.whole, half) or side)
    return pair[0], pair[1]


def _learn_unequal(a: Bounds, b: Bounds, width: int) -> Bounds:
    """``a`` without the one value that ``b`` has, if that is at one end of a range."""
    known = _bits(b, width)
    if not known.is_known:
        return a
    value, number = known.value, signed(known.value, width)
    span = a.whole if width == 64 else a.half
    return _with(
        a,
        Range(
            span.umin + (span.umin == value),
            span.umax - (span.umax == value),
            span.smin + (span.smin == number),
            span.smax - (span.smax == number),
        ),
        width,
    )


def _learn_bits(holds: bool, a: Bounds, b: Bounds, width: int) -> tuple[Bounds, Bounds]:
    return _learn_tested(holds, a, b, width), _learn_tested(holds, b, a, width)


def _learn_tested(holds: bool, a: Bounds, b: Bounds, width: int) -> Bounds:
    """``a`` after a test of whether it shares bits with a ``b`` of one value."""
    tested = _bits(b, width)
    if not tested.is_known:
        return a
    if holds:
        if tested.value.bit_count() != 1:
            return a
        bits = Tnum(a.bits.value | tested.value, a.bits.mask & ~tested.value)
    else:
        bits = Tnum(a.bits.value & ~tested.value, a.bits.mask & ~tested.value)
    return sharpen(Tnum(bits.value & MASK64, bits.mask & MASK64), a.whole, a.half) or a
