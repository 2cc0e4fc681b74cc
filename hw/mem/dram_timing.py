"""What the DRAM's rules allow: open rows and the earliest edge of every command."""

from collections.abc import Iterable

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.config import DramConfig
from hw.lib.time import NOW_WIDTH

__all__ = ["DramCommand", "DramTiming", "line_layout", "line_of", "place_layout", "place_of"]


class DramCommand(enum.Enum, shape=3):
    """Commands on the DRAM's command bus, by their JEDEC names."""

    ACT = 0  #: open a row of a bank
    PRE = 1  #: close it
    RD = 2  #: read one line (a burst) from the open row
    WR = 3  #: write one line into it
    REF = 4  #: refresh all banks; all must be closed


def line_layout(config: DramConfig) -> data.StructLayout:
    """How the number of a line of one channel picks its place: the fields of ``dram.mapping`` without the channel.

    With "group column bank row" consecutive lines alternate between groups, so a stream of them needs only tCCD_S
    between bursts and fills the data bus; then come the columns of a row, so that the stream keeps its rows open.
    """
    widths = {
        "group": exact_log2(config.bank_groups),
        "column": exact_log2(config.lines_per_row),
        "bank": exact_log2(config.banks_per_group),
        "rank": exact_log2(config.ranks),
        "row": exact_log2(config.rows),
    }
    order = [name for name in config.mapping.split() if name in widths]
    return data.StructLayout({name: widths[name] for name in order} | widths)


def place_layout(config: DramConfig) -> data.StructLayout:
    """A place in a channel. ``bank`` counts through all groups and ranks: the group lowest, the rank highest."""
    return data.StructLayout(
        {
            "bank": exact_log2(config.channel_banks),
            "row": exact_log2(config.rows),
            "column": exact_log2(config.lines_per_row),
        }
    )


def place_of(config: DramConfig, line: data.View, place: data.View) -> list:
    """Statements that set a place to that of a line."""
    bank = _hashed(config, Cat(line.group, line.bank), line.row)
    return [place.bank.eq(Cat(bank, line.rank)), place.row.eq(line.row), place.column.eq(line.column)]


def line_of(config: DramConfig, place: data.View, line: data.View) -> list:
    """Statements that set a line to the one at a place."""
    of_rank = exact_log2(config.banks)
    bank = _hashed(config, place.bank[:of_rank], place.row)
    return [
        Cat(line.group, line.bank).eq(bank),
        line.rank.eq(place.bank[of_rank:]),
        line.row.eq(place.row),
        line.column.eq(place.column),
    ]


def _hashed(config: DramConfig, bank: Value, row: Value) -> Value:
    """Its own inverse."""
    return bank ^ row[: len(bank)] if config.bank_hash else bank


class DramTiming(wiring.Component):
    """Keeps JEDEC's constraints between commands (JESD79-4, sections 4 and 13; JESD79-5) for the ranks of a channel.

    Every constraint is an absolute edge number of ``dram`` before which a command must not be issued, so that it
    stays right however many edges are skipped. Besides the parameters of the configuration a write follows a
    read by at least CL + BURST + bus_turn - CWL (the data bus turns around), and between bursts of different ranks the
    data bus is idle for tRTRS.

    Attributes:
        issue, command, bank: the command issued at this edge. It must be one that is allowed. REF takes any bank of
            its rank.
        open: banks with an open row.
        can_activate, can_precharge, can_read, can_write: banks that may get that command at this edge.
        can_refresh: ranks whose banks are all closed and have been for tRP, and whose last refresh is over.
        wanted, wanted_bank: a command (not REF) that the state of its bank admits; ``allowed_at`` is the first edge
            at which it may be issued.
    """

    def __init__(self, config: DramConfig):
        self.config = config
        banks, ranks = config.channel_banks, config.ranks
        bank_width = exact_log2(banks)
        super().__init__(
            {
                "now": In(NOW_WIDTH),
                "issue": In(1),
                "command": In(DramCommand),
                "bank": In(bank_width),
                "open": Out(banks),
                "can_activate": Out(banks),
                "can_precharge": Out(banks),
                "can_read": Out(banks),
                "can_write": Out(banks),
                "can_refresh": Out(ranks),
                "wanted": In(DramCommand),
                "wanted_bank": In(bank_width),
                "allowed_at": Out(NOW_WIDTH),
            }
        )

        def deadlines(name: str, count: int) -> list[Signal]:
            return [Signal(NOW_WIDTH, name=f"{name}{index}") for index in range(count)]

        # Of each bank: the end of tRCD or tRP, whichever its last ACT or PRE began, and of tRAS, tRTP and tWR. All are
        # read in every cycle and one is written: registers for silicon, memories because they simulate faster.
        self._ready_at: Memory = Memory(shape=NOW_WIDTH, depth=banks, init=[])
        self._recovered_at: Memory = Memory(shape=NOW_WIDTH, depth=banks, init=[])
        # Of each group of each rank, after a command to the same group (the _L constraints)
        groups = config.bank_groups * ranks
        kinds = {DramCommand.ACT: "activate", DramCommand.RD: "read", DramCommand.WR: "write"}
        self._group_at = {kind: deadlines(f"group_{name}_at", groups) for kind, name in kinds.items()}
        # Of each rank, after a command to any of its groups (the _S constraints and the turn of the data bus)
        self._rank_at = {kind: deadlines(f"rank_{name}_at", ranks) for kind, name in kinds.items()}
        # Of each rank, for ACT: the end of tRFC, and of tFAW after each of the last four, the oldest first
        self._refreshed_at = deadlines("refreshed_at", ranks)
        self._four_activates_at = [deadlines(f"rank{rank}_four_activates_at", 4) for rank in range(ranks)]
        # Of each rank, for PRE: the end of tPPD
        self._precharged_at = deadlines("precharged_at", ranks)
        # Of the channel: the command bus; and for the ranks that did not have the last burst, the data bus
        self._command_at = Signal(NOW_WIDTH)
        self._bus_at = {DramCommand.RD: Signal(NOW_WIDTH), DramCommand.WR: Signal(NOW_WIDTH)}
        self._bus_rank = Signal(range(ranks))

    def elaborate(self, platform):
        """Elaborate: what each command delays, then what may be issued now, then when what is wanted may be."""
        m = Module()
        m.submodules.ready_at = self._ready_at
        m.submodules.recovered_at = self._recovered_at
        self._elaborate_banks(m)
        self._elaborate_groups(m)
        for rank in range(self.config.ranks):
            with m.If(self.issue & (self._rank(self.bank) == rank)):
                self._elaborate_rank(m, rank)
        self._elaborate_buses(m)

        every_bank = range(self.config.channel_banks)
        ready, recovered = Signal(self.config.channel_banks), Signal(self.config.channel_banks)
        closed = ~self.open & ready
        m.d.comb += [
            ready.eq(self._reached([_row(m, self._ready_at, bank) for bank in every_bank])),
            recovered.eq(self._reached([_row(m, self._recovered_at, bank) for bank in every_bank])),
            self.can_activate.eq(closed & self._admitted(DramCommand.ACT)),
            self.can_precharge.eq(self.open & recovered & self._admitted(DramCommand.PRE)),
            self.can_read.eq(self.open & ready & self._admitted(DramCommand.RD)),
            self.can_write.eq(self.open & ready & self._admitted(DramCommand.WR)),
        ]
        of_rank = self.config.banks
        for rank in range(self.config.ranks):
            all_closed = closed[rank * of_rank : (rank + 1) * of_rank].all()
            past = self._reached([self._refreshed_at[rank], *self._command_bus()]).all()
            m.d.comb += self.can_refresh[rank].eq(all_closed & past)

        ready_at = _row(m, self._ready_at, self.wanted_bank)
        recovered_at = _row(m, self._recovered_at, self.wanted_bank)
        with m.Switch(self.wanted):
            with m.Case(DramCommand.PRE):
                m.d.comb += self.allowed_at.eq(_latest(m, recovered_at, *self._wanted_rank_deadlines(m)))
            for kind, group_at in self._group_at.items():
                with m.Case(kind):
                    own_group_at = Array(group_at)[self._group(self.wanted_bank)]
                    others = self._wanted_rank_deadlines(m, kind)
                    m.d.comb += self.allowed_at.eq(_latest(m, ready_at, own_group_at, *others))
        return m

    def _group(self, bank: Signal) -> Value:
        """Number of a bank's group, counted through all ranks."""
        return Cat(bank[: exact_log2(self.config.bank_groups)], self._rank(bank))

    def _rank(self, bank: Signal) -> Value:
        return bank[exact_log2(self.config.banks) :]

    def _command_bus(self) -> list[Signal]:
        return [self._command_at] if self.config.command_clocks > 1 else []

    def _rank_deadlines(self, kind: DramCommand, rank: int) -> list[Signal]:
        """What holds up a command beside its bank, its group and the ranks it shares the data bus with."""
        own: list[Signal] = []
        if kind in self._rank_at:
            own.append(self._rank_at[kind][rank])
        if kind == DramCommand.ACT:
            own += [self._refreshed_at[rank], self._four_activates_at[rank][0]]
        if kind == DramCommand.PRE and self.config.tPPD > 1:
            own.append(self._precharged_at[rank])
        return own + self._command_bus()

    def _wanted_rank_deadlines(self, m: Module, kind: DramCommand = DramCommand.PRE) -> list[Value]:
        rank = self._rank(self.wanted_bank)
        of_ranks = [self._rank_deadlines(kind, each) for each in range(self.config.ranks)]
        deadlines: list[Value] = [Array(alternatives)[rank] for alternatives in zip(*of_ranks, strict=True)]
        if kind in self._bus_at and self.config.ranks > 1:
            deadlines.append(Mux(rank == self._bus_rank, 0, self._bus_at[kind]))
        return deadlines

    def _reached(self, deadlines: Iterable[Value]) -> Value:
        return Cat(self.now >= deadline for deadline in deadlines)

    def _admitted(self, kind: DramCommand) -> Value:
        """Banks that the other banks let have this command. The groups, low in a bank's number, repeat."""
        config = self.config
        banks = []
        for rank in range(config.ranks):
            admitted = self._reached(self._rank_deadlines(kind, rank)).all()
            if kind in self._bus_at and config.ranks > 1:
                admitted &= (self._bus_rank == rank) | (self.now >= self._bus_at[kind])
            if kind in self._group_at:
                groups = self._group_at[kind][rank * config.bank_groups : (rank + 1) * config.bank_groups]
                of_groups = self._reached(groups).replicate(config.banks_per_group)
            else:
                of_groups = Const(-1, config.banks)
            banks.append(Mux(admitted, of_groups, 0))
        return Cat(banks)

    def _elaborate_banks(self, m: Module) -> None:
        config = self.config
        ready_at = self._ready_at.write_port(domain="dram")
        recovered_at = self._recovered_at.write_port(domain="dram")
        recovered_already_at = _row(m, self._recovered_at, self.bank)
        recovered_after = Signal(NOW_WIDTH)
        own = 1 << self.bank
        m.d.comb += [
            ready_at.addr.eq(self.bank),
            ready_at.data.eq(self.now + Mux(self.command == DramCommand.ACT, config.tRCD, config.tRP)),
            recovered_at.addr.eq(self.bank),
            recovered_at.data.eq(_latest(m, recovered_already_at, recovered_after)),
        ]
        with m.If(self.issue):
            with m.Switch(self.command):
                with m.Case(DramCommand.ACT):
                    m.d.dram += self.open.eq(self.open | own)
                    m.d.comb += [ready_at.en.eq(1), recovered_at.en.eq(1)]
                    m.d.comb += recovered_after.eq(self.now + config.tRAS)
                with m.Case(DramCommand.PRE):
                    m.d.dram += self.open.eq(self.open & ~own)
                    m.d.comb += ready_at.en.eq(1)
                with m.Case(DramCommand.RD):
                    m.d.comb += recovered_at.en.eq(1)
                    m.d.comb += recovered_after.eq(self.now + config.tRTP)
                with m.Case(DramCommand.WR):
                    m.d.comb += recovered_at.en.eq(1)
                    m.d.comb += recovered_after.eq(self.now + config.CWL + config.BURST + config.tWR)

    def _elaborate_groups(self, m: Module) -> None:
        # No maximum is needed here nor for the ranks: a command is issued only past the deadline of its kind, and the
        # deadlines it sets lie beyond those.
        config = self.config
        for index in range(config.bank_groups * config.ranks):
            activate_at, read_at, write_at = (deadlines[index] for deadlines in self._group_at.values())
            with m.If(self.issue & (self._group(self.bank) == index)):
                with m.Switch(self.command):
                    with m.Case(DramCommand.ACT):
                        m.d.dram += activate_at.eq(self.now + config.tRRD_L)
                    with m.Case(DramCommand.RD):
                        m.d.dram += read_at.eq(self.now + config.tCCD_L)
                    with m.Case(DramCommand.WR):
                        m.d.dram += write_at.eq(self.now + config.tCCD_L_WR)
                        m.d.dram += read_at.eq(self.now + config.CWL + config.BURST + config.tWTR_L)

    def _elaborate_rank(self, m: Module, rank: int) -> None:
        """What a command to this rank delays in it."""
        config = self.config
        activate_at, read_at, write_at = (deadlines[rank] for deadlines in self._rank_at.values())
        four_activates_at = self._four_activates_at[rank]
        turn = config.CL + config.BURST + config.bus_turn - config.CWL
        with m.Switch(self.command):
            with m.Case(DramCommand.ACT):
                m.d.dram += activate_at.eq(self.now + config.tRRD_S)
                newer = [*four_activates_at[1:], self.now + config.tFAW]
                m.d.dram += [at.eq(next_at) for at, next_at in zip(four_activates_at, newer, strict=True)]
            with m.Case(DramCommand.PRE):
                if config.tPPD > 1:
                    m.d.dram += self._precharged_at[rank].eq(self.now + config.tPPD)
            with m.Case(DramCommand.RD):
                m.d.dram += read_at.eq(self.now + config.tCCD_S)
                m.d.dram += write_at.eq(self.now + turn)
            with m.Case(DramCommand.WR):
                m.d.dram += write_at.eq(self.now + config.tCCD_S)
                m.d.dram += read_at.eq(self.now + config.CWL + config.BURST + config.tWTR_S)
            with m.Case(DramCommand.REF):
                m.d.dram += self._refreshed_at[rank].eq(self.now + config.tRFC)

    def _elaborate_buses(self, m: Module) -> None:
        """The command bus, where a command takes two clocks; the data bus, where there are several ranks."""
        config, (read_at, write_at) = self.config, self._bus_at.values()
        gap = config.BURST + config.tRTRS
        if config.command_clocks > 1:
            with m.If(self.issue & (self.command != DramCommand.PRE) & (self.command != DramCommand.REF)):
                m.d.dram += self._command_at.eq(self.now + config.command_clocks)
        if config.ranks > 1:
            is_read = self.command == DramCommand.RD
            with m.If(self.issue & (is_read | (self.command == DramCommand.WR))):
                m.d.dram += [
                    self._bus_rank.eq(self._rank(self.bank)),
                    read_at.eq(self.now + Mux(is_read, gap, max(config.CWL + gap - config.CL, 1))),
                    write_at.eq(self.now + Mux(is_read, config.CL + gap - config.CWL, gap)),
                ]


def _row(m: Module, memory: Memory, index: ValueLike) -> Value:
    """One row of a memory, as it is now."""
    port = memory.read_port(domain="comb")
    m.d.comb += port.addr.eq(index)
    return port.data


def _latest(m: Module, first: Value, *others: Value) -> Value:
    """The greatest of several edge numbers."""
    for other in others:
        latest = Signal(NOW_WIDTH, name="latest")
        m.d.comb += latest.eq(Mux(first < other, other, first))
        first = latest
    return first
