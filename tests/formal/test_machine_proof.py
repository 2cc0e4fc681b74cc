"""The whole machine, each part of the smallest size: an edge of a quiet domain may be skipped, as the engines do."""

from collections.abc import Iterator

import pytest
from amaranth.hdl import Module, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw import machine as machine_module
from hw.bus.core import CoreHost
from hw.bus.wire import WireStream
from hw.config import load_machine
from hw.lib.crossing import Crossing
from hw.machine import Machine
from hw.pcie import root_complex
from tests.formal.prove import prove_quiet
from tests.formal.test_dram_proof import invariants as dram_invariants
from tests.formal.test_nic_proof import with_some_functions

SMALL = load_machine(
    "tiny",
    [
        "core.count=1",
        "core.load_queue=2",
        "core.store_buffer=2",
        "l1.size_kib=1",
        "l1.mshrs=2",
        "llc.size_kib=1",
        "llc.ways=2",
        "llc.ddio_ways=1",
        "llc.slots=2",
        "llc.latency=8",
        "llc.snoop_filter_lines=2",
        "llc.snoop_filter_ways=1",
        "dram.queue=2",
        "dram.banks_per_group=1",
        "pcie.posted_credits=1",
        "pcie.non_posted_credits=1",
        "pcie.completion_credits=1",
        "pcie.latency_ns=0.0",
        "nic.read_tags=1",
        "nic.packet_buffer_kib=1",
        "nic.tx_packet_buffer_kib=1",
        "nic.max_frame=512",
        "nic.queues=1",
        "nic.payload_reads=2",
    ],
)


class OneDomain(wiring.Component):
    """A machine with the quiet and the time of one of its domains."""

    def __init__(self, domain: str):
        self.machine = machine = Machine(SMALL)
        with_some_functions(machine.nic)
        self.quiet = machine.quiet[domain]
        if domain in machine.now:
            self.now = machine.now[domain].now
        super().__init__({"host": In(CoreHost()).array(len(machine.core)), "wire": In(WireStream)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.machine = machine = self.machine
        for outside, inside in zip(self.host, machine.host, strict=True):
            wiring.connect(m, wiring.flipped(outside), inside)
        wiring.connect(m, wiring.flipped(self.wire), machine.wire)
        return m


@pytest.fixture
def crossings(monkeypatch) -> list[Crossing]:
    """Those of the machine, once it is elaborated."""
    made: list[Crossing] = []

    class Kept(Crossing):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(machine_module, "Crossing", Kept)
    return made


def crossing_invariants(crossings: list[Crossing]) -> Iterator[Value]:
    """Each side shows its pointer in Gray code."""
    for crossing in crossings:
        yield crossing._produced_gray == crossing._produced ^ (crossing._produced >> 1)
        yield crossing._consumed_gray == crossing._consumed ^ (crossing._consumed >> 1)


@pytest.mark.slow
@pytest.mark.parametrize("domain", Machine(SMALL).domains)
def test_quiet(domain, crossings, monkeypatch):
    """Planted: a core whose quiet forgets the crossings at its ports."""
    monkeypatch.setattr(root_complex, "READ_LINES", 2)
    monkeypatch.setattr(root_complex, "MESSAGES", 2)
    dut = OneDomain(domain)
    core = dut.machine.core[0]

    def invariants():
        yield from crossing_invariants(crossings)
        yield from dram_invariants(dut.machine.dram[0])

    handed_over = {
        "core0": [host.operation.valid & host.operation.ready for host in dut.machine.host],
        "nic": [dut.wire.valid & dut.wire.ready],
    }
    is_core = domain == "core0"
    prove_quiet(
        dut,
        domain=domain,
        idle_inputs=handed_over.get(domain, ()),
        invariants=invariants(),
        cover_depth=8 if is_core else None,
        planted={"forgets the crossings": core.port.quiet & core.interrupts.quiet} if is_core else None,
    )
