"""The example programs on the bundled capture: verdicts, packets and maps as the host's kernel has them."""

import random
import struct
from functools import cache

import pytest
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket

from sw.bpf.context import XdpAction
from sw.bpf.elf import load_object
from sw.bpf.instruction import encode
from sw.bpf.runtime import BPF_REDIRECT_INFO
from sw.bpf.verifier import verify
from tests.sw.bpf import host_bpf
from tests.sw.bpf.bench import PROGRAMS, Bench

CAPTURE = PROGRAMS.parents[2] / "traffic" / "programs.pcapng"
NAMES = ("drop_all", "firewall", "mac_swap_tx", "packet_counter", "xsk_redirect")
#: Ports that the firewall drops.
BLOCKED = (53, 80, 443, 5353, 9999)
#: What the kernel takes at least and at most as a packet of a test run.
LEAST, MOST = 14, 3000


@cache
def packets() -> tuple[bytes, ...]:
    """Packets of the capture, and some made to reach the firewall's every branch."""
    with CAPTURE.open("rb") as stream:
        captured = [bytes(block.packet_data) for block in FileScanner(stream) if isinstance(block, EnhancedPacket)]
    chance = random.Random(11)
    chosen = chance.sample(captured, min(len(captured), 400))
    return tuple(p for p in (*chosen, *_made(chance)) if LEAST <= len(p) <= MOST)


def _made(chance: random.Random) -> list[bytes]:
    made = []
    for _ in range(400):
        tags = b"".join(
            struct.pack(">HH", chance.choice((0x8100, 0x88A8)), chance.getrandbits(16))
            for _ in range(chance.randrange(4))
        )
        protocol = chance.choice((6, 17, 17, 1))
        words = chance.choice((5, 5, 6, 15, 4))
        fragment = chance.choice((0, 0, 0, 0x2000, 5, 0x4000))
        ip = struct.pack(">BBHHHBBHII", 0x40 | words, 0, 60, 1, fragment, 64, protocol, 0, 1, 2)
        ports = struct.pack(">HH", chance.getrandbits(16), chance.choice((*BLOCKED, 1, 54, 13568)))
        whole = bytes(chance.randrange(256) for _ in range(12)) + tags
        whole += struct.pack(">H", chance.choice((0x800, 0x800, 0x800, 0x86DD))) + ip
        whole += bytes(max(0, 4 * words - 20)) + ports + bytes(30)
        made.append(whole[: chance.choice((len(whole), len(whole), chance.randrange(LEAST, len(whole))))])
    return made


def blocked_ports(update) -> None:
    for port in BLOCKED:
        update(struct.pack(">H", port), bytes(8))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_verdicts_are_the_hosts(name, jit):
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    found = load_object(PROGRAMS / f"{name}.o")
    theirs = [
        host_bpf.HostMap(d.type, d.key_size, d.value_size, d.max_entries, d.flags)
        for d in (one.definition for one in found.maps)
    ]
    bench = Bench(jit=jit, verify=verify)
    program, fds = bench.load(name)
    if name == "firewall":
        blocked_ports(theirs[0].update)
        blocked_ports(lambda key, value: bench.do(bench.bpf.map_update_elem(bench.core, fds["blocked"], key, value)))
    bound = found.bind(found.program(), {n: one.fd for n, one in enumerate(theirs)})
    verdicts = set()
    with host_bpf.HostProgram(encode(bound.instructions), found.program().license.encode()) as there:
        for packet in packets():
            expected = there.run(packet)
            assert bench.run(program, packet) == expected, packet.hex()
            verdicts.add(expected[0])
    if name == "firewall":
        assert verdicts == {XdpAction.PASS, XdpAction.DROP}
        for port in BLOCKED:
            key = struct.pack(">H", port)
            counted = bench.do(bench.bpf.map_lookup_elem(bench.core, fds["blocked"], key))
            assert counted == theirs[0].lookup(key) != bytes(8)
    for one in theirs:
        one.close()


@pytest.mark.parametrize("jit", [False, True])
def test_packet_counter_counts_on_its_own_core(jit):
    bench = Bench(cores=3, jit=jit, verify=verify)
    program, fds = bench.load("packet_counter")
    for core, count in ((0, 2), (2, 5)):
        for _ in range(count):
            assert bench.run(program, bytes(60 + core), core)[0] == XdpAction.PASS
    counters = bench.do(bench.bpf.map_lookup_elem(bench.core, fds["counters"], bytes(4)))
    assert struct.unpack("<6Q", counters) == (2, 120, 0, 0, 5, 5 * 62)


@pytest.mark.parametrize("jit", [False, True])
def test_firewall_without_the_host(jit):
    """What the program is for, stated here: runs where bpf() is refused, too."""
    bench = Bench(jit=jit, verify=verify)
    program, fds = bench.load("firewall")
    blocked_ports(lambda key, value: bench.do(bench.bpf.map_update_elem(bench.core, fds["blocked"], key, value)))
    ethernet, ip = bytes(12) + b"\x08\x00", struct.pack(">BBHHHBBHII", 0x45, 0, 60, 1, 0, 64, 17, 0, 1, 2)
    for port, verdict in ((53, XdpAction.DROP), (54, XdpAction.PASS)):
        udp = struct.pack(">HHHH", 1000, port, 8, 0)
        for tags in (b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05\x81\x00\x00\x06"):
            packet = ethernet[:12] + tags + ethernet[12:] + ip + udp
            assert bench.run(program, packet)[0] == verdict
        assert bench.run(program, ethernet + ip + udp[:3])[0] == XdpAction.PASS


@pytest.mark.parametrize("jit", [False, True])
def test_xsk_redirect_finds_the_socket_of_the_queue(jit):
    socket = 0x4440
    bench = Bench(jit=jit, verify=verify, find_socket=lambda fd: socket if fd == 9 else None)
    program, fds = bench.load("xsk_redirect")
    assert bench.run(program, bytes(64))[0] == XdpAction.PASS
    bench.do(bench.bpf.map_update_elem(bench.core, fds["xsks"], struct.pack("<I", 3), struct.pack("<I", 9)))
    assert bench.run(program, bytes(64))[0] == XdpAction.REDIRECT
    info = bench.bpf.runtime.redirect_info
    told = bytes(bench.memory[info : info + BPF_REDIRECT_INFO.size])
    assert (BPF_REDIRECT_INFO.tgt_value.of(told), BPF_REDIRECT_INFO.tgt_index.of(told)) == (socket, 3)
