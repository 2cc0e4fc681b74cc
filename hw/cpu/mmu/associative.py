"""A small fully associative table: TLBs of 1 GiB pages, caches of paging structures."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.mem.bit_plru import plru_touched, plru_victim

__all__ = ["AssociativeTable"]


class AssociativeTable(wiring.Component):
    """Maps keys to values, replaced by bit pseudo-LRU. It costs nothing while it is not asked.

    Ports: those of :class:`~hw.cpu.mmu.first_level.FirstLevelTlb`.

    Arguments:
        entries: how many.
        key_width: bits of a key.
        value_width: bits of a value.
        domain: clock domain of the core.
    """

    def __init__(self, *, entries: int, key_width: int, value_width: int, domain: str):
        if entries < 1:
            raise ValueError(f"a table needs at least 1 entry, not {entries}")
        self.domain = domain
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
        self._keys = [Signal(key_width, name=f"key{i}") for i in range(entries)]
        self._values = [Signal(value_width, name=f"value{i}") for i in range(entries)]
        self._valid = Signal(entries, name="valid")
        self._recent = Signal(entries, name="recent")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync = m.d[self.domain]
        entries = len(self._keys)

        matches = Signal(entries)
        touched = Signal(entries)
        with m.If((self.look | self.forget) & self._valid.any()):
            m.d.comb += matches.eq(Cat(key == self.key for key in self._keys) & self._valid)
            for match, value in zip(matches, self._values, strict=True):
                with m.If(match):
                    m.d.comb += self.value.eq(value)
        with m.If(self.look & matches.any()):
            m.d.comb += [
                self.hit.eq(1),
                touched.eq(plru_touched(self._recent, matches)),
                self.changes.eq(touched != self._recent),
            ]
            sync += self._recent.eq(touched)
        with m.If(self.forget):
            sync += self._valid.eq(self._valid & ~matches)

        victim = Signal(entries)
        with m.If(self.write):
            m.d.comb += victim.eq(plru_victim(self._recent, self._valid))
            sync += [self._valid.eq(self._valid | victim), self._recent.eq(plru_touched(self._recent, victim))]
            for chosen, key, value in zip(victim, self._keys, self._values, strict=True):
                with m.If(chosen):
                    sync += [key.eq(self.write_key), value.eq(self.write_value)]
        with m.If(self.flush):
            sync += self._valid.eq(0)
        return m
