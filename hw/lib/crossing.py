"""A stream from one clock domain to another."""

from amaranth.hdl import Cat, Module, ShapeLike, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["Crossing"]


class Crossing(wiring.Component):
    """An asynchronous FIFO: any ratio and phase of the two clocks, coincident edges included.

    Each side shows its pointer in Gray code, from a register; the other side passes it through ``stages``
    flip-flops. At coincident edges the old value is sampled. There is no reset: a FIFO whose sides are reset
    one by one loses its place, so it starts empty from its initial values and whoever resets something beside
    it drains it.

    Latency: an item accepted at some edge of ``write_domain`` is on ``output`` (``valid`` high, ``payload``
    from a register of ``read_domain``) after the ``stages``-th later edge of ``read_domain``, so it can be
    taken at edge ``stages + 1``; an edge that coincides with the accepting one does not count. A place freed
    at an edge of ``read_domain`` can be used again from edge ``stages + 1`` of ``write_domain`` after it, by
    the same count.

    Throughput: with equal clocks an item occupies its place for ``2 * (stages + 1)`` cycles, so one item per
    cycle needs a depth of at least that (8 for two stages); ``depth=4`` with two stages carries 2 items in 3
    cycles. Between a slow side and one at least three times as fast, four places keep the slow side busy in
    every cycle.

    Arguments:
        shape: of the payload.
        write_domain: domain of ``input``.
        read_domain: domain of ``output``.
        depth: items it holds, a power of two of at least 2.
        stages: synchroniser flip-flops in each direction, at least 2.

    Attributes:
        write_quiet: the next edge of ``write_domain`` changes nothing here unless an item is accepted at it:
            every synchroniser flip-flop already holds the read side's pointer.
        read_quiet: the next edge of ``read_domain`` changes nothing here unless an item is taken at it.

    Raises:
        ValueError: when ``depth`` or ``stages`` is out of range.
    """

    def __init__(self, shape: ShapeLike, write_domain: str, read_domain: str, *, depth: int = 4, stages: int = 2):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth of a crossing must be a power of two of at least 2, not {depth}")
        if stages < 2:
            raise ValueError(f"a crossing needs at least 2 synchroniser stages, not {stages}")
        self.write_domain, self.read_domain = write_domain, read_domain
        self.depth, self.stages = depth, stages
        super().__init__(
            {
                "input": In(stream.Signature(shape)),
                "output": Out(stream.Signature(shape)),
                "write_quiet": Out(1),
                "read_quiet": Out(1),
            }
        )
        # Pointers have one bit more than an address: equal when empty, ``depth`` apart when full.
        self._address_width = ceil_log2(depth)
        width = self._address_width + 1
        self._storage: Memory = Memory(shape=shape, depth=depth, init=[])
        #: Write side: places filled so far, the same in Gray code, and what it has seen of the read side's.
        self._produced = Signal(width)
        self._produced_gray = Signal(width)
        self._consumed_seen = [Signal(width, name=f"consumed_seen{stage}") for stage in range(stages)]
        #: Read side, likewise.
        self._consumed = Signal(width)
        self._consumed_gray = Signal(width)
        self._produced_seen = [Signal(width, name=f"produced_seen{stage}") for stage in range(stages)]

    def elaborate(self, platform):
        """Elaborate: storage, then the write side, then the read side."""
        m = Module()
        m.submodules.storage = self._storage
        self._elaborate_write_side(m, m.d[self.write_domain])
        self._elaborate_read_side(m, m.d[self.read_domain])
        return m

    def _elaborate_write_side(self, m: Module, d) -> None:
        port = self._storage.write_port(domain=self.write_domain)
        produced_next = Signal.like(self._produced)
        m.d.comb += [
            self.input.ready.eq(~_full(self._produced_gray, self._consumed_seen[-1])),
            produced_next.eq(self._produced + 1),
            port.addr.eq(self._produced[: self._address_width]),
            port.data.eq(self.input.payload),
            port.en.eq(self.input.valid & self.input.ready),
            self.write_quiet.eq(_settled(self._consumed_seen, self._consumed_gray)),
        ]
        with m.If(self.input.valid & self.input.ready):
            d += [self._produced.eq(produced_next), self._produced_gray.eq(_gray(produced_next))]
        d += _synchronise(self._consumed_seen, self._consumed_gray)

    def _elaborate_read_side(self, m: Module, d) -> None:
        port = self._storage.read_port(domain=self.read_domain)
        take = Signal()
        consumed_next = Signal.like(self._consumed)
        produced_seen_next = self._produced_seen[-2]
        m.d.comb += [
            self.output.valid.eq(self._consumed_gray != self._produced_seen[-1]),
            self.output.payload.eq(port.data),
            take.eq(self.output.valid & self.output.ready),
            consumed_next.eq(self._consumed + take),
            # Fetch exactly what will be on the output after this edge. Its place was filled before the
            # pointer that tells of it entered the first flip-flop, so it does not change under the read. A
            # register here keeps everything behind ``payload`` out of the write clock's evaluation.
            port.addr.eq(consumed_next[: self._address_width]),
            port.en.eq((take | ~self.output.valid) & (_gray(consumed_next) != produced_seen_next)),
            self.read_quiet.eq(_settled(self._produced_seen, self._produced_gray)),
        ]
        with m.If(take):
            d += [self._consumed.eq(consumed_next), self._consumed_gray.eq(_gray(consumed_next))]
        d += _synchronise(self._produced_seen, self._produced_gray)


def _gray(binary: Value) -> Value:
    """Gray code: neighbours differ in one bit."""
    return binary ^ (binary >> 1)


def _full(produced_gray: Signal, consumed_gray: Signal) -> Value:
    """``depth`` apart in Gray code: the two upper bits differ, the others agree."""
    return produced_gray == Cat(consumed_gray[:-2], ~consumed_gray[-2:])


def _synchronise(flops: list[Signal], source: Signal) -> list:
    return [flop.eq(previous) for flop, previous in zip(flops, [source, *flops], strict=False)]


def _settled(flops: list[Signal], source: Signal) -> Value:
    return Cat(flop == source for flop in flops).all()
