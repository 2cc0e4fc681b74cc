"""The transmitting half of the MAC: padding, frame check sequence and wire time."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS, LINE_BYTES
from hw.bus.wire import SentStream
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM
from hw.lib.time import NOW_WIDTH, Timer

from .crc import CRC_INIT, Crc32
from .layouts import SentEvent, TransmitStream, register_layout
from .mac import FCS_BYTES, MIN_FRAME
from .registers import REG
from .wire_clock import WireClock

__all__ = ["MacTransmit"]


class _Beat(data.Struct):
    """A beat of a frame without its data."""

    length: 16  #: of the frame, FCS included
    first: 1
    last: 1
    packet: PACKET_WIDTH
    body: range(LINE_BYTES + 1)  #: bytes of the frame in this beat that are not its FCS
    fcs: 1  #: the FCS begins in this beat, behind the body
    spills: 1  #: ... and goes on in a beat of its own
    spilled: 1  #: this is that beat


class MacTransmit(wiring.Component):
    """Takes packets from the transmit packet buffer and sends them as frames at line rate.

    A packet that asks for its FCS is padded to 60 bytes when HLREG0.TXPADEN is on, and gets the FCS when
    HLREG0.TXCRCEN is. Without, it leaves as it is.

    A beat accepted at edge t is on the wire's doorstep at t + 1: if the wire is free, preamble and SFD start then, else
    right behind the inter-frame gap. If the last byte of a beat has left in full at time T in cycles, ``wire``
    shows the beat at edge number ceil(T), or at the edge after the beat before; the probe ``frame`` fires there
    for the last beat. The packet's beats must follow one another without a pause.
    """

    packets: In(TransmitStream)
    wire: Out(SentStream)
    now: In(NOW_WIDTH)
    hlreg0: In(register_layout(REG.HLREG0))
    sent: Out(SentEvent)
    idle: Out(1)  #: no frame is on the wire or about to be
    quiet: Out(1)

    def __init__(self, config: MachineConfig):
        super().__init__()
        self.clock = WireClock(config)
        self.beats = RAM(width=LINE_BITS, depth=2, domain="nic")
        self.crc32 = Crc32()
        self.departure = Timer("nic")
        self.frame = Probe("nic", "the last bit of a frame has left", packet=PACKET_WIDTH, length=16, began=NOW_WIDTH)
        self.frames = Counter("nic", "frames sent on the wire")
        self.octets = Counter("nic", "bytes of frames sent on the wire, FCS included")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.clock = clock = self.clock
        m.submodules.beats = beats = self.beats

        # Taken from the packet buffer: padded, under the FCS, into one of two rows
        incoming, incoming_valid = Signal(_Beat), Signal()
        waiting, waiting_valid = Signal(_Beat), Signal()
        move, due, accept = Signal(), Signal(), Signal()
        put, take = Signal(), Signal()
        m.d.comb += [
            self.packets.ready.eq(~incoming_valid | (move & ~incoming.spills)),
            accept.eq(self.packets.valid & self.packets.ready),
            beats.write_enable.eq(accept),
            beats.write_address.eq(put),
        ]
        with m.If(move):
            m.d.nic += incoming_valid.eq(incoming.spills)
        crc = Signal(32)
        with m.If(accept):
            taken, bytes_taken = self._frame(m)
            m.d.nic += [incoming.eq(taken), incoming_valid.eq(1), put.eq(~put)]
        with m.Elif(move):
            m.d.nic += [
                incoming.spills.eq(0),
                incoming.spilled.eq(1),
                incoming.fcs.eq(0),
                incoming.first.eq(0),
                incoming.last.eq(1),
            ]
        self._check_sequence(m, accept, taken, bytes_taken, crc)

        # On the wire: waits until its last byte has left
        fcs = Signal(32)
        m.d.comb += [
            due.eq(waiting_valid & (self.now >= clock.deadline)),
            move.eq(incoming_valid & (~waiting_valid | due)),
            beats.read_enable.eq(move & ~incoming.spilled),
            beats.read_address.eq(take),
            self.departure.armed.eq(waiting_valid),
            self.departure.deadline.eq(clock.deadline),
            clock.take.eq(move),
            clock.first.eq(incoming.first),
            clock.last.eq(incoming.last),
            clock.length.eq(incoming.length),
            clock.start.eq(self.now),
        ]
        with m.If(due | move):
            m.d.nic += waiting_valid.eq(move)
        with m.If(move):
            m.d.nic += waiting.eq(incoming)
            with m.If(incoming.fcs):
                m.d.nic += fcs.eq(~crc)
            with m.If(~incoming.spilled):
                m.d.nic += take.eq(~take)
        self._send(m, due, waiting, fcs)

        m.d.comb += [
            self.idle.eq(~incoming_valid & ~waiting_valid),
            self.quiet.eq(~accept & ~move & ~due),
        ]
        return m

    def _frame(self, m):
        """What the packet's beat becomes, and how many bytes of it are the packet's."""
        beat, packet = Signal(_Beat), self.packets.payload
        octets, length = Signal(range(LINE_BYTES + 1)), Signal(16)
        padded, check = Signal(), Signal()
        m.d.comb += [
            check.eq(packet.insert_fcs & self.hlreg0.TXCRCEN),
            padded.eq(packet.insert_fcs & self.hlreg0.TXPADEN & (packet.length < MIN_FRAME - FCS_BYTES)),
            length.eq(Mux(padded, MIN_FRAME - FCS_BYTES, packet.length)),
            octets.eq(Mux(packet.last, ((packet.length - 1) % LINE_BYTES) + 1, LINE_BYTES)),
            beat.length.eq(length + Mux(check, FCS_BYTES, 0)),
            beat.first.eq(packet.first),
            beat.packet.eq(packet.packet),
            beat.body.eq(Mux(padded, MIN_FRAME - FCS_BYTES, octets)),
            beat.fcs.eq(packet.last & check),
            beat.spills.eq(beat.fcs & (beat.body > LINE_BYTES - FCS_BYTES)),
            beat.last.eq(packet.last & ~beat.spills),
        ]
        return beat, octets

    def _check_sequence(self, m, accept, beat, octets, crc):
        """Clear what is behind the packet in its last beat; run the bytes of the beat through the CRC register."""
        m.submodules.crc32 = crc32 = self.crc32
        source, before = self.packets.payload.data, Signal(32)
        body, rest = Signal(LINE_BITS), Signal(32)
        m.d.comb += [self.beats.write_data.eq(body), crc32.valid.eq(accept)]
        with m.If(accept):
            m.d.comb += [body.eq(source), before.eq(Mux(beat.first, CRC_INIT, crc))]
            m.d.comb += [crc32.data.eq(source), crc32.crc.eq(before)]
            m.d.nic += crc.eq(crc32.next ^ rest)
            with m.If(self.packets.payload.last):
                with m.Switch(octets):
                    for count in range(1, LINE_BYTES):
                        with m.Case(count):
                            m.d.comb += body.eq(source[: 8 * count])
                # The register is linear: its value goes into the first bytes, and these to the end of the beat, behind
                # zeros that leave an empty register as it is. What of it is not behind the bytes by then has moved up
                m.d.comb += crc32.crc.eq(0)
                folded = Signal(LINE_BITS)
                m.d.comb += folded.eq(body ^ before)
                with m.Switch(beat.body):
                    for count in range(1, LINE_BYTES + 1):
                        with m.Case(count):
                            m.d.comb += crc32.data.eq(Cat(Const(0, LINE_BITS - 8 * count), folded[: 8 * count]))
                            if count < FCS_BYTES:
                                m.d.comb += rest.eq(before[8 * count :])

    def _send(self, m, due, beat, fcs):
        """Show the beat that has left, with the FCS in its place."""
        wire = self.wire.payload
        m.d.comb += [
            self.wire.valid.eq(due),
            wire.length.eq(beat.length),
            wire.first.eq(beat.first),
            wire.last.eq(beat.last),
            wire.packet.eq(beat.packet),
        ]
        with m.If(due):
            with m.If(~beat.spilled):
                m.d.comb += wire.data.eq(self.beats.read_data)
            with m.If(beat.fcs), m.Switch(beat.body):
                for place in range(1, LINE_BYTES):
                    with m.Case(place):
                        m.d.comb += wire.data[8 * place : 8 * (place + FCS_BYTES)].eq(fcs)
            with m.If(beat.spilled), m.Switch(beat.body):
                for place in range(LINE_BYTES - FCS_BYTES + 1, LINE_BYTES + 1):
                    with m.Case(place):
                        m.d.comb += wire.data.eq(fcs >> 8 * (LINE_BYTES - place))
        gone = due & beat.last
        m.d.comb += [self.sent.valid.eq(gone), self.sent.length.eq(beat.length)]
        self.frame.emit(m, gone, packet=beat.packet, length=beat.length, began=self.clock.began)
        self.frames.increment(m, gone)
        self.octets.increment(m, gone, beat.length)
