"""The receiving half of the MAC: wire time, frame check sequence, length checks and address filters."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS
from hw.bus.wire import WireStream
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM
from hw.lib.time import NOW_WIDTH, Timer

from .crc import CRC_INIT, CRC_RESIDUES, Crc32
from .drop import DropReason
from .layouts import FrameEndStream, MacEvents, MacStream, register_layout
from .registers import REG
from .wire_clock import WireClock

__all__ = ["FCS_BYTES", "MIN_FRAME", "MacReceive"]

#: Shortest frame, and the longest one without jumbo frames (IEEE 802.3; datasheet section 8.2.3.22, MAXFRS).
MIN_FRAME = 64
MAX_STANDARD_FRAME = 1518
FCS_BYTES = 4
VLAN_TAG_BYTES = 4
VLAN_ETHERTYPE = b"\x81\x00"


class _Beat(data.Struct):
    """A beat without its data, as in :class:`hw.bus.wire.FrameBeat`."""

    length: 16
    first: 1
    last: 1
    packet: PACKET_WIDTH
    start: NOW_WIDTH


class MacReceive(wiring.Component):
    """Takes frames from the wire at line rate and hands on what arrived, beat by beat.

    Preamble, bytes and inter-frame gap take the time they take on the wire. A frame begins when the wire is free and
    its ``start`` has come; handed over later, to an idle wire, it begins at the edge that accepts it. If the last byte
    of a beat has arrived in full at time T in cycles, the beat passes at edge number ceil(T), or at the edge after the
    beat before: the probe ``frame`` fires there for the last beat. The beat leaves at the next edge, and one edge
    after the last one follows ``end``, the verdict: a frame to be dropped is marked ``discard`` there and reported by
    ``drop``. Nothing holds the MAC up.

    The verdict's ``length`` is that of the packet in memory: without the FCS when both HLREG0.RXCRCSTRP and
    RDRXCTL.CRCSTRIP are on. ``resetting``: the card is being reset, which spoils every frame on the wire.
    """

    wire: In(WireStream)
    packets: Out(MacStream)
    end: Out(FrameEndStream)
    now: In(NOW_WIDTH)
    rxctrl: In(register_layout(REG.RXCTRL))
    fctrl: In(register_layout(REG.FCTRL))
    hlreg0: In(register_layout(REG.HLREG0))
    rdrxctl: In(register_layout(REG.RDRXCTL))
    maxfrs: In(register_layout(REG.MAXFRS))
    ral: In(register_layout(REG.RAL))
    rah: In(register_layout(REG.RAH))
    resetting: In(1)
    events: Out(MacEvents)
    quiet: Out(1)

    def __init__(self, config: MachineConfig):
        super().__init__()
        self.clock = WireClock(config)
        self.max_frame = config.nic.max_frame
        self.beats = RAM(width=LINE_BITS, depth=2, domain="nic")
        self.crc32 = Crc32()
        self.arrival = Timer("nic")
        self.frame = Probe("nic", "the last bit of a frame has arrived", packet=PACKET_WIDTH, length=16)
        self.drop = Probe("nic", "the MAC drops a frame", packet=PACKET_WIDTH, reason=DropReason)
        self.frames = Counter("nic", "frames that arrived on the wire")
        self.octets = Counter("nic", "bytes of frames that arrived on the wire, FCS included")
        self.dropped = Counter("nic", "frames dropped by the MAC")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()

        m.submodules.clock = clock = self.clock
        m.submodules.beats = beats = self.beats
        m.submodules.crc32 = crc32 = self.crc32

        # Handed over: straight into a register, the data into one of two rows
        incoming, incoming_valid = Signal(_Beat), Signal()
        idle = Signal()  # nothing was on the wire when it was handed over
        waiting_valid = Signal()
        move, due = Signal(), Signal()
        put, take = Signal(), Signal()
        accept = self.wire.valid & self.wire.ready
        m.d.comb += [
            self.wire.ready.eq(~incoming_valid | move),
            beats.write_enable.eq(accept),
            beats.write_address.eq(put),
            beats.write_data.eq(self.wire.payload.data),
        ]
        with m.If(self.wire.ready):
            m.d.nic += incoming_valid.eq(self.wire.valid)
        with m.If(accept):
            m.d.nic += [put.eq(~put), idle.eq(~incoming_valid & ~waiting_valid)]
            m.d.nic += [incoming[name].eq(self.wire.payload[name]) for name, _ in data.Layout.cast(_Beat)]

        # On the wire: waits until its last byte has arrived
        waiting = Signal(_Beat)
        # A frame handed over to an idle wire, one edge ago, does not begin before that
        handed_over, start = (self.now - 1)[:NOW_WIDTH], Signal(NOW_WIDTH)
        m.d.comb += [
            start.eq(Mux(idle & (handed_over > incoming.start), handed_over, incoming.start)),
            clock.take.eq(move),
            clock.first.eq(incoming.first),
            clock.last.eq(incoming.last),
            clock.length.eq(incoming.length),
            clock.start.eq(start),
            due.eq(waiting_valid & (self.now >= clock.deadline)),
            move.eq(incoming_valid & (~waiting_valid | due)),
            beats.read_enable.eq(due),
            beats.read_address.eq(take),
            self.arrival.armed.eq(waiting_valid),
            self.arrival.deadline.eq(clock.deadline),
        ]
        with m.If(due | move):
            m.d.nic += waiting_valid.eq(move)
        with m.If(due):
            m.d.nic += take.eq(~take)
        with m.If(move):
            m.d.nic += waiting.eq(incoming)
        last_bit = due & waiting.last
        self.frame.emit(m, last_bit, packet=waiting.packet, length=waiting.length)
        self.frames.increment(m, last_bit)
        self.octets.increment(m, last_bit, waiting.length)

        # Arrived: passed on, while the FCS and the address are looked at
        arrived, arrived_valid = Signal(_Beat), Signal()
        arrived_bytes = Signal.like(clock.octets)
        m.d.nic += arrived_valid.eq(due)
        with m.If(due):
            m.d.nic += [arrived.eq(waiting), arrived_bytes.eq(clock.octets)]
        crc, ours, tagged = Signal(32), Signal(), Signal()
        m.d.comb += [
            self.packets.valid.eq(arrived_valid),
            self.packets.payload.data.eq(beats.read_data),
            self.packets.payload.first.eq(arrived.first),
            crc32.valid.eq(arrived_valid),
            crc32.crc.eq(Mux(arrived.first, CRC_INIT, crc)),
            crc32.data.eq(beats.read_data),
        ]
        with m.If(arrived_valid):
            m.d.nic += crc.eq(crc32.next)
            with m.If(arrived.first):
                m.d.nic += [ours.eq(self._is_ours(beats.read_data)), tagged.eq(self._is_tagged(beats.read_data))]

        # Frames that were on the wire during a reset are lost
        spoiled = Signal()
        with m.If(self.resetting):
            m.d.nic += spoiled.eq(1)
        with m.Elif(arrived_valid & arrived.first):
            m.d.nic += spoiled.eq(0)

        # At its end the frame is judged
        ended, frame = Signal(), Signal(_Beat)
        residue = Signal(32)
        m.d.nic += ended.eq(arrived_valid & arrived.last)
        with m.If(arrived_valid & arrived.last):
            m.d.nic += [frame.eq(arrived), residue.eq(Array(Const(r, 32) for r in CRC_RESIDUES)[arrived_bytes])]
        self._judge(m, ended, frame, lost=self.resetting | spoiled, good_fcs=crc == residue, ours=ours, tagged=tagged)

        # A beat handed over needs no mention: the engine executes the edge at which it hands one over
        m.d.comb += self.quiet.eq(~move & ~due & ~arrived_valid & ~ended & (spoiled | ~self.resetting))
        return m

    def _is_ours(self, beat):
        """Whether a filter accepts the destination address (datasheet section 7.1.1)."""
        destination = beat[:48]
        broadcast = destination.all()
        multicast = destination[0]
        station = Cat(self.ral.value, self.rah.ADDRESS)
        unicast = self.fctrl.UPE | (self.rah.AV & (destination == station))
        return Mux(broadcast, self.fctrl.BAM, Mux(multicast, self.fctrl.MPE, unicast))

    def _is_tagged(self, beat):
        """Whether the frame carries a VLAN tag."""
        return beat[96:112] == int.from_bytes(VLAN_ETHERTYPE, "little")

    def _judge(self, m, ended, frame, *, lost, good_fcs, ours, tagged):
        """What becomes of the frame."""
        strip, discard = Signal(), Signal()
        limit, reason = Signal(17), Signal(DropReason)
        oversize, runt = Signal(), Signal()
        m.d.comb += [
            self.end.valid.eq(ended),
            self.end.payload.discard.eq(discard),
            self.end.payload.packet.eq(frame.packet),
        ]
        with m.If(ended):
            m.d.comb += [
                strip.eq(self.hlreg0.RXCRCSTRP & self.rdrxctl.CRCSTRIP),
                limit.eq(
                    Mux(self.hlreg0.JUMBOEN, self.maxfrs.MFS, MAX_STANDARD_FRAME) + Mux(tagged, VLAN_TAG_BYTES, 0)
                ),
                runt.eq(frame.length < MIN_FRAME),
                oversize.eq((frame.length > limit) | (frame.length > self.max_frame)),
                discard.eq(reason != DropReason.NONE),
                self.end.payload.length.eq(frame.length - Mux(strip, FCS_BYTES, 0)),
                self.events.length.eq(frame.length),
                self.events.good.eq(~discard),
                self.events.crc_error.eq(~runt & ~good_fcs),
                self.events.undersize.eq(runt & good_fcs),
                self.events.fragment.eq(runt & ~good_fcs),
                self.events.oversize.eq(oversize & good_fcs),
                self.events.jabber.eq(oversize & ~good_fcs),
            ]
            with m.If(lost):
                m.d.comb += reason.eq(DropReason.RESET)
            with m.Elif(runt):
                m.d.comb += reason.eq(DropReason.RUNT)
            with m.Elif(oversize):
                m.d.comb += reason.eq(DropReason.OVERSIZE)
            with m.Elif(~good_fcs):
                m.d.comb += reason.eq(DropReason.CRC_ERROR)
            with m.Elif(~self.rxctrl.RXEN):
                m.d.comb += reason.eq(DropReason.RECEIVE_DISABLED)
            with m.Elif(~ours):
                m.d.comb += reason.eq(DropReason.FILTERED)
        self.drop.emit(m, discard, packet=frame.packet, reason=reason)
        self.dropped.increment(m, discard)
