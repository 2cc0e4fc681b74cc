"""The IOMMU in the whole machine: packets are the same however they are translated, what is not mapped is out of reach
and reported, engines agree, and reads of the card slow down beyond what the IOTLB covers.
"""

import itertools
from unittest.mock import patch

import pytest

from hw.config import ConfigError, load_machine
from hw.memory_map import BAR0_BASE, IOMMU_BASE, IOMMU_BYTES, MSI_BASE, MSI_BYTES
from hw.pcie.iommu.registers import DMAR, capabilities
from sim.bare_metal import BareMetal
from sim.bench.iommu import OFFSET, Reads, iommu_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.amaranth import run_on_amaranth
from sim.engine.engine import Jump
from sim.engine.native import NativeEngine
from sim.observe.difference import first_difference
from sim.session import Software, observe
from sim.wire.frames import generate, with_fcs
from sw.ixgbe.ring import IxgbeRing
from sw.linux.iommu import IOMMU_MODES, IntelIommu
from sw.linux.iommu.iova import DMA_32BIT_END, IovaDomain, IovaError

KIB = 1 << 10
TRANSLATION = "root_complex.iommu."

#: One build for all: ``tiny`` with an IOMMU of 8 entries, and a fast port.
MACHINE = iommu_machine(load_machine("tiny"))


@pytest.fixture(scope="module")
def build():
    return build_native(Design(MACHINE))


def job(path: str, mode: str, count: int = 6, size: int = 200) -> dict:
    application = path.partition(":")[2] or None
    options = {} if mode == "off" else {"iommu": mode}
    return {
        "machine": MACHINE,
        "frames": [(1500 * n, with_fcs(frame)) for n, frame in enumerate(generate(size, count, 1))],
        "software": Software(path.partition(":")[0], application, options),
    }


def run(build, jump=Jump.ALL, **arguments):
    engine = NativeEngine(build, jump=jump)
    return engine.execute(lambda engine: observe(engine, **arguments))


@pytest.mark.parametrize("path", ["dpdk:echo", "xdp:tx", "af-xdp:echo"])
def test_what_is_sent_is_the_same_however_it_is_translated(build, path):
    """Buffers are read and written, and descriptors, at addresses that are not theirs: none is lost or mixed up."""
    runs = {mode: run(build, **job(path, mode)) for mode in IOMMU_MODES}
    frames = {mode: [data for _, _, data in made.sent] for mode, made in runs.items()}
    assert len(frames["off"]) == 6
    for mode, made in runs.items():
        assert frames[mode] == frames["off"], mode
        counted = {name: made.counters[TRANSLATION + name] for name in ("lookups", "hits_4k", "hits_2m")}
        assert (counted["lookups"] > 0) == (mode != "off")
        assert (counted["hits_4k"] > 0) == (mode == "4k")
        assert (counted["hits_2m"] > 0) == (mode == "2m")
        assert not made.blocked
        assert not made.counters[TRANSLATION + "register_file.faults"]


def test_the_socket_gets_the_same_bytes(build):
    runs = {mode: run(build, **job("napi", mode)) for mode in IOMMU_MODES}
    for mode, made in runs.items():
        assert sorted(made.delivered) == [1, 2, 3, 4, 5, 6], mode
        assert not made.dropped


def test_the_cards_addresses_are_not_physical_ones(build):
    made = run(build, **job("napi", "4k"))
    probe = next(p.path for p in made.manifest.probes if p.path.startswith("nic.rx") and p.path.endswith("dma_write"))
    card = {int(address) for address in made.select(probe)["address"]}
    memory = {int(address) for address in made.select("root_complex.inbound.dma_write")["address"]}
    assert min(card) > MACHINE.dram.size_mib << 20 > max(memory)


# Faults


def test_a_driver_that_forgot_to_map_its_ring_is_found(build):
    with patch.object(IxgbeRing, "map", lambda ring, dma: setattr(dma, "for_kernel", True)):
        made = run(build, **job("napi", "4k"))
    assert not made.delivered
    assert made.counters[TRANSLATION + "register_file.faults"] > 0
    assert any("[DMA Read NO_PASID] Request device [01:00.0]" in line for line in made.blocked)
    assert any("[fault reason 0x06] PTE Read access is not set" in line for line in made.blocked)
    assert made.counters["root_complex.inbound.unsupported_reads"] > 0


def test_a_driver_that_forgot_to_map_its_buffers_is_found(build):
    with patch.object(IntelIommu, "map_pages", lambda iommu: None):
        made = run(build, **job("napi", "4k"))
    writes = [line for line in made.blocked if "DMA Write" in line]
    assert writes and all("[fault reason 0x05] PTE Write access is not set" in line for line in writes)
    faults = made.counters[TRANSLATION + "register_file.faults"]
    assert faults == made.counters["root_complex.inbound.unsupported_writes"] == 6 * 3  # three TLPs each
    # The card does not know: posted writes are not answered. So software is told of packets whose bytes are not there.
    assert len(made.written_back()) == 6


def test_a_machine_without_one_refuses_to_translate():
    machine = load_machine("tiny")
    with pytest.raises(ConfigError, match=r"--iommu 4k needs a machine with an IOMMU, which tiny is not; --set iommu"):
        Software(options={"iommu": "4k"}).system(None, machine, lambda note: None)


def test_a_frame_that_cannot_be_read_is_not_sent_and_those_behind_it_are(build):
    reads = Reads(build, MACHINE, "4 KiB", 16 * KIB)
    reads._order[:6] = [0, 1, 1000, 2, 1001, 3]  # lines; the window has 256
    reads._post(6)
    reads._ring()
    reads._pause(10_000)
    counters = reads.bench.engine.counters()
    assert counters["nic.tx.dma.packets_dropped"] == counters[TRANSLATION + "register_file.faults"] == 2
    log = reads.bench.log()
    assert [int(packet) for packet in log.select("nic.tx_mac.frame")["packet"]] == [1, 2, 4, 6]
    faults = log.select("root_complex.iommu.register_file.fault_recorded")
    assert [int(address) for address in faults["address"]] == [OFFSET + line * 64 & -4096 for line in (1000, 1001)]


def test_registers_are_reached_by_aligned_accesses_in_their_window_alone(build):
    bench = BareMetal(NativeEngine(build))

    def read(offset: int, size: int) -> int:
        return bench.complete(0, bench.mmio_read(0, IOMMU_BASE + offset, size))

    cap, _ = capabilities(MACHINE.iommu.address_width)
    assert read(DMAR.CAP.offset, 8) == cap
    assert read(DMAR.CAP.offset, 4) == cap % (1 << 32)
    assert read(DMAR.CAP.offset + 4, 4) == cap >> 32
    assert read(IOMMU_BYTES - 8, 8) == 0
    ones = (1 << 64) - 1
    assert read(DMAR.CAP.offset + 4, 8) == ones  # not aligned
    assert read(IOMMU_BYTES, 8) == read(-8, 8) == ones
    bench.mmio_write(0, IOMMU_BASE + DMAR.RTADDR.offset, 0x5000, 8)
    assert read(DMAR.RTADDR.offset, 8) == 0x5000


# Engines


def test_engines_and_jumps_agree(build):
    arguments = job("napi", "4k", count=2, size=64)
    reference = run(build, Jump.OFF, **arguments)
    for jump in (Jump.ALL, Jump.RANDOM):
        again = run(build, jump, **arguments)
        assert first_difference(reference.manifest, again.log, reference.log) is None


@pytest.mark.slow
def test_amaranths_own_simulator_agrees(build):
    arguments = job("napi", "2m", count=1, size=64)  # few tables, as booting takes most of the time
    native = run(build, **arguments)
    other = run_on_amaranth(Design(MACHINE), lambda engine: observe(engine, **arguments))
    assert first_difference(native.manifest, other.log, native.log) is None
    assert native.log_sha256 == other.log_sha256


# The IOTLB's reach


def test_reads_slow_down_beyond_the_iotlb_and_large_pages_restore_them(build):
    """pcie-bench's experiment, around 8 entries of 4 KiB."""
    with patch.multiple("sim.bench.iommu", WARM=200, TIMED=600, SINGLE=30, RING=1024):
        rows = {
            (mode, size): Reads(build, MACHINE, mode, size * KIB).measure()
            for mode, sizes in {"off": (128,), "4 KiB": (16, 28, 64, 128), "2 MiB": (16, 128)}.items()
            for size in sizes
        }
    gbps = {key: row["gbps"] for key, row in rows.items()}
    ns = {key: row["ns"] for key, row in rows.items()}
    # Within its reach translation costs next to nothing, beyond it much, and the more the more pages there are
    assert gbps["4 KiB", 28] > 0.95 * gbps["4 KiB", 16]
    assert gbps["4 KiB", 64] < 0.8 * gbps["4 KiB", 28]
    assert gbps["4 KiB", 128] < gbps["4 KiB", 64]
    # Pages of 2 MiB give it back
    assert gbps["2 MiB", 128] > 0.95 * gbps["off", 128]
    assert gbps["2 MiB", 128] > 0.97 * gbps["2 MiB", 16]
    # One by one: a hit adds the lookup, a miss the walk's read
    lookup = 2 * MACHINE.iommu.lookup_cycles / MACHINE.clocks.uncore * 1000
    walk = MACHINE.iommu.walk_read_ns
    assert ns["off", 128] <= ns["2 MiB", 128] <= ns["off", 128] + lookup
    assert ns["4 KiB", 16] < ns["off", 128] + lookup
    assert ns["4 KiB", 128] > ns["off", 128] + walk


# Addresses


def test_addresses_for_the_card_come_from_the_top_and_spare_what_is_not_memory():
    domain = IovaDomain()
    ranges = [domain.alloc(size) for size in (4096, 8192, 12288, 1 << 24, 1 << 27)]
    assert ranges[0] == DMA_32BIT_END - 4096
    assert ranges[1] == DMA_32BIT_END - 4 * 4096  # aligned to its size
    assert ranges[2] % 16384 == 0
    taken = [(MSI_BASE, MSI_BASE + MSI_BYTES), (BAR0_BASE, BAR0_BASE + 1)]
    taken += [(start, start + size) for start, size in zip(ranges, (4096, 8192, 12288, 1 << 24, 1 << 27), strict=True)]
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    with pytest.raises(IovaError, match="no range of 4294967296 bytes"):
        domain.alloc(1 << 32)
