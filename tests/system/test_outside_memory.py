"""A core that addresses what is no memory: refused, counted, told in one line; never a hang."""

import pytest

from hw.config import load_machine
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.engine import PageFaultError
from sim.engine.native import NativeEngine

CONFIG = load_machine("tiny")
END = CONFIG.dram.size_mib << 20


@pytest.fixture
def bench():
    return BareMetal(NativeEngine(build_native(Design(CONFIG))))


@pytest.mark.parametrize("address", [END, END + 0x1238, (1 << 40) - 8])
@pytest.mark.parametrize("kind", ["LOAD", "STORE"])
def test_beyond_the_end(bench, kind, address):
    bench.store(0, END - 8, b"the last")
    bench.settle(0)
    if kind == "LOAD":
        bench.load(0, address)
    else:
        bench.store(0, address, b"nowhere.")
    told = rf"^core 0, tick \d+: {kind} of 8 bytes at 0x{address:x} .*: no memory there$"
    with pytest.raises(PageFaultError, match=told):
        bench.settle(0)
    assert bench.engine.counters()["dram0.out_of_range"] == 0


def test_the_last_bytes_are_memory(bench):
    bench.store(0, END - 8, b"the last")
    bench.prefetch(0, END)  # dropped, as a part does
    bench.settle(0)
    assert bench.complete(0, bench.load(0, END - 8)) == int.from_bytes(b"the last", "little")
    assert bench.engine.counters()["core0.port.outside"] == 0
