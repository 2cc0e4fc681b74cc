"""The whole machine with the whole software: one run, one log, whatever executes it and however fast Python is."""

import functools
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hw.config import load_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.engine import Jump
from sim.engine.native import NativeEngine
from sim.observe.difference import first_difference
from sim.session import Software, observe
from sw.issue import FUNCTION_MASK, MODE_SHIFT
from sw.paths import PATHS

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import mixed_run  # noqa: E402


def design(machine=None):
    if machine is None:
        return Design(load_machine("tiny"))
    return Design(load_machine("tiny"), f"mixed_run:{machine}", (HERE / "mixed_run.py",))


@pytest.fixture(scope="module")
def build():
    return build_native(design())


@pytest.fixture(scope="module")
def native(build):
    """Run an experiment on the native engine."""

    def run(experiment, jump=Jump.ALL, seed=1, **arguments):
        engine = NativeEngine(build, jump=jump, seed=seed)
        return engine.execute(lambda engine: experiment(engine, **arguments)), engine

    return run


@pytest.fixture(scope="module")
def reference(native):
    """Every edge of every clock executed."""
    observation, engine = native(observe, Jump.OFF, **mixed_run.job())
    assert engine.executed() == engine.cycles()
    return observation


def accounts(observation):
    """Mode and function of each operation. Functions are numbered per process, in the order of their definition."""
    return [(tag >> MODE_SHIFT, observation.functions[tag & FUNCTION_MASK]) for tag in observation.tags.tolist()]


def assert_same(observation, reference):
    """Equal logs, and all else that two runs have to have in common."""
    assert first_difference(reference.manifest, observation.log, reference.log) is None
    assert observation.log_sha256 == reference.log_sha256
    for name in ("delivered", "dropped", "polls", "counters", "cycles", "end_tick"):
        assert getattr(observation, name) == getattr(reference, name), name
    assert accounts(observation) == accounts(reference)
    for mine, its in zip(observation.issued, reference.issued, strict=True):
        assert np.array_equal(mine, its)


def test_the_run_has_packets_of_every_fate(reference):
    assert set(reference.delivered) == mixed_run.DELIVERED
    assert reference.dropped == mixed_run.DROPPED
    assert set(reference.select("core0.port.interrupt")["remaining"].astype(bool)) == {False, True}


def test_clock_edges_coincide_in_the_run(reference):
    """At some ticks, events of domains of different periods happen together: every pair of them is there."""
    domain = np.array([probe.domain for probe in reference.manifest.probes])
    clocks = [d.name.partition("_")[0].rstrip("01") for d in reference.manifest.domains]
    ticks = {
        clock: set(
            reference.log["tick"][
                np.isin(domain[reference.log["probe"]], [d for d, name in enumerate(clocks) if name == clock])
            ]
        )
        for clock in clocks
    }
    for one, other in (("core", "uncore"), ("core", "nic"), ("core", "dram"), ("uncore", "nic"), ("uncore", "dram")):
        assert ticks[one] & ticks[other], f"no tick has events of {one} and of {other}"


def test_repetition_changes_nothing(native, reference):
    for _ in range(3):
        assert_same(native(observe, Jump.OFF, **mixed_run.job())[0], reference)


def test_a_cycle_of_the_card_later_on_the_wire_is_another_log(native, reference):
    job = mixed_run.job()
    time_ns, frame = job["frames"][-1]
    job["frames"][-1] = (time_ns + 2, frame)
    run = native(observe, **job)[0]
    assert run.log_sha256 != reference.log_sha256
    assert f"packet={len(job['frames']):#x}" in first_difference(reference.manifest, run.log, reference.log)


def test_jumping_changes_nothing_but_the_work(native, reference):
    observation, engine = native(observe, Jump.ALL, **mixed_run.job())
    assert_same(observation, reference)
    assert sum(engine.executed().values()) < sum(engine.cycles().values()) / 3


def test_random_subsets_of_the_jumps_change_nothing(native, reference):
    executed = set()
    for seed in range(10):
        observation, engine = native(observe, Jump.RANDOM, seed, **mixed_run.job())
        assert_same(observation, reference)
        executed.add(sum(engine.executed().values()))
    assert len(executed) > 5, "the subsets are the same"


def test_delays_in_python_change_nothing(native, reference):
    for seed in range(3):
        assert_same(native(mixed_run.observe_meddled, meddle=seed, **mixed_run.job())[0], reference)


def test_a_governor_that_reads_the_clock_sees_the_same_time(native):
    job = mixed_run.job() | {"software": Software(background=False, idle="menu")}
    reference, _ = native(observe, Jump.OFF, **job)
    assert set(reference.delivered) == mixed_run.DELIVERED
    assert "menu_select" not in reference.functions and "default_idle" in reference.functions
    for seed in range(3):
        assert_same(native(observe, Jump.RANDOM, seed, **job)[0], reference)
        assert_same(native(mixed_run.observe_meddled, meddle=seed, **job)[0], reference)


def test_cocotb_gives_the_same_log(reference):
    from sim.engine.cocotb import run_in_cocotb

    assert_same(run_in_cocotb(design(), "sim.experiment:observe", mixed_run.job()), reference)


def test_cocotb_gives_the_same_log_with_random_jumps_and_delays(reference):
    from sim.engine.cocotb import run_in_cocotb

    arguments = {"meddle": 7, **mixed_run.job()}
    outcome = run_in_cocotb(design(), "mixed_run:observe_meddled", arguments, jump=Jump.RANDOM, seed=7)
    assert_same(outcome, reference)


@pytest.mark.slow
def test_amaranth_gives_the_same_log(reference):
    """With a random subset of the jumps: where it agrees with all edges executed, so do all jumps."""
    from sim.engine.amaranth import run_on_amaranth

    run = run_on_amaranth(design(), lambda e: observe(e, **mixed_run.job()), jump=Jump.RANDOM, seed=5)
    assert_same(run, reference)


def test_both_cores_at_work_give_one_log(build, native):
    """Core 1 computes while core 0 receives: both reach for the last-level cache, often at one tick."""
    from sim.engine.cocotb import run_in_cocotb

    reference, _ = native(mixed_run.both_cores, Jump.OFF)
    assert len(reference["delivered"]) == len(mixed_run.DELIVERED)
    assert all(len(issued) > 100 for issued in reference["issued"])
    assert all(reference["counters"][f"core{core}.l1.load_misses"] > 10 for core in (0, 1))

    outcomes = [native(mixed_run.both_cores, Jump.ALL, meddle=1)[0]]
    outcomes += [native(mixed_run.both_cores, Jump.RANDOM, seed)[0] for seed in range(5)]
    outcomes.append(run_in_cocotb(design(), "mixed_run:both_cores", jump=Jump.RANDOM, seed=3))
    for outcome in outcomes:
        assert first_difference(build.manifest, outcome.pop("log"), reference["log"]) is None
        assert outcome == {name: value for name, value in reference.items() if name != "log"}


# ---- Every way

WAYS = [(path.name, application) for path in PATHS.values() for application in path.applications]
by_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: ":".join(way))


def way_job(way):
    """Three datagrams through one way: to a program's port, to one the firewall blocks, and of another size."""
    path, application = way
    frames = [(time_ns, frame) for time_ns, frame in mixed_run.mixed_frames() if 60 <= len(frame) - 4 <= 200][:2]
    frames.append((Fraction(20_000), mixed_run.mixed_frames()[-1][1]))
    return mixed_run.job() | {"frames": frames, "software": Software(path, application)}


@pytest.fixture(scope="module")
def way_reference(native):
    """The run of a way with every edge executed."""

    @functools.cache
    def run(way):
        observation = native(observe, Jump.OFF, **way_job(way))[0]
        assert len({*observation.delivered, *observation.transmitted, *observation.dropped}) == 3, way
        return observation

    return run


@by_way
def test_jumping_changes_nothing_on_any_way(native, way_reference, way):
    assert_same(native(observe, Jump.ALL, **way_job(way))[0], way_reference(way))
    assert_same(native(observe, Jump.RANDOM, 3, **way_job(way))[0], way_reference(way))


@pytest.mark.slow
@by_way
def test_cocotb_gives_the_same_log_on_every_way(way_reference, way):
    from sim.engine.cocotb import run_in_cocotb

    assert_same(run_in_cocotb(design(), "sim.experiment:observe", way_job(way)), way_reference(way))


@pytest.mark.slow
@pytest.mark.parametrize("path", [name for name in PATHS if name != "napi"])
def test_amaranth_gives_the_same_log_on_every_path(way_reference, path):
    """With each path's first application: it takes minutes. Napi's is above."""
    from sim.engine.amaranth import run_on_amaranth

    way = (path, PATHS[path].application(None))
    run = run_on_amaranth(design(), lambda e: observe(e, **way_job(way)))
    assert_same(run, way_reference(way))


# ---- Planted wake-up bugs


@pytest.fixture(scope="module")
def beginning(native):
    """The log of the beginning of a run, every edge executed."""
    log, engine = native(mixed_run.beginning, Jump.OFF)
    assert {"nic.mac.frame", "nic.mac.drop"} <= {engine.manifest.probes[n].path for n in set(log["probe"])}
    return log


@pytest.mark.parametrize(
    ("machine", "until"),
    (
        ("DeafWireMachine", mixed_run.BUSY_BEGINNING),
        ("DeafCrossingMachine", mixed_run.BUSY_BEGINNING),
    ),
)
def test_a_planted_wake_up_bug_is_caught(build, beginning, machine, until):
    """With jumps it comes to rest too early or gives another log."""
    from sim.engine.amaranth import run_on_amaranth

    try:
        log = run_on_amaranth(design(machine), lambda e: mixed_run.beginning(e, until=until))
    except RuntimeError as error:
        assert "came to rest" in str(error)
    else:
        assert first_difference(build.manifest, log, beginning[beginning["tick"] <= until]) is not None


def test_a_core_that_sleeps_too_long_is_caught(build, native):
    from sim.engine.amaranth import run_on_amaranth

    right, _ = native(mixed_run.computing, Jump.OFF)
    assert first_difference(build.manifest, native(mixed_run.computing, Jump.ALL)[0], right) is None
    late = run_on_amaranth(design("LateExecuteMachine"), mixed_run.computing)
    assert first_difference(build.manifest, late, right) is not None


def test_what_catches_the_bugs_passes_the_machine_as_it_is(build, beginning):
    from sim.engine.amaranth import run_on_amaranth

    log = run_on_amaranth(design(), mixed_run.beginning)
    assert first_difference(build.manifest, log, beginning) is None


def test_what_catches_the_bugs_passes_a_broken_machine_that_never_sleeps(build, beginning):
    from sim.engine.amaranth import run_on_amaranth

    until = mixed_run.BUSY_BEGINNING
    log = run_on_amaranth(design("LateExecuteMachine"), lambda e: mixed_run.beginning(e, until=until), jump=Jump.OFF)
    assert len(log) > 100
    assert first_difference(build.manifest, log, beginning[beginning["tick"] <= until]) is None


# ---- What tells where two logs differ


def test_first_difference_names_tick_probe_and_fields(reference):
    manifest, log = reference.manifest, reference.log
    assert first_difference(manifest, log, log.copy()) is None
    at = int(np.flatnonzero(log["probe"] == manifest.probe_number("nic.mac.frame"))[1])
    other = log.copy()
    other["fields"][at, 1] += 1
    told = first_difference(manifest, log, other)
    assert f"event {at}: tick {log['tick'][at]} " in told
    assert "nic.mac.frame(packet=0x2, length=0xc8) against" in told
    assert told.endswith("nic.mac.frame(packet=0x2, length=0xc9)")
    assert first_difference(manifest, log, log[:-1]).endswith("against the end of the log")
