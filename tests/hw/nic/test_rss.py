"""Receive-side scaling: the published hashes, what is hashed when, and packets that reach their queues."""

import random
import zlib
from ipaddress import ip_address

import pytest
from amaranth.sim import Simulator

from hw.bus.wire import RssType
from hw.nic.drop import DropReason
from hw.nic.registers import REG, STATION_ADDRESS
from hw.nic.rss import ReceiveSideScaling
from hw.nic.toeplitz import Toeplitz, toeplitz
from tests.hw.nic.card_bench import RING, RING_BYTES, CardBench, frame
from tests.hw.simulate import simulate

#: Microsoft, "Verifying the RSS hash calculation": key; then source, port, destination, port, hashes without and with
#: ports.
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # fmt: skip
VECTORS = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x4B61E985, 0x02D1FEEF),
]
TCP, UDP, ICMP = 6, 17, 1
M = REG.MRQC
EVERYTHING = (
    1 | M.TCP_IPV4.mask | M.IPV4.mask | M.IPV6.mask | M.TCP_IPV6.mask | M.UDP_IPV4.mask | M.UDP_IPV6.mask
)  # fmt: skip


def message(source, sport, destination, dport) -> bytes:
    """What is hashed with ports."""
    return ip_address(source).packed + ip_address(destination).packed + sport.to_bytes(2) + dport.to_bytes(2)


def ip_frame(flow, protocol=TCP, *, options=0, fragment=0, size=90) -> bytes:
    """A frame of ``flow`` (source, port, destination, port)."""
    addresses, ports = message(*flow)[:-4], message(*flow)[-4:]
    if len(addresses) == 8:
        head = bytes([0x45 + options, 0, 0, 40, 0, 0, fragment >> 8, fragment & 255, 64, protocol, 0, 0])
        body = b"\x08\x00" + head + addresses + bytes(4 * options) + ports
    else:
        body = b"\x86\xdd" + bytes([0x60, 0, 0, 0, 0, 40, protocol, 64]) + addresses + ports
    raw = STATION_ADDRESS + bytes(6) + body
    return raw + random.Random(size).randbytes(max(0, size - len(raw)))


def with_fcs(raw: bytes) -> bytes:
    """The frame as it is on the wire."""
    return raw + zlib.crc32(raw).to_bytes(4, "little")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v[0])
def test_hash_in_software(vector):
    *flow, without, with_ports = vector
    assert toeplitz(KEY, message(*flow)[:-4]) == without
    assert toeplitz(KEY, message(*flow)) == with_ports


def test_hash_in_hardware():
    """Every bit of the message, and random messages under random keys, against the definition."""
    dut, rng = Toeplitz(), random.Random(2)
    cases = [(KEY, (1 << bit).to_bytes(36)) for bit in range(288)]
    cases += [(rng.randbytes(40), rng.randbytes(36)) for _ in range(20)]

    async def bench(ctx):
        for key, data in cases:
            ctx.set(dut.key, int.from_bytes(key, "little"))
            ctx.set(dut.data, int.from_bytes(data, "little"))
            ctx.set(dut.valid, 1)
            await ctx.delay(1e-9)
            assert ctx.get(dut.hash) == toeplitz(key, data)

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()


async def write(ctx, dut, register, index, value):
    ctx.set(dut.bus.write, 1)
    ctx.set(dut.bus.offset, register.offset(index))
    ctx.set(dut.bus.data, value)
    await ctx.tick("nic")
    ctx.set(dut.bus.write, 0)


def look(frames, mrqc=EVERYTHING, key=KEY, table=None):
    """The results (hash, type, queue) for ``frames``, one right behind the other."""
    dut, results = ReceiveSideScaling(), []

    async def bench(ctx):
        for index in range(10):
            await write(ctx, dut, REG.RSSRK, index, int.from_bytes(key[4 * index : 4 * index + 4], "little"))
        for index, word in (table or {}).items():
            await write(ctx, dut, REG.RETA, index, word)
        ctx.set(dut.mrqc.value, mrqc)
        for raw in [*frames, None]:
            ctx.set(dut.beats.valid, raw is not None)
            if raw is not None:
                ctx.set(dut.beats.payload.data, int.from_bytes(raw[:64], "little"))
                ctx.set(dut.beats.payload.first, 1)
            await ctx.tick("nic")
            result = ctx.get(dut.result)
            results.append((result.hash, RssType(result.type), result.queue))
            # The rest of the frame changes nothing
            ctx.set(dut.beats.payload.first, 0)
            await ctx.tick("nic")
            assert ctx.get(dut.result) == result
        assert ctx.get(dut.quiet)

    simulate(dut, bench)
    return results[:-1]


def test_published_hashes():
    flows = [v[:4] for v in VECTORS]
    got = look([ip_frame(flow) for flow in flows])
    kinds = [RssType.TCP_IPV6 if ":" in flow[0] else RssType.TCP_IPV4 for flow in flows]
    assert got == [(v[5], kind, 0) for v, kind in zip(VECTORS, kinds, strict=True)]
    got = look([ip_frame(flow) for flow in flows], mrqc=1 | M.IPV4.mask | M.IPV6.mask)
    kinds = [RssType.IPV6 if ":" in flow[0] else RssType.IPV4 for flow in flows]
    assert got == [(v[4], kind, 0) for v, kind in zip(VECTORS, kinds, strict=True)]


FLOW, FLOW6 = VECTORS[0][:4], VECTORS[5][:4]
PLAIN, PORTS, PLAIN6, PORTS6 = 0x323E8FC2, 0x51CCC178, 0x2CC18CD5, 0x40207D3D
NOTHING = (0, RssType.NONE)


@pytest.mark.parametrize(
    ("raw", "mrqc", "expected"),
    [
        (ip_frame(FLOW, UDP), EVERYTHING, (PORTS, RssType.UDP_IPV4)),
        (ip_frame(FLOW6, UDP), EVERYTHING, (PORTS6, RssType.UDP_IPV6)),
        (ip_frame(FLOW, UDP), EVERYTHING & ~M.UDP_IPV4.mask, (PLAIN, RssType.IPV4)),
        (ip_frame(FLOW, UDP), 1 | M.TCP_IPV4.mask, NOTHING),
        (ip_frame(FLOW, ICMP), EVERYTHING, (PLAIN, RssType.IPV4)),
        (ip_frame(FLOW6, ICMP), EVERYTHING, (PLAIN6, RssType.IPV6)),
        (ip_frame(FLOW, UDP, fragment=0x2000), EVERYTHING, (PLAIN, RssType.IPV4)),
        (ip_frame(FLOW, UDP, fragment=3), EVERYTHING, (PLAIN, RssType.IPV4)),
        (ip_frame(FLOW, UDP, fragment=0x4000), EVERYTHING, (PORTS, RssType.UDP_IPV4)),
        (ip_frame(FLOW, TCP, options=2), EVERYTHING, (PLAIN, RssType.IPV4)),
        (ip_frame(FLOW), EVERYTHING & ~1, NOTHING),
        (ip_frame(FLOW), EVERYTHING + 3, NOTHING),  # another mode of several queues
        (frame(80, ethertype=b"\x08\x06"), EVERYTHING, NOTHING),
    ],
)
def test_what_is_hashed(raw, mrqc, expected):
    (got,) = look([raw], mrqc, table=dict.fromkeys(range(32), 0x01010101))
    assert got == (*expected, 1 if expected != NOTHING else 0)


def test_table():
    """The low seven bits of the hash choose the entry, four bits of it count, and one never written is 0."""
    rng = random.Random(1)
    table = {row: rng.getrandbits(32) for row in range(32) if row % 5}
    flows = [(f"10.0.{n}.1", 1, "10.0.0.2", 2) for n in range(60)]
    got = look([ip_frame(flow) for flow in flows], table=table)
    for flow, (hashed, _, queue) in zip(flows, got, strict=True):
        assert hashed == toeplitz(KEY, message(*flow))
        assert queue == table.get(hashed % 128 // 4, 0) >> 8 * (hashed % 4) & 15
    assert len({queue for *_, queue in got}) > 8


async def set_up_queues(b: CardBench, queues: int, drop: int = 0):
    """Rings for further receive queues, RSS by their number."""
    await b.set_up(srrctl=2 | drop)
    for queue in range(1, queues):
        base = RING + RING_BYTES * queue
        for index in range(16):
            at = base + 16 * index
            b.memory[at : at + 8] = (0x20000 * queue + b.buffer(index)).to_bytes(8, "little")
        await b.write(REG.RDBAL.offset(queue), base, 8)
        await b.write(REG.RDLEN.offset(queue), 256)
        await b.write(REG.SRRCTL.offset(queue), 2 | drop | REG.SRRCTL.DESCTYPE.put(1))
        await b.write(REG.RXDCTL.offset(queue), REG.RXDCTL.ENABLE.mask)
        await b.write(REG.RDT.offset(queue), 15)
    for index in range(10):
        await b.write(REG.RSSRK.offset(index), int.from_bytes(KEY[4 * index : 4 * index + 4], "little"))
    for row in range(32):
        word = sum((4 * row + place) % queues << 8 * place for place in range(4))
        await b.write(REG.RETA.offset(row), word)
    await b.write(REG.MRQC.offset(), EVERYTHING)
    assert await b.read(REG.RSSRK.offset(9)) == int.from_bytes(KEY[36:], "little")


def test_packets_reach_their_queues():
    """By their hash, in order within each, with hash and type in the descriptor, counted by queue."""
    flows = [(f"10.0.0.{n % 7}", n % 7, "10.0.0.99", 53) for n in range(24)]

    async def scenario(b):
        await set_up_queues(b, 3)
        for n, flow in enumerate(flows):
            raw = ip_frame(flow, UDP, size=64 + n)
            b.offer(with_fcs(raw))
        await b.settle()
        for queue in range(3):
            mine = [n for n, flow in enumerate(flows) if toeplitz(KEY, message(*flow)) % 128 % 3 == queue]
            assert [p for p, i, q in b.back if q == queue] == [n + 1 for n in mine]
            assert await b.read(REG.QPRC.offset(queue)) == len(mine) > 0
            for index, n in enumerate(mine):
                at = RING + RING_BYTES * queue + 16 * index
                low = int.from_bytes(b.memory[at : at + 8], "little")
                assert low & 15 == RssType.UDP_IPV4.value and low >> 32 == toeplitz(KEY, message(*flows[n]))
                at = b.buffer(index) + 0x20000 * queue
                raw = b.offered[n + 1][:-4]
                assert b.memory[at : at + len(raw)] == raw

    class Bench(CardBench):
        @property
        def back(self):
            return [[e.fields[f] for f in ("packet", "index", "queue")] for e in self.of("rx.write_back")]

    bench = Bench("nic.queues=3").run(scenario)
    assert not bench.drops and not bench.quiet_violations


def test_a_queue_without_descriptors_drops_alone():
    """With DROP_EN what is for a full ring is dropped, what is for another queue arrives."""
    flows = [(f"10.0.0.{n}", n, "10.0.0.99", 53) for n in range(20)]
    queue_of = {n: toeplitz(KEY, message(*flow)) % 2 for n, flow in enumerate(flows, 1)}

    async def scenario(b):
        await set_up_queues(b, 2, REG.SRRCTL.DROP_EN.mask)
        await b.write(REG.RXDCTL.offset(1), 0)
        await b.write(REG.RDT.offset(1), 2)
        await b.write(REG.RDH.offset(1), 0)
        await b.write(REG.RXDCTL.offset(1), REG.RXDCTL.ENABLE.mask)
        await b.settle(50)
        for flow in flows:
            raw = ip_frame(flow, UDP)
            b.offer(with_fcs(raw))
        await b.settle()
        mine = [n for n in queue_of if queue_of[n] == 1]
        assert b.drops == dict.fromkeys(mine[2:], DropReason.NO_DESCRIPTOR) and len(mine) > 4
        assert await b.read(REG.QPRDC.offset(1)) == len(mine) - 2 and await b.read(REG.QPRDC.offset(0)) == 0
        assert len(b.written_back()) == len(flows) - len(mine) + 2

    CardBench().run(scenario)


def test_a_queue_that_is_not_built_is_not_enabled():
    async def scenario(b):
        await set_up_queues(b, 2)
        for row in range(32):
            await b.write(REG.RETA.offset(row), 0x09090909)
        raw = ip_frame(FLOW)
        b.offer(with_fcs(raw))
        await b.settle()
        assert b.drops == {1: DropReason.QUEUE_DISABLED}

    CardBench().run(scenario)
