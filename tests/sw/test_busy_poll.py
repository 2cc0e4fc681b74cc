"""Who waits polls the card: the program that reads, or a thread; the interrupt is masked, no packet is forgotten."""

import random
import zlib

import pytest

from sw.core import Mode
from sw.linux.napi import NAPI_STRUCT, NapiState
from sw.linux.smp import RESCHEDULE_VECTOR
from tests.sw.functional_machine import FunctionalMachine
from tests.sw.test_receive_path import DROPS, PORTS, Bench, make_system, pad, udp

#: Ticks of the functional machine, which are its ns: 50 us of busy polling.
BUSY_READ = 50_000


class PollingBench(Bench):
    def __init__(self, **options):
        super().__init__(**{"path": "busypoll", "ports": (9,), "compute": ()} | options)

    def functions(self, since=0):
        """Name and mode of what has run."""
        record = self.system.record
        return {(record.function_of(handle), record.mode_of(handle)) for handle in range(since, len(record))}

    @property
    def state(self) -> NapiState:
        address = self.system.path.adapter.napi.address + NAPI_STRUCT.state.offset
        return NapiState(int.from_bytes(self.machine.memory[address : address + 4], "little"))


@pytest.mark.parametrize("app_core", (0, 1))
def test_payloads_arrive_unchanged(app_core):
    rng = random.Random(1)
    payloads = [rng.randbytes(n) for n in [0, 1, 7, 18, 22, 63, 64, 65, 68, 69, 200, 1000, 1471, 1472]]
    bench = PollingBench(app_core=app_core).send([pad(udp(p)) for p in payloads], gap=9000)
    assert bench.dropped == {}
    assert bench.crc == {i: zlib.crc32(p) for i, p in enumerate(payloads)}


def test_a_program_that_polls_is_not_interrupted():
    """The first packet tells the socket whom to poll; from then on nothing happens but in the program's own calls."""
    bench = PollingBench().send([pad(udp(b"x" * 18))] * 60, gap=6000)
    assert len(bench.delivered) == 60
    # The second finds the program polling, and the card has masked its cause. The third comes at the end, when the
    # program unmasks it: the card has remembered the cause.
    assert bench.interrupts <= 3
    functions = bench.functions()
    assert ("ixgbe_clean_rx_irq", Mode.KERNEL) in functions and ("udp_rcv", Mode.KERNEL) in functions
    assert max(bench.polls) <= 8
    softirqs = [bench.system.record.function_of(h) == "net_rx_action" for h in range(len(bench.system.record))]
    assert sum(softirqs) < 100


def in_and_out_of_patience(bench) -> PollingBench:
    """Pairs of packets: the program polls when the second comes, and sleeps when the next pair does."""
    tick = bench.machine.tick + 5000
    for _ in range(6):
        for after in (20_000, 3 * BUSY_READ):
            tick += after
            bench.machine.send(pad(udp(b"x")), tick)
    return bench.run()


def test_a_program_that_has_polled_long_enough_sleeps_and_is_woken_by_the_interrupt():
    bench = in_and_out_of_patience(PollingBench(busy_poll_us=BUSY_READ / 1000))
    assert len(bench.delivered) == 12
    assert bench.interrupts == 12
    assert "schedule" in {name for name, _ in bench.functions()}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("suspends", [True, False])
def test_no_packet_is_forgotten_at_any_moment(seed, suspends):
    """Packets around the time-out, around the last poll, in bursts longer than a budget; several programs poll."""
    rng = random.Random(seed)
    bench = PollingBench(
        ports=PORTS[: rng.choice([1, 3])],
        app_core=seed % 2,
        compute=rng.choice([(), (0,), (0, 1)]),
        busy_poll_us=rng.choice([2.0, 10.0, 50.0]),
        rcvbuf=rng.choice([5000, 212992]),
    )
    bench.system.path.adapter.napi.suspends_irqs = suspends
    names = list(DROPS)
    tick = bench.machine.tick + 5000
    for _ in range(150):
        tick += rng.choice([1, 50, 700, rng.randrange(1, 9000), 30_000])
        frame = DROPS[rng.choice(names)][0] if rng.random() < 0.1 else pad(udp(rng.randbytes(200), rng.choice(PORTS)))
        bench.machine.send(frame, tick)
    bench.run()


def test_an_interrupt_that_stays_masked_is_noticed(monkeypatch):
    """The planted bug: a program that goes to sleep does not give the interrupt back."""

    async def nothing(cpu, sock):
        pass

    monkeypatch.setattr("sw.linux.net.udp.napi_resume_irqs", nothing)
    bench = PollingBench()
    with pytest.raises(AssertionError, match="not every frame was accounted for"):
        in_and_out_of_patience(bench)


# Threads


def test_a_thread_polls_on_the_core_it_is_told():
    bench = PollingBench(path="napi", napi_thread=1, compute=(0,))
    bench.send([pad(udp(bytes([i]) * 18)) for i in range(40)], gap=9000)
    assert bench.crc == {i: zlib.crc32(bytes([i]) * 18) for i in range(40)}
    functions = bench.functions()
    assert ("napi_threaded_poll_loop", Mode.KERNEL) in functions and ("udp_rcv", Mode.KERNEL) in functions
    assert "net_rx_action" not in {name for name, _ in functions}
    record = bench.system.record
    polls = {note.core for note in record.notes if note.kind == "poll"}
    # The card interrupts core 0, which wakes the thread on core 1 (polling: no interrupt), which wakes the program.
    assert polls == {1}
    vectors = {(note.core, note.data["vector"]) for note in record.notes if note.kind == "interrupt"}
    assert (0, RESCHEDULE_VECTOR) in vectors and not any(core == 1 for core, _ in vectors)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thread, app", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_threads_and_programs_anywhere(seed, thread, app):
    rng = random.Random(seed)
    bench = PollingBench(
        path="napi", napi_thread=thread, app_core=app, ports=PORTS, compute=rng.choice([(), (0, 1)]), ring_size=128
    )
    tick = bench.machine.tick + 5000
    for _ in range(150):
        tick += rng.choice([1, 50, 700, rng.randrange(1, 9000), 30_000])
        bench.machine.send(pad(udp(rng.randbytes(rng.randrange(300)), rng.choice(PORTS))), tick)
    bench.run()
    assert bench.dropped == {}


def test_a_thread_that_spins_needs_no_interrupt():
    bench = PollingBench(application="kthread", busy_poll_us=0.0)
    bench.send([pad(udp(bytes([i]) * 18)) for i in range(60)], gap=3000)
    assert bench.crc == {i: zlib.crc32(bytes([i]) * 18) for i in range(60)}
    card = [n for n in bench.system.record.notes if n.kind == "interrupt" and n.data["vector"] != RESCHEDULE_VECTOR]
    assert len(card) <= 2  # the one that starts the thread, and one that it finds under way
    assert bench.machine.nic.mask & 1 == 0


def test_a_thread_that_spins_needs_a_core():
    with pytest.raises(ValueError, match="spins on core 0 leaves nothing of it to the programs there"):
        make_system(FunctionalMachine(), path="busypoll", application="kthread", napi_thread=0, ring_size=64)
    with pytest.raises(ValueError, match="spins on core 0 leaves nothing"):
        make_system(FunctionalMachine(), path="busypoll", application="kthread", compute=(0, 1), ring_size=64)
    with pytest.raises(ValueError, match="polls for 0 to 2147483647 us, not -3 us"):
        make_system(FunctionalMachine(), path="busypoll", busy_poll_us=-3.0, ring_size=64)
    with pytest.raises(ValueError, match="no core 7 to poll on; cores: 0 to 1"):
        make_system(FunctionalMachine(), napi_thread=7, ring_size=64)
