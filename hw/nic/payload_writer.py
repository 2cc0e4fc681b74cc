"""Cuts the bytes of a packet into memory write TLPs."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS, LINE_BYTES, PHYSICAL_ADDRESS_WIDTH
from hw.bus.tlp import TlpHeader, TlpStatus, TlpStream, TlpType
from hw.bus.wire import PacketStream
from hw.lib.probe import Counter, Probe

__all__ = ["PayloadWriter", "Segment"]


class Segment(data.Struct):
    """Bytes of a packet that go to one buffer."""

    address: PHYSICAL_ADDRESS_WIDTH  #: of the buffer, any byte
    length: 16  #: bytes, at least 1
    packet: PACKET_WIDTH
    inject: 1  #: marked to be put into the cache


class PayloadWriter(wiring.Component):
    """Writes one segment after another, taking its beats (the first byte in lane 0) from ``packets``.

    TLPs end at multiples of ``mps`` bytes, so none crosses 4 KiB. A segment accepted at edge t offers its first beat
    from edge t + 2 on, then one beat per cycle. A segment whose buffer is not line-aligned may need one beat more
    than it has. With ``abort`` it ends behind the TLP in progress.

    ``idle``: the last beat of the segment has been accepted, or is at this edge; ``complete`` then tells
    whether all of it was written.

    Raises:
        ValueError: when ``mps`` is not a power of two of at least a line.
    """

    segment: In(stream.Signature(Segment))
    packets: In(PacketStream)
    send: Out(TlpStream)
    abort: In(1)
    idle: Out(1)
    complete: Out(1)
    quiet: Out(1)

    def __init__(self, mps: int):
        if mps < LINE_BYTES or mps & (mps - 1):
            raise ValueError(f"the maximum payload size is a power of two of at least {LINE_BYTES} bytes, not {mps}")
        super().__init__()
        self.mps = mps
        self.dma_write = Probe("nic", "a payload TLP begins", packet=PACKET_WIDTH, address=64, length=16)
        self.tlps = Counter("nic", "payload TLPs")
        self.octets = Counter("nic", "payload bytes written")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        active, first = Signal(), Signal()  # first: the next beat begins a TLP
        current = Signal(Segment)  # address: of the next byte to be sent
        shift = Signal(range(LINE_BYTES))  # lane of the buffer's first byte
        unread = Signal(16)  # bytes of the segment not yet taken from the packet buffer
        unsent = Signal(16)  # bytes of the segment not yet sent
        tlp_unsent = Signal(range(self.mps + 1))
        previous = Signal(LINE_BITS)
        out_data, out_header, out_valid = Signal(LINE_BITS), Signal(TlpHeader), Signal()
        out_first, out_last = Signal(), Signal()
        room, step, more = Signal(), Signal(), Signal()
        m.d.comb += [
            self.send.valid.eq(out_valid),
            self.send.payload.data.eq(out_data),
            self.send.payload.header.eq(out_header),
            self.send.payload.first.eq(out_first),
            self.send.payload.last.eq(out_last),
            room.eq(~out_valid | self.send.ready),
            self.segment.ready.eq(~active),
            more.eq(unread != 0),
            step.eq(active & room & (~more | self.packets.valid)),
            self.packets.ready.eq(active & room & more),
            self.idle.eq(~active & room),
            self.complete.eq(unsent == 0),
            self.quiet.eq(~active & ~out_valid & ~self.segment.valid),
        ]

        with m.If(self.segment.valid & self.segment.ready):
            segment = self.segment.payload
            m.d.nic += [
                active.eq(1),
                first.eq(1),
                current.eq(segment),
                shift.eq(segment.address % LINE_BYTES),
                unread.eq(segment.length),
                unsent.eq(segment.length),
            ]

        with m.If(room):
            m.d.nic += out_valid.eq(step)
        begin, tlp_length = Signal(), Signal(16)
        with m.If(step):
            size, tlp_size = Signal(range(LINE_BYTES + 1)), Signal(range(self.mps + 1))
            to_line, to_mps = Signal.like(size), Signal.like(tlp_size)
            last = Signal()
            m.d.comb += [
                to_line.eq(LINE_BYTES - current.address % LINE_BYTES),
                to_mps.eq(self.mps - current.address % self.mps),
                size.eq(Mux(unsent < to_line, unsent, to_line)),
                tlp_length.eq(Mux(unsent < to_mps, unsent, to_mps)),
                tlp_size.eq(Mux(first, tlp_length, tlp_unsent)),
                last.eq(size == tlp_size),
                begin.eq(first),
            ]
            m.d.nic += [
                first.eq(last),
                tlp_unsent.eq(tlp_size - size),
                unsent.eq(unsent - size),
                current.address.eq(current.address + size),
                active.eq((unsent != size) & ~(last & self.abort)),
                out_first.eq(first),
                out_last.eq(last),
            ]
            # Lane i of this line holds byte i - shift of this beat, or i - shift + 64 of the one before. One case for
            # each shift: a compiled simulation runs only the one that is taken, where it would work out every operator
            both = Cat(previous, self.packets.payload.data)
            with m.Switch(shift):
                for lanes in range(LINE_BYTES):
                    with m.Case(lanes):
                        m.d.nic += out_data.eq(both[LINE_BITS - 8 * lanes : 2 * LINE_BITS - 8 * lanes])
            with m.If(more):
                m.d.nic += [
                    previous.eq(self.packets.payload.data),
                    unread.eq(Mux(unread > LINE_BYTES, unread - LINE_BYTES, 0)),
                ]
            with m.If(first):
                m.d.nic += [
                    out_header.kind.eq(TlpType.MEMORY_WRITE),
                    out_header.status.eq(TlpStatus.SUCCESS),
                    out_header.address.eq(current.address),
                    out_header.length.eq(tlp_length),
                    out_header.tag.eq(current.inject),
                    out_header.packet.eq(current.packet),
                ]
        self.dma_write.emit(m, begin, packet=current.packet, address=current.address, length=tlp_length)
        self.tlps.increment(m, begin)
        self.octets.increment(m, begin, tlp_length)
        return m
