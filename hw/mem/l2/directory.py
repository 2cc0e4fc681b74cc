"""What the L1 data cache holds, as the L2 cache knows it."""

from amaranth.hdl import Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_ADDRESS_WIDTH
from hw.lib.associative_ram import AssociativeRAM

__all__ = ["Directory"]


class Directory(wiring.Component):
    """A copy of the tags of the L1: every line that it has, has asked for, or is giving back.

    At an edge with ``read`` high ``read_line`` is looked up; from then on ``holds`` tells whether it was there, and
    ``insert`` or ``remove`` of the same ``line`` in the cycle after it may change that. Neither does anything that is
    done already. There must be room for what is inserted.

    Arguments:
        sets: those of the L1.
        ways: lines of one of its sets that can be on one side or the other of the link at once.
        domain: clock domain.
    """

    def __init__(self, *, sets: int, ways: int, domain: str):
        self.sets, self.ways, self.domain = sets, ways, domain
        self._set_width = (sets - 1).bit_length()
        super().__init__(
            {
                "read": In(1),
                "read_line": In(LINE_ADDRESS_WIDTH),
                "line": In(LINE_ADDRESS_WIDTH),  #: that of the last ``read``
                "holds": Out(1),
                "insert": In(1),
                "remove": In(1),
            }
        )
        self.tags = AssociativeRAM(sets=sets, ways=ways, key_width=LINE_ADDRESS_WIDTH - self._set_width, domain=domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.tags = tags = self.tags
        m.d.comb += [
            tags.read_enable.eq(self.read),
            tags.read_set.eq(self._set_of(self.read_line)),
            tags.read_key.eq(self.read_line[self._set_width :]),
            self.holds.eq(tags.hit),
        ]
        # Nothing is ever touched, so the way shown is an empty one unless it is the line's.
        with m.If(Mux(self.insert, ~tags.hit, self.remove & tags.hit)):
            m.d.comb += [
                tags.write_enable.eq(tags.way),
                tags.write_set.eq(self._set_of(self.line)),
                tags.write_valid.eq(self.insert),
                tags.write_key.eq(self.line[self._set_width :]),
            ]
        return m

    def _set_of(self, line):
        return line[: self._set_width] if self._set_width else 0
