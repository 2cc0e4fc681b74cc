"""The core's API, contexts and the dispatcher."""

import asyncio

import pytest

from hw.memory_map import BAR0_BASE
from hw.nic.registers import REG
from sw.core import AtomicFunction, Context, Core, Dispatcher, Mode, Record, function
from sw.costs import Cost
from sw.port import WakeKind
from tests.sw.functional_machine import FunctionalMachine

COSTS = {
    name: Cost(cycles=cycles, uops=cycles, text_bytes=0, source="test", kind="chosen", low=0, high=9999)
    for name, cycles in (("outer", 10), ("inner", 20), ("huge", 9999))
}


class Bench:
    """One core and what runs on it."""

    def __init__(self, core_class=Core):
        self.machine = FunctionalMachine(cores=1)
        self.record = Record()
        self.core = core_class(0, self.machine, self.record, COSTS)
        self.dispatcher = Dispatcher(self.machine, [self.core], self.record)

    def run(self, code, mode=Mode.USER):
        self.dispatcher.start(self.core, self.core.new_context(code, mode))
        assert asyncio.run(self.dispatcher.run()) is WakeKind.IDLE
        return self


@pytest.mark.parametrize("size", [1, 2, 4, 8, 9, 63, 64, 65, 200])
@pytest.mark.parametrize("offset", [0, 1, 57, 60, 63])
def test_loads_and_stores_of_any_size_at_any_place(size, offset):
    bench = Bench()
    data = bytes(range(7, 7 + size % 200))
    address = 4096 + offset
    seen = []

    async def code(core):
        core.store(address, data if size > 8 else int.from_bytes(data, "little"), size)
        seen.append(await core.load(address, size))
        seen.append(await core.load_bytes(address, size))
        seen.append(await core.load_bytes(address, 0))

    data = data.ljust(size, b"\x5a")
    bench.run(code(bench.core))
    assert seen == [int.from_bytes(data, "little") if size <= 8 else data, data, b""]
    assert bench.machine.memory[address - 1] == 0 and bench.machine.memory[address + size] == 0


def test_overlapping_loads_come_back_to_whom_they_belong():
    bench = Bench()
    seen = []

    async def code(core):
        for i in range(4):
            core.store(4096 + 64 * i, i + 1, 8)
        first = core.load_begin(4096, 8)
        second = core.load_begin(4160, 8)
        seen.append(await core.load(4224, 8))
        seen.append(await core.result(second))
        seen.append(await core.result(first))
        seen.extend(await core.load_all((4288, 8), (4096, 8)))
        core.prefetch(4096)
        core.touch(4096, 64)
        await core.fence()

    bench.run(code(bench.core))
    assert seen == [3, 2, 1, 4, 1]


def test_reading_and_writing_in_one_step():
    bench = Bench()
    seen = []

    async def code(core):
        core.store(4096, 0x1_0000_00FF, 8)
        seen.append(await core.atomic(4096, 4, AtomicFunction.ADD, 1))
        seen.append(await core.atomic(4096, 8, AtomicFunction.COMPARE_EXCHANGE, 9, 0x1_0000_0100))
        seen.append(await core.atomic(4096, 8, AtomicFunction.COMPARE_EXCHANGE, 7, 0x1_0000_0100))
        seen.append(await core.load_now(4096, 8))

    bench.run(code(bench.core))
    assert seen == [0xFF, 0x1_0000_0100, 9, 9]


def test_polling_ends_with_a_change_or_gives_up():
    bench = Bench()
    seen = []

    async def code(core):
        core.store(4096, 5, 4)
        seen.append((await core.poll(4096, 4, 5, 100, 10), bench.machine.tick))
        seen.append((await core.poll(4096, 4, b"\0\0\0\0", 100, 10), bench.machine.tick))

    bench.run(code(bench.core))
    assert [value for value, _ in seen] == [5, 5]
    assert seen[0][1] >= 100 and seen[1][1] <= seen[0][1] + 2


def test_writing_around_the_caches_and_fences():
    bench = Bench()

    async def code(core):
        core.store_nt(4090, bytes(range(100)), 100)
        core.clflush(4096)
        await core.sfence()
        await core.lfence()
        await core.fence()
        core.write_cr3(0)
        core.invlpg(4096)

    bench.run(code(bench.core))
    assert bench.machine.memory[4090:4190] == bytes(range(100))


def test_a_chain_of_pointers_names_what_it_waits_for():
    bench = Bench()
    seen = []

    async def code(core):
        core.store(4096, 8192, 8)
        core.store(8192, 77, 8)
        first = core.load_begin(4096, 8)
        seen.append(await core.load(await core.result(first), 8, after=first))
        core.execute(5, after=first)

    afters = []
    push = bench.machine.push
    bench.core.issuer._port_push = lambda *operands: afters.append(operands[7:8]) or push(*operands)
    bench.run(code(bench.core))
    assert seen == [77]
    assert afters[-2:] == [(2,), (2,)]


def test_functions_are_told_apart_and_charged():
    bench = Bench()

    @function()
    async def inner(core):
        core.execute(5)
        await core.load(4096, 4)

    @function(mode=Mode.KERNEL)
    async def outer(core):
        core.store(4096, 1, 4)
        await inner(core)
        core.execute("inner", 2)
        core.execute("huge", 3)

    async def code(core):
        await outer(core)
        core.sti()

    bench.run(code(bench.core))
    record = bench.record
    seen = [(record.function_of(h), record.mode_of(h)) for h in range(len(record))]
    expected = [("outer", Mode.KERNEL)] * 2 + [("inner", Mode.KERNEL)] * 3 + [("outer", Mode.KERNEL)] * 2
    assert seen == [*expected, ("(none)", Mode.USER)]
    assert bench.machine.tick == 10 + 1 + 20 + 5 + 1 + 2 * 20 + 3 * 9999


def test_an_unknown_cost_is_an_error():
    bench = Bench()

    async def code(core):
        core.execute("no_such_function")

    with pytest.raises(KeyError, match="no_such_function"):
        bench.run(code(bench.core))


def test_notes_belong_to_the_next_operation():
    bench = Bench()

    async def code(core):
        core.execute(3)
        core.note("here", packet=7)
        core.store(4096, 1, 8)
        await core.fence()

    bench.run(code(bench.core))
    (note,) = bench.record.notes
    assert (note.handle, note.core, note.kind, note.data) == (1, 0, "here", {"packet": 7})

    async def forgets(core):
        core.note("nowhere")
        await core.drain()

    bench = Bench()
    with pytest.raises(RuntimeError, match="'nowhere' was not followed by an operation"):
        bench.run(forgets(bench.core))


def test_switching_to_and_fro_keeps_program_order():
    bench = Bench()
    order = []
    contexts: dict[str, Context] = {}

    async def first(core):
        for i in range(3):
            core.store(4096, i, 8)
            core.execute(100)
            order.append(("first", i))
            await core.switch_to(contexts["second"])

    async def second(core):
        for i in range(3):
            order.append(("second", i, await core.load(4096, 8)))
            await core.switch_to(contexts["first"])

    core = bench.core
    contexts["first"] = core.new_context(first(core), Mode.USER)
    contexts["second"] = core.new_context(second(core), Mode.USER)
    bench.dispatcher.start(core, contexts["first"])
    asyncio.run(bench.dispatcher.run())
    assert order == [("first", 0), ("second", 0, 0), ("first", 1), ("second", 1, 1), ("first", 2), ("second", 2, 2)]


def test_drain_bounds_running_ahead():
    bench = Bench()
    ticks = []

    async def code(core):
        for _ in range(3):
            core.execute(50)
            await core.drain()
            ticks.append(bench.machine.tick)

    bench.run(code(bench.core))
    assert ticks == sorted(set(ticks))


class Interruptible(Core):
    """A core whose handler counts in memory."""

    async def _handle(self, vector):
        count = await self.load(8192, 8)
        self.execute(40)
        self.store(8192, count + 1, 8)
        self.iret()

    def interrupt(self, vector):
        return self._handle(vector)


@pytest.mark.parametrize("at", range(1, 60, 3))
def test_interrupts_at_any_moment_leave_the_interrupted_code_unharmed(at):
    """Between operations, inside EXECUTE, while a load is awaited, during a switch and at the very end."""
    bench = Bench(Interruptible)
    nic = bench.machine.nic
    nic.pending = lambda: False
    core = bench.core
    seen = []
    other: list[Context] = []

    async def helper(core):
        while True:
            core.store(4160, 1 + await core.load(4160, 8), 8)
            await core.switch_to(main)

    async def code(core):
        for i in range(3):
            core.execute(7)
            core.store(4096, i, 8)
            seen.append(await core.load(4096, 8))
            await core.switch_to(other[0])
            core.cli()
            value = await core.load(8192, 8)
            core.store(8192, value, 8)
            core.sti()
        await core.fence()

    main = core.new_context(code(core), Mode.USER)
    other.append(core.new_context(helper(core), Mode.USER))
    # An EMPTY frame brings the stepping to this tick, where the interrupt is put in.
    bench.machine.send(b"\0" * 60, at)
    nic.accepts = lambda frame: bench.machine.cores[0].pending.append(0x20) or False
    bench.dispatcher.start(core, main)
    asyncio.run(bench.dispatcher.run())
    memory = bench.machine.memory
    assert seen == [0, 1, 2]
    assert memory[4160] == 3
    assert memory[8192] == 1
    assert bench.dispatcher.interrupts_taken == 1


def test_halt_sleeps_until_an_interrupt_has_been_handled():
    bench = Bench(Interruptible)
    nic = bench.machine.nic
    woken = []

    async def code(core):
        await core.halt()
        woken.append((bench.machine.tick, await core.load(8192, 8)))

    bench.machine.send(b"\0" * 60, 5000)
    nic.accepts = lambda frame: bench.machine.cores[0].pending.append(0x20) or False
    bench.run(code(bench.core))
    ((tick, count),) = woken
    assert tick >= 5000 and count == 1


def test_device_registers():
    bench = Bench()
    seen = []

    async def code(core):
        core.mmio_write(BAR0_BASE + REG.RDBAL.offset(), 0x1234_5680)
        seen.append(await core.mmio_read(BAR0_BASE + REG.RDBAL.offset()))

    bench.run(code(bench.core))
    assert seen == [0x1234_5680]


def test_run_stops_at_a_tick():
    bench = Bench()

    async def code(core):
        while True:
            await core.load(4096, 8)
            core.execute(10)

    bench.dispatcher.start(bench.core, bench.core.new_context(code(bench.core), Mode.USER))
    assert asyncio.run(bench.dispatcher.run(until=500)) is WakeKind.LIMIT
    assert 490 <= bench.machine.tick <= 510
    assert asyncio.run(bench.dispatcher.run(until=900)) is WakeKind.LIMIT
