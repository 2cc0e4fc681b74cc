"""PCI Express link and root complex of the smallest size: quiet implies stable."""

import pytest

from hw.config import load_machine
from hw.pcie import root_complex
from hw.pcie.direction import LinkDirection
from hw.pcie.root_complex import RootComplex
from tests.formal.prove import ProofFailed, prove_quiet

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
    prove_quiet(LinkDirection(SMALL), domain="nic", cover_depth=8)


@pytest.mark.parametrize(
    "spoilt_quiet",
    [
        pytest.param(lambda dut: dut.quiet | ~dut.output.valid, id="forgets beats coming in"),
        pytest.param(lambda dut: dut.quiet | ~dut.input.valid, id="forgets beats going out"),
        pytest.param(lambda dut: dut.quiet | ~dut.input.ready & ~dut.output.valid, id="forgets to note a stall"),
    ],
)
def test_finds_wrong_link_quiet(spoilt_quiet):
    with pytest.raises(ProofFailed, match="quiet"):
        dut = LinkDirection(SMALL)
        prove_quiet(dut, domain="nic", quiet=spoilt_quiet(dut), mode="bmc", depth=8, cover_depth=None)


@pytest.fixture
def few_slots(monkeypatch):
    """The root complex with fewer slots: none of them differs from the others."""
    monkeypatch.setattr(root_complex, "READ_LINES", 2)
    monkeypatch.setattr(root_complex, "MESSAGES", 2)


def test_root_complex_quiet(few_slots):
    prove_quiet(RootComplex(SMALL), domain="uncore", cover_depth=6)


@pytest.mark.parametrize(
    "spoilt_quiet",
    [
        pytest.param(lambda dut: dut.quiet | dut.memory.write_done, id="forgets finished writes"),
        pytest.param(lambda dut: dut.quiet | ~dut.link.receive.valid, id="forgets all but what comes in"),
        pytest.param(lambda dut: dut.quiet | ~dut.link.receive.ready, id="forgets the other ports"),
    ],
)
def test_finds_wrong_root_complex_quiet(few_slots, spoilt_quiet):
    with pytest.raises(ProofFailed, match="quiet"):
        dut = RootComplex(SMALL)
        prove_quiet(dut, domain="uncore", quiet=spoilt_quiet(dut), mode="bmc", depth=6, cover_depth=None)
