"""The whole machine: cores, caches, memory, link and card, joined by clock crossings."""

from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib.wiring import connect

from hw.bus.core import Interrupt, MmioRequest, MmioResponse
from hw.bus.memory import DramRequest, DramResponse, MemoryOp, NonCachedWrite
from hw.bus.tilelink import ChannelA, ChannelB, ChannelC, ChannelD, ChannelE
from hw.bus.tlp import TlpBeat
from hw.config import MachineConfig
from hw.cpu.core import Core
from hw.lib.crossing import Crossing
from hw.lib.time import Now
from hw.mem.dram import DramController
from hw.mem.llc import LastLevelCache
from hw.mem.noncached import NonCachedWrites
from hw.nic.nic import Nic
from hw.pcie.link import Link
from hw.pcie.root_complex import RootComplex

__all__ = ["DeviceWrite", "Machine"]

#: Messages in a crossing between a private cache and the last level: enough for one per cycle (see ``Crossing``).
TILELINK_DEPTH = 8


class DeviceWrite:
    """What the last level shows of writes by devices, and by cores around the caches. Domain ``uncore``.

    Attributes:
        accepted: one is taken at this edge.
        line, mask, data: which, as in :class:`~hw.bus.memory.DeviceRequest`.
        done: the oldest that was taken and is not visible becomes so after this edge.
    """

    def __init__(self, llc: LastLevelCache):
        request = llc.device.request
        self.accepted = request.valid & request.ready & (request.payload.op == MemoryOp.WRITE)
        self.line = request.payload.line
        self.mask = request.payload.mask
        self.data = request.payload.data
        self.done = llc.device.write_done


class Machine(Elaboratable):
    """Everything between the Ethernet wire and the software's operations.

    Attributes:
        config: what it was made from.
        domains: clock domains in the order of their numbers: one per core, then uncore, nic, dram, one per L2 cache.
        host: one :class:`~hw.bus.core.CoreHost` per core, as the host sees it: it drives ``operation``.
        wire: a :data:`~hw.bus.wire.WireStream` that the host drives.
        now: per domain, the number of its next edge; its ``advance`` is driven by the host.
        quiet: per domain, whether its next edge may be skipped.
        device_write: a :class:`DeviceWrite`.
    """

    def __init__(self, config: MachineConfig):
        self.config = config
        self.core_domains = [f"core{index}" for index in range(config.core.count)]
        self.l2_domains = [f"{domain}_l2" for domain in self.core_domains]
        self.domains = [*self.core_domains, "uncore", "nic", "dram", *self.l2_domains]

        own = zip(self.core_domains, self.l2_domains, strict=True)
        self.core = [Core(config, index, domain, l2_domain) for index, (domain, l2_domain) in enumerate(own)]
        self.llc = LastLevelCache(config)
        self.dram = DramController(config.dram)
        self.noncached = NonCachedWrites(config.core.count, config.llc.slots)
        self.root_complex = RootComplex(config)
        self.link = Link(config)
        self.nic = Nic(config)
        self.host = [core.host for core in self.core]
        self.wire = self.nic.wire
        self.device_write = DeviceWrite(self.llc)

        self.now = {domain: Now(domain) for domain in self.domains}
        self.quiet = {domain: Signal(name=f"quiet_{domain}") for domain in self.domains}
        #: Per domain: quiet signals of the crossings that end in it.
        self._crossing_quiet: dict[str, list[Signal]] = {domain: [] for domain in self.domains}

    def elaborate(self, platform):
        """Place the components, then the crossings between them."""
        m = Module()
        for domain, now in self.now.items():
            m.submodules[f"now_{domain}"] = now
        for domain, core in zip(self.core_domains, self.core, strict=True):
            m.submodules[domain] = core
        m.submodules.llc = self.llc
        m.submodules.dram = self.dram
        m.submodules.noncached = self.noncached
        m.submodules.root_complex = self.root_complex
        m.submodules.link = self.link
        m.submodules.nic = self.nic

        for index in range(len(self.core)):
            self._join_core(m, index)
        self._cross(m, "llc_dram", self.llc.dram.request, self.dram.port.request, DramRequest, "uncore", "dram")
        self._cross(m, "dram_llc", self.dram.port.response, self.llc.dram.response, DramResponse, "dram", "uncore")
        self._cross(m, "root_link", self.root_complex.link.send, self.link.root.send, TlpBeat, "uncore", "nic")
        self._cross(m, "link_root", self.link.root.receive, self.root_complex.link.receive, TlpBeat, "nic", "uncore")
        connect(m, self.root_complex.memory, self.noncached.root)
        connect(m, self.noncached.memory, self.llc.device)
        connect(m, self.nic.pcie, self.link.card)

        # Time and quiet of each domain
        members = {
            **{domain: [core] for domain, core in zip(self.core_domains, self.core, strict=True)},
            "uncore": [self.llc, self.noncached, self.root_complex],
            "nic": [self.link, self.nic],
            "dram": [self.dram],
        }
        for domain, components in members.items():
            quiet = self._crossing_quiet[domain]
            for component in components:
                quiet = [*quiet, component.quiet]
                if hasattr(component, "now"):
                    m.d.comb += component.now.eq(self.now[domain].now)
            m.d.comb += self.quiet[domain].eq(_all(quiet))
        for domain, core in zip(self.l2_domains, self.core, strict=True):
            m.d.comb += self.quiet[domain].eq(_all([*self._crossing_quiet[domain], core.l2_quiet]))
        return m

    def _join_core(self, m: Module, index: int) -> None:
        core, domain, l2_domain = self.core[index], self.core_domains[index], self.l2_domains[index]
        client, link = self.llc.client[index], core.tilelink
        mmio = self.root_complex.mmio[index]
        for channel, shape in (("a", ChannelA), ("c", ChannelC), ("e", ChannelE)):
            source, sink = getattr(link, channel), getattr(client, channel)
            self._cross(m, f"{domain}_{channel}", source, sink, shape, l2_domain, "uncore", depth=TILELINK_DEPTH)
        for channel, shape in (("b", ChannelB), ("d", ChannelD)):
            source, sink = getattr(client, channel), getattr(link, channel)
            self._cross(m, f"{domain}_{channel}", source, sink, shape, "uncore", l2_domain, depth=TILELINK_DEPTH)
        writes, done = core.noncached, self.noncached.core[index]
        self._cross(m, f"{domain}_noncached", writes.write, done.write, NonCachedWrite, domain, "uncore")
        self._cross(m, f"noncached_{domain}", done.done, writes.done, 1, "uncore", domain)
        self._cross(m, f"{domain}_mmio", core.mmio.request, mmio.request, MmioRequest, domain, "uncore")
        self._cross(m, f"mmio_{domain}", mmio.response, core.mmio.response, MmioResponse, "uncore", domain)
        interrupt = self.root_complex.interrupt[index]
        self._cross(m, f"interrupt_{domain}", interrupt, core.interrupt, Interrupt, "uncore", domain)

    def _cross(
        self, m: Module, name: str, source, sink, shape, write_domain: str, read_domain: str, depth: int = 4
    ) -> None:
        crossing = Crossing(shape, write_domain, read_domain, depth=depth)
        m.submodules[f"crossing_{name}"] = crossing
        connect(m, source, crossing.input)
        connect(m, crossing.output, sink)
        # A full crossing leaves its writer waiting, an empty one its reader; data that a reader does not take
        # is the reader's business: its own quiet speaks for it.
        self._crossing_quiet[write_domain].append(crossing.write_quiet)
        self._crossing_quiet[read_domain].append(crossing.read_quiet & ~(crossing.output.valid & crossing.output.ready))
        self._crossing_quiet[write_domain].append(~(crossing.input.valid & crossing.input.ready))


def _all(signals: list) -> Signal:
    result = signals[0]
    for signal in signals[1:]:
        result = result & signal
    return result
