"""Takes apart what the card sends to the root complex."""

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH, DeviceRequest, MemoryOp
from hw.bus.tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES, PHYSICAL_ADDRESS_WIDTH
from hw.bus.tlp import TlpStatus, TlpStream, TlpType
from hw.config import MachineConfig
from hw.lib.probe import Counter, Probe
from hw.memory_map import DRAM_BASE

from .messages import CORE_WIDTH, WRITE_COUNT_WIDTH, HostMessage, ReadRequest, interrupt_core, is_interrupt

__all__ = ["Inbound"]

ALL_BYTES = (1 << LINE_BYTES) - 1


class Inbound(wiring.Component):
    """Decodes received packets, beat by beat and without delay, in domain ``uncore``.

    * MEMORY_WRITE within DRAM: a :class:`DeviceRequest` per beat, with the mask of its bytes; with ``nic.dca_gates``
      around the caches, unless bit 0 of its tag is set.
    * MEMORY_WRITE of one aligned 32-bit word to the interrupt window, for a core that exists: a
      :class:`HostMessage`.
    * Any other MEMORY_WRITE: dropped, counted, reported.
    * MEMORY_READ: a :class:`ReadRequest`, marked unsupported unless all of it lies within DRAM and its length
      is not 0.
    * COMPLETION: a :class:`HostMessage` to the core that waits for it (the tag is the core's number), with all
      ones unless its status is SUCCESS. Nobody waits: dropped, counted.

    What an IOMMU has marked ``blocked`` is neither memory nor an interrupt. Nothing changes at an edge at which
    ``input`` transfers no beat.

    Ports:
        input: from the link.
        blocked: of the packet on ``input``; only with an IOMMU.
        write, read, message: see above.
        writes_accepted: line writes handed to memory so far.
        reading: cores that wait for a completion.
        wide: those that read 8 bytes, not 4.
    """

    def __init__(self, config: MachineConfig):
        self.cores = config.core.count
        self.dca_gates = config.nic.dca_gates
        self.dram_end = DRAM_BASE + config.dram.size_mib * 1024 * 1024
        self.dma_write = Probe(
            "uncore", "the last beat of a device write was handed to memory",
            address=PHYSICAL_ADDRESS_WIDTH, length=13, packet=PACKET_WIDTH,
        )  # fmt: skip
        self.dma_read = Probe(
            "uncore", "a device read arrived",
            address=PHYSICAL_ADDRESS_WIDTH, length=13, tag=8, packet=PACKET_WIDTH,
        )  # fmt: skip
        self.unsupported = Probe(
            "uncore", "a device accessed what is neither memory nor an interrupt",
            address=PHYSICAL_ADDRESS_WIDTH, write=1, length=13, packet=PACKET_WIDTH,
        )  # fmt: skip
        self.write_packets = Counter("uncore", "device write packets to memory")
        self.write_lines = Counter("uncore", "lines, or parts of lines, written by the device")
        self.write_partial_lines = Counter("uncore", "parts of lines written by the device")
        self.read_packets = Counter("uncore", "device read requests")
        self.unsupported_reads = Counter("uncore", "device reads answered with UNSUPPORTED_REQUEST")
        self.unsupported_writes = Counter("uncore", "device writes dropped")
        self.unexpected_completions = Counter("uncore", "completions nobody waits for, dropped")
        blocked = {"blocked": In(1)} if config.iommu.enabled else {}
        super().__init__(
            {
                "input": In(TlpStream),
                **blocked,
                "write": Out(stream.Signature(DeviceRequest)),
                "read": Out(stream.Signature(ReadRequest)),
                "message": Out(stream.Signature(HostMessage)),
                "writes_accepted": In(WRITE_COUNT_WIDTH),
                "reading": In(self.cores),
                "wide": In(self.cores),
            }
        )

    def elaborate(self, platform):
        """Decode the address, then one block per kind of packet."""
        m = Module()
        beat = self.input.payload
        header = beat.header
        transfer = Signal()
        m.d.comb += transfer.eq(self.input.valid & self.input.ready)

        # Where it goes
        end = Signal(PHYSICAL_ADDRESS_WIDTH + 1)
        in_memory, interrupts, is_expected = Signal(), Signal(), Signal()
        allowed = ~self.blocked if "blocked" in self.signature.members else 1
        with m.If(self.input.valid):
            m.d.comb += [
                end.eq(header.address + header.length),
                in_memory.eq((header.length != 0) & (header.address >= DRAM_BASE) & (end <= self.dram_end) & allowed),
                interrupts.eq(is_interrupt(header.address, header.length, self.cores) & allowed),
                is_expected.eq(((self.reading >> header.tag) & 1) & beat.first),
            ]
            with m.Switch(header.kind):
                with m.Case(TlpType.MEMORY_WRITE):
                    m.d.comb += [
                        self.write.valid.eq(in_memory),
                        self.message.valid.eq(interrupts),
                        self.input.ready.eq(Mux(in_memory, self.write.ready, self.message.ready | ~interrupts)),
                    ]
                with m.Case(TlpType.MEMORY_READ):
                    m.d.comb += [self.read.valid.eq(1), self.input.ready.eq(self.read.ready)]
                with m.Case(TlpType.COMPLETION):
                    m.d.comb += [
                        self.message.valid.eq(is_expected),
                        self.input.ready.eq(self.message.ready | ~is_expected),
                    ]

        self._write(m, transfer, end)
        self._read(m, in_memory)
        self._message(m)
        self._observe(m, transfer, in_memory, interrupts, is_expected)
        return m

    def _write(self, m: Module, transfer: Signal, end: Signal) -> None:
        beat, request = self.input.payload, self.write.payload
        next_line = Signal(LINE_ADDRESS_WIDTH)
        m.d.comb += [
            request.op.eq(MemoryOp.WRITE),
            request.data.eq(beat.data),
            request.packet.eq(beat.header.packet),
        ]
        if self.dca_gates:
            m.d.comb += request.around.eq(~beat.header.tag[0])
        with m.If(self.write.valid):
            first_lane = Mux(beat.first, beat.header.address % LINE_BYTES, 0)
            lanes_after = Mux(beat.last, -end % LINE_BYTES, 0)
            m.d.comb += [
                request.line.eq(Mux(beat.first, beat.header.address // LINE_BYTES, next_line)),
                request.mask.eq((ALL_BYTES << first_lane)[:LINE_BYTES] & (ALL_BYTES >> lanes_after)),
            ]
            with m.If(transfer):
                m.d.uncore += next_line.eq(request.line + 1)

    def _read(self, m: Module, in_memory: Signal) -> None:
        header, request = self.input.payload.header, self.read.payload
        m.d.comb += [
            request.address.eq(header.address),
            request.length.eq(header.length),
            request.tag.eq(header.tag),
            request.packet.eq(header.packet),
            request.supported.eq(in_memory),
            request.after.eq(self.writes_accepted),
        ]

    def _message(self, m: Module) -> None:
        beat, message = self.input.payload, self.message.payload
        header = beat.header
        # The 64 bits from the addressed word on, by a switch: cheaper to simulate than a shift of 512 bits. An
        # 8-byte read never leaves its line.
        words = Array(beat.data[at : at + 64] for at in range(0, LINE_BITS, 32))[
            (header.address // 4) % (LINE_BYTES // 4)
        ]
        with m.If(self.message.valid):
            m.d.comb += message.after.eq(self.writes_accepted)
            with m.If(header.kind == TlpType.MEMORY_WRITE):
                m.d.comb += [
                    message.interrupt.eq(1),
                    message.core.eq(interrupt_core(header.address)),
                    message.data.eq(words % 256),
                ]
            with m.Else():
                wide = (self.wide >> header.tag) & 1
                both = Signal(64)
                m.d.comb += both.eq(words)
                with m.If(header.status != TlpStatus.SUCCESS):
                    m.d.comb += both.eq(~0)
                m.d.comb += [
                    message.core.eq(header.tag % (1 << CORE_WIDTH)),
                    message.data.eq(Mux(wide, both, both % (1 << 32))),
                ]

    def _observe(self, m: Module, transfer, in_memory, interrupts, is_expected) -> None:
        beat = self.input.payload
        header = beat.header
        write = transfer & (header.kind == TlpType.MEMORY_WRITE)
        read = transfer & (header.kind == TlpType.MEMORY_READ)
        completion = transfer & (header.kind == TlpType.COMPLETION)
        last_write = write & beat.last
        bad_write = last_write & ~in_memory & ~interrupts
        bad_read = read & ~in_memory
        address, length, packet = header.address, header.length, header.packet
        self.dma_write.emit(m, last_write & in_memory, address=address, length=length, packet=packet)
        self.dma_read.emit(m, read, address=address, length=length, tag=header.tag, packet=packet)
        self.unsupported.emit(m, bad_write | bad_read, address=address, write=bad_write, length=length, packet=packet)
        self.write_packets.increment(m, last_write & in_memory)
        self.write_lines.increment(m, write & in_memory)
        self.write_partial_lines.increment(m, write & in_memory & (self.write.payload.mask != ALL_BYTES))
        self.read_packets.increment(m, read)
        self.unsupported_reads.increment(m, bad_read)
        self.unsupported_writes.increment(m, bad_write)
        self.unexpected_completions.increment(m, completion & beat.first & ~is_expected)
