"""Transaction-layer packets of PCI Express, as a stream of 64-byte beats."""

from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from .memory import PACKET_WIDTH
from .tilelink import LINE_BITS, PHYSICAL_ADDRESS_WIDTH

__all__ = ["TlpBeat", "TlpHeader", "TlpPort", "TlpStatus", "TlpStream", "TlpType"]


class TlpType(enum.Enum, shape=2):
    """Kinds of packet (PCI Express Base Specification 3.0, section 2.2)."""

    MEMORY_WRITE = 0  #: MWr, posted
    MEMORY_READ = 1  #: MRd, not posted, answered by completions
    COMPLETION = 2  #: CplD, or Cpl without data when ``status`` is not SUCCESS


class TlpStatus(enum.Enum, shape=2):
    """Completion status."""

    SUCCESS = 0
    UNSUPPORTED_REQUEST = 1
    COMPLETER_ABORT = 2


class TlpHeader(data.Struct):
    """The header fields in use; constant over all beats of a packet."""

    kind: TlpType
    status: TlpStatus  #: COMPLETION
    address: PHYSICAL_ADDRESS_WIDTH  #: byte address of the first byte (of the request, in a COMPLETION: of this part)
    length: 13  #: bytes asked for or carried; counted on the link in whole 32-bit words
    #: MEMORY_READ and its COMPLETION: the request it belongs to. MEMORY_WRITE: bit 0 asks to put the data into a cache
    #: (the card's DCA hint), which counts with ``nic.dca_gates`` only.
    tag: 8
    remaining: 13  #: COMPLETION: bytes of the request still to come, this packet included
    packet: PACKET_WIDTH  #: for observers


class TlpBeat(data.Struct):
    """Up to 64 bytes of a packet.

    Data lie in the byte lanes of their address: lane i of a beat holds the byte whose address is i modulo 64.
    The first beat covers the line of ``header.address``, each later one the next line. A MEMORY_READ and a
    COMPLETION without data are one beat.
    """

    data: LINE_BITS  # first, so that its words lie on word boundaries in a compiled simulation
    header: TlpHeader
    first: 1
    last: 1


#: A stream of :class:`TlpBeat`.
TlpStream = stream.Signature(TlpBeat)


class TlpPort(wiring.Signature):
    """Both directions of the transaction layer, as seen from the device that owns the port.

    ``send``: packets it sends. ``receive``: packets it gets.
    """

    def __init__(self):
        super().__init__({"send": Out(TlpStream), "receive": In(TlpStream)})

    def __eq__(self, other):
        return isinstance(other, TlpPort)
