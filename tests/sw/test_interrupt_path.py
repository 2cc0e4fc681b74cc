"""All in the interrupt handler: what is sent is delivered, nothing dead-locks, overload starves the programs."""

import random
import zlib
from collections import Counter

import pytest

from hw.nic.registers import REG
from sw.core import Mode
from tests.sw.test_receive_path import DROPS, PORTS, Bench, pad, udp


class InterruptBench(Bench):
    def __init__(self, **options):
        super().__init__(**{"path": "interrupt"} | options)


@pytest.mark.parametrize("app_core", (0, 1))
def test_payloads_arrive_unchanged_and_nothing_runs_in_a_softirq(app_core):
    rng = random.Random(1)
    payloads = [rng.randbytes(n) for n in [0, 1, 7, 18, 22, 63, 64, 65, 68, 69, 200, 1000, 1471, 1472]]
    bench = InterruptBench(app_core=app_core)
    bench.send([pad(udp(p, rng.choice(PORTS))) for p in payloads], gap=12_000)
    assert bench.dropped == {}
    assert bench.crc == {i: zlib.crc32(p) for i, p in enumerate(payloads)}
    record = bench.system.record
    functions = {(record.function_of(h), record.mode_of(h)) for h in range(len(record))}
    assert {("ixgbe_intr", Mode.IRQ), ("udp_rcv", Mode.IRQ), ("sock_def_readable", Mode.IRQ)} <= functions
    names = {name for name, _ in functions}
    assert not names & {"napi_schedule", "net_rx_action", "ixgbe_poll", "napi_gro_receive"}
    assert not any(mode is Mode.SOFTIRQ for _, mode in functions)
    assert bench.polls == [] and bench.interrupts >= len(payloads)


def test_the_card_masks_nothing_by_itself():
    nic = InterruptBench().machine.nic
    assert nic.get(REG.EIAM) == 0 and nic.mask & REG.EIMS.RTXQ.mask


@pytest.mark.parametrize("seed", range(6))
def test_handlers_at_every_moment_of_the_reader_do_not_dead_lock(seed):
    """Packets that come while the reader holds its socket's lock, takes or gives memory, or goes to sleep."""
    rng = random.Random(seed)
    bench = InterruptBench(
        ring_size=rng.choice([32, 64]), rcvbuf=rng.choice([5000, 212992]), app_core=seed % 2, compute=(0,)
    )
    names = list(DROPS)
    tick = bench.machine.tick + 5000
    for _ in range(150):
        tick += rng.choice([rng.randrange(1, 3000), rng.randrange(1500, 5000), 20_000])
        frame = DROPS[rng.choice(names)][0] if rng.random() < 0.1 else pad(udp(rng.randbytes(200), rng.choice(PORTS)))
        bench.machine.send(frame, tick)
    bench.run()


def test_a_lock_that_lets_interrupts_in_is_noticed(monkeypatch):
    """The planted bug: the reader takes the socket's lock as under NAPI."""
    monkeypatch.setattr("sw.linux.spinlock.LOCKUP_LOOKS", 30)
    monkeypatch.setattr("sw.linux.spinlock._POLL_LOOKS", 10)
    with pytest.raises(RuntimeError, match="spinlock lockup"):
        for seed in range(6):
            bench = InterruptBench(ports=(9,))
            bench.system.kernel.receives_in_hardirq = False
            rng = random.Random(seed)
            tick = bench.machine.tick + 5000
            for _ in range(150):
                tick += rng.randrange(1, 4000)
                bench.machine.send(pad(udp(b"x" * 18)), tick)
            bench.run()


def delivered_at(gap, path, count=300, **options) -> int:
    """Datagrams that the program got before the last frame had come, ``gap`` ticks apart."""
    bench = Bench(
        path=path, ports=(9,), compute=(), ring_size=64, rcvbuf=40_000, read=False, dram_bytes=16 << 20, **options
    )
    last = bench.machine.tick + 5000 + gap * count
    seen = 0
    noted = bench.system.on_note

    def counted(note):
        nonlocal seen
        if note.kind == "delivered" and bench.machine.tick < last:
            seen += 1
        noted(note)

    bench.system.on_note = counted
    bench.send([pad(udp(b"x" * 18))] * count, gap=gap)
    reasons = Counter(bench.dropped.values())
    assert reasons.keys() <= {"SOCKET_RCVBUFF"}
    assert len(bench.delivered) + reasons["SOCKET_RCVBUFF"] + len(bench.machine.nic.no_descriptor) == count
    return seen


def test_overload_starves_the_program():
    """Receive livelock: what is delivered in time falls to nothing as more is offered, though the core never rests."""
    delivered = {gap: delivered_at(gap, "interrupt") for gap in (8000, 4000, 300)}
    assert delivered[8000] == delivered[4000] == 300 or delivered[8000] > 290
    assert delivered[300] < 10
    # Moderation, a time for the program after each interrupt, is a cure.
    assert delivered_at(300, "interrupt", itr_us=80.0) > 10
