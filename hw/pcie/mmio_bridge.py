"""Turns the cores' MMIO into packets for the card, and into interrupts for cores."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.core import MmioPort, MmioRequest
from hw.bus.memory import RegisterPort
from hw.bus.tilelink import LINE_BYTES, PHYSICAL_ADDRESS_WIDTH
from hw.bus.tlp import TlpStream, TlpType
from hw.lib.probe import Counter, Probe
from hw.lib.round_robin import round_robin
from hw.memory_map import (
    BAR0_BASE,
    BAR0_BYTES,
    BAR3_BASE,
    BAR3_BYTES,
    IOMMU_BASE,
    IOMMU_BYTES,
    MSR_BASE,
    MSR_BYTES,
    ROOT_PORT_BASE,
    ROOT_PORT_BYTES,
)

from .messages import CORE_WIDTH, InterruptMessage, interrupt_core, is_interrupt

__all__ = ["MmioAnswer", "MmioBridge"]


class MmioAnswer(data.Struct):
    """What a core's MMIO read gives."""

    core: CORE_WIDTH
    data: 64


class MmioBridge(wiring.Component):
    """MMIO of ``cores`` cores, in domain ``uncore``; the cores take turns.

    An access of 4 or 8 bytes that lies within BAR0 or BAR3, aligned to 4 bytes and within one line, becomes a
    packet: a MEMORY_WRITE, or a MEMORY_READ whose tag is the core's number. A write of one aligned 32-bit word to the
    interrupt window, for a core that exists, is an interrupt for that core: what an x86 core sends by writing the
    interrupt command register of its local APIC, with fixed delivery and physical destination (Intel SDM, volume 3,
    section 11.6.1). An aligned access of 4 or 8 bytes to the windows of the platform's own registers
    (:mod:`hw.uncore_registers`, and those of the IOMMU if there is one) is done at once. A core's requests are taken in
    order, and none while its read is unanswered. Anything else belongs to nobody: reads give all ones at once,
    writes are dropped.

    Latency: a request accepted at edge t is offered as a packet or an interrupt, or answered by the platform or with
    all ones, at t + 1.

    Ports:
        mmio: one per core.
        packet: to the link.
        interrupt: from one core to another.
        registers: to the platform's own registers.
        answer: to the core that reads, in the cycle in which it is offered.
        reading: per core, a packet has been sent and its completion has not come.
        wide: per core, its read is of 8 bytes.
        completed, completed_core: the completion of a core's read has come (its answer follows).
        active: the next edge changes something here, given the inputs as they are.
    """

    def __init__(self, cores: int, *, iommu: bool = False):
        if not 1 <= cores <= 1 << CORE_WIDTH:
            raise ValueError(f"cores must be between 1 and {1 << CORE_WIDTH}, not {cores}")
        self.cores = cores
        self._windows = [(MSR_BASE, MSR_BYTES), (ROOT_PORT_BASE, ROOT_PORT_BYTES)]
        if iommu:
            self._windows.append((IOMMU_BASE, IOMMU_BYTES))
        self.request = Probe(
            "uncore", "an MMIO access of a core was taken",
            core=CORE_WIDTH, write=1, address=PHYSICAL_ADDRESS_WIDTH, data=64,
        )  # fmt: skip
        self.response = Probe("uncore", "an MMIO read was answered", core=CORE_WIDTH, data=64)
        self.reads = Counter("uncore", "MMIO reads sent to the card")
        self.writes = Counter("uncore", "MMIO writes sent to the card")
        self.interrupts = Counter("uncore", "interrupts that cores sent to each other")
        self.unclaimed = Counter("uncore", "MMIO accesses that belong to no device")
        super().__init__(
            {
                "mmio": In(MmioPort()).array(cores),
                "packet": Out(TlpStream),
                "interrupt": Out(stream.Signature(InterruptMessage)),
                "registers": Out(RegisterPort()),
                "answer": In(stream.Signature(MmioAnswer)),
                "reading": Out(cores),
                "wide": Out(cores),
                "completed": In(1),
                "completed_core": In(CORE_WIDTH),
                "active": Out(1),
            }
        )

    def elaborate(self, platform):
        """Choose a request, make the packet, then answer."""
        m = Module()
        busy = Signal(self.cores)
        here = Signal(self.cores)  # the read is to be answered without the card
        answers = [Signal(64, name=f"answer{core}") for core in range(self.cores)]
        accept = self._request(m, busy, here, answers)
        responded = self._respond(m, busy, here, answers)
        sent = (self.packet.valid & self.packet.ready) | (self.interrupt.valid & self.interrupt.ready)
        m.d.comb += self.active.eq(accept | responded | self.completed | sent)
        return m

    def _request(self, m: Module, busy: Signal, here: Signal, answers: list[Signal]) -> Signal:
        """Take a request when what the one before it became has gone; returns whether one is taken."""
        offered, gone = Signal(), Signal()
        to_core = Signal()  # what is offered is an interrupt
        held = Signal(MmioRequest)
        last = Signal(range(max(2, self.cores)))
        wanting = Signal(self.cores)
        accept = Signal()
        for core, port in enumerate(self.mmio):
            m.d.comb += wanting[core].eq(port.request.valid & ~busy[core])
        choice = round_robin(m, wanting, last)
        m.d.comb += [
            gone.eq(Mux(to_core, self.interrupt.ready, self.packet.ready)),
            accept.eq(wanting.any() & (~offered | gone)),
        ]

        request = Signal(MmioRequest)
        claimed, interrupts, platform = Signal(), Signal(), Signal()
        with m.If(accept):
            for core, port in enumerate(self.mmio):
                with m.If(choice == core):
                    m.d.comb += [port.request.ready.eq(1), request.eq(port.request.payload)]
            end = request.address + request.size
            in_bar = Cat(
                (request.address >= base) & (end <= base + size)
                for base, size in ((BAR0_BASE, BAR0_BYTES), (BAR3_BASE, BAR3_BYTES))
            ).any()
            in_platform = Cat((request.address >= base) & (end <= base + size) for base, size in self._windows).any()
            aligned = ((request.size == 4) & (request.address % 4 == 0)) | (
                (request.size == 8) & (request.address % 8 == 0)
            )
            whole_words = ((request.size == 4) | (request.size == 8)) & (request.address % 4 == 0)
            one_line = request.address % LINE_BYTES + request.size <= LINE_BYTES
            m.d.comb += [
                claimed.eq(in_bar & whole_words & one_line),
                platform.eq(in_platform & aligned),
                self.registers.write.eq(platform & request.write),
                self.registers.address.eq(request.address),
                self.registers.size.eq(request.size),
                self.registers.core.eq(choice),
                self.registers.data.eq(request.data),
                interrupts.eq(request.write & is_interrupt(request.address, request.size, self.cores)),
            ]
            m.d.uncore += [last.eq(choice), self.wide.bit_select(choice, 1).eq(request.size == 8)]
            with m.If(~request.write):
                m.d.uncore += [
                    busy.bit_select(choice, 1).eq(1),
                    self.reading.bit_select(choice, 1).eq(claimed),
                    here.bit_select(choice, 1).eq(~claimed),
                    Array(answers)[choice].eq(Mux(platform, self.registers.value, (1 << 64) - 1)),
                ]
        with m.If(accept & (claimed | interrupts)):
            m.d.uncore += [held.eq(request), held.core.eq(choice), offered.eq(1), to_core.eq(interrupts)]
        with m.Elif(gone):
            m.d.uncore += offered.eq(0)

        # Packet. Data go to their byte lanes by repetition: lane i gets byte (i - address) modulo 8.
        header = self.packet.payload.header
        low, high = held.data.word_select(0, 32), held.data.word_select(1, 32)
        lanes = Mux((held.address // 4) % 2, Cat(high, low), held.data)
        m.d.comb += [
            self.packet.valid.eq(offered & ~to_core),
            self.packet.payload.first.eq(1),
            self.packet.payload.last.eq(1),
            self.packet.payload.data.eq(lanes.replicate(LINE_BYTES // 8)),
            header.kind.eq(Mux(held.write, TlpType.MEMORY_WRITE, TlpType.MEMORY_READ)),
            header.address.eq(held.address),
            header.length.eq(held.size),
            header.tag.eq(held.core),
        ]
        # Interrupt
        m.d.comb += [
            self.interrupt.valid.eq(offered & to_core),
            self.interrupt.payload.core.eq(interrupt_core(held.address)),
            self.interrupt.payload.vector.eq(held.data % 256),
        ]

        self.request.emit(m, accept, core=choice, write=request.write, address=request.address, data=request.data)
        self.reads.increment(m, accept & claimed & ~request.write)
        self.writes.increment(m, accept & claimed & request.write)
        self.interrupts.increment(m, accept & interrupts)
        self.unclaimed.increment(m, accept & ~(claimed | interrupts | platform))
        return accept

    def _respond(self, m: Module, busy: Signal, here: Signal, answers: list[Signal]) -> Signal:
        """Hand answers to the cores; returns whether one goes."""
        gone = Signal(self.cores)
        core_of_response, data_of_response = Signal(CORE_WIDTH), Signal(64)
        for core, port in enumerate(self.mmio):
            answered = self.answer.valid & (self.answer.payload.core == core)
            m.d.comb += [
                port.response.valid.eq(here[core] | answered),
                port.response.payload.data.eq(self.answer.payload.data),
                gone[core].eq(port.response.valid & port.response.ready),
            ]
            with m.If(here[core]):
                m.d.comb += port.response.payload.data.eq(Mux(self.wide[core], answers[core], answers[core][:32]))
            with m.If(answered):
                m.d.comb += self.answer.ready.eq(port.response.ready)
            with m.If(gone[core]):
                m.d.comb += [core_of_response.eq(core), data_of_response.eq(port.response.payload.data)]
                m.d.uncore += [busy[core].eq(0), here[core].eq(0)]
            with m.If(self.completed & (self.completed_core == core)):
                m.d.uncore += self.reading[core].eq(0)
        self.response.emit(m, gone.any(), core=core_of_response, data=data_of_response)
        return gone.any()
