"""Recognises what a packet is from its first 64 bytes."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data

from hw.bus.tilelink import LINE_BYTES

from .descriptors import PacketType

__all__ = ["classify"]

#: Offsets of bytes in an untagged Ethernet frame.
ETHERTYPE = 12
IPV4_VERSION = 14
IPV4_FRAGMENT = 20
IPV4_PROTOCOL = 23
IPV6_NEXT_HEADER = 20

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17

#: Fragment field of IPv4: everything but "don't fragment" and the reserved bit tells of a fragment.
FRAGMENT_MASK = 0x3FFF


def classify(m: Module, beat: Value) -> PacketType:
    """Packet type bits of the frame that begins with ``beat`` (datasheet section 7.1.6.2).

    Fragments have no L4 type. VLAN tags and IPv6 extension headers are not looked behind.
    """
    octets = data.View(data.ArrayLayout(8, LINE_BYTES), beat)

    def word(offset: int) -> Value:
        """Two bytes in network order."""
        return Cat(octets[offset + 1], octets[offset])

    kind = Signal(PacketType, name="packet_type")
    with m.If(word(ETHERTYPE) == ETHERTYPE_IPV4):
        plain = octets[IPV4_VERSION] == 0x45
        m.d.comb += [kind.ipv4.eq(plain), kind.ipv4_options.eq(~plain)]
        with m.If((word(IPV4_FRAGMENT) & FRAGMENT_MASK) == 0):
            m.d.comb += [
                kind.tcp.eq(octets[IPV4_PROTOCOL] == PROTOCOL_TCP),
                kind.udp.eq(octets[IPV4_PROTOCOL] == PROTOCOL_UDP),
            ]
    with m.Elif(word(ETHERTYPE) == ETHERTYPE_IPV6):
        m.d.comb += [
            kind.ipv6.eq(1),
            kind.tcp.eq(octets[IPV6_NEXT_HEADER] == PROTOCOL_TCP),
            kind.udp.eq(octets[IPV6_NEXT_HEADER] == PROTOCOL_UDP),
        ]
    return kind
