"""What a stranger types, mistypes included: one clear line and exit code 2, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sim import cli
from sw.paths import PATHS

CAPTURE = Path(__file__).parents[2] / "traffic" / "programs.pcapng"


def call(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nicscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["rn"], "No such command 'rn'. Did you mean 'run'?"),
        (["run"], "Missing argument 'PATH'"),
        (["run", "nappi"], f"'nappi' is not one of {', '.join(map(repr, PATHS))}"),
        (["run", "napi", "--trafic", "x"], "No such option '--trafic'."),
        (["run", "napi", "--traffic", "nowhere.pcap"], "nowhere.pcap: no such capture file"),
        (["run", "napi", "--traffic", __file__], "not a readable pcap or pcapng file"),
        (["run", "napi", "--traffic", CAPTURE, "--size", "64"], "--size is for generated frames"),
        (["run", "napi", "--traffic", CAPTURE, "--speed", "0"], "--speed takes a positive number, not 0"),
        (["run", "napi", "--traffic", CAPTURE, "--speed", "nan"], "--speed takes a positive number, not nan"),
        (["run", "napi", "--traffic", CAPTURE, "--speed", "2", "--rate", "line"], "give one of them"),
        (["run", "napi", "--speed", "2"], "--speed scales the timing of a capture"),
        (["run", "napi", "--size", "10"], "--size takes 46 to 16000 bytes"),
        (["run", "napi", "--rate", "fast"], "--rate takes a rate such as 5Mpps"),
        (["run", "napi", "--count", "0"], "--count takes 1 to 10000000, not 0"),
        (["run", "napi", "--count", 10**9], "--count takes 1 to 10000000, not 1000000000"),
        (["run", "napi", "--size", "0"], "--size takes 46 to 16000 bytes (FCS included), not 0"),
        (["run", "napi", "--rate", ""], "--rate takes a rate such as 5Mpps"),
        (["run", "napi", "--count", 2, "--rate", "0.0001mpps", "--seed", -1], "-1 is not in the range 0<=x<="),
        (["run", "napi", "--seed", 1 << 64], "is not in the range 0<=x<="),
        (
            ["run", "tcp", "--machine", "tiny", "--count", 2, "--rate", "0.0000001pps"],
            "the last frame starts 1e+07 s after the first, and a run has at most",
        ),
        (["run", "napi", "--count", "many"], "'many' is not a valid integer"),
        (["run", "napi", "--machine", "teachin"], "unknown machine 'teachin'; did you mean 'teaching'?"),
        (["run", "napi", "--set", "llc.way=3"], "unknown key of [llc] 'way'; did you mean 'ways'?"),
        (["run", "napi", "--set", "llc.ways=3"], "llc.ways must divide the 32768 lines"),
        (["run", "napi", "--set", "nic.line_gbps=200"], "exceeds the 106.25 Gb/s"),
        (["run", "napi", "--engine", "qemu"], "'qemu' is not one of 'native', 'cocotb', 'amaranth'"),
        (["run", "napi", "--engine", "amaranth", "--waves"], "--waves needs --engine native"),
        (["run", "napi", "--machine", "tiny", "--ring", "100"], "a receive ring has"),
        (["run", "napi", "--machine", "tiny", "--ring", "0"], "a receive ring has"),
        (["run", "napi", "--machine", "tiny", "--out", __file__], "File exists"),
        (["run", "af-xdp", "--machine", "tiny", "--ring", 10**9], "a receive ring has 32 to 4096 descriptors"),
        (["run", "dpdk", "--machine", "tiny", "--ring", 10**9], "takes 64 to 4096 descriptors, a power of two"),
        (["run", "busypoll", "--machine", "tiny", "--busy-poll", "nan"], "polls for 0 to 2147483647 us, not nan us"),
        (["run", "napi", "--batch", 8], "--batch has no effect on napi with --app sink"),
        (["run", "xdp", "--app-core", 1], "--app-core has no effect on xdp with --app drop"),
        (["run", "busypoll", "--app", "kthread", "--busy-poll", 5], "--busy-poll has no effect on busypoll with --app"),
        (["run", "dpdk", "--itr", 5], "--itr has no effect on dpdk with --app rxonly"),
        (["run", "tcp", "--napi-thread", 1], "--napi-thread has no effect on tcp with --app sink"),
        (
            ["compare", "--paths", "napi,dpdk", "--wakeup", "poll"],
            "--wakeup has no effect on any of napi:sink, dpdk:rx",
        ),
        (
            ["run", "napi", "--mitigations", "kpti"],
            "mitigations are off, auto, or some of ibrs, page_table_isolation, retpoline with commas, not 'kpti'",
        ),
        (["run", "napi", "--idle", "menu"], "--idle menu needs --no-background"),
        (["run", "napi", "--idle", "deep"], "'deep' is not one of 'poll', 'halt', 'menu'"),
        (["bench", "--machine", "huge"], "unknown machine 'huge'"),
    ],
    ids=lambda value: " ".join(Path(str(v)).name for v in value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code == 2
    assert message in err and err.count("\n") == 1 and err.startswith("nicscope: ")
    assert out.strip() == ""


def test_a_base_that_is_no_name(capsys, monkeypatch, tmp_path):
    (tmp_path / "own.toml").write_text("base = 3\n")
    code, _, err = call(capsys, monkeypatch, "run", "napi", "--machine", tmp_path / "own.toml")
    assert (code, err) == (2, "nicscope: base must be the name of a machine in quotes, not 3\n")


def test_help_and_version(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "--help")
    assert code == 0 and all(command in out for command in ("run", "bench", "machines"))
    code, out, _ = call(capsys, monkeypatch, "--version")
    assert code == 0 and out.startswith("nicscope, version ")


def test_machines(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "machines")
    assert code == 0 and "teaching" in out and "tiny" in out
    code, out, _ = call(capsys, monkeypatch, "machines", "--json")
    assert json.loads(out)["teaching"]["llc"]["ddio_ways"] == 2


def test_json_is_the_result_file(capsys, monkeypatch, tmp_path):
    code, out, _ = call(
        capsys,
        monkeypatch,
        "run",
        "napi",
        "--machine",
        "tiny",
        "--count",
        5,
        "--rate",
        "200kpps",
        "--out",
        tmp_path,
        "--json",
    )
    assert code == 0
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "result.json").read_text())
    assert printed["packets"]["delivered"] == 5


def test_mitigations_cost_time_and_are_recorded(capsys, monkeypatch, tmp_path):
    cycles = {}
    for setting, names in {
        "off": [],
        "auto": ["page_table_isolation", "retpoline"],
        "ibrs,retpoline,ibrs": ["ibrs", "retpoline"],
    }.items():
        options = ("--machine", "tiny", "--count", 2, "--rate", "100kpps", "--mitigations", setting, "--out", tmp_path)
        code, out, _ = call(capsys, monkeypatch, "run", "napi", "--json", *options)
        assert code == 0
        result = json.loads(out)
        assert result["software"]["mitigations"] == names
        cycles[setting] = sum(result["cycles_per_packet"].values())
    assert cycles["off"] + 300 < cycles["auto"] < cycles["ibrs,retpoline,ibrs"]


def test_an_idle_core_takes_its_exit_latency(capsys, monkeypatch, tmp_path):
    latency = {}
    for idle in ("poll", "halt"):
        options = (
            "--machine",
            "tiny",
            "--count",
            4,
            "--rate",
            "10kpps",
            "--no-background",
            "--idle",
            idle,
            "--out",
            tmp_path,
        )
        code, out, _ = call(capsys, monkeypatch, "run", "napi", "--json", *options)
        assert code == 0
        result = json.loads(out)
        assert (result["software"]["background"], result["software"]["idle"]) == (False, idle)
        latency[idle] = result["latency_ns"]["min"]  # the first finds the core at work, others meet a refresh
    assert latency["halt"] == pytest.approx(latency["poll"] + 20, abs=4)  # core.sleep_exit_ns of tiny, a core cycle


def test_the_installed_command_runs():
    ended = subprocess.run(
        [Path(sys.executable).with_name("nicscope"), "--version"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0


def test_a_run_that_breaks_a_rule_ends_in_one_line(capsys, monkeypatch, tmp_path):
    """As if the controller had sent a command too early."""
    from hw.mem.dram_timing import DramCommand
    from sim.check import jedec

    early = jedec.Violation(cycle=70, command=DramCommand.RD, bank=3, rule="tRCD", got=4, needed=5)
    monkeypatch.setattr(jedec, "violations", lambda config, commands: iter([early] if len(commands) else []))
    code, _, err = call(capsys, monkeypatch, "run", "napi", "--machine", "tiny", "--count", "3", "--out", tmp_path)
    assert code == 1
    told = "DRAM RD to bank 3 at cycle 70: tRCD, 4 cycles after what it must follow by 5"
    assert err.strip().splitlines()[-1] == f"nicscope: {told}"
