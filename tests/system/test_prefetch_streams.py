"""Prefetchers make one core's streams from DRAM faster, and random accesses hardly slower."""

import functools
import random

import pytest

from hw.bus.tilelink import LINE_BYTES
from hw.config import load_machine
from sim.bare_metal import BareMetal
from sim.build.design import Design
from sim.build.native import build_native
from sim.engine.native import NativeEngine

#: Lines of a run: several pages, so that the start of a stream in each weighs as it does in a long one.
LINES = 1000
WITHOUT = ("l2.prefetch_adjacent=false", "l2.prefetch_stream=false")


@functools.cache
def rate(pattern: str, work: int, prefetch: bool) -> float:
    """Lines per microsecond, with so many cycles of work between two accesses."""
    machine = load_machine("teaching", () if prefetch else WITHOUT)
    bench = BareMetal(NativeEngine(build_native(Design(machine))))
    lines = list(range(LINES)) if pattern != "random" else random.Random(1).sample(range(machine.dram.lines), LINES)
    if pattern == "down":
        lines.reverse()
    for line in lines:
        if pattern == "write":
            bench.store(0, line * LINE_BYTES, bytes(LINE_BYTES))
        else:
            bench.touch(0, line * LINE_BYTES)
        if work:
            bench.execute(0, work, 4 * work)
    bench.settle(0)
    return LINES / bench.engine.tick * machine.ticks_per_second / 1e6


@pytest.mark.parametrize(
    ("pattern", "work", "gain"),
    [("up", 0, 1.1), ("down", 0, 1.1), ("up", 8, 1.5), ("up", 30, 1.5), ("write", 0, 3)],
)
def test_streams_gain(pattern, work, gain):
    """What is read as fast as MSHRs allow gains least: DRAM itself gives out hardly more."""
    assert rate(pattern, work, True) >= gain * rate(pattern, work, False)


def test_random_accesses_lose_little():
    """The other halves of their 128 bytes take DRAM's time."""
    assert rate("random", 0, True) >= 0.7 * rate("random", 0, False)
