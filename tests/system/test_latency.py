"""Latencies of the whole machine, met to the cycle.

Each expectation is a walk along the path of one access: from edge to edge of the clocks it passes, every step a term
of the machine's configuration or of the contract of a component (named beside it). Nothing is measured and written
down. All clocks rise at tick 0, so the number of an edge and the periods say exactly where a crossing comes out; the
walks are repeated at several phases of the clocks to each other.
"""

import sys
from pathlib import Path

import pytest

from hw.bus.core import OperationKind as K
from hw.bus.tilelink import LINE_BYTES
from hw.mem.dram_timing import DramCommand
from hw.memory_map import BAR0_BASE, BAR3_BASE, BAR3_BYTES, MSI_BASE
from hw.nic.registers import REG
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from stopwatch import REST, Stopwatch, undisturbed  # noqa: E402
from walk import Walk  # noqa: E402

from sim.bare_metal import BareMetal, StuckError  # noqa: E402

MACHINES = ("tiny", "teaching")
#: Core cycles by which the repetitions of a measurement differ: over a period of the clocks' pattern on either
#: machine (core to uncore repeats after 1 or 5 core cycles, core to DRAM after 5, core to card after 2 or 48).
PHASES = range(0, 48, 3)


@pytest.fixture(scope="module", params=MACHINES)
def config(request):
    return undisturbed(request.param)


@pytest.fixture(scope="module")
def walk(config):
    return Walk(config)


@pytest.fixture
def watch(config):
    return Stopwatch(config, BareMetal(NativeEngine(build_native(Design(config)))))


def test_l1_hit(watch, walk):
    watch.time(0, K.LOAD, 0, 8)
    counted = watch.counted()
    for number, phase in enumerate(PHASES, 1):
        issue, completion = watch.time(0, K.LOAD, 8 * (number % 8), 8, REST + phase)
        assert completion == walk.l1_hit(issue)
        assert counted["core0.l1.loads"] == number
    assert counted["core0.l1.load_misses"] == 0


def test_l2_hit(watch, walk):
    for phase in PHASES[::4]:
        watch.evict_to_l2(0, phase)
        counted = watch.counted()
        issue, completion = watch.time(0, K.LOAD, phase * LINE_BYTES, 8, REST + phase)
        assert completion == walk.l2_hit(issue)
        assert counted["core0.l1.load_misses"] == counted["core0.l2.hits"] == 1
        assert counted["llc.core_hits"] == counted["llc.core_misses"] == 0


def test_last_level_hit(watch, walk):
    """Core 1 brings a line to the last level and evicts it; core 0, which never had it, loads it."""
    for line, phase in enumerate(PHASES):
        watch.evict(1, line)
        counted = watch.counted()
        issue, completion = watch.time(0, K.LOAD, line * LINE_BYTES, 8, REST + phase)
        assert completion == walk.llc_hit(issue)
        assert counted["core0.l1.load_misses"] == counted["core0.l2.misses"] == counted["llc.core_hits"] == 1
        assert counted["llc.core_misses"] == counted["llc.probes_sent"] == 0


@pytest.mark.parametrize("dirty", (False, True), ids=("clean", "dirty"))
def test_last_level_hit_on_a_line_that_the_other_core_owns(watch, walk, dirty):
    for line, phase in enumerate(PHASES):
        watch.time(1, K.LOAD, line * LINE_BYTES, 8)
        if dirty:
            watch.bench.store(1, line * LINE_BYTES, b"modified")
        watch.bench.complete(1, watch.bench.fence(1))
        counted = watch.counted()
        issue, completion = watch.time(0, K.LOAD, line * LINE_BYTES, 8, REST + phase)
        assert completion == walk.probed(issue, dirty)
        assert counted["llc.probes_sent"] == counted["core1.l1.probes_received"] == counted["llc.core_hits"] == 1
        assert counted["llc.core_misses"] == 0


@pytest.mark.parametrize("phase", PHASES[:: len(PHASES) // 4])
def test_dram(watch, walk, phase):
    """A load that finds its bank closed, then one of the same row, then one of another row of the bank."""
    dram = watch.config.dram
    # Lines of bank 0 of group 0, see hw.mem.dram_timing.line_layout
    same_row = dram.bank_groups
    next_row = dram.bank_groups * dram.lines_per_row * dram.banks_per_group
    watch.after_a_refresh()
    counted = watch.counted()
    for line, before in ((0, [dram.tRCD]), (same_row, []), (next_row, [dram.tRP, dram.tRCD])):
        issue, completion = watch.time(0, K.LOAD, line * LINE_BYTES, 8, 200 + phase)
        assert completion == walk.llc_miss(issue, walk.dram(*before)), before
    assert counted["llc.core_misses"] == 3
    assert [counted[f"dram0.row_{n}"] for n in ("misses", "hits", "conflicts")] == [1, 1, 1]
    commands = watch.bench.log().select("dram0.issued")["command"][-6:].tolist()
    assert [DramCommand(command).name for command in commands] == ["ACT", "RD", "RD", "PRE", "ACT", "RD"]


@pytest.mark.parametrize("size", (4, 8))
def test_mmio_read(watch, walk, size):
    counted = watch.counted()
    for phase in PHASES:
        issue, completion = watch.time(0, K.MMIO_READ, BAR0_BASE + REG.STATUS.offset(), size, 4 * REST + phase)
        assert completion == walk.mmio_read(issue, size)
    assert counted["root_complex.mmio_bridge.reads"] == len(PHASES)


def test_mmio_read_that_nobody_claims(watch, walk):
    for phase in PHASES:
        issue, completion = watch.time(1, K.MMIO_READ, BAR3_BASE + BAR3_BYTES, 8, REST + phase)
        assert completion == walk.mmio_read_unclaimed(issue)


def issue_of_write(bench: BareMetal) -> int:
    """Edge at which core 0's last MMIO write issued."""
    issues = bench.log().select("core0.port.issue")
    return int(issues["cycle"][issues["kind"] == K.MMIO_WRITE.value][-1])


def test_interrupt_between_cores(watch, walk):
    """Core 0 interrupts core 1, which has interrupts masked: they stay pending."""
    bench = watch.bench

    def sent(phase: int) -> int:
        bench.execute(0, REST + phase)
        bench.mmio_write(0, MSI_BASE + (1 << 12), 0x3F)
        bench.execute(0, REST)
        bench.settle(0)
        return issue_of_write(bench)

    bench.mask_interrupts(1)
    bench.settle(1)
    for phase in PHASES:
        arrival = walk.interrupt(sent(phase))
        assert bench.log().select("core1.interrupts.requested")["cycle"][-1] == arrival
    assert not len(bench.log().select("core1.port.interrupt"))


def test_a_core_that_computes_takes_an_interrupt_one_cycle_later(watch, walk):
    bench = watch.bench
    bench.execute(1, 100_000)
    bench.execute(0, REST)
    bench.mmio_write(0, MSI_BASE + (1 << 12), 0x3F)
    bench.execute(0, REST)
    with pytest.raises(StuckError, match="interrupt 63 on core 1"):
        bench.settle()
    issue = issue_of_write(bench)
    taken = bench.log().select("core1.port.interrupt")
    assert (taken["cycle"].tolist(), taken["vector"].tolist()) == ([walk.interrupt(issue) + 1], [0x3F])
