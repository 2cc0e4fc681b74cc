"""Tristate numbers: what is known of each bit of a 64-bit value.

As ``kernel/bpf/tnum.c`` has them; Vishwanathan et al., "Sound, precise, and fast abstract interpretation with tristate
numbers" (CGO 2022), prove sums and differences the best possible.
"""

from typing import NamedTuple

from sw.bpf.arithmetic import MASK64

__all__ = ["UNKNOWN", "Tnum", "known", "spanning"]


class Tnum(NamedTuple):
    """A set of values: all that agree with ``value`` in the bits that are 0 in ``mask``.

    A bit that is 1 in ``mask`` is unknown, and 0 in ``value``.
    """

    value: int
    mask: int

    def __contains__(self, number: object) -> bool:
        """Whether a value of 64 bits is one of the set."""
        return isinstance(number, int) and number & ~self.mask == self.value

    def __str__(self) -> str:
        return f"({self.value:#x}; {self.mask:#x})"

    @property
    def is_known(self) -> bool:
        """Whether the set has one value."""
        return not self.mask

    def covers(self, other: "Tnum") -> bool:
        """Whether all values of ``other`` are in this set."""
        return not (other.mask & ~self.mask) and other.value & ~self.mask == self.value

    def add(self, other: "Tnum") -> "Tnum":
        """Sums."""
        unknown = self.mask + other.mask
        least = self.value + other.value
        mask = ((least + unknown) ^ least | self.mask | other.mask) & MASK64
        return Tnum(least & ~mask & MASK64, mask)

    def subtract(self, other: "Tnum") -> "Tnum":
        """Differences."""
        difference = self.value - other.value
        mask = ((difference + self.mask) ^ (difference - other.mask) | self.mask | other.mask) & MASK64
        return Tnum(difference & ~mask & MASK64, mask)

    def bit_and(self, other: "Tnum") -> "Tnum":
        """Conjunctions."""
        value = self.value & other.value
        possible = (self.value | self.mask) & (other.value | other.mask)
        return Tnum(value, possible & ~value)

    def bit_or(self, other: "Tnum") -> "Tnum":
        """Disjunctions."""
        value = self.value | other.value
        return Tnum(value, (self.mask | other.mask) & ~value)

    def bit_xor(self, other: "Tnum") -> "Tnum":
        """Exclusive disjunctions."""
        mask = self.mask | other.mask
        return Tnum((self.value ^ other.value) & ~mask, mask)

    def multiply(self, other: "Tnum") -> "Tnum":
        """Products: long multiplication in which an unknown bit adds its partial product or does not."""
        product, partial, multiplier = known(0), other, self
        while multiplier.value or multiplier.mask:
            if multiplier.value & 1:
                product = product.add(partial)
            elif multiplier.mask & 1:
                product = product.unite(product.add(partial))
            multiplier = Tnum(multiplier.value >> 1, multiplier.mask >> 1)
            partial = partial.shift_left(1)
        return product

    def shift_left(self, count: int) -> "Tnum":
        """Shifted by a known count."""
        return Tnum(self.value << count & MASK64, self.mask << count & MASK64)

    def shift_right(self, count: int) -> "Tnum":
        """Shifted by a known count, zeros above."""
        return Tnum(self.value >> count, self.mask >> count)

    def sign_extend(self, bits: int) -> "Tnum":
        """The low ``bits`` with copies of their topmost above, known or not."""
        above = MASK64 & ~((1 << bits) - 1)
        sign = 1 << (bits - 1)
        value, mask = self.value & ~above, self.mask & ~above
        return Tnum(value | above if value & sign else value, mask | above if mask & sign else mask)

    def low(self, bits: int) -> "Tnum":
        """The low ``bits``, zeros above."""
        return Tnum(self.value & ((1 << bits) - 1), self.mask & ((1 << bits) - 1))

    def intersect(self, other: "Tnum") -> "Tnum":
        """What is known of a value that is in both sets; meaningless if there is none."""
        mask = self.mask & other.mask
        return Tnum((self.value | other.value) & ~mask, mask)

    def unite(self, other: "Tnum") -> "Tnum":
        """The smallest set with all values of both."""
        mask = self.mask | other.mask | self.value ^ other.value
        return Tnum(self.value & ~mask, mask)


#: Nothing is known.
UNKNOWN = Tnum(0, MASK64)


def known(value: int) -> Tnum:
    """The set of one value of 64 bits."""
    return Tnum(value & MASK64, 0)


def spanning(least: int, most: int) -> Tnum:
    """The smallest set with all values from ``least`` to ``most``: the bits above the topmost that differs."""
    mask = (1 << (least ^ most).bit_length()) - 1
    return Tnum(least & ~mask, mask)
