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
from hw.lib.domain import in_domain, tell_domain
from hw.lib.time import Now
from hw.mem.dram import DramController
from hw.mem.dram_router import DramRouter
from hw.mem.llc import LastLevelCache
from hw.mem.llc_registers import LlcRegisters
from hw.mem.noncached import NonCachedWrites
from hw.nic.nic import Nic
from hw.pcie.link import Link
from hw.pcie.root_complex import RootComplex

__all__ = ["DeviceWrite", "Machine"]

#: Domains of the clocks of ``uncore`` and ``nic`` for what often has nothing to do while others of those clocks run.
ROOT = "uncore_root"
LINK = "nic_link"

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
        domains: clock domains in the order of their numbers: those of each core, then uncore, uncore_root, nic,
            nic_link, and those of each DRAM channel: dram0, dram1 and so on.
        host: one :class:`~hw.bus.core.CoreHost` per core, as the host sees it: it drives ``operation``.
        wire: a :data:`~hw.bus.wire.WireStream` that the host drives.
        wire_out: a :data:`~hw.bus.wire.SentStream`: what the card sends.
        now: of each domain that needs it, the number of its next edge; its ``advance`` is driven by the host.
        quiet: per domain, whether its next edge may be skipped.
        device_write: a :class:`DeviceWrite`.
    """

    def __init__(self, config: MachineConfig):
        self.config = config
        self.core_domains = [f"core{index}" for index in range(config.core.count)]
        self.core = [Core(config, index, domain) for index, domain in enumerate(self.core_domains)]
        self.llc = LastLevelCache(config)
        self.llc_registers = LlcRegisters(config)
        self.dram = [DramController(config) for _ in range(config.dram.channels)]
        self.dram_router = DramRouter(config)
        self.noncached = NonCachedWrites(config.core.count, config.llc.slots)
        self.root_complex = RootComplex(config)
        self.link = Link(config)
        self.nic = Nic(config)
        self.host = [core.host for core in self.core]
        self.wire = self.nic.wire
        self.wire_out = self.nic.wire_out
        self.device_write = DeviceWrite(self.llc)

        #: Components of each domain.
        self.members: dict[str, list] = {
            **{domain: parts for core in self.core for domain, parts in core.parts.items()},
            "uncore": [self.llc],
            ROOT: [self.noncached, self.root_complex, self.llc_registers],
            "nic": [self.nic],
            LINK: [self.link],
            **{f"dram{number}": [channel] for number, channel in enumerate(self.dram)},
        }
        for component in self.members[ROOT]:
            tell_domain(component, "uncore", ROOT)
        tell_domain(self.link, "nic", LINK)
        for number, channel in enumerate(self.dram):
            tell_domain(channel, "dram", f"dram{number}")
        self.domains = list(self.members)
        self.now = {
            domain: Now(domain)
            for domain, components in self.members.items()
            if any(hasattr(component, "now") for component in components)
        }
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
        m.submodules.dram_router = self.dram_router
        for number, channel in enumerate(self.dram):
            m.submodules[f"dram{number}"] = in_domain(channel, "dram", f"dram{number}")
        m.submodules.noncached = in_domain(self.noncached, "uncore", ROOT)
        m.submodules.llc_registers = in_domain(self.llc_registers, "uncore", ROOT)
        m.submodules.root_complex = in_domain(self.root_complex, "uncore", ROOT)
        m.submodules.link = in_domain(self.link, "nic", LINK)
        m.submodules.nic = self.nic

        for index in range(len(self.core)):
            self._join_core(m, index)
        connect(m, self.llc.dram[0], self.dram_router.cache)
        for number, channel in enumerate(self.dram):
            domain, port = f"dram{number}", self.dram_router.channel[number]
            self._cross(m, f"llc_{domain}", port.request, channel.port.request, DramRequest, "uncore", domain)
            self._cross(m, f"{domain}_llc", channel.port.response, port.response, DramResponse, domain, "uncore")
        self._cross(m, "root_link", self.root_complex.link.send, self.link.root.send, TlpBeat, ROOT, LINK)
        self._cross(m, "link_root", self.link.root.receive, self.root_complex.link.receive, TlpBeat, LINK, ROOT)
        connect(m, self.root_complex.memory, self.noncached.root)
        connect(m, self.noncached.memory, self.llc.device)
        connect(m, self.root_complex.registers, self.llc_registers.access)
        m.d.comb += self.llc.control.eq(self.llc_registers.control)
        connect(m, self.nic.pcie, self.link.card)

        # Time and quiet of each domain
        for domain, components in self.members.items():
            quiet = self._crossing_quiet[domain]
            for component in components:
                quiet = [*quiet, component.quiet]
                if hasattr(component, "now"):
                    m.d.comb += component.now.eq(self.now[domain].now)
            m.d.comb += self.quiet[domain].eq(_all(quiet))
        return m

    def _join_core(self, m: Module, index: int) -> None:
        core, domain = self.core[index], self.core_domains[index]
        client, link, l2 = self.llc.client[index], core.tilelink, core.l2.domain
        mmio = self.root_complex.mmio[index]
        for channel, shape in (("a", ChannelA), ("c", ChannelC), ("e", ChannelE)):
            source, sink = getattr(link, channel), getattr(client, channel)
            self._cross(m, f"{domain}_{channel}", source, sink, shape, l2, "uncore", depth=TILELINK_DEPTH)
        for channel, shape in (("b", ChannelB), ("d", ChannelD)):
            source, sink = getattr(client, channel), getattr(link, channel)
            self._cross(m, f"{domain}_{channel}", source, sink, shape, "uncore", l2, depth=TILELINK_DEPTH)
        writes, done = core.noncached, self.noncached.core[index]
        self._cross(m, f"{domain}_noncached", writes.write, done.write, NonCachedWrite, domain, ROOT)
        self._cross(m, f"noncached_{domain}", done.done, writes.done, 1, ROOT, domain)
        self._cross(m, f"{domain}_mmio", core.mmio.request, mmio.request, MmioRequest, domain, ROOT)
        self._cross(m, f"mmio_{domain}", mmio.response, core.mmio.response, MmioResponse, ROOT, domain)
        interrupt = self.root_complex.interrupt[index]
        self._cross(m, f"interrupt_{domain}", interrupt, core.interrupt, Interrupt, ROOT, domain)

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
