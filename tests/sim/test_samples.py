"""Counters read on the way: what they say of the last level, and that reading changes nothing; DDIO set by software."""

import functools
import itertools
import tempfile
from pathlib import Path

import pytest

from hw.config import ConfigError, load_machine
from sim.cli import duration_ns, parse_ways_list
from sim.experiment import Experiment
from sim.observe.samples import Samples
from sim.wire.traffic import Traffic

MACHINE = load_machine("tiny")


@functools.cache
def run(sample_ns: float | None = None, **options) -> dict:
    traffic = Traffic.make(size=300, rate="500kpps", count=30)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        experiment = Experiment("napi", MACHINE, traffic, out=out, options=options, sample_ns=sample_ns)
        result = experiment.run()
        assert (out / "occupancy.svg").exists() == (sample_ns is not None)
        assert sorted(path.name for path in out.iterdir()) == sorted(experiment.files())
    return result


def test_samples_follow_the_run_and_leave_it_alone():
    plain, sampled = run(), run(5000.0)
    assert plain["log_sha256"] == sampled["log_sha256"]
    assert "samples" not in plain
    samples = sampled["samples"]
    times, counters = samples["time_ns"], samples["counters"]
    assert times[0] == 0 and all(later - now <= 5000.1 for now, later in itertools.pairwise(times))
    assert len(times) > 10
    for name, values in counters.items():
        assert len(values) == len(times), name
        assert values[-1] == sampled["counters"][name], "the last reading is the end"
        if not name.startswith("llc.occupancy_"):
            assert values == sorted(values), name


def test_occupancy_is_what_fits():
    counters = run(5000.0)["samples"]["counters"]
    last = run(5000.0)["counters"]
    sets, ways = MACHINE.llc.sets, MACHINE.llc.ways
    readings = len(next(iter(counters.values())))
    total = [0] * readings
    for owner in ("io", "core"):
        for way in range(ways):
            name = f"llc.occupancy_{owner}{way}"
            for at, value in enumerate(counters.get(name, [last[name]] * readings)):
                assert 0 <= value <= sets
                total[at] += value
    assert max(total) <= sets * ways and total[-1] > sets
    # Devices allocate in the last two ways; cores in all, as class of service 0.
    assert all(last[f"llc.occupancy_io{way}"] == 0 for way in range(ways - 2))
    assert last["llc.occupancy_io7"] + last["llc.occupancy_io6"] > 0
    assert last["llc.occupancy_class0"] == sum(last[f"llc.occupancy_core{way}"] for way in range(ways))


def test_software_sets_ddio_without_another_machine():
    off, four = run(ddio=False), run(ddio_ways=4)
    assert off["counters"]["llc.device_write_allocate"] == off["counters"]["llc.device_write_update"] == 0
    assert off["counters"]["llc.device_write_dram"] > 100
    assert four["counters"]["llc.device_write_dram"] == 0
    assert sum(four["counters"][f"llc.occupancy_io{way}"] for way in (4, 5)) > 0
    assert sum(four["counters"][f"llc.occupancy_io{way}"] for way in range(4)) == 0
    assert four["counters"]["llc_registers.refused"] == 0


def test_bad_input_is_one_line():
    with pytest.raises(ConfigError, match="--ddio-ways must be between 1 and the 8 ways of the last level, not 9"):
        run(ddio_ways=9)
    with pytest.raises(ConfigError, match="--sample must be at least 100 ns, not 5 ns"):
        run(5.0)
    with pytest.raises(ConfigError, match="--sample takes a time such as 500ns, 10us or 1ms, not '10'"):
        duration_ns("10")
    with pytest.raises(ConfigError, match="--ways takes numbers such as 2,3,4, not '2-4'"):
        parse_ways_list("2-4")
    assert (duration_ns("500ns"), duration_ns("1.5us")) == (500, 1500)


def test_readings_of_one_moment_are_one():
    samples = Samples(10.0)
    samples.take(5, {"llc.a": 1, "llc.b": 2, "core0.x": 3})
    samples.take(5, {"llc.a": 1, "llc.b": 2})
    samples.take(9, {"llc.a": 4, "llc.b": 2})
    assert samples.as_json(10**9) == {"period_ns": 10.0, "time_ns": [0.0, 4.0], "counters": {"llc.a": [1, 4]}}
