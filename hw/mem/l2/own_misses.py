"""Lines that the L2 cache itself has asked for: for the instruction cache and for its prefetchers."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.fetch import FETCH_TAG_WIDTH
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, SOURCE_WIDTH, Grow
from hw.mem.llc_bits import encode, index_width, lowest, one_hot

__all__ = ["OwnMisses"]


class OwnMisses(wiring.Component):
    """Entries 0 to ``fetches - 1`` are for fetches, ``prefetches`` more for prefetches.

    An Acquire of the L1, and a fetch, can wait with an entry for its line. With an Acquire the entry is not free yet
    when the line has come: it is offered as ``replay`` until the Acquire has had its turn.

    Arguments:
        fetches, prefetches: entries of either kind.
        domain: clock domain.
    """

    def __init__(self, *, fetches: int, prefetches: int, domain: str):
        self.fetches, self.count, self.domain = fetches, fetches + prefetches, domain
        index = index_width(self.count)
        self._demand = data.StructLayout({"source": SOURCE_WIDTH, "grow": Grow})
        super().__init__(
            {
                "fetch_free": Out(1),
                "prefetch_free": Out(1),
                "allocate": In(1),  #: make entry ``new_index`` for ``line``
                "prefetch": In(1),  #: ... for a prefetcher, else for fetch ``tag``
                "line": In(LINE_ADDRESS_WIDTH),
                "new_index": Out(index),
                "index": In(index),  #: the entry spoken of below
                "wait_demand": In(1),  #: the Acquire by ``source`` waits
                "source": In(SOURCE_WIDTH),
                "grow": In(Grow),
                "wait_fetch": In(1),  #: fetch ``tag`` waits; not if ``fetch_waits``
                "tag": In(FETCH_TAG_WIDTH),
                "fill": In(1),  #: the line has come
                "replayed": In(1),  #: the Acquire has had its turn
                "fetch_waits": Out(1),
                "fetch_tag": Out(FETCH_TAG_WIDTH),
                "replay": Out(1),  #: entry ``replay_index`` has its line, and an Acquire for it
                "replay_index": Out(index),
                "look_index": In(index),  #: the entry shown below
                "look_line": Out(LINE_ADDRESS_WIDTH),
                "look_source": Out(SOURCE_WIDTH),
                "look_grow": Out(Grow),
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        used = Signal(self.count)
        demanded = Signal(self.count)
        fetched = Signal(self.count)
        replay = Signal(self.count)

        # Which
        for_fetches = (1 << self.fetches) - 1
        for_prefetches = (1 << self.count) - 1 - for_fetches
        index = Signal(self.count)
        new = Signal(self.count)
        m.d.comb += [
            self.fetch_free.eq((~used & for_fetches).any()),
            self.prefetch_free.eq((~used & for_prefetches).any()),
            self.replay.eq(replay.any()),
            self.replay_index.eq(encode(lowest(replay))),
            index.eq(one_hot(self.index, self.count)),
            self.fetch_waits.eq((fetched & index).any()),
        ]
        with m.If(self.allocate):
            m.d.comb += [
                new.eq(lowest(~used & Mux(self.prefetch, for_prefetches, for_fetches))),
                self.new_index.eq(encode(new)),
            ]

        # What waits
        with m.If(self.allocate):
            m.d[self.domain] += [
                used.eq(used | new),
                demanded.eq(demanded & ~new),
                fetched.eq(Mux(self.prefetch, fetched & ~new, fetched | new)),
            ]
        with m.Elif(self.wait_demand):
            m.d[self.domain] += demanded.eq(demanded | index)
        with m.Elif(self.wait_fetch):
            m.d[self.domain] += fetched.eq(fetched | index)
        with m.Elif(self.fill):
            with m.If((demanded & index).any()):
                m.d[self.domain] += replay.eq(replay | index)
            with m.Else():
                m.d[self.domain] += used.eq(used & ~index)
        with m.Elif(self.replayed):
            m.d[self.domain] += [used.eq(used & ~index), replay.eq(replay & ~index)]

        # Which line, and for whom
        m.submodules.lines = lines = Memory(shape=LINE_ADDRESS_WIDTH, depth=self.count, init=[])
        line_write, line = lines.write_port(domain=self.domain), lines.read_port(domain="comb")
        m.submodules.demands = demands = Memory(shape=self._demand, depth=self.count, init=[])
        demand_write, demand = demands.write_port(domain=self.domain), demands.read_port(domain="comb")
        m.submodules.tags = tags = Memory(shape=FETCH_TAG_WIDTH, depth=self.count, init=[])
        tag_write, tag = tags.write_port(domain=self.domain), tags.read_port(domain="comb")
        m.d.comb += [
            line_write.en.eq(self.allocate),
            line_write.addr.eq(self.new_index),
            line_write.data.eq(self.line),
            line.addr.eq(self.look_index),
            self.look_line.eq(line.data),
            demand_write.en.eq(self.wait_demand),
            demand_write.addr.eq(self.index),
            demand_write.data.source.eq(self.source),
            demand_write.data.grow.eq(self.grow),
            demand.addr.eq(self.look_index),
            self.look_source.eq(demand.data.source),
            self.look_grow.eq(demand.data.grow),
            tag_write.en.eq(self.wait_fetch | (self.allocate & ~self.prefetch)),
            tag_write.addr.eq(Mux(self.allocate, self.new_index, self.index)),
            tag_write.data.eq(self.tag),
            tag.addr.eq(self.index),
            self.fetch_tag.eq(tag.data),
        ]
        return m
