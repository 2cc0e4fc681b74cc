"""The Ethernet frame check sequence over whole 64-byte beats (IEEE 802.3, section 3.2.9)."""

from pathlib import Path

from amaranth.hdl import Cat, Const, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_BITS, LINE_BYTES
from hw.lib.platform import CompiledSimulation

__all__ = ["CRC_INIT", "CRC_RESIDUES", "CRC_VERILOG", "Crc32", "next_crc"]

#: The Verilog module that :class:`Crc32` instantiates in compiled builds.
CRC_VERILOG = Path(__file__).with_name("crc.v")

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


class Crc32(wiring.Component):
    """The CRC register ``crc`` after the 64 bytes of ``data``: combinational; ``next`` counts while ``valid``.

    Each bit is the parity of some of 544 bits. A compiled simulation would work all of them out at every edge; so
    under :class:`~hw.lib.platform.CompiledSimulation` this is an instance of ``crc.v``, equal while ``valid``.
    """

    valid: In(1)
    crc: In(32)
    data: In(LINE_BITS)
    next: Out(32)

    def elaborate(self, platform):
        """Elaborate as an instance or as parities, see the class."""
        m = Module()
        if isinstance(platform, CompiledSimulation):
            platform.add_file(CRC_VERILOG.name, CRC_VERILOG.read_text())
            m.submodules.crc32 = Instance(
                "nicscope_crc32", i_valid=self.valid, i_crc=self.crc, i_data=self.data, o_next=self.next
            )
            return m
        folded = Signal(LINE_BITS)
        with m.If(self.valid):
            m.d.comb += folded.eq(self.data ^ self.crc)
        m.d.comb += self.next.eq(Cat((folded & Const(mask, LINE_BITS)).xor() for mask in _masks()))
        return m
