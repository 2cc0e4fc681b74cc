"""Latencies of the whole machine, met to the cycle.

Each expectation is a walk along the path of one access: from edge to edge of the clocks it passes, every step a term
of the machine's configuration or of the contract of a component (named beside it). Nothing is measured and written
down. All clocks rise at tick 0, so the number of an edge and the periods say exactly where a crossing comes out; the
walks are repeated at several phases of the clocks to each other.
"""

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from hw.bus.core import OperationKind as K
from hw.bus.tilelink import LINE_BYTES
from hw.config import TLP_OVERHEAD_COMPLETION, TLP_OVERHEAD_REQUEST, MachineConfig, load_machine
from hw.mem.dram import DramController
from hw.mem.dram_timing import DramCommand
from hw.memory_map import BAR0_BASE, BAR3_BASE, BAR3_BYTES
from hw.nic.registers import REG
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from bare_metal import BareMetal  # noqa: E402

MACHINES = ("tiny", "teaching")
#: Core cycles by which the repetitions of a measurement differ: over a period of the clocks' pattern on either
#: machine (core to uncore repeats after 1 or 5 core cycles, core to DRAM after 5, core to card after 2 or 48).
PHASES = range(0, 48, 3)
#: Core cycles of rest before a measurement: longer than any access leaves anything under way.
REST = 400

#: Flip-flops of a crossing's synchronisers (``hw.lib.crossing``).
STAGES = 2


@dataclass(frozen=True)
class Walk:
    """Arithmetic on edge numbers. Every method returns the edge of its clock at which the next step is taken."""

    config: MachineConfig

    def cross(self, edge: int, source: str, sink: str) -> int:
        """Through a crossing: accepted at ``edge`` of ``source``, taken at the edge of ``sink`` returned.

        That is edge STAGES + 1 of ``sink`` after it; one that coincides with ``edge`` does not count.
        """
        tick = edge * self.config.period_ticks(source)
        return tick // self.config.period_ticks(sink) + STAGES + 1

    def link(self, edge: int, overhead: int, data: int = 0) -> int:
        """Along the link, idle before: a TLP of one beat accepted at ``edge`` of the card's clock.

        Its bytes take their time on the wire, the end of which is rounded up, then comes the flight.
        """
        serialisation = math.ceil((overhead + data) * self.config.cycles_per_byte(self.config.pcie.gbps))
        flight = max(1, math.ceil(Fraction(str(self.config.pcie.latency_ns)) * self.config.clocks.khz("nic") / 10**6))
        return edge + serialisation + flight

    def l1_hit(self, issue: int) -> int:
        """A load that hits the L1: issued at ``issue``, answered ``l1.latency`` cycles later."""
        return issue + self.config.l1.latency

    def acquire(self, issue: int) -> int:
        """A load that misses the L1: the edge of uncore at which the last level accepts its Acquire.

        The L1 finds the miss in its second stage and gives it an MSHR, allocates a way in a pass of its own and
        offers the Acquire 4 cycles after the load issued ("offers its Acquire at edge t + 4").
        """
        return self.cross(issue + 4, "core", "uncore")

    def granted(self, edge: int) -> int:
        """The Grant enters its crossing at ``edge`` of uncore: the edge of core at which the load is answered.

        "With the Grant offered at edge g, it answers at edge g + 2 + l1.latency."
        """
        return self.cross(edge, "uncore", "core") + 2 + self.config.l1.latency

    def llc_hit(self, issue: int) -> int:
        """A load that misses the L1 and hits the last level, where nobody else holds the line.

        "Grant is offered llc.latency cycles after Acquire was accepted, to the cycle."
        """
        return self.granted(self.acquire(issue) + self.config.llc.latency)

    def llc_miss(self, issue: int, dram_cycles: int) -> int:
        """A load that DRAM answers, in ``dram_cycles`` from the acceptance of the request to the response.

        In the last level, a hit's Grant leaves llc.latency after the Acquire was accepted, 3 cycles after
        it was pushed (it reads the line first); a request to DRAM is pushed by the same pass but leaves 2 cycles
        after the push: llc.latency - 1. When the line comes back the slot makes a second pass, without the wait for
        the configured latency: chosen, decided, pushed (one cycle each). The line buffers have one read port, and the
        line goes into the cache first ("fill ... cannot wait"): one cycle. Then the Grant leaves, 3 cycles later.
        """
        request = self.acquire(issue) + self.config.llc.latency - 3 + 2
        response = self.cross(request, "uncore", "dram") + dram_cycles
        arrival = self.cross(response, "dram", "uncore")
        return self.granted(arrival + 1 + 1 + 1 + 1 + 3)

    def probed(self, issue: int, dirty: bool) -> int:
        """A load that misses the L1 and hits the last level, but the other core holds the line and may write it.

        The first pass pushes a Probe where an unshared line's would push the Grant, llc.latency - 3 after the Acquire
        was accepted; it leaves one cycle later. In the other L1 it passes stages 0, 1 and 2 of the pipeline, and the
        ProbeAck leaves one cycle after the last: 3. Then the second pass: chosen, decided, pushed (one cycle
        each), and the Grant leaves 3 cycles after. A dirty line came back with the ProbeAck, and goes into the cache
        first: one cycle.
        """
        probe = self.acquire(issue) + self.config.llc.latency - 3 + 1
        answer = self.cross(probe, "uncore", "core") + 3
        arrival = self.cross(answer, "core", "uncore")
        return self.granted(arrival + 1 + 1 + 1 + (1 if dirty else 0) + 3)

    def dram(self, *before: int) -> int:
        """DRAM cycles from acceptance to response: the controller's front end, what goes before RD, CL, the burst."""
        dram = self.config.dram
        return DramController.FRONT_END + sum(before) + dram.CL + dram.BURST

    def mmio_read(self, issue: int, size: int) -> int:
        """A read of a register of the card.

        Core to root complex; one cycle there to make a packet ("accepted at edge t is offered at t + 1"); the link
        (a request without data); in the card the access at t + 2, and 2 later for the upper half of 8 bytes,
        the completion one cycle after; the link (a completion with the data); one cycle in the root complex;
        back to the core, where it completes.
        """
        packet = self.cross(issue, "core", "uncore") + 1
        at_card = self.link(self.cross(packet, "uncore", "nic"), TLP_OVERHEAD_REQUEST)
        completion = at_card + 2 + (2 if size == 8 else 0) + 1
        at_root = self.cross(self.link(completion, TLP_OVERHEAD_COMPLETION, size), "nic", "uncore")
        return self.cross(at_root + 1, "uncore", "core")

    def mmio_read_unclaimed(self, issue: int) -> int:
        """A read of an address that no device has: the root complex answers one cycle after it accepted it."""
        return self.cross(self.cross(issue, "core", "uncore") + 1, "uncore", "core")


class Stopwatch:
    """Times one operation at a time by the event log."""

    def __init__(self, config: MachineConfig):
        self.config = config
        self.walk = Walk(config)
        self.bench = BareMetal(NativeEngine(build_native(Design(config))))

    def time(self, core: int, kind: K, address: int, size: int, rest: int = REST) -> tuple[int, int]:
        """Let everything come to rest, do it, and return the edges of its issue and its completion."""
        bench = self.bench
        bench.execute(core, rest)
        operation = bench.load if kind is K.LOAD else bench.mmio_read
        bench.complete(core, operation(core, address, size))
        log = bench.log()
        issues = log.select(f"core{core}.port.issue")
        completions = log.select(f"core{core}.port.completion")
        assert issues["kind"][-1] == kind.value and issues["id"][-1] == completions["id"][-1]
        return int(issues["cycle"][-1]), int(completions["cycle"][-1])

    def counted(self) -> "Difference":
        """Counters from here on."""
        return Difference(self.bench.engine)

    def evict(self, core: int, line: int) -> None:
        """Bring ``line`` to the last level and out of the L1 of ``core``: by loads of other lines of its set."""
        l1 = self.config.l1
        for way in range(2 * l1.ways):
            self.bench.complete(core, self.bench.load(core, LINE_BYTES * (line + way * l1.sets)))
            self.bench.execute(core, REST)


class Difference:
    """Counters since it was made."""

    def __init__(self, engine: NativeEngine):
        self._engine = engine
        self._before = engine.counters()

    def __getitem__(self, name: str) -> int:
        return self._engine.counters()[name] - self._before[name]


@pytest.fixture(scope="module", params=MACHINES)
def config(request):
    return load_machine(request.param)


@pytest.fixture
def watch(config):
    return Stopwatch(config)


def test_l1_hit(watch):
    watch.time(0, K.LOAD, 0, 8)
    counted = watch.counted()
    for number, phase in enumerate(PHASES, 1):
        issue, completion = watch.time(0, K.LOAD, 8 * (number % 8), 8, REST + phase)
        assert completion == watch.walk.l1_hit(issue)
        assert counted["core0.l1.loads"] == number
    assert counted["core0.l1.load_misses"] == 0


def test_last_level_hit(watch):
    """Core 1 brings lines to the last level and evicts them from its L1; core 0, which never had them, loads them."""
    lines = range(len(PHASES))
    for line in lines:
        watch.evict(1, line)
    counted = watch.counted()
    for line, phase in zip(lines, PHASES, strict=True):
        issue, completion = watch.time(0, K.LOAD, line * LINE_BYTES, 8, REST + phase)
        assert completion == watch.walk.llc_hit(issue)
    assert counted["core0.l1.load_misses"] == counted["llc.core_hits"] == len(lines)
    assert counted["llc.core_misses"] == counted["llc.probes_sent"] == 0


@pytest.mark.parametrize("dirty", (False, True), ids=("clean", "dirty"))
def test_last_level_hit_on_a_line_that_the_other_core_owns(watch, dirty):
    for line, phase in enumerate(PHASES):
        watch.time(1, K.LOAD, line * LINE_BYTES, 8)
        if dirty:
            watch.bench.store(1, line * LINE_BYTES, b"modified")
        watch.bench.complete(1, watch.bench.fence(1))
        counted = watch.counted()
        issue, completion = watch.time(0, K.LOAD, line * LINE_BYTES, 8, REST + phase)
        assert completion == watch.walk.probed(issue, dirty)
        assert counted["llc.probes_sent"] == counted["core1.l1.probes_received"] == counted["llc.core_hits"] == 1
        assert counted["llc.core_misses"] == 0


def after_a_refresh(watch: Stopwatch) -> None:
    """Work until a refresh has passed: every row is closed, and the next refresh is a whole tREFI away."""
    dram = watch.config.dram
    nanoseconds = Fraction(1000) / Fraction(str(watch.config.clocks.dram))
    interval = math.ceil(dram.tREFI * nanoseconds * Fraction(str(watch.config.clocks.core)) / 1000)
    busy = math.ceil((dram.tRFC + dram.tRAS + dram.tRP + dram.banks) * nanoseconds * 3)
    now = watch.bench.cycle()
    watch.bench.execute(0, (now // interval + 1) * interval + busy - now)


@pytest.mark.parametrize("phase", PHASES[:: len(PHASES) // 4])
def test_dram(watch, phase):
    """A load that finds its bank closed, then one of the same row, then one of another row of the bank."""
    dram, walk = watch.config.dram, watch.walk
    # Lines of bank 0 of group 0, see hw.mem.dram_timing.line_layout
    same_row = dram.bank_groups
    next_row = dram.bank_groups * dram.lines_per_row * dram.banks_per_group
    after_a_refresh(watch)
    counted = watch.counted()
    for line, before in ((0, [dram.tRCD]), (same_row, []), (next_row, [dram.tRP, dram.tRCD])):
        issue, completion = watch.time(0, K.LOAD, line * LINE_BYTES, 8, 200 + phase)
        assert completion == walk.llc_miss(issue, walk.dram(*before)), before
    assert counted["llc.core_misses"] == 3
    assert [counted[f"dram.row_{n}"] for n in ("misses", "hits", "conflicts")] == [1, 1, 1]
    commands = watch.bench.log().select("dram.issued")["command"][-6:].tolist()
    assert [DramCommand(command).name for command in commands] == ["ACT", "RD", "RD", "PRE", "ACT", "RD"]


@pytest.mark.parametrize("size", (4, 8))
def test_mmio_read(watch, size):
    counted = watch.counted()
    for phase in PHASES:
        issue, completion = watch.time(0, K.MMIO_READ, BAR0_BASE + REG.STATUS.offset(), size, 4 * REST + phase)
        assert completion == watch.walk.mmio_read(issue, size)
    assert counted["root_complex.mmio_bridge.reads"] == len(PHASES)


def test_mmio_read_that_nobody_claims(watch):
    for phase in PHASES:
        issue, completion = watch.time(1, K.MMIO_READ, BAR3_BASE + BAR3_BYTES, 8, REST + phase)
        assert completion == watch.walk.mmio_read_unclaimed(issue)
