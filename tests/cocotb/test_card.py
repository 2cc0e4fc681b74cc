"""The card by itself under cocotb's runner, on Verilator."""

import inspect
from pathlib import Path

from cocotb_tools import runner

from hw.config import load_machine
from sim.build.cache import REPOSITORY, cached, digest
from sim.engine.cocotb import BUILD_ARGUMENTS, _Verilator
from tests.cocotb import card_top

TESTS = ("packets_reach_memory", "line_rate", "reset_in_the_middle", "packets_leave", "hashes")


def build() -> Path:
    """The card of ``tiny``, built by cocotb's runner or found in the cache."""
    verilog, ports = card_top.card_verilog(load_machine("tiny"))
    public = "\n".join(f'public_flat_rw -module "{card_top.TOP}" -var "{port}"' for port in ports)

    def make(directory: Path) -> None:
        (directory / "card.v").write_text(verilog)
        (directory / "ports.vlt").write_text(f"`verilator_config\n{public}\n")
        _Verilator().build(
            sources=[runner.VerilatorControlFile(directory / "ports.vlt"), runner.Verilog(directory / "card.v")],
            hdl_toplevel=card_top.TOP,
            build_args=BUILD_ARGUMENTS,
            build_dir=directory,
            timescale=("1ns", "1ps"),
            log_file=directory / "build.log",
        )

    return cached("cocotb", digest(verilog, public, inspect.getsource(build)), make)


def test_card(tmp_path):
    directory = build()
    results = _Verilator().test(
        test_module="tests.cocotb.card_testbench",
        hdl_toplevel=card_top.TOP,
        hdl_toplevel_lang="verilog",
        build_dir=directory,
        test_dir=tmp_path,
        results_xml=str(tmp_path / "results.xml"),
        log_file=tmp_path / "cocotb.log",
        extra_env={"PYTHONPATH": str(REPOSITORY)},
    )
    total, failed = runner.get_results(results)
    assert failed == 0 and total == len(TESTS), (tmp_path / "cocotb.log").read_text()[-4000:]
