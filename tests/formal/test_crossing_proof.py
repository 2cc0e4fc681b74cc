"""Crossing, for every interleaving of its two clocks: nothing lost, doubled, reordered or late; quiet is right."""

import pytest
from amaranth.hdl import Array, Cat, Const, Signal, Value

from hw.lib import crossing as crossing_module
from hw.lib.crossing import Crossing
from tests.formal.prove import FORMAL_DOMAIN, Harness, ProofFailed, prove_quiet


def binary(gray: Value) -> Cat:
    """Decode Gray code."""
    return Cat(gray[bit:].xor() for bit in range(len(gray)))


def prove_crossing(depth: int, stages: int, **tasks: int) -> None:
    """Compare a crossing with an ideal queue that takes and gives the same items; run ``tasks`` (mode and depth)."""
    crossing = Crossing(2, "write", "read", depth=depth, stages=stages)
    width = len(crossing._produced)
    contents = [crossing._storage.read_port(domain="comb") for _ in range(depth)]
    harness = Harness(crossing)
    m, d = harness.module, harness.module.d[FORMAL_DOMAIN]
    m.d.comb += [port.addr.eq(index) for index, port in enumerate(contents)]

    # The ideal queue: its counters wrap, which is safe as long as it never holds more than ``depth``.
    written, read, level = Signal(width), Signal(width), Signal(width)
    ideal = [Signal(2, name=f"ideal{index}") for index in range(depth)]
    accept, take = Signal(), Signal()
    m.d.comb += [
        level.eq(written - read),
        accept.eq(harness.tick["write"] & crossing.input.valid & crossing.input.ready),
        take.eq(harness.tick["read"] & crossing.output.valid & crossing.output.ready),
    ]
    with m.If(accept):
        d += [written.eq(written + 1), Array(ideal)[written[:-1]].eq(crossing.input.payload)]
    with m.If(take):
        d += read.eq(read + 1)

    # How long each side had to notice what the other did last
    noticing = {}
    for tick, news in (("read", accept), ("write", take)):
        noticing[tick] = waited = Signal(range(stages + 1), name=f"waited_{tick}", init=stages)
        with m.If(news):
            d += waited.eq(0)
        with m.Elif(harness.tick[tick] & (waited != stages)):
            d += waited.eq(waited + 1)

    # What the crossing promises
    harness.always(~crossing.input.ready | (level != depth), "no overrun")
    harness.always(~crossing.output.valid | (level != 0), "nothing from nowhere")
    harness.always(~crossing.output.valid | (crossing.output.payload == Array(ideal)[read[:-1]]), "the right item")
    harness.always((noticing["read"] != stages) | (level == 0) | crossing.output.valid, "offered in time")
    harness.always((noticing["write"] != stages) | (level == depth) | crossing.input.ready, "free in time")
    for gray in (crossing._produced_gray, crossing._consumed_gray):
        changed = gray ^ harness.past(gray)
        harness.always((changed & (changed - 1)) == 0, "a pointer that is sampled changes in one bit only")

    # Why: the pointers any flip-flop holds lie between those of the two sides, in order of age
    harness.always(level <= depth, "level")
    harness.always((crossing._produced == written) & (crossing._consumed == read), "pointers")
    harness.always(binary(crossing._produced_gray) == written, "produced in Gray code")
    harness.always(binary(crossing._consumed_gray) == read, "consumed in Gray code")
    harness.always(Cat(p.data == i for p, i in zip(contents, ideal, strict=True)).all(), "storage")
    distance = level
    for stage, seen in enumerate(crossing._produced_seen):
        closer = (binary(seen) - read)[:width]
        harness.always(closer <= distance, f"produced_seen{stage}")
        harness.always((noticing["read"] <= stage) | (binary(seen) == written), f"produced_seen{stage} in time")
        distance = closer
    distance = level
    for stage, seen in enumerate(crossing._consumed_seen):
        farther = (written - binary(seen))[:width]
        harness.always((farther >= distance) & (farther <= depth), f"consumed_seen{stage}")
        harness.always((noticing["write"] <= stage) | (binary(seen) == read), f"consumed_seen{stage} in time")
        distance = farther

    # It does fill, wrap and empty again
    was_full = Signal()
    with m.If(level == depth):
        d += was_full.eq(1)
    harness.cover(was_full & (level == 0) & (read[:-1] == depth - 1))
    harness.run(**tasks)


@pytest.mark.parametrize(("depth", "stages"), [(2, 2), (4, 2), (4, 3)])
def test_ideal_queue(depth, stages):
    prove_crossing(depth, stages, prove=2, cover=4 * (depth + stages))


def test_finds_overrun(monkeypatch):
    """Planted: the write side does not see that it is full."""
    monkeypatch.setattr(crossing_module, "_full", lambda produced, consumed: Const(0))
    with pytest.raises(ProofFailed, match="no overrun"):
        prove_crossing(2, 2, bmc=16)


def test_finds_binary_pointers(monkeypatch):
    """Planted: pointers cross in binary, so a flip-flop could catch a mixture of two values."""
    monkeypatch.setattr(crossing_module, "_gray", lambda binary: binary)
    with pytest.raises(ProofFailed, match="changes in one bit only"):
        prove_crossing(4, 2, bmc=16)


def test_finds_a_skipped_stage(monkeypatch):
    """Planted: the last flip-flop samples the pointer itself, so data is offered before it is fetched."""
    monkeypatch.setattr(
        crossing_module, "_synchronise", lambda flops, source: [flops[0].eq(source), flops[-1].eq(source)]
    )
    with pytest.raises(ProofFailed, match="the right item"):
        prove_crossing(4, 2, bmc=16)


def quiet_of(crossing: Crossing, side: str) -> dict:
    """Arguments of a quiet proof for one side, with the handshake as the machine combines it."""
    gray = [(crossing._produced, crossing._produced_gray), (crossing._consumed, crossing._consumed_gray)]
    own = crossing.write_quiet if side == "write" else crossing.read_quiet
    stream = crossing.input if side == "write" else crossing.output
    return {
        "domain": side,
        "quiet": own & ~(stream.valid & stream.ready),
        "invariants": [shown == (pointer ^ (pointer >> 1)) for pointer, shown in gray],
    }


@pytest.mark.parametrize("side", ["write", "read"])
def test_quiet(side):
    crossing = Crossing(2, "write", "read")
    prove_quiet(crossing, **quiet_of(crossing, side))


@pytest.mark.parametrize("side", ["write", "read"])
def test_finds_quiet_too_soon(side, monkeypatch):
    """Planted: quiet when the first flip-flop has settled, the second not yet."""
    monkeypatch.setattr(crossing_module, "_settled", lambda flops, source: flops[0] == source)
    crossing = Crossing(2, "write", "read")
    with pytest.raises(ProofFailed, match=r"is stable|stays"):
        prove_quiet(crossing, **quiet_of(crossing, side), mode="bmc", depth=8)
