"""A set-associative memory that is compared with a key as it is read, cheap in compiled simulation."""

from pathlib import Path

from amaranth.hdl import Cat, ClockSignal, Instance, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .platform import CompiledSimulation
from .plru import plru_touched, plru_victim

__all__ = ["ASSOCIATIVE_RAM_VERILOG", "AssociativeRAM"]

#: The Verilog module that :class:`AssociativeRAM` instantiates in compiled builds.
ASSOCIATIVE_RAM_VERILOG = Path(__file__).with_name("associative_ram.v")


class AssociativeRAM(wiring.Component):
    """``sets`` sets of ``ways`` entries, each a key and a value, empty at the start; replaced by bit pseudo-LRU.

    At an edge with ``read_enable``, ``read_key`` is looked for in ``read_set``, as it was before that edge. From then
    on ``hit`` says whether it was there, ``value`` what was with it (else 0), and ``way`` (one-hot) where, or which way
    is to be replaced: an empty one, else one not recently used. An empty way that was touched is spoken for. No key may
    be in a set twice.

    At an edge with ``touch``, ``way`` becomes recently used, in the set read last. ``write_enable`` (one bit per way)
    writes ways of ``write_set``; with ``write_valid`` low they are empty then. ``flush`` empties all sets, whatever is
    written; no way is recently used then.

    Compiled builds instantiate ``associative_ram.v``, which is equal in behaviour; what is not asked for costs
    nothing there, where a comparison in Amaranth is evaluated at every edge, asked for or not.

    Raises:
        ValueError: when ``sets`` or ``ways`` or a width is not positive.
    """

    def __init__(self, *, sets: int, ways: int, key_width: int, value_width: int = 1, domain: str):
        if min(sets, ways, key_width, value_width) < 1:
            raise ValueError(
                f"an associative RAM needs at least one set of one way of one bit, not {sets} sets of {ways} ways of "
                f"{key_width} + {value_width} bits"
            )
        self.sets, self.ways, self.domain = sets, ways, domain
        self.set_width = max(1, ceil_log2(sets))
        super().__init__(
            {
                "read_enable": In(1),
                "read_set": In(self.set_width),
                "read_key": In(key_width),
                "hit": Out(1),
                "way": Out(ways),
                "value": Out(value_width),
                "touch": In(1),
                "write_enable": In(ways),
                "write_set": In(self.set_width),
                "write_valid": In(1),
                "write_key": In(key_width),
                "write_value": In(value_width),
                "flush": In(1),
            }
        )

        # Not in compiled builds
        self._set_read = Signal(self.set_width, name="set_read")
        self._valid = [Signal(ways, name=f"valid{i}") for i in range(sets)]
        self._recent = [Signal(ways, name=f"recent{i}") for i in range(sets)]

    def elaborate(self, platform):
        """Elaborate as an instance or in Amaranth, see the class."""
        m = Module()
        if isinstance(platform, CompiledSimulation):
            platform.add_file(ASSOCIATIVE_RAM_VERILOG.name, ASSOCIATIVE_RAM_VERILOG.read_text())
            ports = {
                f"{'i' if member.flow == In else 'o'}_{name}": getattr(self, name)
                for name, member in self.signature.members.items()
            }
            m.submodules.sets = Instance(
                "nicscope_associative_ram",
                p_SETS=self.sets,
                p_WAYS=self.ways,
                p_KEY_WIDTH=len(self.read_key),
                p_VALUE_WIDTH=len(self.value),
                p_SET_WIDTH=self.set_width,
                i_clk=ClockSignal(self.domain),
                **ports,
            )
            return m
        sync = m.d[self.domain]
        valid, recent = self._valid, self._recent

        # Read
        entry = data.StructLayout({"key": len(self.read_key), "value": len(self.value)})
        rows, writes = [], []
        for way in range(self.ways):
            m.submodules[f"way{way}"] = memory = Memory(shape=entry, depth=self.sets, init=[])
            row = memory.read_port(domain="comb")
            m.d.comb += row.addr.eq(self.read_set)
            rows.append(row.data)
            writes.append(memory.write_port(domain=self.domain))
        with m.If(self.read_enable):
            set_valid, set_recent = Signal(self.ways), Signal(self.ways)
            for index in range(self.sets):
                with m.If(self.read_set == index):
                    m.d.comb += [set_valid.eq(valid[index]), set_recent.eq(recent[index])]
            matches = Signal(self.ways)
            m.d.comb += matches.eq(Cat(row.key == self.read_key for row in rows) & set_valid)
            sync += [
                self._set_read.eq(self.read_set),
                self.hit.eq(matches.any()),
                self.way.eq(Mux(matches.any(), matches, plru_victim(set_recent, set_valid))),
                self.value.eq(0),
            ]
            for match, row in zip(matches, rows, strict=True):
                with m.If(match):
                    sync += self.value.eq(row.value)

        # Use, write, flush
        for way, port in enumerate(writes):
            m.d.comb += [
                port.en.eq(self.write_enable[way]),
                port.addr.eq(self.write_set),
                port.data.key.eq(self.write_key),
                port.data.value.eq(self.write_value),
            ]
        for index in range(self.sets):
            used = Signal(self.ways, name=f"used{index}")
            written = Signal(self.ways, name=f"written{index}")
            m.d.comb += used.eq(recent[index])
            with m.If(self.touch & (self._set_read == index)):
                m.d.comb += used.eq(plru_touched(recent[index], self.way))
            with m.If(self.write_set == index):
                m.d.comb += written.eq(self.write_enable)
            sync += recent[index].eq(used)
            with m.If(self.write_valid):
                sync += valid[index].eq(valid[index] | written)
            with m.Else():
                sync += [valid[index].eq(valid[index] & ~written), recent[index].eq(used & ~written)]
            with m.If(self.flush):
                sync += [valid[index].eq(0), recent[index].eq(0)]
        return m
