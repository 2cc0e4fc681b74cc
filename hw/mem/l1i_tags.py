"""One bank of the tags of an L1 instruction cache."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.ram import RAM

from .bit_plru import plru_touched, plru_victim
from .llc_bits import index_width

__all__ = ["L1ITags"]


class L1ITags(wiring.Component):
    """Looked up in two steps, replaced by bit pseudo-LRU.

    Ports:
        read: at this edge, the set ``row`` is read, to look for ``tag`` in it.
        clash: that set is being filled, so that what is read is not right any more.
        look: in a cycle after a read: whether it ``hit`` in ``way`` (one-hot), or which way is to be replaced.
        use: mark ``way`` as recently used. Not without ``look``.
        fill: at this edge, ``fill_tag`` enters ``fill_way`` of the set ``fill_row``.

    Arguments:
        rows: sets in this bank.
        ways: of each set.
        tag_width: bits of a tag.
        domain: clock domain of the core.
    """

    def __init__(self, *, rows: int, ways: int, tag_width: int, domain: str):
        self.ways, self.domain = ways, domain
        row = index_width(rows)
        super().__init__(
            {
                "read": In(1),
                "row": In(row),
                "tag": In(tag_width),
                "clash": Out(1),
                "look": In(1),
                "hit": Out(1),
                "way": Out(ways),
                "use": In(1),
                "fill": In(1),
                "fill_row": In(row),
                "fill_tag": In(tag_width),
                "fill_way": In(ways),
            }
        )
        self.entry = data.StructLayout({"valid": 1, "tag": tag_width})
        self.entries = RAM(width=ways * self.entry.size, depth=rows, lanes=ways, domain=domain)
        self.recent = RAM(width=ways, depth=rows, domain=domain)
        self._row = Signal(row, name="row_read")
        self._tag = Signal(tag_width, name="tag_wanted")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.entries = self.entries
        m.submodules.recent = self.recent
        row = data.View(data.ArrayLayout(self.entry, self.ways), self.entries.read_data)
        recent = self.recent.read_data

        m.d.comb += [
            self.entries.read_enable.eq(self.read),
            self.entries.read_address.eq(self.row),
            self.recent.read_enable.eq(self.read),
            self.recent.read_address.eq(self.row),
        ]
        with m.If(self.read):
            m.d[self.domain] += [self._row.eq(self.row), self._tag.eq(self.tag)]

        with m.If(self.look):
            matches = Signal(self.ways)
            m.d.comb += [
                matches.eq(Cat(entry.valid & (entry.tag == self._tag) for entry in row)),
                self.hit.eq(matches.any()),
                self.way.eq(matches),
            ]
            with m.If(~self.hit):
                # An empty way that is recent has been chosen for a line that is still to come
                m.d.comb += self.way.eq(plru_victim(recent, recent | Cat(entry.valid for entry in row)))
        with m.If(self.use):
            m.d.comb += [
                self.recent.write_enable.eq(1),
                self.recent.write_address.eq(self._row),
                self.recent.write_data.eq(plru_touched(recent, self.way)),
            ]

        filled = Signal(self.entry)
        m.d.comb += [filled.valid.eq(1), filled.tag.eq(self.fill_tag)]
        with m.If(self.fill):
            m.d.comb += [
                self.clash.eq(self.read & (self.row == self.fill_row)),
                self.entries.write_enable.eq(self.fill_way),
                self.entries.write_address.eq(self.fill_row),
                self.entries.write_data.eq(filled.as_value().replicate(self.ways)),
            ]
        return m
