"""Choosing one of many."""

from functools import reduce
from operator import or_

from amaranth.hdl import Const, Module, Signal, Value

__all__ = ["first_set", "one_of"]


def first_set(m: Module, mask: Value, name: str) -> Signal:
    """Index of the lowest bit set in ``mask``; 0 if there is none."""
    index = Signal(range(len(mask)), name=name)
    for i in reversed(range(len(mask))):
        with m.If(mask[i]):
            m.d.comb += index.eq(i)
    return index


def one_of(selects: list[Value], values: list[Value]) -> Value:
    """The one of ``values`` whose select is high, 0 if none is. At most one may be."""
    pairs = zip(selects, (Value.cast(v) for v in values), strict=True)
    return reduce(or_, (select.replicate(len(v)) & v for select, v in pairs), Const(0))
