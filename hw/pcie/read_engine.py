"""Answers the card's reads from memory."""

from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.memory import DeviceRequest, DeviceResponse, MemoryOp
from hw.bus.tilelink import LINE_BITS, LINE_BYTES
from hw.bus.tlp import TlpHeader, TlpStatus, TlpStream, TlpType
from hw.lib.probe import Counter
from hw.lib.ram import RAM

from .messages import WRITE_COUNT_WIDTH, ReadRequest
from .queue import Queue

__all__ = ["ReadEngine"]


class ReadEngine(wiring.Component):
    """Turns read requests into line reads and their answers into completions, in domain ``uncore``.

    A request waits until the writes that came before it are visible. Then its lines are asked for one per cycle,
    up to ``lines`` at once over all requests, and come back in any order. Each line is one completion (the
    read completion boundary is 64 bytes); completions go out in the order of the requests and of their
    addresses. An unsupported request is answered by one completion without data.

    Latency: a request accepted at edge t with nothing to wait for asks for its first line at t + 1 and
    for one more at each edge after; a line accepted from memory at edge t is offered as a completion at t + 2.

    Arguments:
        requests: read requests that can wait. The card keeps no more outstanding, so that a read never
            blocks the writes behind it on the link.
        lines: line reads in flight, a power of two of at most 256.

    Ports:
        request: from the link, in order.
        writes_done: line writes visible so far.
        memory_request, memory_response: line reads; the tag is ours.
        completion: to the link.
        idle: every line asked for has been answered, and no request waits.
        active: the next edge changes something here, given the inputs as they are.

    Raises:
        ValueError: when ``lines`` is out of range.
    """

    def __init__(self, requests: int, lines: int):
        if not 2 <= lines <= 256 or lines & (lines - 1):
            raise ValueError(f"lines in flight must be a power of two between 2 and 256, not {lines}")
        self.lines = lines
        self.requests = Queue(ReadRequest, requests, "uncore")
        self.headers = RAM(width=Shape.cast(TlpHeader).width, depth=lines, domain="uncore")
        self.data = RAM(width=LINE_BITS, depth=lines, domain="uncore")
        self.read_lines = Counter("uncore", "lines read for the device")
        super().__init__(
            {
                "request": In(stream.Signature(ReadRequest)),
                "writes_done": In(WRITE_COUNT_WIDTH),
                "memory_request": Out(stream.Signature(DeviceRequest)),
                "memory_response": In(stream.Signature(DeviceResponse)),
                "completion": Out(TlpStream),
                "idle": Out(1),
                "active": Out(1),
            }
        )

    def elaborate(self, platform):
        """Place the queue and the slots, then asking, filling and answering."""
        m = Module()
        m.submodules.requests = self.requests
        m.submodules.headers = self.headers
        m.submodules.data = self.data
        wiring.connect(m, wiring.flipped(self.request), self.requests.input)

        # Slots, taken and freed in order; ``filled`` tells which of them have their data.
        tail, head = (Signal(ceil_log2(self.lines), name=name) for name in ("tail", "head"))
        used = Signal(range(self.lines + 1))
        filled = Signal(self.lines)
        take, free = Signal(), Signal()
        with m.If(take != free):
            m.d.uncore += used.eq(Mux(take, used + 1, used - 1))

        asking = self._ask(m, take, tail, used, filled)

        # Fill
        m.d.comb += [
            self.memory_response.ready.eq(1),
            self.data.write_enable.eq(self.memory_response.valid),
            self.data.write_address.eq(self.memory_response.payload.tag),
            self.data.write_data.eq(self.memory_response.payload.data),
        ]
        with m.If(self.memory_response.valid):
            m.d.uncore += filled.bit_select(self.memory_response.payload.tag % self.lines, 1).eq(1)

        # Answer
        offered = Signal()
        advance = ~offered | self.completion.ready
        answer = self.completion.payload
        m.d.comb += [
            free.eq(advance & (used != 0) & filled.bit_select(head, 1)),
            self.headers.read_enable.eq(free),
            self.headers.read_address.eq(head),
            self.data.read_enable.eq(free),
            self.data.read_address.eq(head),
            self.completion.valid.eq(offered),
            answer.header.eq(self.headers.read_data),
            answer.data.eq(self.data.read_data),
            answer.first.eq(1),
            answer.last.eq(1),
        ]
        with m.If(advance):
            m.d.uncore += offered.eq(free)
        with m.If(free):
            m.d.uncore += head.eq(head + 1)

        m.d.comb += self.idle.eq((used == 0) & ~self.requests.output.valid)
        m.d.comb += self.active.eq(
            (self.request.valid & self.request.ready)
            | asking
            | self.memory_response.valid
            | free
            | (offered & self.completion.ready)
        )
        return m

    def _ask(self, m: Module, take: Signal, tail: Signal, used: Signal, filled: Signal) -> Signal:
        """Ask for the lines of the oldest request; returns whether it gets one step further."""
        requests, memory = self.requests.output, self.memory_request.payload
        request = requests.payload
        progress = Signal.like(request.length)
        remaining = Signal.like(request.length)
        part = Signal(range(LINE_BYTES + 1))
        header = Signal(TlpHeader)
        last = Signal()
        may_ask = Signal()
        m.d.comb += [
            may_ask.eq(requests.valid & (self.writes_done >= request.after) & (used != self.lines)),
            self.memory_request.valid.eq(may_ask & request.supported),
            take.eq(may_ask & (self.memory_request.ready | ~request.supported)),
            requests.ready.eq(take & last),
            memory.op.eq(MemoryOp.READ),
            memory.tag.eq(tail),
        ]
        with m.If(may_ask):
            address = request.address + progress
            to_line_end = LINE_BYTES - address % LINE_BYTES
            m.d.comb += [
                remaining.eq(request.length - progress),
                part.eq(Mux(remaining < to_line_end, remaining, to_line_end)),
                last.eq(~request.supported | (remaining == part)),
                memory.line.eq(address // LINE_BYTES),
                memory.packet.eq(request.packet),
                header.kind.eq(TlpType.COMPLETION),
                header.address.eq(address),
                header.tag.eq(request.tag),
                header.remaining.eq(remaining),
                header.packet.eq(request.packet),
            ]
            with m.If(request.supported):
                m.d.comb += header.length.eq(part)
            with m.Else():
                m.d.comb += header.status.eq(TlpStatus.UNSUPPORTED_REQUEST)
        m.d.comb += [
            self.headers.write_enable.eq(take),
            self.headers.write_address.eq(tail),
            self.headers.write_data.eq(header),
        ]
        with m.If(take):
            m.d.uncore += [
                tail.eq(tail + 1),
                filled.bit_select(tail, 1).eq(~request.supported),
                progress.eq(Mux(last, 0, progress + part)),
            ]
        self.read_lines.increment(m, take & request.supported)
        return take
