"""Line-wide requests that are not coherent by themselves: from devices to the last level, from there to DRAM."""

from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from .tilelink import LINE_ADDRESS_WIDTH, LINE_BITS, LINE_BYTES, PHYSICAL_ADDRESS_WIDTH

__all__ = [
    "PACKET_WIDTH",
    "DeviceMemory",
    "DeviceRequest",
    "DeviceResponse",
    "DramPort",
    "DramRequest",
    "DramResponse",
    "MemoryOp",
    "NonCachedPort",
    "NonCachedWrite",
    "RegisterPort",
]

#: Bits of a packet id; 0 means "no packet". It travels beside the data, for observers only.
PACKET_WIDTH = 24


class MemoryOp(enum.Enum, shape=1):
    """Read or write."""

    READ = 0
    WRITE = 1


class DeviceRequest(data.Struct):
    """One line, or part of one, read or written by a device (DMA)."""

    op: MemoryOp
    line: LINE_ADDRESS_WIDTH
    mask: LINE_BYTES  #: WRITE: which bytes of ``data`` count; all ones is a full-line write
    data: LINE_BITS
    tag: 8  #: READ: comes back with the data
    packet: PACKET_WIDTH
    around: 1  #: WRITE: to DRAM, dropping the line from every cache, whatever DDIO says


class DeviceResponse(data.Struct):
    """The answer to a READ."""

    tag: 8
    data: LINE_BITS
    packet: PACKET_WIDTH


class DeviceMemory(wiring.Signature):
    """The last level's port for devices, as seen from the root complex (the requester).

    Writes become visible to all cores in the order of ``request``; ``write_done`` is high for one cycle per
    write as it becomes visible. Reads are looked up in any order relative to writes that are not done yet,
    except to the same line: who needs a read not to pass a write waits for ``write_done``.
    """

    def __init__(self):
        super().__init__(
            {
                "request": Out(stream.Signature(DeviceRequest)),
                "response": In(stream.Signature(DeviceResponse)),
                "write_done": In(1),
            }
        )

    def __eq__(self, other):
        return isinstance(other, DeviceMemory)


class NonCachedWrite(data.Struct):
    """Bytes of one line that a core writes around the caches. An empty mask only writes the line back (CLFLUSH)."""

    line: LINE_ADDRESS_WIDTH
    mask: LINE_BYTES
    data: LINE_BITS


class NonCachedPort(wiring.Signature):
    """Non-temporal stores and flushes, as seen from the core. ``done`` carries one token per write, once visible."""

    def __init__(self):
        super().__init__(
            {
                "write": Out(stream.Signature(NonCachedWrite)),
                "done": In(stream.Signature(1)),
            }
        )

    def __eq__(self, other):
        return isinstance(other, NonCachedPort)


class DramRequest(data.Struct):
    """A whole line to or from DRAM."""

    op: MemoryOp
    line: LINE_ADDRESS_WIDTH
    data: LINE_BITS  #: WRITE
    tag: 8  #: READ: comes back with the data


class DramResponse(data.Struct):
    """The answer to a READ."""

    tag: 8
    data: LINE_BITS


class DramPort(wiring.Signature):
    """The DRAM controller as seen from the last level. A read sees every write to its line accepted before it.

    Reads of different lines may be answered out of order. Writes are not answered.
    """

    def __init__(self):
        super().__init__(
            {
                "request": Out(stream.Signature(DramRequest)),
                "response": In(stream.Signature(DramResponse)),
            }
        )

    def __eq__(self, other):
        return isinstance(other, DramPort)


class RegisterPort(wiring.Signature):
    """Registers of the platform that no device has, as seen from who accesses them: one access per cycle, at once.

    At an edge with ``write`` high, ``data`` goes to the register of ``size`` bytes at ``address``; ``value`` shows what
    a read of it by ``core`` gives, in the same cycle, with no effect.
    """

    def __init__(self):
        super().__init__(
            {
                "write": Out(1),
                "address": Out(PHYSICAL_ADDRESS_WIDTH),
                "size": Out(4),
                "core": Out(4),
                "data": Out(64),
                "value": In(64),
            }
        )

    def __eq__(self, other):
        return isinstance(other, RegisterPort)
