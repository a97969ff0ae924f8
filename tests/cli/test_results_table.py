"""The file of ``--table``: the same numbers in each format, and names that LaTeX and Markdown print as they are."""

import csv
import io
import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advfeat.cli.results_table import ResultsTable, check_table, latex
from advfeat.evaluation import AfterAttack, Evaluation, Robustness
from advfeat.intervals import Share

NAMES = ("apgd-ce", "apgd-t")


def outcome(clean, after, eps=0.5, n=1000):
    """An evaluation with these counts after each attack."""
    left, rows = clean, []
    for name, count in zip(NAMES, after, strict=False):
        rows.append(AfterAttack(name, left, left - count, Share(count, n), 10, 10, 1.0))
        left = count
    share = Share(left, n)
    r = Robustness(f"l2 {eps:g}", eps, {}, share, share, 0, clean, 0.1, 0, 0, eps, 10, 10, tuple(rows))
    empty = torch.zeros(0)
    return Evaluation(
        "digits", Share(clean, n), 0.1, [r], 0, True, False, 1, "m", "d", empty, empty, empty, empty, empty, {}
    )


@pytest.fixture
def two():
    made = ResultsTable("l2", "AutoAttack")
    made.add("runs/a_b", outcome(953, (641, 597)))
    made.add("runs/50 % | c", outcome(900, (800, 123)))
    return made


def test_csv_has_shares_and_intervals(two):
    rows = list(csv.DictReader(io.StringIO(two.to_csv().decode())))
    assert [row["model"] for row in rows] == ["runs/a_b", "runs/50 % | c"]
    first = rows[0]
    assert first["threat"] == "l2 0.5" and (first["n"], first["data"]) == ("1000", "digits")
    values = [float(first[name]) for name in ("clean", "after apgd-ce", "after apgd-t", "robust")]
    assert values == [0.953, 0.641, 0.597, 0.597]
    assert (float(first["robust low"]), float(first["robust high"])) == Share(597, 1000).interval


def test_json_has_counts(two):
    told = json.loads(two.to_json(versions={"advfeat": "1"}))
    assert told["attack"] == "AutoAttack" and told["versions"] == {"advfeat": "1"}
    row = told["rows"][1]
    assert row["model"] == "runs/50 % | c" and row["eps"] == 0.5 and row["clean_accuracy"]["count"] == 900
    assert [row["after"][name]["count"] for name in NAMES] == [800, 123]
    assert row["robust_accuracy"] == Share(123, 1000).to_dict()


def test_markdown_has_a_row_per_model(two):
    lines = two.to_markdown().decode().splitlines()
    assert lines[0] == "| model | threat | clean | after apgd-ce | after apgd-t | robust |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| runs/a\\_b | l2 0.5 | 95.3 | 64.1 | 59.7 | 59.7 (56.6–62.7) |"
    assert lines[3].startswith("| runs/50 % \\| c | l2 0.5 | 90.0 |")
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in lines[:4])


def test_latex_is_a_tabular_with_booktabs(two):
    lines = two.to_latex().decode().splitlines()
    assert r"\begin{tabular}{llrrrr}" in lines and "% needs \\usepackage{booktabs}" in lines
    rules = [line for line in lines if re.fullmatch(r"\\(top|mid|bottom)rule", line)]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"runs/a\_b & l2 0.5 & 95.3 & 64.1 & 59.7 & 59.7 (56.6--62.7) \\" in lines
    assert any(line.startswith(r"runs/50 \% \textbar{} c & ") for line in lines)
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 3 and all(len(re.findall(r"(?<!\\)&", line)) == 5 for line in body)


UNESCAPED = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^"}
UNESCAPED |= {r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", "-{}": "-"}


@given(st.text(st.characters(codec="utf-8"), max_size=30) | st.text("\\~^<>|&%$#_{}- a", max_size=12))
def test_latex_prints_any_name_as_it_is(text):
    escaped = latex(text)
    pieces = re.findall(r"\\text[a-z]+\{\}|-\{\}|\\[&%$#_{}]|[^\\~^<>|&%$#_{}]", escaped)
    assert "".join(pieces) == escaped, "a character that LaTeX would take for a command is left"
    assert "--" not in escaped
    assert "".join(UNESCAPED.get(p, p.removeprefix("\\")) for p in pieces) == " ".join(text.split())


def test_a_single_attack_has_no_column_of_its_own():
    made = ResultsTable("linf", "PGD")
    made.add("a", outcome(950, (600,), eps=8 / 255))
    assert made.to_markdown().decode().splitlines()[0] == "| model | threat | clean | robust |"
    assert "| linf 8/255 | 95.0 | 60.0 (" in made.to_markdown().decode()


def test_several_radii_are_rows_and_without_a_radius_there_is_one(two):
    found = outcome(900, (800, 700))
    found.robustness.append(outcome(900, (500, 400), eps=1.0).robustness[0])
    two.add("c", found)
    rows = list(csv.DictReader(io.StringIO(two.to_csv().decode())))
    assert [row["threat"] for row in rows] == ["l2 0.5", "l2 0.5", "l2 0.5", "l2 1"]
    found.robustness.clear()
    two.add("d", found)
    last = list(csv.DictReader(io.StringIO(two.to_csv().decode())))[-1]
    assert last["clean"] == "0.9" and last["threat"] == last["robust"] == last["robust high"] == ""


def test_another_suffix_is_an_error(tmp_path):
    for name in ("table", "table.xlsx", "table.csv.gz"):
        with pytest.raises(ValueError, match=r"--table should end in .csv, .md, .tex or .json, .* got .*" + name):
            check_table(tmp_path / name)
    assert check_table(tmp_path / "T.CSV") == ".csv"
