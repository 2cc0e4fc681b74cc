"""Counters read at equal intervals of simulated time: what the machine looked like on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SAMPLED", "Samples"]

#: Beginnings of the paths of what is sampled.
SAMPLED = ("llc.", "dram", "nic.", "root_complex.")


@dataclass
class Samples:
    """Readings, the first when the software was up.

    Attributes:
        period_ns: simulated time from one to the next; the last one is at the end of the run.
        ticks: when each was taken.
        counters: by path, one value per reading.
    """

    period_ns: float
    ticks: list[int] = field(default_factory=list)
    counters: dict[str, list[int]] = field(default_factory=dict)

    def take(self, tick: int, counters: Mapping[str, int]) -> None:
        """Add a reading, unless there is one of this tick."""
        if self.ticks and self.ticks[-1] == tick:
            return
        self.ticks.append(tick)
        for name, value in counters.items():
            if name.startswith(SAMPLED):
                self.counters.setdefault(name, []).append(value)

    def as_json(self, ticks_per_second: int) -> dict[str, Any]:
        """For result.json: times from the first reading on, and the counters that ever changed."""
        ns = 10**9 / ticks_per_second
        return {
            "period_ns": self.period_ns,
            "time_ns": [(tick - self.ticks[0]) * ns for tick in self.ticks],
            "counters": {name: values for name, values in self.counters.items() if _varies(values)},
        }


def _varies(values: Sequence[int]) -> bool:
    return any(value != values[0] for value in values)
