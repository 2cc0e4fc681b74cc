"""The transmitting MAC: wire time to the cycle, padding, frame check sequence."""

import math
import random
import zlib
from fractions import Fraction
from itertools import pairwise

import pytest

from hw.config import load_machine
from hw.nic.registers import REG
from hw.nic.tx_mac import MacTransmit
from tests.hw.simulate import simulate

BOTH = REG.HLREG0.TXCRCEN.mask | REG.HLREG0.TXPADEN.mask
PREAMBLE, GAP = 8, 12


def beats(raw: bytes, packet: int, insert_fcs: int, rng: random.Random) -> list[dict]:
    """A packet as the packet buffer offers it, with whatever behind its end."""
    return [
        {
            "data": int.from_bytes((raw[at : at + 64] + rng.randbytes(64))[:64], "little"),
            "first": at == 0,
            "last": at + 64 >= len(raw),
            "length": len(raw),
            "packet": packet,
            "insert_fcs": insert_fcs,
        }
        for at in range(0, len(raw), 64)
    ]


def send(packets, *settings, hlreg0=BOTH, insert_fcs=1, starts=None):
    """Send ``packets``, each offered from its cycle in ``starts`` on; returns frames and [(departure, began)]."""
    config = load_machine("tiny", settings)
    mac, rng = MacTransmit(config), random.Random(5)
    frames, departures, lengths = [], [], []

    async def bench(ctx):
        ctx.set(mac.hlreg0.value, hlreg0)
        queue = [
            (starts[n] if starts else 0, beat)
            for n, raw in enumerate(packets)
            for beat in beats(raw, n + 1, insert_fcs, rng)
        ]
        cycle, partial = 0, b""
        while queue or not ctx.get(mac.idle):
            offer = bool(queue) and (cycle >= queue[0][0] or not queue[0][1]["first"])
            ctx.set(mac.packets.valid, offer)
            if offer:
                ctx.set(mac.packets.payload, queue[0][1])
            through = offer and ctx.get(mac.packets.ready)
            if through:
                queue.pop(0)
            gone = ctx.get(mac.wire.valid)
            if gone:
                beat = ctx.get(mac.wire.payload)
                assert beat.first == (not partial) and beat.packet == len(frames) + 1
                line = beat.data.to_bytes(64, "little")
                left = beat.length - len(partial)
                assert not any(line[left:]) and beat.last == (left <= 64)
                partial += line[:left]
                if beat.last:
                    assert ctx.get(mac.frame.valid) and ctx.get(mac.frame.fields["packet"]) == beat.packet
                    departures.append((cycle, ctx.get(mac.frame.fields["began"])))
                    frames.append(partial)
                    partial = b""
            assert ctx.get(mac.frame.valid) == ctx.get(mac.sent.valid) == bool(gone and beat.last)
            if ctx.get(mac.sent.valid):
                lengths.append(ctx.get(mac.sent.length))
            if ctx.get(mac.quiet):
                assert not gone and not through
            await ctx.tick("nic")
            cycle += 1
        assert ctx.get(mac.quiet) and not ctx.get(mac.departure.armed)

    simulate(mac, bench)
    assert lengths == [len(frame) for frame in frames]
    return frames, departures


def with_fcs(raw: bytes) -> bytes:
    return raw + zlib.crc32(raw).to_bytes(4, "little")


def test_every_length_of_the_last_beat():
    """The FCS is that of the standard wherever the packet ends, in the beat or in one of its own."""
    rng = random.Random(1)
    packets = [rng.randbytes(size) for size in [*range(1, 20), *range(55, 132)]]
    frames, _ = send(packets, "nic.line_gbps=100.0")
    assert frames == [with_fcs(raw.ljust(60, b"\0")) for raw in packets]


@pytest.mark.parametrize(
    ("hlreg0", "insert_fcs", "make"),
    [
        (BOTH, 0, lambda raw: raw),
        (0, 1, lambda raw: raw),
        (REG.HLREG0.TXCRCEN.mask, 1, with_fcs),
        (REG.HLREG0.TXPADEN.mask, 1, lambda raw: raw.ljust(60, b"\0")),
    ],
)
def test_without_padding_or_fcs(hlreg0, insert_fcs, make):
    packets = [bytes(range(1, size + 1)) for size in (2, 3, 20, 59, 60, 61, 64, 65, 100)]
    frames, _ = send(packets, hlreg0=hlreg0, insert_fcs=insert_fcs)
    assert frames == [make(raw) for raw in packets]


@pytest.mark.parametrize("gbps", ["10.0", "25.0", "40.0"])
def test_wire_time_to_the_cycle(gbps):
    """Without a pause before it, a frame ends at its bytes' exact time, rounded up, but for one beat per edge."""
    rng = random.Random(2)
    packets = [rng.randbytes(rng.choice([60, 61, 64, 124, 200, 700])) for _ in range(12)]
    frames, departures = send(packets, f"nic.line_gbps={gbps}")
    per_byte = load_machine("tiny", [f"nic.line_gbps={gbps}"]).cycles_per_byte(float(gbps))
    at = Fraction(1)  # taken from the packet buffer at edge 0, on the wire's doorstep at 1
    for frame, (cycle, began) in zip(frames, departures, strict=True):
        assert began in (math.floor(at), math.ceil(at) - 1)  # a byte's time is kept rounded down
        before = math.ceil(at + (PREAMBLE + (len(frame) - 1) // 64 * 64) * per_byte) if len(frame) > 64 else 0
        at += (PREAMBLE + len(frame)) * per_byte
        assert cycle == max(math.ceil(at), before + 1)
        at += GAP * per_byte


def test_a_frame_after_a_pause_begins_one_edge_after_it_was_taken():
    starts = [0, 7, 200, 203, 500]
    _, departures = send([bytes(60)] * 5, starts=starts)
    time = math.ceil(Fraction(72) * Fraction(2, 5))  # 8 + 64 bytes at 10 Gb/s and 500 MHz
    assert departures[0] == (1 + time, 1)
    assert departures[2] == (201 + time, 201) and departures[4] == (501 + time, 501)
    assert departures[1][1] == math.floor(1 + 84 * Fraction(2, 5)) and departures[3][1] == math.floor(
        201 + 84 * Fraction(2, 5)
    )


def test_line_rate_of_the_shortest_frames():
    """At the fastest line a card of this clock may have, frames of one byte more than a beat follow without a pause."""
    gbps = 85 * 8 / 2 * 0.5  # see MachineConfig: two beats, two cycles, at 500 MHz
    _, departures = send([bytes(61)] * 40, f"nic.line_gbps={gbps}")
    assert {b - a for (a, _), (b, _) in pairwise(departures)} == {2}
