"""Selecting one of several bits without a chain of conditions, so that compiled models stay fast."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.utils import ceil_log2

__all__ = ["encode", "index_width", "lowest", "one_hot", "round_robin"]


def index_width(count: int) -> int:
    """Bits of an index below ``count``, at least one."""
    return max(1, ceil_log2(count))


def one_hot(index: Value, width: int) -> Value:
    """``width`` bits with only bit ``index`` set."""
    return (Const(1) << index)[:width]


def lowest(bits: Value) -> Value:
    """Only the lowest set bit of ``bits``; zero if there is none."""
    return (bits & (~bits + 1))[: len(bits)]


def encode(bits: Value) -> Value:
    """Index of the one set bit in ``bits``."""
    width = len(bits)
    return Cat((bits & sum(1 << i for i in range(width) if i >> k & 1)).any() for k in range(index_width(width)))


def round_robin(m: Module, requests: Value, last: Value, name: str) -> Signal:
    """Index of the first set bit of ``requests`` after index ``last``, going around; 0 if there is none."""
    width = len(requests)
    index = Signal(index_width(width), name=name)
    with m.If(requests.any()):
        after = Signal(width, name=f"{name}_after")
        m.d.comb += [
            after.eq(requests & ~((Const(2) << last) - 1)[:width]),
            index.eq(encode(lowest(Mux(after.any(), after, requests)))),
        ]
    return index
