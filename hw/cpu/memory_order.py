"""Program order among a core's loads and stores, and which loads are still in flight."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.core import OP_ID_WIDTH

from .reorder_window import POSITION_WIDTH

__all__ = ["MemoryOrder"]


class _Entry(data.Struct):
    store: 1
    id: OP_ID_WIDTH
    position: POSITION_WIDTH


class MemoryOrder(wiring.Component):
    """Counts and names the loads in flight, and releases each store when every earlier load is complete.

    Total store order lets a store become visible only after every load before it has its value. So loads and stores
    wait in a ring, in program order. Its head leaves, one per cycle, when it is a load that is complete, or a store,
    which is thereby released: they retire. Where the head is in the reorder window tells how much of that is used.

    Whether the load with a given id is in flight is the exclusive or of two bits per id, one flipped when it
    issues, the other when it completes: two small memories instead of comparisons with every load in flight.

    Arguments:
        loads: loads in flight at once.
        stores: stores that may wait for their release, the depth of the store buffer.
        domain: clock domain.

    Raises:
        ValueError: when ``loads`` is not 1 to 255 or ``stores`` is not positive.

    Attributes:
        load: ``In(1)``, load ``id`` issues at this edge; only when not ``loads_full`` or ``full``. No other
            load in flight has that id.
        store: ``In(1)``, a store issues at this edge; only when not ``full``. Never together with ``load``.
        id: ``In(8)``, the load about to issue.
        position: ``In(18)``, where in the reorder window it issues.
        after: ``In(8)``, an operation to wait for.
        after_pending: ``Out(1)``, it is in flight.
        complete: ``In(1)``, load ``complete_id`` completes at this edge.
        complete_id: ``In(8)``.
        loads_full: ``Out(1)``, no more loads.
        full: ``Out(1)``, the ring is full: neither loads nor stores.
        idle: ``Out(1)``, no load is in flight.
        oldest: ``Out(18)``, unless ``idle``: the position of the oldest that has not left.
        release: ``Out(1)``, at this edge the oldest store not yet released may be sent.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, loads: int, stores: int, domain: str):
        if not 1 <= loads <= 255:
            raise ValueError(f"loads in flight must be between 1 and 255 (ids are 8 bits wide), not {loads}")
        if stores < 1:
            raise ValueError(f"at least 1 store must be able to wait, not {stores}")
        self.loads, self.domain = loads, domain
        #: Loads and stores in the ring.
        self.depth = 1 << ceil_log2(loads + stores)
        super().__init__(
            {
                "load": In(1),
                "store": In(1),
                "id": In(OP_ID_WIDTH),
                "position": In(POSITION_WIDTH),
                "after": In(OP_ID_WIDTH),
                "after_pending": Out(1),
                "complete": In(1),
                "complete_id": In(OP_ID_WIDTH),
                "loads_full": Out(1),
                "full": Out(1),
                "idle": Out(1),
                "oldest": Out(POSITION_WIDTH),
                "release": Out(1),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync = m.d[self.domain]

        # Loads in flight: how many
        in_flight = Signal(range(self.loads + 1))
        m.d.comb += [self.loads_full.eq(in_flight == self.loads), self.idle.eq(in_flight == 0)]
        with m.If(self.load != self.complete):
            sync += in_flight.eq(Mux(self.load, in_flight + 1, in_flight - 1))

        # Loads in flight: which. The memories have a read port for each question asked of them
        m.submodules.issued = issued = Memory(shape=1, depth=1 << OP_ID_WIDTH, init=[])
        m.submodules.completed = completed = Memory(shape=1, depth=1 << OP_ID_WIDTH, init=[])
        issue, finish = issued.write_port(domain=self.domain), completed.write_port(domain=self.domain)

        def bit(memory, operation):
            port = memory.read_port(domain="comb")
            m.d.comb += port.addr.eq(operation)
            return port.data

        head_id = Signal(OP_ID_WIDTH)
        head_pending = bit(issued, head_id) != bit(completed, head_id)
        m.d.comb += [
            self.after_pending.eq(bit(issued, self.after) != bit(completed, self.after)),
            issue.en.eq(self.load),
            issue.addr.eq(self.id),
            issue.data.eq(~bit(completed, self.id)),
            finish.en.eq(self.complete),
            finish.addr.eq(self.complete_id),
            finish.data.eq(bit(issued, self.complete_id)),
        ]

        # The ring
        m.submodules.entries = entries = Memory(shape=_Entry, depth=self.depth, init=[])
        enter, oldest = entries.write_port(domain=self.domain), entries.read_port(domain="comb")
        head, tail = Signal(range(self.depth)), Signal(range(self.depth))
        level = Signal(range(self.depth + 1))
        leaving = Signal()
        m.d.comb += [
            self.full.eq(level == self.depth),
            enter.en.eq(self.load | self.store),
            enter.addr.eq(tail),
            enter.data.store.eq(self.store),
            enter.data.id.eq(self.id),
            enter.data.position.eq(self.position),
            oldest.addr.eq(head),
            head_id.eq(oldest.data.id),
            self.oldest.eq(oldest.data.position),
        ]
        with m.If(level != 0):
            m.d.comb += [
                leaving.eq(oldest.data.store | ~head_pending),
                self.release.eq(oldest.data.store),
            ]
        with m.If(enter.en):
            sync += tail.eq(tail + 1)
        with m.If(leaving):
            sync += head.eq(head + 1)
        with m.If(enter.en != leaving):
            sync += level.eq(Mux(leaving, level - 1, level + 1))

        m.d.comb += self.quiet.eq(~(leaving | self.load | self.store | self.complete))
        return m
