"""The IOMMU's registers, the commands they give, and the faults they record."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.translate import FRAME_WIDTH
from hw.lib.probe import Counter, Probe
from hw.pcie.messages import CORE_WIDTH, InterruptMessage, interrupt_core

from .layouts import DOMAIN_WIDTH, PAGE_WIDTH, REASON_WIDTH
from .registers import DMAR, FAULT_RECORD_BYTES, FAULT_RECORDS, Granularity, Register, capabilities
from .tables import REQUESTER_ID

__all__ = ["Fault", "RegisterFile", "RegisterPort"]

OFFSET_WIDTH = 12


class RegisterPort(wiring.Signature):
    """Accesses of cores, seen from who makes them: 4 or 8 bytes, aligned to 4, answered in the same cycle."""

    def __init__(self):
        super().__init__(
            {
                "access": Out(1),
                "write": Out(1),
                "offset": Out(OFFSET_WIDTH),
                "wide": Out(1),  #: 8 bytes
                "data": Out(64),
                "answer": In(64),
            }
        )

    def __eq__(self, other):
        return isinstance(other, RegisterPort)


class Fault(data.Struct):
    """A request that was blocked."""

    page: PAGE_WIDTH
    read: 1
    reason: REASON_WIDTH


class _State(enum.Enum, shape=2):
    IDLE = 0
    DRAIN = 1  #: until nothing is under way
    APPLY = 2
    FORGET = 3  #: one page


class RegisterFile(wiring.Component):
    """Registers of :class:`~hw.pcie.iommu.registers.DMAR`, in domain ``uncore``.

    A command (GCMD.TE or SRTP, CCMD, IOTLB) stops new requests (``hold``), waits until all that were taken have gone,
    all walks have ended and all their accesses to memory are done (``idle``), takes effect, and tells by its status
    bit: so no request that comes later uses what was dropped, and none that came before is under way. Several
    commands given meanwhile take effect together.

    A fault goes to the next record, in turn; if that still holds one, FSTS.PFO is set and the fault is lost. A first
    fault in FSTS makes an interrupt message, unless FECTL.IM keeps it back as FECTL.IP.

    Ports:
        port: accesses; a write takes effect at this edge.
        enabled, root_table: as taken over.
        hold: no new requests; idle: see above.
        flush_context, flush_pages, flush_structures: caches are emptied at this edge.
        forget, page, domain, forgotten: one page is dropped from the IOTLB.
        fault_valid, fault: a request is blocked, at this edge.
        interrupt: the fault event's message.
        moving: the next edge changes something here.
    """

    def __init__(self, address_width: int, cores: int):
        self.cores = cores
        self.cap, self.ecap = capabilities(address_width)
        super().__init__(
            {
                "port": In(RegisterPort()),
                "enabled": Out(1),
                "root_table": Out(FRAME_WIDTH),
                "hold": Out(1),
                "idle": In(1),
                "flush_context": Out(1),
                "flush_pages": Out(1),
                "flush_structures": Out(1),
                "forget": Out(1),
                "page": Out(PAGE_WIDTH),
                "domain": Out(DOMAIN_WIDTH),
                "forgotten": In(1),
                "fault_valid": In(1),
                "fault": In(Fault),
                "interrupt": Out(stream.Signature(InterruptMessage)),
                "moving": Out(1),
            }
        )
        self.fault_recorded = Probe(
            "uncore", "a device's access was blocked by the IOMMU",
            address=64, read=1, reason=REASON_WIDTH, lost=1,
        )  # fmt: skip
        self.invalidated = Probe("uncore", "an IOMMU invalidation took effect", granularity=2, address=64, context=1)
        self.faults = Counter("uncore", "device accesses blocked by the IOMMU")
        self.faults_lost = Counter("uncore", "of these, not recorded: no record was free")
        self.invalidations = Counter("uncore", "IOTLB invalidations")
        self._written: dict[int, tuple[Signal, Signal]] = {}  # by offset: a 32-bit word is written, with what

    def elaborate(self, platform):
        """Place the registers, then commands, faults and reading."""
        m = Module()
        self._written.clear()
        values: dict[int, Signal] = {}  # what is read, by offset of the 32-bit word
        applied = self._commands(m, values)
        changed = self._faults(m, values)
        for register, value in ((DMAR.CAP, self.cap), (DMAR.ECAP, self.ecap)):
            values[register.offset], values[register.offset + 4] = value % (1 << 32), value >> 32
        values[DMAR.VER.offset] = DMAR.VER.MAX.put(1)
        self._read(m, values)
        m.d.comb += self.moving.eq((self.port.access & self.port.write) | applied | changed)
        return m

    def _word(self, m: Module, offset: int) -> tuple[Signal, Signal]:
        """Whether the 32-bit word at ``offset`` is written at this edge, and with what."""
        if offset not in self._written:
            strobe, value = Signal(name=f"write_{offset:03x}"), Signal(32, name=f"value_{offset:03x}")
            port = self.port
            with m.If(port.access & port.write):
                second = port.wide & (port.offset == offset - 4)
                m.d.comb += [
                    strobe.eq((port.offset == offset) | second),
                    value.eq(Mux(second, port.data[32:], port.data[:32])),
                ]
            self._written[offset] = strobe, value
        return self._written[offset]

    def _storage(self, m: Module, values: dict, register: Register) -> Signal:
        """A register that keeps what is written to its fields."""
        kept = Signal(register.width, name=register.name.lower())
        mask = sum(each.mask for each in register.fields) or (1 << register.width) - 1
        for at in range(0, register.width, 32):
            strobe, value = self._word(m, register.offset + at // 8)
            values[register.offset + at // 8] = kept[at : at + 32]
            with m.If(strobe):
                m.d.uncore += kept[at : at + 32].eq(value & (mask >> at) % (1 << 32))
        return kept

    def _commands(self, m: Module, values: dict) -> Signal:
        """GCMD, CCMD and IOTLB; returns whether something happens."""
        rtaddr, iva = self._storage(m, values, DMAR.RTADDR), self._storage(m, values, DMAR.IVA)
        del values[DMAR.IVA.offset], values[DMAR.IVA.offset + 4]  # write-only
        state = Signal(_State)
        wanted, root_wanted, root_set = Signal(), Signal(), Signal()
        strobe, value = self._word(m, DMAR.GCMD.offset)
        with m.If(strobe):
            m.d.uncore += wanted.eq(_get(DMAR.GCMD.TE, value))
            with m.If(_get(DMAR.GCMD.SRTP, value)):
                m.d.uncore += [root_wanted.eq(1), root_set.eq(0)]
        values[DMAR.GSTS.offset] = Cat(Const(0, 30), root_set, self.enabled)

        # The upper halves of CCMD and IOTLB give the command
        context_wanted, context_granted = Signal(), Signal(2)
        strobe, value = self._word(m, DMAR.CCMD.offset + 4)
        with m.If(strobe & _high(DMAR.CCMD.ICC, value)):
            m.d.uncore += context_wanted.eq(1)
        values[DMAR.CCMD.offset] = 0
        values[DMAR.CCMD.offset + 4] = Cat(Const(0, 27), context_granted, Const(0, 2), context_wanted)
        pages_wanted, granted, granularity = Signal(), Signal(2), Signal(2)
        strobe, value = self._word(m, DMAR.IOTLB.offset + 4)
        with m.If(strobe):
            m.d.uncore += [granularity.eq(_high(DMAR.IOTLB.IIRG, value)), self.domain.eq(_high(DMAR.IOTLB.DID, value))]
            with m.If(_high(DMAR.IOTLB.IVT, value)):
                m.d.uncore += pages_wanted.eq(1)
        values[DMAR.IOTLB.offset] = 0
        values[DMAR.IOTLB.offset + 4] = Cat(Const(0, 25), granted, Const(0, 1), granularity, Const(0, 1), pages_wanted)

        # One after the other: stop, wait, do
        one_page, asked = Signal(), Signal()
        m.d.comb += [
            asked.eq((wanted != self.enabled) | root_wanted | context_wanted | pages_wanted),
            self.hold.eq((state != _State.IDLE) | asked),
            one_page.eq((granularity == Granularity.PAGE) & (_get(DMAR.IVA.AM, iva) == 0)),
            self.page.eq(_get(DMAR.IVA.ADDR, iva)),
        ]
        steps = Signal()
        with m.Switch(state):
            with m.Case(_State.IDLE):
                m.d.comb += steps.eq(asked)
                with m.If(asked):
                    m.d.uncore += state.eq(_State.DRAIN)
            with m.Case(_State.DRAIN):
                m.d.comb += steps.eq(self.idle)
                with m.If(self.idle):
                    m.d.uncore += state.eq(_State.APPLY)
            with m.Case(_State.APPLY):
                m.d.comb += [
                    steps.eq(1),
                    self.flush_context.eq(context_wanted),
                    self.flush_pages.eq(pages_wanted & ~one_page),
                    self.flush_structures.eq(pages_wanted & ~(one_page & _get(DMAR.IVA.IH, iva))),
                ]
                m.d.uncore += [self.enabled.eq(wanted), state.eq(_State.IDLE)]
                with m.If(root_wanted):
                    m.d.uncore += [
                        self.root_table.eq(_get(DMAR.RTADDR.RTA, rtaddr)),
                        root_wanted.eq(0),
                        root_set.eq(1),
                    ]
                with m.If(context_wanted):
                    m.d.uncore += [context_wanted.eq(0), context_granted.eq(Granularity.GLOBAL)]
                with m.If(pages_wanted & one_page):
                    m.d.uncore += state.eq(_State.FORGET)
                with m.Elif(pages_wanted):
                    m.d.uncore += [
                        pages_wanted.eq(0),
                        granted.eq(Mux(granularity == Granularity.PAGE, Granularity.DOMAIN, granularity)),
                    ]
            with m.Case(_State.FORGET):
                m.d.comb += [self.forget.eq(1), steps.eq(1)]
                with m.If(self.forgotten):
                    m.d.uncore += [state.eq(_State.IDLE), pages_wanted.eq(0), granted.eq(Granularity.PAGE)]
        happens = self.flush_context | self.flush_pages | self.forgotten
        self.invalidated.emit(
            m,
            happens,
            granularity=Mux(self.flush_pages, Mux(one_page, 0, granularity), Mux(self.forgotten, Granularity.PAGE, 0)),
            address=Cat(Const(0, 12), self.page),
            context=self.flush_context,
        )
        self.invalidations.increment(m, self.flush_pages | self.forgotten)
        return steps

    def _faults(self, m: Module, values: dict) -> Signal:
        """Records, status and the fault event; returns whether something happens besides accesses."""
        holds = Signal(FAULT_RECORDS)
        next_record = Signal(range(FAULT_RECORDS))
        overflow = Signal()
        room = Signal()
        m.d.comb += room.eq(~holds.bit_select(next_record, 1))
        with m.If(self.fault_valid & room):
            m.d.uncore += next_record.eq(next_record + 1)
        set_, clear = Signal(FAULT_RECORDS), Signal(FAULT_RECORDS)
        for number in range(FAULT_RECORDS):
            low = DMAR.FRCD_LOW.offset + FAULT_RECORD_BYTES * number
            record = Signal(Fault, name=f"record{number}")
            strobe, value = self._word(m, low + 12)
            m.d.comb += [
                set_[number].eq(self.fault_valid & room & (next_record == number)),
                clear[number].eq(strobe & _high(DMAR.FRCD_HIGH.F, value)),
            ]
            with m.If(set_[number]):
                m.d.uncore += record.eq(self.fault)
            address = Cat(Const(0, 12), record.page)
            values[low], values[low + 4] = address[:32], address[32:]
            values[low + 8] = REQUESTER_ID
            values[low + 12] = Cat(record.reason, Const(0, 30 - REASON_WIDTH), record.read, holds[number])
        held = Signal(FAULT_RECORDS)
        m.d.comb += held.eq((holds | set_) & ~(clear & ~set_))
        with m.If((set_ | clear).any()):
            m.d.uncore += holds.eq(held)
        strobe, value = self._word(m, DMAR.FSTS.offset)
        with m.If(self.fault_valid & ~room):
            m.d.uncore += overflow.eq(1)
        with m.Elif(strobe & _get(DMAR.FSTS.PFO, value)):
            m.d.uncore += overflow.eq(0)
        first = Signal(8)
        for number in reversed(range(FAULT_RECORDS)):
            with m.If(holds[number]):
                m.d.comb += first.eq(number)
        values[DMAR.FSTS.offset] = Cat(overflow, holds.any(), Const(0, 6), first)

        # The fault event
        message, address, _ = (
            self._storage(m, values, register) for register in (DMAR.FEDATA, DMAR.FEADDR, DMAR.FEUADDR)
        )
        masked, pending = Signal(init=1), Signal()
        strobe, value = self._word(m, DMAR.FECTL.offset)
        with m.If(strobe):
            m.d.uncore += masked.eq(_get(DMAR.FECTL.IM, value))
        values[DMAR.FECTL.offset] = Cat(Const(0, 30), pending, masked)
        status = holds.any() | overflow
        event = self.fault_valid & ~status
        core = interrupt_core(address)
        goes = pending & ~masked
        m.d.comb += [
            self.interrupt.valid.eq(goes & (core < self.cores)),
            self.interrupt.payload.core.eq(core[:CORE_WIDTH]),
            self.interrupt.payload.vector.eq(message % 256),
        ]
        done = Signal()
        m.d.comb += done.eq(Mux(goes, self.interrupt.ready | ~self.interrupt.valid, pending & ~status))
        with m.If(event):
            m.d.uncore += pending.eq(1)
        with m.Elif(done):
            m.d.uncore += pending.eq(0)

        self.fault_recorded.emit(
            m,
            self.fault_valid,
            address=Cat(Const(0, 12), self.fault.page),
            read=self.fault.read,
            reason=self.fault.reason,
            lost=~room,
        )
        self.faults.increment(m, self.fault_valid)
        self.faults_lost.increment(m, self.fault_valid & ~room)
        return self.fault_valid | done

    def _read(self, m: Module, values: dict) -> None:
        """Answer a read: two words if it is of 8 bytes. What is not there reads 0."""
        port = self.port
        with m.If(port.access & ~port.write):
            for half in range(2):
                with m.Switch(port.offset + 4 * half):
                    for offset, value in values.items():
                        with m.Case(offset):
                            m.d.comb += port.answer[32 * half : 32 * half + 32].eq(value)
            with m.If(~port.wide):
                m.d.comb += port.answer[32:].eq(0)


def _get(field, value):
    """A field of a register's value."""
    return value[field.low : field.low + field.width]


def _high(field, value):
    """A field of a 64-bit register, in its upper half."""
    return value[field.low - 32 : field.low - 32 + field.width]
