"""What a basic block of the JIT's code takes, from the shapes of its instructions (``x86.toml``)."""

import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sw.bpf.jit.x86 import X86, shape
from sw.costs import Cost

__all__ = ["Shape", "block_cost", "shapes"]

#: Micro-operations that issue in a cycle (Broadwell, Skylake).
_ISSUE_WIDTH = 4
#: So that sums of quarters of a cycle that make a whole one are one.
_ROUNDING = 1e-6
_RESOURCES = ("load", "store", "other")


class Shape(NamedTuple):
    """Figures of one shape of instruction."""

    uops: float
    cycles: float  #: reciprocal throughput
    latency: int  #: cycles


@cache
def _table() -> tuple[dict[str, Shape], str, str]:
    tree = tomllib.loads(Path(__file__).with_name("x86.toml").read_text())
    return {name: Shape(**figures) for name, figures in tree["shapes"].items()}, tree["kind"], tree["source"]


def shapes() -> dict[str, Shape]:
    """Figures by shape."""
    return _table()[0]


def _resource(name: str) -> str:
    """What limits a shape besides the issue width: all shapes of a resource queue up for it."""
    mnemonic, _, operands = name.partition(" ")
    first, _, rest = operands.partition(", ")
    memory = ("byte", "word", "dword", "qword")
    if (mnemonic.startswith("mov") and first in memory) or mnemonic in ("push", "call"):
        return "store"
    if (mnemonic.startswith("mov") and rest in memory) or mnemonic in ("pop", "leave", "ret"):
        return "load"
    return "other"


def block_cost(code: Iterable[X86], operations: int, bytes_: int, carry: float = 0.0) -> tuple[Cost, float]:
    """Cost of a block, and the fraction of a cycle by which it falls short: the next block's ``carry``.

    *cycles*: by what limits it in a row of blocks: the issue width, the ports for loads or stores, or instructions that
    are slow by themselves. *low*: issue width only; *high*: one instruction after the other.

    Arguments:
        operations: loads, stores and atomic accesses that the model issues itself, each of which takes a cycle and a
            micro-operation there; they are taken off.
        bytes_: length of the code.
    """
    table, kind, source = _table()
    names = [shape(x86.text) for x86 in code]
    uops = sum(table[name].uops for name in names)
    busy = dict.fromkeys(_RESOURCES, 0.0)
    for name in names:
        if name.startswith("lock "):  # the model's own operation takes the lock's cycles
            continue
        busy[_resource(name)] += table[name].cycles if _resource(name) != "other" else _slow(table[name])
    least = uops / _ISSUE_WIDTH
    cycles = max(least, *busy.values())
    # Nothing of an access that the model issues itself: neither its latency nor the lock's cycles.
    alone = sum(table[name].latency for name in names if not _issued(name))
    exact = max(0.0, cycles - operations) + carry
    whole = int(exact + _ROUNDING)
    cost = Cost(
        cycles=whole,
        uops=max(0, round(uops) - operations),
        text_bytes=bytes_,
        low=min(whole, max(0, int(least + carry + _ROUNDING) - operations)),
        high=max(whole, alone),
        kind=kind,
        source=source,
    )
    return cost, max(0.0, exact - whole)


def _slow(figures: Shape) -> float:
    """Cycles of an instruction that one port or unit does alone; the others are limited by the issue width."""
    return figures.cycles if figures.cycles >= 1 else 0.0


def _issued(name: str) -> bool:
    """Whether the model issues the instruction's access itself: a load or store that the program asks for."""
    return name.startswith("lock ") or (_resource(name) in ("load", "store") and name.startswith("mov"))
