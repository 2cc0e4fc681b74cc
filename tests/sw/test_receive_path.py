"""From the wire to the program: what is sent is delivered, everything else is dropped for a reason."""

import asyncio
import itertools
import random
import zlib
from collections import Counter

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot3, Ether
from scapy.packet import Raw

from hw.nic.registers import REG
from sw.core import Mode
from sw.costs import load_costs
from sw.ixgbe.hw import IxgbeError
from sw.ixgbe.main import IxgbeAdapter
from sw.ixgbe.ring import RX_RING
from sw.linux.mm import PAGE_SIZE, OutOfMemoryError
from sw.options import Options
from sw.port import OperationKind, WakeKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine

MAC = bytes.fromhex("020000000001")
IP_ADDRESS = bytes([10, 0, 0, 1])
PORTS = (9, 53, 11211)
COSTS = load_costs()


def make_system(machine, dram_bytes=4 << 20, path="napi", **options):
    """The software of two cores on ``machine``."""
    return System(machine, 2, dram_bytes, COSTS, path, Options(mac=MAC, addresses=(IP_ADDRESS,), **options))


class Bench:
    """A system on the functional machine, and what became of every frame sent to it."""

    def __init__(self, dram_bytes=4 << 20, path="napi", **options):
        options = {"ring_size": 64, "ports": PORTS, "compute": (0, 1), "itr_us": 0.0} | options
        self.machine = FunctionalMachine(cores=2, dram_bytes=dram_bytes)
        self.delivered: dict[int, tuple[int, int]] = {}  #: frame -> port, length
        self.crc: dict[int, int] = {}
        self.dropped: dict[int, str] = {}
        self.interrupts = 0
        self.polls = []
        self.system = System(
            self.machine,
            2,
            dram_bytes,
            COSTS,
            path,
            Options(mac=MAC, addresses=(IP_ADDRESS,), **options),
            on_note=self.noted,
        )
        asyncio.run(self.system.boot())

    def frame_of(self, note) -> int:
        """Which frame a note is about: nth write-back, nth completed descriptor."""
        return self.machine.nic.written_back[note.data["packet"][1]]

    def noted(self, note) -> None:
        if note.kind == "delivered":
            frame = self.frame_of(note)
            assert frame not in self.delivered and frame not in self.dropped
            self.delivered[frame] = (note.data["port"], note.data["length"])
        elif note.kind == "read":
            self.crc[self.frame_of(note)] = note.data["crc32"]
        elif note.kind == "dropped":
            frame = self.frame_of(note)
            assert frame not in self.delivered and frame not in self.dropped
            self.dropped[frame] = note.data["reason"]
        elif note.kind == "interrupt":
            self.interrupts += 1
        elif note.kind == "poll":
            self.polls.append(note.data["work"])
        self.check_stop()

    def check_stop(self) -> None:
        nic = self.machine.nic
        gone = len(self.delivered) + len(self.dropped) + len(nic.no_descriptor) + nic.filtered
        if self.machine.sent and gone == self.machine.sent:
            self.system.stop()

    def send(self, frames, gap=4000, start=5000, split=0):
        """Let frames arrive ``gap`` ticks apart, then run until all are accounted for."""
        tick = self.machine.tick + start
        for i, frame in enumerate(frames):
            self.machine.send(bytes(frame), tick + i * gap, split)
        return self.run()

    def run(self):
        limit = self.machine.tick + 100_000_000
        while True:
            ended = asyncio.run(self.system.run(limit))
            if ended is not WakeKind.IDLE:
                break
            self.check_stop()
            if not self.system.kernel.stopping:
                break
        assert ended is None, "not every frame was accounted for"
        for program in self.system.computes:
            assert program.intact is True
            assert program.chunks > 0
        self.check_memory()
        return self

    def check_memory(self) -> None:
        """Nothing leaked: no skb is in use, the rings of pages add up."""
        kernel = self.system.kernel
        assert not kernel.packet_of
        for cpu in kernel.cpus:
            assert int.from_bytes(self.machine.memory[cpu.preempt_count_address :][:4], "little") == 0
            assert int.from_bytes(self.machine.memory[cpu.softirq_pending_address :][:4], "little") == 0


def udp(payload=b"hello", port=9, **ip):
    return (
        Ether(src="02:00:00:00:00:02", dst=MAC.hex(":"))
        / IP(src="10.0.0.2", dst="10.0.0.1", **ip)
        / UDP(sport=1234, dport=port)
        / Raw(payload)
    )


def pad(frame) -> bytes:
    """As the sender's MAC pads it."""
    return bytes(frame).ljust(60, b"\0")


def test_payloads_arrive_unchanged():
    rng = random.Random(1)
    payloads = [rng.randbytes(n) for n in [0, 1, 7, 8, 18, 22, 63, 64, 65, 68, 69, 200, 1000, 1471, 1472]]
    ports = [rng.choice(PORTS) for _ in payloads]
    bench = Bench().send([pad(udp(p, port)) for p, port in zip(payloads, ports, strict=True)])
    assert bench.dropped == {}
    assert bench.delivered == {i: (ports[i], len(p)) for i, p in enumerate(payloads)}
    assert bench.crc == {i: zlib.crc32(p) for i, p in enumerate(payloads)}


def corrupt(frame, offset, flip=1) -> bytes:
    data = bytearray(pad(frame))
    data[offset] ^= flip
    return bytes(data)


def no_checksum(payload):
    frame = udp(payload)
    frame[UDP].chksum = 0
    return pad(frame)


DROPS = {
    "no socket": (pad(udp(port=10)), "NO_SOCKET"),
    "no socket, long and wrong": (corrupt(udp(b"x" * 200, port=10), 100), "UDP_CSUM"),
    "no socket, long": (pad(udp(b"x" * 200, port=10)), "NO_SOCKET"),
    "short datagram, wrong": (corrupt(udp(b"x" * 20), 45), "UDP_CSUM"),
    "long datagram, wrong": (corrupt(udp(b"x" * 300), 200), "UDP_CSUM"),
    "header checksum": (corrupt(udp(), 14 + 10), "IP_CSUM"),
    "version": (corrupt(udp(), 14, 0x50), "IP_INHDR"),
    "header length": (corrupt(udp(), 14, 0x06), "IP_INHDR"),
    "header beyond the packet": (pad(Ether(dst=MAC.hex(":"), type=0x800) / Raw(b"\x4f" + bytes(45))), "PKT_TOO_SMALL"),
    "total length beyond the frame": (pad(udp(len=200)), "PKT_TOO_SMALL"),
    "total length within the header": (pad(udp(len=12)), "IP_INHDR"),
    "other address": (pad(Ether(dst=MAC.hex(":")) / IP(dst="10.0.0.3") / UDP(dport=9)), "IP_INADDRERRORS"),
    "fragment": (pad(udp(b"x" * 64, flags="MF")), "FRAG_REASM_TIMEOUT"),
    "later fragment": (pad(udp(b"x" * 64, frag=3)), "FRAG_REASM_TIMEOUT"),
    "TCP": (pad(Ether(dst=MAC.hex(":")) / IP(dst="10.0.0.1") / TCP(dport=80)), "IP_NOPROTO"),
    "ping": (pad(Ether(dst=MAC.hex(":")) / IP(dst="10.0.0.1") / ICMP()), "IP_NOPROTO"),
    "ARP": (pad(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.0.1")), "UNHANDLED_PROTO"),
    "IPv6": (pad(Ether(dst=MAC.hex(":"), type=0x86DD) / Raw(bytes(40))), "UNHANDLED_PROTO"),
    "802.3": (pad(Dot3(dst=MAC.hex(":"), len=40) / Raw(bytes(40))), "UNHANDLED_PROTO"),
    "EtherType like a bucket": (pad(Ether(dst=MAC.hex(":"), type=0x0810) / Raw(bytes(46))), "UNHANDLED_PROTO"),
    "UDP length beyond the packet": (corrupt(udp(), 14 + 20 + 4, 0x01), "PKT_TOO_SMALL"),
    "UDP length below its header": (corrupt(udp(), 14 + 20 + 5, 13 ^ 7), "PKT_TOO_SMALL"),
    "no room for a UDP header": (
        pad(Ether(dst=MAC.hex(":")) / IP(dst="10.0.0.1", proto=17) / Raw(b"abcd")),
        "PKT_TOO_SMALL",
    ),
    "a frame of 60 zeros": (MAC + bytes(54), "UNHANDLED_PROTO"),
}


@pytest.mark.parametrize("name", DROPS)
def test_drop(name):
    frame, reason = DROPS[name]
    good = pad(udp(b"good"))
    bench = Bench().send([good, frame, good])
    assert bench.dropped == {1: reason}
    assert set(bench.delivered) == {0, 2}
    assert bench.system.kernel.drops == {reason: 1}


def test_other_hosts_frames_are_dropped_by_the_stack_when_promiscuous():
    stranger = Ether(dst="02:00:00:00:00:77") / udp().payload
    bench = Bench(promiscuous=True).send([pad(stranger), pad(udp())])
    assert bench.dropped == {0: "OTHERHOST"}
    bench = Bench().send([pad(stranger), pad(udp())])
    assert bench.dropped == {} and bench.machine.nic.filtered == 1


def test_no_checksum_and_options_and_checksum_by_the_card():
    bench = Bench().send([no_checksum(b"abc"), no_checksum(b"x" * 500), pad(udp(options=b"\x01" * 4))])
    assert set(bench.delivered) == {0, 1, 2}
    # A card that says it has checked is believed.
    wrong = corrupt(udp(b"x" * 20), 45)
    bench = Bench()
    bench.machine.nic.checksum_status = lambda frame: {"l4cs": 1, "ipcs": 1}
    bench.send([wrong])
    assert set(bench.delivered) == {0}
    bench = Bench()
    bench.machine.nic.checksum_status = lambda frame: {"l4cs": 1, "l4_error": 1}
    bench.send([wrong])
    assert bench.dropped == {0: "UDP_CSUM"}


def test_frame_errors_and_frames_of_several_buffers():
    bench = Bench()
    bench.machine.nic.checksum_status = lambda frame: {"receive_error": int(b"broken" in frame)}
    bench.send([pad(udp(b"broken")), pad(udp(b"whole"))])
    assert bench.dropped == {0: "NOT_SPECIFIED"}
    assert set(bench.delivered) == {1}

    bench = Bench()
    bench.frame_of = lambda note: {3: 0, 7: 1}[note.data["packet"][1]]  # the number of its last descriptor
    bench.send([pad(udp(b"x" * 900)), pad(udp(b"y" * 900))], split=256)
    assert bench.dropped == {0: "PKT_TOO_BIG", 1: "PKT_TOO_BIG"}


def test_ring_wraps():
    frames = [pad(udp(i.to_bytes(4, "big") * 6, PORTS[i % 3])) for i in range(300)]
    bench = Bench(ring_size=32).send(frames, gap=9000)
    assert bench.delivered.keys() == set(range(300))
    assert bench.crc == {i: zlib.crc32(i.to_bytes(4, "big") * 6) for i in range(300)}
    nic = bench.machine.nic
    assert nic.get(REG.RDLEN) == 32 * 16
    # All but one descriptor and an incomplete batch are the card's again.
    assert (nic.get(REG.RDT) - nic.get(REG.RDH)) % 32 >= 31 - 16


def test_overload_loses_packets_only_for_a_reason():
    """Faster than the software: the ring and the socket's buffer overflow, every frame is accounted for."""
    count = 600
    bench = Bench(ring_size=64, rcvbuf=20_000, netdev_budget=16).send([pad(udp(b"x" * 18))] * count, gap=300)
    reasons = Counter(bench.dropped.values())
    assert reasons.keys() == {"SOCKET_RCVBUFF"}
    assert len(bench.delivered) + reasons["SOCKET_RCVBUFF"] + len(bench.machine.nic.no_descriptor) == count
    assert len(bench.delivered) >= 9
    assert max(bench.polls) == 64


def test_budget_and_restarts_hand_over_to_ksoftirqd():
    """Under a burst longer than ten rounds of the softirq the thread takes over, and none is lost."""
    count = 1000
    bench = Bench(dram_bytes=16 << 20, ring_size=1024, rcvbuf=4 << 20, netdev_budget=64)
    bench.send([pad(udp(b"x" * 18))] * count, gap=50)
    assert bench.system.kernel.time_squeezes >= 10
    record = bench.system.record
    assert "ksoftirqd" in {record.function_of(h) for h in range(len(record))}
    assert len(bench.delivered) == count


def test_a_program_gets_on_while_ksoftirqd_is_at_work():
    """Its system calls leave pending softirqs to the thread, which lets it run in between: no flood starves it."""
    bench = Bench(dram_bytes=16 << 20, ring_size=64, rcvbuf=16_384, netdev_budget=16)
    bench.send([pad(udp(b"x" * 18))] * 4000, gap=600)
    delivered = sorted(bench.delivered)
    turns = [first for first, later in itertools.pairwise(delivered) if later - first > 100]
    assert len(turns) >= 2, "the program ran only before and after the flood"
    assert max(delivered) > 3000


def test_without_memory_for_buffers_the_driver_keeps_polling():
    """Sockets that hold all pages starve the ring; when they are read, receiving goes on."""
    options = {"ring_size": 64, "ports": (9, 53), "rcvbuf": 1 << 20}
    at_boot = Bench(dram_bytes=1 << 20, **options).system.kernel.memblock.next
    bench = Bench(dram_bytes=(at_boot // PAGE_SIZE + 68) * PAGE_SIZE, **options)
    bench.send([pad(udp(b"x" * 18, 9)), pad(udp(b"y" * 18, 53))] * 300, gap=1000)
    state = bench.system.path.adapter.ring.state
    failed = RX_RING.alloc_rx_page_failed
    assert int.from_bytes(bench.machine.memory[state + failed.offset :][: failed.size], "little") > 0
    assert bench.machine.nic.no_descriptor
    later = Counter(i // 100 for i in bench.delivered)
    assert later[5] > 0


def test_interrupt_in_the_middle_of_computing_restores_it():
    """Interrupts at every kind of moment; both programs' registers and memory are intact (checked by ``run``)."""
    rng = random.Random(2)
    bench = Bench()
    tick = bench.machine.tick + 5000
    for _ in range(150):
        tick += rng.randrange(1, 15_000)
        bench.machine.send(pad(udp(rng.randbytes(rng.randrange(0, 100)), rng.choice(PORTS))), tick)
    bench.run()
    assert len(bench.delivered) == 150
    assert bench.interrupts > 75
    # The stack in memory, not Python, carries the registers: spoil it there and the program notices.
    bench = Bench(ports=(9,))
    compute = next(t for t in bench.system.kernel.tasks.values() if t.name == "compute/0")

    def spoil(offset, value, now):
        if offset == REG.EIMS.offset():  # re-arming: the interrupted registers lie on the stack
            bench.machine.memory[compute.stack_pointer + 5] ^= 1

    bench.machine.mmio_hook = spoil
    with pytest.raises(AssertionError):
        bench.send([pad(udp())])
    assert bench.system.computes[0].intact is False


@pytest.mark.parametrize("delay", [1, 0])
def test_no_interrupt_is_lost_between_the_last_poll_and_re_arming(delay):
    """A frame that arrives after the ring was found empty and before the cause is unmasked interrupts at once."""
    bench = Bench()
    late = iter([pad(udp(b"late", 53)), pad(udp(b"later", 53))])

    def arrive(offset, value, now):
        if offset == REG.EIMS.offset():
            frame = next(late, None)
            if frame is not None:
                if delay:
                    bench.machine.send(frame, now + delay)
                else:
                    number = bench.machine.sent
                    bench.machine.sent += 1
                    bench.machine.nic.receive(number, frame)

    bench.machine.mmio_hook = arrive
    bench.send([pad(udp(b"first"))])
    assert len(bench.delivered) == 3
    assert bench.interrupts == 3


def test_an_interrupt_during_the_poll_makes_it_poll_again():
    """Without the card's auto-mask the top half finds the poll running, and completing it must notice."""
    bench = Bench(ring_size=64)
    bench.machine.nic.registers[REG.EIAM.offset()] = 0
    bench.send([pad(udp(b"x" * 18))] * 60, gap=700)
    assert len(bench.delivered) == 60


@pytest.mark.parametrize("seed", range(6))
def test_random_arrivals(seed):
    """Any mixture, at any moments: each frame has one outcome, and the right one."""
    rng = random.Random(seed)
    bench = Bench(
        ring_size=rng.choice([32, 64, 128]), itr_us=rng.choice([0.0, 10.0]), rcvbuf=rng.choice([5000, 212992])
    )
    names = list(DROPS)
    expected = {}
    tick = bench.machine.tick + 5000
    for i in range(120):
        tick += rng.choice([1, 50, 700, 4000, 20_000])
        if rng.random() < 0.3:
            frame, expected[i] = DROPS[rng.choice(names)]
        else:
            frame = pad(udp(rng.randbytes(rng.randrange(1400)), rng.choice(PORTS)))
            expected[i] = None
        bench.machine.send(frame, tick)
    bench.run()
    missing = set(bench.machine.nic.no_descriptor)
    for i, reason in expected.items():
        if i in missing:
            continue
        if i in bench.delivered:
            assert reason is None
        else:
            assert bench.dropped[i] in (reason or "SOCKET_RCVBUFF", "SOCKET_RCVBUFF")


def test_same_run_twice_is_the_same():
    def once():
        bench = Bench().send([pad(udp(bytes([i]) * i)) for i in range(40)], gap=3000)
        return bench.system.record.tags.tobytes(), bench.system.record.notes, bench.machine.tick

    assert once() == once()


def test_everything_is_attributed():
    bench = Bench().send([pad(udp())] * 5)
    record = bench.system.record
    assert len(record) == bench.machine.operations
    functions = {(record.function_of(h), record.mode_of(h)) for h in range(len(record))}
    for expected in [
        ("common_interrupt", Mode.IRQ),
        ("napi_schedule", Mode.IRQ),
        ("net_rx_action", Mode.SOFTIRQ),
        ("ixgbe_clean_rx_irq", Mode.SOFTIRQ),
        ("udp_rcv", Mode.SOFTIRQ),
        ("try_to_wake_up", Mode.SOFTIRQ),
        ("schedule", Mode.KERNEL),
        ("recvfrom", Mode.KERNEL),
        ("sink_receive", Mode.USER),
        ("compute_chunk", Mode.USER),
    ]:
        assert expected in functions
    assert not any(name == "(none)" for name, _ in functions)


def test_loads_from_a_loaded_address_wait_for_it(monkeypatch):
    """The chains of one packet: which load each load of a function needs, by the functions of both."""
    loads = {}
    push = FunctionalMachine.push

    def recorded(self, context, kind, *operands, after=-1, **named):
        positional = dict(zip(("address", "size", "data", "cycles", "uops", "after"), operands, strict=False))
        if kind == OperationKind.LOAD.value:
            loads[self.operations] = positional.get("after", after)
        return push(self, context, kind, *operands, **({"after": after} if "after" not in positional else {}), **named)

    monkeypatch.setattr(FunctionalMachine, "push", recorded)
    bench = Bench(compute=(), ports=(9, 9 + 256), itr_us=0)
    begin = bench.machine.operations
    bench.send([pad(udp(b"x" * 200))])
    name = bench.system.record.function_of
    chains = Counter((name(h), name(after)) for h, after in loads.items() if h >= begin and after >= 0)
    for needing, needed, count in [
        ("net_rx_action", "net_rx_action", 2),  # its neighbours: the poll list
        ("ixgbe_clean_rx_irq", "ixgbe_clean_rx_irq", 4),  # descriptors and buffer: the ring; the page: the buffer
        ("eth_type_trans", "ixgbe_clean_rx_irq", 1),  # the header: the buffer
        ("netif_receive_skb", "netif_receive_skb", 1),  # the bucket: the protocol
        ("ip_rcv", "ip_rcv", 1),  # the header: the skb
        ("udp4_lib_lookup", "udp_rcv", 1),  # the slot: the port in the header
        ("udp4_lib_lookup", "udp4_lib_lookup", 4),  # two sockets in one slot
        ("udp_enqueue_schedule_skb", "udp4_lib_lookup", 2),
        ("sock_def_readable", "sock_def_readable", 3),  # the sleeper's task, its neighbours
        ("try_to_wake_up", "try_to_wake_up", 2),  # the running task's priority and flags
        ("context_switch", "schedule", 3),  # the registers: the queue
        ("skb_recv_udp", "skb_recv_udp", 3),  # the skb's neighbours and size
        ("udp_recvmsg", "skb_recv_udp", 5),  # the skb
        ("udp_recvmsg", "udp_recvmsg", 6),  # header and 200 bytes of data
    ]:
        assert chains[needing, needed] == count, (needing, needed, chains[needing, needed])


def test_cores_rest_when_there_is_nothing_to_do():
    bench = Bench(compute=())
    assert asyncio.run(bench.system.run()) is WakeKind.IDLE
    bench.send([pad(udp())] * 3, gap=100_000)
    record = bench.system.record
    assert ("default_idle", Mode.IDLE) in {(record.function_of(h), record.mode_of(h)) for h in range(len(record))}


@pytest.mark.parametrize("register", ["CTRL", "EEC", "RXDCTL"])
def test_a_card_that_does_not_answer_is_given_up(register):
    machine = FunctionalMachine()
    system = make_system(machine, ring_size=64)
    machine.nic.broken = {register}
    if register == "CTRL":
        machine.nic.broken = set()
        machine.nic.read = lambda offset: 0xFFFF_FFFF  # as a card that has gone
    with pytest.raises(IxgbeError, match=f"{register} reads 0x"):
        asyncio.run(system.boot())


def test_impossible_options_are_refused():
    def make(**options):
        return make_system(FunctionalMachine(), **options)

    with pytest.raises(ValueError, match="32 to 4096 descriptors, a multiple of 8, not 0"):
        make(ring_size=0)
    with pytest.raises(ValueError, match="not 100"):
        make(ring_size=100)
    with pytest.raises(ValueError, match="interval must be between 0 and 1046 us, not 5000 us"):
        make(ring_size=64, itr_us=5000)
    with pytest.raises(ValueError, match="UDP port is between 1 and 65535, not 70000"):
        make(ring_size=64, ports=(70000,))
    with pytest.raises(ValueError, match="no core 2 to compute on"):
        make(ring_size=64, compute=(2,))
    with pytest.raises(OutOfMemoryError, match="DRAM are too few"):
        make_system(FunctionalMachine(), 64 << 10)
    assert isinstance(make(ring_size=64).path.adapter, IxgbeAdapter)
