"""The local interrupt controller of one core."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import Interrupt
from hw.lib.probe import Counter, Probe

__all__ = ["FIRST_VECTOR", "VECTORS", "InterruptController"]

#: The lowest vector for external interrupts: those below belong to the processor's exceptions
#: (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, section 6.2).
FIRST_VECTOR = 0x20

#: Vectors that can be pending: from FIRST_VECTOR on.
VECTORS = 32


class _Vector(data.Struct):
    index: 5
    window: 3


class InterruptController(wiring.Component):
    """Collects interrupt messages and shows the core the pending one of the highest priority.

    One request bit per vector, as in the interrupt request register of a local APIC (Intel SDM, volume 3, section
    11.8.4): a message for a vector that is already pending merges with it. A higher vector has the higher priority.
    There is no in-service register and no end of interrupt: the core's interrupt flag alone decides about nesting.
    Messages with a vector outside ``FIRST_VECTOR`` to ``FIRST_VECTOR + VECTORS - 1`` are counted and dropped.

    A message accepted at edge t is ``pending`` from edge t + 1 on. One acknowledged at edge t is gone, and the next
    one shown, at edge t + 1. A message that arrives at the edge that acknowledges its vector is pending again.

    Arguments:
        domain: clock domain.

    Attributes:
        message: ``In(stream)``, always ready.
        pending: ``Out(1)``, an interrupt is pending; a register.
        vector: ``Out(8)``, its vector; a register.
        acknowledge: ``In(1)``, the core takes it at this edge.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__(
            {
                "message": In(stream.Signature(Interrupt)),
                "pending": Out(1),
                "vector": Out(8),
                "acknowledge": In(1),
                "quiet": Out(1),
            }
        )
        self.requested = Probe(domain, "an interrupt message arrived", vector=8)
        self.messages = Counter(domain, "interrupt messages")
        self.merged = Counter(domain, "interrupt messages for a vector that was already pending")
        self.dropped = Counter(domain, "interrupt messages with a vector the controller does not have")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync = m.d[self.domain]

        requests, kept, following = Signal(VECTORS), Signal(VECTORS), Signal(VECTORS)
        arriving, known = Signal(), Signal()
        incoming = data.View(_Vector, self.message.payload.vector)
        shown = data.View(_Vector, self.vector)
        m.d.comb += [
            self.message.ready.eq(1),
            arriving.eq(self.message.valid),
            known.eq(incoming.window == FIRST_VECTOR // VECTORS),
        ]
        with m.If(arriving | self.acknowledge):
            # Requests
            raised = Mux(arriving & known, (Const(1) << incoming.index), 0)
            lowered = Mux(self.acknowledge, (Const(1) << shown.index), 0)
            m.d.comb += [kept.eq(requests & ~lowered), following.eq(kept | raised)]
            sync += [requests.eq(following), self.pending.eq(following.any())]
            # Priority
            for index in range(VECTORS):
                with m.If(following[index]):
                    sync += self.vector.eq(FIRST_VECTOR + index)

        self.requested.emit(m, arriving & known, vector=self.message.payload.vector)
        self.messages.increment(m, arriving)
        self.merged.increment(m, arriving & known & kept.bit_select(incoming.index, 1))
        self.dropped.increment(m, arriving & ~known)
        m.d.comb += self.quiet.eq(~(arriving | self.acknowledge))
        return m
