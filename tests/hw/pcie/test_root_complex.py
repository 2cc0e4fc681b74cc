"""Root complex: latencies, ordering against slow memory, interrupts, MMIO, what nobody claims, random traffic."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.sim import Simulator

from hw.bus.core import MmioRequest
from hw.bus.memory import MemoryOp
from hw.bus.tlp import TlpBeat, TlpStatus, TlpType
from hw.config import load_machine
from hw.lib.observe import collect
from hw.lib.probe import Counter, Probe
from hw.memory_map import BAR0_BASE, BAR0_BYTES, BAR3_BASE, BAR3_BYTES, MSI_BASE, MSI_BYTES, MSR_BASE
from hw.pcie.mmio_bridge import MmioBridge
from hw.pcie.read_engine import ReadEngine
from hw.pcie.root_complex import READ_LINES, RootComplex
from hw.uncore_registers import IIO_LLC_WAYS, PERFCTRLSTS_0, msr

MWR, MRD, CPL = TlpType.MEMORY_WRITE, TlpType.MEMORY_READ, TlpType.COMPLETION
MEBIBYTE = 1 << 20  # DRAM of ``tiny``


def beats(kind, address, length, payload=b"", tag=0, packet=0, status=TlpStatus.SUCCESS) -> list[int]:
    """The beats of a packet with ``payload`` in its byte lanes and noise in the others."""
    noise = random.Random(address + length)
    lines = (address + len(payload) - 1) // 64 - address // 64 + 1 if payload else 1
    lanes = bytearray(noise.randbytes(64 * lines))
    lanes[address % 64 : address % 64 + len(payload)] = payload
    header = {"kind": kind, "address": address, "length": length, "tag": tag, "packet": packet, "status": status}
    return [
        TlpBeat.const(
            {
                "header": {**header, "remaining": length},
                "data": int.from_bytes(lanes[64 * i : 64 * i + 64], "little"),
                "first": i == 0,
                "last": i == lines - 1,
            }
        ).as_bits()
        for i in range(lines)
    ]


def write(address, payload, packet=0):
    return beats(MWR, address, len(payload), payload, packet=packet)


def read(address, length, tag=0, packet=0):
    return beats(MRD, address, length, tag=tag, packet=packet)


def interrupt(core, vector):
    return write(MSI_BASE + (core << 12), bytes([vector, 0, 0, 0]))


@dataclass
class Sent:
    """A packet received by the card."""

    edge: int
    kind: TlpType
    address: int
    length: int
    tag: int
    remaining: int
    status: TlpStatus
    packet: int
    data: bytes


@dataclass
class Memory:
    """The last level as adverse as its contract allows: writes visible late, reads answered in any order.

    A read sees only what is visible as it is accepted. Delays are in edges.
    """

    rng: random.Random
    write_delay: tuple[int, int] = (1, 1)
    read_delay: tuple[int, int] = (1, 1)
    ready: float = 1.0
    content: bytearray = field(default_factory=lambda: bytearray(MEBIBYTE))
    writes: deque = field(default_factory=deque)  # (visible at edge, line, mask, data)
    reads: list = field(default_factory=list)  # (answered from edge, tag, packet, data)
    visible: int = 0
    seen: list = field(default_factory=list)  # (edge, op, line)

    def take(self, edge, request):
        self.seen.append((edge, request.op, request.line))
        at = request.line * 64
        assert at < len(self.content)
        if request.op == MemoryOp.WRITE:
            due = edge + self.rng.randint(*self.write_delay)
            if self.writes:
                due = max(due, self.writes[-1][0] + 1)
            self.writes.append((due, request.line, request.mask, request.data))
        else:
            due = edge + self.rng.randint(*self.read_delay)
            data = int.from_bytes(self.content[at : at + 64], "little")
            self.reads.append((due, request.tag, request.packet, data))

    def write_done(self, edge) -> bool:
        if not self.writes or self.writes[0][0] > edge:
            return False
        _, line, mask, data = self.writes.popleft()
        for lane in range(64):
            if mask >> lane & 1:
                self.content[line * 64 + lane] = data >> 8 * lane & 0xFF
        self.visible += 1
        return True

    def answer(self, edge):
        due = [r for r in self.reads if r[0] <= edge]
        if not due:
            return None
        chosen = self.rng.choice(due)
        self.reads.remove(chosen)
        return chosen


class Bench:
    """The root complex with hand-made clock; with ``skip`` it leaves out every edge that quiet allows."""

    def __init__(self, memory: Memory | None = None, skip: bool = False, settings=()):
        self.config = load_machine("tiny", settings)
        self.dut = RootComplex(self.config)
        self.memory = memory or Memory(random.Random(0))
        self.skip, self.skipped = skip, 0
        self.clock = Signal()
        m = Module()
        m.domains.uncore = uncore = ClockDomain(reset_less=True)
        m.submodules.dut = self.dut
        m.d.comb += uncore.clk.eq(self.clock)
        self.simulator = Simulator(m)
        self.to_host: deque[int] = deque()  # beats
        self.mmio: list[deque] = [deque() for _ in range(self.config.core.count)]  # (write, address, size, data)
        self.taken: list[tuple[int, int]] = []  # (edge, beat) from the card
        self.sent: list[Sent] = []  # to the card
        self.interrupts: list[tuple[int, int, int]] = []  # (edge, core, vector)
        self.responses: list[tuple[int, int, int]] = []  # (edge, core, data)
        self.requests: list[tuple[int, int]] = []  # (edge, core) MMIO requests taken
        self.events: list[tuple] = []  # probes
        self.counters: dict[str, int] = {}

    def on_edge(self) -> None:
        """What the card does by itself."""

    def on_packet(self, sent: Sent) -> None:
        """The card's reaction."""

    def on_interrupt(self) -> None:
        """Checks at the delivery of an interrupt."""

    def on_response(self) -> None:
        """Checks at the answer to an MMIO read."""

    def run(self, edges, send_ready=1.0, core_ready=1.0, offer=1.0, seed=0):
        dut, memory = self.dut, self.memory
        rng = random.Random(seed)
        probes = list(collect(dut, Probe).items())

        async def testbench(ctx):
            offering, answering = False, None
            mmio_offered = [False] * len(self.mmio)
            held, wanted = None, None
            interrupting: list[int | None] = [None] * len(self.mmio)
            for edge in range(edges):
                # Inputs of this edge
                self.on_edge()
                offering = offering or (bool(self.to_host) and rng.random() < offer)
                ctx.set(dut.link.receive.valid, offering)
                if offering:
                    ctx.set(dut.link.receive.payload.as_value(), self.to_host[0])
                ctx.set(dut.link.send.ready, send_ready(edge) if callable(send_ready) else rng.random() < send_ready)
                ctx.set(dut.memory.request.ready, rng.random() < memory.ready)
                ctx.set(dut.memory.write_done, memory.write_done(edge))
                answering = answering or memory.answer(edge)
                ctx.set(dut.memory.response.valid, answering is not None)
                if answering:
                    _, tag, packet, data = answering
                    ctx.set(dut.memory.response.payload, {"tag": tag, "packet": packet, "data": data})
                for core, queue in enumerate(self.mmio):
                    port = dut.mmio[core]
                    mmio_offered[core] = mmio_offered[core] or bool(queue)
                    ctx.set(port.request.valid, mmio_offered[core])
                    if mmio_offered[core]:
                        fields = dict(zip(("write", "address", "size", "data"), queue[0], strict=True))
                        ctx.set(port.request.payload, MmioRequest.const({**fields, "core": core}))
                    ctx.set(port.response.ready, rng.random() < core_ready)
                    ctx.set(dut.interrupt[core].ready, rng.random() < core_ready)

                # What happens at it
                if offering and ctx.get(dut.link.receive.ready):
                    self.taken.append((edge, self.to_host.popleft()))
                    offering = False
                request = dut.memory.request
                now_wanted = None
                if ctx.get(request.valid):
                    payload = ctx.get(request.payload)
                    now_wanted = (payload.op, payload.line, payload.mask, payload.tag, payload.packet)
                    assert wanted in (None, now_wanted), "an offered request changed"
                    if ctx.get(request.ready):
                        memory.take(edge, payload)
                        now_wanted = None
                assert wanted is None or ctx.get(request.valid), "an offered request vanished"
                wanted = now_wanted
                if answering and ctx.get(dut.memory.response.ready):
                    answering = None
                self._send(ctx, edge)
                beat = ctx.get(dut.link.send.payload.as_value())
                valid, ready = ctx.get(dut.link.send.valid), ctx.get(dut.link.send.ready)
                assert held is None or (valid and held == beat), "an offered packet changed or vanished"
                held = beat if valid and not ready else None
                for core, port in enumerate(dut.mmio):
                    if mmio_offered[core] and ctx.get(port.request.ready):
                        self.mmio[core].popleft()
                        self.requests.append((edge, core))
                        mmio_offered[core] = False
                    if ctx.get(port.response.valid) and ctx.get(port.response.ready):
                        self.responses.append((edge, core, ctx.get(port.response.payload.data)))
                        self.on_response()
                    line = dut.interrupt[core]
                    vector = ctx.get(line.payload.vector) if ctx.get(line.valid) else None
                    assert interrupting[core] in (None, vector), "an offered interrupt changed or vanished"
                    interrupting[core] = None if ctx.get(line.ready) else vector
                    if ctx.get(line.valid) and ctx.get(line.ready):
                        self.interrupts.append((edge, core, ctx.get(line.payload.vector)))
                        self.on_interrupt()
                for name, probe in probes:
                    if ctx.get(probe.valid):
                        self.events.append((edge, name, {k: ctx.get(v) for k, v in probe.fields.items()}))

                if self.skip and ctx.get(dut.quiet):
                    self.skipped += 1
                else:
                    ctx.set(self.clock, 1)
                    ctx.set(self.clock, 0)
            self.counters = {name: ctx.get(c.value) for name, c in collect(dut, Counter).items()}

        self.simulator.add_testbench(testbench)
        self.simulator.run()
        return self

    def _send(self, ctx, edge):
        send = self.dut.link.send
        if not (ctx.get(send.valid) and ctx.get(send.ready)):
            return
        beat = ctx.get(send.payload)
        header = beat.header
        assert beat.first and beat.last
        at = header.address % 64
        data = beat.data.to_bytes(64, "little")[at : at + header.length]
        packet = Sent(
            edge, TlpType(header.kind), header.address, header.length, header.tag, header.remaining,
            TlpStatus(header.status), header.packet, data,
        )  # fmt: skip
        self.sent.append(packet)
        self.on_packet(packet)


# Latency


def test_write_passes_at_once():
    bench = Bench()
    payload = bytes(range(200))
    bench.to_host.extend(write(0x1030, payload, packet=5))
    bench.run(12)
    # 16 + 64 + 64 + 56 bytes: one line per cycle, in the cycle in which the beat is offered.
    assert bench.memory.seen == [(edge, MemoryOp.WRITE, 0x40 + edge) for edge in range(4)]
    assert bench.memory.content[0x1030 : 0x1030 + 200] == payload
    assert not any(bench.memory.content[:0x1030]) and not any(bench.memory.content[0x1030 + 200 :])
    assert bench.events == [(3, "inbound.dma_write", {"address": 0x1030, "length": 200, "packet": 5})]
    assert bench.counters["inbound.write_lines"] == 4 and bench.counters["inbound.write_partial_lines"] == 2


class Around(Memory):
    """Remembers which writes go around the caches."""

    def take(self, edge, request):
        if request.op == MemoryOp.WRITE:
            self.around.append(request.around)
        super().take(edge, request)


@pytest.mark.parametrize("gates", [False, True])
def test_writes_that_are_not_marked_go_around_the_caches(gates):
    """Only where the card's registers gate DDIO, which is an extension."""
    memory = Around(random.Random(0))
    memory.around = []
    bench = Bench(memory, settings=(f"nic.dca_gates={str(gates).lower()}",))
    for tag in (1, 0, 0xFE, 0xFF):
        bench.to_host.extend(beats(MWR, 0x1030, 100, bytes(100), tag=tag))
    bench.run(20)
    assert memory.around == ([0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0] if gates else [0] * 12)


def test_read_latency():
    bench = Bench(Memory(random.Random(0), read_delay=(7, 7)))
    bench.memory.content[:256] = bytes(range(256))
    bench.to_host.extend(read(0x20, 128, tag=9, packet=3))
    bench.run(20)
    # Accepted at 0: lines asked for at 1, 2, 3, answered at 8, 9, 10, completions at 10, 11, 12.
    assert [edge for edge, *_ in bench.memory.seen] == [1, 2, 3]
    assert [(s.edge, s.address, s.length, s.remaining) for s in bench.sent] == [
        (10, 0x20, 32, 128),
        (11, 0x40, 64, 96),
        (12, 0x80, 32, 32),
    ]
    assert b"".join(s.data for s in bench.sent) == bytes(range(0x20, 0xA0))
    assert all((s.kind, s.tag, s.packet, s.status) == (CPL, 9, 3, TlpStatus.SUCCESS) for s in bench.sent)


def test_mmio_latency():
    bench = Bench()
    bench.mmio[1].append((1, BAR0_BASE + 0x1018, 4, 0x12345678))
    bench.mmio[1].append((0, BAR0_BASE + 0x0008, 4, 0))
    bench.to_host.extend([])

    def answer(sent):
        if sent.kind == MRD:
            bench.to_host.extend(beats(CPL, sent.address, 4, b"\x01\x02\x03\x04", tag=sent.tag))

    bench.on_packet = answer
    bench.run(10)
    assert [edge for edge, _ in bench.requests] == [0, 1]
    assert [(s.edge, s.kind, s.address, s.length) for s in bench.sent] == [
        (1, MWR, BAR0_BASE + 0x1018, 4),
        (2, MRD, BAR0_BASE + 0x0008, 4),
    ]
    assert bench.sent[0].data == bytes.fromhex("78563412")
    # The completion is taken at edge 3, the answer at 4.
    assert bench.responses == [(4, 1, 0x04030201)]


def test_interrupt_latency():
    bench = Bench()
    bench.to_host.extend(interrupt(1, 0x41))
    bench.run(5)
    assert bench.interrupts == [(1, 1, 0x41)]


def test_interrupt_between_cores_latency():
    bench = Bench()
    bench.mmio[0].extend([(1, MSI_BASE + (1 << 12), 4, 0x23), (1, BAR0_BASE, 4, 7)])
    bench.mmio[1].append((1, MSI_BASE, 4, 0x3F))
    bench.run(8)
    # Requests are taken in turns, one per cycle, and go one cycle later.
    assert bench.requests == [(0, 1), (1, 0), (2, 0)]
    assert bench.interrupts == [(1, 0, 0x3F), (2, 1, 0x23)]
    assert [(s.edge, s.kind) for s in bench.sent] == [(3, MWR)]
    assert bench.counters["mmio_bridge.interrupts"] == 2 == bench.counters["interrupts"]
    sent = [(edge, fields) for edge, name, fields in bench.events if name == "interrupt_sent"]
    assert sent == [(1, {"core": 0, "vector": 0x3F}), (2, {"core": 1, "vector": 0x23})]


def test_interrupt_between_cores_does_not_wait_for_a_devices_writes():
    bench = Bench(Memory(random.Random(0), write_delay=(30, 30)))
    bench.to_host.extend(write(0x40, bytes(64)) + interrupt(1, 0x20))
    bench.mmio[0].append((1, MSI_BASE + (1 << 12), 4, 0x3F))
    bench.run(40)
    assert bench.interrupts == [(1, 1, 0x3F), (31, 1, 0x20)]


# Ordering


@pytest.mark.parametrize("delay", [3, 40])
def test_interrupt_waits_for_data(delay):
    bench = Bench(Memory(random.Random(0), write_delay=(delay, delay)))
    bench.to_host.extend(write(0x40, bytes(64)) + write(0x80, bytes(64)) + interrupt(0, 7) + write(0xC0, bytes(64)))
    bench.run(delay + 12)
    # The second line is accepted at edge 1 and visible at 1 + delay; the interrupt goes one later, not before.
    assert bench.interrupts == [(1 + delay + 1, 0, 7)]


@pytest.mark.parametrize("delay", [3, 40])
def test_read_waits_for_earlier_writes(delay):
    bench = Bench(Memory(random.Random(0), write_delay=(delay, delay)))
    payload = bytes(range(1, 65))
    bench.to_host.extend(write(0x40, payload) + read(0x40, 64) + write(0x40, bytes(64)))
    bench.run(delay + 12)
    reads = [edge for edge, op, _ in bench.memory.seen if op == MemoryOp.READ]
    assert reads == [delay + 1]
    # The write behind it has passed the waiting read: accepted meanwhile, visible later than the read's look-up.
    assert [edge for edge, op, _ in bench.memory.seen if op == MemoryOp.WRITE] == [0, 2]
    assert bench.sent[0].data == payload


def test_mmio_answer_waits_for_earlier_writes():
    """Who has read a register of the card sees what the card wrote before it answered."""
    bench = Bench(Memory(random.Random(0), write_delay=(30, 30)))
    bench.mmio[0].append((0, BAR3_BASE, 8, 0))

    def answer(sent):
        bench.to_host.extend(write(0x40, bytes(64)))
        bench.to_host.extend(beats(CPL, sent.address, 8, bytes(range(8)), tag=sent.tag))

    bench.on_packet = answer
    bench.run(45)
    # Request 0, packet 1, write accepted 2 and visible 32, completion accepted 3.
    assert bench.responses == [(33, 0, 0x0706050403020100)]


def test_mmio_write_precedes_later_completions():
    bench = Bench()
    bench.to_host.extend(read(0, 64))
    bench.mmio[0].extend((1, BAR0_BASE + 4 * n, 4, n) for n in range(3))
    bench.run(20, send_ready=0.3)
    assert [s.kind for s in bench.sent] == [MWR, MWR, MWR, CPL]


@pytest.mark.parametrize("skip", [False, True])
def test_offered_completion_stays(skip):
    """MMIO that comes while a completion waits for the link does not take its place."""
    bench = Bench(skip=skip)
    bench.to_host.extend(read(0, 64))
    edges = iter(range(100))

    def on_edge():
        if next(edges) == 20:
            bench.mmio[0].append((1, BAR0_BASE, 4, 0))

    bench.on_edge = on_edge
    bench.run(40, send_ready=lambda edge: edge >= 30)
    assert [s.kind for s in bench.sent] == [CPL, MWR]


def test_writes_and_reads_alternate():
    bench = Bench(settings=["nic.read_tags=8"])
    for n in range(4):
        bench.to_host.extend(read(0x1000 * n, 512))
    bench.to_host.extend(write(0x4000, bytes(512)))
    bench.run(30)
    ops = [op for _, op, _ in bench.memory.seen]
    assert ops[ops.index(MemoryOp.WRITE) :][:16] == [MemoryOp.WRITE, MemoryOp.READ] * 8


# What nobody claims


@pytest.mark.parametrize(
    "address, length",
    [(MEBIBYTE, 64), (MEBIBYTE - 32, 64), (0xE000_0000, 4), (0xFF_FFFF_FFC0, 64), (MSI_BASE, 4), (0, 0)],
)
def test_unsupported_read(address, length):
    bench = Bench()
    bench.to_host.extend(read(address, length, tag=3) + read(0, 4, tag=4))
    bench.run(14)
    bad, good = bench.sent
    assert (bad.status, bad.length, bad.remaining, bad.tag) == (TlpStatus.UNSUPPORTED_REQUEST, 0, length, 3)
    assert (good.status, good.tag, good.length) == (TlpStatus.SUCCESS, 4, 4)
    assert bench.counters["inbound.unsupported_reads"] == 1
    assert [(e[2]["address"], e[2]["write"]) for e in bench.events if e[1] == "inbound.unsupported"] == [(address, 0)]


@pytest.mark.parametrize(
    "address, length",
    [
        (MEBIBYTE, 64),
        (MEBIBYTE - 32, 64),
        (0xE000_0000, 100),
        (MSI_BASE + (2 << 12), 4),
        (MSI_BASE, 8),
        (MSI_BASE + 2, 4),
        (BAR0_BASE, 4),
    ],
)
def test_unsupported_write(address, length):
    bench = Bench()
    bench.to_host.extend(write(address, bytes(length)) + write(0x100, b"good"))
    bench.run(8)
    assert bench.memory.content[0x100:0x104] == b"good" and len(bench.memory.seen) == 1
    assert not bench.interrupts and not bench.to_host
    assert bench.counters["inbound.unsupported_writes"] == 1
    assert [(e[2]["address"], e[2]["write"]) for e in bench.events if e[1] == "inbound.unsupported"] == [(address, 1)]


def test_last_bytes_of_dram():
    bench = Bench()
    bench.to_host.extend(write(MEBIBYTE - 64, bytes([7] * 64)) + read(MEBIBYTE - 4, 4))
    bench.run(14)
    assert bench.sent[0].data == bytes([7] * 4) and bench.counters["inbound.unsupported_reads"] == 0


@pytest.mark.parametrize(
    "address, size",
    [
        (BAR0_BASE + BAR0_BYTES, 4),
        (BAR0_BASE + BAR0_BYTES - 4, 8),
        (BAR0_BASE - 4, 4),
        (BAR3_BASE + BAR3_BYTES, 8),
        (BAR0_BASE + 2, 4),
        (BAR0_BASE, 2),
        (BAR0_BASE + 60, 8),
        (0, 8),
    ],
)
def test_unclaimed_mmio(address, size):
    bench = Bench()
    bench.mmio[0].extend([(0, address, size, 0), (1, address, size, 5), (1, BAR0_BASE, 4, 6)])
    bench.run(8)
    assert bench.responses == [(1, 0, (1 << 64) - 1 if size == 8 else (1 << 32) - 1)]
    assert [(s.kind, s.address) for s in bench.sent] == [(MWR, BAR0_BASE)]
    assert bench.counters["mmio_bridge.unclaimed"] == 2


@pytest.mark.parametrize(
    "write, address, size",
    [
        (1, MSI_BASE + (2 << 12), 4),  # there are two cores
        (1, MSI_BASE, 8),
        (1, MSI_BASE + 2, 4),
        (1, MSI_BASE - 4, 4),
        (1, MSI_BASE + MSI_BYTES, 4),
        (0, MSI_BASE, 4),
    ],
)
def test_what_is_no_interrupt_for_a_core(write, address, size):
    bench = Bench()
    bench.mmio[0].extend([(write, address, size, 0x20), (1, MSI_BASE, 4, 0x21)])
    bench.run(8)
    assert [(core, vector) for _, core, vector in bench.interrupts] == [(0, 0x21)]
    assert not bench.sent and bench.counters["mmio_bridge.unclaimed"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_interrupts_of_cores_and_of_the_card_share_the_way(seed):
    """Each arrives once, those of one sender in their order, whether quiet edges are skipped or not."""
    results = []
    for skip in (False, True):
        rng = random.Random(seed)
        bench = Bench(Memory(rng, (1, 9)), skip)
        sent: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}  # by sender, 2 is the card
        for number in range(30):
            for sender in sent:
                target, vector = rng.randrange(2), 64 * sender + number
                sent[sender].append((target, vector))
                if sender < 2:
                    bench.mmio[sender].append((1, MSI_BASE + (target << 12), 4, vector))
                else:
                    bench.to_host.extend(write(64 * number, bytes(64)) + interrupt(target, vector))
        bench.run(800, core_ready=0.3, offer=0.4, seed=seed)
        for sender, all_of_it in sent.items():
            assert [(core, v) for _, core, v in bench.interrupts if v // 64 == sender] == all_of_it
        assert (bench.skipped > 0) == skip
        results.append((bench.interrupts, bench.counters))
    assert results[0] == results[1]


@pytest.mark.parametrize("size", [4, 8])
def test_unsuccessful_completion_reads_all_ones(size):
    bench = Bench()
    bench.mmio[0].append((0, BAR0_BASE, size, 0))
    bench.on_packet = lambda sent: bench.to_host.extend(
        beats(CPL, sent.address, 0, tag=sent.tag, status=TlpStatus.UNSUPPORTED_REQUEST)
    )
    bench.run(8)
    assert [data for _, _, data in bench.responses] == [(1 << 8 * size) - 1]


def test_unexpected_completion_is_dropped():
    bench = Bench()
    for tag in (0, 1, 2, 255):
        bench.to_host.extend(beats(CPL, BAR0_BASE, 4, b"oops", tag=tag))
    bench.run(8)
    assert not bench.responses and not bench.to_host
    assert bench.counters["inbound.unexpected_completions"] == 4


@pytest.mark.parametrize("offset", [0, 4, 0x34, 0x38])
def test_mmio_lanes(offset):
    """Eight bytes at any multiple of four within a line, both ways."""
    bench = Bench()
    value = 0x8877665544332211
    bench.mmio[0].extend([(1, BAR0_BASE + offset, 8, value), (0, BAR0_BASE + offset, 8, 0)])

    def answer(sent):
        if sent.kind == MRD:
            bench.to_host.extend(beats(CPL, sent.address, 8, bench.sent[0].data, tag=sent.tag))

    bench.on_packet = answer
    bench.run(8)
    assert bench.sent[0].data == value.to_bytes(8, "little")
    assert bench.responses[0][2] == value


def test_cores_take_turns():
    bench = Bench()
    for core in (0, 1):
        bench.mmio[core].extend((1, BAR0_BASE + 8 * n, 4, core) for n in range(5))
    bench.run(15)
    assert [core for _, core in bench.requests] == [1, 0] * 5


def test_requests_wait_behind_a_read():
    bench = Bench()
    bench.mmio[0].extend([(0, BAR0_BASE, 4, 0), (1, BAR0_BASE + 4, 4, 0)])
    bench.run(10)
    assert [s.kind for s in bench.sent] == [MRD] and len(bench.mmio[0]) == 1


def test_reads_in_flight():
    """As many lines are asked for at once as there are slots, over several requests."""
    bench = Bench(Memory(random.Random(0), read_delay=(200, 200)), settings=["nic.read_tags=8"])
    for tag in range(8):
        bench.to_host.extend(read(0x1000 * tag, 512, tag=tag))
    bench.run(150)
    assert len(bench.memory.seen) == READ_LINES and not bench.to_host


# Random traffic


class RandomCard(Bench):
    """A card that reads, writes, interrupts and answers at random; checks every byte, order and count."""

    REGION = 1024

    def __init__(self, seed, memory, skip, packets):
        super().__init__(memory, skip, settings=["nic.read_tags=4"])
        self.rng = random.Random(seed)
        #: Values each byte had, as the card wrote them.
        self.history = [[0] for _ in range(self.REGION)]
        self.lines_sent = 0
        self.interrupts_due: deque[tuple[int, int, int]] = deque()  # (core, vector, lines before it)
        self.reads: dict[int, list] = {}  # tag -> [address, length, floor per byte]
        self.registers = {}
        self.reads_done = 0
        self.packets = packets
        self.answers_due: dict[int, deque[tuple[int, int]]] = {0: deque(), 1: deque()}
        for core in (0, 1):
            for _ in range(12):
                address = BAR0_BASE + core * 64 + 4 * self.rng.randrange(4)
                is_write = self.rng.random() < 0.6
                self.mmio[core].append((is_write, address, 4, self.rng.getrandbits(32) if is_write else 0))

    def on_edge(self):
        """Send one more packet when the last ones have gone."""
        if not self.packets or len(self.to_host) > 4 or self.rng.random() < 0.5:
            return
        self.packets -= 1
        address = self.rng.randrange(self.REGION)
        length = self.rng.randint(1, min(300, self.REGION - address))
        choice = self.rng.random()
        if choice < 0.5:
            payload = self.rng.randbytes(length)
            for index, value in enumerate(payload):
                self.history[address + index].append(value)
            packet = write(address, payload)
            self.lines_sent += len(packet)
            self.to_host.extend(packet)
        elif choice < 0.85 and len(self.reads) < 4:
            tag = next(t for t in range(4) if t not in self.reads)
            floors = [len(self.history[address + i]) - 1 for i in range(length)]
            self.reads[tag] = [address, length, floors]
            self.to_host.extend(read(address, length, tag))
        elif choice < 0.95:
            core, vector = self.rng.randrange(2), self.rng.randrange(256)
            self.interrupts_due.append((core, vector, self.lines_sent))
            self.to_host.extend(interrupt(core, vector))
        else:
            self.to_host.extend(write(MEBIBYTE + address, bytes(length)))

    def on_packet(self, sent):
        if sent.kind == MWR:
            self.registers[sent.address] = int.from_bytes(sent.data, "little")
        elif sent.kind == MRD:
            value = self.registers.get(sent.address, 0)
            self.answers_due[sent.tag].append((value, self.lines_sent))
            self.to_host.extend(beats(CPL, sent.address, 4, value.to_bytes(4, "little"), tag=sent.tag))
        else:
            address, length, floors = self.reads[sent.tag]
            assert (sent.address, sent.remaining) == (address, length)
            for index, value in enumerate(sent.data):
                assert value in self.history[address + index][floors[index] :], "a read passed a write"
            self.reads[sent.tag] = [address + sent.length, length - sent.length, floors[sent.length :]]
            if sent.length == length:
                del self.reads[sent.tag]
                self.reads_done += 1

    def on_interrupt(self):
        core, vector, lines = self.interrupts_due.popleft()
        assert self.interrupts[-1][1:] == (core, vector)
        assert self.memory.visible >= lines, "an interrupt passed its data"

    def on_response(self):
        _, core, value = self.responses[-1]
        expected, lines = self.answers_due[core].popleft()
        assert value == expected
        assert self.memory.visible >= lines, "an MMIO answer passed data"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pace", ["fast", "slow"])
def test_random_traffic_and_skipped_edges(seed, pace):
    results = []
    for skip in (False, True):
        rng = random.Random(seed)
        if pace == "fast":
            memory = Memory(rng, (1, 4), (1, 10))
            packets, edges, ready = 100, 700, {}
        else:
            memory = Memory(rng, (1, 40), (1, 60), ready=0.5)
            packets, edges = 60, 1300
            ready = {"send_ready": 0.2, "core_ready": 0.5, "offer": 0.5}
        bench = RandomCard(seed, memory, skip, packets)
        bench.run(edges, seed=seed, **ready)
        results.append(bench)
    full, skipping = results
    # Nothing is left over anywhere, and every kind of traffic took place.
    assert not (full.packets or full.to_host or full.reads or full.interrupts_due or any(full.mmio))
    assert not any(full.answers_due.values())
    assert full.reads_done >= 6 and len(full.responses) >= 5 and len(full.interrupts) >= 3
    assert full.memory.visible == full.lines_sent == full.counters["inbound.write_lines"]
    assert bytes(full.memory.content[: full.REGION]) == bytes(values[-1] for values in full.history)

    assert skipping.interrupts == full.interrupts and skipping.responses == full.responses
    assert skipping.sent == full.sent and skipping.taken == full.taken
    assert skipping.memory.seen == full.memory.seen
    assert skipping.events == full.events and skipping.counters == full.counters
    assert skipping.skipped > edges // 5


def test_registers_of_the_platform_are_reached_at_once():
    """A write reaches the register at the edge at which it is taken; a read is answered at the next."""
    bench = Bench()
    register, other = msr(IIO_LLC_WAYS), MSR_BASE + 4
    bench.mmio[1].extend([(1, register, 8, 0x60), (0, register, 8, 0), (0, PERFCTRLSTS_0, 4, 0), (1, other, 8, 1)])
    seen = []
    registers = bench.dut.registers

    async def watch(ctx):
        sampled = registers.write, registers.address, registers.size, registers.core, registers.data
        async for _, _, write, *values in ctx.tick("uncore").sample(*sampled):
            if write:
                seen.append(tuple(values))

    async def answer(ctx):
        async for address in ctx.changed(registers.address):
            ctx.set(registers.value, 0x1234_0000_0000 + address[0])

    bench.simulator.add_process(watch)
    bench.simulator.add_process(answer)
    bench.run(60)
    assert seen == [(register, 8, 1, 0x60)]
    assert [(core, data) for _, core, data in bench.responses] == [
        (1, 0x1234_0000_0000 + register),
        (1, PERFCTRLSTS_0),
    ]
    taken = [edge for edge, core in bench.requests if core == 1]
    assert [edge for edge, _, _ in bench.responses] == [taken[1] + 1, taken[2] + 1]
    assert not bench.sent
    assert bench.counters["mmio_bridge.unclaimed"] == 1, "one that is not aligned"


@pytest.mark.filterwarnings("ignore:.*created but never used")
def test_impossible_sizes():
    with pytest.raises(ValueError, match="power of two between 2 and 256, not 12"):
        ReadEngine(4, 12)
    with pytest.raises(ValueError, match="between 1 and 16, not 17"):
        MmioBridge(17)
