"""The core port: how software, outside the RTL, runs on a core inside it."""

from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from .tilelink import LINE_BITS, PHYSICAL_ADDRESS_WIDTH

__all__ = [
    "OP_ID_WIDTH",
    "Completion",
    "CoreHost",
    "Interrupt",
    "InterruptTaken",
    "MmioPort",
    "MmioRequest",
    "MmioResponse",
    "Operation",
    "OperationKind",
]

#: Operations are numbered modulo 256 per core, in the order in which they are handed over.
OP_ID_WIDTH = 8


class OperationKind(enum.Enum, shape=4):
    """What a core can be asked to do. Operations issue in the order given; loads and stores then overlap."""

    EXECUTE = 0  #: compute: occupies issue for ``cycles`` cycles; an interrupt may cut it short
    LOAD = 1  #: read ``size`` bytes; completes with the data
    STORE = 2  #: write ``size`` bytes through the store buffer, in program order
    PREFETCH = 3  #: ask for the line, readable; never completes
    MMIO_READ = 4  #: read 4 or 8 bytes of a device, after everything before it; completes with the data
    MMIO_WRITE = 5  #: write 4 or 8 bytes of a device, after every earlier store is visible; posted
    FENCE = 6  #: issue nothing more until every earlier load is complete and every store visible; completes
    HALT = 7  #: issue nothing more until an interrupt is taken
    CLI = 8  #: stop taking interrupts
    STI = 9  #: take interrupts again
    IRET = 10  #: end of an interrupt handler: take interrupts again


class Operation(data.Struct):
    """One operation."""

    kind: OperationKind
    id: OP_ID_WIDTH
    address: PHYSICAL_ADDRESS_WIDTH  #: byte address; ``address % 64 + size`` may not exceed 64
    size: 7  #: bytes, 1 to 64
    data: LINE_BITS  #: STORE, MMIO_WRITE: the bytes, first byte in bits 7:0
    cycles: 32  #: EXECUTE: cycles of the core's clock, at least 1
    uops: 16  #: micro-operations it stands for
    after_valid: 1  #: do not issue before operation ``after`` has completed
    after: OP_ID_WIDTH


class Completion(data.Struct):
    """The result of a LOAD, MMIO_READ or FENCE."""

    id: OP_ID_WIDTH
    data: LINE_BITS  #: first byte in bits 7:0; bytes past the operation's size are zero


class InterruptTaken(data.Struct):
    """The core stopped issuing the interrupted context and masked interrupts; the handler may follow."""

    vector: 8
    remaining: 32  #: cycles left of the EXECUTE it cut short, 0 if none
    squashed: 1  #: the operation handed over last was not issued and has been dropped: hand it over again
    squashed_id: OP_ID_WIDTH


class CoreHost(wiring.Signature):
    """The host's side of a core, as seen from the host.

    Every signal is sampled at an edge of the core's clock. ``operation`` goes into a register before anything else
    looks at it. The pulses tell what happens at the edge at which they are high: operation ``issue_id`` issued, the
    operation in ``completion`` completed (an operation waiting ``after`` it can issue at the next edge),
    an interrupt was taken. No operation is accepted at the edge that takes an interrupt.
    """

    def __init__(self):
        super().__init__(
            {
                "operation": Out(stream.Signature(Operation)),
                "issue": In(1),
                "issue_id": In(OP_ID_WIDTH),
                "completion_valid": In(1),
                "completion": In(Completion),
                "interrupt_taken": In(1),
                "interrupt": In(InterruptTaken),
            }
        )

    def __eq__(self, other):
        return isinstance(other, CoreHost)


class MmioRequest(data.Struct):
    """An uncached access by a core to a device."""

    write: 1
    address: PHYSICAL_ADDRESS_WIDTH
    size: 4  #: bytes: 4 or 8
    data: 64
    core: 4  #: whom to answer


class MmioResponse(data.Struct):
    """The answer to an MMIO read."""

    data: 64


class MmioPort(wiring.Signature):
    """Uncached accesses, as seen from the core. At most one read is outstanding."""

    def __init__(self):
        super().__init__(
            {"request": Out(stream.Signature(MmioRequest)), "response": In(stream.Signature(MmioResponse))}
        )

    def __eq__(self, other):
        return isinstance(other, MmioPort)


class Interrupt(data.Struct):
    """An interrupt message on its way to one core (from an MSI-X write to 0xFEExxxxx)."""

    vector: 8
