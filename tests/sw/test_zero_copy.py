"""Zero-copy means zero: what each path's software loads and stores of the packets that came.

The operations themselves are counted, as they are queued for the core: bytes of packets that the card has written to
memory, and bytes of the places that programs get them in, by the function that touches them. Prefetches move no data
to the core and do not count.
"""

import asyncio
from collections import Counter

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ
from hw.nic.registers import REG
from sw.costs import load_tables
from sw.options import Options
from sw.paging import PHYSICAL_MASK
from sw.paths import path_named
from sw.port import OperationKind
from sw.system import System
from tests.sw.functional_machine import FunctionalMachine

MAC = bytes.fromhex("020000000001")
FRAMES, PAYLOAD, HEADERS = 60, 900, 42
LENGTH = HEADERS + PAYLOAD
TOUCHES = {OperationKind.LOAD.value: "loads", OperationKind.STORE.value: "stores"}


class Watch(FunctionalMachine):
    """Notes which bytes every load and store touches, and where the card has put frames."""

    def __init__(self):
        super().__init__(cores=1, dram_bytes=8 << 20)
        self.touched: list[tuple[int, str, int, int]] = []  #: handle, "loads" or "stores", address, bytes
        self.written: set[int] = set()  #: addresses of the card's buffers that held a frame
        self.watching = False
        receive = self.nic.receive

        def watched(number, frame, split=0):
            ring = self.nic.get(REG.RDBAL) | self.nic.get(REG.RDBAH) << 32
            descriptor = ring + self.nic.get(REG.RDH) * DESCRIPTOR_BYTES
            before = len(self.nic.written_back)
            buffer = RX_READ.get(self.memory[descriptor : descriptor + DESCRIPTOR_BYTES], "packet_address")
            receive(number, frame, split)
            if len(self.nic.written_back) > before:
                self.written.add(buffer)

        self.nic.receive = watched

    def push(self, context, kind, address=0, size=0, *rest):
        handle = super().push(context, kind, address, size, *rest)
        name = TOUCHES.get(kind)
        if self.watching and name:
            self.touched.append((handle, name, address & PHYSICAL_MASK, size))
        return handle


class Run:
    """Frames through one way; what was touched."""

    def __init__(self, way, **options):
        path, application = way.split(":")
        self.machine = machine = Watch()
        costs = load_tables(path_named(path).costs)
        given = {"mac": MAC, "addresses": (bytes([10, 0, 0, 1]),), "ring_size": 64, "itr_us": 0.0, "ports": (9,)}
        self.done = 0
        asked = Options(**given | options, application=application)
        self.system = System(machine, 1, 8 << 20, costs, path, asked, on_note=self.noted)
        asyncio.run(self.system.boot())
        machine.watching = True
        frame = bytes(
            Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
            / IP(src="10.0.0.2", dst="10.0.0.1")
            / UDP(sport=1000, dport=9)
            / bytes(range(225))
            / bytes(PAYLOAD - 225)
        )
        for index in range(FRAMES):
            machine.send(frame, machine.tick + 5000 + 30_000 * index)
        asyncio.run(self.system.run(machine.tick + 50_000_000))
        assert self.done == FRAMES

    def noted(self, note):
        self.done += note.kind in ("delivered", "sent")
        if self.machine.sent and self.done == FRAMES:
            self.system.stop()

    def bytes_touched(self, starts, first=0, last=LENGTH) -> dict[tuple[str, str], int]:
        """Bytes ``first`` to ``last`` of the frames that begin at ``starts``, by function and kind of access."""
        inside = {start + offset for start in starts for offset in range(first, last)}
        counts: Counter[tuple[str, str]] = Counter()
        for handle, kind, address, size in self.machine.touched:
            if count := sum(byte in inside for byte in range(address, address + size)):
                counts[self.system.record.function_of(handle), kind] += count
        return dict(counts)

    def payload(self, starts) -> dict[tuple[str, str], float]:
        """Of the UDP payload, as a share of all payload that came."""
        touched = self.bytes_touched(starts, HEADERS)
        return {key: count / (FRAMES * PAYLOAD) for key, count in touched.items()}

    @property
    def umem(self) -> set[int]:
        """Where frames lie in a UMEM."""
        plan = self.system.path.program.plan
        first = (plan.umem.address & PHYSICAL_MASK) + 256
        return {first + number * plan.umem.chunk_size for number in range(plan.umem.chunks)}


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("dpdk:rxonly", {}),
        ("xdp:drop", {}),
        ("af-xdp:rxdrop", {"wakeup": "spin"}),
        ("af-xdp:rxdrop", {"wakeup": "poll"}),
    ],
)
def test_programs_that_do_not_look_leave_every_byte_alone(way, options):
    run = Run(way, **options)
    assert run.machine.written
    assert run.bytes_touched(run.machine.written) == {}


@pytest.mark.parametrize(
    ("way", "options", "headers"),
    [
        ("dpdk:l2fwd", {}, {("l2fwd_simple_forward", "stores"): 12}),
        ("dpdk:echo", {}, {("reply_to_udp", "loads"): 42, ("reply_to_udp", "stores"): 24}),
        ("xdp:tx", {}, {("ixgbe_run_xdp", "loads"): 12, ("ixgbe_run_xdp", "stores"): 12}),
        ("af-xdp:echo", {}, {("xsk_reply_to_udp", "loads"): 42, ("xsk_reply_to_udp", "stores"): 24}),
    ],
)
def test_of_what_is_sent_back_only_the_application_touches_headers(way, options, headers):
    run = Run(way, **options)
    assert run.payload(run.machine.written) == {}
    assert run.bytes_touched(run.machine.written) == {key: count * FRAMES for key, count in headers.items()}


def test_zero_copy_frames_lie_in_the_program_s_own_memory():
    run = Run("af-xdp:rxdrop")
    assert run.machine.written <= run.umem
    assert not Run("af-xdp:rxdrop", xdp_mode="copy").machine.written & run.umem


def test_copy_mode_copies_once():
    run = Run("af-xdp:rxdrop", xdp_mode="copy")
    assert run.payload(run.machine.written) == {("xsk_copy_xdp", "loads"): 1}
    assert run.payload(run.umem) == {("xsk_copy_xdp", "stores"): 1}


def test_sending_in_copy_mode_copies_once_more():
    run = Run("af-xdp:echo", xdp_mode="copy")
    assert run.payload(run.machine.written) == {("xsk_copy_xdp", "loads"): 1}
    assert run.payload(run.umem) == {("xsk_copy_xdp", "stores"): 1, ("skb_store_bits", "loads"): 1}


@pytest.mark.parametrize("read", [False, True])
def test_a_socket_copies_once_and_the_watch_sees_who_reads(read):
    """The card checks no UDP checksums: they are computed on the copy's way."""
    run = Run("napi:sink", read=read)
    assert run.payload(run.machine.written) == {("udp_recvmsg", "loads"): 1}
    sink = run.system.path.tasks[0]._main.__self__
    places = {(sink.buffer & PHYSICAL_MASK) - HEADERS}
    reads = {("sink_receive", "loads"): 1} if read else {}
    assert run.payload(places) == {("udp_recvmsg", "stores"): 1} | reads
