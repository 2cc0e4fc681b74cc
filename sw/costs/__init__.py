"""Cycles per function of the software: tables in TOML, a source beside every figure.

``sw/costs/NAME.toml`` holds one table per function. ``cycles`` is the time with every memory access that the model
issues as an operation taken out and every other access hitting the L1 cache; the memory hierarchy adds the rest.
A table ``[mitigations.NAME]`` says what a defence against speculative execution adds; none is on unless asked for.
docs/costs.md tells how the figures come about.
"""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["KINDS", "Cost", "CostError", "Mitigation", "load_costs", "load_tables", "mitigations_of"]

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
    indirect: float = 0  #: indirect calls and jumps in one call

    def __post_init__(self):
        _check_figures(self, ("cycles", "uops", "text_bytes", "low", "high"))
        if isinstance(self.indirect, bool) or not isinstance(self.indirect, int | float) or self.indirect < 0:
            raise CostError(f"indirect must be a number of at least 0, not {self.indirect!r}")

    def plus(self, mitigation: "Mitigation", times: float) -> "Cost":
        """The cost with ``mitigation`` applied so many times."""
        return dataclasses.replace(
            self,
            cycles=self.cycles + round(mitigation.cycles * times),
            uops=self.uops + round(mitigation.uops * times),
            low=self.low + round(mitigation.low * times),
            high=self.high + round(mitigation.high * times),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mitigation:
    """What a defence adds, each time it is met."""

    cycles: int
    uops: int
    low: int
    high: int
    source: str
    kind: str
    indirect: bool = False  #: it is met at every indirect call and jump
    entries: Mapping[str, int] = field(default_factory=dict)  #: and so often in a call of these
    auto: bool = False  #: Linux turns it on by itself (``mitigations=auto``) on the processor the figures are for

    def __post_init__(self):
        _check_figures(self, ("cycles", "uops", "low", "high"))
        for name in ("indirect", "auto"):
            if not isinstance(getattr(self, name), bool):
                raise CostError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if not isinstance(self.entries, dict) or not all(isinstance(n, int) and n > 0 for n in self.entries.values()):
            raise CostError("entries must be a table of whole numbers of at least 1")

    def times(self, name: str, cost: Cost) -> float:
        """How often it is met in one call of the entry ``name``."""
        return self.entries.get(name, 0) + (cost.indirect if self.indirect else 0)


def _check_figures(of: "Cost | Mitigation", names: Iterable[str]) -> None:
    for name in names:
        value = getattr(of, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise CostError(f"{name} must be a whole number of at least 0, not {value!r}")
    if of.kind not in KINDS:
        raise CostError(f"kind must be one of {', '.join(KINDS)}, not {of.kind!r}")
    if not isinstance(of.source, str) or not of.source.strip():
        raise CostError("source must say where the figure comes from")
    if not of.low <= of.cycles <= of.high:
        raise CostError(f"cycles = {of.cycles} must lie between low = {of.low} and high = {of.high}")


def load_costs(name_or_file: str | Path = "linux", mitigations: Iterable[str] = ()) -> Mapping[str, Cost]:
    """Load a table by name (``sw/costs/NAME.toml``) or from a file, with some of its mitigations on.

    Raises:
        CostError: with one line that names the file, the entry and what is wrong.
    """
    path, costs, switches = _read(name_or_file)
    for name in dict.fromkeys(mitigations):
        if name not in switches:
            raise CostError(f"{path}: no mitigation {name!r}; there are: {_listed(switches)}")
        switch = switches[name]
        costs = {entry: cost.plus(switch, switch.times(entry, cost)) for entry, cost in costs.items()}
    return MappingProxyType(costs)


def mitigations_of(setting: str, name_or_file: str | Path = "linux") -> tuple[str, ...]:
    """Names of the mitigations that a setting of Linux's command line (``mitigations=``) turns on.

    Arguments:
        setting: ``off``, ``auto``, or names that the table has, separated by commas.

    Raises:
        CostError: with one line that names what is valid.
    """
    _, _, switches = _read(name_or_file)
    if setting == "off":
        return ()
    if setting == "auto":
        return tuple(sorted(name for name, switch in switches.items() if switch.auto))
    names = setting.split(",")
    for name in names:
        if name not in switches:
            raise CostError(f"mitigations are off, auto, or some of {_listed(switches)} with commas, not {name!r}")
    return tuple(sorted(set(names)))


def _listed(switches: Mapping[str, Mitigation]) -> str:
    return ", ".join(sorted(switches)) or "none"


def _read(name_or_file: str | Path) -> tuple[Path, dict[str, Cost], dict[str, Mitigation]]:
    """A table's file, costs and mitigations."""
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
    switches = tree.pop("mitigations", {})
    if not isinstance(switches, dict):
        raise CostError(f"{path}: mitigations must be a table")
    costs: dict[str, Cost] = {name: _make(Cost, path, name, entry) for name, entry in tree.items()}
    known_switches = {name: _make(Mitigation, path, f"mitigations.{name}", entry) for name, entry in switches.items()}
    for name, switch in known_switches.items():
        if stray := switch.entries.keys() - costs.keys():
            raise CostError(f"{path}: [mitigations.{name}] names {', '.join(sorted(stray))}, which have no entry")
    return path, costs, known_switches


def load_tables(names: Iterable[str], mitigations: Iterable[str] = ()) -> Mapping[str, Cost]:
    """Load several tables as one, each with those of the mitigations that it has.

    Raises:
        CostError: with one line, also when two of them have an entry in common.
    """
    costs: dict[str, Cost] = {}
    for name in names:
        _, _, switches = _read(name)
        table = load_costs(name, [switch for switch in mitigations if switch in switches])
        if twice := costs.keys() & table.keys():
            raise CostError(f"table {name} has entries that stand in another one: {', '.join(sorted(twice))}")
        costs.update(table)
    return MappingProxyType(costs)


def _make(cls: type, path: Path, name: str, entry: Any) -> Any:
    """A dataclass from its table in the file."""
    if not isinstance(entry, dict):
        raise CostError(f"{path}: {name} must be a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    optional = {
        f.name
        for f in fields.values()
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }
    if unknown := entry.keys() - fields.keys():
        raise CostError(f"{path}: [{name}] has unknown {', '.join(sorted(unknown))}; valid: {', '.join(fields)}")
    if missing := fields.keys() - entry.keys() - optional:
        raise CostError(f"{path}: [{name}] lacks {', '.join(sorted(missing))}")
    try:
        return cls(**entry)
    except CostError as error:
        raise CostError(f"{path}: [{name}] {error}") from None
