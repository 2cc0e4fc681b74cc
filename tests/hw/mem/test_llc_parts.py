"""The parts of the last-level cache that stand by themselves."""

import random
from collections import deque

import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from hw.mem.llc_bits import encode, lowest, one_hot, round_robin
from hw.mem.llc_queue import Queue
from hw.mem.llc_tags import TagArray


def simulate(m, *processes, domain="uncore"):
    sim = Simulator(m)
    if domain is not None:
        sim.add_clock(1e-9, domain=domain)
    for process in processes:
        sim.add_testbench(process)
    sim.run()


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_bit_selection(width):
    m = Module()
    bits, last = Signal(width), Signal(range(max(2, width)))
    low, index, back = Signal(width), Signal(8), Signal(width)
    turn = round_robin(m, bits, last, "turn")
    m.d.comb += [low.eq(lowest(bits)), index.eq(encode(low)), back.eq(one_hot(index, width))]

    async def check(ctx):
        r = random.Random(width)
        for _ in range(200):
            value, previous = r.randrange(1, 1 << width), r.randrange(width)
            ctx.set(bits, value)
            ctx.set(last, previous)
            wanted = [i for i in range(width) if value >> i & 1]
            assert ctx.get(index) == wanted[0]
            assert ctx.get(low) == ctx.get(back) == 1 << wanted[0]
            assert ctx.get(turn) == next((i for i in wanted if i > previous), wanted[0])

    simulate(m, check, domain=None)


def test_queue_keeps_order():
    queue = Queue(8, 5, "uncore")

    async def check(ctx):
        r = random.Random(1)
        model = deque()
        for _ in range(500):
            push, ready = len(model) < 5 and r.random() < 0.5, r.random() < 0.5
            value = r.getrandbits(8)
            ctx.set(queue.push, push)
            ctx.set(queue.entry, value)
            ctx.set(queue.output.ready, ready)
            assert ctx.get(queue.output.valid) == bool(model)
            if model:
                assert ctx.get(queue.output.payload) == model[0]
            await ctx.tick("uncore")
            if model and ready:
                model.popleft()
            if push:
                model.append(value)

    simulate(queue, check)


class Model:
    """Bit-PLRU in the words of its paper."""

    def __init__(self, ways):
        self.ways = ways
        self.tags = [None] * ways
        self.recent = [False] * ways

    def victim(self, candidates):
        for condition in (lambda w: self.tags[w] is None, lambda w: not self.recent[w], lambda w: True):
            for way in candidates:
                if condition(way):
                    return way
        raise AssertionError

    def touch(self, way, aged):
        self.recent[way] = True
        if all(self.recent[w] for w in aged):
            for other in aged:
                self.recent[other] = False
            self.recent[way] = True


@pytest.mark.parametrize("ways", [1, 3, 4])
def test_tags_and_replacement(ways):
    tags = TagArray(sets=4, ways=ways, tag_width=5, fields={"dirty": 1}, domain="uncore")
    limited = list(range(ways))[-2:]

    async def check(ctx):
        r = random.Random(ways)
        model = [Model(ways) for _ in range(4)]
        for _ in range(600):
            index, tag = r.randrange(4), r.randrange(9)
            candidates = r.choice([list(range(ways)), limited])
            ctx.set(tags.set, index)
            ctx.set(tags.read, 1)
            await ctx.tick("uncore")
            ctx.set(tags.read, 0)
            ctx.set(tags.active, 1)
            ctx.set(tags.tag, tag)
            ctx.set(tags.candidates, sum(1 << way for way in candidates))
            result, expected = ctx.get(tags.result), model[index]
            assert result.hit == (tag in expected.tags)
            if result.hit:
                way = expected.tags.index(tag)
                assert result.way == way
                assert result.found.tag == tag and result.found.valid
                expected.touch(way, range(ways))
            else:
                way = expected.victim(candidates)
                assert result.victim_way == way
                assert result.victim.valid == (expected.tags[way] is not None)
                expected.tags[way] = tag
                expected.touch(way, candidates)
            ctx.set(tags.update, {"write": 1, "touch": 1, "way": way, "entry": {"tag": tag, "valid": 1, "dirty": 0}})
            await ctx.tick("uncore")
            ctx.set(tags.update, {"write": 0, "touch": 0, "way": 0, "entry": {"tag": 0, "valid": 0, "dirty": 0}})
            ctx.set(tags.active, 0)

    simulate(tags, check)
