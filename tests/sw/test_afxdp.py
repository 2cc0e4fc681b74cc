"""AF_XDP: every packet is accounted for once, no chunk is lost, the kernel refuses what it refuses."""

import asyncio
import functools
from collections.abc import Iterator
from errno import EBUSY, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from sim.wire.traffic import BUNDLED_CAPTURE, Traffic
from sw.core import Dispatcher, Mode, Record
from sw.costs import load_tables
from sw.ixgbe.xsk import RX_BUFFER_ZC
from sw.libxdp.xsk import XSK_RING, xsk_socket_create
from sw.linux.kernel import Kernel
from sw.linux.xdp.errors import XskError
from sw.linux.xdp.if_xdp import XDP_RING, BindFlag, PageOffset, SocketOption
from sw.linux.xdp.pool import XDP_BUFF_XSK, XSK_BUFF_POOL
from sw.linux.xdp.queue import XSK_QUEUE
from sw.linux.xdp.syscall import xsk_bind, xsk_mmap, xsk_setsockopt, xsk_socket
from sw.linux.xdp.umem import XdpUmem
from sw.linux.xdp.xsk import XDP_SOCK, AfXdp
from sw.options import Options
from sw.paging import PHYSICAL_MASK
from sw.port import WakeKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine
from tests.sw.test_dpdk import Bench as PollModeBench

MAC = bytes.fromhex("020000000001")
COSTS = load_tables(("linux", "bpf", "xsk"))


def udp(sport=1000, size=18, dport=9):
    """A UDP datagram for the host, padded as Ethernet demands."""
    packet = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src="10.0.0.2", dst="10.0.0.1")
    return bytes(packet / UDP(sport=sport, dport=dport) / bytes(size)).ljust(60, b"\0")


class Bench:
    """Path "af-xdp" on the functional machine."""

    def __init__(self, application="rxdrop", **options):
        cores = options.pop("cores", 1)
        self.machine = FunctionalMachine(cores=cores)
        self.delivered: list[tuple[int, int]] = []  #: received frame, length
        self.sent: list[tuple[int, int]] = []  #: received frame, number of the frame sent
        self.dropped: dict[int, str] = {}
        small = {"ring_size": 64, "itr_us": 0.0} | options
        options = Options(mac=MAC, addresses=(), application=application, **small)
        self.system = System(self.machine, cores, 4 << 20, COSTS, "af-xdp", options, on_note=self.noted)
        asyncio.run(self.system.boot())

    def noted(self, note):
        if note.kind == "delivered":
            self.delivered.append((self.frame(note), note.data["length"]))
        elif note.kind == "sent":
            self.sent.append((self.frame(note), note.data["frame"][1]))
        elif note.kind == "dropped":
            self.dropped[self.frame(note)] = note.data["reason"]
        done = len(self.delivered) + len(self.sent) + len(self.dropped) + len(self.machine.nic.no_descriptor)
        if self.machine.sent and done == self.machine.sent:
            self.system.stop()

    def frame(self, note) -> int:
        return self.machine.nic.written_back[note.data["packet"][1]]

    @property
    def xs(self):
        return self.system.path.program.socket.xs

    def word(self, address, size=4) -> int:
        return int.from_bytes(self.machine.memory[address & PHYSICAL_MASK :][:size], "little")

    def field(self, base, field) -> int:
        return self.word(base + field.offset, field.size)

    def statistics(self) -> dict[str, int]:
        """``struct xdp_statistics``, out of memory."""
        xs = self.xs
        return {
            "rx_dropped": self.field(xs.address, XDP_SOCK.rx_dropped),
            "rx_ring_full": self.field(xs.address, XDP_SOCK.rx_queue_full),
            "rx_fill_ring_empty_descs": self.field(xs.pool.fq.address, XSK_QUEUE.queue_empty_descs),
            "fill_invalid_descs": self.field(xs.pool.fq.address, XSK_QUEUE.invalid_descs),
        }

    def entries(self, queue, consumer) -> Iterator[int]:
        """Addresses of the entries of a ring from ``consumer`` on."""
        for number in range(consumer, self.field(queue.ring, XDP_RING.producer)):
            yield self.word(queue.entry(number), 8)

    def check_chunks(self):
        """Each chunk is in a ring, with the card or on the free list, once."""
        xs, program = self.xs, self.system.path.program
        pool, ring = xs.pool, self.system.path.adapter.ring
        held = [*self.entries(pool.fq, self.field(pool.fq.address, XSK_QUEUE.cached_cons))]
        held += self.entries(xs.rx, self.field(program.socket.rx.address, XSK_RING.cached_cons))
        held += self.entries(pool.cq, self.field(program.socket.completion.address, XSK_RING.cached_cons))
        buffers = []
        if ring.xsk_pool is not None:
            buffers += [self.field(ring.buffers + n * RX_BUFFER_ZC.size, RX_BUFFER_ZC.xdp) for n in range(ring.count)]
        node = head = pool.address + XSK_BUFF_POOL.free_list.offset
        for _ in range(self.field(pool.address, XSK_BUFF_POOL.free_list_cnt)):
            node = self.word(node, 8)
            buffers.append(node - XDP_BUFF_XSK.free_list_node.offset)
        assert self.word(node, 8) == head
        held += [self.field(buffer, XDP_BUFF_XSK.orig_addr) for buffer in buffers if buffer]
        chunk = pool.umem.chunk_size
        assert sorted(address // chunk for address in held) == list(range(pool.umem.chunks))

    def send(self, frames, gap=3000):
        for index, frame in enumerate(frames):
            self.machine.send(frame, self.machine.tick + 5000 + index * gap)
        assert asyncio.run(self.system.run(self.machine.tick + 50_000_000)) is not WakeKind.LIMIT


@pytest.mark.parametrize("wakeup", ["spin", "poll"])
@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
@pytest.mark.parametrize("gap", [100, 2000, 30_000])
def test_every_packet_is_delivered_once_in_order(gap, mode, wakeup):
    bench = Bench(xdp_mode=mode, wakeup=wakeup)
    bench.send([udp(1000 + n, size=9 * n) for n in range(160)], gap)
    lost = set(bench.machine.nic.no_descriptor) | set(bench.dropped)
    kept = [n for n in range(160) if n not in lost]
    assert bench.delivered == [(n, max(42 + 9 * n, 60)) for n in kept]
    assert set(bench.dropped.values()) <= {"rx_fill_ring_empty_descs"}
    assert mode == "copy" or not bench.dropped
    bench.check_chunks()
    assert not lost or gap < 5000


@pytest.mark.parametrize("wakeup", ["spin", "poll"])
@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
@pytest.mark.parametrize("gap", [100, 2000, 30_000])
def test_echo_sends_every_datagram_back_once_in_order(gap, mode, wakeup):
    bench = Bench("echo", xdp_mode=mode, wakeup=wakeup)
    frames = [udp(1000 + n, size=9 * n) for n in range(160)]
    bench.send(frames, gap)
    lost = set(bench.machine.nic.no_descriptor) | set(bench.dropped)
    kept = [n for n in range(160) if n not in lost]
    assert bench.sent == list(zip(kept, range(len(kept)), strict=True))
    assert len(bench.machine.nic.transmitted) == len(kept)
    for number, frame in zip(kept, bench.machine.nic.transmitted, strict=True):
        came = frames[number]
        assert (
            frame
            == came[6:12] + came[:6] + came[12:26] + came[30:34] + came[26:30] + came[36:38] + came[34:36] + came[38:]
        )
    assert set(bench.dropped.values()) <= {"rx_fill_ring_empty_descs"}
    assert not lost or gap < 5000
    bench.check_chunks()


def test_what_is_no_datagram_is_dropped_and_its_chunk_comes_back():
    bench = Bench("echo")
    bench.send([udp(7), bytes(Ether(dst="02:00:00:00:00:01") / ARP()).ljust(60, b"\0"), udp(8)], 20_000)
    assert bench.sent == [(0, 0), (2, 1)] and bench.dropped == {1: "NOT_UDP"}
    bench.check_chunks()


@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_a_core_away_from_the_card_gets_the_same(mode):
    for application in ("rxdrop", "echo"):
        bench = Bench(application, xdp_mode=mode, wakeup="poll", app_core=1, cores=2)
        bench.send([udp(1000 + n) for n in range(80)], 6000)
        got = [n for n, _ in bench.delivered or bench.sent]
        assert got == list(range(80))
        bench.check_chunks()


def test_what_the_card_does_not_send_is_sent_later_and_nothing_is_lost():
    for mode in ("copy", "zero-copy"):
        bench = Bench("echo", xdp_mode=mode)
        bench.machine.nic.tx_stalled = True
        stopped = bench.system.stop
        bench.system.stop = lambda: None
        for n in range(100):
            bench.machine.send(udp(n + 1), bench.machine.tick + 5000 + n * 6000)
        asyncio.run(bench.system.run(bench.machine.tick + 700_000))
        # All descriptors but one; by the kernel's way, all but what the largest packet may need.
        assert len(bench.sent) == {"zero-copy": 63, "copy": 60}[mode]
        bench.system.stop = stopped
        bench.machine.nic.resume_tx()
        bench.send([udp(101)], 1)
        assert [frame for frame, _ in bench.sent] == list(range(101))
        assert len(bench.machine.nic.transmitted) == 101
        bench.check_chunks()


@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_addresses_outside_the_umem_in_the_fill_ring_are_counted_and_left_out(mode):
    bench = Bench(xdp_mode=mode)
    pool = bench.xs.pool
    # The program's next entries of the fill ring: half of what it gives back is nonsense.
    turn = bench.system.path.program.turn

    async def spoil(cpu, socket):
        before = bench.field(pool.fq.ring, XDP_RING.producer)
        count = await turn(cpu, socket)
        for number in range(before, before + count, 2):
            cpu.store(socket.fill.entry(number), pool.umem.size + 64, 8)
        await cpu.fence()
        return count

    bench.system.path.program.turn = spoil
    bench.send([udp(1000 + n) for n in range(300)], 10_000)
    lost = len(bench.dropped) + len(bench.machine.nic.no_descriptor)
    statistics = bench.statistics()
    assert lost and len(bench.delivered) + lost == 300
    assert statistics["fill_invalid_descs"] > 50
    if mode == "copy":
        assert set(bench.dropped.values()) == {"rx_fill_ring_empty_descs"}
        assert statistics["rx_dropped"] == len(bench.dropped)
    assert statistics["rx_fill_ring_empty_descs"]


@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_a_program_that_gives_nothing_back_runs_out_of_chunks(mode):
    bench = Bench(xdp_mode=mode)

    async def nothing(cpu, socket):
        cpu.execute(20_000)
        await cpu.drain()
        return 1

    bench.system.path.program.turn = nothing
    for n in range(200):
        bench.machine.send(udp(n + 1), bench.machine.tick + 5000 + n * 10_000)
    asyncio.run(bench.system.run(bench.machine.tick + 3_000_000))
    assert bench.statistics()["rx_fill_ring_empty_descs"]
    # The receive ring has a place for each chunk, so it never is what fills up.
    chunks = bench.xs.pool.umem.chunks
    if mode == "copy":
        assert bench.dropped == {n: "rx_fill_ring_empty_descs" for n in range(chunks, 200)}
    else:
        assert bench.machine.nic.no_descriptor == list(range(chunks, 200))


@pytest.mark.parametrize("wakes", [True, False])
@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_a_receive_ring_that_is_full(mode, wakes):
    """It holds up the card's ring where the program wakes the kernel, else packets are dropped."""
    bench = Bench(xdp_mode=mode)
    rx = bench.xs.rx
    object.__setattr__(rx, "entries", 16)
    bench.xs.pool.uses_need_wakeup = wakes

    async def nothing(cpu, socket):
        cpu.execute(20_000)
        await cpu.drain()
        return 1

    bench.system.path.program.turn = nothing
    for n in range(100):
        bench.machine.send(udp(n + 1), bench.machine.tick + 5000 + n * 10_000)
    asyncio.run(bench.system.run(bench.machine.tick + 2_000_000))
    assert bench.statistics()["rx_ring_full"] > 0
    kept = mode == "zero-copy" and wakes
    if kept:
        assert not bench.dropped and len(bench.machine.nic.no_descriptor) == 100 - 16 - 63
    else:
        assert bench.dropped == {n: "rx_ring_full" for n in range(16, 100)}


# What is refused

GOOD = XdpUmem(1 << 20, 64 * 4096, 4096)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"chunk_size": 1000}, "2048 or 4096 bytes, not 1000"),
        ({"chunk_size": 3072}, "2048 or 4096 bytes, not 3072"),
        ({"chunk_size": 8192}, "2048 or 4096 bytes, not 8192"),
        ({"flags": 1}, "unaligned chunks are not modelled"),
        ({"address": (1 << 20) + 64}, "begins on a page"),
        ({"address": (1 << 64) - 4096}, "wrap around"),
        ({"size": 0}, "at least one whole chunk of 4096 bytes, not 0"),
        ({"size": 4096 + 2048}, "at least one whole chunk"),
        ({"headroom": 3840}, "a headroom of 3840 bytes and the kernel's 256 leave nothing"),
    ],
)
def test_impossible_umems_are_refused(changed, told):
    with pytest.raises(XskError, match=f"^EINVAL: .*{told}") as refused:
        XdpUmem(**{"address": GOOD.address, "size": GOOD.size, "chunk_size": GOOD.chunk_size} | changed)
    assert refused.value.errno == EINVAL


class Device:
    """A device whose driver has no zero-copy."""

    ifindex, queues = 2, 1

    async def ndo_setup_xsk_pool(self, cpu, pool, queue):
        return -EOPNOTSUPP

    async def ndo_xsk_wakeup(self, cpu, queue, flags):
        return 0

    async def ndo_start_xmit(self, cpu, skb, queue):
        return False


def with_sockets(code, area=1 << 20):
    """Run ``code(cpu, family)`` in a program; returns what it returns."""
    machine = FunctionalMachine(cores=1)
    record = Record()
    kernel = Kernel(machine, 1, 4 << 20, COSTS, record, MAC, [], skbs=0)
    cpu = kernel.cpus[0]
    family = AfXdp(kernel, area, Device())
    task = kernel.new_task("test", cpu, 0, lambda cpu: main())
    cpu.task = task
    result = []

    async def main():
        result.append(await code(cpu, family))

    dispatcher = Dispatcher(machine, kernel.cpus, record)
    dispatcher.start(cpu, cpu.new_context(main(), Mode.USER))
    asyncio.run(dispatcher.run())
    return result[0]


def refusal(code, **options) -> tuple[int, str]:
    error = with_sockets(code, **options)
    assert isinstance(error, XskError), error
    return error.errno, str(error)


@pytest.mark.parametrize("entries", [0, 3, 1000, -4])
@pytest.mark.parametrize("option", ["RX_RING", "TX_RING", "UMEM_FILL_RING", "UMEM_COMPLETION_RING"])
def test_rings_have_a_power_of_two_of_entries(option, entries):
    async def code(cpu, family):
        xs = await xsk_socket(cpu, family)
        return await xsk_setsockopt(cpu, family, xs, SocketOption[option], entries)

    assert refusal(code) == (EINVAL, f"EINVAL: {option}: a ring has a power of two of entries, not {entries}")


def test_a_ring_is_made_once_and_needs_memory():
    async def twice(cpu, family):
        xs = await xsk_socket(cpu, family)
        assert await xsk_setsockopt(cpu, family, xs, SocketOption.RX_RING, 64) is None
        return await xsk_setsockopt(cpu, family, xs, SocketOption.RX_RING, 64)

    async def too_large(cpu, family):
        xs = await xsk_socket(cpu, family)
        return await xsk_setsockopt(cpu, family, xs, SocketOption.RX_RING, 1 << 20)

    async def not_there(cpu, family):
        return await xsk_mmap(cpu, family, await xsk_socket(cpu, family), PageOffset.TX_RING)

    assert refusal(twice)[0] == EINVAL
    assert refusal(too_large)[0] == ENOMEM
    assert refusal(not_there) == (EINVAL, "EINVAL: mmap of TX_RING: the socket has no such ring")


@pytest.mark.parametrize(
    ("asked", "errno", "told"),
    [
        ({"queue": 1}, EINVAL, "there is no queue 1; the device has 1"),
        ({"ifindex": 7}, ENODEV, "there is no device 7"),
        ({"flags": BindFlag.COPY | BindFlag.ZEROCOPY}, EINVAL, "exclude each other"),
        ({"flags": BindFlag.ZEROCOPY}, EOPNOTSUPP, "the driver does not take the UMEM"),
        ({"flags": BindFlag.SHARED_UMEM}, EOPNOTSUPP, "share a UMEM"),
        ({"leave_out": "UMEM_FILL_RING"}, EINVAL, "lacks a UMEM, a fill or a completion ring"),
        ({"leave_out": "RX_RING"}, EINVAL, "neither a receive nor a transmit ring"),
        ({"leave_out": "UMEM_REG"}, EINVAL, "lacks a UMEM"),
    ],
)
def test_binding_is_refused_as_by_the_kernel(asked, errno, told):
    async def code(cpu, family):
        xs = await xsk_socket(cpu, family)
        values = {"UMEM_REG": GOOD, "UMEM_FILL_RING": 64, "UMEM_COMPLETION_RING": 64, "RX_RING": 64}
        values.pop(asked.get("leave_out"), None)
        for name, value in values.items():
            assert await xsk_setsockopt(cpu, family, xs, SocketOption[name], value) is None
        flags = asked.get("flags", BindFlag.COPY)
        return await xsk_bind(cpu, family, xs, asked.get("ifindex", 2), asked.get("queue", 0), flags)

    refused, message = refusal(code)
    assert refused == errno and told in message


def test_a_bound_socket_is_not_changed_and_its_queue_is_taken():
    async def code(cpu, family):
        memory = cpu.kernel.allocate_user(4 * XSK_RING.size)
        first = await xsk_socket_create(cpu, family, GOOD, memory, 64, BindFlag.COPY)
        changed = await xsk_setsockopt(cpu, family, first.xs, SocketOption.UMEM_REG, GOOD)
        bound = await xsk_bind(cpu, family, first.xs, 2, 0, BindFlag.COPY)
        try:
            await xsk_socket_create(cpu, family, GOOD, memory, 64, BindFlag.COPY)
        except XskError as error:
            return changed, bound, error

    for error in with_sockets(code):
        assert isinstance(error, XskError) and error.errno == EBUSY


def test_a_driver_without_zero_copy_falls_back_to_copying():
    async def code(cpu, family):
        memory = cpu.kernel.allocate_user(4 * XSK_RING.size)
        socket = await xsk_socket_create(cpu, family, GOOD, memory, 64, BindFlag(0))
        return socket.xs.zc

    assert with_sockets(code) is False


@pytest.mark.parametrize(
    ("option", "told"), [("xdp_mode", "mode zero-copy or copy, not 'x'"), ("wakeup", "spin or poll")]
)
def test_unknown_modes_are_refused(option, told):
    with pytest.raises(ValueError, match=told):
        Bench(**{option: "x"})


# The bundled capture


@functools.cache
def capture() -> list[bytes]:
    traffic = Traffic.make(capture=BUNDLED_CAPTURE)
    return [frame.data.ljust(60, b"\0") for frame in traffic.frames]


@functools.cache
def answered_by_dpdk() -> tuple[list[bytes], dict[int, str]]:
    bench = PollModeBench("echo", promiscuous=True, ring_size=256)
    bench.send(capture(), 20_000)
    return bench.machine.nic.transmitted, bench.dropped


@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_the_capture_is_answered_as_by_dpdk(mode):
    bench = Bench("echo", xdp_mode=mode, promiscuous=True)
    bench.send(capture(), 20_000)
    assert (bench.machine.nic.transmitted, bench.dropped) == answered_by_dpdk()
    assert len(bench.sent) > 20 and len(bench.dropped) > 5
    bench.check_chunks()


@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_the_program_finds_the_capture_byte_for_byte(mode):
    bench = Bench(xdp_mode=mode, promiscuous=True)
    program, seen = bench.system.path.program, []
    turn = program.turn

    async def look(cpu, socket):
        umem = socket.umem.address & PHYSICAL_MASK
        rx, consumed = bench.xs.rx, bench.field(socket.rx.address, XSK_RING.cached_cons)
        for number in range(consumed, min(bench.field(rx.ring, XDP_RING.producer), consumed + program.batch)):
            place, length = bench.word(rx.entry(number), 8), bench.word(rx.entry(number) + 8)
            seen.append(bytes(bench.machine.memory[umem + place : umem + place + length]))
        return await turn(cpu, socket)

    program.turn = look
    bench.send(capture(), 20_000)
    assert seen == capture()
