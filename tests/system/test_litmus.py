"""The cores obey x86-TSO: every outcome it allows comes, and no other, over thousands of random timings.

A machine in which a fence does not wait is found out.
"""

import random
import sys
from pathlib import Path

import pytest

from hw.config import load_machine
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from dma_machine import Fault, plant_order  # noqa: E402
from litmus import LITMUS, Litmus, Runner, allowed  # noqa: E402

#: Lines of two sets of every cache, so that they also drive each other out.
LINES = [0x400 + line for line in range(4)] + [0x400 + 64 * way for way in range(1, 5)]

TWO = [litmus for litmus in LITMUS if len(litmus.threads) == 2]
MORE = [litmus for litmus in LITMUS if len(litmus.threads) > 2]


def counts(settings: list[str], litmus: Litmus, times: int) -> dict:
    config = load_machine("tiny", settings)
    bench = BareMetal(NativeEngine(build_native(Design(config))))
    return Runner(bench, random.Random(litmus.name), LINES).run(litmus, times)


def check(litmus: Litmus, seen: dict, rare: int = 0) -> None:
    """No forbidden outcome; of those allowed, all but ``rare``."""
    permitted = allowed(litmus)
    assert set(seen) <= permitted, f"forbidden: {sorted(set(seen) - permitted)}"
    assert len(permitted - set(seen)) <= rare, f"never seen: {sorted(permitted - set(seen))}"


@pytest.mark.parametrize("litmus", TWO, ids=lambda litmus: litmus.name)
def test_two_threads(litmus):
    check(litmus, counts([], litmus, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("litmus", TWO, ids=lambda litmus: litmus.name)
def test_two_threads_over_an_inclusive_cache(litmus):
    check(litmus, counts(["llc.inclusion=inclusive", "llc.slices=2", "llc.replacement=random"], litmus, 1000))


def test_a_fence_that_does_not_wait_is_found():
    """On the machine in which faults can be planted; without this one it passes."""
    design = Design(load_machine("tiny"), "dma_machine:DmaMachine", (HERE / "dma_machine.py",))
    litmus = next(litmus for litmus in LITMUS if litmus.name == "SB+mfences")

    def seen(*faults: Fault) -> set:
        engine = NativeEngine(build_native(design))
        engine.push_frame(plant_order(*faults), 1, 0)
        bench = BareMetal(engine)
        bench.execute(0, 1000)
        bench.settle()
        return set(Runner(bench, random.Random(5), LINES).run(litmus, 500))

    assert seen() <= allowed(litmus)
    assert seen(Fault.FENCE_IGNORES_STORES) - allowed(litmus)


@pytest.mark.slow
@pytest.mark.parametrize("litmus", LITMUS, ids=lambda litmus: litmus.name)
def test_four_cores(litmus):
    check(litmus, counts(["core.count=4"], litmus, 5000))
