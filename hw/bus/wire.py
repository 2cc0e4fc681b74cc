"""Frames on the Ethernet wire, as the outside hands them to the MAC and the MAC to the outside."""

from amaranth.lib import data, enum, stream

from hw.lib.time import NOW_WIDTH

from .memory import PACKET_WIDTH
from .tilelink import LINE_BITS

__all__ = ["FrameBeat", "PacketBeat", "PacketStream", "Rss", "RssType", "SentBeat", "SentStream", "WireStream"]


class FrameBeat(data.Struct):
    """Up to 64 bytes of a frame, destination address first, FCS included.

    The MAC takes the time of preamble, SFD, bytes and inter-frame gap; a beat handed over early waits.
    """

    data: LINE_BITS  #: byte i in bits 8i+7 : 8i; bytes past the end are zero
    length: 16  #: bytes of the whole frame, FCS included; constant over its beats
    first: 1
    last: 1
    packet: PACKET_WIDTH  #: id of the frame, counted from 1
    start: NOW_WIDTH  #: cycle of the card's clock before which the preamble may not start; valid with ``first``


#: A stream of :class:`FrameBeat`.
WireStream = stream.Signature(FrameBeat)


class SentBeat(data.Struct):
    """Up to 64 bytes of a frame that leave the card, destination address first, FCS included.

    A beat appears for one cycle, at the edge by which its last byte has left (see
    :class:`hw.nic.tx_mac.MacTransmit`); frames do not interleave.
    """

    data: LINE_BITS  #: byte i in bits 8i+7 : 8i; bytes past the end are zero
    length: 16  #: bytes of the whole frame, FCS included; constant over its beats
    first: 1
    last: 1
    packet: PACKET_WIDTH  #: id of the frame, counted from 1 in the order in which the card began to fetch them


#: A stream of :class:`SentBeat`. A wire always takes what is sent. The payload counts with ``valid`` only.
SentStream = stream.Signature(SentBeat, always_ready=True)


class RssType(enum.Enum, shape=4):
    """What an RSS hash was computed from (datasheet section 7.1.6.2)."""

    NONE = 0
    TCP_IPV4 = 1
    IPV4 = 2
    TCP_IPV6 = 3
    IPV6 = 5
    UDP_IPV4 = 7
    UDP_IPV6 = 8


class Rss(data.Struct):
    """Where receive-side scaling sends a packet, and why."""

    hash: 32
    type: RssType
    queue: 4


class PacketBeat(data.Struct):
    """Up to 64 bytes of a received packet inside the card."""

    data: LINE_BITS
    first: 1
    last: 1
    length: 16  #: bytes of the packet as it goes to memory; valid with ``last`` inside the MAC, always after the buffer
    packet: PACKET_WIDTH
    rss: Rss  #: constant over the packet's beats behind the buffer
    discard: 1  #: valid with ``last``: the frame is bad and must leave no trace in the packet buffer


#: A stream of :class:`PacketBeat`.
PacketStream = stream.Signature(PacketBeat)
