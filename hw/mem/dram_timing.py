"""What the DRAM's rules allow: open rows and the earliest edge of every command."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.config import DramConfig
from hw.lib.time import NOW_WIDTH

__all__ = ["DramCommand", "DramTiming", "address_layout", "bank_of"]


class DramCommand(enum.Enum, shape=3):
    """Commands on the DRAM's command bus, by their JEDEC names."""

    ACT = 0  #: open a row of a bank
    PRE = 1  #: close it
    RD = 2  #: read one line (a burst of eight) from the open row
    WR = 3  #: write one line into it
    REF = 4  #: refresh all banks; all must be closed


def address_layout(config: DramConfig) -> data.StructLayout:
    """How a line's number picks its place.

    The bank group lies lowest: consecutive lines alternate between groups, so a stream of them needs only
    tCCD_S between bursts and fills the data bus. Then come the columns of a row, so that the stream keeps its
    rows open, then the bank, then the row.
    """
    return data.StructLayout(
        {
            "group": exact_log2(config.bank_groups),
            "column": exact_log2(config.lines_per_row),
            "bank": exact_log2(config.banks_per_group),
            "row": exact_log2(config.rows),
        }
    )


def bank_of(address: data.View) -> Cat:
    """Number of the bank among all groups: the group in the low bits."""
    return Cat(address.group, address.bank)


class DramTiming(wiring.Component):
    """Keeps JEDEC's constraints between commands (JESD79-4, sections 4 and 13) for one rank.

    Every constraint is an absolute edge number of ``dram`` before which a command must not be issued, so that it
    stays right however many edges are skipped. Besides the parameters of the configuration a write follows a
    read by at least CL + BURST + 2 - CWL (the data bus turns around: one cycle and the write preamble).

    Attributes:
        issue, command, bank: the command issued at this edge. It must be one that is allowed.
        open: banks with an open row.
        can_activate, can_precharge, can_read, can_write: banks that may get that command at this edge.
        can_refresh: all banks are closed and have been for tRP.
    """

    def __init__(self, config: DramConfig):
        self.config = config
        banks = config.banks
        super().__init__(
            {
                "now": In(NOW_WIDTH),
                "issue": In(1),
                "command": In(DramCommand),
                "bank": In(exact_log2(banks)),
                "open": Out(banks),
                "can_activate": Out(banks),
                "can_precharge": Out(banks),
                "can_read": Out(banks),
                "can_write": Out(banks),
                "can_refresh": Out(1),
            }
        )

    def elaborate(self, platform):
        """Elaborate: deadlines of each bank, of each bank group, and of the rank."""
        m = Module()
        ready, recovered = self._elaborate_banks(m)
        activate, read, write = self._elaborate_groups(m)
        m.d.comb += [
            self.can_activate.eq(~self.open & ready & activate),
            self.can_precharge.eq(self.open & recovered),
            self.can_read.eq(self.open & ready & read),
            self.can_write.eq(self.open & ready & write),
            self.can_refresh.eq(~self.open.any() & ready.all()),
        ]
        return m

    def _after(self, m: Module, name: str, cycles: int) -> Signal:
        """The edge ``cycles`` after this one, computed once for all who need it."""
        edge = Signal(NOW_WIDTH, name=f"after_{name}")
        m.d.comb += edge.eq(self.now + cycles)
        return edge

    def _reached(self, deadlines: list[Signal]) -> Cat:
        return Cat(self.now >= deadline for deadline in deadlines)

    def _elaborate_banks(self, m: Module) -> tuple[Signal, Signal]:
        """For each bank: past tRCD or tRP, whichever its last ACT or PRE began; and past tRAS, tRTP and tWR."""
        config = self.config
        ready_at = [Signal(NOW_WIDTH, name=f"ready_at{i}") for i in range(config.banks)]
        recovered_at = [Signal(NOW_WIDTH, name=f"recovered_at{i}") for i in range(config.banks)]
        after_tRCD = self._after(m, "tRCD", config.tRCD)
        after_tRAS = self._after(m, "tRAS", config.tRAS)
        after_tRP = self._after(m, "tRP", config.tRP)
        after_tRTP = self._after(m, "tRTP", config.tRTP)
        after_tWR = self._after(m, "tWR", config.CWL + config.BURST + config.tWR)
        for index in range(config.banks):
            with m.If(self.issue & (self.bank == index)):
                with m.Switch(self.command):
                    with m.Case(DramCommand.ACT):
                        m.d.dram += self.open[index].eq(1)
                        m.d.dram += ready_at[index].eq(after_tRCD)
                        m.d.dram += recovered_at[index].eq(after_tRAS)
                    with m.Case(DramCommand.PRE):
                        m.d.dram += self.open[index].eq(0)
                        m.d.dram += ready_at[index].eq(after_tRP)
                    with m.Case(DramCommand.RD):
                        with m.If(recovered_at[index] < after_tRTP):
                            m.d.dram += recovered_at[index].eq(after_tRTP)
                    with m.Case(DramCommand.WR):
                        with m.If(recovered_at[index] < after_tWR):
                            m.d.dram += recovered_at[index].eq(after_tWR)
        ready = Signal(config.banks)
        recovered = Signal(config.banks)
        m.d.comb += ready.eq(self._reached(ready_at))
        m.d.comb += recovered.eq(self._reached(recovered_at))
        return ready, recovered

    def _elaborate_groups(self, m: Module) -> tuple[Cat, Cat, Cat]:
        """Which banks may, as far as others are concerned, be activated, read and written."""
        config = self.config
        groups = config.bank_groups
        group = self.bank[: exact_log2(groups)]

        # Same group (the _L constraints): one deadline per group. None of these needs a maximum: a command is
        # issued only past the deadline of its kind, and each new deadline lies beyond.
        activate_at = [Signal(NOW_WIDTH, name=f"activate_at{i}") for i in range(groups)]
        read_at = [Signal(NOW_WIDTH, name=f"read_at{i}") for i in range(groups)]
        write_at = [Signal(NOW_WIDTH, name=f"write_at{i}") for i in range(groups)]
        after_tRRD_L = self._after(m, "tRRD_L", config.tRRD_L)
        after_tCCD_L = self._after(m, "tCCD_L", config.tCCD_L)
        after_tWTR_L = self._after(m, "tWTR_L", config.CWL + config.BURST + config.tWTR_L)
        for index in range(groups):
            with m.If(self.issue & (group == index)):
                with m.Switch(self.command):
                    with m.Case(DramCommand.ACT):
                        m.d.dram += activate_at[index].eq(after_tRRD_L)
                    with m.Case(DramCommand.RD):
                        m.d.dram += read_at[index].eq(after_tCCD_L)
                    with m.Case(DramCommand.WR):
                        m.d.dram += write_at[index].eq(after_tCCD_L)
                        m.d.dram += read_at[index].eq(after_tWTR_L)

        # Any group (the _S constraints), four activations in tFAW, refresh, and the turn of the data bus
        any_activate_at = Signal(NOW_WIDTH)
        any_read_at = Signal(NOW_WIDTH)
        any_write_at = Signal(NOW_WIDTH)
        refreshed_at = Signal(NOW_WIDTH)
        four_activates_at = [Signal(NOW_WIDTH, name=f"four_activates_at{i}") for i in range(4)]
        turn = max(config.CL + config.BURST + 2 - config.CWL, config.tCCD_L)
        with m.If(self.issue):
            with m.Switch(self.command):
                with m.Case(DramCommand.ACT):
                    m.d.dram += any_activate_at.eq(self.now + config.tRRD_S)
                    for older, newer in zip(
                        four_activates_at, [*four_activates_at[1:], self.now + config.tFAW], strict=True
                    ):
                        m.d.dram += older.eq(newer)
                with m.Case(DramCommand.RD):
                    m.d.dram += any_read_at.eq(self.now + config.tCCD_S)
                    m.d.dram += any_write_at.eq(self.now + turn)
                with m.Case(DramCommand.WR):
                    m.d.dram += any_write_at.eq(self.now + config.tCCD_S)
                    m.d.dram += any_read_at.eq(self.now + config.CWL + config.BURST + config.tWTR_S)
                with m.Case(DramCommand.REF):
                    m.d.dram += refreshed_at.eq(self.now + config.tRFC)
        may_activate = self._reached([any_activate_at, refreshed_at, four_activates_at[0]]).all()
        may_read = self.now >= any_read_at
        may_write = self.now >= any_write_at

        # The group is the low part of a bank's number, so the groups repeat through the banks.
        def spread(rank_wide, of_groups):
            vector = Signal(config.banks)
            m.d.comb += vector.eq(Mux(rank_wide, self._reached(of_groups).replicate(config.banks_per_group), 0))
            return vector

        return spread(may_activate, activate_at), spread(may_read, read_at), spread(may_write, write_at)
