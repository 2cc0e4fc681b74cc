"""Crossing: order, contents, latency, throughput and quiet, for many ratios of its clocks."""

import random
from fractions import Fraction

import pytest
from amaranth.hdl import Cat, ClockDomain, Module, Signal
from amaranth.lib import data
from amaranth.sim import Simulator

from hw.lib.crossing import Crossing


class Bench:
    """A crossing with both clocks raised by hand: coincident edges in one assignment, old values sampled."""

    def __init__(self, crossing: Crossing):
        self.crossing = crossing
        self.write_clock, self.read_clock = Signal(), Signal()
        m = Module()
        m.domains.write = write = ClockDomain(reset_less=True)
        m.domains.read = read = ClockDomain(reset_less=True)
        m.d.comb += [write.clk.eq(self.write_clock), read.clk.eq(self.read_clock)]
        m.submodules.crossing = crossing
        self.simulator = Simulator(m)

    def edge(self, ctx, write: bool, read: bool) -> None:
        clocks = Cat(self.write_clock, self.read_clock)
        ctx.set(clocks, 0)
        ctx.set(clocks, write | read << 1)

    def run(self, testbench) -> None:
        self.simulator.add_testbench(testbench)
        self.simulator.run()


def schedule(write_period: int, read_period: int, edges: int):
    """Yield which clocks rise, in order of time; both rise at 0."""
    write_at = read_at = 0
    for _ in range(edges):
        now = min(write_at, read_at)
        yield write_at == now, read_at == now
        write_at += write_period if write_at == now else 0
        read_at += read_period if read_at == now else 0


def state(ctx, crossing: Crossing, side: str) -> tuple:
    """All registers of one side."""
    if side == "write":
        signals = [crossing._produced, crossing._produced_gray, *crossing._consumed_seen]
    else:
        signals = [
            crossing._consumed,
            crossing._consumed_gray,
            *crossing._produced_seen,
            crossing.output.payload,
        ]
    return tuple(ctx.get(signal) for signal in signals)


@pytest.mark.parametrize(("depth", "stages"), [(2, 2), (4, 2), (8, 3)])
@pytest.mark.parametrize("periods", [(1, 1), (3, 1), (1, 3), (5, 4), (4, 5), (48, 10), (7, 97)])
def test_order_and_quiet(depth, stages, periods):
    """Nothing lost, doubled or reordered; what quiet promises holds at every edge."""
    rng = random.Random(f"{depth} {stages} {periods}")
    bench = Bench(crossing := Crossing(16, "write", "read", depth=depth, stages=stages))
    sent, received = [], []

    async def testbench(ctx):
        eager = [rng.random(), rng.random()]
        for index, (write, read) in enumerate(schedule(*periods, 1500)):
            if index % 100 == 0:
                eager = [rng.choice([0, 0.1, 0.5, 1]), rng.choice([0, 0.1, 0.5, 1])]
            ctx.set(crossing.input.valid, rng.random() < eager[0])
            ctx.set(crossing.input.payload, rng.getrandbits(16))
            ctx.set(crossing.output.ready, rng.random() < eager[1])
            accepted = write and ctx.get(crossing.input.valid & crossing.input.ready)
            taken = read and ctx.get(crossing.output.valid & crossing.output.ready)
            if accepted:
                sent.append(ctx.get(crossing.input.payload))
            if taken:
                received.append(ctx.get(crossing.output.payload))
            still = []
            if write and ctx.get(crossing.write_quiet) and not accepted:
                still.append(("write", state(ctx, crossing, "write")))
            if read and ctx.get(crossing.read_quiet) and not taken:
                still.append(("read", state(ctx, crossing, "read")))
            bench.edge(ctx, write, read)
            for side, before in still:
                assert state(ctx, crossing, side) == before
            assert len(sent) - len(received) <= depth

    bench.run(testbench)
    assert len(sent) > 20
    assert received == sent[: len(received)]
    assert len(sent) - len(received) <= depth


@pytest.mark.parametrize("stages", [2, 3])
def test_latency(stages):
    """Not there after read edge stages - 1, there after edge stages; the same for a place that is freed."""
    bench = Bench(crossing := Crossing(8, "write", "read", depth=2, stages=stages))

    async def testbench(ctx):
        ctx.set(crossing.input.valid, 1)
        ctx.set(crossing.input.payload, 0x5A)
        bench.edge(ctx, True, True)  # the coincident read edge does not count
        for _ in range(stages - 1):
            bench.edge(ctx, False, True)
        assert not ctx.get(crossing.output.valid)
        bench.edge(ctx, False, True)
        assert ctx.get(crossing.output.valid)
        assert ctx.get(crossing.output.payload) == 0x5A

        bench.edge(ctx, True, False)
        assert not ctx.get(crossing.input.ready)
        ctx.set(crossing.output.ready, 1)
        bench.edge(ctx, True, True)
        for _ in range(stages - 1):
            bench.edge(ctx, True, False)
        assert not ctx.get(crossing.input.ready)
        bench.edge(ctx, True, False)
        assert ctx.get(crossing.input.ready)

    bench.run(testbench)


@pytest.mark.parametrize(
    ("depth", "periods", "rate"),
    [
        (8, (1, 1), Fraction(1)),
        (4, (1, 1), Fraction(2, 3)),
        (4, (10, 3), Fraction(1)),
        (4, (3, 10), Fraction(3, 10)),
    ],
)
def test_throughput(depth, periods, rate):
    """Items per write edge, writer and reader always willing."""
    bench = Bench(crossing := Crossing(8, "write", "read", depth=depth))
    counts = {"edges": 0, "accepted": 0}

    async def testbench(ctx):
        ctx.set(crossing.input.valid, 1)
        ctx.set(crossing.output.ready, 1)
        for index, (write, read) in enumerate(schedule(*periods, 1000)):
            if write and index >= 100:
                counts["edges"] += 1
                counts["accepted"] += ctx.get(crossing.input.ready)
            bench.edge(ctx, write, read)

    bench.run(testbench)
    assert counts["accepted"] == pytest.approx(counts["edges"] * rate, abs=2)


def test_structured_payload():
    layout = data.StructLayout({"tag": 3, "line": 512})
    bench = Bench(crossing := Crossing(layout, "write", "read"))

    async def testbench(ctx):
        ctx.set(crossing.input.payload, {"tag": 5, "line": 1 << 511 | 3})
        ctx.set(crossing.input.valid, 1)
        bench.edge(ctx, True, False)
        ctx.set(crossing.input.valid, 0)
        bench.edge(ctx, False, True)
        bench.edge(ctx, False, True)
        assert ctx.get(crossing.output.valid)
        assert ctx.get(crossing.output.payload.tag) == 5
        assert ctx.get(crossing.output.payload.line) == 1 << 511 | 3

    bench.run(testbench)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 3}, "power of two of at least 2, not 3"),
        ({"depth": 1}, "power of two of at least 2, not 1"),
        ({"stages": 1}, "at least 2 synchroniser stages, not 1"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        Crossing(8, "write", "read", **arguments)
