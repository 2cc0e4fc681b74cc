"""The transmit DMA: reads packets, descriptor by descriptor, into the transmit packet buffer."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BYTES
from hw.bus.tlp import TlpHeader, TlpStatus, TlpStream, TlpType
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.round_robin import round_robin

from .descriptor_fetch import INDEX_WIDTH
from .drop import TransmitDropReason
from .layouts import TxDescriptor, TxFinished, TxKind
from .mac import FCS_BYTES
from .tags import ReadTags
from .tx_buffer import Committed, row_pointer_width, store_layout

__all__ = ["TxDma"]

#: A read does not cross a multiple of this (PCI Express Base Specification 3.0, section 2.2.7).
READ_BOUNDARY = 4096


class _Step(data.Struct):
    """What is to be done once a step, and every step before it, is complete."""

    queue: 4
    ends_descriptor: 1
    ends_packet: 1
    report: 1  #: the descriptor is to be written back
    insert_fcs: 1
    reason: TransmitDropReason
    length: 16  #: bytes of the packet so far
    packet: PACKET_WIDTH


class TxDma(wiring.Component):
    """Takes descriptors of packets, queue by queue in turn, and brings the packets' bytes into the packet buffer.

    A descriptor becomes one or more *steps*: reads of at most ``pcie.mrrs`` bytes that do not cross 4 KiB, or a step
    without a read, where there is nothing to read. ``nic.payload_reads`` steps may be under way; a read is issued when
    the packet buffer has room for its bytes. Completions, one line each, may come in any order across reads; they go
    where they belong, one per cycle, two cycles if they fall into two rows. Steps are complete in order: only then is
    a descriptor finished and a packet handed on. So packets leave in the order in which they were begun.

    With a descriptor waiting and nothing in the way, its first read is offered two edges after the descriptor, and one
    more at each edge: a packet of one read takes two cycles. It is committed one edge after its last completion.

    A packet is dropped, and reported by ``unsent``, for what is wrong with its descriptors; these are finished in
    order, like all others, and their buffers are not read from then on. It is also dropped when its queue stops
    amid it; then the rest of its descriptors are not finished.

    Packets are numbered from 1 as their first descriptors are taken.
    """

    def __init__(self, config: MachineConfig):
        nic = config.nic
        self.queues, self.mrrs, self.steps = nic.queues, config.pcie.mrrs, nic.payload_reads
        self.first_tag = ReadTags(nic).payload
        self.limit = nic.max_frame - FCS_BYTES
        self.rows = nic.tx_packet_buffer_kib * 1024 // LINE_BYTES
        self.pointer = row_pointer_width(nic.tx_packet_buffer_kib)
        super().__init__(
            {
                "descriptor": In(stream.Signature(TxDescriptor)).array(self.queues),
                "index": In(INDEX_WIDTH).array(self.queues),
                "finished": Out(stream.Signature(TxFinished)).array(self.queues),
                "running": In(self.queues),  #: a queue is enabled
                "holding": Out(self.queues),  #: descriptors of it have been taken that are not finished
                "caught_up": Out(self.queues),  #: none of it will be finished before another is taken
                "enable": In(1),  #: packets may be begun
                "master": In(1),  #: reads may be issued
                "read": Out(TlpStream),
                "completion": In(TlpStream),
                "store": Out(stream.Signature(store_layout(nic.tx_packet_buffer_kib), always_ready=True)),
                "commit": Out(stream.Signature(Committed, always_ready=True)),
                "freed": In(self.pointer),
                "sent": Out(self.queues),  #: a packet of the queue is committed and will be sent, for one cycle, ...
                "sent_length": Out(16),  #: ... of so many bytes
                "idle": Out(1),
                "quiet": Out(1),
            }
        )
        self.descriptor_taken = Probe(
            "nic", "a descriptor of a packet is taken", packet=PACKET_WIDTH, queue=8, index=16, length=16
        )
        self.dma_read = Probe("nic", "a read of payload begins", packet=PACKET_WIDTH, address=64, length=16)
        self.unsent = Probe(
            "nic", "a packet is not sent", packet=PACKET_WIDTH, queue=8, reason=TransmitDropReason, length=16
        )
        self.reads = Counter("nic", "payload reads")
        self.octets = Counter("nic", "payload bytes read")
        self.packets_dropped = Counter("nic", "packets that were not sent")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        # Steps under way, a ring; a read's tag is its place in it
        steps = range(self.steps)
        tail, head, used = Signal(steps), Signal(steps), Signal(range(self.steps + 1))
        done, refused = Signal(self.steps), Signal(self.steps)
        issue, retire = Signal(), Signal()
        with m.If(issue != retire):
            m.d.nic += used.eq(Mux(issue, used + 1, used - 1))
        with m.If(issue):
            m.d.nic += tail.eq(tail + 1)
        with m.If(retire):
            m.d.nic += head.eq(head + 1)

        queue = Signal(range(max(2, self.queues)))
        busy, starting, moving = self._issue(m, queue, issue, tail, used, done, refused)
        self._fill(m, done, refused)
        retiring_queue = self._retire(m, retire, head, used, done, refused)

        # How many steps of each queue
        for index in range(self.queues):
            under_way = Signal(range(self.steps + 1), name=f"under_way{index}")
            more, less = issue & (queue == index), retire & (retiring_queue == index)
            with m.If(more != less):
                m.d.nic += under_way.eq(Mux(more, under_way + 1, under_way - 1))
            m.d.comb += [
                self.caught_up[index].eq(under_way == 0),
                self.holding[index].eq((under_way != 0) | (busy & (queue == index))),
            ]
        m.d.comb += [
            self.idle.eq((used == 0) & ~self.read.valid),
            self.quiet.eq(~starting & ~moving & ~retire & ~self.completion.valid & ~self.read.valid),
        ]
        return m

    def _issue(self, m, queue, issue, tail, used, done, refused):
        """Make steps from descriptors; returns whether a packet is under way, one is begun, something happens."""
        busy, first = Signal(), Signal()  # first: no descriptor of the packet has been taken
        alloc, offset = Signal(self.pointer), Signal(16)  # the packet's first row, and its bytes so far
        progress = Signal(16)  # bytes of the descriptor for which there are steps
        insert_fcs, packet, reason = Signal(), Signal(PACKET_WIDTH), Signal(TransmitDropReason)

        # Begin a packet of the next queue
        waiting, start = Signal(self.queues), Signal()
        m.d.comb += [
            waiting.eq(Cat(port.valid for port in self.descriptor)),
            start.eq(~busy & self.enable & self.master & waiting.any()),
        ]
        with m.If(start):
            m.d.nic += [queue.eq(round_robin(m, waiting, queue)), busy.eq(1), first.eq(1)]
            m.d.nic += [offset.eq(0), reason.eq(TransmitDropReason.NONE)]

        # The descriptor
        descriptor, index = Signal(TxDescriptor), Signal(INDEX_WIDTH)
        valid, running = Signal(), Signal()
        with m.If(busy), m.Switch(queue):
            for number, port in enumerate(self.descriptor):
                with m.Case(number):
                    m.d.comb += [
                        descriptor.eq(port.payload),
                        valid.eq(port.valid),
                        running.eq(self.running[number]),
                        index.eq(self.index[number]),
                    ]

        read_valid, header = Signal(), Signal(TlpHeader)
        new_reason, read, fits, last = Signal(TransmitDropReason), Signal(), Signal(), Signal()
        part, total = Signal(range(self.mrrs + 1)), Signal(16)
        take, go, abandon, context, ends = Signal(), Signal(), Signal(), Signal(), Signal()
        step, number = Signal(_Step), Signal(PACKET_WIDTH)
        with m.If(busy & (used != self.steps)):
            m.d.comb += [
                context.eq(descriptor.kind == TxKind.CONTEXT),
                number.eq(Mux(first & ~context, packet + 1, packet)),
                new_reason.eq(reason),
                abandon.eq(~running),
            ]
            with m.If((reason == TransmitDropReason.NONE) & (progress == 0) & ~context):
                self._judge(m, descriptor, first, offset, new_reason)
            left = (descriptor.length - progress)[:16]
            to_boundary = READ_BOUNDARY - _address(descriptor, progress) % READ_BOUNDARY
            longest = Mux(to_boundary < self.mrrs, to_boundary, self.mrrs)
            m.d.comb += [
                read.eq((new_reason == TransmitDropReason.NONE) & ~context & (descriptor.length != 0)),
                part.eq(Mux(left < longest, left, longest)),
                last.eq(~read | (left == part)),
                total.eq(offset + Mux(read, part, 0)),
                fits.eq((alloc - self.freed)[: self.pointer] + _rows(total) <= self.rows),
                go.eq(valid & self.master & (~read | (fits & (~read_valid | self.read.ready)))),
                take.eq(go & last),
                ends.eq(Mux(abandon, 1, take & descriptor.eop & ~context)),
                issue.eq(go | (abandon & ~first)),
                step.queue.eq(queue),
                step.ends_descriptor.eq(take),
                step.ends_packet.eq(ends),
                step.report.eq(descriptor.report),
                step.insert_fcs.eq(Mux(first, descriptor.insert_fcs, insert_fcs)),
                step.reason.eq(Mux(abandon, TransmitDropReason.QUEUE_DISABLED, new_reason)),
                step.length.eq(Mux(go, total, offset)),
                step.packet.eq(Mux(context, 0, number)),
            ]
        for number_of, port in enumerate(self.descriptor):
            m.d.comb += port.ready.eq(take & (queue == number_of))
        with m.If(go):
            m.d.nic += [offset.eq(total), progress.eq(Mux(last, 0, progress + part)), reason.eq(new_reason)]
            with m.If(~context):
                m.d.nic += [packet.eq(number), first.eq(0), insert_fcs.eq(step.insert_fcs)]
        with m.If(ends):
            m.d.nic += [busy.eq(0), progress.eq(0), alloc.eq(alloc + _rows(step.length))]
        with m.Elif(take & context & first):
            m.d.nic += busy.eq(0)

        # The read
        reading = go & read
        with m.If(self.read.ready):
            m.d.nic += read_valid.eq(0)
        with m.If(reading):
            m.d.nic += [
                read_valid.eq(1),
                header.kind.eq(TlpType.MEMORY_READ),
                header.address.eq(_address(descriptor, progress)),
                header.length.eq(part),
                header.tag.eq(self.first_tag + tail),
                header.packet.eq(number),
            ]
        m.d.comb += [
            self.read.valid.eq(read_valid),
            self.read.payload.first.eq(1),
            self.read.payload.last.eq(1),
            self.read.payload.header.eq(header),
        ]

        # The step
        m.submodules.step = self._steps = Memory(shape=_Step, depth=self.steps, init=[])
        place_layout = data.StructLayout({"at": self.pointer - 1 + 6, "length": 13})
        m.submodules.place = self._places = Memory(shape=place_layout, depth=self.steps, init=[])
        write_step, write_place = (memory.write_port(domain="nic") for memory in (self._steps, self._places))
        m.d.comb += [
            *(port.en.eq(issue) for port in (write_step, write_place)),
            *(port.addr.eq(tail) for port in (write_step, write_place)),
            write_step.data.eq(step),
            write_place.data.at.eq(alloc * LINE_BYTES + offset),
            write_place.data.length.eq(part),
        ]
        with m.If(issue):
            m.d.nic += [done.bit_select(tail, 1).eq(~reading), refused.bit_select(tail, 1).eq(0)]

        self.descriptor_taken.emit(
            m, go & (progress == 0) & ~context, packet=number, queue=queue, index=index, length=descriptor.length
        )
        self.dma_read.emit(m, reading, packet=number, address=_address(descriptor, progress), length=part)
        self.reads.increment(m, reading)
        self.octets.increment(m, reading, part)
        return busy, start, go | abandon

    def _judge(self, m, descriptor, first, offset, reason):
        """What is wrong with a packet that goes on with ``descriptor``, if anything."""
        length = Signal(17)
        m.d.comb += length.eq(offset + descriptor.length)
        with m.If(descriptor.kind == TxKind.BAD):
            m.d.comb += reason.eq(TransmitDropReason.DESCRIPTOR)
        with m.Elif(first & descriptor.offload):
            m.d.comb += reason.eq(TransmitDropReason.OFFLOAD)
        with m.Elif(length > self.limit):
            m.d.comb += reason.eq(TransmitDropReason.OVERSIZE)
        with m.Elif(descriptor.eop & (length == 0)):
            m.d.comb += reason.eq(TransmitDropReason.EMPTY)

    def _fill(self, m, done, refused):
        """Put the bytes of a completion where they belong."""
        beat, store = self.completion.payload, self.store.payload
        places = self._places.read_port(domain="comb")
        second = Signal()  # the second of two rows
        slot = Signal(range(self.steps))
        at, row = Signal(len(places.data.at)), Signal(len(store.row))
        lane, end = Signal(range(LINE_BYTES)), Signal(range(2 * LINE_BYTES + 1))
        good, straddles = Signal(), Signal()
        m.d.comb += [self.completion.ready.eq(~straddles | second), places.addr.eq(slot), self.store.valid.eq(good)]
        with m.If(self.completion.valid):
            header = beat.header
            row_of, lane_of = at // LINE_BYTES, at % LINE_BYTES
            m.d.comb += [
                slot.eq(header.tag - self.first_tag),
                good.eq(header.status == TlpStatus.SUCCESS),
                at.eq(places.data.at + places.data.length - header.remaining),
                lane.eq(lane_of),
                end.eq(lane + header.length),
                straddles.eq(good & (end > LINE_BYTES)),
                row.eq(row_of + second),
                store.row.eq(row),
            ]
            with m.If(second):
                m.d.comb += store.lanes.eq((1 << (end - LINE_BYTES)[:6]) - 1)
            with m.Else():
                m.d.comb += store.lanes.eq(((1 << end) - 1) & ~((1 << lane) - 1))
            # Lane i of the line goes to lane i + shift of the row. One case for each shift, as in PayloadWriter
            shift = Signal(range(LINE_BYTES))
            m.d.comb += shift.eq(lane - header.address % LINE_BYTES)
            with m.Switch(shift):
                for lanes in range(LINE_BYTES):
                    with m.Case(lanes):
                        m.d.comb += store.data.eq(beat.data.rotate_left(8 * lanes))
            with m.If(straddles):
                m.d.nic += second.eq(~second)
            with m.If(self.completion.ready & (~good | (header.remaining == header.length))):
                m.d.nic += [done.bit_select(slot, 1).eq(1), refused.bit_select(slot, 1).eq(~good)]

    def _retire(self, m, retire, head, used, done, refused):
        """Finish descriptors and packets in order; returns the queue of the oldest step."""
        steps = self._steps.read_port(domain="comb")
        step, ready = Signal(_Step), Signal()
        spoiled = Signal()  # a read of the packet was refused
        reason, ended = Signal(TransmitDropReason), Signal()
        m.d.comb += steps.addr.eq(head)
        with m.If((used != 0) & done.bit_select(head, 1)):
            m.d.comb += step.eq(steps.data)
            with m.Switch(step.queue):
                for index, port in enumerate(self.finished):
                    with m.Case(index):
                        m.d.comb += [ready.eq(port.ready), port.valid.eq(step.ends_descriptor)]
            failed = spoiled | refused.bit_select(head, 1)
            m.d.comb += [
                retire.eq(ready | ~step.ends_descriptor),
                ended.eq(retire & step.ends_packet),
                reason.eq(
                    Mux(
                        (step.reason == TransmitDropReason.NONE) & failed,
                        TransmitDropReason.READ_REFUSED,
                        step.reason,
                    )
                ),
            ]
            with m.If(retire):
                m.d.nic += spoiled.eq(failed & ~step.ends_packet)
        dropped = Signal()
        m.d.comb += [
            dropped.eq(ended & (reason != TransmitDropReason.NONE)),
            self.commit.valid.eq(ended & (step.length != 0)),
            self.commit.payload.length.eq(step.length),
            self.commit.payload.packet.eq(step.packet),
            self.commit.payload.insert_fcs.eq(step.insert_fcs),
            self.commit.payload.discard.eq(dropped),
            self.sent_length.eq(step.length),
        ]
        for index, port in enumerate(self.finished):
            m.d.comb += [
                port.payload.report.eq(step.report),
                port.payload.packet.eq(step.packet),
                self.sent[index].eq(ended & ~dropped & (step.queue == index)),
            ]
        self.unsent.emit(m, dropped, packet=step.packet, queue=step.queue, reason=reason, length=step.length)
        self.packets_dropped.increment(m, dropped)
        return step.queue


def _rows(length):
    """Rows that so many bytes fill."""
    return (length + (LINE_BYTES - 1)) // LINE_BYTES


def _address(descriptor, progress):
    """Address of the next byte of a descriptor's buffer."""
    return (descriptor.address + progress)[: len(descriptor.address)]
