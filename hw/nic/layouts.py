"""Structures shared inside the card: views of registers, and what its blocks tell each other."""

from amaranth.hdl import unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS, PHYSICAL_ADDRESS_WIDTH

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
    """The registers of a receive queue, as seen from the register file: it keeps some, the queue keeps the others."""

    def __init__(self):
        super().__init__(
            {
                "rdbal": Out(register_layout(REG.RDBAL)),
                "rdbah": Out(register_layout(REG.RDBAH)),
                "rdlen": Out(register_layout(REG.RDLEN)),
                "rdt": Out(register_layout(REG.RDT)),
                "srrctl": Out(register_layout(REG.SRRCTL)),
                "rdh": In(32),
                "rxdctl": In(32),
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
