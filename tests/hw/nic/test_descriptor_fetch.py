"""The descriptor fetch by itself: a ring in a host that answers reads late and in any order."""

import random

import pytest

from hw.bus.tilelink import PHYSICAL_ADDRESS_WIDTH
from hw.bus.tlp import TlpBeat, TlpStatus, TlpType
from hw.nic.descriptor_fetch import PER_LINE, DescriptorFetch
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ
from tests.hw.simulate import simulate

BASE = 0x12_3456_0080
LINE = PER_LINE * DESCRIPTOR_BYTES


def completion(address, buffers, tag, *, status=TlpStatus.SUCCESS, others=0):
    """The answer to a read of descriptors with ``buffers``; places of the line not read hold ``others``."""
    lane = address % LINE // DESCRIPTOR_BYTES
    line = [others] * PER_LINE
    line[lane : lane + len(buffers)] = buffers
    raw = b"".join(RX_READ.pack(packet_address=buffer) for buffer in line)
    size = len(buffers) * DESCRIPTOR_BYTES
    header = {
        "kind": TlpType.COMPLETION,
        "status": status,
        "address": address,
        "length": size,
        "remaining": size,
        "tag": tag,
    }
    return TlpBeat.const({"header": header, "data": int.from_bytes(raw, "little"), "first": 1, "last": 1})


async def start(ctx, fetch, *, size, head, tail):
    ctx.set(fetch.ring, {"base": BASE, "size": size, "tail": tail})
    ctx.set(fetch.head, head)
    ctx.set(fetch.start, 1)
    assert not ctx.get(fetch.exhausted) and not ctx.get(fetch.quiet)
    await ctx.tick("nic")
    ctx.set(fetch.start, 0)
    ctx.set(fetch.head, 0)
    ctx.set(fetch.running, 1)


@pytest.mark.parametrize(
    ("cache", "tags", "size", "head", "take", "accept", "latency"),
    [
        (8, 1, 8, 0, 1.0, 1.0, (1, 1)),
        (8, 4, 8, 3, 0.5, 0.7, (1, 20)),
        (16, 2, 24, 22, 0.8, 0.3, (1, 30)),
        (32, 8, 64, 5, 0.9, 0.9, (20, 60)),
        (32, 3, 16, 15, 0.2, 0.5, (1, 5)),
    ],
)
def test_random(cache, tags, size, head, take, accept, latency):
    """Descriptors come in order, lap after lap, and no read goes beyond the tail, a line or the tags allowed."""
    fetch = DescriptorFetch(cache=cache, read_tags=tags, first_tag=0x40)
    rng = random.Random(cache * 1000 + size + head)
    total = 350

    def buffer(number):  # of the descriptor that software gives as its ``number``-th: another one in each lap
        return (number * 0x9E37_79B1 + 0x1000) & ((1 << PHYSICAL_ADDRESS_WIDTH) - 1)

    async def bench(ctx):
        given = asked = sent = taken = head  # absolute: index plus laps
        end, arrived = head + total, set()
        waiting, flying, overtaken, stalled = [], {}, 0, None  # reads not on the link yet; tag: (due, first, count)
        await start(ctx, fetch, size=size, head=head, tail=head)
        for _ in range(40 * total):
            if rng.random() < 0.1:
                given = min(given + rng.randint(0, size - 1 - (given - taken)), end)
            ctx.set(fetch.ring.tail, given % size)
            running = rng.random() < 0.95
            ctx.set(fetch.running, running)
            ctx.set(fetch.read.ready, rng.random() < accept)
            ctx.set(fetch.descriptor.ready, rng.random() < take)
            due = [tag for tag, (when, *_) in flying.items() if when <= 0]
            answer = rng.choice(due) if due else None
            ctx.set(fetch.completion.valid, answer is not None)
            if answer is not None:
                _, first, count = flying[answer]
                overtaken += any(other[1] < first for other in flying.values())
                address = BASE + first % size * DESCRIPTOR_BYTES
                buffers = [buffer(number) for number in range(first, first + count)]
                ctx.set(fetch.completion.payload, completion(address, buffers, answer, others=(1 << 64) - 1))
            assert ctx.get(fetch.completion.ready) and not ctx.get(fetch.error)
            assert ctx.get(fetch.idle) == (not waiting and not flying)
            assert ctx.get(fetch.exhausted) == (given == asked == taken)
            assert ctx.get(fetch.descriptor.valid) == (running and taken in arrived)
            issue = ctx.get(fetch.issue)
            reading = ctx.get(fetch.read.valid)
            delivered = ctx.get(fetch.descriptor.valid) and ctx.get(fetch.descriptor.ready)
            if ctx.get(fetch.quiet):
                assert answer is None and not issue and not reading and not delivered

            # On the link
            assert reading == bool(waiting)
            if reading:
                beat = ctx.get(fetch.read.payload)
                assert stalled is None or stalled == beat.as_bits()
                stalled = beat.as_bits()
                first, count = waiting[0]
                assert (beat.first, beat.last, beat.header.kind) == (1, 1, TlpType.MEMORY_READ)
                assert beat.header.address == BASE + first % size * DESCRIPTOR_BYTES
                assert beat.header.length == count * DESCRIPTOR_BYTES
                assert 0x40 <= beat.header.tag < 0x40 + cache // PER_LINE
            # About to go to the link
            if issue:
                count = ctx.get(fetch.issue_count)
                address = BASE + asked % size * DESCRIPTOR_BYTES
                assert running and ctx.get(fetch.issue_address) == address
                assert count > 0 and asked + count <= given
                assert asked + count - taken <= cache
                assert address // LINE == (address + count * DESCRIPTOR_BYTES - 1) // LINE
                assert (asked + count) % PER_LINE == 0 or asked == taken, "part of a line, with a cache not empty"

            # What the edge changes
            if delivered:
                assert ctx.get(fetch.descriptor.payload.address) == buffer(taken)
                arrived.remove(taken)
                taken += 1
            flying = {tag: (when - 1, *rest) for tag, (when, *rest) in flying.items()}
            if answer is not None:
                arrived.update(range(first := flying.pop(answer)[1], first + len(buffers)))
            if reading and ctx.get(fetch.read.ready):
                assert beat.header.tag not in flying and beat.header.tag != answer
                first, count = waiting.pop()
                assert first == sent
                sent += count
                flying[beat.header.tag] = (rng.randint(*latency), first, count)
                stalled = None
            if issue:
                waiting.append((asked, count := ctx.get(fetch.issue_count)))
                asked += count
            await ctx.tick("nic")
            assert len(waiting) + len(flying) <= tags
            if taken == end:
                break
        assert taken == end, "a descriptor is missing"
        assert tags < 3 or latency[1] < 20 or overtaken, "no read was answered out of order"

    simulate(fetch, bench)


def test_tail_moves_one_by_one():
    """With descriptors in the cache, part of a line is not read: a read for each line, once the tail is at its end."""
    fetch = DescriptorFetch(cache=32, read_tags=8)

    async def bench(ctx):
        await start(ctx, fetch, size=64, head=0, tail=0)
        ctx.set(fetch.read.ready, 1)
        reads = []
        for tail in range(1, 21):
            ctx.set(fetch.ring.tail, tail)
            for _ in range(4):
                if ctx.get(fetch.issue):
                    reads.append((tail, ctx.get(fetch.issue_count)))
                reading = ctx.get(fetch.read.valid)
                header = ctx.get(fetch.read.payload.header)
                await ctx.tick("nic")
                ctx.set(fetch.completion.valid, reading)
                if reading:
                    buffers = [0x1000] * (header.length // DESCRIPTOR_BYTES)
                    ctx.set(fetch.completion.payload, completion(header.address, buffers, header.tag))
        assert reads == [(1, 1), (4, 3), (8, 4), (12, 4), (16, 4), (20, 4)]

    simulate(fetch, bench)


def test_full_cache():
    """Reads stop when the cache is full of what is on its way, and go on when a whole line has room."""
    fetch = DescriptorFetch(cache=8, read_tags=8)

    async def bench(ctx):
        await start(ctx, fetch, size=64, head=0, tail=60)
        ctx.set(fetch.read.ready, 1)
        issued = 0
        for _ in range(20):
            issued += ctx.get(fetch.issue)
            await ctx.tick("nic")
        assert issued == 2 and ctx.get(fetch.quiet)
        ctx.set(fetch.descriptor.ready, 1)
        ctx.set(fetch.completion.valid, 1)
        ctx.set(fetch.completion.payload, completion(BASE, [0x1000, 0x2000, 0x3000, 0x4000], 0))
        assert not ctx.get(fetch.descriptor.valid)
        await ctx.tick("nic")
        ctx.set(fetch.completion.valid, 0)
        for buffer in (0x1000, 0x2000, 0x3000, 0x4000):  # from the edge after the completion's on
            assert ctx.get(fetch.descriptor.valid) and not ctx.get(fetch.issue)
            assert ctx.get(fetch.descriptor.payload.address) == buffer
            await ctx.tick("nic")
        assert ctx.get(fetch.issue) and not ctx.get(fetch.descriptor.valid)

    simulate(fetch, bench)


@pytest.mark.parametrize("status", [TlpStatus.UNSUPPORTED_REQUEST, TlpStatus.SUCCESS])
def test_error(status):
    """A refused read, or a buffer beyond the address space, is an error for a cycle; a start forgets all of it."""
    fetch = DescriptorFetch(cache=16, read_tags=2)

    async def bench(ctx):
        await start(ctx, fetch, size=16, head=2, tail=8)
        ctx.set(fetch.read.ready, 1)
        for _ in range(6):
            await ctx.tick("nic")
        beyond = 1 << PHYSICAL_ADDRESS_WIDTH if status == TlpStatus.SUCCESS else 0
        answers = (
            completion(BASE + 4 * DESCRIPTOR_BYTES, [0x1000, 0x2000, 0x3000, 0x4000], 1),
            completion(BASE + 2 * DESCRIPTOR_BYTES, [0x5000, beyond + 0x6000], 0, status=status),
        )
        for expected, answer in enumerate(answers):
            assert not ctx.get(fetch.idle)
            ctx.set(fetch.completion.valid, 1)
            ctx.set(fetch.completion.payload, answer)
            assert ctx.get(fetch.error) == expected
            await ctx.tick("nic")
        ctx.set(fetch.completion.valid, 0)
        ctx.set(fetch.running, 0)
        assert ctx.get(fetch.idle) and not ctx.get(fetch.error) and not ctx.get(fetch.exhausted)
        if status != TlpStatus.SUCCESS:
            ctx.set(fetch.running, 1)
            assert not ctx.get(fetch.descriptor.valid), "what a refused read gave"
        ctx.set(fetch.running, 0)
        await start(ctx, fetch, size=16, head=4, tail=5)
        assert not ctx.get(fetch.descriptor.valid) and ctx.get(fetch.issue)
        assert ctx.get(fetch.issue_address) == BASE + 4 * DESCRIPTOR_BYTES and ctx.get(fetch.issue_count) == 1
        await ctx.tick("nic")
        tag = ctx.get(fetch.read.payload.header.tag)
        await ctx.tick("nic")
        ctx.set(fetch.completion.valid, 1)
        ctx.set(fetch.completion.payload, completion(BASE + 4 * DESCRIPTOR_BYTES, [0x7000], tag))
        await ctx.tick("nic")
        ctx.set(fetch.completion.valid, 0)
        assert ctx.get(fetch.descriptor.valid) and ctx.get(fetch.descriptor.payload.address) == 0x7000

    simulate(fetch, bench)


def test_not_running():
    """Nothing is read or offered while it does not run, and it is quiet."""
    fetch = DescriptorFetch(cache=8, read_tags=2)

    async def bench(ctx):
        await start(ctx, fetch, size=8, head=0, tail=7)
        ctx.set(fetch.running, 0)
        ctx.set(fetch.read.ready, 1)
        for _ in range(5):
            assert ctx.get(fetch.idle) and ctx.get(fetch.quiet) and not ctx.get(fetch.exhausted)
            assert not ctx.get(fetch.issue) and not ctx.get(fetch.read.valid)
            await ctx.tick("nic")
        ctx.set(fetch.running, 1)
        assert ctx.get(fetch.issue)

    simulate(fetch, bench)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"cache": 4, "read_tags": 1}, "at least 8 descriptors, not 4"),
        ({"cache": 24, "read_tags": 1}, "at least 8 descriptors, not 24"),
        ({"cache": 8, "read_tags": 0}, "at least one read tag, not 0"),
        ({"cache": 32, "read_tags": 1, "first_tag": 249}, "tags 249 to 256 exceed 8 bits"),
    ],
)
def test_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        DescriptorFetch(**parameters)
