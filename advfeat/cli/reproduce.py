"""The commands ``advfeat reproduce`` and ``advfeat demo``: experiments with progress, tables and HTML pages."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.padding import Padding
from rich.text import Text

from advfeat.cli.console import bar, console, say, table
from advfeat.cli.options import torch_device
from advfeat.experiments import catalogue, cost, shared_stages
from advfeat.experiments.base import MissingData, Stage
from advfeat.experiments.presets import Preset, preset
from advfeat.experiments.run import Page, read_page, run_experiment
from advfeat.experiments.times import CAPTION, MINUTES
from advfeat.experiments.workspace import Pause, Workspace
from advfeat.files import check_writable_folder
from advfeat.report.markdown import write_markdown
from advfeat.report.page import VERDICTS, command, duration, write_experiment, write_overview

if TYPE_CHECKING:
    from advfeat.cli import commands

# Exit status when the time limit is reached and the same command resumes; 0 is success, 1 an error.
PAUSED = 75

_COLOURS = {
    "supported": "green",
    "supported once": "green",
    "inconclusive": "yellow",
    "contradicted once": "red",
    "contradicted": "red",
}


def demo(c: commands.Demo) -> None:
    """Run the main experiment and write its report.

    Args:
        c: Parsed options.
    """
    chosen = preset(c.preset).replace(seeds=(c.seed,))
    workspace = Workspace(check_writable_folder(c.out), bar=bar, root=c.root)
    began = time.monotonic()
    page = run_experiment(catalogue.MAIN, workspace, chosen)
    command = "advfeat " + shlex.join(sys.argv[1:] or ["demo"])
    path = write_experiment(page, Path(c.out) / "index.html", command, up=False)
    _show(page)
    say("report: ", (str(path), "bold"), (f"  ({time.monotonic() - began:.0f} s)", "dim"))


def reproduce(c: commands.Reproduce) -> None:
    """List the experiments, or run one or all of them and write the report.

    With ``all``, experiments that fail or lack their data are reported and skipped.

    Args:
        c: Parsed options.

    Raises:
        SystemExit: With status 75 when the time limit is reached, 1 if an experiment of ``all`` failed.
        ValueError: If an option is invalid; errors of a single experiment are raised as they are.
    """
    if c.list or c.measure or c.name is None:
        _list(c)
        return
    chosen = _preset(c)
    names = list(catalogue.EXPERIMENTS) if c.name == "all" else [catalogue.experiment(c.name).name]
    out = _out(c, chosen)
    deadline = None if c.minutes is None else time.monotonic() + 60 * c.minutes
    workspace = Workspace(
        check_writable_folder(out), bar=bar, root=c.root, device=torch_device(c.device), deadline=deadline
    )
    if c.name == "all":
        # Almost every experiment needs D, so fail now; a single experiment names what it lacks itself.
        workspace.open(shared_stages.data(chosen))
    states: dict[str, str] = {}
    failed = False
    try:
        for i, name in enumerate(names):
            found = catalogue.experiment(name)
            console.rule(Text.assemble((found.name, "bold"), f"  {found.title}"), align="left")
            try:
                page = run_experiment(found, workspace, chosen, _steps(names[i + 1 :], chosen))
            except MissingData as error:
                if c.name != "all":
                    raise
                states[name] = str(error)
                say(("skipped", "yellow"), f"  {error}")
            except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
                if c.name != "all":
                    raise
                failed, states[name] = True, f"failed: {type(error).__name__}: {error}"
                say(("failed", "red"), f"  {states[name][8:]}")
            else:
                write_experiment(page, out / f"{name}.html", command(page.results))
                _show(page)
    except Pause:
        say(f"time limit of {c.minutes:g} minutes reached; the same command resumes")
        raise SystemExit(PAUSED) from None
    finally:
        say("report: ", (str(_overview(out, chosen, states)), "bold"))
    if failed:
        raise SystemExit(1)


def _steps(names: list[str], chosen: Preset) -> list[Stage]:
    """Return the stages of several experiments, each after those it needs."""
    experiments = [catalogue.experiment(name) for name in names]
    return [step for found in experiments if found.concerns(chosen) for step in found.stages(chosen).values()]


def _preset(c: commands.Reproduce) -> Preset:
    chosen = preset(c.preset)
    if c.arch:
        chosen = chosen.with_arch(c.arch)
    if c.seeds is not None:
        chosen = chosen.replace(seeds=tuple(range(c.seeds)))
    return chosen


def _out(c: commands.Reproduce, chosen: Preset) -> Path:
    return c.out or Path("reproduction") / chosen.name


def _overview(out: Path, chosen: Preset, states: dict[str, str]) -> Path:
    rows: list[dict] = []
    for name, found in catalogue.EXPERIMENTS.items():
        page = read_page(out, name)
        if page and page.results["preset"]["name"] != chosen.name:
            page = None
        rows.append(
            {
                "name": name,
                "title": found.title,
                "results": page.results if page else None,
                "state": states.get(name, "not done yet"),
            }
        )
    done = [row["results"] for row in rows if row["results"]]
    if done:
        write_markdown(done, out / "results.md")
    return write_overview(rows, chosen.name, out / "index.html")


def _list(c: commands.Reproduce) -> None:
    expected = _expected(c) if c.measure else None
    for name, found in catalogue.EXPERIMENTS.items():
        if expected is None:
            known = {preset: times[name] for preset, times in MINUTES.items() if name in times}
            when = " · ".join(f"{preset} {duration(60 * minutes)}" for preset, minutes in known.items())
        else:
            when = expected[name]
        console.print(Text.assemble((name, "bold"), f"  {found.title}  ", (f"({found.source})", "dim")))
        for title, text in (("paper", found.paper), ("time", when), ("needs", found.needs)):
            if text:
                console.print(Padding(Text(f"{title}: {text}"), (0, 0, 0, 4)))
    if expected is None:
        console.print(Text(f"\n{CAPTION} --measure estimates the times for this machine.", "dim"))
    say("advfeat reproduce NAME --preset digits | cifar10-cpu | cifar10")


def _expected(c: commands.Reproduce) -> dict[str, str]:
    """Estimate the time of each experiment on this machine: alone, and with completed stages reused."""
    chosen = _preset(c)
    device = torch_device(c.device)
    workspace = Workspace(_out(c, chosen), bar=bar, root=c.root, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.threads or threads)
    work = {name: cost.passes(found.stages(chosen).values()) for name, found in catalogue.EXPERIMENTS.items()}
    rates: dict = {}
    try:
        with bar(f"measuring {chosen.name} on this machine", "kinds of passes") as report:
            kinds = sorted({key for passes in work.values() for key in passes}, key=str)
            for i, (net, kind) in enumerate(kinds):
                rates[net, kind] = cost.measure_rate(net, kind, device)
                report(i + 1, len(kinds))
    finally:
        torch.set_num_threads(threads)
    times: dict[str, str] = {}
    seen: set[str] = set()
    for name, found in catalogue.EXPERIMENTS.items():
        left = {k: s for k, s in found.stages(chosen).items() if k not in seen and not workspace.is_done(s)}
        seen |= left.keys()
        todo = cost.seconds(cost.passes(left.values()), rates)
        times[name] = f"{duration(cost.seconds(work[name], rates))} alone, {duration(todo)} after those above"
    return times


def _show(page: Page) -> None:
    r = page.results
    for t in r["tables"]:
        rows = []
        for row in t["rows"]:
            rows.append([row["name"], *(_cell(cell) for cell in row["cells"])])
        whose = {f"the {cell['whose']}'s" for row in t["rows"] for cell in row["cells"] if cell["paper"] is not None}
        table(t["title"], t["columns"], rows, f"in brackets: {' or '.join(sorted(whose))}" if whose else None)
    for f in r["findings"]:
        colour, words = _COLOURS[f["verdict"]], VERDICTS[f["verdict"]]
        console.print(Text.assemble((f"{words:<25}", colour), f"{f['claim']} ", (f["observed"], "dim")))


def _cell(cell: dict) -> Text:
    ours = "" if cell["ours"] is None else cell["ours"]["text"].removesuffix(" %")
    if cell["paper"] is None:
        return Text(ours or "–")
    return Text.assemble(f"{ours} " if ours else "", (f"({cell['paper']:g})", "dim"))
