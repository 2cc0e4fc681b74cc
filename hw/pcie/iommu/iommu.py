"""Translates the addresses of what the card sends, packet by packet."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.memory import DeviceRequest, DeviceResponse
from hw.bus.tlp import TlpBeat, TlpStream, TlpType
from hw.bus.translate import PAGE_BITS
from hw.config import MachineConfig
from hw.lib.probe import Counter
from hw.lib.time import NOW_WIDTH
from hw.memory_map import MSI_BASE, MSI_BYTES
from hw.pcie.messages import InterruptMessage
from hw.pcie.queue import Queue

from .caches import TranslationCaches
from .layouts import PAGE_WIDTH, Level, Translated, WalkContext
from .register_file import RegisterFile, RegisterPort
from .registers import FaultReason
from .walkers import Walkers

__all__ = ["BEATS", "LOOKUP_LEAST", "REQUESTS", "Iommu"]

#: Packets that can be inside: enough for as many reads as the card may have under way.
REQUESTS = 32
#: Beats that can be inside.
BEATS = 64
#: Least cycles of a lookup.
LOOKUP_LEAST = 2


class Iommu(wiring.Component):
    """Stands between the link and the decoder of the root complex, in domain ``uncore``.

    Packets leave in the order in which they came. Every read and write of the card is looked up by its page (a packet
    lies within one of 4 KiB) as it comes in, one per cycle; what misses is walked for, ``iommu.walks`` pages at once,
    while others behind it are looked up. So posted writes stay in order, and a walk is waited for once, not again by
    what comes behind it. Interrupt messages and completions pass, and everything does while translation is off.

    Timing: with nothing in front of it, a packet whose first beat is accepted at edge t is offered from edge t + 1 on
    if it passes; from ``t + iommu.lookup_cycles`` on if the IOTLB has its page; on a miss the walk starts then, see
    :class:`~hw.pcie.iommu.walkers.Walkers`: with n entries to be read that each take ``a`` cycles from offer to
    answer, it is offered from ``t + iommu.lookup_cycles + n * (a + 1) + 3`` on. One beat per cycle.

    A request that has no access is marked ``blocked``, recorded and told to software, see
    :class:`~hw.pcie.iommu.register_file.RegisterFile`; its address stays as it came.

    Ports:
        input: from the link; output, blocked: to the decoder.
        request, response_valid, response: line reads of walks; tags from 0 on.
        registers: accesses of cores.
        interrupt: a fault event.
        now: number of the next edge.
        drained: every access to memory handed on so far has taken place.
        moving: the next edge changes something here, given the inputs as they are.
    """

    def __init__(self, config: MachineConfig):
        iommu = config.iommu
        self.stages = iommu.lookup_cycles - LOOKUP_LEAST
        self.address_width = iommu.address_width
        self.beats = Queue(TlpBeat, BEATS, "uncore")
        self.caches = TranslationCaches(iommu)
        self.walkers = Walkers(
            iommu.walks, REQUESTS, config.dram.size_mib << 20, config.cycles("uncore", iommu.walk_read_ns)
        )
        self.register_file = RegisterFile(iommu.address_width, config.core.count)
        self.lookups = Counter("uncore", "device requests looked up in the IOTLB")
        self.hits_4k = Counter("uncore", "of these, hits of a 4 KiB page")
        self.hits_2m = Counter("uncore", "of these, hits of a 2 MiB page")
        self.misses = Counter("uncore", "of these, requests that waited for a page walk")
        super().__init__(
            {
                "input": In(TlpStream),
                "output": Out(TlpStream),
                "blocked": Out(1),
                "request": Out(stream.Signature(DeviceRequest)),
                "response_valid": In(1),
                "response": In(DeviceResponse),
                "registers": In(RegisterPort()),
                "interrupt": Out(stream.Signature(InterruptMessage)),
                "now": In(NOW_WIDTH),
                "drained": In(1),
                "moving": Out(1),
            }
        )

    def elaborate(self, platform):
        """Place the parts, then accepting, looking up, and handing on."""
        m = Module()
        m.submodules.beats = beats = self.beats
        m.submodules.caches = self.caches
        m.submodules.walkers = walkers = self.walkers
        m.submodules.registers = file = self.register_file
        m.submodules.found = found = Memory(shape=Translated, depth=REQUESTS, init=[])
        connect(m, flipped(self.registers), file.port)
        connect(m, file.interrupt, flipped(self.interrupt))
        connect(m, walkers.request, flipped(self.request))
        connect(m, walkers.fill, self.caches.fill)

        # Packets inside, in the order of their numbers
        tail, head = Signal(range(REQUESTS)), Signal(range(REQUESTS))
        used = Signal(range(REQUESTS + 1))
        passes, done = Signal(REQUESTS), Signal(REQUESTS)
        taken, gone = Signal(), Signal()  # a packet comes in with its first beat, and leaves with its last
        with m.If(taken):
            m.d.uncore += tail.eq(tail + 1)
        with m.If(gone):
            m.d.uncore += head.eq(head + 1)
        with m.If(taken != gone):
            m.d.uncore += used.eq(Mux(taken, used + 1, used - 1))

        # Accept
        beat = self.input.payload
        advance, translate, transfer = Signal(), Signal(), Signal()
        with m.If(self.input.valid & beat.first):
            header = beat.header
            message = (header.address >= MSI_BASE) & (header.address < MSI_BASE + MSI_BYTES)
            m.d.comb += translate.eq(file.enabled & (header.kind != TlpType.COMPLETION) & ~message)
        may_begin = (used != REQUESTS) & ~file.hold & (advance | ~translate)
        m.d.comb += [
            self.input.ready.eq(beats.input.ready & (~beat.first | may_begin)),
            transfer.eq(self.input.valid & self.input.ready),
            beats.input.valid.eq(transfer),
            beats.input.payload.eq(beat),
            taken.eq(transfer & beat.first),
        ]
        with m.If(taken):
            m.d.uncore += [
                passes.bit_select(tail, 1).eq(~translate),
                done.bit_select(tail, 1).eq(~translate),
            ]
        page = beat.header.address >> PAGE_BITS
        looking = self._look(m, taken & translate, page, tail, advance, found, done)

        # Hand on
        out, blocked = beats.output.payload, Signal()
        record = found.read_port(domain="comb")
        translated = record.data
        is_read = out.header.kind == TlpType.MEMORY_READ
        reason = Signal.like(translated.reason)
        m.d.comb += [
            record.addr.eq(head),
            self.output.payload.eq(out),
            self.output.valid.eq(beats.output.valid & done.bit_select(head, 1)),
            beats.output.ready.eq(self.output.ready & done.bit_select(head, 1)),
            gone.eq(beats.output.valid & beats.output.ready & out.last),
            self.blocked.eq(blocked),
        ]
        with m.If(self.output.valid & ~passes.bit_select(head, 1)):
            with m.If(translated.reason != 0):
                m.d.comb += reason.eq(translated.reason)
            with m.Elif(is_read & ~translated.read):
                m.d.comb += reason.eq(FaultReason.READ)
            with m.Elif(~is_read & ~translated.write):
                m.d.comb += reason.eq(FaultReason.WRITE)
            m.d.comb += blocked.eq(reason != 0)
            with m.If(~blocked):
                address = Cat(out.header.address[:PAGE_BITS], translated.frame)
                m.d.comb += self.output.payload.header.address.eq(address)
        m.d.comb += [
            file.fault_valid.eq(beats.output.valid & beats.output.ready & out.first & blocked),
            file.fault.page.eq(out.header.address >> PAGE_BITS),
            file.fault.read.eq(is_read),
            file.fault.reason.eq(reason),
            file.idle.eq((used == 0) & ~walkers.busy & self.drained),
        ]
        m.d.comb += self.moving.eq(
            transfer
            | (self.output.valid & self.output.ready)
            | looking
            | walkers.moving
            | self.caches.moving
            | file.moving
        )
        return m

    def _look(self, m: Module, valid, page, slot, advance: Signal, found: Memory, done: Signal) -> Signal:
        """Look requests up, one per cycle; returns whether something happens.

        The last stage holds the request that is answered by the caches: it is done, or a walk's, or waits for one.
        """
        caches, walkers, file = self.caches, self.walkers, self.register_file
        stage = data.StructLayout({"valid": 1, "page": PAGE_WIDTH, "slot": range(REQUESTS)})
        entering = Signal(stage)
        m.d.comb += [entering.valid.eq(valid), entering.page.eq(page), entering.slot.eq(slot)]
        stages = [entering, *(Signal(stage, name=f"stage{number}") for number in range(self.stages))]
        answered, waits = Signal(stage), Signal()  # waits: for a free walk, with nothing found
        for before, after in zip(stages, [*stages[1:], answered], strict=True):
            with m.If(advance):
                m.d.uncore += after.valid.eq(before.valid)
                with m.If(before.valid):
                    m.d.uncore += [after.page.eq(before.page), after.slot.eq(before.slot)]
        first_level, first_table = Signal(range(Level.ROOT + 1)), Signal.like(caches.table)

        # The device's context, once a walk has read it
        known, context = Signal(), Signal(WalkContext)
        with m.If(walkers.context_found):
            m.d.uncore += [known.eq(1), context.eq(walkers.context)]
        with m.If(file.flush_context):
            m.d.uncore += known.eq(0)

        # Answer
        hit, settled, missed, fresh = Signal(), Signal(), Signal(), Signal()
        result = Signal(Translated)
        start = walkers.start.payload
        beyond = (answered.page >> (self.address_width - PAGE_BITS)) != 0
        with m.If(answered.valid):
            m.d.comb += [
                fresh.eq(~waits),
                result.frame.eq(caches.frame),
                result.read.eq(caches.read),
                result.write.eq(caches.write),
                hit.eq(fresh & known & caches.hit & ~context.pass_through),
                settled.eq(hit),
                start.page.eq(answered.page),
            ]
            with m.If(beyond):
                m.d.comb += [hit.eq(0), settled.eq(1), result.reason.eq(FaultReason.BEYOND_MGAW)]
            with m.Elif(known & context.pass_through):
                m.d.comb += [settled.eq(1), result.frame.eq(answered.page), result.read.eq(1), result.write.eq(1)]
            m.d.comb += missed.eq(~settled)
            # Where a walk starts
            with m.If(waits):
                m.d.comb += [start.level.eq(first_level), start.table.eq(first_table)]
            with m.Elif(~known):
                m.d.comb += [start.level.eq(Level.ROOT), start.table.eq(file.root_table)]
            with m.Elif(caches.table_hit):
                m.d.comb += [start.level.eq(Level.PAGE_TABLE), start.table.eq(caches.table)]
            with m.Elif(caches.directory_hit):
                m.d.comb += [start.level.eq(Level.DIRECTORY), start.table.eq(caches.directory)]
            with m.Else():
                m.d.comb += [start.level.eq(Level.TOP), start.table.eq(context.table)]
        stays = missed & ~walkers.start.ready
        with m.If(stays & fresh):
            m.d.uncore += [waits.eq(1), first_level.eq(start.level), first_table.eq(start.table)]
        with m.If(answered.valid & ~stays):
            m.d.uncore += waits.eq(0)
            with m.If(~advance):
                m.d.uncore += answered.valid.eq(0)
        m.d.comb += [
            advance.eq(~stays & caches.free),
            caches.look.eq(stages[-1].valid & advance),
            caches.page.eq(stages[-1].page),
            caches.domain.eq(context.domain),
            caches.asked.eq(answered.page),
            caches.use.eq(hit),
            caches.use_structures.eq(missed & fresh & walkers.start.ready),
            caches.forget.eq(file.forget),
            caches.forget_page.eq(file.page),
            caches.forget_domain.eq(file.domain),
            caches.flush.eq(file.flush_pages),
            caches.flush_structures.eq(file.flush_structures),
            file.forgotten.eq(caches.forgotten),
            walkers.now.eq(self.now),
            walkers.start.valid.eq(missed),
            walkers.start_slot.eq(answered.slot),
            walkers.response_valid.eq(self.response_valid),
            walkers.response.eq(self.response),
        ]

        # What is known of each packet inside
        by_lookup, by_walk = found.write_port(domain="uncore"), found.write_port(domain="uncore")
        m.d.comb += [
            by_lookup.en.eq(settled),
            by_lookup.addr.eq(answered.slot),
            by_lookup.data.eq(result),
            by_walk.en.eq(walkers.told),
            by_walk.addr.eq(walkers.told_slot),
            by_walk.data.eq(walkers.translated),
        ]
        with m.If(settled):
            m.d.uncore += done.bit_select(answered.slot, 1).eq(1)
        with m.If(walkers.told):
            m.d.uncore += done.bit_select(walkers.told_slot, 1).eq(1)

        self.lookups.increment(m, caches.look)
        self.hits_4k.increment(m, hit & ~caches.is_large)
        self.hits_2m.increment(m, hit & caches.is_large)
        self.misses.increment(m, missed & walkers.start.ready)
        under_way = Cat(each.valid for each in [*stages, answered]).any()
        return (under_way & advance) | settled | (missed & (walkers.start.ready | fresh))
