"""The card on Amaranth's simulator, with a wire, a host's memory behind PCIe, and a few lines of driver."""

import random
import zlib
from collections import deque
from dataclasses import dataclass

from amaranth.hdl import Cat

from hw.bus.tlp import TlpBeat, TlpStatus, TlpType
from hw.bus.wire import FrameBeat
from hw.config import load_machine
from hw.lib.observe import collect
from hw.lib.probe import Probe
from hw.memory_map import BAR0_BASE, BAR3_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ, RX_WRITE_BACK, TX_DATA, TX_WRITE_BACK
from hw.nic.drop import DropReason
from hw.nic.nic import Nic
from hw.nic.registers import REG, STATION_ADDRESS, msix_entry
from tests.hw.simulate import simulate

BROADCAST = b"\xff" * 6
MEMORY_BYTES = 1 << 20
RING, BUFFERS = 0x1000, 0x10000
#: Rings of further receive queues, and of transmit queues; what is to be sent lies from TX_BUFFERS on.
RING_BYTES = 0x400
TX_RING, TX_BUFFERS = 0x4000, 0x80000
MSI_ADDRESS, MSI_DATA = 0xFEE0_1004, 0x51


def frame(size: int, *, to: bytes = STATION_ADDRESS, fill: int = 0, ethertype: bytes = b"\x08\x00") -> bytes:
    """A frame of ``size`` bytes, FCS included."""
    body = (to + b"\x02\0\0\0\0\x99" + ethertype + random.Random(fill * 9999 + size).randbytes(size))[: size - 4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def frame_beats(raw: bytes, packet: int, start: int = 0) -> list[int]:
    """The beats of a frame as integers."""
    return [
        FrameBeat.const(
            {
                "data": int.from_bytes(raw[at : at + 64], "little"),
                "length": len(raw),
                "first": at == 0,
                "last": at + 64 >= len(raw),
                "packet": packet,
                "start": start,
            }
        ).as_bits()
        for at in range(0, max(1, len(raw)), 64)
    ]


@dataclass
class Tlp:
    """A packet the card sent."""

    cycle: int  #: of its last beat
    kind: TlpType
    address: int
    length: int
    tag: int
    packet: int
    data: bytes
    status: TlpStatus


@dataclass
class Sent:
    """A frame on the wire."""

    cycle: int  #: by which its last byte has left
    packet: int
    raw: bytes


@dataclass
class Event:
    """A probe that fired."""

    cycle: int
    name: str
    fields: dict[str, int]


class CardBench:
    """A card, what surrounds it, and what was seen.

    Arguments:
        settings: as ``--set``, on top of ``tiny``.
        seed: of all randomness.
        latency: least and most cycles from a read request to its completion.
        ready: probability that the link takes a beat.
    """

    def __init__(self, *settings: str, seed: int = 1, latency: tuple[int, int] = (5, 40), ready: float = 0.7):
        self.config = load_machine("tiny", settings)
        self.random = random.Random(seed)
        self.latency, self.ready = latency, ready
        self.card = Nic(self.config)
        self.probes = collect(self.card, Probe, "nic")
        self.cycle = 0
        self.memory = bytearray(MEMORY_BYTES)
        self.wire: deque[int] = deque()
        self.to_card: deque[tuple[int, int]] = deque()  # (earliest cycle, beat), in order
        self.reads: list[tuple[int, Tlp]] = []  # (due, request)
        self.tlps: list[Tlp] = []
        self.sent: list[Sent] = []
        self.tx_next: dict[int, int] = {}  # by queue, the next descriptor to be written
        self.tx_size = 16
        self._tx_at = TX_BUFFERS
        self.events: list[Event] = []
        self.answers: dict[int, Tlp] = {}
        self.offered: dict[int, bytes] = {}
        self.quiet_violations: list[str] = []
        self.answering = True
        self.tail = 0
        self._tags = self._register_writes = 0

    # What tests look at

    def of(self, name: str) -> list[Event]:
        """Events of the probes whose name ends with ``name``."""
        return [e for e in self.events if e.name.rstrip("0123456789").endswith(name)]

    @property
    def drops(self) -> dict[int, DropReason]:
        """Reason by packet."""
        found = self.of(".drop")
        assert len({e.fields["packet"] for e in found}) == len(found), "a packet was dropped twice"
        return {e.fields["packet"]: DropReason(e.fields["reason"]) for e in found}

    def written_back(self, way: str = "rx") -> list[tuple[int, int]]:
        """(packet, index) in order of time and place."""
        return [(e.fields["packet"], e.fields["index"]) for e in self.of(f"{way}.write_back")]

    # The wire

    def offer(self, raw: bytes, start: int = 0) -> int:
        """Put a frame on the wire; returns its packet id."""
        packet = len(self.offered) + 1
        self.offered[packet] = raw
        self.wire.extend(frame_beats(raw, packet, start))
        return packet

    # Software

    def post(self, kind: TlpType, address: int, size: int, value: int = 0) -> int:
        """Send an MMIO request; returns its tag."""
        self._tags = (self._tags + 1) % 256
        header = {"kind": kind, "address": address, "length": size, "tag": self._tags}
        data = value << 8 * (address % 64)
        beat = TlpBeat.const({"header": header, "data": data, "first": 1, "last": 1})
        self.to_card.append((self.cycle, beat.as_bits()))
        return self._tags

    async def write(self, offset: int, value: int, size: int = 4, base: int = BAR0_BASE):
        """Write a register and wait until it is written."""
        count = self._register_writes + size // 4
        self.post(TlpType.MEMORY_WRITE, base + offset, size, value)
        await self.until(lambda: self._register_writes == count)

    async def read(self, offset: int, size: int = 4, base: int = BAR0_BASE) -> int:
        """Read a register."""
        tag = self.post(TlpType.MEMORY_READ, base + offset, size)
        await self.until(lambda: tag in self.answers)
        answer = self.answers.pop(tag)
        assert answer.status == TlpStatus.SUCCESS and len(answer.data) == size
        return int.from_bytes(answer.data, "little")

    async def set_up(self, size: int = 16, *, srrctl: int = 2, offset: int = 0, tail: int | None = None, itr: int = 0):
        """What a driver does: interrupts, ring with buffers at ``offset`` in 2 KiB slots, receive on."""
        await self.write(msix_entry(0), MSI_ADDRESS, 8, base=BAR3_BASE)
        await self.write(msix_entry(0) + 8, MSI_DATA, 8, base=BAR3_BASE)
        await self.write(REG.GPIE.offset(), REG.GPIE.MSIX_MODE.mask | REG.GPIE.EIAME.mask)
        await self.write(REG.IVAR.offset(0), REG.IVAR.RX_EVEN_VALID.mask)
        await self.write(REG.EIAC.offset(), 1)
        await self.write(REG.EITR.offset(0), REG.EITR.INTERVAL.put(itr))
        await self.write(REG.EIMS.offset(), 1)
        await self.write(REG.RDRXCTL.offset(), REG.RDRXCTL.CRCSTRIP.mask)
        self.size, self.buffer_offset, self.buffer_bytes = size, offset, (srrctl & 31) * 1024
        for index in range(size):
            self.give(index)
        await self.write(REG.RDBAL.offset(), RING, 8)
        await self.write(REG.RDLEN.offset(), DESCRIPTOR_BYTES * size)
        await self.write(REG.SRRCTL.offset(), srrctl | REG.SRRCTL.DESCTYPE.put(1))
        await self.write(REG.RXDCTL.offset(), REG.RXDCTL.ENABLE.mask)
        await self.write(REG.RXCTRL.offset(), REG.RXCTRL.RXEN.mask)
        await self.set_tail(size - 1 if tail is None else tail)

    def buffer(self, index: int) -> int:
        """Address of the buffer of descriptor ``index``."""
        return BUFFERS + 4096 * index + self.buffer_offset

    def give(self, index: int):
        """Write descriptor ``index`` in its read format."""
        at = RING + DESCRIPTOR_BYTES * index
        self.memory[at : at + DESCRIPTOR_BYTES] = RX_READ.pack(packet_address=self.buffer(index))

    async def set_tail(self, tail: int):
        """Tell the card."""
        self.tail = tail
        await self.write(REG.RDT.offset(), tail)

    def descriptor(self, index: int) -> dict[str, int]:
        """Descriptor ``index`` as it is in memory now."""
        at = RING + DESCRIPTOR_BYTES * index
        return RX_WRITE_BACK.unpack(bytes(self.memory[at : at + DESCRIPTOR_BYTES]))

    def packet(self, *indices: int) -> bytes:
        """The bytes a packet left in the buffers of ``indices``."""
        out = b""
        for index in indices:
            at = self.buffer(index)
            out += bytes(self.memory[at : at + self.descriptor(index)["length"]])
        return out

    # Software that sends

    async def set_up_transmit(self, size: int = 16, queues: int = 1, head: int = 0):
        """Rings of ``size`` descriptors, their causes on vector 0, transmit on."""
        self.tx_size = size
        ivar = REG.IVAR
        await self.write(ivar.offset(0), ivar.RX_EVEN_VALID.mask | ivar.TX_EVEN_VALID.mask | ivar.TX_ODD_VALID.mask)
        await self.write(REG.DMATXCTL.offset(), REG.DMATXCTL.TE.mask)
        for queue in range(queues):
            self.tx_next[queue] = head
            await self.write(REG.TDBAL.offset(queue), self.tx_ring(queue), 8)
            await self.write(REG.TDLEN.offset(queue), DESCRIPTOR_BYTES * size)
            await self.write(REG.TDH.offset(queue), head)
            await self.write(REG.TDT.offset(queue), head)
            await self.write(REG.TXDCTL.offset(queue), REG.TXDCTL.ENABLE.mask)

    def tx_ring(self, queue: int) -> int:
        """Address of a transmit ring."""
        return TX_RING + RING_BYTES * queue

    def put(self, queue: int, raw: bytes, **fields: int) -> int:
        """Write the next descriptor of a transmit ring, with its bytes in memory; returns its index."""
        address = fields.pop("address", None)
        if address is None:
            address = self._tx_at + fields.pop("shift", 0)
            self._tx_at = TX_BUFFERS + (self._tx_at - TX_BUFFERS + 4096 * (1 + len(raw) // 4096)) % 0x40000
            self.memory[address : address + len(raw)] = raw
        index = self.tx_next[queue]
        self.tx_next[queue] = (index + 1) % self.tx_size
        given = {"address": address, "length": len(raw), "dtyp": 3, "dext": 1, "ifcs": 1, "payload_length": len(raw)}
        at = self.tx_ring(queue) + DESCRIPTOR_BYTES * index
        self.memory[at : at + DESCRIPTOR_BYTES] = TX_DATA.pack(given | fields)
        return index

    async def set_tx_tail(self, queue: int = 0):
        """Give the card the descriptors that have been written."""
        await self.write(REG.TDT.offset(queue), self.tx_next[queue])

    def tx_done(self, queue: int, index: int) -> bool:
        """Whether a transmit descriptor has been written back."""
        at = self.tx_ring(queue) + DESCRIPTOR_BYTES * index
        return bool(TX_WRITE_BACK.get(bytes(self.memory[at : at + DESCRIPTOR_BYTES]), "dd"))

    # Time

    async def until(self, condition, limit: int = 20000):
        """Wait for ``condition``."""
        last = self.cycle + limit
        while not condition():
            assert self.cycle < last, "waited in vain"
            await self._ctx.tick("nic")

    async def cycles(self, count: int):
        """Wait ``count`` cycles."""
        last = self.cycle + count
        await self.until(lambda: self.cycle >= last)

    async def settle(self, cycles: int = 200):
        """Wait until nothing has happened for ``cycles`` cycles and the wire is empty."""
        await self.until(lambda: not self.wire)
        while True:
            before = len(self.events), len(self.tlps)
            await self.cycles(cycles)
            if (len(self.events), len(self.tlps)) == before:
                return

    def run(self, scenario):
        """Run ``scenario(bench)`` to its end."""

        async def surroundings(ctx):
            while True:
                self._cycle(ctx)
                await ctx.tick("nic")
                self.cycle += 1

        async def test(ctx):
            self._ctx = ctx
            await scenario(self)

        simulate(self.card, test, background=surroundings)
        return self

    def _cycle(self, ctx):
        """Everything around the card at one edge."""
        card, send, receive = self.card, self.card.pcie.send, self.card.pcie.receive
        ctx.set(send.ready, self.random.random() < self.ready)
        self._answer_reads()
        offered = bool(self.to_card) and self.to_card[0][0] <= self.cycle
        ctx.set(receive.valid, offered)
        if offered:
            ctx.set(receive.payload, TlpBeat.from_bits(self.to_card[0][1]))
        ctx.set(card.wire.valid, bool(self.wire))
        if self.wire:
            ctx.set(card.wire.payload, FrameBeat.from_bits(self.wire[0]))
        if ctx.get(card.wire_out.valid):
            self._leave(ctx.get(card.wire_out.payload))
        fired = ctx.get(self._valids)
        flags = ctx.get(Cat(send.valid & send.ready, receive.ready, card.wire.ready, card.quiet))
        if flags & 1:
            self._collect(ctx.get(send.payload))
        if flags & 2 and offered:
            self.to_card.popleft()
        if flags & 4 and self.wire:
            self.wire.popleft()
        if flags & 8 and (fired or flags & 1):
            self.quiet_violations.append(f"cycle {self.cycle}")
        for index, (name, probe) in enumerate(self.probes.items() if fired else ()):
            if fired >> index & 1:
                self._register_writes += name == "nic.registers.write"
                fields = {key: ctx.get(signal) for key, signal in probe.fields.items()}
                self.events.append(Event(self.cycle, name, fields))

    @property
    def _valids(self):
        return Cat(probe.valid for probe in self.probes.values())

    _leaving: bytes = b""

    def _leave(self, beat):
        assert beat.first == (not self._leaving)
        line = beat.data.to_bytes(64, "little")
        end = beat.length - len(self._leaving)
        assert not any(line[max(0, end) :]), "bytes behind the frame"
        self._leaving += line[:end]
        assert beat.last == (len(self._leaving) == beat.length)
        if beat.last:
            self.sent.append(Sent(self.cycle, beat.packet, self._leaving))
            self._leaving = b""

    _partial: bytes = b""

    def _collect(self, beat):
        header = beat.header
        line = beat.data.to_bytes(64, "little")
        if beat.first:
            self._partial = b""
            self._partial_header = header
            begin = header.address % 64
        else:
            assert header == self._partial_header
            begin = 0
        if header.kind == TlpType.MEMORY_WRITE or header.kind == TlpType.COMPLETION:
            self._partial += line[begin:][: header.length - len(self._partial)]
        if not beat.last:
            return
        tlp = Tlp(
            self.cycle,
            TlpType(header.kind),
            header.address,
            header.length,
            header.tag,
            header.packet,
            self._partial,
            TlpStatus(header.status),
        )
        self.tlps.append(tlp)
        if tlp.kind == TlpType.MEMORY_WRITE:
            assert len(tlp.data) == tlp.length <= self.config.pcie.mps
            assert tlp.address // self.config.pcie.mps == (tlp.address + tlp.length - 1) // self.config.pcie.mps
            if tlp.address < MEMORY_BYTES:
                self.memory[tlp.address : tlp.address + tlp.length] = tlp.data
        elif tlp.kind == TlpType.MEMORY_READ:
            assert tlp.length <= self.config.pcie.mrrs and tlp.address // 4096 == (tlp.address + tlp.length - 1) // 4096
            assert tlp.tag not in {read.tag for _, read in self.reads}, "a tag in use"
            self.reads.append((self.cycle + self.random.randint(*self.latency), tlp))
            assert len(self.reads) <= self.config.nic.read_tags
        else:
            self.answers[tlp.tag] = tlp

    def _answer_reads(self):
        """Completions, in any order."""
        due = [entry for entry in self.reads if entry[0] <= self.cycle] if self.answering else []
        for entry in due:
            self.reads.remove(entry)
            request = entry[1]
            inside = request.address + request.length <= MEMORY_BYTES
            address, left = request.address, request.length
            while left:  # a completion per line
                size = min(left, 64 - address % 64) if inside else left
                header = {
                    "kind": TlpType.COMPLETION,
                    "status": TlpStatus.SUCCESS if inside else TlpStatus.UNSUPPORTED_REQUEST,
                    "address": address,
                    "length": size,
                    "remaining": left,
                    "tag": request.tag,
                }
                data = self.memory[address : address + size] if inside else b""
                value = int.from_bytes(data, "little") << 8 * (address % 64)
                beat = TlpBeat.const({"header": header, "data": value, "first": 1, "last": 1})
                self.to_card.append((self.cycle, beat.as_bits()))
                address, left = address + size, left - size
