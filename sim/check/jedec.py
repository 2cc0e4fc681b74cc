"""Every DRAM command of a run against JEDEC's rules (JESD79-4, sections 4 and 13; JESD79-5 likewise).

Written from the standards' tables of what must lie between two commands, and not from the controller, which keeps the
same rules as deadlines (:mod:`hw.mem.dram_timing`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hw.config import DramConfig
from hw.mem.dram_timing import DramCommand
from sim.engine.engine import EngineError
from sim.observe.log import EventLog

__all__ = ["JedecError", "Violation", "check_commands", "check_dram", "violations"]

ACT, PRE, RD, WR, REF = DramCommand.ACT, DramCommand.PRE, DramCommand.RD, DramCommand.WR, DramCommand.REF


class JedecError(EngineError):
    """A DRAM command that came too early, or too late, or to a bank in the wrong state."""


@dataclass(frozen=True)
class Violation:
    """A command that breaks a rule."""

    cycle: int  #: edge of the DRAM's clock
    command: DramCommand
    bank: int
    rule: str  #: JEDEC's name of the timing, or what the bank should have been
    got: int  #: cycles since the command before; 0 for a rule of state
    needed: int

    def __str__(self) -> str:
        told = f"DRAM {self.command.name} to bank {self.bank} at cycle {self.cycle}: {self.rule}"
        return f"{told}, {self.got} cycles after what it must follow by {self.needed}" if self.needed else told


@dataclass(frozen=True)
class _Rule:
    """``second`` follows ``first`` by at least ``cycles``.

    ``within`` says of which pairs: both of one bank, of one group, of one rank, of the channel, or of different ranks.
    """

    name: str
    first: tuple[DramCommand, ...]
    second: tuple[DramCommand, ...]
    within: str
    cycles: int
    nth: int = 1  #: of the last so many ``first``


def _rules(c: DramConfig) -> list[_Rule]:
    burst = c.burst_length // 2
    written = c.CWL + burst
    return [
        _Rule("tRCD", (ACT,), (RD, WR), "bank", c.tRCD),
        _Rule("tRP", (PRE,), (ACT,), "bank", c.tRP),
        _Rule("tRAS", (ACT,), (PRE,), "bank", c.tRAS),
        _Rule("tRC", (ACT,), (ACT,), "bank", c.tRAS + c.tRP),
        _Rule("tRTP", (RD,), (PRE,), "bank", c.tRTP),
        _Rule("tWR", (WR,), (PRE,), "bank", written + c.tWR),
        _Rule("tRRD_S", (ACT,), (ACT,), "rank", c.tRRD_S),
        _Rule("tRRD_L", (ACT,), (ACT,), "group", c.tRRD_L),
        _Rule("tFAW", (ACT,), (ACT,), "rank", c.tFAW, nth=4),
        _Rule("tCCD_S", (RD,), (RD,), "rank", c.tCCD_S),
        _Rule("tCCD_S", (WR,), (WR,), "rank", c.tCCD_S),
        _Rule("tCCD_L", (RD,), (RD,), "group", c.tCCD_L),
        _Rule("tCCD_L_WR", (WR,), (WR,), "group", c.tCCD_L_WR),
        _Rule("tWTR_S", (WR,), (RD,), "rank", written + c.tWTR_S),
        _Rule("tWTR_L", (WR,), (RD,), "group", written + c.tWTR_L),
        # The bus turns round: some clocks, and the preamble of the write.
        _Rule("the end of the read's burst", (RD,), (WR,), "rank", c.CL + burst + c.bus_turn - c.CWL),
        _Rule("tRFC", (REF,), (ACT, REF), "rank", c.tRFC),
        _Rule("tRP", (PRE,), (REF,), "rank", c.tRP),
        _Rule("tPPD", (PRE,), (PRE,), "rank", c.tPPD),
        _Rule("tRTRS", (RD,), (RD,), "other rank", burst + c.tRTRS),
        _Rule("tRTRS", (WR,), (WR,), "other rank", burst + c.tRTRS),
        _Rule("tRTRS", (RD,), (WR,), "other rank", c.CL + burst + c.tRTRS - c.CWL),
        _Rule("tRTRS", (WR,), (RD,), "other rank", written + c.tRTRS - c.CL),
        _Rule("the command bus", (ACT, RD, WR), tuple(DramCommand), "channel", c.command_clocks),
        _Rule("the command bus", (PRE, REF), tuple(DramCommand), "channel", 1),
    ]


def _most_refresh_cycles(c: DramConfig) -> int:
    """Longest time between refreshes of a rank: 8 of them may be postponed in DDR4, 4 in DDR5."""
    return (5 if c.burst_length == 16 else 9) * c.tREFI


def violations(config: DramConfig, commands: np.ndarray) -> Iterator[Violation]:
    """Every rule that ``commands`` of one channel break, rule by rule.

    Arguments:
        config: the timings, in cycles.
        commands: rows of ``cycle``, ``command``, ``bank`` (its group in the low bits, its rank in the high ones) and
            ``row``, in order, as the controller's probe ``issued`` tells them.
    """
    if not len(commands):
        return
    kind = commands["command"]
    bank = commands["bank"].astype(np.int64)
    rank = bank // config.banks
    places = {
        "bank": bank,
        "group": rank * config.bank_groups + bank % config.bank_groups,
        "rank": rank,
        "other rank": rank,
        "channel": np.zeros(len(commands), np.int64),
    }
    for rule in _rules(config):
        firsts, seconds = (np.isin(kind, [k.value for k in kinds]) for kinds in (rule.first, rule.second))
        of = places[rule.within]
        for place in np.unique(of[firsts]):
            here = of == place
            then = ~here if rule.within == "other rank" else here
            yield from _too_early(commands, rule, np.flatnonzero(firsts & here), np.flatnonzero(seconds & then))
    yield from _late_refreshes(config, commands, rank)
    yield from _wrong_states(config, commands)


def _late_refreshes(config: DramConfig, commands, rank: np.ndarray) -> Iterator[Violation]:
    most = _most_refresh_cycles(config)
    for number in range(config.ranks):
        refreshes = commands["cycle"][(commands["command"] == REF.value) & (rank == number)].astype(np.int64)
        times = np.concatenate([[0], refreshes, [int(commands["cycle"][-1])]])
        for at in np.flatnonzero(np.diff(times) > most):
            rule = f"rank {number} had no refresh for {times[at + 1] - times[at]} cycles, at most {most} are allowed"
            yield Violation(int(times[at + 1]), REF, number * config.banks, rule, 0, 0)


def _too_early(commands, rule: _Rule, firsts: np.ndarray, seconds: np.ndarray) -> Iterator[Violation]:
    before = np.searchsorted(firsts, seconds, side="left") - rule.nth
    seconds, before = seconds[before >= 0], before[before >= 0]
    cycle = commands["cycle"].astype(np.int64)
    apart = cycle[seconds] - cycle[firsts[before]]
    for at in np.flatnonzero(apart < rule.cycles):
        yield _violation(commands, seconds[at], rule.name, int(apart[at]), rule.cycles)


def _wrong_states(config: DramConfig, commands: np.ndarray) -> Iterator[Violation]:
    kind, bank, row = commands["command"], commands["bank"], commands["row"]
    refreshes = np.flatnonzero(kind == REF.value)
    for number in range(config.channel_banks):
        mine = (bank == number) & (kind != REF.value)
        switches = np.flatnonzero(mine & ((kind == ACT.value) | (kind == PRE.value)))
        for wanted, which, rule in (
            (PRE, mine & (kind == ACT.value), "its row is open"),
            (ACT, mine & (kind == PRE.value), "it has no open row"),
            (ACT, mine & ((kind == RD.value) | (kind == WR.value)), "the row is not open"),
        ):
            asked = np.flatnonzero(which)
            last = np.searchsorted(switches, asked, side="left") - 1
            known = last >= 0
            opener = switches[np.maximum(last, 0)] if len(switches) else np.zeros(len(asked), int)
            wrong = np.where(known, kind[opener] != wanted.value, wanted is ACT)
            if "not open" in rule:
                wrong |= known & (row[opener] != row[asked])
            for at in asked[wrong]:
                yield _violation(commands, at, rule)
        if len(switches):
            of_rank = refreshes[bank[refreshes] // config.banks == number // config.banks]
            last = np.searchsorted(switches, of_rank, side="left") - 1
            for at in of_rank[(last >= 0) & (kind[switches[np.maximum(last, 0)]] == ACT.value)]:
                yield _violation(commands, at, f"bank {number} has an open row")


def _violation(commands, at, rule: str, got: int = 0, needed: int = 0) -> Violation:
    command = commands[at]
    return Violation(
        int(command["cycle"]), DramCommand(int(command["command"])), int(command["bank"]), rule, got, needed
    )


def check_commands(config: DramConfig, commands: np.ndarray) -> None:
    """Raise on the first command that breaks a rule.

    Raises:
        JedecError: one line: command, bank, cycle, rule, got, needed.
    """
    found: Iterable[Violation] = violations(config, commands)
    first = min(found, key=lambda each: each.cycle, default=None)
    if first is not None:
        raise JedecError(str(first))


def check_dram(config: DramConfig, log: EventLog) -> None:
    """Raise on the first command of a channel that breaks a rule, the channels in order.

    Raises:
        JedecError: one line, as :func:`check_commands`, and the channel where there are several.
    """
    for channel in range(config.channels):
        try:
            check_commands(config, log.select(f"dram{channel}.issued"))
        except JedecError as error:
            raise JedecError(f"channel {channel}: {error}" if config.channels > 1 else str(error)) from None
