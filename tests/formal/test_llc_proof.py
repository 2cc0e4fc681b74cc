"""Last-level cache of the smallest size: quiet implies stable."""

import pytest

from hw.config import load_machine
from hw.mem.llc import LastLevelCache
from tests.formal.prove import ProofFailed, prove_quiet

SMALL = load_machine(
    "tiny",
    [
        "core.count=2",
        "llc.size_kib=1",
        "llc.ways=2",
        "llc.ddio_ways=1",
        "llc.slots=2",
        "llc.latency=8",
        "llc.snoop_filter_lines=4",
        "llc.snoop_filter_ways=2",
    ],
)


def test_quiet():
    """Covered: a request had its lookup and waits for DRAM or for an answer of a core."""
    dut = LastLevelCache(SMALL)
    waits = ~dut._free.all() & ~dut.lookup_timer.armed
    prove_quiet(dut, domain="uncore", cover_depth=12, outstanding=waits)


@pytest.mark.parametrize(
    "spoilt_quiet",
    [
        pytest.param(lambda dut: dut.quiet | dut.dram.response.valid, id="forgets what DRAM answers"),
        pytest.param(lambda dut: dut.quiet | dut._ready.any(), id="forgets slots that want a pass"),
    ],
)
def test_finds_wrong_quiet(spoilt_quiet):
    dut = LastLevelCache(SMALL)
    with pytest.raises(ProofFailed, match="quiet"):
        prove_quiet(dut, domain="uncore", quiet=spoilt_quiet(dut), mode="bmc", depth=8, cover_depth=None)
