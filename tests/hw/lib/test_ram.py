"""RAM against a list of rows."""

import random

import pytest

from hw.lib.ram import RAM
from tests.hw.simulate import simulate


@pytest.mark.parametrize(
    ("width", "depth", "lanes"), [(1, 1, 1), (8, 16, 8), (56, 11, 1), (64, 16, 8), (512, 4, 64), (24, 2, 3)]
)
def test_random(width, depth, lanes):
    """Reads and writes at random, often of one row at one edge: a read gives the row as it was before."""
    ram = RAM(width=width, depth=depth, lanes=lanes, domain="uncore")
    rng = random.Random(width * depth + lanes)
    lane = width // lanes

    async def bench(ctx):
        rows, expected, clashes = [0] * depth, 0, 0
        for _ in range(600):
            read, at = rng.random() < 0.6, rng.randrange(depth)
            to = at if rng.random() < 0.5 else rng.randrange(depth)
            enables, word = rng.choice([0, rng.getrandbits(lanes), (1 << lanes) - 1]), rng.getrandbits(width)
            ctx.set(ram.read_enable, read)
            ctx.set(ram.read_address, at)
            ctx.set(ram.write_enable, enables)
            ctx.set(ram.write_address, to)
            ctx.set(ram.write_data, word)
            # Nothing of this reaches the output before the edge
            assert ctx.get(ram.read_data) == expected
            await ctx.tick("uncore")
            if read:
                expected = rows[at]
            mask = sum(((1 << lane) - 1) << (i * lane) for i in range(lanes) if enables >> i & 1)
            clashes += bool(read and at == to and (rows[to] ^ word) & mask)
            rows[to] = (rows[to] & ~mask) | (word & mask)
            assert ctx.get(ram.read_data) == expected
        assert clashes > 20

    simulate(ram, bench, domain="uncore")


def test_same_edge():
    """A row read at the edge it is written at is the old one, and held until the next read."""
    ram = RAM(width=16, depth=4, lanes=2, domain="uncore")

    async def bench(ctx):
        ctx.set(ram.read_enable, 1)
        ctx.set(ram.read_address, 3)
        ctx.set(ram.write_address, 3)
        ctx.set(ram.write_enable, 0b11)
        ctx.set(ram.write_data, 0x1234)
        await ctx.tick("uncore")
        assert ctx.get(ram.read_data) == 0
        ctx.set(ram.write_enable, 0b10)
        ctx.set(ram.write_data, 0xABCD)
        await ctx.tick("uncore")
        assert ctx.get(ram.read_data) == 0x1234
        ctx.set(ram.write_enable, 0)
        ctx.set(ram.read_enable, 0)
        await ctx.tick("uncore").repeat(3)
        assert ctx.get(ram.read_data) == 0x1234
        ctx.set(ram.read_enable, 1)
        await ctx.tick("uncore")
        assert ctx.get(ram.read_data) == 0xAB34

    simulate(ram, bench, domain="uncore")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0, "depth": 4}, "not 4 rows of 0 bits"),
        ({"width": 8, "depth": 0}, "not 0 rows of 8 bits"),
        ({"width": 8, "depth": 4, "lanes": 3}, "3 lanes do not divide a width of 8 bits"),
        ({"width": 8, "depth": 4, "lanes": 0}, "0 lanes do not divide a width of 8 bits"),
        ({"width": 8, "depth": 4, "lanes": 16}, "16 lanes do not divide a width of 8 bits"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        RAM(domain="uncore", **arguments)
