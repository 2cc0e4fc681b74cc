"""The core port: runs the operations that software hands over, in the clock of one core."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.bus.core import OP_ID_WIDTH, CoreHost, InterruptTaken, MmioPort, OperationKind
from hw.bus.fetch import TextPort
from hw.bus.l1 import L1Port, L1Use
from hw.bus.memory import NonCachedPort
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES
from hw.bus.translate import TranslatePort
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH, Timer

from .byte_lanes import LaneMask
from .completion_unit import CompletionUnit, Waiting
from .execute_unit import ExecuteUnit
from .fetch_register import FetchRegister
from .interrupt_unit import InterruptUnit, sleep_exit_cycles
from .issue_counters import IssueCounters
from .load_unit import LoadUnit
from .memory_order import MemoryOrder
from .poll_unit import PollUnit
from .reorder_window import ReorderWindow
from .store_buffer import StoreBuffer
from .write_combining import WriteCombining

__all__ = ["CorePort", "Stall"]


class Stall(enum.Enum, shape=2):
    """What issue waits for that is full."""

    NONE = 0
    WINDOW = 1  #: the reorder window
    LOADS = 2  #: the load queue
    STORES = 3  #: the store buffer


class _AtomicOperands(data.Struct):
    operand: 64
    compare: 64


class CorePort(wiring.Component):
    """Takes one operation per cycle from the host, issues them in order, and reports completions.

    **Fetch.** An operation handed over at edge t lies in the fetch register from then on and issues at t + 1 at the
    earliest. ``host.operation.ready`` is high when the register is empty or issues at this edge, except at an edge
    that takes an interrupt.

    **Issue.** At most one operation per cycle, in order, when the reorder window is not full; none but a LOAD before
    the load named by ``after`` has completed. docs/core.md says what each kind waits for; to the cycle:

    * EXECUTE issued at t: the next operation issues at t + ``cycles`` at the earliest, see :class:`ExecuteUnit`.
    * LOAD issues when the L1 cache accepts it, or when it goes to the reservation station because ``after`` is in
      flight; from there it is offered to the cache at the edge at which that completes. A load that overlaps stores
      in the store buffer is forwarded from the youngest of them when that one writes all its bytes, and waits
      until it no longer overlaps otherwise. A forwarded load completes ``l1.latency`` cycles after it issues (or
      left the reservation station), as a hit does, or at the first later edge at which the cache answers nothing.
    * STORE: sent to the cache in order, each after every earlier load is complete (total store order); one that need
      not wait is offered 2 cycles after it issues.
    * PREFETCH issues when the cache accepts it, or when its page is not present, and is forgotten.
    * MMIO_READ and MMIO_WRITE wait until no load is in flight and every store is visible, and issue when the
      request is accepted. After an MMIO_READ nothing issues until the cycle after its answer.
    * ATOMIC issues when the cache accepts it; nothing else issues until the cycle after its answer.
    * FENCE, LFENCE and SFENCE issue at once, then nothing issues until the cycle after they complete, which they do
      when nothing is left that they wait for, at the earliest 1 cycle after they issued.
    * RDTSC does what LFENCE does, and completes with the number of the edge at which it completes.
    * TSC_DEADLINE issues at once; ``deadline_write`` is high at that edge.
    * POLL issues when the cache accepts the first look, see :class:`PollUnit`; nothing issues until the cycle after
      it completes.
    * STORE_NT and CLFLUSH wait for earlier STOREs of the same line, then see :class:`WriteCombining`.
    * HALT issues at once, then nothing issues until an interrupt is taken. With interrupts masked that is never.
    * CLI, STI, IRET change the interrupt flag from the next edge on. The flag is set at the start.

    A load takes its one place in the cache's load port and the translation port before what issues when it comes from
    the reservation station.

    **Interrupts.** Taken at any edge at which one is pending and the flag is set, except between the issue and
    the completion of an MMIO_READ, ATOMIC or fence; while a look of a POLL is in flight; while a request offered to the
    cache or to the devices waits to be accepted; and while the cycles run that an ATOMIC, an IRET or another interrupt
    costs. The flag is cleared; an EXECUTE or POLL is cut short and its remaining cycles, this edge included, are
    reported (the micro-operations of the EXECUTE leave the reorder window); the operation in the fetch register is
    dropped and reported as squashed; loads in flight complete later. One exception keeps STI followed by HALT from
    losing a wake-up: a HALT that could issue at this edge does so and is woken at once (``issue`` and
    ``interrupt_taken`` at the same edge, not squashed). There is no other shadow behind STI.

    **Faults.** At the edge after ``host.fault`` nothing issues any more, and no interrupt is taken. The operation may
    be a LOAD that has issued: one that waited in the reservation station.

    **Quiet** says nothing about the host, whose inputs it may not depend on: the host must not skip an edge at
    which ``host.operation`` is valid and ready.

    Reserved kinds issue and do nothing.

    Arguments:
        config: the core's sizes and costs, the latency of its cache, its clock.
        index: number of this core, sent with MMIO requests.
        domain: clock domain of this core.

    Raises:
        ValueError: when there is no core ``index``.

    Attributes:
        host: ``In(CoreHost())``.
        l1: ``Out(L1Port())``.
        translate: ``Out(TranslatePort())``.
        text: ``Out(TextPort())``.
        noncached: ``Out(NonCachedPort())``.
        mmio: ``Out(MmioPort())``.
        interrupt_pending: ``In(1)``, a register of the interrupt controller, as ``interrupt_vector``: ``In(8)``.
        interrupt_acknowledge: ``Out(1)``, the interrupt is taken at this edge.
        deadline_write: ``Out(1)``, ``deadline``: ``Out(48)`` is written to the core's timer at this edge.
        now: ``In(48)``, the number of the next edge.
        quiet: ``Out(1)``, the next edge changes nothing.
    """

    def __init__(self, config: MachineConfig, index: int, domain: str):
        core = config.core
        if not 0 <= index < core.count:
            raise ValueError(f"core index must be between 0 and core.count - 1 = {core.count - 1}, not {index}")
        self.core, self.index, self.domain = core, index, domain
        super().__init__(
            {
                "host": In(CoreHost()),
                "l1": Out(L1Port()),
                "translate": Out(TranslatePort()),
                "text": Out(TextPort()),
                "noncached": Out(NonCachedPort()),
                "mmio": Out(MmioPort()),
                "interrupt_pending": In(1),
                "interrupt_vector": In(8),
                "interrupt_acknowledge": Out(1),
                "deadline_write": Out(1),
                "deadline": Out(NOW_WIDTH),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )
        self.window = ReorderWindow(core.window, domain)
        self.order = MemoryOrder(core.load_queue, core.store_buffer, domain)
        self.load_unit = LoadUnit(core, config.l1, domain)
        self.store_buffer = StoreBuffer(core.store_buffer, domain)
        self.write_combining = WriteCombining(core.write_combining, domain)
        self.execute = ExecuteUnit(core.window, domain)
        self.poll = PollUnit(domain)
        self.interrupt_unit = InterruptUnit(sleep_exit_cycles(config), domain)
        self.completions = CompletionUnit(domain)
        self.issued = IssueCounters(domain)
        #: Until then nothing issues and no interrupt is taken.
        self.hold_off = Timer(domain)

        self.issue = Probe(domain, "an operation issued", kind=OperationKind, id=OP_ID_WIDTH)
        self.completion = Probe(domain, "an operation completed", id=OP_ID_WIDTH)
        self.interrupt = Probe(domain, "an interrupt was taken", vector=8, remaining=32)
        self.fault = Probe(domain, "a page is not present, or is where no memory is", id=OP_ID_WIDTH, outside=1)
        self.outside = Counter(domain, "operations refused because there is no memory at their address")
        self.stall = Probe(domain, "issue begins to wait for room, or no longer does", cause=Stall)
        self.mmio_request = Probe(domain, "an access to a device was sent", write=1, address=40, data=64)
        self.mmio_response = Probe(domain, "a read of a device was answered", data=64)
        self.forwarded_loads = Counter(domain, "loads answered from the store buffer")
        self.dependent_loads = Counter(domain, "loads that waited for another in the reservation station")
        self.poll_looks = Counter(domain, "looks of polls, after the first")
        self.interrupts = Counter(domain, "interrupts taken")
        self.window_stalls = Counter(domain, "times that issue waited for the reorder window")
        self.load_queue_stalls = Counter(domain, "times that issue waited for the load queue")
        self.store_buffer_stalls = Counter(domain, "times that issue waited for the store buffer")

        # The fetch register, and what holds issue
        self._operation = FetchRegister(domain)
        self._fetched = Signal()
        self._faulted = Signal()
        self._offered = Signal()
        self._stall = Signal(Stall)
        # What happens at this edge
        self._holding = Signal()
        self._can_issue = Signal()
        self._go = Signal()
        self._issuing = Signal()
        self._taking = Signal()
        self._stalled = Signal()
        self._stall_now = Signal(Stall)
        # Nothing before the operation is unfinished
        self._alone = Signal()
        # The operation's place in memory: asked for, known, where
        self._ask = Signal()
        self._translated = Signal()
        self._retranslates = Signal()
        self._line = Signal(LINE_ADDRESS_WIDTH)
        # Its bytes in their lanes
        self._lane_mask = Signal(LINE_BYTES)
        self._lane_data = Signal(LINE_BITS)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.fetch_register = self._operation
        m.submodules.window = self.window
        m.submodules.order = self.order
        m.submodules.load_unit = self.load_unit
        m.submodules.store_buffer = self.store_buffer
        m.submodules.write_combining = self.write_combining
        m.submodules.execute = self.execute
        m.submodules.poll = self.poll
        m.submodules.completions = self.completions
        m.submodules.issued = self.issued
        m.submodules.interrupt_unit = self.interrupt_unit
        self._fetch(m)
        self._allow_issue(m)
        self._issue_in_order(m)
        self._place_bytes(m)
        self._translate(m)
        self._issue_loads(m)
        self._issue_stores(m)
        self._issue_atomics(m)
        self._issue_mmio(m)
        self._hold_issue(m)
        self._take_interrupts(m)
        self._complete(m)
        self._note_stalls(m)
        self._observe(m)
        released = self.hold_off.armed & ~self._holding
        m.d.comb += self.quiet.eq(
            ~(self._issuing | self._taking | self.host.fault | released)
            & (self._stalled == self._offered)
            & (self._stall_now == self._stall)
            & self.order.quiet
            & self.load_unit.quiet
            & self.store_buffer.quiet
            & self.write_combining.quiet
            & self.execute.quiet
            & self.poll.quiet
            & self.interrupt_unit.quiet
            & self.completions.quiet
        )
        return m

    def _is(self, *kinds):
        """Whether the operation in the fetch register is one of these."""
        return self._operation.kind.as_value().matches(*kinds)

    def _fetch(self, m):
        offer = self.host.operation
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

    def _allow_issue(self, m):
        operation, order, window = self._operation, self.order, self.window
        waiting_after, ready = Signal(), Signal()
        with m.If(operation.after_valid & ~self._is(OperationKind.LOAD)):
            m.d.comb += waiting_after.eq(order.after_pending)
        m.d.comb += [
            order.id.eq(operation.id),
            order.position.eq(window.position),
            order.after.eq(operation.after),
            window.enter.eq(self._issuing),
            window.uops.eq(operation.uops),
            window.occupied.eq(~order.idle),
            window.oldest.eq(order.oldest),
            self._holding.eq(self.hold_off.armed & (self.now < self.hold_off.deadline)),
            ready.eq(
                self._fetched
                & (self.completions.waiting == Waiting.NOTHING)
                & ~(self.execute.busy | self.poll.busy | self.interrupt_unit.halted)
                & ~(self._holding | self._faulted | waiting_after)
            ),
            self._can_issue.eq(ready & ~window.full),
            self._go.eq(self._can_issue & ~self._taking),
        ]
        with m.If(self.execute.waits_for_window | (ready & window.full)):
            m.d.comb += self._stall_now.eq(Stall.WINDOW)
        with m.Elif(self._go & self._is(OperationKind.LOAD) & (order.loads_full | order.full)):
            m.d.comb += self._stall_now.eq(Stall.LOADS)
        with m.Elif(self._go & self._is(OperationKind.STORE) & (self.store_buffer.full | order.full)):
            m.d.comb += self._stall_now.eq(Stall.STORES)

    def _issue_in_order(self, m):
        operation, loads = self._operation, self.load_unit
        accepted = Signal()
        m.d.comb += [
            accepted.eq(loads.operation.valid & loads.operation.ready),
            self.host.issue.eq(self._issuing),
            self.host.issue_id.eq(operation.id),
        ]
        with m.Switch(operation.kind):
            with m.Case(OperationKind.LOAD):
                m.d.comb += self._issuing.eq(self._go & (loads.wait | loads.forward | accepted))
            with m.Case(OperationKind.POLL):
                m.d.comb += self._issuing.eq(self._go & accepted)
            with m.Case(OperationKind.PREFETCH):
                m.d.comb += self._issuing.eq(self._go & (accepted | (self._ask & self.translate.fault)))
            with m.Case(OperationKind.STORE):
                m.d.comb += self._issuing.eq(self.store_buffer.push)
            with m.Case(OperationKind.STORE_NT, OperationKind.CLFLUSH):
                m.d.comb += self._issuing.eq(self.write_combining.accept)
            with m.Case(OperationKind.ATOMIC):
                m.d.comb += self._issuing.eq(self.l1.atomic.valid & self.l1.atomic.ready)
            with m.Case(OperationKind.MMIO_READ, OperationKind.MMIO_WRITE):
                m.d.comb += self._issuing.eq(self.mmio.request.valid & self.mmio.request.ready)
            with m.Case(OperationKind.WRITE_CR3, OperationKind.INVLPG):
                m.d.comb += self._issuing.eq(self._retranslates)
            with m.Case(OperationKind.HALT):
                m.d.comb += self._issuing.eq(self._can_issue)
            with m.Default():
                m.d.comb += self._issuing.eq(self._go)

        # A stream's offer stands until it is accepted
        atomic, request = self.l1.atomic, self.mmio.request
        m.d.comb += self._stalled.eq((atomic.valid & ~atomic.ready) | (request.valid & ~request.ready))
        m.d[self.domain] += self._offered.eq(self._stalled)

    def _place_bytes(self, m):
        """Bytes move to their lanes."""
        operation, address = self._operation, self._operation.address
        m.submodules.lanes = lanes = LaneMask()
        m.d.comb += [lanes.offset.eq(address.offset), lanes.size.eq(operation.size), self._lane_mask.eq(lanes.mask)]
        with m.If(self._go & self._is(OperationKind.STORE, OperationKind.STORE_NT)):
            m.d.comb += self._lane_data.eq(operation.data << (address.offset << 3))
        with m.Else():
            # Anything but a constant, see ReservationStation
            m.d.comb += self._lane_data.eq(operation.data)

    def _translate(self, m):
        operation, port, loads = self._operation, self.translate, self.load_unit
        address = operation.address
        m.d.comb += [
            port.valid.eq(self._ask | loads.ask),
            port.page.eq(Mux(loads.turn, loads.page, address.page)),
            loads.hit.eq(port.hit),
            loads.frame.eq(port.frame),
            self._translated.eq(self._ask & port.hit),
            self._line.eq(address.line_in(port.frame)),
            port.root.eq(address.as_value()),
        ]
        with m.If(self._go & self.order.idle & self.store_buffer.empty):
            m.d.comb += [
                port.set_root.eq(self._is(OperationKind.WRITE_CR3)),
                port.forget.eq(self._is(OperationKind.INVLPG)),
            ]
        m.d.comb += self._retranslates.eq(port.set_root | port.forget)

        # A page that is not present, or lies outside memory
        faulting = loads.ask | (self._ask & ~self._is(OperationKind.PREFETCH))
        m.d.comb += [
            self.host.fault.eq(port.fault & faulting & ~self._faulted),
            self.host.fault_id.eq(Mux(loads.ask, loads.id, operation.id)),
            self.host.fault_outside.eq(port.outside),
        ]
        with m.If(self.host.fault):
            m.d[self.domain] += self._faulted.eq(1)

    def _issue_loads(self, m):
        operation, order, buffer, loads = self._operation, self.order, self.store_buffer, self.load_unit
        combining, address = self.write_combining, self._operation.address

        # Every table maps a page to the frame of its number, so the search need not wait for the translation
        searches, around = Signal(), Signal()
        m.d.comb += [
            around.eq(self._is(OperationKind.STORE_NT, OperationKind.CLFLUSH)),
            buffer.search.eq(searches & ~buffer.empty),
            buffer.search_line.eq(address.line),
            buffer.search_mask.eq(Mux(around, (1 << LINE_BYTES) - 1, self._lane_mask)),
            combining.search_line.eq(address.line),
        ]
        cached = self._is(OperationKind.LOAD, OperationKind.STORE, OperationKind.POLL)
        m.d.comb += [
            combining.search.eq(self._go & (cached | around) & ~combining.empty),
            combining.expel.eq(self._go & cached),
        ]

        # A load whose predecessor completes at this edge need not wait for it
        pending = Signal()
        with m.If(operation.after_valid & order.after_pending):
            m.d.comb += pending.eq(~(order.complete & (order.complete_id == operation.after)))
        with m.Switch(operation.kind):
            with m.Case(OperationKind.LOAD):
                with m.If(self._go & ~(order.loads_full | order.full) & ~combining.conflict):
                    m.d.comb += searches.eq(1)
                    with m.If(pending):
                        m.d.comb += loads.wait.eq(~loads.full & (~buffer.overlap | buffer.covered))
                    with m.Elif(~loads.turn):
                        m.d.comb += [self._ask.eq(~buffer.overlap), loads.forward.eq(buffer.covered)]
            with m.Case(OperationKind.POLL):
                with m.If(self._go & ~loads.turn & ~combining.conflict):
                    m.d.comb += [searches.eq(1), self._ask.eq(~buffer.overlap)]
            with m.Case(OperationKind.STORE):
                with m.If(self._go & ~loads.turn & ~(buffer.full | order.full | combining.conflict)):
                    m.d.comb += self._ask.eq(1)
            with m.Case(OperationKind.STORE_NT, OperationKind.CLFLUSH):
                with m.If(self._go & ~loads.turn):
                    m.d.comb += [searches.eq(1), self._ask.eq(~buffer.overlap)]
            with m.Case(OperationKind.PREFETCH):
                m.d.comb += self._ask.eq(self._go & ~loads.turn)
            with m.Case(OperationKind.ATOMIC):
                m.d.comb += self._ask.eq(self._go & self._alone)

        # To the cache, later looks of a POLL included; or to where loads wait
        access = loads.operation
        m.d.comb += [
            loads.load.id.eq(operation.id),
            loads.load.address.eq(address),
            loads.load.size.eq(operation.size),
            loads.load.forwarded.eq(buffer.covered),
            loads.after.eq(operation.after),
            loads.forward_line.eq(buffer.read_data),
            buffer.read.eq(loads.forward | (loads.wait & buffer.covered)),
            order.load.eq(self._issuing & self._is(OperationKind.LOAD)),
            self.l1.load.valid.eq(loads.l1.valid),
            self.l1.load.payload.eq(loads.l1.payload),
            loads.l1.ready.eq(self.l1.load.ready),
        ]
        with m.If(self.poll.busy):
            m.d.comb += [access.valid.eq(self.poll.look.valid), access.payload.eq(self.poll.look.payload)]
        with m.Else():
            m.d.comb += [
                access.valid.eq(
                    self._translated & self._is(OperationKind.LOAD, OperationKind.POLL, OperationKind.PREFETCH)
                ),
                access.payload.use.eq(Mux(self._is(OperationKind.PREFETCH), L1Use.PREFETCH, L1Use.LOAD)),
                access.payload.id.eq(operation.id),
                access.payload.line.eq(self._line),
                access.payload.offset.eq(address.offset),
                access.payload.size.eq(operation.size),
            ]
        m.d.comb += [
            self.poll.look.ready.eq(self.poll.busy & access.ready),
            self.poll.start.eq(self._issuing & self._is(OperationKind.POLL)),
            self.poll.first_look.eq(access.payload),
            self.poll.expected.eq(operation.data),
            self.poll.interval.eq(operation.argument),
            self.poll.cycles.eq(operation.cycles),
            self.poll.lost.eq(self.l1.lost),
            self.poll.now.eq(self.now),
            self.l1.watch.eq(self.poll.watch),
        ]

    def _issue_stores(self, m):
        order, buffer, combining = self.order, self.store_buffer, self.write_combining
        stored = Signal()
        m.d.comb += [
            stored.eq(self._translated & self._is(OperationKind.STORE)),
            buffer.push.eq(stored),
            order.store.eq(stored),
            buffer.entry.line.eq(self._line),
            buffer.entry.mask.eq(self._lane_mask),
            buffer.entry.data.eq(self._lane_data),
            buffer.release.eq(order.release),
            buffer.store_done.eq(self.l1.visible & (self.completions.waiting != Waiting.ATOMIC)),
            self.l1.store.valid.eq(buffer.store.valid),
            self.l1.store.payload.eq(buffer.store.payload),
            buffer.store.ready.eq(self.l1.store.ready),
            self.host.visible.eq(self.l1.visible),
        ]

        # Around the caches
        connect(m, combining.port, flipped(self.noncached))
        around = self._is(OperationKind.STORE_NT, OperationKind.CLFLUSH)
        ends_combining = self._is(
            OperationKind.FENCE,
            OperationKind.SFENCE,
            OperationKind.ATOMIC,
            OperationKind.MMIO_READ,
            OperationKind.MMIO_WRITE,
            OperationKind.HALT,
        )
        m.d.comb += [
            combining.request.eq(self._translated & around),
            combining.write.line.eq(self._line),
            combining.write.mask.eq(Mux(self._is(OperationKind.CLFLUSH), 0, self._lane_mask)),
            combining.write.data.eq(self._lane_data),
            combining.position.eq(self.window.position),
            combining.occupied.eq(~order.idle),
            combining.oldest.eq(order.oldest),
            combining.flush.eq(self._go & ends_combining),
        ]

    def _issue_atomics(self, m):
        operation, atomic = self._operation, self.l1.atomic
        operands = data.View(_AtomicOperands, operation.data[: _AtomicOperands.as_shape().size])
        m.d.comb += [
            self._alone.eq(self.order.idle & self.store_buffer.empty & self.write_combining.empty),
            atomic.valid.eq(self._translated & self._is(OperationKind.ATOMIC)),
            atomic.payload.id.eq(operation.id),
            atomic.payload.line.eq(self._line),
            atomic.payload.offset.eq(operation.address.offset),
            atomic.payload.size.eq(operation.size),
            atomic.payload.function.eq(operation.argument),
            atomic.payload.operand.eq(operands.operand),
            atomic.payload.compare.eq(operands.compare),
        ]

    def _issue_mmio(self, m):
        operation, request = self._operation, self.mmio.request
        write, read = self._is(OperationKind.MMIO_WRITE), self._is(OperationKind.MMIO_READ)
        m.d.comb += [
            request.payload.write.eq(write),
            request.payload.address.eq(operation.address.as_value()),
            request.payload.size.eq(operation.size),
            request.payload.data.eq(operation.data),
            request.payload.core.eq(self.index),
        ]
        with m.If(self._go & (write | read)):
            m.d.comb += request.valid.eq(self._alone)

    def _hold_issue(self, m):
        sync, operation, execute = m.d[self.domain], self._operation, self.execute
        connect(m, execute.text, flipped(self.text))
        m.d.comb += [
            execute.start.eq(self._issuing & self._is(OperationKind.EXECUTE)),
            execute.cycles.eq(operation.cycles),
            execute.uops.eq(operation.uops),
            execute.line.eq(operation.address.line),
            execute.lines.eq(operation.argument),
            execute.position.eq(self.window.position),
            execute.occupied.eq(~self.order.idle),
            execute.oldest.eq(self.order.oldest),
            execute.now.eq(self.now),
        ]
        with m.If(~self._holding):
            sync += self.hold_off.armed.eq(0)

        def hold(cycles):
            return [self.hold_off.armed.eq(1), self.hold_off.deadline.eq(self.now + cycles)]

        with m.If(self._issuing):
            with m.Switch(operation.kind):
                with m.Case(OperationKind.ATOMIC):
                    sync += hold(self.core.atomic_latency)
                with m.Case(OperationKind.IRET):
                    sync += hold(self.core.interrupt_return)
        with m.If(self._taking):
            sync += hold(self.core.interrupt_entry)

    def _take_interrupts(self, m):
        host, unit, execute, poll = self.host, self.interrupt_unit, self.execute, self.poll
        taken = Signal(InterruptTaken)
        m.d.comb += [
            unit.pending.eq(self.interrupt_pending),
            unit.blocked.eq(
                (self.completions.waiting != Waiting.NOTHING)
                | self._offered
                | self.load_unit.offered
                | self.poll.looking
                | self._holding
                | self._faulted
            ),
            unit.set_flag.eq(self._issuing & self._is(OperationKind.STI, OperationKind.IRET)),
            unit.clear_flag.eq(self._issuing & self._is(OperationKind.CLI)),
            unit.halt.eq(self._issuing & self._is(OperationKind.HALT)),
            unit.state.eq(self._operation.argument),
            unit.now.eq(self.now),
            self._taking.eq(unit.taking),
            execute.cancel.eq(self._taking),
            poll.stop.eq(self._taking & poll.busy),
            self.interrupt_acknowledge.eq(self._taking),
            host.interrupt_taken.eq(self._taking),
            host.interrupt.eq(taken),
        ]
        with m.If(self._taking):
            m.d.comb += [
                taken.vector.eq(self.interrupt_vector),
                taken.remaining.eq(execute.remaining | poll.remaining),
                taken.squashed.eq(self._fetched & ~self._issuing),
                taken.squashed_id.eq(self._operation.id),
                self.window.withdraw.eq(execute.remaining.any()),
            ]
        m.d.comb += [
            self.window.withdrawn.eq(execute.began),
            self.deadline_write.eq(self._issuing & self._is(OperationKind.TSC_DEADLINE)),
            self.deadline.eq(self._operation.address.as_value()),
        ]

    def _complete(self, m):
        host, unit, loads, poll, operation = self.host, self.completions, self.load_unit, self.poll, self._operation
        connect(m, unit.response, flipped(self.mmio.response))
        m.d.comb += [
            unit.issue.eq(self._issuing),
            unit.kind.eq(operation.kind),
            unit.id.eq(operation.id),
            unit.size.eq(operation.size),
            unit.done_valid.eq(self.l1.load_done_valid),
            unit.done.eq(self.l1.load_done),
            unit.forwarded.valid.eq(loads.valid),
            unit.forwarded.payload.eq(loads.completion),
            loads.ready.eq(unit.forwarded.ready),
            unit.polling.eq(poll.busy),
            unit.poll_id.eq(poll.id),
            poll.seen.eq(unit.look),
            poll.seen_data.eq(self.l1.load_done.data),
            unit.look_finishes.eq(poll.finish),
            unit.timeout.valid.eq(poll.timeout),
            unit.timeout.payload.eq(poll.timeout_data),
            poll.timeout_ready.eq(unit.timeout.ready),
            unit.loaded.eq(self.order.idle),
            unit.now.eq(self.now),
            unit.stored.eq(self.store_buffer.empty & self.write_combining.empty),
            host.completion_valid.eq(unit.valid),
            host.completion.eq(unit.completion),
            host.sampled.eq(self.l1.sampled),
            host.sampled_id.eq(self.l1.sampled_id),
            self.order.complete.eq(unit.load_valid),
            self.order.complete_id.eq(unit.load_id),
            loads.complete.eq(unit.load_valid),
            loads.complete_id.eq(unit.load_id),
        ]

    def _note_stalls(self, m):
        begins = self._stall_now != self._stall
        m.d[self.domain] += self._stall.eq(self._stall_now)
        self.stall.emit(m, begins, cause=self._stall_now)
        for counter, cause in (
            (self.window_stalls, Stall.WINDOW),
            (self.load_queue_stalls, Stall.LOADS),
            (self.store_buffer_stalls, Stall.STORES),
        ):
            counter.increment(m, begins & (self._stall_now == cause))

    def _observe(self, m):
        operation, host, request, response = self._operation, self.host, self.mmio.request, self.mmio.response
        sent = request.valid & request.ready
        self.issue.emit(m, self._issuing, kind=operation.kind, id=operation.id)
        self.completion.emit(m, host.completion_valid, id=host.completion.id)
        self.interrupt.emit(m, self._taking, vector=self.interrupt_vector, remaining=host.interrupt.remaining)
        self.fault.emit(m, host.fault, id=host.fault_id, outside=host.fault_outside)
        self.outside.increment(m, host.fault & host.fault_outside)
        self.mmio_request.emit(
            m, sent, write=request.payload.write, address=request.payload.address, data=request.payload.data
        )
        self.mmio_response.emit(m, response.valid & response.ready, data=response.payload.data)

        self.forwarded_loads.increment(m, self.store_buffer.read)
        self.dependent_loads.increment(m, self.load_unit.wait)
        self.poll_looks.increment(m, self.poll.look.valid & self.poll.look.ready)
        self.interrupts.increment(m, self._taking)
        m.d.comb += [self.issued.issue.eq(self._issuing), self.issued.kind.eq(operation.kind)]
