"""Latencies of the parts that two machines stand for: published, by arithmetic, and measured.

The arithmetic is done twice: by :mod:`latency_path`, stage by stage as docs/latency.md shows it, and by :mod:`walk`,
which tests/system/test_latency.py holds to the machine. Measuring takes two large machines to build: slow.
"""

import random
import sys
from pathlib import Path
from statistics import fmean

import pytest

from hw.bus.core import OperationKind as K
from hw.bus.tilelink import LINE_BYTES
from hw.config import load_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from latency_path import FIGURES, MEASURED_CHASE_NS, PAGE, PARTS, document, dram_path, phases  # noqa: E402
from stopwatch import REST, Stopwatch, undisturbed  # noqa: E402
from walk import Walk  # noqa: E402

from sim.bare_metal import BareMetal  # noqa: E402

TOLERANCE = 0.10
by_name = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.machine} {figure.level}")


@pytest.mark.parametrize("machine", PARTS)
def test_the_stages_are_the_whole_path(machine):
    config = load_machine(machine)
    walk = Walk(config)
    for issue in phases(config):
        path = dram_path(config, issue)
        assert path.edge == walk.llc_miss(issue, walk.dram(config.dram.tRCD))
        assert sum(step.ticks for step in path.steps) == path.tick - issue * config.period_ticks("core")


@by_name
def test_published_latency_is_met(figure):
    modelled = figure.modelled()
    assert abs(figure.error(modelled)) <= TOLERANCE, f"{modelled:.1f} {figure.unit} against {figure.published:g}"


@pytest.mark.parametrize("figure", [f for f in FIGURES if f.level == "DRAM"], ids=lambda figure: figure.machine)
def test_without_the_way_to_dram_it_is_not(figure):
    """What the two parameters are for: caches and JEDEC's timings alone are well below."""
    bare = figure.config.replace(["dram.controller_ns=0.0", "dram.phy_ns=0.0"])
    assert figure.error(figure.modelled(bare)) < -2.5 * TOLERANCE


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == document(), "run: PYTHONPATH=. python tests/system/latency_path.py"


@pytest.fixture(scope="module", params=PARTS)
def machine(request):
    return request.param


@pytest.fixture(scope="module")
def config(machine):
    return undisturbed(machine)


@pytest.fixture
def watch(config):
    return Stopwatch(config, BareMetal(NativeEngine(build_native(Design(config)))))


@pytest.mark.slow
def test_measured(machine, config, watch):
    """Loads at all phases, to the cycle what arithmetic says; their mean what is published."""
    walk, figures = Walk(config), {figure.level: figure for figure in FIGURES if figure.machine == machine}
    taken: dict[str, list[int]] = {level: [] for level in figures}

    def load(level, line, rest):
        issue, completion = watch.time(0, K.LOAD, line * LINE_BYTES, 8, rest)
        assert completion == figures[level].edges(walk, issue), level
        taken[level].append(completion - issue)

    for phase in range(len(phases(config))):
        # Bank 0 of group 0, a row of its own each time, and none open
        dram = config.dram
        line = phase * dram.bank_groups * dram.lines_per_row * dram.banks_per_group
        watch.after_a_refresh()
        load("DRAM", line, REST + phase)
        load("L1", line, REST + phase)
    for line in range(0, len(phases(config)), 3):
        watch.evict_to_l2(0, line)
        load("L2", line, REST + line)
        watch.evict(1, line + 32)
        load("last level", line + 32, REST + line)

    for level, figure in figures.items():
        cycles = fmean(taken[level])
        measured = cycles if figure.unit == "cycles" else cycles * 1000 / config.clocks.core
        assert abs(figure.error(measured)) <= TOLERANCE, level


@pytest.mark.slow
def test_random_chase(machine, config, watch):
    """As the published figures were measured: each load needs the one before, in memory much larger than the cache."""
    rng, bench, count = random.Random(1), watch.bench, 1000
    lines = rng.sample(range(config.dram.lines), count)
    assert config.dram.lines > 5 * config.llc.size_kib * 1024 // LINE_BYTES
    counted, before = watch.counted(), -1
    for line in lines:
        before = bench.touch(0, line * LINE_BYTES, after=before)
    bench.settle(0)
    log = bench.log()
    begin = log.select("core0.port.issue")["cycle"][-count]
    ns = float(log.select("core0.port.completion")["cycle"][-1] - begin) / count * 1000 / config.clocks.core
    assert counted["llc.core_misses"] == count
    assert sum(counted[f"dram{n}.row_hits"] for n in range(config.dram.channels)) < 0.05 * count

    figure = next(f for f in FIGURES if (f.machine, f.level) == (machine, "DRAM"))
    assert abs(figure.error(ns)) <= TOLERANCE
    assert ns == pytest.approx(MEASURED_CHASE_NS[machine], abs=0.05), "docs/latency.md has it"
