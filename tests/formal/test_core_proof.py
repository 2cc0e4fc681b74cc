"""A core of the smallest size and its parts: quiet implies stable."""

from collections.abc import Callable

import pytest
from amaranth.hdl import Value

from hw.config import load_machine
from hw.cpu.core import Core
from hw.cpu.core_port import CorePort
from hw.cpu.interrupt_controller import InterruptController
from hw.mem.l1 import L1Cache
from tests.formal.prove import ProofFailed, prove_quiet

SMALL = load_machine(
    "tiny", ["core.count=1", "core.load_queue=2", "core.store_buffer=2", "l1.size_kib=1", "l1.mshrs=2"]
)
DOMAIN = "core0"


def host_offers(dut: Core | CorePort) -> list[Value]:
    """A core's quiet says nothing about its host, which skips no edge at which it hands over an operation."""
    return [dut.host.operation.valid & dut.host.operation.ready]


def core_port() -> CorePort:
    return CorePort(SMALL.core, SMALL.l1, 0, DOMAIN)


def l1_cache() -> L1Cache:
    return L1Cache(SMALL.l1, SMALL.core, DOMAIN)


def test_core_quiet():
    """The parts joined; what each waits for is covered below."""
    dut = Core(SMALL, 0, DOMAIN)
    prove_quiet(dut, domain=DOMAIN, idle_inputs=host_offers(dut), cover_depth=None)


def test_core_port_quiet():
    """Covered: loads are in flight, so an MMIO read cannot issue."""
    dut = core_port()
    waits_for_load = ~dut.order.idle & dut._fetched
    prove_quiet(dut, domain=DOMAIN, idle_inputs=host_offers(dut), cover_depth=8, outstanding=waits_for_load)


def quiet_but_for(dut: CorePort, *, offers: bool = True, stores: bool = True) -> Value:
    """The core port's quiet; what is False is left out."""
    happens = dut._issuing | dut._taking | dut.host.completion_valid | (dut.execute.armed & ~dut._executing)
    return (
        ~happens
        & ((dut._stalled == dut._offered) | (not offers))
        & (dut.store_buffer.quiet | (not stores))
        & dut.order.quiet
        & dut.forward_queue.quiet
    )


@pytest.mark.parametrize("forgotten", ["offers", "stores"])
def test_finds_wrong_core_port_quiet(forgotten):
    dut = core_port()
    quiet = quiet_but_for(dut, **{forgotten: False})
    with pytest.raises(ProofFailed, match="quiet"):
        prove_quiet(
            dut, domain=DOMAIN, quiet=quiet, idle_inputs=host_offers(dut), mode="bmc", depth=8, cover_depth=None
        )


def test_interrupt_controller_quiet():
    """Covered: an interrupt is pending that the core does not take."""
    dut = InterruptController(DOMAIN)
    prove_quiet(dut, domain=DOMAIN, cover_depth=4, outstanding=dut.pending)


def test_finds_wrong_interrupt_controller_quiet():
    dut = InterruptController(DOMAIN)
    with pytest.raises(ProofFailed, match="quiet"):
        prove_quiet(dut, domain=DOMAIN, quiet=~dut.message.valid, mode="bmc", depth=4, cover_depth=None)


def test_l1_quiet():
    """Covered: two lines are missed, a load waits for each."""
    dut = l1_cache()
    prove_quiet(dut, domain=DOMAIN, cover_depth=14, outstanding=~dut.misses.free & ~dut.misses.unissued)


@pytest.mark.parametrize(
    "spoilt_quiet",
    [
        pytest.param(lambda dut: dut.quiet | (dut.misses.unissued & ~busy(dut)), id="forgets misses not issued"),
        pytest.param(lambda dut: dut.quiet | (dut._draining & ~dut._valid), id="forgets to retire a miss"),
    ],
)
def test_finds_wrong_l1_quiet(spoilt_quiet: Callable[[L1Cache], Value]):
    dut = l1_cache()
    with pytest.raises(ProofFailed, match="quiet"):
        prove_quiet(dut, domain=DOMAIN, quiet=spoilt_quiet(dut), mode="bmc", depth=10, cover_depth=None)


def busy(dut: L1Cache) -> Value:
    """Something passes through the pipeline of the cache, or a message waits at one of its ports."""
    link, port = dut.tilelink, dut.port
    passes = dut._valid | dut._answer | dut._send | dut.answers.busy | dut._draining
    ports = (link.a, link.b, link.c, link.d, link.e, port.load, port.store)
    for stream in ports:
        passes = passes | stream.valid
    return passes
