"""Idle cores: what the governor chooses, and that it is what they sleep in."""

import pytest

from sw.linux.cpuidle import IDLE, TICK_NS, Cpuidle, MenuGovernor
from sw.port import OperationKind
from tests.sw.functional_machine import FunctionalMachine
from tests.sw.test_receive_path import Bench, pad, udp

BROADWELL = (0.0, 2000.0, 10_000.0, 40_000.0, 133_000.0)


def after(*intervals, governor=None):
    """The state chosen after sleeping so many ns in the lightest state, one time after the other."""
    governor = governor or MenuGovernor(BROADWELL)
    for ns in intervals:
        governor.reflect(0, ns)
    return governor.select()


@pytest.mark.parametrize(
    ("ns", "state"),
    # From the exit latency on for state 1, from three times of it on for the deeper.
    [(1999, 0), (2000, 1), (29_999, 1), (30_000, 2), (119_999, 2), (120_000, 3), (398_999, 3), (399_000, 4)],
)
def test_regular_sleeps_are_expected_again(ns, state):
    assert after(*[ns] * 8) == state


def test_a_long_sleep_among_short_ones_is_no_pattern_but_an_outlier():
    assert after(*[15_000] * 7, 3_000_000) == 1
    assert after(3_000_000, *[15_000] * 7) == 1


def test_without_a_pattern_the_tick_shortened_by_experience_counts():
    irregular = [5000, 900_000, 60_000, 2_000_000, 200_000, 1_200_000, 9000, 400_000]
    assert after(*irregular) == 4
    governor = MenuGovernor(BROADWELL)
    governor.factor = 50_000 / TICK_NS
    assert after(*irregular[:0], governor=governor) == 0  # as it starts: it remembers only sleeps of 0
    governor.intervals = [float(ns) for ns in irregular]
    assert governor.select() == 2


def test_the_exit_latency_is_no_sleep():
    governor = MenuGovernor(BROADWELL)
    governor.reflect(3, 140_000)
    governor.reflect(4, 200_000)
    assert governor.intervals[:2] == [100_000, 100_000]


def test_choices_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"idle is one of poll, halt, menu, not 'mwait'"):
        Cpuidle(idle="mwait")
    for idle in ("halt", "menu"):
        with pytest.raises(ValueError, match=rf"idle={idle} needs 2 values of core.sleep_exit_ns, not 1"):
            Cpuidle(idle=idle, exit_ns=(0.0,))
    assert Cpuidle(idle="poll").governor() is None


@pytest.mark.parametrize("idle", IDLE)
def test_cores_sleep_as_told(monkeypatch, idle):
    """Frames 100 us apart, after boot: menu comes to expect that, and idle=poll never sleeps."""
    states = []
    push = FunctionalMachine.push

    def recorded(self, context, kind, *operands, **named):
        if kind == OperationKind.HALT.value:
            states.append(operands[-1])
        return push(self, context, kind, *operands, **named)

    monkeypatch.setattr(FunctionalMachine, "push", recorded)
    cpuidle = Cpuidle(idle=idle, exit_ns=BROADWELL)
    bench = Bench(compute=(), cpuidle=cpuidle, tsc_khz=3_000_000)
    bench.send([pad(udp(b"x"))] * 20, gap=300_000)
    assert len(bench.delivered) == 20
    if idle == "poll":
        assert states == []
    else:
        assert states[-5:] == [{"halt": 1, "menu": 2}[idle]] * 5
