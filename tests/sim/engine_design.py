"""A small machine under the engines' contract: two simple cores, a slow memory, a wire that interrupts and echoes.

Clocks of 1000 (cores, uncore) and 500 MHz (nic): edges coincide often. A core has no cache but forwards from its
youngest store. The memory tells when it has read or written for a core; cores and uncore share one clock, so that
the core can pass it on at the same edge. Bit 47 of an address makes a page that is not present.

Some lines have planted bugs, see :class:`Planted`, some packets, see :class:`PlantedPacket`; ``BrokenMachine`` and
``SleepyMachine`` have one in when they wake up.
"""

import enum
from types import SimpleNamespace

from amaranth.hdl import Array, Cat, Elaboratable, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.memory import Memory

from hw.bus.core import AtomicFunction, CoreHost, Interrupt, Operation, OperationKind
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES
from hw.bus.wire import FrameBeat, SentStream, WireStream
from hw.lib.crossing import Crossing
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH, Now, Timer

#: Addresses wrap around beyond.
LINES = 256
ADDRESS_WIDTH = 14
#: Written by the memory itself at every refresh, its first 8 bytes, as a device would.
DEVICE_LINE = 2


class Planted(enum.IntEnum):
    """Lines with a planted bug."""

    WRONG_READ = 200  #: one bit of what is read comes out wrong
    LOST_STORE = 201  #: stores are not written
    WRONG_FORWARD = 202  #: loads are forwarded from a store that has not all their bytes
    UNTOLD_STORE = 203  #: stores never tell that they are visible
    TOLD_TWICE = 204  #: stores tell it twice
    UNREAD_ATOMIC = 205  #: atomics are not read
    TIRED_POLL = 206  #: polls end with what they wait to change, before their time


class PlantedPacket(enum.IntEnum):
    """Received packets whose echo has a planted bug."""

    WRONG_BIT = 200  #: the first bit of each beat comes out wrong
    NO_FIRST = 201  #: no beat is the first
    NO_LAST = 202  #: no beat is the last
    NO_LENGTH = 203  #: it has no bytes


def lanes(size, count):
    """One bit for each of the first ``size`` of ``count`` bytes."""
    return Cat(size > byte for byte in range(count))


def bits(mask):
    """All ones where ``mask`` has a byte."""
    return Cat(bit.replicate(8) for bit in mask)


class Request(data.Struct):
    read: 1  #: of memory: tell when it is done
    write: 1  #: likewise
    address: ADDRESS_WIDTH
    size: 7
    atomic: 1
    function: AtomicFunction
    data: LINE_BITS
    id: 8


class Response(data.Struct):
    data: LINE_BITS
    id: 8


class SimpleCore(Elaboratable):
    """Executes one operation at a time, with one read in flight."""

    def __init__(self, domain):
        self.domain = domain
        self.host = CoreHost().flip().create()
        self.request = Crossing(Request, domain, "uncore")
        self.response = Crossing(Response, "uncore", domain)
        self.interrupt = Crossing(Interrupt, "nic", domain)
        self.now = Signal(NOW_WIDTH)
        self.quiet = Signal()
        self.has_read, self.has_written, self.read_id = Signal(), Signal(), Signal(8)
        self.timer = Timer(domain)
        self.issue_event = Probe(domain, "an operation issued", id=8, kind=5)
        self.load_event = Probe(domain, "a read completed", id=8, data=64)
        self.interrupt_event = Probe(domain, "an interrupt was taken", vector=8, remaining=32, squashed=1)
        self.issued = Counter(domain, "operations issued")
        self.forwarded = Counter(domain, "loads answered from the youngest store")

    def elaborate(self, platform):
        m = Module()
        m.submodules += [self.request, self.response, self.interrupt]
        d = m.d[self.domain]
        host, op, kind = self.host, Signal(Operation), Signal(OperationKind)
        full, loading, masked, halted, executing, polling = (Signal() for _ in range(6))
        until, look_at, period, load_id = Signal(NOW_WIDTH), Signal(NOW_WIDTH), Signal(16), Signal(8)
        looked, dropped, compared, pending = Signal(Request), Signal(), Signal(64), Signal(8)
        youngest, youngest_address, youngest_size = Signal(LINE_BITS), Signal(ADDRESS_WIDTH), Signal(7)
        request, response, interrupt = self.request.input, self.response.output, self.interrupt.output
        expired, is_fence, is_mmio, is_store, is_read, is_access = (Signal() for _ in range(6))
        may_issue, issue, take, look, answer, forward, forwarding, fault = (Signal() for _ in range(8))
        mine, value, goes_on = Signal(Request), Signal(LINE_BITS), Signal()

        K = OperationKind
        tired = looked.address[6:] == Planted.TIRED_POLL
        m.d.comb += [
            kind.eq(op.kind),
            expired.eq(executing & (self.now >= until)),
            is_fence.eq((kind == K.FENCE) | (kind == K.LFENCE) | (kind == K.SFENCE)),
            is_mmio.eq((kind == K.MMIO_READ) | (kind == K.MMIO_WRITE)),
            is_store.eq((kind == K.STORE) | (kind == K.ATOMIC)),
            is_read.eq((kind == K.LOAD) | (kind == K.MMIO_READ) | (kind == K.ATOMIC) | (kind == K.POLL)),
            is_access.eq(is_read | is_store | is_mmio),
            fault.eq(full & is_access & op.address[47]),
            forward.eq(
                (kind == K.LOAD)
                & (pending != 0)
                & (mine.address == youngest_address)
                & ((op.size <= youngest_size) | (mine.address[6:] == Planted.WRONG_FORWARD))
            ),
            may_issue.eq(
                full
                & ~halted
                & ~fault
                & ~polling
                & (~executing | expired)
                & ~(op.after_valid & loading & (op.after == load_id))
                & ~((is_read | is_fence) & loading)
                & ~(is_access & ~request.ready)
            ),
            take.eq(interrupt.valid & ~masked),
            issue.eq(may_issue & ~take),
            look.eq(polling & ~loading & (self.now >= look_at) & request.ready & ~take),
            value.eq(Mux(forwarding, youngest, response.payload.data)),
            goes_on.eq(polling & ((value & bits(lanes(looked.size, 8))) == compared) & (self.now < until) & ~tired),
            answer.eq((response.valid & ~dropped) | forwarding),
            host.operation.ready.eq(~full & ~take),
            host.issue.eq(issue),
            host.issue_id.eq(op.id),
            host.sampled.eq(self.has_read),
            host.sampled_id.eq(self.read_id),
            host.visible.eq(self.has_written),
            host.fault.eq(fault),
            host.fault_id.eq(op.id),
            host.completion_valid.eq((answer & ~(goes_on | (polling & take))) | (issue & is_fence)),
            host.completion.id.eq(Mux(answer, load_id, op.id)),
            host.completion.data.eq(Mux(answer, Mux(polling & tired, compared, value), 0)),
            host.interrupt_taken.eq(take),
            host.interrupt.vector.eq(interrupt.payload.vector),
            host.interrupt.remaining.eq(
                Mux(polling | (executing & ~expired), Mux(self.now < until, until - self.now, 0), 0)
            ),
            host.interrupt.squashed.eq(full),
            host.interrupt.squashed_id.eq(op.id),
            mine.read.eq(is_read & ~is_mmio),
            mine.write.eq(is_store),
            mine.address.eq(op.address),
            mine.size.eq(op.size),
            mine.atomic.eq(kind == K.ATOMIC),
            mine.function.eq(op.argument[:3]),
            mine.data.eq(op.data),
            mine.id.eq(op.id),
            request.valid.eq((issue & is_access & ~forward) | look),
            request.payload.eq(Mux(look, looked, mine)),
            response.ready.eq(1),
            interrupt.ready.eq(take),
            self.timer.armed.eq(executing | (polling & ~loading)),
            self.timer.deadline.eq(Mux(executing, until, look_at)),
            self.quiet.eq(
                ~may_issue
                & ~take
                & ~expired
                & ~(polling & ~loading & (self.now >= look_at))
                & ~fault
                & ~forwarding
                & ~self.has_read
                & ~self.has_written
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
            d += [loading.eq(0), dropped.eq(0)]
        with m.If(forwarding):
            d += [loading.eq(0), forwarding.eq(0)]
        with m.If(answer & ~goes_on):
            d += polling.eq(0)
        with m.If(look):
            d += [loading.eq(1), look_at.eq(look_at + period)]
        with m.If((issue & is_store) != self.has_written):
            d += pending.eq(Mux(self.has_written, pending - 1, pending + 1))
        with m.If(issue):
            d += full.eq(0)
            with m.If(is_read):
                d += [loading.eq(1), load_id.eq(op.id), forwarding.eq(forward)]
            with m.Switch(kind):
                with m.Case(K.EXECUTE):
                    d += [executing.eq(1), until.eq(self.now + op.cycles)]
                with m.Case(K.POLL):
                    d += [polling.eq(1), until.eq(self.now + op.cycles), look_at.eq(self.now + op.argument)]
                    d += [looked.eq(mine), compared.eq(op.data[:64]), period.eq(op.argument)]
                with m.Case(K.STORE):
                    d += [youngest.eq(op.data), youngest_address.eq(mine.address), youngest_size.eq(op.size)]
                with m.Case(K.ATOMIC):
                    d += youngest_size.eq(0)
                with m.Case(K.HALT):
                    d += halted.eq(1)
                with m.Case(K.CLI):
                    d += masked.eq(1)
                with m.Case(K.STI, K.IRET):
                    d += masked.eq(0)
        with m.If(take):
            d += [masked.eq(1), halted.eq(0), executing.eq(0), polling.eq(0), full.eq(0)]
            d += dropped.eq(polling & loading & ~answer)
        self.issue_event.emit(m, issue, id=op.id, kind=op.kind)
        self.load_event.emit(m, answer, id=load_id, data=value[:64])
        self.interrupt_event.emit(
            m,
            take,
            vector=host.interrupt.vector,
            remaining=host.interrupt.remaining,
            squashed=host.interrupt.squashed,
        )
        self.issued.increment(m, issue)
        self.forwarded.increment(m, forwarding)
        return m


class SlowMemory(Elaboratable):
    """One access at a time, each answered ``latency`` cycles after it was taken; "refreshes" now and then.

    With ``devices`` a refresh also writes its number, as a device would; see ``hw.machine.DeviceWrite``. What it
    shows of that, and what it tells the cores, comes one cycle after it is done, all alike.
    """

    def __init__(self, cores, latency, *, broken, devices):
        self._cores, self.latency, self.broken, self.devices = cores, latency, broken, devices
        self.now = Signal(NOW_WIDTH)
        self.quiet = Signal()
        self.accepted, self.done = Signal(), Signal()
        self.line, self.mask, self.data = Signal(LINE_ADDRESS_WIDTH), Signal(LINE_BYTES), Signal(LINE_BITS)
        self.lines = Memory(shape=LINE_BITS, depth=LINES, init=[])
        self.answer = Timer("uncore")
        self.refresh = Timer("uncore", background=True)
        self.access_event = Probe("uncore", "an access was taken", core=2, address=ADDRESS_WIDTH, write=1)
        self.refresh_event = Probe("uncore", "a refresh")
        self.reads = Counter("uncore", "reads")

    def elaborate(self, platform):
        m = Module()
        m.submodules.lines = self.lines
        inputs = [core.request.output for core in self._cores]
        outputs = [core.response.input for core in self._cores]
        busy, answers, ident, owner = Signal(), Signal(), Signal(8), Signal(range(max(2, len(inputs))))
        done_at, refresh_at = Signal(NOW_WIDTH), Signal(NOW_WIDTH, init=500)
        done, refresh, start, waiting, telling = (Signal() for _ in range(5))
        chosen, request, result = Signal.like(owner), Signal(Request), Signal(LINE_BITS)
        device_waits, device_starts, refreshes = Signal(), Signal(), Signal(64)

        read, write = self.lines.read_port(domain="comb"), self.lines.write_port(domain="uncore", granularity=8)
        line, offset = request.address[6:], request.address[:6]
        old, new, operand, compare = Signal(64), Signal(64), Signal(64), Signal(64)
        accessed, written, writes = Signal(LINE_BYTES), Signal(LINE_BITS), Signal()
        equal = ((old ^ compare) & bits(lanes(request.size, 8))) == 0
        with m.Switch(request.function):
            for function, value in (
                (AtomicFunction.EXCHANGE, operand),
                (AtomicFunction.ADD, old + operand),
                (AtomicFunction.AND, old & operand),
                (AtomicFunction.OR, old | operand),
                (AtomicFunction.XOR, old ^ operand),
                (AtomicFunction.COMPARE_EXCHANGE, Mux(equal, operand, old)),
            ):
                with m.Case(function):
                    m.d.comb += new.eq(value)

        for index, source in reversed(list(enumerate(inputs))):
            with m.If(source.valid):
                m.d.comb += [chosen.eq(index), request.eq(source.payload)]
            m.d.comb += source.ready.eq(start & (chosen == index))
        m.d.comb += [
            waiting.eq(Cat(source.valid for source in inputs).any()),
            device_starts.eq(device_waits & ~busy),
            start.eq(waiting & ~busy & ~device_waits),
            done.eq(busy & (self.now >= done_at) & (~answers | Array(o.ready for o in outputs)[owner])),
            refresh.eq(self.now >= refresh_at),
            read.addr.eq(line),
            old.eq(read.data >> (offset << 3)),
            operand.eq(request.data[:64]),
            compare.eq(request.data[64:]),
            accessed.eq(lanes(request.size, LINE_BYTES) << offset),
            written.eq(Mux(request.atomic, new, request.data) << (offset << 3)),
            writes.eq(start & request.write & (line != Planted.LOST_STORE)),
            write.en.eq(Mux(device_starts, 0xFF, Mux(writes, accessed, 0))),
            write.addr.eq(Mux(device_starts, DEVICE_LINE, line)),
            write.data.eq(Mux(device_starts, refreshes, written)),
            self.accepted.eq(refresh if self.devices else 0),
            self.line.eq(DEVICE_LINE),
            self.mask.eq(0xFF),
            self.data.eq((refreshes + 1)[:64]),
            self.answer.armed.eq(busy),
            self.answer.deadline.eq(done_at),
            self.refresh.armed.eq(1),
            self.refresh.deadline.eq(refresh_at),
        ]
        for index, sink in enumerate(outputs):
            m.d.comb += [
                sink.valid.eq(busy & answers & (self.now >= done_at) & (owner == index)),
                sink.payload.id.eq(ident),
                sink.payload.data.eq(result),
            ]
        again = Signal()
        m.d.uncore += [telling.eq(start), self.done.eq(device_starts)]
        m.d.uncore += again.eq(start & request.write & (line == Planted.TOLD_TWICE))
        for index, core in enumerate(self._cores):
            m.d.uncore += [
                core.has_read.eq(
                    start & request.read & (chosen == index) & ~(request.atomic & (line == Planted.UNREAD_ATOMIC))
                ),
                core.has_written.eq(
                    (start & request.write & (chosen == index) & (line != Planted.UNTOLD_STORE))
                    | (again & (owner == index))
                ),
                core.read_id.eq(request.id),
            ]
        with m.If(start):
            m.d.uncore += [
                busy.eq(1),
                owner.eq(chosen),
                answers.eq(request.read | ~request.write),
                ident.eq(request.id),
                result.eq((read.data >> (offset << 3)) ^ (line == Planted.WRONG_READ)),
                done_at.eq(self.now + self.latency),
            ]
        with m.If(done):
            m.d.uncore += busy.eq(0)
        with m.If(device_starts):
            m.d.uncore += device_waits.eq(0)
        with m.If(refresh):
            m.d.uncore += [refresh_at.eq(refresh_at + 500), refreshes.eq(refreshes + 1), device_waits.eq(self.devices)]
        crossings = Cat(
            side
            for core in self._cores
            for side in (core.request.read_quiet, core.response.write_quiet, ~core.request.output.valid | busy)
        ).all()
        ignored = 1 if self.broken else ~start
        m.d.comb += self.quiet.eq(
            (crossings | (self.broken and ~busy))
            & ~(busy & (self.now >= done_at))
            & ~(refresh | device_starts | telling | self.done)
            & ignored
        )
        self.access_event.emit(m, start, core=chosen, address=request.address, write=request.write)
        self.refresh_event.emit(m, refresh)
        self.reads.increment(m, start & request.read)
        return m


class WireEnd(Elaboratable):
    """Takes frames from the wire, none before its time, and interrupts core ``packet % 2`` after each."""

    def __init__(self, cores, echo):
        self._cores = cores
        self.echo = echo
        self.wire = WireStream.flip().create()
        self.now = Signal(NOW_WIDTH)
        self.quiet = Signal()
        self.start = Timer("nic")
        self.frame_event = Probe("nic", "a frame has come", packet=24, length=16, checksum=64)
        self.frames = Counter("nic", "frames")

    def elaborate(self, platform):
        m = Module()
        m.submodules.echo = self.echo
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
            self.quiet.eq(~take & Cat(core.interrupt.write_quiet for core in self._cores).all() & self.echo.quiet),
            self.echo.now.eq(self.now),
            self.echo.beat.eq(beat),
            self.echo.take.eq(take),
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


class Echo(Elaboratable):
    """Sends what the wire brings back as it came, ``DELAY`` cycles later, a beat every ``BEAT_CYCLES``.

    A frame that comes while one is sent, or is longer than ``BEATS``, is not. ``sleepy`` lets it miss its time.
    """

    DELAY = 40
    BEAT_CYCLES = 5
    BEATS = 8

    def __init__(self, sleepy):
        self.sleepy = sleepy
        self.wire = SentStream.create()
        self.beat, self.take = Signal(FrameBeat), Signal()
        self.now = Signal(NOW_WIDTH)
        self.quiet = Signal()
        self.rows = Memory(shape=LINE_BITS, depth=self.BEATS, init=[])
        self.next = Timer("nic")
        self.sent_event = Probe("nic", "a beat leaves", packet=24, first=1, last=1, data=64)

    def elaborate(self, platform):
        m = Module()
        m.submodules.rows = self.rows
        write, read = self.rows.write_port(domain="nic"), self.rows.read_port(domain="comb")
        beat, take, sent = self.beat, self.take, self.wire.payload
        copying, sending, row, last_row, due, copy = Signal(), Signal(), Signal(4), Signal(4), Signal(), Signal()
        next_at, length, received, packet = Signal(NOW_WIDTH), Signal(16), Signal(24), Signal(24)
        planted = PlantedPacket
        m.d.comb += [
            due.eq(sending & (self.now >= next_at)),
            copy.eq(take & Mux(beat.first, ~sending, copying)),
            write.en.eq(copy),
            write.addr.eq(Mux(beat.first, 0, row)),
            write.data.eq(beat.data),
            read.addr.eq(row),
            self.wire.valid.eq(due),
            sent.data.eq(read.data ^ (received == planted.WRONG_BIT)),
            sent.length.eq(Mux(received == planted.NO_LENGTH, 0, length)),
            sent.first.eq((row == 0) & (received != planted.NO_FIRST)),
            sent.last.eq((row == last_row) & (received != planted.NO_LAST)),
            sent.packet.eq(packet),
            self.next.armed.eq(0 if self.sleepy else sending),
            self.next.deadline.eq(next_at),
            self.quiet.eq(1 if self.sleepy else ~due),
        ]
        with m.If(copy):
            m.d.nic += [row.eq(write.addr + 1), copying.eq(write.addr != self.BEATS - 1)]
            with m.If(beat.last):
                m.d.nic += [sending.eq(1), copying.eq(0), row.eq(0), last_row.eq(write.addr)]
                m.d.nic += [next_at.eq(self.now + self.DELAY), length.eq(beat.length)]
                m.d.nic += [received.eq(beat.packet), packet.eq(packet + 1)]
        with m.If(due):
            m.d.nic += [row.eq(row + 1), next_at.eq(next_at + self.BEAT_CYCLES)]
            with m.If(row == last_row):
                m.d.nic += sending.eq(0)
        self.sent_event.emit(m, due, packet=packet, first=sent.first, last=sent.last, data=sent.data[:64])
        return m


class SmallMachine(Elaboratable):
    """Two cores, memory, wire."""

    broken = False
    sleepy = False
    devices = True
    sends = True

    def __init__(self, config):
        self.config = config
        core_domains = [f"core{index}" for index in range(config.core.count)]
        self.domains = [*core_domains, "uncore", "nic"]
        self.core = [SimpleCore(domain) for domain in core_domains]
        self.memory = SlowMemory(self.core, config.llc.latency * 5, broken=self.broken, devices=self.devices)
        if self.devices:
            memory = self.memory
            self.device_write = SimpleNamespace(
                accepted=memory.accepted, line=memory.line, mask=memory.mask, data=memory.data, done=memory.done
            )
        self.end = WireEnd(self.core, Echo(self.sleepy))
        if self.sends:
            self.wire_out = self.end.echo.wire
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


class SleepyMachine(SmallMachine):
    """Its echo sleeps until something else wakes the card."""

    sleepy = True


class PlainMachine(SmallMachine):
    """Without devices that write, and with no way out for frames."""

    devices = False
    sends = False
