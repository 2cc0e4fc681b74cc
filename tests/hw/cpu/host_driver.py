"""A host, an L1 cache and a device around a core port, in Python, one edge at a time."""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import ClockDomain, Elaboratable, Module
from amaranth.sim import Simulator

from hw.bus.core import OperationKind as Kind
from hw.config import CoreConfig, L1Config, load_machine
from hw.cpu.core_port import CorePort
from hw.cpu.interrupt_controller import InterruptController

DOMAIN = "core0"
TINY = load_machine("tiny")


@dataclass(eq=False)
class Op:
    """An operation and what became of it."""

    kind: Kind
    address: int = 0
    size: int = 0
    data: int = 0
    cycles: int = 0
    after: "Op | None" = None
    id: int = -1
    issued: int = -1
    completed: int = -1
    result: int = -1
    expected: int | None = None


@dataclass
class Interruption:
    """An interrupt as the host saw it."""

    at: int
    vector: int
    remaining: int
    squashed: Op | None


class HostDriver:
    """Hands operations to a core port as an engine does, and resumes interrupted work after a handler.

    Attributes:
        queue: operations not yet handed over.
        handler: called at every interrupt; the operations it returns go before the interrupted work.
        issued: operations in the order in which they issued.
        log: everything that happened, as (edge, what, ...).
    """

    def __init__(self, host):
        self.host = host
        self.queue: deque[Op] = deque()
        self.handler = lambda interruption: [Op(Kind.IRET)]
        self.issued: list[Op] = []
        self.interruptions: list[Interruption] = []
        self.log: list[tuple] = []
        self.idle_until = 0
        self._fetched: Op | None = None
        self._next_id = 0
        self._waiting: dict[int, list[Op]] = {}

    def push(self, kind: Kind, **fields: Any) -> Op:
        op = Op(kind, **fields)
        self.queue.append(op)
        return op

    @property
    def done(self) -> bool:
        """Everything has issued and completed."""
        return not self.queue and self._fetched is None and not any(self._waiting.values())

    def drive(self, ctx, now: int) -> None:
        stream = self.host.operation
        valid = bool(self.queue) and now >= self.idle_until
        ctx.set(stream.valid, valid)
        if valid:
            op = self.queue[0]
            op.id = self._next_id
            after = op.after if op.after is not None and op.after.completed < 0 else None
            ctx.set(
                stream.payload,
                {
                    "kind": op.kind,
                    "id": op.id,
                    "address": op.address,
                    "size": op.size,
                    "data": op.data,
                    "cycles": op.cycles,
                    "after_valid": after is not None,
                    "after": after.id if after is not None else 0,
                },
            )

    def active(self, ctx) -> bool:
        return bool(ctx.get(self.host.operation.valid & self.host.operation.ready))

    def sample(self, ctx, now: int) -> Op | None:
        """Look at what happens at edge ``now``; returns the operation that issues."""
        host, issuing = self.host, None
        if ctx.get(host.issue):
            op = issuing = self._fetched
            assert op is not None and op.id == ctx.get(host.issue_id)
            assert op.after is None or 0 <= op.after.completed < now
            op.issued, self._fetched = now, None
            self.issued.append(op)
            self.log.append((now, "issue", op.kind.name, op.id))
            if op.kind in (Kind.LOAD, Kind.MMIO_READ, Kind.FENCE):
                self._waiting.setdefault(op.id, []).append(op)
        if ctx.get(host.completion_valid):
            completion = ctx.get(host.completion)
            [op] = self._waiting.pop(completion.id)
            assert op.issued < now
            op.completed, op.result = now, completion.data
            self.log.append((now, "complete", op.id, op.result))
        if ctx.get(host.interrupt_taken):
            assert not ctx.get(host.operation.ready)
            taken = ctx.get(host.interrupt)
            squashed = None
            if taken.squashed:
                squashed, self._fetched = self._fetched, None
                assert squashed is not None and squashed.id == taken.squashed_id
                self.queue.appendleft(squashed)
            assert self._fetched is None
            if taken.remaining:
                self.queue.appendleft(Op(Kind.EXECUTE, cycles=taken.remaining))
            interruption = Interruption(now, taken.vector, taken.remaining, squashed)
            self.interruptions.append(interruption)
            self.log.append((now, "interrupt", taken.vector, taken.remaining, taken.squashed))
            self.queue.extendleft(reversed(self.handler(interruption)))
        if self.active(ctx):
            self._fetched = self.queue.popleft()
            self._next_id = (self._next_id + 1) % 256
        return issuing


@dataclass
class CacheDouble:
    """Plays the L1 cache: hits answer after ``latency``, misses later and out of order.

    What it decides at an edge depends on the number of the edge alone, so that skipped edges change nothing.
    """

    port: Any
    latency: int
    seed: int
    hit: float = 1.0  #: how likely a load hits
    miss: tuple[int, int] = (10, 40)  #: cycles a miss takes, about
    ready: float = 1.0  #: how likely it accepts
    store_delay: tuple[int, int] = (3, 3)  #: cycles from accepted to visible
    log: list[tuple] = field(default_factory=list)

    def __post_init__(self):
        self.memory: dict[int, int] = {}
        self.answers: dict[int, tuple[int, int | None, int, int]] = {}
        self.stores: deque[tuple[int, int, int, int]] = deque()
        self._load = self._store = None

    def draw(self, now: int, what: str) -> random.Random:
        return random.Random(f"{self.seed}.{what}.{now}")

    def read(self, address: int, size: int) -> int:
        return sum(self.memory.get(address + i, 0) << 8 * i for i in range(size))

    def drive(self, ctx, now: int) -> None:
        ctx.set(self.port.load.ready, self.draw(now, "load").random() < self.ready)
        ctx.set(self.port.store.ready, self.draw(now, "store").random() < self.ready)
        answer = self.answers.get(now)
        ctx.set(self.port.load_done_valid, answer is not None)
        if answer is not None:
            op_id, value, address, size = answer
            ctx.set(self.port.load_done, {"id": op_id, "data": self.read(address, size) if value is None else value})
        ctx.set(self.port.store_done, bool(self.stores) and self.stores[0][0] <= now)

    def active(self, ctx, now: int) -> bool:
        return now in self.answers or (bool(self.stores) and self.stores[0][0] <= now)

    def sample(self, ctx, now: int) -> None:
        self._load = self._check(ctx, self.port.load, self._load, now, "load")
        self._store = self._check(ctx, self.port.store, self._store, now, "store")
        self.answers.pop(now, None)
        if ctx.get(self.port.load.valid & self.port.load.ready):
            load = ctx.get(self.port.load.payload)
            assert 1 <= load.size and load.offset + load.size <= 64
            self.log.append((now, "load", load.id, load.line, load.offset, load.size, load.prefetch))
            if not load.prefetch:
                self._answer(load, now)
        if self.stores and self.stores[0][0] <= now:
            _, line, mask, data = self.stores.popleft()
            self.log.append((now, "store done"))
            for i in range(64):
                if mask >> i & 1:
                    self.memory[line * 64 + i] = data >> 8 * i & 0xFF
        if ctx.get(self.port.store.valid & self.port.store.ready):
            store = ctx.get(self.port.store.payload)
            lanes = sum(0xFF << 8 * i for i in range(64) if store.mask >> i & 1)
            self.log.append((now, "store", store.line, store.mask, store.data & lanes))
            self.stores.append(
                (now + self.draw(now, "done").randint(*self.store_delay), store.line, store.mask, store.data)
            )

    def _answer(self, load, now: int) -> None:
        draw, address = self.draw(now, "answer"), load.line * 64 + load.offset
        # When it reads the line is the cache's business: when it accepts the load, or when it answers.
        value = self.read(address, load.size) if draw.random() < 0.5 else None
        at = now + self.latency
        if draw.random() >= self.hit:
            at = max(now + draw.randint(*self.miss), now + self.latency + 1)
            while at in self.answers:
                at += 1
        # A hit is on time: what would be answered at that edge, a miss, is answered later.
        displaced = self.answers.pop(at, None)
        self.answers[at] = (load.id, value, address, load.size)
        while displaced is not None:
            at += 1
            displaced, self.answers[at] = self.answers.get(at), displaced

    def _check(self, ctx, stream, before, now: int, what: str):
        """An offer stands until it is accepted; returns what stands after this edge."""
        valid, ready = ctx.get(stream.valid), ctx.get(stream.ready)
        if before is not None:
            assert valid and ctx.get(stream.payload) == before, f"the offer of a {what} changed at {now}"
        return ctx.get(stream.payload) if valid and not ready else None


class DeviceDouble:
    """Plays the devices: answers reads after ``latency`` with a value made from the address."""

    def __init__(self, port, seed: int, latency: tuple[int, int] = (8, 8), ready: float = 1.0):
        self.port, self.seed, self.latency, self.ready = port, seed, latency, ready
        self.log: list[tuple] = []
        self.answer: tuple[int, int] | None = None

    @staticmethod
    def value(address: int) -> int:
        return (address + 1) * 0x9E3779B97F4A7C15 % 2**64

    def drive(self, ctx, now: int) -> None:
        draw = random.Random(f"{self.seed}.mmio.{now}")
        ctx.set(self.port.request.ready, draw.random() < self.ready)
        valid = self.answer is not None and self.answer[0] <= now
        ctx.set(self.port.response.valid, valid)
        if valid:
            ctx.set(self.port.response.payload.data, self.answer[1])

    def active(self, ctx) -> bool:
        return bool(ctx.get(self.port.response.valid & self.port.response.ready))

    def sample(self, ctx, now: int) -> bool:
        if self.active(ctx):
            self.answer = None
        accepted = bool(ctx.get(self.port.request.valid & self.port.request.ready))
        if accepted:
            request = ctx.get(self.port.request.payload)
            self.log.append((now, request.write, request.address, request.size, request.data, request.core))
            if not request.write:
                assert self.answer is None
                latency = random.Random(f"{self.seed}.read.{now}").randint(*self.latency)
                self.answer = (now + latency, self.value(request.address))
        return accepted


class Machine(Elaboratable):
    def __init__(self, core: CoreConfig, l1: L1Config):
        self.port = CorePort(core, l1, 1, DOMAIN)
        self.controller = InterruptController(DOMAIN)

    def elaborate(self, platform):
        m = Module()
        m.domains += ClockDomain(DOMAIN, reset_less=True)
        m.submodules.port = self.port
        m.submodules.controller = self.controller
        m.d.comb += [
            self.port.interrupt_pending.eq(self.controller.pending),
            self.port.interrupt_vector.eq(self.controller.vector),
            self.controller.acknowledge.eq(self.port.interrupt_acknowledge),
        ]
        return m


class CoreBench:
    """A core port and its interrupt controller between a host, a cache and a device.

    Attributes:
        interrupts: edge at which a message arrives, and its vector.
        skip: leave out every edge that is quiet.
        skipped: edges left out.
        on_edge: called with (ctx, now, operation that issues) at every edge.
    """

    def __init__(
        self, *, core: CoreConfig = TINY.core, l1: L1Config = TINY.l1, seed: int = 1, skip: bool = False, **cache
    ):
        self.machine = Machine(core, l1)
        port = self.machine.port
        self.port = port
        device = {key: cache.pop(key) for key in ("device_latency", "device_ready") if key in cache}
        self.host = HostDriver(port.host)
        self.cache = CacheDouble(port.l1, l1.latency, seed, **cache)
        self.device = DeviceDouble(
            port.mmio, seed, device.get("device_latency", (8, 8)), device.get("device_ready", 1.0)
        )
        self.interrupts: dict[int, int] = {}
        self.skip, self.skipped = skip, 0
        self.on_edge = lambda ctx, now, op: None
        self.quiet: list[int] = []
        self.push = self.host.push

    def run(self, cycles: int = 2000, drain: bool = True, every_interrupt: bool = True) -> None:
        """Run until the host is done and the cache has every store (``drain``), at most ``cycles`` edges.

        With ``every_interrupt`` also until every message has come and been taken.

        Raises:
            AssertionError: when it is not done by then.
        """
        finished = False

        async def testbench(ctx):
            nonlocal finished
            last_interrupt = max(self.interrupts, default=-1) if every_interrupt else -1
            for now in range(cycles):
                self._drive(ctx, now)
                if drain and now > last_interrupt and self._settled(ctx, every_interrupt):
                    finished = True
                    return
                quiet = ctx.get(self.port.quiet & self.machine.controller.quiet)
                if quiet and not self.host.active(ctx) and not self._deadline(ctx, now):
                    self.quiet.append(now)
                    assert not ctx.get(self.port.host.issue | self.port.host.completion_valid)
                    if self.skip:
                        self.skipped += 1
                        continue
                self.on_edge(ctx, now, self.host.sample(ctx, now))
                self.cache.sample(ctx, now)
                self.device.sample(ctx, now)
                await ctx.tick(DOMAIN)

        simulator = Simulator(self.machine)
        simulator.add_clock(1e-9, domain=DOMAIN)
        simulator.add_testbench(testbench)
        simulator.run()
        assert finished or not drain, f"not done after {cycles} edges; issued {len(self.host.issued)}"

    def _drive(self, ctx, now: int) -> None:
        ctx.set(self.port.now, now)
        self.host.drive(ctx, now)
        self.cache.drive(ctx, now)
        self.device.drive(ctx, now)
        ctx.set(self.machine.controller.message.valid, now in self.interrupts)
        ctx.set(self.machine.controller.message.payload.vector, self.interrupts.get(now, 0))

    def _settled(self, ctx, every_interrupt: bool) -> bool:
        interrupted = ctx.get(self.machine.controller.pending & self.port._interrupt_flag)
        return self.host.done and bool(ctx.get(self.port.store_buffer.empty)) and not (every_interrupt and interrupted)

    def _deadline(self, ctx, now: int) -> bool:
        timer = self.port.execute
        return bool(ctx.get(timer.armed)) and ctx.get(timer.deadline) == now
