"""The lines a cache has missed: its miss status holding registers (MSHRs)."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH, SOURCE_WIDTH

from .encode import first_set

__all__ = ["MissFile"]


class MissFile(wiring.Component):
    """``count`` MSHRs, each for one line.

    An entry is allocated by the first miss of a line, issued when it has its way and the line has been asked for
    (at once, or later), and retired when the line is there and what waited for it is done. Everything about one line
    happens in stage 1 of the cache's pipeline, where ``line`` names it. ``index``, ``way`` and ``trunk`` are those
    of the entry of ``line`` if ``match``, else ``index`` is a free entry if ``free``; all are combinational.

    Arguments:
        count: entries, 1 to 32.
        ways: ways of the cache.
        domain: clock domain.
    """

    def __init__(self, *, count: int, ways: int, domain: str):
        if not 1 <= count <= 32:
            raise ValueError(f"a cache has 1 to 32 MSHRs, not {count}")
        self.count, self.ways, self.domain = count, ways, domain
        super().__init__(
            {
                "line": In(LINE_ADDRESS_WIDTH),
                "match": Out(1),
                "free": Out(1),
                "index": Out(range(count)),
                "way": Out(range(ways)),
                "trunk": Out(1),  #: a store waits: ask for the line writable
                "allocate": In(1),  #: make an entry for ``line``; only if ``free`` and not ``match``
                "want_trunk": In(1),  #: a store waits for ``line``; with ``allocate`` or ``match``
                "issue": In(1),  #: ``line`` is being asked for and will be put into ``issue_way``
                "issue_way": In(range(ways)),
                "retire": In(1),  #: entry ``retire_index`` is done
                "retire_index": In(range(count)),
                "unissued": Out(1),  #: some entry has not been issued
                "granted": In(1),  #: look at entry ``source`` rather than at the first unissued one
                "source": In(SOURCE_WIDTH),
                "next_line": Out(LINE_ADDRESS_WIDTH),  #: line of the entry looked at
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        valid = Signal(self.count)
        issued = Signal(self.count)
        trunk = Signal(self.count)
        lines = Array(Signal(LINE_ADDRESS_WIDTH, name=f"line{i}") for i in range(self.count))

        # Look-up
        matches = Signal(self.count)
        free = first_set(m, ~valid, "free_index")
        m.d.comb += [
            matches.eq(Cat(valid[i] & (lines[i] == self.line) for i in range(self.count))),
            self.match.eq(matches.any()),
            self.free.eq(~valid.all()),
            self.index.eq(Mux(self.match, first_set(m, matches, "match_index"), free)),
            self.trunk.eq((matches & trunk).any()),
        ]

        # What to issue next, or what has been granted
        unissued = Signal(self.count)
        m.d.comb += [
            unissued.eq(valid & ~issued),
            self.unissued.eq(unissued.any()),
            self.next_line.eq(lines[Mux(self.granted, self.source, first_set(m, unissued, "next_index"))]),
        ]

        # Allocate, issue, retire
        index = Signal(self.count)
        retired = Signal(self.count)
        m.d.comb += index.eq(1 << self.index)
        with m.If(self.retire):
            m.d.comb += retired.eq(1 << self.retire_index)
        with m.If(self.allocate | self.retire):
            m.d[self.domain] += valid.eq((valid | Mux(self.allocate, index, 0)) & ~retired)
        with m.If(self.allocate):
            m.d[self.domain] += [
                lines[self.index].eq(self.line),
                issued.eq(Mux(self.issue, issued | index, issued & ~index)),
                trunk.eq(Mux(self.want_trunk, trunk | index, trunk & ~index)),
            ]
        with m.Elif(self.want_trunk):
            m.d[self.domain] += trunk.eq(trunk | index)
        with m.Elif(self.issue):
            m.d[self.domain] += issued.eq(issued | index)

        # Ways
        m.submodules.ways_held = ways_held = Memory(shape=range(self.ways), depth=self.count, init=[])
        way_read, way_write = ways_held.read_port(domain="comb"), ways_held.write_port(domain=self.domain)
        m.d.comb += [
            way_read.addr.eq(self.index),
            self.way.eq(way_read.data),
            way_write.addr.eq(self.index),
            way_write.data.eq(self.issue_way),
            way_write.en.eq(self.issue),
        ]
        return m
