"""What ``advfeat reproduce`` and ``advfeat demo`` do: experiments with progress, a table on the terminal, and pages."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from advfeat.console import bar, console, table
from advfeat.experiments import catalogue, presets
from advfeat.experiments.experiment import Experiment
from advfeat.experiments.lab import Lab, Pause
from advfeat.experiments.presets import Preset, preset
from advfeat.experiments.run import Page, read_page, run_experiment
from advfeat.report.page import VERDICTS, duration, write_experiment, write_overview

if TYPE_CHECKING:
    from advfeat import cli

# Says to a script that the time was over and the same command goes on; beside 0 (all done) and 1 (an error).
PAUSED = 75

_COLOURS = {"seen": "green", "undecided": "yellow", "opposite": "red"}


def demo(c: cli.Demo) -> None:
    chosen = preset(c.preset).replace(seeds=(c.seed,))
    lab = Lab(c.out, bar=bar, root=c.root)
    began = time.monotonic()
    page = run_experiment(catalogue.MAIN, lab, chosen)
    command = "advfeat " + shlex.join(sys.argv[1:] or ["demo"])
    path = write_experiment(page, Path(c.out) / "index.html", command, up=False)
    _show(page)
    console.print(f"report: [bold]{path}[/bold]  [dim]({time.monotonic() - began:.0f} s)[/dim]")


def reproduce(c: cli.Reproduce) -> None:
    if c.list or c.name is None:
        _list(c)
        return
    chosen = _preset(c)
    names = list(catalogue.EXPERIMENTS) if c.name == "all" else [catalogue.experiment(c.name).name]
    out = c.out or Path("reproduction") / chosen.name
    deadline = None if c.minutes is None else time.monotonic() + 60 * c.minutes
    lab = Lab(out, bar=bar, root=c.root, device=c.device, deadline=deadline)
    missing: dict[str, str] = {}
    try:
        for name in names:
            found = catalogue.experiment(name)
            console.rule(f"[bold]{found.name}[/bold]  {found.title}", align="left")
            try:
                page = run_experiment(found, lab, chosen)
            except FileNotFoundError as error:
                if c.name != "all":
                    raise
                missing[name] = str(error)
                console.print(f"[yellow]left out[/yellow]  {error}", highlight=False)
                continue
            write_experiment(page, out / f"{name}.html", _command(name, c))
            _show(page)
    except Pause:
        _overview(out, chosen, missing)
        console.print(f"{c.minutes:g} minutes are over; the same command goes on. So far: {out / 'index.html'}")
        raise SystemExit(PAUSED) from None
    console.print(f"report: [bold]{_overview(out, chosen, missing)}[/bold]")


def _preset(c: cli.Reproduce) -> Preset:
    chosen = preset(c.preset)
    if c.arch:
        chosen = chosen.with_arch(c.arch)
    if c.seeds is not None:
        chosen = chosen.replace(seeds=tuple(range(c.seeds)))
    return chosen


def _overview(out: Path, chosen: Preset, missing: dict[str, str]) -> Path:
    rows = []
    for name, found in catalogue.EXPERIMENTS.items():
        page = read_page(out, name)
        rows.append(
            {
                "name": name,
                "title": found.title,
                "results": page.results if page else None,
                "state": missing.get(name, "not done yet"),
            }
        )
    return write_overview(rows, chosen.name, out / "index.html")


def _list(c: cli.Reproduce) -> None:
    columns = presets.names()
    rows = [[found.name, found.paper, *(_minutes(found, name) for name in columns)] for found in _experiments()]
    table(
        "advfeat reproduce NAME --preset PRESET",
        ["name", "the paper", *columns],
        rows,
        "Times with nothing done before: digits and cifar10-cpu on two cores; cifar10 is an estimate for one H200. "
        "Steps are shared, so that all of them together take less. needs: data of yours, see --help.",
    )


def _experiments() -> list[Experiment]:
    return list(catalogue.EXPERIMENTS.values())


def _minutes(found: Experiment, name: str) -> str:
    if name not in found.minutes:
        return "–"
    return duration(60 * found.minutes[name])


def _show(page: Page) -> None:
    r = page.results
    for t in r["tables"]:
        rows = []
        for row in t["rows"]:
            rows.append([row["name"], *(_cell(cell) for cell in row["cells"])])
        table(t["title"], t["columns"], rows, "in brackets: the paper's")
    for f in r["findings"]:
        colour, words = _COLOURS[f["verdict"]], VERDICTS[f["verdict"]]
        console.print(f"[{colour}]{words:<13}[/{colour}]{f['claim']} [dim]{f['seen']}[/dim]", highlight=False)


def _cell(cell: dict) -> str:
    ours = "" if cell["ours"] is None else cell["ours"]["text"].removesuffix(" %")
    if cell["paper"] is None:
        return ours or "–"
    return f"{ours} [dim]({cell['paper']:g})[/dim]".strip()


def _command(name: str, c: cli.Reproduce) -> str:
    """The command for one page, also where all were done at once."""
    options = {"arch": c.arch, "seeds": c.seeds}
    given = [f"--{option} {value}" for option, value in options.items() if value is not None]
    return " ".join(["advfeat reproduce", name, "--preset", c.preset, *given])
