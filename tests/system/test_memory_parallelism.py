"""Misses overlap as far as MSHRs and window allow, on the whole machine: min(MSHRs, window / micro-operations between).

Between two loads lies an EXECUTE of one cycle whose micro-operations fill the window: nothing else holds up issue.
Rates are those in the middle of a run, where the first misses do not weigh.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hw.bus.tilelink import LINE_BYTES
from hw.config import MachineConfig
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from stopwatch import undisturbed  # noqa: E402

#: Misses of a run.
MISSES = 240
#: Micro-operations from one load to the next: first so few that the MSHRs are the bound (teaching 10, tiny 2), then
#: divisors of the window (192, 32), which then holds a whole number of loads.
CASES = [("teaching", uops) for uops in (1, 16, 24, 32, 48, 64, 96)] + [("tiny", uops) for uops in (1, 16, 32)]
#: Share of the formula that is reached at least. An MSHR is taken again a few cycles after its line has come.
LAST_LEVEL_SHARE = 0.9
#: Loads that miss to DRAM come back out of order, and an older one holds the window of younger ones.
DRAM_SHARE = 0.85


@dataclass(frozen=True)
class Misses:
    """A run of loads by core 0 that miss its private caches."""

    period: float  #: core cycles from one line's arrival to the next one's
    in_flight: float  #: misses between L1's asking for a line and its arrival, on average

    @classmethod
    def run(cls, config: MachineConfig, bench: BareMetal, lines: list[int], uops: int, chained: bool) -> "Misses":
        """Load ``lines``, one every ``uops`` micro-operations, each after the one before if ``chained``."""
        old = len(bench.log().select("core0.l1.refill"))
        handle = -1
        for line in lines:
            handle = bench.touch(0, line * LINE_BYTES, after=handle if chained else -1)
            if uops > 1:
                bench.execute(0, 1, uops - 1)
        bench.settle(0)
        log = bench.log()
        misses, refills = (log.select(f"core0.l1.{name}")[old:] for name in ("miss", "refill"))
        assert sorted(misses["line"]) == sorted(refills["line"]) == sorted(lines)
        asked = dict(zip(misses["line"].tolist(), misses["cycle"].tolist(), strict=True))
        middle = refills[len(lines) // 4 : -len(lines) // 4]
        duration = int(middle["cycle"][-1] - middle["cycle"][0])
        waited = sum(int(refill["cycle"]) - asked[int(refill["line"])] for refill in middle)
        return cls(duration / (len(middle) - 1), waited / len(middle) * (len(middle) - 1) / duration)


def machine(name: str) -> tuple[MachineConfig, BareMetal]:
    config = undisturbed(name)
    return config, BareMetal(NativeEngine(build_native(Design(config))))


def in_last_level(name: str, uops: int, *, chained: bool = False) -> Misses:
    """Misses that the last level has: lines that core 0 has touched, and evicted since."""
    config, bench = machine(name)
    private = (config.l1.size_kib + config.l2.size_kib) * 1024 // LINE_BYTES
    lines = list(range(2 * private + MISSES))
    random.Random(1).shuffle(lines)
    for line in lines:
        bench.touch(0, line * LINE_BYTES)
    bench.settle()
    return Misses.run(config, bench, lines[:MISSES], uops, chained)


def in_dram(name: str, uops: int) -> Misses:
    """Misses that nobody has."""
    config, bench = machine(name)
    lines = random.Random(1).sample(range(config.dram.lines), MISSES)
    return Misses.run(config, bench, lines, uops, chained=False)


def formula(name: str, uops: int) -> float:
    config = undisturbed(name)
    return min(config.l1.mshrs, config.core.window / uops)


@pytest.fixture(scope="module")
def latency():
    """Core cycles from one dependent miss that hits the last level to the next."""
    return {name: in_last_level(name, 1, chained=True).period for name in {name for name, _ in CASES}}


@pytest.mark.parametrize(("name", "uops"), CASES)
def test_misses_that_hit_the_last_level(name, uops, latency):
    """Latency over period: misses under way at once, each of which takes as long as it does alone."""
    overlap = latency[name] / in_last_level(name, uops).period
    assert LAST_LEVEL_SHARE * formula(name, uops) <= overlap <= formula(name, uops)


@pytest.mark.parametrize(("name", "uops"), CASES)
def test_misses_to_dram(name, uops):
    """Little's law counts them, as the latency of each depends on the others' rows and banks."""
    assert DRAM_SHARE * formula(name, uops) <= in_dram(name, uops).in_flight <= formula(name, uops)
