"""Receive behind the packet buffer: the queue and its DMA, seen as one."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tlp import TlpStream
from hw.bus.wire import PacketStream
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe

from .descriptor_fetch import PER_LINE
from .descriptors import DESCRIPTOR_BYTES
from .layouts import QueueRegisters, RegisterBus
from .registers import REG
from .rx_dma import RxDma
from .rx_queue import QueueError, RxQueue
from .statistics import OctetStatistic, Statistic

__all__ = ["Receive"]


class Receive(wiring.Component):
    """One queue, index 0, its DMA, and its statistics. Probes lie here, whichever part they speak of.

    ``cause`` is high for one cycle when descriptors have been written back, ``error`` when the queue stopped.
    """

    packets: In(PacketStream)
    bus: In(RegisterBus())
    registers: In(QueueRegisters())
    qprc: Out(32)
    qbrc_l: Out(32)
    qbrc_h: Out(32)
    qprdc: Out(32)
    completion: In(TlpStream)
    read: Out(TlpStream)
    payload: Out(TlpStream)
    write_back_send: Out(TlpStream)
    master: In(1)
    resetting: In(1)
    reset: In(1)
    cause: Out(1)
    error: Out(1)
    idle: Out(1)  #: nothing in flight, nothing waiting to be written
    disabled: Out(1)
    quiet: Out(1)

    def __init__(self, config: MachineConfig):
        super().__init__()
        self.queue = RxQueue(config)
        self.dma = RxDma(config)
        self.packets_statistic = Statistic(REG.QPRC)
        self.octets_statistic = OctetStatistic(REG.QBRC_L, REG.QBRC_H)
        self.drops_statistic = Statistic(REG.QPRDC)
        self.descriptor_fetch = Probe("nic", "descriptors are read", queue=8, address=64, count=8)
        # One probe per place in the cache line: a line's descriptors are written back at one edge
        self.write_back = [
            Probe("nic", "a descriptor is written back", packet=PACKET_WIDTH, queue=8, index=16, address=64)
            for _ in range(PER_LINE)
        ]
        self.queue_error = Probe("nic", "a queue stops on an error", queue=8, error=QueueError)
        self.write_backs = Counter("nic", "descriptor write-back TLPs")
        self.descriptors_written_back = Counter("nic", "descriptors written back")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.queue = queue = self.queue
        m.submodules.dma = dma = self.dma
        self._statistics(m)

        wiring.connect(m, queue.completion, wiring.flipped(self.completion))
        wiring.connect(m, wiring.flipped(self.read), queue.read)
        wiring.connect(m, wiring.flipped(self.payload), dma.send)
        wiring.connect(m, wiring.flipped(self.write_back_send), queue.write_back_send)
        wiring.connect(m, dma.packets, wiring.flipped(self.packets))
        wiring.connect(m, dma.descriptor, queue.descriptor)
        wiring.connect(m, queue.finished, dma.finished)
        wiring.connect(m, queue.bus, wiring.flipped(self.bus))
        wiring.connect(m, queue.registers, wiring.flipped(self.registers))
        m.d.comb += [
            *(part.master.eq(self.master) for part in (queue, dma)),
            *(part.resetting.eq(self.resetting) for part in (queue, dma)),
            queue.reset.eq(self.reset),
            queue.caught_up.eq(dma.caught_up),
            queue.holding.eq(dma.holding),
            dma.running.eq(queue.running),
            dma.failed.eq(queue.failed),
            dma.may_drop.eq(queue.may_drop),
            dma.buffer_kib.eq(self.registers.srrctl.BSIZEPACKET),
            self.cause.eq(queue.write_back.done),
            self.error.eq(queue.error),
            self.disabled.eq(queue.disabled),
            self.idle.eq(dma.idle & queue.fetch.idle & queue.write_back.idle),
            self.quiet.eq(queue.quiet & dma.quiet & ~self.bus.read & ~self.reset),
        ]

        fetch, write_back = queue.fetch, queue.write_back
        self.descriptor_fetch.emit(
            m, fetch.issue, queue=queue.index, address=fetch.issue_address, count=fetch.issue_count
        )
        self.queue_error.emit(m, queue.error, queue=queue.index, error=queue.error_kind)
        line = write_back.head & ~(PER_LINE - 1)
        for place, probe in enumerate(self.write_back):
            index = line + place
            probe.emit(
                m,
                write_back.done & write_back.sent_lanes[place],
                packet=write_back.sent[place].packet,
                queue=queue.index,
                index=index,
                address=write_back.ring.base + index * DESCRIPTOR_BYTES,
            )
        self.write_backs.increment(m, write_back.done)
        self.descriptors_written_back.increment(m, write_back.done, sum(write_back.sent_lanes))
        return m

    def _statistics(self, m: Module) -> None:
        m.submodules.packets_statistic = packets = self.packets_statistic
        m.submodules.octets_statistic = octets = self.octets_statistic
        m.submodules.drops_statistic = drops = self.drops_statistic
        finished = self.dma.finished
        for statistic in (packets, octets, drops):
            wiring.connect(m, statistic.bus, wiring.flipped(self.bus))
            m.d.comb += statistic.reset.eq(self.reset)
        taken = finished.valid & finished.ready
        m.d.comb += [
            packets.event.eq(taken & finished.payload.eop),
            octets.event.eq(taken),
            octets.amount.eq(finished.payload.length),
            drops.event.eq(self.dma.unserved),
            self.qprc.eq(packets.value),
            self.qbrc_l.eq(octets.low),
            self.qbrc_h.eq(octets.high),
            self.qprdc.eq(drops.value),
        ]
