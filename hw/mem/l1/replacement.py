"""Which way of a set to replace."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["TreePlru"]


class TreePlru(wiring.Component):
    """Tree pseudo-LRU: ``ways - 1`` bits per set, each pointing to the half used longer ago.

    ``victim`` is combinational in ``set``. With ``touch`` high at an edge, ``way`` of ``set`` becomes the
    most recently used.

    Raises:
        ValueError: when ``ways`` is not a power of two.
    """

    def __init__(self, *, sets: int, ways: int, domain: str):
        if ways < 1 or ways & (ways - 1):
            raise ValueError(f"a PLRU tree needs a power of two of ways, not {ways}")
        self.sets, self.ways, self.domain = sets, ways, domain
        self.levels = (ways - 1).bit_length()
        super().__init__(
            {
                "set": In(range(sets)),
                "victim": Out(range(ways)),
                "touch": In(1),
                "way": In(range(ways)),
            }
        )

    def elaborate(self, platform):
        """Elaborate. Node n of the tree has children 2n + 1 (the lower ways) and 2n + 2."""
        m = Module()
        if self.ways == 1:
            return m
        m.submodules.bits = memory = Memory(shape=self.ways - 1, depth=self.sets, init=[])
        read = memory.read_port(domain="comb")
        write = memory.write_port(domain=self.domain)
        m.d.comb += [
            read.addr.eq(self.set),
            self.victim.eq(self._victim(read.data)),
            write.addr.eq(self.set),
            write.en.eq(self.touch),
            write.data.eq(self._touched(read.data)),
        ]
        return m

    def _victim(self, bits: Value) -> Value:
        """Follow the bits from the root; the first step decides the highest bit of the way."""

        def below(node: int, level: int) -> Value:
            if level == self.levels:
                return Const(0, 0)
            high, low = below(2 * node + 2, level + 1), below(2 * node + 1, level + 1)
            return Cat(Mux(bits[node], high, low), bits[node])

        return below(0, 0)

    def _touched(self, bits: Value) -> Value:
        """Turn every bit on the path to ``way`` away from it."""
        after = Signal(len(bits))
        nodes = []
        for node in range(self.ways - 1):
            level = (node + 1).bit_length() - 1
            position = node + 1 - (1 << level)
            on_path = self.way >> (self.levels - level) == position
            nodes.append(Mux(on_path, ~self.way[self.levels - 1 - level], bits[node]))
        return Cat(*nodes)[: len(after)]
