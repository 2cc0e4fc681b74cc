"""Writes descriptors back, batched by cache line."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tlp import TlpStream, TlpType

from .descriptor_fetch import INDEX_WIDTH, PER_LINE, RingPosition
from .descriptors import DESCRIPTOR_BYTES
from .ring import RX_RING, Ring

__all__ = ["WriteBack"]


class WriteBack(wiring.Component):
    """Collects finished descriptors of ``kind`` and writes a line's worth at once, in order.

    A line is sent when its end is reached, or when ``flush`` is high: one TLP, so a descriptor becomes
    visible in one piece. ``head`` is the index of the next descriptor to be written back; it moves, and ``done``
    is high for one cycle, when the link's arbiter accepts the TLP. ``start`` (one cycle, while ``idle``) sets ``head``
    to ``start_head``.

    A descriptor that is not to be written back ends the TLP of those before it, and moves ``head`` by itself.
    """

    def __init__(self, kind: Ring = RX_RING):
        self.kind = kind
        super().__init__(
            {
                "ring": In(RingPosition),
                "start": In(1),
                "start_head": In(INDEX_WIDTH),
                "finished": In(stream.Signature(kind.finished)),
                "flush": In(1),
                "inject": In(1),  #: lines sent from now on are marked to be put into the cache
                "send": Out(TlpStream),
                "head": Out(INDEX_WIDTH),
                "done": Out(1),
                "sent": Out(data.ArrayLayout(kind.finished, PER_LINE)),  #: with ``done``: which, by place in the line
                "sent_lanes": Out(PER_LINE),  #: with ``done``: which places
                "collecting": Out(1),  #: finished descriptors wait for the rest of their line
                "idle": Out(1),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        # Being collected, by place in the line
        entries = Signal(data.ArrayLayout(self.kind.finished, PER_LINE))
        lanes = Signal(PER_LINE)
        index = Signal(INDEX_WIDTH)  # of the next descriptor to be finished
        place = index % PER_LINE
        following, next_index = Signal(INDEX_WIDTH + 1), Signal(INDEX_WIDTH)
        accept, flush, silent = Signal(), Signal(), Signal()
        # On its way
        out_valid = Signal()
        out_next = Signal(INDEX_WIDTH)  # head once it has gone
        out_inject = Signal()

        complete = lanes[PER_LINE - 1]
        m.d.comb += [
            silent.eq(self.finished.valid & ~self.kind.reports(self.finished.payload)),
            self.finished.ready.eq(Mux(silent, ~lanes.any() & ~out_valid, ~complete)),
            accept.eq(self.finished.valid & self.finished.ready),
            flush.eq(lanes.any() & (complete | self.flush | silent) & ~out_valid & ~accept),
            following.eq(index + 1),
            next_index.eq(Mux(following == self.ring.size, 0, following)),
        ]
        with m.If(accept):
            m.d.nic += index.eq(next_index)
            with m.If(silent):
                m.d.nic += self.head.eq(next_index)
            with m.Else():
                m.d.nic += [entries[place].eq(self.finished.payload), lanes.eq(lanes | (1 << place))]
        with m.If(flush):
            m.d.nic += [
                self.sent.eq(entries),
                self.sent_lanes.eq(lanes),
                lanes.eq(0),
                out_valid.eq(1),
                out_next.eq(index),
                out_inject.eq(self.inject),
            ]

        beat = self.send.payload
        m.d.comb += [
            self.send.valid.eq(out_valid),
            self.done.eq(out_valid & self.send.ready),
        ]
        with m.If(out_valid):
            line = data.View(data.ArrayLayout(self.kind.result, PER_LINE), beat.data)
            m.d.comb += [
                beat.first.eq(1),
                beat.last.eq(1),
                beat.header.kind.eq(TlpType.MEMORY_WRITE),
                beat.header.address.eq(self.ring.base + (self.head << 4)),
                beat.header.length.eq(sum(self.sent_lanes) * DESCRIPTOR_BYTES),
                beat.header.tag.eq(out_inject),
            ]
            if self.kind.traced:
                m.d.comb += beat.header.packet.eq(self.sent[self.head % PER_LINE].packet)
            for place, entry in enumerate(self.sent):
                with m.If(self.sent_lanes[place]):
                    self.kind.report(m, entry, line[place])
        with m.If(self.done):
            m.d.nic += [out_valid.eq(0), self.head.eq(out_next)]
        with m.If(self.start):
            m.d.nic += [self.head.eq(self.start_head), index.eq(self.start_head)]
        m.d.comb += [
            self.collecting.eq(lanes.any()),
            self.idle.eq(~lanes.any() & ~out_valid),
            self.quiet.eq(~self.finished.valid & ~flush & ~out_valid & ~self.start),
        ]
        return m
