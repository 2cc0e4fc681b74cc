"""From analysed paths to the entries of a cost table, and the table's text."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sw.costs import Cost
from sw.costs.derive.special import special_figures

__all__ = ["cost_of", "rewrite"]

_BLOCK = re.compile(r"(?m)^\[(\w+)\]\n(?:(?!\[|#|\n).*\n)*")


def cost_of(entry: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], source: str) -> Cost:
    """An entry from its plan and its evidence.

    What the model issues as operations of its own is taken out: one cycle and one micro-operation each, for that is
    what issuing them takes; the sum of a call whose accesses all hit is then what llvm-mca says. An atomic has the time
    of its locked instruction itself.
    """
    special = special_figures()
    atomics = entry.get("atomics", 0)
    locked = sum(part["locked"] * part["times"] / part["of"] for part in parts)
    if atomics > locked:
        raise ValueError(f"{atomics} atomics for {locked:g} locked instructions")

    def figure(part: Mapping[str, Any], what: str) -> float:
        return part[what] + sum(special[name][what] * count for name, count in part["special"].items())

    def total(what: str) -> float:
        whole = sum(figure(part, what) * part["times"] / part["of"] for part in parts)
        return whole - atomics * special["lock"][what]

    operations = entry["operations"]
    cycles = max(1, round(total("cycles") - operations))
    lines = {line for part in parts for line in part["lines"]}
    return Cost(
        cycles=cycles,
        uops=max(1, round(total("uops") - operations)),
        text_bytes=64 * len(lines),
        source=f"{source}: " + " + ".join(dict.fromkeys(part["path"] for part in parts)),
        kind="derived",
        low=max(0, min(cycles, math.floor(total("low") - operations))),
        high=max(cycles, math.ceil(total("high"))),
        unit=entry.get("unit", "call"),
        indirect=round(sum(part["indirect"] * part["times"] / part["of"] for part in parts), 2),
    )


def rewrite(table: Path, costs: Mapping[str, Cost]) -> None:
    """Put ``costs`` in the place of the entries of their names in the file ``table``; all else stays."""
    text = table.read_text()
    known = {match[1] for match in _BLOCK.finditer(text)}
    missing = costs.keys() - known
    if missing:
        raise ValueError(f"{table} has no entry {', '.join(sorted(missing))} to be replaced")
    table.write_text(
        _BLOCK.sub(lambda match: _entry(match[1], costs[match[1]]) if match[1] in costs else match[0], text)
    )


def _entry(name: str, cost: Cost) -> str:
    lines = [
        f"[{name}]",
        f"cycles = {cost.cycles}",
        f"uops = {cost.uops}",
        f"text_bytes = {cost.text_bytes}",
        f"low = {cost.low}",
        f"high = {cost.high}",
    ]
    if cost.indirect:
        lines.append(f"indirect = {cost.indirect:g}")
    lines += [f'kind = "{cost.kind}"', f'source = "{cost.source}"']
    if cost.unit != "call":
        lines.append(f'unit = "{cost.unit}"')
    return "\n".join(lines) + "\n"
