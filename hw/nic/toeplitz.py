"""The Toeplitz hash of receive-side scaling (Microsoft, "RSS hashing functions"; datasheet section 7.1.2.8.1)."""

from pathlib import Path

from amaranth.hdl import Cat, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.platform import CompiledSimulation

__all__ = ["INPUT_BYTES", "KEY_BYTES", "TOEPLITZ_VERILOG", "Toeplitz", "toeplitz"]

#: The Verilog module that :class:`Toeplitz` instantiates in compiled builds.
TOEPLITZ_VERILOG = Path(__file__).with_name("toeplitz.v")

#: Two IPv6 addresses and two ports; the key is four bytes longer.
INPUT_BYTES = 36
KEY_BYTES = 40

HASH_BITS = 32


def toeplitz(key: bytes, message: bytes) -> int:
    """The hash in software."""
    bits, window = int.from_bytes(message, "big"), int.from_bytes(key, "big")
    count, result = 8 * len(message), 0
    for place in range(count):
        if bits >> (count - 1 - place) & 1:
            result ^= window >> (8 * len(key) - HASH_BITS - place)
    return result & 0xFFFF_FFFF


class Toeplitz(wiring.Component):
    """``hash`` of the bytes in ``data``: combinational, counts while ``valid``. Bytes that are not there are zero.

    Each bit is the parity of 288 pairs of bits. A compiled simulation would work them out at every edge; so under
    :class:`~hw.lib.platform.CompiledSimulation` this is an instance of ``toeplitz.v``, equal while ``valid``.
    """

    valid: In(1)
    data: In(8 * INPUT_BYTES)  #: the first byte in bits 7:0
    key: In(8 * KEY_BYTES)  #: likewise
    hash: Out(HASH_BITS)

    def elaborate(self, platform):
        """Elaborate as an instance or as parities, see the class."""
        m = Module()
        if isinstance(platform, CompiledSimulation):
            platform.add_file(TOEPLITZ_VERILOG.name, TOEPLITZ_VERILOG.read_text())
            m.submodules.toeplitz = Instance(
                "nicscope_toeplitz", i_valid=self.valid, i_data=self.data, i_key=self.key, o_hash=self.hash
            )
            return m
        # The first bit of the first byte comes first
        data, key = Signal.like(self.data), Signal.like(self.key)
        with m.If(self.valid):
            m.d.comb += [data.eq(_first_bit_first(self.data)), key.eq(_first_bit_first(self.key))]
        for bit in range(HASH_BITS):
            window = key[bit : bit + len(data)]
            m.d.comb += self.hash[HASH_BITS - 1 - bit].eq((data & window).xor())
        return m


def _first_bit_first(octets):
    """The bits of bytes in the order in which they would be sent, the highest of each byte first."""
    return Cat(octets[place : place + 8][::-1] for place in range(0, len(octets), 8))
