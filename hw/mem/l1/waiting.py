"""Loads that missed and wait for their lines."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.l1 import L1Load

__all__ = ["WaitingLoads"]


class WaitingLoads(wiring.Component):
    """The miss queue: ``depth`` loads, as many as can be in flight, so that it never overflows.

    A load that missed keeps a slot from its first miss until it is done. It waits in the list of the MSHR of its line
    or, when there was no MSHR for it, is *stranded*: it waits in one list with its like for an MSHR to be free
    (``may_retry``). When a line has arrived (``wake``), the list of its MSHR becomes that of the *woken*; only
    once that is empty may another line arrive. Every list is first in, first out; a stranded load that retried in vain
    is the first again.

    ``load``, ``replay``, ``replay_slot``, ``attach``, ``strand`` and ``done`` speak of the load in stage 1 of the
    pipeline, ``mshr`` of its MSHR or of that of the line that arrives there.

    The lists are linked through one memory, since one bit per load and list would cost simulation time at
    every edge.

    Arguments:
        depth: slots.
        mshrs: lists of loads that wait for a line.
        domain: clock domain.
    """

    def __init__(self, *, depth: int, mshrs: int, domain: str):
        self.depth, self.mshrs, self.domain = depth, mshrs, domain
        super().__init__(
            {
                "load": In(L1Load),
                "replay": In(1),  #: it is a replay of the load in ``replay_slot``
                "replay_slot": In(range(depth)),
                "attach": In(1),  #: it has to wait for its line
                "strand": In(1),  #: it has to wait for an MSHR
                "done": In(1),  #: it need not wait any more
                "mshr": In(range(mshrs)),
                "wake": In(1),  #: the line of ``mshr`` has arrived
                "served": In(1),  #: with ``wake``: the oldest load that waits for it (``next``) is done
                "any_attached": Out(1),  #: some load waits for ``mshr``
                "left": Out(1),  #: with ``wake``: loads become woken
                "may_retry": In(1),  #: an MSHR is free for a stranded load, and no replay is in stage 1
                "any_stranded": Out(1),  #: some load is stranded
                "woken": Out(1),  #: ``next`` is there because its line has arrived
                "retry": Out(1),  #: else: ``next`` is there because an MSHR is free
                "next": Out(L1Load),  #: what could enter stage 0; with ``wake``: the oldest that waits for ``mshr``
                "next_slot": Out(range(depth)),
                "take": In(1),  #: ``next`` enters the pipeline
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.loads = loads = Memory(shape=L1Load, depth=self.depth, init=[])
        m.submodules.links = links = Memory(shape=range(self.depth), depth=self.depth, init=range(1, self.depth))
        m.submodules.heads = heads = Memory(shape=range(self.depth), depth=self.mshrs, init=[])
        m.submodules.tails = tails = Memory(shape=range(self.depth), depth=self.mshrs, init=[])
        write, read = loads.write_port(domain=self.domain), loads.read_port(domain="comb")
        link = links.write_port(domain=self.domain)
        following, following_free = links.read_port(domain="comb"), links.read_port(domain="comb")
        head, head_write = heads.read_port(domain="comb"), heads.write_port(domain=self.domain)
        tail, tail_write = tails.read_port(domain="comb"), tails.write_port(domain=self.domain)
        attached = Signal(self.mshrs)
        woken_head, woken_tail = Signal(range(self.depth)), Signal(range(self.depth))
        stranded_head, stranded_tail = Signal(range(self.depth)), Signal(range(self.depth))
        free_head = Signal(range(self.depth))
        slot = Signal(range(self.depth))

        # What could enter stage 0, or the oldest load for the line that arrives
        m.d.comb += [
            self.any_attached.eq(attached.bit_select(self.mshr, 1)),
            head.addr.eq(self.mshr),
            tail.addr.eq(self.mshr),
            self.retry.eq(self.any_stranded & self.may_retry & ~self.woken),
            self.next_slot.eq(Mux(self.wake, head.data, Mux(self.woken, woken_head, stranded_head))),
            read.addr.eq(self.next_slot),
            self.next.eq(read.data),
            following.addr.eq(self.next_slot),
            self.left.eq(self.any_attached & ~(self.served & (head.data == tail.data))),
        ]
        with m.If(self.take):
            with m.If(self.woken):
                m.d[self.domain] += [woken_head.eq(following.data), self.woken.eq(woken_head != woken_tail)]
            with m.Else():
                m.d[self.domain] += [
                    stranded_head.eq(following.data),
                    self.any_stranded.eq(stranded_head != stranded_tail),
                ]
        with m.If(self.wake):
            m.d[self.domain] += [
                self.woken.eq(self.left),
                woken_head.eq(Mux(self.served, following.data, head.data)),
                woken_tail.eq(tail.data),
                attached.bit_select(self.mshr, 1).eq(0),
            ]

        # A slot for the load in stage 1
        m.d.comb += [
            slot.eq(Mux(self.replay, self.replay_slot, free_head)),
            following_free.addr.eq(free_head),
            write.addr.eq(slot),
            write.data.eq(self.load),
            write.en.eq((self.attach | self.strand) & ~self.replay),
        ]
        with m.If(write.en):
            m.d[self.domain] += free_head.eq(following_free.data)

        def write_link(address: Value, to: Value) -> None:
            m.d.comb += [link.en.eq(1), link.addr.eq(address), link.data.eq(to)]

        # What becomes of it: it waits for a line, for an MSHR, or its slot is free, as is that of the load served
        m.d.comb += [
            head_write.addr.eq(self.mshr),
            head_write.data.eq(slot),
            head_write.en.eq(self.attach & ~self.any_attached),
            tail_write.addr.eq(self.mshr),
            tail_write.data.eq(slot),
            tail_write.en.eq(self.attach),
        ]
        with m.If(self.attach):
            m.d[self.domain] += attached.bit_select(self.mshr, 1).eq(1)
            with m.If(self.any_attached):
                write_link(tail.data, slot)
        with m.Elif(self.strand):
            m.d[self.domain] += self.any_stranded.eq(1)
            with m.If(self.replay):
                write_link(slot, stranded_head)
                m.d[self.domain] += stranded_head.eq(slot)
            with m.Elif(self.any_stranded):
                write_link(stranded_tail, slot)
                with m.If(self.take & ~self.woken & (stranded_head == stranded_tail)):
                    m.d[self.domain] += stranded_head.eq(slot)  # the only one has just left
            with m.Else():
                m.d[self.domain] += stranded_head.eq(slot)
            with m.If(~self.replay | ~self.any_stranded):
                m.d[self.domain] += stranded_tail.eq(slot)
        with m.Elif((self.done & self.replay) | (self.wake & self.served)):
            freed = Mux(self.wake, head.data, self.replay_slot)
            write_link(freed, free_head)
            m.d[self.domain] += free_head.eq(freed)
        return m
