"""The MMU of the smallest size: quiet implies stable."""

import dataclasses

from hw.config import load_machine
from hw.cpu.mmu import Mmu
from tests.formal.prove import prove_quiet

SMALL = dataclasses.replace(
    load_machine("tiny").tlb, l1_4k=4, l1_2m=2, l1_1g=2, l1_ways=2, l2=2, l2_ways=1, l2_1g=1, walk_cache=1, l2_latency=4
)
DOMAIN = "core0"


def test_quiet():
    """Covered: a walk waits for its load."""
    dut = Mmu(SMALL, DOMAIN, 1 << 20)
    prove_quiet(
        dut,
        domain=DOMAIN,
        cover_depth=13,
        outstanding=dut.walker._in_flight,
        planted={
            "forgets misses": dut.quiet | dut._missed,
            "forgets which page was used last": dut.quiet | dut.l1_4k.changes | dut.l1_1g.changes,
            "forgets answers to the walker": dut.quiet | (dut.walker._in_flight & dut.done_valid),
            "forgets INVLPG": dut.quiet | dut.port.forget,
        },
    )
