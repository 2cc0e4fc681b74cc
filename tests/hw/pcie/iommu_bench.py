"""The IOMMU by itself on Amaranth's simulator: a link that sends, a decoder that takes, memory with tables, a core.

What is expected comes from :class:`Tables`, written for the tests: it walks the same bytes by the specification.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.sim import Simulator

from hw.bus.memory import MemoryOp
from hw.bus.tlp import TlpBeat, TlpType
from hw.config import MachineConfig, load_machine
from hw.lib.observe import collect
from hw.lib.probe import Counter, Probe
from hw.lib.time import NOW_WIDTH
from hw.pcie.iommu import Iommu
from hw.pcie.iommu.registers import DMAR, Register

PAGE, LARGE = 1 << 12, 1 << 21
READ, WRITE = 1, 2
MEBIBYTE = 1 << 20


def machine(**settings) -> MachineConfig:
    """``tiny`` with an IOMMU."""
    values = {"enabled": "true", "walk_read_ns": 0.0, **settings}
    return load_machine("tiny", [f"iommu.{name}={value}" for name, value in values.items()])


class Tables:
    """Root, context and page tables in a memory of words, and what they say."""

    def __init__(self, end: int = MEBIBYTE, domain: int = 5, translation_type: int = 0):
        self.words: dict[int, int] = {}
        self.end = end
        self.next = end - 256 * PAGE  # tables lie at the end
        self.root, self.contexts, self.top = (self.allocate() for _ in range(3))
        self.words[self.root + 16] = self.contexts | 1
        self.context(domain, translation_type)

    def allocate(self) -> int:
        """A page of zeroes."""
        page = self.next
        self.next += PAGE
        return page

    def context(self, domain: int = 5, translation_type: int = 0, width: int = 2) -> None:
        """Write the card's context entry."""
        self.words[self.contexts] = self.top | translation_type << 2 | 1
        self.words[self.contexts + 8] = domain << 8 | width

    def map(self, address: int, frame: int, rights: int = READ | WRITE, large: bool = False) -> None:
        """Map one page; a frame of 0 and no rights unmaps it."""
        table = self.top
        for level in (3, 2, 1, 0):
            entry = table + (address >> 12 + 9 * level) % 512 * 8
            if level == (1 if large else 0):
                self.words[entry] = frame | rights | (1 << 7 if large else 0)
                return
            if not self.words.get(entry, 0) & 3:
                self.words[entry] = self.allocate() | READ | WRITE
            table = self.words[entry] & ~0xFFF

    def entry(self, address: int, level: int) -> int:
        """Where the entry of a level lies."""
        table = self.top
        for above in range(3, level, -1):
            table = self.words[table + (address >> 12 + 9 * above) % 512 * 8] & ~0xFFF
        return table + (address >> 12 + 9 * level) % 512 * 8

    def translate(self, address: int, write: bool) -> tuple[int, int]:
        """Physical address (0 on a fault) and the fault's reason (0: none)."""
        get = self.words.get
        if address >> 40:
            return 0, 4
        if self.root >= self.end:
            return 0, 8
        root = get(self.root + 16, 0)
        if not root & 1:
            return 0, 1
        if root & 0xFFE or root >> 40:
            return 0, 0xA
        contexts = root & ~0xFFF
        if contexts >= self.end:
            return 0, 9
        low, high = get(contexts, 0), get(contexts + 8, 0)
        if not low & 1:
            return 0, 2
        if low & 0xFF0 or low >> 40 or high >> 24:
            return 0, 0xB
        if high & 7 != 2 or low >> 2 & 3 not in (0, 2):
            return 0, 3
        if low >> 2 & 3 == 2:
            return address, 0
        table, rights = low & ~0xFFF, READ | WRITE
        for level in (3, 2, 1, 0):
            if table >= self.end:
                return 0, 7
            entry = get(table + (address >> 12 + 9 * level) % 512 * 8, 0)
            rights &= entry
            large = bool(entry & 1 << 7) and level > 0
            if not rights & 3:
                break
            if entry >> 40 & 0xFFF or (large and (level != 1 or entry & 0x1FF000)):
                return 0, 0xC
            if large or level == 0:
                size = LARGE if large else PAGE
                if not rights & (WRITE if write else READ):
                    break
                return (entry & (1 << 40) - 1 & -size) | address % size, 0
            table = entry & ~0xFFF
        return 0, 5 if write else 6

    def line(self, number: int) -> int:
        """The 64 bytes of a line."""
        return sum(self.words.get(64 * number + 8 * word, 0) << 64 * word for word in range(8))


@dataclass
class Given:
    """A packet that left."""

    edge: int
    kind: TlpType
    address: int
    tag: int
    beats: int
    blocked: bool
    data: list[int]


def packet(kind: TlpType, address: int, tag: int, length: int = 64) -> list[int]:
    """The beats of a packet, each with its number as data."""
    beats = 1 if kind is TlpType.MEMORY_READ else (address % 64 + length + 63) // 64
    header = {"kind": kind, "address": address, "length": length, "tag": tag, "packet": tag + 1}
    return [
        TlpBeat.const({"header": header, "data": tag << 8 | i, "first": i == 0, "last": i == beats - 1}).as_bits()
        for i in range(beats)
    ]


@dataclass
class Bench:
    """Runs an IOMMU edge by edge.

    Attributes:
        to_send: beats, each offered from its edge on.
        latency: gives the delay of a memory answer in edges from its request, at least 1.
        push: probability that a beat is offered, pull: that one is taken, take: that memory takes a request.
    """

    config: MachineConfig
    tables: Tables
    seed: int = 1
    latency: Callable[[random.Random], int] = lambda rng: 4
    push: float = 1.0
    pull: float = 1.0
    take: float = 1.0
    drained: Callable[[int], bool] = lambda edge: True
    make: Callable[[MachineConfig], Iommu] = Iommu
    to_send: deque = field(default_factory=deque)
    given: list[Given] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)  #: edge of each packet's first beat
    reads: list[tuple[int, int]] = field(default_factory=list)  #: edge and line of each read of memory
    interrupts: list[tuple[int, int, int]] = field(default_factory=list)
    events: dict[str, list[tuple[int, dict]]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    edge: int = 0

    def __post_init__(self):
        self.dut = self.make(self.config)
        self.rng = random.Random(self.seed)
        self._answers: list[tuple[int, int, int]] = []
        self._beats: list[tuple[int, bool]] = []
        self._commands: deque = deque()
        self._ctx = None

    def send(self, kind: TlpType, address: int, tag: int = 0, length: int = 64, at: int = 0) -> None:
        """Have a packet offered from edge ``at`` on."""
        for first, beat in enumerate(packet(kind, address, tag, length)):
            self.to_send.append((at, first == 0, beat))

    def run(self, software) -> "Bench":
        """Run until ``software(bench)``, a coroutine that drives a core, is over and everything sent has left."""
        m = Module()
        m.domains += ClockDomain("uncore", reset_less=True)
        m.submodules.dut = self.dut
        now = Signal(NOW_WIDTH)
        m.d.uncore += now.eq(now + 1)
        m.d.comb += self.dut.now.eq(now)
        probes, counters = collect(self.dut, Probe), collect(self.dut, Counter)
        simulator = Simulator(m)
        simulator.add_clock(1e-9, domain="uncore")

        async def bench(ctx):
            self._ctx = ctx
            self._probes = probes
            await software(self)
            while self.to_send or self._inside():
                await self.step()
            for _ in range(3):
                await self.step()
            self.counters = {name: ctx.get(counter.value) for name, counter in counters.items()}

        simulator.add_testbench(bench)
        simulator.run()
        return self

    def _inside(self) -> bool:
        return len(self.accepted) > len(self.given)

    async def step(self) -> None:
        """One edge."""
        ctx, dut = self._ctx, self.dut
        offered = (
            bool(self.to_send) and self.to_send[0][0] <= self.edge and (self._offering or self.rng.random() < self.push)
        )
        self._offering = offered
        ctx.set(dut.input.valid, offered)
        if offered:
            ctx.set(dut.input.payload, TlpBeat.from_bits(self.to_send[0][2]))
        ctx.set(dut.output.ready, self.rng.random() < self.pull)
        ctx.set(dut.request.ready, self.rng.random() < self.take)
        ctx.set(dut.interrupt.ready, self.rng.random() < self.pull)
        ctx.set(dut.drained, self.drained(self.edge))
        due = [answer for answer in self._answers if answer[0] <= self.edge]
        answer = self.rng.choice(due) if due else None
        ctx.set(dut.response_valid, answer is not None)
        if answer is not None:
            self._answers.remove(answer)
            ctx.set(dut.response, {"tag": answer[1], "data": self.tables.line(answer[2]), "packet": 0})
        # What this edge does
        if offered and ctx.get(dut.input.ready):
            _, first, _ = self.to_send.popleft()
            self._offering = False
            if first:
                self.accepted.append(self.edge)
        if ctx.get(dut.output.valid):
            seen = (ctx.get(dut.output.payload.as_value()), ctx.get(dut.blocked))
            assert self._offer in (None, seen), "an offer changed"
            self._offer = seen
            if self.first_offer is None:
                self.first_offer = self.edge
            if ctx.get(dut.output.ready):
                self._offer = None
                self._leave(TlpBeat.from_bits(seen[0]), bool(seen[1]))
        else:
            assert self._offer is None, "an offer was withdrawn"
        request = dut.request
        if ctx.get(request.valid):
            seen = (ctx.get(request.payload.line), ctx.get(request.payload.tag))
            assert self._asked in (None, seen), "a read of memory changed"
            assert ctx.get(request.payload.op) == MemoryOp.READ
            self._asked = seen
            if ctx.get(request.ready):
                self._asked = None
                assert 64 * seen[0] < self.tables.end
                self.reads.append((self.edge, seen[0]))
                self._answers.append((self.edge + self.latency(self.rng), seen[1], seen[0]))
        if ctx.get(dut.interrupt.valid) and ctx.get(dut.interrupt.ready):
            payload = dut.interrupt.payload
            self.interrupts.append((self.edge, ctx.get(payload.core), ctx.get(payload.vector)))
        for name, probe in self._probes.items():
            if ctx.get(probe.valid):
                values = {key: ctx.get(value) for key, value in probe.fields.items()}
                self.events.setdefault(name.rpartition(".")[2], []).append((self.edge, values))
        await ctx.tick("uncore")
        self.edge += 1

    _offering = False
    _offer = None
    _asked = None
    first_offer = None

    def _leave(self, beat, blocked: bool) -> None:
        if beat.first:
            header = beat.header
            self.given.append(Given(self.edge, header.kind, header.address, header.tag, 0, blocked, []))
        last = self.given[-1]
        assert last.blocked == blocked
        assert last.address == beat.header.address
        last.beats += 1
        last.data.append(beat.data)

    # A core

    async def access(self, offset: int, value: int | None = None, size: int = 4) -> int:
        """Read (no value) or write a register."""
        ctx, port = self._ctx, self.dut.registers
        ctx.set(port.access, 1)
        ctx.set(port.write, value is not None)
        ctx.set(port.offset, offset)
        ctx.set(port.wide, size == 8)
        ctx.set(port.data, value or 0)
        answer = ctx.get(port.answer)
        await self.step()
        ctx.set(port.access, 0)
        return answer

    async def write(self, register: Register, value: int) -> None:
        """Write a whole register."""
        await self.access(register.offset, value, register.width // 8)

    async def read(self, register: Register) -> int:
        """Read a whole register."""
        return await self.access(register.offset, None, register.width // 8)

    async def until(self, register: Register, mask: int, value: int) -> None:
        """Read until masked bits have a value."""
        for _ in range(5000):
            if await self.read(register) & mask == value:
                return
        raise AssertionError(f"{register.name} stays {await self.read(register):#x}")

    async def enable(self) -> None:
        """Root table, invalidations, translation on, as Linux does it."""
        await self.write(DMAR.RTADDR, self.tables.root)
        await self.write(DMAR.GCMD, DMAR.GCMD.SRTP.mask)
        await self.until(DMAR.GSTS, DMAR.GSTS.RTPS.mask, DMAR.GSTS.RTPS.mask)
        await self.write(DMAR.CCMD, DMAR.CCMD.ICC.mask | DMAR.CCMD.CIRG.put(1))
        await self.until(DMAR.CCMD, DMAR.CCMD.ICC.mask, 0)
        await self.invalidate()
        await self.write(DMAR.GCMD, DMAR.GCMD.TE.mask)
        await self.until(DMAR.GSTS, DMAR.GSTS.TES.mask, DMAR.GSTS.TES.mask)

    async def invalidate(self, granularity: int = 1, address: int = 0, domain: int = 5) -> int:
        """Invalidate the IOTLB; returns what was dropped, by IAIG."""
        await self.write(DMAR.IVA, address)
        iotlb = DMAR.IOTLB
        await self.write(iotlb, iotlb.IVT.mask | iotlb.IIRG.put(granularity) | iotlb.DID.put(domain))
        await self.until(iotlb, iotlb.IVT.mask, 0)
        return iotlb.IAIG.get(await self.read(iotlb))

    async def wait(self, edges: int) -> None:
        """So many edges."""
        for _ in range(edges):
            await self.step()

    async def settle(self) -> None:
        """Until everything sent has left."""
        while self.to_send or self._inside():
            await self.step()
