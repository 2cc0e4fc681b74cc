"""Memory is coherent: 10^4 random operations of both cores and of a device on a few lines, each read checked.

Once with the card: frames go to buffers at any address, their descriptors lie on lines that the cores write too. Once
with a device that reads and writes whatever it is told, on a machine in which faults can be planted; the checks find
each of them.
"""

import random
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hw.bus.core import AtomicFunction
from hw.bus.core import OperationKind as K
from hw.bus.tilelink import LINE_BYTES
from hw.config import load_machine
from hw.mem.llc_hash import slice_of
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_WRITE_BACK
from hw.nic.registers import REG
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.engine import CoherenceError
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog
from sim.wire.frames import with_fcs

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from card_driver import CardDriver  # noqa: E402
from coherence import DEVICE, Access, Shadow  # noqa: E402
from dma_machine import AROUND, INCLUSIVE_ONLY, ONLY_SLOW, Fault, plant_order, read_order, write_order  # noqa: E402
from station import LEAST_BYTES, random_frame  # noqa: E402

from sim.bare_metal import BareMetal, StuckError  # noqa: E402

CORES = 2
CONFIG = load_machine("tiny")

#: Neighbouring lines, so that transfers of the device cover several.
NEIGHBOURS = [0x400 + line for line in range(6)]
#: Lines of the same set of every cache as the first of those, more than the private caches of a core have ways
#: together, and more than the last level has: they drive each other out.
RIVALS = [
    line
    for line in range(NEIGHBOURS[0] + CONFIG.llc.sets, CONFIG.dram.lines, CONFIG.llc.sets)
    if slice_of(line, 2) == slice_of(NEIGHBOURS[0], 2)  # where there are two slices, too
][: max(CONFIG.l1.ways + CONFIG.l2.ways, CONFIG.llc.ways) + 2]
LINES = [*NEIGHBOURS, *RIVALS]


def some_size(rng: random.Random) -> int:
    """1 to 64 bytes; software likes 8."""
    return rng.choice((1, 4, 8, 8, 8, 16, 64, rng.randint(1, 64)))


def place(rng: random.Random, size: int) -> int:
    """An address at which ``size`` bytes lie within one of the lines."""
    return rng.choice(LINES) * LINE_BYTES + rng.randint(0, LINE_BYTES - size)


#: Ticks from the event "a device write becomes visible" until every load that issues sees it: the last level says so
#: one cycle later, and at that edge itself a load still has what was there before.
VISIBLE = CONFIG.period_ticks("uncore") + 1


class Programs:
    """What was pushed to the cores, and what came back."""

    def __init__(self, engine: NativeEngine):
        self.engine = engine
        self.bench = BareMetal(engine, loaded=self._returned)
        self.loads: dict[int, tuple[int, int]] = {}  #: address and size, by handle
        self.stores: dict[int, tuple[int, bytes]] = {}  #: address and data, by handle
        self.results: dict[int, bytes] = {}
        self.barriers: set[int] = set()  #: accesses to devices

    def _returned(self, handle: int, data: int | bytes) -> None:
        if handle in self.loads:
            _, size = self.loads[handle]
            self.results[handle] = data if isinstance(data, bytes) else data.to_bytes(size, "little")

    def load(self, core: int, address: int, size: int) -> None:
        """Queue a load to be checked."""
        self.loads[self.bench.load(core, address, size)] = (address, size)

    def store(self, core: int, address: int, data: bytes) -> None:
        """Queue a store."""
        self.stores[self.bench.store(core, address, data)] = (address, data)

    def random_operation(self, rng: random.Random, core: int) -> None:
        """Queue something."""
        size = some_size(rng)
        what = rng.random()
        if what < 0.5:
            self.load(core, place(rng, size), size)
        elif what < 0.96:
            self.store(core, place(rng, size), rng.randbytes(size))
        elif what < 0.98:
            self.bench.execute(core, rng.randint(1, 100))
        else:
            self.bench.fence(core)

    def timeline(self, log: EventLog, core: int) -> tuple[dict[int, int], dict[int, int]]:
        """Ticks of issue and of completion, by handle."""
        issues = log.select(f"core{core}.port.issue")
        completions = log.select(f"core{core}.port.completion")
        handles = self.engine.issued(core).tolist()
        issued = dict(zip(handles, issues["tick"].tolist(), strict=True))
        completed = {}
        by_id: dict[int, int] = {}
        events = [
            (tick, 0, number, handle)
            for tick, number, handle in zip(issues["tick"].tolist(), issues["id"].tolist(), handles, strict=True)
        ]
        events += [
            (tick, -1, number, -1)
            for tick, number in zip(completions["tick"].tolist(), completions["id"].tolist(), strict=True)
        ]
        for tick, what, number, handle in sorted(events):
            if what == 0:
                by_id[number] = handle
            else:
                completed[by_id[number]] = tick
        return issued, completed

    def stores_within(self, log: EventLog) -> list[Access]:
        """Every store of the cores, with the interval in which it became visible.

        It is no longer in the store buffer when so many later ones have issued as that holds, nor when an access to
        a device issues (``hw.cpu.core_port``).
        """
        result = []
        for core in range(CORES):
            issued, completed = self.timeline(log, core)
            handles = [handle for handle in issued if handle in self.stores]
            gone = [issued[handle] for handle in handles[CONFIG.core.store_buffer :]]
            gone += [max(completed.values())] * (len(handles) - len(gone))
            barriers = [(handle, issued[handle]) for handle in issued if handle in self.barriers]
            for handle, last in zip(handles, gone, strict=True):
                later = bisect_right(barriers, (handle, 0))
                if later < len(barriers):
                    last = min(last, barriers[later][1])
                last += 1  # at that edge itself a load still has what was there before
                result.append(Access(core, handle, *self.stores[handle], issued[handle], last))
        return result

    def reads(self, log: EventLog) -> list[Access]:
        """Every load of the cores."""
        result = []
        for core in range(CORES):
            issued, completed = self.timeline(log, core)
            for handle in issued:
                if handle in self.loads:
                    address, _ = self.loads[handle]
                    times = issued[handle], completed[handle]
                    result.append(Access(core, handle, address, self.results[handle], *times))
        return result


def assert_covered(counters: dict[str, int]) -> None:
    """There were 10^4 operations, and every path of the protocol was taken, most of them often."""
    cores = [counters[f"core{core}.port.issued.{what}"] for core in range(CORES) for what in ("loads", "stores")]
    device = [counters[f"root_complex.inbound.{what}_packets"] for what in ("read", "write")]
    assert sum(cores) + sum(device) >= 10_000
    assert min(cores) >= 1000 and min(device) >= 100
    for path, least in {
        "root_complex.inbound.write_partial_lines": 1000,
        "llc.device_write_update": 1000,
        "llc.device_write_allocate": 20,
        "llc.probes_sent": 1000,
        "llc.core_misses": 500,
        "llc.evict_dirty": 500,
        "llc.back_invalidations": 5,
        "core0.port.forwarded_loads": 30,
        "core1.l1.evictions_dirty": 200,
        "core1.l1.evictions_clean": 200,
    }.items():
        assert counters[path] >= least, path


def parts(address: int, length: int) -> list[tuple[int, int]]:
    """A transfer as one (address, length) per line."""
    end, result = address + length, []
    while address < end:
        size = min(end, (address // LINE_BYTES + 1) * LINE_BYTES) - address
        result.append((address, size))
        address += size
    return result


# ---- The card


RING = 0x8000
DESCRIPTORS = 8  # the least: two lines
RING_LINES = [RING // LINE_BYTES + line for line in range(DESCRIPTORS * DESCRIPTOR_BYTES // LINE_BYTES)]
LARGEST = 250  # bytes of a frame without FCS


class CardRun:
    """Random operations of both cores, and frames that the card writes to the same lines."""

    #: Operations of a core between two looks at the ring.
    BATCH = 40

    def __init__(self, engine: NativeEngine, *, frames: int, seed: int):
        self.rng = random.Random(seed)
        self.engine = engine
        self.programs = Programs(engine)
        self.driver = CardDriver(self.programs.bench, RING, DESCRIPTORS)
        self.driver.start()
        self.buffers: list[int] = []  #: addresses, in the order in which they were given to the card
        self.frames: list[bytes] = []  #: without FCS
        self.nic_period = CONFIG.period_ticks("nic")
        head = 0
        while len(self.frames) < frames or head != self.driver.tail:
            for core in range(CORES):
                for _ in range(self.BATCH):
                    self._operate(core)
            head = self.driver.read(REG.RDH)
            self._refill(head, frames - len(self.frames))
        for core in range(CORES):
            self.programs.bench.fence(core)
        left = set(range(CORES))
        while left:
            left -= set(self.programs.bench.run(*left))
        self.log = EventLog(engine.manifest, engine.log())
        self.counters = engine.counters()
        self.programs.barriers = {
            handle
            for core in range(CORES)
            for handle, kind in zip(
                engine.issued(core).tolist(), self.log.select(f"core{core}.port.issue")["kind"].tolist(), strict=True
            )
            if kind in (K.MMIO_READ.value, K.MMIO_WRITE.value)
        }

    def _operate(self, core: int) -> None:
        """One random operation, a third of them on the ring."""
        rng, programs = self.rng, self.programs
        if rng.random() < 0.67:
            programs.random_operation(rng, core)
        elif rng.random() < 0.5:
            size = some_size(rng)
            programs.load(core, rng.choice(RING_LINES) * LINE_BYTES + rng.randint(0, LINE_BYTES - size), size)
        else:
            # The card does not look at the upper half of a descriptor, and overwrites it with what it has to say.
            half = DESCRIPTOR_BYTES // 2
            size = rng.randint(1, half)
            address = self.driver.descriptor(rng.randrange(DESCRIPTORS)) + rng.randint(half, 2 * half - size)
            programs.store(core, address, rng.randbytes(size))

    def _refill(self, head: int, most: int) -> None:
        """Give the card buffers, and a frame for each of them."""
        rng, driver = self.rng, self.driver
        free = (head - driver.tail - 1) % DESCRIPTORS
        for _ in range(min(rng.randint(0, free), most)):
            size = rng.randint(LEAST_BYTES, LARGEST)
            first, last = NEIGHBOURS[0] * LINE_BYTES, (NEIGHBOURS[-1] + 1) * LINE_BYTES
            buffer = rng.randint(first, last - size)
            self.programs.store(driver.core, driver.descriptor(driver.tail), buffer.to_bytes(8, "little"))
            driver.advance()
            self.buffers.append(buffer)
            frame = random_frame(rng, size)
            self.frames.append(frame)
            start = self.engine.tick // self.nic_period + rng.randint(0, 200)
            self.engine.push_frame(with_fcs(frame), len(self.frames), start)
        driver.publish()

    def device_writes(self) -> list[Access]:
        """What the card wrote, line by line, with the tick at which it became visible.

        The root complex says which transfers came, in order; the last level when each line of them became visible.
        """
        written_back = self._written_back()
        result, told = [], []
        for number, event in enumerate(self.log.select("root_complex.inbound.dma_write").tolist()):
            _, _, address, length, packet = event
            if address // LINE_BYTES in RING_LINES:
                content = b"".join(next(written_back) for _ in range(length // DESCRIPTOR_BYTES))
            else:
                at = address - self.buffers[packet - 1]
                assert 0 <= at, "the card read another address in the descriptor than was stored"
                content = self.frames[packet - 1][at : at + length]
            assert len(content) == length
            for part, size in parts(address, length):
                told.append(part // LINE_BYTES)
                result.append(Access(DEVICE, number, part, content[part - address : part - address + size], 0, 0))
        commits = self.log.select("llc.device_write")
        assert told == commits["line"].tolist(), "device writes become visible in order"
        for access, tick in zip(result, commits["tick"].tolist(), strict=True):
            access.first, access.last = tick, tick + VISIBLE
        return result

    def _written_back(self) -> Iterator[bytes]:
        """Contents of the descriptors that the card writes back, in order, by the frames that were sent."""
        for frame in self.frames:
            yield RX_WRITE_BACK.pack(dd=1, eop=1, length=len(frame))

    def wrong(self) -> list[str]:
        """Every load that returned what it may not."""
        shadow = Shadow([*self.programs.stores_within(self.log), *self.device_writes()])
        return [found for found in map(shadow.wrong, self.programs.reads(self.log)) if found]


def test_cores_and_the_card_on_a_few_lines():
    run = CardRun(NativeEngine(build_native(Design(CONFIG))), frames=500, seed=1)
    assert run.wrong() == []
    assert_covered(run.counters)
    assert run.counters["nic.rx.dma.packets_written"] == run.counters["nic.rx.descriptors_written_back"] == 500
    assert run.counters["root_complex.inbound.read_packets"] > 100, "descriptors are read"


# ---- A device that does what it is told


@dataclass
class Order:
    """One transfer of the device."""

    address: int
    length: int
    payload: bytes | None  #: of a write


def random_order(rng: random.Random) -> Order:
    """Within a line, or over several neighbours, at most ``pcie.mps`` bytes between multiples of that."""
    if rng.random() < 0.5:
        length = some_size(rng)
        address = place(rng, length)
    else:
        first, last = NEIGHBOURS[0] * LINE_BYTES, (NEIGHBOURS[-1] + 1) * LINE_BYTES
        address = rng.randrange(first, last)
        length = rng.randint(1, min(CONFIG.pcie.mps - address % CONFIG.pcie.mps, last - address))
    return Order(address, length, rng.randbytes(length) if rng.random() < 0.6 else None)


#: Ticks by which a run of :class:`DeviceRun` is over; a planted fault may also have it go round for ever.
LIMIT = 5_000_000


def run_out(bench: BareMetal, cores: set[int]) -> None:
    """Run until the cores have nothing left to do."""
    while cores:
        done = bench.run(*cores, until=LIMIT)
        assert done, f"not done by tick {LIMIT}"
        cores = cores - set(done)


class DeviceRun:
    """Random operations of both cores and of the device, on a machine with or without faults."""

    #: Cycles of the device's clock between two orders, on average: about as long as a core takes for an operation.
    GAP = 24

    def __init__(
        self, engine: NativeEngine, *, operations: int, orders: int, seed: int, faults: tuple[Fault, ...] = ()
    ):
        rng = random.Random(seed)
        self.programs = Programs(engine)
        engine.push_frame(plant_order(*faults), 1, 0)
        self.orders: dict[int, Order] = {}
        start = 50
        for packet in range(2, orders + 2):
            order = self.orders[packet] = random_order(rng)
            frame = (
                read_order(order.address, order.length)
                if order.payload is None
                else write_order(order.address, order.payload)
            )
            engine.push_frame(frame, packet, start)
            start += rng.randint(0, 2 * self.GAP)
        for core in range(CORES):
            self.programs.bench.execute(core, 100)
            for _ in range(operations):
                self.programs.random_operation(rng, core)
        run_out(self.programs.bench, set(range(CORES)))
        try:
            self.programs.bench.run(0, until=LIMIT)
        except StuckError:
            pass  # the device is done too
        self.log = EventLog(engine.manifest, engine.log())
        self.counters = engine.counters()

    def stores(self) -> list[Access]:
        """Every store, with the tick at which it became visible."""
        result = []
        for core in range(CORES):
            issued, _ = self.programs.timeline(self.log, core)
            visible = self.log.select(f"core{core}.l1.store_visible")["tick"].tolist()
            handles = [handle for handle in issued if handle in self.programs.stores]
            for handle, tick in zip(handles, visible, strict=True):
                result.append(Access(core, handle, *self.programs.stores[handle], tick, tick + 1))
        return result

    def device_writes(self) -> list[Access]:
        """Every write of the device, line by line, with the tick at which it became visible."""
        result = []
        commits = self.log.select("llc.device_write")
        expected = [
            (packet, address, length)
            for packet, order in self.orders.items()
            if order.payload is not None
            for address, length in parts(order.address, order.length)
        ]
        assert [(p, a // LINE_BYTES) for p, a, _ in expected] == list(
            zip(commits["packet"].tolist(), commits["line"].tolist(), strict=True)
        ), "device writes become visible in order"
        for (packet, address, length), tick in zip(expected, commits["tick"].tolist(), strict=True):
            order = self.orders[packet]
            at = address - order.address
            result.append(Access(DEVICE, packet, address, order.payload[at : at + length], tick, tick + VISIBLE))
        return result

    def device_reads(self) -> list[Access]:
        """What the device read, a line at a time."""
        sent = self.log.select("nic.sent")
        sent = dict(zip(sent["packet"].tolist(), sent["tick"].tolist(), strict=True))
        words = [self.log.select(f"nic.completion_data{half}") for half in range(2)]
        result = []
        for row, event in enumerate(self.log.select("nic.completion").tolist()):
            tick, _, packet, address, length = event
            line = b"".join(int(w).to_bytes(8, "little") for half in words for w in half[row].tolist()[2:])
            at = address % LINE_BYTES
            result.append(Access(DEVICE, packet, address, line[at : at + length], sent[packet], tick))
        expected = sorted(
            (packet, *part)
            for packet, order in self.orders.items()
            if order.payload is None
            for part in parts(order.address, order.length)
        )
        assert sorted((read.number, read.address, len(read.data)) for read in result) == expected
        return result

    def wrong(self, exact: bool = True) -> list[str]:
        """Every read that returned what it may not, or was looked up too early.

        With ``exact`` false the stores are known only as well as on the machine with the card.
        """
        stores = self.stores() if exact else self.programs.stores_within(self.log)
        shadow = Shadow([*stores, *self.device_writes()])
        reads = self.programs.reads(self.log) + self.device_reads()
        return [found for found in map(shadow.wrong, reads) if found] + self._early_lookups()

    def _early_lookups(self) -> list[str]:
        """Lines that the device read before all it had written earlier was visible."""
        commits = self.log.select("llc.device_write")
        lookups = self.log.select("llc.device_read")
        order = np.searchsorted(commits["packet"], lookups["packet"])  # how many writes came before each
        before = np.concatenate(([0], commits["tick"]))[order]
        return [
            f"read {packet} was looked up at tick {tick}, a write before it was visible at {commit}"
            for packet, tick, commit in zip(
                lookups["packet"].tolist(), lookups["tick"].tolist(), before.tolist(), strict=True
            )
            if tick <= commit
        ]


#: What the last level can be. The second has as many lines, in two slices, and its snoop filter fewer ways: so both
#: call lines back.
MODES = {
    "non-inclusive": (),
    "inclusive": (
        "llc.inclusion=inclusive",
        "llc.slices=2",
        "llc.replacement=random",
        "llc.class_masks=[255, 60]",
        "llc.core_classes=[0, 1]",
        "llc.snoop_filter_lines=384",
        "llc.snoop_filter_ways=6",
    ),
}


@pytest.fixture(scope="module", params=MODES)
def dma_machine(request):
    config = load_machine("tiny", MODES[request.param])
    design = Design(config, "dma_machine:DmaMachine", (HERE / "dma_machine.py",))
    return build_native(design)


def test_cores_and_a_device_on_a_few_lines(dma_machine):
    run = DeviceRun(NativeEngine(dma_machine), operations=4000, orders=2500, seed=1)
    assert run.wrong() == []
    assert_covered(run.counters)
    assert run.counters["llc.device_read_hit"] > 500
    assert run.counters["llc.device_read_miss"] > 50


def named(fault: Fault) -> str:
    """In the name of a test."""
    return fault.name.lower()


#: FENCE_IGNORES_STORES is test_litmus's.
FAULTS = sorted(set(Fault) - AROUND - ONLY_SLOW - {Fault.FENCE_IGNORES_STORES})


def test_the_table_of_transitions_names_every_fault():
    page = (HERE.parents[1] / "docs" / "coherence.md").read_text()
    assert set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", page)) == {fault.name for fault in Fault}


@pytest.mark.parametrize("fault", FAULTS, ids=named)
def test_a_planted_fault_is_found(dma_machine, fault, request):
    """By the engine, when a core reads what it should not; what the device reads, and when, is checked here.

    UNLOCKED_AT_GRANT also has transactions wait for each other.
    """
    if fault in INCLUSIVE_ONLY and request.node.callspec.params["dma_machine"] != "inclusive":
        pytest.skip("only an inclusive cache calls its victims back")
    with pytest.raises((CoherenceError, StuckError, AssertionError)) as found:
        run = DeviceRun(NativeEngine(dma_machine), operations=3000, orders=1500, seed=2, faults=(fault,))
        assert run.wrong() == []
    if found.type is CoherenceError:
        assert "core" in str(found.value) and "expected" in str(found.value)


@pytest.mark.parametrize("fault", sorted(AROUND), ids=named)
def test_a_planted_fault_of_writes_around_the_caches_is_found(dma_machine, fault):
    with pytest.raises(CoherenceError, match=r"core.*expected"):
        every_operation(dma_machine, random.Random(99), operations=1500, orders=700, faults=(fault,))


@pytest.mark.parametrize("fault", sorted(ONLY_SLOW), ids=named)
def test_what_only_takes_time_is_no_fault(dma_machine, fault):
    """The same operations are right, and other Probes are sent: were it not planted, nothing would differ."""
    runs = [
        DeviceRun(NativeEngine(dma_machine), operations=1000, orders=600, seed=2, faults=faults)
        for faults in ((), (fault,))
    ]
    assert all(run.wrong() == [] for run in runs)
    assert runs[0].counters["llc.probes_sent"] != runs[1].counters["llc.probes_sent"]


def test_without_a_fault_the_same_operations_are_right(dma_machine):
    run = DeviceRun(NativeEngine(dma_machine), operations=1000, orders=600, seed=2)
    assert run.wrong() == []
    assert run.wrong(exact=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_million_operations(dma_machine, seed):
    """20 times 50000, of every kind that touches memory; each load is checked by the engine."""
    every_operation(dma_machine, random.Random(seed), operations=20_000, orders=10_000)


def test_every_kind_of_operation(dma_machine):
    every_operation(dma_machine, random.Random(99), operations=1500, orders=700)


def every_operation(
    machine, rng: random.Random, *, operations: int, orders: int, faults: tuple[Fault, ...] = ()
) -> None:
    """Both cores and the device on the same few lines."""
    engine = NativeEngine(machine)
    bench = BareMetal(engine)
    engine.push_frame(plant_order(*faults), 1, 0)
    start = 50
    for packet in range(2, orders + 2):
        order = random_order(rng)
        if order.payload is None:
            frame = read_order(order.address, order.length)
        else:
            frame = write_order(order.address, order.payload)
        engine.push_frame(frame, packet, start)
        start += rng.randint(0, 2 * DeviceRun.GAP)
    loads = [-1] * CORES
    for _ in range(operations):
        for core in range(CORES):
            any_operation(bench, rng, core, loads)
    bench.settle()
    counters = engine.counters()
    assert sum(counters[f"core{core}.port.issued.loads"] for core in range(CORES)) > operations // 2


def any_operation(bench: BareMetal, rng: random.Random, core: int, loads: list[int]) -> None:
    """Queue one; ``loads`` has the last load of each core."""
    size = some_size(rng)
    address = place(rng, size)
    word = rng.choice((1, 2, 4, 8))
    aligned = rng.choice(LINES) * LINE_BYTES + rng.randrange(LINE_BYTES // word) * word
    what = rng.random()
    if what < 0.40:
        after = loads[core] if rng.random() < 0.3 else -1
        loads[core] = bench.load(core, address, size, after=after)
    elif what < 0.78:
        bench.store(core, address, rng.randbytes(size))
    elif what < 0.83:
        function = rng.choice(list(AtomicFunction))
        bench.atomic(core, aligned, word, function, rng.getrandbits(8 * word), rng.getrandbits(8 * word))
    elif what < 0.86:
        bench.poll(core, aligned, word, 0, rng.randint(1, 200), rng.randint(1, 20))
    elif what < 0.90:
        bench.store_nt(core, address, rng.randbytes(size))
    elif what < 0.92:
        bench.clflush(core, address)
    elif what < 0.94:
        bench.prefetch(core, address)
    elif what < 0.98:
        bench.execute(core, rng.randint(1, 60), rng.randint(1, 60))
    else:
        bench.fence(core, rng.choice((K.FENCE, K.LFENCE, K.SFENCE)))
