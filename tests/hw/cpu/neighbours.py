"""What surrounds a core port, in Python, one edge at a time: L1 cache, MMU, fetch unit, last level, devices.

What each decides at an edge depends on the number of the edge and on what was asked for alone, so that edges left out
change nothing.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hw.bus.core import AtomicFunction
from hw.bus.l1 import L1Use

FRAME_MASK = (1 << 28) - 1


def atomic_result(function: AtomicFunction, old: int, operand: int, compare: int, size: int) -> int:
    """What an ATOMIC writes."""
    mask = (1 << 8 * size) - 1
    return (
        mask
        & {
            AtomicFunction.EXCHANGE: operand,
            AtomicFunction.ADD: old + operand,
            AtomicFunction.AND: old & operand,
            AtomicFunction.OR: old | operand,
            AtomicFunction.XOR: old ^ operand,
            AtomicFunction.COMPARE_EXCHANGE: operand if (old ^ compare) & mask == 0 else old,
        }[function]
    )


@dataclass
class CacheDouble:
    """Plays the L1 cache: hits answer after ``latency``, misses later and out of order.

    Attributes:
        memory: bytes by address; zero where it has none.
        writes: what others write: by edge, address and byte; the line watched is lost then.
        losses: edges at which the line watched leaves the cache.
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
        self.writes: dict[int, tuple[int, int]] = {}
        self.losses: set[int] = set()
        self.answers: dict[int, tuple[int, int | None, int, int]] = {}
        self.stores: deque[tuple[int, int, int, int]] = deque()
        self.atomic: tuple[int, Any] | None = None
        self._load = self._store = self._atomic = None

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
            ctx.set(self.port.sampled_id, op_id)
        ctx.set(self.port.sampled, answer is not None and answer[1] is None)
        ctx.set(self.port.atomic.ready, self.draw(now, "atomic").random() < self.ready)
        ctx.set(self.port.visible, self._visible(now))
        watch = ctx.get(self.port.watch)
        written = now in self.writes and self.writes[now][0] // 64 == watch
        own = bool(self.stores) and self._visible(now) and self.stores[0][1] == watch
        ctx.set(self.port.lost, written or own or now in self.losses)

    def active(self, now: int) -> bool:
        """Something happens in the cache at this edge, whatever the core port says."""
        return self._visible(now) or now in self.writes

    def _visible(self, now: int) -> bool:
        return bool(self.stores and self.stores[0][0] <= now) or bool(self.atomic and self.atomic[0] == now)

    def sample(self, ctx, now: int) -> None:
        self._load = self._check(ctx, self.port.load, self._load, now, "load")
        self._store = self._check(ctx, self.port.store, self._store, now, "store")
        self.answers.pop(now, None)
        if ctx.get(self.port.load.valid & self.port.load.ready):
            load = ctx.get(self.port.load.payload)
            assert 1 <= load.size and load.offset + load.size <= 64
            self.log.append((now, "load", load.id, load.line, load.offset, load.size, L1Use(load.use).name))
            if load.use == L1Use.LOAD:
                self._answer(load, now)
        self._sample_atomic(ctx, now)
        if self.stores and self.stores[0][0] <= now:
            _, line, mask, data = self.stores.popleft()
            self.log.append((now, "visible"))
            for i in range(64):
                if mask >> i & 1:
                    self.memory[line * 64 + i] = data >> 8 * i & 0xFF
        if now in self.writes:
            address, value = self.writes[now]
            self.memory[address] = value
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

    def _sample_atomic(self, ctx, now: int) -> None:
        port = self.port.atomic
        self._atomic = self._check(ctx, port, self._atomic, now, "atomic")
        if self.atomic is not None and self.atomic[0] == now:
            atomic, self.atomic = self.atomic[1], None
            address = atomic.line * 64 + atomic.offset
            old = self.read(address, atomic.size)
            new = atomic_result(AtomicFunction(atomic.function), old, atomic.operand, atomic.compare, atomic.size)
            self.log.append((now, "visible"))
            self.memory.update({address + i: new >> 8 * i & 0xFF for i in range(atomic.size)})
            self.answers[now + 1] = (atomic.id, old, address, atomic.size)
        if ctx.get(port.valid & port.ready):
            atomic = ctx.get(port.payload)
            assert not self.answers and not self.stores and self.atomic is None
            self.log.append((now, "atomic", atomic.id, atomic.line, atomic.offset, atomic.size))
            hit = self.draw(now, "atomic hits").random() < self.hit
            delay = self.latency - 1 if hit else max(self.draw(now, "atomic").randint(*self.miss), self.latency)
            self.atomic = (now + delay, atomic)

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


class MmuDouble:
    """Plays the MMU: a page first asked for is there, or known to be missing, ``walk`` edges later.

    Attributes:
        known: pages that hit at once; None: no translation, every page does.
        absent: pages that are not present.
        outside: those of them that are where no memory is.
    """

    def __init__(self, port, seed: int, walk: tuple[int, int] = (5, 30)):
        self.port, self.seed, self.walk = port, seed, walk
        self.known: set[int] | None = None
        self.absent: set[int] = set()
        self.outside: set[int] = set()
        self.log: list[tuple] = []
        self._asked: tuple[int, int] | None = None  # page, the edge from which on it is known

    def drive(self, ctx, now: int) -> None:
        """The answer depends on what is asked for at the same edge."""
        valid, page = ctx.get(self.port.valid), ctx.get(self.port.page)
        if self._asked is not None and self._asked[1] <= now and self._asked[0] not in self.absent:
            assert self.known is not None
            self.known.add(self._asked[0])
            self._asked = None
        hit = bool(valid) and (self.known is None or page in self.known)
        fault = bool(valid) and page in self.absent and self._asked is not None and self._asked[0] == page
        ctx.set(self.port.hit, hit)
        ctx.set(self.port.frame, page & FRAME_MASK if hit else FRAME_MASK & 0xDEADBEEF)
        ctx.set(self.port.fault, fault and self._asked is not None and self._asked[1] <= now)
        ctx.set(self.port.outside, page in self.outside)

    def sample(self, ctx, now: int) -> None:
        """Called at every edge, quiet ones included: the core port is quiet while the MMU works."""
        valid, page = ctx.get(self.port.valid), ctx.get(self.port.page)
        assert not (valid and ctx.get(self.port.set_root | self.port.forget))
        if ctx.get(self.port.set_root):
            self.log.append((now, "root", ctx.get(self.port.root)))
            self.known, self._asked = set() if ctx.get(self.port.root) else None, None
        elif ctx.get(self.port.forget):
            self.log.append((now, "forget", page))
            if self.known is not None:
                self.known.discard(page)
        elif self._asked is not None and self._asked[0] in self.absent and not (valid and page == self._asked[0]):
            self._asked = None
        elif valid and self._asked is None and self.known is not None and page not in self.known:
            self.log.append((now, "walk", page))
            self._asked = (page, now + random.Random(f"{self.seed}.walk.{now}").randint(*self.walk))


class TextDouble:
    """Plays the fetch unit: a line that hits takes a cycle, one that misses ``stall`` cycles more."""

    def __init__(self, port, seed: int, miss: float = 0.0, stall: tuple[int, int] = (10, 30)):
        self.port, self.seed, self.miss, self.stall = port, seed, miss, stall
        self.log: list[tuple] = []
        self.stalls: set[int] = set()
        self._end = -1

    def drive(self, ctx, now: int) -> None:
        ctx.set(self.port.busy, now <= self._end)
        ctx.set(self.port.stall, now in self.stalls)

    def sample(self, ctx, now: int) -> None:
        if ctx.get(self.port.cancel):
            self.log.append((now, "cancel"))
            self._end, self.stalls = -1, set()
        if ctx.get(self.port.start):
            assert now > self._end
            lines = ctx.get(self.port.lines)
            self.log.append((now, "start", ctx.get(self.port.line), lines))
            draw, edge = random.Random(f"{self.seed}.text.{now}"), now
            for _ in range(lines):
                if draw.random() < self.miss:
                    waits = draw.randint(*self.stall)
                    self.stalls.update(range(edge + 1, edge + 1 + waits))
                    edge += waits
                edge += 1
            self._end = edge


class NonCachedDouble:
    """Plays the last level for writes around the caches: each is visible, in order, ``delay`` edges later."""

    def __init__(self, port, memory: dict[int, int], seed: int, delay: tuple[int, int] = (20, 20), ready: float = 1.0):
        self.port, self.memory, self.seed, self.delay, self.ready = port, memory, seed, delay, ready
        self.log: list[tuple] = []
        self.writes: deque[tuple[int, int, int, int]] = deque()

    def drive(self, ctx, now: int) -> None:
        ctx.set(self.port.write.ready, random.Random(f"{self.seed}.around.{now}").random() < self.ready)
        ctx.set(self.port.done.valid, bool(self.writes) and self.writes[0][0] <= now)

    def sample(self, ctx, now: int) -> None:
        if self.writes and self.writes[0][0] <= now:
            _, line, mask, data = self.writes.popleft()
            self.log.append((now, "done", line))
            self.memory.update({line * 64 + i: data >> 8 * i & 0xFF for i in range(64) if mask >> i & 1})
        if ctx.get(self.port.write.valid & self.port.write.ready):
            write = ctx.get(self.port.write.payload)
            lanes = sum(0xFF << 8 * i for i in range(64) if write.mask >> i & 1)
            self.log.append((now, "write", write.line, write.mask, write.data & lanes))
            delay = random.Random(f"{self.seed}.done.{now}").randint(*self.delay)
            self.writes.append((now + delay, write.line, write.mask, write.data))
