"""Interrupts: masks, moderation to the cycle, automatic clearing and masking, the MSI-X table."""

import pytest

from hw.config import load_machine
from hw.nic.interrupts import Interrupts
from hw.nic.registers import MSIX_PBA, REG, msix_entry
from tests.hw.simulate import simulate

#: Cycles of 500 MHz in 2.048 us.
UNIT = 1024


class Bench:
    """Interrupts with two vectors: the queue's causes go to vector 0, all others to vector 1."""

    def __init__(self, vectors=2, queues=1):
        self.vectors_built = vectors
        self.dut = Interrupts(load_machine("tiny", [f"nic.msix_vectors={vectors}"]), queues)
        self.cycle, self.messages, self.armed = 0, [], []

    async def tick(self, count=1):
        for _ in range(count):
            ctx, dut = self.ctx, self.dut
            if ctx.get(dut.send.valid) and ctx.get(dut.send.ready):
                payload = ctx.get(dut.send.payload)
                vector, cause = (ctx.get(dut.msix.fields[name]) for name in ("vector", "cause"))
                lane = payload.header.address % 64
                data = payload.data >> 8 * lane & 0xFFFF_FFFF
                self.messages.append((self.cycle, payload.header.address, data, vector, cause))
                assert not ctx.get(dut.quiet)
            await ctx.tick("nic")
            self.cycle += 1

    async def write(self, offset, value, table=0):
        dut, ctx = self.dut, self.ctx
        for signal, v in ((dut.bus.write, 1), (dut.bus.table, table), (dut.bus.offset, offset), (dut.bus.data, value)):
            ctx.set(signal, v)
        await self.tick()
        ctx.set(dut.bus.write, 0)
        ctx.set(dut.bus.table, 0)

    async def read_eicr(self):
        dut, ctx = self.dut, self.ctx
        ctx.set(dut.bus.read, 1)
        ctx.set(dut.bus.offset, REG.EICR.offset())
        value = ctx.get(dut.eicr)
        await self.tick()
        ctx.set(dut.bus.read, 0)
        return value

    async def cause(self, *, other=0, rx=1, tx=0):
        self.ctx.set(self.dut.rx_causes, 0 if other else rx)
        self.ctx.set(self.dut.tx_causes, tx)
        self.ctx.set(self.dut.other_causes, other)
        await self.tick()
        self.ctx.set(self.dut.rx_causes, 0)
        self.ctx.set(self.dut.tx_causes, 0)
        self.ctx.set(self.dut.other_causes, 0)

    def run(self, scenario, **registers):
        async def bench(ctx):
            self.ctx, dut = ctx, self.dut
            ctx.set(dut.send.ready, 1)
            ctx.set(dut.gpie.value, REG.GPIE.MSIX_MODE.mask | registers.get("gpie", 0))
            ctx.set(dut.eiac.value, registers.get("eiac", 0))
            ctx.set(dut.eiam.value, registers.get("eiam", 0))
            ctx.set(dut.ivar[0].value, REG.IVAR.RX_EVEN_VALID.mask)
            ctx.set(dut.ivar_misc.value, REG.IVAR_MISC.OTHER_VALID.mask | REG.IVAR_MISC.OTHER.put(1))
            ctx.set(dut.eitr[0].value, REG.EITR.INTERVAL.put(registers.get("itr", 0)))
            for vector in range(self.vectors_built):
                entry = (0xFEE0_0000 + 0x1004 * vector, 0, 0x40 + vector, 0)
                for word, value in enumerate(entry):
                    await self.write(msix_entry(vector) + 4 * word, value, table=1)
            await self.write(REG.EIMS.offset(), registers.get("eims", 0xFFFF_FFFF))
            await scenario(self)

        simulate(self.dut, bench)

    def vectors(self):
        return [message[3] for message in self.messages]


def test_a_message_is_offered_two_edges_after_its_cause():
    async def scenario(b):
        at = b.cycle
        await b.cause()
        await b.tick(5)
        assert b.messages == [(at + 2, 0xFEE0_0000, 0x40, 0, 1)]
        await b.cause(other=REG.EICR.DHER.mask)
        await b.tick(5)
        assert b.messages[1][1:] == (0xFEE0_1004, 0x41, 1, REG.EICR.DHER.mask)

    Bench().run(scenario)


@pytest.mark.parametrize("itr", [1, 3])
def test_moderation_to_the_cycle(itr):
    """After a message at edge t the next one of its vector is sent at t + interval, not at t + interval - 1."""

    async def scenario(b):
        await b.cause()
        await b.tick(5)
        first = b.messages[0][0]
        await b.cause()
        assert b.ctx.get(b.dut.vectors[0].moderation.armed)
        assert b.ctx.get(b.dut.vectors[0].moderation.deadline) == first - 1 + itr * UNIT  # a message is made, then sent
        assert b.ctx.get(b.dut.quiet)
        await b.tick(itr * UNIT - (b.cycle - first))
        assert len(b.messages) == 1
        await b.tick()
        assert [m[0] for m in b.messages] == [first, first + itr * UNIT]
        # Other vectors are not held up; a write without CNT_WDIS ends the interval
        await b.cause()
        await b.cause(other=REG.EICR.LSC.mask)
        await b.tick(5)
        assert b.vectors() == [0, 0, 1]
        await b.write(REG.EITR.offset(0), REG.EITR.CNT_WDIS.mask)
        await b.tick(5)
        assert b.vectors() == [0, 0, 1]
        await b.write(REG.EITR.offset(0), 0)
        await b.tick(5)
        assert b.vectors() == [0, 0, 1, 0]

    Bench().run(scenario, itr=itr, eiac=1)


def test_without_moderation_every_cause_is_announced():
    async def scenario(b):
        for _ in range(5):
            await b.cause()
            await b.tick(3)
        assert b.vectors() == [0] * 5

    Bench().run(scenario, eiac=1)


def test_a_cause_that_stays_set_is_announced_once():
    async def scenario(b):
        await b.cause()
        await b.tick(4)
        await b.cause()
        await b.tick(4)
        assert b.vectors() == [0]
        # Clearing and setting at the same edge must not lose the new one
        b.ctx.set(b.dut.rx_causes, 1)
        await b.write(REG.EICR.offset(), 1)
        b.ctx.set(b.dut.rx_causes, 0)
        await b.tick(4)
        assert b.vectors() == [0, 0]
        assert await b.read_eicr() == 1
        assert await b.read_eicr() == 0
        await b.cause()
        await b.tick(4)
        assert b.vectors() == [0, 0, 0]

    Bench().run(scenario)


def test_a_masked_cause_waits_for_its_mask():
    async def scenario(b):
        await b.cause()
        await b.tick(10)
        assert not b.messages and b.ctx.get(b.dut.eicr) == 1
        await b.write(REG.EIMS.offset(), 1)
        await b.tick(4)
        assert b.vectors() == [0] and b.ctx.get(b.dut.eims) == 1
        await b.write(REG.EIMC.offset(), 1)
        assert b.ctx.get(b.dut.eims) == 0

    Bench().run(scenario, eims=0)


def test_automatic_masking():
    """NAPI: the message masks its cause; causes meanwhile stay in EICR and fire when software unmasks."""

    async def scenario(b):
        await b.cause()
        await b.tick(4)
        assert b.ctx.get(b.dut.eims) & 1 == 0 and b.ctx.get(b.dut.eicr) == 0
        await b.cause()
        await b.tick(20)
        assert b.vectors() == [0] and b.ctx.get(b.dut.eicr) == 1
        await b.write(REG.EIMS.offset(), 1)
        await b.tick(4)
        assert b.vectors() == [0, 0]
        await b.write(REG.EIMS.offset(), 1)
        await b.tick(4)
        assert b.vectors() == [0, 0]

    Bench().run(scenario, gpie=REG.GPIE.EIAME.mask, eiam=0xFFFF, eiac=0xFFFF)


def test_masking_by_reading_the_causes():
    async def scenario(b):
        await b.cause(other=REG.EICR.LSC.mask)
        await b.tick(4)
        assert await b.read_eicr() == REG.EICR.LSC.mask | REG.EICR.OTHER.mask
        assert b.ctx.get(b.dut.eims) == 0xFFFF_FFFF & ~REG.EICR.LSC.mask

    Bench().run(scenario, eiam=REG.EICR.LSC.mask)


def test_ocd_keeps_queue_causes_when_read():
    async def scenario(b):
        await b.write(REG.EICS.offset(), REG.EICR.LSC.mask | 1)
        await b.tick(4)
        await b.read_eicr()
        assert b.ctx.get(b.dut.eicr) == 1

    Bench().run(scenario, gpie=REG.GPIE.OCD.mask)


def test_software_raises_causes():
    async def scenario(b):
        await b.write(REG.EICS.offset(), 1)
        await b.tick(4)
        assert b.vectors() == [0] and b.ctx.get(b.dut.eicr) == 1

    Bench().run(scenario)


def test_the_table_masks_and_the_pending_bits_tell():
    async def scenario(b):
        await b.write(msix_entry(0) + 12, 1, table=1)
        await b.cause()
        await b.tick(5)
        b.ctx.set(b.dut.bus.offset, MSIX_PBA)
        assert not b.messages and b.ctx.get(b.dut.table_data) == 1
        await b.write(msix_entry(0) + 12, 0, table=1)
        await b.tick(4)
        b.ctx.set(b.dut.bus.offset, MSIX_PBA)
        assert b.vectors() == [0] and b.ctx.get(b.dut.table_data) == 0
        b.ctx.set(b.dut.bus.offset, msix_entry(1) + 8)
        assert b.ctx.get(b.dut.table_data) == 0x41

    Bench().run(scenario)


def test_no_message_without_msix_mode_and_none_lost_by_a_stalled_link():
    async def scenario(b):
        b.ctx.set(b.dut.gpie.value, 0)
        await b.cause()
        await b.tick(5)
        assert not b.messages
        b.ctx.set(b.dut.send.ready, 0)
        b.ctx.set(b.dut.gpie.value, REG.GPIE.MSIX_MODE.mask)
        await b.tick(5)
        await b.cause()
        await b.cause(other=REG.EICR.LSC.mask)
        await b.tick(5)
        b.ctx.set(b.dut.send.ready, 1)
        await b.tick(10)
        assert b.vectors() == [0, 0, 1]

    Bench().run(scenario, eiac=1)


def test_every_queue_and_direction_has_its_vector():
    """IVAR says which; a cause without a valid entry is lost; several at one edge are all announced."""
    ivar = REG.IVAR

    async def scenario(b):
        first = ivar.RX_EVEN.put(3) | ivar.TX_EVEN.put(2) | ivar.RX_ODD.put(1) | ivar.TX_ODD.put(3) | 0x8080_8080
        b.ctx.set(b.dut.ivar[0].value, first)
        b.ctx.set(b.dut.ivar[1].value, ivar.TX_EVEN.put(2) | ivar.TX_EVEN_VALID.mask | ivar.RX_EVEN.put(1))
        for causes, vectors in (
            ({"rx": 1}, [3]),
            ({"rx": 2}, [1]),
            ({"rx": 0, "tx": 1}, [2]),
            ({"rx": 0, "tx": 2}, [3]),
            ({"rx": 4}, []),
            ({"rx": 0, "tx": 4}, [2]),
            ({"rx": 3, "tx": 1}, [1, 2, 3]),
        ):
            b.messages.clear()
            await b.cause(**causes)
            await b.tick(10)
            assert b.vectors() == vectors
            assert [m[4] for m in b.messages] == [1 << v for v in vectors]

    Bench(vectors=4, queues=3).run(scenario, eiac=0xFFFF)


def test_vectors_are_moderated_one_by_one():
    """Each by its own EITR, from its own last message on."""
    ivar = REG.IVAR

    async def scenario(b):
        b.ctx.set(b.dut.ivar[0].value, ivar.RX_EVEN.put(0) | ivar.TX_EVEN.put(1) | 0x8080)
        b.ctx.set(b.dut.eitr[0].value, REG.EITR.INTERVAL.put(2))
        b.ctx.set(b.dut.eitr[1].value, REG.EITR.INTERVAL.put(1))
        await b.cause()
        await b.tick(UNIT // 2)
        await b.cause(rx=0, tx=1)
        await b.tick(5)
        starts = {m[3]: m[0] for m in b.messages}
        await b.cause(tx=1)
        await b.tick(2 * UNIT)
        assert [(m[3], m[0]) for m in b.messages[2:]] == [(1, starts[1] + UNIT), (0, starts[0] + 2 * UNIT)]

    Bench().run(scenario, eiac=0xFFFF)


def test_extended_registers_are_the_low_sixteen_causes():
    """EICS_EX, EIMS_EX and EIMC_EX of vectors 15:0 do to those what the others do, and nothing to the other causes."""

    async def scenario(b):
        await b.write(REG.EIMS_EX.offset(), 0xFFFF_0001)
        assert b.ctx.get(b.dut.eims) == 1
        await b.write(REG.EICS_EX.offset(), 0xFFFF_0003)
        await b.tick(4)
        assert b.ctx.get(b.dut.eicr) == 3 and b.vectors() == [0]
        await b.write(REG.EIMS.offset(), REG.EICR.LSC.mask)
        await b.write(REG.EIMC_EX.offset(), 0xFFFF_FFFF)
        assert b.ctx.get(b.dut.eims) == REG.EICR.LSC.mask
        await b.write(REG.EIMS_EX.offset(1), 0xFFFF_FFFF)
        assert b.ctx.get(b.dut.eims) == REG.EICR.LSC.mask

    Bench().run(scenario, eims=0)


def test_reset():
    async def scenario(b):
        b.ctx.set(b.dut.gpie.value, 0)
        await b.cause()
        b.ctx.set(b.dut.reset, 1)
        await b.tick()
        b.ctx.set(b.dut.reset, 0)
        assert b.ctx.get(b.dut.eicr) == b.ctx.get(b.dut.eims) == 0

    Bench().run(scenario)
