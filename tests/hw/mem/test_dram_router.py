"""The router between the last level and the DRAM's channels: where lines go, that nothing is lost, that it is fair."""

import dataclasses
import random

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.bus.memory import MemoryOp
from hw.config import load_machine
from hw.mem.dram_router import DramRouter

MACHINE = load_machine("tiny")


def machine(channels: int, mapping: str, hashed: bool):
    dram = dataclasses.replace(MACHINE.dram, channels=channels, mapping=mapping, channel_hash=hashed)
    return dataclasses.replace(MACHINE, dram=dram)


def place(config, line: int) -> tuple[int, int]:
    """Channel of a line and its number there, in plain arithmetic."""
    counts = {"group": config.bank_groups, "column": config.lines_per_row, "bank": config.banks_per_group}
    counts["row"] = config.rows
    below = 1
    for name in config.mapping.split():
        if name == "channel":
            break
        below *= counts[name]
    rest, low = divmod(line, below)
    rest, channel = divmod(rest, config.channels)
    local = rest * below + low
    if config.channel_hash:
        piece = local
        while piece:
            piece, digit = divmod(piece, config.channels)
            channel ^= digit
    return channel, local


def simulate(dut, testbench) -> None:
    m = Module()
    m.domains.uncore = ClockDomain(reset_less=True)
    m.submodules.dut = dut
    simulator = Simulator(m)
    simulator.add_clock(1e-9, domain="uncore")
    simulator.add_testbench(testbench)
    simulator.run()


CONFIGS = [
    machine(1, "group column bank row", False),
    machine(2, "channel group column bank row", False),
    machine(4, "group channel column bank row", True),
    machine(8, "group column channel bank row", True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["one", "two", "four", "eight"])
def test_random_traffic(config):
    """Every request reaches its line's channel unchanged and in order; every answer comes back, held until taken."""
    dut, dram, rng = DramRouter(config), config.dram, random.Random(5)
    waiting: list[list[tuple]] = [[] for _ in range(dram.channels)]  # on their way through a channel
    asked: list[tuple] = []
    answers: dict[int, int] = {}
    seen, edges = [0] * dram.channels, 0

    async def testbench(ctx):
        nonlocal edges
        held = None
        while sum(seen) < 400:
            edges += 1
            assert edges < 20_000
            request, response = dut.cache.request, dut.cache.response
            if not ctx.get(request.valid) and rng.random() < 0.7:
                op = rng.choice([MemoryOp.READ, MemoryOp.WRITE])
                asked.append((op, rng.randrange(dram.lines), rng.getrandbits(512), rng.randrange(256)))
                op, line, data, tag = asked[-1]
                ctx.set(request.payload, {"op": op, "line": line, "data": data, "tag": tag})
                ctx.set(request.valid, 1)
            ctx.set(response.ready, rng.random() < 0.5)
            for channel, queue in zip(dut.channel, waiting, strict=True):
                ctx.set(channel.request.ready, rng.random() < 0.6)
                if queue and not ctx.get(channel.response.valid) and rng.random() < 0.3:
                    tag, data = queue[0]
                    ctx.set(channel.response.payload, {"tag": tag, "data": data})
                    ctx.set(channel.response.valid, 1)
            # What is handed over at this edge
            for number, channel in enumerate(dut.channel):
                if ctx.get(channel.request.valid):
                    assert ctx.get(request.valid)
                    op, line, data, tag = asked[-1]
                    assert (number, ctx.get(channel.request.payload.line)) == place(dram, line)
                    assert ctx.get(channel.request.payload.op) is op
                    assert ctx.get(channel.request.payload.data) == data
                    assert ctx.get(channel.request.payload.tag) == tag
                    if ctx.get(channel.request.ready):
                        seen[number] += 1
                        assert ctx.get(request.ready)
                        if op == MemoryOp.READ:
                            answer = rng.getrandbits(512)
                            waiting[number].append((tag, answer))
                            answers[answer] = tag
            if ctx.get(response.valid):
                now = ctx.get(response.payload.data), ctx.get(response.payload.tag)
                assert held in (None, now), "an offered answer changed"
                held = None if ctx.get(response.ready) else now
                if held is None:
                    assert answers.pop(now[0]) == now[1]
            else:
                assert held is None
            taken_request = ctx.get(request.valid & request.ready)
            taken = [ctx.get(c.response.valid & c.response.ready) for c in dut.channel]
            assert sum(taken) <= 1
            await ctx.tick("uncore")
            if taken_request:
                ctx.set(request.valid, 0)
            for channel, queue, gone in zip(dut.channel, waiting, taken, strict=True):
                if gone:
                    queue.pop(0)
                    ctx.set(channel.response.valid, 0)
        assert len(answers) == sum(len(queue) for queue in waiting)

    simulate(dut, testbench)
    assert min(seen) > 400 / dram.channels / 3


def test_channels_take_turns():
    """All offer answers without end: each gets every fourth edge."""
    dut, order = DramRouter(CONFIGS[2]), []

    async def testbench(ctx):
        ctx.set(dut.cache.response.ready, 1)
        for number, channel in enumerate(dut.channel):
            ctx.set(channel.response.valid, 1)
            ctx.set(channel.response.payload, {"tag": number, "data": number})
        for _ in range(12):
            order.append(ctx.get(dut.cache.response.payload.tag))
            await ctx.tick("uncore")

    simulate(dut, testbench)
    assert sorted(order[:4]) == [0, 1, 2, 3] and order == order[:4] * 3


def test_the_hash_spreads_every_stride():
    """Lines a power of two apart, as buffers are, meet every channel; without the hash they do not."""
    for config, even in ((CONFIGS[3], True), (machine(8, "group column channel bank row", False), False)):
        dram = config.dram
        for stride in (64, 128, 1024):
            met = {place(dram, (stride * index) % dram.lines)[0] for index in range(dram.lines // stride)}
            assert (len(met) == dram.channels) is even, (stride, met)
