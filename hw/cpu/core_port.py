"""The core port: runs the operations that software hands over, in the clock of one core."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.core import OP_ID_WIDTH, CoreHost, InterruptTaken, MmioPort, Operation, OperationKind
from hw.bus.l1 import L1Port
from hw.bus.tilelink import LINE_BITS
from hw.config import CoreConfig, L1Config
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH, Timer

from .byte_lanes import ByteAddress, LaneMask
from .forward_queue import ForwardQueue
from .memory_order import MemoryOrder
from .store_buffer import StoreBuffer

__all__ = ["CorePort"]


class _FetchRegister(wiring.Component):
    """The operation that issues next: one register per field, and the data in a memory of one row.

    It could be one register of the shape Operation; a compiled model keeps fields apart faster, and copies
    the data only when there are new ones.
    """

    def __init__(self, domain):
        self.domain = domain
        super().__init__(
            {
                "ready": In(1),
                "valid": In(1),
                "operation": In(Operation),
                "kind": Out(OperationKind),
                "id": Out(OP_ID_WIDTH),
                "address": Out(ByteAddress),
                "size": Out(7),
                "data": Out(LINE_BITS),
                "cycles": Out(32),
                "after_valid": Out(1),
                "after": Out(OP_ID_WIDTH),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.row = row = Memory(shape=LINE_BITS, depth=1, init=[])
        write, read = row.write_port(domain=self.domain), row.read_port(domain="comb")
        m.d.comb += [write.en.eq(self.ready & self.valid), write.data.eq(self.operation.data), self.data.eq(read.data)]
        # Nested, not one condition: no logic of its own may hang on an input of the host.
        with m.If(self.ready):
            with m.If(self.valid):
                m.d[self.domain] += [
                    self.kind.eq(self.operation.kind),
                    self.id.eq(self.operation.id),
                    self.address.eq(data.View(ByteAddress, self.operation.address)),
                    self.size.eq(self.operation.size),
                    self.cycles.eq(self.operation.cycles),
                    self.after_valid.eq(self.operation.after_valid),
                    self.after.eq(self.operation.after),
                ]
        return m


class CorePort(wiring.Component):
    """Takes one operation per cycle from the host, issues them in order, and reports completions.

    **Fetch.** An operation handed over at edge t lies in the fetch register from then on and issues at t + 1 at the
    earliest. ``host.operation.ready`` is high when the register is empty or issues at this edge, except at an edge
    that takes an interrupt.

    **Issue.** At most one operation per cycle, in order; none before the load named by ``after`` has completed.

    * EXECUTE issued at t: the next operation issues at t + ``cycles`` at the earliest.
    * LOAD waits for room in the load queue, and for an earlier load with the same ``id``. It issues when the L1
      cache accepts it. A load that overlaps stores in the store buffer is forwarded from the youngest of
      them when that one writes all its bytes, and waits until it no longer overlaps otherwise. A forwarded
      load completes ``l1.latency`` cycles after it issues, as a hit does, or at the first later edge at
      which the cache answers nothing.
    * STORE waits for room in the store buffer. Stores are sent to the cache in order, each after every
      earlier load is complete (total store order); one that need not wait is offered 2 cycles after it issues.
    * PREFETCH issues when the cache accepts it, and is forgotten.
    * MMIO_READ and MMIO_WRITE wait until no load is in flight and every store is visible, and issue when the
      request is accepted. After an MMIO_READ nothing issues until the cycle after its answer.
    * FENCE issues at once, then nothing issues until the cycle after it completes, which it does when no load
      is in flight and every store is visible, at the earliest 1 cycle after it issued.
    * HALT issues at once, then nothing issues until an interrupt is taken. With interrupts masked that is
      never.
    * CLI, STI, IRET change the interrupt flag from the next edge on. The flag is set at the start.

    **Interrupts.** Taken at any edge at which one is pending and the flag is set, except between the issue and
    the completion of an MMIO_READ or FENCE, and except while a request offered to the cache or to the devices
    waits to be accepted. The flag is cleared; an EXECUTE is cut short and its remaining cycles, this edge
    included, are reported; the operation in the fetch register is dropped and reported as squashed; loads in
    flight complete later. One exception keeps STI followed by HALT from losing a wake-up: a HALT that could
    issue at this edge does so and is woken at once (``issue`` and ``interrupt_taken`` at the same edge, not
    squashed). There is no other shadow behind STI.

    **Quiet** says nothing about the host, whose inputs it may not depend on: the host must not skip an edge at
    which ``host.operation`` is valid and ready.

    ``uops`` is not used yet. Reserved kinds issue and do nothing.

    Arguments:
        core: sizes of load queue and store buffer.
        l1: latency of the cache.
        index: number of this core, sent with MMIO requests.
        domain: clock domain of this core.

    Raises:
        ValueError: when there is no core ``index``.

    Attributes:
        host: ``In(CoreHost())``.
        l1: ``Out(L1Port())``.
        mmio: ``Out(MmioPort())``.
        interrupt_pending: ``In(1)``, a register of the interrupt controller, as ``interrupt_vector``: ``In(8)``.
        interrupt_acknowledge: ``Out(1)``, the interrupt is taken at this edge.
        now: ``In(48)``, the number of the next edge.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, core: CoreConfig, l1: L1Config, index: int, domain: str):
        if not 0 <= index < core.count:
            raise ValueError(f"core index must be between 0 and core.count - 1 = {core.count - 1}, not {index}")
        self.index, self.domain = index, domain
        super().__init__(
            {
                "host": In(CoreHost()),
                "l1": Out(L1Port()),
                "mmio": Out(MmioPort()),
                "interrupt_pending": In(1),
                "interrupt_vector": In(8),
                "interrupt_acknowledge": Out(1),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )
        self.store_buffer = StoreBuffer(core.store_buffer, domain)
        self.order = MemoryOrder(core.load_queue, core.store_buffer, domain)
        self.forward_queue = ForwardQueue(core.load_queue, l1.latency, domain)
        self.execute = Timer(domain)

        self.issue = Probe(domain, "an operation issued", kind=OperationKind, id=OP_ID_WIDTH)
        self.completion = Probe(domain, "a load, MMIO read or fence completed", id=OP_ID_WIDTH)
        self.interrupt = Probe(domain, "an interrupt was taken", vector=8, remaining=32)
        self.mmio_request = Probe(domain, "an access to a device was sent", write=1, address=40, data=64)
        self.mmio_response = Probe(domain, "a read of a device was answered", data=64)
        self.loads = Counter(domain, "loads issued")
        self.forwarded_loads = Counter(domain, "loads answered from the store buffer")
        self.stores = Counter(domain, "stores issued")
        self.prefetches = Counter(domain, "prefetches issued")
        self.mmio_reads = Counter(domain, "reads of devices issued")
        self.mmio_writes = Counter(domain, "writes to devices issued")
        self.fences = Counter(domain, "fences issued")
        self.halts = Counter(domain, "halts issued")
        self.interrupts = Counter(domain, "interrupts taken")

        # The fetch register, and what holds issue
        self._operation = _FetchRegister(domain)
        self._fetched = Signal()
        self._executing = Signal()
        self._halted = Signal()
        self._reading = Signal()
        self._fencing = Signal()
        self._waiting_id = Signal(OP_ID_WIDTH)
        self._interrupt_flag = Signal(init=1)
        self._offered = Signal()
        # What happens at this edge
        self._can_issue = Signal()
        self._issuing = Signal()
        self._taking = Signal()
        self._stalled = Signal()

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.store_buffer = self.store_buffer
        m.submodules.order = self.order
        m.submodules.forward_queue = self.forward_queue
        self._fetch(m)
        self._issue_in_order(m)
        self._issue_memory(m)
        self._issue_mmio(m)
        self._hold_issue(m)
        self._take_interrupts(m)
        self._complete(m)
        self._observe(m)
        m.d.comb += self.quiet.eq(
            ~(self._issuing | self._taking | self.host.completion_valid)
            & (self._stalled == self._offered)
            & ~(self.execute.armed & ~self._executing)
            & self.order.quiet
            & self.store_buffer.quiet
            & self.forward_queue.quiet
        )
        return m

    def _fetch(self, m):
        offer = self.host.operation
        m.submodules.fetch_register = self._operation
        m.d.comb += [
            offer.ready.eq(~self._taking & (~self._fetched | self._issuing)),
            self._operation.ready.eq(offer.ready),
            self._operation.valid.eq(offer.valid),
            self._operation.operation.eq(offer.payload),
        ]
        with m.If(offer.ready):
            m.d[self.domain] += self._fetched.eq(offer.valid)
        with m.If(self._taking):
            m.d[self.domain] += self._fetched.eq(0)

    def _issue_in_order(self, m):
        operation, order = self._operation, self.order
        waiting_after = Signal()
        with m.If(operation.after_valid):
            m.d.comb += waiting_after.eq(order.after_pending)
        m.d.comb += [
            order.id.eq(operation.id),
            order.after.eq(operation.after),
            self._executing.eq(self.execute.armed & (self.now < self.execute.deadline)),
            self._can_issue.eq(
                self._fetched & ~(self._executing | self._halted | self._reading | self._fencing | waiting_after)
            ),
            self.host.issue.eq(self._issuing),
            self.host.issue_id.eq(operation.id),
        ]
        with m.Switch(operation.kind):
            with m.Case(OperationKind.LOAD):
                forwarded = self.forward_queue.push
                m.d.comb += self._issuing.eq(forwarded | (self.l1.load.valid & self.l1.load.ready))
            with m.Case(OperationKind.PREFETCH):
                m.d.comb += self._issuing.eq(self.l1.load.valid & self.l1.load.ready)
            with m.Case(OperationKind.STORE):
                m.d.comb += self._issuing.eq(self.store_buffer.push)
            with m.Case(OperationKind.MMIO_READ, OperationKind.MMIO_WRITE):
                m.d.comb += self._issuing.eq(self.mmio.request.valid & self.mmio.request.ready)
            with m.Case(OperationKind.HALT):
                m.d.comb += self._issuing.eq(self._can_issue)
            with m.Default():
                m.d.comb += self._issuing.eq(self._can_issue & ~self._taking)

        # A stream's offer stands until it is accepted
        m.d.comb += self._stalled.eq(
            (self.l1.load.valid & ~self.l1.load.ready) | (self.mmio.request.valid & ~self.mmio.request.ready)
        )
        m.d[self.domain] += self._offered.eq(self._stalled)

    def _issue_memory(self, m):
        operation, order, buffer, queue = self._operation, self.order, self.store_buffer, self.forward_queue
        address = operation.address
        m.submodules.lanes = lanes = LaneMask()
        m.d.comb += [lanes.offset.eq(address.offset), lanes.size.eq(operation.size)]
        go = Signal()
        m.d.comb += go.eq(self._can_issue & ~self._taking)

        # Loads and prefetches
        m.d.comb += [
            self.l1.load.payload.id.eq(operation.id),
            self.l1.load.payload.line.eq(address.line),
            self.l1.load.payload.offset.eq(address.offset),
            self.l1.load.payload.size.eq(operation.size),
            self.l1.load.payload.prefetch.eq(operation.kind == OperationKind.PREFETCH),
            buffer.search_line.eq(address.line),
            buffer.search_mask.eq(lanes.mask),
            buffer.read.eq(queue.push),
            queue.id.eq(operation.id),
            queue.offset.eq(address.offset),
            queue.size.eq(operation.size),
            queue.line.eq(buffer.read_data),
        ]
        with m.If(go & (operation.kind == OperationKind.PREFETCH)):
            m.d.comb += self.l1.load.valid.eq(1)
        with m.If(go & (operation.kind == OperationKind.LOAD) & ~(order.loads_full | order.full | order.busy)):
            m.d.comb += [
                buffer.search.eq(~buffer.empty),
                self.l1.load.valid.eq(~buffer.overlap),
                queue.push.eq(buffer.covered),
                order.load.eq(self._issuing),
            ]

        # Stores: bytes move to their lanes
        with m.If(go & (operation.kind == OperationKind.STORE) & ~(buffer.full | order.full)):
            m.d.comb += [
                buffer.push.eq(1),
                order.store.eq(1),
                buffer.entry.line.eq(address.line),
                buffer.entry.mask.eq(lanes.mask),
                buffer.entry.data.eq(operation.data << (address.offset << 3)),
            ]
        m.d.comb += buffer.release.eq(order.release)

        # To and from the cache
        m.d.comb += [
            self.l1.store.valid.eq(buffer.store.valid),
            self.l1.store.payload.eq(buffer.store.payload),
            buffer.store.ready.eq(self.l1.store.ready),
            buffer.store_done.eq(self.l1.store_done),
        ]

    def _issue_mmio(self, m):
        operation, request = self._operation, self.mmio.request
        write = operation.kind == OperationKind.MMIO_WRITE
        read = operation.kind == OperationKind.MMIO_READ
        m.d.comb += [
            request.payload.write.eq(write),
            request.payload.address.eq(operation.address),
            request.payload.size.eq(operation.size),
            request.payload.data.eq(operation.data),
            request.payload.core.eq(self.index),
        ]
        with m.If(self._can_issue & ~self._taking & (write | read)):
            m.d.comb += request.valid.eq(self.order.idle & self.store_buffer.empty)

    def _hold_issue(self, m):
        sync, operation = m.d[self.domain], self._operation
        with m.If(~self._executing):
            sync += self.execute.armed.eq(0)
        with m.If(self._issuing):
            with m.Switch(operation.kind):
                with m.Case(OperationKind.EXECUTE):
                    sync += [self.execute.armed.eq(1), self.execute.deadline.eq(self.now + operation.cycles)]
                with m.Case(OperationKind.MMIO_READ):
                    sync += [self._reading.eq(1), self._waiting_id.eq(operation.id)]
                with m.Case(OperationKind.FENCE):
                    sync += [self._fencing.eq(1), self._waiting_id.eq(operation.id)]
                with m.Case(OperationKind.HALT):
                    sync += self._halted.eq(1)
                with m.Case(OperationKind.CLI):
                    sync += self._interrupt_flag.eq(0)
                with m.Case(OperationKind.STI, OperationKind.IRET):
                    sync += self._interrupt_flag.eq(1)
        with m.If(self._taking):
            sync += [self.execute.armed.eq(0), self._halted.eq(0), self._interrupt_flag.eq(0)]

    def _take_interrupts(self, m):
        host = self.host
        taken = Signal(InterruptTaken)
        m.d.comb += [
            self._taking.eq(
                self.interrupt_pending & self._interrupt_flag & ~(self._reading | self._fencing | self._offered)
            ),
            self.interrupt_acknowledge.eq(self._taking),
            host.interrupt_taken.eq(self._taking),
            host.interrupt.eq(taken),
        ]
        with m.If(self._taking):
            m.d.comb += [
                taken.vector.eq(self.interrupt_vector),
                taken.remaining.eq(Mux(self._executing, self.execute.deadline - self.now, 0)),
                taken.squashed.eq(self._fetched & ~self._issuing),
                taken.squashed_id.eq(self._operation.id),
            ]

    def _complete(self, m):
        host, l1, mmio, queue, order = self.host, self.l1, self.mmio, self.forward_queue, self.order
        sync = m.d[self.domain]
        read_data = self._read_data(m)

        # The cache's answers cannot be refused; forwarded loads wait for a gap
        m.d.comb += queue.ready.eq(~l1.load_done_valid)
        with m.If(l1.load_done_valid):
            m.d.comb += [
                host.completion_valid.eq(1),
                host.completion.id.eq(l1.load_done.id),
                host.completion.data.eq(l1.load_done.data),
            ]
        with m.Elif(queue.valid):
            m.d.comb += [host.completion_valid.eq(1), host.completion.eq(queue.completion)]

        # An MMIO read or a fence completes alone: no load is in flight then
        with m.Elif(self._reading):
            m.d.comb += [
                host.completion_valid.eq(mmio.response.valid),
                host.completion.id.eq(self._waiting_id),
                host.completion.data.eq(read_data),
            ]
        with m.Elif(self._fencing):
            m.d.comb += [
                host.completion_valid.eq(order.idle & self.store_buffer.empty),
                host.completion.id.eq(self._waiting_id),
            ]
        alone = ~(l1.load_done_valid | queue.valid)
        m.d.comb += mmio.response.ready.eq(self._reading & alone)
        with m.If(mmio.response.valid & mmio.response.ready):
            sync += self._reading.eq(0)
        with m.If(self._fencing & host.completion_valid & alone):
            sync += self._fencing.eq(0)

        m.d.comb += [
            order.complete.eq(~alone),
            order.complete_id.eq(host.completion.id),
        ]

    def _read_data(self, m):
        """The bytes of the MMIO read that waits; the operation itself has left the fetch register."""
        four_bytes = Signal()
        with m.If(self._issuing):
            m.d[self.domain] += four_bytes.eq(self._operation.size == 4)
        answer = self.mmio.response.payload.data
        return Mux(four_bytes, answer & 0xFFFF_FFFF, answer)

    def _observe(self, m):
        operation, host, request, response = self._operation, self.host, self.mmio.request, self.mmio.response
        sent = request.valid & request.ready
        self.issue.emit(m, self._issuing, kind=operation.kind, id=operation.id)
        self.completion.emit(m, host.completion_valid, id=host.completion.id)
        self.interrupt.emit(m, self._taking, vector=self.interrupt_vector, remaining=host.interrupt.remaining)
        self.mmio_request.emit(
            m, sent, write=request.payload.write, address=request.payload.address, data=request.payload.data
        )
        self.mmio_response.emit(m, response.valid & response.ready, data=response.payload.data)

        self.loads.increment(m, self.order.load)
        self.forwarded_loads.increment(m, self.forward_queue.push)
        self.stores.increment(m, self.store_buffer.push)
        for counter, kind in (
            (self.prefetches, OperationKind.PREFETCH),
            (self.mmio_reads, OperationKind.MMIO_READ),
            (self.mmio_writes, OperationKind.MMIO_WRITE),
            (self.fences, OperationKind.FENCE),
            (self.halts, OperationKind.HALT),
        ):
            counter.increment(m, self._issuing & (operation.kind == kind))
        self.interrupts.increment(m, self._taking)
