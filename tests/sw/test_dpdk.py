"""DPDK: the mempool loses nothing, the poll-mode driver takes every packet in order."""

import asyncio
import random

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from sw.apps.poll_mode import RxOnly
from sw.core import Dispatcher, Mode, Record
from sw.costs import load_tables
from sw.dpdk.ethdev import EthDev
from sw.dpdk.ixgbe_rx import IxgbeRxQueue
from sw.dpdk.ixgbe_tx import IxgbeTxQueue
from sw.dpdk.mempool import Mempool, rte_mempool_create, rte_mempool_get_bulk, rte_mempool_put_bulk
from sw.linux.kernel import Kernel
from sw.linux.mm import MemBlock
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


def udp(sport=1000, size=18, dport=9):
    """A UDP datagram for the host, padded as Ethernet demands."""
    packet = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src="10.0.0.2", dst="10.0.0.1")
    return bytes(packet / UDP(sport=sport, dport=dport) / bytes(size)).ljust(60, b"\0")


class Bench:
    """Path "dpdk" on the functional machine."""

    def __init__(self, application="rxonly", **options):
        self.machine = FunctionalMachine(cores=1)
        self.delivered: list[int] = []
        self.sent: list[tuple[int, int]] = []  #: received frame, number of the frame sent
        self.dropped: dict[int, str] = {}
        self.bursts: list[int] = []
        options = Options(mac=MAC, addresses=(), application=application, **{"ring_size": 64} | options)
        self.system = System(self.machine, 1, 4 << 20, COSTS, "dpdk", options, on_note=self.noted)
        asyncio.run(self.system.boot())

    def noted(self, note):
        if "packet" in note.data:
            queue, number = note.data["packet"]
            assert queue == 0
            frame = self.machine.nic.written_back[number]
        if note.kind == "delivered":
            self.delivered.append(frame)
        elif note.kind == "sent":
            self.sent.append((frame, note.data["frame"][1]))
        elif note.kind == "dropped":
            self.dropped[frame] = note.data["reason"]
        elif note.kind == "poll":
            self.bursts.append(note.data["work"])
        sent = self.machine.sent
        done = len(self.delivered) + len(self.sent) + len(self.dropped) + len(self.machine.nic.no_descriptor)
        if sent and done == sent:
            self.system.stop()

    def send(self, frames, gap):
        for index, frame in enumerate(frames):
            self.machine.send(frame, self.machine.tick + 5000 + index * gap)
        assert asyncio.run(self.system.run(self.machine.tick + 10_000_000)) is not WakeKind.LIMIT

    def pointers(self, address, count):
        address &= (1 << 40) - 1
        memory = self.machine.memory
        return [int.from_bytes(memory[address + 8 * i : address + 8 * i + 8], "little") for i in range(count)]

    def word(self, address, size=4):
        address &= (1 << 40) - 1
        return int.from_bytes(self.machine.memory[address : address + size], "little")

    def check_buffers(self):
        """Each mbuf is in a ring, in the pool's cache or in the pool's ring, once."""
        dev = self.system.path.dev
        rx, tx, pool = dev.rx, dev.tx, dev.pool
        if rx.vector:
            rearm_nb, rearm_start = self.word(rx.state + 2, 2), self.word(rx.state + 4, 2)
        else:
            rearm_start = (self.word(rx.state + 12, 2) - 31) % rx.count
            rearm_nb = (self.word(rx.state, 2) - rearm_start) % rx.count
            assert self.word(rx.state + 8, 2) == 0, "nothing waits in the stage"
        held = self.pointers(rx.sw_ring, rx.count)
        held = [held[(rearm_start + rearm_nb + n) % rx.count] for n in range(rx.count - rearm_nb)]
        tail, free = self.word(tx.state, 2), self.word(tx.state + 2, 2)
        in_tx = self.pointers(tx.sw_ring, tx.count)
        held += [in_tx[(tail - 1 - n) % tx.count] for n in range(tx.count - 1 - free)]
        held += self.pointers(pool.cache + 64, self.word(pool.cache + 8))
        head, end = self.word(pool.ring + 128), self.word(pool.ring + 64)
        ring = self.pointers(pool.ring + 192, pool.ring_size)
        held += [ring[n % pool.ring_size] for n in range(head, end)]
        assert sorted(held) == [pool.object(n) for n in range(pool.count)]


@pytest.mark.parametrize("application", ["rxonly", "l2fwd", "echo"])
@pytest.mark.parametrize("gap", [20, 60, 300, 5000])
@pytest.mark.parametrize("batch", [32, 4, 3, 1])
def test_every_packet_is_accounted_for_once_in_order(batch, gap, application):
    bench = Bench(application, batch=batch)
    bench.send([udp(1000 + n) for n in range(500)], gap)
    lost = set(bench.machine.nic.no_descriptor)
    kept = [n for n in range(500) if n not in lost]
    if application == "rxonly":
        assert bench.delivered == kept
    else:
        assert bench.sent == list(zip(kept, range(len(kept)), strict=True)) and not bench.dropped
        assert len(bench.machine.nic.transmitted) == len(kept)
    assert not lost or gap < 100 or (batch == 1 and gap < 1000)
    assert max(bench.bursts) <= batch and sum(bench.bursts) == len(kept)
    # A core that polls is not interrupted.
    assert bench.system.dispatcher.interrupts_taken == 0
    bench.check_buffers()


def test_bursts_grow_with_the_load():
    slow, fast = Bench(), Bench()
    slow.send([udp()] * 300, 5000)
    fast.send([udp()] * 300, 40)
    assert max(slow.bursts) == 1
    assert max(fast.bursts) > 4


def test_l2fwd_writes_the_addresses_and_nothing_else():
    bench = Bench("l2fwd")
    frames = [udp(size=size) for size in (0, 18, 100, 700, 1400)]
    bench.send(frames, 1000)
    assert bench.machine.nic.transmitted == [bytes.fromhex("020000000000") + MAC + frame[12:] for frame in frames]


def test_echo_turns_udp_round_and_leaves_checksums_right():
    bench = Bench("echo")
    bench.send([udp(1234, 700), bytes(Ether(dst="02:00:00:00:00:01") / ARP()).ljust(60, b"\0"), udp(5, 3)], 1000)
    first, second = (Ether(frame) for frame in bench.machine.nic.transmitted)
    assert (first.src, first.dst) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    assert (first[IP].src, first[IP].dst, first[UDP].sport, first[UDP].dport) == ("10.0.0.1", "10.0.0.2", 9, 1234)
    assert second[UDP].dport == 5
    for packet in (first, second):
        told = packet[IP].chksum, packet[UDP].chksum
        del packet[IP].chksum, packet[UDP].chksum
        built = Ether(bytes(packet))
        assert told == (built[IP].chksum, built[UDP].chksum)
    assert bench.dropped == {1: "NOT_UDP"}
    bench.check_buffers()


def test_what_the_card_does_not_take_is_dropped_and_freed():
    bench = Bench("l2fwd")
    bench.machine.nic.tx_stalled = True
    bench.send([udp()] * 300, 200)
    assert set(bench.dropped.values()) == {"TX_RING_FULL"}
    assert len(bench.sent) == 63, "all descriptors but one"
    bench.machine.nic.resume_tx()
    assert len(bench.machine.nic.transmitted) == 63
    bench.check_buffers()


@pytest.mark.parametrize(("count", "told"), [(32, "64 to 4096"), (100, "a power of two, not 100"), (8192, "not 8192")])
def test_impossible_rings_are_refused(count, told):
    with pytest.raises(ValueError, match=told):
        IxgbeRxQueue(4096, count)
    with pytest.raises(ValueError, match=told):
        IxgbeTxQueue(4096, count)


def test_impossible_bursts_are_refused():
    for burst in 0, 33:
        with pytest.raises(ValueError, match=f"bursts of 1 to 32, not {burst}"):
            Bench(batch=burst)
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        RxOnly(EthDev(MemBlock(1 << 20).allocate, MAC, 64), 6)
