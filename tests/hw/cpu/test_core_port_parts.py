"""The parts of the core port that can be tried alone: masks, store buffer, and what their arguments may be."""

import random

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.cpu.byte_lanes import LaneMask
from hw.cpu.forward_queue import ForwardQueue
from hw.cpu.memory_order import MemoryOrder
from hw.cpu.store_buffer import StoreBuffer

# Of the components whose arguments are refused
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: StoreBuffer(0, "core0"), "a store buffer holds at least 1 store, not 0"),
        (lambda: ForwardQueue(0, 4, "core0"), "a forward queue holds at least 1 load, not 0"),
        (lambda: ForwardQueue(4, 3, "core0"), "must be at least 4 cycles, not 3"),
        (lambda: MemoryOrder(0, 4, "core0"), "loads in flight must be between 1 and 255 .* not 0"),
        (lambda: MemoryOrder(256, 4, "core0"), "loads in flight must be between 1 and 255 .* not 256"),
        (lambda: MemoryOrder(4, 0, "core0"), "at least 1 store must be able to wait, not 0"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lane_mask_of_every_access():
    lanes = LaneMask()

    async def testbench(ctx):
        for offset in range(64):
            for size in range(1, 65 - offset):
                ctx.set(lanes.offset, offset)
                ctx.set(lanes.size, size)
                assert ctx.get(lanes.mask) == ((1 << size) - 1) << offset

    simulator = Simulator(lanes)
    simulator.add_testbench(testbench)
    simulator.run()


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_store_buffer_against_a_list(depth):
    """Random pushes, releases, searches and back-pressure."""
    buffer = StoreBuffer(depth, "core0")
    draw = random.Random(depth)
    m = Module()
    m.domains += ClockDomain("core0", reset_less=True)
    m.submodules.buffer = buffer

    async def testbench(ctx):
        held: list[tuple[int, int, int]] = []  # line, mask, data; oldest first
        released = sent = 0
        reading = None
        for _ in range(1200):
            if reading is not None:
                assert ctx.get(buffer.read_data) == reading
            assert ctx.get(buffer.full) == (len(held) == depth)
            assert ctx.get(buffer.empty) == (not held)
            # Search, on what was held before this edge
            line, mask = draw.randrange(3), draw.getrandbits(64) & draw.getrandbits(64) & draw.getrandbits(64)
            search = draw.random() < 0.7
            ctx.set(buffer.search, search)
            ctx.set(buffer.search_line, line)
            ctx.set(buffer.search_mask, mask)
            overlapping = [entry for entry in held if search and entry[0] == line and entry[1] & mask]
            covered = bool(overlapping) and not mask & ~overlapping[-1][1]
            assert ctx.get(buffer.overlap) == bool(overlapping)
            assert ctx.get(buffer.covered) == covered
            ctx.set(buffer.read, covered)
            reading = overlapping[-1][2] if covered else reading
            # Sending
            ready = draw.random() < 0.5
            ctx.set(buffer.store.ready, ready)
            done = sent > 0 and draw.random() < 0.4
            ctx.set(buffer.store_done, done)
            release = released < len(held) and draw.random() < 0.5
            ctx.set(buffer.release, release)
            accepted = None
            if ready and ctx.get(buffer.store.valid):
                store = ctx.get(buffer.store.payload)
                accepted = (store.line, store.mask, store.data)
                assert accepted == held[sent] and sent < released
            # Push
            push = len(held) < depth and draw.random() < 0.5
            entry = (draw.randrange(3), draw.choice([2**64 - 1, draw.getrandbits(64)]), draw.getrandbits(512))
            ctx.set(buffer.push, push)
            if push:
                ctx.set(buffer.entry, {"line": entry[0], "mask": entry[1], "data": entry[2]})
            await ctx.tick("core0")
            released += release
            sent += accepted is not None
            if done:
                del held[0]
                released -= 1
                sent -= 1
            if push:
                held.append(entry)

    simulator = Simulator(m)
    simulator.add_clock(1e-9, domain="core0")
    simulator.add_testbench(testbench)
    simulator.run()
