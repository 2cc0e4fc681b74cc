"""A core: its port to software, translation, its private caches, its interrupt controller."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.core import CoreHost, Interrupt, MmioPort
from hw.bus.l1 import L1Use
from hw.bus.memory import NonCachedPort
from hw.bus.tilelink import TileLink
from hw.config import MachineConfig
from hw.lib.time import NOW_WIDTH
from hw.mem.l1 import L1Cache
from hw.mem.l1i import L1ICache
from hw.mem.l2 import L2Cache

from .core_port import CorePort
from .interrupt_controller import InterruptController
from .load_arbiter import LoadArbiter
from .mmu import Mmu

__all__ = ["Core"]

#: Core cycles of a load that misses the L1 outside the L2: to the Acquire, and from the Grant to the answer.
L1_MISS_CYCLES = 2 + 2


class Core(wiring.Component):
    """Core number ``index``; docs/core.md draws it.

    The L2 cache may have a domain of its own, ``l2_domain``, with a clock of the same frequency and phase: it often has
    nothing to do while the core runs, and then needs no edges. Everything else is in ``domain``.

    Ports:
        host: operations from software and what becomes of them.
        tilelink: the private caches' link to the last level.
        noncached: writes around the caches.
        mmio: uncached accesses to devices.
        interrupt: messages to this core's interrupt controller.
        now: number of the next edge of ``domain``.
        quiet: see docs/architecture.md; of ``domain``.
        l2_quiet: likewise, of ``l2_domain``.
    """

    host: In(CoreHost())
    tilelink: Out(TileLink())
    noncached: Out(NonCachedPort())
    mmio: Out(MmioPort())
    interrupt: In(stream.Signature(Interrupt))
    now: In(NOW_WIDTH)
    quiet: Out(1)
    l2_quiet: Out(1)

    def __init__(self, config: MachineConfig, index: int, domain: str, l2_domain: str | None = None):
        super().__init__()
        self.port = CorePort(config, index, domain)
        self.mmu = Mmu(config.tlb, domain)
        self.loads = LoadArbiter(domain)
        self.l1 = L1Cache(config.l1, config.core, domain)
        self.l1i = L1ICache(config.l1i, domain)
        self.domain = domain
        self.l2 = L2Cache(config, l2_domain or domain, hit_cycles=config.l2.latency - L1_MISS_CYCLES)
        self.interrupts = InterruptController(domain)

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
        connect(m, flipped(self.host), port.host)
        connect(m, port.mmio, flipped(self.mmio))
        connect(m, port.noncached, flipped(self.noncached))
        connect(m, flipped(self.interrupt), interrupts.message)

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

        # Interrupts, time, quiet
        m.d.comb += [
            port.interrupt_pending.eq(interrupts.pending),
            port.interrupt_vector.eq(interrupts.vector),
            interrupts.acknowledge.eq(port.interrupt_acknowledge),
            port.now.eq(self.now),
            mmu.now.eq(self.now),
            self.l2_quiet.eq(l2.quiet),
        ]
        quiet = port.quiet & mmu.quiet & self.loads.quiet & l1.quiet & l1i.quiet & interrupts.quiet
        m.d.comb += self.quiet.eq(quiet & l2.quiet if l2.domain == self.domain else quiet)
        return m
