"""The DRAM's contents and its data bus."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from hw.bus.memory import DramResponse
from hw.bus.tilelink import LINE_BITS
from hw.config import DramConfig
from hw.lib.ram import RAM
from hw.lib.time import NOW_WIDTH, Timer

__all__ = ["DramData"]

#: Most bursts on their way at once, whatever the latencies.
MAX_BURSTS = 64


class DramData(wiring.Component):
    """Carries out RD and WR when their burst ends, in the order of the commands.

    A read issued at edge t is on ``response`` from edge t + CL + BURST + ``phy`` on. When responses are not taken,
    later bursts wait and keep their order, as if in a buffer of the controller: no newer write overtakes an older read.

    The data of a write waits from its acceptance in a place of a ring (``slot``), so that the queue need not hold it.

    Arguments:
        config: timings.
        controller: cycles between a write's acceptance and the queue, for the size of the ring.
        phy: cycles a burst takes between here and the DRAM's pins, either way.

    Attributes:
        store, store_data: put the data of a write just accepted into place ``slot`` at this edge; only while
            ``can_store``.
        issue, write, line, tag, slot_issued: a RD or WR issued at this edge; only while ``can_issue``.
        response: answers to reads.
        quiet: see docs/architecture.md; ``issue`` and ``store`` must be low.
    """

    def __init__(self, config: DramConfig, *, controller: int = 0, phy: int = 0):
        self.config = config
        self.phy = phy
        in_flight = -(-(config.CL + config.BURST + phy) // config.tCCD_S) + 2
        self.bursts = min(1 << ceil_log2(in_flight), MAX_BURSTS)
        self.slots = 1 << ceil_log2(config.queue + self.bursts + -(-controller // config.tCCD_S))
        self.slot_width = exact_log2(self.slots)
        line_width = exact_log2(config.channel_lines)
        super().__init__(
            {
                "now": In(NOW_WIDTH),
                "can_store": Out(1),
                "slot": Out(self.slot_width),
                "store": In(1),
                "store_data": In(LINE_BITS),
                "can_issue": Out(1),
                "issue": In(1),
                "write": In(1),
                "line": In(line_width),
                "tag": In(8),
                "slot_issued": In(self.slot_width),
                "response": Out(stream.Signature(DramResponse)),
                "quiet": Out(1),
            }
        )
        self.rows = RAM(width=LINE_BITS, depth=config.channel_lines, domain="dram")
        self.burst_end = Timer("dram")
        self._burst_layout = data.StructLayout(
            {"deadline": NOW_WIDTH, "write": 1, "line": line_width, "tag": 8, "slot": self.slot_width}
        )

    def elaborate(self, platform):
        """Elaborate: data of writes, bursts on their way, and the access at the end of a burst."""
        m = Module()
        m.submodules.rows = rows = self.rows

        # Data of writes: a place is in use from acceptance until the burst's end.
        write_data: Memory = Memory(shape=LINE_BITS, depth=self.slots, init=[])
        m.submodules.write_data = write_data
        stored, fetched = write_data.write_port(domain="dram"), write_data.read_port(domain="dram")
        used = Signal(self.slots)
        use, release = Signal(self.slots), Signal(self.slots)
        m.d.comb += [
            self.can_store.eq(~used.bit_select(self.slot, 1)),
            stored.en.eq(self.store),
            stored.addr.eq(self.slot),
            stored.data.eq(self.store_data),
            use.eq(self.store << self.slot),
        ]
        m.d.dram += used.eq((used | use) & ~release)
        with m.If(self.store):
            m.d.dram += self.slot.eq(self.slot + 1)

        # Bursts on their way, in the order of their commands, which is that of their deadlines
        in_flight: Memory = Memory(shape=self._burst_layout, depth=self.bursts, init=[])
        m.submodules.in_flight = in_flight
        pushed, first = in_flight.write_port(domain="dram"), in_flight.read_port(domain="comb")
        head, tail = (Signal(exact_log2(self.bursts) + 1, name=name) for name in ("head", "tail"))
        burst, some, finish = first.data, Signal(), Signal()
        config = self.config
        write_cycles, read_cycles = config.CWL + config.BURST + self.phy, config.CL + config.BURST + self.phy - 1
        m.d.comb += [
            self.can_issue.eq((tail - head)[: len(tail)] != self.bursts),
            pushed.en.eq(self.issue),
            pushed.addr.eq(tail),
            pushed.data.deadline.eq(self.now + Mux(self.write, write_cycles, read_cycles)),
            pushed.data.write.eq(self.write),
            pushed.data.line.eq(self.line),
            pushed.data.tag.eq(self.tag),
            pushed.data.slot.eq(self.slot_issued),
            first.addr.eq(head),
            some.eq(head != tail),
            self.burst_end.armed.eq(some),
            self.burst_end.deadline.eq(burst.deadline),
        ]
        with m.If(self.issue):
            m.d.dram += tail.eq(tail + 1)
        with m.If(finish):
            m.d.dram += head.eq(head + 1)

        # End of a burst. A write's data is fetched as soon as its burst comes first, which is at least BURST
        # cycles before the burst ends.
        due, fetch, is_fetched = Signal(), Signal(), Signal()
        m.d.comb += [
            due.eq(some & (self.now >= burst.deadline)),
            fetch.eq(some & burst.write & ~is_fetched),
            fetched.en.eq(fetch),
            fetched.addr.eq(burst.slot),
            rows.read_address.eq(burst.line),
            rows.write_address.eq(burst.line),
            rows.write_data.eq(fetched.data),
            self.response.payload.data.eq(rows.read_data),
        ]
        with m.If(fetch):
            m.d.dram += is_fetched.eq(1)
        with m.If(self.response.ready):
            m.d.dram += self.response.valid.eq(0)
        with m.If(due & burst.write & is_fetched):
            m.d.comb += [finish.eq(1), rows.write_enable.eq(1), release.eq(1 << burst.slot)]
            m.d.dram += is_fetched.eq(0)
        with m.If(due & ~burst.write & (~self.response.valid | self.response.ready)):
            m.d.comb += [finish.eq(1), rows.read_enable.eq(1)]
            m.d.dram += [self.response.valid.eq(1), self.response.payload.tag.eq(burst.tag)]

        m.d.comb += self.quiet.eq(~due & ~fetch & ~self.response.valid)
        return m
