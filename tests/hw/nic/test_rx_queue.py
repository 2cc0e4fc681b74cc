"""A receive queue by itself: its life, its errors, and that it leaves nothing behind when it is disabled."""

import random

import pytest

from hw.bus.tlp import TlpBeat, TlpStatus, TlpType
from hw.config import load_machine
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ
from hw.nic.registers import REG
from hw.nic.ring_queue import QueueError
from hw.nic.rx_queue import RxQueue
from tests.hw.simulate import simulate

BASE = 0x3456_0080
SIZE = 16


class Bench:
    """A queue, its registers, a host that answers reads, and a DMA that holds a descriptor for some cycles."""

    def __init__(self, *, seed=1, ready=1.0, busy=0.0):
        self.queue = RxQueue(load_machine("tiny", ()))
        self.random = random.Random(seed)
        self.ready, self.busy = ready, busy
        self.serving = True  # the DMA takes descriptors
        self.status = TlpStatus.SUCCESS
        self.length, self.base_high, self.base_low, self.tail = SIZE * DESCRIPTOR_BYTES, BASE >> 32, BASE, 0
        self.resetting, self.reset, self.master, self.no_buffer = 0, 0, 1, 0
        self.reads, self.taken, self.finished, self.written, self.errors = [], [], 0, 0, []
        self._bus = None
        self._holding = False

    def run(self, scenario):
        async def bench(ctx):
            self.ctx = ctx
            await scenario(self)

        simulate(self.queue, bench)

    def get(self, name):
        return self.ctx.get(getattr(self.queue, name))

    @property
    def head(self):
        """RDH as software reads it."""
        return self.ctx.get(self.queue.registers.head)

    @property
    def enabled(self):
        """RXDCTL.ENABLE as software reads it."""
        return bool(self.ctx.get(self.queue.registers.control) & REG.RXDCTL.ENABLE.mask)

    async def write(self, register, value):
        """An edge at which software writes ``register``."""
        self._bus = {"offset": register.offset(), "data": value}
        await self.step()

    async def enable(self, on=True):
        await self.write(REG.RXDCTL, REG.RXDCTL.ENABLE.mask if on else 0)

    async def cycles(self, count):
        for _ in range(count):
            await self.step()

    async def until(self, condition, limit=2000):
        for _ in range(limit):
            if condition():
                return
            await self.step()
        raise AssertionError("waited in vain")

    async def step(self):
        """One cycle."""
        ctx, queue, rng = self.ctx, self.queue, self.random
        for name in ("length", "base_high", "base_low", "tail"):
            ctx.set(getattr(queue.registers, name).value, getattr(self, name) & 0xFFFF_FFFF)
        for name in ("resetting", "reset", "master", "no_buffer"):
            ctx.set(getattr(queue, name), getattr(self, name))
        ctx.set(queue.bus.write, self._bus is not None)
        if self._bus:
            ctx.set(queue.bus.offset, self._bus["offset"])
            ctx.set(queue.bus.data, self._bus["data"])
        self._bus = None
        # The host
        answer = rng.choice(self.reads) if self.reads and rng.random() < self.ready else None
        ctx.set(queue.completion.valid, answer is not None)
        if answer is not None:
            ctx.set(queue.completion.payload, self._completion(answer))
            self.reads.remove(answer)
        ctx.set(queue.read.ready, rng.random() < self.ready)
        ctx.set(queue.write_back_send.ready, rng.random() < self.ready)
        # The DMA
        done = self._holding and rng.random() >= self.busy
        ctx.set(queue.holding, self._holding)
        ctx.set(queue.finished.valid, done)
        ctx.set(queue.finished.payload, {"length": 60, "eop": 1, "packet": self.finished + 1})
        ctx.set(queue.descriptor.ready, self.serving and not self._holding)
        take = ctx.get(queue.descriptor.valid) and ctx.get(queue.descriptor.ready)
        ctx.set(queue.caught_up, not self._holding and not take)
        # What happens
        if ctx.get(queue.error):
            self.errors.append(QueueError(ctx.get(queue.error_kind)))
        if ctx.get(queue.read.valid) and ctx.get(queue.read.ready):
            self.reads.append(ctx.get(queue.read.payload.header))
        if ctx.get(queue.write_back_send.valid) and ctx.get(queue.write_back_send.ready):
            header = ctx.get(queue.write_back_send.payload.header)
            assert header.packet == self.written + 1
            self.written += header.length // DESCRIPTOR_BYTES
            assert self.written <= self.finished
        if take:
            self.taken.append(ctx.get(queue.descriptor.payload.address))
            self._holding = True
        if done and ctx.get(queue.finished.ready):
            self.finished += 1
            self._holding = False
        await ctx.tick("nic")

    def _completion(self, request):
        index = (request.address - BASE) // DESCRIPTOR_BYTES
        count = request.length // DESCRIPTOR_BYTES
        assert 0 <= index and index + count <= SIZE
        raw = b"".join(RX_READ.pack(packet_address=0x1000 * (index + i)) for i in range(count))
        header = {
            "kind": TlpType.COMPLETION,
            "status": self.status,
            "address": request.address,
            "length": request.length,
            "remaining": request.length,
            "tag": request.tag,
        }
        data = int.from_bytes(raw, "little") << 8 * (request.address % 64)
        return TlpBeat.const({"header": header, "data": data, "first": 1, "last": 1})


def test_enable():
    """The queue runs two edges after ENABLE has been written, not one; ENABLE reads 1 until it is disabled."""

    async def scenario(b):
        await b.step()
        assert b.get("disabled") and b.get("quiet") and not b.enabled
        await b.enable()
        assert not b.get("running") and not b.get("disabled")
        await b.step()
        assert not b.get("running") and b.enabled
        await b.step()
        assert b.get("running") and b.enabled
        await b.cycles(5)
        assert b.get("quiet") and not b.reads and not b.errors
        await b.enable(False)
        await b.cycles(2)
        assert b.get("disabled") and not b.enabled and not b.get("failed") and not b.errors

    Bench().run(scenario)


def test_head():
    """RDH takes what software writes while the queue is disabled, nothing while it runs, and 0 in a reset."""

    async def scenario(b):
        await b.write(REG.RDH, 6)
        assert b.head == 6
        b.tail = 9
        await b.enable()
        await b.until(lambda: b.head == 9)
        assert b.taken == [0x6000, 0x7000, 0x8000]
        await b.write(REG.RDH, 3)
        assert b.head == 9
        await b.enable(False)
        await b.until(lambda: b.get("disabled"))
        b.reset = 1
        await b.step()
        assert b.head == 0 and b.ctx.get(b.queue.registers.control) == 0

    Bench().run(scenario)


@pytest.mark.parametrize(
    ("registers", "head", "kind"),
    [
        ({"length": 0}, 0, QueueError.RING_LENGTH),
        ({"base_high": 1 << 31}, 0, QueueError.RING_BASE),
        ({"no_buffer": 1}, 0, QueueError.BUFFER_SIZE),
        ({}, SIZE, QueueError.HEAD),
        ({"tail": SIZE}, 0, QueueError.TAIL),
    ],
)
def test_registers_checked(registers, head, kind):
    """With wrong registers it does not start: one error, ``failed``, no read; with right ones it then does."""

    async def scenario(b):
        await b.write(REG.RDH, head)
        right = {name: getattr(b, name) for name in registers}
        for name, value in registers.items():
            setattr(b, name, value)
        await b.enable()
        await b.cycles(10)
        assert b.errors == [kind] and b.get("failed") and b.get("disabled") and b.get("quiet")
        assert not b.enabled and not b.reads and not b.taken
        for name, value in right.items():
            setattr(b, name, value)
        b.tail = 4
        await b.write(REG.RDH, 0)
        await b.enable()
        await b.until(lambda: b.written == 4)
        assert b.get("running") and not b.get("failed") and len(b.errors) == 1

    Bench().run(scenario)


@pytest.mark.parametrize("kind", [QueueError.TAIL, QueueError.DESCRIPTOR])
def test_error_while_running(kind):
    """An error stops the queue, but what has been finished is written back before ENABLE reads 0."""

    async def scenario(b):
        b.tail = 4
        await b.enable()
        await b.until(lambda: len(b.taken) == 2)
        if kind == QueueError.TAIL:
            b.tail = SIZE
        else:
            b.status, b.tail = TlpStatus.UNSUPPORTED_REQUEST, 12
        await b.until(lambda: b.errors)
        await b.until(lambda: not b.enabled)
        assert set(b.errors) == {kind} and b.get("failed") and b.get("disabled")
        assert b.written == b.finished == len(b.taken) == b.head and not b.reads

    Bench(busy=0.8, ready=0.5).run(scenario)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_disable(seed, reset):
    """Disabled at any time: reads are waited for, and every descriptor taken is written back; then it starts again."""
    bench = Bench(seed=seed, ready=0.4, busy=0.6)

    async def scenario(b):
        for _ in range(6):
            b.tail = (b.head + 11) % SIZE
            await b.enable()
            await b.cycles(b.random.randrange(3, 60))
            if reset:
                b.resetting = 1
            else:
                await b.enable(False)
            await b.until(lambda: not b.enabled)
            assert not b.reads, "a read is in flight"
            assert b.written == b.finished == len(b.taken) and b.head == b.written % SIZE
            b.resetting = 0
        assert b.taken == [0x1000 * (n % SIZE) for n in range(len(b.taken))] and len(b.taken) > 8
        assert not b.errors

    bench.run(scenario)


def test_ring_above_4_gib():
    """RDBAH is bits 63:32 of the ring's base."""

    async def scenario(b):
        b.base_high, b.serving = 0x12, False
        await b.enable()
        await b.cycles(2)
        assert b.ctx.get(b.queue.fetch.ring.base) == 0x12 << 32 | BASE

    Bench().run(scenario)


def test_exhausted():
    """The ring is empty once every descriptor before the tail has been taken, not before."""

    async def scenario(b):
        b.tail, b.serving = 2, False
        await b.enable()
        await b.cycles(20)
        assert not b.get("exhausted")
        b.serving = True
        await b.until(lambda: b.written == 2)
        assert b.get("exhausted")
        b.tail = 3
        await b.step()
        assert not b.get("exhausted")

    Bench().run(scenario)
