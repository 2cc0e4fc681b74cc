"""Which writes of the card are marked for the cache: an extension, by the registers that mark them on the 82599."""

import itertools

import pytest

from hw.bus.tlp import TlpType
from hw.memory_map import MSI_BASE
from hw.nic.registers import REG
from tests.hw.nic.card_bench import BUFFERS, RING, RING_BYTES, TX_RING, CardBench, frame

RX, TX, CTRL = REG.DCA_RXCTRL, REG.DCA_TXCTRL, REG.DCA_CTRL


def marked(bench, since):
    """Marks of the writes sent from TLP number ``since`` on, by what they write."""
    result = {"descriptor": set(), "payload": set(), "sent": set()}
    for tlp in bench.tlps[since:]:
        if tlp.kind == TlpType.MEMORY_WRITE and tlp.address < MSI_BASE:
            if RING <= tlp.address < RING + RING_BYTES:
                result["descriptor"].add(tlp.tag)
            elif TX_RING <= tlp.address < TX_RING + RING_BYTES:
                result["sent"].add(tlp.tag)
            else:
                assert tlp.address >= BUFFERS
                result["payload"].add(tlp.tag)
    return result


@pytest.mark.parametrize("gates", [False, True])
def test_writes_are_marked_as_the_registers_say(gates):
    async def scenario(b):
        await b.set_up()
        await b.set_up_transmit()
        assert await b.read(CTRL.offset()) == CTRL.DCA_DIS.mask, "off after a reset"
        for disabled, descriptor, payload, sent in itertools.product((1, 0), repeat=4):
            since = len(b.tlps)
            await b.write(CTRL.offset(), CTRL.DCA_DIS.put(disabled))
            receive = RX.DESC_DCA_EN.put(descriptor) | RX.DATA_DCA_EN.put(payload) | RX.HEAD_DCA_EN.put(1 - payload)
            await b.write(RX.offset(), receive)
            await b.write(RX.offset(1), RX.DESC_DCA_EN.mask | RX.DATA_DCA_EN.mask)  # another queue's
            await b.write(TX.offset(), TX.DESC_DCA_EN.put(sent))
            assert await b.read(RX.offset()) == receive
            b.offer(frame(200))
            b.put(0, frame(100)[:-4], eop=1, rs=1)
            await b.set_tx_tail()
            await b.settle()
            expected = {"descriptor": {descriptor}, "payload": {payload}, "sent": {sent}}
            if disabled or not gates:
                expected = {name: {0} for name in expected}
            assert marked(b, since) == expected
            await b.set_tail((b.tail + 1) % b.size)

    bench = CardBench(f"nic.dca_gates={str(gates).lower()}").run(scenario)
    assert not bench.quiet_violations and len(bench.sent) == 16
