"""Loads that missed and wait for their lines."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.l1 import L1Load

from .encode import first_set

__all__ = ["WaitingLoads"]


class WaitingLoads(wiring.Component):
    """The miss queue: ``depth`` loads, as many as the core can have in flight, so that it never overflows.

    A load that missed keeps a slot from its first miss until it hits. It waits for the MSHR of its line, whose
    refill wakes it, or, when there was no MSHR for it, for one to be free (``may_retry``). ``load``, ``replay``,
    ``replay_slot``, ``miss``, ``stranded`` and ``hit`` speak of the load in stage 1 of the pipeline, ``next`` of
    the one that could enter stage 0. Loads without an MSHR retry in rounds: each once before any again.

    Arguments:
        depth: slots.
        domain: clock domain.
    """

    def __init__(self, *, depth: int, domain: str):
        self.depth, self.domain = depth, domain
        super().__init__(
            {
                "load": In(L1Load),
                "replay": In(1),  #: it is a replay of the load in ``replay_slot``
                "replay_slot": In(range(depth)),
                "slot": Out(range(depth)),  #: its slot, if it has to wait
                "miss": In(1),  #: it has to wait
                "stranded": In(1),  #: with ``miss``: no MSHR will wake it
                "hit": In(1),  #: it is done
                "wake": In(1),  #: a line has arrived: replay the loads in ``waiters``
                "waiters": In(depth),
                "may_retry": In(1),  #: an MSHR is free for a stranded load
                "any_stranded": Out(1),  #: some load waits for an MSHR
                "woken": Out(1),  #: ``next`` is there because its line has arrived
                "retry": Out(1),  #: else: ``next`` is there because an MSHR is free
                "next": Out(L1Load),
                "next_slot": Out(range(depth)),
                "take": In(1),  #: ``next`` enters the pipeline
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        used = Signal(self.depth)
        woken = Signal(self.depth)
        stranded = Signal(self.depth)
        served = Signal(self.depth)
        m.submodules.loads = loads = Memory(shape=L1Load, depth=self.depth, init=[])
        write = loads.write_port(domain=self.domain)
        read = loads.read_port(domain="comb")

        # The load in stage 1
        slot = Signal(self.depth)
        m.d.comb += [
            self.slot.eq(Mux(self.replay, self.replay_slot, first_set(m, ~used, "free_slot"))),
            slot.eq(1 << self.slot),
            write.addr.eq(self.slot),
            write.data.eq(self.load),
            write.en.eq(self.miss & ~self.replay),
        ]
        with m.If(self.miss):
            m.d[self.domain] += used.eq(used | slot)
        with m.Elif(self.hit & self.replay):
            m.d[self.domain] += used.eq(used & ~slot)

        # The load for stage 0
        taken = Signal(self.depth)
        unserved = Signal(self.depth)
        candidates = Signal(self.depth)
        m.d.comb += [
            self.woken.eq(woken.any()),
            self.any_stranded.eq(stranded.any()),
            self.retry.eq(self.any_stranded & self.may_retry & ~self.woken),
            unserved.eq(stranded & ~served),
            candidates.eq(Mux(self.woken, woken, Mux(unserved.any(), unserved, stranded))),
            self.next_slot.eq(first_set(m, candidates, "next_index")),
            read.addr.eq(self.next_slot),
            self.next.eq(read.data),
        ]
        with m.If(self.take):
            m.d.comb += taken.eq(1 << self.next_slot)
        with m.If(self.wake):
            m.d[self.domain] += woken.eq(self.waiters)
        with m.Elif(self.take):
            m.d[self.domain] += woken.eq(woken & ~taken)
        with m.If(self.stranded & self.replay):
            m.d[self.domain] += served.eq(served & ~slot)  # in vain: still its turn
        with m.Elif(self.take & ~self.woken):
            m.d[self.domain] += served.eq(Mux(unserved.any(), served, 0) | taken)
        with m.If(self.take | self.stranded):
            m.d[self.domain] += stranded.eq((stranded & ~taken) | Mux(self.stranded, slot, 0))
        return m
