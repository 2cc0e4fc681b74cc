"""CorePort: random operations against a model of memory, and the same with quiet edges left out."""

import random
from typing import Any

import pytest

from hw.bus.core import AtomicFunction
from hw.bus.core import OperationKind as Kind
from tests.hw.cpu.host_driver import COMPLETING, TINY, CoreBench, Op, machine
from tests.hw.cpu.neighbours import DeviceDouble, atomic_result

LINES = [0x1000, 0x1040, 0x1080, 0x3000]
#: Written by others, read by POLLs alone.
POLLED = 0x5000
DEVICE = 0xF000_0000


class Reference:
    """Memory as a core that runs one operation at a time would see it, kept up as operations issue."""

    def __init__(self, bench: CoreBench):
        self.bench = bench
        self.memory: dict[int, int] = {}
        self.loads: list[Op] = []
        self.around: list[tuple[int, int]] = []  #: line, mask of what goes around the caches
        self.stores: list[tuple[int, int, int, int]] = []  #: line, mask, data in lanes, loads before it
        self.requests: list[tuple] = []
        self.sent = 0
        bench.on_edge = self.edge
        self.polled = {0, *(value for _, value in bench.cache.writes.values())}

    def read(self, address: int, size: int) -> int:
        return sum(self.memory.get(address % 2**40 + i, 0) << 8 * i for i in range(size))

    def write(self, address: int, size: int, data: int) -> None:
        self.memory.update({address % 2**40 + i: data >> 8 * i & 0xFF for i in range(size)})

    def edge(self, ctx, now: int, op: Op | None) -> None:
        """Called before the cache looks at edge ``now``."""
        self._check_stores(ctx, now)
        if op is None:
            return
        if op.kind == Kind.LOAD:
            op.expected = self.read(op.address, op.size)
            self.loads.append(op)
        elif op.kind == Kind.STORE:
            line, offset = divmod(op.address % 2**40, 64)
            data = op.data & (1 << 8 * op.size) - 1
            self.stores.append((line, ((1 << op.size) - 1) << offset, data << 8 * offset, len(self.loads)))
            self.write(op.address, op.size, data)
        elif op.kind == Kind.STORE_NT:
            self.write(op.address, op.size, op.data)
        elif op.kind == Kind.ATOMIC:
            self.all_visible(now)
            op.expected = self.read(op.address, op.size)
            operand, compare = op.data & 2**64 - 1, op.data >> 64 & 2**64 - 1
            function = AtomicFunction(op.argument)
            self.write(op.address, op.size, atomic_result(function, op.expected, operand, compare, op.size))
        elif op.kind in (Kind.WRITE_CR3, Kind.INVLPG):
            assert all(0 <= load.completed < now for load in self.loads)
            assert self.sent == len(self.stores)
        elif op.kind in (Kind.MMIO_READ, Kind.MMIO_WRITE):
            self.all_visible(now)
            write = op.kind == Kind.MMIO_WRITE
            self.requests.append((now, write, op.address, op.size, op.data & (1 << 64) - 1, 1))
            op.expected = None if write else DeviceDouble.value(op.address) % (1 << 8 * op.size)

    def _check_stores(self, ctx, now: int) -> None:
        store = self.bench.port.l1.store
        if ctx.get(store.valid & store.ready):
            line, mask, data, loads = self.stores[self.sent]
            self.sent += 1
            payload = ctx.get(store.payload)
            lanes = sum(0xFF << 8 * i for i in range(64) if mask >> i & 1)
            assert (payload.line, payload.mask, payload.data & lanes) == (line, mask, data)
            assert all(0 <= load.completed < now for load in self.loads[:loads]), "a store passed a load"

    def all_visible(self, now: int) -> None:
        assert all(0 <= load.completed < now for load in self.loads)
        cache = {address: byte for address, byte in self.bench.cache.memory.items() if address // 64 != POLLED // 64}
        assert {a: b for a, b in cache.items() if b} == {a: b for a, b in self.memory.items() if b}

    def finish(self) -> None:
        for op in self.bench.host.issued:
            if op.kind in COMPLETING and op.rest is None:
                assert op.completed > op.issued
            if op.kind == Kind.POLL and op.rest is None:
                given_up = op.completed >= op.issued + op.cycles
                assert (op.result == op.data) <= given_up
                assert op.result == op.data or op.result in self.polled
            assert op.expected is None or op.result == op.expected, f"{op} at {op.issued}"
        assert self.bench.device.log == self.requests
        self.all_visible(10**9)


def program(draw: random.Random, length: int, interrupts: bool, paging: bool) -> list[Op]:
    """Loads and stores of few lines, so that they overlap a lot, and some of everything else."""
    ops: list[Op] = []
    masked = False
    for _ in range(length):
        size = draw.choice([1, 2, 4, 4, 8, 8, 8, 16, 64, draw.randint(1, 64)])
        offset = draw.randint(0, 64 - size) if draw.random() < 0.3 else draw.randrange(0, 65 - size, min(size, 8))
        tables = draw.randrange(2) << 40 if paging else 0
        fields: dict[str, Any] = {"address": tables + draw.choice(LINES) + offset, "size": size}
        kind = draw.choices(
            [
                Kind.LOAD,
                Kind.STORE,
                Kind.EXECUTE,
                Kind.PREFETCH,
                Kind.MMIO_READ,
                Kind.MMIO_WRITE,
                Kind.FENCE,
                Kind.HALT,
                Kind.LFENCE,
                Kind.SFENCE,
                Kind.ATOMIC,
                Kind.POLL,
                Kind.STORE_NT,
                Kind.CLFLUSH,
                Kind.INVLPG,
                Kind.WRITE_CR3,
            ],
            [40, 40, 10, 3, 1, 3, 1, 2 if interrupts and not masked else 0, 1, 1, 3, 2, 5, 1, 1, paging],
        )[0]
        stores = [op for op in ops[-4:] if op.kind == Kind.STORE]
        if kind == Kind.LOAD and stores and draw.random() < 0.4:
            store = draw.choice(stores)
            start = draw.randrange(store.size)
            fields = {"address": store.address + start, "size": draw.randint(1, store.size - start)}
        if kind == Kind.STORE:
            fields["data"] = draw.getrandbits(512)
        elif kind == Kind.STORE_NT:
            fields["data"] = draw.getrandbits(8 * size)
        elif kind == Kind.EXECUTE:
            fields = {"cycles": draw.choice([1, 1, 2, 5, draw.randint(1, 80)]), "address": draw.getrandbits(40)}
            fields["argument"] = draw.choice([0, 0, 1, draw.randint(1, 8)])
        elif kind == Kind.ATOMIC:
            size = draw.choice([1, 2, 4, 8])
            fields = {"address": tables + draw.choice(LINES) + size * draw.randrange(64 // size), "size": size}
            fields |= {"data": draw.getrandbits(128), "argument": draw.randrange(6)}
        elif kind == Kind.POLL:
            fields = {"address": tables + POLLED, "size": 1, "data": draw.randrange(4)}
            fields |= {"cycles": draw.randint(1, 300), "argument": draw.randint(1, 30)}
        elif kind == Kind.WRITE_CR3:
            fields = {"address": draw.choice([0, 0x7000])}
        elif kind in (Kind.MMIO_READ, Kind.MMIO_WRITE):
            fields = {
                "address": DEVICE + 8 * draw.randrange(16),
                "size": draw.choice([4, 8]),
                "data": draw.getrandbits(64),
            }
        if draw.random() < 0.8:
            fields["uops"] = draw.choice([1, 1, 2, 4, draw.randint(1, 100)])
        loads = [op for op in ops[-8:] if op.kind == Kind.LOAD]
        if loads and draw.random() < (0.4 if kind == Kind.LOAD else 0.1):
            fields["after"] = draw.choice(loads)
        ops.append(Op(kind, **fields))
        if interrupts and draw.random() < 0.05:
            masked = not masked
            ops.append(Op(Kind.CLI if masked else Kind.STI))
    if masked:
        ops.append(Op(Kind.STI))
    ops.append(Op(Kind.FENCE))
    return ops


def run(
    seed: int, *, interrupts: bool, length: int = 60, skip: bool = False, config=TINY, paging: bool = False, **options
) -> tuple[CoreBench, Reference]:
    draw = random.Random(seed)
    bench = CoreBench(config, seed=seed, skip=skip, text_miss=0.3, text_stall=(1, 40), **options)
    if paging:
        bench.mmu.known = set()
    ops = program(draw, length, interrupts, paging)
    bench.host.queue.extend(ops)
    limit = 100 * length
    bench.cache.writes = {edge: (POLLED, draw.randrange(4)) for edge in range(0, limit, 37)}
    bench.cache.losses = {draw.randrange(limit) for _ in range(limit // 50)}
    reference = Reference(bench)
    if interrupts:
        edge = 0
        while edge < limit:
            edge += draw.randint(1, 150)
            bench.interrupts[edge] = 0x20 + draw.randrange(32)
        handler = random.Random(seed + 1)

        def handle(interruption):
            size = handler.choice([1, 4, 8])
            address = LINES[0] + 8 * handler.randrange(8)
            return [
                Op(Kind.LOAD, address=address, size=8),
                Op(Kind.EXECUTE, cycles=handler.randint(1, 10)),
                Op(Kind.STORE, address=address, size=size, data=handler.getrandbits(64)),
                Op(Kind.IRET),
            ]

        bench.host.handler = handle
    bench.run(cycles=limit, every_interrupt=False)
    reference.finish()
    # Nothing was lost, doubled or reordered, besides what handlers did and the rest of interrupted EXECUTEs
    given = {id(op) for op in ops}
    assert [op for op in bench.host.issued if id(op) in given] == ops
    return bench, reference


PRESSURE = {
    "smooth": {},
    "slow": {
        "hit": 0.5,
        "miss": (10, 60),
        "store_delay": (3, 30),
        "ready": 0.6,
        "device_ready": 0.5,
        "around_ready": 0.5,
    },
    "stores": {"hit": 0.9, "store_delay": (20, 60), "device_latency": (1, 30)},
}


@pytest.mark.parametrize("pressure", PRESSURE)
@pytest.mark.parametrize("interrupts", [False, True])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_random(seed, interrupts, pressure):
    bench, _ = run(seed, interrupts=interrupts, paging=seed % 2 == interrupts, length=80, **PRESSURE[pressure])
    to_cache = {entry[2] for entry in bench.cache.log if entry[1] == "load" and entry[6] == "LOAD"}
    assert sum(op.kind == Kind.LOAD and op.id not in to_cache for op in bench.host.issued) > 0
    if interrupts:
        assert bench.host.interruptions


@pytest.mark.parametrize("load_queue,store_buffer", [(1, 1), pytest.param(3, 5, marks=pytest.mark.slow), (16, 16)])
def test_random_sizes(load_queue, store_buffer):
    core = {"load_queue": load_queue, "store_buffer": store_buffer, "window": 4 * load_queue}
    core |= {"reservation_station": load_queue, "write_combining": load_queue}
    run(3, interrupts=True, config=machine(core=core), paging=True, **PRESSURE["slow"])


@pytest.mark.parametrize("latency", [5, 9])
def test_random_latencies(latency):
    config = machine(l1={"latency": latency}, core={"interrupt_entry": 6, "sleep_exit_ns": (20.0,)})
    run(4, interrupts=True, config=config, **PRESSURE["stores"])


@pytest.mark.parametrize(
    "pressure", ["slow", *(pytest.param(name, marks=pytest.mark.slow) for name in ("smooth", "stores"))]
)
@pytest.mark.parametrize("interrupts", [False, True])
def test_quiet_edges_can_be_left_out(interrupts, pressure):
    every, _ = run(5, interrupts=interrupts, paging=True, **PRESSURE[pressure])
    some, _ = run(5, interrupts=interrupts, paging=True, skip=True, **PRESSURE[pressure])
    assert some.skipped > 50
    assert some.host.log == every.host.log
    assert some.cache.log == every.cache.log
    assert some.device.log == every.device.log
    assert some.mmu.log == every.mmu.log
    assert some.text.log == every.text.log
    assert some.around.log == every.around.log
