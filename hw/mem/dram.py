"""The DRAM controller: which command next."""

import functools
import operator
from collections.abc import Iterable

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.bus.memory import DramPort, MemoryOp
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH, Timer

from .dram_data import DramData
from .dram_delay import DelayLine
from .dram_queue import DramQueue, request_layout
from .dram_timing import DramCommand, DramTiming, line_layout, line_of, place_of

__all__ = ["DramController"]


class DramController(wiring.Component):
    """One channel of DDR4 or DDR5 with its ranks: the controller, the way there and back, and the contents.

    Domain ``dram``. A request takes ``dram.controller_ns`` to where commands are chosen, and the data of a burst
    ``dram.phy_ns`` on top of JEDEC's timings, both in whole cycles, rounded up. Either way is pipelined.

    One command per cycle, chosen so (first ready, first come, first served; Rixner et al., ISCA 2000):

    1. A refresh that is due goes before everything: all rows of the rank are closed, then REF. The ranks take turns.
    2. RD or WR of the oldest request whose row is open and whose time has come.
    3. ACT or PRE for the oldest request that needs it; a row is not closed while a request of the kind now served
       waits for it.
    4. With ``page_policy = "closed"``, PRE of a bank whose row nobody waits for.

    Reads go before writes: only one kind is served at a time, writes when no read can go, or when they fill three
    quarters of the queue (then until one quarter is left), or when a read waits for a write to its line (likewise).
    A request cannot starve: once :attr:`bypass_limit` younger requests have gone before the oldest since it became
    that, it is served alone. Of several banks that may be closed for 1 or 4 the one with the lowest number is.

    Latency of a read that finds the controller idle, in cycles from the edge that accepts the request to the first
    edge at which ``port.response`` can be taken: ``controller + FRONT_END + CL + BURST + phy`` with its row open,
    ``tRCD`` more with its bank closed, ``tRP + tRCD`` more with another row open (for longer than tRAS).

    Lines are numbered within the channel (:class:`~hw.mem.dram_router.DramRouter`) and placed by
    :func:`~hw.mem.dram_timing.line_layout`. Requests beyond the channel's size are an error of the requester: they wrap
    around and are counted in ``out_of_range``.

    Arguments:
        config: ``dram``, geometry and timings, and the clock that nanoseconds are counted in.

    Attributes:
        controller, phy: ``dram.controller_ns`` and ``dram.phy_ns`` in cycles.
        bypass_limit: see above.
        quiet: see docs/architecture.md. While requests are on their way to the queue, the only one there waits for
            a constraint to pass, or bursts are on their way, the controller is quiet and its timers tell the edge.
    """

    #: Cycles from a request's entry into the queue to its first command.
    FRONT_END = 1

    def __init__(self, config: MachineConfig):
        self.config = dram = config.dram
        self.controller = config.cycles("dram", dram.controller_ns)
        self.phy = config.cycles("dram", dram.phy_ns)
        self.bypass_limit = 4 * dram.queue
        super().__init__({"port": In(DramPort()), "now": In(NOW_WIDTH), "quiet": Out(1)})
        self.timing = DramTiming(dram)
        self.data = DramData(dram, controller=self.controller, phy=self.phy)
        self.queue = DramQueue(dram, self.data.slot_width)
        self.way_in = DelayLine(request_layout(dram, self.data.slot_width), cycles=self.controller, spacing=dram.tCCD_S)
        self.refresh_timer = Timer("dram", background=True)
        self.command_timer = Timer("dram")
        self._held_writes = Signal(range(dram.queue + 1))
        self._draining = Signal()

        self.issued = Probe("dram", "a command; for ACT, RD and WR with its row", command=DramCommand, bank=8, row=32)
        self.reads = Counter("dram", "RD commands")
        self.writes = Counter("dram", "WR commands")
        self.row_hits = Counter("dram", "requests served from a row they found open")
        self.row_misses = Counter("dram", "requests that opened a row in a closed bank")
        self.row_conflicts = Counter("dram", "requests that had to close another row first")
        self.activates = Counter("dram", "ACT commands")
        self.precharges = Counter("dram", "PRE commands")
        self.refreshes = Counter("dram", "REF commands")
        self.read_cycles = Counter(
            "dram", "reads that wait for their answer, summed over cycles: mean latency times reads"
        )
        self.queue_cycles = Counter("dram", "requests in the queue, summed over cycles: mean depth times cycles")
        self.out_of_range = Counter("dram", "requests beyond the end of memory, an error of the requester")

    def elaborate(self, platform):
        """Elaborate: acceptance, what may go, what goes, refresh, and what is told about it."""
        m = Module()
        m.submodules.timing = timing = self.timing
        m.submodules.data = data = self.data
        m.submodules.queue = queue = self.queue
        m.submodules.way_in = self.way_in
        issue, command = Signal(), Signal(DramCommand)
        bank = Signal(exact_log2(self.config.channel_banks))
        burst = Signal()
        m.d.comb += [
            timing.now.eq(self.now),
            data.now.eq(self.now),
            self.way_in.now.eq(self.now),
            queue.open.eq(timing.open),
            *(sink.eq(issue) for sink in (timing.issue, queue.issue)),
            *(sink.eq(command) for sink in (timing.command, queue.command)),
            *(sink.eq(bank) for sink in (timing.bank, queue.command_bank)),
        ]
        accept, enter = self._elaborate_acceptance(m)
        refresh_due, refresh_rank = self._elaborate_refresh(m, issue, command)
        eligible, serve_writes = self._elaborate_eligible(m, enter, burst)

        # Oldest request with its row open, else the oldest that needs ACT or PRE
        columns, rows = Signal(self.config.queue), Signal(self.config.queue)
        can_column, can_row, in_demand = (
            Signal(self.config.channel_banks, name=n) for n in ("column", "row", "in_demand")
        )
        hits = Signal(self.config.queue)
        m.d.comb += [
            hits.eq(eligible & queue.hit),
            can_column.eq(Mux(serve_writes, timing.can_write, timing.can_read)),
            in_demand.eq(_any_of(hit << index for hit, index in zip(hits, queue.bank, strict=True))),
            can_row.eq(timing.can_activate | timing.can_precharge & ~in_demand),
            columns.eq(hits & _each(can_column, queue.bank) & data.can_issue.replicate(len(hits))),
            rows.eq(eligible & ~queue.hit & _each(can_row, queue.bank)),
        ]
        candidates = Signal(self.config.queue)
        m.d.comb += candidates.eq(Mux(columns.any(), columns, rows))
        for index in reversed(range(self.config.queue)):
            with m.If(candidates[index]):
                m.d.comb += queue.pick.eq(index)

        # The command
        with m.If(refresh_due):
            self._refresh(m, refresh_rank, issue, command, bank)
        with m.Else():
            m.d.comb += [queue.serves.eq(candidates.any()), issue.eq(queue.serves), bank.eq(queue.picked.place.bank)]
            with m.If(columns.any()):
                m.d.comb += command.eq(Mux(serve_writes, DramCommand.WR, DramCommand.RD))
            with m.Elif(timing.open.bit_select(bank, 1)):
                m.d.comb += command.eq(DramCommand.PRE)
            with m.Else():
                m.d.comb += command.eq(DramCommand.ACT)
            if self.config.page_policy == "closed":
                self._close_unwanted(m, candidates, issue, command, bank)

        # Its data
        m.d.comb += [
            burst.eq(issue & ((command == DramCommand.RD) | (command == DramCommand.WR))),
            data.issue.eq(burst),
            data.write.eq(command == DramCommand.WR),
            *line_of(self.config, queue.picked.place, line_layout(self.config)(data.line)),
            data.tag.eq(queue.picked.tag),
            data.slot_issued.eq(queue.picked.slot),
        ]
        wiring.connect(m, data.response, wiring.flipped(self.port.response))

        waits = self._elaborate_wait(m)
        nothing_comes = ~accept & ~enter & ~refresh_due
        if self.config.page_policy == "closed":
            nothing_comes = nothing_comes & ~timing.open.any()
        m.d.comb += self.quiet.eq((~queue.valid[0] | waits) & nothing_comes & ~self._draining & data.quiet)
        self._elaborate_observation(m, issue, command, bank, burst, accept, enter)
        return m

    def _close_unwanted(self, m: Module, candidates: Signal, issue: Signal, command: Signal, bank: Signal) -> None:
        """When nobody can be served, close a row that nobody in the queue wants."""
        queue, timing = self.queue, self.timing
        wanted, closing = Signal(self.config.channel_banks), Signal(self.config.channel_banks)
        hits = Signal(self.config.queue)
        m.d.comb += [
            hits.eq(queue.valid & queue.hit),
            wanted.eq(_any_of(hit << index for hit, index in zip(hits, queue.bank, strict=True))),
            closing.eq(timing.can_precharge & ~wanted),
        ]
        with m.If(~candidates.any() & closing.any()):
            m.d.comb += [issue.eq(1), command.eq(DramCommand.PRE)]
            for index in reversed(range(self.config.channel_banks)):
                with m.If(closing[index]):
                    m.d.comb += bank.eq(index)

    def _refresh(self, m: Module, rank: Signal, issue: Signal, command: Signal, bank: Signal) -> None:
        """Close the open rows of a rank, then REF."""
        of_rank = self.config.banks
        for number in range(self.config.ranks):
            closing = self.timing.can_precharge[number * of_rank : (number + 1) * of_rank]
            can_refresh = self.timing.can_refresh[number]
            with m.If(rank == number):
                m.d.comb += [
                    issue.eq(closing.any() | can_refresh),
                    command.eq(Mux(can_refresh, DramCommand.REF, DramCommand.PRE)),
                    bank.eq(number * of_rank),
                ]
                for index in reversed(range(of_rank)):
                    with m.If(closing[index]):
                        m.d.comb += bank.eq(number * of_rank + index)

    def _elaborate_acceptance(self, m: Module) -> tuple[Signal, Signal]:
        """Take requests in, and into the queue; the data of writes goes straight to where it waits for its burst."""
        request, queue, data, way_in = self.port.request, self.queue, self.data, self.way_in
        payload, entry = request.payload, way_in.input.payload
        line_width = len(data.line)
        accept, enter = Signal(), Signal()
        wiring.connect(m, way_in.output, queue.request)
        m.d.comb += [
            way_in.input.valid.eq(request.valid & data.can_store),
            request.ready.eq(way_in.input.ready & data.can_store),
            accept.eq(request.valid & request.ready),
            enter.eq(queue.request.valid & queue.request.ready),
            entry.op.eq(payload.op),
            *place_of(self.config, line_layout(self.config)(payload.line[:line_width]), entry.place),
            entry.tag.eq(payload.tag),
            entry.slot.eq(data.slot),
            data.store.eq(accept & (payload.op == MemoryOp.WRITE)),
            data.store_data.eq(payload.data),
        ]
        self.out_of_range.increment(m, accept & payload.line[line_width:].any())
        return accept, enter

    def _elaborate_refresh(self, m: Module, issue: Signal, command: Signal) -> tuple[Signal, Signal]:
        """Every tREFI, by a deadline that does not drift when a refresh is late; evenly spread over the ranks.

        Whether one is due, and of which rank.
        """
        interval = self.config.tREFI // self.config.ranks
        refresh_at, due = Signal(NOW_WIDTH, init=interval), Signal()
        rank = Signal(range(self.config.ranks))
        m.d.comb += [
            due.eq(self.now >= refresh_at),
            self.refresh_timer.armed.eq(1),
            self.refresh_timer.deadline.eq(refresh_at),
        ]
        with m.If(issue & (command == DramCommand.REF)):
            m.d.dram += [refresh_at.eq(refresh_at + interval), rank.eq(rank + 1)]
        return due, rank

    def _elaborate_wait(self, m: Module) -> Signal:
        """When there is one request and it waits for a constraint, the edge at which its next command is allowed."""
        timing, queue, timer = self.timing, self.queue, self.command_timer
        waits = Signal()
        m.d.comb += [
            timing.wanted_bank.eq(queue.bank[0]),
            timer.armed.eq(queue.valid[0] & ~queue.valid[1]),
            timer.deadline.eq(timing.allowed_at),
            waits.eq(timer.armed & (self.now < timer.deadline) & self.data.can_issue),
        ]
        with m.If(~timing.open.bit_select(queue.bank[0], 1)):
            m.d.comb += timing.wanted.eq(DramCommand.ACT)
        with m.Elif(~queue.hit[0]):
            m.d.comb += timing.wanted.eq(DramCommand.PRE)
        with m.Else():
            m.d.comb += timing.wanted.eq(Mux(queue.write[0], DramCommand.WR, DramCommand.RD))
        return waits

    def _elaborate_eligible(self, m: Module, enter: Signal, burst: Signal) -> tuple[Signal, Signal]:
        """Which requests may be served now: all of one kind, or the oldest alone."""
        queue, size = self.queue, self.config.queue

        # Writes held, and whether enough of them wait to go before reads
        held, draining = self._held_writes, self._draining
        more = enter & (queue.request.payload.op == MemoryOp.WRITE)
        less = burst & queue.write.bit_select(queue.pick, 1)
        with m.If(more & ~less):
            m.d.dram += held.eq(held + 1)
        with m.If(less & ~more):
            m.d.dram += held.eq(held - 1)
        with m.If((held >= -(-3 * size // 4)) | (queue.valid & queue.blocked & ~queue.write).any()):
            m.d.dram += draining.eq(1)
        with m.Elif(held <= size // 4):
            m.d.dram += draining.eq(0)

        # Younger requests that went before the one that is now oldest
        bypassed, starving = Signal(range(self.bypass_limit + 1)), Signal()
        m.d.comb += starving.eq(bypassed == self.bypass_limit)
        with m.If(burst):
            m.d.dram += bypassed.eq(Mux(queue.pick == 0, 0, bypassed + 1))

        reads, writes, eligible, serve_writes = Signal(size), Signal(size), Signal(size), Signal()
        m.d.comb += [
            reads.eq(queue.valid & ~queue.blocked & ~queue.write),
            writes.eq(queue.valid & ~queue.blocked & queue.write),
            serve_writes.eq((draining & writes.any()) | ~reads.any()),
            eligible.eq(Mux(serve_writes, writes, reads)),
        ]
        with m.If(starving):
            m.d.comb += [serve_writes.eq(queue.write[0]), eligible.eq(queue.valid[0])]
        return eligible, serve_writes

    def _elaborate_observation(
        self, m: Module, issue: Signal, command: Signal, bank: Signal, burst: Signal, accept: Signal, enter: Signal
    ) -> None:
        """Probe and counters."""
        queue = self.queue
        self.issued.emit(m, issue, command=command, bank=bank, row=queue.picked.place.row)
        self.reads.increment(m, issue & (command == DramCommand.RD))
        self.writes.increment(m, issue & (command == DramCommand.WR))
        self.activates.increment(m, issue & (command == DramCommand.ACT))
        self.precharges.increment(m, issue & (command == DramCommand.PRE))
        self.refreshes.increment(m, issue & (command == DramCommand.REF))
        self.row_hits.increment(m, burst & ~queue.picked_opened & ~queue.picked_closed)
        self.row_misses.increment(m, burst & queue.picked_opened & ~queue.picked_closed)
        self.row_conflicts.increment(m, burst & queue.picked_closed)
        response = self.port.response
        asked = accept & (self.port.request.payload.op == MemoryOp.READ)
        self._sum_over_time(m, self.read_cycles, asked, response.valid & response.ready)
        self._sum_over_time(m, self.queue_cycles, enter, burst)

    def _sum_over_time(self, m: Module, counter: Counter, comes: Value, goes: Value) -> None:
        """Sum how many there are over all cycles, skipped ones included; brought up to date when that changes."""
        there, since = Signal(range(1024)), Signal(NOW_WIDTH)
        with m.If(comes | goes):
            m.d.dram += [there.eq(there + comes - goes), since.eq(self.now)]
        counter.increment(m, comes | goes, there * (self.now - since)[:32])


def _each(of_banks: Signal, banks: Iterable[Value]) -> Cat:
    """For each request, the bit of its bank."""
    return Cat(of_banks.bit_select(bank, 1) for bank in banks)


def _any_of(vectors: Iterable[Value]) -> Value:
    return functools.reduce(operator.or_, vectors)
