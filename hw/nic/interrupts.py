"""Interrupts: causes, masks, moderation and MSI-X messages (datasheet sections 7.3 and 8.2.3.5)."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_BYTES
from hw.bus.tlp import TlpHeader, TlpStream, TlpType
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH, Timer

from .layouts import RegisterBus, register_layout
from .registers import MSIX_ENTRY_BYTES, MSIX_PBA, QUEUE_CAUSES, REG, REGISTERS

__all__ = ["InterruptVector", "Interrupts", "MsixEntry"]

#: Unit of EITR.INTERVAL in nanoseconds (datasheet section 8.2.3.5, at 10 Gb/s).
EITR_UNIT_NS = 2048

#: EICR bits that are not queues', and those that reading clears with GPIE.OCD.
OTHER_CAUSES = 0x7FFF_0000
CLEARED_WITH_OCD = 0x3FFF_0000

#: Word of an MSI-X table entry that holds the vector control.
MSIX_CONTROL_WORD = 3

#: Fraction bits of EITR_UNIT_NS in cycles.
_UNIT_FRACTION = 8


class MsixEntry(data.Struct):
    """An entry of the MSI-X table (PCI Local Bus Specification 3.0, section 6.8.2)."""

    address: 64
    data: 32
    control: 32  #: bit 0 masks


class InterruptVector(wiring.Component):
    """Moderates one vector: ``fire`` when ``request`` is high, has not been answered yet, and the time has come.

    ``sent``: a message goes out at this edge; the next may not before EITR.INTERVAL has passed. ``consumed``: the
    message cleared or masked its causes, so a request is a new one. ``acknowledged``: software cleared one of them.
    """

    request: In(1)
    blocked: In(1)  #: masked in the MSI-X table
    eitr: In(register_layout(REG.EITR))
    restart: In(1)  #: EITR is written without CNT_WDIS: the running interval ends
    sent: In(1)
    consumed: In(1)
    acknowledged: In(1)
    reset: In(1)
    now: In(NOW_WIDTH)
    fire: Out(1)
    pending: Out(1)  #: the bit in the pending bit array
    quiet: Out(1)

    def __init__(self, config: MachineConfig):
        super().__init__()
        self.unit = round(config.clocks.khz("nic") * EITR_UNIT_NS * 2**_UNIT_FRACTION / 1_000_000)
        self.moderation = Timer("nic")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        answered = Signal()
        earliest = Signal(NOW_WIDTH)
        wants = self.request & ~answered
        m.d.comb += [
            self.fire.eq(wants & ~self.blocked & (self.now >= earliest)),
            self.pending.eq(wants & self.blocked),
            self.moderation.armed.eq(wants & ~self.blocked),
            self.moderation.deadline.eq(earliest),
        ]
        with m.If(answered & (~self.request | self.acknowledged)):
            m.d.nic += answered.eq(0)
        with m.If(self.sent):
            interval = (self.eitr.INTERVAL * self.unit + (2**_UNIT_FRACTION - 1)) >> _UNIT_FRACTION
            m.d.nic += [answered.eq(~self.consumed), earliest.eq(self.now + interval)]
        with m.Elif(self.restart | self.reset):
            m.d.nic += earliest.eq(0)
        with m.If(self.reset):
            m.d.nic += answered.eq(0)
        stale = answered & (~self.request | self.acknowledged)
        m.d.comb += self.quiet.eq(~self.fire & ~self.sent & ~stale & ~self.restart & ~self.reset)
        return m


class Interrupts(wiring.Component):
    """Gathers causes in EICR, masks them by EIMS, moderates them by vector and sends MSI-X messages.

    ``rx_causes`` and ``tx_causes`` (one bit per queue) become EICR bits by IVAR, ``other_causes`` are EICR bits by
    themselves and have the vector of IVAR_MISC.OTHER. A cause signalled at edge t is in EICR at t + 1; its message, if
    nothing holds it back, is offered from edge t + 2 on. A cause that is masked stays in EICR, and fires when it
    is unmasked.
    EICR bit n stands for vector n; a vector above 15 has only the other causes.

    A message clears the causes in EIAC, and masks those in EIAM if GPIE.EIAME. A cause that stays set
    sends no second message until software has cleared it. No message is sent unless GPIE.MSIX_MODE is on.
    """

    def __init__(self, config: MachineConfig, queues: int = 1):
        self.queues, count = queues, config.nic.msix_vectors
        super().__init__(
            {
                "bus": In(RegisterBus()),
                "eiac": In(register_layout(REG.EIAC)),
                "eiam": In(register_layout(REG.EIAM)),
                "gpie": In(register_layout(REG.GPIE)),
                "ivar_misc": In(register_layout(REG.IVAR_MISC)),
                "ivar": In(register_layout(REG.IVAR)).array((queues + 1) // 2),
                "eitr": In(register_layout(REG.EITR)).array(count),
                "rx_causes": In(queues),
                "tx_causes": In(queues),
                "other_causes": In(32),
                "reset": In(1),
                "now": In(NOW_WIDTH),
                "eicr": Out(32),
                "eims": Out(32),
                "table_data": Out(32),  #: the word of BAR3 at ``bus.offset``
                "send": Out(TlpStream),
                "idle": Out(1),
                "quiet": Out(1),
            }
        )
        self.vectors = [InterruptVector(config) for _ in range(count)]
        self.msix = Probe("nic", "an MSI-X message is sent", vector=8, cause=32)
        self.messages = Counter("nic", "MSI-X messages")
        self.causes = Counter("nic", "edges at which a cause was signalled, by hardware or by EICS")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules += self.vectors
        causes, masks = Signal(32), Signal(32)
        count = len(self.vectors)
        blocked, fire, pending = Signal(count, init=2**count - 1), Signal(count), Signal(count)
        unmasked = Signal(32)
        m.d.comb += [
            unmasked.eq(causes & masks),
            fire.eq(Cat(vector.fire for vector in self.vectors)),
            pending.eq(Cat(vector.pending for vector in self.vectors)),
        ]

        strobes = {register.name: Signal(name=register.name) for register in (REG.EICR, REG.EICS, REG.EIMS, REG.EIMC)}
        seen = Signal()
        word = Signal(32)  # what is written, by the 16 causes of the extended registers or by all of them
        with m.If(self.bus.write & ~self.bus.table), m.Switch(self.bus.offset):
            for name, strobe in strobes.items():
                with m.Case(REGISTERS[name].offset()):
                    m.d.comb += [strobe.eq(1), word.eq(self.bus.data)]
                if f"{name}_EX" in REGISTERS:
                    with m.Case(REGISTERS[f"{name}_EX"].offset()):
                        m.d.comb += [strobe.eq(1), word.eq(self.bus.data[:QUEUE_CAUSES])]
            for index, vector in enumerate(self.vectors):
                with m.Case(REG.EITR.offset(index)):
                    m.d.comb += vector.restart.eq(~self.bus.data[REG.EITR.CNT_WDIS.low])
        with m.If(self.bus.read & ~self.bus.table), m.Switch(self.bus.offset):
            with m.Case(REG.EICR.offset()):
                m.d.comb += seen.eq(1)

        # Messages: the lowest vector first
        chosen, send, busy = Signal(range(count)), Signal(), Signal()
        chosen_causes = Signal(32)
        with m.If(fire.any() & ~busy & ~self.reset):
            for index in reversed(range(count)):
                with m.If(fire[index]):
                    m.d.comb += chosen.eq(index)
            m.d.comb += [send.eq(1), chosen_causes.eq(unmasked & self._causes_of(chosen))]
        self._table(m, chosen, send, busy, chosen_causes, blocked, pending)

        # Causes
        raised, clear, message_clear = Signal(32), Signal(32), Signal(32)
        with m.If(self.rx_causes.any() | self.tx_causes.any() | self.other_causes.any() | strobes["EICS"]):
            m.d.comb += raised.eq(self._map_queues() | self.other_causes | Mux(strobes["EICS"], word, 0))
        with m.If(seen):
            m.d.comb += clear.eq(Mux(self.gpie.OCD, CLEARED_WITH_OCD, 2**32 - 1))
        with m.If(strobes["EICR"]):
            m.d.comb += clear.eq(word)
        with m.If(send):
            m.d.comb += message_clear.eq(chosen_causes & self.eiac.value)
        with m.If(raised.any() | clear.any() | send):
            m.d.nic += causes.eq((causes & ~clear & ~message_clear) | raised)

        # Masks
        mask, unmask = Signal(32), Signal(32)
        with m.If(strobes["EIMS"]):
            m.d.comb += unmask.eq(word)
        with m.If(strobes["EIMC"]):
            m.d.comb += mask.eq(word)
        with m.If(self.gpie.EIAME):
            with m.If(send):
                m.d.comb += mask.eq(chosen_causes & self.eiam.value)
                with m.If(strobes["EIMC"]):
                    m.d.comb += mask.eq((chosen_causes & self.eiam.value) | word)
        with m.Else():
            with m.If(seen | strobes["EICR"]):
                m.d.comb += mask.eq(clear & self.eiam.value)
            with m.If(strobes["EICS"]):
                m.d.comb += unmask.eq(word & self.eiam.value)
        with m.If(mask.any() | unmask.any()):
            m.d.nic += masks.eq((masks & ~mask) | unmask)

        with m.If(self.reset):
            m.d.nic += [causes.eq(0), masks.eq(0)]
        m.d.comb += [
            self.eicr.eq(Cat(causes[:31], (causes & OTHER_CAUSES).any())),
            self.eims.eq(masks),
        ]
        self.causes.increment(m, raised.any())

        self._moderate(m, unmasked, clear, chosen, send, blocked, message_clear | mask, chosen_causes)
        m.d.comb += [
            self.idle.eq(~busy),
            self.quiet.eq(
                Cat(vector.quiet for vector in self.vectors).all()
                & ~busy
                & ~self.rx_causes.any()
                & ~self.tx_causes.any()
                & ~self.other_causes.any()
                & ~self.bus.write
                & ~self.bus.read
                & ~self.reset
            ),
        ]
        return m

    def _causes_of(self, vector):
        """EICR bits that vector ``vector`` (a value) announces."""
        own = (Const(1, QUEUE_CAUSES) << vector)[:QUEUE_CAUSES]
        others = self.ivar_misc.OTHER_VALID & (self.ivar_misc.OTHER == vector)
        return own | Mux(others, OTHER_CAUSES, 0)

    def _map_queues(self):
        """EICR bits of the queues that signal a cause."""
        bits = 0
        for queue in range(self.queues):
            entry, place = self.ivar[queue // 2], "ODD" if queue % 2 else "EVEN"
            for causes, way in ((self.rx_causes, "RX"), (self.tx_causes, "TX")):
                vector, valid = getattr(entry, f"{way}_{place}"), getattr(entry, f"{way}_{place}_VALID")
                bits |= Mux(causes[queue] & valid, (Const(1, QUEUE_CAUSES) << vector)[:QUEUE_CAUSES], 0)
        return bits

    def _moderate(self, m, unmasked, clear, chosen, send, blocked, consumed, chosen_causes):
        """Connect the vectors."""
        for index, vector in enumerate(self.vectors):
            causes = Signal(32, name=f"causes{index}")
            with m.If(self.gpie.MSIX_MODE & unmasked.any()):
                m.d.comb += causes.eq(unmasked & self._causes_of(index))
            m.d.comb += [
                vector.request.eq(causes.any()),
                vector.acknowledged.eq((causes & clear).any()),
                vector.blocked.eq(blocked[index]),
                vector.eitr.eq(self.eitr[index]),
                vector.sent.eq(send & (chosen == index)),
                vector.consumed.eq((chosen_causes & ~consumed) == 0),
                vector.reset.eq(self.reset),
                vector.now.eq(self.now),
            ]

    def _table(self, m, chosen, send, busy, causes, blocked, pending):
        """The MSI-X table, the pending bits behind it, and the message made from an entry."""
        count = len(self.vectors)
        m.submodules.table = table = Memory(
            shape=data.ArrayLayout(32, MSIX_ENTRY_BYTES // 4), depth=count, init=[[0, 0, 0, 1]] * count
        )
        write = table.write_port(domain="nic", granularity=1)
        entry_read, bus_read = table.read_port(domain="comb"), table.read_port(domain="comb")
        index, word = self.bus.offset >> 4, self.bus.offset[2:4]
        inside = index < count
        m.d.comb += [
            write.addr.eq(index),
            write.data.eq(self.bus.data.replicate(4)),
            bus_read.addr.eq(index),
            entry_read.addr.eq(chosen),
        ]
        with m.If(self.bus.write & self.bus.table & inside):
            m.d.comb += write.en.eq(1 << word)
            with m.If(word == MSIX_CONTROL_WORD):
                m.d.nic += blocked.bit_select(index[: max(1, (count - 1).bit_length())], 1).eq(self.bus.data[0])
        with m.If(inside):
            m.d.comb += self.table_data.eq(bus_read.data[word])
        with m.Elif(self.bus.offset >> 3 == MSIX_PBA >> 3):
            m.d.comb += self.table_data.eq(Mux(self.bus.offset[2], pending[32:], pending[:32]))

        header, message, vector, cause = Signal(TlpHeader), Signal(32), Signal.like(chosen), Signal(32)
        with m.If(send):
            entry = data.View(MsixEntry, entry_read.data.as_value())
            m.d.nic += [
                header.kind.eq(TlpType.MEMORY_WRITE),
                header.address.eq(entry.address),
                header.length.eq(4),
                message.eq(entry.data),
                vector.eq(chosen),
                cause.eq(causes),
                busy.eq(1),
            ]
        with m.Elif(self.send.ready):
            m.d.nic += busy.eq(0)
        m.d.comb += [
            self.send.valid.eq(busy),
            self.send.payload.header.eq(header),
            self.send.payload.first.eq(1),
            self.send.payload.last.eq(1),
        ]
        # In all lanes: those beside the address do not count
        m.d.comb += self.send.payload.data.eq(message.replicate(LINE_BYTES // 4))
        gone = busy & self.send.ready
        self.msix.emit(m, gone, vector=vector, cause=cause)
        self.messages.increment(m, gone)
