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
from hw.bus.tilelink import LINE_BITS, LINE_BYTES, PHYSICAL_ADDRESS_WIDTH, Cap, OpcodeC
from hw.bus.tlp import TlpHeader, TlpPort, TlpType
from hw.bus.wire import FrameBeat, SentStream, WireStream
from hw.config import CoreConfig, L1Config, MachineConfig
from hw.cpu.core_port import CorePort
from hw.cpu.store_buffer import StoreBuffer
from hw.lib.probe import Probe
from hw.lib.time import NOW_WIDTH
from hw.machine import Machine
from hw.mem.l1 import L1Cache
from hw.mem.l1.state import LineState
from hw.mem.l2 import L2Cache
from hw.mem.llc import LastLevelCache
from hw.mem.llc_decide import Decide
from hw.mem.llc_layouts import SlotKind
from hw.pcie.root_complex import RootComplex

__all__ = [
    "AROUND",
    "INCLUSIVE_ONLY",
    "ONLY_SLOW",
    "DmaMachine",
    "Fault",
    "plant_order",
    "read_order",
    "write_order",
]

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

    # L1 and L2: what they do with a Probe, a Grant, a Release
    PROBE_TO_SHARE_LEAVES_TRUNK = 10  #: an L1 says that it only shares a line now, and goes on writing it
    PROBE_LEAVES_BRANCH = 11  #: an L1 keeps a shared line that it says it has given up
    SHARED_GRANT_IS_WRITTEN = 12  #: an L1 takes a Grant to share a line for one to write it
    L2_PROBE_ACK_WITHOUT_DATA = 13  #: an L2 gives a modified line up without its data
    L2_GRANT_LEAVES_COPY = 14  #: a line that moves up to the L1 stays in the L2, too

    # The last level: an Acquire
    WRITER_ASKS_NOBODY = 15  #: who acquires a line to write it gets it while others hold it
    READER_ASKS_NOBODY = 16  #: who acquires a line to read it gets it while another may write it
    WRITER_PROBES_TO_SHARE = 17  #: before a write the other holders may keep a shared copy
    READER_GETS_TRUNK = 18  #: a line that others share is granted to be written
    HOLDER_NOT_RECORDED = 19  #: the snoop filter does not learn of a Grant
    OTHER_SHARERS_FORGOTTEN = 20  #: the snoop filter knows the last of several sharers only
    OWNER_NOT_RECORDED = 21  #: the snoop filter takes who may write for one who shares
    RETURNED_LINE_CLEAN = 22  #: what an owner returned to a reader is not marked dirty
    UNLOCKED_AT_GRANT = 23  #: the next transaction does not wait for the GrantAck

    # ... a ProbeAck
    FIRST_ANSWER_IS_ENOUGH = 24  #: not all holders have answered
    PROBED_DATA_LOST = 25  #: what a ProbeAckData brings is not looked at
    PROBED_DATA_CLEAN = 26  #: ... is not known to be dirty
    KEPT_COPY_FORGOTTEN = 27  #: who answers that it shares the line now is no longer in the snoop filter

    # ... a Release
    RELEASE_FORGETS_OTHERS = 28  #: a Release by one sharer removes all
    RELEASED_DATA_LOST = 29  #: what a ReleaseData brings does not reach the cache
    RELEASED_DATA_CLEAN = 30  #: ... is not marked dirty
    RELEASE_OVERLOOKED = 31  #: a Probe met a Release, and its data are not used

    # ... lines that make room
    SNOOP_FILTER_EVICTS_SILENTLY = 32  #: a line leaves the snoop filter, and its holders are not told
    BACK_INVALIDATION_TO_SHARE = 33  #: they are told that they may share it
    BACK_INVALIDATED_DATA_LOST = 34  #: what they return of a line that leaves the snoop filter is lost
    VICTIM_LOST = 35  #: a dirty line leaves the cache and does not reach DRAM
    DEVICES_VICTIM_LOST = 36  #: ... when a device's write replaces it
    CALLED_BACK_DATA_LOST = 37  #: what cores return of a line that leaves an inclusive cache is lost
    FOUND_IN_OWN_WAYS_ONLY = 38  #: a line in a way where one may not allocate is not found

    # ... a device
    DEVICE_WRITE_ASKS_NOBODY = 39  #: holders keep their copies
    DEVICE_WRITE_CLEAN = 40  #: what a device wrote is not marked dirty
    DEVICE_WRITE_NOT_ALLOCATED = 41  #: a write that misses goes nowhere
    PART_NOT_COMPLETED = 42  #: part of a line is written as if it were all of it
    DEVICE_WRITES_OUT_OF_ORDER = 43  #: a write that is ready does not wait for older ones
    DEVICE_READ_ASKS_NOBODY = 44  #: an owner's data are not asked for
    DEVICE_READ_LOSES_DATA = 45  #: ... go to the device and nowhere else
    AROUND_LEAVES_COPY = 46  #: a write around the caches leaves the old line in the last level
    AROUND_LOST = 47  #: ... does not reach DRAM
    FLUSH_LOSES_DATA = 48  #: a flush drops a dirty line

    # What only takes time
    READER_PROBES_TO_NOTHING = 49  #: an owner loses a line that it could share
    RELEASE_LEAVES_HOLDER = 50  #: the snoop filter does not learn of a Release
    DEVICE_WRITE_LEAVES_HOLDERS = 51  #: ... of what a device's write has taken
    DEVICE_READ_LEAVES_OWNER = 52  #: ... that an owner shares since a device's read


#: A cache that is not inclusive does not call back what it replaces.
INCLUSIVE_ONLY = frozenset({Fault.CALLED_BACK_DATA_LOST})

#: Only a flush or a non-temporal store of a core shows them, or DDIO switched off.
AROUND = frozenset({Fault.AROUND_LEAVES_COPY, Fault.AROUND_LOST, Fault.FLUSH_LOSES_DATA})

#: Probes too many, and no wrong data.
ONLY_SLOW = frozenset(
    {
        Fault.READER_PROBES_TO_NOTHING,
        Fault.RELEASE_LEAVES_HOLDER,
        Fault.DEVICE_WRITE_LEAVES_HOLDERS,
        Fault.DEVICE_READ_LEAVES_OWNER,
    }
)


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
        with m.If(self._faults[Fault.PROBE_TO_SHARE_LEAVES_TRUNK] & (self._cap == Cap.TO_B)):
            m.d.comb += self._write_tag.eq(0)
        with m.If(self._faults[Fault.PROBE_LEAVES_BRANCH] & (self._state == LineState.BRANCH)):
            m.d.comb += self._write_tag.eq(0)

    def _do_refill(self, m):
        super()._do_refill(m)
        with m.If(self._faults[Fault.SHARED_GRANT_IS_WRITTEN] & (self.tilelink.d.payload.param == Cap.TO_B)):
            m.d.comb += self._entry.state.eq(LineState.TRUNK)

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
        with m.If(self._answering & self._faults[Fault.L2_PROBE_ACK_WITHOUT_DATA]):
            m.d[self.domain] += self.tilelink.c.payload.opcode.eq(OpcodeC.PROBE_ACK)

    def _do_acquire(self, m):
        super()._do_acquire(m)
        with m.If(self._faults[Fault.L2_GRANT_LEAVES_COPY] & self._hit):
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


class FaultyDecide(Decide):
    """What a pass through the last level decides, broken."""

    def __init__(self, faults: Signal, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._faults = faults

    def _set_holders(self, m, way, sharers, exclusive):
        super()._set_holders(m, way, sharers, exclusive)
        with m.If(self._faults[Fault.OWNER_NOT_RECORDED]):
            m.d.comb += self.filter_update.entry.exclusive.eq(0)

    def _acquire(self, m, client, remaining):
        super()._acquire(m, client, remaining)
        with m.If(self._faults[Fault.HOLDER_NOT_RECORDED]):
            m.d.comb += self.filter_update.write.eq(0)
        with m.If(self._faults[Fault.OTHER_SHARERS_FORGOTTEN]):
            m.d.comb += self.filter_update.entry.sharers.eq(client)
        with m.If(self._faults[Fault.RETURNED_LINE_CLEAN]):
            m.d.comb += self._store_dirty.eq(0)
        with m.If(self._faults[Fault.UNLOCKED_AT_GRANT] & (self.progress.have_line | self.cache.hit)):
            m.d.comb += self.actions.unlock.eq(1)

    def _release(self, m, others):
        super()._release(m, others)
        with m.If(self._faults[Fault.RELEASE_FORGETS_OTHERS]):
            m.d.comb += [self.filter_update.entry.valid.eq(0), self.filter_update.entry.sharers.eq(0)]
        with m.If(self._faults[Fault.RELEASE_LEAVES_HOLDER]):
            m.d.comb += self.filter_update.write.eq(0)
        with m.If(self._faults[Fault.RELEASED_DATA_LOST]):
            m.d.comb += self._store.eq(0)
        with m.If(self._faults[Fault.RELEASED_DATA_CLEAN]):
            m.d.comb += self._store_dirty.eq(0)

    def _finish_back_invalidation(self, m):
        super()._finish_back_invalidation(m)
        fault = Mux(self.progress.replacing, Fault.CALLED_BACK_DATA_LOST, Fault.BACK_INVALIDATED_DATA_LOST)
        with m.If(self._faults.bit_select(fault, 1) & self.progress.dirty):
            m.d.comb += [self._store.eq(0), self.actions.dram_write.eq(0)]

    def _device_read(self, m, remaining):
        super()._device_read(m, remaining)
        with m.If(self._faults[Fault.DEVICE_READ_LOSES_DATA]):
            m.d.comb += [self._store.eq(0), self.actions.dram_write.eq(0)]
        with m.If(self._faults[Fault.DEVICE_READ_LEAVES_OWNER]):
            m.d.comb += self.filter_update.write.eq(0)

    def _device_write(self, m):
        super()._device_write(m)
        with m.If(self._faults[Fault.DEVICE_WRITE_LEAVES_HOLDERS]):
            m.d.comb += self.filter_update.write.eq(0)
        with m.If(self._faults[Fault.DEVICE_WRITE_CLEAN]):
            m.d.comb += self._store_dirty.eq(0)
        with m.If(self._faults[Fault.DEVICE_WRITE_NOT_ALLOCATED] & ~self.cache.hit):
            m.d.comb += self._store.eq(0)
        with m.If(self.request.around):
            with m.If(self._faults[Fault.AROUND_LEAVES_COPY]):
                m.d.comb += self.cache_update.write.eq(0)
            with m.If(self._faults[Fault.AROUND_LOST] & ~self.request.empty):
                m.d.comb += self.actions.dram_write.eq(0)
            with m.If(self._faults[Fault.FLUSH_LOSES_DATA] & self.request.empty):
                m.d.comb += self.actions.dram_write.eq(0)

    def _use_cache(self, m):
        super()._use_cache(m)
        by_device = self.request.kind == SlotKind.DEVICE_WRITE
        lost = self._faults[Fault.VICTIM_LOST] | (self._faults[Fault.DEVICES_VICTIM_LOST] & by_device)
        with m.If(lost & self.events.evict):
            m.d.comb += self.actions.dram_write.eq(0)


class FaultyLastLevelCache(LastLevelCache):
    """A last level that may be broken."""

    def __init__(self, faults: Signal, config: MachineConfig):
        with patch("hw.mem.llc.Decide", partial(FaultyDecide, faults)):
            super().__init__(config)
        self._faults = faults

    def _connect_line_buffers(self, m):
        super()._connect_line_buffers(m)
        with m.If(self._faults[Fault.MERGE_LOST]):
            m.d.comb += self.line_buffers.accepted_mask.eq(
                Mux(self.write_order.push, Const(-1, LINE_BYTES), Const(0, LINE_BYTES))
            )

    def _pass(self, m):
        super()._pass(m)
        decide, request = self.decide, self._s1_request
        # A request that goes on as if everybody had answered already, and kept what there was to keep
        acquire = request.kind == SlotKind.ACQUIRE
        asks_nobody = (
            (self._faults[Fault.WRITER_ASKS_NOBODY] & acquire & request.exclusive)
            | (self._faults[Fault.READER_ASKS_NOBODY] & acquire & ~request.exclusive)
            | (self._faults[Fault.DEVICE_WRITE_ASKS_NOBODY] & (request.kind == SlotKind.DEVICE_WRITE))
            | (self._faults[Fault.DEVICE_READ_ASKS_NOBODY] & (request.kind == SlotKind.DEVICE_READ))
        )
        with m.If(self._s1_valid):
            with m.If(asks_nobody):
                m.d.comb += [decide.progress.probed.eq(1), decide.progress.kept.eq(1)]
            with m.If(self._faults[Fault.SNOOP_FILTER_EVICTS_SILENTLY]):
                m.d.comb += decide.filter.victim.valid.eq(0)
            with m.If(self._faults[Fault.FOUND_IN_OWN_WAYS_ONLY]):
                own = (self.tags.candidates >> self.tags.result.way) & 1
                m.d.comb += decide.cache.hit.eq(self.tags.result.hit & own)
            with m.If(self._faults[Fault.PART_NOT_COMPLETED]):
                m.d.comb += decide.request.full.eq(1)
            with m.If(self._faults[Fault.DEVICE_WRITES_OUT_OF_ORDER]):
                m.d.comb += decide.progress.oldest.eq(1)

    def _act(self, m):
        super()._act(m)
        with m.If(self._faults[Fault.LINE_LOST_ON_WAY_TO_CACHE]):
            m.d.comb += self.data.write_enable.eq(0)
        calls_back = (self._evicting & self._s2_mask).any()
        for probes, grants in zip(self.channel_b, self.channel_d, strict=True):
            cap = probes.entry.param
            with m.If(self._faults[Fault.WRITER_PROBES_TO_SHARE] & ~calls_back):
                m.d.comb += cap.eq(Cap.TO_B)
            with m.If(self._faults[Fault.BACK_INVALIDATION_TO_SHARE] & calls_back):
                m.d.comb += cap.eq(Cap.TO_B)
            with m.If(self._faults[Fault.READER_PROBES_TO_NOTHING]):
                m.d.comb += cap.eq(Cap.TO_N)
            with m.If(self._faults[Fault.READER_GETS_TRUNK]):
                m.d.comb += grants.entry.header.param.eq(Cap.TO_T)

    def _take_channel_c(self, m):
        super()._take_channel_c(m)
        with m.If(self._faults[Fault.FIRST_ANSWER_IS_ENOUGH]):
            m.d.comb += self._answered.eq(self._acking)
        with m.If(self._faults[Fault.PROBED_DATA_LOST]):
            m.d.comb += self._returned.eq(0)
        with m.If(self._faults[Fault.KEPT_COPY_FORGOTTEN]):
            m.d.comb += self._staying.eq(0)
        with m.If(self._faults[Fault.RELEASE_OVERLOOKED]):
            m.d.comb += [self._take.eq(0), self._taken_from.eq(0)]
            with m.If(~self._c_with_data):
                m.d.comb += self._returned.eq(0)

    def _update_slots(self, m):
        super()._update_slots(m)
        with m.If(self._faults[Fault.PROBED_DATA_CLEAN]):
            m.d.uncore += self._dirty.eq(0)


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
