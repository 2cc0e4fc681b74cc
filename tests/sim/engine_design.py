"""A small machine under the engines' contract: two simple cores, a slow memory, a wire that raises interrupts.

Clocks of 1000 (cores, uncore) and 500 MHz (nic): edges coincide often. ``BrokenMachine`` has a planted wake-up bug.
"""

from amaranth.hdl import Array, Cat, Elaboratable, Module, Mux, Signal
from amaranth.lib import data

from hw.bus.core import CoreHost, Interrupt, Operation, OperationKind
from hw.bus.tilelink import LINE_BITS
from hw.bus.wire import FrameBeat, WireStream
from hw.lib.crossing import Crossing
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM
from hw.lib.time import NOW_WIDTH, Now, Timer

ROWS = 256


class Request(data.Struct):
    write: 1
    row: 8
    data: 64
    id: 8


class Response(data.Struct):
    data: 64
    id: 8


class SimpleCore(Elaboratable):
    """Executes one operation at a time, with one access in flight."""

    def __init__(self, domain):
        self.domain = domain
        self.host = CoreHost().flip().create()
        self.request = Crossing(Request, domain, "uncore")
        self.response = Crossing(Response, "uncore", domain)
        self.interrupt = Crossing(Interrupt, "nic", domain)
        self.now = Signal(NOW_WIDTH)
        self.quiet = Signal()
        self.timer = Timer(domain)
        self.issue_event = Probe(domain, "an operation issued", id=8, kind=4)
        self.load_event = Probe(domain, "a load completed", id=8, data=64)
        self.interrupt_event = Probe(domain, "an interrupt was taken", vector=8, remaining=32, squashed=1)
        self.issued = Counter(domain, "operations issued")

    def elaborate(self, platform):
        m = Module()
        m.submodules += [self.request, self.response, self.interrupt]
        d = m.d[self.domain]
        host, op, kind = self.host, Signal(Operation), Signal(OperationKind)
        full, loading, masked, halted, executing = (Signal() for _ in range(5))
        until, load_id = Signal(NOW_WIDTH), Signal(8)
        request, response, interrupt = self.request.input, self.response.output, self.interrupt.output
        expired, is_access, is_load, may_issue, issue, take = (Signal() for _ in range(6))

        m.d.comb += [
            kind.eq(op.kind),
            expired.eq(executing & (self.now >= until)),
            is_load.eq((kind == OperationKind.LOAD) | (kind == OperationKind.MMIO_READ)),
            is_access.eq(is_load | (kind == OperationKind.STORE) | (kind == OperationKind.MMIO_WRITE)),
            may_issue.eq(
                full
                & ~halted
                & (~executing | expired)
                & ~(op.after_valid & loading & (op.after == load_id))
                & ~((is_load | (kind == OperationKind.FENCE)) & loading)
                & ~(is_access & ~request.ready)
            ),
            take.eq(interrupt.valid & ~masked),
            issue.eq(may_issue & ~take),
            host.operation.ready.eq(~full & ~take),
            host.issue.eq(issue),
            host.issue_id.eq(op.id),
            host.completion_valid.eq(response.valid | (issue & (kind == OperationKind.FENCE))),
            host.completion.id.eq(Mux(response.valid, response.payload.id, op.id)),
            host.completion.data.eq(Mux(response.valid, response.payload.data, 0)),
            host.interrupt_taken.eq(take),
            host.interrupt.vector.eq(interrupt.payload.vector),
            host.interrupt.remaining.eq(Mux(executing & ~expired, until - self.now, 0)),
            host.interrupt.squashed.eq(full),
            host.interrupt.squashed_id.eq(op.id),
            request.valid.eq(issue & is_access),
            request.payload.write.eq(~is_load),
            request.payload.row.eq(op.address[3:11]),
            request.payload.data.eq(op.data[:64]),
            request.payload.id.eq(op.id),
            response.ready.eq(1),
            interrupt.ready.eq(take),
            self.timer.armed.eq(executing),
            self.timer.deadline.eq(until),
            self.quiet.eq(
                ~may_issue
                & ~take
                & ~expired
                & ~response.valid
                & self.request.write_quiet
                & self.response.read_quiet
                & self.interrupt.read_quiet
            ),
        ]
        with m.If(host.operation.valid & host.operation.ready):
            d += [op.eq(host.operation.payload), full.eq(1)]
        with m.If(expired):
            d += executing.eq(0)
        with m.If(response.valid):
            d += loading.eq(0)
        with m.If(issue):
            d += full.eq(0)
            with m.Switch(kind):
                with m.Case(OperationKind.EXECUTE):
                    d += [executing.eq(1), until.eq(self.now + op.cycles)]
                with m.Case(OperationKind.LOAD, OperationKind.MMIO_READ):
                    d += [loading.eq(1), load_id.eq(op.id)]
                with m.Case(OperationKind.HALT):
                    d += halted.eq(1)
                with m.Case(OperationKind.CLI):
                    d += masked.eq(1)
                with m.Case(OperationKind.STI, OperationKind.IRET):
                    d += masked.eq(0)
        with m.If(take):
            d += [masked.eq(1), halted.eq(0), executing.eq(0), full.eq(0)]
        self.issue_event.emit(m, issue, id=op.id, kind=op.kind)
        self.load_event.emit(m, response.valid, id=response.payload.id, data=response.payload.data)
        self.interrupt_event.emit(
            m,
            take,
            vector=host.interrupt.vector,
            remaining=host.interrupt.remaining,
            squashed=host.interrupt.squashed,
        )
        self.issued.increment(m, issue)
        return m


class SlowMemory(Elaboratable):
    """One access at a time, each answered ``latency`` cycles after it was taken; "refreshes" now and then."""

    def __init__(self, cores, latency, broken):
        self._cores, self.latency, self.broken = cores, latency, broken
        self.now = Signal(NOW_WIDTH)
        self.quiet = Signal()
        self.rows = RAM(width=64, depth=ROWS, domain="uncore")
        self.answer = Timer("uncore")
        self.refresh = Timer("uncore", background=True)
        self.access_event = Probe("uncore", "an access was taken", core=2, row=8, write=1)
        self.refresh_event = Probe("uncore", "a refresh")
        self.reads = Counter("uncore", "reads")

    def elaborate(self, platform):
        m = Module()
        m.submodules.rows = self.rows
        inputs = [core.request.output for core in self._cores]
        outputs = [core.response.input for core in self._cores]
        busy, write, ident, owner = Signal(), Signal(), Signal(8), Signal(range(max(2, len(inputs))))
        done_at, refresh_at = Signal(NOW_WIDTH), Signal(NOW_WIDTH, init=500)
        done, refresh, start, waiting = Signal(), Signal(), Signal(), Signal()
        chosen, request = Signal.like(owner), Signal(Request)

        for index, source in reversed(list(enumerate(inputs))):
            with m.If(source.valid):
                m.d.comb += [chosen.eq(index), request.eq(source.payload)]
            m.d.comb += source.ready.eq(start & (chosen == index))
        m.d.comb += [
            waiting.eq(Cat(source.valid for source in inputs).any()),
            start.eq(waiting & ~busy),
            done.eq(busy & (self.now >= done_at) & (write | Array(o.ready for o in outputs)[owner])),
            refresh.eq(self.now >= refresh_at),
            self.rows.read_enable.eq(start),
            self.rows.read_address.eq(request.row),
            self.rows.write_enable.eq(start & request.write),
            self.rows.write_address.eq(request.row),
            self.rows.write_data.eq(request.data),
            self.answer.armed.eq(busy),
            self.answer.deadline.eq(done_at),
            self.refresh.armed.eq(1),
            self.refresh.deadline.eq(refresh_at),
        ]
        for index, sink in enumerate(outputs):
            m.d.comb += [
                sink.valid.eq(busy & ~write & (self.now >= done_at) & (owner == index)),
                sink.payload.id.eq(ident),
                sink.payload.data.eq(self.rows.read_data),
            ]
        with m.If(start):
            m.d.uncore += [
                busy.eq(1),
                owner.eq(chosen),
                write.eq(request.write),
                ident.eq(request.id),
                done_at.eq(self.now + self.latency),
            ]
        with m.If(done):
            m.d.uncore += busy.eq(0)
        with m.If(refresh):
            m.d.uncore += refresh_at.eq(refresh_at + 500)
        crossings = Cat(
            side
            for core in self._cores
            for side in (core.request.read_quiet, core.response.write_quiet, ~core.request.output.valid | busy)
        ).all()
        ignored = 1 if self.broken else ~start
        m.d.comb += self.quiet.eq(
            (crossings | (self.broken and ~busy)) & ~(busy & (self.now >= done_at)) & ~refresh & ignored
        )
        self.access_event.emit(m, start, core=chosen, row=request.row, write=request.write)
        self.refresh_event.emit(m, refresh)
        self.reads.increment(m, start & ~request.write)
        return m


class WireEnd(Elaboratable):
    """Takes frames from the wire, none before its time, and interrupts core ``packet % 2`` after each."""

    def __init__(self, cores):
        self._cores = cores
        self.wire = WireStream.flip().create()
        self.now = Signal(NOW_WIDTH)
        self.quiet = Signal()
        self.start = Timer("nic")
        self.frame_event = Probe("nic", "a frame has come", packet=24, length=16, checksum=64)
        self.frames = Counter("nic", "frames")

    def elaborate(self, platform):
        m = Module()
        beat, full = Signal(FrameBeat), Signal()
        checksum, total = Signal(64), Signal(64)
        early, take, finish = Signal(), Signal(), Signal()
        outputs = [core.interrupt.input for core in self._cores]
        ready = Array(output.ready for output in outputs)[beat.packet % len(outputs)]
        m.d.comb += [
            self.wire.ready.eq(~full),
            early.eq(beat.first & (self.now < beat.start)),
            take.eq(full & ~early & (~beat.last | ready)),
            finish.eq(take & beat.last),
            total.eq(Mux(beat.first, 0, checksum) + sum(beat.data[i : i + 64] for i in range(0, LINE_BITS, 64))),
            self.start.armed.eq(full & beat.first),
            self.start.deadline.eq(beat.start),
            self.quiet.eq(~take & Cat(core.interrupt.write_quiet for core in self._cores).all()),
        ]
        with m.If(self.wire.valid & self.wire.ready):
            m.d.nic += [beat.eq(self.wire.payload), full.eq(1)]
        with m.If(take):
            m.d.nic += [full.eq(0), checksum.eq(total)]
        for index, output in enumerate(outputs):
            m.d.comb += [
                output.valid.eq(full & ~early & beat.last & (beat.packet % len(outputs) == index)),
                output.payload.vector.eq(beat.packet[:8]),
            ]
        self.frame_event.emit(m, finish, packet=beat.packet, length=beat.length, checksum=total)
        self.frames.increment(m, finish)
        return m


class SmallMachine(Elaboratable):
    """Two cores, memory, wire."""

    broken = False

    def __init__(self, config):
        self.config = config
        core_domains = [f"core{index}" for index in range(config.core.count)]
        self.domains = [*core_domains, "uncore", "nic"]
        self.core = [SimpleCore(domain) for domain in core_domains]
        self.memory = SlowMemory(self.core, config.llc.latency * 5, self.broken)
        self.end = WireEnd(self.core)
        self.host = [core.host for core in self.core]
        self.wire = self.end.wire
        self.now = {domain: Now(domain) for domain in self.domains}
        parts = [*self.core, self.memory, self.end]
        self.quiet = {domain: part.quiet for domain, part in zip(self.domains, parts, strict=True)}

    def elaborate(self, platform):
        m = Module()
        parts = [*self.core, self.memory, self.end]
        for domain, part in zip(self.domains, parts, strict=True):
            m.submodules[f"now_{domain}"] = self.now[domain]
            m.submodules[f"part_{domain}"] = part
            m.d.comb += part.now.eq(self.now[domain].now)
        return m


class BrokenMachine(SmallMachine):
    """Its memory sleeps through requests until its next deadline."""

    broken = True
