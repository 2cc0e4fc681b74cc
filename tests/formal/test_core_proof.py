"""The L1 cache of a core and the way to it: quiet implies stable. (Ports and other parts have proofs of their own.)"""

from amaranth.hdl import Cat, Const

from hw.config import load_machine
from hw.cpu.load_arbiter import LoadArbiter
from hw.mem.l1 import L1Cache
from tests.formal.prove import prove_quiet

SMALL = load_machine(
    "tiny", ["core.count=1", "core.load_queue=2", "core.store_buffer=2", "l1.size_kib=1", "l1.mshrs=2"]
)
DOMAIN = "core0"


def test_load_arbiter_quiet():
    """Covered: a load that was offered stays so."""
    dut = LoadArbiter(DOMAIN)
    prove_quiet(dut, domain=DOMAIN, cover_depth=6, outstanding=dut.load.valid, planted={"never works": Const(1)})


def test_l1_quiet():
    """Covered: every MSHR waits for its line."""
    dut = L1Cache(SMALL.l1, SMALL.core, DOMAIN)
    passes = dut._valid | dut._answer | dut._send | dut._modify | dut.answers.busy | dut._draining
    port = dut.port
    ports = (*(getattr(dut.tilelink, channel) for channel in "abcde"), port.load, port.store, port.atomic)
    active = passes | Cat(port.valid for port in ports).any()
    active_but_atomic = passes | Cat(port.valid for port in ports[:-1]).any()
    prove_quiet(
        dut,
        domain=DOMAIN,
        cover_depth=12,
        outstanding=~dut.misses.free & ~dut.misses.unissued,
        planted={
            "forgets misses not issued": dut.quiet | (dut.misses.unissued & ~active),
            "forgets to retire a miss": dut.quiet | (dut._draining & ~dut._valid),
            "forgets the write of an atomic": dut.quiet | dut._modify,
            "forgets atomics": dut.quiet | (port.atomic.valid & ~active_but_atomic),
            "forgets what arrives": dut.quiet | (dut.tilelink.d.valid & ~dut._valid),
        },
    )
