"""The receive DMA by itself, under random back-pressure."""

import random

import pytest

from hw.bus.tlp import TlpType
from hw.config import load_machine
from hw.nic.drop import DropReason
from hw.nic.rx_dma import RxDma
from tests.hw.simulate import simulate

MACS = bytes(12)
UDP = MACS + b"\x08\x00\x45" + bytes(8) + b"\x11"
OTHER = MACS + b"\x12\x34"
KIB = 1024


def payload(rng, size, header=OTHER):
    """A packet of ``size`` bytes that begins with ``header``, padded with zeroes so far as it is looked at."""
    return (header + bytes(64 - len(header)) + rng.randbytes(size))[:size]


def queue_of(packet):
    return packet % 3


def beats(raw, packet):
    """What the packet buffer offers of a packet."""
    return [
        {
            "data": int.from_bytes(raw[at : at + 64], "little"),
            "first": at == 0,
            "last": at + 64 >= len(raw),
            "length": len(raw),
            "packet": packet,
            "rss": {"queue": queue_of(packet)},
        }
        for at in range(0, len(raw), 64)
    ]


class Bench:
    """The streams around a DMA, each ready or valid with some probability; records what went through."""

    def __init__(self, *, seed=1, offer=1.0, ready=1.0, give=1.0, finish=1.0, **inputs):
        self.dma = RxDma(load_machine("tiny", ()))
        self.random = random.Random(seed)
        self.offer, self.ready, self.give, self.finish = offer, ready, give, finish
        self.inputs = {"buffer_kib": 1, "running": 1, "master": 1, **inputs}
        self.beats, self.buffers = [], []  # still to be offered
        self.taken, self.finished, self.drops = [], [], []
        self.memory, self.payloads = {}, []  # (cycle, address, packet) of each TLP's first beat
        self.cycle = self.unserved = 0
        self.held = 0  # descriptors taken, not finished
        self._stall = {"packets": False, "descriptor": False}
        self._queue = 0  # of the packet that took the last descriptor
        self._open = False  # a TLP has begun and not ended

    def queue(self, raw, packet):
        self.beats += beats(raw, packet)

    def run(self, scenario):
        async def bench(ctx):
            self.ctx = ctx
            await scenario(self)

        simulate(self.dma, bench)

    async def until(self, condition, limit=30000):
        last = self.cycle + limit
        while not condition():
            assert self.cycle < last, "waited in vain"
            await self.step()

    async def cycles(self, count):
        for _ in range(count):
            await self.step()

    def _offer(self, name, waiting, chance):
        """Offer the first of ``waiting``; what has been offered stays."""
        self._stall[name] = bool(waiting) and (self._stall[name] or self.random.random() < chance)
        port = getattr(self.dma, name)
        self.ctx.set(port.valid, self._stall[name])
        if waiting:
            self.ctx.set(port.payload, waiting[0])

    def _through(self, name):
        port = getattr(self.dma, name)
        return self.ctx.get(port.valid) and self.ctx.get(port.ready)

    async def step(self):
        """One cycle."""
        ctx, dma = self.ctx, self.dma
        for name, value in self.inputs.items():
            ctx.set(getattr(dma, name), value)
        self._offer("packets", self.beats, self.offer)
        self._offer("descriptor", [{"address": address} for address in self.buffers], self.give)
        ctx.set(dma.send.ready, self.random.random() < self.ready)
        ctx.set(dma.finished.ready, self.random.random() < self.finish)
        through = {name for name in ("packets", "descriptor", "send", "finished") if self._through(name)}
        dropped = ctx.get(dma.drop.valid)
        holding = ctx.get(dma.holding)
        if self.inputs.get("resetting") and not holding:
            self.held = 0  # a reset gives up the buffer in progress
        assert holding == bool(self.held)
        if ctx.get(dma.quiet):
            assert not through and not dropped and not ctx.get(dma.send.valid) and ctx.get(dma.caught_up)
        if ctx.get(dma.caught_up):
            assert not self.held and not ctx.get(dma.finished.valid) and "descriptor" not in through
        if "send" in through:
            self._collect(ctx.get(dma.send.payload))
        if "finished" in through:
            done = ctx.get(dma.finished.payload)
            at = self.taken[-1]
            assert not self._open and all(at + i in self.memory for i in range(done.length)), "before its payload"
            assert ctx.get(dma.finishing) == queue_of(done.packet)
            self.finished.append((self.cycle, at, done))
            self.held -= 1
        if dropped:
            assert ctx.get(dma.finishing) == queue_of(ctx.get(dma.drop.fields["packet"]))
            reason = DropReason(ctx.get(dma.drop.fields["reason"]))
            self.drops.append((ctx.get(dma.drop.fields["packet"]), reason))
        unserved = ctx.get(dma.unserved)
        assert unserved == bool(dropped and reason != DropReason.RESET)
        self.unserved += unserved
        if "packets" in through:
            self.beats.pop(0)
            self._stall["packets"] = False
        if "descriptor" in through:
            # Of the packet that waits, or of the one that goes on in its next buffer.
            first = bool(self.beats) and self.beats[0]["first"]
            self._queue = queue_of(self.beats[0]["packet"]) if first else self._queue
            assert ctx.get(dma.queue) == self._queue
            self.taken.append(self.buffers.pop(0))
            self._stall["descriptor"] = False
            self.held += 1
        await ctx.tick("nic")
        self.cycle += 1

    def _collect(self, beat):
        assert beat.header.kind == TlpType.MEMORY_WRITE and beat.first == (not self._open)
        if beat.first:
            self.payloads.append((self.cycle, beat.header.address, beat.header.packet))
            self._at, self._left = beat.header.address, beat.header.length
        lane = self._at % 64
        size = min(64 - lane, self._left)
        for i, octet in enumerate(beat.data.to_bytes(64, "little")[lane : lane + size]):
            assert self._at + i not in self.memory, "written twice"
            self.memory[self._at + i] = octet
        self._at, self._left = self._at + size, self._left - size
        self._open = not beat.last
        assert beat.last == (self._left == 0)

    def bytes_at(self, address, size):
        return bytes(self.memory[address + i] for i in range(size))


@pytest.mark.parametrize(
    ("kib", "offer", "ready", "give", "finish"),
    [(1, 1.0, 1.0, 1.0, 1.0), (1, 0.5, 0.3, 0.2, 0.5), (2, 0.9, 0.8, 0.05, 0.1)],
)
def test_random(kib, offer, ready, give, finish):
    """Packets fill as many buffers as they need, in order; a buffer is finished after its last byte has been sent."""
    bench = Bench(seed=kib + int(10 * ready), offer=offer, ready=ready, give=give, finish=finish, buffer_kib=kib)
    rng, limit = random.Random(5), kib * KIB
    sizes = [60, 64, 65, limit - 1, limit, limit + 1, 2 * limit, 2 * limit + 64]
    sizes += [rng.randrange(60, 700) for _ in range(25)]
    packets = [(payload(rng, size, header), header) for size in sizes for header in [rng.choice([UDP, OTHER])]]

    async def scenario(b):
        for packet, (raw, _) in enumerate(packets, 1):
            b.queue(raw, packet)
        b.buffers = [0x10_0000 * slot + rng.choice([0, 64, rng.randrange(4096)]) for slot in range(1, 60)]
        given = list(b.buffers)
        await b.until(lambda: sum(done.eop for *_, done in b.finished) == len(packets))
        await b.cycles(3)
        assert b.ctx.get(b.dma.idle) and b.ctx.get(b.dma.quiet) and not b.drops
        assert [at for _, at, _ in b.finished] == given[: len(b.finished)]
        left = list(b.finished)
        for packet, (raw, header) in enumerate(packets, 1):
            for begin in range(0, len(raw), limit):
                _, at, done = left.pop(0)
                part = raw[begin : begin + limit]
                assert (done.packet, done.length, done.eop) == (packet, len(part), begin + limit >= len(raw))
                assert (done.packet_type.ipv4, done.packet_type.udp) == ((1, 1) if header is UDP else (0, 0))
                assert b.bytes_at(at, len(part)) == part
        assert not left and len(b.memory) == sum(sizes)

    bench.run(scenario)


def test_two_cycles():
    """A packet of one beat into an aligned buffer takes two cycles: the next one starts as it is finished."""

    async def scenario(b):
        for packet in range(1, 9):
            b.queue(payload(b.random, 60), packet)
            b.buffers.append(0x1000 * packet)
        await b.until(lambda: len(b.finished) == 8)
        assert [cycle for cycle, *_ in b.finished] == [2 + 2 * n for n in range(8)]
        assert [cycle for cycle, *_ in b.payloads] == [2 + 2 * n for n in range(8)]

    Bench().run(scenario)


@pytest.mark.parametrize(
    ("inputs", "buffers", "reason"),
    [
        ({"resetting": 1}, [0x1000], DropReason.RESET),
        ({"resetting": 1, "running": 0}, [0x1000], DropReason.RESET),
        ({"running": 0}, [0x1000], DropReason.QUEUE_DISABLED),
        ({"running": 0, "may_drop": 1}, [], DropReason.QUEUE_DISABLED),
        ({"running": 0, "failed": 1}, [0x1000], DropReason.DMA_ERROR),
        ({"may_drop": 1}, [], DropReason.NO_DESCRIPTOR),
    ],
)
@pytest.mark.parametrize("size", [60, 64, 65, 1500])
def test_drop(inputs, buffers, reason, size):
    """A packet that cannot be received is thrown away whole, with its reason, and takes no descriptor."""

    async def scenario(b):
        b.buffers = list(buffers)
        for packet in (7, 8):
            b.queue(payload(b.random, size), packet)
        await b.until(lambda: not b.beats)
        await b.cycles(3)
        assert b.drops == [(7, reason), (8, reason)] and b.buffers == buffers
        assert not b.memory and not b.finished
        assert b.unserved == (0 if reason == DropReason.RESET else 2)
        b.inputs |= {"resetting": 0, "running": 1, "failed": 0, "may_drop": 0}
        b.buffers = [0x4000]
        b.queue(payload(b.random, 60), 9)
        await b.until(lambda: b.finished)
        assert b.finished[0][2].packet == 9 and len(b.drops) == 2

    Bench(offer=0.7, **inputs).run(scenario)


def test_waits_for_descriptor():
    """Without leave to drop a packet waits, quiet; with it, it still waits once its first buffer has been filled."""

    async def scenario(b):
        raw = payload(b.random, 1500)
        b.queue(raw, 1)
        await b.cycles(20)
        assert not b.drops and b.ctx.get(b.dma.quiet) and b.ctx.get(b.dma.idle)
        b.buffers = [0x1000]
        await b.cycles(1)
        b.inputs["may_drop"] = 1
        await b.until(lambda: b.finished)
        await b.cycles(20)
        assert not b.drops and b.ctx.get(b.dma.quiet) and not b.ctx.get(b.dma.idle)
        b.buffers = [0x8000]
        await b.until(lambda: len(b.finished) == 2)
        assert b.bytes_at(0x1000, KIB) + b.bytes_at(0x8000, 1500 - KIB) == raw and not b.drops

    Bench().run(scenario)


def test_master():
    """Without bus mastering no packet starts, but one that has started goes on into its next buffers."""

    async def scenario(b):
        b.inputs["master"] = 0
        b.buffers = [0x1000, 0x8000, 0x10000]
        b.queue(payload(b.random, 1500), 1)
        b.queue(payload(b.random, 60), 2)
        await b.cycles(10)
        assert not b.taken and not b.drops and b.ctx.get(b.dma.quiet)
        b.inputs["master"] = 1
        await b.until(lambda: b.taken)
        b.inputs["master"] = 0
        await b.until(lambda: len(b.finished) == 2)
        await b.cycles(10)
        assert len(b.taken) == 2 and b.ctx.get(b.dma.idle) and not b.drops

    Bench().run(scenario)


def test_reset():
    """A reset ends a packet behind the TLP in progress: a drop, and no descriptor finished."""

    async def scenario(b):
        b.buffers = [0x1000, 0x8000]
        b.queue(payload(b.random, 1000), 1)
        await b.until(lambda: len(b.payloads) == 2)
        b.inputs["resetting"] = 1
        await b.until(lambda: b.drops)
        assert b.drops == [(1, DropReason.RESET)] and not b.finished and not b.unserved
        assert not b._open and len(b.memory) < 1000 and len(b.memory) % b.dma.writer.mps == 0
        assert not b.beats and b.buffers == [0x8000]
        b.inputs["resetting"] = 0
        raw = payload(b.random, 100)
        b.queue(raw, 2)
        await b.until(lambda: b.finished)
        assert b.bytes_at(0x8000, 100) == raw and len(b.drops) == 1

    Bench(ready=0.5).run(scenario)
