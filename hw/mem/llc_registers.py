"""The registers that say who may allocate where in the last level, and whether devices may."""

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.memory import RegisterPort
from hw.config import CLASSES_OF_SERVICE, MachineConfig
from hw.lib.probe import Counter
from hw.uncore_registers import (
    IA32_L3_QOS_MASK_0,
    IA32_PQR_ASSOC,
    IIO_LLC_WAYS,
    PERFCTRLSTS_0,
    PQR_CLASS_SHIFT,
    USE_ALLOCATING_FLOW_WR,
    msr,
)

from .llc_bits import lowest
from .llc_layouts import LlcLayouts

__all__ = ["LlcRegisters"]

_CLASS_WIDTH = ceil_log2(CLASSES_OF_SERVICE)


class LlcRegisters(wiring.Component):
    """Cache Allocation Technology, IIO LLC WAYS and perfctrlsts_0 (:mod:`hw.uncore_registers`). Domain ``uncore``.

    A mask that is empty, longer than ``llc.ways`` or not one run of ones changes nothing, nor does a class of service
    that does not exist; ``refused`` counts them. What is written takes effect for lookups from the next cycle on; lines
    stay where they are. Other registers of the windows read as all ones, as what belongs to nobody does, and cannot be
    written. Only one bit of perfctrlsts_0 exists: no device here marks its writes as not snooped (``NoSnoopOpWrEn``).
    It is taken by a write when the last level accepts that.

    Ports:
        access: from the cores, by way of the root complex.
        control: to the last level.
        quiet: nothing is written.
    """

    def __init__(self, config: MachineConfig):
        layouts = LlcLayouts(config)
        self._ways, self._cores = layouts.ways, layouts.clients
        super().__init__(
            {
                "access": In(RegisterPort()),
                "control": Out(layouts.control, init=layouts.control_init),
                "quiet": Out(1),
            }
        )
        llc = config.llc
        self._masks = [
            Signal(self._ways, init=llc.class_mask(number), name=f"qos_mask{number}")
            for number in range(CLASSES_OF_SERVICE)
        ]
        self._classes = [
            Signal(_CLASS_WIDTH, init=llc.core_class(core), name=f"class{core}") for core in range(self._cores)
        ]
        self._io_mask = Signal(self._ways, init=llc.io_mask)
        self._allocating = Signal(init=llc.ddio)
        self.refused = Counter("uncore", "writes of registers of the last level that were refused")

    def elaborate(self, platform):
        """Write, read, and tell the cache."""
        m = Module()
        access = self.access
        accepted = Signal()
        with m.If(access.write):
            self._write(m, accepted)
        self._read(m)
        masks = Array(self._masks)
        m.d.comb += [
            self.control.io_mask.eq(self._io_mask),
            self.control.allocating_writes.eq(self._allocating),
            self.quiet.eq(~access.write),
        ]
        for core, number in enumerate(self._classes):
            m.d.comb += [self.control.core_classes[core].eq(number), self.control.core_masks[core].eq(masks[number])]
        self.refused.increment(m, access.write & ~accepted)
        return m

    def _write(self, m, accepted) -> None:
        access = self.access
        mask = access.data[: self._ways]
        whole = access.size == 8
        is_mask = Signal()
        # Adding its lowest one to a run of ones leaves none of it.
        m.d.comb += is_mask.eq(
            whole & (mask != 0) & (access.data < 1 << self._ways) & ~((mask + lowest(mask)) & mask).any()
        )
        number = access.data >> PQR_CLASS_SHIFT
        with m.Switch(access.address):
            with m.Case(msr(IIO_LLC_WAYS)):
                m.d.comb += accepted.eq(is_mask)
                with m.If(is_mask):
                    m.d.uncore += self._io_mask.eq(mask)
            with m.Case(msr(IA32_PQR_ASSOC)):
                m.d.comb += accepted.eq(whole & (number < CLASSES_OF_SERVICE))
                for core, register in enumerate(self._classes):
                    with m.If(accepted & (access.core == core)):
                        m.d.uncore += register.eq(number)
            for index, register in enumerate(self._masks):
                with m.Case(msr(IA32_L3_QOS_MASK_0 + index)):
                    m.d.comb += accepted.eq(is_mask)
                    with m.If(is_mask):
                        m.d.uncore += register.eq(mask)
            with m.Case(PERFCTRLSTS_0):
                m.d.comb += accepted.eq(access.size == 4)
                with m.If(accepted):
                    m.d.uncore += self._allocating.eq((access.data & USE_ALLOCATING_FLOW_WR).any())

    def _read(self, m) -> None:
        access = self.access
        with m.Switch(access.address):
            with m.Case(msr(IIO_LLC_WAYS)):
                m.d.comb += access.value.eq(self._io_mask)
            with m.Case(msr(IA32_PQR_ASSOC)):
                m.d.comb += access.value.eq(Array(self._classes)[access.core] << PQR_CLASS_SHIFT)
            for index, register in enumerate(self._masks):
                with m.Case(msr(IA32_L3_QOS_MASK_0 + index)):
                    m.d.comb += access.value.eq(register)
            with m.Case(PERFCTRLSTS_0):
                m.d.comb += access.value.eq(Mux(self._allocating, USE_ALLOCATING_FLOW_WR, 0))
            with m.Default():
                m.d.comb += access.value.eq((1 << 64) - 1)
