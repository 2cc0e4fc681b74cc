"""A stand-in for the hardware: operations in order, one cycle each, and an 82599 that takes no time.

It keeps the contract of ``sw.port.CorePort``; one tick is one core cycle. Frames arrive at given ticks. What an
operation gives it gives at once, whether software asks to be told at its issue or its completion.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence

from hw.bus.core import TIMER_VECTOR
from hw.memory_map import BAR0_BASE, BAR0_BYTES, BAR3_BASE, BAR3_BYTES, MSI_BASE, MSI_BYTES
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ, RX_WRITE_BACK, TX_DATA, TX_WRITE_BACK
from hw.nic.registers import MSIX_ENTRY_BYTES, REG, REGISTERS
from sim.engine.shadow import PendingStore, physical
from sw.port import AtomicFunction, Notify, OperationKind, Wake, WakeKind

EXECUTE, LOAD, STORE, PREFETCH, MMIO_READ, MMIO_WRITE, FENCE, HALT, CLI, STI, IRET, ATOMIC, POLL, *_MORE = (
    kind.value for kind in OperationKind
)
LFENCE, SFENCE, STORE_NT, CLFLUSH, WRITE_CR3, INVLPG, RDTSC, TSC_DEADLINE = _MORE

#: A POLL that would give up only after so many cycles is a way to rest.
ENDLESS = 1 << 30

#: Ticks of one unit of EITR; the real one is 2.048 us.
EITR_UNIT_TICKS = 6144
BROADCAST = b"\xff" * 6
TX_QUEUES = 2
FCS_BYTES = 4


class FunctionalNic:
    """One receive queue, two transmit queues, one vector; memory takes no time. Frames come and go without FCS."""

    def __init__(self, machine: "FunctionalMachine"):
        self.machine = machine
        self.registers = {r.offset(i): r.reset_value(i) for r in REGISTERS.values() for i in range(r.count)}
        self.msix = bytearray(BAR3_BYTES)
        self.causes = 0
        self.mask = 0
        self.not_before = 0  #: tick of the next message that moderation allows
        self.filtered = 0
        self.no_descriptor: list[int] = []  #: frames dropped for want of a descriptor
        self.written_back: list[int] = []  #: frames in the order of their write-back
        self.transmitted: list[bytes] = []
        self.tx_stalled = False  #: nothing is sent until :meth:`resume_tx`
        self.on_transmit: Callable[[bytes], None] | None = None  #: called with every frame
        self.checksum_status: Callable[[bytes], dict[str, int]] | None = None  #: more fields of the write-back
        self.broken: set[str] = set()  #: registers that ignore writes and read as zero

    def get(self, register, index: int = 0) -> int:
        return self.registers[register.offset(index)]

    def read(self, offset: int) -> int:
        if any(offset == REGISTERS[name].offset() for name in self.broken):
            return 0
        if offset == REG.EICR.offset():
            causes, self.causes = self.causes, self.causes & ~(0x3FFF_0000 if self.get(REG.GPIE) & 32 else 0xFFFF_FFFF)
            return causes
        if offset == REG.LINKS.offset():
            return REG.LINKS.UP.mask | REG.LINKS.SPEED.put(3)
        if offset in (REG.EIMS.offset(), REG.EIMC.offset()):
            return self.mask
        return self.registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        if any(offset == REGISTERS[name].offset() for name in self.broken):
            return
        if offset == REG.CTRL.offset() and value & REG.CTRL.RST.mask:
            kept = {name: getattr(self, name) for name in ("broken", "checksum_status", "on_transmit")}
            self.__init__(self.machine)  # type: ignore[misc]
            self.__dict__.update(kept)
        elif offset == REG.EIMS.offset():
            self.mask |= value
        elif offset == REG.EIMC.offset():
            self.mask &= ~value
        elif offset == REG.EICS.offset():
            self.causes |= value
        else:
            if offset == REG.RDT.offset():
                assert value < self.ring_size, f"RDT = {value} outside a ring of {self.ring_size}"
            self.registers[offset] = value
            for queue in range(TX_QUEUES):
                if offset == REG.TDT.offset(queue):
                    self.transmit(queue)

    def resume_tx(self) -> None:
        """Send what has been held up."""
        self.tx_stalled = False
        for queue in range(TX_QUEUES):
            self.transmit(queue)

    def transmit(self, queue: int) -> None:
        """Send every frame of a queue up to its tail."""
        enabled = self.get(REG.DMATXCTL) & REG.DMATXCTL.TE.mask and self.get(REG.TXDCTL, queue) & REG.TXDCTL.ENABLE.mask
        if self.tx_stalled or not enabled:
            return
        assert self.get(REG.HLREG0) & REG.HLREG0.TXCRCEN.mask and self.get(REG.HLREG0) & REG.HLREG0.TXPADEN.mask
        memory = self.machine.memory
        ring = self.get(REG.TDBAL, queue) | self.get(REG.TDBAH, queue) << 32
        size, head = self.get(REG.TDLEN, queue) // DESCRIPTOR_BYTES, self.get(REG.TDH, queue)
        frame = b""
        while head != self.get(REG.TDT, queue):
            address = ring + head * DESCRIPTOR_BYTES
            descriptor = TX_DATA.unpack(bytes(memory[address : address + DESCRIPTOR_BYTES]))
            assert descriptor["dext"] == 1 and descriptor["dtyp"] == 3 and descriptor["ifcs"] == 1, descriptor
            piece = memory[descriptor["address"] : descriptor["address"] + descriptor["length"]]
            frame += piece
            if descriptor["eop"]:
                assert descriptor["payload_length"] == len(frame)
                self.transmitted.append(frame.ljust(60, b"\0"))
                if self.on_transmit is not None:
                    self.on_transmit(self.transmitted[-1])
                frame = b""
            if descriptor["rs"]:
                memory[address : address + DESCRIPTOR_BYTES] = TX_WRITE_BACK.pack(dd=1)
                vectors, ivar = self.get(REG.IVAR), REG.IVAR
                valid, vector = (ivar.TX_ODD_VALID, ivar.TX_ODD) if queue else (ivar.TX_EVEN_VALID, ivar.TX_EVEN)
                if vectors & valid.mask:
                    self.causes |= 1 << vector.get(vectors)
            head = (head + 1) % size
        assert not frame, "the tail lies within a packet"
        self.registers[REG.TDH.offset(queue)] = head

    @property
    def ring_size(self) -> int:
        return self.get(REG.RDLEN) // DESCRIPTOR_BYTES

    def accepts(self, frame: bytes) -> bool:
        control = self.get(REG.FCTRL)
        station = self.get(REG.RAL).to_bytes(4, "little") + (self.get(REG.RAH) & 0xFFFF).to_bytes(2, "little")
        destination = frame[:6]
        if not self.get(REG.RXCTRL) & REG.RXCTRL.RXEN.mask or len(frame) + FCS_BYTES > self.get(REG.MAXFRS) >> 16:
            return False
        if destination == BROADCAST:
            return bool(control & REG.FCTRL.BAM.mask)
        if destination[0] & 1:
            return bool(control & REG.FCTRL.MPE.mask)
        return destination == station or bool(control & REG.FCTRL.UPE.mask)

    def receive(self, number: int, frame: bytes, split: int = 0) -> None:
        """A frame has arrived; with ``split`` it is cut into buffers of so many bytes."""
        if not self.accepts(frame):
            self.filtered += 1
            return
        pieces = [frame[i : i + split] for i in range(0, len(frame), split)] if split else [frame]
        memory = self.machine.memory
        ring = self.get(REG.RDBAL) | self.get(REG.RDBAH) << 32
        head = self.get(REG.RDH)
        if (self.get(REG.RDT) - head) % self.ring_size < len(pieces):
            self.no_descriptor.append(number)
            return
        for piece in pieces:
            address = ring + head * DESCRIPTOR_BYTES
            buffer = RX_READ.get(memory[address : address + DESCRIPTOR_BYTES], "packet_address")
            assert RX_READ.get(memory[address : address + DESCRIPTOR_BYTES], "header_address") == 0, "DD is set"
            memory[buffer : buffer + len(piece)] = piece
            more = self.checksum_status(frame) if self.checksum_status else {}
            eop = int(piece is pieces[-1])
            done = RX_WRITE_BACK.pack({"dd": 1, "eop": eop, "length": len(piece), **more})
            memory[address : address + DESCRIPTOR_BYTES] = done
            head = (head + 1) % self.ring_size
        self.written_back.append(number)
        self.registers[REG.RDH.offset()] = head
        if self.get(REG.IVAR) & REG.IVAR.RX_EVEN_VALID.mask:
            self.causes |= 1 << REG.IVAR.RX_EVEN.get(self.get(REG.IVAR))

    def pending(self) -> bool:
        """Whether a message waits to be sent."""
        return bool(self.causes & self.mask and self.get(REG.GPIE) & REG.GPIE.MSIX_MODE.mask)

    def message(self, now: int) -> None:
        """Send the interrupt message if one is due."""
        if not self.pending() or now < self.not_before:
            return
        vector = (self.causes & self.mask & -(self.causes & self.mask)).bit_length() - 1
        cause = 1 << vector
        entry = self.msix[vector * MSIX_ENTRY_BYTES :][:MSIX_ENTRY_BYTES]
        if entry[12] & 1:
            return
        self.causes &= ~(cause & self.get(REG.EIAC))
        if self.get(REG.GPIE) & REG.GPIE.EIAME.mask:
            self.mask &= ~self.get(REG.EIAM)
        address = int.from_bytes(entry[:4], "little")
        assert address & 0xFFF0_0000 == MSI_BASE
        self.not_before = now + EITR_UNIT_TICKS * REG.EITR.INTERVAL.get(self.get(REG.EITR))
        pending = self.machine.cores[address >> 12 & 0xFF].pending
        if entry[8] not in pending:
            pending.append(entry[8])


class _Core:
    def __init__(self, index: int):
        self.index = index
        self.context = -1
        self.time = 0
        self.enabled = True
        self.waits_for_switch = False
        self.pending: deque[int] = deque()
        self.told_empty = False
        self.deadline = 0  #: tick of the timer's interrupt, 0 if it is not armed


class _Context:
    def __init__(self):
        self.queue: deque[list] = deque()  #: [handle, kind, address, size, data, cycles, notify, argument]


class FunctionalMachine:
    """The double: ``memory``, ``nic`` and the methods of ``CorePort``."""

    def __init__(self, cores: int = 2, dram_bytes: int = 4 << 20):
        self.memory = bytearray(dram_bytes)
        self.cores = [_Core(index) for index in range(cores)]
        self.nic = FunctionalNic(self)
        self.frames: list[tuple[int, int, bytes, int]] = []
        self.calls: list[tuple[int, int, Callable[[], object]]] = []  #: tick, number, what is called then
        self.cancelled: set[int] = set()
        self.sent = 0
        self.operations = 0
        self.now = 0
        self.mmio_hook: Callable[[int, int, int], None] | None = None  #: called before an MMIO write takes effect
        self._contexts: dict[int, _Context] = {}
        self._free: set[int] = set()
        self._next_context = 0
        self._next_call = 0

    # What a test does

    def send(self, frame: bytes, tick: int, split: int = 0) -> int:
        """Let ``frame`` arrive at ``tick``; returns its number, from 0."""
        number = self.sent
        self.sent += 1
        heapq.heappush(self.frames, (tick, number, frame, split))
        return number

    def call_at(self, tick: int, function: Callable[[], object]) -> int:
        """Have ``function()`` called at ``tick``; returns what :meth:`cancel_call` takes."""
        self._next_call += 1
        heapq.heappush(self.calls, (tick, self._next_call, function))
        return self._next_call

    def cancel_call(self, call: int) -> None:
        self.cancelled.add(call)

    # CorePort

    @property
    def tick(self) -> int:
        return self.now

    def new_context(self) -> int:
        self._next_context += 1
        self._contexts[self._next_context] = _Context()
        return self._next_context

    def free_context(self, context: int) -> None:
        assert not self._contexts.pop(context).queue, "a context was freed with operations in its queue"

    def switch(self, core: int, context: int) -> None:
        assert context in self._contexts
        assert all(c.context != context for c in self.cores if c is not self.cores[core])
        self.cores[core].context = context
        self.cores[core].waits_for_switch = False
        self.cores[core].told_empty = False

    def push(
        self,
        context: int,
        kind: int,
        address: int = 0,
        size: int = 0,
        data: int | bytes = 0,
        cycles: int = 0,
        uops: int = 0,
        after: int = -1,
        notify: int = Notify.NO,
        argument: int = 0,
    ) -> int:
        handle = self.operations
        self.operations += 1
        address = physical(address)
        if kind in (LOAD, STORE, STORE_NT, CLFLUSH, ATOMIC, POLL):
            assert 1 <= size <= 64 and address % 64 + size <= 64, f"{size} bytes at {address:#x} cross a line"
            assert 0 < address and address + size <= len(self.memory), f"address {address:#x} is outside memory"
        if kind in (STORE, STORE_NT, POLL) and isinstance(data, bytes):
            assert len(data) == size
        if kind == POLL:
            assert cycles >= 1 and argument >= 1 and size <= 8
        if kind == ATOMIC:
            assert isinstance(data, bytes) and len(data) == 16 and address % size == 0
        assert -1 <= after < handle
        if kind == EXECUTE:
            assert cycles >= 1 and 0 <= uops < 1 << 16
        assert not notify or kind in (LOAD, MMIO_READ, ATOMIC, POLL, FENCE, LFENCE, SFENCE, RDTSC, HALT)
        assert notify != Notify.ISSUE or kind == LOAD
        self._contexts[context].queue.append([handle, kind, address, size, data, cycles, notify, argument])
        for core in self.cores:
            if core.context == context:
                core.told_empty = False
        return handle

    async def run(self, until: int | None = None) -> Sequence[Wake]:
        wakes: list[Wake] = []
        while not wakes:
            for index, core in enumerate(self.cores):
                if core.context < 0 or core.waits_for_switch or core.told_empty:
                    continue
                if not self._contexts[core.context].queue:
                    core.told_empty = True
                    wakes.append(Wake(WakeKind.EMPTY, index, core.context, 0, 0))
            if wakes:
                break
            core = min((c for c in self.cores if self._can_run(c)), key=lambda c: c.time, default=None)
            arrival = self.frames[0][0] if self.frames else None
            moderated = self.nic.not_before if self.nic.pending() else None
            deadlines = (each.deadline or None for each in self.cores)
            while self.calls and self.calls[0][1] in self.cancelled:
                heapq.heappop(self.calls)
            call = self.calls[0][0] if self.calls else None
            event = min((t for t in (arrival, moderated, call, *deadlines) if t is not None), default=None)
            core = self._gives_up(min((t for t in (event, core and core.time) if t is not None), default=None)) or core
            if core is None and event is None:
                return [Wake(WakeKind.IDLE, -1, -1, 0, 0)]
            time = core.time if core is not None else max(event, self.now)
            if until is not None and time >= until and (event is None or event >= until):
                self.now = until
                return [Wake(WakeKind.LIMIT, -1, -1, 0, 0)]
            if event is not None and event <= time:
                self.now = max(self.now, event)
                self._device(self.now)
                continue
            self.now = max(self.now, core.time)
            self._step(core, event, wakes)
        return wakes

    def _can_run(self, core: _Core) -> bool:
        if core.context < 0 or core.waits_for_switch:
            return False
        if core.pending and core.enabled:
            return True
        return bool(self._contexts[core.context].queue) and not self._waits(core)

    def _waits(self, core: _Core) -> bool:
        """Whether the core sleeps, or polls what has not changed."""
        queue = self._contexts[core.context].queue if core.context >= 0 else None
        if not queue:
            return False
        _, kind, address, size, data, cycles, *_ = queue[0]
        return kind == HALT or (
            kind == POLL and cycles > 0 and self.memory[address : address + size] == _bytes(data, size)
        )

    def _gives_up(self, until: int | None) -> _Core | None:
        """Let time pass for the core whose POLL is the next to give up, if that is before ``until``."""
        polls = []
        for core in self.cores:
            if core.context >= 0 and not core.waits_for_switch and self._waits(core):
                operation = self._contexts[core.context].queue[0]
                if operation[1] == POLL and operation[5] < ENDLESS:
                    polls.append((core.time + operation[5], core.index, core, operation))
        if not polls or (until is not None and min(polls)[0] >= until):
            return None
        time, _, core, operation = min(polls)
        core.time, operation[5] = time, 0
        return core

    def _device(self, now: int) -> None:
        while self.calls and self.calls[0][0] <= now:
            _, call, function = heapq.heappop(self.calls)
            if call not in self.cancelled:
                function()
        while self.frames and self.frames[0][0] <= now:
            _, number, frame, split = heapq.heappop(self.frames)
            self.nic.receive(number, frame, split)
        self.nic.message(now)
        for core in self.cores:
            if 0 < core.deadline <= now:
                core.deadline = 0
                core.pending.append(TIMER_VECTOR)
            if core.pending and core.time < now and self._waits(core):
                core.time = now

    def _step(self, core: _Core, event: int | None, wakes: list[Wake]) -> None:
        index = self.cores.index(core)
        queue = self._contexts[core.context].queue
        if core.pending and core.enabled:
            if queue and queue[0][1] == HALT:
                halt = queue.popleft()
                if halt[6]:
                    wakes.append(Wake(WakeKind.COMPLETION, index, core.context, halt[0], 0))
            core.enabled = False
            core.waits_for_switch = True
            wakes.append(Wake(WakeKind.INTERRUPT, index, core.context, core.pending.popleft(), 0))
            return
        operation = queue[0]
        handle, kind, address, size, data, cycles, notify, argument = operation
        if kind == EXECUTE:
            # Cut short where a frame or a message may bring an interrupt.
            spent = cycles if event is None else max(1, min(cycles, event - core.time))
            core.time += spent
            operation[5] -= spent
            if operation[5]:
                return
            queue.popleft()
            return
        raw = bytes(self.memory[address : address + size])
        result: int | bytes = int.from_bytes(raw, "little") if size <= 8 else raw
        if kind == POLL:  # it has changed, maybe while this core slept, or time is up
            core.time = max(core.time, self.now)
        queue.popleft()
        core.time += 1
        if kind in (STORE, STORE_NT):
            self.memory[address : address + size] = _bytes(data, size)
        elif kind == ATOMIC:
            written = PendingStore(0, address, data, size, AtomicFunction(argument)).written(raw)
            self.memory[address : address + size] = written
        elif kind == MMIO_READ:
            assert BAR0_BASE <= address < BAR0_BASE + BAR0_BYTES
            result = self.nic.read(address - BAR0_BASE)
        elif kind == MMIO_WRITE:
            self._mmio_write(address, data)
        elif kind == RDTSC:
            result = core.time
        elif kind == TSC_DEADLINE:
            core.deadline = address
        elif kind == CLI:
            core.enabled = False
        elif kind in (STI, IRET):
            core.enabled = True
        if notify:
            wakes.append(Wake(WakeKind.COMPLETION, index, core.context, handle, result))

    def _mmio_write(self, address: int, data: int) -> None:
        if MSI_BASE <= address < MSI_BASE + MSI_BYTES:
            assert address % 0x1000 == 0
            target = self.cores[(address - MSI_BASE) >> 12]
            if data not in target.pending:
                target.pending.append(data)
            self._device(self.now)
            return
        if BAR3_BASE <= address < BAR3_BASE + BAR3_BYTES:
            self.nic.msix[address - BAR3_BASE : address - BAR3_BASE + 4] = data.to_bytes(4, "little")
            return
        assert BAR0_BASE <= address < BAR0_BASE + BAR0_BYTES
        if self.mmio_hook:
            self.mmio_hook(address - BAR0_BASE, data, self.now)
        self.nic.write(address - BAR0_BASE, data)
        self._device(self.now)


def _bytes(data: int | bytes, size: int) -> bytes:
    return data if isinstance(data, bytes) else data.to_bytes(size, "little")
