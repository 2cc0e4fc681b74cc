"""Registers of the last level's ways: what they hold at the start, what they take, what they refuse."""

from amaranth.sim import Simulator

from hw.config import load_machine
from hw.mem.llc_registers import LlcRegisters
from hw.uncore_registers import (
    IA32_L3_QOS_MASK_0,
    IA32_PQR_ASSOC,
    IIO_LLC_WAYS,
    PERFCTRLSTS_0,
    PQR_CLASS_SHIFT,
    USE_ALLOCATING_FLOW_WR,
    msr,
)

SETTINGS = ["llc.ddio_ways=2", "llc.class_masks=[255, 12]", "llc.core_classes=[0, 1]"]
ALL = 0xFF


class Bench:
    """Accesses by a core; ``tiny`` has 8 ways and 2 cores."""

    def __init__(self, *settings):
        self.dut = LlcRegisters(load_machine("tiny", [*SETTINGS, *settings]))

    def run(self, test):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-9, domain="uncore")

        async def testbench(ctx):
            self.ctx = ctx
            await test(self)

        simulator.add_testbench(testbench)
        simulator.run()

    async def write(self, address, data, core=0, size=8):
        access, ctx = self.dut.access, self.ctx
        for name, value in (("write", 1), ("address", address), ("size", size), ("core", core), ("data", data)):
            ctx.set(getattr(access, name), value)
        assert not ctx.get(self.dut.quiet)
        await ctx.tick("uncore")
        ctx.set(access.write, 0)
        assert ctx.get(self.dut.quiet)

    def read(self, address, core=0):
        self.ctx.set(self.dut.access.address, address)
        self.ctx.set(self.dut.access.core, core)
        return self.ctx.get(self.dut.access.value)

    def control(self):
        control = self.ctx.get(self.dut.control)
        return control.io_mask, list(control.core_masks), list(control.core_classes), control.allocating_writes

    @property
    def refused(self):
        return self.ctx.get(self.dut.refused.value)


def test_the_start_is_the_configuration():
    async def test(bench):
        assert bench.control() == (0b1100_0000, [ALL, 12], [0, 1], 1)
        assert bench.read(msr(IIO_LLC_WAYS)) == 0b1100_0000
        assert bench.read(msr(IA32_L3_QOS_MASK_0 + 1)) == 12 and bench.read(msr(IA32_L3_QOS_MASK_0 + 15)) == ALL
        assert bench.read(msr(IA32_PQR_ASSOC), core=1) == 1 << PQR_CLASS_SHIFT
        assert bench.read(PERFCTRLSTS_0) == USE_ALLOCATING_FLOW_WR
        assert bench.read(msr(0x123)) == (1 << 64) - 1, "nobody's"

    Bench().run(test)


def test_what_is_written_takes_effect():
    async def test(bench):
        await bench.write(msr(IIO_LLC_WAYS), 0b0011_1000)
        await bench.write(msr(IA32_L3_QOS_MASK_0 + 3), 0b10)
        await bench.write(msr(IA32_PQR_ASSOC), 3 << PQR_CLASS_SHIFT | 5, core=1)  # the lower half is for monitoring
        await bench.write(PERFCTRLSTS_0, 0, size=4)
        assert bench.control() == (0b0011_1000, [ALL, 0b10], [0, 3], 0)
        assert bench.read(msr(IA32_PQR_ASSOC), core=0) == 0 and bench.read(PERFCTRLSTS_0) == 0
        await bench.write(PERFCTRLSTS_0, 0xFFFF_FFFF, size=4)
        await bench.write(msr(IA32_L3_QOS_MASK_0 + 3), 0x7F)
        assert bench.control() == (0b0011_1000, [ALL, 0x7F], [0, 3], 1)
        assert bench.refused == 0

    Bench().run(test)


def test_what_cannot_be_is_refused():
    async def test(bench):
        before = bench.control()
        masks = [0, 0b101, 0b1_0000_0001, 1 << 8, (1 << 64) - 1, 0b1011_0000]
        for mask in masks:
            await bench.write(msr(IIO_LLC_WAYS), mask)
            await bench.write(msr(IA32_L3_QOS_MASK_0), mask)
        await bench.write(msr(IA32_PQR_ASSOC), 16 << PQR_CLASS_SHIFT)
        await bench.write(msr(IIO_LLC_WAYS), 0b11, size=4)
        await bench.write(PERFCTRLSTS_0, 0, size=8)
        await bench.write(msr(0x123), 1)
        assert bench.control() == before
        assert bench.refused == 2 * len(masks) + 4

    Bench().run(test)
