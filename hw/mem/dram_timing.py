"""What the DRAM's rules allow: open rows and the earliest edge of every command."""

from collections.abc import Iterable

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, ValueLike
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
    """How the number of a line picks its place: the fields of ``dram.mapping``, the lowest first.

    With "group column bank row" consecutive lines alternate between groups, so a stream of them needs only tCCD_S
    between bursts and fills the data bus; then come the columns of a row, so that the stream keeps its rows open.
    """
    widths = {
        "group": exact_log2(config.bank_groups),
        "column": exact_log2(config.lines_per_row),
        "bank": exact_log2(config.banks_per_group),
        "row": exact_log2(config.rows),
    }
    return data.StructLayout({name: widths[name] for name in config.mapping.split()})


def place_layout(config: DramConfig) -> data.StructLayout:
    """A place in DRAM. ``bank`` counts through all groups, with the group in its low bits."""
    return data.StructLayout(
        {
            "bank": exact_log2(config.banks),
            "row": exact_log2(config.rows),
            "column": exact_log2(config.lines_per_row),
        }
    )


def place_of(config: DramConfig, line: data.View, place: data.View) -> list:
    """Statements that set a place to that of a line."""
    bank = _hashed(config, Cat(line.group, line.bank), line.row)
    return [place.bank.eq(bank), place.row.eq(line.row), place.column.eq(line.column)]


def line_of(config: DramConfig, place: data.View, line: data.View) -> list:
    """Statements that set a line to the one at a place."""
    bank = _hashed(config, place.bank, place.row)
    return [Cat(line.group, line.bank).eq(bank), line.row.eq(place.row), line.column.eq(place.column)]


def _hashed(config: DramConfig, bank: Value, row: Value) -> Value:
    """Its own inverse."""
    return bank ^ row[: len(bank)] if config.bank_hash else bank


class DramTiming(wiring.Component):
    """Keeps JEDEC's constraints between commands (JESD79-4, sections 4 and 13; JESD79-5) for one rank.

    Every constraint is an absolute edge number of ``dram`` before which a command must not be issued, so that it
    stays right however many edges are skipped. Besides the parameters of the configuration a write follows a
    read by at least CL + BURST + 2 - CWL (the data bus turns around: one cycle and the write preamble).

    Attributes:
        issue, command, bank: the command issued at this edge. It must be one that is allowed.
        open: banks with an open row.
        can_activate, can_precharge, can_read, can_write: banks that may get that command at this edge.
        can_refresh: all banks are closed and have been for tRP.
        wanted, wanted_bank: a command (not REF) that the state of its bank admits; ``allowed_at`` is the first edge
            at which it may be issued.
    """

    def __init__(self, config: DramConfig):
        self.config = config
        banks = config.banks
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
                "can_refresh": Out(1),
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
        # Of each group, after a command to the same group (the _L constraints)
        groups = config.bank_groups
        kinds = {DramCommand.ACT: "activate", DramCommand.RD: "read", DramCommand.WR: "write"}
        self._group_at = {kind: deadlines(f"group_{name}_at", groups) for kind, name in kinds.items()}
        # Of the rank, after a command to any group (the _S constraints and the turn of the data bus)
        self._rank_at = {kind: Signal(NOW_WIDTH, name=f"rank_{name}_at") for kind, name in kinds.items()}
        # Of the rank, for ACT: the end of tRFC, and of tFAW after each of the last four, the oldest first
        self._refreshed_at = Signal(NOW_WIDTH)
        self._four_activates_at = deadlines("four_activates_at", 4)

    def elaborate(self, platform):
        """Elaborate: what each command delays, then what may be issued now, then when what is wanted may be."""
        m = Module()
        m.submodules.ready_at = self._ready_at
        m.submodules.recovered_at = self._recovered_at
        self._elaborate_banks(m)
        self._elaborate_groups(m)
        self._elaborate_rank(m)

        every_bank = range(self.config.banks)
        ready, recovered = Signal(self.config.banks), Signal(self.config.banks)
        m.d.comb += [
            ready.eq(self._reached([_row(m, self._ready_at, bank) for bank in every_bank])),
            recovered.eq(self._reached([_row(m, self._recovered_at, bank) for bank in every_bank])),
            self.can_activate.eq(~self.open & ready & self._admitted(DramCommand.ACT)),
            self.can_precharge.eq(self.open & recovered),
            self.can_read.eq(self.open & ready & self._admitted(DramCommand.RD)),
            self.can_write.eq(self.open & ready & self._admitted(DramCommand.WR)),
            self.can_refresh.eq(~self.open.any() & ready.all()),
        ]

        ready_at = _row(m, self._ready_at, self.wanted_bank)
        recovered_at = _row(m, self._recovered_at, self.wanted_bank)
        with m.Switch(self.wanted):
            with m.Case(DramCommand.PRE):
                m.d.comb += self.allowed_at.eq(recovered_at)
            for kind, group_at in self._group_at.items():
                with m.Case(kind):
                    own_group_at = Array(group_at)[self._group(self.wanted_bank)]
                    m.d.comb += self.allowed_at.eq(_latest(m, ready_at, own_group_at, *self._rank_deadlines(kind)))
        return m

    def _group(self, bank: Signal) -> Value:
        return bank[: exact_log2(self.config.bank_groups)]

    def _rank_deadlines(self, kind: DramCommand) -> list[Signal]:
        extra = [self._refreshed_at, self._four_activates_at[0]] if kind == DramCommand.ACT else []
        return [self._rank_at[kind], *extra]

    def _reached(self, deadlines: Iterable[Value]) -> Value:
        return Cat(self.now >= deadline for deadline in deadlines)

    def _admitted(self, kind: DramCommand) -> Value:
        """Banks that the other banks let have this command. The groups, low in a bank's number, repeat."""
        of_groups = self._reached(self._group_at[kind]).replicate(self.config.banks_per_group)
        return Mux(self._reached(self._rank_deadlines(kind)).all(), of_groups, 0)

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
        # No maximum is needed here nor for the rank: a command is issued only past the deadline of its kind, and the
        # deadlines it sets lie beyond those.
        config = self.config
        for index in range(config.bank_groups):
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

    def _elaborate_rank(self, m: Module) -> None:
        config = self.config
        activate_at, read_at, write_at = self._rank_at.values()
        turn = max(config.CL + config.BURST + 2 - config.CWL, config.tCCD_L)
        with m.If(self.issue):
            with m.Switch(self.command):
                with m.Case(DramCommand.ACT):
                    m.d.dram += activate_at.eq(self.now + config.tRRD_S)
                    newer = [*self._four_activates_at[1:], self.now + config.tFAW]
                    m.d.dram += [at.eq(next_at) for at, next_at in zip(self._four_activates_at, newer, strict=True)]
                with m.Case(DramCommand.RD):
                    m.d.dram += read_at.eq(self.now + config.tCCD_S)
                    m.d.dram += write_at.eq(self.now + turn)
                with m.Case(DramCommand.WR):
                    m.d.dram += write_at.eq(self.now + config.tCCD_S)
                    m.d.dram += read_at.eq(self.now + config.CWL + config.BURST + config.tWTR_S)
                with m.Case(DramCommand.REF):
                    m.d.dram += self._refreshed_at.eq(self.now + config.tRFC)


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
