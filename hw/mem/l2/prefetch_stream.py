"""The stream prefetcher."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH
from hw.lib.plru import plru_touched, plru_victim
from hw.mem.llc_bits import encode

__all__ = ["StreamPrefetcher"]

#: Lines of a page of 4 KiB have so many bits; no stream leaves its page, since the next one may lie anywhere.
INDEX_WIDTH = 6
#: Pages followed at once.
TRACKERS = 16
#: Steps in one direction that make a stream, so it takes one more access than that.
STEPS = 2


class StreamPrefetcher(wiring.Component):
    """Would like the lines ahead of accesses that go up or down within a page.

    A tracker follows a page from its first access on, until bit pseudo-LRU gives it to another page. An access no
    further than ``distance`` lines from the one before it is a step; ``STEPS`` in the same direction make a stream.
    From then on each step asks for those lines up to ``distance`` ahead of it that have not been asked for. A step
    back, as from accesses out of order, weakens a stream before it turns it around.

    An access at an edge with ``train`` high is worked on at the next edge; its lines are candidates from the one after
    that on, one at a time, nearest first, until another stream's access takes their place.

    Arguments:
        distance: lines, 1 to 32.
        domain: clock domain.

    Attributes:
        pending: an access is to be worked on.
    """

    def __init__(self, distance: int, domain: str):
        if not 1 <= distance <= 1 << (INDEX_WIDTH - 1):
            raise ValueError(f"a stream runs 1 to {1 << (INDEX_WIDTH - 1)} lines ahead, not {distance}")
        self.distance, self.domain = distance, domain
        self._tracker = data.StructLayout({"last": INDEX_WIDTH, "up": 1, "steps": range(STEPS + 2)})
        super().__init__(
            {
                "train": In(1),  #: ``train_line`` was missed, or found thanks to a prefetch
                "train_line": In(LINE_ADDRESS_WIDTH),
                "valid": Out(1),
                "line": Out(LINE_ADDRESS_WIDTH),
                "take": In(1),
            }
        )
        self.pending = Signal(name="pending")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        domain = m.d[self.domain]
        access = Signal(LINE_ADDRESS_WIDTH)
        page, index = access[INDEX_WIDTH:], access[:INDEX_WIDTH]
        pages = Array(Signal(len(page), name=f"page{i}") for i in range(TRACKERS))
        used = Signal(TRACKERS)
        recent = Signal(TRACKERS)
        m.submodules.trackers = trackers = Memory(shape=self._tracker, depth=TRACKERS, init=[])
        read, write = trackers.read_port(domain="comb"), trackers.write_port(domain=self.domain)
        m.submodules.heads = heads = Memory(shape=INDEX_WIDTH, depth=TRACKERS, init=[])  # the last line asked for
        head_read, head_write = heads.read_port(domain="comb"), heads.write_port(domain=self.domain)

        # What is being asked for
        asking = Signal()
        asking_page = Signal.like(page)
        asking_tracker = Signal(range(TRACKERS))
        asking_up = Signal()
        first = Signal(INDEX_WIDTH)
        last = Signal(INDEX_WIDTH)
        m.d.comb += [self.valid.eq(asking & ~self.pending), self.line.eq(Cat(first, asking_page))]
        with m.If(self.take):
            m.d.comb += [head_write.en.eq(1), head_write.addr.eq(asking_tracker), head_write.data.eq(first)]
            domain += [asking.eq(first != last), first.eq(Mux(asking_up, first + 1, first - 1))]

        # An access
        domain += self.pending.eq(self.train)
        with m.If(self.train):
            domain += access.eq(self.train_line)
        with m.If(self.pending):
            # Which tracker
            matches = Signal(TRACKERS)
            chosen = Signal(TRACKERS)
            tracker = Signal(range(TRACKERS))
            known = Signal()
            m.d.comb += [
                matches.eq(used & Cat(p == page for p in pages)),
                known.eq(matches.any()),
                chosen.eq(Mux(known, matches, plru_victim(recent, used))),
                tracker.eq(encode(chosen)),
                read.addr.eq(tracker),
                write.addr.eq(tracker),
                write.en.eq(1),
                head_read.addr.eq(tracker),
                head_write.addr.eq(tracker),
                head_write.en.eq(1),
            ]
            domain += [pages[tracker].eq(page), used.eq(used | chosen), recent.eq(plru_touched(recent, chosen))]

            # Where it goes
            before = read.data
            up = Signal()
            near = Signal()
            far = Mux(up, index - before.last, before.last - index)
            m.d.comb += [
                up.eq(index > before.last),
                near.eq(known & (far <= self.distance)),
                write.data.last.eq(index),
                write.data.up.eq(up),
                head_write.data.eq(index),
            ]
            with m.If(near & (index == before.last)):
                m.d.comb += [write.data.eq(before), head_write.data.eq(head_read.data)]
            with m.Elif(near & (up == before.up) & before.steps.any()):
                strong = before.steps == STEPS + 1
                ahead = Mux(up, head_read.data > index, head_read.data < index)
                m.d.comb += [
                    write.data.steps.eq(Mux(strong, before.steps, before.steps + 1)),
                    head_write.data.eq(Mux(ahead, head_read.data, index)),
                ]
            with m.Elif(near & (before.steps >= STEPS)):
                m.d.comb += [
                    write.data.eq(before),
                    write.data.steps.eq(before.steps - 1),
                    head_write.data.eq(head_read.data),
                ]
            with m.Elif(near):
                m.d.comb += write.data.steps.eq(1)

            # What to ask for
            goal = Signal(INDEX_WIDTH)
            with m.If(up):
                limit = (1 << INDEX_WIDTH) - 1
                m.d.comb += goal.eq(Mux(index > limit - self.distance, limit, index + self.distance))
            with m.Else():
                m.d.comb += goal.eq(Mux(index < self.distance, 0, index - self.distance))
            forward = near & (up == write.data.up) & (index != before.last)
            with m.If(forward & (write.data.steps >= STEPS) & (head_write.data != goal)):
                domain += [
                    asking.eq(1),
                    asking_page.eq(page),
                    asking_tracker.eq(tracker),
                    asking_up.eq(up),
                    first.eq(Mux(up, head_write.data + 1, head_write.data - 1)),
                    last.eq(goal),
                ]
            with m.Elif(chosen.bit_select(asking_tracker, 1)):
                domain += asking.eq(0)
        return m
