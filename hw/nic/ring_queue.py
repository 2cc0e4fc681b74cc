"""A queue of descriptors: its registers, its ring, and what happens when something is wrong with them."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import PHYSICAL_ADDRESS_WIDTH
from hw.bus.tlp import TlpStream

from .descriptor_fetch import INDEX_WIDTH, DescriptorFetch
from .layouts import QueueRegisters, RegisterBus
from .registers import Register
from .ring import Ring
from .write_back import WriteBack

__all__ = ["QueueError", "RingQueue"]

#: Rings are multiples of 128 bytes in place and size (datasheet section 7.1.9).
RING_ALIGNMENT = 128


class QueueError(enum.Enum, shape=3):
    """Why a queue stopped with EICR.DHER set and RXDCTL.ENABLE (TXDCTL.ENABLE) falling to 0."""

    NONE = 0
    RING_LENGTH = 1  #: RDLEN (TDLEN) is 0 or no multiple of 128
    RING_BASE = 2  #: the ring lies beyond the physical address space
    BUFFER_SIZE = 3  #: SRRCTL.BSIZEPACKET is 0
    HEAD = 4  #: the head is not inside the ring
    TAIL = 5  #: the tail is not inside the ring
    DESCRIPTOR = 6  #: a descriptor read was refused, or gave a buffer beyond the physical address space


class _State(enum.Enum, shape=2):
    DISABLED = 0
    STARTING = 1  #: the registers are checked
    RUNNING = 2
    DRAINING = 3  #: what has begun is brought to its end


class RingQueue(wiring.Component):
    """Queue ``index``: fetches descriptors of ``kind``, hands them to a DMA, writes back what that finished.

    ENABLE in the register ``control`` written 1 starts the queue at its head, two edges later; it reads 1 until the
    queue is disabled again. Written 0, or in a card reset (``resetting``), reads in flight are waited for, what the DMA
    holds is finished and finished descriptors are written back before it reads 0. An error does the same, and
    sets ``failed`` until the queue is started again.

    Arguments:
        kind: of ring.
        control, head: the registers that the queue itself keeps.
        index: number of the queue.
        first_tag: of its descriptor reads, see :class:`DescriptorFetch`.
    """

    def __init__(
        self, kind: Ring, control: Register, head: Register, *, index: int, cache: int, read_tags: int, first_tag: int
    ):
        super().__init__(
            {
                "bus": In(RegisterBus()),
                "registers": In(QueueRegisters()),
                "completion": In(TlpStream),
                "read": Out(TlpStream),
                "write_back_send": Out(TlpStream),
                "descriptor": Out(stream.Signature(kind.taken)),
                "finished": In(stream.Signature(kind.finished)),
                "caught_up": In(1),  #: the DMA will finish nothing before something else happens
                "holding": In(1),  #: the DMA has a descriptor of this queue
                "inject": In(1),  #: written-back descriptors are marked to be put into the cache
                "no_buffer": In(1),  #: the size of buffers is set to 0
                "master": In(1),
                "resetting": In(1),
                "reset": In(1),  #: registers take their reset values
                "running": Out(1),
                "failed": Out(1),
                "exhausted": Out(1),  #: the ring is empty
                "error": Out(1),  #: for one cycle, with ...
                "error_kind": Out(QueueError),
                "disabled": Out(1),
                "quiet": Out(1),
            }
        )
        self.index = index
        self.control_register, self.head_register = control, head
        self.fetch = DescriptorFetch(kind, cache=cache, read_tags=read_tags, first_tag=first_tag)
        self.write_back = WriteBack(kind)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.fetch = fetch = self.fetch
        m.submodules.write_back = write_back = self.write_back
        state = Signal(_State)
        wanted = Signal()  # ENABLE as software wants it
        control, enable = Signal(32), self.control_register.ENABLE
        size = Signal(INDEX_WIDTH + 1)
        fault = Signal(QueueError)

        # Registers
        registers = self.registers
        m.d.comb += [
            registers.head.eq(write_back.head),
            registers.control.eq((control & ~enable.mask) | ((state != _State.DISABLED) << enable.low)),
        ]
        head_written = Signal()
        with m.If(self.bus.write & ~self.bus.table), m.Switch(self.bus.offset):
            with m.Case(*self.control_register.offsets(self.index)):
                m.d.nic += [control.eq(self.bus.data), wanted.eq(self.bus.data[enable.low])]
            with m.Case(*self.head_register.offsets(self.index)):
                m.d.comb += head_written.eq(state == _State.DISABLED)

        # The ring
        m.d.comb += write_back.inject.eq(self.inject)
        for part in (fetch, write_back):
            m.d.comb += [
                part.ring.base.eq(
                    Cat(registers.base_low.value & ((1 << 32) - RING_ALIGNMENT), registers.base_high.value)
                ),
                part.ring.size.eq(size),
                part.ring.tail.eq(registers.tail.TAIL),
            ]
        m.d.comb += [
            fetch.head.eq(write_back.head),
            write_back.start.eq(head_written | self.reset),
            write_back.start_head.eq(Mux(self.reset, 0, self.bus.data)),
        ]

        # Life of the queue
        drained = fetch.idle & ~self.holding & write_back.idle
        with m.Switch(state):
            with m.Case(_State.DISABLED):
                with m.If(wanted):
                    m.d.nic += [state.eq(_State.STARTING), size.eq(registers.length.LEN >> 4), self.failed.eq(0)]
            with m.Case(_State.STARTING):
                self._check_ring(m, fault, size, write_back.head)
                m.d.comb += fetch.start.eq(fault == QueueError.NONE)
                m.d.nic += state.eq(Mux(fault == QueueError.NONE, _State.RUNNING, _State.DISABLED))
            with m.Case(_State.RUNNING):
                with m.If(fetch.error):
                    m.d.comb += fault.eq(QueueError.DESCRIPTOR)
                with m.Elif(registers.tail.TAIL >= size):
                    m.d.comb += fault.eq(QueueError.TAIL)
                with m.If((fault != QueueError.NONE) | ~wanted):
                    m.d.nic += state.eq(_State.DRAINING)
            with m.Case(_State.DRAINING), m.If(drained):
                m.d.nic += state.eq(_State.DISABLED)
        with m.If(fault != QueueError.NONE):
            m.d.nic += [wanted.eq(0), self.failed.eq(1)]
        with m.If(self.resetting):
            m.d.nic += wanted.eq(0)
        with m.If(self.reset):
            m.d.nic += [control.eq(0), self.failed.eq(0)]

        # Descriptors out and in
        m.d.comb += [
            fetch.running.eq((state == _State.RUNNING) & self.master),
            self.running.eq(state == _State.RUNNING),
            self.exhausted.eq(fetch.exhausted),
            write_back.flush.eq(self.caught_up | ((state == _State.DRAINING) & ~self.holding)),
            self.error.eq(fault != QueueError.NONE),
            self.error_kind.eq(fault),
            self.disabled.eq((state == _State.DISABLED) & ~wanted),
        ]
        wiring.connect(m, fetch.completion, wiring.flipped(self.completion))
        wiring.connect(m, wiring.flipped(self.read), fetch.read)
        wiring.connect(m, wiring.flipped(self.descriptor), fetch.descriptor)
        wiring.connect(m, write_back.finished, wiring.flipped(self.finished))
        wiring.connect(m, wiring.flipped(self.write_back_send), write_back.send)

        settled = Signal()
        with m.Switch(state):
            with m.Case(_State.DISABLED):
                m.d.comb += settled.eq(~wanted)
            with m.Case(_State.RUNNING):
                m.d.comb += settled.eq(wanted & (fault == QueueError.NONE))
            with m.Case(_State.DRAINING):
                m.d.comb += settled.eq(~drained)
        m.d.comb += self.quiet.eq(
            settled & ~(self.resetting & wanted) & fetch.quiet & write_back.quiet & ~self.bus.write & ~self.reset
        )
        return m

    def _check_ring(self, m, fault, size, head):
        """What is wrong with the registers of a queue about to start, if anything."""
        registers = self.registers
        with m.If((registers.length.LEN == 0) | (registers.length.LEN % RING_ALIGNMENT != 0)):
            m.d.comb += fault.eq(QueueError.RING_LENGTH)
        with m.Elif(registers.base_high.value >> (PHYSICAL_ADDRESS_WIDTH - 32) != 0):
            m.d.comb += fault.eq(QueueError.RING_BASE)
        with m.Elif(self.no_buffer):
            m.d.comb += fault.eq(QueueError.BUFFER_SIZE)
        with m.Elif(head >= size):
            m.d.comb += fault.eq(QueueError.HEAD)
        with m.Elif(registers.tail.TAIL >= size):
            m.d.comb += fault.eq(QueueError.TAIL)
