"""The core port: how software, outside the RTL, runs on a core inside it."""

from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from .tilelink import LINE_BITS, PHYSICAL_ADDRESS_WIDTH

__all__ = [
    "OP_ID_WIDTH",
    "TIMER_VECTOR",
    "VIRTUAL_ADDRESS_WIDTH",
    "AtomicFunction",
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

#: Vector of the core's own timer, as its entry of the local vector table would say; fixed here.
TIMER_VECTOR = 0x3E

#: Virtual addresses have 48 bits (four levels of page tables).
VIRTUAL_ADDRESS_WIDTH = 48


class OperationKind(enum.Enum, shape=5):
    """What a core can be asked to do. Operations issue in the order given; loads and stores then overlap."""

    EXECUTE = 0  #: compute for ``cycles`` cycles, after fetching ``argument`` lines of text; interruptible
    LOAD = 1  #: read ``size`` bytes; bound to its value when it issues, completes when a real core would have it
    STORE = 2  #: write ``size`` bytes through the store buffer, in program order
    PREFETCH = 3  #: ask for the line, readable; never completes
    MMIO_READ = 4  #: read 4 or 8 bytes of a device, after everything before it; completes with the data
    MMIO_WRITE = 5  #: write 4 or 8 bytes of a device, after every earlier store is visible; posted
    FENCE = 6  #: issue nothing more until every earlier load is complete and every store visible (MFENCE); completes
    HALT = 7  #: sleep in state ``argument`` until an interrupt is taken
    CLI = 8  #: stop taking interrupts
    STI = 9  #: take interrupts again
    IRET = 10  #: end of an interrupt handler: take interrupts again
    ATOMIC = 11  #: read and write 1, 2, 4 or 8 bytes in one step, function ``argument``; completes with the old value
    POLL = 12  #: look at ``size`` <= 8 bytes every ``argument`` cycles until they are not ``data``; interruptible
    LFENCE = 13  #: issue nothing more until every earlier load is complete; completes
    SFENCE = 14  #: issue nothing more until every earlier store is visible; completes
    STORE_NT = 15  #: non-temporal store: write around the caches, combined by line; weakly ordered until a fence
    CLFLUSH = 16  #: write the line back to DRAM and drop it from every cache; ordered as a STORE_NT
    WRITE_CR3 = 17  #: page tables begin at ``address`` from now on; forgets translations (0: no translation)
    INVLPG = 18  #: forget the translation of the page of ``address``
    RDTSC = 19  #: read the time-stamp counter (cycles of the core) behind an LFENCE; completes with 8 bytes
    TSC_DEADLINE = 20  #: have the core's timer interrupt at time ``address``, or not at all (0)


class AtomicFunction(enum.Enum, shape=3):
    """What an ATOMIC writes: a function of the old value and of its operand, ``data[63:0]``."""

    EXCHANGE = 0  #: the operand
    ADD = 1  #: their sum
    AND = 2
    OR = 3
    XOR = 4
    COMPARE_EXCHANGE = 5  #: the operand if the old value is ``data[127:64]``, else the old value


class Operation(data.Struct):
    """One operation."""

    kind: OperationKind
    id: OP_ID_WIDTH
    #: Virtual byte address; ``address % 64 + size`` may not exceed 64. MMIO: physical. EXECUTE: physical address of
    #: the first line of text.
    address: VIRTUAL_ADDRESS_WIDTH
    size: 7  #: bytes, 1 to 64
    data: LINE_BITS  #: STORE, STORE_NT, MMIO_WRITE: the bytes, first byte in bits 7:0. ATOMIC, POLL: see there
    cycles: 32  #: EXECUTE: cycles of the core's clock, at least 1. POLL: give up after so many
    uops: 16  #: micro-operations it stands for, which it occupies in the reorder window
    argument: 16  #: EXECUTE: lines of text. POLL: cycles from one look to the next. HALT: sleep state. ATOMIC: function
    after_valid: 1  #: needs the result of load ``after``, see ``hw.cpu.core_port``
    after: OP_ID_WIDTH


class Completion(data.Struct):
    """The result of a LOAD, MMIO_READ, ATOMIC, POLL, RDTSC or fence."""

    id: OP_ID_WIDTH
    data: LINE_BITS  #: first byte in bits 7:0; bytes past the operation's size are zero


class InterruptTaken(data.Struct):
    """The core stopped issuing the interrupted context and masked interrupts; the handler may follow."""

    vector: 8
    remaining: 32  #: cycles left of the EXECUTE or POLL it cut short, 0 if none
    squashed: 1  #: the operation handed over last was not issued and has been dropped: hand it over again
    squashed_id: OP_ID_WIDTH


class CoreHost(wiring.Signature):
    """The host's side of a core, as seen from the host.

    Every signal is sampled at an edge of the core's clock. ``operation`` goes into a register before anything else
    looks at it. The pulses tell what happens at the edge at which they are high:

    * ``issue``: operation ``issue_id`` issued; a LOAD has its value from now on: that of the youngest earlier store of
      this core to each of its bytes, else what memory holds before anything becomes visible at this tick;
    * ``sampled``: load ``sampled_id`` reads its line in the cache: its data are what memory holds now, likewise;
    * ``visible``: this core's oldest STORE or ATOMIC that is not visible yet becomes so after this edge;
    * ``completion_valid``: the operation in ``completion`` completed;
    * ``interrupt_taken``: an interrupt was taken; no operation is accepted at this edge;
    * ``fault``: operation ``fault_id``, not issued yet unless it is a LOAD that waited for another, addresses a page
      that is not present or, with ``fault_outside``, a physical address where there is no memory; the core stays there.
    """

    def __init__(self):
        super().__init__(
            {
                "operation": Out(stream.Signature(Operation)),
                "issue": In(1),
                "issue_id": In(OP_ID_WIDTH),
                "sampled": In(1),
                "sampled_id": In(OP_ID_WIDTH),
                "visible": In(1),
                "completion_valid": In(1),
                "completion": In(Completion),
                "interrupt_taken": In(1),
                "interrupt": In(InterruptTaken),
                "fault": In(1),
                "fault_id": In(OP_ID_WIDTH),
                "fault_outside": In(1),
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
