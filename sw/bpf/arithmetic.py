"""What the computing instructions compute (RFC 9669, sections 4.1 to 4.3), on registers as Python numbers of 64 bits.

Division by zero gives 0, modulo zero leaves the dividend, shifts use the low 6 (5) bits of their count, and a 32-bit
result has zeros above.
"""

from collections.abc import Callable

from sw.bpf.instruction import AluOperation, JumpOperation

__all__ = ["CONDITIONS", "MASK32", "MASK64", "compute", "sign_extend", "swap_bytes"]

MASK32 = (1 << 32) - 1
MASK64 = (1 << 64) - 1


def sign_extend(value: int, bits: int) -> int:
    """The low ``bits`` of ``value`` as a signed number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def swap_bytes(value: int, bits: int) -> int:
    """The low ``bits`` of ``value`` in the other byte order, zeros above."""
    size = bits // 8
    return int.from_bytes((value & ((1 << bits) - 1)).to_bytes(size, "little"), "big")


def _divide(a: int, b: int, bits: int) -> int:
    return a // b if b else 0


def _modulo(a: int, b: int, bits: int) -> int:
    return a % b if b else a


def _signed_divide(a: int, b: int, bits: int) -> int:
    a, b = sign_extend(a, bits), sign_extend(b, bits)
    if b == 0:
        return 0
    quotient = abs(a) // abs(b)  # truncated; the least number by -1 wraps to itself
    return quotient if (a < 0) == (b < 0) else -quotient


def _signed_modulo(a: int, b: int, bits: int) -> int:
    a, b = sign_extend(a, bits), sign_extend(b, bits)
    if b == 0:
        return a
    remainder = abs(a) % abs(b)  # has the sign of the dividend
    return -remainder if a < 0 else remainder


#: By operation: of two operands and the width in bits; the result is cut to the width afterwards.
_OPERATIONS: dict[int, Callable[[int, int, int], int]] = {
    AluOperation.ADD: lambda a, b, bits: a + b,
    AluOperation.SUB: lambda a, b, bits: a - b,
    AluOperation.MUL: lambda a, b, bits: a * b,
    AluOperation.DIV: _divide,
    AluOperation.OR: lambda a, b, bits: a | b,
    AluOperation.AND: lambda a, b, bits: a & b,
    AluOperation.LSH: lambda a, b, bits: a << (b & (bits - 1)),
    AluOperation.RSH: lambda a, b, bits: a >> (b & (bits - 1)),
    AluOperation.NEG: lambda a, b, bits: -a,
    AluOperation.MOD: _modulo,
    AluOperation.XOR: lambda a, b, bits: a ^ b,
    AluOperation.MOV: lambda a, b, bits: b,
    AluOperation.ARSH: lambda a, b, bits: sign_extend(a, bits) >> (b & (bits - 1)),
}
_SIGNED_OPERATIONS = {AluOperation.DIV: _signed_divide, AluOperation.MOD: _signed_modulo}


def compute(operation: int, bits: int, a: int, b: int, offset: int = 0) -> int:
    """Result of an ALU operation other than END.

    Arguments:
        bits: 64 or 32.
        a, b: destination and second operand; only their low ``bits`` count.
        offset: of the instruction: 1 makes DIV and MOD signed, 8, 16 or 32 let MOV extend the sign of so many bits.
    """
    mask = MASK64 if bits == 64 else MASK32
    if operation == AluOperation.MOV and offset:
        return sign_extend(b, offset) & mask
    function = _SIGNED_OPERATIONS[AluOperation(operation)] if offset else _OPERATIONS[operation]
    return function(a & mask, b & mask, bits) & mask


#: Conditions of the branches: of two unsigned operands and the width in bits.
CONDITIONS: dict[int, Callable[[int, int, int], bool]] = {
    JumpOperation.JEQ: lambda a, b, bits: a == b,
    JumpOperation.JGT: lambda a, b, bits: a > b,
    JumpOperation.JGE: lambda a, b, bits: a >= b,
    JumpOperation.JSET: lambda a, b, bits: bool(a & b),
    JumpOperation.JNE: lambda a, b, bits: a != b,
    JumpOperation.JSGT: lambda a, b, bits: sign_extend(a, bits) > sign_extend(b, bits),
    JumpOperation.JSGE: lambda a, b, bits: sign_extend(a, bits) >= sign_extend(b, bits),
    JumpOperation.JLT: lambda a, b, bits: a < b,
    JumpOperation.JLE: lambda a, b, bits: a <= b,
    JumpOperation.JSLT: lambda a, b, bits: sign_extend(a, bits) < sign_extend(b, bits),
    JumpOperation.JSLE: lambda a, b, bits: sign_extend(a, bits) <= sign_extend(b, bits),
}
