"""Which slice of the last-level cache a line belongs to.

A power of two of slices: each bit of the number is the parity of some bits of the address, those of Maurice, Le
Scouarnec, Neumann, Heen and Francillon, "Reverse Engineering Intel Last-Level Cache Complex Addressing Using
Performance Counters", RAID 2015, table 2, for up to eight slices; two more bits, for 16 and 32, are not published and
made in their likeness.

Any other number: what is known of them is a short sequence of slices that is repeated with permutations (McCalpin,
"Mapping Addresses to L3/CHA Slices in Intel Processors", 2021). Here the address is folded to a number of 16 bits, and
the slice is what remains of it after division: consecutive lines go to consecutive slices, and blocks of lines are
permuted by the bits above, which is as even, but not the part's own order.
"""

from amaranth.hdl import Cat, Value, ValueCastable
from amaranth.utils import ceil_log2

__all__ = ["slice_of"]

#: Bits of a physical address whose parity is bit 0, 1, … of the slice.
_PUBLISHED = (
    (6, 10, 12, 14, 16, 17, 18, 20, 22, 24, 25, 26, 27, 28, 30, 32, 33, 35, 36),
    (7, 11, 13, 15, 17, 19, 20, 21, 22, 23, 24, 26, 28, 29, 31, 33, 34, 35, 37),
    (8, 12, 13, 16, 19, 22, 23, 26, 27, 30, 31, 34, 35, 36, 37),
)
_OWN = (
    (9, 11, 14, 15, 20, 22, 25, 27, 29, 30, 33, 36, 38),
    (10, 13, 16, 21, 23, 24, 27, 28, 31, 32, 35, 39),
)
_PARITIES = _PUBLISHED + _OWN

#: Bits of the offset within a line.
_OFFSET = 6
#: Bits that an address is folded to.
_FOLDED = 16


def slice_of(line, slices: int):
    """Number of the slice of a line, as a value for an Amaranth value, as an integer for an integer.

    Arguments:
        line: number of the line (address / 64).
        slices: 1 to 32.
    """
    hardware = isinstance(line, Value | ValueCastable)
    if slices == 1:
        return line[:0] if hardware else 0
    if slices & (slices - 1):
        folded = (line ^ (line >> 13) ^ (line >> 18)) & (1 << _FOLDED) - 1
        return (folded % slices)[: ceil_log2(slices)] if hardware else folded % slices
    masks = [sum(1 << bit - _OFFSET for bit in bits) for bits in _PARITIES[: ceil_log2(slices)]]
    if hardware:
        return Cat((line & mask).xor() for mask in masks)
    return sum(((line & mask).bit_count() & 1) << number for number, mask in enumerate(masks))
