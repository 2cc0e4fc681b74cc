"""Times single operations on a machine at rest, by the event log."""

import math
from fractions import Fraction

from hw.bus.core import OperationKind as K
from hw.bus.tilelink import LINE_BYTES
from hw.config import MachineConfig, load_machine
from sim.bare_metal import BareMetal
from sim.engine.native import NativeEngine

__all__ = ["REST", "Difference", "Stopwatch", "undisturbed"]

#: So that a line is read when it is asked for and not before, and leaves a private cache only for want of ways there.
WITHOUT_PREFETCHERS = ["l2.prefetch_adjacent=false", "l2.prefetch_stream=false"]
LARGE_SNOOP_FILTER = ["llc.snoop_filter_lines=1024", "llc.snoop_filter_ways=16"]


def undisturbed(name: str, *settings: str) -> MachineConfig:
    """A machine on which one access has nothing to do with another."""
    filters = LARGE_SNOOP_FILTER if name == "tiny" else []
    return load_machine(name, [*WITHOUT_PREFETCHERS, *filters, *settings])


#: Core cycles of rest before a measurement: longer than any access leaves anything under way.
REST = 400


class Stopwatch:
    """Times one operation at a time by the event log."""

    def __init__(self, config: MachineConfig, bench: BareMetal):
        self.config, self.bench = config, bench

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
        """Bring ``line`` to the last level and out of the private caches of ``core``: by loads of lines of its sets."""
        for way in range(2 * (self.config.l1.ways + self.config.l2.ways)):
            self._touch(core, line + way * self.config.l2.sets)

    def evict_to_l2(self, core: int, line: int) -> None:
        """Bring ``line`` to the L2 of ``core`` and out of its L1."""
        for way in range(self.config.l1.ways + 1):
            self._touch(core, line + way * self.config.l1.sets)

    def _touch(self, core: int, line: int) -> None:
        self.bench.complete(core, self.bench.load(core, LINE_BYTES * line))
        self.bench.execute(core, REST)

    def after_a_refresh(self) -> None:
        """Have core 0 work until a refresh has just passed: every row is closed, and the next one is far."""
        dram = self.config.dram
        nanoseconds = Fraction(1000) / Fraction(str(self.config.clocks.dram))
        interval = math.ceil(dram.tREFI * nanoseconds * Fraction(str(self.config.clocks.core)) / 1000)
        busy = math.ceil((dram.tRFC + dram.tRAS + dram.tRP + dram.banks) * nanoseconds * 3)
        now = self.bench.cycle()
        self.bench.execute(0, (now // interval + 1) * interval + busy - now)


class Difference:
    """Counters since it was made."""

    def __init__(self, engine: NativeEngine):
        self._engine = engine
        self._before = engine.counters()

    def __getitem__(self, name: str) -> int:
        return self._engine.counters()[name] - self._before[name]
