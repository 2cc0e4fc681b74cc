"""Completions: one at an edge, and what holds up issue until its own."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import OP_ID_WIDTH, Completion, MmioResponse, OperationKind
from hw.bus.l1 import L1LoadDone, L1Use
from hw.lib.time import NOW_WIDTH

__all__ = ["CompletionUnit", "Waiting"]


class Waiting(enum.Enum, shape=3):
    """What has issued and must complete before anything else issues."""

    NOTHING = 0
    MMIO_READ = 1
    ATOMIC = 2
    FENCE = 3
    LFENCE = 4
    SFENCE = 5
    RDTSC = 6


class CompletionUnit(wiring.Component):
    """Reports what completes.

    The cache's answers go first, since they cannot be refused; then forwarded loads; then what holds up issue: a
    POLL that gives up, an MMIO_READ, a fence, an RDTSC. An ATOMIC completes by the cache's answer: no load is in
    flight then.

    Arguments:
        domain: clock domain.

    Attributes:
        issue: ``In(1)``, an operation of ``kind`` with ``id`` and ``size`` issues at this edge.
        kind, id, size: ``In``.
        waiting: ``Out(Waiting)``, what holds up issue.
        done_valid, done: ``In``, the cache answers; answers to the page walker are left out.
        forwarded: ``In(stream)``, a load from the store buffer is due.
        polling: ``In(1)``, a POLL is here, ``poll_id``: ``In(8)``.
        look: ``Out(1)``, the cache answers a look of the POLL, which completes with that if ``look_finishes``.
        timeout: ``In(stream)``, the POLL gives up, with these bytes.
        response: ``In(stream)``, of a device.
        loaded: ``In(1)``, no load is in flight.
        stored: ``In(1)``, every store is visible.
        now: ``In(48)``, what an RDTSC gives.
        valid: ``Out(1)``, ``completion`` is reported at this edge.
        completion: ``Out(Completion)``.
        load_valid: ``Out(1)``, a LOAD completes, ``load_id``: ``Out(8)``.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__(
            {
                "issue": In(1),
                "kind": In(OperationKind),
                "id": In(OP_ID_WIDTH),
                "size": In(7),
                "waiting": Out(Waiting),
                "done_valid": In(1),
                "done": In(L1LoadDone),
                "forwarded": In(stream.Signature(Completion)),
                "polling": In(1),
                "poll_id": In(OP_ID_WIDTH),
                "look": Out(1),
                "look_finishes": In(1),
                "timeout": In(stream.Signature(64)),
                "response": In(stream.Signature(MmioResponse)),
                "loaded": In(1),
                "stored": In(1),
                "now": In(NOW_WIDTH),
                "valid": Out(1),
                "completion": Out(Completion),
                "load_valid": Out(1),
                "load_id": Out(OP_ID_WIDTH),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        answered, gap, over = Signal(), Signal(), Signal()
        m.d.comb += [
            answered.eq(self.done_valid & (self.done.use != L1Use.WALK)),
            gap.eq(~(answered | self.forwarded.valid)),
            self.forwarded.ready.eq(~answered),
            self.timeout.ready.eq(gap),
        ]
        waiting_id, data = self._wait(m, answered, gap & ~self.polling, over)
        with m.If(answered):
            with m.If(self.polling):
                m.d.comb += self.look.eq(self.done.id == self.poll_id)
            m.d.comb += [
                self.valid.eq(~self.look | self.look_finishes),
                self.completion.id.eq(self.done.id),
                self.completion.data.eq(self.done.data),
            ]
        with m.Elif(self.forwarded.valid):
            m.d.comb += [self.valid.eq(1), self.completion.eq(self.forwarded.payload)]
        with m.Elif(self.polling):
            m.d.comb += [
                self.valid.eq(self.timeout.valid),
                self.completion.id.eq(self.poll_id),
                self.completion.data.eq(self.timeout.payload),
            ]
        with m.Else():
            m.d.comb += [self.valid.eq(over), self.completion.id.eq(waiting_id), self.completion.data.eq(data)]

        atomic = self.waiting == Waiting.ATOMIC
        m.d.comb += [
            self.load_valid.eq(Mux(answered, ~(self.look | atomic), self.forwarded.valid)),
            self.load_id.eq(Mux(answered, self.done.id, self.forwarded.payload.id)),
            self.quiet.eq(~(self.issue | answered | self.valid)),
        ]
        return m

    def _wait(self, m, answered, alone, over):
        """What holds up issue, and when it is ``over``; returns its id and its result."""
        sync = m.d[self.domain]
        waiting_id, four_bytes = Signal(OP_ID_WIDTH), Signal()
        value = Signal(64)
        with m.If((over & alone) | (answered & (self.waiting == Waiting.ATOMIC))):
            sync += self.waiting.eq(Waiting.NOTHING)
        with m.If(self.issue):
            sync += [waiting_id.eq(self.id), four_bytes.eq(self.size == 4)]
            with m.Switch(self.kind):
                for kind in (kind for kind in Waiting if kind is not Waiting.NOTHING):
                    with m.Case(OperationKind[kind.name]):
                        sync += self.waiting.eq(kind)
        with m.Switch(self.waiting):
            with m.Case(Waiting.MMIO_READ):
                answer = self.response.payload.data
                m.d.comb += [
                    self.response.ready.eq(alone),
                    over.eq(self.response.valid),
                    value.eq(Mux(four_bytes, answer & 0xFFFF_FFFF, answer)),
                ]
            with m.Case(Waiting.FENCE):
                m.d.comb += over.eq(self.loaded & self.stored)
            with m.Case(Waiting.LFENCE):
                m.d.comb += over.eq(self.loaded)
            with m.Case(Waiting.SFENCE):
                m.d.comb += over.eq(self.stored)
            with m.Case(Waiting.RDTSC):
                m.d.comb += [over.eq(self.loaded), value.eq(self.now)]
        return waiting_id, value
