"""What leaves the last-level cache with a line: a queue of slots, and a register filled from the line buffers."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import DramRequest, MemoryOp
from hw.bus.tilelink import LINE_BITS

from .llc_layouts import LlcLayouts
from .llc_queue import Queue

__all__ = ["DramOutput", "LineOutput"]


class _Output(wiring.Component):
    """What both outputs have: a queue of entries, each for a slot, and a message that is offered once it is full.

    While ``want`` is high it asks for line buffer ``slot``; at an edge with ``granted`` high too that buffer is
    read, and ``line`` holds it in the next cycle. ``idle``: nothing queued or offered.

    Attributes:
        due: the queue's head may become the message.
        full: the message is complete.
        loading: all of the message is there but its line, which ``line`` holds.
    """

    def __init__(self, entry, message, layouts: LlcLayouts, domain: str, **ports):
        self.domain = domain
        super().__init__(
            {
                "push": In(1),
                "entry": In(entry),
                "want": Out(1),
                "slot": Out(layouts.slot_width),
                "granted": In(1),
                "line": In(LINE_BITS),
                "output": Out(stream.Signature(message)),
                "idle": Out(1),
                **ports,
            }
        )
        self.queue = Queue(entry, layouts.all_slots, domain)
        self.due, self.full, self.loading = Signal(), Signal(), Signal()

    def elaborate(self, platform):
        """Everything but the message."""
        m = Module()
        m.submodules.queue = queue = self.queue
        m.d.comb += [
            queue.push.eq(self.push),
            queue.entry.eq(self.entry),
            self.due.eq(queue.output.valid & (~self.full | self.output.ready) & ~self.loading),
            self.slot.eq(queue.output.payload.slot),
            self.output.valid.eq(self.full),
            self.idle.eq(~queue.output.valid & ~self.full & ~self.loading),
        ]
        with m.If(self.loading):
            m.d[self.domain] += [self.loading.eq(0), self.full.eq(1)]
        with m.If(self.full & self.output.ready):
            m.d[self.domain] += self.full.eq(0)
        return m


class LineOutput(_Output):
    """Messages to one receiver, in order, with the line in the sender's line buffer or without data.

    ``popped`` is high for the message whose buffer is read (or which has none).

    A message pushed at edge t is offered so that it can be taken at edge t + 3 with a line, t + 2 without. Messages
    with lines follow each other every second cycle, others in every cycle.

    Arguments:
        header: shape of the message without its line.
        layouts: sizes of the cache.
        domain: clock domain.
    """

    def __init__(self, header, layouts: LlcLayouts, domain: str):
        entry = data.StructLayout({"slot": layouts.slot_width, "with_line": 1, "header": header})
        message = data.StructLayout({"header": header, "line": LINE_BITS})
        super().__init__(entry, message, layouts, domain, popped=Out(1))

    def elaborate(self, platform):
        """Elaborate."""
        m = super().elaborate(platform)
        queue = self.queue
        head = queue.output.payload
        header = Signal.like(self.output.payload.header)
        line = Signal(LINE_BITS)
        m.d.comb += [
            self.want.eq(self.due & head.with_line),
            queue.output.ready.eq(self.due & (self.granted | ~head.with_line)),
            self.popped.eq(queue.output.valid & queue.output.ready),
            self.output.payload.header.eq(header),
            self.output.payload.line.eq(line),
        ]
        with m.If(self.popped):
            m.d[self.domain] += [
                header.eq(head.header),
                self.loading.eq(head.with_line),
                self.full.eq(~head.with_line),
            ]
        with m.If(self.loading):
            m.d[self.domain] += line.eq(self.line)
        return m


class DramOutput(_Output):
    """Requests to DRAM, in the order in which slots asked: an entry is a write, a read, or a write and then a read.

    ``spare`` is of the line buffer wanted; at an edge with ``granted`` high, that buffer is free again.
    """

    def __init__(self, layouts: LlcLayouts, domain: str):
        entry = data.StructLayout(
            {
                "slot": layouts.slot_width,
                "write": 1,
                "write_line": layouts.line_width,
                "spare": 1,
                "read": 1,
                "read_line": layouts.line_width,
            }
        )
        super().__init__(entry, DramRequest, layouts, domain, spare=Out(1))

    def elaborate(self, platform):
        """Elaborate."""
        m = super().elaborate(platform)
        queue = self.queue
        head = queue.output.payload
        written = Signal()  # of the head's write and read, the write is done
        request = Signal(DramRequest)
        write_due = Signal()
        read_due = Signal()
        m.d.comb += [
            write_due.eq(self.due & head.write & ~written),
            read_due.eq(self.due & ~write_due),
            self.want.eq(write_due),
            self.spare.eq(head.spare),
            queue.output.ready.eq(read_due | (write_due & self.granted & ~head.read)),
            self.output.payload.eq(request),
        ]
        with m.If(write_due & self.granted):
            m.d[self.domain] += [
                request.op.eq(MemoryOp.WRITE),
                request.line.eq(head.write_line),
                self.loading.eq(1),
                written.eq(head.read),
            ]
        with m.If(read_due):
            m.d[self.domain] += [
                request.op.eq(MemoryOp.READ),
                request.line.eq(head.read_line),
                request.tag.eq(head.slot),
                self.full.eq(1),
                written.eq(0),
            ]
        with m.If(self.loading):
            m.d[self.domain] += request.data.eq(self.line)
        return m
