"""The engine's loop in Python, over anything that can show ports, set ports and raise clocks.

The reference for ``native.cpp``: whatever one does, the other does, at the same tick.
"""

import bisect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hw.bus.core import AtomicFunction, OperationKind
from sim.build.manifest import Manifest
from sim.observe.log import LOG_DTYPE, log_sha256

from .engine import (
    OPERATION_DTYPE,
    CoherenceError,
    EngineError,
    Jump,
    Notify,
    PageFaultError,
    Recording,
    Wake,
    WakeKind,
)
from .shadow import PendingStore, Shadow, physical

__all__ = ["Backend", "LoopEngine"]

LINE_BYTES = 64
IDS = 256
MASK64 = (1 << 64) - 1

EXECUTE, LOAD, STORE, HALT, ATOMIC, POLL, RDTSC = (
    getattr(OperationKind, name).value for name in ("EXECUTE", "LOAD", "STORE", "HALT", "ATOMIC", "POLL", "RDTSC")
)


def _kinds(names: str) -> frozenset[int]:
    return frozenset(OperationKind[name].value for name in names.split())


COMPLETING = _kinds("LOAD MMIO_READ FENCE ATOMIC POLL LFENCE SFENCE RDTSC")
#: Have an address and a size, within a line.
SIZED = _kinds("LOAD STORE PREFETCH MMIO_READ MMIO_WRITE ATOMIC POLL STORE_NT CLFLUSH")
ADDRESSED = SIZED | _kinds("EXECUTE WRITE_CR3 INVLPG TSC_DEADLINE")
#: Bring data, as many bytes as their size; an ATOMIC brings 16.
WRITING = _kinds("STORE MMIO_WRITE POLL STORE_NT")
MMIO = _kinds("MMIO_READ MMIO_WRITE")
TIMED = _kinds("EXECUTE POLL")
#: Have a use for ``argument``.
ARGUED = _kinds("EXECUTE HALT ATOMIC POLL")
ATOMIC_BYTES = 16
TSC_BYTES = 8
KINDS = frozenset(kind.value for kind in OperationKind)


class Backend(Protocol):
    """A simulator with the toplevel in it."""

    def peek(self, port: str) -> int:
        """Value of an output, settled since the last :meth:`pulse`."""

    def poke(self, port: str, value: int) -> None:
        """Set an input, from the next :meth:`pulse` on."""

    async def pulse(self, clocks: Sequence[str], tick: int) -> None:
        """Raise clock ports in one assignment, let everything settle, lower them; ``tick`` is simulated time."""


@dataclass
class Operation:
    """An operation as software pushed it."""

    context: int
    handle: int
    kind: int
    address: int = 0
    size: int = 0
    data: bytes = b""
    cycles: int = 0
    uops: int = 0
    after: int = -1
    notify: int = Notify.NO
    argument: int = 0
    not_before: int = -1


@dataclass
class Context:
    """A queue of operations."""

    queue: deque[Operation] = field(default_factory=deque)
    waiting: int = 0  #: operations that are to notify and have not
    core: int = -1
    due: bool = False  #: tell by EMPTY when it has nothing left


@dataclass
class Flight:
    """An operation that was handed over."""

    op: Operation
    open: bool  #: will complete, and has not
    order: int = -1  #: how many operations of its core issued before it
    issued_at: int = -1  #: tick
    bound: bytes = b""  #: LOAD: its value, from its issue on
    sampled: bytes | None = None  #: what memory held when the cache read it; POLL: the first that is not its data


@dataclass
class Core:
    """The host's side of a core."""

    port: str  #: prefix of its ports
    domain: int
    parts: frozenset[int]  #: all its domains
    context: int = -1
    since: int = -1  #: what it is offered may be handed over later than this tick
    next_id: int = 0
    changed: bool = True  #: look again at what to offer
    held: bool = False  #: the front operation waits for a completion before it can be offered
    offered: bool = False
    stale: bool = True  #: the port does not show what is offered
    valid: bool = False  #: the port's valid
    after: int = -1  #: operation number shown as ``after``
    last_issued: bool = True
    last: Operation | None = None  #: the operation handed over last
    working: Flight | None = None  #: the EXECUTE or POLL issued last
    halted: Operation | None = None  #: a HALT it sits in
    flight: list[Flight | None] = field(default_factory=lambda: [None] * IDS)  #: by operation number
    issued: list[int] = field(default_factory=list)
    issued_cycles: list[int] = field(default_factory=list)


class Random:
    """xorshift64*, as in native.cpp."""

    def __init__(self, seed: int):
        self._state = (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & MASK64 or 1

    def __call__(self) -> int:
        """The next 64 bits."""
        x = self._state
        x ^= x >> 12
        x ^= x << 25 & MASK64
        x ^= x >> 27
        self._state = x
        return x * 0x2545F4914F6CDD1D & MASK64


class LoopEngine:
    """See :class:`sim.engine.engine.Engine`.

    Arguments:
        manifest: of the toplevel in the backend.
        backend: the simulator.
        jump: which permitted jumps to take.
        seed: of the choice of jumps.
        record: keep what is handed over, for :meth:`recording`.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        *,
        jump: Jump = Jump.ALL,
        seed: int = 0,
        record: bool = False,
    ):
        self.manifest = manifest
        self._backend = backend
        self._jump = jump
        self._random = Random(seed)
        self._periods = [domain.period for domain in manifest.domains]
        self._names = [domain.name for domain in manifest.domains]
        self._clocks = [
            [f"clk_{domain.name}", *([f"clk_{domain.name}_time"] if domain.time else [])] for domain in manifest.domains
        ]
        domains = range(len(self._names))
        self._probe_words = [[word for word in manifest.probe_words if word.domain == d] for d in domains]
        self._timers = [[timer for timer in manifest.timers if timer.domain == d] for d in domains]
        self._payload_ports = [
            [f"probe_{number}_{name}" for name, _ in probe.fields] for number, probe in enumerate(manifest.probes)
        ]
        self._tick = -1  # of the last step
        self._next_tick = [0] * len(domains)  # of the edge after the last one executed
        self._executed = [0] * len(domains)
        self._forced: list[int | None] = [None] * len(domains)
        self._contexts: dict[int, Context] = {}
        self._context_count = 0
        self._cores = [
            Core(f"core{index}", domain, frozenset(parts))
            for index, (domain, parts) in enumerate(zip(manifest.core_domains, manifest.core_parts, strict=True))
        ]
        self._complete: list[bool] = []  # by handle
        self._shadow = Shadow(len(self._cores))
        self._frames: deque[tuple[bytes, int, int]] = deque()
        self._sent = 0  # bytes of the front frame that have been handed over
        self._wire_valid = False
        self._wire_stale = True
        self._on_transmit: Callable[[int, int, bytes], object] | None = None
        self._transmitted: list[tuple[int, int, bytes]] | None = None
        self._leaving = b""  # what has left of the frame of which some beats have
        self._left: tuple[int, int, bytes] | None = None  # at the step that is being made
        self._calls: list[tuple[int, int, Callable[[], object]]] = []  # by tick, then number
        self._calls_made = 0
        self._called_at = -1  # tick of the last calls: its edges are still to come while _tick is less
        self._calling = False
        self._failed = False
        self._wakes: list[Wake] = []
        self._log: list[tuple[int, int, tuple[int, ...]]] = []
        self._record = record
        self._recorded: list[tuple] = []
        self._recorded_frames: list[tuple[int, bytes, int, int]] = []

    # ---- Contexts, operations, frames

    def new_context(self) -> int:
        """Make an empty queue of operations and return its number."""
        self._contexts[self._context_count] = Context()
        self._context_count += 1
        return self._context_count - 1

    def free_context(self, context: int) -> None:
        """Forget a context whose operations have all issued."""
        found = self._find(context)
        if found.queue:
            raise ValueError(f"context {context} still has {len(found.queue)} operations to hand over")
        if found.core >= 0:
            self._leave(self._cores[found.core])
        del self._contexts[context]

    def switch(self, core: int, context: int) -> None:
        """Let ``core`` draw from ``context`` from its next edge on."""
        if not 0 <= core < len(self._cores):
            raise ValueError(f"core must be between 0 and {len(self._cores) - 1}, not {core}")
        found = self._find(context)
        if found.core not in (-1, core):
            raise ValueError(f"context {context} is on core {found.core}")
        target = self._cores[core]
        self._leave(target)
        found.core = core
        found.due = True
        target.context = context
        target.since = self._tick

    def push(
        self,
        context: int,
        kind: int,
        address: int = 0,
        size: int = 0,
        data: int | bytes = 0,
        cycles: int = 0,
        uops: int = 0,
        after: int = -1,
        notify: int = Notify.NO,
        argument: int = 0,
    ) -> int:
        """Queue one operation and return its handle, see :class:`sw.port.CorePort`."""
        found = self._find(context)
        kind = int(kind)
        self._check(kind, address, size, cycles, uops, after, notify, argument)
        op = Operation(
            context=context,
            handle=len(self._complete),
            kind=kind,
            address=address if kind in ADDRESSED else 0,
            size=size if kind in SIZED else TSC_BYTES if kind == RDTSC else 0,
            data=_atomic_data(data) if kind == ATOMIC else _data(data, size) if kind in WRITING else b"",
            cycles=cycles if kind in TIMED else 0,
            uops=uops,
            after=after,
            notify=int(notify),
            argument=argument if kind in ARGUED else 0,
            not_before=self._tick,
        )
        self._complete.append(kind not in COMPLETING)
        found.queue.append(op)
        found.waiting += notify != Notify.NO
        found.due = True
        if found.core >= 0 and len(found.queue) == 1:
            self._cores[found.core].changed = True
        return op.handle

    def push_frame(self, data: bytes, packet: int, start: int) -> None:
        """Queue a frame for the wire, see :class:`sim.engine.engine.Engine`."""
        if not 1 <= len(data) <= 0xFFFF:
            raise ValueError(f"a frame must have 1 to 65535 bytes, not {len(data)}")
        width = {field.name: field.width for field in self.manifest.frame_beat.fields}
        if not 1 <= packet < 1 << width["packet"]:
            raise ValueError(f"packet must be between 1 and {(1 << width['packet']) - 1}, not {packet}")
        present = self.tick // self._periods[self.manifest.wire_domain]
        if not present <= start < 1 << width["start"]:
            raise ValueError(
                f"start must be between the card's present cycle, {present}, and 2^{width['start']} - 1, not {start}"
            )
        self._frames.append((bytes(data), packet, start))
        if self._record:
            self._recorded_frames.append((self._tick, bytes(data), packet, start))

    # ---- The world outside

    def on_transmit(self, callback: Callable[[int, int, bytes], object] | None) -> None:
        """Have ``callback(tick, packet, frame)`` called for each frame that the card sends."""
        self._check_listener("on_transmit")
        if callback is not None and not callable(callback):
            raise TypeError("what on_transmit is given must be callable")
        self._on_transmit = callback

    def keep_transmitted(self) -> None:
        """Keep the frames that the card sends, for :meth:`transmitted`."""
        self._check_listener("keep_transmitted")
        if self._transmitted is None:
            self._transmitted = []

    def transmitted(self, since: int = 0) -> list[tuple[int, int, bytes]]:
        """Tick, packet and bytes of each frame sent so far, from the one of that number on."""
        if self._transmitted is None:
            raise ValueError("keep_transmitted was not called before the engine ran")
        return self._transmitted[since:]

    def call_at(self, tick: int, function: Callable[[], object]) -> int:
        """Have ``function()`` called at ``tick``, see :class:`sim.engine.engine.Engine`."""
        if not callable(function):
            raise TypeError("what call_at is given must be callable")
        reached = max(self._tick, self._called_at)
        if tick <= reached:
            raise ValueError(f"a call must be later than tick {reached}, not at {tick}")
        self._calls_made += 1
        bisect.insort(self._calls, (tick, self._calls_made, function))
        return self._calls_made

    def cancel_call(self, call: int) -> bool:
        """Take back what :meth:`call_at` returned; false if it has been made."""
        kept = [entry for entry in self._calls if entry[1] != call]
        found = len(kept) < len(self._calls)
        self._calls = kept
        return found

    # ---- Running

    async def run(self, until: int | None = None) -> Sequence[Wake]:
        """Run until at least one reason to wake, or until tick ``until``."""
        if self._calling:
            raise EngineError("what an engine calls may not run it")
        if self._failed:
            raise EngineError("the engine is closed: what it called has failed")
        self._offer()
        self._raise_empty()
        while not self._wakes:
            at, due = self._choose(until)
            if at is None:
                break
            if due:
                await self._step(at, due)
            else:
                self._make_calls(at)
            self._offer()
            self._raise_empty()
        wakes, self._wakes = self._wakes, []
        return wakes

    # ---- Results

    @property
    def tick(self) -> int:
        """Simulated time."""
        return max(self._tick, self._called_at, 0)

    def cycles(self) -> dict[str, int]:
        """Edges of each domain so far, skipped ones included."""
        return {name: self._first_edge(d) for d, name in enumerate(self._names)}

    def executed(self) -> dict[str, int]:
        """Edges of each domain that were executed."""
        return dict(zip(self._names, self._executed, strict=True))

    def log(self, since: int = 0) -> np.ndarray:
        """The events so far, from the one of that number on."""
        events = self._log[since:]
        result = np.zeros(len(events), LOG_DTYPE)
        for row, (tick, probe, fields) in zip(result, events, strict=True):
            row["tick"], row["probe"] = tick, probe
            row["fields"][: len(fields)] = fields
        return result

    def log_sha256(self) -> str:
        """Digest of :meth:`log`."""
        return log_sha256(self.log())

    def counters(self) -> dict[str, int]:
        """Values of the machine's counters."""
        peek = self._backend.peek
        return {counter.path: peek(f"counter_{number}") for number, counter in enumerate(self.manifest.counters)}

    def issued(self, core: int) -> np.ndarray:
        """Handles of the operations of ``core`` in the order in which they issued."""
        return np.array(self._cores[core].issued, "<i8")

    def issued_cycles(self, core: int) -> np.ndarray:
        """What each issue asked to compute."""
        return np.array(self._cores[core].issued_cycles, "<u4")

    def recording(self) -> Recording:
        """What was handed over so far."""
        if not self._record:
            raise ValueError("the engine was not made with record=True")
        operations = np.array(self._recorded, OPERATION_DTYPE)
        return Recording(operations, tuple(self._recorded_frames), self._tick)

    def close(self) -> None:
        """Let go of callbacks; there are no files to finish."""
        self._on_transmit = None
        self._calls.clear()

    # ---- Time

    def _first_edge(self, d: int) -> int:
        """Number of the first edge of domain ``d`` that is still to come."""
        return self._tick // self._periods[d] + 1

    def _first_tick(self, d: int) -> int:
        return self._first_edge(d) * self._periods[d]

    # ---- Software's side

    def _check_listener(self, what: str) -> None:
        """A frame of which only the end was heard cannot be told."""
        if self._tick >= 0:
            raise ValueError(f"{what} comes before the first edge, not at tick {self._tick}")

    def _find(self, context: int) -> Context:
        if context not in self._contexts:
            raise ValueError(f"there is no context {context}")
        return self._contexts[context]

    def _leave(self, core: Core) -> None:
        if core.context >= 0:
            self._contexts[core.context].core = -1
        core.context = -1
        core.changed = True

    def _check(
        self, kind: int, address: int, size: int, cycles: int, uops: int, after: int, notify: int, argument: int
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"there is no operation of kind {kind}")
        if kind in ADDRESSED:
            width = next(f.width for f in self.manifest.operation.fields if f.name == "address")
            if address >> width:
                raise ValueError(f"an address has {width} bits, not {address}")
        if kind in SIZED:
            if not 1 <= size <= LINE_BYTES:
                raise ValueError(f"size must be between 1 and 64 bytes, not {size}")
            if address % LINE_BYTES + size > LINE_BYTES:
                raise ValueError(f"{size} bytes at address {address} cross a line of 64 bytes")
        if kind in MMIO and size not in (4, 8):
            raise ValueError(f"an MMIO access has 4 or 8 bytes, not {size}")
        if kind == ATOMIC and (size not in (1, 2, 4, 8) or address % size):
            raise ValueError(f"an ATOMIC has 1, 2, 4 or 8 bytes, aligned, not {size} at address {address}")
        if kind == ATOMIC and not 0 <= argument < len(AtomicFunction):
            raise ValueError(f"there is no atomic function {argument}")
        if kind == POLL and size > 8:
            raise ValueError(f"a POLL looks at up to 8 bytes, not {size}")
        if kind in TIMED and not 1 <= cycles <= 0xFFFFFFFF:
            raise ValueError(f"cycles must be between 1 and 4294967295, not {cycles}")
        if not 0 <= uops <= 0xFFFF:
            raise ValueError(f"uops must be between 0 and 65535, not {uops}")
        if not 0 <= argument <= 0xFFFF:
            raise ValueError(f"argument must be between 0 and 65535, not {argument}")
        if kind == POLL and not argument:
            raise ValueError("a POLL looks again after at least 1 cycle, not 0")
        if not -1 <= after < len(self._complete):
            raise ValueError(f"after must be the handle of an operation, not {after}")
        if notify not in (Notify.NO, Notify.COMPLETE, Notify.ISSUE):
            raise ValueError(f"notify must be between 0 and 2, not {notify}")
        if notify and kind not in COMPLETING and kind != HALT:
            raise ValueError(f"an operation of kind {kind} never completes: it cannot notify")
        if notify == Notify.ISSUE and kind != LOAD:
            raise ValueError(f"an operation of kind {kind} has no value when it issues")

    @staticmethod
    def _in_flight(core: Core, handle: int) -> int:
        """Number under which ``handle`` is in flight on ``core``, -1 if it is not."""
        for back in range(1, IDS + 1):
            number = (core.next_id - back) % IDS
            if _is_open(core, number, handle):
                return number
        return -1

    def _front(self, core: Core) -> Operation | None:
        if core.context < 0:
            return None
        queue = self._contexts[core.context].queue
        return queue[0] if queue else None

    def _offer(self) -> None:
        """Decide what each core is offered from its next edge on.

        Only between steps, so that what happens on one core reaches another no earlier than at a later tick.
        """
        for core in self._cores:
            if not core.changed:
                continue
            core.changed = False
            op = self._front(core)
            core.offered = op is not None
            core.stale = True
            if op is None:
                continue
            # Its number must be free again. The RTL orders it after an operation of the same core; after one of
            # another core, or one still queued, it is ordered here.
            waits = op.after >= 0 and not self._complete[op.after] and self._in_flight(core, op.after) < 0
            hold = _is_open(core, core.next_id) or waits
            if hold:
                core.offered = False
                core.changed = True
            elif core.held:
                core.since = self._tick
            core.held = hold

    def _raise_empty(self) -> None:
        for index, core in enumerate(self._cores):
            if core.context < 0:
                continue
            context = self._contexts[core.context]
            if not context.due or context.queue or context.waiting:
                continue
            # A COMPLETION in this batch will make it go on; if not, EMPTY comes with the next.
            if any(wake.kind == WakeKind.COMPLETION and wake.context == core.context for wake in self._wakes):
                continue
            context.due = False
            self._wakes.append(Wake(WakeKind.EMPTY, index, core.context, 0, 0))

    # ---- Steps

    def _choose(self, until: int | None) -> tuple[int | None, list[int]]:
        """The next tick at which an edge is executed, and the domains that execute one.

        No domain when there is a call to make before; ``None``, and a wake, when idle or past ``until``.
        """
        peek = self._backend.peek
        quiet = sum(peek(f"quiet_{name}") << d for d, name in enumerate(self._names))
        ticks: list[int | None] = [None] * len(self._names)
        idle = True
        busy = [not quiet >> d & 1 for d in range(len(ticks))]
        for core in self._cores:
            busy[core.domain] |= core.offered and bool(peek(f"{core.port}_operation_ready"))
        busy[self.manifest.wire_domain] |= bool(self._frames) and bool(peek("wire_ready"))
        for d, must_run in enumerate(busy):
            if must_run:
                ticks[d] = self._first_tick(d)
                idle = False
            if quiet >> d & 1:
                wake, foreground = self._wake_tick(d)
                idle = idle and not foreground
                if ticks[d] is None:
                    ticks[d] = wake
        if idle and not self._calls:
            self._wakes.append(Wake(WakeKind.IDLE, -1, -1, 0, 0))
            return None, []
        calls = [tick for tick, _, _ in self._calls[:1]]
        at = min(calls + [tick for tick in ticks if tick is not None])
        if until is not None and at > until:
            self._tick = max(self._tick, until)
            self._wakes.append(Wake(WakeKind.LIMIT, -1, -1, 0, 0))
            return None, []
        if at in calls:
            return at, []
        return at, [d for d, tick in enumerate(ticks) if tick == at]

    def _wake_tick(self, d: int) -> tuple[int | None, bool]:
        """When a quiet domain must execute an edge by itself, and whether a timer not in the background is armed."""
        peek = self._backend.peek
        armed = [timer for timer in self._timers[d] if peek(f"{timer.port}_armed")]
        foreground = any(not timer.background for timer in armed)
        first = self._first_tick(d)
        if self._jump is Jump.OFF:
            return first, foreground
        deadlines = [peek(f"{timer.port}_deadline") for timer in armed]
        tick = max(min(deadlines) * self._periods[d], first) if deadlines else None
        if self._jump is Jump.RANDOM:
            forced = self._forced_tick(d)
            if forced is not None:
                tick = forced if tick is None else min(tick, forced)
        return tick, foreground

    def _forced_tick(self, d: int) -> int | None:
        """When a quiet domain executes an edge although it need not: drawn anew after each edge."""
        forced = self._forced[d]
        if forced is None:
            r = self._random()
            soon = self._first_tick(d) + (r >> 8 & 63) * self._periods[d]
            forced = self._forced[d] = -1 if r & 1 else soon if r & 2 else 0
        return None if forced < 0 else max(forced, self._first_tick(d))

    async def _step(self, at: int, due: list[int]) -> None:
        backend = self._backend
        # A part that catches up may reach a deadline, and thereby give work to its neighbours at this same edge.
        more = due
        while more:
            more = self._awakened(at, due) if await self._begin(at, more) else []
            due = sorted([*due, *more])

        for d in due:
            for word in self._probe_words[d]:
                valid = backend.peek(word.port)
                for number in range(word.first, word.first + word.count):
                    if valid >> (number - word.first) & 1:
                        fields = tuple(backend.peek(port) for port in self._payload_ports[number])
                        self._log.append((at, number, fields))
        for index, core in enumerate(self._cores):
            if not core.parts.isdisjoint(due):
                self._core_edge(index, core, at, core.domain in due)
        self._becomes_visible(at, due)
        if self.manifest.wire_domain in due:
            self._wire_edge()
            self._wire_out_edge(at)

        await backend.pulse([clock for d in due for clock in self._clocks[d]], at)
        self._tick = at
        if self._left is not None:
            self._tell_frame(*self._left)

    async def _begin(self, at: int, due: list[int]) -> bool:
        """The domains in ``due`` will execute an edge at ``at``: let those with a time catch up; whether any had to."""
        backend = self._backend
        late = []
        for d in due:
            if at != self._next_tick[d] and self.manifest.domains[d].time:
                skipped = (at - self._next_tick[d]) // self._periods[d]
                backend.poke(f"advance_{self._names[d]}", skipped - 1)
                late.append(self._names[d])
            self._next_tick[d] = at + self._periods[d]
            self._forced[d] = None
            self._executed[d] += 1
        if late:
            await backend.pulse([f"clk_{name}_time" for name in late], at)
            for name in late:
                backend.poke(f"advance_{name}", 0)
        return bool(late)

    def _awakened(self, at: int, due: list[int]) -> list[int]:
        """Domains not in ``due`` that have an edge at ``at`` and are not quiet any more."""
        return [
            d
            for d, name in enumerate(self._names)
            if d not in due and at % self._periods[d] == 0 and not self._backend.peek(f"quiet_{name}")
        ]

    def _core_edge(self, index: int, core: Core, at: int, port: bool) -> None:
        """An edge of a part of a core: its cache may read without its port's doing anything."""
        peek = self._backend.peek
        if port and peek(f"{core.port}_issue"):
            self._issue(index, core, core.flight[peek(f"{core.port}_issue_id")], at)
        if peek(f"{core.port}_sampled"):
            self._sample(index, core.flight[peek(f"{core.port}_sampled_id")], at)
        if not port:
            return
        if peek(f"{core.port}_completion_valid"):
            self._completion(index, core, at)
        if peek(f"{core.port}_fault"):
            flight = core.flight[peek(f"{core.port}_fault_id")]
            assert flight is not None, "the machine faults on what it was not given"
            why = "no memory there" if peek(f"{core.port}_fault_outside") else "page not present"
            raise PageFaultError(f"{_told(index, flight, at)}: {why}")
        interrupted = bool(peek(f"{core.port}_interrupt_taken"))
        if interrupted:
            self._interrupt(index, core)
        self._hand_over(index, core, interrupted)

    def _issue(self, index: int, core: Core, flight: Flight | None, at: int) -> None:
        assert flight is not None, "the machine issued what it was not given"
        op = flight.op
        flight.order, flight.issued_at = len(core.issued), at
        core.issued.append(op.handle)
        core.issued_cycles.append(op.cycles if op.kind == EXECUTE else 0)
        if flight is core.flight[(core.next_id - 1) % IDS]:
            core.last_issued = True
        address = physical(op.address)
        if op.kind == LOAD:
            flight.bound = self._shadow.bound(index, address, op.size)
            if op.notify == Notify.ISSUE:
                self._finish(index, op, _number(flight.bound))
        elif op.kind in (STORE, ATOMIC):
            function = AtomicFunction(op.argument) if op.kind == ATOMIC else None
            self._shadow.issue(index, PendingStore(flight.order, address, op.data, op.size, function))
        elif op.kind == HALT:
            core.halted = op
        if op.kind in TIMED:
            core.working = flight

    def _sample(self, index: int, flight: Flight | None, at: int) -> None:
        """The cache reads what an operation asked for: what memory holds now is what it must get."""
        if flight is None or not flight.open:
            return  # a look of a POLL that an interrupt has ended
        op, address = flight.op, physical(flight.op.address)
        if self._shadow.waits_for_store(index, flight.order, address, op.size):
            raise CoherenceError(f"{_told(index, flight, at)}: read before an earlier store to it was visible")
        held = self._shadow.read(address, op.size)
        if op.kind != POLL or (flight.sampled is None and held != op.data):
            flight.sampled = held

    def _completion(self, index: int, core: Core, at: int) -> None:
        fields = self.manifest.completion.unpack(self._backend.peek(f"{core.port}_completion"))
        flight = core.flight[fields["id"]]
        if flight is None or not flight.open:
            return
        flight.open = False
        op = flight.op
        core.stale = True
        self._complete[op.handle] = True
        got = fields["data"].to_bytes(LINE_BYTES, "little")[: op.size]
        expected = self._expected(core, flight, got, at)
        if got != expected:
            wanted = expected.hex() or "no answer: it was not read"
            raise CoherenceError(f"{_told(index, flight, at)}: got {got.hex()}, expected {wanted}")
        if op.notify == Notify.COMPLETE:
            self._finish(index, op, _number(flight.bound if op.kind == LOAD else got))

    def _expected(self, core: Core, flight: Flight, got: bytes, at: int) -> bytes:
        """What an operation must complete with; nothing if it was never read."""
        op = flight.op
        if op.kind == LOAD:
            # One that was not read had its value forwarded from a store.
            return flight.bound if flight.sampled is None else flight.sampled
        if op.kind == ATOMIC:
            return flight.sampled or b""
        if op.kind == POLL:
            # It gives up by the clock, whatever memory holds then.
            timeout = flight.issued_at + op.cycles * self._periods[core.domain]
            if got == op.data and (flight.sampled is None or at >= timeout):
                return got
            return flight.sampled or b""
        return got

    def _becomes_visible(self, at: int, due: list[int]) -> None:
        """What becomes visible at a tick does so behind everything that is read at it."""
        peek = self._backend.peek
        for index, core in enumerate(self._cores):
            if not core.parts.isdisjoint(due) and peek(f"{core.port}_visible") and not self._shadow.visible(index):
                raise CoherenceError(f"core {index}, tick {at}: a store that had not issued became visible")
        if self.manifest.device_domain not in due:
            return
        if peek("device_write_accepted"):
            self._shadow.device_accepted(*(peek(f"device_write_{name}") for name in ("line", "mask", "data")))
        if peek("device_write_done") and not self._shadow.device_done():
            raise CoherenceError(f"tick {at}: a write by a device that had not been accepted became visible")

    def _finish(self, index: int, op: Operation, value: int | bytes) -> None:
        if op.context in self._contexts:
            self._contexts[op.context].waiting -= 1
        self._wakes.append(Wake(WakeKind.COMPLETION, index, op.context, op.handle, value))

    def _interrupt(self, index: int, core: Core) -> None:
        taken = self.manifest.interrupt.unpack(self._backend.peek(f"{core.port}_interrupt"))
        if core.halted is not None:
            if core.halted.notify:
                self._finish(index, core.halted, 0)
            core.halted = None
        if taken["squashed"] and not core.last_issued:
            assert core.last is not None
            core.flight[(core.next_id - 1) % IDS] = None
            self._contexts[core.last.context].queue.appendleft(core.last)
            core.last_issued = True
        if core.working is not None:
            self._set_aside(core.working, taken["remaining"])
        core.working = None
        interrupted = core.context
        self._leave(core)
        core.offered = False
        self._wakes.append(Wake(WakeKind.INTERRUPT, index, interrupted, taken["vector"], 0))

    def _set_aside(self, flight: Flight, remaining: int) -> None:
        """Put what an interrupt left of an EXECUTE or POLL in front of its context's queue."""
        whole = flight.op
        rest = Operation(whole.context, whole.handle, whole.kind, uops=whole.uops)
        if whole.kind == EXECUTE and remaining:
            # Without text: it had been fetched by and large, and is in the cache or near it.
            rest.cycles, rest.uops = remaining, -(-whole.uops * remaining // whole.cycles)
        elif whole.kind == POLL and flight.open:
            # It may have been cut short while its last look was on its way.
            rest.cycles = max(remaining, 1)
            rest.address, rest.size, rest.data = whole.address, whole.size, whole.data
            rest.notify, rest.argument = whole.notify, whole.argument
        else:
            return
        flight.open = False
        self._contexts[rest.context].queue.appendleft(rest)

    def _hand_over(self, index: int, core: Core, interrupted: bool) -> None:
        backend = self._backend
        op = self._front(core) if core.offered else None
        if op is None:
            if core.valid:
                backend.poke(f"{core.port}_operation_valid", 0)
            core.valid = False
            return
        if core.stale or not core.valid:
            self._show(core, op)
        if interrupted or not backend.peek(f"{core.port}_operation_ready"):
            return
        if self._record:
            self._recorded.append(_row(op, max(op.not_before, core.since), index, core.after))
        core.flight[core.next_id] = Flight(op, op.kind in COMPLETING)
        core.next_id = (core.next_id + 1) % IDS
        core.offered = False
        core.changed = True
        core.last_issued = False
        core.last = op
        self._contexts[core.context].queue.popleft()

    def _show(self, core: Core, op: Operation) -> None:
        """Put an operation on the port. What completes at this very edge counts as complete."""
        complete = op.after < 0 or self._complete[op.after]
        core.after = -1 if complete else self._in_flight(core, op.after)
        self._backend.poke(
            f"{core.port}_operation_payload",
            self.manifest.operation.pack(
                kind=op.kind,
                id=core.next_id,
                address=op.address,
                size=op.size,
                data=int.from_bytes(op.data, "little"),
                cycles=op.cycles,
                uops=op.uops,
                argument=op.argument,
                after_valid=core.after >= 0,
                after=max(core.after, 0),
            ),
        )
        if not core.valid:
            self._backend.poke(f"{core.port}_operation_valid", 1)
        core.valid = True
        core.stale = False

    def _wire_edge(self) -> None:
        backend = self._backend
        if not self._frames:
            if self._wire_valid:
                backend.poke("wire_valid", 0)
            self._wire_valid = False
            return
        data, packet, start = self._frames[0]
        beat = data[self._sent : self._sent + LINE_BYTES]
        last = self._sent + len(beat) == len(data)
        if self._wire_stale:
            word = self.manifest.frame_beat.pack(
                data=int.from_bytes(beat, "little"),
                length=len(data),
                first=self._sent == 0,
                last=last,
                packet=packet,
                start=start,
            )
            backend.poke("wire_payload", word)
            self._wire_stale = False
        if not self._wire_valid:
            backend.poke("wire_valid", 1)
        self._wire_valid = True
        if not backend.peek("wire_ready"):
            return
        self._wire_stale = True
        self._sent += len(beat)
        if last:
            self._sent = 0
            self._frames.popleft()

    def _wire_out_edge(self, at: int) -> None:
        """Gather what leaves the card."""
        listens = self._on_transmit is not None or self._transmitted is not None
        if not (self.manifest.sends and listens and self._backend.peek("wire_out_valid")):
            return
        beat = self.manifest.sent_beat.unpack(self._backend.peek("wire_out_payload"))
        length, begun = beat["length"], len(self._leaving)
        if beat["first"] != (begun == 0) or begun >= length or beat["last"] != (begun + LINE_BYTES >= length):
            raise EngineError(
                f"tick {at}: the card sent a beat with first {beat['first']}, last {beat['last']} at byte {begun} "
                f"of a frame of {length}"
            )
        self._leaving += beat["data"].to_bytes(LINE_BYTES, "little")[: length - begun]
        if beat["last"]:
            self._left = at, beat["packet"], self._leaving
            self._leaving = b""

    # ---- Calls

    def _tell_frame(self, tick: int, packet: int, data: bytes) -> None:
        """A frame has left at the step that has just been made."""
        self._left = None
        if self._on_transmit is not None:
            callback = self._on_transmit
            self._call_outside(lambda: callback(tick, packet, data))
        if self._transmitted is not None:
            self._transmitted.append((tick, packet, data))

    def _make_calls(self, at: int) -> None:
        """What is to be called at a tick is, before its edges."""
        self._tick = at - 1
        self._called_at = at
        while self._calls and self._calls[0][0] == at:
            self._call_outside(self._calls.pop(0)[2])

    def _call_outside(self, call: Callable[[], object]) -> None:
        self._calling = True
        try:
            call()
        except BaseException:
            self._failed = True
            self.close()
            raise
        finally:
            self._calling = False


def _is_open(core: Core, number: int, handle: int | None = None) -> bool:
    flight = core.flight[number]
    return flight is not None and flight.open and handle in (None, flight.op.handle)


def _told(index: int, flight: Flight, at: int) -> str:
    op = flight.op
    what = f"{OperationKind(op.kind).name} of {op.size} bytes at {op.address:#x} (handle {op.handle})"
    return f"core {index}, tick {at}: {what}"


def _number(raw: bytes) -> int | bytes:
    """What was read, as software gets it."""
    return raw if len(raw) > 8 else int.from_bytes(raw, "little")


def _atomic_data(value: int | bytes) -> bytes:
    if not isinstance(value, bytes) or len(value) != ATOMIC_BYTES:
        raise ValueError("data of an ATOMIC must be 16 bytes")
    return value


def _data(value: int | bytes, size: int) -> bytes:
    if isinstance(value, bytes):
        if len(value) != size:
            raise ValueError(f"data has {len(value)} bytes, size says {size}")
        return value
    if not isinstance(value, int):
        raise ValueError("data must be an int or bytes")
    if size > 8:
        raise ValueError("data of more than 8 bytes must be bytes")
    try:
        return value.to_bytes(size, "little")
    except OverflowError:
        raise ValueError(f"data does not fit {size} bytes") from None


def _row(op: Operation, not_before: int, core: int, after: int) -> tuple[Any, ...]:
    """An operation as a row of ``OPERATION_DTYPE``."""
    data = np.frombuffer(op.data.ljust(LINE_BYTES, b"\0"), "u1")
    head = (not_before, op.handle, op.after, op.address, op.cycles, op.context, op.uops, op.argument, op.kind)
    return (*head, op.size, op.notify, core, after >= 0, max(after, 0), data)
