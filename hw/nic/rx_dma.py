"""The receive DMA: matches packets with descriptors, and drops those that cannot have one."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tlp import TlpStream
from hw.bus.wire import PacketStream
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe

from .classifier import classify
from .drop import DropReason
from .layouts import Finished, RxDescriptor
from .payload_writer import PayloadWriter

__all__ = ["RxDma"]


class _State(enum.Enum, shape=2):
    IDLE = 0  #: between packets
    WRITE = 1  #: filling a buffer
    NEXT = 2  #: the packet goes on in the next buffer
    DISCARD = 3  #: the rest of the packet is thrown away


class RxDma(wiring.Component):
    """Takes packets in order, and a descriptor for each buffer of ``buffer_kib`` KiB they fill.

    When the last beat of a buffer has been accepted by the link's arbiter, ``finished`` tells the queue, so that
    the write-back follows the payload. The next packet starts as one is finished: a packet of one beat into an aligned
    buffer takes two cycles.

    ``finishing`` is the queue of the packet under way: of ``finished``, ``holding`` and ``unserved``. ``queue`` is that
    of the packet that starts or goes on in its next buffer; all that is told of the queue is told of this one.

    Packets are dropped, whole and reported by ``drop``: during a reset; when the queue is not enabled or has stopped
    on an error; and for want of a descriptor when ``may_drop`` says that the ring is empty and the driver wants that
    (but never after the packet's first buffer: then it waits). A reset ends a packet behind the TLP in progress.
    """

    packets: In(PacketStream)
    descriptor: In(stream.Signature(RxDescriptor))
    finished: Out(stream.Signature(Finished))
    send: Out(TlpStream)
    buffer_kib: In(5)
    running: In(1)  #: the queue is enabled
    failed: In(1)  #: the queue stopped on an error
    may_drop: In(1)
    inject: In(1)  #: its buffers are marked to be put into the cache
    master: In(1)  #: new packets may start
    resetting: In(1)
    queue: Out(4)
    finishing: Out(4)
    unserved: Out(1)  #: a packet is dropped for want of a descriptor or of an enabled queue, for one cycle
    holding: Out(1)  #: a descriptor has been taken that is not yet finished
    caught_up: Out(1)  #: no descriptor will be finished before something else happens
    idle: Out(1)
    quiet: Out(1)

    def __init__(self, config: MachineConfig):
        super().__init__()
        self.writer = PayloadWriter(config.pcie.mps)
        self.drop = Probe(
            "nic", "a packet leaves the packet buffer for nowhere", packet=PACKET_WIDTH, reason=DropReason
        )
        self.packets_written = Counter("nic", "packets written to memory")
        self.packets_dropped = Counter("nic", "packets dropped behind the packet buffer")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.writer = writer = self.writer
        state = Signal(_State)
        packet = self.packets.payload
        finished = Signal(Finished)
        rest = Signal(16)  # bytes of the packet that have no buffer yet
        ended = Signal()  # the packet's last beat has been taken from the packet buffer
        reason = Signal(DropReason)
        queue = Signal(4)
        free = Signal()  # a packet may start
        m.d.comb += [
            self.finishing.eq(queue),
            self.queue.eq(Mux(free, packet.rss.queue, queue)),
        ]

        wiring.connect(m, wiring.flipped(self.send), writer.send)

        # The packet buffer's beats go to the writer, or nowhere
        m.d.comb += [
            writer.packets.valid.eq(self.packets.valid & (state == _State.WRITE)),
            writer.packets.payload.eq(packet),
            writer.abort.eq(self.resetting),
            self.packets.ready.eq(Mux(state == _State.DISCARD, ~ended, (state == _State.WRITE) & writer.packets.ready)),
        ]
        with m.If(self.packets.valid & self.packets.ready):
            m.d.nic += ended.eq(packet.last)

        # The buffer is full, or the packet at its end
        over = Signal()
        m.d.comb += [
            self.finished.payload.eq(finished),
            over.eq(self.finished.valid & self.finished.ready & finished.eop),
            free.eq((state == _State.IDLE) | over),
        ]
        with m.If((state == _State.WRITE) & writer.idle):
            with m.If(~writer.complete):
                m.d.nic += [state.eq(_State.DISCARD), reason.eq(DropReason.RESET)]
            with m.Else():
                m.d.comb += self.finished.valid.eq(1)
                with m.If(self.finished.ready):
                    m.d.nic += state.eq(Mux(finished.eop, _State.IDLE, _State.NEXT))

        # Between buffers: write, drop or wait
        starting = free & self.packets.valid
        ready = starting | (state == _State.NEXT)
        take, refuse = Signal(), Signal()
        refusal = Signal(DropReason)
        with m.If(ready):
            m.d.comb += refuse.eq(1)
            with m.If(self.resetting):
                m.d.comb += refusal.eq(DropReason.RESET)
            with m.Elif(~self.running):
                m.d.comb += refusal.eq(Mux(self.failed, DropReason.DMA_ERROR, DropReason.QUEUE_DISABLED))
            with m.Elif(starting & ~self.descriptor.valid & self.may_drop):
                m.d.comb += refusal.eq(DropReason.NO_DESCRIPTOR)
            with m.Else():
                m.d.comb += [refuse.eq(0), take.eq(self.descriptor.valid & (self.master | ~starting))]
        with m.If(refuse):
            m.d.nic += [state.eq(_State.DISCARD), reason.eq(refusal)]
        self._begin_segment(m, take, starting, finished, rest)
        with m.If(take):
            m.d.nic += state.eq(_State.WRITE)
        with m.If(starting & (take | refuse)):
            m.d.nic += [
                ended.eq(0),
                queue.eq(packet.rss.queue),
                finished.rss_type.eq(packet.rss.type),
                finished.rss_hash.eq(packet.rss.hash),
                finished.packet.eq(packet.packet),
                finished.packet_type.eq(classify(m, packet.data)),
            ]

        # Thrown away
        dropped = (state == _State.DISCARD) & (ended | (self.packets.valid & packet.last))
        with m.If(dropped):
            m.d.nic += state.eq(_State.IDLE)
        self.drop.emit(m, dropped, packet=finished.packet, reason=reason)
        self.packets_dropped.increment(m, dropped)
        self.packets_written.increment(m, over)

        m.d.comb += [
            self.unserved.eq(dropped & (reason != DropReason.RESET)),
            self.holding.eq(state == _State.WRITE),
            self.caught_up.eq(((state == _State.IDLE) | (state == _State.NEXT)) & ~take),
            self.idle.eq((state == _State.IDLE) & writer.quiet),
            self.quiet.eq(((state == _State.IDLE) | (state == _State.NEXT)) & ~take & ~refuse & writer.quiet),
        ]
        return m

    def _begin_segment(self, m, take, starting, finished, rest):
        """Give the writer as much of the packet as fits the buffer."""
        left, size = Signal(16), Signal(16)
        segment = self.writer.segment.payload
        m.d.comb += [self.descriptor.ready.eq(take), self.writer.segment.valid.eq(take)]
        with m.If(take):
            limit = self.buffer_kib << 10
            m.d.comb += [
                left.eq(Mux(starting, self.packets.payload.length, rest)),
                size.eq(Mux(left > limit, limit, left)),
                segment.address.eq(self.descriptor.payload.address),
                segment.length.eq(size),
                segment.inject.eq(self.inject),
                segment.packet.eq(Mux(starting, self.packets.payload.packet, finished.packet)),
            ]
            m.d.nic += [rest.eq(left - size), finished.length.eq(size), finished.eop.eq(size == left)]
