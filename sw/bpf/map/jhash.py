"""Bob Jenkins' hash (lookup3, public domain) as the kernel has it in ``include/linux/jhash.h``."""

__all__ = ["jhash", "jhash_rounds"]

_INITIAL = 0xDEADBEEF
_MASK = 0xFFFFFFFF
_ROUND_BYTES = 12


def jhash_rounds(size: int) -> int:
    """Rounds of mixing for a key of ``size`` bytes, the last one included."""
    return max(1, (size + _ROUND_BYTES - 1) // _ROUND_BYTES)


def jhash(key: bytes, seed: int) -> int:
    """Hash of a key, 32 bits."""
    a = b = c = (_INITIAL + len(key) + seed) & _MASK
    position = 0
    while len(key) - position > _ROUND_BYTES:
        a, b, c = _mix(*_add(a, b, c, key[position : position + _ROUND_BYTES]))
        position += _ROUND_BYTES
    rest = key[position:]
    return _final(*_add(a, b, c, rest)) if rest else c


def _add(a: int, b: int, c: int, part: bytes) -> tuple[int, int, int]:
    words = (int.from_bytes(part[n : n + 4], "little") for n in (0, 4, 8))
    first, second, third = words
    return (a + first) & _MASK, (b + second) & _MASK, (c + third) & _MASK


def _rol(value: int, count: int) -> int:
    return (value << count | value >> (32 - count)) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - c & _MASK) ^ _rol(c, 4)
    c = c + b & _MASK
    b = (b - a & _MASK) ^ _rol(a, 6)
    a = a + c & _MASK
    c = (c - b & _MASK) ^ _rol(b, 8)
    b = b + a & _MASK
    a = (a - c & _MASK) ^ _rol(c, 16)
    c = c + b & _MASK
    b = (b - a & _MASK) ^ _rol(a, 19)
    a = a + c & _MASK
    c = (c - b & _MASK) ^ _rol(b, 4)
    b = b + a & _MASK
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    c = (c ^ b) - _rol(b, 14) & _MASK
    a = (a ^ c) - _rol(c, 11) & _MASK
    b = (b ^ a) - _rol(a, 25) & _MASK
    c = (c ^ b) - _rol(b, 16) & _MASK
    a = (a ^ c) - _rol(c, 4) & _MASK
    b = (b ^ a) - _rol(a, 14) & _MASK
    return (c ^ b) - _rol(b, 24) & _MASK
