"""DRAM controller of a small geometry: quiet implies stable, and what its queue relies on."""

import dataclasses
from types import SimpleNamespace

import pytest
from amaranth.hdl import Cat, Signal

from hw.config import DramConfig, load_machine
from hw.lib.time import NOW_WIDTH
from hw.mem import dram_delay, dram_timing
from hw.mem.dram import DramController
from tests.formal.prove import ProofFailed, prove_quiet

MACHINE = load_machine("tiny")
#: At 800 MHz, a way in of two cycles and one more of the burst.
SMALL = dataclasses.replace(
    MACHINE.dram,
    **{"bank_groups": 2, "banks_per_group": 1, "queue": 2, "CL": 2, "CWL": 1, "tRCD": 2, "tRP": 1, "tRAS": 3},
    **{"tRFC": 2, "tREFI": 40, "tFAW": 4, "tWR": 1, "tWTR_S": 1, "tWTR_L": 1, "tRTP": 1, "tCCD_L": 4, "tRRD_L": 4},
    **{"controller_ns": 2.5, "phy_ns": 1.25},
)
#: Without either.
NEAR = dataclasses.replace(SMALL, controller_ns=0.0, phy_ns=0.0)


def controller(dram: DramConfig) -> DramController:
    return DramController(dataclasses.replace(MACHINE, dram=dram))


def invariants(dut: DramController) -> list:
    """What holds in every reachable state."""
    queue = dut.queue
    no_gaps = (queue.valid & (queue.valid + 1))[: len(queue.valid)] == 0
    writes = queue.valid & queue.write
    held = dut._held_writes == sum(writes[index] for index in range(len(writes)))
    waits_for_older = []
    for index, entry in enumerate(queue._entries):
        older = Cat(queue._entries[i].place == entry.place for i in range(index))
        waits_for_older.append(~(queue.valid[index] & queue.blocked[index]) | older.any())
    return [no_gaps, held, *waits_for_older]


CLOSED = dataclasses.replace(NEAR, page_policy="closed")
RANKS = dataclasses.replace(NEAR, ranks=2, mapping="group column rank bank row", command_clocks=2, tPPD=2)


@pytest.mark.parametrize("dram", (SMALL, NEAR, CLOSED, RANKS), ids=("far", "near", "closed", "ranks"))
def test_quiet(dram):
    """Covered: a request waits for its bank."""
    dut = controller(dataclasses.replace(dram, queue=3))
    idle = ~dut.queue.valid[0]
    planted = {
        "forgets bursts": dut.quiet | idle & ~dut.port.request.valid,
        "forgets what arrives": dut.quiet | idle & dut.data.quiet,
        "forgets more requests": dut.quiet | dut.command_timer.armed & dut.data.quiet,
    }
    prove_quiet(dut, domain="dram", invariants=invariants(dut), cover_depth=10, outstanding=~idle, planted=planted)


def test_finds_late_timer(monkeypatch):
    """Planted: the controller says it may sleep one edge longer than its request waits."""
    right = dram_timing._latest
    monkeypatch.setattr(dram_timing, "_latest", lambda m, *deadlines: right(m, *deadlines) + 1)
    with pytest.raises(ProofFailed, match="quiet"):
        prove_quiet(controller(SMALL), domain="dram", mode="bmc", depth=10, cover_depth=None)


def test_finds_missing_timer(monkeypatch):
    """Planted: nobody tells the engine when a request has come through to the queue."""
    unseen = SimpleNamespace(armed=Signal(), deadline=Signal(NOW_WIDTH))
    monkeypatch.setattr(dram_delay, "Timer", lambda domain: unseen)
    with pytest.raises(ProofFailed, match="quiet stays"):
        prove_quiet(controller(SMALL), domain="dram", mode="bmc", depth=6, cover_depth=None)
