"""Probes, counters, and how they are gathered."""

import random

import pytest
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal, signed
from amaranth.lib import data, enum
from amaranth.sim import Simulator

from hw.lib.observe import collect
from hw.lib.probe import MAX_FIELDS, Counter, Probe
from hw.lib.time import Timer


class Colour(enum.Enum, shape=2):
    RED = 1
    BLUE = 2


def simulate(m, bench):
    m.domains.uncore = ClockDomain("uncore", reset_less=True)
    sim = Simulator(m)
    sim.add_clock(1e-9, domain="uncore")
    sim.add_testbench(bench)
    sim.run()


def test_probe_fields():
    """Fields take any shape of at most 64 bits, in the order given; none at all is fine."""
    probe = Probe("uncore", "happens", colour=Colour, pair=data.StructLayout({"a": 3, "b": 4}), wide=64, less=signed(5))
    assert list(probe.fields) == ["colour", "pair", "wide", "less"]
    assert [len(field) for field in probe.fields.values()] == [2, 7, 64, 5]
    assert probe.fields["less"].shape() == signed(5)
    assert (probe.domain, probe.doc, len(probe.valid)) == ("uncore", "happens", 1)
    assert Probe("uncore", "happens").fields == {}


def test_probe_limits():
    with pytest.raises(ValueError, match="at most 4 fields, not 5"):
        Probe("uncore", "too many", **{f"f{i}": 1 for i in range(MAX_FIELDS + 1)})
    with pytest.raises(ValueError, match="'wide' must be at most 64 bits, not 65"):
        Probe("uncore", "too wide", narrow=64, wide=65)
    with pytest.raises(ValueError, match="'wide' must be at most 64 bits, not 70"):
        Probe("uncore", "too wide", wide=data.ArrayLayout(7, 10))


@pytest.mark.parametrize("values", [{}, {"a": 1}, {"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}])
def test_probe_emit_takes_exactly_its_fields(values):
    probe = Probe("uncore", "happens", a=4, b=4)
    with pytest.raises(ValueError) as error:
        probe.emit(Module(), 1, **values)
    assert str(error.value) == f"probe takes fields ['a', 'b'], not {sorted(values)}"


def test_probe_emit():
    """The event is there in the cycle of its condition, with its values."""
    m, rng = Module(), random.Random(1)
    probe = Probe("uncore", "happens", colour=Colour, number=16)
    condition, colour, number = Signal(), Signal(Colour, init=Colour.RED), Signal(16)
    probe.emit(m, condition, colour=colour, number=number + 1)

    async def bench(ctx):
        for _ in range(50):
            happens, which, value = rng.random() < 0.5, rng.choice(list(Colour)), rng.getrandbits(16)
            ctx.set(condition, happens)
            ctx.set(colour, which)
            ctx.set(number, value)
            assert ctx.get(probe.valid) == happens
            assert ctx.get(probe.fields["colour"]) == which.value
            assert ctx.get(probe.fields["number"]) == (value + 1) % 2**16
            await ctx.tick("uncore")

    simulate(m, bench)


def test_counter():
    """Counts edges at which the condition holds, by one or by an amount, beyond 32 bits."""
    m, rng = Module(), random.Random(2)
    events, octets = Counter("uncore", "events"), Counter("uncore", "bytes")
    condition, amount = Signal(), Signal(40)
    events.increment(m, condition)
    octets.increment(m, condition, by=amount)

    async def bench(ctx):
        count = total = 0
        for _ in range(100):
            happens, size = rng.random() < 0.5, rng.getrandbits(40)
            ctx.set(condition, happens)
            ctx.set(amount, size)
            await ctx.tick("uncore")
            count, total = count + happens, total + happens * size
            assert (ctx.get(events.value), ctx.get(octets.value)) == (count, total)
        assert total > 2**32

    simulate(m, bench)
    assert len(events.value) == Counter.WIDTH == 48
    assert (events.domain, events.doc) == ("uncore", "events")


class Leaf(Elaboratable):
    def __init__(self):
        self.count = Counter("uncore", "counts")
        self.event = Probe("uncore", "happens", a=1)
        self._private = Probe("uncore", "not for observers")

    def elaborate(self, platform):
        return Module()


class Tree(Elaboratable):
    def __init__(self):
        self.last = Leaf()
        self.banks = [Leaf(), Leaf()]
        self.timers = [Timer("uncore"), Timer("nic")]
        self.event = Probe("nic", "happens")
        self._hidden = Leaf()
        self.size = 3

    def elaborate(self, platform):
        return Module()


def test_collect():
    """Paths in order of definition: attributes, lists with their indices, nothing private."""
    tree = Tree()
    assert collect(tree, Probe) == {
        "last.event": tree.last.event,
        "banks0.event": tree.banks[0].event,
        "banks1.event": tree.banks[1].event,
        "event": tree.event,
    }
    assert list(collect(tree, Probe)) == ["last.event", "banks0.event", "banks1.event", "event"]
    assert list(collect(tree, Counter)) == ["last.count", "banks0.count", "banks1.count"]
    assert collect(tree, Timer) == {"timers0": tree.timers[0], "timers1": tree.timers[1]}


def test_collect_prefix():
    leaf = Leaf()
    assert collect(leaf, Counter, "nic.rx") == {"nic.rx.count": leaf.count}
    assert collect(leaf, Timer, "nic.rx") == {}
