"""PCI Express link and root complex of the smallest size: quiet implies stable."""

from hw.config import load_machine
from hw.pcie import root_complex
from hw.pcie.direction import LinkDirection
from hw.pcie.iommu import iommu
from hw.pcie.root_complex import RootComplex
from tests.formal.prove import prove_quiet

SMALL = load_machine(
    "tiny",
    [
        "core.count=1",
        "nic.read_tags=1",
        "pcie.posted_credits=1",
        "pcie.non_posted_credits=1",
        "pcie.completion_credits=1",
        "pcie.latency_ns=0.0",
    ],
)


def test_link_quiet():
    dut = LinkDirection(SMALL)
    planted = {
        "forgets beats coming in": dut.quiet | ~dut.output.valid,
        "forgets beats going out": dut.quiet | ~dut.input.valid,
        "forgets to note a stall": dut.quiet | ~dut.input.ready & ~dut.output.valid,
    }
    prove_quiet(dut, domain="nic", cover_depth=8, planted=planted)


def test_root_complex_quiet(monkeypatch):
    """With fewer slots: none of them differs from the others."""
    monkeypatch.setattr(root_complex, "READ_LINES", 2)
    monkeypatch.setattr(root_complex, "MESSAGES", 2)
    dut = RootComplex(SMALL)
    planted = {
        "forgets finished writes": dut.quiet | dut.memory.write_done,
        "forgets all but what comes in": dut.quiet | ~dut.link.receive.valid,
        "forgets interrupts between cores": dut.quiet | dut.mmio_bridge.interrupt.valid,
        "forgets the other ports": dut.quiet | ~dut.link.receive.ready,
    }
    prove_quiet(dut, domain="uncore", cover_depth=6, planted=planted)


def test_root_complex_with_iommu_quiet(monkeypatch):
    """One walk, two packets inside, whatever the caches answer."""
    monkeypatch.setattr(root_complex, "READ_LINES", 2)
    monkeypatch.setattr(root_complex, "MESSAGES", 2)
    monkeypatch.setattr(iommu, "REQUESTS", 2)
    monkeypatch.setattr(iommu, "BEATS", 2)
    settings = ["enabled=true", "iotlb_entries=1", "iotlb_ways=1", "walk_cache=1", "walks=1", "lookup_cycles=2"]
    dut = RootComplex(SMALL.replace([*(f"iommu.{setting}" for setting in settings), "iommu.walk_read_ns=3.0"]))
    unit = dut.iommu
    planted = {
        "forgets answers to walks": dut.quiet | unit.response_valid,
        "forgets accesses to its registers": dut.quiet | unit.registers.access,
        "forgets lookups": dut.quiet | unit.caches.look,
        "forgets fills": dut.quiet | unit.caches.moving,
        "forgets faults": dut.quiet | unit.register_file.fault_valid,
    }
    prove_quiet(dut, domain="uncore", cover_depth=6, planted=planted)
