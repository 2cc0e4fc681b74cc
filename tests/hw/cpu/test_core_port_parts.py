"""The parts of the core port that can be tried alone, and what their arguments may be."""

import random

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.cpu.byte_lanes import LaneMask
from hw.cpu.forward_queue import ForwardQueue
from hw.cpu.memory_order import MemoryOrder
from hw.cpu.reorder_window import ReorderWindow
from hw.cpu.reservation_station import ReservationStation
from hw.cpu.store_buffer import StoreBuffer
from hw.cpu.write_combining import WriteCombining
from tests.hw.simulate import simulate

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
        (lambda: ReorderWindow(0, "core0"), "holds 1 to 4096 micro-operations, not 0"),
        (lambda: ReorderWindow(4097, "core0"), "holds 1 to 4096 micro-operations, not 4097"),
        (lambda: ReservationStation(0, "core0"), "a reservation station holds at least 1 load, not 0"),
        (lambda: WriteCombining(0, "core0"), "write combining needs at least 1 line, not 0"),
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


def test_reorder_window_counts_beyond_its_width():
    """Positions wrap; the window is full from ``size`` on, whatever entered last."""
    window = ReorderWindow(100, "core0")
    draw = random.Random(1)

    async def testbench(ctx):
        position = oldest = 0
        for _ in range(300):
            while position - oldest < 100:
                uops = draw.choice([0, 1, 50, 65535])
                ctx.set(window.uops, uops)
                ctx.set(window.enter, 1)
                await ctx.tick("core0")
                position += uops
                ctx.set(window.enter, 0)
                ctx.set(window.occupied, 1)
                ctx.set(window.oldest, oldest % 2**18)
                assert ctx.get(window.full) == (position - oldest >= 100)
                ctx.set(window.occupied, 0)
                assert not ctx.get(window.full)
            oldest = position - draw.choice([0, 1, 99])
            withdrawn = draw.random() < 0.2
            ctx.set(window.withdraw, withdrawn)
            ctx.set(window.withdrawn, oldest % 2**18)
            await ctx.tick("core0")
            ctx.set(window.withdraw, 0)
            position = oldest if withdrawn else position
            assert ctx.get(window.position) == position % 2**18

    simulate(window, testbench, domain="core0")


@pytest.mark.parametrize("depth", [1, 2, 5, 16])
def test_reservation_station_against_a_list(depth):
    """Loads come, wake and leave in random order; an offer stands; forwarded bytes come back a cycle after ``take``."""
    station = ReservationStation(depth, "core0")
    draw = random.Random(depth)

    async def testbench(ctx):
        held: list[dict] = []  # oldest first
        ids = iter(range(10**9))
        flying: list[int] = []  # loads others may wait for
        offered = line_out = line_in = None
        fresh = None
        taken_total = 0
        for _ in range(800):
            if line_out is not None:
                assert ctx.get(station.take_line) == line_out
            line_out = None
            if line_in is not None:
                ctx.set(station.push_line, line_in)
            line_in = None
            assert ctx.get(station.full) == (len(held) == depth)
            while len(flying) < 3:
                flying.append(next(ids) % 256)
            # Something completes
            complete = draw.random() < 0.3
            done = draw.choice(flying)
            ctx.set(station.complete, complete)
            ctx.set(station.complete_id, done)
            if complete:
                flying.remove(done)
                for load in held:
                    load["ready"] |= load["after"] == done
            # What is ready
            ready = [load for load in held if load["ready"] and load is not fresh]
            assert ctx.get(station.valid) == bool(ready)
            take, entry = False, None
            if ready:
                if offered is None:
                    offered = ready[0]
                entry = ctx.get(station.load)
                assert (entry.id, entry.size, entry.forwarded) == (offered["id"], offered["size"], offered["forwarded"])
                take = draw.random() < 0.5
            ctx.set(station.take, take)
            # Push
            push = len(held) < depth and draw.random() < 0.5 and bool(flying)
            ctx.set(station.push, push)
            fresh = None
            if take:
                held.remove(offered)
                line_out = offered["line"] if offered["forwarded"] else None
                offered, taken_total = None, taken_total + 1
            if push:
                new = {"id": next(ids) % 256, "size": draw.randint(1, 64), "forwarded": draw.random() < 0.4}
                ctx.set(station.entry, {"address": {"offset": 0, "line_in_page": 0, "frame": 0, "tables": 0}, **new})
                new |= {"after": draw.choice(flying), "ready": False, "line": draw.getrandbits(512)}
                ctx.set(station.after, new["after"])
                line_in = new["line"]
                held.append(new)
                fresh = new if new["forwarded"] else None
            await ctx.tick("core0")
            ctx.set(station.push, 0)
            ctx.set(station.take, 0)
        assert taken_total > 50

    simulate(station, testbench, domain="core0")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_write_combining_against_a_dictionary(depth):
    """Random stores, flushes, fences and searches: every byte arrives, in order per line, and none without a reason."""
    buffers = WriteCombining(depth, "core0")
    draw = random.Random(depth)

    async def testbench(ctx):
        wanted: dict[int, dict[int, int]] = {}  # by line, bytes in the order of the program
        here: list[int] = []  # lines not yet visible
        memory: dict[int, dict[int, int]] = {}
        sent: list[tuple[int, dict[int, int]]] = []
        stores = flushes = 0
        port = buffers.port

        async def edge():
            """One edge of the last level; what it has to say stands before it."""
            ready, done = draw.random() < 0.6, bool(sent) and draw.random() < 0.2
            ctx.set(port.write.ready, ready)
            ctx.set(port.done.valid, done)
            if done:
                line, data = sent.pop(0)
                memory.setdefault(line, {}).update(data)
                here.remove(line)
            if ready and ctx.get(port.write.valid):
                write = ctx.get(port.write.payload)
                data = {i: write.data >> 8 * i & 0xFF for i in range(64) if write.mask >> i & 1}
                sent.append((write.line, data))
            await ctx.tick("core0")

        async def until(ok):
            for _ in range(2000):
                if ok():
                    return
                await edge()
            raise AssertionError("stuck")

        for _ in range(250):
            line = draw.randrange(depth + 2)
            action = draw.choices(["store", "flush", "want", "fence"], [20, 2, 2, 1])[0]
            if action in ("store", "flush"):
                size = draw.choice([4, 8, 16, 32])
                offset = size * draw.randrange(64 // size)
                mask = ((1 << size) - 1) << offset if action == "store" else 0
                data = draw.getrandbits(512)
                ctx.set(buffers.write, {"line": line, "mask": mask, "data": data})
                ctx.set(buffers.search_line, line)
                ctx.set(buffers.request, 1)
                ctx.set(buffers.search, 1)
                await until(lambda: ctx.get(buffers.accept))
                if action == "flush":
                    assert line not in here
                    flushes += 1
                if line not in here:
                    here.append(line)
                wanted.setdefault(line, {}).update({i: data >> 8 * i & 0xFF for i in range(64) if mask >> i & 1})
                stores += action == "store"
                await edge()
                ctx.set(buffers.request, 0)
                ctx.set(buffers.search, 0)
            elif action == "want":
                ctx.set(buffers.search_line, line)
                ctx.set(buffers.search, 1)
                ctx.set(buffers.expel, 1)
                assert ctx.get(buffers.conflict) == (line in here)
                await until(lambda: not ctx.get(buffers.conflict))
                assert memory.get(line, {}) == wanted.get(line, {})
                ctx.set(buffers.search, 0)
                ctx.set(buffers.expel, 0)
            else:
                ctx.set(buffers.flush, 1)
                await edge()
                ctx.set(buffers.flush, 0)
                await until(lambda: ctx.get(buffers.empty))
                assert memory == {line: data for line, data in wanted.items()} | {
                    line: {} for line in memory if line not in wanted
                }
        assert stores > 100 and flushes > 5

    simulate(buffers, testbench, domain="core0")
