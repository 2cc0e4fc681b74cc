"""Last-level cache of the smallest size: quiet implies stable."""

import pytest

from hw.config import load_machine
from hw.mem.llc import LastLevelCache
from tests.formal.prove import prove_quiet

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
        "l2.releases=2",
    ],
)


@pytest.mark.parametrize("settings", [(), ("llc.inclusion=inclusive", "llc.replacement=random")], ids=["", "inclusive"])
def test_quiet(settings):
    """Covered: a request had its lookup and waits for DRAM or for an answer of a core."""
    dut = LastLevelCache(SMALL.replace(settings))
    prove_quiet(
        dut,
        domain="uncore",
        cover_depth=12,
        outstanding=~dut._free.all() & ~dut.lookup_timer.armed,
        planted={
            "forgets what DRAM answers": dut.quiet | dut.dram[0].response.valid,
            "forgets slots that want a pass": dut.quiet | dut._ready.any(),
            "forgets the second stage": dut.quiet | dut._s2_valid,
            "forgets GrantAcks": dut.quiet | dut.client[1].e.valid,
        },
    )
