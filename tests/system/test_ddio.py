"""DDIO on and off: where they must differ, and where not.

On: a device's write updates the last level or allocates there (``llc.device_write_update``, ``_allocate``), and
software finds the packet in the cache. Off: it goes to DRAM (``llc.device_write_dram``), and software reads every line
of it from there (``llc.core_misses``, ``llc.dram_reads``), which takes longer by what DRAM takes.
"""

import functools
import sys
import tempfile
from pathlib import Path

import pytest

from hw.bus.core import OperationKind as K
from hw.bus.tilelink import LINE_BYTES
from hw.config import MachineConfig
from hw.nic.registers import REG
from sim.experiment import Experiment
from sim.wire.traffic import Traffic

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from station import BUFFER_BYTES, BUFFERS, Station  # noqa: E402
from stopwatch import Difference, Stopwatch, undisturbed  # noqa: E402
from walk import Walk  # noqa: E402


def machine(ddio: bool) -> MachineConfig:
    return undisturbed("tiny") if ddio else undisturbed("tiny", "llc.ddio=false")


@pytest.mark.parametrize("ddio", (True, False), ids=("on", "off"))
def test_the_first_look_at_a_packet(ddio):
    """Frames of two lines arrive; core 0 then loads each line, and its latency is that of the cache or of DRAM."""
    config = machine(ddio)
    station = Station(config)
    station.driver.start()
    station.fill_ring()
    station.bench.complete(0, station.bench.fence(0))
    watch, walk = Stopwatch(config, station.bench), Walk(config)
    frames, size = 3, 2 * LINE_BYTES
    counted = Difference(station.engine)
    station.work_until(station.send(frames, smallest=size, largest=size) + 4000)
    written = counted["llc.device_write_update"], counted["llc.device_write_allocate"], counted["llc.device_write_dram"]
    # The lines of the payload had not been there; the driver had written the one of the descriptors.
    assert written == ((frames, 2 * frames, 0) if ddio else (0, 0, 3 * frames))

    for line in range(2 * frames):
        address = BUFFERS + line // 2 * BUFFER_BYTES + line % 2 * LINE_BYTES
        watch.after_a_refresh()
        counted = Difference(station.engine)
        issue, completion = watch.time(0, K.LOAD, address, 8)
        if ddio:
            assert completion == walk.llc_hit(issue)
        else:
            assert completion == walk.llc_miss(issue, walk.dram(config.dram.tRCD))
        assert (counted["llc.core_hits"], counted["llc.core_misses"]) == ((1, 0) if ddio else (0, 1))
        assert counted["llc.dram_reads"] == (0 if ddio else 1)
    station.check_received([1, 2, 3])


def test_the_cards_registers_gate_ddio_where_the_machine_says_so():
    """An extension: what DCA_RXCTRL does not enable goes to DRAM, as with DDIO off; on a Xeon all goes to the cache."""
    station = Station(undisturbed("tiny", "nic.dca_gates=true"))
    station.driver.start()
    station.fill_ring()
    frames, size = 3, 2 * LINE_BYTES
    control, queue = REG.DCA_CTRL, REG.DCA_RXCTRL
    descriptors, payload = queue.DESC_DCA_EN.mask, queue.DATA_DCA_EN.mask
    received = 0
    for disabled, enabled in (
        (1, descriptors | payload),
        (0, 0),
        (0, descriptors),
        (0, payload),
        (0, descriptors | payload),
        (1, 0),
    ):
        station.driver.write(control, control.DCA_DIS.put(disabled))
        station.driver.write(queue, enabled)
        assert station.driver.read(queue) == enabled
        counted = Difference(station.engine)
        station.work_until(station.send(frames, smallest=size, largest=size) + 4000)
        received += frames
        lines = {descriptors: counted["nic.rx.write_back_tlps"], payload: 2 * frames}
        assert all(lines.values())
        into_cache = sum(count for kind, count in lines.items() if enabled & kind and not disabled)
        assert counted["llc.device_write_update"] + counted["llc.device_write_allocate"] == into_cache
        assert counted["llc.device_write_dram"] == sum(lines.values()) - into_cache
    station.check_received(list(range(1, received + 1)))


FRAMES, SIZE = 60, 300
#: Lines of the headers and payload of a frame, FCS stripped.
LINES = -(-(SIZE - 4) // LINE_BYTES)


@functools.cache
def kernel_run(ddio: bool) -> dict:
    """The kernel's path from wire to application, a packet at a time."""
    traffic = Traffic.make(size=SIZE, rate="10kpps", count=FRAMES)
    with tempfile.TemporaryDirectory() as directory:
        return Experiment("napi", machine(ddio), traffic, out=Path(directory)).run()


def test_the_kernel_reads_less_from_dram():
    """One packet at a time: payload and descriptor are still in the cache when software looks."""
    on, off = kernel_run(True), kernel_run(False)
    for run in on, off:
        assert run["packets"]["delivered"] == FRAMES
    with_ddio, without = on["counters"], off["counters"]
    lines = FRAMES * (LINES + 1)
    for counters in with_ddio, without:
        assert counters["root_complex.inbound.write_lines"] == lines

    assert with_ddio["llc.device_write_dram"] == 0
    assert with_ddio["llc.device_write_update"] + with_ddio["llc.device_write_allocate"] == lines
    assert with_ddio["llc.io_lines_evicted_unread"] == 0, "every line was used from the cache"
    assert without["llc.device_write_dram"] == lines
    assert without["llc.device_write_update"] == without["llc.device_write_allocate"] == 0

    # Without, software reads each of these lines from DRAM; with, none. (What else misses, code most of all, differs a
    # little: the lines of packets take room in the cache at other times.)
    for counter in "llc.core_misses", "llc.dram_reads", "dram0.reads":
        assert without[counter] - with_ddio[counter] >= 0.9 * lines, counter
    # Without, each goes to DRAM; with, at most as a victim later.
    for counter in "llc.dram_writes", "dram0.writes":
        assert without[counter] > with_ddio[counter], counter


def test_the_kernel_delivers_sooner():
    """By at least two accesses to DRAM: the driver reads the descriptor, and what it says before the payload.

    Not the first packet, which is the slowest: its own accesses hide behind those to code that nobody has run yet.
    """
    on, off = kernel_run(True)["latency_ns"], kernel_run(False)["latency_ns"]
    config = machine(True)
    access_ns = Walk(config).dram() * 1000 / config.clocks.dram
    for quantile in ("min", "p50", "mean"):
        assert off[quantile] - on[quantile] >= 2 * access_ns, quantile
    # One packet in ten meets a refresh or another row in either run; then a little less is left of it.
    assert off["p90"] - on["p90"] >= access_ns


def test_device_writes_allocate_in_their_ways_only():
    station = Station(machine(True))
    station.driver.start()
    station.fill_ring()
    station.work_until(station.send(120) + 8000)
    llc = station.config.llc
    writes = station.log().select("llc.device_write")
    allocated = writes[writes["hit"] == 0]
    assert len(allocated) > llc.sets * llc.ddio_ways, "more than fit"
    assert set(allocated["way"].tolist()) == set(range(llc.ways - llc.ddio_ways, llc.ways))
    assert station.engine.counters()["llc.io_lines_evicted_unread"] > 0, "they drove each other out"
