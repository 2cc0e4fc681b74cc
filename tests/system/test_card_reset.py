"""The card in trouble: a reset in the middle of DMA, a ring that cannot be.

Nothing hangs, every packet is accounted for, and afterwards the card works as if nothing had been.
"""

import functools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from hw.bus.tlp import TlpType
from hw.config import load_machine
from hw.memory_map import BAR0_BASE, DRAM_BASE, MSI_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES
from hw.nic.registers import REG
from hw.nic.ring_queue import QueueError
from sim.observe.log import EventLog

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from station import BUFFER_BYTES, DESCRIPTORS, Station  # noqa: E402

CONFIG = load_machine("tiny")
NIC_PERIOD = CONFIG.period_ticks("nic")
DRAM_END = DRAM_BASE + (CONFIG.dram.size_mib << 20)

VECTOR = 0x40


# ---- Reset


#: Frames that meet the reset.
FRAMES = 20

#: Cycles of the card's clock before the write of CTRL.RST, in steps that are prime to the machine's rhythms. At line
#: rate counted from the first frame: over the time of several frames.
AT_LINE_RATE = range(150, 150 + 12 * 97, 97)
#: With a backlog in the packet buffer, counted from the write of RDT that lets it go.
WITH_BACKLOG = range(0, 12 * 7, 7)

#: Cycles of the card's clock a reset may take, until software sees that it is over: two for each row of the packet
#: buffer to be emptied, a DMA read's way to memory and back, and a look of the driver's; beside two flights of the link
#: each, 200 ns are ample for these.
RESET_BOUND = 2 * CONFIG.nic.packet_buffer_kib * 1024 // 64 + int(
    2 * (2 * CONFIG.pcie.latency_ns + 200) * CONFIG.clocks.nic / 1000
)


@dataclass
class ResetRun:
    """What was seen of a reset in the middle of traffic."""

    fates: Counter
    cycles: int  #: of the card's clock, from the write of CTRL.RST to the first read that shows it done
    going_on: set[str]  #: what the card was doing when the reset began


@functools.cache
def reset_after(delay: int, backlog: bool) -> ResetRun:
    """Receive, reset, set up again, receive again; check all that must hold whatever the delay."""
    station = Station(CONFIG, seed=delay)
    driver = station.driver
    driver.start()
    driver.send_interrupts(VECTOR)
    station.fill_ring(publish=not backlog)
    station.bench.complete(0, station.bench.fence(0))
    begin = station.engine.tick
    arrived = station.send(FRAMES, largest=300 if backlog else BUFFER_BYTES)
    if backlog:
        station.work_until(arrived)
        driver.publish()
        station.bench.execute(0, delay * NIC_PERIOD // CONFIG.period_ticks("core") + 1)
    else:
        station.work_until(begin + delay * NIC_PERIOD)
    driver.reset()
    done = station.engine.tick
    assert [driver.read(register) for register in (REG.RXCTRL, REG.RDT, REG.RXDCTL, REG.EICR)] == [0, 0, 0, 0]

    # Nothing of the card moves any more
    station.work_until(max(arrived, done) + 4000)
    sent = station.log().select("link.upstream.sent")
    requests = sent[sent["kind"] != TlpType.COMPLETION.value]
    assert not (requests["tick"] > done).any()
    before = station.check_accounts()

    # And it works again
    driver.initialise()
    driver.send_interrupts(VECTOR)
    station.fill_ring()
    station.work_until(station.send(6) + 4000)
    station.check_received([packet for packet in station.frames if packet > FRAMES])
    assert station.check_accounts() - before == Counter(delivered=6)

    control = BAR0_BASE + REG.CTRL.offset()
    log = station.log()
    accesses = [log.select(f"nic.registers.{what}") for what in ("write", "read")]
    writes, reads = ([(c, v) for _, c, a, v in rows.tolist() if a == control] for rows in accesses)
    begun = max(cycle for cycle, value in writes if value & REG.CTRL.RST.mask)
    over = min(cycle for cycle, value in reads if cycle > begun and not value & REG.CTRL.RST.mask)
    return ResetRun(before, over - begun, _going_on(station, log, begun))


def _going_on(station: Station, log: EventLog, cycle: int) -> set[str]:
    """What the card was doing at a cycle of its clock."""

    def rows(path: str, kind: TlpType | None = None):
        found = log.select(path)
        found = found[found["cycle"] <= cycle]
        return found if kind is None else found[found["kind"] == kind.value]

    fates = station.fates()
    arrived = set(rows("nic.mac.frame")["packet"].tolist())
    begun = set(rows("nic.rx.dma.writer.dma_write")["packet"].tolist())
    posted, completion = TlpType.MEMORY_WRITE, TlpType.COMPLETION
    seen = {
        "a frame on the wire": len(arrived) < FRAMES,
        "a packet half written": any(fates[packet] == ["RESET"] for packet in begun),
        "packets in the buffer": sum(fates[packet] == ["RESET"] for packet in arrived - begun) > 1,
        "a descriptor read in flight": len(rows("nic.rx.descriptor_fetch"))
        > len(rows("link.downstream.delivered", completion)),
        "a write on the link": len(rows("link.upstream.sent", posted)) > len(rows("link.upstream.delivered", posted)),
    }
    return {name for name, true in seen.items() if true}


CASES = [(delay, False) for delay in AT_LINE_RATE] + [(delay, True) for delay in WITH_BACKLOG]


@pytest.mark.parametrize(("delay", "backlog"), CASES)
def test_reset_in_the_middle_of_dma(delay, backlog):
    run = reset_after(delay, backlog)
    assert run.cycles <= RESET_BOUND
    assert set(run.fates) <= {"delivered", "RESET", "RECEIVE_DISABLED"}
    assert run.fates["RESET"] >= 1


def test_the_resets_hit_all_that_can_be_going_on():
    assert set.union(*(reset_after(*case).going_on for case in CASES)) == {
        "a frame on the wire",
        "a packet half written",
        "packets in the buffer",
        "a descriptor read in flight",
        "a write on the link",
    }


# ---- Rings that cannot be


BAD_RINGS = {
    "no length": ({"length": 0}, QueueError.RING_LENGTH),
    "not whole lines of 128 bytes": ({"length": 64}, QueueError.RING_LENGTH),
    "beyond the physical address space": ({"base": 1 << 40}, QueueError.RING_BASE),
    "behind the end of memory": ({"base": DRAM_END}, QueueError.DESCRIPTOR),
    "partly behind the end of memory": ({"base": DRAM_END - 128, "length": 256}, QueueError.DESCRIPTOR),
    "on the card's own registers": ({"base": BAR0_BASE}, QueueError.DESCRIPTOR),
    "where interrupts go": ({"base": MSI_BASE}, QueueError.DESCRIPTOR),
    "buffers of no bytes": ({"BSIZEPACKET": 0}, QueueError.BUFFER_SIZE),
}


@pytest.mark.parametrize("name", BAD_RINGS)
def test_bad_ring(name):
    """The card says so by EICR.DHER, its RXDCTL.ENABLE reads 0, packets are dropped; then a good ring works."""
    settings, error = BAD_RINGS[name]
    station = Station(CONFIG)
    driver = station.driver
    driver.reset()
    driver.write(REG.RDRXCTL, REG.RDRXCTL.CRCSTRIP.mask)
    driver.set_up_ring(**settings)
    driver.write(REG.RXCTRL, REG.RXCTRL.RXEN.mask)
    # All of the ring that its length admits
    length = settings.get("length", DESCRIPTORS * DESCRIPTOR_BYTES)
    driver.write(REG.RDT, max(length // DESCRIPTOR_BYTES - 1, 0))
    arrived = station.send(12)
    driver.wait_for(REG.EICR, REG.EICR.DHER.mask, REG.EICR.DHER.mask)
    driver.wait_for(REG.RXDCTL, REG.RXDCTL.ENABLE.mask, 0)
    errors = station.log().select("nic.rx.queue_error0")["error"].tolist()
    assert [QueueError(e) for e in errors] == [error]

    station.work_until(arrived + 4000)
    fates = station.check_accounts()
    assert fates.total() == 12 and set(fates) <= {"DMA_ERROR", "QUEUE_DISABLED", "delivered"}
    assert driver.read(REG.RXDCTL) & REG.RXDCTL.ENABLE.mask == 0

    driver.set_up_ring()
    driver.wait_for(REG.RXDCTL, REG.RXDCTL.ENABLE.mask, REG.RXDCTL.ENABLE.mask)
    station.fill_ring()
    first = len(station.frames) + 1
    station.work_until(station.send(4) + 4000)
    station.check_received(list(range(first, first + 4)))
    station.check_accounts()
