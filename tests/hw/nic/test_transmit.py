"""The whole card, sending: bytes in memory become frames on the wire; what is wrong with descriptors; resets."""

import random
import zlib

import pytest

from hw.bus.tlp import TlpType
from hw.nic.drop import TransmitDropReason
from hw.nic.registers import REG, msix_entry
from hw.nic.ring_queue import QueueError
from tests.hw.nic.card_bench import MEMORY_BYTES, MSI_ADDRESS, CardBench, frame

MIN_PACKET = 60
ENABLE = REG.TXDCTL.ENABLE.mask


def on_wire(raw: bytes) -> bytes:
    """The frame that a packet becomes when it asks for its FCS."""
    body = raw.ljust(MIN_PACKET, b"\0")
    return body + zlib.crc32(body).to_bytes(4, "little")


def unsent(bench: CardBench) -> list[tuple[int, TransmitDropReason]]:
    """(packet, reason) of packets that were dropped."""
    return [(e.fields["packet"], TransmitDropReason(e.fields["reason"])) for e in bench.of("tx.dma.unsent")]


def random_packet(rng: random.Random, most: int = 1514) -> list[bytes]:
    """A packet in parts, one per descriptor; some are empty, never all."""
    size = rng.choice([1, 14, 59, 60, 61, 63, 64, 65, 124, 125, 128, rng.randint(60, 600), rng.randint(60, most)])
    raw = rng.randbytes(size)
    cuts = sorted(rng.randint(0, size) for _ in range(rng.choice([0, 0, 0, 1, 2, 4])))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]


@pytest.mark.parametrize(
    ("settings", "queues", "head", "latency", "ready"),
    [
        ((), 1, 0, (5, 40), 0.7),
        (("pcie.mrrs=512", "pcie.mps=256", "nic.read_tags=8", "nic.payload_reads=8"), 2, 13, (1, 300), 0.5),
        (("nic.queues=3", "nic.payload_reads=2", "nic.line_gbps=40.0"), 3, 5, (5, 60), 1.0),
    ],
)
def test_every_packet_leaves_as_it_was_written(settings, queues, head, latency, ready):
    """Random packets over several descriptors from several queues, against what was put: bytes, order, write-back."""
    total = 14

    async def scenario(b):
        await b.set_up_transmit(queues=queues, head=head)
        rng = random.Random(7)
        clean = [head] * queues
        pending = {q: [] for q in range(queues)}  # (index, reported) of descriptors given
        left = total
        while left or any(pending.values()):
            for q in range(queues):
                # What driver does: it knows from a written-back descriptor that those before it are free, too
                done = [n for n, (index, reported) in enumerate(pending[q]) if reported and b.tx_done(q, index)]
                for index, _ in pending[q][: done[-1] + 1 if done else 0]:
                    at = b.tx_ring(q) + 16 * index
                    b.memory[at : at + 16] = bytes(16)
                    clean[q] = (index + 1) % 16
                del pending[q][: done[-1] + 1 if done else 0]
                parts = random_packet(rng)
                if left and len(pending[q]) + len(parts) < 16 and rng.random() < 0.7:
                    given = []
                    for n, part in enumerate(parts):
                        last = n + 1 == len(parts)
                        reported = last or rng.random() < 0.3
                        index = b.put(q, part, eop=last, rs=reported, shift=rng.choice([0, 2, 40, 63]))
                        given.append((index, reported))
                    pending[q] += given
                    b.given[q].append(b"".join(parts))
                    left -= 1
                    await b.set_tx_tail(q)
            await b.cycles(rng.randint(1, 60))
        await b.settle(700)
        for q in range(queues):
            assert await b.read(REG.TDH.offset(q)) == b.tx_next[q] == clean[q]
            assert await b.read(REG.QPTC.offset(q)) == len(b.given[q])
            assert await b.read(REG.QBTC_L.offset(q)) == sum(map(len, b.given[q]))
        assert await b.read(REG.GPTC.offset()) == total and await b.read(REG.GPTC.offset()) == 0
        assert await b.read(REG.GOTCL.offset()) == sum(len(sent.raw) for sent in b.sent)
        assert await b.read(REG.GOTCH.offset()) == 0

    bench = CardBench(*settings, seed=queues, latency=latency, ready=ready)
    bench.given = [[] for _ in range(queues)]
    bench.run(scenario)
    assert [sent.packet for sent in bench.sent] == list(range(1, total + 1))
    queue_of = {e.fields["packet"]: e.fields["queue"] for e in bench.of("tx.dma.descriptor_taken")}
    for q in range(queues):
        assert [s.raw for s in bench.sent if queue_of[s.packet] == q] == [on_wire(raw) for raw in bench.given[q]]
    assert not unsent(bench) and not bench.quiet_violations
    written = [(e.fields["queue"], e.fields["packet"]) for e in bench.of("tx.write_back")]
    assert all(queue_of[packet] == q for q, packet in written) and {p for _, p in written} == set(queue_of)


def test_probes_follow_a_packet():
    """Taken, read, on the wire, written back: each with the packet's number, in that order."""

    async def scenario(b):
        await b.set_up_transmit(queues=2)
        for q, size in ((1, 100), (0, 300), (1, 60)):
            b.put(q, bytes(size), eop=1, rs=1)
            await b.set_tx_tail(q)
            await b.cycles(150)
        await b.settle()

    bench = CardBench().run(scenario)
    for packet, (queue, index, size) in enumerate(((1, 0, 100), (0, 0, 300), (1, 1, 60)), 1):
        taken, back = (
            [e for e in bench.of(f"tx.{name}") if e.fields["packet"] == packet]
            for name in ("dma.descriptor_taken", "write_back")
        )
        assert [(e.fields["queue"], e.fields["index"]) for e in taken + back] == [(queue, index)] * 2
        (left,) = [e for e in bench.of("tx_mac.frame") if e.fields["packet"] == packet]
        reads = [e for e in bench.of("dma_read") if e.fields["packet"] == packet]
        assert sum(e.fields["length"] for e in reads) == size
        assert taken[0].cycle <= reads[0].cycle < back[0].cycle and reads[-1].cycle < left.fields["began"] < left.cycle
        assert left.fields["length"] == len(on_wire(bytes(size)))


def test_descriptors_are_fetched_by_line_and_never_beyond_the_tail():
    async def scenario(b):
        await b.set_up_transmit()
        for batch in (1, 3, 8, 2, 5):
            for _ in range(batch):
                b.put(0, bytes(60), eop=1, rs=1)
            await b.set_tx_tail()
            await b.settle(100)

    bench = CardBench().run(scenario)
    fetched = [(e.fields["address"] // 16 % 16, e.fields["count"]) for e in bench.of("tx.descriptor_fetch")]
    assert fetched == [(0, 1), (1, 3), (4, 4), (8, 4), (12, 2), (14, 2), (0, 3)]
    assert len(bench.sent) == 19


def test_reports_are_batched_and_only_those_asked_for():
    """A TLP for each run of descriptors with RS in a line; the others are not touched."""
    reports = (1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0)

    async def scenario(b):
        await b.set_up_transmit()
        for rs in reports:
            b.put(0, bytes(60), eop=1, rs=rs)
        await b.set_tx_tail()
        await b.settle()
        assert [b.tx_done(0, index) for index in range(12)] == [bool(rs) for rs in reports]
        assert await b.read(REG.TDH.offset()) == 12

    bench = CardBench("nic.payload_reads=8").run(scenario)
    ring = bench.tx_ring(0)
    backs = [t for t in bench.tlps if t.kind == TlpType.MEMORY_WRITE and ring <= t.address < ring + 0x100]
    runs = {(t.address - ring) // 16: t.length // 16 for t in backs}
    covered = [index for first, count in runs.items() for index in range(first, first + count)]
    assert covered == [index for index, rs in enumerate(reports) if rs]
    assert runs[0] == 4, "a line whose descriptors were done together"
    assert all(t.packet == 0 for t in backs), "numbers of sent packets are not those of received ones"


def test_legacy_descriptors_and_contexts():
    """DEXT = 0 has its bits in the same places; a context is done with at once and takes no number."""

    async def scenario(b):
        await b.set_up_transmit()
        b.put(0, b"", dtyp=2, eop=0, rs=1)
        b.put(0, b"legacy" * 20, dext=0, dtyp=0, payload_length=0, eop=1, rs=1)
        b.put(0, b"plain" * 30, eop=1, ifcs=0, rs=1)
        await b.set_tx_tail()
        await b.settle()
        assert all(b.tx_done(0, index) for index in range(3))

    bench = CardBench().run(scenario)
    assert [(s.packet, s.raw) for s in bench.sent] == [(1, on_wire(b"legacy" * 20)), (2, b"plain" * 30)]


LONG = 1522 - 4 + 1  # of tiny, with its FCS

BAD = {
    "no bytes": ([({}, b"")], TransmitDropReason.EMPTY),
    "no bytes in two": ([({"eop": 0}, b""), ({}, b"")], TransmitDropReason.EMPTY),
    "too long": ([({}, bytes(LONG))], TransmitDropReason.OVERSIZE),
    "too long in the end": ([({"eop": 0}, bytes(1000)), ({"eop": 0}, bytes(600)), ({}, bytes(9))],
                            TransmitDropReason.OVERSIZE),
    "of no type": ([({"dtyp": 5}, bytes(60))], TransmitDropReason.DESCRIPTOR),
    "of no type amid a packet": ([({"eop": 0}, bytes(99)), ({"dtyp": 1}, bytes(60))], TransmitDropReason.DESCRIPTOR),
    "beyond the address space": ([({"address": 1 << 41}, bytes(60))], TransmitDropReason.DESCRIPTOR),
    "beyond memory": ([({"eop": 0}, bytes(99)), ({"address": MEMORY_BYTES + 70}, bytes(300))],
                      TransmitDropReason.READ_REFUSED),
    "segmentation": ([({"tse": 1}, bytes(60))], TransmitDropReason.OFFLOAD),
    "a checksum": ([({"popts": 2}, bytes(60))], TransmitDropReason.OFFLOAD),
    "a VLAN tag": ([({"vle": 1, "dext": 0, "dtyp": 0}, bytes(60))], TransmitDropReason.OFFLOAD),
}  # fmt: skip


def test_a_bad_packet_is_dropped_alone():
    """Its descriptors are finished like others, the queue goes on; packets before and behind it leave."""
    good = [bytes([n]) * (70 + 10 * n) for n in range(len(BAD) + 1)]

    async def scenario(b):
        await b.set_up_transmit(size=64)
        b.put(0, good[0], eop=1, rs=1)
        for n, (descriptors, _) in enumerate(BAD.values(), 1):
            for fields, raw in descriptors:
                b.put(0, raw, **{"eop": 1, "rs": 1} | fields)
            b.put(0, good[n], eop=1, rs=1)
        await b.set_tx_tail()
        await b.settle()
        assert all(b.tx_done(0, index) for index in range(b.tx_next[0]))
        assert await b.read(REG.TXDCTL.offset()) == ENABLE and await b.read(REG.EICR.offset()) >> 16 == 0
        assert await b.read(REG.QPTC.offset()) == await b.read(REG.GPTC.offset()) == len(good)

    bench = CardBench().run(scenario)
    assert unsent(bench) == [(2 * n, reason) for n, (_, reason) in enumerate(BAD.values(), 1)]
    assert [(s.packet, s.raw) for s in bench.sent] == [(2 * n + 1, on_wire(raw)) for n, raw in enumerate(good)]
    assert not bench.quiet_violations


def test_longest_packets_fill_the_buffer_again_and_again():
    """Packets wait for room in the packet buffer; none is lost, none is cut, and the line is never idle."""
    packets = [random.Random(n).randbytes(512 - 4) for n in range(5)]

    async def scenario(b):
        await b.set_up_transmit()
        for raw in packets:
            b.put(0, raw, eop=1, rs=1, shift=1)
        await b.set_tx_tail()
        await b.until(lambda: len(b.sent) == 5)

    settings = ("nic.line_gbps=4.0", "nic.max_frame=512", "nic.tx_packet_buffer_kib=1")
    bench = CardBench(*settings, latency=(3, 9), ready=1.0).run(scenario)
    assert [s.raw for s in bench.sent] == [on_wire(raw) for raw in packets]
    gaps = [b.cycle - a.cycle for a, b in zip(bench.sent, bench.sent[1:], strict=False)]
    assert set(gaps) == {512 + 20}, "a byte takes a cycle at 4G and 500 MHz"


def test_transmit_enable():
    """Without DMATXCTL.TE descriptors are fetched and no packet is begun."""

    async def scenario(b):
        await b.set_up_transmit()
        await b.write(REG.DMATXCTL.offset(), 0)
        b.put(0, bytes(60), eop=1, rs=1)
        await b.set_tx_tail()
        await b.settle()
        assert b.of("tx.descriptor_fetch") and not b.of("dma_read")
        await b.write(REG.DMATXCTL.offset(), REG.DMATXCTL.TE.mask)
        await b.settle()
        assert len(b.sent) == 1

    CardBench().run(scenario)


@pytest.mark.parametrize("how", ["disable", "reset"])
def test_a_queue_stops_amid_traffic_and_starts_again(how):
    """What has begun comes to an end: whole frames, or packets reported as not sent; then the queue works again."""

    async def scenario(b):
        await b.set_up_transmit(queues=2)
        for _ in range(3):
            for q in (0, 1):
                b.put(q, bytes(200), eop=0, rs=0)
                b.put(q, bytes(150), eop=1, rs=1)
        for q in (0, 1):
            await b.set_tx_tail(q)
        await b.until(lambda: len(b.of("dma_read")) >= b.begin)
        if how == "reset":
            await b.write(REG.CTRL.offset(), REG.CTRL.RST.mask)
            while await b.read(REG.CTRL.offset()):
                pass
            assert await b.read(REG.TXDCTL.offset()) == await b.read(REG.TDH.offset()) == 0
        else:
            for q in (0, 1):
                await b.write(REG.TXDCTL.offset(q), 0)
            while await b.read(REG.TXDCTL.offset(0)) or await b.read(REG.TXDCTL.offset(1)):
                pass
        assert not b.reads, "reads in flight are waited for"
        await b.settle()
        await b.set_up_transmit(queues=2)
        b.put(1, b"again" * 40, eop=1, rs=1)
        await b.set_tx_tail(1)
        await b.settle()

    for begin in (9,) if how == "disable" else (2, 9):
        bench = CardBench("nic.read_tags=4", seed=begin)
        bench.begin = begin
        bench.run(scenario)
        *before, after = bench.sent
        assert after.raw == on_wire(b"again" * 40) and {s.raw for s in before} <= {on_wire(bytes(350))}
        dropped = unsent(bench)
        assert {reason for _, reason in dropped} <= {TransmitDropReason.QUEUE_DISABLED}
        taken = {e.fields["packet"] for e in bench.of("descriptor_taken")}
        assert taken == {s.packet for s in bench.sent} | {p for p, _ in dropped}, "a packet without an account"
        assert not bench.quiet_violations


def test_a_queue_with_bad_registers_does_not_start():
    cases = (
        (REG.TDLEN, 0, QueueError.RING_LENGTH),
        (REG.TDBAH, 1 << 30, QueueError.RING_BASE),
        (REG.TDT, 16, QueueError.TAIL),
        (REG.TDH, 99, QueueError.HEAD),
    )

    async def scenario(b):
        await b.set_up_transmit(queues=2)
        for register, value, error in cases:
            await b.write(REG.TXDCTL.offset(1), 0)
            await b.cycles(20)
            before = await b.read(register.offset(1))
            await b.write(register.offset(1), value)
            await b.write(REG.TXDCTL.offset(1), ENABLE)
            await b.cycles(20)
            fields = b.of("tx.queue_error")[-1].fields
            assert (fields["queue"], fields["error"]) == (1, error.value)
            assert await b.read(REG.TXDCTL.offset(1)) == 0 and await b.read(REG.TXDCTL.offset(0)) == ENABLE
            assert await b.read(REG.EICR.offset()) & REG.EICR.DHER.mask
            await b.write(register.offset(1), before)
        assert len(b.of("tx.queue_error")) == len(cases)
        b.put(0, bytes(60), eop=1)
        await b.set_tx_tail(0)
        await b.settle()
        assert len(b.sent) == 1, "the other queue goes on"

    CardBench().run(scenario)


def test_both_directions_at_once_with_a_vector_each():
    """Every queue's causes go where IVAR says."""

    async def scenario(b):
        await b.set_up()
        await b.set_up_transmit(queues=2)
        for vector in range(4):
            await b.write(msix_entry(vector), MSI_ADDRESS, 8, base=0xF010_0000)
            await b.write(msix_entry(vector) + 8, 0x40 + vector, 8, base=0xF010_0000)
        ivar = REG.IVAR
        vectors = ivar.RX_EVEN.put(0) | ivar.TX_EVEN.put(1) | ivar.RX_ODD.put(2) | ivar.TX_ODD.put(3)
        await b.write(ivar.offset(0), vectors | 0x8080_8080)
        await b.write(REG.EIAC.offset(), 0xF)
        await b.write(REG.EIMS.offset(), 0xF)
        for n in range(8):
            b.offer(frame(64 + n, fill=n))
            for q in (0, 1):
                b.put(q, bytes(60 + n), eop=1, rs=1)
                await b.set_tx_tail(q)
        await b.settle()
        assert len(b.sent) == 16 and len(b.written_back()) == 8

    bench = CardBench("nic.msix_vectors=4").run(scenario)
    cycles = {v: [e.cycle for e in bench.of("msix") if e.fields["vector"] == v] for v in range(4)}
    assert cycles[0] and cycles[1] and cycles[3] and not cycles[2]
    for vector, cycle in ((0, bench.of("rx.write_back")[0].cycle), (1, bench.of("tx.write_back")[0].cycle)):
        assert cycle < cycles[vector][0] < cycle + 20, "a message soon behind what it announces"
