"""How deep an idle core sleeps: ``idle=poll``, ``idle=halt`` or the cpuidle governor menu.

The sleep states are the machine's (``core.sleep_exit_ns``): 0 is polling, 1 what HLT does (C1), later ones are deeper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from sw.linux.clock import local_clock
from sw.linux.cpu import Cpu

__all__ = ["IDLE", "Cpuidle", "MenuGovernor", "cpuidle_idle_call"]

#: What ``Cpuidle.idle`` may be.
IDLE = ("poll", "halt", "menu")

#: A state is worth entering for so many times its exit latency: intel_idle's tables have 1 (C1), 2 (C1E), 2.5 and 3
#: (C3 and C6 of Broadwell), 4.5 (C6 of Skylake-SP).
TARGET_RESIDENCY = 3

#: Period of the tick (HZ=250). The model has no timers: it stands for the next timer event that menu starts from.
TICK_NS = 4_000_000

#: Intervals that menu remembers, and weight of the past in its correction factor (drivers/cpuidle/governors/menu.c).
INTERVALS = 8
DECAY = 8


class MenuGovernor:
    """The governor menu for one core, without timers, I/O wait and latency limits.

    Arguments:
        exit_ns: exit latency of each state in ns.
    """

    def __init__(self, exit_ns: Sequence[float]):
        self.exit_ns = exit_ns
        self.intervals = [0.0] * INTERVALS  #: the last times asleep in ns, a ring
        self.factor = 1.0  #: average of time asleep over :data:`TICK_NS`
        self._next = 0

    def select(self) -> int:
        """The deepest state that pays off and wakes up fast enough for the time it expects to sleep."""
        predicted = min(TICK_NS * self.factor, self._typical_interval())
        chosen = 0
        for state, exit_ns in enumerate(self.exit_ns):
            if exit_ns > predicted:
                break
            # Rather sleep lightly than poll.
            if exit_ns * TARGET_RESIDENCY > predicted and state > 1:
                break
            chosen = state
        return chosen

    def reflect(self, state: int, slept_ns: float) -> None:
        """Learn how long the core slept in ``state``, from entry to the interrupt, exit included."""
        exit_ns = self.exit_ns[state]
        slept = slept_ns - exit_ns if slept_ns > 2 * exit_ns else slept_ns / 2
        self.intervals[self._next] = slept
        self._next = (self._next + 1) % INTERVALS
        self.factor += (min(slept / TICK_NS, 1.0) - self.factor) / DECAY

    def _typical_interval(self) -> float:
        """The average of the last intervals, the longest outliers left out, if they differ little; else infinity."""
        values = sorted(self.intervals)
        while 4 * len(values) >= 3 * INTERVALS:
            average = fmean(values)
            variance = pvariance(values, average)
            if average**2 > 36 * variance or variance <= 20_000.0**2:
                return average
            values = [value for value in values if value < values[-1]]
        return float("inf")


@dataclass(frozen=True, kw_only=True)
class Cpuidle:
    """The choice for all cores.

    Arguments:
        idle: one of :data:`IDLE`.
        exit_ns: exit latency of each state in ns.

    Raises:
        ValueError: for a choice that there is not, or that needs more states than there are.
    """

    idle: str = "poll"
    exit_ns: Sequence[float] = (0.0,)

    def __post_init__(self):
        if self.idle not in IDLE:
            raise ValueError(f"idle is one of {', '.join(IDLE)}, not {self.idle!r}")
        if self.idle != "poll" and len(self.exit_ns) < 2:
            raise ValueError(f"idle={self.idle} needs 2 values of core.sleep_exit_ns, not {len(self.exit_ns)}")

    def governor(self) -> MenuGovernor | None:
        """One core's governor, if there is any."""
        return MenuGovernor(self.exit_ns) if self.idle == "menu" else None


async def cpuidle_idle_call(cpu: Cpu) -> None:
    """Sleep until an interrupt has been handled."""
    cpuidle, governor = cpu.kernel.cpuidle, cpu.governor
    if governor is None:
        await cpu.halt(1 if cpuidle.idle == "halt" else 0)
        return
    cpu.execute("menu_select")
    state = governor.select()
    begin = await local_clock(cpu)
    await cpu.halt(state)
    governor.reflect(state, await local_clock(cpu) - begin)
