"""Packet buffer, payload writer and arbiter by themselves, under random back-pressure."""

import random
from collections import deque
from itertools import pairwise

import pytest

from hw.bus.tlp import TlpBeat
from hw.nic.drop import DropReason
from hw.nic.packet_buffer import PacketBuffer
from hw.nic.payload_writer import PayloadWriter
from hw.nic.tlp_arbiter import TlpArbiter
from tests.hw.simulate import simulate


def chunks(raw):
    return [int.from_bytes(raw[at : at + 64], "little") for at in range(0, len(raw), 64)]


@pytest.mark.parametrize(("ready", "gap"), [(1.0, 0.0), (0.9, 0.5), (0.4, 0.1), (0.1, 0.0)])
def test_packet_buffer(ready, gap):
    """Good packets come out whole and in order, bad ones leave no trace, those without room are dropped whole."""
    buffer = PacketBuffer(1)  # 16 rows
    rng = random.Random(int(ready * 10))
    frames = []
    for packet in range(1, 120):
        raw = rng.randbytes(rng.choice([60, 64, 65, 68, 128, 132, 200, 400]))
        frames.append((packet, raw, rng.random() < 0.2, rng.choice([0, 4])))

    async def bench(ctx):
        expected, got, dropped = deque(), [], set()
        verdict, partial, idle = None, b"", 0
        todo = deque(
            (packet, raw, bad, strip, at, at + 64 >= len(raw))
            for packet, raw, bad, strip in frames
            for at in range(0, len(raw), 64)
        )
        while idle < 40:
            offer = todo.popleft() if todo and rng.random() >= gap else None
            ctx.set(buffer.input.valid, offer is not None)
            if offer:
                packet, raw, bad, strip, at, _ = offer
                beat = {"data": int.from_bytes(raw[at : at + 64], "little"), "first": at == 0}
                ctx.set(buffer.input.payload, beat)
            ctx.set(buffer.end.valid, verdict is not None)
            if verdict:
                packet, raw, bad, strip = verdict
                ctx.set(buffer.end.payload, {"discard": bad, "length": len(raw) - strip, "packet": packet})
            ctx.set(buffer.output.ready, rng.random() < ready)
            missed = ctx.get(buffer.missed)
            assert missed == ctx.get(buffer.drop.valid)
            if missed:
                assert ctx.get(buffer.drop.fields["reason"]) == DropReason.NO_BUFFER.value
                dropped.add(ctx.get(buffer.drop.fields["packet"]))
            elif verdict and not verdict[2]:
                expected.append((verdict[0], verdict[1][: len(verdict[1]) - verdict[3]]))
            if ctx.get(buffer.output.valid) and ctx.get(buffer.output.ready):
                out = ctx.get(buffer.output.payload)
                packet, raw = expected[0]
                assert (out.packet, out.length, out.first) == (packet, len(raw), partial == b"")
                partial += out.data.to_bytes(64, "little")
                assert out.last == (len(partial) >= len(raw))
                if out.last:
                    assert partial[: len(raw)] == raw
                    got.append(packet)
                    expected.popleft()
                    partial = b""
            idle = idle + 1 if not (todo or expected or verdict) else 0
            verdict = offer[:4] if offer and offer[5] else None
            await ctx.tick("nic")
        assert ctx.get(buffer.empty) and ctx.get(buffer.quiet)
        bad = {packet for packet, _, is_bad, _ in frames if is_bad}
        assert sorted([*got, *dropped, *bad]) == [packet for packet, *_ in frames]
        assert (ready < 0.5) == bool(dropped), len(dropped)
        assert len(got) > 15

    simulate(buffer, bench)


def test_packet_buffer_latency():
    """A packet is offered two edges after its end, not one."""
    buffer = PacketBuffer(1)

    async def bench(ctx):
        ctx.set(buffer.input.valid, 1)
        ctx.set(buffer.input.payload, {"data": 7, "first": 1})
        await ctx.tick("nic")
        ctx.set(buffer.input.valid, 0)
        ctx.set(buffer.end.valid, 1)
        ctx.set(buffer.end.payload, {"length": 60, "packet": 1})
        await ctx.tick("nic")
        ctx.set(buffer.end.valid, 0)
        assert not ctx.get(buffer.output.valid) and not ctx.get(buffer.quiet)
        await ctx.tick("nic")
        assert ctx.get(buffer.output.valid)

    simulate(buffer, bench)


@pytest.mark.parametrize("mps", [128, 256, 4096])
def test_payload_writer(mps):
    """Any address and length: TLPs that end at multiples of the maximum payload size and carry the right bytes."""
    writer = PayloadWriter(mps)
    rng = random.Random(mps)

    async def bench(ctx):
        for packet in range(1, 40):
            address = 0x10000 * packet + rng.choice([0, 1, 63, 64, rng.randrange(4096)])
            raw = rng.randbytes(rng.choice([1, 63, 64, 65, 128, rng.randint(1, 1500)]))
            beats, memory, tlps, begun = deque(chunks(raw)), {}, [], False
            while not (begun and ctx.get(writer.idle & ~writer.send.valid)):
                ctx.set(writer.segment.valid, not begun)
                ctx.set(writer.segment.payload, {"address": address, "length": len(raw), "packet": packet})
                ctx.set(writer.packets.valid, bool(beats) and rng.random() < 0.8)
                if beats:
                    ctx.set(writer.packets.payload.data, beats[0])
                ctx.set(writer.send.ready, rng.random() < 0.7)
                if ctx.get(writer.segment.valid & writer.segment.ready):
                    begun = True
                if ctx.get(writer.packets.valid & writer.packets.ready):
                    beats.popleft()
                if ctx.get(writer.send.valid & writer.send.ready):
                    beat = ctx.get(writer.send.payload)
                    header = beat.header
                    if beat.first:
                        tlps.append([header.address, header.length, 0])
                        at = header.address
                    size = min(64 - at % 64, header.address + header.length - at)
                    data = beat.data.to_bytes(64, "little")[at % 64 :][:size]
                    memory |= {at + i: b for i, b in enumerate(data)}
                    at += size
                    tlps[-1][2] += size
                    assert beat.last == (at == header.address + header.length) and header.packet == packet
                await ctx.tick("nic")
            assert ctx.get(writer.complete) and not beats
            assert bytes(memory[address + i] for i in range(len(raw))) == raw and len(memory) == len(raw)
            for first, length, sent in tlps:
                assert first // mps == (first + length - 1) // mps and sent == length
            assert len(tlps) == (address + len(raw) - 1) // mps - address // mps + 1

    simulate(writer, bench)


def test_payload_writer_ends_behind_the_tlp_when_told():
    writer = PayloadWriter(128)

    async def bench(ctx):
        ctx.set(writer.segment.valid, 1)
        ctx.set(writer.segment.payload, {"address": 0, "length": 1000})
        ctx.set(writer.packets.valid, 1)
        ctx.set(writer.send.ready, 1)
        await ctx.tick("nic")
        ctx.set(writer.segment.valid, 0)
        await ctx.tick("nic").repeat(3)
        ctx.set(writer.abort, 1)
        beats = []
        for _ in range(10):
            if ctx.get(writer.send.valid):
                beats.append(ctx.get(writer.send.payload.last))
            await ctx.tick("nic")
        assert beats[-1] == 1 and len(beats) <= 2
        assert ctx.get(writer.idle) and not ctx.get(writer.complete)

    simulate(writer, bench)


def test_arbiter_keeps_packets_whole_and_offers_steady():
    arbiter = TlpArbiter(3)
    rng = random.Random(9)

    async def bench(ctx):
        queues = [
            deque(
                (source, packet, beat, length)
                for packet in range(30)
                for length in [rng.randint(1, 4)]
                for beat in range(length)
            )
            for source in range(3)
        ]
        offered = [False] * 3
        seen, before, stalled = [], None, False
        while any(queues) or ctx.get(arbiter.output.valid):
            for index, queue in enumerate(queues):
                offered[index] = bool(queue) and (offered[index] or rng.random() < 0.5)
                ctx.set(arbiter.inputs[index].valid, offered[index])
                if queue:
                    source, packet, beat, length = queue[0]
                    word = source << 16 | packet << 8 | beat
                    ctx.set(
                        arbiter.inputs[index].payload,
                        TlpBeat.const({"data": word, "first": beat == 0, "last": beat == length - 1}),
                    )
            ctx.set(arbiter.output.ready, rng.random() < 0.6)
            valid, word = ctx.get(arbiter.output.valid), ctx.get(arbiter.output.payload.data)
            assert not ctx.get(arbiter.quiet) or not valid
            if stalled:
                assert valid and word == before, "an offer was withdrawn"
            stalled, before = valid and not ctx.get(arbiter.output.ready), word
            for index, queue in enumerate(queues):
                if ctx.get(arbiter.inputs[index].valid & arbiter.inputs[index].ready):
                    seen.append(queue.popleft())
                    offered[index] = False
                    assert word == seen[-1][0] << 16 | seen[-1][1] << 8 | seen[-1][2]
            await ctx.tick("nic")
        assert len(seen) == len(set(seen))
        for one, two in pairwise(seen):
            if one[2] != one[3] - 1:
                assert two[:3] == (one[0], one[1], one[2] + 1), "a packet was interrupted"

    simulate(arbiter, bench)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PacketBuffer(3), "a packet buffer is a power of two KiB large, not 3"),
        (lambda: PayloadWriter(96), "power of two of at least 64 bytes, not 96"),
        (lambda: TlpArbiter(0), "an arbiter has at least one input, not 0"),
    ],
)
def test_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
