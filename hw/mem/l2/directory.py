"""What the L1 data cache holds, as the L2 cache knows it."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH
from hw.lib.ram import RAM
from hw.mem.llc_bits import lowest

__all__ = ["Directory"]


class Directory(wiring.Component):
    """A copy of the tags of the L1: every line that it has, has asked for, or is giving back.

    At an edge with ``read`` high the row of ``read_line`` is read; in the cycle after it, ``holds`` tells whether it
    has ``line``, which must have the same row, and ``insert`` or ``remove`` may change that. Neither does anything
    that is done already. There must be room for what is inserted.

    Arguments:
        sets: those of the L1.
        ways: lines of one of its sets that can be on one side or the other of the link at once.
        domain: clock domain.
    """

    def __init__(self, *, sets: int, ways: int, domain: str):
        self.sets, self.ways, self.domain = sets, ways, domain
        self._set_width = (sets - 1).bit_length()
        entry = data.StructLayout({"valid": 1, "tag": LINE_ADDRESS_WIDTH - self._set_width})
        self.row = data.ArrayLayout(entry, ways)
        super().__init__(
            {
                "read": In(1),
                "read_line": In(LINE_ADDRESS_WIDTH),
                "active": In(1),  #: ``line`` is to be looked up
                "line": In(LINE_ADDRESS_WIDTH),
                "holds": Out(1),
                "insert": In(1),
                "remove": In(1),
            }
        )
        self.rows = RAM(width=self.row.size, depth=sets, lanes=ways, domain=domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.rows = rows = self.rows
        row = data.View(self.row, rows.read_data)
        matches = Signal(self.ways)
        empty = Signal(self.ways)
        m.d.comb += [
            rows.read_enable.eq(self.read),
            rows.read_address.eq(self._set_of(self.read_line)),
        ]
        with m.If(self.active):
            tag = self.line[self._set_width :]
            m.d.comb += [
                matches.eq(Cat(row[i].valid & (row[i].tag == tag) for i in range(self.ways))),
                empty.eq(~Cat(row[i].valid for i in range(self.ways))),
                self.holds.eq(matches.any()),
            ]

        # Change
        entry = Signal(self.row.elem_shape)
        with m.If(self.insert & ~self.holds):
            m.d.comb += [entry.valid.eq(1), entry.tag.eq(self.line[self._set_width :])]
            m.d.comb += rows.write_enable.eq(lowest(empty))
        with m.Elif(self.remove):
            m.d.comb += rows.write_enable.eq(matches)
        with m.If(self.insert | self.remove):
            m.d.comb += [
                rows.write_address.eq(self._set_of(self.line)),
                rows.write_data.eq(entry.as_value().replicate(self.ways)),
            ]
        return m

    def _set_of(self, line):
        return line[: self._set_width] if self._set_width else 0
