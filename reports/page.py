"""A report as one HTML file that needs no network, and its charts as SVG and PDF."""

import gzip
import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reports.charts import config
from reports.figures import Figure, Section
from reports.reading import Problem
from utils.files import csv_text, write_atomically

_FOLDER = Path(__file__).parent
# Longer tables are cut in the page; the file to download has all rows.
_ROWS = 400
# Widths of charts in files, and of their legends, in pixels.
_WIDTH, _LEGEND = 560, 700
# Bytes of a CSV file above which it is compressed.
_LONG = 50_000


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes:
        made: when and how, in words.
        problems: what is missing or damaged.
        folder: logs of the first run.
        table: the task table, or the sequence of tasks.
    """

    title: str
    made: str
    sections: Sequence[Section]
    problems: Sequence[Problem]
    folder: Path
    table: str

    @property
    def figures(self) -> list[Figure]:
        """All figures, in order."""
        return [figure for section in self.sections for figure in section.figures]


def html(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "csv_link": csv_link}
    environment.tests["number"] = _is_number
    charts = {figure.id: _compact(figure.chart) for figure in report.figures if figure.chart}
    return environment.get_template("page.html").render(
        report=report,
        limit=_ROWS,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        vega=_vega() if charts else "",
        charts=_for_script(charts),
        config=_for_script(config()),
    )


def write(path: Path, text: str) -> None:
    """Write a page."""
    write_atomically(path, text)


def write_figures(report: Report, folder: Path) -> int:
    """Write every chart as SVG and PDF; returns the number of charts."""
    charts = [figure for figure in report.figures if figure.chart]
    for figure in charts:
        settings = config() | {"background": "white"}
        # As many entries of the legend side by side as the page would place there.
        columns = max(_LEGEND // (figure.chart["usermeta"]["longest"] * 6.5 + 50), 1)
        settings["legend"] |= {"columns": int(columns)}
        spec = dict(figure.chart) | {"config": settings, "padding": 8}
        if spec.get("width") == "container":
            spec["width"] = _WIDTH
        svg = vl_convert.vegalite_to_svg(spec)
        write_atomically(folder / f"{figure.id}.svg", svg)
        write_atomically(folder / f"{figure.id}.pdf", vl_convert.svg_to_pdf(svg))
    return len(charts)


def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return vl_convert.javascript_bundle()


def _for_script(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _compact(spec: Mapping[str, Any]) -> dict:
    """A specification whose rows are lists, in the order of `columns`; the page's script expands them."""
    rows = spec["datasets"]["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    values = [[_rounded(row.get(name)) for name in columns] for row in rows]
    return {name: value for name, value in spec.items() if name != "datasets"} | {
        "columns_of_rows": columns,
        "rows": values,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: object) -> str:
    """A cell of a table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value != 0 and abs(value) < 0.001:
            return f"{value:.2g}"
        return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)
    return str(value)


def csv_link(figure: Figure) -> dict[str, str]:
    """A link that holds a figure's numbers as a CSV file, compressed if it is long."""
    numbers = figure.numbers
    rows = [{name: _rounded(row.get(name)) for name in numbers.columns} for row in numbers.rows]
    text = csv_text(rows, numbers.columns)
    if len(text) <= _LONG:
        uri = "data:text/csv;charset=utf-8," + quote(text, safe=" ,.:;()[]=+-_/")
        return {"name": f"{figure.id}.csv", "uri": uri, "kind": "CSV"}
    packed = b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return {
        "name": f"{figure.id}.csv.gz",
        "uri": f"data:application/gzip;base64,{packed}",
        "kind": "compressed CSV",
    }


def _rounded(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value
