"""The whole card: packets to memory in order, every drop with its reason, errors, resets, accounting."""

import random

import pytest

from hw.bus.tlp import TlpStatus, TlpType
from hw.memory_map import BAR0_BASE, BAR3_BASE, MSI_BASE
from hw.nic.drop import DropReason
from hw.nic.registers import MSIX_PBA, REG, STATION_ADDRESS, STORAGE_BYTES, msix_entry
from hw.nic.ring_queue import QueueError
from tests.hw.nic.card_bench import BROADCAST, BUFFERS, MSI_ADDRESS, RING, CardBench, frame


def expect(bench: CardBench, packets: dict[int, tuple[int, ...]], end: int = -4):
    """``packets`` lie in memory as they were offered, in the buffers of the given descriptors."""
    for packet, indices in packets.items():
        assert bench.packet(*indices) == bench.offered[packet][:end], packet


def check_order(bench: CardBench):
    """Payload before its descriptor, descriptors in order, a message behind what it announces; nothing while quiet."""
    announced, interrupts = set(), 0
    payload: dict[int, int] = {}
    for tlp in bench.tlps:
        if tlp.kind != TlpType.MEMORY_WRITE:
            continue
        if tlp.address >= MSI_BASE:
            assert announced, "a message with nothing to announce"
            interrupts += 1
        elif RING <= tlp.address < RING + 16 * bench.size:
            announced.add(tlp.packet)
        else:
            assert tlp.packet not in announced, "payload behind its descriptor"
            payload[tlp.packet] = payload.get(tlp.packet, 0) + tlp.length
    indices = [index for _, index in bench.written_back()]
    assert indices == [(indices[0] + n) % bench.size for n in range(len(indices))] if indices else True
    assert not bench.quiet_violations


def test_packets_arrive_whole_in_order_and_announced():
    async def scenario(b):
        await b.set_up()
        for n, size in enumerate((64, 65, 67, 68, 69, 128, 132, 133, 200, 1518, 64, 64)):
            b.offer(frame(size, fill=n))
        await b.settle()
        assert await b.read(REG.RDH.offset()) == 12
        assert await b.read(REG.GPRC.offset()) == 12
        assert await b.read(REG.GPRC.offset()) == 0  # cleared by reading
        assert await b.read(REG.GORCL.offset(), 8) == sum(map(len, b.offered.values()))
        assert await b.read(REG.QPRC.offset()) == 12
        assert await b.read(REG.QBRC_L.offset()) == sum(len(raw) - 4 for raw in b.offered.values())

    bench = CardBench().run(scenario)
    expect(bench, {n: (n - 1,) for n in range(1, 13)})
    for index in range(12):
        back = bench.descriptor(index)
        assert back["dd"] and back["eop"] and back["rss_hash"] == back["vlan"] == back["crc_error"] == 0
    assert not bench.drops and bench.of("interrupt.msix")
    assert {t.address for t in bench.tlps if t.address >= MSI_BASE} == {MSI_ADDRESS}
    check_order(bench)


@pytest.mark.parametrize("offset", [0, 1, 2, 63, 65, 128 + 17])
def test_any_alignment_of_the_buffer(offset):
    async def scenario(b):
        await b.set_up(offset=offset)
        for n, size in enumerate((64, 68, 129, 133, 300, 64)):
            b.offer(frame(size, fill=n))
        await b.settle()

    bench = CardBench(seed=offset, ready=0.5).run(scenario)
    expect(bench, {n: (n - 1,) for n in range(1, 7)})
    check_order(bench)


def test_ring_wraps_and_nothing_is_read_beyond_the_tail():
    async def scenario(b):
        await b.set_up(8, tail=5)
        clean = 0
        for n in range(40):
            b.offer(frame(64 + n % 5, fill=n))
        while clean < 40:
            await b.until(lambda: b.descriptor(clean % 8)["dd"])  # noqa: B023
            expect(b, {clean + 1: (clean % 8,)})
            b.give(clean % 8)
            clean += 1
            await b.set_tail((5 + clean) % 8)

    bench = CardBench(seed=4).run(scenario)
    check_order(bench)
    # Replay: reads only what lies between head and tail at that time
    tail, fetched = 0, 0
    for event in bench.events:
        if event.name.endswith("registers.write") and event.fields["address"] == BAR0_BASE + REG.RDT.offset():
            tail = event.fields["data"]
        if event.name.endswith("descriptor_fetch"):
            index, count = (event.fields["address"] - RING) // 16, event.fields["count"]
            assert index == fetched % 8 and index // 4 == (index + count - 1) // 4
            for n in range(count):
                assert index + n != tail, "read beyond the tail"
            fetched += count
    assert fetched >= 40


def test_write_back_is_batched_by_line():
    """Packets that wait for descriptors are written back by the line once there are some."""

    async def scenario(b):
        await b.set_up(16, tail=0)
        for n in range(9):
            b.offer(frame(64, fill=n))
        await b.until(lambda: not b.wire)
        await b.cycles(100)
        await b.set_tail(15)
        await b.settle()

    bench = CardBench(latency=(5, 5), ready=1.0).run(scenario)
    lines = [t.length // 16 for t in bench.tlps if t.kind == TlpType.MEMORY_WRITE and t.address < BUFFERS]
    assert lines == [4, 4, 1] and not bench.drops
    expect(bench, {n: (n - 1,) for n in range(1, 10)})
    check_order(bench)


def test_a_packet_longer_than_a_buffer_takes_several():
    async def scenario(b):
        await b.set_up(srrctl=1, offset=3)
        await b.write(REG.HLREG0.offset(), REG.HLREG0.JUMBOEN.mask | REG.HLREG0.RXCRCSTRP.mask)
        await b.write(REG.MAXFRS.offset(), REG.MAXFRS.MFS.put(4000))
        for size in (64, 1028, 1029, 3000, 64):
            b.offer(frame(size))
        await b.settle()

    bench = CardBench("nic.max_frame=4000", "nic.line_gbps=40").run(scenario)
    expect(bench, {1: (0,), 2: (1,), 3: (2, 3), 4: (4, 5, 6), 5: (7,)})
    assert [bench.descriptor(i)["eop"] for i in range(8)] == [1, 1, 0, 1, 0, 0, 1, 1]
    assert [bench.descriptor(i)["length"] for i in range(2, 7)] == [1024, 1, 1024, 1024, 948]
    check_order(bench)


def test_packet_types():
    def ip(first, fragment, protocol):
        body = bytearray(50)
        body[0], body[6:8], body[9] = first, fragment.to_bytes(2, "big"), protocol
        return bytes(body)

    import zlib

    kinds = [
        (b"\x08\x00" + ip(0x45, 0x4000, 17), 1 | 32),
        (b"\x08\x00" + ip(0x46, 0, 6), 2 | 16),
        (b"\x08\x00" + ip(0x45, 0x2000, 17), 1),
        (b"\x08\x00" + ip(0x45, 5, 17), 1),
        (b"\x86\xdd" + bytes(6) + b"\x11" + bytes(43), 4 | 32),
        (b"\x08\x06" + bytes(50), 0),
    ]

    async def scenario(b):
        await b.set_up()
        for body, _ in kinds:
            raw = (STATION_ADDRESS + bytes(6) + body)[:60]
            b.offer(raw + zlib.crc32(raw).to_bytes(4, "little"))
        await b.settle()

    bench = CardBench().run(scenario)
    assert [bench.descriptor(i)["packet_type"] for i in range(len(kinds))] == [kind for _, kind in kinds]


def test_without_descriptors_packets_wait_or_are_dropped():
    async def waiting(b):
        await b.set_up(8, tail=1)
        for n in range(3):
            b.offer(frame(64, fill=n))
        await b.settle()
        assert [p for p, _ in b.written_back()] == [1] and not b.drops
        assert await b.read(REG.QPRDC.offset()) == 0
        await b.set_tail(7)
        await b.settle()
        assert [p for p, _ in b.written_back()] == [1, 2, 3]

    check_order(CardBench().run(waiting))

    async def dropping(b):
        await b.set_up(8, tail=1, srrctl=2 | REG.SRRCTL.DROP_EN.mask)
        for n in range(3):
            b.offer(frame(164, fill=n))
        await b.settle()
        assert b.drops == {2: DropReason.NO_DESCRIPTOR, 3: DropReason.NO_DESCRIPTOR}
        assert await b.read(REG.QPRDC.offset()) == 2
        await b.set_tail(7)
        b.offer(frame(64))
        await b.settle()
        assert [p for p, _ in b.written_back()] == [1, 4]

    check_order(CardBench().run(dropping))


def test_full_packet_buffer_misses_whole_packets():
    async def scenario(b):
        await b.set_up(8, tail=0)
        for n in range(10):
            b.offer(frame(1000, fill=n))  # 16 rows each: 8 of them fit in 128 rows
        await b.settle()
        assert b.drops == {9: DropReason.NO_BUFFER, 10: DropReason.NO_BUFFER}
        assert await b.read(REG.RXMPC.offset()) == 2
        assert await b.read(REG.GPRC.offset()) == 10
        assert await b.read(REG.EICR.offset()) == REG.EICR.MISSED.mask | REG.EICR.OTHER.mask
        await b.set_tail(7)
        await b.settle()
        assert [p for p, _ in b.written_back()] == list(range(1, 8))

    bench = CardBench("nic.line_gbps=100").run(scenario)
    expect(bench, {n: (n - 1,) for n in range(1, 8)})


def test_drops_of_the_mac_are_counted_in_registers():
    async def scenario(b):
        await b.set_up()
        bad = bytearray(frame(100))
        bad[50] ^= 1
        for raw in (bytes(bad), frame(60), frame(1519), frame(64, to=BROADCAST), frame(64)):
            b.offer(raw)
        await b.settle()
        for register in (REG.CRCERRS, REG.RUC, REG.ROC, REG.GPRC):
            assert await b.read(register.offset()) == 1, register.name
        assert await b.read(REG.RFC.offset()) == await b.read(REG.RJC.offset()) == 0

    bench = CardBench().run(scenario)
    assert bench.drops == {
        1: DropReason.CRC_ERROR,
        2: DropReason.RUNT,
        3: DropReason.OVERSIZE,
        4: DropReason.FILTERED,
    }


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (REG.RDLEN.offset(), 0, QueueError.RING_LENGTH),
        (REG.RDLEN.offset(), 192, QueueError.RING_LENGTH),
        (REG.RDBAH.offset(), 0x100, QueueError.RING_BASE),
        (REG.SRRCTL.offset(), 0, QueueError.BUFFER_SIZE),
        (REG.RDH.offset(), 8, QueueError.HEAD),
        (REG.RDT.offset(), 8, QueueError.TAIL),
        (REG.RDBAL.offset(), 0x10_0000, QueueError.DESCRIPTOR),  # behind the end of memory
    ],
)
def test_a_wrong_ring_stops_the_queue_with_an_error(offset, value, error):
    async def scenario(b):
        await b.set_up(8)
        await b.write(REG.RXDCTL.offset(), 0)
        await b.until(lambda: True)
        while await b.read(REG.RXDCTL.offset()) & REG.RXDCTL.ENABLE.mask:
            pass
        await b.read(REG.EICR.offset())
        good = await b.read(offset)
        await b.write(offset, value)
        await b.write(REG.RXDCTL.offset(), REG.RXDCTL.ENABLE.mask)
        b.offer(frame(64))
        await b.settle(300)
        assert [e.fields["error"] for e in b.of("queue_error")] == [error.value]
        assert not await b.read(REG.RXDCTL.offset()) & REG.RXDCTL.ENABLE.mask
        assert await b.read(REG.EICR.offset()) & REG.EICR.DHER.mask
        assert b.drops == {1: DropReason.DMA_ERROR}
        assert await b.read(REG.QPRDC.offset()) == 1
        # Put right, it runs
        await b.write(offset, good)
        await b.write(REG.RXDCTL.offset(), REG.RXDCTL.ENABLE.mask)
        assert await b.read(REG.RXDCTL.offset()) & REG.RXDCTL.ENABLE.mask
        b.offer(frame(64, fill=1))
        await b.settle()
        expect(b, {2: (0,)})

    assert not CardBench(latency=(5, 80)).run(scenario).quiet_violations


def test_a_buffer_beyond_physical_memory_is_an_error():
    async def scenario(b):
        await b.set_up(8, tail=0)
        b.memory[RING + 16 : RING + 32] = (1 << 40).to_bytes(16, "little")
        await b.set_tail(3)
        b.offer(frame(64))
        await b.settle()
        assert [e.fields["error"] for e in b.of("queue_error")] == [QueueError.DESCRIPTOR.value]

    CardBench().run(scenario)


def test_disabling_a_queue_finishes_what_has_begun():
    async def scenario(b):
        await b.set_up()
        for n in range(6):
            b.offer(frame(500, fill=n))
        await b.until(lambda: len(b.of("dma_write")) == 7)  # in the middle of the second packet
        await b.write(REG.RXDCTL.offset(), 0)
        while await b.read(REG.RXDCTL.offset()) & REG.RXDCTL.ENABLE.mask:
            pass
        head = await b.read(REG.RDH.offset())
        await b.settle()
        assert await b.read(REG.RDH.offset()) == head == len(b.written_back()) == 2
        assert b.drops == dict.fromkeys((3, 4, 5, 6), DropReason.QUEUE_DISABLED)
        await b.write(REG.RXDCTL.offset(), REG.RXDCTL.ENABLE.mask)
        b.offer(frame(64, fill=9))
        await b.settle()
        expect(b, {1: (0,), 2: (1,), 7: (2,)})

    check_order(CardBench().run(scenario))


@pytest.mark.parametrize("when", [0, 3, 11, 26, 45])
def test_reset_in_the_middle_of_dma_leaves_nothing_stuck(when):
    async def scenario(b):
        await b.set_up(8, tail=7)
        for n in range(8):
            b.offer(frame(300, fill=n))
        await b.until(lambda: len(b.of("dma_write")) == 2)
        await b.cycles(when)
        await b.write(REG.CTRL.offset(), REG.CTRL.RST.mask)
        while await b.read(REG.CTRL.offset()) & REG.CTRL.RST.mask:
            pass
        writes = len(b.tlps)
        assert not b.reads or not b.answering
        for register in (REG.RXDCTL, REG.RDT, REG.RDH, REG.EIMS, REG.EICR, REG.RXCTRL, REG.GPRC):
            assert await b.read(register.offset()) == 0, register.name
        await b.settle()
        assert all(t.kind == TlpType.COMPLETION for t in b.tlps[writes:])
        delivered = {p for p, _ in b.written_back()}
        assert delivered | b.drops.keys() == b.offered.keys() and not delivered & b.drops.keys()
        assert set(b.drops.values()) <= {DropReason.RESET, DropReason.RECEIVE_DISABLED}
        assert DropReason.RESET in b.drops.values()
        expect(b, {p: (index,) for p, index in b.written_back()})
        # And it works again
        before = len(b.offered)
        await b.set_up(8, offset=32)
        b.offer(frame(200, fill=77))
        await b.settle()
        expect(b, {before + 1: (0,)})

    bench = CardBench("nic.line_gbps=40", latency=(5, 60), ready=0.4, seed=when).run(scenario)
    assert not bench.quiet_violations


def test_reset_waits_for_reads_in_flight():
    async def scenario(b):
        b.answering = False
        await b.set_up()
        await b.until(lambda: len(b.reads) == 2)
        await b.write(REG.CTRL.offset(), REG.CTRL.LRST.mask)
        await b.cycles(100)
        assert await b.read(REG.CTRL.offset()) & REG.CTRL.LRST.mask
        assert await b.read(REG.LINKS.offset()) == 0
        b.answering = True
        await b.cycles(100)
        assert await b.read(REG.CTRL.offset()) == 0
        assert await b.read(REG.LINKS.offset()) == 0xF000_0000

    CardBench().run(scenario)


def test_master_disable_stops_new_dma():
    async def scenario(b):
        await b.set_up()
        await b.settle()
        await b.write(REG.CTRL.offset(), REG.CTRL.GIO_DIS.mask)
        assert not await b.read(REG.STATUS.offset()) & REG.STATUS.GIO_MASTER_EN.mask
        b.offer(frame(64))
        await b.settle()
        assert not b.of("dma_write") and not b.drops
        await b.write(REG.CTRL.offset(), 0)
        assert await b.read(REG.STATUS.offset()) & REG.STATUS.GIO_MASTER_EN.mask
        await b.settle()
        expect(b, {1: (0,)})

    CardBench().run(scenario)


def test_random_traffic_is_accounted_for():
    """Offered = delivered + dropped, whatever the driver, the link and the wire do."""

    async def scenario(b):
        rng = random.Random(11)
        await b.set_up(8, offset=7, srrctl=1 | REG.SRRCTL.DROP_EN.mask, tail=3, itr=1)
        await b.write(REG.FCTRL.offset(), REG.FCTRL.BAM.mask)
        for n in range(100):
            raw = frame(
                rng.choice([60, 64, 64, 65, 120, 300, rng.randint(64, 1500)]),
                to=rng.choice([STATION_ADDRESS] * 4 + [BROADCAST, b"\x04\0\0\0\0\0"]),
                fill=n,
            )
            if rng.random() < 0.1:
                raw = raw[:30] + bytes([raw[30] ^ 1]) + raw[31:]
            b.offer(raw)
        clean, tail, delivered = 0, 3, {}
        while b.wire or clean != tail:
            try:
                await b.until(lambda: b.descriptor(clean % 8)["dd"], limit=600)  # noqa: B023
            except AssertionError:
                if not b.wire:
                    break
                continue
            indices = [clean % 8]
            while not b.descriptor(indices[-1])["eop"]:
                indices.append((indices[-1] + 1) % 8)
                await b.until(lambda: b.descriptor(indices[-1])["dd"])  # noqa: B023
            raw = b.packet(*indices)
            packet = next(p for p, i in reversed(b.written_back()) if i == indices[-1])
            assert raw == b.offered[packet][:-4]
            delivered[packet] = indices
            for index in indices:
                b.give(index)
                clean += 1
            if rng.random() < 0.7:
                tail = max(tail, clean + rng.choice([4, 6, 7]))
                await b.set_tail(tail % 8)
            await b.cycles(rng.randrange(60))
        await b.settle()
        written = {p for p, _ in b.written_back()}
        assert written | b.drops.keys() == b.offered.keys() and not written & b.drops.keys()
        assert delivered.keys() <= written and len(delivered) > 30
        assert {DropReason.CRC_ERROR, DropReason.RUNT, DropReason.FILTERED} <= set(b.drops.values())

    check_order(CardBench("nic.line_gbps=40", ready=0.6, seed=2).run(scenario))


def test_registers_by_mmio():
    async def scenario(b):
        # Storage: what was written, 4 and 8 bytes, upper and lower lanes
        await b.write(0x5200, 0x1122_3344)
        await b.write(0x5208, 0x99AA_BBCC_DDEE_FF00, 8)
        assert await b.read(0x5200) == 0x1122_3344 and await b.read(0x520C) == 0x99AA_BBCC
        assert await b.read(0x5208, 8) == 0x99AA_BBCC_DDEE_FF00
        # Beyond the registers there is nothing
        await b.write(STORAGE_BYTES, 5)
        assert await b.read(STORAGE_BYTES) == 0
        # Reset values, read-only bits, aliases
        assert await b.read(REG.RXPBSIZE.offset(0)) == 512 << 10 and await b.read(REG.RXPBSIZE.offset(1)) == 0
        assert await b.read(REG.RAL.offset(0)) == int.from_bytes(STATION_ADDRESS[:4], "little")
        await b.write(0x5400, 0x1234)
        assert await b.read(REG.RAL.offset(0)) == 0x1234
        await b.write(REG.RDRXCTL.offset(), 0)
        assert await b.read(REG.RDRXCTL.offset()) == REG.RDRXCTL.DMAIDONE.mask
        await b.write(REG.RDBAL.offset(), 0x12_3456_7880, 8)
        assert (await b.read(REG.RDBAL.offset()), await b.read(REG.RDBAH.offset())) == (0x3456_7880, 0x12)
        await b.write(REG.RDH.offset(), 3)
        assert await b.read(REG.RDH.offset()) == 3
        # BAR3
        assert await b.read(msix_entry(0) + 12, base=BAR3_BASE) == 1
        assert await b.read(MSIX_PBA, 8, base=BAR3_BASE) == 0
        # A reset takes everything back but the MSI-X table
        await b.write(msix_entry(0), 0x77, base=BAR3_BASE)
        await b.write(REG.CTRL.offset(), REG.CTRL.RST.mask)
        while await b.read(REG.CTRL.offset()):
            pass
        assert await b.read(0x5200) == 0 and await b.read(REG.RDH.offset()) == 0
        assert await b.read(REG.RAL.offset(0)) == int.from_bytes(STATION_ADDRESS[:4], "little")
        assert await b.read(msix_entry(0), base=BAR3_BASE) == 0x77
        # What it cannot do it refuses
        for address, size in ((BAR0_BASE + 2, 4), (BAR0_BASE + 4, 8), (BAR0_BASE, 2), (0xF020_0000, 4)):
            tag = b.post(TlpType.MEMORY_READ, address, size)
            await b.until(lambda: tag in b.answers)  # noqa: B023
            assert b.answers.pop(tag).status == TlpStatus.UNSUPPORTED_REQUEST
        b.post(TlpType.MEMORY_WRITE, BAR0_BASE + 2, 4)
        assert await b.read(0) == 0

    CardBench().run(scenario)
