"""Answers accesses to the card's BARs: live registers, storage behind all other offsets, the MSI-X table."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_BYTES
from hw.bus.tlp import TlpHeader, TlpStatus, TlpStream, TlpType
from hw.lib.probe import Counter, Probe
from hw.lib.ram import RAM
from hw.memory_map import BAR0_BASE, BAR0_BYTES, BAR3_BASE, BAR3_BYTES

from .layouts import RegisterBus, register_layout
from .registers import REGISTERS, STORAGE_BYTES, Keeper, Per, Register

__all__ = ["RegisterFile", "live_registers"]

#: Bits of the reset epoch kept beside each word of storage: enough that it never comes round.
EPOCH_WIDTH = 24


def live_registers(queues: int, vectors: int) -> list[tuple[Register, int, str]]:
    """Every register that is more than storage: its description, index, and the name of its port.

    Indexed registers have the index in their name (``RDT0``).
    """
    counts = {Per.ONE: 1, Per.OTHER: 1, Per.QUEUE: queues, Per.QUEUE_PAIR: (queues + 1) // 2, Per.VECTOR: vectors}
    live = []
    for register in REGISTERS.values():
        if register.keeper is not Keeper.STORAGE:
            single = register.count == 1
            for index in range(min(register.count, counts[register.per])):
                live.append((register, index, register.name if single else f"{register.name}{index}"))
    return live


class _State(enum.Enum):
    IDLE = 0
    FETCH = 1  #: read the storage RAM
    ACCESS = 2  #: the access takes place
    RESPOND = 3  #: the completion waits to be taken


class RegisterFile(wiring.Component):
    """Takes memory reads and writes of 4 or 8 aligned bytes in BAR0 and BAR3, one at a time.

    A request accepted at edge t accesses its register at edge t + 2 (the upper half of 8 bytes at t + 4);
    the completion is offered from the edge after the last access on. Reads of another size or place are
    answered UNSUPPORTED_REQUEST, writes are dropped; both are counted.

    Ports, besides the listed ones, one per live register (see :func:`live_registers`): an output where the register
    file keeps the value (``Keeper.FILE``), an input where a block does (``Keeper.BLOCK``): the value to be read, while
    writes and side effects of reading go by ``bus``. ``table_data`` is the word of BAR3 at ``bus.offset``.
    ``reset``: all registers and storage take their reset values at the next edge.

    Storage is one RAM; a word belongs to the reset epoch it was written in, so that a reset costs one cycle.

    Raises:
        ValueError: for fewer than one queue or vector.
    """

    def __init__(self, queues: int = 1, vectors: int = 1):
        if queues < 1 or vectors < 1:
            raise ValueError(f"the card has at least one queue and one vector, not {queues} and {vectors}")
        self.live = live_registers(queues, vectors)
        ports = {
            name: Out(register_layout(register), init={"value": register.reset_value(index)})
            if register.keeper is Keeper.FILE
            else In(32)
            for register, index, name in self.live
        }
        super().__init__(
            {
                "request": In(TlpStream),
                "completion": Out(TlpStream),
                "bus": Out(RegisterBus()),
                "table_data": In(32),
                "reset": In(1),
                "quiet": Out(1),
                **ports,
            }
        )
        # The number of resets so far, plus one: words written in an earlier epoch do not count
        self._epoch = Signal(EPOCH_WIDTH, init=1, name="epoch")
        self.storage = RAM(width=32 + EPOCH_WIDTH, depth=STORAGE_BYTES // 4, domain="nic")
        self.write = Probe("nic", "software writes a register", address=64, data=32)
        self.read = Probe("nic", "software reads a register", address=64, data=32)
        self.writes = Counter("nic", "32-bit register writes")
        self.reads = Counter("nic", "32-bit register reads")
        self.unsupported = Counter("nic", "accesses of another size than 4 or 8 aligned bytes, or outside the BARs")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.storage = self.storage

        state = Signal(_State)
        header, words = Signal(TlpHeader), Signal(data.ArrayLayout(32, 2))
        two, half = Signal(), Signal()  # 8 bytes, and the upper half of them
        bar0, bar3 = Signal(), Signal()
        offset = Signal(len(self.bus.offset))
        is_write = header.kind == TlpType.MEMORY_WRITE
        value = Signal(32)

        # Accept a request
        beat = self.request.payload
        m.d.comb += self.request.ready.eq(state == _State.IDLE)
        with m.If(self.request.valid & self.request.ready):
            length, address = beat.header.length, beat.header.address
            aligned = ((length == 4) & (address[:2] == 0)) | ((length == 8) & (address[:3] == 0))
            in_bar0, in_bar3 = self._decode(address)
            take, refuse = Signal(), Signal()
            m.d.comb += [
                take.eq(beat.first & aligned & (in_bar0 | in_bar3)),
                refuse.eq(beat.first & ~take),
            ]
            m.d.nic += [
                header.eq(beat.header),
                offset.eq(address[: len(offset)]),
                bar0.eq(in_bar0),
                bar3.eq(in_bar3),
                two.eq(length == 8),
                half.eq(0),
            ]
            # One case for each lane: cheap in a compiled simulation, unlike a shift
            with m.Switch(address[2:6]):
                for lane in range(LINE_BYTES // 4):
                    with m.Case(lane):
                        m.d.nic += words[0].eq(beat.data.word_select(lane, 32))
                        m.d.nic += words[1].eq(beat.data.word_select(lane | 1, 32))
            with m.If(take):
                m.d.nic += [header.status.eq(TlpStatus.SUCCESS), state.eq(_State.FETCH)]
            with m.Elif(refuse & (beat.header.kind == TlpType.MEMORY_READ)):
                m.d.nic += [header.status.eq(TlpStatus.UNSUPPORTED_REQUEST), state.eq(_State.RESPOND)]
            self.unsupported.increment(m, refuse)

        # One 32-bit access
        writing = (state == _State.ACCESS) & is_write
        reading = (state == _State.ACCESS) & ~is_write
        with m.If(state == _State.FETCH):
            m.d.comb += self.storage.read_enable.eq(1)
            m.d.nic += state.eq(_State.ACCESS)
        with m.If(state == _State.ACCESS):
            self._read(m, value, offset, bar3)
            with m.If(~is_write):
                m.d.nic += words[half].eq(value)
            with m.If(two & ~half):
                m.d.nic += [half.eq(1), offset.eq(offset + 4), state.eq(_State.FETCH)]
            with m.Else():
                m.d.nic += state.eq(Mux(is_write, _State.IDLE, _State.RESPOND))
        m.d.comb += [
            self.bus.write.eq(writing),
            self.bus.read.eq(reading),
            self.bus.table.eq(bar3),
            self.bus.offset.eq(offset),
            self.bus.data.eq(words[half]),
        ]
        self._write(m, writing & bar0, offset)

        # Answer
        with m.If((state == _State.RESPOND) & self.completion.ready):
            m.d.nic += state.eq(_State.IDLE)
        self._respond(m, state == _State.RESPOND, header, words, two)

        physical = Mux(bar3, BAR3_BASE, BAR0_BASE) + offset
        self.write.emit(m, writing, address=physical, data=words[half])
        self.read.emit(m, reading, address=physical, data=value)
        self.writes.increment(m, writing)
        self.reads.increment(m, reading)
        m.d.comb += self.quiet.eq((state == _State.IDLE) & ~self.request.valid & ~self.reset)
        return m

    @staticmethod
    def _decode(address):
        """Whether ``address`` lies in BAR0, in BAR3."""
        return [
            address[size.bit_length() - 1 :] == base >> size.bit_length() - 1
            for base, size in ((BAR0_BASE, BAR0_BYTES), (BAR3_BASE, BAR3_BYTES))
        ]

    def _read(self, m, value, offset, bar3):
        """The word at ``offset`` as it is before this edge; the storage RAM has been read one edge earlier."""
        stored, epoch = self.storage.read_data[:32], self.storage.read_data[32:]
        with m.Switch(Cat(offset, bar3)):
            for register, index, name in self.live:
                port = getattr(self, name)
                with m.Case(*register.offsets(index)):
                    m.d.comb += value.eq(port.value if register.keeper is Keeper.FILE else port)
            with m.Default():
                with m.If(bar3):
                    m.d.comb += value.eq(self.table_data)
                with m.Elif((offset < STORAGE_BYTES) & (epoch == self._epoch)):
                    m.d.comb += value.eq(stored)
                with m.Elif(offset < STORAGE_BYTES):
                    self._stored_reset(m, value, offset)

    def _stored_reset(self, m, value, offset):
        """Storage not written since the last reset: zero, or what the datasheet says."""
        with m.Switch(offset):
            for register in REGISTERS.values():
                if register.keeper is Keeper.STORAGE:
                    for index in range(register.count):
                        if register.reset_value(index):
                            with m.Case(*register.offsets(index)):
                                m.d.comb += value.eq(register.reset_value(index))

    def _write(self, m, writing, offset):
        """Write live registers and storage; take reset values."""
        epoch, word = self._epoch, self.bus.data
        m.d.comb += [
            self.storage.read_address.eq(offset[2:]),
            self.storage.write_enable.eq(writing & (offset < STORAGE_BYTES)),
            self.storage.write_address.eq(offset[2:]),
            self.storage.write_data.eq(Cat(word, epoch)),
        ]
        files = [(r, i, getattr(self, name)) for r, i, name in self.live if r.keeper is Keeper.FILE]
        with m.If(writing), m.Switch(offset):
            for register, index, port in files:
                with m.Case(*register.offsets(index)):
                    keep = register.read_only
                    m.d.nic += port.value.eq((word & ~keep & 0xFFFF_FFFF) | (port.value & keep))
        with m.If(self.reset):
            m.d.nic += epoch.eq(epoch + 1)
            for register, index, port in files:
                m.d.nic += port.value.eq(register.reset_value(index))

    def _respond(self, m, valid, request, words, two):
        """The completion: four or eight bytes in the lanes of their address, or a refusal."""
        completion = self.completion.payload
        m.d.comb += [
            self.completion.valid.eq(valid),
            completion.first.eq(1),
            completion.last.eq(1),
            completion.header.eq(request),
            completion.header.kind.eq(TlpType.COMPLETION),
            completion.header.remaining.eq(request.length),
        ]
        # The same word or pair of words in all lanes: those beside the address do not count
        m.d.comb += completion.data.eq(Cat(words[0], Mux(two, words[1], words[0])).replicate(LINE_BYTES // 8))
