"""The L1 instruction cache of the smallest size: quiet implies stable."""

from hw.config import L1iConfig
from hw.mem.l1i import L1ICache
from tests.formal.prove import prove_quiet

DOMAIN = "core0"


def test_quiet():
    """Covered: lines are awaited, and the lookup waits for an MSHR."""
    dut = L1ICache(L1iConfig(size_kib=1, ways=2, mshrs=2), DOMAIN)
    prove_quiet(
        dut,
        domain=DOMAIN,
        cover_depth=9,
        outstanding=dut._awaited.all() & dut._stuck,
        planted={
            "forgets lines to look up": dut.quiet | (dut._left.any() & ~dut.l2.done_valid & ~dut.text.cancel),
            "forgets answers": dut.quiet | (dut.l2.done_valid & ~dut._left.any() & ~dut.text.start),
            "forgets requests": dut.quiet | (dut._offered & ~dut._left.any() & ~dut.text.start & ~dut.l2.done_valid),
            "forgets to cancel": dut.quiet | dut.text.cancel,
        },
    )
