"""Link: latency, bandwidth to the fraction, credits, ordering, quiet, random traffic."""

import math
import random
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from amaranth.hdl import Cat, ClockDomain, Module, Signal
from amaranth.sim import Simulator

from hw.bus.tlp import TlpBeat, TlpStatus, TlpType
from hw.config import load_machine
from hw.lib.observe import collect
from hw.lib.probe import Counter
from hw.lib.time import Now, Timer
from hw.pcie.direction import LinkDirection
from hw.pcie.link import Link
from hw.pcie.queue import Queue
from hw.pcie.receive_queue import ReceiveQueue
from tests.hw.simulate import simulate

MWR, MRD, CPL = TlpType.MEMORY_WRITE, TlpType.MEMORY_READ, TlpType.COMPLETION


@dataclass
class Tlp:
    """A packet; ``length`` bytes from ``address`` on."""

    kind: TlpType
    address: int = 0
    length: int = 64
    tag: int = 0
    packet: int = 0
    status: TlpStatus = TlpStatus.SUCCESS
    at: int = 0  #: offered from this edge on
    gap: int = 0  #: edges between its beats
    data: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.data = [random.Random(self.packet).getrandbits(512) + i for i in range(self.beat_count)]

    @property
    def carries_data(self) -> bool:
        return self.kind == MWR or (self.kind == CPL and self.status == TlpStatus.SUCCESS)

    @property
    def beat_count(self) -> int:
        if not self.carries_data:
            return 1
        return (self.address + self.length - 1) // 64 - self.address // 64 + 1

    @property
    def beat_bytes(self) -> list[int]:
        """Bytes on the link of each beat."""
        overhead = 20 if self.kind == CPL else 24
        if not self.carries_data:
            return [overhead]
        first, end = self.address // 4, (self.address + self.length + 3) // 4
        words = [0] * self.beat_count
        for word in range(first, end):
            words[word // 16 - first // 16] += 1
        return [4 * n + (overhead if i == 0 else 0) for i, n in enumerate(words)]

    def beats(self) -> list[int]:
        header = {
            "kind": self.kind,
            "status": self.status,
            "address": self.address,
            "length": self.length,
            "tag": self.tag,
            "remaining": self.length,
            "packet": self.packet,
        }
        last = self.beat_count - 1
        return [
            TlpBeat.const({"header": header, "data": d, "first": i == 0, "last": i == last}).as_bits()
            for i, d in enumerate(self.data)
        ]


class Bench:
    """One direction with hand-made clocks.

    With ``skip`` it sleeps as the engines do: once quiet, it executes no edge before the next armed deadline,
    unless an input changes.
    """

    def __init__(self, config, skip: bool = False):
        self.direction = LinkDirection(config)
        self.skip, self.skipped = skip, 0
        self.timers = list(collect(self.direction, Timer).values())
        self.clocks = Signal(2)
        m = Module()
        m.domains.nic = nic = ClockDomain(reset_less=True)
        m.domains.nic_time = time = ClockDomain(reset_less=True)
        m.submodules.now = self.now = Now("nic")
        m.submodules.direction = self.direction
        m.d.comb += [Cat(nic.clk, time.clk).eq(self.clocks), self.direction.now.eq(self.now.now)]
        self.simulator = Simulator(m)
        self.accepted: list[tuple[int, int]] = []  # (edge, beat) in
        self.delivered: list[tuple[int, int]] = []  # (edge, beat) out
        self.stalls: list[int] = []  # the counter of credit stalls, at each edge
        self.counters: dict[str, int] = {}

    def run(self, tlps, edges, ready=lambda edge: True):
        link = self.direction

        async def testbench(ctx):
            todo = [(tlp, i, beat) for tlp in tlps for i, beat in enumerate(tlp.beats())]
            todo.reverse()
            not_before, held = 0, None
            asleep_until, inputs_before = 0, None
            for edge in range(edges):
                offered = bool(todo) and edge >= max(not_before, todo[-1][0].at)
                ctx.set(link.input.valid, offered)
                if offered:
                    ctx.set(link.input.payload.as_value(), todo[-1][2])
                ctx.set(link.output.ready, ready(edge))
                taken = offered and ctx.get(link.input.ready)
                if taken:
                    self.accepted.append((edge, todo[-1][2]))
                valid, beat = ctx.get(link.output.valid), ctx.get(link.output.payload.as_value())
                assert held is None or (valid and beat == held), "an offered beat changed or vanished"
                held = beat if valid and not ready(edge) else None
                if valid and ready(edge):
                    self.delivered.append((edge, beat))
                self.stalls.append(ctx.get(link.credit_stalls.value))
                inputs = (offered, todo[-1][2] if offered else None, ready(edge))
                if inputs != inputs_before or edge >= asleep_until:
                    armed = [ctx.get(t.deadline) for t in self.timers if ctx.get(t.armed)]
                    deadlines = [deadline for deadline in armed if deadline >= edge]
                    asleep_until = min(deadlines, default=edges) if self.skip and ctx.get(link.quiet) else edge
                inputs_before = inputs
                if taken:
                    not_before = edge + 1 + todo.pop()[0].gap
                skip = edge < asleep_until
                self.skipped += skip
                ctx.set(self.clocks, 0)
                ctx.set(self.clocks, 0b10 if skip else 0b11)
                assert ctx.get(self.now.now) == edge + 1
            self.counters = {name: ctx.get(c.value) for name, c in collect(link, Counter).items()}

        self.simulator.add_testbench(testbench)
        self.simulator.run()
        return self

    def packets(self):
        """Delivered packets as (edge of the first beat, header, data)."""
        result = []
        for edge, bits in self.delivered:
            beat = TlpBeat.from_bits(bits)
            if beat.first:
                result.append((edge, beat.header, []))
            result[-1][2].append(beat.data)
        return result


def one_way(tlp: Tlp, config) -> int:
    """Edge at which the first beat of a packet offered at edge 0 of an idle link can be taken, by the formula."""
    per_byte = config.cycles_per_byte(config.pcie.gbps)
    free = Fraction(0)
    for index, size in enumerate(tlp.beat_bytes):
        start = max(free, Fraction(index))
        free = max(start, Fraction(math.floor(start))) + size * per_byte
    latency = math.ceil(Fraction(str(config.pcie.latency_ns)) * config.clocks.khz("nic") / 1_000_000)
    return math.ceil(free) + latency


@pytest.mark.parametrize("machine", ["tiny", "teaching"])
@pytest.mark.parametrize(
    "tlp",
    [
        Tlp(MRD, length=128),
        Tlp(MWR, length=4),
        Tlp(MWR, address=0x3E, length=4),
        Tlp(MWR, length=64),
        Tlp(MWR, address=0x20, length=128),
        Tlp(CPL, length=64),
        Tlp(CPL, length=0, status=TlpStatus.UNSUPPORTED_REQUEST),
    ],
    ids=lambda tlp: f"{tlp.kind.name}-{tlp.address:x}-{tlp.length}",
)
def test_latency(machine, tlp):
    config = load_machine(machine)
    bench = Bench(config).run([tlp], one_way(tlp, config) + 8)
    # Not there at t - 1, there at t, one beat per cycle.
    t = one_way(tlp, config)
    assert [edge for edge, _ in bench.delivered] == list(range(t, t + tlp.beat_count))
    assert bench.packets()[0][2] == tlp.data
    assert bench.counters["link_bytes"] == sum(tlp.beat_bytes)
    assert bench.counters["payload_bytes"] == (tlp.length if tlp.carries_data else 0)


def test_hand_derived_latency():
    # tiny: 50.5 Gb/s at 500 MHz is 12.625 bytes per cycle; a read request is 24 bytes = 1.90 cycles;
    # 20 ns are 10 cycles.
    assert one_way(Tlp(MRD), load_machine("tiny")) == 12
    # teaching: 57.88 Gb/s at 312.5 MHz is 23.152 bytes per cycle; 24 + 64 bytes are 3.8 cycles;
    # 150 ns are 46.875 cycles.
    assert one_way(Tlp(MWR), load_machine("teaching")) == 51


def effective_gbps(bench, config, size) -> float:
    """Payload rate between the first and the last delivered packet of equal transfers of ``size`` bytes."""
    last_beats = [edge for edge, bits in bench.delivered if TlpBeat.from_bits(bits).last]
    per_transfer = math.ceil(size / config.pcie.mps)
    transfers = last_beats[per_transfer - 1 :: per_transfer]
    cycles = transfers[-1] - transfers[0]
    return 8 * size * (len(transfers) - 1) / (cycles / (config.clocks.nic * 1e-3))


# Neugebauer et al., SIGCOMM 2018, model in the public repository pcie-bench/pcie-model:
# effective rate = L * size / (number of TLPs * overhead + size).
@pytest.mark.parametrize("machine, count", [("tiny", 120), ("teaching", 200)])
@pytest.mark.parametrize("size", [64, 256, 300])
def test_write_bandwidth(machine, count, size):
    config = load_machine(machine)
    mps = config.pcie.mps
    tlps = [Tlp(MWR, 4096 * n + at, min(mps, size - at)) for n in range(count) for at in range(0, size, mps)]
    bench = Bench(config).run(tlps, 30 + sum(one_way(t, config) for t in tlps[:1]) + _cycles(tlps, config))
    assert len(bench.delivered) == sum(t.beat_count for t in tlps)
    expected = config.pcie.gbps * size / (math.ceil(size / mps) * 24 + size)
    assert effective_gbps(bench, config, size) == pytest.approx(expected, rel=0.005)
    assert bench.counters["link_bytes"] == count * (math.ceil(size / mps) * 24 + size)


@pytest.mark.parametrize("size", [4, 64])
def test_completion_bandwidth(size):
    config = load_machine("teaching", ["pcie.completion_credits=128"])
    tlps = [Tlp(CPL, 64 * n, size) for n in range(300)]
    bench = Bench(config).run(tlps, 80 + _cycles(tlps, config))
    expected = config.pcie.gbps * size / (20 + size)
    assert effective_gbps(bench, config, size) == pytest.approx(expected, rel=0.005)
    assert bench.counters["credit_stalls"] == 0


def test_request_bandwidth():
    """Read requests cost 24 bytes each."""
    config = load_machine("teaching", ["pcie.non_posted_credits=128"])
    tlps = [Tlp(MRD, 64 * n, 512) for n in range(400)]
    bench = Bench(config).run(tlps, 80 + _cycles(tlps, config))
    expected = config.pcie.gbps / 8 / 24 * 1e3 / config.clocks.nic  # requests per cycle
    edges = [edge for edge, _ in bench.delivered]
    assert 399 / (edges[-1] - edges[0]) == pytest.approx(expected, rel=0.005)


def test_credits_bound_the_rate():
    """Packets in flight are at most the credits: with 24-byte packets, 32 per flight of 49 cycles."""
    config = load_machine("teaching")
    tlps = [Tlp(CPL, 64 * n, 4) for n in range(97)]
    bench = Bench(config).run(tlps, 300)
    edges = [edge for edge, _ in bench.delivered]
    # 24 bytes: 1.04 cycles, rounded up 2, and 47 of flight; the credit is free one edge before delivery.
    assert edges[32] - edges[0] == 2 + bench.direction.latency
    assert bench.counters["credit_stalls"] > 0


def _cycles(tlps, config) -> int:
    return math.ceil(sum(sum(t.beat_bytes) for t in tlps) * config.cycles_per_byte(config.pcie.gbps))


@pytest.mark.parametrize("kind, credits", [(MWR, 8), (MRD, 4), (CPL, 8)])
def test_credits(kind, credits):
    config = load_machine("tiny")
    tlps = [Tlp(kind, 64 * n, 64, packet=n) for n in range(credits + 6)]
    bench = Bench(config).run(tlps, 400, ready=lambda edge: edge >= 200)
    # The receiver takes nothing: its buffer and its output register fill up, no more is started.
    assert sum(edge < 200 for edge, _ in bench.accepted) == credits + 1
    assert len(bench.packets()) == credits + 6
    assert bench.counters["credit_stalls"] >= 1


def test_credits_are_per_class():
    config = load_machine("tiny")
    reads = [Tlp(MRD, 64 * n, 64, packet=n) for n in range(4)]
    others = [Tlp(MWR, 0, 64, packet=8), Tlp(CPL, 0, 64, packet=9)]
    bench = Bench(config).run([Tlp(MRD, packet=7), *reads, *others], 100, ready=lambda edge: False)
    assert len(bench.accepted) == 7  # one in the output register, four reads with credits, the others with theirs


def test_waiting_reads_are_passed():
    config = load_machine("tiny")
    tlps = [Tlp(MRD, packet=n) for n in (1, 2, 3)] + [Tlp(MWR, packet=4), Tlp(CPL, packet=5), Tlp(MRD, packet=6)]
    bench = Bench(config).run(tlps, 120, ready=lambda edge: edge >= 60)
    order = [header.packet for _, header, _ in bench.packets()]
    assert order.index(4) < order.index(2) and order.index(5) < order.index(3)


def check_order(tlps, bench):
    """Every packet once, with its data, and in an order the specification allows."""
    order = [header.packet for _, header, _ in bench.packets()]
    sent = {tlp.packet: tlp for tlp in tlps}
    assert sorted(order) == sorted(sent)
    for _, header, data in bench.packets():
        assert data == sent[header.packet].data
    position = {packet: place for place, packet in enumerate(order)}
    for index, earlier in enumerate(tlps):
        for later in tlps[index + 1 :]:
            if later.kind == earlier.kind or earlier.kind == MWR:
                assert position[earlier.packet] < position[later.packet]


def random_traffic(seed, count=60, longest=120):
    rng = random.Random(seed)
    tlps, at = [], 0
    for packet in range(1, count + 1):
        kind = rng.choice([MWR, MWR, MRD, CPL])
        address = rng.randrange(0, 1 << 20)
        length = rng.randrange(1, 1 + min(128, longest))
        if rng.random() < 0.2:
            at += rng.randrange(150)
        status = TlpStatus.UNSUPPORTED_REQUEST if kind == CPL and rng.random() < 0.2 else TlpStatus.SUCCESS
        tlps.append(Tlp(kind, address, length, packet % 256, packet, status, at, rng.choice([0, 0, 0, 1, 5])))
    return tlps


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stalls", [0.0, 0.5, 0.9])
def test_random_traffic_and_skipped_edges(seed, stalls):
    config = load_machine("tiny", ["pcie.non_posted_credits=2", "pcie.completion_credits=1"])
    tlps = random_traffic(seed)
    pattern = random.Random(seed + 100)
    readies = [pattern.random() >= stalls for _ in range(4000)]
    edges = 2200 if stalls > 0.5 else 1500
    full = Bench(config).run(tlps, edges, lambda edge: readies[edge])
    check_order(tlps, full)
    for (edge, _), (taken, _) in zip(full.delivered[:1], full.accepted[:1], strict=True):
        assert edge > taken + full.direction.latency
    skipping = Bench(config, skip=True).run(tlps, edges, lambda edge: readies[edge])
    assert skipping.accepted == full.accepted
    assert skipping.delivered == full.delivered
    assert skipping.counters == full.counters and skipping.stalls == full.stalls
    assert skipping.skipped > edges // 4


def test_slow_link_with_no_latency():
    """The other end of the range: 0 ns counts as one cycle, a byte takes 40 cycles."""
    config = load_machine("tiny", ["pcie.gbps=0.1", "pcie.latency_ns=0.0"])
    bench = Bench(config).run([Tlp(MRD)], 24 * 40 + 4)
    assert [edge for edge, _ in bench.delivered] == [24 * 40 + 1]


def test_both_directions():
    """What an end sends, the other receives."""
    config = load_machine("tiny")
    link = Link(config)
    tlps = [Tlp(MWR, packet=1), Tlp(MRD, packet=2)]
    got = {}

    async def testbench(ctx):
        ends = (link.card, link.root)
        for end, tlp in zip(ends, tlps, strict=True):
            ctx.set(end.send.payload.as_value(), tlp.beats()[0])
            ctx.set(end.send.valid, 1)
            ctx.set(end.receive.ready, 1)
        assert ctx.get(link.card.send.ready) and ctx.get(link.root.send.ready)
        for edge in range(30):
            for end, tlp in zip(ends, reversed(tlps), strict=True):
                if ctx.get(end.receive.valid):
                    got[tlp.packet] = (edge, ctx.get(end.receive.payload.header.packet))
            await ctx.tick("nic")
            for end in ends:
                ctx.set(end.send.valid, 0)
        assert ctx.get(link.quiet)

    simulate(link, testbench)
    assert got == {1: (one_way(tlps[0], config), 1), 2: (one_way(tlps[1], config), 2)}


@pytest.mark.filterwarnings("ignore:.*created but never used")
def test_impossible_queue():
    with pytest.raises(ValueError, match="8 packets do not fit in 4 rows"):
        ReceiveQueue(credits=8, base=0, rows=4)
    with pytest.raises(ValueError, match="at least 1 entry, not 0"):
        Queue(8, 0, "nic")
