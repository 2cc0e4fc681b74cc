"""The native engine's issuer does what sw/issue.py does: the same operations, tags, results, at the same ticks."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from hw.bus.core import AtomicFunction
from hw.bus.core import OperationKind as K
from hw.config import load_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine
from sw.core import Core, Dispatcher, Mode, Record, function
from sw.costs import Cost
from sw.port import WakeKind
from sw.structs import Struct

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

COSTS = {
    name: Cost(cycles=cycles, uops=uops, text_bytes=text, source="test", kind="chosen", low=0, high=10**6)
    for name, cycles, uops, text in (
        ("leaf", 10, 20, 100),
        ("free", 0, 0, 5),
        ("long", 50_000, 200_000, 64),
        ("dense", 2, 200_000, 0),
    )
}
TEXT = {"leaf": 0x3020, "free": 0x3100, "long": 0x3200}
PAIR = Struct(first=8, second=4)
BASE = 0x400


class ReferencePort:
    """The native engine without what it does by itself."""

    def __init__(self, engine):
        self._engine = engine
        for name in ("push", "new_context", "free_context", "switch", "run"):
            setattr(self, name, getattr(engine, name))


@pytest.fixture(scope="module")
def build():
    return build_native(Design(load_machine("tiny"), "engine_design:SmallMachine", (HERE / "engine_design.py",)))


def run(build, make, reference):
    """Everything that the code that ``make(seen)`` gives for each core leads to."""
    engine = NativeEngine(build, record=True)
    record = Record()
    port = ReferencePort(engine) if reference else engine
    cores = [Core(index, port, record, COSTS, TEXT) for index in range(2)]
    assert type(cores[0].issuer).__module__ == ("sw.issue" if reference else "nicscope_native")
    dispatcher = Dispatcher(port, cores, record)
    seen = []
    for core in cores:
        dispatcher.start(core, core.new_context(make(core, seen), Mode.USER))

    async def all_of_it(_):
        assert await dispatcher.run() is WakeKind.IDLE

    engine.execute(all_of_it)
    recording = engine.recording()
    return seen, record.tags.tolist(), recording.operations, recording.end, engine.log_sha256()


def same(build, make):
    native, reference = run(build, make, False), run(build, make, True)
    assert native[:2] == reference[:2]
    assert np.array_equal(native[2], reference[2])
    assert native[3:] == reference[3:]
    return native


def test_random_software(build):
    @function()
    async def leaf(core, random_, seen):
        seen.append((core.index, await core.load(BASE + 8 * random_.randrange(64), 8)))

    @function(mode=Mode.KERNEL)
    async def free(core, random_, seen, *, depth=2):
        core.execute("leaf", random_.randrange(3))
        core.execute(random_.randrange(4))
        if depth:
            await free(core, random_, seen, depth=depth - 1)
        await leaf(core, random_, seen)

    async def software(core, seen):
        random_ = random.Random(core.index)
        tell = lambda *values: seen.append((core.index, *values))  # noqa: E731
        for _ in range(200):
            address = BASE + random_.randrange(2000)
            size = random_.choice((1, 2, 4, 8, 9, 64, 100, 200))
            match random_.randrange(16):
                case 0:
                    core.store(address, random_.randbytes(size), size)
                case 1:
                    core.store(address, random_.getrandbits(32), 4)
                case 2:
                    core.put(address, PAIR.second, random_.getrandbits(32))
                case 3:
                    tell(await core.load(address, size))
                case 4:
                    tell(await core.load_bytes(address, random_.choice((0, size))))
                case 5:
                    lines = [(BASE + 64 * random_.randrange(32), random_.choice((4, 16))) for _ in range(4)]
                    tell(await core.load_all(*lines[: random_.randrange(5)]))
                case 6:
                    handle = core.load_begin(BASE, 8)
                    tell(await core.get(BASE + 64, PAIR.first), await core.load_all((BASE, 4), (BASE + 512, 8)))
                    tell(await core.get_all(BASE + 64, PAIR.second, PAIR.first), await core.get_all(BASE))
                    tell(await core.result(handle))
                case 7:
                    core.prefetch(address)
                    core.touch(BASE, 64)
                case 8:
                    await free(core, random_, seen)
                case 9:
                    await core.fence()
                case 10:
                    core.cli()
                    await core.drain()
                    core.sti()
                case 11:
                    tell(await core.load_now(address, size))
                    tell(await core.load_now(BASE, 8, after=core.load_begin(BASE, 4)))
                case 12:
                    first = core.load_begin(BASE, 8)
                    tell(await core.load(BASE + 60, 10, after=first), await core.load_bytes(address, 90, after=first))
                    core.touch(BASE, 8, after=core.load_begin(BASE + 128, 8, after=first))
                    core.execute("leaf", 2, after=first)
                    core.execute(7, after=first)
                    tell(await core.result(first))
                    value, handle = await core.chase(*PAIR.first.at(BASE), after=first)
                    tell(value, await core.get(BASE + 64, PAIR.second, after=handle))
                    tell(await core.get_all(BASE, PAIR.second, PAIR.first, after=handle))
                    tell(
                        await core.load_all((BASE, 4), (BASE + 512, 8), after=handle), await core.load_all(after=handle)
                    )
                case 13:
                    place, wide = BASE + 8 * random_.randrange(8), random_.choice((1, 2, 4, 8))
                    function = random_.choice(list(AtomicFunction))
                    tell(await core.atomic(place, wide, function, random_.getrandbits(64)))
                    value = await core.load(place, wide)
                    tell(await core.atomic(place, wide, AtomicFunction.COMPARE_EXCHANGE, 7, value))
                case 14:
                    tell(await core.poll(BASE, 4, await core.load(BASE, 4), 300, 20))
                    tell(await core.poll(BASE, 3, b"abc", 300, 20))
                case 15:
                    core.store_nt(0x2000 + random_.randrange(100), random_.randbytes(size), size)
                    core.clflush(address)
                    await core.sfence()
                    await core.lfence()
                    core.invlpg(1 << 47)
                    core.write_cr3(0x1000)

    seen, tags, operations, _, _ = same(build, software)
    assert len(seen) > 60
    assert len(tags) == len(operations) > 500


def test_a_charge_beyond_the_field_is_split(build):
    async def software(core, seen):
        if core.index == 0:
            core.execute("long")
            core.execute("leaf", 10_000)
            core.execute("dense")
            core.execute("free", 3)
            core.execute("leaf", 0)

    _, _, operations, _, _ = same(build, software)
    assert operations["uops"].tolist() == [50_000] * 4 + [50_000] * 4 + [0xFFFF] * 2
    assert operations["cycles"].tolist() == [12_500] * 4 + [25_000] * 4 + [1, 1]
    # The text is fetched once; 100 bytes from 0x3020 on lie in 3 lines.
    assert operations["address"].tolist() == [0x3200, 0, 0, 0, 0x3020, 0, 0, 0, 0, 0]
    assert operations["argument"].tolist() == [1, 0, 0, 0, 3, 0, 0, 0, 0, 0]


def test_a_charge_without_a_name(build):
    async def software(core, seen):
        if core.index == 0:
            core.execute((5, 9, 0x3300, 2))
            core.execute((4, 6, 0, 0), 3)
            core.execute((0, 9, 0x3300, 2))

    _, _, operations, _, _ = same(build, software)
    fields = ("cycles", "uops", "address", "argument")
    assert [operations[name].tolist() for name in fields] == [[5, 12], [9, 18], [0x3300, 0], [2, 0]]


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda core: core.execute("no_such_function"), KeyError),
        (lambda core: core.store(BASE, 256, 1), ValueError),
        (lambda core: core.store(BASE, b"abc", 4), ValueError),
        (lambda core: core.store(BASE, "abc", 4), (ValueError, TypeError)),
        (lambda core: core.load_begin(BASE + 60, 8), ValueError),
        (lambda core: core.load(1 << 50, 8).send(None), ValueError),
        (lambda core: core.put(BASE, 5, 5), TypeError),
        (lambda core: core.load(BASE), TypeError),
        (lambda core: core.mmio_write(BASE, 1, 3), ValueError),
        (lambda core: core.issuer.plain(len(K)), ValueError),
        (lambda core: core.load_begin(BASE, 8, after=1 << 40), ValueError),
        (lambda core: core.load_begin(BASE, 8, before=0), TypeError),
        (lambda core: core.get_all(BASE, PAIR.first, after=1 << 40).send(None), ValueError),
        (lambda core: core.atomic(BASE, 3, AtomicFunction.ADD, 1).send(None), ValueError),
        (lambda core: core.atomic(BASE, 8, AtomicFunction.ADD, -1).send(None), (OverflowError, TypeError)),
        (lambda core: core.poll(BASE, 4, b"abc", 10, 1).send(None), ValueError),
        (lambda core: core.halt(-1).send(None), ValueError),
        (lambda core: core.issuer.wait(K.CLI.value).send(None), ValueError),
    ],
)
@pytest.mark.parametrize("reference", (False, True))
def test_mistakes_are_refused(build, mistake, error, reference):
    async def software(core, seen):
        mistake(core)

    with pytest.raises(error):
        run(build, software, reference)


def test_an_exception_goes_through_functions(build):
    @function()
    async def leaf(core):
        await core.fence()
        raise LookupError("from below")

    @function()
    async def middle(core):
        await leaf(core)

    @function()
    async def lost(core):
        try:
            await leaf(core)
        except LookupError:
            return core.index

    async def software(core, seen):
        with pytest.raises(LookupError, match="from below") as error:
            await middle(core)
        assert [entry.name for entry in error.traceback] == ["software", "middle", "leaf"]
        core.sti()
        seen.append(await lost(core))

    assert sorted(run(build, software, False)[0]) == [0, 1]


def test_what_is_awaited_can_be_driven_by_hand(build):
    """As the dispatcher does when it is not the engine that resumes."""
    engine = NativeEngine(build)
    core = Core(0, engine, Record(), COSTS)
    context = core.new_context(None, Mode.USER)
    core._enter(context)

    @function()
    async def leaf(core):
        return await core.load(BASE, 8)

    async def software(core):
        return await leaf(core)

    waiting = core.issuer.routine(software(core))
    assert next(iter(waiting)) == 1  # behind the charge of the function
    with pytest.raises(StopIteration) as stop:
        waiting.send((5,))
    assert stop.value.value == (5,)
    with pytest.raises(RuntimeError, match="finished"):
        waiting.send(None)

    loaded = core.load(BASE, 8)
    assert next(loaded) == 2
    with pytest.raises(StopIteration) as stop:
        loaded.send(7)
    assert stop.value.value == 7


def test_what_is_abandoned_ends_from_the_innermost_on(build):
    engine = NativeEngine(build)
    core = Core(0, engine, Record(), COSTS)
    core._enter(core.new_context(None, Mode.USER))
    ended = []

    @function()
    async def leaf(core, depth):
        try:
            await (leaf(core, depth - 1) if depth else core.fence())
        finally:
            ended.append(depth)

    waiting = core.issuer.routine(leaf(core, 2))
    waiting.send(None)
    del waiting
    assert ended == [0, 1, 2]


def test_software_does_not_outlive_its_engine(build):
    """Software and engine refer to each other; what C++ holds must not hide that from the collector."""
    import gc
    import weakref

    class Witness:
        pass

    witness = Witness()
    told = weakref.ref(witness)

    def once(witness):
        async def software(core, seen):
            held = witness
            await core.load_all((BASE, 8), (BASE + 64, 8))
            while held:
                await core.fence()

        engine = NativeEngine(build)
        core = Core(0, engine, Record(), COSTS)
        dispatcher = Dispatcher(engine, [core], core.record)
        dispatcher.start(core, core.new_context(software(core, []), Mode.USER))
        engine.execute(lambda _: dispatcher.run(until=100_000))

    once(witness)
    del witness
    gc.collect()
    assert told() is None
