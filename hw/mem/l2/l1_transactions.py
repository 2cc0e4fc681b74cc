"""Acquires of the L1 until they are acknowledged."""

from amaranth.hdl import Array, Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH, SINK_WIDTH, SOURCE_WIDTH
from hw.mem.llc_bits import one_hot

__all__ = ["L1Transactions"]


class L1Transactions(wiring.Component):
    """For each ``source`` of the L1 its line, and who answered.

    Towards the L1 a Grant's ``sink`` is the source of its Acquire; it is the last level's own again in the GrantAck
    that is passed on. So no bit need tell Grants of the L2 from those of the last level.

    Arguments:
        count: sources of the L1.
        domain: clock domain.
    """

    def __init__(self, count: int, domain: str):
        self.count, self.domain = count, domain
        super().__init__(
            {
                "line": In(LINE_ADDRESS_WIDTH),
                "source": In(SOURCE_WIDTH),
                "hit": In(1),  #: the L2 grants ``line`` to ``source``
                "pass_on": In(1),  #: ... or asks the last level for it
                "active": In(1),  #: ``line`` is to be looked up
                "unacknowledged": Out(1),  #: the L2 has granted it, the L1 may not have it yet
                "asked": Out(1),  #: the last level has not granted it yet
                "granted": In(1),  #: the last level grants the line of ``granted_source``
                "granted_source": In(SOURCE_WIDTH),
                "granted_sink": In(SINK_WIDTH),
                "sink": In(SINK_WIDTH),  #: of a GrantAck of the L1
                "local": Out(1),  #: it is for the L2
                "sink_below": Out(SINK_WIDTH),  #: else: what the last level calls it
                "acknowledge": In(1),  #: take it, if it is for the L2
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        lines = Array(Signal(LINE_ADDRESS_WIDTH, name=f"line{i}") for i in range(self.count))
        local = Signal(self.count)
        asked = Signal(self.count)
        source = Signal(self.count)

        # Look-up
        with m.If(self.active):
            matches = Signal(self.count)
            m.d.comb += [
                matches.eq(Cat(line == self.line for line in lines)),
                self.unacknowledged.eq((matches & local).any()),
                self.asked.eq((matches & asked).any()),
            ]

        # Acquire
        m.d.comb += source.eq(one_hot(self.source, self.count))
        with m.If(self.hit | self.pass_on):
            m.d[self.domain] += lines[self.source].eq(self.line)

        # Grant
        m.submodules.sinks = sinks = Memory(shape=SINK_WIDTH, depth=self.count, init=[])
        write, read = sinks.write_port(domain=self.domain), sinks.read_port(domain="comb")
        m.d.comb += [
            write.addr.eq(self.granted_source),
            write.data.eq(self.granted_sink),
            write.en.eq(self.granted),
            read.addr.eq(self.sink),
            self.sink_below.eq(read.data),
            self.local.eq(local.bit_select(self.sink, 1)),
        ]
        granted = Signal(self.count)
        with m.If(self.granted):
            m.d.comb += granted.eq(one_hot(self.granted_source, self.count))
        with m.If(self.pass_on | self.granted):
            m.d[self.domain] += asked.eq((asked & ~granted) | (source & self.pass_on.replicate(self.count)))

        # GrantAck
        acknowledged = Signal(self.count)
        with m.If(self.acknowledge):
            m.d.comb += acknowledged.eq(one_hot(self.sink, self.count))
        with m.If(self.hit | self.acknowledge):
            m.d[self.domain] += local.eq((local & ~acknowledged) | (source & self.hit.replicate(self.count)))
        return m
