"""All tables of a reproduction as one Markdown file, our numbers beside the paper's."""

from __future__ import annotations

from pathlib import Path

from advfeat.files import write_bytes
from advfeat.report.page import VERDICTS, command, duration, interval, machine


def write_markdown(results: list[dict], path: Path) -> Path:
    """Write the results of experiments as Markdown, in the given order.

    Pictures are linked in ``results/`` beside the file.

    Args:
        results: Results of each experiment, as in ``results/<name>.json``.
        path: The file to write.

    Returns:
        The path.
    """
    lines = [f"# The paper at the preset {results[0]['preset']['name']}", "", _opening(results), ""]
    for r in results:
        lines += [*_experiment(r), ""]
    return _write(path, lines)


def _opening(results: list[dict]) -> str:
    r = results[0]
    verdicts = [f["verdict"] for page in results for f in page["findings"]]
    counts = ", ".join(f"{verdicts.count(v)} {words}" for v, words in VERDICTS.items())
    differs = r["preset"]["differs"]
    return (
        f"{differs[0].upper()}{differs[1:]}. Of {len(verdicts)} claims, the paper's and some of our own: {counts}; a "
        "claim counts as supported only if the intervals of the two numbers do not overlap, unless noted otherwise; "
        "a difference too small to resolve is inconclusive, even if no difference would count against the claim. "
        "Claims that rest on one training seed are marked as such. In brackets: the range over seeds, or the 95 % "
        "Wilson interval for the sampling of the test images if that is wider; with one seed, the interval does not "
        "cover the variation between seeds."
    )


def _experiment(r: dict) -> list[str]:
    seeds = r["seeds"]
    lines = [
        f"## {r['title']}",
        "",
        f"{r['source']}. `{command(r)}`, seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}; {r['date']}, {machine(r)}, {duration(r['seconds'])} including all stages.",
        "",
    ]
    for table in r["tables"]:
        lines += [f"**{table['title']}**", "", *_table(table), "", table["caption"], ""]
    for picture in r["pictures"]:
        lines += [f"![{picture['title']}](results/{r['name']}-{picture['name']}.png)", ""]
    for f in r["findings"]:
        lines.append(f"* *{VERDICTS[f['verdict']]}*: {f['claim']} {f['observed']} (Against it: {_lower(f['against'])})")
    lines += ["", *(f"* {line}" for line in (*r["notes"], *r["why_different"]))]
    if r["differences"]:
        lines += ["", "In words: " + " ".join(r["differences"])]
    while lines[-1] == "":
        lines.pop()
    return lines


def _table(table: dict) -> list[str]:
    head = [table["columns"], ["---"] * len(table["columns"])]
    rows = [[row["name"], *(_cell(cell) for cell in row["cells"])] for row in table["rows"]]
    return ["| " + " | ".join(row) + " |" for row in (*head, *rows)]


def _cell(cell: dict) -> str:
    ours, parts = cell["ours"], []
    if ours is not None:
        spread = f" ({interval(ours)})" if ours["low"] != ours["high"] else ""
        parts.append(f"{ours['text'].removesuffix(' %')}{spread}")
    if cell["paper"] is not None:
        parts.append(f"{cell['whose']} {'≈ ' if cell['approximate'] else ''}{cell['paper']:g}")
    return "; ".join(parts) or "–"


def _lower(text: str) -> str:
    """Return a sentence for use within another: without full stop, and without capital unless it starts with a name."""
    is_name = text[1:2] == "_" or text[1:2].isupper()  # D_R, PGD
    start = text if is_name else text[0].lower() + text[1:]
    return start.removesuffix(".")


def _write(path: Path, lines: list[str]) -> Path:
    while lines and lines[-1] == "":
        lines.pop()
    write_bytes(path, ("\n".join(lines) + "\n").encode(errors="backslashreplace"))
    return path
