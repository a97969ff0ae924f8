"""Writes the results of the main experiment as one self-contained HTML page."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("advfeat.report", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _as_data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_ENVIRONMENT.filters["percent"] = _percent
_ENVIRONMENT.filters["data_url"] = _as_data_url


def write_report(results: dict, pictures: dict[str, bytes], out: Path) -> Path:
    """Writes ``out/index.html`` from the results of :mod:`advfeat.experiments.main_experiment`; returns its path.

    pictures: PNG bytes, "curves" and one grid for each constructed set, embedded in the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    page = _ENVIRONMENT.get_template("report.html").render(r=results, pictures=pictures)
    path = out / "index.html"
    temporary = out / "index.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path
