"""The machine ``tiny`` with a device in the card's place that does the DMA a test asks for, and with faults to plant.

Everything between the device and the cores is the machine's own: link, root complex, caches, DRAM, crossings. The
device takes its orders as frames from the wire (:func:`write_order`, :func:`read_order`), so they come at chosen cycles
whatever the cores do. The L1 caches tell when each store becomes visible.

Faults are switched on by an order (:func:`plant_order`): one compiled machine serves for all of them.
"""

import enum
from functools import partial
from unittest.mock import patch

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS, LINE_BYTES, PHYSICAL_ADDRESS_WIDTH, OpcodeC
from hw.bus.tlp import TlpHeader, TlpPort, TlpType
from hw.bus.wire import FrameBeat, SentStream, WireStream
from hw.config import CoreConfig, L1Config, MachineConfig
from hw.cpu.core_port import CorePort
from hw.cpu.store_buffer import StoreBuffer
from hw.lib.probe import Probe
from hw.lib.time import NOW_WIDTH
from hw.machine import Machine
from hw.mem.l1 import L1Cache
from hw.mem.l2 import L2Cache
from hw.mem.llc import LastLevelCache
from hw.pcie.root_complex import RootComplex

__all__ = ["DmaMachine", "Fault", "plant_order", "read_order", "write_order"]

#: Words of a line in the fields of two probes.
WORDS = LINE_BITS // 64


class Fault(enum.IntEnum):
    """What can be broken; each is a bit of the planted faults."""

    PROBE_LEAVES_LINE = 0  #: an L1 answers a Probe and keeps the line as it was
    PROBE_ACK_WITHOUT_DATA = 1  #: an L1 gives a modified line up without its data
    WRITE_BACK_LOST = 2  #: an L1 evicts a modified line and says that it is not
    MERGE_LOST = 3  #: a device's write of part of a line does not keep the other bytes
    LINE_LOST_ON_WAY_TO_CACHE = 4  #: the last level does not store what a core gave back
    READ_PASSES_WRITE = 5  #: a device's read is looked up before earlier writes of the device are visible
    L2_WRITE_BACK_LOST = 6  #: an L2 evicts a modified line without its data
    L2_PROBE_LEAVES_LINE = 7  #: an L2 answers a Probe and keeps the line as it was
    STALE_FORWARD = 8  #: a store buffer forwards from the oldest store of the bytes, not from the youngest
    FENCE_IGNORES_STORES = 9  #: fences do not wait until stores are visible


class _Kind(enum.IntEnum):
    WRITE = 0
    READ = 1
    PLANT = 2


class _Order(data.Struct):
    kind: 2
    address: PHYSICAL_ADDRESS_WIDTH
    length: 13
    faults: len(Fault)


def _order(**fields: int) -> bytes:
    return _Order.const(fields).as_bits().to_bytes(LINE_BYTES, "little")


def write_order(address: int, payload: bytes) -> bytes:
    """The frame that has ``payload`` written to ``address``."""
    lanes = bytes(address % LINE_BYTES) + payload
    return _order(kind=_Kind.WRITE, address=address, length=len(payload)) + lanes


def read_order(address: int, length: int) -> bytes:
    """The frame that has ``length`` bytes read at ``address``."""
    return _order(kind=_Kind.READ, address=address, length=length)


def plant_order(*faults: Fault) -> bytes:
    """The frame that switches on ``faults``."""
    return _order(kind=_Kind.PLANT, faults=sum(1 << fault for fault in faults))


class DmaDevice(wiring.Component):
    """Carries out one order after another: a TLP per order, reads overlapping as the card's do."""

    wire: In(WireStream)
    wire_out: Out(SentStream)  #: never used
    pcie: Out(TlpPort())
    now: In(NOW_WIDTH)
    quiet: Out(1)

    def __init__(self, faults: Signal, config: MachineConfig):
        super().__init__()
        self._read_tags = config.nic.read_tags
        self._faults = faults
        self.sent = Probe("nic", "a TLP begins", packet=PACKET_WIDTH, write=1)
        self.completion = Probe("nic", "part of a read has come", packet=PACKET_WIDTH, address=40, length=13)
        self.completion_data = [
            Probe("nic", "its line, four words of it", **{f"w{word}": 64 for word in range(WORDS // 2)})
            for _ in range(2)
        ]

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        send, receive = self.pcie.send, self.pcie.receive

        # The beat at hand
        beat, full = Signal(FrameBeat), Signal()
        done = Signal()
        m.d.comb += self.wire.ready.eq(~full)
        with m.If(self.wire.valid & self.wire.ready):
            m.d.nic += [beat.eq(self.wire.payload), full.eq(1)]
        with m.If(done):
            m.d.nic += full.eq(0)

        # The first beat is the order; what follows are the beats of a write
        order = data.View(_Order, beat.data[: _Order.as_shape().size])
        header, begun = Signal(TlpHeader), Signal()
        in_flight, asked, answered = Signal(8), Signal(), Signal()
        due = full & beat.first & (self.now >= beat.start)
        with m.If(due):
            with m.Switch(order.kind):
                with m.Case(_Kind.WRITE):
                    m.d.comb += done.eq(1)
                    m.d.nic += [
                        begun.eq(0),
                        header.kind.eq(TlpType.MEMORY_WRITE),
                        header.address.eq(order.address),
                        header.length.eq(order.length),
                        header.packet.eq(beat.packet),
                    ]
                with m.Case(_Kind.READ):
                    m.d.comb += [
                        send.valid.eq(in_flight != self._read_tags),
                        send.payload.first.eq(1),
                        send.payload.last.eq(1),
                        send.payload.header.kind.eq(TlpType.MEMORY_READ),
                        send.payload.header.address.eq(order.address),
                        send.payload.header.length.eq(order.length),
                        send.payload.header.packet.eq(beat.packet),
                        asked.eq(send.valid & send.ready),
                        done.eq(asked),
                    ]
                with m.Case(_Kind.PLANT):
                    m.d.comb += done.eq(1)
                    m.d.nic += self._faults.eq(order.faults)
        with m.If(full & ~beat.first):
            m.d.comb += [
                send.valid.eq(1),
                send.payload.first.eq(~begun),
                send.payload.last.eq(beat.last),
                send.payload.header.eq(header),
                send.payload.data.eq(beat.data),
                done.eq(send.ready),
            ]
            with m.If(send.ready):
                m.d.nic += begun.eq(1)
        begins = send.valid & send.ready & send.payload.first
        self.sent.emit(m, begins, packet=send.payload.header.packet, write=~beat.first)

        # Answers
        answer = receive.payload.header
        is_answer = receive.valid & (answer.kind == TlpType.COMPLETION)
        m.d.comb += [receive.ready.eq(1), answered.eq(is_answer & (answer.remaining == answer.length))]
        m.d.nic += in_flight.eq(in_flight + asked - answered)
        self.completion.emit(m, is_answer, packet=answer.packet, address=answer.address, length=answer.length)
        for half, probe in enumerate(self.completion_data):
            words = {
                name: receive.payload.data.word_select(half * len(probe.fields) + word, 64)
                for word, name in enumerate(probe.fields)
            }
            probe.emit(m, is_answer, **words)

        m.d.comb += self.quiet.eq(~full & ~receive.valid)
        return m


class WatchedL1(L1Cache):
    """An L1 that tells when a store is visible, and may be broken."""

    def __init__(self, faults: Signal, l1: L1Config, core: CoreConfig, domain: str):
        super().__init__(l1, core, domain)
        self._faults = faults
        self.store_visible = Probe(domain, "the oldest store becomes visible")

    def elaborate(self, platform):
        """Elaborate."""
        m = super().elaborate(platform)
        self.store_visible.emit(m, self.port.visible)
        return m

    def _do_probe(self, m):
        super()._do_probe(m)
        with m.If(self._faults[Fault.PROBE_LEAVES_LINE]):
            m.d.comb += self._write_tag.eq(0)
        with m.If(self._faults[Fault.PROBE_ACK_WITHOUT_DATA]):
            m.d[self.domain] += self.tilelink.c.payload.opcode.eq(OpcodeC.PROBE_ACK)

    def _ask_for_line(self, m):
        super()._ask_for_line(m)
        with m.If(self._faults[Fault.WRITE_BACK_LOST]):
            m.d[self.domain] += self.tilelink.c.payload.dirty.eq(0)


class FaultyL2(L2Cache):
    """An L2 that may be broken."""

    def __init__(self, faults: Signal, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._faults = faults

    def _send_below(self, m, opcode, *args, **kwargs):
        super()._send_below(m, opcode, *args, **kwargs)
        with m.If(self._faults[Fault.L2_WRITE_BACK_LOST] & (opcode == OpcodeC.RELEASE_DATA)):
            m.d[self.domain] += self.tilelink.c.payload.opcode.eq(OpcodeC.RELEASE)

    def _answer_from_here(self, m):
        super()._answer_from_here(m)
        with m.If(self._answering & self._faults[Fault.L2_PROBE_LEAVES_LINE]):
            m.d.comb += self._write_tag.eq(0)


class FaultyStoreBuffer(StoreBuffer):
    """A store buffer that may be broken."""

    def __init__(self, faults: Signal, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._faults = faults

    def elaborate(self, platform):
        """Elaborate."""
        m = super().elaborate(platform)
        others = Signal(self.depth)
        m.d.comb += others.eq(self._hits & ~(self._hits & -self._hits))
        with m.If(self.overlap & others.any() & self._faults[Fault.STALE_FORWARD]):
            m.d.comb += self._youngest.eq(others & -others)
        return m


class FaultyCorePort(CorePort):
    """A core port that may be broken."""

    def __init__(self, faults: Signal, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._faults = faults

    def _complete(self, m):
        super()._complete(m)
        with m.If(self._faults[Fault.FENCE_IGNORES_STORES]):
            m.d.comb += self.completions.stored.eq(1)


class FaultyLastLevelCache(LastLevelCache):
    """A last level that may be broken."""

    def __init__(self, faults: Signal, config: MachineConfig):
        super().__init__(config)
        self._faults = faults

    def _connect_line_buffers(self, m):
        super()._connect_line_buffers(m)
        with m.If(self._faults[Fault.MERGE_LOST]):
            m.d.comb += self.line_buffers.accepted_mask.eq(
                Mux(self.write_order.push, Const(-1, LINE_BYTES), Const(0, LINE_BYTES))
            )

    def _act(self, m):
        super()._act(m)
        with m.If(self._faults[Fault.LINE_LOST_ON_WAY_TO_CACHE]):
            m.d.comb += self.data.write_enable.eq(0)


class FaultyRootComplex(RootComplex):
    """A root complex that may be broken."""

    def __init__(self, faults: Signal, config: MachineConfig):
        super().__init__(config)
        self._faults = faults

    def _memory(self, m):
        changing = super()._memory(m)
        with m.If(self._faults[Fault.READ_PASSES_WRITE]):
            m.d.comb += self.read_engine.writes_done.eq(-1)
        return changing


class DmaMachine(Machine):
    """See the module."""

    def __init__(self, config: MachineConfig):
        faults = Signal(len(Fault), name="faults")
        with (
            patch("hw.cpu.core.CorePort", partial(FaultyCorePort, faults)),
            patch("hw.cpu.core_port.StoreBuffer", partial(FaultyStoreBuffer, faults)),
            patch("hw.cpu.core.L1Cache", partial(WatchedL1, faults)),
            patch("hw.cpu.core.L2Cache", partial(FaultyL2, faults)),
            patch("hw.machine.LastLevelCache", partial(FaultyLastLevelCache, faults)),
            patch("hw.machine.RootComplex", partial(FaultyRootComplex, faults)),
            patch("hw.machine.Nic", partial(DmaDevice, faults)),
        ):
            super().__init__(config)
