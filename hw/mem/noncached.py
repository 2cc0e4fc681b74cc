"""Writes of cores around the caches, on the last level's port for devices."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.memory import DeviceMemory, MemoryOp, NonCachedPort
from hw.lib.probe import Counter

from .llc_bits import round_robin
from .llc_queue import Queue

__all__ = ["NonCachedWrites"]


class NonCachedWrites(wiring.Component):
    """Shares the last level's port for devices between the root complex and the cores' writes around the caches.

    Nothing is added in time: who is alone goes through. Requests that wait together go in turn; one that has been
    offered stays. Only the root complex reads. Writes become visible in the order in which they were accepted, so a
    queue of their owners tells whose each ``write_done`` is.

    Arguments:
        cores: number of cores.
        writes: device writes that the last level holds at most.

    Attributes:
        root: ``In(DeviceMemory())``, the root complex.
        core: ``In(NonCachedPort())`` per core.
        memory: ``Out(DeviceMemory())``, to the last level.
        quiet: ``Out(1)``, the next edge of ``uncore`` changes nothing.
    """

    def __init__(self, cores: int, writes: int):
        self.cores, self.writes = cores, writes
        super().__init__(
            {
                "root": In(DeviceMemory()),
                "core": In(NonCachedPort()).array(cores),
                "memory": Out(DeviceMemory()),
                "quiet": Out(1),
            }
        )
        #: Who wrote: the root complex is 0, core i is i + 1.
        self.owners = Queue(range(cores + 1), writes, "uncore")
        self.core_writes = Counter("uncore", "lines that cores wrote around the caches, or flushed")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.owners = self.owners
        request = self.memory.request

        # Whose turn: the one after the last, and who was offered stays
        wanting, chosen, last = Signal(self.cores + 1), Signal(range(self.cores + 1)), Signal(range(self.cores + 1))
        held = Signal()
        m.d.comb += [
            wanting.eq(Cat(self.root.request.valid, *(core.write.valid for core in self.core))),
            chosen.eq(Mux(held, last, round_robin(m, wanting, last, "next"))),
        ]

        # Requests
        m.d.comb += request.payload.eq(self.root.request.payload)
        with m.Switch(chosen):
            with m.Case(0):
                m.d.comb += [request.valid.eq(self.root.request.valid), self.root.request.ready.eq(request.ready)]
            for index, core in enumerate(self.core):
                with m.Case(index + 1):
                    m.d.comb += [
                        request.valid.eq(core.write.valid),
                        core.write.ready.eq(request.ready),
                        request.payload.op.eq(MemoryOp.WRITE),
                        request.payload.line.eq(core.write.payload.line),
                        request.payload.mask.eq(core.write.payload.mask),
                        request.payload.data.eq(core.write.payload.data),
                        request.payload.packet.eq(0),
                        request.payload.around.eq(1),
                    ]
        accepted = request.valid & request.ready
        stays = request.valid & ~request.ready
        m.d.uncore += held.eq(stays)
        with m.If(request.valid):
            m.d.uncore += last.eq(chosen)
        connect(m, flipped(self.memory.response), flipped(self.root.response))

        # Whose write is visible
        owner = self.owners.output
        m.d.comb += [
            self.owners.push.eq(accepted & (request.payload.op == MemoryOp.WRITE)),
            self.owners.entry.eq(chosen),
            owner.ready.eq(self.memory.write_done),
            self.root.write_done.eq(self.memory.write_done & (owner.payload == 0)),
        ]
        told = []
        for index, core in enumerate(self.core):
            tokens = Signal(range(self.writes + 1), name=f"tokens{index}")
            more = self.memory.write_done & (owner.payload == index + 1)
            fewer = core.done.valid & core.done.ready
            m.d.comb += core.done.valid.eq(tokens != 0)
            with m.If(more != fewer):
                m.d.uncore += tokens.eq(Mux(more, tokens + 1, tokens - 1))
            told.append(fewer)

        self.core_writes.increment(m, accepted & (chosen != 0))
        moving = accepted | self.memory.write_done | (stays != held) | (stays & (chosen != last))
        for fewer in told:
            moving = moving | fewer
        m.d.comb += self.quiet.eq(~moving)
        return m
