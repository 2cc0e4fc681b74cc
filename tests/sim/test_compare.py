"""Comparing paths: what is asked for is parsed, one table shows it, the report stands alone."""

import dataclasses
import html.parser
import io
import json
import re

import pytest
from click.testing import CliRunner
from rich.console import Console

from hw.config import ConfigError, load_machine
from sim.cli import cli
from sim.compare import Comparison, Way, by_path, compare, parse_ways
from sim.observe.stages import Stage, stage_of
from sim.report.comparison import print_comparison, rows
from sim.report.page import write_report
from sim.report.plots import PLOTS
from sim.report.published import Beside, figures
from sim.report.study import SHARES, Study
from sim.result import SCHEMA
from sim.wire.traffic import Traffic
from sw.paths import PATHS


def test_ways_are_all_of_them_or_those_named():
    assert [way.path for way in parse_ways(None, None)] == list(PATHS)
    assert parse_ways("dpdk, napi:rawdrop,dpdk", None) == [Way("dpdk", "rxonly"), Way("napi", "rawdrop")]
    # An application goes to the paths that have it.
    assert parse_ways("napi,dpdk,dpdk:l2fwd", "echo")[1:] == [Way("dpdk", "echo"), Way("dpdk", "l2fwd")]


@pytest.mark.parametrize(
    ("paths", "application", "told"),
    [
        ("tokenring", None, "no path 'tokenring'; there are: .*napi.*dpdk"),
        ("napi:l2fwd", None, "path napi has no application 'l2fwd'; it has: sink, echo, rawdrop"),
        (None, "chess", "no path has an application 'chess'; there are: .*rawdrop.*sink"),
        ("", None, "no path ''"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(paths, application, told):
    if paths == "":
        paths = " "
    with pytest.raises(ConfigError, match=told) as caught:
        parse_ways(paths, application)
    assert "\n" not in str(caught.value)


def test_every_function_of_the_software_has_a_stage():
    assert stage_of("sw.linux.net.udp", "udp_rcv") is Stage.PROTOCOL
    assert stage_of("sw.linux.irq", "common_interrupt") is Stage.SWITCHING
    assert stage_of("sw.dpdk.ixgbe_rx", "ixgbe_recv_pkts_vec") is Stage.DRIVER
    assert stage_of("sw.dpdk.ixgbe_rx", "rx_burst_wait") is Stage.WAITING
    assert stage_of("sw.apps.compute", "compute_chunk") is Stage.WAITING
    assert stage_of("tests.something", "f") is Stage.APPLICATION


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return Comparison(
        machine=load_machine("tiny"),
        ways=parse_ways("napi:rawdrop,dpdk", None),
        traffics={"burst": Traffic.make(size=64, rate="1Mpps", count=20)},
        out=tmp_path_factory.mktemp("compare"),
    )


@pytest.fixture(scope="module")
def results(comparison):
    return compare(comparison)


def test_results_are_those_of_the_runs(comparison, results):
    assert list(results["burst"]) == ["napi:rawdrop", "dpdk:rxonly"]
    for way, result in results["burst"].items():
        kept = comparison.out / "burst" / way.replace(":", "-") / "result.json"
        assert json.loads(kept.read_text()) == result
        assert result["packets"]["delivered"] == 20
        assert sum(result["stages"].values()) == pytest.approx(sum(result["cycles_per_packet"].values()))
    # A core that polls is not interrupted and does less for each packet.
    napi, dpdk = results["burst"].values()
    assert napi["per_packet"]["interrupts"] > 0 == dpdk["per_packet"]["interrupts"]
    assert sum(dpdk["stages"].values()) < sum(napi["stages"].values()) / 3


def test_json_is_one_result_for_each_path_as_it_was_asked_for(comparison, results):
    one = by_path(comparison, results)
    assert list(one) == ["napi:rawdrop", "dpdk"]
    assert one["dpdk"] is results["burst"]["dpdk:rxonly"]
    # A second traffic changes no name of the last one's, and every value is a result.
    both = dataclasses.replace(comparison, traffics={"capture": None, **comparison.traffics})
    two = by_path(both, {"capture": results["burst"], **results})
    assert list(two) == ["napi:rawdrop@capture", "dpdk@capture", "napi:rawdrop", "dpdk"]
    assert {result["schema"] for result in two.values()} == {SCHEMA}


def test_the_command_prints_that(comparison, tmp_path):
    options = ["--machine", "tiny", "--size", "64", "--rate", "1Mpps", "--count", "3", "--batch", "8"]
    command = ["compare", "--paths", "dpdk", *options, "--json", "--out", str(tmp_path)]
    ran = CliRunner().invoke(cli, command, standalone_mode=False)
    told = json.loads(ran.stdout)
    assert list(told) == ["dpdk"] and told["dpdk"]["schema"] == SCHEMA
    assert told["dpdk"]["software"]["options"] == {"batch": 8}


def test_one_table_shows_it(results):
    out = io.StringIO()
    print_comparison(results, Console(file=out, width=120))
    text = out.getvalue()
    for heading, cells in rows(results["burst"]):
        assert heading.strip() in text
        for cell in cells:
            assert cell in text


def test_as_many_ways_stand_beside_each_other_as_fit(results):
    burst = results["burst"]
    six = {"burst": {f"way{n}:{way}": result for n in range(3) for way, result in burst.items()}}
    for width, tables in ((200, 1), (70, 2), (40, 6)):
        out = io.StringIO()
        print_comparison(six, Console(file=out, width=width))
        heads = [line for line in out.getvalue().splitlines() if "way" in line]
        assert len(heads) == tables
        assert sum(line.count("way") for line in heads) == 6
        assert all(len(line) <= width for line in out.getvalue().splitlines())


class _References(html.parser.HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if tag in ("script", "link", "img", "iframe") or (name == "href" and not (value or "").startswith("#")):
                self.found.append((tag, name, value))


def test_the_report_stands_alone(comparison, results, tmp_path):
    burst = results["burst"]
    way, *_ = comparison.ways
    sampled = dataclasses.replace(comparison.experiment(way, "burst"), sample_ns=1000.0, out=tmp_path / "run").run()
    assert sampled["log_sha256"] == burst[str(way)]["log_sha256"]
    study = Study(
        comparison=results,
        sweep={way: [result] * len(SHARES) for way, result in burst.items()},
        ddio={"on": {**burst, str(way): sampled}, "off": burst},
        dram_access_ns=70.0,
        published=[Beside(figures()[0], 50.0)],
    )
    file = tmp_path / "report.html"
    write_report(study, tmp_path, file)
    page = file.read_text()
    references = _References()
    references.feed(page)
    # SVG refers to its own parts and names its schemas; nothing is fetched.
    assert [r for r in references.found if not (r[2] or "").startswith("#")] == []
    assert not re.search(r"url\((?!#|&quot;#)", page)
    assert page.count("<svg") == len(PLOTS) == 6
    occupancy = page[page.index("Who holds the last level") :]
    occupancy = occupancy[: occupancy.index("</figure>")]
    for label in (str(way), "devices", "cores of class of service 0", "KiB of the last level"):
        assert label in occupancy
    for told in (figures()[0].what, "43.5 Mpps", "50 Mpps", "+15 %", "predicted", figures()[0].source):
        assert told in page
    for way in burst:
        assert way in page
