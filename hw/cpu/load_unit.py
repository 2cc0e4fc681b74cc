"""Loads that have issued, until the cache or the store buffer has answered them."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import OP_ID_WIDTH, Completion
from hw.bus.l1 import L1Load, L1Use
from hw.bus.tilelink import LINE_BITS
from hw.bus.translate import FRAME_WIDTH, PAGE_WIDTH
from hw.config import CoreConfig, L1Config

from .forward_queue import ForwardQueue
from .reservation_station import ReservationStation, WaitingLoad

__all__ = ["LoadUnit"]


class LoadUnit(wiring.Component):
    """Shares the cache's load port between what issues and what has waited, and delays what is forwarded.

    A load that issues takes one of three ways: to the cache (``operation``), to the forward queue (``forward``) or,
    when it needs the result of another, to the reservation station (``wait``). From there it takes one of the other
    two later, with ``turn``: before what issues, but not before an ``operation`` that has been offered.

    Whether a load takes its bytes from the store buffer is decided when it issues, and they are read then:
    younger stores have no part in it, and older ones become visible before it reads memory or do not overlap it.

    Arguments:
        core: sizes of load queue and reservation station.
        l1: latency of the cache.
        domain: clock domain.

    Attributes:
        operation: ``In(stream)``, an access that issues or a later look of a POLL; accepted by the cache.
        load: ``In(WaitingLoad)``, the load that issues.
        forward: ``In(1)``, it goes to the forward queue at this edge; not with ``turn``.
        wait: ``In(1)``, it goes to the reservation station at this edge; not when ``full``.
        after: ``In(8)``, the load it waits for.
        forward_line: ``In(512)``, one cycle after ``forward``, or ``wait`` of a forwarded load: its line.
        full: ``Out(1)``, no room in the reservation station.
        turn: ``Out(1)``, a load that has waited goes at this edge, or wants to.
        ask: ``Out(1)``, it wants ``page`` translated, by ``hit`` and ``frame``.
        id: ``Out(8)``, while ``ask``: which load.
        l1: ``Out(stream)``, to the cache.
        complete: ``In(1)``, load ``complete_id`` completes at this edge.
        complete_id: ``In(8)``.
        valid: ``Out(1)``, a forwarded load is due, with ``completion``; it completes at an edge with ``ready``.
        offered: ``Out(1)``, ``operation`` was offered at the last edge and not accepted.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, core: CoreConfig, l1: L1Config, domain: str):
        self.domain = domain
        super().__init__(
            {
                "operation": In(stream.Signature(L1Load)),
                "load": In(WaitingLoad),
                "forward": In(1),
                "wait": In(1),
                "after": In(OP_ID_WIDTH),
                "forward_line": In(LINE_BITS),
                "full": Out(1),
                "turn": Out(1),
                "ask": Out(1),
                "page": Out(PAGE_WIDTH),
                "hit": In(1),
                "frame": In(FRAME_WIDTH),
                "id": Out(OP_ID_WIDTH),
                "l1": Out(stream.Signature(L1Load)),
                "complete": In(1),
                "complete_id": In(OP_ID_WIDTH),
                "valid": Out(1),
                "completion": Out(Completion),
                "ready": In(1),
                "offered": Out(1),
                "quiet": Out(1),
            }
        )
        self.station = ReservationStation(core.reservation_station, domain)
        self.forward_queue = ForwardQueue(core.load_queue, l1.latency, domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.station = station = self.station
        m.submodules.forward_queue = queue = self.forward_queue
        sync = m.d[self.domain]

        # Whose turn it is: an offer to the cache stands until it is accepted
        stands = Signal()
        waited, address = station.load, station.load.address
        m.d.comb += [
            self.turn.eq(station.valid & ~self.offered),
            self.ask.eq(self.turn & ~waited.forwarded),
            self.page.eq(address.page),
            self.id.eq(waited.id),
            stands.eq(self.operation.valid & ~(self.turn | self.operation.ready)),
        ]
        sync += self.offered.eq(stands)

        # To the cache
        with m.If(self.turn):
            m.d.comb += [
                self.l1.valid.eq(self.ask & self.hit),
                self.l1.payload.use.eq(L1Use.LOAD),
                self.l1.payload.id.eq(waited.id),
                self.l1.payload.line.eq(address.line_in(self.frame)),
                self.l1.payload.offset.eq(address.offset),
                self.l1.payload.size.eq(waited.size),
                station.take.eq(waited.forwarded | (self.l1.valid & self.l1.ready)),
            ]
        with m.Else():
            m.d.comb += [
                self.l1.valid.eq(self.operation.valid),
                self.l1.payload.eq(self.operation.payload),
                self.operation.ready.eq(self.l1.ready),
            ]

        # To the reservation station
        m.d.comb += [
            station.push.eq(self.wait),
            station.entry.eq(self.load),
            station.after.eq(self.after),
            station.push_line.eq(self.forward_line),
            station.complete.eq(self.complete),
            station.complete_id.eq(self.complete_id),
            self.full.eq(station.full),
        ]

        # To the forward queue
        forwarding = Signal(WaitingLoad)
        has_waited = Signal()
        m.d.comb += forwarding.eq(Mux(self.turn, waited, self.load))
        with m.If(queue.push):
            sync += has_waited.eq(self.turn)
        m.d.comb += [
            queue.push.eq(self.forward | (station.take & waited.forwarded)),
            queue.id.eq(forwarding.id),
            queue.offset.eq(forwarding.address.offset),
            queue.size.eq(forwarding.size),
            queue.line.eq(Mux(has_waited, station.take_line, self.forward_line)),
            queue.ready.eq(self.ready),
            self.valid.eq(queue.valid),
            self.completion.eq(queue.completion),
            self.quiet.eq(station.quiet & queue.quiet & (stands == self.offered)),
        ]
        return m
