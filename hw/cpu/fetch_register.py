"""The operation that issues next."""

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.core import OP_ID_WIDTH, Operation, OperationKind
from hw.bus.tilelink import LINE_BITS

from .byte_lanes import VirtualAddress

__all__ = ["FetchRegister"]


class FetchRegister(wiring.Component):
    """One register per field of an operation, and its data in a memory of one row.

    It could be one register of the shape Operation; a compiled model keeps fields apart faster, and copies
    the data only when there are new ones.

    Arguments:
        domain: clock domain.

    Attributes:
        ready: ``In(1)``, from here: take an operation if there is one.
        valid: ``In(1)``, from the host, as ``operation``: ``In(Operation)``.
        kind, id, address, size, data, cycles, uops, argument, after_valid, after: ``Out``, see :class:`Operation`.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__(
            {
                "ready": In(1),
                "valid": In(1),
                "operation": In(Operation),
                "kind": Out(OperationKind),
                "id": Out(OP_ID_WIDTH),
                "address": Out(VirtualAddress),
                "size": Out(7),
                "data": Out(LINE_BITS),
                "cycles": Out(32),
                "uops": Out(16),
                "argument": Out(16),
                "after_valid": Out(1),
                "after": Out(OP_ID_WIDTH),
            }
        )

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.row = row = Memory(shape=LINE_BITS, depth=1, init=[])
        write, read = row.write_port(domain=self.domain), row.read_port(domain="comb")
        m.d.comb += [write.en.eq(self.ready & self.valid), write.data.eq(self.operation.data), self.data.eq(read.data)]
        # Nested, not one condition: no logic of its own may hang on an input of the host.
        with m.If(self.ready):
            with m.If(self.valid):
                m.d[self.domain] += [
                    self.kind.eq(self.operation.kind),
                    self.id.eq(self.operation.id),
                    self.address.eq(data.View(VirtualAddress, self.operation.address)),
                    self.size.eq(self.operation.size),
                    self.cycles.eq(self.operation.cycles),
                    self.uops.eq(self.operation.uops),
                    self.argument.eq(self.operation.argument),
                    self.after_valid.eq(self.operation.after_valid),
                    self.after.eq(self.operation.after),
                ]
        return m
