"""A core: its port to software, its L1 data cache, its interrupt controller."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.core import CoreHost, Interrupt, MmioPort
from hw.bus.tilelink import TileLink
from hw.config import MachineConfig
from hw.lib.time import NOW_WIDTH
from hw.mem.l1 import L1Cache

from .core_port import CorePort
from .interrupt_controller import InterruptController

__all__ = ["Core"]


class Core(wiring.Component):
    """Core number ``index``, all of it in ``domain``.

    Ports:
        host: operations from software and what becomes of them.
        tilelink: the private cache's link to the last level.
        mmio: uncached accesses to devices.
        interrupt: messages to this core's interrupt controller.
        now: number of the next edge of ``domain``.
        quiet: see docs/architecture.md.
    """

    host: In(CoreHost())
    tilelink: Out(TileLink())
    mmio: Out(MmioPort())
    interrupt: In(stream.Signature(Interrupt))
    now: In(NOW_WIDTH)
    quiet: Out(1)

    def __init__(self, config: MachineConfig, index: int, domain: str):
        super().__init__()
        self.port = CorePort(config.core, config.l1, index, domain)
        self.l1 = L1Cache(config.l1, config.core, domain)
        self.interrupts = InterruptController(domain)

    def elaborate(self, platform):
        """Wire the parts to each other and to the ports."""
        m = Module()
        m.submodules.port = port = self.port
        m.submodules.l1 = l1 = self.l1
        m.submodules.interrupts = interrupts = self.interrupts
        connect(m, flipped(self.host), port.host)
        connect(m, port.l1, l1.port)
        connect(m, port.mmio, flipped(self.mmio))
        connect(m, l1.tilelink, flipped(self.tilelink))
        connect(m, flipped(self.interrupt), interrupts.message)
        m.d.comb += [
            port.interrupt_pending.eq(interrupts.pending),
            port.interrupt_vector.eq(interrupts.vector),
            interrupts.acknowledge.eq(port.interrupt_acknowledge),
            port.now.eq(self.now),
            self.quiet.eq(port.quiet & l1.quiet & interrupts.quiet),
        ]
        return m
