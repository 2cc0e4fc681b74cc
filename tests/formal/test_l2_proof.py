"""An L2 cache of the smallest size: quiet implies stable."""

from hw.config import load_machine
from hw.mem.l2 import L2Cache
from tests.formal.prove import prove_quiet

SMALL = load_machine(
    "tiny",
    [
        "l1.size_kib=1",
        "l1.ways=2",
        "l1.mshrs=2",
        "l1i.mshrs=1",
        "l2.size_kib=1",
        "l2.ways=2",
        "l2.prefetches=1",
        "l2.releases=2",
    ],
)


def test_l2_quiet():
    """Covered: the last level is asked for a line, and the L1 probed, and both wait."""
    dut = L2Cache(SMALL, "core0", hit_cycles=6)
    prove_quiet(
        dut,
        domain="core0",
        cover_depth=14,
        outstanding=dut._probing,
        planted={
            "forgets requests on their way": dut.quiet | (dut.acquires.travelling & ~dut._valid),
            "forgets Releases": dut.quiet | (dut.releases.valid & ~dut._valid),
            "forgets what arrives": dut.quiet | (dut.tilelink.d.valid & ~dut._valid),
        },
    )
