"""Write-combining buffers: non-temporal stores and cache-line flushes on their way around the caches."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.memory import NonCachedPort, NonCachedWrite
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES
from hw.lib.ram import RAM

from .reorder_window import POSITION_WIDTH

__all__ = ["WriteCombining"]


class WriteCombining(wiring.Component):
    """``depth`` lines, each open (stores of its line are added to it), closed (on its way), then free once visible.

    A line is closed when it is full, when ``flush`` says so, when an operation wants the line itself, or when it is
    the next to be reused and another line wants a place; they are reused in turn. A store to a line that is closed
    waits until it is visible. A flush of a line (CLFLUSH) takes a place, closed from the start.

    A closed line leaves when every load before its last store is complete (the store has retired).

    A line closed at edge t is offered at t + 2 at the earliest. The done tokens come in the order of the writes.

    Arguments:
        depth: lines.
        domain: clock domain.

    Raises:
        ValueError: when ``depth`` is not positive.

    Attributes:
        search: ``In(1)``, look for line ``search_line``: with every ``request`` and ``expel``, unless ``empty``.
        search_line: ``In``, the line of the operation.
        conflict: ``Out(1)``, while searching: the line is here.
        expel: ``In(1)``, the operation cannot issue while the line is here: close it.
        request: ``In(1)``, ``write`` wants to enter; it may be given up.
        write: ``In(NonCachedWrite)``, data in the byte lanes; an empty mask is a flush.
        accept: ``Out(1)``, it enters at this edge.
        position: ``In(18)``, of the operation in the reorder window.
        occupied: ``In(1)``, a load is in flight.
        oldest: ``In(18)``, its position.
        flush: ``In(1)``, close every line.
        empty: ``Out(1)``, everything is visible.
        port: ``Out(NonCachedPort())``.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, depth: int, domain: str):
        if depth < 1:
            raise ValueError(f"write combining needs at least 1 line, not {depth}")
        self.depth, self.domain = depth, domain
        super().__init__(
            {
                "search": In(1),
                "search_line": In(LINE_ADDRESS_WIDTH),
                "conflict": Out(1),
                "expel": In(1),
                "request": In(1),
                "write": In(NonCachedWrite),
                "accept": Out(1),
                "position": In(POSITION_WIDTH),
                "occupied": In(1),
                "oldest": In(POSITION_WIDTH),
                "flush": In(1),
                "empty": Out(1),
                "port": Out(NonCachedPort()),
                "quiet": Out(1),
            }
        )
        self.rows = RAM(width=LINE_BITS, depth=depth, lanes=LINE_BYTES, domain=domain)
        self._used, self._open = Signal(depth), Signal(depth)
        # A load before the last store was in flight when that entered
        self._speculative = Signal(depth)
        self._next = Signal(range(depth))
        self._line = [Signal(LINE_ADDRESS_WIDTH, name=f"line{slot}") for slot in range(depth)]
        self._masks = Memory(shape=LINE_BYTES, depth=depth, init=[])

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync = m.d[self.domain]
        entering, closing = self._enter(m)
        retiring = self._retire(m, entering)
        freed, moving = self._send(m)

        with m.If((entering | freed).any()):
            sync += self._used.eq((self._used | entering) & ~freed)
        with m.If((entering | closing).any()):
            sync += self._open.eq((self._open | entering) & ~closing)
        m.d.comb += [
            self.empty.eq(~self._used.any()),
            self.quiet.eq(~(self.accept | ((closing & self._open) | retiring).any() | moving)),
        ]
        return m

    def _enter(self, m):
        """Returns, by slot, which a write enters and which are closed."""
        sync, write, slots = m.d[self.domain], self.write, range(self.depth)
        # What comparisons give while nobody searches does not matter; a constant there would make a compiled model
        # compute them always and mask the result.
        same = Signal(self.depth)
        with m.If(self.search):
            m.d.comb += same.eq(self._used & Cat(line == self.search_line for line in self._line))
        with m.Else():
            m.d.comb += same.eq(self._used)
        m.d.comb += self.conflict.eq(self.search & same.any())

        next_slot, target = Signal(self.depth), Signal(self.depth)
        entering, closing = Signal(self.depth), Signal(self.depth)
        combine, flushes = Signal(), Signal()
        slot = Signal(range(self.depth))
        mask = Signal(LINE_BYTES)
        m.submodules.masks = self._masks
        old_mask, new_mask = self._masks.read_port(domain="comb"), self._masks.write_port(domain=self.domain)
        with m.If(self.request):
            m.d.comb += [
                next_slot.eq(1 << self._next),
                flushes.eq(~write.mask.any()),
                combine.eq((same & self._open).any() & ~flushes),
                target.eq(Mux(combine, same, next_slot)),
                self.accept.eq(combine | ~(same.any() | (self._used & next_slot).any())),
            ]
        with m.If(self.accept):
            m.d.comb += entering.eq(target)
            with m.If(~combine):
                sync += self._next.eq(Mux(self._next == self.depth - 1, 0, self._next + 1))
            for index in slots:
                with m.If(target[index]):
                    sync += self._line[index].eq(write.line)
            m.d.comb += closing.eq(Mux(mask.all() | flushes, target, 0))
        with m.Elif(self.request):
            # In the way: what it has of this line, else what it must make room for
            m.d.comb += closing.eq(Mux(same.any(), same, next_slot))
        with m.Elif(self.expel):
            m.d.comb += closing.eq(same)
        with m.Elif(self.flush):
            m.d.comb += closing.eq(self._used)

        m.submodules.rows = self.rows
        with m.If(self.accept):
            m.d.comb += self.rows.write_enable.eq(write.mask)
        with m.If(combine):
            for index in slots:
                with m.If(same[index]):
                    m.d.comb += slot.eq(index)
        with m.Else():
            m.d.comb += slot.eq(self._next)
        m.d.comb += [
            self.rows.write_address.eq(slot),
            self.rows.write_data.eq(write.data),
            old_mask.addr.eq(slot),
            mask.eq(Mux(combine, old_mask.data, 0) | write.mask),
            new_mask.en.eq(self.accept),
            new_mask.addr.eq(slot),
            new_mask.data.eq(mask),
        ]
        return entering, closing

    def _retire(self, m, entering):
        """Returns, by slot, where the last load that the last store waits for has gone."""
        retiring = Signal(self.depth)
        positions = [Signal(POSITION_WIDTH, name=f"position{slot}") for slot in range(self.depth)]
        for slot, position in enumerate(positions):
            with m.If(entering[slot]):
                m.d[self.domain] += position.eq(self.position)
        younger = Signal(self.depth)
        with m.If(self._speculative.any()):
            # Modulo their width; the oldest load is never half of that away
            m.d.comb += younger.eq(Cat(~(self.oldest - position)[POSITION_WIDTH - 1] for position in positions))
        with m.Else():
            m.d.comb += younger.eq(self._used)
        m.d.comb += retiring.eq(self._speculative & Mux(self.occupied, younger, self._used))
        with m.If((entering | retiring).any()):
            new = Mux(self.occupied, entering, 0)
            m.d[self.domain] += self._speculative.eq((self._speculative & ~retiring) | new)
        return retiring

    def _send(self, m):
        """Offer closed lines one after the other; returns the slot freed, and whether anything happens."""
        sync, port = m.d[self.domain], self.port
        sent, chosen, freed = Signal(self.depth), Signal(self.depth), Signal(self.depth)
        unsent = Signal(self.depth)
        sending = Signal()
        slot = Signal(range(self.depth))
        sent_mask = self._masks.read_port(domain="comb")
        m.d.comb += [
            sent_mask.addr.eq(slot),
            unsent.eq(self._used & ~(self._open | self._speculative | sent)),
            sending.eq(unsent.any() & (~port.write.valid | port.write.ready)),
            self.rows.read_enable.eq(sending),
            self.rows.read_address.eq(slot),
            port.write.payload.data.eq(self.rows.read_data),
        ]
        with m.If(sending):
            m.d.comb += chosen.eq(unsent & -unsent)
            sync += [port.write.valid.eq(1), port.write.payload.mask.eq(sent_mask.data)]
            for index in range(self.depth):
                with m.If(chosen[index]):
                    m.d.comb += slot.eq(index)
                    sync += port.write.payload.line.eq(self._line[index])
        with m.Elif(port.write.ready):
            sync += port.write.valid.eq(0)

        # Sent, in order
        m.submodules.order = order = Memory(shape=range(self.depth), depth=1 << ceil_log2(self.depth), init=[])
        enter, oldest = order.write_port(domain=self.domain), order.read_port(domain="comb")
        head, tail = Signal(ceil_log2(self.depth)), Signal(ceil_log2(self.depth))
        m.d.comb += [
            enter.en.eq(sending),
            enter.addr.eq(tail),
            enter.data.eq(slot),
            oldest.addr.eq(head),
            port.done.ready.eq(1),
        ]
        with m.If(sending):
            sync += tail.eq(tail + 1)
        with m.If(port.done.valid):
            m.d.comb += freed.eq(1 << oldest.data)
            sync += head.eq(head + 1)
        with m.If(sending | port.done.valid):
            sync += sent.eq((sent | chosen) & ~freed)
        return freed, sending | port.done.valid | (port.write.valid & port.write.ready)
