"""Two channels of two ranks: the run of the other engine tests, and streams that one channel could not carry."""

import dataclasses
import sys
from pathlib import Path

import pytest

from hw.config import load_machine
from hw.mem.dram_timing import DramCommand
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import build_native
from sim.check.jedec import check_dram
from sim.engine.engine import Jump
from sim.engine.native import NativeEngine
from sim.session import observe

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import mixed_run  # noqa: E402

LINE = 64
CONFIG = load_machine(
    "tiny",
    [
        "dram.channels=2",
        "dram.ranks=2",
        "dram.mapping=channel group column bank rank row",
        "dram.channel_hash=true",
        "dram.command_clocks=2",
        "dram.tPPD=2",
    ],
)


@pytest.fixture(scope="module")
def build():
    return build_native(Design(CONFIG))


def test_jumps_change_nothing(build):
    """The same log with every edge executed, and with those of each channel left out that do nothing."""

    def run(jump):
        return NativeEngine(build, jump=jump).execute(lambda engine: observe(engine, **mixed_run.job()))

    every, some = run(Jump.OFF), run(Jump.ALL)
    assert some.log_sha256 == every.log_sha256 and some.cycles == every.cycles
    assert set(some.delivered) == mixed_run.DELIVERED
    served = [some.counters[f"dram{channel}.reads"] for channel in range(2)]
    assert sum(served) == some.counters["llc.dram_reads"] and min(served) > 0.3 * max(served)
    assert some.counters["dram0.out_of_range"] == some.counters["dram1.out_of_range"] == 0


def test_every_line_keeps_its_data(build):
    """Written, driven out by others, read back: across all channels, ranks and banks."""
    bench = BareMetal(NativeEngine(build))
    # Every seventh line of the upper half: five times what the caches hold
    lines = range(CONFIG.dram.lines // 2, CONFIG.dram.lines, 7)
    for line in lines:
        bench.store(0, line * LINE, (line * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little"))
    bench.settle(0)
    for line in lines:
        assert bench.complete(0, bench.load(0, line * LINE)) == line * 0x9E3779B97F4A7C15 % 2**64
    log = bench.log()
    check_dram(CONFIG.dram, log)
    for channel in range(2):
        commands = log.select(f"dram{channel}.issued")
        reads = commands[commands["command"] == DramCommand.RD.value]
        assert set(reads["bank"] // CONFIG.dram.banks) == {0, 1}
        assert len(set(reads["bank"])) == CONFIG.dram.channel_banks


def test_the_upper_bound_of_refreshes_is_checked(build):
    """Planted: a check that expects them ten times as often objects."""
    bench = BareMetal(NativeEngine(build))
    bench.execute(0, 30_000)
    bench.settle(0)
    bench.load(0, LINE)
    bench.settle(0)
    check_dram(CONFIG.dram, bench.log())
    often = dataclasses.replace(CONFIG.dram, tREFI=CONFIG.dram.tREFI // 12, tRFC=1)
    with pytest.raises(RuntimeError, match=r"^channel 0: DRAM REF to bank 4 .* rank 1 had no refresh for"):
        check_dram(often, bench.log())
