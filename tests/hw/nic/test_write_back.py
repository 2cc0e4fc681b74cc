"""The write-back by itself, under random back-pressure."""

import random

import pytest

from hw.bus.tlp import TlpType
from hw.nic.descriptor_fetch import PER_LINE
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_WRITE_BACK, PacketType
from hw.nic.write_back import WriteBack
from tests.hw.simulate import simulate

BASE = 0x12_3456_0080
LINE = PER_LINE * DESCRIPTOR_BYTES


async def start(ctx, write_back, *, size, head):
    ctx.set(write_back.ring, {"base": BASE, "size": size})
    ctx.set(write_back.start_head, head)
    ctx.set(write_back.start, 1)
    assert ctx.get(write_back.idle) and not ctx.get(write_back.quiet)
    await ctx.tick("nic")
    ctx.set(write_back.start, 0)
    assert ctx.get(write_back.head) == head and ctx.get(write_back.quiet)


def written(beat):
    """The descriptors of a line, as memory will hold them."""
    raw = beat.data.to_bytes(LINE, "little")
    return [RX_WRITE_BACK.unpack(raw[at : at + DESCRIPTOR_BYTES]) for at in range(0, LINE, DESCRIPTOR_BYTES)]


@pytest.mark.parametrize(
    ("size", "head", "gap", "flush", "ready"),
    [
        (8, 0, 0.0, 0.0, 1.0),
        (8, 3, 0.3, 0.0, 0.2),
        (16, 15, 0.5, 0.2, 0.5),
        (24, 2, 0.0, 0.9, 0.1),
        (64, 62, 0.8, 1.0, 0.9),
    ],
)
def test_random(size, head, gap, flush, ready):
    """Every descriptor is written once, in order; a TLP ends its line, or was asked for by ``flush``."""
    write_back = WriteBack()
    rng = random.Random(size * 100 + head)
    total = 240

    async def bench(ctx, head):
        await start(ctx, write_back, size=size, head=head)
        given, sent, pending = head, head, []  # absolute: index plus laps
        end, offer, flushed, previous = head + total, None, False, None
        whole = parts = 0
        for _ in range(30 * total):
            if offer is None and given < end and rng.random() >= gap:
                offer = {
                    "length": rng.randrange(1, 1 << 14),
                    "eop": rng.getrandbits(1),
                    "packet_type": PacketType.from_bits(rng.getrandbits(13)),
                    "packet": given + 1,
                }
            flushing = rng.random() < flush or given == end
            ctx.set(write_back.finished.valid, offer is not None)
            if offer:
                ctx.set(write_back.finished.payload, offer)
            ctx.set(write_back.flush, flushing)
            ctx.set(write_back.send.ready, rng.random() < ready)
            valid, accepted = ctx.get(write_back.send.valid), ctx.get(write_back.send.ready)
            assert ctx.get(write_back.head) == sent % size
            assert ctx.get(write_back.done) == (valid and accepted)
            assert ctx.get(write_back.idle) == (not pending)
            if ctx.get(write_back.quiet):
                assert not valid and offer is None
            if valid:
                beat = ctx.get(write_back.send.payload)
                count = beat.header.length // DESCRIPTOR_BYTES
                lane = sent % PER_LINE
                if previous is None:
                    assert (lane + count == PER_LINE) or flushed, "part of a line that nobody asked for"
                    whole, parts = whole + (lane + count == PER_LINE), parts + (lane + count < PER_LINE)
                else:
                    assert beat.as_bits() == previous
                previous = beat.as_bits()
                assert (beat.first, beat.last, beat.header.kind) == (1, 1, TlpType.MEMORY_WRITE)
                assert beat.header.address == BASE + sent % size * DESCRIPTOR_BYTES
                assert beat.header.length == count * DESCRIPTOR_BYTES
                assert 0 < count <= PER_LINE - lane
                assert beat.header.packet == pending[0]["packet"]
                line = written(beat)
                for descriptor, expected in zip(line[lane : lane + count], pending[:count], strict=True):
                    assert descriptor["dd"] == 1
                    assert descriptor["packet_type"] == expected["packet_type"].as_bits()
                    assert (descriptor["eop"], descriptor["length"]) == (expected["eop"], expected["length"])
                if accepted:
                    lanes = ctx.get(write_back.sent_lanes)
                    assert lanes == ((1 << count) - 1) << lane
                    told = ctx.get(write_back.sent)
                    for place, expected in enumerate(pending[:count], lane):
                        assert (told[place].packet, told[place].length) == (expected["packet"], expected["length"])
                    del pending[:count]
                    sent += count
                    previous = None
            if offer and ctx.get(write_back.finished.ready):
                pending.append(offer)
                given, offer = given + 1, None
            flushed = flushing
            await ctx.tick("nic")
            if sent == end:
                break
        assert sent == end and ctx.get(write_back.idle)
        assert whole and (flush == 0 or parts)

    async def twice(ctx):
        await bench(ctx, head)
        await bench(ctx, 5)

    simulate(write_back, twice)


def test_latency():
    """Four descriptors in four cycles; their TLP is offered two edges after the last one, not one, without a flush."""
    write_back = WriteBack()

    async def bench(ctx):
        await start(ctx, write_back, size=8, head=4)
        ctx.set(write_back.send.ready, 1)
        for packet in range(1, 5):
            ctx.set(write_back.finished.valid, 1)
            ctx.set(write_back.finished.payload, {"length": 60, "eop": 1, "packet": packet})
            assert ctx.get(write_back.finished.ready)
            await ctx.tick("nic")
        ctx.set(write_back.finished.valid, 0)
        assert not ctx.get(write_back.send.valid) and not ctx.get(write_back.quiet)
        await ctx.tick("nic")
        assert ctx.get(write_back.send.valid) and ctx.get(write_back.head) == 4
        await ctx.tick("nic")
        assert ctx.get(write_back.head) == 0 and ctx.get(write_back.idle) and ctx.get(write_back.quiet)

    simulate(write_back, bench)


def test_waits_for_flush():
    """Part of a line waits, quiet, until it is asked for; what comes meanwhile is not in the TLP on its way."""
    write_back = WriteBack()

    async def finish(ctx, packet):
        ctx.set(write_back.finished.valid, 1)
        ctx.set(write_back.finished.payload, {"length": 60, "eop": 1, "packet": packet})
        assert ctx.get(write_back.finished.ready)
        await ctx.tick("nic")
        ctx.set(write_back.finished.valid, 0)

    async def bench(ctx):
        await start(ctx, write_back, size=8, head=0)
        await finish(ctx, 1)
        for _ in range(10):
            assert ctx.get(write_back.quiet) and not ctx.get(write_back.idle) and not ctx.get(write_back.send.valid)
            await ctx.tick("nic")
        ctx.set(write_back.flush, 1)
        assert not ctx.get(write_back.quiet)
        await ctx.tick("nic")
        assert ctx.get(write_back.send.valid)
        for packet in (2, 3, 4):  # the link is busy
            await finish(ctx, packet)
        assert not ctx.get(write_back.finished.ready), "the line is at its end"
        for expected in (1, 3):
            header = ctx.get(write_back.send.payload.header)
            assert header.length == expected * DESCRIPTOR_BYTES
            assert header.address == BASE + (header.packet - 1) * DESCRIPTOR_BYTES
            ctx.set(write_back.send.ready, 1)
            await ctx.tick("nic")
            ctx.set(write_back.send.ready, 0)
            assert ctx.get(write_back.head) == header.packet - 1 + expected
            await ctx.tick("nic")
        assert ctx.get(write_back.idle)

    simulate(write_back, bench)
