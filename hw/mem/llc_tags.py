"""A set-associative array of tags: of the last-level cache, and of its snoop filter."""

from collections.abc import Mapping

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.config import REPLACEMENTS
from hw.lib.ram import RAM

from .llc_bits import encode, index_width, lowest, one_hot

__all__ = ["TagArray"]


class TagArray(wiring.Component):
    """Tags of ``sets`` sets of ``ways`` ways, looked up in two steps.

    At an edge with ``read`` high the row ``set`` is read. In the cycle after it, while ``active`` is high,
    ``tag`` is compared with all ways: ``result`` tells the way that hits and the way to replace, and
    ``update`` may write one way of the row and mark a way as recently used.

    With ``also`` a second line of the same row can be looked up, by ``also_tag``: ``also_found`` is its entry, with
    ``also_hit``.

    Replacement is ``bit-plru``, also called PLRUm (Al-Zoubi, Milenkovic, Milenkovic, "Performance evaluation of
    cache replacement policies for the SPEC CPU2000 benchmark suite", ACM Southeast 2004): one bit per way says
    "recently used"; when the last of them would be set, the others are cleared. Among ``candidates`` the lowest
    way that is invalid is replaced, else the lowest not recently used. Or it is ``random``: any of the candidates,
    which must be neighbours, by a linear-feedback shift register of 16 bits that steps at every replacement. (Last
    levels of Intel's change between policies, one of which keeps some of a working set that is too large, see
    uops.info/cache.html; of none of the modelled parts is it known.)

    Arguments:
        sets: number of sets.
        ways: number of ways.
        tag_width: bits of a tag.
        fields: names and shapes of what an entry holds beside ``tag`` and ``valid``.
        domain: clock domain.
    """

    def __init__(
        self,
        *,
        sets: int,
        ways: int,
        tag_width: int,
        fields: Mapping[str, int],
        domain: str,
        also: bool = False,
        replacement: str = "bit-plru",
    ):
        if replacement not in REPLACEMENTS:
            raise ValueError(f"replacement must be one of {', '.join(REPLACEMENTS)}, not {replacement!r}")
        self._also, self._random = also, replacement == "random"
        self.sets, self.ways, self.domain = sets, ways, domain
        self.entry = data.StructLayout({"tag": tag_width, "valid": 1, **fields})
        way = index_width(ways)
        self.result_layout = data.StructLayout(
            {"hit": 1, "way": way, "found": self.entry, "victim_way": way, "victim": self.entry}
        )
        self.update_layout = data.StructLayout({"write": 1, "touch": 1, "way": way, "entry": self.entry})
        super().__init__(
            {
                "read": In(1),
                "set": In(max(1, ceil_log2(sets))),
                "active": In(1),
                "tag": In(tag_width),
                "candidates": In(ways),
                "result": Out(self.result_layout),
                "update": In(self.update_layout),
                "also_tag": In(tag_width),
                "also_hit": Out(1),
                "also_found": Out(self.entry),
            }
        )
        width = self.entry.size
        self.rows = RAM(width=ways * width, depth=sets, lanes=ways, domain=domain)
        if not self._random:
            self.recent = RAM(width=ways, depth=sets, domain=domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.rows = self.rows
        if not self._random:
            m.submodules.recent = self.recent
        row = data.View(data.ArrayLayout(self.entry, self.ways), self.rows.read_data)
        self._set_index = set_index = Signal.like(self.set)

        # Read
        m.d.comb += [
            self.rows.read_enable.eq(self.read),
            self.rows.read_address.eq(self.set),
        ]
        if not self._random:
            m.d.comb += [self.recent.read_enable.eq(self.read), self.recent.read_address.eq(self.set)]
        with m.If(self.read):
            m.d[self.domain] += set_index.eq(self.set)

        # Compare and choose
        hits = Signal(self.ways)
        victims = Signal(self.ways)
        with m.If(self.active):
            invalid = Signal(self.ways)
            chosen = Signal(self.ways)
            m.d.comb += [
                hits.eq(Cat(row[i].valid & (row[i].tag == self.tag) for i in range(self.ways))),
                self.result.hit.eq(hits.any()),
                self.result.way.eq(encode(hits)),
                self.result.found.eq(row[self.result.way]),
                invalid.eq(self.candidates & ~Cat(row[i].valid for i in range(self.ways))),
                chosen.eq(self._one_of(m) if self._random else self._unused()),
                victims.eq(Mux(invalid.any(), invalid, chosen)),
                self.result.victim_way.eq(encode(lowest(victims))),
                self.result.victim.eq(row[self.result.victim_way]),
            ]
            if self._also:
                also = Signal(self.ways)
                m.d.comb += [
                    also.eq(Cat(row[i].valid & (row[i].tag == self.also_tag) for i in range(self.ways))),
                    self.also_hit.eq(also.any()),
                    self.also_found.eq(row[encode(also)]),
                ]

        # Update
        way = one_hot(self.update.way, self.ways)
        with m.If(self.update.write):
            m.d.comb += [
                self.rows.write_enable.eq(way),
                self.rows.write_address.eq(set_index),
                self.rows.write_data.eq(self.update.entry.as_value().replicate(self.ways)),
            ]
        if not self._random:
            self._age(m, way)
        return m

    def _unused(self):
        """The candidates that were not used recently, or all."""
        unused = self.candidates & ~self.recent.read_data
        return Mux(unused.any(), unused, self.candidates)

    def _one_of(self, m: Module):
        """One candidate at random."""
        number = Signal(16, init=0xACE1)
        with m.If(self.update.touch & ~self.result.hit):
            # x^16 + x^15 + x^13 + x^4 + 1, a maximal sequence (Xilinx XAPP 052)
            m.d[self.domain] += number.eq(Cat(number[15] ^ number[14] ^ number[12] ^ number[3], number))
        count, step = Signal(range(self.ways + 1)), Signal(range(max(2, self.ways)))
        m.d.comb += [
            count.eq(sum(self.candidates[i] for i in range(self.ways))),
            step.eq((number * count) >> len(number)),
        ]
        return (lowest(self.candidates) << step)[: self.ways]

    def _age(self, m: Module, way) -> None:
        """Remember that a way was used."""
        recent = self.recent.read_data
        set_index = self._set_index
        with m.If(self.update.touch):
            # A miss ages only the ways it may replace, so that few candidates still take turns.
            aged = Signal(self.ways)
            touched = Signal(self.ways)
            m.d.comb += [
                aged.eq(Mux(self.result.hit, ~0, self.candidates)),
                touched.eq(recent | way),
                self.recent.write_enable.eq(1),
                self.recent.write_address.eq(set_index),
                self.recent.write_data.eq(Mux((~touched & aged).any(), touched, (recent & ~aged) | way)),
            ]
