"""Coherence of the last level: one writer or many readers, and no write is ever lost.

The last-level cache of the smallest size, with all its arrays, between two caches that do whatever TileLink allows,
a device that reads and writes, and a DRAM that answers in any order after any time. The solver chooses all of it, and
the state to begin with: anything coherent, at rest (:meth:`Model.coherent`). For so many cycles as the bound says
(bounded model checking) every copy must be what was written last; and whenever the cache is at rest again, its state
must be one of those to begin with. So every run is covered, however long, that comes to rest at least once in so many
cycles; for runs that do not, see tests/system/test_coherence.py, which plays millions of cycles at random.

All lines are of one set, more of them than the cache and its snoop filter have ways: so lines drive each other out,
and private copies are called back. Of a line's bytes the first alone is kept, and of that the lowest bit: enough to
tell the last write from those before.
"""

from collections import defaultdict
from unittest.mock import patch

import pytest
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.memory import MemoryOp
from hw.bus.tilelink import LINE_BITS, Cap, Grow, OpcodeA, OpcodeC, OpcodeD, Shrink
from hw.config import load_machine
from hw.mem.llc import LastLevelCache
from hw.mem.llc_decide import Decide
from tests.formal.prove import FORMAL_DOMAIN, Harness, ProofFailed

CLIENTS = 2
SMALL = load_machine(
    "tiny",
    [
        f"core.count={CLIENTS}",
        "llc.size_kib=1",
        "llc.ways=2",
        "llc.ddio_ways=1",
        "llc.slots=2",
        "llc.latency=8",
        "llc.snoop_filter_lines=4",
        "llc.snoop_filter_ways=2",
        "l2.releases=1",
    ],
)
#: Of one set of the cache, and thereby of the snoop filter.
LINES = [SMALL.llc.sets * number for number in range(3)]


class OpenRam(wiring.Component):
    """A :class:`hw.lib.ram.RAM` whose rows can be seen, and hold anything at first; of a line only the lowest bit.

    Attributes:
        rows: one value per row.
    """

    def __init__(self, *, width: int, depth: int, lanes: int = 1, domain: str):
        address_width = max(1, ceil_log2(depth))
        super().__init__(
            {
                "read_enable": In(1),
                "read_address": In(address_width),
                "read_data": Out(width),
                "write_enable": In(lanes),
                "write_address": In(address_width),
                "write_data": In(width),
            }
        )
        self.width, self.lanes, self.domain, self.address_width = width, lanes, domain, address_width
        kept = 1 if width >= LINE_BITS else width
        self.rows = [Signal(kept, name=f"row{n}") for n in range(depth)]
        self.first = [Signal(kept, name=f"first{n}") for n in range(depth)]
        self.starts = Signal()

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        kept = len(self.rows[0])
        lanes = 1 if kept < self.width else self.lanes
        row = Signal(kept)
        m.d.comb += self.read_data.eq(row)
        with m.If(self.read_enable):
            m.d[self.domain] += row.eq(Array(self.rows)[self.read_address])
        for number, (stored, first) in enumerate(zip(self.rows, self.first, strict=True)):
            with m.If(self.starts):
                m.d[self.domain] += stored.eq(first)
            with m.Elif(self.write_address == number):
                for lane in range(lanes):
                    part = slice(lane * kept // lanes, (lane + 1) * kept // lanes)
                    with m.If(self.write_enable[lane]):
                        m.d[self.domain] += stored[part].eq(self.write_data[part])
        return m


class Permission(enum.Enum, shape=2):
    """What a cache may do with a line."""

    NOTHING = 0
    READ = 1
    WRITE = 2


NOTHING, READ, WRITE = Permission


class World(Harness):
    """What surrounds the last level: free to do anything from the second step on; at the first, states are chosen."""

    def __init__(self, component, *, eager: bool):
        super().__init__(component)
        self.eager = eager
        self.inputs = self.inputs[:1]  # the clock: all else is driven here
        self.begun = self.past(Const(1))

    def free(self, width: int = 1) -> Signal:
        """Anything, at every step anew; zero at the first."""
        signal = Signal(width, name=f"free{len(self.inputs)}")
        self.inputs.append(signal)
        self.assume(self.begun | ~signal.any())
        return signal

    def sometimes(self) -> Value:
        """Whether a receiver takes what it is offered: always, if all are eager."""
        return Const(1) if self.eager else self.free()

    def begin_with_any(self, *registers: Signal) -> None:
        """Have registers begin with anything, at the second step. Call it after all else that assigns to them."""
        with self.module.If(~self.begun):
            for register in registers:
                value = Value.cast(register)
                first = Signal(len(value), name=f"first_{value.name}")
                self.inputs.append(first)
                self.module.d[FORMAL_DOMAIN] += value.eq(first)


def line_number(line: Value) -> Value:
    """Which of ``LINES``."""
    return (line // LINES[1])[:2]


def line_address(number: Value) -> Value:
    """The inverse of :func:`line_number`."""
    return number * LINES[1]


class Cache:
    """A private cache that asks for, writes and gives up lines as it likes, within the rules of TileLink.

    One Acquire and one Release may be under way; Probes are answered whatever else is.

    Attributes:
        may, value, dirty: of each line.
    """

    def __init__(self, world: World, port, index: int):
        self.world, self.port = world, port
        self.may = [Signal(Permission, name=f"may{index}_{n}") for n in range(len(LINES))]
        self.value = [Signal(name=f"value{index}_{n}") for n in range(len(LINES))]
        self.dirty = [Signal(name=f"dirty{index}_{n}") for n in range(len(LINES))]
        self.wrote = [Signal(name=f"wrote{index}_{n}") for n in range(len(LINES))]
        self.got_value = Signal(name=f"got_value{index}")
        m, sync = world.module, world.module.d[FORMAL_DOMAIN]
        self._acquire(m, sync)
        self._release_and_answer(m, sync)
        self._write(m, sync)

    def _acquire(self, m: Module, sync) -> None:
        a, d, e = self.port.a, self.port.d, self.port.e
        wanted, asked, waits, grants = Signal(2), Signal(), Signal(), Signal()
        grow = Signal(Grow)
        start, number, for_writing = self.world.free(), self.world.free(2), self.world.free()
        self.wants = lambda n: start & (number == n)
        self.releasing, self.released = Signal(), Signal(2)
        may = Array(self.may)[number]
        param = Mux(may == READ, Grow.B_TO_T, Mux(for_writing, Grow.N_TO_T, Grow.N_TO_B))
        with m.If(
            start
            & ~(asked | waits | grants)
            & (number < len(LINES))
            & (may != WRITE)
            & ~(self.releasing & (self.released == number))
        ):
            sync += [asked.eq(1), wanted.eq(number), grow.eq(param)]
        self.acquires = asked | waits | grants
        self.busy_with = lambda n: self.acquires & (wanted == n)
        m.d.comb += [
            a.valid.eq(asked),
            a.payload.opcode.eq(OpcodeA.ACQUIRE_BLOCK),
            a.payload.param.eq(grow),
            a.payload.line.eq(line_address(wanted)),
            d.ready.eq(self.world.sometimes()),
            e.valid.eq(grants),
        ]
        with m.If(a.valid & a.ready):
            sync += [asked.eq(0), waits.eq(1)]
        granted = d.valid & d.ready & (d.payload.opcode == OpcodeD.GRANT_DATA)
        self.world.always(~granted | waits, "a Grant that was asked for")
        sink = Signal.like(d.payload.sink)
        m.d.comb += e.payload.sink.eq(sink)
        with m.If(granted):
            sync += [waits.eq(0), grants.eq(1), sink.eq(d.payload.sink)]
            self._for(m, wanted, lambda n: [
                self.may[n].eq(Mux(d.payload.param == Cap.TO_T, WRITE, READ)),
                self.value[n].eq(d.payload.data[0]),
                self.dirty[n].eq(0),
            ], sync)  # fmt: skip
        with m.If(e.valid & e.ready):
            sync += grants.eq(0)
        with m.If(d.valid & d.ready & (d.payload.opcode == OpcodeD.RELEASE_ACK)):
            sync += self.releasing.eq(0)
        self.granted, self.granted_line = granted, wanted

    def _release_and_answer(self, m: Module, sync) -> None:
        b, c = self.port.b, self.port.c
        offers, answers, probed, cap = Signal(), Signal(), Signal(2), Signal(Cap)
        start, number = self.world.free(), self.world.free(2)
        keeps = self.world.free()
        keep = Signal()
        with m.If(
            start & ~self.releasing & (number < len(LINES)) & (Array(self.may)[number] != NOTHING)
            & ~self.busy_with(number) & ~self.wants(number) & ~answers
        ):  # fmt: skip
            sync += [
                offers.eq(1), self.releasing.eq(1), self.released.eq(number),
                keep.eq(keeps & (Array(self.may)[number] == WRITE)),
            ]  # fmt: skip
        m.d.comb += b.ready.eq(~answers & self.world.sometimes())
        with m.If(b.valid & b.ready):
            sync += [answers.eq(1), probed.eq(line_number(b.payload.line)), cap.eq(b.payload.param)]
            self.world.always(~(b.valid & b.ready) | (line_number(b.payload.line) < len(LINES)), "a Probe of a line")

        # A Release goes first: a Probe may have come while it was offered.
        line = Signal(2)
        may, dirty = Array(self.may)[line], Array(self.dirty)[line]
        to_nothing = Mux(offers, ~keep, cap == Cap.TO_N)
        m.d.comb += [
            line.eq(Mux(offers, self.released, probed)),
            c.valid.eq(offers | answers),
            c.payload.line.eq(line_address(line)),
            c.payload.data.eq(Array(self.value)[line]),
        ]
        with m.If(offers):
            m.d.comb += c.payload.opcode.eq(Mux(dirty, OpcodeC.RELEASE_DATA, OpcodeC.RELEASE))
        with m.Else():
            m.d.comb += c.payload.opcode.eq(Mux(dirty, OpcodeC.PROBE_ACK_DATA, OpcodeC.PROBE_ACK))
        with m.Switch(may):
            with m.Case(WRITE):
                m.d.comb += c.payload.param.eq(Mux(to_nothing, Shrink.T_TO_N, Shrink.T_TO_B))
            with m.Case(READ):
                m.d.comb += c.payload.param.eq(Mux(to_nothing, Shrink.B_TO_N, Shrink.B_TO_B))
            with m.Default():
                m.d.comb += c.payload.param.eq(Shrink.N_TO_N)
        with m.If(c.valid & c.ready):
            with m.If(offers):
                sync += offers.eq(0)
            with m.Else():
                sync += answers.eq(0)
            self._for(m, line, lambda n: [
                self.may[n].eq(Mux(to_nothing | (may == NOTHING), NOTHING, READ)),
                self.dirty[n].eq(0),
            ], sync)  # fmt: skip
        self.busy = self.acquires | self.releasing | answers
        # What is offered stays as it is: no writing meanwhile.
        self.fixed = lambda n: c.valid & (line == n)

    def _write(self, m: Module, sync) -> None:
        for n in range(len(LINES)):
            m.d.comb += self.wrote[n].eq(self.world.free() & (self.may[n] == WRITE) & ~self.fixed(n))
            with m.If(self.wrote[n]):
                sync += [self.value[n].eq(~self.value[n]), self.dirty[n].eq(1)]

    @staticmethod
    def _for(m: Module, number: Value, change, sync) -> None:
        with m.Switch(number):
            for n in range(len(LINES)):
                with m.Case(n):
                    sync += change(n)


class Device:
    """Reads and writes lines, whole or in part, at any time; ``around`` the caches, too.

    Attributes:
        done: the oldest write accepted becomes visible after this step; ``line``, ``touches``, ``value`` are its own.
    """

    DEPTH = 4

    def __init__(self, world: World, port):
        m, sync = world.module, world.module.d[FORMAL_DOMAIN]
        request, response = port.request, port.response
        offered, number = Signal(), Signal(2)
        self.offered = offered
        write, touches, whole, value, around = (
            Signal(name=n) for n in ("write", "touches", "whole", "value", "around")
        )
        self.write = write
        chosen = world.free(2)
        with m.If(world.free() & ~offered & (chosen < len(LINES))):
            sync += [offered.eq(1), number.eq(chosen)]
            sync += [each.eq(world.free()) for each in (write, touches, whole, value, around)]
        m.d.comb += [
            request.valid.eq(offered),
            request.payload.op.eq(Mux(write, MemoryOp.WRITE, MemoryOp.READ)),
            request.payload.line.eq(line_address(number)),
            request.payload.mask.eq(Mux(whole, ~0, Mux(touches, 1, 2))),
            request.payload.data.eq(value),
            request.payload.around.eq(around),
            response.ready.eq(world.sometimes()),
        ]
        accepted = request.valid & request.ready
        with m.If(accepted):
            sync += offered.eq(0)

        # Writes that are not visible yet, oldest first
        entry = Signal(4)
        waiting = Array(Signal(4, name=f"device_write{i}") for i in range(self.DEPTH))
        head, tail = Signal(2), Signal(2)
        m.d.comb += entry.eq(Cat(number, touches | whole, value))
        with m.If(accepted & write):
            sync += [waiting[tail].eq(entry), tail.eq(tail + 1)]
        self.done = port.write_done
        world.always(~self.done | (head != tail), "a write becomes visible that was accepted")
        with m.If(self.done):
            sync += head.eq(head + 1)
        oldest = waiting[head]
        self.line, self.touches, self.value = oldest[:2], oldest[2], oldest[3]
        self.busy = offered | (head != tail)  # or reading, see below
        # One read at a time
        self.reading, self.read_line = Signal(), Signal(2)
        world.assume(~(offered & ~write & self.reading))
        with m.If(accepted & ~write):
            sync += [self.reading.eq(1), self.read_line.eq(number)]
        self.busy |= self.reading
        self.starts = accepted & ~write
        self.answered = response.valid & response.ready
        self.answer = response.payload.data[0]
        with m.If(self.answered):
            sync += self.reading.eq(0)


class Dram:
    """Holds one bit of each line; answers reads in any order."""

    READS = 4

    def __init__(self, world: World, port):
        m, sync = world.module, world.module.d[FORMAL_DOMAIN]
        request, response = port.request, port.response
        rows = self.rows = Array(Signal(name=f"dram{n}") for n in range(len(LINES)))
        number = line_number(request.payload.line)
        accepted = request.valid & request.ready
        read = accepted & (request.payload.op == MemoryOp.READ)
        taken = self.taken = Signal(self.READS)
        tags = Array(Signal(8, name=f"dram_tag{i}") for i in range(self.READS))
        values = Array(Signal(name=f"dram_value{i}") for i in range(self.READS))
        place, answering, stuck, chosen = world.free(2), Signal(2), Signal(), world.free(2)
        m.d.comb += request.ready.eq(world.sometimes() & ~taken.bit_select(place, 1))
        world.always(~accepted | (number < len(LINES)), "DRAM is asked for a line")
        with m.If(accepted & ~read):
            with m.Switch(number):
                for n in range(len(LINES)):
                    with m.Case(n):
                        sync += rows[n].eq(request.payload.data[0])
        with m.If(read):
            sync += [tags[place].eq(request.payload.tag), values[place].eq(rows[number])]
        # An answer that is offered stays
        offered = Signal()
        m.d.comb += [
            answering.eq(Mux(stuck, world.past(answering), chosen)),
            offered.eq(taken.bit_select(answering, 1) & (stuck | world.sometimes())),
            response.valid.eq(offered),
            response.payload.tag.eq(tags[answering]),
            response.payload.data.eq(values[answering]),
        ]
        sync += stuck.eq(offered & ~response.ready)
        gone = Mux(offered & response.ready, Const(1, self.READS) << answering, 0)
        new = Mux(read, Const(1, self.READS) << place, 0)
        sync += taken.eq((taken & ~gone) | new)


class Model:
    """The last level in its surroundings, with what must hold.

    Arguments:
        inclusion: of the private caches.
        eager: whoever receives takes at once what is offered, and DRAM answers at once; so runs can be longer.
        writes, device: whether the device writes, or does anything.

    Attributes:
        world: the model checker's harness.
        caches, device, dram: what surrounds the last level.
        truth: of each line, the value written last, by whoever.
    """

    def __init__(
        self, inclusion: str = "non-inclusive", *, eager: bool = False, writes: bool = True, device: bool = True
    ):
        config = SMALL.replace([f'llc.inclusion="{inclusion}"'])
        with (
            patch("hw.mem.llc.RAM", OpenRam),
            patch("hw.mem.llc_tags.RAM", OpenRam),
            patch("hw.mem.llc_line_buffers.RAM", OpenRam),
        ):
            self.llc = llc = LastLevelCache(config)
        llc._wait_cycles = 0  # the wait before a lookup would only make runs longer
        self.world = world = World(llc, eager=eager)
        m, sync = world.module, world.module.d[FORMAL_DOMAIN]
        m.d.comb += world.tick["uncore"].eq(1)
        self.caches = [Cache(world, port, index) for index, port in enumerate(llc.client)]
        self.device = dma = Device(world, llc.device)
        if not device:
            world.assume(~dma.offered)
        if not writes:
            world.assume(~(dma.offered & dma.write))
        self.dram = Dram(world, llc.dram[0])
        self.truth = truth = [Signal(name=f"truth{n}") for n in range(len(LINES))]

        # What is written last
        seen = Signal(2)  # values the line being read has had since the device asked
        for n in range(len(LINES)):
            with m.If(dma.done & dma.touches & (dma.line == n)):
                sync += truth[n].eq(dma.value)
            for cache in self.caches:
                with m.If(cache.wrote[n]):
                    sync += truth[n].eq(~cache.value[n])
        is_now = Mux(Array(truth)[dma.read_line], 2, 1)
        sync += seen.eq(Mux(dma.starts, 0, seen | is_now))

        # Any coherent state to begin with
        for ram in (llc.tags.rows, llc.tags.recent, llc.snoop_filter.rows, llc.snoop_filter.recent, llc.data):
            m.d.comb += ram.starts.eq(~world.begun)
            world.inputs += ram.first
        for cache in self.caches:
            world.begin_with_any(*cache.may, *cache.value, *cache.dirty)
        world.begin_with_any(*self.dram.rows, *truth)
        began = world.past(world.begun)
        coherent = self.coherent()
        world.assume(~world.begun | began | Cat(coherent.values()).all())

        # What must hold
        at_rest = began & self.at_rest()
        for name, holds in coherent.items():
            world.always(~at_rest | holds, f"at rest {name}")
        for n in range(len(LINES)):
            writes, holds = (Cat(Value.cast(c.may[n]) >= least.value for c in self.caches) for least in (WRITE, READ))
            world.always(~world.begun | ~writes.any() | ~holds.all(), "one writer or many readers")
            for cache in self.caches:
                is_right = (cache.may[n] == NOTHING) | (cache.value[n] == truth[n])
                world.always(~world.begun | is_right, "a copy is what was written last")
        right = (seen | is_now).bit_select(dma.answer, 1)
        world.always(~dma.answered | right, "a device reads what was there")

    def at_rest(self) -> Value:
        """Nothing is under way anywhere."""
        llc = self.llc
        return (
            llc._free.all()
            & llc.quiet
            & ~Cat(cache.busy for cache in self.caches).any()
            & ~self.device.busy
            & ~self.dram.taken.any()
        )

    def coherent(self) -> dict[str, Value]:
        """The arrays agree with each other, with the caches, with DRAM and with what was written last: by rule."""
        llc, rules = self.llc, defaultdict(list)
        tags = data.View(data.ArrayLayout(llc.tags.entry, llc.tags.ways), llc.tags.rows.rows[0])
        entries = data.View(
            data.ArrayLayout(llc.snoop_filter.entry, llc.snoop_filter.ways), llc.snoop_filter.rows.rows[0]
        )
        for array, shift in ((tags, llc.layouts.set_width), (entries, llc.layouts.filter_set_width)):
            ways = range(array.shape().length)
            known = [Cat(array[way].tag == line >> shift for line in LINES).any() for way in ways]
            rules["tags are of lines"] += [~array[way].valid | known[way] for way in ways]
            rules["no line lies twice"] += [
                ~(array[a].valid & array[b].valid & (array[a].tag == array[b].tag)) for a in ways for b in ways if a < b
            ]
        for n, line in enumerate(LINES):
            may, dirty = [cache.may[n] for cache in self.caches], [cache.dirty[n] for cache in self.caches]
            rules["a cache may do one of three things"] += [Value.cast(each) < 3 for each in may]
            rules["a dirty line may be written"] += [~d | (m == WRITE) for d, m in zip(dirty, may, strict=True)]

            # The snoop filter
            found = [e.valid & (e.tag == line >> llc.layouts.filter_set_width) for e in entries]
            sharers = [Cat(f & e.sharers[c] for f, e in zip(found, entries, strict=True)).any() for c in range(CLIENTS)]
            exclusive = Cat(f & e.exclusive for f, e in zip(found, entries, strict=True)).any()
            rules["an entry of the snoop filter has sharers"] += [
                ~f | e.sharers.any() for f, e in zip(found, entries, strict=True)
            ]
            rules["sharers are who may read"] += [s == (m != NOTHING) for s, m in zip(sharers, may, strict=True)]
            rules["an exclusive holder may write"].append(exclusive == Cat(m == WRITE for m in may).any())
            rules["an exclusive holder is alone"].append(~(exclusive & Cat(sharers).all()))

            # Its value: in the cache, else in DRAM
            value = Signal(name=f"memory{n}")
            self.world.module.d.comb += value.eq(self.dram.rows[n])
            hits = []
            for way in range(llc.tags.ways):
                entry, stored = tags[way], llc.data.rows[way << llc.layouts.set_width]
                hit = entry.valid & (entry.tag == line >> llc.layouts.set_width)
                with self.world.module.If(hit):
                    self.world.module.d.comb += value.eq(stored)
                hits.append(hit)
                rules["a clean line is as in DRAM"].append(~hit | entry.dirty | (stored == self.dram.rows[n]))
            if llc.layouts.inclusive:
                rules["what caches hold is here"].append(~Cat(sharers).any() | Cat(hits).any())
            rules["memory is the last write"].append(Cat(dirty).any() | (value == self.truth[n]))
            rules["a copy is the last write"] += [
                (cache.may[n] == NOTHING) | (cache.value[n] == self.truth[n]) for cache in self.caches
            ]
        return {name: Cat(held).all() for name, held in rules.items()}

    def run(self, **depths: int) -> None:
        """Run tasks by mode and depth."""
        self.world.run(**depths)


class ForgetsSharer(Decide):
    """Grants a line as if nobody else held it."""

    def _acquire(self, m, client, remaining):
        super()._acquire(m, client, Const(0, len(remaining)))


class DropsCalledBack(Decide):
    """Drops the dirty line that a back-invalidation brought."""

    def _finish_back_invalidation(self, m):
        m.d.comb += [
            self.filter_update.write.eq(1),
            self.filter_update.way.eq(self.filter.way),
            self.next.evicted.eq(1),
        ]


class DropsVictim(Decide):
    """Does not write dirty lines to DRAM when they make room."""

    def _use_cache(self, m):
        super()._use_cache(m)
        with m.If(self.events.evict):
            m.d.comb += self.actions.dram_write.eq(0)


class DropsWhatDeviceRead(Decide):
    """Gives a device a core's dirty line, and then forgets it."""

    def _device_read(self, m, remaining):
        super()._device_read(m, remaining)
        m.d.comb += [self._store.eq(0), self.actions.dram_write.eq(0)]


@pytest.mark.slow
@pytest.mark.parametrize("inclusion", ["non-inclusive", "inclusive"])
def test_one_writer_or_many_readers_and_no_write_lost(inclusion):
    """From any coherent state, whatever the caches, the device and DRAM do."""
    Model(inclusion).run(bmc=14)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, message, depth, world",
    [
        (ForgetsSharer, "one writer or many readers", 14, {}),
        (DropsVictim, "at rest", 14, {}),
        (DropsCalledBack, "at rest", 20, {"eager": True, "device": False}),
        (DropsWhatDeviceRead, "at rest", 17, {"eager": True, "writes": False}),
    ],
)
def test_a_planted_fault_is_found(fault, message, depth, world):
    with patch("hw.mem.llc.Decide", fault):
        model = Model(**world)
    with pytest.raises(ProofFailed, match=message):
        model.run(bmc=depth)


@pytest.mark.slow
def test_longer_runs():
    """Without the device and with eager receivers: time for a back-invalidation and more."""
    Model(eager=True, device=False).run(bmc=17)
