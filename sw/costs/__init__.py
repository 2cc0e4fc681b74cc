"""Cycles per function of the software: tables in TOML, a source beside every figure.

``sw/costs/NAME.toml`` holds one table per function. ``cycles`` is the time with every memory access that the model
issues as an operation taken out and every other access hitting the L1 cache; the memory hierarchy adds the rest.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

__all__ = ["KINDS", "Cost", "CostError", "load_costs"]

#: How a figure came about.
KINDS = {
    "measured": "taken from a published measurement",
    "derived": "computed from published facts or code, as the source says",
    "fitted": "set so that a published total is met, then frozen",
    "estimated": "judged from the work the code does; the band says how far off it may be",
    "chosen": "a parameter of the experiment, not a property of a real system",
}


class CostError(ValueError):
    """A cost table that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one call of a function takes."""

    cycles: int  #: of the core's clock
    uops: int  #: micro-operations
    text_bytes: int  #: bytes of code that run
    source: str
    kind: str  #: one of :data:`KINDS`
    low: int  #: cycles, the least that is plausible
    high: int  #: cycles, the most that is plausible
    unit: str = field(default="call")  #: what is counted: a call, or so many bytes of data

    def __post_init__(self):
        for name in ("cycles", "uops", "text_bytes", "low", "high"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise CostError(f"{name} must be a whole number of at least 0, not {value!r}")
        if self.kind not in KINDS:
            raise CostError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not isinstance(self.source, str) or not self.source.strip():
            raise CostError("source must say where the figure comes from")
        if not self.low <= self.cycles <= self.high:
            raise CostError(f"cycles = {self.cycles} must lie between low = {self.low} and high = {self.high}")


def load_costs(name_or_file: str | Path = "linux") -> Mapping[str, Cost]:
    """Load a table by name (``sw/costs/NAME.toml``) or from a file.

    Raises:
        CostError: with one line that names the file, the entry and what is wrong.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = Path(__file__).with_name(f"{name_or_file}.toml")
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in Path(__file__).parent.glob("*.toml")))
        raise CostError(f"no cost table {str(name_or_file)!r}; there are: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CostError(f"{path}: {error}") from None
    names = {f.name: f for f in dataclasses.fields(Cost)}
    costs = {}
    for name, entry in tree.items():
        if not isinstance(entry, dict):
            raise CostError(f"{path}: {name} must be a table")
        unknown = entry.keys() - names.keys()
        missing = names.keys() - entry.keys() - {"unit"}
        if unknown:
            raise CostError(f"{path}: [{name}] has unknown {', '.join(sorted(unknown))}; valid: {', '.join(names)}")
        if missing:
            raise CostError(f"{path}: [{name}] lacks {', '.join(sorted(missing))}")
        try:
            costs[name] = Cost(**entry)
        except CostError as error:
            raise CostError(f"{path}: [{name}] {error}") from None
    return MappingProxyType(costs)
