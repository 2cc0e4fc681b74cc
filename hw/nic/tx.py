"""Transmit before the MAC: the queues, their DMA and the packet buffer, seen as one."""

from amaranth.hdl import Cat, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import MachineConfig

from .layouts import TransmitStream
from .queue_set import QueueSet
from .registers import REG
from .statistics import OctetStatistic, Statistic
from .tags import ReadTags
from .tx_buffer import TransmitBuffer
from .tx_dma import TxDma
from .tx_queue import TxQueue

__all__ = ["Transmit"]


class Transmit(QueueSet):
    """``nic.queues`` queues, their DMA, the packet buffer, and their statistics.

    The last of ``reads`` is of payload.
    """

    def __init__(self, config: MachineConfig):
        count = config.nic.queues
        super().__init__(
            {
                "packets": Out(TransmitStream),
                "qptc": Out(32).array(count),
                "qbtc_l": Out(32).array(count),
                "qbtc_h": Out(32).array(count),
                "enable": In(1),
                "empty": Out(1),  #: no packet in the packet buffer
            },
            [TxQueue(config, index) for index in range(count)],
            "transmit",
            reads=1,
        )
        self.tags = ReadTags(config.nic)
        self.dma = TxDma(config)
        self.buffer = TransmitBuffer(config.nic.tx_packet_buffer_kib)
        self.packets_statistics = [Statistic(REG.QPTC, index) for index in range(count)]
        self.octets_statistics = [OctetStatistic(REG.QBTC_L, REG.QBTC_H, index) for index in range(count)]

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.dma = dma = self.dma
        m.submodules.buffer = buffer = self.buffer
        self._join(m)
        for index, queue in enumerate(self.queues):
            wiring.connect(m, dma.descriptor[index], queue.descriptor)
            wiring.connect(m, queue.finished, dma.finished[index])
            m.d.comb += [
                dma.index[index].eq(queue.fetch.index),
                dma.running[index].eq(queue.running),
                queue.holding.eq(dma.holding[index]),
                queue.caught_up.eq(dma.caught_up[index]),
            ]
        self._completions(m)
        self._statistics(m)

        wiring.connect(m, wiring.flipped(self.reads[-1]), dma.read)
        wiring.connect(m, dma.store, buffer.store)
        wiring.connect(m, dma.commit, buffer.commit)
        wiring.connect(m, wiring.flipped(self.packets), buffer.output)
        m.d.comb += [
            dma.freed.eq(buffer.freed),
            dma.enable.eq(self.enable),
            dma.master.eq(self.master),
            self.empty.eq(buffer.empty),
            self.idle.eq(dma.idle & Cat(queue.fetch.idle & queue.write_back.idle for queue in self.queues).all()),
            self.quiet.eq(Cat(part.quiet for part in (dma, buffer, *self.queues)).all() & ~self.bus.read & ~self.reset),
        ]
        return m

    def _completions(self, m: Module) -> None:
        """By their tags, to a queue or to the DMA."""
        completion = self.completion
        tag = completion.payload.header.tag
        sinks = [(self.dma.completion, self.tags.is_payload(tag))]
        sinks += [(q.completion, self.tags.is_from(self.tags.transmit(q.index), tag)) for q in self.queues]
        for sink, mine in sinks:
            m.d.comb += [sink.valid.eq(completion.valid & mine), sink.payload.eq(completion.payload)]
        # Descriptors are always taken
        m.d.comb += completion.ready.eq(Mux(self.tags.is_payload(tag), self.dma.completion.ready, 1))

    def _statistics(self, m: Module) -> None:
        for index, (packets, octets) in enumerate(zip(self.packets_statistics, self.octets_statistics, strict=True)):
            for name, statistic in (("packets", packets), ("octets", octets)):
                m.submodules[f"{name}_statistics{index}"] = statistic
                wiring.connect(m, statistic.bus, wiring.flipped(self.bus))
                m.d.comb += [statistic.reset.eq(self.reset), statistic.event.eq(self.dma.sent[index])]
            m.d.comb += [
                octets.amount.eq(self.dma.sent_length),
                self.qptc[index].eq(packets.value),
                self.qbtc_l[index].eq(octets.low),
                self.qbtc_h[index].eq(octets.high),
            ]
