"""The card in trouble: a reset in the middle of DMA, a ring that cannot be.

Nothing hangs, every packet is accounted for, and afterwards the card works as if nothing had been.
"""

import functools
import random
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from hw.bus.tlp import TlpType
from hw.config import load_machine
from hw.memory_map import BAR0_BASE, DRAM_BASE, MSI_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_WRITE_BACK
from hw.nic.drop import DropReason
from hw.nic.registers import REG, STATION_ADDRESS
from hw.nic.rx_queue import QueueError
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog
from sim.wire.frames import with_fcs

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from bare_metal import BareMetal  # noqa: E402
from card_driver import CardDriver  # noqa: E402

CONFIG = load_machine("tiny")
NIC_PERIOD = CONFIG.period_ticks("nic")
DRAM_END = DRAM_BASE + (CONFIG.dram.size_mib << 20)

RING, DESCRIPTORS = 0x8000, 64
BUFFERS, BUFFER_BYTES = 0x20000, 1024
ETHERTYPE = b"\x88\xb5"  # for experiments (IEEE 802)
VECTOR = 0x40


class Station:
    """A card, its driver on core 0 and a wire. Interrupts are sent and stay pending."""

    def __init__(self, seed: int = 1):
        self.engine = NativeEngine(build_native(Design(CONFIG)))
        self.bench = BareMetal(self.engine)
        self.bench.mask_interrupts(0)
        self.driver = CardDriver(self.bench, RING, DESCRIPTORS)
        self.rng = random.Random(seed)
        self.frames: dict[int, bytes] = {}  #: without FCS, by packet id

    def fill_ring(self, publish: bool = True) -> None:
        """Give the card all its buffers, or only write their descriptors."""
        for index in range(DESCRIPTORS - 1):
            self.driver.post(BUFFERS + index * BUFFER_BYTES)
        if publish:
            self.driver.publish()

    def send(self, count: int, largest: int = BUFFER_BYTES) -> int:
        """Put frames on the wire, back to back from now on; returns the tick by which all have arrived."""
        start = self.engine.tick // NIC_PERIOD + 10
        octets = 0
        for _ in range(count):
            size = self.rng.randint(60, largest)
            packet = len(self.frames) + 1
            self.frames[packet] = STATION_ADDRESS + self.rng.randbytes(6) + ETHERTYPE + self.rng.randbytes(size - 14)
            self.engine.push_frame(with_fcs(self.frames[packet]), packet, start)
            octets += size + 24
        return int((start + octets * CONFIG.cycles_per_byte(CONFIG.nic.line_gbps) + 10) * NIC_PERIOD)

    def work_until(self, tick: int) -> None:
        """Have core 0 do nothing until then."""
        cycles = tick // CONFIG.period_ticks("core") - self.bench.cycle()
        if cycles > 0:
            self.bench.execute(0, cycles)
            self.bench.complete(0, self.bench.fence(0))

    def log(self) -> EventLog:
        """The event log."""
        return self.bench.log()

    def fates(self) -> dict[int, list[str]]:
        """Everything that became of each packet, by its id."""
        log = self.log()
        result: dict[int, list[str]] = defaultdict(list)
        for probe in log.manifest.probes:
            if probe.path.startswith("nic.rx.write_back"):
                for packet in log.select(probe.path)["packet"].tolist():
                    result[packet].append("delivered")
            elif probe.path.startswith("nic.") and probe.path.endswith("drop"):
                for event in log.select(probe.path):
                    result[int(event["packet"])].append(DropReason(int(event["reason"])).name)
        return result

    def check_accounts(self) -> Counter:
        """One thing became of every packet; returns how often each did."""
        fates = self.fates()
        assert {packet: len(fates[packet]) for packet in self.frames} == dict.fromkeys(self.frames, 1)
        return Counter(fates[packet][0] for packet in self.frames)

    def check_received(self, packets: list[int]) -> None:
        """Core 0 finds these packets, and no more, in the ring from its start on, by loads."""
        for index, packet in enumerate(packets):
            frame = self.frames[packet]
            done = RX_WRITE_BACK.unpack(self._load(self.driver.descriptor(index), DESCRIPTOR_BYTES))
            assert (done["dd"], done["eop"], done["length"]) == (1, 1, len(frame))
            buffer = BUFFERS + index * BUFFER_BYTES
            got = b"".join(self._load(buffer + at, 64) for at in range(0, len(frame), 64))
            assert got[: len(frame)] == frame
        behind = RX_WRITE_BACK.unpack(self._load(self.driver.descriptor(len(packets)), DESCRIPTOR_BYTES))
        assert behind["dd"] == 0

    def _load(self, address: int, size: int) -> bytes:
        data = self.bench.complete(0, self.bench.load(0, address, size))
        assert isinstance(data, bytes)
        return data


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
    station = Station(seed=delay)
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
    station = Station()
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
    errors = station.log().select("nic.rx.queue_error")["error"].tolist()
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
