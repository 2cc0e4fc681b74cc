"""A core: its port to software, translation, its private caches, its interrupt controller, its timer."""

from typing import Any

from amaranth.hdl import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.core import CoreHost, Interrupt, MmioPort
from hw.bus.l1 import L1Use
from hw.bus.memory import NonCachedPort
from hw.bus.tilelink import TileLink
from hw.config import MachineConfig
from hw.mem.l1 import L1Cache
from hw.mem.l1i import L1ICache
from hw.mem.l2 import L2Cache

from .core_port import CorePort
from .deadline_timer import DeadlineTimer
from .interrupt_controller import InterruptController
from .load_arbiter import LoadArbiter
from .mmu import Mmu

__all__ = ["Core"]

#: Core cycles of a load that misses the L1 outside the L2: to the Acquire, and from the Grant to the answer.
L1_MISS_CYCLES = 2 + 2


class Core(wiring.Component):
    """Core number ``index``; docs/core.md draws it.

    Its parts have clock domains of their own, all of one frequency and phase: a part that has nothing to do is skipped
    by itself.

    Ports:
        host: operations from software and what becomes of them.
        tilelink: the private caches' link to the last level.
        noncached: writes around the caches.
        mmio: uncached accesses to devices.
        interrupt: messages to this core's interrupt controller.

    Attributes:
        parts: the components of each domain, ``domain`` itself first. Those with a time and all with a ``quiet``
            (see docs/architecture.md) have them as ports.
    """

    host: In(CoreHost())
    tilelink: Out(TileLink())
    noncached: Out(NonCachedPort())
    mmio: Out(MmioPort())
    interrupt: In(stream.Signature(Interrupt))

    def __init__(self, config: MachineConfig, index: int, domain: str):
        super().__init__()
        mmu, l1, l1i, l2 = (f"{domain}_{part}" for part in ("mmu", "l1", "l1i", "l2"))
        self.port = CorePort(config, index, domain)
        self.interrupts = InterruptController(domain)
        self.timer = DeadlineTimer(domain)
        self.mmu = Mmu(config.tlb, mmu, config.dram.size_mib << 8)
        self.loads = LoadArbiter(l1)
        self.l1 = L1Cache(config.l1, config.core, l1)
        self.l1i = L1ICache(config.l1i, l1i)
        self.l2 = L2Cache(config, l2, hit_cycles=config.l2.latency - L1_MISS_CYCLES)
        self.parts: dict[str, list[Any]] = {
            domain: [self.port, self.interrupts, self.timer],
            mmu: [self.mmu],
            l1: [self.loads, self.l1],
            l1i: [self.l1i],
            l2: [self.l2],
        }

    def elaborate(self, platform):
        """Wire the parts to each other and to the ports."""
        m = Module()
        port, mmu, l1, l1i, l2, interrupts = self.port, self.mmu, self.l1, self.l1i, self.l2, self.interrupts
        m.submodules.port = port
        m.submodules.mmu = mmu
        m.submodules.loads = self.loads
        m.submodules.l1 = l1
        m.submodules.l1i = l1i
        m.submodules.l2 = l2
        m.submodules.interrupts = interrupts
        m.submodules.timer = self.timer
        connect(m, flipped(self.host), port.host)
        connect(m, port.mmio, flipped(self.mmio))
        connect(m, port.noncached, flipped(self.noncached))

        # Data: the port and the walker share the cache's load port; the rest of it is the port's
        connect(m, port.translate, mmu.port)
        connect(m, port.l1.load, self.loads.load)
        connect(m, mmu.walk, self.loads.walk)
        connect(m, self.loads.output, l1.port.load)
        connect(m, port.l1.store, l1.port.store)
        connect(m, port.l1.atomic, l1.port.atomic)
        walked = l1.port.load_done.use == L1Use.WALK
        m.d.comb += [
            port.l1.load_done_valid.eq(l1.port.load_done_valid & ~walked),
            port.l1.load_done.eq(l1.port.load_done),
            mmu.done_valid.eq(l1.port.load_done_valid & walked),
            mmu.done.eq(l1.port.load_done),
            port.l1.sampled.eq(l1.port.sampled),
            port.l1.sampled_id.eq(l1.port.sampled_id),
            port.l1.visible.eq(l1.port.visible),
            l1.port.watch.eq(port.l1.watch),
            port.l1.lost.eq(l1.port.lost),
        ]

        # Text, and what lies below
        connect(m, port.text, l1i.text)
        connect(m, l1i.l2, l2.fetch)
        connect(m, l1.tilelink, l2.l1)
        connect(m, l2.tilelink, flipped(self.tilelink))

        # Interrupts: from the timer, else from outside
        own, outside = self.timer.message, self.interrupt
        m.d.comb += [
            interrupts.message.valid.eq(own.valid | outside.valid),
            interrupts.message.payload.eq(Mux(own.valid, own.payload, outside.payload)),
            own.ready.eq(1),
            outside.ready.eq(~own.valid),
            self.timer.write.eq(port.deadline_write),
            self.timer.value.eq(port.deadline),
            port.interrupt_pending.eq(interrupts.pending),
            port.interrupt_vector.eq(interrupts.vector),
            interrupts.acknowledge.eq(port.interrupt_acknowledge),
        ]
        return m
