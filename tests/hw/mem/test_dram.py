"""DRAM controller: contents and order under random traffic, JEDEC's rules, latency to the cycle, bandwidth, refresh."""

import dataclasses
import functools
import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.bus.memory import MemoryOp
from hw.config import load_machine
from hw.grades import grade_names, most_clock_mhz
from hw.lib.time import Now, time_domain
from hw.mem.dram import DramController
from hw.mem.dram_timing import DramCommand
from sim.check.jedec import JedecError, check_commands, violations

MACHINE = load_machine("tiny")
TINY = dataclasses.replace(MACHINE.dram, size_mib=1)
#: Four groups of two banks and a longer queue, so that all of tFAW, tRRD and tCCD bind; nothing beside JEDEC's timings.
WIDE = dataclasses.replace(
    TINY, bank_groups=4, banks_per_group=2, queue=8, tFAW=24, tRRD_L=6, CL=9, CWL=7, controller_ns=0.0, phy_ns=0.0
)
#: A long way there and back, in no whole cycles of 1.25 ns.
FAR = dataclasses.replace(WIDE, controller_ns=30.5, phy_ns=18.0)
#: Two ranks that share the buses, with time between them to see.
RANKS = dataclasses.replace(WIDE, ranks=2, mapping="group column rank bank row", tRTRS=3)
#: Commands of two clocks, bursts of 8, and what else DDR5 has that DDR4 has not.
LIKE_DDR5 = dataclasses.replace(
    WIDE, burst_length=16, tCCD_S=8, tCCD_L=8, tCCD_L_WR=16, command_clocks=2, bus_turn=4, tPPD=2, tRRD_S=8, tRRD_L=8
)
#: The least there can be.
ONE_BANK = dataclasses.replace(TINY, bank_groups=1, banks_per_group=1, queue=2)


def ways(config) -> tuple[int, int]:
    """Cycles to the queue, and of a burst beside JEDEC's: nanoseconds rounded up to cycles of 1.25 ns."""
    assert MACHINE.clocks.dram == 800
    return math.ceil(config.controller_ns / 1.25), math.ceil(config.phy_ns / 1.25)


def place(config, line: int) -> tuple[int, int]:
    """Bank number and row of a line."""
    line, group = divmod(line, config.bank_groups)
    line //= config.lines_per_row
    row, bank = divmod(line, config.banks_per_group)
    return group + config.bank_groups * bank, row


def line_at(config, *, group=0, column=0, bank=0, row=0) -> int:
    """The inverse of :func:`place`."""
    return ((row * config.banks_per_group + bank) * config.lines_per_row + column) * config.bank_groups + group


COMMANDS = np.dtype([("cycle", "<u8"), ("command", "<u8"), ("bank", "<u8"), ("row", "<u8")])


def commands(log) -> np.ndarray:
    """Cycle, command, bank and row, as the event log has them."""
    return np.array([(now, command.value, bank, row) for now, command, bank, row in log], COMMANDS)


class Bench:
    """A controller, its time, and a record of every command, checked when the run is over."""

    def __init__(self, config):
        self.config = config
        self.dut = DramController(dataclasses.replace(MACHINE, dram=config))
        self.log: list[tuple] = []
        self.now = 0
        m = Module()
        for name in ("dram", time_domain("dram")):
            m.domains += ClockDomain(name, reset_less=True)
        m.submodules.dut = self.dut
        m.submodules.now = now = Now("dram")
        m.d.comb += self.dut.now.eq(now.now)
        self.simulator = Simulator(m)
        self.simulator.add_clock(1e-9, domain="dram")
        self.simulator.add_clock(1e-9, domain=time_domain("dram"))

    async def tick(self, ctx) -> None:
        probe = self.dut.issued
        if ctx.get(probe.valid):
            command = DramCommand(ctx.get(probe.fields["command"]))
            bank, row = ctx.get(probe.fields["bank"]), ctx.get(probe.fields["row"])
            self.log.append((self.now, command, bank, row))
        await ctx.tick("dram")
        self.now += 1

    def request(self, ctx, op, line, *, data=0, tag=0) -> None:
        ctx.set(self.dut.port.request.payload, {"op": op, "line": line, "data": data, "tag": tag})
        ctx.set(self.dut.port.request.valid, 1)

    async def send(self, ctx, op, line, *, data=0, tag=0) -> int:
        """Hand over a request; returns the edge that accepts it."""
        self.request(ctx, op, line, data=data, tag=tag)
        while not ctx.get(self.dut.port.request.ready):
            await self.tick(ctx)
        await self.tick(ctx)
        ctx.set(self.dut.port.request.valid, 0)
        return self.now - 1

    async def answer(self, ctx) -> int:
        """Wait for an answer; returns the first edge that takes it."""
        ctx.set(self.dut.port.response.ready, 1)
        while not ctx.get(self.dut.port.response.valid):
            await self.tick(ctx)
        await self.tick(ctx)
        return self.now - 1

    async def settle(self, ctx) -> None:
        dut = self.dut
        busy = dut.way_in.timer.armed | dut.queue.valid[0] | dut.data.burst_end.armed | ~dut.quiet
        while ctx.get(busy):
            await self.tick(ctx)

    def run(self, testbench) -> None:
        self.simulator.add_testbench(testbench)
        self.simulator.run()
        check_commands(self.config, self.commands())

    def commands(self) -> np.ndarray:
        """The commands so far, as the event log has them."""
        return commands(self.log)


@pytest.mark.parametrize(
    "config",
    [TINY, WIDE, FAR, ONE_BANK, RANKS, LIKE_DDR5],
    ids=["tiny", "wide", "far", "one bank", "ranks", "like DDR5"],
)
@pytest.mark.parametrize("seed", range(2))
def test_random_traffic(config, seed):
    """Every read sees the writes to its line accepted before it; every command obeys JEDEC's rules."""
    run_random_traffic(Bench(config), seed)


CONSTRAINTS = "tRCD tRP tRAS tRFC tFAW tRRD_S tRRD_L tCCD_S tCCD_L tCCD_L_WR tWR tWTR_S tWTR_L tRTP CL CWL".split()


@functools.cache
def mixed_commands(config) -> np.ndarray:
    bench = Bench(config)
    run_random_traffic(bench, 0)
    return bench.commands()


#: Names of the rules for what are no timings of JEDEC's.
RULE = {
    "CL": "the end of the read's burst",
    "bus_turn": "the end of the read's burst",
    "CWL": "tWR",
    "command_clocks": "the command bus",
}


@pytest.mark.parametrize(
    "config, name",
    [
        *((WIDE, name) for name in (*CONSTRAINTS, "bus_turn")),
        *((RANKS, name) for name in ("tRTRS", "tRFC", "tFAW", "tRRD_S", "tCCD_S", "tCCD_L", "bus_turn")),
        *((LIKE_DDR5, name) for name in ("tPPD", "command_clocks", "tCCD_L_WR", "bus_turn")),
    ],
)
def test_every_constraint_binds(config, name):
    """With one parameter of the check longer by a cycle it objects: the controller wastes none, the check sees."""
    of_geometry = {each: getattr(config, each) for each in ("banks", "channel_banks")}
    longer = SimpleNamespace(**dataclasses.asdict(config) | of_geometry | {name: getattr(config, name) + 1})
    found = {violation.rule for violation in violations(longer, mixed_commands(config))}
    assert RULE.get(name, name) in found
    if config is WIDE and name not in ("tRAS", "tRP", "CWL"):
        assert len(found) == 1


ACT, PRE, RD, WR, REF = DramCommand.ACT, DramCommand.PRE, DramCommand.RD, DramCommand.WR, DramCommand.REF


@pytest.mark.parametrize(
    "log, message",
    [
        ([(0, ACT, 1, 7), (100, ACT, 1, 8)], "DRAM ACT to bank 1 at cycle 100: its row is open"),
        ([(0, ACT, 1, 7), (100, RD, 1, 8)], "DRAM RD to bank 1 at cycle 100: the row is not open"),
        ([(0, WR, 1, 8)], "DRAM WR to bank 1 at cycle 0: the row is not open"),
        ([(0, PRE, 2, 0)], "DRAM PRE to bank 2 at cycle 0: it has no open row"),
        ([(0, ACT, 1, 7), (100, REF, 0, 0)], "DRAM REF to bank 0 at cycle 100: bank 1 has an open row"),
        ([(0, REF, 0, 0), (29, ACT, 3, 0)], "DRAM ACT to bank 3 at cycle 29: tRFC, 29 cycles after"),
        ([(0, ACT, 0, 1), (0, ACT, 1, 1)], "DRAM ACT to bank 1 at cycle 0: (the command bus|tRRD_S), 0 cycles after"),
        (
            [(1000, REF, 0, 0), (10001, REF, 0, 0)],
            "DRAM REF to bank 0 at cycle 10001: rank 0 had no refresh for 9001 cycles, at most 9000 are allowed",
        ),
        (
            [(0, ACT, 0, 1), (4, RD, 0, 1)],
            "DRAM RD to bank 0 at cycle 4: tRCD, 4 cycles after",
        ),
    ],
)
def test_a_planted_violation_is_found(log, message):
    with pytest.raises(JedecError, match=message):
        check_commands(WIDE, commands(log))


def run_random_traffic(bench: Bench, seed: int) -> None:
    """Drive a mix of reads and writes to few lines, at changing rates; check contents, commands and counters."""
    rng = random.Random(seed)
    config, dut = bench.config, bench.dut
    lines = [rng.randrange(config.lines) for _ in range(6)]
    groups = range(min(2, config.bank_groups))
    lines += [line_at(config, column=c, row=r, group=g) for c in (0, 1) for r in (0, 1) for g in groups]
    memory: dict[int, int] = {}
    expected: dict[int, int] = {}
    accepted, answered = Counter(), 0

    async def testbench(ctx):
        nonlocal answered
        free_tags = list(range(256))
        eager = write_share = take = 0.5
        pending = None
        while bench.now < 2100 or expected or pending:
            if bench.now % 150 == 0:
                eager, take = rng.choice([0.05, 0.5, 1]), rng.choice([0.05, 0.5, 1])
                write_share = rng.choice([0, 0.2, 0.5, 0.9])
            if pending is None and free_tags and bench.now < 2100 and rng.random() < eager:
                op = MemoryOp.WRITE if rng.random() < write_share else MemoryOp.READ
                pending = (op, rng.choice(lines), rng.getrandbits(512), free_tags.pop(0))
                bench.request(ctx, pending[0], pending[1], data=pending[2], tag=pending[3])
            ctx.set(dut.port.response.ready, rng.random() < take)
            if ctx.get(dut.port.request.valid & dut.port.request.ready):
                op, line, data, tag = pending
                accepted[op] += 1
                if op == MemoryOp.WRITE:
                    memory[line] = data
                    free_tags.append(tag)
                else:
                    expected[tag] = memory.get(line, 0)
                pending = None
            if ctx.get(dut.port.response.valid & dut.port.response.ready):
                tag = ctx.get(dut.port.response.payload.tag)
                assert ctx.get(dut.port.response.payload.data) == expected.pop(tag)
                free_tags.append(tag)
                answered += 1
            await bench.tick(ctx)
            if pending is None:
                ctx.set(dut.port.request.valid, 0)
        await bench.settle(ctx)
        counters = {name: ctx.get(getattr(dut, name).value) for name in ("reads", "writes", "activates", "precharges")}
        served = sum(ctx.get(getattr(dut, f"row_{name}").value) for name in ("hits", "misses", "conflicts"))
        assert served == sum(accepted.values())
        assert counters["reads"] == answered == accepted[MemoryOp.READ]
        assert counters["writes"] == accepted[MemoryOp.WRITE]
        seen = Counter(command.name for _, command, *_ in bench.log)
        assert list(counters.values()) == [seen["RD"], seen["WR"], seen["ACT"], seen["PRE"]]
        assert ctx.get(dut.refreshes.value) == seen["REF"] == bench.now // (config.tREFI // config.ranks)
        assert ctx.get(dut.out_of_range.value) == 0

    bench.run(testbench)
    assert answered > 30 and accepted[MemoryOp.WRITE] > 30


GRADES = [
    dataclasses.replace(
        load_machine("teaching", [f'dram.grade="{grade}"', f"clocks.dram={int(most_clock_mhz(grade))}"]).dram,
        controller_ns=0.0,
        phy_ns=0.0,
        tREFI=65535,
    )
    for grade in grade_names()
]


@pytest.mark.parametrize("config", [TINY, WIDE, FAR, *GRADES], ids=["tiny", "wide", "far", *grade_names()])
def test_idle_read_latency(config):
    """Answer not there at t - 1, there at t: closed bank, open row, other row open."""
    bench = Bench(config)
    burst = 8 if config.grade.startswith("DDR5") else 4
    there, back = ways(config)

    async def read(ctx, latency, **where):
        accepted = await bench.send(ctx, MemoryOp.READ, line_at(config, **where))
        assert await bench.answer(ctx) - accepted == there + latency + back
        for _ in range(config.tRAS):
            await bench.tick(ctx)

    async def testbench(ctx):
        await read(ctx, 1 + config.tRCD + config.CL + burst, row=3)
        await read(ctx, 1 + config.CL + burst, row=3, column=5)
        await read(ctx, 1 + config.tRP + config.tRCD + config.CL + burst, row=4)
        await read(ctx, 1 + config.tRCD + config.CL + burst, row=9, group=1)
        assert [ctx.get(counter.value) for counter in (bench.dut.row_hits, bench.dut.row_misses)] == [1, 2]
        assert ctx.get(bench.dut.row_conflicts.value) == 1

    bench.run(testbench)


def test_placement():
    """Each line is opened where the documented mapping puts it: group lowest, then column, bank, row."""
    bench = Bench(WIDE)
    rng = random.Random(0)

    async def testbench(ctx):
        for line in (0, 1, 5, WIDE.lines - 1, *(rng.randrange(WIDE.lines) for _ in range(12))):
            await bench.send(ctx, MemoryOp.READ, line)
            await bench.answer(ctx)
            bank, row = place(WIDE, line)
            assert [e for e in bench.log if e[1] == ACT and e[2] == bank][-1][3] == row
            assert bench.log[-1][1:] == (DramCommand.RD, bank, row)

    bench.run(testbench)


def test_conflict_waits_for_tRAS():
    """A row just opened is closed tRAS after its ACT and no earlier, though its read was done long before."""
    config = dataclasses.replace(TINY, tRAS=40)
    bench = Bench(config)

    async def testbench(ctx):
        await bench.send(ctx, MemoryOp.READ, line_at(config, row=1))
        await bench.send(ctx, MemoryOp.READ, line_at(config, row=2), tag=1)
        await bench.answer(ctx)
        await bench.answer(ctx)
        (opened, *_), (closed, *_) = (
            next(e for e in bench.log if e[1] == c) for c in (DramCommand.ACT, DramCommand.PRE)
        )
        assert closed - opened == 40

    bench.run(testbench)


def test_write_to_read():
    """A read of the line just written: CWL + BURST + tWTR_L after the WR, and it sees the data."""
    bench = Bench(TINY)

    async def testbench(ctx):
        line = line_at(TINY, row=2, column=3)
        await bench.send(ctx, MemoryOp.WRITE, line, data=0xC0FFEE << 480)
        await bench.send(ctx, MemoryOp.READ, line)
        ctx.set(bench.dut.port.response.ready, 0)
        while not ctx.get(bench.dut.port.response.valid):
            await bench.tick(ctx)
        assert ctx.get(bench.dut.port.response.payload.data) == 0xC0FFEE << 480
        times = {command: now for now, command, *_ in bench.log}
        assert times[DramCommand.RD] - times[DramCommand.WR] == TINY.CWL + 4 + TINY.tWTR_L
        assert bench.now - times[DramCommand.RD] == TINY.CL + 4 + ways(TINY)[1]

    bench.run(testbench)


@pytest.mark.parametrize("config", [WIDE, FAR], ids=["wide", "far"])
@pytest.mark.parametrize("op", [MemoryOp.READ, MemoryOp.WRITE])
def test_stream_fills_the_bus(op, config):
    """Consecutive lines: one burst per tCCD_S, all but the first of each row a hit, however long the way."""
    config = dataclasses.replace(config, tREFI=65535)
    bench = Bench(config)
    count = 64

    async def testbench(ctx):
        ctx.set(bench.dut.port.response.ready, 1)
        for line in range(count):
            await bench.send(ctx, op, line, tag=line)
        await bench.settle(ctx)
        bursts = [now for now, command, *_ in bench.log if command in (DramCommand.RD, DramCommand.WR)]
        assert len(bursts) == count
        steady = bursts[8:]
        assert steady[-1] - steady[0] <= (len(steady) - 1) * config.tCCD_S * 1.05

    bench.run(testbench)


@pytest.mark.parametrize("config", GRADES, ids=grade_names())
def test_streams_reach_the_peak(config):
    """Reads of consecutive lines, over several rows: at least 90 % of a line per burst."""
    bench = Bench(config)
    count = 3 * config.lines_per_row

    async def testbench(ctx):
        ctx.set(bench.dut.port.response.ready, 1)
        for line in range(count):
            await bench.send(ctx, MemoryOp.READ, line, tag=line % 256)
        await bench.settle(ctx)
        bursts = [now for now, command, *_ in bench.log if command == RD]
        assert len(bursts) == count
        assert (count - 1) * config.burst_length // 2 >= 0.9 * (bursts[-1] - bursts[0])
        reads, cycles, depth = (ctx.get(getattr(bench.dut, n).value) for n in ("reads", "read_cycles", "queue_cycles"))
        assert reads == count and config.CL < cycles / reads < config.CL + 20 * config.queue
        assert depth / bench.now <= config.queue

    bench.run(testbench)


class OneReadAtATime:
    """When a read is answered that comes when all before it have been: the state of the banks, in plain Python."""

    def __init__(self, config):
        self.c = config
        self.row: dict[int, int] = {}
        self.activated: dict[int, int] = {}
        self.recovered: dict[int, int] = {}  # earliest PRE
        self.precharged: dict[int, int] = {}
        self.activates: list[tuple[int, int]] = []  # edge and group
        self.reads: list[tuple[int, int]] = []

    def read(self, accepted: int, bank: int, row: int) -> int:
        c, group = self.c, bank % self.c.bank_groups
        if c.page_policy == "closed":
            for other in [b for b in self.row if self.recovered[b] <= accepted]:
                self.precharged[other] = self.recovered[other]
                del self.row[other]
        at = accepted + 1
        if self.row.get(bank, row) != row:
            self.precharged[bank] = max(at, self.recovered[bank])
            del self.row[bank]
            at = self.precharged[bank] + 1
        if bank not in self.row:
            at = max(at, self.precharged.get(bank, -c.tRP) + c.tRP)
            for when, of in self.activates:
                at = max(at, when + (c.tRRD_L if of == group else c.tRRD_S))
            if len(self.activates) >= 4:
                at = max(at, self.activates[-4][0] + c.tFAW)
            self.activates.append((at, group))
            self.row[bank], self.activated[bank] = row, at
            at += c.tRCD
        for when, of in self.reads:
            at = max(at, when + (c.tCCD_L if of == group else c.tCCD_S))
        self.reads.append((at, group))
        self.recovered[bank] = max(self.activated[bank] + c.tRAS, at + c.tRTP)
        return at + c.CL + c.burst_length // 2


@pytest.mark.parametrize("policy", ["open", "closed"])
@pytest.mark.parametrize("mapping", ["group column bank row", "column group row bank"])
@pytest.mark.parametrize("seed", range(3))
def test_random_reads_take_what_the_banks_say(policy, mapping, seed):
    """To the cycle, one read after the other, at random distances."""
    config = dataclasses.replace(WIDE, page_policy=policy, mapping=mapping, tREFI=65535, bank_hash=seed == 2)
    bench, model, rng = Bench(config), OneReadAtATime(config), random.Random(seed)
    lines = [rng.randrange(config.lines) for _ in range(12)]

    async def testbench(ctx):
        for _ in range(80):
            accepted = await bench.send(ctx, MemoryOp.READ, rng.choice(lines))
            answered = await bench.answer(ctx)
            _, _, bank, row = next(e for e in reversed(bench.log) if e[1] == RD)
            assert answered == model.read(accepted, bank, row)
            for _ in range(rng.choice([0, 0, 1, 5, 30])):
                await bench.tick(ctx)

    bench.run(testbench)


@pytest.mark.parametrize("mapping, hashed", [("column group row bank", False), ("group column bank row", True)])
def test_mappings_put_every_line_in_a_place_of_its_own(mapping, hashed):
    """Where the order of fields and the hash say; contents stay apart."""
    config = dataclasses.replace(WIDE, mapping=mapping, bank_hash=hashed)
    bench, rng = Bench(config), random.Random(1)
    lines = rng.sample(range(config.lines), 12)

    async def testbench(ctx):
        for line in lines:
            await bench.send(ctx, MemoryOp.WRITE, line, data=line + 1)
        for line in lines:
            await bench.send(ctx, MemoryOp.READ, line)
            ctx.set(bench.dut.port.response.ready, 0)
            while not ctx.get(bench.dut.port.response.valid):
                await bench.tick(ctx)
            assert ctx.get(bench.dut.port.response.payload.data) == line + 1
            await bench.answer(ctx)
            _, _, bank, row = next(e for e in reversed(bench.log) if e[1] == RD)
            if mapping.startswith("column"):
                at = line // config.lines_per_row
                group, at = at % config.bank_groups, at // config.bank_groups
                assert (bank, row) == (group + config.bank_groups * (at // config.rows), at % config.rows)
            else:
                unhashed, where = place(config, line)
                assert (bank, row) == (unhashed ^ where % config.banks, where)

    bench.run(testbench)


def test_nobody_starves():
    """A write and a read of another row, behind an endless stream of hits, are served within the bound."""
    config = dataclasses.replace(TINY, tREFI=65535)
    bench = Bench(config)

    async def testbench(ctx):
        ctx.set(bench.dut.port.response.ready, 1)
        await bench.send(ctx, MemoryOp.READ, line_at(config, row=0))
        other = [MemoryOp.WRITE, MemoryOp.READ]
        for op in other:
            await bench.send(ctx, op, line_at(config, row=7, column=op == MemoryOp.READ))
        for column in range(3 * bench.dut.bypass_limit):
            await bench.send(ctx, MemoryOp.READ, line_at(config, column=column % config.lines_per_row))
        bursts = [(command, row) for _, command, _, row in bench.log if command in (DramCommand.RD, DramCommand.WR)]
        limit = bench.dut.bypass_limit
        assert (DramCommand.WR, 7) in bursts[: 2 * limit + 4]
        assert (DramCommand.RD, 7) in bursts[: 2 * limit + 4]

    bench.run(testbench)


def test_refresh_when_idle():
    """Quiet until the deadline, REF exactly at it when all rows are closed; an ACT waits for tRFC."""
    bench = Bench(TINY)
    dut = bench.dut

    async def testbench(ctx):
        assert ctx.get(dut.refresh_timer.armed)
        while bench.now < TINY.tREFI:
            assert ctx.get(dut.quiet)
            assert ctx.get(dut.refresh_timer.deadline) == TINY.tREFI
            await bench.tick(ctx)
        assert not ctx.get(dut.quiet)
        await bench.tick(ctx)
        assert bench.log == [(TINY.tREFI, DramCommand.REF, 0, 0)]
        assert ctx.get(dut.quiet)
        assert ctx.get(dut.refresh_timer.deadline) == 2 * TINY.tREFI
        await bench.send(ctx, MemoryOp.READ, 0)
        await bench.answer(ctx)
        assert bench.log[1][:2] == (TINY.tREFI + TINY.tRFC, DramCommand.ACT)

    bench.run(testbench)


def test_ranks_are_refreshed_in_turn():
    """Each every tREFI, half of it apart; while one is refreshed the other is read, with its row still open."""
    bench = Bench(RANKS)
    half, other = RANKS.tREFI // 2, RANKS.banks

    async def testbench(ctx):
        line = line_of_rank(1, row=3)
        while bench.now < half - 60:
            await bench.tick(ctx)
        await bench.send(ctx, MemoryOp.READ, line)
        await bench.answer(ctx)
        while bench.now < half + 1:
            await bench.tick(ctx)
        await bench.send(ctx, MemoryOp.READ, line)
        await bench.answer(ctx)
        assert bench.now < half + RANKS.tRFC
        assert [(command, bank) for _, command, bank, _ in bench.log] == [
            (ACT, other), (RD, other), (REF, 0), (RD, other),
        ]  # fmt: skip
        while bench.now < 4 * half + 40:
            await bench.tick(ctx)
        refreshes = [(now, bank) for now, command, bank, _ in bench.log if command == REF]
        assert [bank for _, bank in refreshes] == [0, other, 0, other]
        assert [now // half for now, _ in refreshes] == [1, 2, 3, 4]

    bench.run(testbench)


def line_of_rank(rank: int, *, row: int) -> int:
    """A line of group 0, bank 0, column 0 of ``RANKS``."""
    return ((row * RANKS.banks_per_group) * RANKS.ranks + rank) * RANKS.lines_per_row * RANKS.bank_groups


def test_out_of_range_is_counted():
    bench = Bench(TINY)

    async def testbench(ctx):
        await bench.send(ctx, MemoryOp.READ, TINY.lines - 1)
        await bench.answer(ctx)
        assert ctx.get(bench.dut.out_of_range.value) == 0
        await bench.send(ctx, MemoryOp.READ, TINY.lines)
        await bench.answer(ctx)
        assert ctx.get(bench.dut.out_of_range.value) == 1

    bench.run(testbench)


def test_commands_wait_for_the_way():
    """A request accepted at t: no command at t + controller, ACT one later; quiet until then, the timer tells."""
    bench = Bench(FAR)
    dut = bench.dut
    there, _ = ways(FAR)

    async def testbench(ctx):
        for row, op in enumerate((MemoryOp.READ, MemoryOp.WRITE)):
            accepted = await bench.send(ctx, op, line_at(FAR, group=row, row=row))
            seen = len(bench.log)
            while bench.now < accepted + there:
                assert ctx.get(dut.way_in.timer.armed) and ctx.get(dut.way_in.timer.deadline) == accepted + there
                assert ctx.get(dut.quiet)
                await bench.tick(ctx)
            assert not ctx.get(dut.quiet)
            await bench.tick(ctx)
            assert len(bench.log) == seen
            await bench.tick(ctx)
            assert bench.log[seen][:2] == (accepted + there + 1, DramCommand.ACT)
            ctx.set(dut.port.response.ready, 1)
            await bench.settle(ctx)

    bench.run(testbench)


def test_burst_of_requests_is_spread_by_nothing():
    """Requests that come one per cycle go into the queue one per cycle, as many as the way holds."""
    bench = Bench(dataclasses.replace(FAR, queue=16))
    dut = bench.dut
    there, _ = ways(FAR)
    depth = dut.way_in.depth
    assert depth >= there / FAR.tCCD_S

    async def testbench(ctx):
        accepted = [await bench.send(ctx, MemoryOp.READ, line_at(FAR, column=n % 8), tag=n) for n in range(depth)]
        assert accepted == list(range(accepted[0], accepted[0] + depth))
        bench.request(ctx, MemoryOp.READ, 0, tag=depth)
        for number, edge in enumerate(accepted):
            while bench.now < edge + there:
                assert not ctx.get(dut.queue.request.valid)
                assert not ctx.get(dut.port.request.ready) or number
                await bench.tick(ctx)
            assert ctx.get(dut.queue.request.valid & dut.queue.request.ready)
            assert ctx.get(dut.queue.request.payload.tag) == number
            await bench.tick(ctx)

    bench.run(testbench)
