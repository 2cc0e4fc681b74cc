"""The register file by itself against a model of its registers, under random gaps and back-pressure."""

import random

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.bus.tlp import TlpStatus, TlpType
from hw.memory_map import BAR0_BASE, BAR0_BYTES, BAR3_BASE, BAR3_BYTES
from hw.nic.register_file import RegisterFile
from hw.nic.registers import REG, REGISTERS, STORAGE_BYTES, Keeper

QUEUES, VECTORS = 3, 2


def table_word(offset):
    """What the MSI-X table holds in these tests."""
    return (offset * 0x9E37_79B1 + 1) & 0xFFFF_FFFF


class Model:
    """Registers as software sees them."""

    def __init__(self, registers: RegisterFile):
        self.live = {o: (r, i, name) for r, i, name in registers.live for o in r.offsets(i)}
        self.block = {name: 0 for r, _, name in registers.live if r.keeper is Keeper.BLOCK}
        self.reset()

    def reset(self):
        stored = [r for r in REGISTERS.values() if r.keeper is Keeper.STORAGE]
        self.storage = {o: r.reset_value(i) for r in stored for i in range(r.count) for o in r.offsets(i)}
        live = self.live.values()
        self.file = {name: r.reset_value(i) for r, i, name in live if r.keeper is Keeper.FILE}

    def read(self, offset):
        if offset in self.live:
            name = self.live[offset][2]
            return self.block[name] if name in self.block else self.file[name]
        return self.storage.get(offset, 0) if offset < STORAGE_BYTES else 0

    def write(self, offset, word):
        if offset in self.live:
            register, _, name = self.live[offset]
            if name in self.file:
                keep = register.read_only
                self.file[name] = (word & ~keep & 0xFFFF_FFFF) | (self.file[name] & keep)
        elif offset < STORAGE_BYTES:
            self.storage[offset] = word


class Bench:
    """Sends requests and takes completions, and records what goes over the bus and the probes."""

    def __init__(self, seed=0, gap=0.0, ready=1.0):
        self.dut = RegisterFile(QUEUES, VECTORS)
        self.model = Model(self.dut)
        self.rng, self.gap, self.ready = random.Random(seed), gap, ready
        self.bus, self.probed, self.cycle = [], [], 0

    def run(self, bench):
        m = Module()
        m.domains.nic = ClockDomain("nic", reset_less=True)
        m.submodules.dut = dut = self.dut
        m.d.comb += dut.table_data.eq(dut.bus.offset * 0x9E37_79B1 + 1)
        sim = Simulator(m)
        sim.add_clock(1e-9, domain="nic")
        sim.add_testbench(bench)
        sim.run()

    async def tick(self, ctx):
        dut, bus = self.dut, self.dut.bus
        for kind, strobe, probe in (("write", bus.write, dut.write), ("read", bus.read, dut.read)):
            assert ctx.get(strobe) == ctx.get(probe.valid)
            if ctx.get(strobe):
                offset, table = ctx.get(bus.offset), ctx.get(bus.table)
                self.bus.append((self.cycle, kind, table, offset, ctx.get(bus.data) if kind == "write" else None))
                address = (BAR3_BASE if table else BAR0_BASE) + offset
                assert ctx.get(probe.fields["address"]) == address
                self.probed.append((kind, address, ctx.get(probe.fields["data"])))
        assert not ctx.get(bus.write & bus.read)
        await ctx.tick("nic")
        self.cycle += 1

    async def request(self, ctx, kind, address, length, data=0, tag=0, packet=0, reset=False):
        """Offer a request until it is taken; return the cycle whose edge took it. The data lie in their lanes."""
        stream, rng = self.dut.request, self.rng
        while rng.random() < self.gap:
            await self.tick(ctx)
        header = {"kind": kind, "address": address, "length": length, "tag": tag, "packet": packet}
        for at in range(0, length if kind == TlpType.MEMORY_WRITE else 1, 64):
            # Lanes beside the data hold anything
            lane, size = address % 64 * 8, min(length, 64) * 8
            mask = ((1 << size) - 1) << lane & (1 << 512) - 1
            lanes = (rng.getrandbits(512) & ~mask) | (data << lane & mask)
            last = kind == TlpType.MEMORY_READ or at + 64 >= length
            ctx.set(stream.payload, {"header": header, "data": lanes, "first": at == 0, "last": last})
            ctx.set(stream.valid, 1)
            while not ctx.get(stream.ready):
                await self.tick(ctx)
            assert not ctx.get(self.dut.quiet)
            await self.tick(ctx)
            ctx.set(stream.valid, 0)
        return self.cycle - 1

    async def complete(self, ctx):
        """Take a completion, which stays as it is until then; return its first cycle and its beat."""
        stream = self.dut.completion
        while not ctx.get(stream.valid):
            assert not ctx.get(self.dut.quiet)
            ctx.set(stream.ready, self.rng.random() < self.ready)
            await self.tick(ctx)
        since, beat = self.cycle, ctx.get(stream.payload).as_bits()
        while True:
            ctx.set(stream.ready, self.rng.random() < self.ready)
            assert ctx.get(stream.valid) and ctx.get(stream.payload).as_bits() == beat
            assert not ctx.get(self.dut.quiet) and not ctx.get(self.dut.request.ready)
            done, result = ctx.get(stream.ready), ctx.get(stream.payload)
            await self.tick(ctx)
            if done:
                ctx.set(stream.ready, 0)
                assert not ctx.get(stream.valid)
                return since, result

    async def idle(self, ctx):
        """Let the access in hand end."""
        while not ctx.get(self.dut.request.ready):
            await self.tick(ctx)

    async def read(self, ctx, address, length=4):
        """Read and check the completion's header; its data, or None when the request is not supported."""
        tag, packet = self.rng.getrandbits(8), self.rng.getrandbits(16)
        await self.request(ctx, TlpType.MEMORY_READ, address, length, tag=tag, packet=packet)
        _, beat = await self.complete(ctx)
        header = beat.header
        assert (header.kind, header.address, header.tag) == (TlpType.COMPLETION, address, tag)
        assert (header.length, header.remaining, header.packet) == (length, length, packet)
        assert beat.first and beat.last
        if header.status != TlpStatus.SUCCESS:
            assert header.status == TlpStatus.UNSUPPORTED_REQUEST
            return None
        return beat.data >> address % 64 * 8 & (1 << 8 * length) - 1

    async def write(self, ctx, address, data, length=4):
        await self.request(ctx, TlpType.MEMORY_WRITE, address, length, data)

    async def reset(self, ctx):
        ctx.set(self.dut.reset, 1)
        assert not ctx.get(self.dut.quiet)
        await self.tick(ctx)
        ctx.set(self.dut.reset, 0)
        self.model.reset()


def offsets(model, rng):
    """A few offsets of every sort, so that accesses meet."""
    stored = [o for o in model.storage if o not in model.live]
    anywhere = [o for o in range(0x1_8000, STORAGE_BYTES, 4) if o not in model.live]
    beyond = [STORAGE_BYTES, STORAGE_BYTES + 4, BAR0_BYTES - 8, BAR0_BYTES - 4]
    return [*rng.sample(list(model.live), 40), *stored, *rng.sample(anywhere, 8), STORAGE_BYTES - 4, *beyond]


@pytest.mark.parametrize(("gap", "ready"), [(0.0, 1.0), (0.6, 0.3), (0.1, 0.05)])
def test_random(gap, ready):
    """Accesses and resets at random: every read gives what the model holds, every access is seen once on the bus."""
    bench = Bench(int(ready * 100), gap, ready)
    dut, model, rng = bench.dut, bench.model, bench.rng

    async def run(ctx):
        pool, expected = offsets(model, rng), []
        for _ in range(350):
            for name in rng.sample(list(model.block), 4):
                model.block[name] = rng.getrandbits(32)
                ctx.set(getattr(dut, name), model.block[name])
            offset, length = rng.choice(pool), rng.choice([4, 8])
            table = rng.random() < 0.15
            if table:
                offset = rng.randrange(0, BAR3_BYTES, 4)
            offset &= -length
            parts = range(offset, offset + length, 4)
            address = (BAR3_BASE if table else BAR0_BASE) + offset
            if rng.random() < 0.5:
                words = [rng.getrandbits(32) for _ in parts]
                await bench.write(ctx, address, sum(w << 32 * i for i, w in enumerate(words)), length)
                await bench.idle(ctx)
                for at, word in zip(parts, words, strict=True):
                    expected.append(("write", address - offset + at, word))
                    if not table:
                        model.write(at, word)
            else:
                words = [table_word(at) if table else model.read(at) for at in parts]
                got = await bench.read(ctx, address, length)
                assert got == sum(w << 32 * i for i, w in enumerate(words)), hex(address)
                expected += [("read", address - offset + at, w) for at, w in zip(parts, words, strict=True)]
            for name, value in model.file.items():
                assert ctx.get(getattr(dut, name).value) == value, name
            if rng.random() < 0.03:
                await bench.reset(ctx)
            assert ctx.get(dut.quiet)
        assert bench.probed == expected
        assert [(k, (BAR3_BASE if t else BAR0_BASE) + o) for _, k, t, o, _ in bench.bus] == [e[:2] for e in expected]
        assert [d for *_, d in bench.bus if d is not None] == [d for k, _, d in expected if k == "write"]
        assert ctx.get(dut.writes.value) == sum(k == "write" for k, *_ in expected) > 100
        assert ctx.get(dut.reads.value) == sum(k == "read" for k, *_ in expected) > 100
        assert ctx.get(dut.unsupported.value) == 0

    bench.run(run)


@pytest.mark.parametrize("length", [4, 8])
def test_latency(length):
    """The access is at edge t + 2 (and t + 4), the completion offered after the last one and not before."""
    bench = Bench()
    accesses = [2, 4][: length // 4]

    async def run(ctx):
        address = BAR0_BASE + REG.RDBAL.offset(0)
        taken = await bench.request(ctx, TlpType.MEMORY_READ, address, length)
        since, _ = await bench.complete(ctx)
        assert [cycle - taken for cycle, *_ in bench.bus] == accesses
        assert since - taken == accesses[-1] + 1
        bench.bus.clear()
        taken = await bench.request(ctx, TlpType.MEMORY_WRITE, address, length, 1)
        await bench.idle(ctx)
        assert [cycle - taken for cycle, *_ in bench.bus] == accesses
        assert bench.cycle - taken == accesses[-1] + 1
        assert ctx.get(bench.dut.quiet) and not ctx.get(bench.dut.completion.valid)

    bench.run(run)


def test_unsupported():
    """Accesses of another size, unaligned or outside the BARs: reads are refused, writes dropped, both counted."""
    bench = Bench(3, 0.3, 0.4)
    eiac = BAR0_BASE + REG.EIAC.offset()
    wrong = [(eiac, size) for size in (1, 2, 3, 5, 12, 16)]
    wrong += [(eiac + 1, 4), (eiac + 2, 4), (eiac + 4, 8), (eiac + 4, 16), (BAR0_BASE, 64), (BAR0_BASE, 128)]
    wrong += [(base, 4) for base in (BAR0_BASE - 4, BAR0_BASE + BAR0_BYTES, BAR3_BASE - 4, BAR3_BASE + BAR3_BYTES, 0)]

    async def run(ctx):
        await bench.write(ctx, eiac, 0x1234_5678)
        await bench.idle(ctx)
        bench.bus.clear()
        for number, (address, length) in enumerate(wrong):
            assert await bench.read(ctx, address, length) is None
            await bench.write(ctx, address, (1 << 8 * length) - 1, length)
            await bench.idle(ctx)
            assert not ctx.get(bench.dut.completion.valid) and ctx.get(bench.dut.quiet)
            assert ctx.get(bench.dut.unsupported.value) == 2 * number + 2
        assert not bench.bus
        # What follows is served as ever
        assert await bench.read(ctx, eiac) == 0x1234_5678
        assert await bench.read(ctx, BAR0_BASE) == 0

    bench.run(run)


def test_read_only_bits():
    bench = Bench()

    async def run(ctx):
        for register in (REG.EEC, REG.RDRXCTL):
            address = BAR0_BASE + register.offset()
            for word in (0, 0xFFFF_FFFF, 0x5555_5555):
                await bench.write(ctx, address, word)
                kept = register.read_only
                assert await bench.read(ctx, address) == (word & ~kept) | (register.reset & kept)

    bench.run(run)


def test_aliases():
    """A register written at one of its addresses is read at the others."""
    bench = Bench(5)

    async def run(ctx):
        aliased = [(r, i) for r, i, _ in bench.dut.live if r.keeper is Keeper.FILE and len(r.offsets(i)) > 1]
        assert len(aliased) >= 3 + QUEUES - 1
        for register, index in aliased:
            for at in register.offsets(index):
                word = bench.rng.getrandbits(32)
                await bench.write(ctx, BAR0_BASE + at, word)
                for other in register.offsets(index):
                    assert await bench.read(ctx, BAR0_BASE + other) == word

    bench.run(run)


def test_reset():
    """Words of earlier epochs are forgotten, those written after a reset are kept, over several resets."""
    bench = Bench(4)
    free, other, pbsize = 0x1_9000, 0x1_9004, REG.RXPBSIZE.offset()

    async def run(ctx):
        for _ in range(4):
            assert await bench.read(ctx, BAR0_BASE + free) == 0
            assert await bench.read(ctx, BAR0_BASE + pbsize) == REG.RXPBSIZE.reset_value()
            assert await bench.read(ctx, BAR0_BASE + REG.MAXFRS.offset()) == REG.MAXFRS.reset
            for at in (free, pbsize, REG.MAXFRS.offset()):
                word = bench.rng.getrandbits(32)
                await bench.write(ctx, BAR0_BASE + at, word)
                assert await bench.read(ctx, BAR0_BASE + at) == word
            assert await bench.read(ctx, BAR0_BASE + other) == 0
            await bench.idle(ctx)
            await bench.reset(ctx)

    bench.run(run)


@pytest.mark.parametrize("offset", [0x1_9000, REG.EIAC.offset()])
@pytest.mark.parametrize("edge", range(5))
def test_reset_during_write(offset, edge):
    """Of a write of 8 bytes, the words accessed before the reset or at its edge are lost, later ones stay."""
    bench = Bench()

    async def run(ctx):
        await bench.write(ctx, BAR0_BASE + offset, 0x2222_2222_1111_1111, 8)  # at edges 2 and 4 after this one
        for _ in range(edge):
            await bench.tick(ctx)
        await bench.reset(ctx)
        await bench.idle(ctx)
        low = 0x1111_1111 if edge + 1 < 2 else 0
        high = 0x2222_2222 if edge + 1 < 4 else 0
        assert await bench.read(ctx, BAR0_BASE + offset, 8) == high << 32 | low

    bench.run(run)


@pytest.mark.parametrize(("queues", "vectors"), [(0, 1), (1, 0)])
def test_bad_parameters(queues, vectors):
    with pytest.raises(ValueError, match=f"not {queues} and {vectors}"):
        RegisterFile(queues, vectors)
