"""The Ethernet frame check sequence over whole 64-byte beats (IEEE 802.3, section 3.2.9)."""

from amaranth.hdl import Cat, Const, Module, Signal, ValueLike

from hw.bus.tilelink import LINE_BITS, LINE_BYTES

__all__ = ["CRC_INIT", "CRC_RESIDUES", "crc_step", "next_crc"]

#: Generator polynomial, least significant bit first.
_POLYNOMIAL = 0xEDB88320

#: Value of the CRC register before the first byte.
CRC_INIT = 0xFFFF_FFFF

#: Value of the CRC register after a good frame, FCS included (its complement is the standard's residue).
_RESIDUE = 0xDEBB20E3


def next_crc(crc: int, data: bytes) -> int:
    """The CRC register after ``data``, in software."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc


#: Entry n: value of the CRC register after a good frame whose last beat holds n bytes and is padded with zeros.
#: Entry 0 (a beat of padding alone) does not occur in a good frame.
CRC_RESIDUES = [next_crc(_RESIDUE, bytes(LINE_BYTES - n)) for n in range(LINE_BYTES + 1)]


def _masks() -> list[int]:
    """Bits of the beat (the CRC register folded into its first four bytes) each bit of the next CRC depends on."""
    columns = [0] * LINE_BITS
    state = [next_crc(0, (1 << bit).to_bytes(1, "little")) for bit in range(8)]
    for byte in reversed(range(LINE_BYTES)):
        columns[8 * byte : 8 * byte + 8] = state
        state = [next_crc(s, b"\0") for s in state]
    return [sum((column >> bit & 1) << i for i, column in enumerate(columns)) for bit in range(32)]


def crc_step(m: Module, crc: ValueLike, data: ValueLike) -> Cat:
    """The CRC register ``crc`` after the 64 bytes of ``data``: 32 parities of 512 bits.

    The expression is meant to stand inside an ``If``: it is the most expensive one of the card.
    """
    folded = Signal(LINE_BITS, name="crc_folded")
    m.d.comb += folded.eq(data ^ crc)
    return Cat((folded & Const(mask, LINE_BITS)).xor() for mask in _masks())
