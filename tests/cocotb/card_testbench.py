"""cocotb tests of the card by itself: frames in and out, TLPs answered by a small memory. Run by test_card.py."""

import random
import zlib
from collections import deque

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from hw.bus.tlp import TlpStatus, TlpType
from hw.memory_map import BAR0_BASE, BAR3_BASE, MSI_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ, RX_WRITE_BACK, TX_DATA, TX_WRITE_BACK
from hw.nic.registers import REG, STATION_ADDRESS, msix_entry
from hw.nic.toeplitz import toeplitz

RING, BUFFERS, BUFFER_BYTES, DESCRIPTORS = 0x1000, 0x8000, 2048, 16
SEED = 7
#: Transmit rings, by queue, and where packets to be sent lie.
TX_RINGS, TX_BUFFERS = (0x2000, 0x2400), 0x12000


def frame(size: int, fill: int) -> bytes:
    """A frame of ``size`` bytes for the card, FCS included."""
    body = STATION_ADDRESS + bytes(6) + b"\x08\x00" + random.Random(fill).randbytes(size - 18)
    return body + zlib.crc32(body).to_bytes(4, "little")


class Card:
    """The device under test with what surrounds it; every queue is served once per cycle."""

    def __init__(self, dut, *, ready: float = 0.8, latency: tuple[int, int] = (10, 60)):
        self.dut, self.ready, self.latency = dut, ready, latency
        self.random = random.Random(SEED)
        self.memory = bytearray(1 << 17)
        self.frames: deque[dict] = deque()  # beats for the wire
        self.requests: deque[dict] = deque()  # beats for the card
        self.reads: list[tuple[int, dict]] = []  # (due, request) not answered yet
        self.writes: list[tuple[int, int, int]] = []  # (address, length, packet) in order
        self.interrupts: list[int] = []  # data
        self.sent: list[tuple[int, bytes]] = []  # (packet, frame)
        self.answers: dict[int, tuple[int, int]] = {}  # tag: (status, data)
        self.cycle = self.packets = self.tag = 0
        for signal in ("wire_valid", "receive_valid", "send_ready"):
            getattr(dut, signal).value = 0
        Clock(dut.nic_clk, 2, unit="ns").start()
        cocotb.start_soon(self._run())

    def _drive(self, name: str, queue: deque[dict]) -> None:
        getattr(self.dut, f"{name}_valid").value = bool(queue)
        for field, value in (queue[0] if queue else {}).items():
            getattr(self.dut, f"{name}_{field}").value = value

    async def _run(self):
        dut, partial, leaving = self.dut, b"", b""
        while True:
            await FallingEdge(dut.nic_clk)
            for due, request in [r for r in self.reads if r[0] <= self.cycle]:
                self.reads.remove((due, request))
                self._complete(request)
            self._drive("wire", self.frames)
            self._drive("receive", self.requests)
            dut.send_ready.value = self.random.random() < self.ready
            await ReadOnly()
            if self.frames and int(dut.wire_ready.value):
                self.frames.popleft()
            if self.requests and int(dut.receive_ready.value):
                self.requests.popleft()
            if int(dut.send_valid.value) and int(dut.send_ready.value):
                beat = {
                    f: int(getattr(dut, f"send_{f}").value)
                    for f in ("kind", "address", "length", "tag", "status", "packet", "data", "first", "last")
                }
                first = beat["address"] % 64 if beat["first"] else 0
                partial = (b"" if beat["first"] else partial) + beat["data"].to_bytes(64, "little")[first:]
                if beat["last"]:
                    self._take(beat, partial[: beat["length"]])
            if int(dut.sent_valid.value):
                leaving += int(dut.sent_data.value).to_bytes(64, "little")
                if int(dut.sent_last.value):
                    self.sent.append((int(dut.sent_packet.value), leaving[: int(dut.sent_length.value)]))
                    leaving = b""
            self.cycle += 1

    def _complete(self, request: dict) -> None:
        """A completion per line."""
        address, left = request["address"], request["length"]
        while left:
            size = min(left, 64 - address % 64)
            data = int.from_bytes(self.memory[address : address + size], "little")
            self.requests.append(
                {
                    "kind": TlpType.COMPLETION.value,
                    "status": TlpStatus.SUCCESS.value,
                    "address": address,
                    "length": size,
                    "remaining": left,
                    "tag": request["tag"],
                    "packet": 0,
                    "data": data << 8 * (address % 64),
                    "first": 1,
                    "last": 1,
                }
            )
            address, left = address + size, left - size

    def _take(self, beat: dict, data: bytes) -> None:
        address = beat["address"]
        if beat["kind"] == TlpType.MEMORY_READ.value:
            self.reads.append((self.cycle + self.random.randint(*self.latency), beat))
        elif beat["kind"] == TlpType.COMPLETION.value:
            self.answers[beat["tag"]] = (beat["status"], int.from_bytes(data, "little"))
        elif address >= MSI_BASE:
            self.interrupts.append(int.from_bytes(data, "little"))
        else:
            self.memory[address : address + len(data)] = data
            self.writes.append((address, len(data), beat["packet"]))

    def send(self, raw: bytes) -> int:
        """Put a frame on the wire; returns its id."""
        self.packets += 1
        for at in range(0, len(raw), 64):
            self.frames.append(
                {
                    "data": int.from_bytes(raw[at : at + 64], "little"),
                    "length": len(raw),
                    "first": at == 0,
                    "last": at + 64 >= len(raw),
                    "packet": self.packets,
                    "start": 0,
                }
            )
        return self.packets

    def _request(self, kind: TlpType, address: int, size: int, value: int = 0) -> int:
        self.tag = (self.tag + 1) % 256
        self.requests.append(
            {
                "kind": kind.value,
                "status": 0,
                "address": address,
                "length": size,
                "remaining": 0,
                "tag": self.tag,
                "packet": 0,
                "data": value << 8 * (address % 64),
                "first": 1,
                "last": 1,
            }
        )
        return self.tag

    def write(self, offset: int, value: int, size: int = 4, base: int = BAR0_BASE) -> None:
        """Post a register write."""
        self._request(TlpType.MEMORY_WRITE, base + offset, size, value)

    async def read(self, offset: int, size: int = 4, base: int = BAR0_BASE) -> int:
        """Read a register."""
        tag = self._request(TlpType.MEMORY_READ, base + offset, size)
        await self.until(lambda: tag in self.answers)
        status, value = self.answers.pop(tag)
        assert status == TlpStatus.SUCCESS.value
        return value

    async def until(self, condition, limit: int = 20_000) -> None:
        """Wait for ``condition``."""
        last = self.cycle + limit
        while not condition():
            assert self.cycle < last, "waited in vain"
            await FallingEdge(self.dut.nic_clk)

    async def reset(self) -> None:
        """Reset the card by CTRL.RST."""
        self.write(REG.CTRL.offset(), REG.CTRL.RST.mask)
        for _ in range(100):
            if not await self.read(REG.CTRL.offset()):
                return
        raise AssertionError("the reset does not end")

    async def drain(self) -> None:
        """Answer every read, so that the next test finds the card as a driver would."""
        quiet_since = self.cycle
        while self.cycle < quiet_since + 50:
            if self.reads or self.requests or self.frames:
                quiet_since = self.cycle
            await FallingEdge(self.dut.nic_clk)

    def buffer(self, index: int) -> int:
        """Address of the buffer of a descriptor: no two at the same alignment."""
        return BUFFERS + BUFFER_BYTES * index + 13 * index % 64

    def descriptor(self, index: int) -> dict[str, int]:
        """A descriptor as it is in memory."""
        at = RING + DESCRIPTOR_BYTES * index
        return RX_WRITE_BACK.unpack(bytes(self.memory[at : at + DESCRIPTOR_BYTES]))

    async def set_up(self) -> None:
        """Ring, one interrupt vector, receive on."""
        for index in range(DESCRIPTORS):
            at = RING + DESCRIPTOR_BYTES * index
            self.memory[at : at + DESCRIPTOR_BYTES] = RX_READ.pack(packet_address=self.buffer(index))
        self.write(msix_entry(0), MSI_BASE, 8, base=BAR3_BASE)
        self.write(msix_entry(0) + 8, 0x51, 8, base=BAR3_BASE)
        for register, value in (
            (REG.GPIE, REG.GPIE.MSIX_MODE.mask),
            (REG.IVAR, REG.IVAR.RX_EVEN_VALID.mask),
            (REG.EIAC, 1),
            (REG.EIMS, 1),
            (REG.RDRXCTL, REG.RDRXCTL.CRCSTRIP.mask),
            (REG.RDBAL, RING),
            (REG.RDLEN, DESCRIPTOR_BYTES * DESCRIPTORS),
            (REG.SRRCTL, REG.SRRCTL.BSIZEPACKET.put(BUFFER_BYTES // 1024)),
            (REG.RXDCTL, REG.RXDCTL.ENABLE.mask),
            (REG.RXCTRL, REG.RXCTRL.RXEN.mask),
            (REG.RDT, DESCRIPTORS - 1),
        ):
            self.write(register.offset(), value)
        assert await self.read(REG.RXDCTL.offset()) & REG.RXDCTL.ENABLE.mask


@cocotb.test()
async def packets_reach_memory(dut):
    """Whole and in order, payload before descriptor before interrupt; a bad frame is counted."""
    card = Card(dut)
    await card.set_up()
    offered = [frame(size, fill) for fill, size in enumerate((64, 65, 300, 1518, 64, 128, 132, 700))]
    for raw in offered[:4]:
        card.send(raw)
    bad = bytearray(frame(90, 99))
    bad[40] ^= 0x10
    card.send(bytes(bad))
    for raw in offered[4:]:
        card.send(raw)
    await card.until(lambda: card.descriptor(len(offered) - 1)["dd"])
    for index, raw in enumerate(offered):
        back, at = card.descriptor(index), card.buffer(index)
        assert back["dd"] and back["eop"] and back["length"] == len(raw) - 4
        assert card.memory[at : at + len(raw) - 4] == raw[:-4]
    announced = set()
    for address, _, packet in card.writes:
        if address < BUFFERS:
            announced.add(packet)
        else:
            assert packet not in announced, "payload behind its descriptor"
    await card.until(lambda: card.interrupts and card.interrupts[-1] == 0x51)
    assert await card.read(REG.CRCERRS.offset()) == 1
    assert await card.read(REG.GPRC.offset()) == len(offered)
    assert await card.read(REG.RDH.offset()) == len(offered)
    await card.drain()


@cocotb.test()
async def line_rate(dut):
    """64-byte frames at line rate: none is lost, and their time on the wire is right to the cycle."""
    card = Card(dut, ready=1.0, latency=(10, 20))
    await card.reset()
    await card.set_up()
    count = DESCRIPTORS - 1
    written = {}
    for index in range(count):
        card.send(frame(64, index))
    deadline = card.cycle + 2000
    while len(written) < count and card.cycle < deadline:
        await FallingEdge(dut.nic_clk)
        for address, _, packet in card.writes:
            if address < BUFFERS:
                written.setdefault(packet, card.cycle)
    # 84 bytes at 10 Gb/s are 33.6 cycles of 500 MHz
    assert abs(written[count] - written[1] - 33.6 * (count - 1)) < 10
    assert await card.read(REG.QPRC.offset()) == count
    await card.drain()


@cocotb.test()
async def reset_in_the_middle(dut):
    """CTRL.RST comes back 0 once every read in flight is answered, and the card works again."""
    card = Card(dut, ready=0.5)
    await card.reset()
    await card.set_up()
    for fill in range(4):
        card.send(frame(600, fill))
    await card.until(lambda: len(card.writes) > 2)
    await card.reset()
    assert not card.reads
    assert await card.read(REG.RXDCTL.offset()) == 0
    await card.until(lambda: not card.frames)
    await card.set_up()
    raw = frame(333, 5)
    card.send(raw)
    await card.until(lambda: card.descriptor(0)["dd"])
    assert card.memory[card.buffer(0) :][: len(raw) - 4] == raw[:-4]
    await card.drain()


@cocotb.test()
async def packets_leave(dut):
    """From two queues, from buffers at any alignment, over several descriptors: padded, with their FCS, in order."""
    card, rng = Card(dut), random.Random(3)
    await card.reset()
    card.write(REG.DMATXCTL.offset(), REG.DMATXCTL.TE.mask)
    at, expected, count = TX_BUFFERS, ([], []), [0, 0]
    for size in (60, 1, 64, 65, 300, 1514, 61, 128, 700, 63):
        queue, raw = rng.randrange(2), rng.randbytes(size)
        cut = rng.randrange(size)
        for part, last in ((raw[:cut], 0), (raw[cut:], 1)):
            at += rng.randrange(64)
            card.memory[at : at + len(part)] = part
            descriptor = TX_DATA.pack(address=at, length=len(part), dtyp=3, dext=1, ifcs=1, eop=last, rs=last)
            ring = TX_RINGS[queue] + DESCRIPTOR_BYTES * count[queue]
            card.memory[ring : ring + DESCRIPTOR_BYTES] = descriptor
            at += len(part)
            count[queue] += 1
        expected[queue].append(raw.ljust(60, b"\0"))
    for queue, ring in enumerate(TX_RINGS):
        for register, value in (
            (REG.TDBAL, ring),
            (REG.TDLEN, 32 * DESCRIPTOR_BYTES),
            (REG.TXDCTL, REG.TXDCTL.ENABLE.mask),
            (REG.TDT, count[queue]),
        ):
            card.write(register.offset(queue), value)
    total = sum(map(len, expected))
    await card.until(lambda: len(card.sent) == total)
    assert [packet for packet, _ in card.sent] == list(range(1, total + 1))
    frames = [raw for _, raw in card.sent]
    assert all(raw[-4:] == zlib.crc32(raw[:-4]).to_bytes(4, "little") for raw in frames)
    mine = [[raw[:-4] for raw in frames if raw[:-4] in packets] for packets in expected]
    assert tuple(mine) == expected
    for queue, ring in enumerate(TX_RINGS):
        last = ring + DESCRIPTOR_BYTES * (count[queue] - 1)
        await card.until(lambda last=last: TX_WRITE_BACK.get(bytes(card.memory[last : last + 16]), "dd"))
    assert await card.read(REG.GPTC.offset()) == total
    await card.drain()


@cocotb.test()
async def hashes(dut):
    """RSS hashes of random flows, IPv4 and IPv6, are those of the definition."""
    card, rng = Card(dut), random.Random(4)
    await card.reset()
    await card.set_up()
    key = rng.randbytes(40)
    for index in range(10):
        card.write(REG.RSSRK.offset(index), int.from_bytes(key[4 * index : 4 * index + 4], "little"))
    card.write(REG.MRQC.offset(), 1 | REG.MRQC.UDP_IPV4.mask | REG.MRQC.TCP_IPV6.mask)
    assert await card.read(REG.MRQC.offset()) & 1
    messages = []
    for n in range(DESCRIPTORS - 1):
        message = rng.randbytes(36 if n % 2 else 12)
        head = bytes([0x60, 0, 0, 0, 0, 40, 6, 64]) if n % 2 else bytes([0x45, *bytes(8), 17, 0, 0])
        body = STATION_ADDRESS + bytes(6) + (b"\x86\xdd" if n % 2 else b"\x08\x00") + head + message + bytes(40)
        card.send(body + zlib.crc32(body).to_bytes(4, "little"))
        messages.append(message)
    await card.until(lambda: card.descriptor(len(messages) - 1)["dd"])
    for index, message in enumerate(messages):
        back = card.descriptor(index)
        assert back["rss_hash"] == toeplitz(key, message) and back["rss_type"] == (3 if index % 2 else 7)
    await card.drain()
