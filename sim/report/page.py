"""A report: one HTML file that opens offline."""

from pathlib import Path

import jinja2

from sim.report.comparison import rows
from sim.report.plots import PLOTS
from sim.report.published import COLUMNS, sources
from sim.report.study import Study

__all__ = ["write_report"]

TEMPLATE = Path(__file__).with_name("page.html")


def write_report(study: Study, directory: Path, file: Path) -> None:
    """Write the table and the plots.

    Arguments:
        directory: where the results of the runs are, to be named.
        file: the page.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text())
    results = next(iter(study.comparison.values()))
    page = template.render(
        ways=list(results),
        machine=next(iter(results.values()))["machine"],
        sections=[
            (next(iter(section.values()))["traffic"]["description"], rows(section))
            for section in study.comparison.values()
        ],
        plots=[(heading, text, draw(study)) for heading, text, draw in PLOTS],
        published=[[tell(line) for tell in COLUMNS.values()] for line in study.published],
        published_columns=list(COLUMNS),
        sources=sources(study.published),
        directory=directory,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page)
