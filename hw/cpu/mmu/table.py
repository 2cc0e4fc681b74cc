"""A table from keys to values: the second-level TLBs, and the caches of paging structures."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.associative_ram import AssociativeRAM

__all__ = ["Table"]


class Table(wiring.Component):
    """Set-associative, looked up from one cycle to the next, replaced by bit pseudo-LRU.

    The set is chosen by the low bits of the key, exclusive-or the bits above them. (Hashes of this form were found in
    second-level TLBs of Intel's: Gras et al., "Translation Leak-aside Buffer", USENIX Security 2018.)

    Ports:
        look: at this edge, ``key`` is looked for.
        hit, value: from then on: whether it was there, and what was found.
        touch: what was found is used.
        forget: what was found is dropped.
        write: the key enters with ``write_value``; it was not found, and nothing has entered since.
        flush: everything is dropped.

    Arguments:
        sets: number of sets, a power of two.
        ways: of each set.
        key_width: bits of a key.
        value_width: bits of a value.
        domain: clock domain of the core.
    """

    def __init__(self, *, sets: int, ways: int, key_width: int, value_width: int, domain: str):
        if sets < 1 or sets & (sets - 1):
            raise ValueError(f"the sets of a table must be a power of two, not {sets}")
        self.domain = domain
        self.set_bits = (sets - 1).bit_length()
        super().__init__(
            {
                "look": In(1),
                "key": In(key_width),
                "hit": Out(1),
                "value": Out(value_width),
                "touch": In(1),
                "forget": In(1),
                "write": In(1),
                "write_value": In(value_width),
                "flush": In(1),
            }
        )
        self.ram = AssociativeRAM(
            sets=sets, ways=ways, key_width=key_width - self.set_bits, value_width=value_width, domain=domain
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.ram = ram = self.ram
        # What was looked for last
        key, index = Signal.like(ram.read_key), Signal.like(ram.read_set)
        m.d.comb += [
            ram.read_enable.eq(self.look),
            ram.read_set.eq(self.key[: self.set_bits] ^ self.key[self.set_bits : 2 * self.set_bits]),
            ram.read_key.eq(self.key[self.set_bits :]),
            self.hit.eq(ram.hit),
            self.value.eq(ram.value),
            ram.touch.eq(self.touch | self.write),
            ram.write_set.eq(index),
            ram.write_valid.eq(self.write),
            ram.write_key.eq(key),
            ram.write_value.eq(self.write_value),
            ram.flush.eq(self.flush),
        ]
        with m.If(self.look):
            m.d[self.domain] += [key.eq(ram.read_key), index.eq(ram.read_set)]
        with m.If(self.write | (self.forget & self.hit)):
            m.d.comb += ram.write_enable.eq(ram.way)
        return m
