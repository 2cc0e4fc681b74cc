"""Bit pseudo-LRU, for any number of ways: one bit per way says "recently used".

Also called PLRUm (Al-Zoubi, Milenkovic, Milenkovic, "Performance evaluation of cache replacement policies for the SPEC
CPU2000 benchmark suite", ACM Southeast 2004).
"""

from amaranth.hdl import Const, Mux, Value

__all__ = ["plru_touched", "plru_victim"]


def plru_touched(recent: Value, way: Value) -> Value:
    """Bits of a set after a use of ``way`` (one-hot): its own is set; where that would leave none clear, it alone.

    Using the same way again changes nothing.
    """
    touched = recent | way
    return Mux(touched.all(), way, touched)


def plru_victim(recent: Value, valid: Value) -> Value:
    """The way to replace (one-hot): the lowest that is neither valid nor recent, else the lowest that is not recent."""
    if len(recent) == 1:
        return Const(1)
    empty = ~valid & ~recent
    candidates = Mux(empty.any(), empty, ~recent)
    return (candidates & (~candidates + 1))[: len(recent)]
