"""The waves of a run of three packets show what the event log says, at the same cycles."""

import re
from fractions import Fraction

import numpy as np
import pytest
from pywellen import Waveform

from hw.config import load_machine
from sim.build.manifest import Manifest
from sim.experiment import Experiment
from sim.observe.log import EventLog
from sim.observe.waves import gtkwave_view, picoseconds, probe_signal
from sim.wire.frames import at_rate, udp_frame
from sim.wire.traffic import Traffic

PACKET = 2
#: Names that no person gave.
INVENTED = re.compile(r"\.(_|\$)|\$auto")


class Waves:
    """``waves.fst`` by signal names."""

    def __init__(self, path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self.variables = {variable.full_name: variable for variable in Waveform(str(path)).all_vars()}
        self._rises: dict[str, list[int]] = {}

    def rises(self, domain: str) -> list[int]:
        """Picoseconds at which a clock rises."""
        if domain not in self._rises:
            changes = self.variables[f"nicscope.clk_{domain}"].tv
            self._rises[domain] = [at for at, value in changes if int(value) == 1]
        return self._rises[domain]

    def just_before(self, signal: str, picosecond: int) -> int:
        """Value of a signal for an edge at ``picosecond``."""
        return int(self.variables[signal].signal.value_at(picosecond - 1))

    def events(self, path: str) -> list[tuple[int, ...]]:
        """Cycle and fields of every event of a probe, as someone sees them who looks at the waves alone."""
        probe = self.manifest.probes[self.manifest.probe_number(path)]
        domain = self.manifest.domains[probe.domain]
        period = Fraction(domain.period * 10**12, self.manifest.ticks_per_second)
        return [
            (round(at / period), *(self.just_before(probe_signal(path, name), at) for name, _ in probe.fields))
            for at in self.rises(domain.name)
            if at and self.just_before(probe_signal(path), at)
        ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Directory and observation of a run of three packets."""
    out = tmp_path_factory.mktemp("waves")
    frames = at_rate([udp_frame(bytes([n]) * 60 * n, 1000 + n) for n in (1, 2, 3)], None, Fraction(1_000_000))
    traffic = Traffic(tuple(frames), "three frames", {})
    kept = []

    class Kept(Experiment):
        def _observe(self, console):
            kept.append(super()._observe(console))
            return kept[-1]

    experiment = Kept("napi", load_machine("tiny"), traffic, waves=True, out=out)
    result = experiment.run()
    assert result["packets"]["delivered"] == 3
    assert sorted(path.name for path in out.iterdir()) == sorted(experiment.files())
    return out, kept[0]


@pytest.fixture(scope="module")
def waves(run):
    out, observation = run
    return Waves(out / "waves.fst", observation.manifest)


def events(observation, path):
    """Cycle and fields of every event of a probe, from the log."""
    found = observation.select(path)
    return [tuple(row)[1:] for row in found.tolist()]


def test_the_waves_change_nothing(run):
    from sim.build.design import Design
    from sim.build.native import build_native
    from sim.engine.native import NativeEngine
    from sim.session import observe
    from sim.wire.frames import with_fcs

    _, observation = run
    frames = at_rate([with_fcs(udp_frame(bytes([n]) * 60 * n, 1000 + n)) for n in (1, 2, 3)], None, Fraction(1_000_000))
    engine = NativeEngine(build_native(Design(load_machine("tiny"))))
    job = {"machine": load_machine("tiny"), "frames": [(frame.time_ns, frame.data) for frame in frames]}
    assert engine.execute(lambda engine: observe(engine, **job)).log_sha256 == observation.log_sha256


def test_packet_two_on_its_way(run, waves):
    """Descriptor fetch, DMA write, write-back and interrupt: what the log names is in the waves at that very edge."""
    _, observation = run
    manifest = observation.manifest

    def only(rows):
        assert len(rows) == 1
        return rows[0]

    # From the log: the steps of packet 2
    write_backs = {p.path: observation.select(p.path) for p in manifest.probes if "write_back" in p.path}
    path, write_back = only(
        [(path, row) for path, rows in write_backs.items() for row in rows[rows["packet"] == PACKET]]
    )
    fetches = observation.select("nic.rx.descriptor_fetch")
    descriptor = write_back["address"]
    covers = (fetches["address"] <= descriptor) & (descriptor < fetches["address"] + 16 * fetches["count"])
    fetch = only(fetches[covers & (fetches["tick"] < write_back["tick"])])
    writes = observation.select("nic.rx.dma.writer.dma_write")
    dma_write = writes[writes["packet"] == PACKET][0]
    messages = observation.select("nic.interrupt.msix")
    message = messages[messages["tick"] > write_back["tick"]][0]
    interrupts = observation.select("core0.port.interrupt")
    interrupt = interrupts[interrupts["tick"] > message["tick"]][0]
    steps = [
        ("nic.rx.descriptor_fetch", fetch),
        ("nic.rx.dma.writer.dma_write", dma_write),
        (path, write_back),
        ("nic.interrupt.msix", message),
        ("core0.port.interrupt", interrupt),
    ]
    assert fetch["tick"] < dma_write["tick"] < write_back["tick"] < message["tick"]

    # In the waves
    for path, event in steps:
        domain = manifest.domains[manifest.probes[manifest.probe_number(path)].domain]
        at = picoseconds(int(event["tick"]), manifest.ticks_per_second)
        assert at == int(event["cycle"]) * domain.period * 10**12 // manifest.ticks_per_second
        edges = waves.rises(domain.name)
        assert at in edges
        assert waves.just_before(probe_signal(path), at) == 1
        assert waves.just_before(f"nicscope.machine.now_{domain.name}.now", at) == event["cycle"]
        for name in event.dtype.names[2:]:
            assert waves.just_before(probe_signal(path, name), at) == event[name]
        # One edge earlier and later, too, the waves say what the log says
        logged = {picoseconds(tick, manifest.ticks_per_second) for tick in observation.select(path)["tick"].tolist()}
        for edge in edges[edges.index(at) - 1 : edges.index(at) + 2]:
            assert waves.just_before(probe_signal(path), edge) == (edge in logged)


@pytest.mark.parametrize(
    "path",
    (
        "nic.mac.frame",
        "nic.rx.descriptor_fetch",
        "nic.rx.dma.writer.dma_write",
        "nic.rx.write_back0",
        "nic.interrupt.msix",
        "link.upstream.delivered",
        "llc.device_write",
        "dram0.issued",
        "core0.port.issue",
        "core0.port.interrupt",
        "core0.l1.refill",
    ),
)
def test_waves_and_log_have_the_same_events(run, waves, path):
    logged = events(run[1], path)
    assert logged
    assert waves.events(path) == logged


def test_every_probe_and_counter_is_in_the_waves_by_its_path(run, waves):
    _, observation = run
    for probe in observation.manifest.probes:
        assert waves.variables[probe_signal(probe.path)].bitwidth == 1
        for name, width in probe.fields:
            assert waves.variables[probe_signal(probe.path, name)].bitwidth == width
    for path, value in observation.counters.items():
        assert int(waves.variables[probe_signal(path, "count")].tv[-1][1]) == value


def test_what_is_in_the_waves_is_of_use(waves):
    names = waves.variables
    of = {part: sum(name.startswith(f"nicscope.machine.{part}.") for name in names) for part in PARTS}
    assert all(count > 100 for count in of.values()), of
    assert not [name for name in names if INVENTED.search(name)]
    assert len(names) < 24_000
    # No contents of caches or memory, no value that nobody can read
    rows = [int(number) for name in names for number in re.findall(r"\[(\d+)\]", name)]
    assert max(rows) < 64
    assert max(variable.bitwidth or 0 for variable in names.values()) <= 640


PARTS = ("core0", "core1", "llc", "root_complex", "link", "nic", "dram0")


def test_the_file_is_small(waves):
    """A run of three packets, its beginning included: the trace must be something to mail."""
    assert waves.path.stat().st_size < 15_000_000


def test_time_stands_still_while_a_domain_sleeps(run, waves):
    """Each executed edge is a rise on the schedule; ``now`` has caught up at each, over skipped edges too."""
    manifest = run[1].manifest
    for domain in manifest.domains:
        period = Fraction(domain.period * 10**12, manifest.ticks_per_second)
        rises = [at for at in waves.rises(domain.name) if at]
        cycles = [round(at / period) for at in rises]
        assert [int(cycle * period) for cycle in cycles] == rises
        sample = slice(None, None, max(1, len(rises) // 200))
        for at, cycle in zip(rises[sample], cycles[sample], strict=True) if domain.time else ():
            assert waves.just_before(f"nicscope.machine.now_{domain.name}.now", at) == cycle
        if not domain.name.startswith("core1"):  # it wakes at the beginning only
            assert np.diff(cycles).max() > 10, "nothing was skipped"


# ---- The saved view


def test_the_view_names_signals_that_are_there(run, waves):
    out, observation = run
    view = (out / "waves.gtkw").read_text()
    assert view == gtkwave_view(EventLog(observation.manifest, observation.log))
    shown = re.findall(r"^(?:\+\{[^}]+\} )?(nicscope\.\S+?)(?:\[(\d+):0\])?$", view, re.MULTILINE)
    assert len(shown) > 80
    for name, last_bit in shown:
        assert waves.variables[name].bitwidth == (int(last_bit) + 1 if last_bit else 1), name
    groups = re.findall(r"^@200\n-(.+)$", view, re.MULTILINE)
    assert [group.split(":")[0].split(",")[0] for group in groups] == [
        "Clocks",
        "Wire",
        "Card",
        "Link",
        "Last-level cache",
        "Core 0",
    ]


def test_the_view_marks_the_steps_of_a_packet(run):
    _, observation = run
    view = gtkwave_view(EventLog(observation.manifest, observation.log), PACKET)
    zoom, cursor, *markers = re.search(r"^\*(.*)$", view, re.MULTILINE)[1].split()
    frames = observation.select("nic.mac.frame")
    arrived = picoseconds(int(frames["tick"][frames["packet"] == PACKET][0]), observation.manifest.ticks_per_second)
    assert int(cursor) == int(markers[0]) == arrived
    assert markers[5:] == ["-1"] * 21
    placed = list(map(int, markers[:5]))
    assert placed == sorted(placed)
    assert re.findall(r"^\[markername\] (\w)(\w+)$", view, re.MULTILINE) == [
        ("A", "arrived"),
        ("B", "dma_write"),
        ("C", "write_back"),
        ("D", "msix"),
        ("E", "interrupt"),
    ]
    start = int(re.search(r"^\[timestart\] (\d+)$", view, re.MULTILINE)[1])
    assert start < arrived < start + 2 ** -float(zoom) / 200 * 800


def test_a_packet_that_never_came_has_no_marks(run):
    _, observation = run
    view = gtkwave_view(EventLog(observation.manifest, observation.log), 99)
    assert "[markername]" not in view
    assert "[timestart] 0\n" in view
