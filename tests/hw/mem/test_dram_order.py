"""DRAM controller: each command and answer at the cycle an independent model says, with many requests waiting."""

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.bus.memory import MemoryOp
from hw.config import DramConfig, load_machine
from hw.grades import most_clock_mhz
from hw.lib.time import Now, time_domain
from hw.mem.dram import DramController
from hw.mem.dram_timing import DramCommand
from tests.hw.mem.dram_model import Answer, Command, ControllerModel, Policy, Request

MACHINE = load_machine("tiny")
TINY = dataclasses.replace(MACHINE.dram, size_mib=1)
#: Four groups of two banks and a longer queue, so that all of tFAW, tRRD and tCCD bind; nothing beside JEDEC's timings.
WIDE = dataclasses.replace(
    TINY, bank_groups=4, banks_per_group=2, queue=8, tFAW=24, tRRD_L=6, CL=9, CWL=7, controller_ns=0.0, phy_ns=0.0
)
#: A long way there and back, in no whole cycles.
FAR = dataclasses.replace(WIDE, controller_ns=30.5, phy_ns=18.0)
#: The least there can be.
ONE_BANK = dataclasses.replace(TINY, bank_groups=1, banks_per_group=1, queue=2)
#: Thresholds in no whole places; refresh often; rows closed as soon as nobody wants them.
CLOSED = dataclasses.replace(WIDE, queue=6, tREFI=150, page_policy="closed", bank_hash=True)
NO_REFRESH = 65535


def grade(name: str, **changes) -> DramConfig:
    """A real grade with timings for its own clock, in little memory, refreshed more often."""
    settings = [f'dram.grade="{name}"', f"clocks.dram={int(most_clock_mhz(name))}"]
    return dataclasses.replace(load_machine("teaching", settings).dram, size_mib=1, tREFI=1200, **changes)


GRADES = {"DDR4-2400": grade("DDR4-2400"), "DDR5-4800": grade("DDR5-4800", queue=8)}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a controller was asked, and what it did in so many cycles."""

    config: DramConfig
    cycles: int
    requests: list[Request]
    commands: list[Command]
    answers: list[Answer]

    def expected(self, policy: Policy = Policy(), **changes) -> tuple[list[Command], list[Answer]]:
        """What the model does with the same requests; a policy or ``changes`` of the configuration plant an error."""
        config = dataclasses.replace(self.config, **changes)
        cycle_ns = 1000 / MACHINE.clocks.dram
        controller, phy = (math.ceil(ns / cycle_ns) for ns in (config.controller_ns, config.phy_ns))
        model = ControllerModel(config, controller=controller, phy=phy, policy=policy)
        return model.run(self.requests, self.cycles)

    def agrees(self, policy: Policy = Policy(), **changes) -> bool:
        """Whether the model says the same."""
        return (self.commands, self.answers) == self.expected(policy, **changes)

    def check(self, policy: Policy = Policy()) -> None:
        """Assert that the model says the same; tells the first difference and what came before it."""
        for did, should in zip((self.commands, self.answers), self.expected(policy), strict=True):
            for index, (one, other) in enumerate(zip(did, should, strict=False)):
                assert one == other, f"after {did[max(0, index - 6) : index]}"
            assert len(did) == len(should), (did + should)[min(len(did), len(should)) :][:1]

    def names(self) -> list[str]:
        """The commands' names, in order."""
        return [command.name for command in self.commands]


#: Makes the requests of a run, from a configuration, a source of randomness and their number: cycles to wait before the
#: request, whether it is a write, and its line.
Pattern = Callable[[DramConfig, random.Random, int], Iterator[tuple[int, bool, int]]]


def reads(config: DramConfig, rng: random.Random, count: int) -> Iterator[tuple[int, bool, int]]:
    """Consecutive lines, conflicting rows and lines anywhere, at changing rates."""
    eager, pool = 1.0, []
    for number in range(count):
        if number % 30 == 0:
            eager = rng.choice([1, 1, 0.5, 0.1])
            near = rng.randrange(config.lines)
            pool = [rng.randrange(config.lines) for _ in range(6)] + [(near + n) % config.lines for n in range(24)]
            pool += [(near + n * config.lines // config.rows) % config.lines for n in range(4)]
        yield 0 if rng.random() < eager else rng.randrange(40), False, rng.choice(pool)


def mixed(config: DramConfig, rng: random.Random, count: int) -> Iterator[tuple[int, bool, int]]:
    """The same with writes, in changing shares."""
    share = 0.0
    for number, (wait, _, line) in enumerate(reads(config, rng, count)):
        if number % 25 == 0:
            share = rng.choice([0.1, 0.3, 0.5, 0.9])
        yield wait, rng.random() < share, line


def few_lines(config: DramConfig, rng: random.Random, count: int) -> Iterator[tuple[int, bool, int]]:
    """Reads and writes of a handful of lines, so that most wait for others to their line."""
    lines = [rng.randrange(config.lines) for _ in range(4)]
    lines.append((lines[0] + config.lines // config.rows) % config.lines)
    for _ in range(count):
        yield 0 if rng.random() < 0.9 else rng.randrange(40), rng.random() < 0.4, rng.choice(lines)


def streams(config: DramConfig, rng: random.Random, count: int) -> Iterator[tuple[int, bool, int]]:
    """Reads of open rows without end, and now and then something that they hold up."""
    near = rng.randrange(config.lines)
    for number in range(count):
        if number % 70 == 69:
            near = rng.randrange(config.lines)
        if rng.random() < 0.06:
            yield 0, rng.random() < 0.5, rng.randrange(config.lines)
        else:
            yield 0, False, (near + rng.randrange(4)) % config.lines


@functools.cache
def run_of(config: DramConfig, pattern: Pattern, seed: int = 0, count: int = 120) -> Run:
    """Drive the controller with a pattern as fast as it takes it; contents are checked on the way."""
    dut = DramController(dataclasses.replace(MACHINE, dram=config))
    m = Module()
    for name in ("dram", time_domain("dram")):
        m.domains += ClockDomain(name, reset_less=True)
    m.submodules.dut = dut
    m.submodules.now = now = Now("dram")
    m.d.comb += dut.now.eq(now.now)
    simulator = Simulator(m)
    simulator.add_clock(1e-9, domain="dram")
    simulator.add_clock(1e-9, domain=time_domain("dram"))
    request, response, issued = dut.port.request, dut.port.response, dut.issued
    requests: list[Request] = []
    commands: list[Command] = []
    answers: list[Answer] = []
    contents: dict[int, int] = {}
    expected: dict[int, int] = {}
    cycle = writes_left = 0

    async def tick(ctx) -> None:
        nonlocal cycle, writes_left
        if ctx.get(issued.valid):
            name = DramCommand(ctx.get(issued.fields["command"])).name
            bank = ctx.get(issued.fields["bank"]) if name != "REF" else 0
            row = ctx.get(issued.fields["row"]) if name in ("ACT", "RD", "WR") else 0
            commands.append(Command(cycle, name, bank, row))
            writes_left -= name == "WR"
        if ctx.get(response.valid):
            tag = ctx.get(response.payload.tag)
            assert ctx.get(response.payload.data) == expected.pop(tag)
            answers.append(Answer(cycle, tag))
        await ctx.tick("dram")
        cycle += 1

    async def testbench(ctx):
        nonlocal writes_left
        ctx.set(response.ready, 1)
        for number, (wait, write, line) in enumerate(pattern(config, random.Random(seed), count)):
            for _ in range(wait):
                await tick(ctx)
            op, tag = MemoryOp.WRITE if write else MemoryOp.READ, number % 256
            ctx.set(request.payload, {"op": op, "line": line, "data": number + 1, "tag": tag})
            ctx.set(request.valid, 1)
            while not ctx.get(request.ready):
                await tick(ctx)
            requests.append(Request(cycle, write, line, tag))
            if write:
                contents[line] = number + 1
                writes_left += 1
            else:
                expected[tag] = contents.get(line, 0)
            await tick(ctx)
            ctx.set(request.valid, 0)
        while expected or writes_left:
            assert cycle < 200 * count, "some are never served"
            await tick(ctx)
        for _ in range(150):
            await tick(ctx)

    simulator.add_testbench(testbench)
    simulator.run()
    return Run(config, cycle, requests, commands, answers)


@pytest.mark.parametrize("policy", ["open", "closed"])
@pytest.mark.parametrize("mapping", ["group column bank row", "column group row bank", "row bank column group"])
@pytest.mark.parametrize("hashed, tREFI", [(False, NO_REFRESH), (True, 170)], ids=["plain", "hashed, refreshed"])
def test_reads(policy, mapping, hashed, tREFI):
    run = run_of(dataclasses.replace(WIDE, page_policy=policy, mapping=mapping, bank_hash=hashed, tREFI=tREFI), reads)
    run.check()
    assert ("REF" in run.names()) == (tREFI != NO_REFRESH)


CONFIGS = {"tiny": TINY, "far": FAR, "one bank": ONE_BANK, "closed": CLOSED, **GRADES}


@pytest.mark.parametrize("pattern", [reads, mixed])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_reads_and_writes(config, pattern):
    run_of(config, pattern).check()


#: A long run in which every rule shows, each timing apart from those that it must not be shorter than.
LONG = (dataclasses.replace(WIDE, tCCD_L_WR=7), mixed, 3, 300)


def test_long_mix():
    run_of(*LONG).check()


@pytest.mark.parametrize("config", [TINY, WIDE], ids=["tiny", "wide"])
def test_starving(config):
    """The oldest goes alone when enough others have gone before it, and at the very burst that is documented."""
    run = run_of(config, streams, 5, 200)
    run.check()
    assert not run.agrees(Policy(bypasses=5))
    assert not run.agrees(Policy(bypasses=10**6))


TIMINGS = "tRCD tRP tRAS tRFC tFAW tRRD_S tRRD_L tCCD_S tCCD_L tCCD_L_WR tWR tWTR_S tWTR_L tRTP CL CWL".split()


@pytest.mark.parametrize("name", TIMINGS)
def test_a_longer_timing_differs(name):
    """The comparison sees a single cycle of each timing."""
    run = run_of(*LONG)
    assert not run.agrees(**{name: getattr(run.config, name) + 1})


@pytest.mark.parametrize(
    "policy",
    [
        Policy(first_ready=False),
        Policy(reads_first=False),
        Policy(keeps_wanted_rows=False),
        Policy(keeps_line_order=False),
        Policy(drain_from=Fraction(5, 8)),
        Policy(drain_from=Fraction(7, 8)),
        Policy(drain_to=Fraction(1, 8)),
        Policy(drain_to=Fraction(3, 8)),
        Policy(drains_for_read=False),
        Policy(refresh_first=False),
    ],
    ids=lambda policy: ", ".join(
        f"{field.name}={getattr(policy, field.name)}"
        for field in dataclasses.fields(Policy)
        if getattr(policy, field.name) != field.default
    ),
)
def test_another_policy_differs(policy):
    """First come, first served is not what it does, nor anything else that leaves out one rule or shifts a bound."""
    assert not run_of(*LONG).agrees(policy)


@pytest.mark.parametrize(
    "changes",
    [
        {"page_policy": "closed"},
        {"bank_hash": True},
        {"mapping": "column group row bank"},
        {"queue": 9},
        {"phy_ns": 1.0},
        {"controller_ns": 1.0},
        {"tREFI": 999},
    ],
    ids=str,
)
def test_another_configuration_differs(changes):
    assert not run_of(*LONG).agrees(**changes)


@pytest.mark.parametrize("config", [TINY, WIDE, CLOSED], ids=["tiny", "wide", "closed"])
def test_few_lines(config):
    """Reads and writes to one line keep their order, and reads that wait for writes make them drain."""
    run_of(config, few_lines).check()


def test_write_after_read_with_a_long_tCCD_L():
    run_of(dataclasses.replace(WIDE, CL=7, CWL=7, tCCD_L=12, tCCD_L_WR=14), mixed, count=40).check()
