"""The MAC: wire time to the cycle, frame check sequence, lengths, filters."""

import math
import random
import zlib
from fractions import Fraction
from itertools import pairwise

import pytest
from amaranth.sim import Simulator

from hw.bus.wire import FrameBeat
from hw.config import load_machine
from hw.nic.crc import CRC_INIT, CRC_RESIDUES, Crc32, next_crc
from hw.nic.drop import DropReason
from hw.nic.mac import MacReceive
from hw.nic.registers import REG, STATION_ADDRESS
from tests.hw.nic.card_bench import BROADCAST, frame, frame_beats
from tests.hw.simulate import simulate

ON = {
    "rxctrl": 1,
    "hlreg0": REG.HLREG0.RXCRCSTRP.mask,
    "rdrxctl": REG.RDRXCTL.CRCSTRIP.mask,
    "maxfrs": 1518 << 16,
    "ral": int.from_bytes(STATION_ADDRESS[:4], "little"),
    "rah": REG.RAH.AV.mask | int.from_bytes(STATION_ADDRESS[4:], "little"),
}


def run(frames, *settings, registers=None, valid=1.0, reset_at=()):
    """Receive ``frames`` [(bytes, start)]; returns arrival cycles, packets {id: bytes}, drops {id: reason}."""
    config = load_machine("tiny", settings)
    mac = MacReceive(config)
    beats = [b for n, (raw, start) in enumerate(frames, 1) for b in frame_beats(raw, n, start)]
    rng = random.Random(3)
    arrivals, packets, drops, events = {}, {}, {}, []

    async def bench(ctx):
        for name, value in {**ON, **(registers or {})}.items():
            ctx.set(getattr(mac, name).value, value)
        queue, partial, following, cycle, idle = list(beats), b"", b"", 0, 0
        while idle < 8:
            offer = bool(queue) and rng.random() < valid
            ctx.set(mac.resetting, cycle in reset_at)
            ctx.set(mac.wire.valid, offer)
            if offer:
                ctx.set(mac.wire.payload, FrameBeat.from_bits(queue[0]))
            if offer and ctx.get(mac.wire.ready):
                queue.pop(0)
            quiet = ctx.get(mac.quiet)
            if ctx.get(mac.frame.valid):
                assert not quiet
                arrivals[ctx.get(mac.frame.fields["packet"])] = cycle
            if ctx.get(mac.drop.valid):
                drops[ctx.get(mac.drop.fields["packet"])] = DropReason(ctx.get(mac.drop.fields["reason"]))
            if ctx.get(mac.packets.valid):
                assert not quiet
                beat = ctx.get(mac.packets.payload)
                following = (b"" if beat.first else partial) + beat.data.to_bytes(64, "little")
            if ctx.get(mac.end.valid):
                assert not quiet
                end = ctx.get(mac.end.payload)
                events.append(ctx.get(mac.events))
                if not end.discard:
                    packets[end.packet] = partial[: end.length]
            partial = following
            idle = idle + 1 if not queue and quiet and not ctx.get(mac.arrival.armed) else 0
            await ctx.tick("nic")
            cycle += 1

    simulate(mac, bench)
    return arrivals, packets, drops, events


def test_crc_of_a_beat_is_that_of_the_standard():
    crc32 = Crc32()
    rng = random.Random(1)

    async def bench(ctx):
        ctx.set(crc32.valid, 1)
        for _ in range(20):
            raw, before = rng.randbytes(64), rng.getrandbits(32)
            ctx.set(crc32.data, int.from_bytes(raw, "little"))
            ctx.set(crc32.crc, before)
            assert ctx.get(crc32.next) == next_crc(before, raw)
        raw = rng.randbytes(64)
        ctx.set(crc32.data, int.from_bytes(raw, "little"))
        ctx.set(crc32.crc, CRC_INIT)
        assert ctx.get(crc32.next) ^ 0xFFFF_FFFF == zlib.crc32(raw)

    sim = Simulator(crc32)
    sim.add_testbench(bench)
    sim.run()


def test_residues():
    for size in range(60, 128):
        raw = frame(size)
        padded = raw + bytes(-len(raw) % 64)
        assert next_crc(CRC_INIT, padded) == CRC_RESIDUES[(len(raw) - 1) % 64 + 1]


@pytest.mark.parametrize("gbps", [10.0, 9.3, 40.0, 100.0])
def test_wire_time_to_the_cycle(gbps):
    """A frame arrives when its last byte does, at edge t and not at t - 1, back to back and after a pause."""
    sizes = [64, 64, 65, 128, 64, 200, 64]
    pause = 500
    frames = [(frame(s, fill=n), pause if n == 5 else 0) for n, s in enumerate(sizes)]
    arrivals, packets, drops, _ = run(frames, f"nic.line_gbps={gbps}")
    byte = Fraction(500) * 8 / (Fraction(str(gbps)) * 1000)
    line = Fraction(0)
    passed = 1  # a beat handed over at edge 0 can pass at edge 2
    for n, (raw, start) in enumerate(frames, 1):
        begin = max(line, Fraction(start)) + 8 * byte
        for at in range(64, len(raw) + 64, 64):
            # One beat per edge: a last byte alone in its beat may have to wait for the edge after
            passed = max(math.ceil(begin + min(at, len(raw)) * byte), passed + 1)
        line = begin + (len(raw) + 12) * byte
        assert arrivals[n] == passed, n
    assert not drops and len(packets) == len(sizes)


def test_a_frame_handed_over_late_begins_then():
    """Beats come when the random source pleases; no frame takes less time than it needs on the wire."""
    arrivals, *_ = run([(frame(64, fill=n), 0) for n in range(20)], valid=0.02)
    times = [arrivals[n] for n in range(1, 21)]
    gaps = [late - early for early, late in pairwise(times)]
    assert min(gaps) >= math.floor(Fraction(2, 5) * 84) and max(gaps) > 40


def test_line_rate_at_10_gigabit():
    arrivals, *_ = run([(frame(64), 0)] * 12)
    times = [arrivals[n] for n in range(1, 13)]
    assert times == [math.ceil(Fraction(2, 5) * (72 + 84 * n)) for n in range(12)]


def test_random_frames_with_gaps_in_handing_over():
    rng = random.Random(5)
    frames, bad = [], set()
    for n in range(1, 40):
        raw = bytearray(frame(rng.choice([64, 65, 67, 68, 69, 127, 128, 129, 192, rng.randint(64, 400)]), fill=n))
        if rng.random() < 0.3:
            raw[rng.randrange(14, len(raw))] ^= 1 << rng.randrange(8)
            bad.add(n)
        frames.append((bytes(raw), 0))
    _, packets, drops, events = run(frames, "nic.line_gbps=100.0", valid=0.5)
    assert drops == dict.fromkeys(bad, DropReason.CRC_ERROR)
    assert packets == {n: raw[:-4] for n, (raw, _) in enumerate(frames, 1) if n not in bad}
    assert [e.crc_error for e in events] == [n in bad for n in range(1, 40)]


def test_strip_needs_both_bits():
    raw = frame(100)
    for registers in ({"hlreg0": 0}, {"rdrxctl": 0}):
        _, packets, _, _ = run([(raw, 0)], registers=registers)
        assert packets == {1: raw}


def damaged(raw: bytes) -> bytes:
    return raw[:20] + bytes([raw[20] ^ 4]) + raw[21:]


@pytest.mark.parametrize(
    ("raw", "registers", "reason", "event"),
    [
        (frame(63), {}, DropReason.RUNT, "undersize"),
        (frame(20), {}, DropReason.RUNT, "undersize"),
        (b"\x55", {}, DropReason.RUNT, "fragment"),
        (damaged(frame(60)), {}, DropReason.RUNT, "fragment"),
        (frame(1518), {}, None, "good"),
        (frame(1519), {}, DropReason.OVERSIZE, "oversize"),
        (damaged(frame(1519)), {}, DropReason.OVERSIZE, "jabber"),
        (frame(1522, ethertype=b"\x81\x00"), {}, None, "good"),
        (frame(500), {"hlreg0": 4, "maxfrs": 499 << 16}, DropReason.OVERSIZE, "oversize"),
        (frame(500), {"hlreg0": 4, "maxfrs": 500 << 16}, None, "good"),
        (frame(1600), {"hlreg0": 4, "maxfrs": 9000 << 16}, DropReason.OVERSIZE, "oversize"),  # nic.max_frame
        (damaged(frame(64)), {}, DropReason.CRC_ERROR, "crc_error"),
        (frame(64), {"rxctrl": 0}, DropReason.RECEIVE_DISABLED, None),
        (frame(64, to=b"\x02\0\0\0\0\x02"), {}, DropReason.FILTERED, None),
        (frame(64, to=b"\x02\0\0\0\0\x02"), {"fctrl": REG.FCTRL.UPE.mask}, None, "good"),
        (frame(64), {"rah": ON["rah"] & ~REG.RAH.AV.mask}, DropReason.FILTERED, None),
        (frame(64, to=BROADCAST), {}, DropReason.FILTERED, None),
        (frame(64, to=BROADCAST), {"fctrl": REG.FCTRL.BAM.mask}, None, "good"),
        (frame(64, to=b"\x01\0\x5e\0\0\x01"), {"fctrl": REG.FCTRL.UPE.mask}, DropReason.FILTERED, None),
        (frame(64, to=b"\x01\0\x5e\0\0\x01"), {"fctrl": REG.FCTRL.MPE.mask}, None, "good"),
    ],
)
def test_what_is_dropped_and_counted(raw, registers, reason, event):
    # A good frame behind it must not be touched
    follower = frame(70, fill=2)
    fctrl = registers.get("fctrl", 0)
    _, packets, drops, events = run([(raw, 0), (follower, 0)], "nic.line_gbps=100.0", registers=registers)
    assert drops.get(1) == reason and (1 in packets) == (reason is None)
    assert events[0].good == (reason is None) and events[0].length == len(raw)
    for name in ("undersize", "fragment", "oversize", "jabber", "crc_error"):
        counted = name == event or (event == "jabber" and name == "crc_error")
        assert getattr(events[0], name) == counted, name
    if not registers:
        assert packets[2] == follower[:-4] and not fctrl


def test_reset_spoils_the_frame_on_the_wire_only():
    frames = [(frame(300, fill=n), 0) for n in range(3)]
    # 0.4 cycles a byte: the second frame is on the wire from 128 to 251
    _, packets, drops, _ = run(frames, reset_at=(180, 181))
    assert drops == {2: DropReason.RESET} and sorted(packets) == [1, 3]
