"""Receive behind the packet buffer: the queues and their DMA, seen as one."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tlp import TlpStream
from hw.bus.wire import PacketStream
from hw.config import MachineConfig

from .layouts import register_layout
from .queue_set import QueueSet
from .registers import REG
from .ring_queue import RingQueue
from .rx_dma import RxDma
from .rx_queue import RxQueue
from .statistics import OctetStatistic, Statistic
from .tags import ReadTags

__all__ = ["Receive"]

#: So many packets of other queues later, a queue writes back what it has of a line.
PATIENCE = 4


class Receive(QueueSet):
    """``nic.queues`` queues, their DMA, and their statistics.

    The DMA takes packets in the order in which they came: one that waits for a descriptor holds up those
    behind it, whatever their queue, unless its queue may drop.
    """

    def __init__(self, config: MachineConfig):
        count = config.nic.queues
        super().__init__(
            {
                "packets": In(PacketStream),
                "srrctl": In(register_layout(REG.SRRCTL)).array(count),
                "inject_payload": In(count),  #: a bit per queue: its packets are to be put into the cache
                "qprc": Out(32).array(count),
                "qbrc_l": Out(32).array(count),
                "qbrc_h": Out(32).array(count),
                "qprdc": Out(32).array(count),
                "payload": Out(TlpStream),
            },
            [RxQueue(config, index) for index in range(count)],
            "receive",
        )
        self.tags = ReadTags(config.nic)
        self.dma = RxDma(config)
        self.packets_statistics = [Statistic(REG.QPRC, index) for index in range(count)]
        self.octets_statistics = [OctetStatistic(REG.QBRC_L, REG.QBRC_H, index) for index in range(count)]
        self.drops_statistics = [Statistic(REG.QPRDC, index) for index in range(count)]

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.dma = dma = self.dma
        self._join(m)
        settled = [self._queue(m, index, queue) for index, queue in enumerate(self.queues)]
        self._choose(m)
        self._statistics(m)

        wiring.connect(m, wiring.flipped(self.payload), dma.send)
        wiring.connect(m, dma.packets, wiring.flipped(self.packets))
        m.d.comb += [
            dma.master.eq(self.master),
            dma.resetting.eq(self.resetting),
            self.completion.ready.eq(1),
            self.idle.eq(dma.idle & Cat(queue.fetch.idle & queue.write_back.idle for queue in self.queues).all()),
            self.quiet.eq(
                Cat(*settled, *(part.quiet for part in (dma, *self.queues))).all() & ~self.bus.read & ~self.reset
            ),
        ]
        return m

    def _queue(self, m: Module, index: int, queue: RingQueue) -> Value:
        """Connect a queue with the DMA; returns whether what is kept for it here stays as it is."""
        completion, finished = self.completion, self.dma.finished
        chosen, finishing = Signal(name=f"chosen{index}"), Signal(name=f"finishing{index}")
        m.d.comb += [
            chosen.eq(self.dma.queue == index),
            finishing.eq(self.dma.finishing == index),
            queue.completion.valid.eq(
                completion.valid & self.tags.is_from(self.tags.receive(index), completion.payload.header.tag)
            ),
            queue.completion.payload.eq(completion.payload),
            queue.descriptor.ready.eq(chosen & self.dma.descriptor.ready),
            queue.finished.valid.eq(finishing & finished.valid),
            queue.finished.payload.eq(finished.payload),
            queue.holding.eq(finishing & self.dma.holding),
            queue.no_buffer.eq(self.srrctl[index].BSIZEPACKET == 0),
        ]
        # What is left of a line does not wait for ever while the others are busy
        others = Signal(range(PATIENCE + 1), name=f"others{index}")
        collecting, elsewhere = queue.write_back.collecting, finished.valid & finished.ready & ~finishing
        stale = ~collecting & (others != 0)
        with m.If(stale):
            m.d.nic += others.eq(0)
        with m.Elif(collecting & elsewhere & (others != PATIENCE)):
            m.d.nic += others.eq(others + 1)
        m.d.comb += queue.caught_up.eq(self.dma.caught_up | (others == PATIENCE))
        return ~stale

    def _choose(self, m: Module) -> None:
        """What the DMA sees is its packet's queue; one that is not built is like one that is not enabled."""
        dma = self.dma
        with m.Switch(dma.finishing):
            for index, queue in enumerate(self.queues):
                with m.Case(index):
                    m.d.comb += dma.finished.ready.eq(queue.finished.ready)
        with m.Switch(dma.queue):
            for index, queue in enumerate(self.queues):
                with m.Case(index):
                    m.d.comb += [
                        dma.descriptor.valid.eq(queue.descriptor.valid),
                        dma.descriptor.payload.eq(queue.descriptor.payload),
                        dma.running.eq(queue.running),
                        dma.failed.eq(queue.failed),
                        dma.inject.eq(self.inject_payload[index]),
                        dma.may_drop.eq(self.srrctl[index].DROP_EN & queue.exhausted),
                        dma.buffer_kib.eq(self.srrctl[index].BSIZEPACKET),
                    ]

    def _statistics(self, m: Module) -> None:
        finished = self.dma.finished
        for index in range(len(self.queues)):
            packets, octets = self.packets_statistics[index], self.octets_statistics[index]
            drops = self.drops_statistics[index]
            for name, statistic in (("packets", packets), ("octets", octets), ("drops", drops)):
                m.submodules[f"{name}_statistics{index}"] = statistic
                wiring.connect(m, statistic.bus, wiring.flipped(self.bus))
                m.d.comb += statistic.reset.eq(self.reset)
            finishing = self.dma.finishing == index
            taken = finished.valid & finished.ready & finishing
            m.d.comb += [
                packets.event.eq(taken & finished.payload.eop),
                octets.event.eq(taken),
                octets.amount.eq(finished.payload.length),
                drops.event.eq(self.dma.unserved & finishing),
                self.qprc[index].eq(packets.value),
                self.qbrc_l[index].eq(octets.low),
                self.qbrc_h[index].eq(octets.high),
                self.qprdc[index].eq(drops.value),
            ]
