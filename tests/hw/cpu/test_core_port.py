"""CorePort: each kind of operation, to the cycle."""

import pytest

from hw.bus.core import OperationKind as Kind
from hw.cpu.core_port import CorePort
from tests.hw.cpu.host_driver import TINY, CoreBench, Op
from tests.hw.cpu.neighbours import DeviceDouble

HIT = TINY.l1.latency
LOAD_QUEUE = TINY.core.load_queue
STORE_BUFFER = TINY.core.store_buffer
VECTOR = 0x21
BYTES = int.from_bytes(bytes(range(1, 65)), "little")


def at(log, what):
    return [entry[0] for entry in log if entry[1] == what]


def bench_with_memory(**options):
    """A cache whose byte at address a is (a * 7 + 1) % 256."""
    bench = CoreBench(**options)
    bench.cache.memory.update({address: (address * 7 + 1) % 256 for address in range(0x1000, 0x1200)})
    return bench


def test_index_out_of_range():
    with pytest.raises(ValueError, match=r"core index must be between 0 and core.count - 1 = 1, not 2"):
        CorePort(TINY, 2, "core0")


# Issue


def test_one_operation_per_cycle_in_order():
    bench = CoreBench()
    ops = [bench.push(kind) for kind in (Kind.CLI, Kind.STI, Kind.IRET, Kind.CLI, Kind.STI)]
    bench.run()
    assert bench.host.issued == ops
    assert [op.issued for op in ops] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cycles", [1, 2, 3, 17, 300])
@pytest.mark.parametrize("skip", [False, True])
def test_execute_holds_issue_for_its_cycles(cycles, skip):
    bench = CoreBench(skip=skip)
    first, second, last = (bench.push(Kind.EXECUTE, cycles=n) for n in (cycles, cycles, 1))
    bench.run()
    assert second.issued == first.issued + cycles
    assert last.issued == second.issued + cycles
    assert bench.skipped == (2 * (cycles - 1) if skip else 0)


def test_execute_does_not_delay_the_loads_before_it():
    bench = CoreBench()
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.push(Kind.EXECUTE, cycles=100)
    bench.run()
    assert load.completed == load.issued + HIT


# Loads


@pytest.mark.parametrize("offset,size", [(0, 1), (7, 1), (62, 2), (3, 4), (56, 8), (0, 64), (1, 63)])
def test_load(offset, size):
    bench = bench_with_memory()
    load = bench.push(Kind.LOAD, address=0x1000 + offset, size=size)
    bench.run()
    assert load.completed == load.issued + HIT
    assert load.result == bench.cache.read(0x1000 + offset, size)


def test_loads_overlap_until_the_queue_is_full():
    bench = bench_with_memory()
    loads = [bench.push(Kind.LOAD, address=0x1000 + 8 * i, size=8) for i in range(LOAD_QUEUE + 2)]
    bench.run()
    issued = [load.issued for load in loads]
    assert issued[:LOAD_QUEUE] == list(range(1, 1 + LOAD_QUEUE))
    # The first completes at 1 + HIT, its place is free one edge later
    assert issued[LOAD_QUEUE:] == [1 + HIT + 1, 1 + HIT + 2]
    assert [load.completed for load in loads] == [at + HIT for at in issued]
    assert [load.result for load in loads] == [bench.cache.read(0x1000 + 8 * i, 8) for i in range(LOAD_QUEUE + 2)]


def test_prefetch_is_sent_and_forgotten():
    bench = CoreBench()
    for _ in range(LOAD_QUEUE + 4):
        bench.push(Kind.PREFETCH, address=0x1040, size=64)
    bench.run()
    assert [entry[2:] for entry in bench.cache.log] == [(i, 0x41, 0, 64, "PREFETCH") for i in range(LOAD_QUEUE + 4)]
    assert [op.issued for op in bench.host.issued] == list(range(1, LOAD_QUEUE + 5))


# Stores and forwarding


def test_store_goes_to_its_lanes():
    bench = CoreBench()
    store = bench.push(Kind.STORE, address=0x1045, size=3, data=0x332211)
    bench.run()
    assert bench.cache.log[0] == (store.issued + 2, "store", 0x41, 0b111 << 5, 0x332211 << 40)


def test_stores_stream_out_in_order():
    bench = CoreBench(store_delay=(1, 1))
    stores = [bench.push(Kind.STORE, address=0x1000 + 64 * (i % 3), size=1, data=i) for i in range(20)]
    bench.run()
    assert [store.issued for store in stores] == list(range(1, 21))
    sent = [entry for entry in bench.cache.log if entry[1] == "store"]
    assert [entry[0] for entry in sent] == list(range(3, 23))
    assert [entry[4] for entry in sent] == list(range(20))


def test_store_waits_for_room():
    bench = CoreBench(store_delay=(30, 30))
    stores = [bench.push(Kind.STORE, address=0x1000, size=1) for _ in range(STORE_BUFFER + 1)]
    bench.run()
    assert [store.issued for store in stores[:-1]] == list(range(1, 1 + STORE_BUFFER))
    assert stores[-1].issued == at(bench.cache.log, "visible")[0] + 1


@pytest.mark.parametrize("offset,size", [(0, 64), (0, 8), (56, 8), (13, 1), (5, 58), (63, 1), (33, 4)])
def test_forwarding(offset, size):
    bench = bench_with_memory(store_delay=(100, 100))
    bench.push(Kind.STORE, address=0x1000, size=64, data=BYTES)
    load = bench.push(Kind.LOAD, address=0x1000 + offset, size=size)
    bench.run()
    assert load.completed == load.issued + HIT == 2 + HIT
    assert load.result == BYTES >> 8 * offset & ((1 << 8 * size) - 1)
    assert not at(bench.cache.log, "load")


def test_forwarded_loads_stream():
    bench = bench_with_memory(store_delay=(100, 100))
    bench.push(Kind.STORE, address=0x1000, size=64, data=BYTES)
    loads = [bench.push(Kind.LOAD, address=0x1000 + i, size=1) for i in range(LOAD_QUEUE)]
    bench.run()
    assert [load.issued for load in loads] == list(range(2, 2 + LOAD_QUEUE))
    assert [load.completed for load in loads] == list(range(2 + HIT, 2 + HIT + LOAD_QUEUE))
    assert [load.result for load in loads] == list(range(1, 1 + LOAD_QUEUE))


def test_the_youngest_store_is_forwarded():
    bench = CoreBench(store_delay=(100, 100))
    for data in range(1, STORE_BUFFER + 1):
        bench.push(Kind.STORE, address=0x1000, size=8, data=data)
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.run()
    assert load.result == STORE_BUFFER


def test_the_youngest_store_is_forwarded_after_the_ring_has_wrapped():
    bench = CoreBench(store_delay=(20, 20))
    loads = []
    for data in range(1, 3 * STORE_BUFFER):
        bench.push(Kind.STORE, address=0x1000, size=8, data=data)
        loads.append(bench.push(Kind.LOAD, address=0x1000, size=8))
    bench.run()
    assert [load.result for load in loads] == list(range(1, 3 * STORE_BUFFER))


@pytest.mark.parametrize("offset,size", [(6, 4), (1, 4), (3, 6), (0, 64)])
def test_partial_overlap_waits_until_visible(offset, size):
    bench = bench_with_memory(store_delay=(25, 25))
    store = bench.push(Kind.STORE, address=0x1004, size=4, data=0xAABBCCDD)
    load = bench.push(Kind.LOAD, address=0x1000 + offset, size=size)
    bench.run()
    [done] = at(bench.cache.log, "visible")
    assert done == store.issued + 2 + 25
    assert load.issued == done + 1
    assert load.result == bench.cache.read(0x1000 + offset, size)


def test_a_narrower_younger_store_spoils_forwarding():
    bench = CoreBench(store_delay=(25, 25))
    bench.push(Kind.STORE, address=0x1000, size=8, data=0x1111111111111111)
    bench.push(Kind.STORE, address=0x1002, size=1, data=0x22)
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.run()
    assert load.issued == at(bench.cache.log, "visible")[1] + 1
    assert load.result == 0x1111111111221111


def test_no_overlap_passes_the_store():
    bench = bench_with_memory(store_delay=(25, 25))
    bench.push(Kind.STORE, address=0x1000, size=8)
    same_line = bench.push(Kind.LOAD, address=0x1008, size=8)
    same_offset = bench.push(Kind.LOAD, address=0x1040, size=8)
    bench.run()
    assert [same_line.issued, same_offset.issued] == [2, 3]
    assert at(bench.cache.log, "load") == [2, 3]


def test_forwarded_load_yields_to_the_cache():
    bench = bench_with_memory(hit=0, miss=(HIT + 2, HIT + 2), store_delay=(100, 100))
    missed = bench.push(Kind.LOAD, address=0x1040, size=8)
    bench.push(Kind.STORE, address=0x1000, size=8, data=5)
    forwarded = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.run()
    assert missed.completed == forwarded.issued + HIT
    assert forwarded.completed == missed.completed + 1
    assert forwarded.result == 5


def test_store_waits_for_earlier_loads_but_not_for_later_ones():
    bench = bench_with_memory(hit=0, miss=(30, 30))
    first = bench.push(Kind.LOAD, address=0x1040, size=8)
    bench.push(Kind.STORE, address=0x1000, size=8, data=5)
    later = bench.push(Kind.LOAD, address=0x1080, size=8)
    bench.run()
    [sent] = at(bench.cache.log, "store")
    # Complete at t, out of the window at t + 1, then the store at t + 2, whose line is read meanwhile
    assert sent == first.completed + 3
    assert sent < later.completed + 3


# MMIO and fences


def test_mmio_write_waits_for_stores_and_is_posted():
    bench = CoreBench(store_delay=(20, 20))
    bench.push(Kind.STORE, address=0x1000, size=8, data=5)
    write = bench.push(Kind.MMIO_WRITE, address=0xF0001018, size=4, data=0x1234)
    after = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert write.issued == at(bench.cache.log, "visible")[0] + 1
    assert after.issued == write.issued + 1
    assert bench.device.log == [(write.issued, 1, 0xF0001018, 4, 0x1234, 1)]


def test_mmio_write_waits_for_loads():
    bench = CoreBench(hit=0, miss=(30, 30))
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    write = bench.push(Kind.MMIO_WRITE, address=0xF0001018, size=4)
    bench.run()
    assert write.issued == load.completed + 1


@pytest.mark.parametrize("size", [4, 8])
def test_mmio_read(size):
    bench = CoreBench(hit=0, miss=(30, 30), device_latency=(50, 50))
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    read = bench.push(Kind.MMIO_READ, address=0xF0000008, size=size)
    after = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert read.issued == load.completed + 1
    assert read.completed == read.issued + 50
    assert read.result == DeviceDouble.value(0xF0000008) % (1 << 8 * size)
    assert after.issued == read.completed + 1


def test_fence_with_nothing_to_wait_for():
    bench = CoreBench()
    fence, after = bench.push(Kind.FENCE), bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    assert (fence.issued, fence.completed, after.issued) == (1, 2, 3)


@pytest.mark.parametrize("delay,miss", [(5, 60), (60, 10)])
def test_fence_waits_for_loads_and_stores(delay, miss):
    bench = CoreBench(hit=0, miss=(miss, miss), store_delay=(delay, delay))
    bench.push(Kind.STORE, address=0x1000, size=8)
    load = bench.push(Kind.LOAD, address=0x1040, size=8)
    fence = bench.push(Kind.FENCE)
    bench.run()
    assert fence.issued == 3
    assert fence.completed == max(load.completed, at(bench.cache.log, "visible")[0]) + 1


# Interrupts


@pytest.mark.parametrize("cycles", [1, 2, 10, 60])
@pytest.mark.parametrize("message", range(1, 14))
def test_interrupt_cuts_execute_short(cycles, message):
    """A message at edge t is pending, and taken, at t + 1."""
    bench = CoreBench()
    bench.interrupts[message] = VECTOR
    bench.push(Kind.EXECUTE, cycles=cycles)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    [interruption] = bench.host.interruptions
    assert (interruption.at, interruption.vector) == (message + 1, VECTOR)
    end = 1 + cycles
    assert interruption.remaining == max(end - interruption.at, 0)
    if interruption.at <= end:
        assert interruption.squashed is last
        # Handed over at + 1, IRET issues at at + 2; then what remained, then the operation that was squashed
        assert last.issued == interruption.at + 3 + interruption.remaining


def test_interrupt_wakes_halt():
    bench = CoreBench()
    bench.interrupts[50] = VECTOR
    halt = bench.push(Kind.HALT)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    [interruption] = bench.host.interruptions
    assert halt.issued == 1
    assert (interruption.at, interruption.remaining, interruption.squashed) == (51, 0, last)
    assert last.issued == 51 + 3


def test_interrupt_with_nothing_to_do():
    bench = CoreBench()
    bench.interrupts[10] = VECTOR
    bench.run()
    [interruption] = bench.host.interruptions
    assert (interruption.at, interruption.remaining, interruption.squashed) == (11, 0, None)


@pytest.mark.parametrize("message", range(1, 8))
def test_halt_behind_sti_never_sleeps_through_an_interrupt(message):
    bench = CoreBench()
    bench.interrupts[message] = VECTOR
    bench.push(Kind.CLI)
    bench.push(Kind.EXECUTE, cycles=3)
    sti, halt = bench.push(Kind.STI), bench.push(Kind.HALT)
    last = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    [interruption] = bench.host.interruptions
    # At the edge at which the HALT issues, or later
    assert halt.issued == sti.issued + 1 <= interruption.at
    assert interruption.squashed is (last if interruption.at > halt.issued else None)
    assert last.issued > interruption.at


def test_halt_that_cannot_issue_yet_is_squashed():
    bench = CoreBench()
    bench.interrupts[5] = VECTOR
    bench.interrupts[40] = VECTOR
    bench.push(Kind.EXECUTE, cycles=20)
    halt = bench.push(Kind.HALT)
    bench.run()
    assert [i.squashed for i in bench.host.interruptions] == [halt, None]
    assert halt.issued == 1 + 20 + 3


@pytest.mark.parametrize("enable", [Kind.STI, Kind.IRET])
def test_masked(enable):
    bench = CoreBench()
    bench.interrupts[5] = VECTOR
    bench.push(Kind.CLI)
    bench.push(Kind.EXECUTE, cycles=30)
    sti = bench.push(enable)
    work = bench.push(Kind.EXECUTE, cycles=30)
    bench.run()
    [interruption] = bench.host.interruptions
    assert interruption.at == sti.issued + 1
    assert interruption.squashed is work


def test_masked_inside_the_handler():
    bench = CoreBench()
    bench.host.handler = lambda _: [Op(Kind.EXECUTE, cycles=20), Op(Kind.IRET)]
    bench.interrupts.update({5: 0x21, 6: 0x22, 7: 0x23})
    bench.push(Kind.EXECUTE, cycles=100)
    bench.run()
    # 0x23 goes before 0x22; each handler: 1 to hand over, 20, IRET
    assert [(i.at, i.vector, i.remaining) for i in bench.host.interruptions] == [
        (6, 0x21, 95),
        (6 + 23, 0x23, 0),
        (6 + 46, 0x22, 0),
    ]


@pytest.mark.parametrize("kind", [Kind.MMIO_READ, Kind.FENCE])
def test_not_inside_mmio_reads_and_fences(kind):
    bench = CoreBench(hit=0, miss=(60, 60), device_latency=(60, 60))
    if kind == Kind.FENCE:
        bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.interrupts[10] = VECTOR
    op = bench.push(kind, address=0xF0000000, size=4)
    after = bench.push(Kind.EXECUTE, cycles=1)
    bench.run()
    [interruption] = bench.host.interruptions
    assert op.completed > 50
    assert interruption.at == op.completed + 1
    assert interruption.squashed is after


@pytest.mark.parametrize(
    "kind,options",
    [
        (Kind.MMIO_READ, {"store_delay": (60, 60)}),
        (Kind.MMIO_WRITE, {"store_delay": (60, 60)}),
        (Kind.LOAD, {"store_delay": (60, 60)}),
    ],
)
def test_an_operation_that_waits_is_squashed(kind, options):
    bench = CoreBench(**options)
    bench.push(Kind.STORE, address=0x1004, size=4, data=0x55)
    op = bench.push(kind, address=0x1000, size=8)
    bench.interrupts[20] = VECTOR
    bench.run()
    [interruption] = bench.host.interruptions
    assert (interruption.at, interruption.squashed) == (21, op)
    assert op.issued == at(bench.cache.log, "visible")[0] + 1


def test_an_offer_stands_until_accepted():
    bench = CoreBench(ready=0)
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    after = bench.push(Kind.EXECUTE, cycles=1)
    bench.interrupts[20] = VECTOR

    def accept(ctx, now, op):
        bench.cache.ready = 1.0 if now >= 50 else 0.0

    bench.on_edge = accept
    bench.run()
    [interruption] = bench.host.interruptions
    assert (load.issued, interruption.at, interruption.squashed) == (51, 52, after)


def test_loads_in_flight_survive_an_interrupt():
    bench = bench_with_memory(hit=0, miss=(40, 40))
    load = bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.interrupts[20] = VECTOR
    bench.run()
    [interruption] = bench.host.interruptions
    assert interruption.at < load.completed
    assert load.result == bench.cache.read(0x1000, 8)


# Quiet


@pytest.mark.parametrize(
    "kind,options",
    [
        (Kind.LOAD, {"hit": 0, "miss": (100, 100)}),
        (Kind.MMIO_READ, {"device_latency": (100, 100)}),
        (Kind.EXECUTE, {}),
        (Kind.STORE, {"store_delay": (100, 100)}),
    ],
)
def test_waiting_is_quiet(kind, options):
    bench = CoreBench(**options)
    bench.push(kind, address=0x1000, size=8, cycles=100)
    bench.push(Kind.FENCE)
    bench.run()
    assert len(bench.quiet) >= 95


def test_halt_is_quiet():
    bench = CoreBench()
    bench.push(Kind.HALT)
    bench.push(Kind.LOAD, address=0x1000, size=8)
    bench.run(cycles=100, drain=False)
    assert bench.quiet == list(range(2, 100))
