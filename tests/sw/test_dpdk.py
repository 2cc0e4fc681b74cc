"""DPDK: the mempool loses nothing, the poll-mode driver takes every packet in order."""

import asyncio
import random

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from sw.core import Dispatcher, Mode, Record
from sw.costs import load_tables
from sw.dpdk.ixgbe import IxgbeRxQueue
from sw.dpdk.mempool import Mempool, rte_mempool_create, rte_mempool_get_bulk, rte_mempool_put_bulk
from sw.linux.kernel import Kernel
from sw.options import Options
from sw.port import WakeKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine

MAC = bytes.fromhex("020000000001")
COSTS = load_tables(("linux", "dpdk"))


def on_a_core(code):
    """Run ``code(cpu)`` on core 0 of a functional machine; returns what it returns."""
    machine = FunctionalMachine(cores=1)
    record = Record()
    kernel = Kernel(machine, 1, 4 << 20, COSTS, record, MAC, [], skbs=0)
    cpu = kernel.cpus[0]
    result = []

    async def main():
        result.append(await code(cpu))

    dispatcher = Dispatcher(machine, kernel.cpus, record)
    dispatcher.start(cpu, cpu.new_context(main(), Mode.USER))
    asyncio.run(dispatcher.run())
    return result[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_mempool_hands_out_each_object_once(seed):
    chance = random.Random(seed)
    count, cache = 200, 32

    async def code(cpu):
        size = Mempool.bytes_needed(count, 128, cache)
        pool = Mempool(cpu.kernel.allocate_huge(size), count, 128, cache)
        await rte_mempool_create(cpu, pool)
        array = cpu.kernel.allocate_huge(8 * 64)
        objects = {pool.object(index) for index in range(count)}
        held: list[int] = []
        for _ in range(300):
            if chance.random() < 0.5:
                wanted = chance.randint(1, 32)
                got = await rte_mempool_get_bulk(cpu, pool, array, wanted)
                assert len(got) in (0, wanted)
                if got:
                    written = await cpu.load_bytes(array, 8 * wanted)
                    assert written == b"".join(pointer.to_bytes(8, "little") for pointer in got)
                else:
                    # Refused only when even the cache's refill could not be had.
                    assert count - len(held) < wanted + 2 * cache + cache
                held += got
                assert len(set(held)) == len(held) and set(held) <= objects
            elif held:
                chance.shuffle(held)
                given = [held.pop() for _ in range(min(len(held), chance.randint(1, 32)))]
                await rte_mempool_put_bulk(cpu, pool, given)
        return True

    assert on_a_core(code)


def test_a_pool_too_small_for_its_cache_is_refused():
    with pytest.raises(ValueError, match="64 objects takes a cache of at most 42"):
        Mempool(4096, 64, 128, 64)


class Bench:
    """Path "dpdk" on the functional machine."""

    def __init__(self, application="rxonly", **options):
        self.machine = FunctionalMachine(cores=1)
        self.delivered: list[int] = []
        self.bursts: list[int] = []
        options = Options(mac=MAC, addresses=(), application=application, **{"ring_size": 64} | options)
        self.system = System(self.machine, 1, 4 << 20, COSTS, "dpdk", options, on_note=self.noted)
        asyncio.run(self.system.boot())

    def noted(self, note):
        if note.kind == "delivered":
            queue, number = note.data["packet"]
            assert queue == 0
            self.delivered.append(self.machine.nic.written_back[number])
        elif note.kind == "poll":
            self.bursts.append(note.data["work"])
        sent = self.machine.sent
        if sent and len(self.delivered) + len(self.machine.nic.no_descriptor) == sent:
            self.system.stop()

    def send(self, count, gap):
        frame = bytes(Ether(dst="02:00:00:00:00:01") / IP(dst="10.0.0.1") / UDP(dport=9) / bytes(18)).ljust(60, b"\0")
        for index in range(count):
            self.machine.send(frame, self.machine.tick + 5000 + index * gap)
        assert asyncio.run(self.system.run(self.machine.tick + 10_000_000)) is not WakeKind.LIMIT


@pytest.mark.parametrize("gap", [20, 60, 300, 5000])
def test_every_packet_is_delivered_once_in_order(gap):
    bench = Bench()
    bench.send(500, gap)
    lost = set(bench.machine.nic.no_descriptor)
    assert bench.delivered == [n for n in range(500) if n not in lost]
    assert not lost or gap < 100
    assert max(bench.bursts) <= 32 and sum(bench.bursts) == len(bench.delivered)
    # A core that polls is not interrupted.
    assert bench.system.dispatcher.interrupts_taken == 0


def test_bursts_grow_with_the_load():
    slow, fast = Bench(), Bench()
    slow.send(300, 5000)
    fast.send(300, 40)
    assert max(slow.bursts) == 1
    assert max(fast.bursts) > 4


def test_every_buffer_is_in_its_place():
    """After the run, each mbuf is in the ring, in the pool's cache or in its ring, once."""
    bench = Bench()
    bench.send(400, 50)
    queue = bench.system.path.queue
    pool = queue.pool
    memory = bench.machine.memory

    def pointers(address, count):
        address &= (1 << 40) - 1
        return [int.from_bytes(memory[address + 8 * i : address + 8 * i + 8], "little") for i in range(count)]

    def word(address):
        address &= (1 << 40) - 1
        return int.from_bytes(memory[address : address + 4], "little")

    state = queue.state & (1 << 40) - 1
    rearm_nb, rearm_start = (int.from_bytes(memory[state + o : state + o + 2], "little") for o in (2, 4))
    in_ring = [(rearm_start + rearm_nb + n) % queue.count for n in range(queue.count - rearm_nb)]
    held = [pointers(queue.sw_ring, queue.count)[n] for n in in_ring]
    held += pointers(pool.cache + 64, word(pool.cache + 8))
    head, tail = word(pool.ring + 128), word(pool.ring + 64)
    ring = pointers(pool.ring + 192, pool.ring_size)
    held += [ring[n % pool.ring_size] for n in range(head, tail)]
    assert sorted(held) == [pool.object(n) for n in range(pool.count)]


@pytest.mark.parametrize(("count", "told"), [(32, "64 to 4096"), (100, "a power of two, not 100"), (8192, "not 8192")])
def test_impossible_rings_are_refused(count, told):
    with pytest.raises(ValueError, match=told):
        IxgbeRxQueue(4096, count)


def test_impossible_bursts_are_refused():
    with pytest.raises(ValueError, match="bursts of 4 to 32, a multiple of 4, not 6"):
        Bench(batch=6)
