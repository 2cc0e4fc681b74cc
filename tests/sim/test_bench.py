"""The benchmark measures what it says, on equal runs."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from hw.config import load_machine
from sim.bench import speed as bench
from sim.build.design import Design
from sim.build.native import build_native
from sw.paths import PATHS


@pytest.fixture(scope="module")
def machine():
    return load_machine("tiny")


def test_figures(machine):
    figures = bench.speed(machine, quick=True, count=8, rounds=1)
    json.dumps(figures)
    for name in ("native_vs_bare", "jump_gain", "bare_core_cycles_per_s", "warm_start_s"):
        assert figures[name] > 0
    assert figures["jump_gains"].keys() == PATHS.keys() and min(figures["jump_gains"].values()) > 1
    assert figures["native_vs_cocotb"] is figures["first_build_s"] is None
    assert len(figures["workloads"]) == len(bench.WORKLOADS)
    for workload in figures["workloads"]:
        domains = workload["domains"]
        parts = ("", "_mmu", "_l1", "_l1i", "_l2")
        cores = [f"core{index}{part}" for index in (0, 1) for part in parts]
        assert list(domains) == [*cores, "uncore", "uncore_root", "nic", "nic_link", "dram0"]
        assert 0 < domains["core0"]["executed"] <= domains["core0"]["cycles"] == workload["core_cycles"]
        assert domains["uncore"]["ns_per_edge"] > 0

    out = io.StringIO()
    bench.print_figures(figures, Console(file=out, width=200))
    for told in (
        "native engine against bare model",
        "jumps, dpdk",
        "core cycles per second",
        "8 frames of 64 bytes at line rate",
    ):
        assert told in out.getvalue()


def test_unequal_runs_are_refused(machine):
    build = build_native(Design(machine))
    workload = bench._Workload.make(machine, build, 64, "500kpps", 2)
    workload = dataclasses.replace(workload, log_sha256="0" * 64)
    with pytest.raises(bench.BenchError, match="the bare model gives another log"):
        workload._bare()
    with pytest.raises(bench.BenchError, match="the native engine, run again, gives another log"):
        workload._native()
