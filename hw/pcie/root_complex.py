"""The root complex: between the link on one side and memory, cores and interrupts on the other."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.core import Interrupt, MmioPort
from hw.bus.memory import DeviceMemory, DeviceRequest, RegisterPort
from hw.bus.tlp import TlpPort
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH
from hw.memory_map import IOMMU_BASE, IOMMU_BYTES

from .inbound import Inbound
from .iommu import Iommu
from .messages import CORE_WIDTH, WRITE_COUNT_WIDTH, HostMessage, InterruptMessage
from .mmio_bridge import MmioBridge
from .queue import Queue
from .read_engine import ReadEngine

__all__ = ["MESSAGES", "READ_LINES", "WALK_TAGS", "RootComplex"]

#: Line reads in flight over all requests of the card: more than ``llc.slots`` of any preset.
READ_LINES = 32

#: Interrupts and MMIO answers that can wait for earlier writes to become visible.
MESSAGES = 8

#: Tags of line reads from here on are those of the IOMMU's walks.
WALK_TAGS = 128


class RootComplex(wiring.Component):
    """Device memory accesses, interrupt messages and MMIO, in domain ``uncore``.

    **Device writes** pass to memory in the cycle in which they are offered, a line per beat, several in flight,
    in order. **Device reads** see every write that came before them, see
    :class:`~hw.pcie.read_engine.ReadEngine`. The payload's ``data`` belong to writes and are not held
    while a read is offered.
    **Interrupts and answers to MMIO reads** reach a core in the order in which they came, each after every
    device write that came before it is visible; one accepted at edge t with nothing to wait for is offered at
    t + 1.
    **Interrupts of one core for another**, MMIO writes to the interrupt window, wait for nothing and go when no
    device's interrupt does; one accepted at edge t is offered at t + 1.
    **MMIO**, see :class:`~hw.pcie.mmio_bridge.MmioBridge`, goes ahead of completions, so that a completion never
    passes an earlier MMIO write. What nobody claims is answered as :class:`~hw.pcie.inbound.Inbound` says.
    **The IOMMU**, if there is one, translates what the card sends before anything else looks at it
    (:class:`~hw.pcie.iommu.iommu.Iommu`); its reads of page tables go ahead of the card's, its interrupts behind those
    of cores. Without it there is nothing in between.

    ``quiet`` also looks at the ``ready`` of outputs: a packet that the link does not take changes nothing.

    Ports:
        link: packets to and from the card.
        memory: the last level's port for devices.
        mmio: one per core.
        interrupt: one per core.
        registers: to the platform's own registers.
        now: number of the next edge; only with an IOMMU.
        quiet: nothing would change.
    """

    def __init__(self, config: MachineConfig):
        self.cores = config.core.count
        self.inbound = Inbound(config)
        self.messages = Queue(HostMessage, MESSAGES, "uncore")
        self.read_engine = ReadEngine(config.nic.read_tags, READ_LINES)
        self.iommu = Iommu(config) if config.iommu.enabled else None
        self.mmio_bridge = MmioBridge(self.cores, iommu=config.iommu.enabled)
        self.interrupt_sent = Probe("uncore", "an interrupt message left for its core", core=CORE_WIDTH, vector=8)
        self.interrupts = Counter("uncore", "interrupt messages delivered")
        now = {"now": In(NOW_WIDTH)} if config.iommu.enabled else {}
        super().__init__(
            {
                **now,
                "link": Out(TlpPort()),
                "memory": Out(DeviceMemory()),
                "mmio": In(MmioPort()).array(self.cores),
                "interrupt": Out(stream.Signature(Interrupt)).array(self.cores),
                "registers": Out(RegisterPort()),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        """Place the parts, then the way to memory, to the cores and to the link."""
        m = Module()
        m.submodules.inbound = inbound = self.inbound
        m.submodules.messages = self.messages
        m.submodules.read_engine = self.read_engine
        m.submodules.mmio_bridge = bridge = self.mmio_bridge
        if self.iommu is None:
            connect(m, flipped(self.link.receive), inbound.input)
        else:
            m.submodules.iommu = iommu = self.iommu
            connect(m, flipped(self.link.receive), iommu.input)
            connect(m, iommu.output, inbound.input)
            m.d.comb += [inbound.blocked.eq(iommu.blocked), iommu.now.eq(self.now)]
        connect(m, inbound.read, self.read_engine.request)
        connect(m, inbound.message, self.messages.input)
        self._registers(m)
        for outer, inner in zip(self.mmio, bridge.mmio, strict=True):
            connect(m, flipped(outer), inner)
        m.d.comb += [
            inbound.reading.eq(bridge.reading),
            inbound.wide.eq(bridge.wide),
            bridge.completed.eq(inbound.message.valid & inbound.message.ready & ~inbound.message.payload.interrupt),
            bridge.completed_core.eq(inbound.message.payload.core),
        ]

        to_memory = self._memory(m)
        to_cores = self._cores(m)
        to_link = self._link(m)
        received = self.link.receive.valid & self.link.receive.ready
        moving = received | to_memory | to_cores | to_link | self.read_engine.active | bridge.active
        if self.iommu is not None:
            moving = moving | self.iommu.moving
        m.d.comb += self.quiet.eq(~moving)
        return m

    def _registers(self, m: Module) -> None:
        """Accesses to the platform's registers: to the IOMMU's here, or outside."""
        bridge, outside = self.mmio_bridge.registers, self.registers
        connect(m, bridge, flipped(outside))
        if self.iommu is None:
            return
        port, here = self.iommu.registers, Signal()
        m.d.comb += [
            here.eq((bridge.address >= IOMMU_BASE) & (bridge.address < IOMMU_BASE + IOMMU_BYTES)),
            outside.write.eq(bridge.write & ~here),
            port.access.eq(here),
            port.write.eq(bridge.write),
            port.offset.eq(bridge.address % IOMMU_BYTES),
            port.wide.eq(bridge.size == 8),
            port.data.eq(bridge.data),
        ]
        with m.If(here):
            m.d.comb += bridge.value.eq(port.answer)

    def _memory(self, m: Module) -> Signal:
        """Share the memory port between writes and reads; returns what changes at the next edge."""
        write, read, request = self.inbound.write, self.read_engine.memory_request, self.memory.request
        walks = 0
        if self.iommu is None:
            connect(m, flipped(self.memory.response), self.read_engine.memory_response)
        else:
            read, walks = self._walks(m)

        # Writes and reads alternate when both want to go; a request once offered stays.
        prefer_read = Signal()
        choose_read = Signal()
        next_preference = Signal()
        accepted = Signal()
        m.d.comb += [
            choose_read.eq(read.valid & (prefer_read | ~write.valid)),
            request.valid.eq(read.valid | write.valid),
            # Data are those of the write in either case: a read's do not matter, and so they need no multiplexer.
            request.payload.eq(write.payload),
            read.ready.eq(choose_read & request.ready),
            write.ready.eq(~choose_read & request.ready),
            accepted.eq(request.valid & request.ready),
            next_preference.eq(Mux(request.valid, choose_read ^ request.ready, prefer_read)),
        ]
        with m.If(choose_read):
            m.d.comb += [
                request.payload.op.eq(read.payload.op),
                request.payload.line.eq(read.payload.line),
                request.payload.mask.eq(0),
                request.payload.tag.eq(read.payload.tag),
                request.payload.packet.eq(read.payload.packet),
            ]
        with m.If(request.valid):
            m.d.uncore += prefer_read.eq(next_preference)

        # Writes accepted and visible
        writes_accepted = Signal(WRITE_COUNT_WIDTH)
        writes_done = Signal(WRITE_COUNT_WIDTH)
        with m.If(accepted & ~choose_read):
            m.d.uncore += writes_accepted.eq(writes_accepted + 1)
        with m.If(self.memory.write_done):
            m.d.uncore += writes_done.eq(writes_done + 1)
        self._writes_done = writes_done
        m.d.comb += [
            self.inbound.writes_accepted.eq(writes_accepted),
            self.read_engine.writes_done.eq(writes_done),
        ]
        if self.iommu is not None:
            m.d.comb += self.iommu.drained.eq((writes_accepted == writes_done) & self.read_engine.idle)
        return accepted | self.memory.write_done | (next_preference != prefer_read) | walks

    def _walks(self, m: Module) -> tuple[stream.Interface, Signal]:
        """Share reads between the IOMMU's walks, which go first, and the card's reads, one of which once offered stays.

        Returns both as one stream, and whether remembering what was offered changes something at the next edge.
        """
        walk, engine, response = self.iommu.request, self.read_engine.memory_request, self.memory.response
        read = stream.Signature(DeviceRequest).create()
        held, holds, of_walk, answers_walk = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            of_walk.eq(walk.valid & ~held),
            read.valid.eq(walk.valid | engine.valid),
            walk.ready.eq(of_walk & read.ready),
            engine.ready.eq(~of_walk & read.ready),
            holds.eq(engine.valid & ~of_walk & ~read.ready),
            read.payload.eq(engine.payload),
            answers_walk.eq(response.payload.tag >= WALK_TAGS),
            self.iommu.response_valid.eq(response.valid & answers_walk),
            self.iommu.response.eq(response.payload),
            self.read_engine.memory_response.valid.eq(response.valid & ~answers_walk),
            self.read_engine.memory_response.payload.eq(response.payload),
            response.ready.eq(answers_walk | self.read_engine.memory_response.ready),
        ]
        with m.If(of_walk):
            m.d.comb += [
                read.payload.line.eq(walk.payload.line),
                read.payload.tag.eq(WALK_TAGS | walk.payload.tag),
                read.payload.packet.eq(0),
            ]
        m.d.uncore += held.eq(holds)
        return read, held != holds

    def _cores(self, m: Module) -> Signal:
        """Hand interrupts and MMIO answers to the cores; returns whether one goes."""
        waiting, answer = self.messages.output, self.mmio_bridge.answer
        message = waiting.payload
        visible = Signal()
        m.d.comb += [
            visible.eq(waiting.valid & (self._writes_done >= message.after)),
            answer.valid.eq(visible & ~message.interrupt),
            answer.payload.core.eq(message.core),
            answer.payload.data.eq(message.data),
        ]
        with m.If(~message.interrupt):
            m.d.comb += waiting.ready.eq(visible & answer.ready)
        # An interrupt of a core goes when no device's does; one that has been offered stays.
        sent, of_core = self.mmio_bridge.interrupt, Signal()
        changed = 0
        if self.iommu is not None:
            sent, changed = self._fault_events(m)
        committed, stays = Signal(), Signal()
        m.d.comb += [
            of_core.eq(sent.valid & (committed | ~(visible & message.interrupt))),
            stays.eq(of_core & ~sent.ready),
        ]
        m.d.uncore += committed.eq(stays)
        for index, interrupt in enumerate(self.interrupt):
            of_device = visible & message.interrupt & (message.core == index) & ~of_core
            mine = of_core & (sent.payload.core == index)
            m.d.comb += [
                interrupt.valid.eq(of_device | mine),
                interrupt.payload.vector.eq(Mux(of_core, sent.payload.vector, message.data)),
            ]
            with m.If(of_device):
                m.d.comb += waiting.ready.eq(interrupt.ready)
            with m.If(mine):
                m.d.comb += sent.ready.eq(interrupt.ready)
        gone = Signal()
        m.d.comb += gone.eq(waiting.valid & waiting.ready)
        delivered = (gone & message.interrupt) | (sent.valid & sent.ready)
        self.interrupt_sent.emit(
            m,
            delivered,
            core=Mux(of_core, sent.payload.core, message.core),
            vector=Mux(of_core, sent.payload.vector, message.data),
        )
        self.interrupts.increment(m, delivered)
        return gone | (committed != stays) | changed

    def _fault_events(self, m: Module) -> tuple[stream.Interface, Signal]:
        """Put the IOMMU's interrupts behind those of cores; one that has been offered stays.

        Returns both as one stream, and whether remembering what was offered changes something at the next edge.
        """
        core, fault = self.mmio_bridge.interrupt, self.iommu.interrupt
        sent = stream.Signature(InterruptMessage).create()
        held, holds, of_fault = Signal(), Signal(), Signal()
        m.d.comb += [
            of_fault.eq(fault.valid & (held | ~core.valid)),
            holds.eq(of_fault & ~sent.ready),
            sent.valid.eq(core.valid | fault.valid),
            sent.payload.eq(Mux(of_fault, fault.payload, core.payload)),
            fault.ready.eq(of_fault & sent.ready),
            core.ready.eq(~of_fault & sent.ready),
        ]
        m.d.uncore += held.eq(holds)
        return sent, held != holds

    def _link(self, m: Module) -> Signal:
        """Share the link between MMIO and completions; returns what changes at the next edge."""
        mmio, completion, send = self.mmio_bridge.packet, self.read_engine.completion, self.link.send
        committed = Signal()  # a completion has been offered and must stay
        choose_completion = Signal()
        next_committed = Signal()
        m.d.comb += [
            choose_completion.eq(completion.valid & (committed | ~mmio.valid)),
            next_committed.eq(choose_completion & ~send.ready),
            send.valid.eq(completion.valid | mmio.valid),
            completion.ready.eq(choose_completion & send.ready),
            mmio.ready.eq(~choose_completion & send.ready),
            send.payload.eq(Mux(choose_completion, completion.payload, mmio.payload)),
        ]
        m.d.uncore += committed.eq(next_committed)
        return (send.valid & send.ready) | (committed != next_committed)
