"""Structures shared inside the card: views of registers, and what its blocks tell each other."""

from amaranth.hdl import unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS, PHYSICAL_ADDRESS_WIDTH
from hw.bus.wire import Rss, RssType

from .descriptors import PacketType
from .registers import REG, Register

__all__ = [
    "Finished",
    "FrameEnd",
    "FrameEndStream",
    "MacBeat",
    "MacEvents",
    "MacStream",
    "QueueRegisters",
    "RegisterBus",
    "RxDescriptor",
    "SentEvent",
    "TransmitBeat",
    "TransmitStream",
    "TxDescriptor",
    "TxFinished",
    "TxKind",
    "register_layout",
]


def register_layout(register: Register) -> data.FlexibleLayout:
    """The fields of ``register`` as an Amaranth layout of 32 bits; ``value`` is the whole of it."""
    fields = {f.name: data.Field(unsigned(f.width), f.low) for f in register.fields}
    return data.FlexibleLayout(32, {"value": data.Field(unsigned(32), 0), **fields})


class RegisterBus(wiring.Signature):
    """Accesses of software to registers, as seen from the register file.

    ``write`` and ``read`` are high for one cycle per 32-bit access, never both. A read takes the register's value
    as it is before that edge.
    """

    def __init__(self):
        super().__init__(
            {
                "write": Out(1),
                "read": Out(1),
                "table": Out(1),  #: the access is to BAR3, not to BAR0
                "offset": Out(20),  #: in the BAR, a multiple of 4
                "data": Out(32),  #: with ``write``
            }
        )

    def __eq__(self, other):
        return isinstance(other, RegisterBus)


class QueueRegisters(wiring.Signature):
    """The registers of a queue, as seen from the register file: it keeps some, the queue keeps the others.

    Transmit queues have the same fields in the same places as receive queues (TDBAL as RDBAL and so on).
    """

    def __init__(self):
        super().__init__(
            {
                "base_low": Out(register_layout(REG.RDBAL)),
                "base_high": Out(register_layout(REG.RDBAH)),
                "length": Out(register_layout(REG.RDLEN)),
                "tail": Out(register_layout(REG.RDT)),
                "head": In(32),
                "control": In(32),
            }
        )

    def __eq__(self, other):
        return isinstance(other, QueueRegisters)


class MacEvents(data.Struct):
    """What the MAC counts at the end of a frame; each flag is high for one cycle."""

    good: 1  #: passed every check and filter
    crc_error: 1
    undersize: 1
    fragment: 1
    oversize: 1
    jabber: 1
    length: 16  #: bytes of the frame, FCS included


class RxDescriptor(data.Struct):
    """A descriptor on its way to the receive DMA."""

    address: PHYSICAL_ADDRESS_WIDTH  #: of the packet buffer


class Finished(data.Struct):
    """A buffer that has been filled: what the write-back says of it."""

    length: 16  #: bytes in this buffer
    eop: 1  #: the packet ends here
    packet_type: PacketType
    rss_type: RssType
    rss_hash: 32
    packet: PACKET_WIDTH


class TxKind(enum.Enum, shape=2):
    """What a transmit descriptor is."""

    DATA = 0
    CONTEXT = 1  #: parameters of offloads, which are not built: it is done with at once
    BAD = 2  #: of no known type, or with a buffer beyond the physical address space: its packet is dropped


class TxDescriptor(data.Struct):
    """A descriptor on its way to the transmit DMA."""

    address: PHYSICAL_ADDRESS_WIDTH  #: of the buffer
    length: 16  #: bytes in it
    eop: 1
    insert_fcs: 1  #: counts in a packet's first descriptor, as ``offload``
    offload: 1  #: asks for something that is not built
    report: 1  #: to be written back
    kind: TxKind


class TxFinished(data.Struct):
    """A transmit descriptor whose buffer the card needs no more."""

    report: 1
    packet: PACKET_WIDTH


class MacBeat(data.Struct):
    """64 bytes of a frame from the MAC; the last ones may hold less."""

    data: LINE_BITS
    first: 1


class FrameEnd(data.Struct):
    """The MAC's verdict on a frame, one cycle after its last beat."""

    discard: 1  #: the frame must leave no trace
    length: 16  #: bytes that go to memory
    packet: PACKET_WIDTH
    rss: Rss


class TransmitBeat(data.Struct):
    """Up to 64 bytes of a packet on its way from the transmit packet buffer to the MAC."""

    data: LINE_BITS  #: what is behind the packet in its last beat does not count
    first: 1
    last: 1
    length: 16  #: bytes of the packet; constant over its beats
    packet: PACKET_WIDTH
    insert_fcs: 1  #: pad it and append the FCS


class SentEvent(data.Struct):
    """What the transmitting MAC counts at the end of a frame."""

    valid: 1  #: for one cycle
    length: 16  #: bytes of the frame, FCS included


#: A stream of :class:`TransmitBeat`.
TransmitStream = stream.Signature(TransmitBeat)

#: What comes from the MAC cannot be held up.
MacStream = stream.Signature(MacBeat, always_ready=True)
FrameEndStream = stream.Signature(FrameEnd, always_ready=True)
