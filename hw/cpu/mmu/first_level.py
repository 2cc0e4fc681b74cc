"""A first-level TLB: set-associative, looked up in the cycle in which it is asked."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.lib.plru import plru_touched, plru_victim
from hw.mem.llc_bits import index_width

__all__ = ["FirstLevelTlb"]


class FirstLevelTlb(wiring.Component):
    """Translations of pages of one size, replaced by bit pseudo-LRU.

    Ports:
        look: ``hit`` tells in this cycle whether ``key`` is here, ``value`` where; a hit counts as a use. Looking again
            for the same changes nothing.
        forget: at this edge ``key`` is dropped if it is here. Not together with ``look``.
        flush: at this edge everything is dropped.
        write: at this edge ``write_key`` enters, which is not here.
        changes: a look would change something at this edge.

    Arguments:
        sets: number of sets, a power of two; the low bits of the key choose. 1 for a fully associative one.
        ways: of each set.
        key_width: bits of the number of a page.
        value_width: bits of the number of a frame.
        domain: clock domain of the core.
    """

    def __init__(self, *, sets: int, ways: int, key_width: int, value_width: int, domain: str):
        if sets < 1 or sets & (sets - 1):
            raise ValueError(f"the sets of a TLB must be a power of two, not {sets}")
        self.sets, self.ways, self.domain = sets, ways, domain
        self.set_bits = (sets - 1).bit_length()
        super().__init__(
            {
                "look": In(1),
                "forget": In(1),
                "key": In(key_width),
                "hit": Out(1),
                "value": Out(value_width),
                "changes": Out(1),
                "flush": In(1),
                "write": In(1),
                "write_key": In(key_width),
                "write_value": In(value_width),
            }
        )
        self.entry = data.StructLayout({"tag": key_width - self.set_bits, "value": value_width})
        # Memories rather than registers, and one per way: a register costs time at every edge of a simulation, kept or
        # not, and rows of at most 64 bits are cheap to read.
        self.entries = [Memory(shape=self.entry, depth=sets, init=[]) for _ in range(ways)]
        self.recent = Memory(shape=ways, depth=sets, init=[])
        self._valid = Signal(sets * ways, name="valid")  # by set

    def _split(self, m: Module, key: Signal, name: str) -> tuple[Signal, Signal]:
        """Set and tag of a key."""
        index = Signal(index_width(self.sets), name=f"{name}_set")
        tag = Signal(len(key) - self.set_bits, name=f"{name}_tag")
        m.d.comb += [index.eq(key[: self.set_bits]), tag.eq(key[self.set_bits :])]
        return index, tag

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.recent = self.recent
        write_recent = self.recent.write_port(domain=self.domain)
        index, tag = self._split(m, self.key, "look")

        # Look
        matches = Signal(self.ways)
        rows = []
        for way, memory in enumerate(self.entries):
            m.submodules[f"entries{way}"] = memory
            row = memory.read_port(domain="comb")
            m.d.comb += row.addr.eq(index)
            rows.append(row.data)
        recent = self.recent.read_port(domain="comb")
        touched = Signal(self.ways)
        m.d.comb += recent.addr.eq(index)
        with m.If(self.look | self.forget):
            present = self._valid.word_select(index, self.ways)
            m.d.comb += matches.eq(Cat(row.tag == tag for row in rows) & present)
            for way, row in enumerate(rows):
                with m.If(matches[way]):
                    m.d.comb += self.value.eq(row.value)
            with m.If(self.forget):
                m.d[self.domain] += present.eq(present & ~matches)
        with m.If(self.look & matches.any()):
            m.d.comb += [
                self.hit.eq(1),
                touched.eq(plru_touched(recent.data, matches)),
                self.changes.eq(touched != recent.data),
                write_recent.en.eq(self.changes),
                write_recent.addr.eq(index),
                write_recent.data.eq(touched),
            ]

        # Write; a use at the same edge is not noted
        write_index, write_tag = self._split(m, self.write_key, "write")
        write_entry = Signal(self.entry)
        write_was = self.recent.read_port(domain="comb")
        victim = Signal(self.ways)
        m.d.comb += [
            write_was.addr.eq(write_index),
            write_entry.tag.eq(write_tag),
            write_entry.value.eq(self.write_value),
        ]
        with m.If(self.write):
            full = self._valid.word_select(write_index, self.ways)
            m.d[self.domain] += full.eq(full | victim)
            m.d.comb += [
                victim.eq(plru_victim(write_was.data & full, full)),
                write_recent.en.eq(1),
                write_recent.addr.eq(write_index),
                write_recent.data.eq(plru_touched(write_was.data, victim)),
            ]
        for way, memory in enumerate(self.entries):
            port = memory.write_port(domain=self.domain)
            m.d.comb += [port.en.eq(victim[way]), port.addr.eq(write_index), port.data.eq(write_entry)]

        with m.If(self.flush):
            m.d[self.domain] += self._valid.eq(0)
        return m
