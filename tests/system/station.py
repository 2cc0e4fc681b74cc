"""A machine with traffic for its card and a driver that receives it, for tests of the card in the whole machine."""

import random
from collections import Counter, defaultdict

from card_driver import CardDriver

from hw.config import INTER_FRAME_GAP_BYTES, PREAMBLE_BYTES, MachineConfig
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_WRITE_BACK
from hw.nic.drop import DropReason
from hw.nic.registers import STATION_ADDRESS
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog
from sim.wire.frames import FCS_BYTES, with_fcs

__all__ = ["BUFFERS", "BUFFER_BYTES", "DESCRIPTORS", "LEAST_BYTES", "RING", "Station", "random_frame"]

RING, DESCRIPTORS = 0x8000, 64
BUFFERS, BUFFER_BYTES = 0x20000, 1024

ETHERTYPE = b"\x88\xb5"  # for experiments (IEEE 802)
#: Of a frame without FCS.
LEAST_BYTES = 60
#: On the wire beside a frame without FCS.
WIRE_BYTES = PREAMBLE_BYTES + FCS_BYTES + INTER_FRAME_GAP_BYTES


def random_frame(rng: random.Random, size: int) -> bytes:
    """A frame of ``size`` bytes, without FCS, that the card accepts and has nothing to say about."""
    return STATION_ADDRESS + rng.randbytes(6) + ETHERTYPE + rng.randbytes(size - 14)


class Station:
    """A card, its driver on core 0 and a wire. Interrupts are sent and stay pending."""

    def __init__(self, config: MachineConfig, seed: int = 1):
        self.config = config
        self.nic_period = config.period_ticks("nic")
        self.engine = NativeEngine(build_native(Design(config)))
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

    def send(self, count: int, smallest: int = LEAST_BYTES, largest: int = BUFFER_BYTES) -> int:
        """Put frames of random sizes on the wire, back to back from now on.

        Returns:
            The tick by which all have arrived.
        """
        start = self.engine.tick // self.nic_period + 10
        octets = 0
        for _ in range(count):
            size = self.rng.randint(smallest, largest)
            packet = len(self.frames) + 1
            self.frames[packet] = random_frame(self.rng, size)
            self.engine.push_frame(with_fcs(self.frames[packet]), packet, start)
            octets += size + WIRE_BYTES
        return int((start + octets * self.config.cycles_per_byte(self.config.nic.line_gbps) + 10) * self.nic_period)

    def work_until(self, tick: int) -> None:
        """Have core 0 do nothing until then."""
        cycles = tick // self.config.period_ticks("core") - self.bench.cycle()
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
