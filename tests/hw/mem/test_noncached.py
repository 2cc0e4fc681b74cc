"""Writes of cores around the caches share the last level's port for devices."""

import random
from collections import deque

import pytest
from amaranth.sim import Simulator

from hw.bus.memory import MemoryOp
from hw.mem.noncached import NonCachedWrites

CORES = 2
WRITES = 4


@pytest.mark.parametrize("seed", range(3))
def test_every_write_arrives_once_and_its_owner_is_told(seed):
    """Random back-pressure on every stream; the owner of a write is known by its line."""
    r = random.Random(seed)
    dut = NonCachedWrites(CORES, WRITES)
    per_source = 60
    accepted: list[tuple[int, int]] = []  # (source, number) in the order of acceptance
    pending: deque[int] = deque()
    told = [0] * (CORES + 1)
    sources = [dut.root.request, *(core.write for core in dut.core)]

    def source(index, port):
        async def run(ctx):
            ctx.set(port.payload.mask, r.getrandbits(64))
            if index == 0:
                ctx.set(port.payload.op, MemoryOp.WRITE)
            for number in range(per_source):
                while r.random() < 0.5:
                    await ctx.tick("uncore")
                ctx.set(port.payload.line, index << 16 | number)
                ctx.set(port.payload.data, number << 100)
                ctx.set(port.valid, 1)
                await ctx.tick("uncore").until(port.ready)
                ctx.set(port.valid, 0)

        return run

    async def memory(ctx):
        request = dut.memory.request
        offered = None
        edges = ctx.tick("uncore").sample(request.valid, request.ready, request.payload)
        async for _, _, valid, ready, payload in edges:
            if offered is not None:
                assert valid and payload.line == offered, "an offer was withdrawn"
            offered = payload.line if valid and not ready else None
            if valid and ready:
                index, number = payload.line >> 16, payload.line & 0xFFFF
                assert payload.data == number << 100
                assert payload.around == (index != 0)
                accepted.append((index, number))
                pending.append(index)
            done = bool(pending) and r.random() < 0.4
            ctx.set(dut.memory.write_done, done)
            if done:
                pending.popleft()
            ctx.set(request.ready, len(pending) < WRITES - 1 and r.random() < 0.6)

    async def owners(ctx):
        signals = [dut.root.write_done, *(s for core in dut.core for s in (core.done.valid, core.done.ready))]
        async for _, _, root, *tokens in ctx.tick("uncore").sample(*signals):
            told[0] += root
            for index, core in enumerate(dut.core):
                told[index + 1] += tokens[2 * index] & tokens[2 * index + 1]
                ctx.set(core.done.ready, r.random() < 0.5)
            if sum(told) == per_source * (CORES + 1):
                return

    async def watch_quiet(ctx):
        registers = [dut.memory.request.valid, *(core.done.valid for core in dut.core)]
        before = None
        async for _, _, quiet, *values in ctx.tick("uncore").sample(dut.quiet, *registers[1:]):
            if before is not None:
                assert values == before, "a token appeared or went at a quiet edge"
            before = values if quiet else None

    sim = Simulator(dut)
    sim.add_clock(1e-9, domain="uncore")
    for index, port in enumerate(sources):
        sim.add_testbench(source(index, port))
    sim.add_testbench(owners)
    sim.add_process(memory)
    sim.add_testbench(watch_quiet, background=True)
    sim.run()
    assert told == [per_source] * (CORES + 1)
    for index in range(CORES + 1):
        assert [number for i, number in accepted if i == index] == list(range(per_source))
