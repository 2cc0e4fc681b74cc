"""Two cores: wake-ups from one to the other, slots freed on another core, programs with a core of their own."""

import asyncio
import random
import zlib

import pytest

from sw.core import Core, Dispatcher, Mode, Record
from sw.linux.cpuidle import Cpuidle
from sw.linux.mm import MemBlock
from sw.linux.sched import _TIF_NEED_RESCHED, TASK_STRUCT
from sw.linux.slab import KmemCache, kmem_cache_alloc, kmem_cache_free
from sw.linux.smp import RESCHEDULE_VECTOR
from sw.port import OperationKind, WakeKind
from tests.sw.functional_machine import FunctionalMachine
from tests.sw.test_receive_path import PORTS, Bench, make_system, pad, udp

HALT = Cpuidle(idle="halt", exit_ns=(0.0, 100.0))


class PlacedBench(Bench):
    """Counts interrupts by core and vector, and says which core each datagram was delivered on."""

    def __init__(self, **options):
        self.taken: list[tuple[int, int]] = []
        self.cores: set[int] = set()
        super().__init__(**{"compute": (), "app_core": 1} | options)

    def noted(self, note):
        if note.kind == "interrupt":
            self.taken.append((note.core, note.data["vector"]))
        elif note.kind == "delivered":
            self.cores.add(note.core)
        super().noted(note)

    @property
    def kicks(self) -> int:
        """Reschedule interrupts."""
        assert all(core == 1 for core, vector in self.taken if vector == RESCHEDULE_VECTOR)
        return sum(vector == RESCHEDULE_VECTOR for _, vector in self.taken)


def flags_of_idle(bench, core) -> int:
    idle = bench.system.kernel.cpus[core].idle_task
    return int.from_bytes(bench.machine.memory[idle.address + TASK_STRUCT.flags.offset :][:4], "little")


@pytest.mark.parametrize("idle", ["poll", "halt"])
def test_a_program_on_another_core_receives_what_it_is_sent(idle):
    rng = random.Random(3)
    payloads = [rng.randbytes(n) for n in (0, 1, 18, 65, 200, 1472)] * 3
    bench = PlacedBench(cpuidle=Cpuidle() if idle == "poll" else HALT, ports=(9,))
    bench.send([pad(udp(p)) for p in payloads], gap=40_000)
    assert bench.dropped == {} and bench.cores == {1}
    assert bench.crc == {i: zlib.crc32(p) for i, p in enumerate(payloads)}
    # The card interrupts core 0 alone. A core that sleeps is woken by an interrupt, each time; one that polls never.
    assert {core for core, vector in bench.taken if vector != RESCHEDULE_VECTOR} == {0}
    assert bench.kicks == (0 if idle == "poll" else len(payloads))


def test_a_core_that_computes_is_interrupted_for_a_better_task():
    bench = PlacedBench(compute=(1,), ports=(9,))
    bench.send([pad(udp(b"x" * 18))] * 30, gap=40_000)
    assert len(bench.delivered) == 30 and bench.cores == {1}
    assert bench.kicks == 30


def test_a_core_that_runs_a_task_of_the_same_rank_is_left_alone():
    """While one program is busy, others become runnable and wait: it is asked to make way for none of them."""
    bench = PlacedBench(cpuidle=HALT)
    bench.send([pad(udp(b"x" * 1400, PORTS[i % 3])) for i in range(60)], gap=600)
    assert len(bench.delivered) + len(bench.machine.nic.no_descriptor) == 60
    assert 0 < bench.kicks < len(bench.delivered) / 2


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("idle", ["poll", "halt"])
def test_no_wake_up_is_lost_at_any_moment(seed, idle):
    """Datagrams that come as the reader is about to sleep, has just gone, is being woken."""
    rng = random.Random(seed)
    bench = PlacedBench(
        cpuidle=Cpuidle() if idle == "poll" else HALT, compute=rng.choice([(), (0,), (1,), (0, 1)]), read=False
    )
    tick = bench.machine.tick + 5000
    for _ in range(150):
        tick += rng.choice([rng.randrange(1500, 4500), rng.randrange(1, 9000), 20_000])
        bench.machine.send(pad(udp(rng.randbytes(rng.randrange(100)), rng.choice(PORTS))), tick)
    bench.run()
    assert len(bench.delivered) == 150


def test_a_flag_set_without_an_interrupt_would_be_noticed(monkeypatch):
    """What the interrupt is for: without it a core that sleeps stays asleep."""

    async def nothing(cpu, target):
        pass

    monkeypatch.setattr("sw.linux.sched.smp_send_reschedule", nothing)
    bench = PlacedBench(cpuidle=HALT, ports=(9,))
    with pytest.raises(AssertionError, match="not every frame was accounted for"):
        bench.send([pad(udp())])
    assert flags_of_idle(bench, 1) == _TIF_NEED_RESCHED


def test_programs_of_every_path_go_where_they_are_told():
    for path in ("napi", "dpdk"):
        system = make_system(FunctionalMachine(dram_bytes=16 << 20), 16 << 20, path, ring_size=64, app_core=1)
        assert {task.cpu.index for task in system.path.tasks} == {1}
    with pytest.raises(ValueError, match="no core 2 to receive on; cores: 0 to 1"):
        make_system(FunctionalMachine(), ring_size=64, app_core=2)


# Slabs

MAILBOX = 0x10_0000  #: 8 bytes each, 0 when empty


def exchange(turns, cache_of, seed):
    """Core 0 takes slots, marks them and posts them; core 1 checks and frees them. Both keep some for a while."""
    machine, record = FunctionalMachine(cores=2), Record()
    memblock = MemBlock(MAILBOX)
    cache = cache_of(memblock)
    cores = [Core(index, machine, record, {}) for index in (0, 1)]
    taken: list[int] = []
    places = [MAILBOX + 64 * place for place in range(24)]

    async def producer(core):
        rng = random.Random(seed)
        cache.init(core)
        await core.fence()
        core.store(MAILBOX - 64, 1, 8)
        for turn in range(turns):
            place = rng.choice(places)
            if await core.load(place, 8):
                core.execute(1 + rng.randrange(30))
                continue
            slot = await kmem_cache_alloc(core, cache)
            assert slot, "there are more slots than places"
            core.store(slot, turn.to_bytes(8, "little") * 8, 64)
            taken.append(slot)
            core.store(place, slot, 8)
            if rng.random() < 0.3:  # one more, for itself
                own = await kmem_cache_alloc(core, cache)
                core.store(own, bytes(64), 64)
                core.execute(1 + rng.randrange(200))
                await kmem_cache_free(core, cache, own)
        core.store(MAILBOX - 64, 2, 8)

    async def consumer(core):
        rng = random.Random(seed + 1)
        await core.poll(MAILBOX - 64, 8, 0, 1 << 29, 10)
        while True:
            last = await core.load(MAILBOX - 64, 8) == 2
            found = False
            for place in places:
                slot = await core.load(place, 8)
                if slot:
                    found = True
                    core.execute(1 + rng.randrange(100))
                    words = await core.load(slot, 64)
                    assert words[:8] * 8 == words, "somebody else wrote to it"
                    await kmem_cache_free(core, cache, slot)
                    core.store(place, 0, 8)
            if last and not found:
                return

    dispatcher = Dispatcher(machine, cores, record)
    for core, software in zip(cores, (producer, consumer), strict=True):
        dispatcher.start(core, core.new_context(software(core), Mode.KERNEL))
    assert asyncio.run(dispatcher.run()) is WakeKind.IDLE
    return taken, cache, record


@pytest.mark.parametrize("seed", range(3))
def test_slots_that_are_freed_on_another_core_come_back(seed):
    taken, cache, record = exchange(1500, lambda memblock: KmemCache(memblock, "test", 256, 28, 2), seed)
    assert len(taken) > cache.count  # they did come back
    assert len(set(taken)) <= cache.count
    assert all(
        cache.slots <= slot < cache.slots + cache.count * 256 and (slot - cache.slots) % 256 == 0 for slot in taken
    )
    # Both slow paths were taken.
    functions = {record.function_of(handle) for handle in range(len(record))}
    assert {"slab_alloc", "put_cpu_partial"} <= functions


def test_lists_that_cores_share_without_a_lock_are_noticed(monkeypatch):
    monkeypatch.setattr(KmemCache, "cpu_slab", lambda self, core: self._cpu_slabs)
    with pytest.raises((AssertionError, OverflowError)):
        taken, cache, _ = exchange(1500, lambda memblock: KmemCache(memblock, "test", 256, 28, 2), 0)
        assert len(taken) > cache.count


def test_a_core_alone_never_locks():
    """Slots that one core takes and gives are on its own list: no atomic, whatever the order."""
    machine, record = FunctionalMachine(cores=1), Record()
    cache = KmemCache(MemBlock(1 << 20), "test", 256, 20, 1)
    atomics = []
    push = machine.push

    def recorded(context, kind, *operands, **named):
        atomics.append(kind == OperationKind.ATOMIC.value)
        return push(context, kind, *operands, **named)

    machine.push = recorded
    core = Core(0, machine, record, {})

    async def software(core):
        cache.init(core)
        slots = [await kmem_cache_alloc(core, cache) for _ in range(10)]
        first = sum(atomics)
        for _ in range(100):
            await kmem_cache_free(core, cache, slots.pop(0))
            slots.append(await kmem_cache_alloc(core, cache))
        assert len(set(slots)) == 10 and sum(atomics) == first
        # All there are, and not one more.
        slots += [await kmem_cache_alloc(core, cache) for _ in range(cache.count - 10)]
        assert len(set(slots)) == cache.count and 0 not in slots
        assert await kmem_cache_alloc(core, cache) == 0

    dispatcher = Dispatcher(machine, [core], record)
    dispatcher.start(core, core.new_context(software(core), Mode.KERNEL))
    assert asyncio.run(dispatcher.run()) is WakeKind.IDLE
