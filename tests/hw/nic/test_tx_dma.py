"""The transmit DMA with its packet buffer: where bytes go, what is finished when, and how fast."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring

from hw.bus.tlp import TlpStatus, TlpType
from hw.config import load_machine
from hw.nic.drop import TransmitDropReason
from hw.nic.layouts import TxKind
from hw.nic.tx_buffer import TransmitBuffer
from hw.nic.tx_dma import TxDma
from tests.hw.simulate import simulate


class Pair(wiring.Component):
    """The DMA and the buffer it fills; the ports of the first, and the output of the second."""

    def __init__(self, config):
        self.dma = TxDma(config)
        self.buffer = TransmitBuffer(config.nic.tx_packet_buffer_kib)
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.dma, m.submodules.buffer = self.dma, self.buffer
        wiring.connect(m, self.dma.store, self.buffer.store)
        wiring.connect(m, self.dma.commit, self.buffer.commit)
        m.d.comb += self.dma.freed.eq(self.buffer.freed)
        return m


class Bench:
    """Queues of descriptors, memory behind the reads, a MAC that takes beats; each ready with some probability.

    Arguments:
        latency: least and most cycles from a read to its first completion.
        shuffle: completions of different reads come in any order, else in the order of the reads.
    """

    def __init__(self, *settings, seed=1, latency=(5, 30), shuffle=True, ready=1.0, finish=1.0, mac=1.0):
        self.config = load_machine("tiny", settings)
        self.pair = Pair(self.config)
        self.dma, self.buffer = self.pair.dma, self.pair.buffer
        self.random = random.Random(seed)
        self.latency, self.shuffle, self.ready, self.finish, self.mac = latency, shuffle, ready, finish, mac
        self.queues = [[] for _ in range(self.dma.queues)]
        self.memory = random.Random(99).randbytes(1 << 16)
        self.inputs = {"enable": 1, "master": 1, "running": (1 << self.dma.queues) - 1}
        self.flying = []  # [due, address, left, tag]
        self.finished = [[] for _ in self.queues]
        self.out, self.unsent, self.reads, self.commits, self.sent = [], [], [], [], []
        self.cycle, self.partial, self._completion = 0, b"", None
        self.refuse = set()  # addresses

    def put(self, queue, *parts, **fields):
        """A packet of ``parts`` (address, length)."""
        for n, (address, length) in enumerate(parts):
            last = n + 1 == len(parts)
            given = {"address": address, "length": length, "eop": last, "report": last, "kind": TxKind.DATA}
            self.queues[queue].append(given | {"insert_fcs": 1} | fields)

    def run(self, scenario):
        async def bench(ctx):
            self.ctx = ctx
            await scenario(self)

        simulate(self.pair, bench)
        return self

    async def until(self, condition, limit=20000):
        last = self.cycle + limit
        while not condition():
            assert self.cycle < last, "waited in vain"
            await self.step()

    async def step(self):
        """One cycle."""
        ctx, dma, rng = self.ctx, self.dma, self.random
        for name, value in self.inputs.items():
            ctx.set(getattr(dma, name), value)
        for waiting, port in zip(self.queues, dma.descriptor, strict=True):
            ctx.set(port.valid, bool(waiting))
            if waiting:
                ctx.set(port.payload, waiting[0])
        ctx.set(dma.read.ready, rng.random() < self.ready)
        for port in dma.finished:
            ctx.set(port.ready, rng.random() < self.finish)
        ctx.set(self.buffer.output.ready, rng.random() < self.mac)
        self._offer_completion()
        quiet = ctx.get(dma.quiet) and ctx.get(self.buffer.quiet)
        happened = self._look()
        assert not (quiet and happened)
        await ctx.tick("nic")
        self.cycle += 1

    def _offer_completion(self):
        due = [f for f in self.flying if f[0] <= self.cycle]
        if self._completion is None and due:
            self._completion = self.random.choice(due) if self.shuffle else due[0]
        self.ctx.set(self.dma.completion.valid, self._completion is not None)
        if self._completion is not None:
            _, address, left, tag = self._completion
            refused = address in self.refuse
            size = left if refused else min(left, 64 - address % 64)
            status = TlpStatus.UNSUPPORTED_REQUEST if refused else TlpStatus.SUCCESS
            header = {"kind": TlpType.COMPLETION, "status": status, "address": address, "length": size}
            header |= {"remaining": left, "tag": tag}
            line = int.from_bytes(self.memory[address : address + size], "little") << 8 * (address % 64)
            self.ctx.set(self.dma.completion.payload, {"header": header, "data": line, "first": 1, "last": 1})
            self._size = size

    def _look(self):
        ctx, dma = self.ctx, self.dma
        happened = False
        for index, (waiting, port) in enumerate(zip(self.queues, dma.descriptor, strict=True)):
            if ctx.get(port.valid) and ctx.get(port.ready):
                waiting.pop(0)
                happened = True
            port = dma.finished[index]
            if ctx.get(port.valid) and ctx.get(port.ready):
                done = ctx.get(port.payload)
                self.finished[index].append((self.cycle, done.packet, done.report))
                happened = True
        if ctx.get(dma.read.valid) and ctx.get(dma.read.ready):
            header = ctx.get(dma.read.payload.header)
            self.reads.append((self.cycle, header.address, header.length))
            due = self.cycle + self.random.randint(*self.latency)
            assert header.tag not in {f[3] for f in self.flying}
            self.flying.append([due, header.address, header.length, header.tag])
        if ctx.get(dma.completion.valid) and ctx.get(dma.completion.ready):
            answer, self._completion = self._completion, None
            answer[1] += self._size
            answer[2] -= self._size
            if not answer[2]:
                self.flying.remove(answer)
            self.last_completion = self.cycle
            happened = True
        if ctx.get(dma.commit.valid):
            self.commits.append(self.cycle)
            happened = True
        if ctx.get(dma.sent):
            self.sent.append((ctx.get(dma.sent), ctx.get(dma.sent_length)))
        if ctx.get(dma.unsent.valid):
            fields = {name: ctx.get(signal) for name, signal in dma.unsent.fields.items()}
            self.unsent.append((fields["packet"], TransmitDropReason(fields["reason"])))
            happened = True
        output = self.buffer.output
        if ctx.get(output.valid) and ctx.get(output.ready):
            beat = ctx.get(output.payload)
            assert beat.first == (not self.partial)
            self.partial += beat.data.to_bytes(64, "little")
            if beat.last:
                self.out.append((beat.packet, self.partial[: beat.length]))
                assert len(self.partial) - 64 < beat.length <= len(self.partial)
                self.partial = b""
            happened = True
        return happened

    def bytes_of(self, parts):
        return b"".join(self.memory[address : address + length] for address, length in parts)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (("nic.payload_reads=2",), {"ready": 0.3, "finish": 0.5}),
        (("pcie.mrrs=512", "nic.payload_reads=8", "nic.queues=3"), {"latency": (1, 200), "mac": 0.3}),
        (("nic.payload_reads=16", "nic.tx_packet_buffer_kib=1", "nic.max_frame=512"), {"mac": 0.1, "finish": 0.2}),
    ],
)
def test_random(settings, shape):
    """Packets of any parts at any place, completions in any order: whole, in order, finished in order."""
    bench = Bench(*settings, seed=3, **shape)
    rng, most = random.Random(8), bench.config.nic.max_frame - 4
    packets = []
    for _ in range(40):
        left, parts = rng.choice([1, 60, 64, 65, 128, rng.randint(1, most), most]), []
        while left:
            size = rng.choice([left, rng.randint(0, left)])
            parts.append((rng.randrange(0, (1 << 16) - size), size))
            left -= size
        queue = rng.randrange(bench.dma.queues)
        packets.append((queue, parts))
        bench.put(queue, *parts)

    async def scenario(b):
        await b.until(lambda: len(b.out) == len(packets))
        await b.until(lambda: b.ctx.get(b.dma.idle) and b.ctx.get(b.buffer.empty))
        assert b.ctx.get(b.dma.caught_up) == b.inputs["running"] and not b.ctx.get(b.dma.holding)

    bench.run(scenario)
    assert [packet for packet, _ in bench.out] == list(range(1, 41)) and not bench.unsent
    queue_of = {packet: q for q, done in enumerate(bench.finished) for _, packet, _ in done}
    for queue in range(bench.dma.queues):
        mine = [parts for q, parts in packets if q == queue]
        assert [raw for packet, raw in bench.out if queue_of[packet] == queue] == [bench.bytes_of(p) for p in mine]
        assert [report for *_, report in bench.finished[queue]] == [
            n + 1 == len(parts) for parts in mine for n in range(len(parts))
        ]
    for _, address, length in bench.reads:
        assert 0 < length <= bench.config.pcie.mrrs and address // 4096 == (address + length - 1) // 4096


def test_reads_are_as_long_as_they_may_be():
    bench = Bench("pcie.mrrs=512", "nic.payload_reads=16", "nic.max_frame=4000")
    bench.put(0, (4096 - 700, 1500))

    async def scenario(b):
        await b.until(lambda: b.out)

    bench.run(scenario)
    assert [(address, length) for _, address, length in bench.reads] == [
        (4096 - 700, 512),
        (4096 - 188, 188),
        (4096, 512),
        (4096 + 512, 288),
    ]


def test_timing():
    """The first read two edges after the descriptor; committed one edge after the last completion, not at it."""
    bench = Bench(latency=(7, 7), shuffle=False)
    bench.put(0, (64, 100))

    async def scenario(b):
        await b.until(lambda: b.out)
        assert b.reads == [(2, 64, 100)]
        # Two lines, into two rows: no line falls into two
        assert b.last_completion == 2 + 8 and b.commits == [b.last_completion + 1]
        assert b.finished[0] == [(b.commits[0], 1, 1)]

    bench.run(scenario)


def test_a_line_that_falls_into_two_rows_takes_two_cycles():
    bench = Bench(latency=(7, 7), shuffle=False)
    bench.put(0, (100, 100))

    async def scenario(b):
        await b.until(lambda: b.out)
        # 28 bytes; 36 of the next 64 fill the row; 8 more
        assert b.last_completion == 2 + 7 + 1 + 1 + 1 and b.commits == [b.last_completion + 1]

    bench.run(scenario)


def test_two_cycles_for_each_short_packet():
    """With reads enough under way their latency does not count, and queues take turns packet by packet."""
    bench = Bench("nic.payload_reads=64", "nic.line_gbps=100.0", latency=(60, 60), shuffle=False)
    for n in range(40):
        bench.put(n % 2, (64 * n, 60))

    async def scenario(b):
        await b.until(lambda: len(b.out) == 40)
        assert [cycle for cycle, *_ in b.reads] == [2 + 2 * n for n in range(40)]
        assert [address for _, address, _ in b.reads] == [64 * (n ^ 1) for n in range(40)]  # after queue 0 comes 1
        assert b.commits == [b.commits[0] + 2 * n for n in range(40)]

    bench.run(scenario)


def test_no_room_in_the_buffer():
    """A read waits for room for all of its bytes: not issued in the edge before a row is free, issued then."""
    bench = Bench("nic.tx_packet_buffer_kib=1", "nic.max_frame=512", "nic.payload_reads=16", mac=0.0)
    for n in range(3):
        bench.put(0, (1024 * n, 508))

    async def scenario(b):
        for _ in range(300):
            await b.step()
        # Two packets of eight rows fill sixteen; one row has been read to be offered, so two reads of 128 do not fit
        assert sum(length for *_, length in b.reads) == 2 * 508 and b.ctx.get(b.dma.quiet)
        b.mac = 1.0
        await b.step()
        assert len(b.reads) == 8 and not b.ctx.get(b.dma.quiet)
        await b.until(lambda: len(b.out) == 3)

    bench.run(scenario)


@pytest.mark.parametrize("first", [True, False])
def test_refused_reads(first):
    """One refused read spoils its packet, wherever it is in it, and no other."""
    bench = Bench("nic.payload_reads=8")
    bench.put(0, (0, 200))
    bench.put(0, (0x4000, 100), (0x8000, 100))
    bench.put(0, (300, 200))
    bench.refuse = {0x4000 if first else 0x8000}

    async def scenario(b):
        await b.until(lambda: len(b.out) == 2 and b.ctx.get(b.dma.idle))

    bench.run(scenario)
    assert bench.unsent == [(2, TransmitDropReason.READ_REFUSED)]
    assert bench.out == [(1, bench.bytes_of([(0, 200)])), (3, bench.bytes_of([(300, 200)]))]
    assert [packet for _, packet, _ in bench.finished[0]] == [1, 2, 2, 3] and bench.sent == [(1, 200), (1, 200)]


def test_a_queue_that_stops_amid_a_packet():
    """The packet is given up, what was read of it is thrown away, and the next queue's packet leaves."""
    bench = Bench()
    bench.put(0, (0, 200), (200, 100))
    second = bench.queues[0].pop()
    bench.put(1, (500, 70))

    async def scenario(b):
        b.inputs["running"] = 3
        b.queues[1], kept = [], b.queues[1]
        await b.until(lambda: b.reads and not b.queues[0])
        for _ in range(50):
            await b.step()
        assert b.ctx.get(b.dma.quiet) and b.ctx.get(b.dma.holding) == 1 and not b.unsent
        b.inputs["running"] = 2
        b.queues[1] = kept
        await b.until(lambda: b.out)
        assert b.unsent == [(1, TransmitDropReason.QUEUE_DISABLED)] and b.out[0][0] == 2
        assert not b.ctx.get(b.dma.holding) and second["eop"]

    bench.run(scenario)


def test_master_and_enable():
    """Without TE no packet is begun; without bus mastering none goes on."""
    bench = Bench()
    bench.put(0, (0, 200), (200, 100))

    async def scenario(b):
        b.inputs["enable"] = 0
        for _ in range(10):
            await b.step()
        assert not b.reads and b.ctx.get(b.dma.quiet)
        b.inputs["enable"] = 1
        await b.until(lambda: b.reads)
        b.inputs |= {"enable": 0, "master": 0}
        for _ in range(60):
            await b.step()
        assert len(b.reads) <= 2 and b.ctx.get(b.dma.idle) and b.ctx.get(b.dma.quiet)
        b.inputs["master"] = 1
        await b.until(lambda: b.out)
        assert b.out == [(1, b.bytes_of([(0, 300)]))]

    bench.run(scenario)


def test_buffer_parameters():
    with pytest.raises(ValueError, match="not 3"):
        TransmitBuffer(3)
