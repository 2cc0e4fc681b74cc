"""The hash that divides lines among slices: even over any block of memory, and the same in hardware as in Python."""

import random
from collections import Counter

import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from hw.mem.llc_hash import slice_of


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 6, 8, 10, 12, 18, 28, 32])
def test_lines_are_divided_evenly(slices):
    """A block of memory that fills a cache of 2048 sets some times over: slices get the same, sets about that."""
    block = range(0x12345, 0x12345 + slices * 2048 * 8)
    by_slice = Counter(slice_of(line, slices) for line in block)
    assert set(by_slice) == set(range(slices))
    assert max(by_slice.values()) - min(by_slice.values()) <= 0.005 * len(block) / slices + 1
    by_set = Counter((slice_of(line, slices), line % 2048) for line in block)
    assert len(by_set) == slices * 2048
    assert max(by_set.values()) <= 16


@pytest.mark.parametrize("slices", [2, 4, 6, 8, 18])
def test_neighbours_lie_in_different_slices(slices):
    for first in (0, 0x40000, 0x7FF00):
        window = [slice_of(line, slices) for line in range(first, first + slices)]
        assert len(set(window)) >= slices // 2


def test_the_published_functions():
    """Maurice et al., table 2: bit 6 of the address counts for o0 alone, bit 17 for o0 and o1, bit 16 for o0 and o2."""
    assert slice_of(1 << 6 - 6, 8) == 0b001
    assert slice_of(1 << 17 - 6, 8) == 0b011
    assert slice_of(1 << 16 - 6, 8) == 0b101
    assert slice_of(1 << 6 - 6 | 1 << 17 - 6, 8) == 0b010
    assert slice_of(1 << 17 - 6, 4) == 0b11 and slice_of(1 << 17 - 6, 2) == 1


@pytest.mark.parametrize("slices", [1, 4, 6, 18, 32])
def test_hardware_computes_the_same(slices):
    m = Module()
    line, result = Signal(22), Signal(6)
    m.d.comb += result.eq(slice_of(line, slices))

    async def check(ctx):
        r = random.Random(slices)
        for _ in range(300):
            value = r.getrandbits(22)
            ctx.set(line, value)
            assert ctx.get(result) == slice_of(value, slices)

    simulator = Simulator(m)
    simulator.add_testbench(check)
    simulator.run()
