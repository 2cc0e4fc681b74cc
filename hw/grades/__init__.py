"""Speed grades of DRAM, as JEDEC has them: organisation and timings, in ``*.toml`` beside this file."""

import functools
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

__all__ = ["clocks", "grade_names", "grade_values", "most_clock_mhz"]

#: What JESD79-4 and JESD79-5 let a timing in nanoseconds fall short of by rounding: it is truncated after this share of
#: a clock has been added (rounding algorithms, JESD79-4B section 13.5 and JESD79-5 section 13.2).
GUARD_BAND = Fraction(974, 1000)

_ORGANISATION = ("burst_length", "bank_groups", "banks_per_group", "columns", "command_clocks", "bus_turn")


@functools.cache
def _grades() -> dict[str, dict[str, Any]]:
    grades = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        table = tomllib.loads(path.read_text())
        organisation, timings = table.pop("organisation"), table.pop("timings")
        for name, grade in table.items():
            grades[name] = {**organisation, **timings, **grade}
    return grades


def grade_names() -> list[str]:
    """Names such as ``DDR4-2400``."""
    return sorted(_grades())


def clocks(timing: int | dict[str, float], mhz: float, *, at_most: bool = False) -> int:
    """A timing in cycles of a clock of ``mhz`` MHz: the longer of its clocks and its nanoseconds, JEDEC's rounding.

    Arguments:
        at_most: it must not be longer, as the interval between refreshes: rounded down.
    """
    if isinstance(timing, int):
        return timing
    ns = Fraction(str(timing.get("ns", 0))) * Fraction(str(mhz)) / 1000
    return max(int(timing.get("nck", 0)), int(ns + (0 if at_most else GUARD_BAND)))


def grade_values(name: str, mhz: float) -> dict[str, int]:
    """Organisation and timings of a grade, in cycles of a memory clock of ``mhz`` MHz, by the names of ``DramConfig``.

    Raises:
        KeyError: when there is no such grade.
    """
    grade = _grades()[name]
    timings = {
        key: clocks(value, mhz, at_most=key == "tREFI")
        for key, value in grade.items()
        if key.startswith("t") or key in ("CL", "CWL")
    }
    return {**{key: grade[key] for key in _ORGANISATION}, **timings}


def most_clock_mhz(name: str) -> Fraction:
    """The fastest memory clock of a grade, in MHz: half its transfers per second. JEDEC's names round those down."""
    return Fraction(str(_grades()[name]["clock_mhz"]))
