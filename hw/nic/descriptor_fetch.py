"""Prefetches descriptors by cache line into a descriptor cache."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.tilelink import LINE_BYTES, PHYSICAL_ADDRESS_WIDTH
from hw.bus.tlp import TlpHeader, TlpStatus, TlpStream, TlpType
from hw.lib.probe import Counter

from .descriptors import DESCRIPTOR_BYTES
from .ring import RX_RING, Ring

__all__ = ["INDEX_WIDTH", "PER_LINE", "DescriptorFetch", "RingPosition"]

#: Descriptors in a cache line.
PER_LINE = LINE_BYTES // DESCRIPTOR_BYTES

#: Bits of a descriptor's index in its ring (RDLEN has 20 bits: up to 65536 descriptors).
INDEX_WIDTH = 16


class RingPosition(data.Struct):
    """Where a ring lies. Stable while its queue is enabled, but for ``tail``."""

    base: PHYSICAL_ADDRESS_WIDTH
    size: INDEX_WIDTH + 1  #: descriptors, a multiple of 8
    tail: INDEX_WIDTH  #: the first descriptor that is not the card's


class DescriptorFetch(wiring.Component):
    """Reads descriptors ``head`` to ``tail - 1`` of ``kind`` in order, never beyond the tail, and offers them in order.

    ``start`` (one cycle, while ``idle``) empties the cache and begins at index ``head``. While ``running``, a
    line is read as soon as the cache has room and the tail has passed its end; part of a line is
    read only when the cache is empty, so that a tail that moves one by one does not cost a read per descriptor. At
    most ``read_tags`` reads are in flight; tags are ``first_tag`` + row of the cache. Their completions, one
    beat each (a line is the read completion boundary), may come in any order.

    A descriptor is offered from the edge after its completion's on. ``exhausted``: the card has no descriptor, nor
    one on its way. ``error`` (one cycle): a completion refused the read, or gave a descriptor that stops the queue.
    ``permit`` low puts a read off that ``wants`` to be issued: of several queues one issues at a time.

    Raises:
        ValueError: when ``cache`` is not a power of two of at least 8 descriptors, or there are no ``read_tags``.
    """

    def __init__(self, kind: Ring = RX_RING, *, cache: int, read_tags: int, first_tag: int = 0):
        if cache < 8 or cache & (cache - 1):
            raise ValueError(f"a descriptor cache is a power of two of at least 8 descriptors, not {cache}")
        if read_tags < 1:
            raise ValueError(f"fetching needs at least one read tag, not {read_tags}")
        if first_tag + cache // PER_LINE > 256:
            raise ValueError(f"tags {first_tag} to {first_tag + cache // PER_LINE - 1} exceed 8 bits")
        self.kind = kind
        super().__init__(
            {
                "ring": In(RingPosition),
                "head": In(INDEX_WIDTH),
                "start": In(1),
                "running": In(1),
                "permit": In(1, init=1),
                "completion": In(TlpStream),
                "read": Out(TlpStream),
                "descriptor": Out(stream.Signature(kind.taken)),
                "index": Out(INDEX_WIDTH),  #: of the descriptor that is offered, or will be next
                "exhausted": Out(1),
                "error": Out(1),
                "idle": Out(1),  #: no read is in flight
                "wants": Out(1),
                "issue": Out(1),  #: a read is issued at this edge, ...
                "issue_address": Out(PHYSICAL_ADDRESS_WIDTH),  #: ... here, ...
                "issue_count": Out(range(PER_LINE + 1)),  #: ... of so many descriptors
                "quiet": Out(1),
            }
        )
        self.cache, self.read_tags, self.first_tag = cache, read_tags, first_tag
        self.rows = cache // PER_LINE
        self._next = Signal(INDEX_WIDTH, name="next")  # index of the next descriptor to read
        self.fetches = Counter("nic", "descriptor reads")
        self.fetched = Counter("nic", "descriptors read")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        # Slots of the cache are numbered so that a slot's place in its row is the descriptor's place in its line
        slot_width = ceil_log2(self.cache) + 1
        filled, taken = Signal(slot_width), Signal(slot_width)
        used = Signal(slot_width)
        m.d.comb += used.eq(filled - taken)
        with m.If(self.start):
            m.d.nic += [filled.eq(self.head % PER_LINE), taken.eq(self.head % PER_LINE)]

        busy = Signal(self.rows)  # rows that wait for a completion
        issued, answered = Signal(self.rows), Signal(self.rows)  # the row concerned at this edge
        in_flight = Signal(range(self.read_tags + 1))
        with m.If(issued.any() | answered.any()):
            m.d.nic += [
                busy.eq((busy & ~answered) | issued),
                in_flight.eq(in_flight + issued.any() - answered.any()),
            ]
        m.d.comb += self.idle.eq(in_flight == 0)

        blocked = self._issue(m, filled, used, busy, in_flight, issued)
        self._offer(m, taken, *self._answer(m, answered))
        m.d.comb += [
            self.exhausted.eq(~self.start & (self._next == self.ring.tail) & (used == 0)),
            self.quiet.eq(
                ~self.completion.valid
                & ~self.start
                & blocked
                & ~self.read.valid
                & ~(self.descriptor.valid & self.descriptor.ready)
            ),
        ]
        return m

    def _issue(self, m, filled, used, busy, in_flight, issued):
        """Read the next line, or what there is of it; returns whether there is nothing to read now."""
        next, tail = self._next, self.ring.tail
        lane, row = next % PER_LINE, (filled >> 2)[: (self.rows - 1).bit_length()]
        count = Signal(range(PER_LINE + 1))
        whole, want, end = Signal(), Signal(), Signal(len(next) + 1)
        with m.If((next >> 2 == tail >> 2) & (next <= tail)):
            m.d.comb += count.eq(tail - next)
        with m.Else():
            m.d.comb += [count.eq(PER_LINE - lane), whole.eq(1)]
        read_valid, header = Signal(), Signal(TlpHeader)
        m.d.comb += [
            self.wants.eq(
                self.running
                & ~read_valid
                & (count != 0)
                & (whole | (used == 0))
                & (used + count <= self.cache)
                & (in_flight != self.read_tags)
                & ~busy.bit_select(row, 1)
            ),
            want.eq(self.wants & self.permit),
            end.eq(next + count),
            self.issue.eq(want),
            self.issue_count.eq(count),
        ]
        with m.If(want):
            address = self.ring.base + (next << 4)
            m.d.comb += [issued.eq(1 << row), self.issue_address.eq(address)]
            m.d.nic += [
                header.kind.eq(TlpType.MEMORY_READ),
                header.address.eq(address),
                header.length.eq(count * DESCRIPTOR_BYTES),
                header.tag.eq(self.first_tag + row),
                filled.eq(filled + count),
                next.eq(Mux(end == self.ring.size, 0, end)),
                read_valid.eq(1),
            ]
        with m.Elif(self.read.ready):
            m.d.nic += read_valid.eq(0)
        with m.If(self.start):
            m.d.nic += next.eq(self.head)
        m.d.comb += [
            self.read.valid.eq(read_valid),
            self.read.payload.first.eq(1),
            self.read.payload.last.eq(1),
            self.read.payload.header.eq(header),
        ]
        self.fetches.increment(m, want)
        self.fetched.increment(m, want, count)
        return ~want

    def _answer(self, m, answered):
        """Take a completion; returns the row it is for, which of its descriptors came, and the line."""
        beat = self.completion.payload
        row = Signal(range(self.rows))
        lanes, stops = Signal(PER_LINE), Signal(PER_LINE)
        source = data.View(data.ArrayLayout(self.kind.source, PER_LINE), beat.data)
        line = Signal(data.ArrayLayout(self.kind.taken, PER_LINE))
        m.d.comb += self.completion.ready.eq(1)
        with m.If(self.completion.valid):
            good = beat.header.status == TlpStatus.SUCCESS
            first = (beat.header.address >> 4) % PER_LINE
            count = beat.header.length >> 4
            m.d.comb += [
                row.eq(beat.header.tag - self.first_tag),
                answered.eq(1 << row),
                lanes.eq(Mux(good, ((1 << count[:3]) - 1) << first, 0)),
                stops.eq(Cat(self.kind.take(m, *pair) for pair in zip(source, line, strict=True))),
                self.error.eq(~good | (lanes & stops).any()),
            ]
        return row, lanes, line

    def _offer(self, m, taken, row, lanes, line):
        """Keep what arrived, and offer it in order."""
        m.submodules.descriptors = rows = Memory(
            shape=data.ArrayLayout(self.kind.taken, PER_LINE), depth=self.rows, init=[]
        )
        write, read = rows.write_port(domain="nic", granularity=1), rows.read_port(domain="comb")
        present = Signal(self.cache)
        arrived, consumed = Signal(self.cache), Signal(self.cache)
        slot = taken[:-1]
        with m.If(lanes.any()):
            m.d.comb += [write.en.eq(lanes), arrived.eq(lanes << (row << 2))]
            m.d.comb += write.data.eq(line)
        m.d.comb += [
            write.addr.eq(row),
            read.addr.eq(slot >> 2),
            self.descriptor.payload.eq(read.data[slot % PER_LINE]),
            self.descriptor.valid.eq(self.running & present.bit_select(slot, 1)),
        ]
        with m.If(self.descriptor.valid & self.descriptor.ready):
            m.d.comb += consumed.eq(1 << slot)
            following = self.index + 1
            m.d.nic += [taken.eq(taken + 1), self.index.eq(Mux(following == self.ring.size, 0, following))]
        with m.If(self.start):
            m.d.nic += [present.eq(0), self.index.eq(self.head)]
        with m.Elif(arrived.any() | consumed.any()):
            m.d.nic += present.eq((present | arrived) & ~consumed)
