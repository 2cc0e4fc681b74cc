"""What leaves the last-level cache with a line: a queue of slots, and a register filled from the line buffers."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import DramRequest, MemoryOp
from hw.bus.tilelink import LINE_BITS

from .llc_layouts import LlcLayouts
from .llc_queue import Queue

__all__ = ["DramOutput", "LineOutput"]


class LineOutput(wiring.Component):
    """Messages to one receiver, in order, with the line in the sender's line buffer or without data.

    While ``want`` is high it asks for line buffer ``slot``; at an edge with ``granted`` high too that buffer is
    read, and ``line`` holds it in the next cycle. ``popped`` is high for the message whose buffer is read (or
    which has none). ``idle``: nothing queued or offered.

    A message pushed at edge t is offered so that it can be taken at edge t + 3 with a line, t + 2 without.

    Arguments:
        header: shape of the message without its line.
        layouts: sizes of the cache.
        domain: clock domain.
    """

    def __init__(self, header, layouts: LlcLayouts, domain: str):
        self.domain = domain
        self._message = data.StructLayout({"header": header, "line": LINE_BITS})
        self._entry = data.StructLayout({"slot": layouts.slot_width, "with_line": 1, "header": header})
        super().__init__(
            {
                "push": In(1),
                "entry": In(self._entry),
                "want": Out(1),
                "slot": Out(layouts.slot_width),
                "granted": In(1),
                "line": In(LINE_BITS),
                "popped": Out(1),
                "output": Out(stream.Signature(self._message)),
                "idle": Out(1),
            }
        )
        self.queue = Queue(self._entry, layouts.all_slots, domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.queue = queue = self.queue
        head = queue.output.payload
        full = Signal()
        loading = Signal()
        header = Signal.like(self.output.payload.header)
        line = Signal(LINE_BITS)
        next_due = Signal()
        m.d.comb += [
            queue.push.eq(self.push),
            queue.entry.eq(self.entry),
            next_due.eq(queue.output.valid & ~full & ~loading),
            self.want.eq(next_due & head.with_line),
            self.slot.eq(head.slot),
            queue.output.ready.eq(next_due & (self.granted | ~head.with_line)),
            self.popped.eq(queue.output.valid & queue.output.ready),
            self.output.valid.eq(full),
            self.output.payload.header.eq(header),
            self.output.payload.line.eq(line),
            self.idle.eq(~queue.output.valid & ~full & ~loading),
        ]
        with m.If(self.popped):
            m.d[self.domain] += [header.eq(head.header), loading.eq(head.with_line), full.eq(~head.with_line)]
        with m.If(loading):
            m.d[self.domain] += [line.eq(self.line), loading.eq(0), full.eq(1)]
        with m.If(full & self.output.ready):
            m.d[self.domain] += full.eq(0)
        return m


class DramOutput(wiring.Component):
    """Requests to DRAM, in the order in which slots asked: an entry is a write, a read, or a write and then a read.

    ``want``, ``slot``, ``spare``, ``granted`` and ``line`` are as in :class:`LineOutput`; at an edge with
    ``granted`` high, the line buffer is free again.
    """

    def __init__(self, layouts: LlcLayouts, domain: str):
        self.domain = domain
        self._entry = data.StructLayout(
            {
                "slot": layouts.slot_width,
                "write": 1,
                "write_line": layouts.line_width,
                "spare": 1,
                "read": 1,
                "read_line": layouts.line_width,
            }
        )
        super().__init__(
            {
                "push": In(1),
                "entry": In(self._entry),
                "want": Out(1),
                "slot": Out(layouts.slot_width),
                "spare": Out(1),
                "granted": In(1),
                "line": In(LINE_BITS),
                "output": Out(stream.Signature(DramRequest)),
                "idle": Out(1),
            }
        )
        self.queue = Queue(self._entry, layouts.all_slots, domain)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.queue = queue = self.queue
        head = queue.output.payload
        full = Signal()
        loading = Signal()
        written = Signal()  # of the head's write and read, the write is done
        request = Signal(DramRequest)
        due = Signal()
        write_due = Signal()
        read_due = Signal()
        m.d.comb += [
            queue.push.eq(self.push),
            queue.entry.eq(self.entry),
            due.eq(queue.output.valid & ~full & ~loading),
            write_due.eq(due & head.write & ~written),
            read_due.eq(due & ~write_due),
            self.want.eq(write_due),
            self.slot.eq(head.slot),
            self.spare.eq(head.spare),
            queue.output.ready.eq(read_due | (write_due & self.granted & ~head.read)),
            self.output.valid.eq(full),
            self.output.payload.eq(request),
            self.idle.eq(~queue.output.valid & ~full & ~loading),
        ]
        with m.If(write_due & self.granted):
            m.d[self.domain] += [
                request.op.eq(MemoryOp.WRITE),
                request.line.eq(head.write_line),
                loading.eq(1),
                written.eq(head.read),
            ]
        with m.If(read_due):
            m.d[self.domain] += [
                request.op.eq(MemoryOp.READ),
                request.line.eq(head.read_line),
                request.tag.eq(head.slot),
                full.eq(1),
                written.eq(0),
            ]
        with m.If(loading):
            m.d[self.domain] += [request.data.eq(self.line), loading.eq(0), full.eq(1)]
        with m.If(full & self.output.ready):
            m.d[self.domain] += full.eq(0)
        return m
