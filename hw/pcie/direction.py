"""One direction of the PCI Express link: flow control, serialisation, flight, receive buffer, ordering."""

import math
from fractions import Fraction

from amaranth.hdl import Cat, Module, Mux, Shape, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BYTES
from hw.bus.tlp import TlpBeat, TlpHeader, TlpStatus, TlpStream, TlpType
from hw.config import TLP_OVERHEAD_COMPLETION, TLP_OVERHEAD_REQUEST, MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM
from hw.lib.round_robin import round_robin
from hw.lib.time import NOW_WIDTH, Timer

from .receive_queue import Arrival, ReceiveQueue

__all__ = ["FRACTION_BITS", "LinkDirection"]

#: Bits behind the point of the time at which the wire is free. The cost of a byte is off by at
#: most 2**-33 of a cycle.
FRACTION_BITS = 32

WORD_BYTES = 4
LINE_WORDS = LINE_BYTES // WORD_BYTES


class LinkDirection(wiring.Component):
    """Carries packets one way, in domain ``nic``.

    **Sending.** A packet costs its data in whole 32-bit words (those its bytes touch) plus
    ``TLP_OVERHEAD_REQUEST`` or ``TLP_OVERHEAD_COMPLETION`` bytes, at ``pcie.gbps``, counted in fractions of a
    cycle. Beats are taken as the wire becomes free for them (the overhead goes with the first), at most one per
    cycle; a sender that offers the next beat in time loses no fraction, one that is late holds the wire. The
    first beat is taken only when the receiver has a credit for the packet's class (``pcie.posted_credits``,
    ``non_posted_credits``, ``completion_credits``; one credit is one packet of at most ``pcie.mps`` bytes). What
    is offered behind a packet without credit waits with it.

    **Arrival.** A packet is handed on whole, after its last byte has come (where its LCRC would be checked): if
    transmission ends at time e (cycles, with fraction), its first beat is offered at edge ceil(e) + ``latency``
    and one more beat per cycle follows. ``latency`` is ``pcie.latency_ns`` in whole cycles, rounded up, at least
    1. For a packet of one beat accepted at edge t on a free wire, e = t + bytes * cycles per byte.

    **Order** (PCI Express Base Specification 3.0, table 2-39, no relaxed ordering): posted writes in order;
    reads in order, completions in order, neither before a write sent earlier; a write may pass reads and
    completions, and these may pass each other. Classes that may go take turns. A packet whose first beat is
    offered is not overtaken any more, so a receiver must not let a read wait for something behind it.
    A credit is free again as the last beat leaves the receive buffer; the way back takes no time.

    Raises:
        ValueError: through :class:`ReceiveQueue`, on impossible sizes.
    """

    def __init__(self, config: MachineConfig):
        pcie = config.pcie
        self.latency = max(1, math.ceil(Fraction(str(pcie.latency_ns)) * config.clocks.khz("nic") / 1_000_000))
        #: Cycles per byte in units of ``2**-FRACTION_BITS``.
        self.byte_time = round(config.cycles_per_byte(pcie.gbps) * 2**FRACTION_BITS)

        packet_beats = pcie.mps // LINE_BYTES + 1
        #: Receive queues by class, in the order of :class:`TlpType`.
        self.queues: list[ReceiveQueue] = []
        rows = 0
        for credits, beats in (
            (pcie.posted_credits, packet_beats),
            (pcie.non_posted_credits, 1),
            (pcie.completion_credits, packet_beats),
        ):
            self.queues.append(ReceiveQueue(credits=credits, base=rows, rows=credits * beats))
            rows += credits * beats
        self.buffer = RAM(width=Shape.cast(TlpBeat).width, depth=rows, domain="nic")
        #: Arrival of the oldest packet of each class.
        self.arrival_timer = [Timer("nic") for _ in self.queues]

        fields = {"kind": TlpType, "length": 13, "tag": 8, "packet": PACKET_WIDTH}
        self.sent = Probe("nic", "the last beat of a TLP was handed to the link", **fields)
        self.delivered = Probe("nic", "the last beat of a TLP was taken by the receiver", **fields)
        self.tlps = Counter("nic", "TLPs started")
        self.link_bytes = Counter("nic", "bytes on the link, overhead and padding to 32-bit words included")
        self.payload_bytes = Counter("nic", "bytes of data carried")
        self.credit_stalls = Counter("nic", "TLPs that had to wait for a credit")
        super().__init__({"input": In(TlpStream), "output": Out(TlpStream), "now": In(NOW_WIDTH), "quiet": Out(1)})

    def elaborate(self, platform):
        """Place the queues and the buffer, then the sending and the receiving side."""
        m = Module()
        for kind, queue in zip(TlpType, self.queues, strict=True):
            m.submodules[f"{kind.name.lower()}_queue"] = queue
        m.submodules.buffer = self.buffer
        sending = self._send(m)
        receiving = self._receive(m)
        m.d.comb += self.quiet.eq(~sending & ~receiving)
        return m

    def _send(self, m: Module) -> Signal:
        """Take beats, count their time, write them to the buffer; returns what makes this side busy."""
        header = self.input.payload.header
        first, last = self.input.payload.first, self.input.payload.last
        accept = Signal()
        accept_first = accept & first

        # When: the wire must be free for the beat, and the receiver for the packet.
        free_cycle = Signal(NOW_WIDTH)
        free_fraction = Signal(FRACTION_BITS)
        credit = Cat(queue.credit for queue in self.queues).bit_select(header.kind, 1)
        may_start = Signal()
        m.d.comb += [
            may_start.eq(~first | credit),
            self.input.ready.eq(may_start & (free_cycle <= self.now)),
            accept.eq(self.input.valid & self.input.ready),
        ]
        waiting_for_credit = Signal()
        no_credit = self.input.valid & ~may_start
        with m.If(no_credit | accept):
            m.d.nic += waiting_for_credit.eq(no_credit)
        self.credit_stalls.increment(m, no_credit & ~waiting_for_credit)

        # How long
        completion = header.kind == TlpType.COMPLETION
        carries_data = Signal()
        packet_words = Signal(12)
        words_left = Signal(12)
        words = Signal(range(LINE_WORDS + 1))
        byte_count = Signal(8)
        whole, fraction = Signal(NOW_WIDTH), Signal(FRACTION_BITS)
        with m.If(accept):
            room = Signal(range(LINE_WORDS + 1))
            m.d.comb += [room.eq(LINE_WORDS), packet_words.eq(words_left)]
            with m.If(first):
                offset = header.address % WORD_BYTES
                m.d.comb += [
                    room.eq(LINE_WORDS - (header.address // WORD_BYTES) % LINE_WORDS),
                    carries_data.eq(
                        (header.kind == TlpType.MEMORY_WRITE) | (completion & (header.status == TlpStatus.SUCCESS))
                    ),
                    packet_words.eq(Mux(carries_data, (header.length + offset + WORD_BYTES - 1) // WORD_BYTES, 0)),
                ]
            overhead = Mux(completion, TLP_OVERHEAD_COMPLETION, TLP_OVERHEAD_REQUEST)
            started = Mux(free_cycle == self.now, free_fraction, 0)
            m.d.comb += [
                words.eq(Mux(packet_words < room, packet_words, room)),
                byte_count.eq(words * WORD_BYTES + Mux(first, overhead, 0)),
                Cat(fraction, whole).eq(started + byte_count * self.byte_time),
            ]
            m.d.nic += [
                words_left.eq(packet_words - words),
                free_cycle.eq(self.now + whole),
                free_fraction.eq(fraction),
            ]
        self.tlps.increment(m, accept_first)
        self.link_bytes.increment(m, accept, byte_count)
        self.payload_bytes.increment(m, accept_first & carries_data, header.length)
        self._report(m, self.sent, accept & last, header)

        # Into the buffer
        beats = Signal(Arrival.as_shape()["beats"].shape)
        next_beats = Mux(first, 1, beats + 1)
        arrival = Signal(Arrival)
        with m.If(accept):
            m.d.nic += beats.eq(next_beats)
            # Reading the buffer is the last cycle of the flight: due is one before the first beat is offered.
            m.d.comb += [
                arrival.due.eq(self.now + whole + (fraction != 0) + (self.latency - 1)),
                arrival.beats.eq(next_beats),
            ]
        for kind, queue in zip(TlpType, self.queues, strict=True):
            m.d.comb += queue.arrival.eq(arrival)
            with m.If(accept & (header.kind == kind)):
                m.d.comb += [
                    queue.start.eq(first),
                    queue.write.eq(1),
                    queue.finish.eq(last),
                    self.buffer.write_address.eq(queue.write_row),
                ]
        m.d.comb += [self.buffer.write_enable.eq(accept), self.buffer.write_data.eq(self.input.payload)]
        return (self.input.valid & may_start) | (no_credit & ~waiting_for_credit)

    def _receive(self, m: Module) -> Signal:
        """Hand packets on as they arrive; returns what makes this side busy."""
        posted = self.queues[TlpType.MEMORY_WRITE.value]
        offered = Signal()
        advance = Signal()
        m.d.comb += [
            self.output.valid.eq(offered),
            self.output.payload.eq(TlpBeat(self.buffer.read_data)),
            advance.eq(~offered | self.output.ready),
        ]

        # Which packets have arrived and may go. Of two packets the one sent later is never due earlier.
        eligible = Signal(len(self.queues))
        for index, (queue, timer) in enumerate(zip(self.queues, self.arrival_timer, strict=True)):
            arrived = queue.head_valid & (self.now >= queue.head.due)
            if queue is not posted:
                arrived &= ~posted.head_valid | (posted.head.due > queue.head.due)
            m.d.comb += [
                eligible[index].eq(arrived),
                timer.armed.eq(queue.head_valid & ~offered),
                timer.deadline.eq(queue.head.due),
            ]

        # Choose a packet, then read its beats one per cycle
        current = Signal(range(len(self.queues)))
        beats_left = Signal(Arrival.as_shape()["beats"].shape)
        choice = round_robin(m, eligible, current)
        source = Signal.like(current)
        read = Signal()
        m.d.comb += [
            source.eq(Mux(beats_left != 0, current, choice)),
            read.eq(advance & ((beats_left != 0) | eligible.any())),
            self.buffer.read_enable.eq(read),
        ]
        with m.If(advance):
            m.d.nic += offered.eq(read)
        with m.If(read):
            m.d.nic += current.eq(source)
        for index, queue in enumerate(self.queues):
            with m.If(source == index):
                left = Mux(beats_left != 0, beats_left, queue.head.beats)
                m.d.comb += [
                    self.buffer.read_address.eq(queue.read_row),
                    queue.read.eq(read),
                    queue.pop.eq(read & (left == 1)),
                ]
                with m.If(read):
                    m.d.nic += beats_left.eq(left - 1)
        self._report(
            m, self.delivered, offered & self.output.ready & self.output.payload.last, self.output.payload.header
        )
        return Mux(offered, self.output.ready, (beats_left != 0) | eligible.any())

    @staticmethod
    def _report(m: Module, probe: Probe, condition, header: TlpHeader) -> None:
        probe.emit(m, condition, kind=header.kind, length=header.length, tag=header.tag, packet=header.packet)
