"""The store buffer: stores that are not yet visible, in program order."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.l1 import L1Store
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES

__all__ = ["StoreBuffer"]


class StoreBuffer(wiring.Component):
    """A ring of ``depth`` stores: pushed, released, sent to the L1 cache, and freed once visible.

    Stores are sent in the order of ``push``, at most one per cycle, each after a ``release`` of its own; a store
    pushed at edge t and released at t + 1 is offered at t + 2. Until ``store_done`` says that it is visible, a load
    of the same bytes must take them from here (``search``, ``read``).

    Arguments:
        depth: stores held.
        domain: clock domain.

    Raises:
        ValueError: when ``depth`` is not positive.

    Attributes:
        push: ``In(1)``, take ``entry`` at this edge; only when not ``full``.
        entry: ``In(L1Store)``, data in the byte lanes of the line.
        full: ``Out(1)``, no room.
        empty: ``Out(1)``, every store pushed is visible.
        release: ``In(1)``, the oldest store not yet released may be sent.
        search: ``In(1)``, look for ``search_mask`` of line ``search_line``.
        overlap: ``Out(1)``, while searching: some store held writes some of these bytes.
        covered: ``Out(1)``, while searching: the youngest of those writes all of them.
        read: ``In(1)``, only when ``covered``: fetch that store's bytes.
        read_data: ``Out(512)``, after the edge of ``read``: the bytes, in their lanes; the other lanes hold anything.
        store: ``Out(stream)``, to the cache.
        store_done: ``In(1)``, the oldest store sent is visible after this edge.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, depth: int, domain: str):
        if depth < 1:
            raise ValueError(f"a store buffer holds at least 1 store, not {depth}")
        self.depth, self.domain = depth, domain
        super().__init__(
            {
                "push": In(1),
                "entry": In(L1Store),
                "full": Out(1),
                "empty": Out(1),
                "release": In(1),
                "search": In(1),
                "search_line": In(LINE_ADDRESS_WIDTH),
                "search_mask": In(LINE_BYTES),
                "overlap": Out(1),
                "covered": Out(1),
                "read": In(1),
                "read_data": Out(LINE_BITS),
                "store": Out(stream.Signature(L1Store)),
                "store_done": In(1),
                "quiet": Out(1),
            }
        )
        # Stores that write some of the bytes searched for, and the youngest of them
        self._hits = Signal(depth)
        self._youngest = Signal(depth)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        sync = m.d[self.domain]

        # A ring that goes down: from head to send sent, from send to tail not yet; ``released`` of these may be sent
        head = Signal(range(self.depth))
        send = Signal(range(self.depth))
        tail = Signal(range(self.depth))
        count = Signal(range(self.depth + 1))
        released = Signal(range(self.depth + 1))
        sending = Signal()
        m.d.comb += [self.full.eq(count == self.depth), self.empty.eq(count == 0)]
        with m.If(self.push):
            sync += tail.eq(self._after(tail))
        with m.If(sending):
            sync += send.eq(self._after(send))
        with m.If(self.store_done):
            sync += head.eq(self._after(head))
        with m.If(self.push != self.store_done):
            sync += count.eq(Mux(self.push, count + 1, count - 1))
        with m.If(self.release != sending):
            sync += released.eq(Mux(self.release, released + 1, released - 1))

        # Whole entries, in a memory: one port for sending, one for forwarding
        m.submodules.rows = rows = Memory(shape=L1Store, depth=self.depth, init=[])
        write = rows.write_port(domain=self.domain)
        send_port = rows.read_port(domain=self.domain)
        forward_port = rows.read_port(domain=self.domain)
        m.d.comb += [write.en.eq(self.push), write.addr.eq(tail), write.data.eq(self.entry)]

        # Send
        m.d.comb += [
            sending.eq(((released != 0) | self.release) & (~self.store.valid | self.store.ready)),
            send_port.en.eq(sending),
            send_port.addr.eq(send),
            self.store.payload.eq(send_port.data),
        ]
        with m.If(sending):
            sync += self.store.valid.eq(1)
        with m.Elif(self.store.ready):
            sync += self.store.valid.eq(0)

        # Search. Lines and masks again, in memories with a read port for each row
        valid = Signal(self.depth)
        pushed, freed = Signal(self.depth), Signal(self.depth)
        m.d.comb += [pushed.eq(self.push << tail), freed.eq(self.store_done << head)]
        sync += valid.eq(valid ^ pushed ^ freed)
        lines = self._rows(m, "lines", LINE_ADDRESS_WIDTH, tail, self.entry.line)
        masks = self._rows(m, "masks", LINE_BYTES, tail, self.entry.mask)
        # Each step is wanted only when the one before found something. What it holds otherwise does not matter;
        # a constant there would make a compiled model compute the step always and mask the result.
        same_line, covers = Signal(self.depth), Signal(self.depth)
        hits, youngest = self._hits, self._youngest
        near = Signal()
        with m.If(self.search):
            m.d.comb += same_line.eq(valid & Cat(line == self.search_line for line in lines))
        with m.Else():
            m.d.comb += same_line.eq(valid)
        m.d.comb += near.eq(self.search & same_line.any())
        with m.If(near):
            m.d.comb += hits.eq(same_line & Cat((mask & self.search_mask).any() for mask in masks))
        with m.Else():
            m.d.comb += hits.eq(valid)
        m.d.comb += self.overlap.eq(near & hits.any())
        with m.If(self.overlap):
            # The ring goes down: entries above the tail are younger than the others; among either, the lower is.
            recent = hits & ~(Const((1 << self.depth) - 1) >> (self.depth - 1 - tail)[: len(tail)])
            candidates = Mux(recent.any(), recent, hits)
            m.d.comb += [
                youngest.eq(candidates & -candidates),
                covers.eq(Cat(~(~mask & self.search_mask).any() for mask in masks)),
            ]
        with m.Else():
            m.d.comb += [youngest.eq(valid), covers.eq(valid)]
        m.d.comb += [
            self.covered.eq(self.overlap & (covers & youngest).any()),
            forward_port.en.eq(self.read),
            self.read_data.eq(forward_port.data.data),
        ]
        with m.If(self.read):
            for index in range(self.depth):
                with m.If(youngest[index]):
                    m.d.comb += forward_port.addr.eq(index)
        with m.Else():
            m.d.comb += forward_port.addr.eq(tail)

        # Quiet
        changing = Cat(self.push, self.release, self.store_done, sending, self.store.valid & self.store.ready)
        m.d.comb += self.quiet.eq(~changing.any() & ~self.read)
        return m

    def _rows(self, m, name, shape, address, value):
        """A memory of one value per entry, written by ``push``; returns all its rows."""
        m.submodules[name] = memory = Memory(shape=shape, depth=self.depth, init=[])
        write = memory.write_port(domain=self.domain)
        m.d.comb += [write.en.eq(self.push), write.addr.eq(address), write.data.eq(value)]
        ports = [memory.read_port(domain="comb") for _ in range(self.depth)]
        m.d.comb += [port.addr.eq(index) for index, port in enumerate(ports)]
        return [port.data for port in ports]

    def _after(self, pointer):
        return Mux(pointer == 0, self.depth - 1, pointer - 1)
