"""Published figures: each names its source and its run; a prediction is read off the runs it is of, and no others."""

import copy
import io
from pathlib import Path

import pytest
from rich.console import Console

from hw.config import ConfigError, load_machine
from sim.report import published
from sim.report.published import Beside, Run, as_json, beside, figures, measure, print_published, runs
from sim.result import machine_dict
from sw.paths import path_named

TINY = Run("tiny", "dpdk", "rxonly", 64, "1Mpps", 5, {"batch": 8})


def test_every_figure_can_be_run_and_names_its_source():
    assert figures()
    for figure in figures():
        assert figure.source and figure.conditions and figure.unit and figure.published > 0
        for run in figure.runs:
            path_named(run.path, run.application)
            load_machine(run.machine)
    assert len({figure.what for figure in figures()}) == len(figures())
    # The issue allows two.
    assert sum(figure.kind == "fitted" for figure in figures()) <= 2


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return TINY.experiment(tmp_path_factory.mktemp("published")).run()


def test_a_run_knows_its_results_and_no_others(result):
    assert TINY.is_of(result)
    for change in (
        {"path": "napi"},
        {"application": "echo"},
        {"traffic": result["traffic"] | {"size": 65}},
        {"traffic": result["traffic"] | {"rate": "line"}},
        {"traffic": result["traffic"] | {"count": 4}},
        {"software": result["software"] | {"mitigations": ["retpoline"]}},
        {"software": result["software"] | {"options": {}}},
        {"machine": machine_dict(load_machine("tiny", ["llc.ddio=false"]))},
    ):
        assert not TINY.is_of(result | change), change
    assert TINY.is_of(result | {"traffic": result["traffic"] | {"count": 6}})


def figure_of(monkeypatch, quantity, against=None):
    figure = figures()[0]
    mine = published.replace(figure, run=TINY, against=against, quantity=quantity, published=2.0)
    monkeypatch.setattr(published, "figures", lambda: (mine,))
    return mine


def test_predictions_stand_beside_figures_whose_runs_are_there(result, monkeypatch):
    mine = figure_of(monkeypatch, "delivered_mpps")
    (line,) = beside([result])
    assert line == Beside(mine, result["rates"]["delivered_mpps"])
    assert line.error == pytest.approx(50 * result["rates"]["delivered_mpps"] - 100)
    assert beside([result | {"path": "napi"}]) == []


def test_a_factor_takes_both_of_its_runs(result, monkeypatch):
    figure_of(monkeypatch, "packets_per_core_cycle", published.replace(TINY, options={"batch": 4}))
    slower = copy.deepcopy(result)
    slower["software"]["options"] = {"batch": 4}
    slower["stages"] = {stage: 2 * cycles for stage, cycles in result["stages"].items()}
    assert beside([result]) == []
    assert beside([slower, result])[0].predicted == pytest.approx(2)


def test_every_quantity_can_be_read_off_a_result(result):
    for name, quantity in published.QUANTITIES.items():
        assert quantity(result) >= 0, name
    assert published.QUANTITIES["busy_percent"](result) <= 100


def test_the_table_shows_both_and_the_source():
    figure = figures()[0]
    out = io.StringIO()
    line = Beside(figure, 2 * figure.published)
    print_published([line], Console(file=out, width=240))
    for told in (figure.what, f"{figure.published:g} {figure.unit}", "+100 %", figure.kind, figure.label):
        assert told in out.getvalue()
    assert f"{figure.label}: {figure.source}" in " ".join(out.getvalue().split())
    assert as_json([line])[0]["error_percent"] == pytest.approx(100)


def test_each_run_is_made_once_and_a_machine_without_figures_is_told():
    chosen = runs(figures())
    assert len(chosen) < sum(len(figure.runs) for figure in figures())
    with pytest.raises(ConfigError, match="nothing is published of machine 'tiny'; there are: ddio-bench, xdp-paper"):
        measure("tiny", Path("nowhere"))
