"""A host and everything else around a core port, in Python, one edge at a time."""

import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal, Value
from amaranth.sim import Simulator

from hw.bus.core import OperationKind as Kind
from hw.config import MachineConfig, load_machine
from hw.cpu.core_port import CorePort
from hw.cpu.interrupt_controller import InterruptController
from hw.lib.observe import collect
from hw.lib.time import Timer
from tests.hw.cpu.neighbours import CacheDouble, DeviceDouble, MmuDouble, NonCachedDouble, TextDouble

DOMAIN = "core0"
#: Interrupts cost 1 cycle and no sleep state anything, so that what happens around them is seen.
TINY = load_machine("tiny", ["core.interrupt_entry=1", "core.interrupt_return=1", "core.sleep_exit_ns=[0.0]"])
#: Operations that complete.
COMPLETING = (
    Kind.LOAD,
    Kind.MMIO_READ,
    Kind.FENCE,
    Kind.LFENCE,
    Kind.SFENCE,
    Kind.ATOMIC,
    Kind.POLL,
    Kind.RDTSC,
)


def machine(**fields: Any) -> MachineConfig:
    """``TINY`` with other fields, such as ``core={"window": 8}``."""
    parts = {name: dataclasses.replace(getattr(TINY, name), **changes) for name, changes in fields.items()}
    return dataclasses.replace(TINY, **parts)


@dataclass(eq=False)
class Op:
    """An operation and what became of it."""

    kind: Kind
    address: int = 0
    size: int = 0
    data: int = 0
    cycles: int = 0
    uops: int = 0
    argument: int = 0
    after: "Op | None" = None
    id: int = -1
    issued: int = -1
    completed: int = -1
    result: int = -1
    expected: int | None = None
    rest: "Op | None" = None  #: what an interrupt left of it


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
        self._waiting: dict[int, Op] = {}
        self.sampled: list[tuple[int, int]] = []
        self.visible: list[int] = []
        self.faults: list[tuple[int, int]] = []
        self.running: Op | None = None  #: the last EXECUTE or POLL

    def push(self, kind: Kind, **fields: Any) -> Op:
        op = Op(kind, **fields)
        self.queue.append(op)
        return op

    @property
    def done(self) -> bool:
        """Everything has issued and completed."""
        return not self.queue and self._fetched is None and not self._waiting

    def drive(self, ctx, now: int) -> None:
        stream = self.host.operation
        valid = bool(self.queue) and now >= self.idle_until
        ctx.set(stream.valid, valid)
        if valid:
            op = self.queue[0]
            # An id is free again when its operation has completed
            while self._next_id in self._waiting:
                self._next_id = (self._next_id + 1) % 256
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
                    "uops": op.uops,
                    "argument": op.argument,
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
            assert op.kind == Kind.LOAD or op.after is None or 0 <= op.after.completed < now
            op.issued, self._fetched = now, None
            self.issued.append(op)
            self.log.append((now, "issue", op.kind.name, op.id))
            if op.kind in COMPLETING:
                assert op.id not in self._waiting
                self._waiting[op.id] = op
            if op.kind in (Kind.EXECUTE, Kind.POLL):
                self.running = op
        if ctx.get(host.completion_valid):
            completion = ctx.get(host.completion)
            op = self._waiting.pop(completion.id)
            assert op.issued < now
            op.completed, op.result = now, completion.data
            self.log.append((now, "complete", op.id, op.result))
        if ctx.get(host.sampled):
            self.sampled.append((now, ctx.get(host.sampled_id)))
        if ctx.get(host.visible):
            self.visible.append(now)
        if ctx.get(host.fault):
            self.faults.append((now, ctx.get(host.fault_id)))
            self.log.append((now, "fault", ctx.get(host.fault_id)))
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
                assert self.running is not None and 0 < taken.remaining <= self.running.cycles
                self._waiting.pop(self.running.id, None)
                self.running.rest = dataclasses.replace(self.running, cycles=taken.remaining, issued=-1)
                self.queue.appendleft(self.running.rest)
            interruption = Interruption(now, taken.vector, taken.remaining, squashed)
            self.interruptions.append(interruption)
            self.log.append((now, "interrupt", taken.vector, taken.remaining, taken.squashed))
            self.queue.extendleft(reversed(self.handler(interruption)))
        if self.active(ctx):
            self._fetched = self.queue.popleft()
            self._next_id = (self._next_id + 1) % 256
        return issuing


class Machine(Elaboratable):
    def __init__(self, config: MachineConfig):
        self.port = CorePort(config, 1, DOMAIN)
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


class _Context:
    """A simulator's context that sets an input only when it changes, since the design settles each time."""

    def __init__(self, ctx):
        self.get, self.tick, self._set = ctx.get, ctx.tick, ctx.set
        self._last: dict[int, Any] = {}

    def set(self, target, value) -> None:
        signal = Value.cast(target)
        if not isinstance(signal, Signal):
            self._set(target, value)
        elif id(signal) not in self._last or self._last[id(signal)] != value:
            self._last[id(signal)] = value
            self._set(target, value)


class _Simulation:
    """A machine made ready for simulation, once for all benches of a configuration."""

    made: dict[str, "_Simulation"] = {}

    def __init__(self, config: MachineConfig):
        self.machine = Machine(config)
        self.testbench: Callable[[Any], Awaitable[None]] | None = None
        self.simulator = Simulator(self.machine)
        self.simulator.add_clock(1e-9, domain=DOMAIN)
        self.simulator.add_testbench(self._run)

    async def _run(self, ctx) -> None:
        assert self.testbench is not None
        await self.testbench(_Context(ctx))

    def run(self, testbench: Callable[[Any], Awaitable[None]]) -> None:
        """From the initial state."""
        if self.testbench is not None:
            self.simulator.reset()
        self.testbench = testbench
        self.simulator.run()

    @classmethod
    def of(cls, config: MachineConfig) -> "_Simulation":
        if repr(config) not in cls.made:
            cls.made[repr(config)] = cls(config)
        return cls.made[repr(config)]


class CoreBench:
    """A core port and its interrupt controller between a host and everything else.

    Options for the cache, and for the other neighbours with a prefix: ``device_``, ``mmu_``, ``text_``, ``around_``.

    Attributes:
        interrupts: edge at which a message arrives, and its vector.
        skip: leave out every edge that is quiet.
        skipped: edges left out.
        on_edge: called with (ctx, now, operation that issues) at every edge.
    """

    def __init__(self, config: MachineConfig = TINY, *, seed: int = 1, skip: bool = False, **options: Any):
        def of(prefix: str) -> dict[str, Any]:
            return {key.removeprefix(prefix): options.pop(key) for key in list(options) if key.startswith(prefix)}

        self.simulation = _Simulation.of(config)
        self.machine = self.simulation.machine
        self.port = port = self.machine.port
        self.host = HostDriver(port.host)
        self.device = DeviceDouble(port.mmio, seed, **of("device_"))
        self.mmu = MmuDouble(port.translate, seed, **of("mmu_"))
        self.text = TextDouble(port.text, seed, **of("text_"))
        around = of("around_")
        self.cache = CacheDouble(port.l1, config.l1.latency, seed, **options)
        self.around = NonCachedDouble(port.noncached, self.cache.memory, seed, **around)
        self._timers = list(collect(port, Timer).values())
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
                active = self.host.active(ctx) or self.cache.active(now) or self._deadline(ctx, now)
                if quiet and not active:
                    self.quiet.append(now)
                    assert not ctx.get(self.port.host.issue | self.port.host.completion_valid | self.port.host.fault)
                    if self.skip:
                        self.skipped += 1
                        self.mmu.sample(ctx, now)
                        continue
                self.on_edge(ctx, now, self.host.sample(ctx, now))
                self.cache.sample(ctx, now)
                self.device.sample(ctx, now)
                self.mmu.sample(ctx, now)
                self.text.sample(ctx, now)
                self.around.sample(ctx, now)
                await ctx.tick(DOMAIN)

        self.simulation.run(testbench)
        assert finished or not drain, f"not done after {cycles} edges; issued {len(self.host.issued)}"

    def _drive(self, ctx, now: int) -> None:
        ctx.set(self.port.now, now)
        self.host.drive(ctx, now)
        self.cache.drive(ctx, now)
        self.device.drive(ctx, now)
        self.text.drive(ctx, now)
        self.around.drive(ctx, now)
        # What is asked for depends on what completes at this edge
        self.mmu.drive(ctx, now)
        ctx.set(self.machine.controller.message.valid, now in self.interrupts)
        ctx.set(self.machine.controller.message.payload.vector, self.interrupts.get(now, 0))

    def _settled(self, ctx, every_interrupt: bool) -> bool:
        interrupted = ctx.get(self.machine.controller.pending & self.port.interrupt_unit.flag)
        stored = bool(ctx.get(self.port.store_buffer.empty)) and not self.around.writes
        return self.host.done and stored and not (every_interrupt and interrupted)

    def _deadline(self, ctx, now: int) -> bool:
        return any(ctx.get(timer.armed) and ctx.get(timer.deadline) == now for timer in self._timers)
