"""The receive packet buffer: store and forward."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS, LINE_BYTES
from hw.bus.wire import PacketStream, Rss
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM

from .drop import DropReason
from .layouts import FrameEndStream, MacStream

__all__ = ["PacketBuffer"]


class _Metadata(data.Struct):
    length: 16
    packet: PACKET_WIDTH
    rss: Rss


class PacketBuffer(wiring.Component):
    """A ring of ``kib`` KiB in rows of 64 bytes. A packet appears at the output once all of it is in.

    A frame whose ``end`` says ``discard`` leaves no trace. A frame that finds no room is dropped as a whole,
    reported by ``drop`` and by ``missed`` (one cycle). If the buffer was empty, the first beat of a packet is
    offered two edges after the edge at which its ``end`` came; then one beat per cycle. ``empty``: no complete
    packet is inside.

    Raises:
        ValueError: when ``kib`` is not a power of two.
    """

    input: In(MacStream)
    end: In(FrameEndStream)
    output: Out(PacketStream)
    missed: Out(1)
    empty: Out(1)
    quiet: Out(1)

    def __init__(self, kib: int):
        if kib < 1 or kib & (kib - 1):
            raise ValueError(f"a packet buffer is a power of two KiB large, not {kib}")
        super().__init__()
        self.depth = kib * 1024 // LINE_BYTES
        self.rows = RAM(width=LINE_BITS, depth=self.depth, domain="nic")
        # What is known of a packet lies beside its first row, and is read together with it
        self.headers = RAM(width=_Metadata.as_shape().size, depth=self.depth, domain="nic")
        self.drop = Probe("nic", "no room in the packet buffer", packet=PACKET_WIDTH, reason=DropReason)
        self.stored = Counter("nic", "packets stored in the packet buffer")
        self.missed_packets = Counter("nic", "packets dropped for want of room in the packet buffer")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.rows = self.rows
        m.submodules.metadata = self.headers
        pointer = ceil_log2(self.depth) + 1
        start = Signal(pointer)  #: row behind the last complete packet
        write = Signal(pointer)  #: row behind the last beat of the packet coming in
        read = Signal(pointer)  #: next row to be read
        self._fill(m, start, write, read)
        self._drain(m, start, read)
        return m

    def _fill(self, m, start, write, read):
        beat, end = self.input.payload, self.end.payload
        row, committed = Signal.like(write), Signal.like(start)
        full, overflown, missed, commit = Signal(), Signal(), Signal(), Signal()

        # The verdict on a frame may come together with the first beat of the next one
        m.d.comb += [
            missed.eq(self.end.valid & overflown & ~end.discard),
            commit.eq(self.end.valid & ~overflown & ~end.discard),
            # Without its FCS a packet may need a row less than it filled
            committed.eq(start + Mux(commit, (end.length + (LINE_BYTES - 1)) // LINE_BYTES, 0)),
        ]
        with m.If(commit):
            m.d.nic += start.eq(committed)

        m.d.comb += [
            row.eq(Mux(beat.first, committed, write)),
            full.eq(((row - read)[: len(row)] == self.depth) | (overflown & ~beat.first)),
        ]
        with m.If(self.input.valid):
            m.d.nic += [overflown.eq(full), write.eq(row + ~full)]

        metadata = Signal(_Metadata)
        m.d.comb += [
            self.rows.write_enable.eq(self.input.valid & ~full),
            self.rows.write_address.eq(row),
            self.rows.write_data.eq(beat.data),
            metadata.length.eq(end.length),
            metadata.packet.eq(end.packet),
            metadata.rss.eq(end.rss),
            self.headers.write_enable.eq(commit),
            self.headers.write_address.eq(start),
            self.headers.write_data.eq(metadata),
            self.missed.eq(missed),
        ]
        self.drop.emit(m, missed, packet=end.packet, reason=DropReason.NO_BUFFER)
        self.stored.increment(m, commit)
        self.missed_packets.increment(m, missed)

    def _drain(self, m, start, read):
        output, valid = self.output.payload, self.output.valid
        loaded, first = Signal(), Signal(init=1)
        held = Signal(_Metadata)
        left = Signal(16)
        accept, load, pending = Signal(), Signal(), Signal()
        metadata = data.View(_Metadata, self.headers.read_data)
        m.d.comb += [
            valid.eq(loaded),
            accept.eq(loaded & self.output.ready),
            pending.eq(read != start),
            load.eq(pending & (~loaded | accept)),
            self.rows.read_enable.eq(load),
            self.rows.read_address.eq(read),
            self.headers.read_enable.eq(load),
            self.headers.read_address.eq(read),
            output.data.eq(self.rows.read_data),
            output.first.eq(first),
            output.length.eq(Mux(first, metadata.length, held.length)),
            output.packet.eq(Mux(first, metadata.packet, held.packet)),
            output.rss.eq(Mux(first, metadata.rss, held.rss)),
            output.last.eq(Mux(first, metadata.length, left) <= LINE_BYTES),
            self.empty.eq(~pending & ~loaded),
            self.quiet.eq(~self.input.valid & ~self.end.valid & ~load & ~accept),
        ]
        with m.If(load):
            m.d.nic += read.eq(read + 1)
        with m.If(load | accept):
            m.d.nic += loaded.eq(load)
        with m.If(accept):
            m.d.nic += [
                first.eq(output.last),
                left.eq(Mux(first, metadata.length, left) - LINE_BYTES),
                held.length.eq(output.length),
                held.packet.eq(output.packet),
                held.rss.eq(output.rss),
            ]
