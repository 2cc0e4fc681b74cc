"""Loads that wait for the result of another load."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.core import OP_ID_WIDTH
from hw.bus.tilelink import LINE_BITS
from hw.lib.ram import RAM

from .byte_lanes import VirtualAddress

__all__ = ["ReservationStation", "WaitingLoad"]


class WaitingLoad(data.Struct):
    """A load that has issued and may not read memory yet."""

    id: OP_ID_WIDTH
    address: VirtualAddress
    size: 7
    forwarded: 1  #: its bytes come from the store buffer and are kept here; it does not read memory


class ReservationStation(wiring.Component):
    """Keeps loads until the load each waits for completes; then offers them, the oldest first.

    A load whose predecessor completes at edge t is offered at t already, as the bypass network of a core does: a chain
    of dependent loads takes the cache's latency per load. (A forwarded one that came at t - 1 is offered at t + 1.)
    What is offered stays offered until it is taken, even when an older load gets ready.

    Arguments:
        depth: loads.
        domain: clock domain.

    Raises:
        ValueError: when ``depth`` is not positive.

    Attributes:
        push: ``In(1)``, take ``entry`` at this edge; only when not ``full``.
        entry: ``In(WaitingLoad)``.
        after: ``In(8)``, the load in flight it waits for, which does not complete at this edge.
        push_line: ``In(512)``, one cycle after ``push`` of a forwarded load: the line it takes its bytes from.
        full: ``Out(1)``, no room.
        complete: ``In(1)``, load ``complete_id`` completes at this edge.
        complete_id: ``In(8)``.
        valid: ``Out(1)``, a load is ready, ``load``: ``Out(WaitingLoad)``.
        take: ``In(1)``, it leaves at this edge.
        take_line: ``Out(512)``, one cycle after ``take`` of a forwarded load: its line.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, depth: int, domain: str):
        if depth < 1:
            raise ValueError(f"a reservation station holds at least 1 load, not {depth}")
        self.depth, self.domain = depth, domain
        super().__init__(
            {
                "push": In(1),
                "entry": In(WaitingLoad),
                "after": In(OP_ID_WIDTH),
                "push_line": In(LINE_BITS),
                "full": Out(1),
                "complete": In(1),
                "complete_id": In(OP_ID_WIDTH),
                "valid": Out(1),
                "load": Out(WaitingLoad),
                "take": In(1),
                "take_line": Out(LINE_BITS),
                "quiet": Out(1),
            }
        )
        self.lines = RAM(width=LINE_BITS, depth=depth, domain=domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync, slots = m.d[self.domain], range(self.depth)

        # A load takes the first free slot; ``older`` says, by slot, which slots held loads when it came
        used = Signal(self.depth)
        free, slot = Signal(self.depth), Signal(range(self.depth))
        older = [Signal(self.depth, name=f"older{index}") for index in slots]
        after = [Signal(OP_ID_WIDTH, name=f"after{index}") for index in slots]
        m.d.comb += self.full.eq(used.all())
        with m.If(self.push):
            m.d.comb += free.eq(~used & (used + 1))
            for index in slots:
                with m.If(free[index]):
                    sync += [older[index].eq(used), after[index].eq(self.after)]
                with m.Else():
                    sync += older[index].eq(older[index] & ~free)

        # Wake up. What comparisons and choices give while nobody asks does not matter; a constant there would make a
        # compiled model compute them always and mask the result.
        waiting, woken, ready = Signal(self.depth), Signal(self.depth), Signal(self.depth)
        settling, matching = Signal(self.depth), Signal(self.depth)
        wakes = Signal()
        m.d.comb += wakes.eq(self.complete & waiting.any())
        with m.If(wakes):
            m.d.comb += matching.eq(Cat(each == self.complete_id for each in after))
        with m.Else():
            m.d.comb += matching.eq(waiting)
        m.d.comb += [
            woken.eq(Mux(wakes, matching & waiting, 0)),
            ready.eq(((used & ~waiting) | woken) & ~settling),
            self.valid.eq(ready.any()),
        ]

        # Offer the oldest, unless another has been offered
        offered, offered_slot = Signal(), Signal(range(self.depth))
        chosen = Signal(range(self.depth))
        with m.If(self.valid & ~offered):
            m.d.comb += chosen.eq(_index(Cat(ready[i] & ~(older[i] & ready).any() for i in slots)))
        with m.Else():
            m.d.comb += chosen.eq(offered_slot)
        sync += offered.eq(self.valid & ~self.take)
        with m.If(self.valid & ~offered):
            sync += offered_slot.eq(chosen)

        # What is kept of each
        m.submodules.rows = rows = Memory(shape=WaitingLoad, depth=self.depth, init=[])
        write, read = rows.write_port(domain=self.domain), rows.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(self.push),
            write.addr.eq(slot),
            write.data.eq(self.entry),
            read.addr.eq(chosen),
            self.load.eq(read.data),
        ]
        m.submodules.lines = self.lines
        settling_slot = Signal(range(self.depth))
        with m.If(self.push):
            m.d.comb += slot.eq(_index(free))
            sync += settling_slot.eq(slot)
        with m.Else():
            m.d.comb += slot.eq(settling_slot)
        with m.If(self.push | settling.any()):
            sync += settling.eq(Mux(self.push & self.entry.forwarded, free, 0))
        m.d.comb += [
            self.lines.write_enable.eq(settling.any()),
            self.lines.write_address.eq(settling_slot),
            self.lines.write_data.eq(self.push_line),
            self.lines.read_enable.eq(self.take & self.load.forwarded),
            self.lines.read_address.eq(chosen),
            self.take_line.eq(self.lines.read_data),
        ]

        # Come and go
        taken = Signal(self.depth)
        with m.If(self.take):
            m.d.comb += taken.eq(1 << chosen)
        with m.If(self.push | self.take):
            sync += used.eq((used | free) & ~taken)
        with m.If(self.push | woken.any()):
            sync += waiting.eq((waiting & ~woken) | free)
        noted = offered == (self.valid & ~self.take)
        m.d.comb += self.quiet.eq(noted & ~(self.push | self.take | woken.any() | settling.any()))
        return m


def _index(one_hot):
    """Number of the bit that is set."""
    positions = range(len(one_hot))
    bits = [Cat(one_hot[i] for i in positions if i >> bit & 1).any() for bit in range(ceil_log2(len(one_hot)))]
    return Cat(bits)
