"""Experiments as self-contained HTML pages, and an overview of them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from advfeat.datasets.registry import known
from advfeat.experiments import presets
from advfeat.experiments.run import Page
from advfeat.files import write_bytes

VERDICTS = {
    "supported": "supported",
    "supported once": "supported at one seed",
    "inconclusive": "inconclusive",
    "contradicted once": "contradicted at one seed",
    "contradicted": "contradicted",
}


def write_experiment(page: Page, path: Path, command: str, *, up: bool = True) -> Path:
    """Write the page of an experiment.

    Args:
        page: The experiment.
        path: File to write.
        command: Command that reproduces the page.
        up: Link to the overview beside the page.

    Returns:
        The path.
    """
    r = page.results
    shown = ("tables", "findings", "differences", "notes", "why_different", "curves")
    settings = {k: v for k, v in r.items() if k not in shown}
    return _write(
        path,
        "experiment.html",
        r=r,
        pictures=page.pictures,
        summary=summary(r),
        machine=machine(r),
        spread=lambda table: spread(table, r),
        verdict_words=VERDICTS,
        command=command,
        settings=json.dumps(settings, indent=2),
        up=up,
    )


def write_overview(rows: list[dict], preset: str, path: Path) -> Path:
    """Write the overview of all experiments.

    Args:
        rows: For each experiment ``name``, ``title``, ``results`` (None if it is not done) and ``state`` (shown
            instead).
        preset: Name of the preset.
        path: File to write.

    Returns:
        The path.
    """
    shown = []
    for row in rows:
        r = row["results"]
        verdicts = [f["verdict"] for f in r["findings"]] if r else []
        shown.append(
            {
                **row,
                "page": f"{row['name']}.html" if r else None,
                "verdicts": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
                "seconds": r["seconds"] if r else 0,
            }
        )
    done = sum(row["results"] is not None for row in rows)
    verdicts = [f["verdict"] for row in rows if row["results"] for f in row["results"]["findings"]]
    words = (
        f"{done} of {len(rows)} experiments are done. Of the {len(verdicts)} claims they check: {_counted(verdicts)}."
    )
    return _write(path, "overview.html", rows=shown, preset=preset, summary=words, verdict_words=VERDICTS)


def summary(r: dict) -> str:
    """Return a summary of an experiment in one or two sentences.

    Args:
        r: Results of the experiment.
    """
    data = max(r["data"], key=lambda d: (d["split"] == "train", d["samples"]))
    seeds, verdicts = r["seeds"], [f["verdict"] for f in r["findings"]]
    words = f"Reproduced on {title(data['name'])}: {data['samples']:,} {data['split']}ing images, "
    words += f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}. "
    if verdicts:
        words += f"Of the {len(verdicts)} claims checked below: {_counted(verdicts)}."
    return words


def _counted(verdicts: list[str]) -> str:
    return ", ".join(f"{verdicts.count(v)} {words}" for v, words in VERDICTS.items() if v in verdicts) or "none"


def command(r: dict) -> str:
    """Return the command that reproduces one experiment, even if all were run together.

    Args:
        r: Results of the experiment.
    """
    name, own = r["preset"]["name"], [name for name in presets.names() if r["preset"]["name"].startswith(name)]
    base = max(own, key=len)
    words = ["advfeat reproduce", r["name"], "--preset", base]
    if name != base:
        words += ["--arch", name.removeprefix(base + "-")]
    if tuple(r["preset"]["seeds"]) != presets.preset(base).seeds:
        words += ["--seeds", str(len(r["preset"]["seeds"]))]
    return " ".join(words)


def machine(r: dict) -> str:
    """Return a description of the hardware and software of a run.

    Args:
        r: Results of the experiment.
    """
    threads = f"{r['threads']} thread" + ("" if r["threads"] == 1 else "s")
    return f"{r['device']}, {threads}, torch {r['versions']['torch']}, {r['platform'].split('-')[0]}"


def title(dataset: str) -> str:
    """Return the usual spelling of a data set's name.

    Args:
        dataset: Name of the data set.
    """
    return known(dataset).title or dataset


def spread(table: dict, r: dict) -> str:
    """Explain the small figures beside the numbers of a table.

    Args:
        table: The table as JSON values.
        r: Results of the experiment.

    Returns:
        One sentence, empty if the table has no shares of samples.
    """
    numbers = [cell["ours"] for row in table["rows"] for cell in row["cells"] if cell["ours"]]
    sizes = {number["n"] for number in numbers if "n" in number}
    if not sizes:
        return ""
    what = "the 95 % Wilson interval for the sampling of the images tested on"
    if len(sizes) == 1:
        what += f", {sizes.pop():,}"
    if len(r["seeds"]) == 1:
        return f"Small figures: {what}; they do not cover the variation between seeds."
    return f"Small figures: the range over seeds, at least {what}."


def _write(path: Path, template: str, **values: object) -> Path:
    write_bytes(path, _ENVIRONMENT.get_template(template).render(**values).encode(errors="backslashreplace"))
    return path


def interval(number: dict) -> str:
    """Return the interval of a number as text.

    Args:
        number: The number as JSON values.
    """
    digits = number.get("digits", 1)
    return f"{number['low']:.{digits}f}–{number['high']:.{digits}f}"


def _with_subscripts(text: str) -> Markup:
    """Typeset D_R, D_NR, D_rand and D_det with subscripts."""
    return Markup(re.sub(r"\bD_(R|NR|rand|det)\b", r"D<sub>\1</sub>", str(escape(text))))


def duration(seconds: float) -> str:
    """Return a duration as text, in seconds, minutes or hours.

    Args:
        seconds: The duration.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("advfeat.report", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["sets"] = _with_subscripts
_ENVIRONMENT.filters["data_url"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
_ENVIRONMENT.filters["duration"] = duration
_ENVIRONMENT.filters["interval"] = interval
_ENVIRONMENT.filters["tidy"] = lambda value: f"{value:g}"
