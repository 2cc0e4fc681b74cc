"""What a DRAM controller of the documented policy does with a stream of requests, to the cycle, in plain Python.

Written from the policy that :class:`hw.mem.dram.DramController` documents and from JEDEC's tables (JESD79-4, sections
4 and 13; JESD79-5 likewise), as a second opinion: it imports nothing of the controller, keeps the history of all
commands and asks a list of minimum distances what may follow it, and keeps no state that history tells.
"""

import dataclasses
from collections.abc import Collection, Iterable
from fractions import Fraction
from typing import NamedTuple

from hw.config import DramConfig

__all__ = ["Answer", "Command", "ControllerModel", "Policy", "Request", "minimum_distances", "place"]


class Request(NamedTuple):
    """A request at the controller's port."""

    accepted: int  #: edge
    write: bool
    line: int
    tag: int


class Command(NamedTuple):
    """A command on the DRAM's bus. ``bank`` is 0 for REF, ``row`` 0 for PRE and REF."""

    cycle: int
    name: str
    bank: int = 0
    row: int = 0


class Answer(NamedTuple):
    """A read's data at the controller's port."""

    edge: int  #: the first at which it can be taken
    tag: int


class Distance(NamedTuple):
    """``second`` comes ``cycles`` or more after ``first``, where both go to one bank, one group, or the rank."""

    name: str
    first: str
    second: str
    within: str
    cycles: int
    nth: int = 1  #: of the last so many ``first``


def minimum_distances(c: DramConfig) -> list[Distance]:
    """JEDEC's table: rows of command, next command, where, and clocks between them."""
    read_ends, write_ends = c.CL + c.burst_length // 2, c.CWL + c.burst_length // 2
    return [
        Distance("tRCD", "ACT", "RD", "bank", c.tRCD),
        Distance("tRCD", "ACT", "WR", "bank", c.tRCD),
        Distance("tRAS", "ACT", "PRE", "bank", c.tRAS),
        Distance("tRC", "ACT", "ACT", "bank", c.tRAS + c.tRP),
        Distance("tRRD_S", "ACT", "ACT", "rank", c.tRRD_S),
        Distance("tRRD_L", "ACT", "ACT", "group", c.tRRD_L),
        Distance("tFAW", "ACT", "ACT", "rank", c.tFAW, nth=4),
        Distance("tRP", "PRE", "ACT", "bank", c.tRP),
        Distance("tRP", "PRE", "REF", "rank", c.tRP),
        Distance("tRTP", "RD", "PRE", "bank", c.tRTP),
        Distance("tCCD_S", "RD", "RD", "rank", c.tCCD_S),
        Distance("tCCD_L", "RD", "RD", "group", c.tCCD_L),
        # Between the two bursts lie the write's preamble and the bus's turn: two clocks in all, in DDR5 four.
        Distance("tRTW", "RD", "WR", "rank", read_ends + c.bus_turn - c.CWL),
        Distance("tWR", "WR", "PRE", "bank", write_ends + c.tWR),
        Distance("tWTR_S", "WR", "RD", "rank", write_ends + c.tWTR_S),
        Distance("tWTR_L", "WR", "RD", "group", write_ends + c.tWTR_L),
        Distance("tCCD_S", "WR", "WR", "rank", c.tCCD_S),
        Distance("tCCD_L_WR", "WR", "WR", "group", c.tCCD_L_WR),
        Distance("tRFC", "REF", "ACT", "rank", c.tRFC),
        Distance("tRFC", "REF", "REF", "rank", c.tRFC),
        Distance("tPPD", "PRE", "PRE", "rank", c.tPPD),
        *(
            Distance("command", first, second, "rank", c.command_clocks)
            for first in ("ACT", "RD", "WR")
            for second in ("ACT", "PRE", "RD", "WR", "REF")
        ),
    ]


def place(c: DramConfig, line: int) -> tuple[int, int]:
    """Bank (group in the low bits) and row of a line: ``dram.mapping`` names the fields, the lowest first."""
    sizes = {"group": c.bank_groups, "column": c.lines_per_row, "bank": c.banks_per_group, "row": c.rows}
    sizes |= {"channel": 1, "rank": 1}
    at = {}
    for name in c.mapping.split():
        line, at[name] = divmod(line, sizes[name])
    bank = at["bank"] * c.bank_groups + at["group"]
    if c.bank_hash:
        bank ^= at["row"] % c.banks
    return bank, at["row"]


class CommandBus:
    """All commands so far, and what JEDEC's table says may follow them."""

    def __init__(self, config: DramConfig):
        self.commands: list[Command] = []
        self._groups = config.bank_groups
        self._before: dict[str, list[Distance]] = {}
        for distance in minimum_distances(config):
            self._before.setdefault(distance.second, []).append(distance)
        self._cycles: dict[tuple, list[int]] = {}
        self._rows: dict[int, list[int | None]] = {}

    def _whereabouts(self, bank: int) -> dict[str, int]:
        return {"bank": bank, "group": bank % self._groups, "rank": 0}

    def issue(self, command: Command) -> None:
        """The next command, in order of time."""
        self.commands.append(command)
        for within, which in self._whereabouts(command.bank).items():
            self._cycles.setdefault((command.name, within, which), []).append(command.cycle)
        if command.name in ("ACT", "PRE"):
            self._rows.setdefault(command.bank, []).append(command.row if command.name == "ACT" else None)

    def open_row(self, bank: int) -> int | None:
        """The row of the bank's last ACT, if no PRE came after it."""
        return self._rows.get(bank, [None])[-1]

    def allows(self, cycle: int, name: str, bank: int = 0) -> bool:
        """Whether every distance from the commands so far is kept."""
        whereabouts = self._whereabouts(bank)
        for distance in self._before[name]:
            past = self._cycles.get((distance.first, distance.within, whereabouts[distance.within]), [])
            if len(past) >= distance.nth and cycle - past[-distance.nth] < distance.cycles:
                return False
        return True


@dataclasses.dataclass(frozen=True)
class Policy:
    """The documented scheduling; with anything changed, another one, to show that it makes a difference."""

    first_ready: bool = True  #: False: the oldest request of the kind served, and no other
    reads_first: bool = True  #: False: reads and writes as they come
    keeps_wanted_rows: bool = True  #: False: a row is closed for an older request, whoever waits for it
    keeps_line_order: bool = True  #: False: requests to one line overtake each other
    drain_from: Fraction = Fraction(3, 4)  #: of the queue, that writes fill
    drain_to: Fraction = Fraction(1, 4)
    drains_for_read: bool = True  #: when a read waits for a write to its line
    bypasses: int = 4  #: per place of the queue: younger requests that go before the oldest
    refresh_first: bool = True  #: False: when nothing else can go


class _Waiting(NamedTuple):
    """A request in the queue."""

    number: int  #: in order of acceptance
    write: bool
    line: int
    tag: int
    bank: int
    row: int


class ControllerModel:
    """One controller, with ports that are always ready for its answers.

    What the documentation leaves open is decided here as follows. A place in the queue that a burst frees is taken from
    the next edge on. Whether writes drain is decided on what the queue held a cycle before. Of several banks that a
    refresh, or nobody's wanting their rows, lets close, the one with the lowest number is closed first. Rows that only
    requests of the kind not served wait for may be closed: else both kinds would wait for each other. "Younger requests
    that went before the oldest" are counted from when it became the oldest.

    Arguments:
        config: geometry, timings, queue, page policy.
        controller, phy: cycles from acceptance to the queue, and of a burst beside JEDEC's timings.
        policy: the scheduling.
    """

    def __init__(self, config: DramConfig, *, controller: int = 0, phy: int = 0, policy: Policy = Policy()):
        self.config = config
        self.controller = controller
        self.phy = phy
        self.policy = policy
        self.bus = CommandBus(config)
        self.answers: list[Answer] = []
        self._queue: list[_Waiting] = []  # oldest first
        self._draining = False
        self._bypassed = 0
        self._refreshes = 0

    def run(self, requests: Iterable[Request], cycles: int) -> tuple[list[Command], list[Answer]]:
        """Commands before edge ``cycles``, and answers that can be taken before it."""
        on_their_way = list(enumerate(requests))[::-1]
        for now in range(cycles):
            room = len(self._queue) < self.config.queue
            draining = self._drains_next()
            self._schedule(now)
            self._draining = draining
            if room and on_their_way and now >= on_their_way[-1][1].accepted + self.controller:
                self._enter(*on_their_way.pop())
        return self.bus.commands, [answer for answer in self.answers if answer.edge < cycles]

    def _enter(self, number: int, request: Request) -> None:
        self._queue.append(
            _Waiting(number, request.write, request.line, request.tag, *place(self.config, request.line))
        )

    def _schedule(self, now: int) -> None:
        """At most one command."""
        due = now >= (self._refreshes + 1) * self.config.tREFI
        if due and self.policy.refresh_first:
            self._refresh(now)
        elif not (self._serve(now) or (self.config.page_policy == "closed" and self._close_unwanted(now))) and due:
            self._refresh(now)

    def _refresh(self, now: int) -> None:
        """All rows are closed, then REF."""
        if not self._close_first(now, wanted=()) and self.bus.allows(now, "REF") and not self._open_banks():
            self.bus.issue(Command(now, "REF"))
            self._refreshes += 1

    def _close_unwanted(self, now: int) -> bool:
        return self._close_first(now, wanted={request.bank for request in self._queue if self._is_hit(request)})

    def _close_first(self, now: int, wanted: Collection[int]) -> bool:
        for bank in self._open_banks():
            if bank not in wanted and self.bus.allows(now, "PRE", bank):
                self.bus.issue(Command(now, "PRE", bank))
                return True
        return False

    def _open_banks(self) -> list[int]:
        return [bank for bank in range(self.config.banks) if self.bus.open_row(bank) is not None]

    def _is_hit(self, request: _Waiting) -> bool:
        return self.bus.open_row(request.bank) == request.row

    def _must_wait(self, request: _Waiting, writes_only: bool = False) -> bool:
        """Whether an older request to the same line is there, and one of the two is a write."""
        return any(
            older.line == request.line and (older.write or (request.write and not writes_only))
            for older in self._queue
            if older.number < request.number
        )

    def _drains_next(self) -> bool:
        """Whether writes go first in the next cycle."""
        size, policy = self.config.queue, self.policy
        held = sum(request.write for request in self._queue)
        reads = [request for request in self._queue if not request.write]
        return (
            held >= policy.drain_from * size
            or (policy.drains_for_read and any(self._must_wait(read, writes_only=True) for read in reads))
            or (self._draining and held > policy.drain_to * size)
        )

    def _kind_served(self) -> list[_Waiting]:
        """The requests that may be served in this cycle."""
        if self._bypassed >= self.policy.bypasses * self.config.queue:
            return self._queue[:1]
        free = [request for request in self._queue if not (self.policy.keeps_line_order and self._must_wait(request))]
        if not self.policy.reads_first:
            return free
        reads, writes = [r for r in free if not r.write], [r for r in free if r.write]
        return writes if (self._draining and writes) or not reads else reads

    def _serve(self, now: int) -> bool:
        """The oldest whose row is open and whose time has come, else ACT or PRE for the oldest that needs it."""
        served = self._kind_served()
        if not self.policy.first_ready:
            served = served[:1]
        for request in served:
            if self._is_hit(request) and self.bus.allows(now, "WR" if request.write else "RD", request.bank):
                self._burst(now, request)
                return True
        wanted = {request.bank for request in served if self._is_hit(request)} if self.policy.keeps_wanted_rows else ()
        for request in served:
            if self.bus.open_row(request.bank) is None:
                if self.bus.allows(now, "ACT", request.bank):
                    self.bus.issue(Command(now, "ACT", request.bank, request.row))
                    return True
            elif not self._is_hit(request) and request.bank not in wanted:
                if self.bus.allows(now, "PRE", request.bank):
                    self.bus.issue(Command(now, "PRE", request.bank))
                    return True
        return False

    def _burst(self, now: int, request: _Waiting) -> None:
        c = self.config
        self.bus.issue(Command(now, "WR" if request.write else "RD", request.bank, request.row))
        if not request.write:
            self.answers.append(Answer(now + c.CL + c.burst_length // 2 + self.phy, request.tag))
        self._bypassed = 0 if request is self._queue[0] else self._bypassed + 1
        self._queue.remove(request)
