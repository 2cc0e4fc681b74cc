"""The associative RAM by itself; tests/formal proves that its two forms are one."""

import pytest
from amaranth.sim import Simulator

from hw.lib.associative_ram import AssociativeRAM


def test_finds_replaces_and_forgets():
    dut = AssociativeRAM(sets=2, ways=3, key_width=8, value_width=8, domain="core0")

    async def testbench(ctx):
        async def edge(**inputs):
            for name, value in inputs.items():
                ctx.set(getattr(dut, name), value)
            await ctx.tick("core0")
            for name in inputs:
                ctx.set(getattr(dut, name), 0)

        async def find(key, row=1):
            await edge(read_enable=1, read_set=row, read_key=key)
            return ctx.get(dut.hit), ctx.get(dut.way), ctx.get(dut.value)

        # Empty ways are taken in order; the key read is not seen before the edge that writes it
        for index, key in enumerate((10, 20, 30)):
            assert await find(key) == (0, 1 << index, 0)
            way = ctx.get(dut.way)
            write = {"write_enable": way, "write_set": 1, "write_valid": 1, "write_key": key, "write_value": key + 1}
            await edge(touch=1, read_enable=1, read_set=1, read_key=key, **write)
            assert not ctx.get(dut.hit)
        assert await find(20) == (1, 0b010, 21)
        assert await find(20, row=0) == (0, 0b001, 0)
        # The last touch left only its own way recent, so the lowest goes next; a use protects it
        assert await find(99) == (0, 0b001, 0)
        await find(10)
        await edge(touch=1)
        assert await find(99) == (0, 0b010, 0)
        # Dropped: the way is empty
        await find(30)
        await edge(write_enable=0b100, write_set=1)
        assert await find(30) == (0, 0b100, 0)
        await edge(flush=1)
        assert await find(10) == (0, 0b001, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-9, domain="core0")
    simulator.add_testbench(testbench)
    simulator.run()


def test_refuses_no_ways():
    with pytest.raises(ValueError, match="not 1 sets of 0 ways of 8"):
        AssociativeRAM(sets=1, ways=0, key_width=8, domain="core0")
