"""``advfeat evaluate --curve``: table, file and picture of one search, and options that have no meaning for it."""

import json
import re

import pytest
import torch
from PIL import Image
from support.commands import fails_in_a_line as fails
from support.commands import run
from support.digits_network import digits_network

from advfeat import FMN, L2, RadiusSearch
from advfeat.cli import curve as command
from advfeat.cli import files
from advfeat.datasets import load
from advfeat.evaluation import RobustnessCurve, pgd_attack, robustness_curve
from advfeat.models import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("curve") / "digits"
    save(digits_network(adversarial=False), found)
    return found


def test_the_file_holds_the_curve_of_python_and_the_table_its_numbers(folder, tmp_path, capsys):
    out = tmp_path / "l2-0.5"
    options = ("--curve", "--attack", "fmn", "--steps", "10", "--radii", "1/4", "0.6", "--limit", "40")
    run("evaluate", "--model", folder, *options, "--out", out)
    said = capsys.readouterr().out
    written, curve = json.loads(out.read_text()), RobustnessCurve.load(out)
    direct = robustness_curve(
        digits_network(adversarial=False), load("digits", "test", limit=40), FMN(L2(8.0), steps=10)
    )
    assert torch.equal(curve.distances, direct.distances) and curve.radii == (0.25, 0.6)
    assert curve.model_fingerprint == direct.model_fingerprint and curve.attack == direct.attack
    for radius in (0.0, 0.25, 0.6):
        assert f"{100 * direct.at(radius).value:.1f} %" in said
    for phrase in ("l2 0.25", "l2 0.6", "upper bounds: a sample counts as robust", "FMN, 10 steps", "l2-0.5.png"):
        assert phrase in " ".join(said.split())
    assert f"median smallest distance {direct.median:.3g}" in " ".join(said.split())
    assert written["model"] == str(folder) and written["picture"] == "l2-0.5.png" and "advfeat" in written["versions"]
    assert {path.name for path in tmp_path.iterdir()} == {"l2-0.5", "l2-0.5.png"}
    with Image.open(tmp_path / "l2-0.5.png") as picture:
        assert picture.format == "PNG"


def test_any_attack_can_be_searched_with(folder, capsys):
    run("evaluate", "--model", folder, "--curve", "--attack", "pgd", "--steps", "5", "--limit", "20", "--norm", "linf")
    said = " ".join(capsys.readouterr().out.split())
    attack = RadiusSearch(pgd_attack(1.0, "linf", steps=5))
    found = robustness_curve(digits_network(adversarial=False), load("digits", "test", limit=20), attack)
    assert f"linf 8/255 │ {100 * found.at(8 / 255).value:.1f} %" in said.replace("  ", " ")
    assert "at up to 10 radii per sample, PGD, 5 steps of falling size" in said
    run("evaluate", "--model", folder, "--curve", "--steps", "2", "--limit", "10", "--norm", "l1")
    said = " ".join(capsys.readouterr().out.split())
    assert "FMN, 100 steps, then at up to 6 radii per sample 2 steps of Auto-PGD" in said and "l1 12" in said


def test_nearest_attacks_work_at_a_single_radius_too(folder, capsys):
    run("evaluate", "--model", folder, "--attack", "ddn", "--eps", "0.5", "--limit", "20")
    assert "DDN, 100 steps, the nearest example" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--curve", "--eps", "0.5"), "--eps has no meaning for --curve, .*: --radii sets those printed"),
        (("--radii", "0.5"), "--radii needs --curve"),
        (("--curve", "--radii", "-0.5"), "--radii should be at least 0, got -0.5"),
        (("--curve", "--radii", "0.5", "0.5"), "--radii should be different radii, got 0.5 twice"),
        (("--curve", "--norm", "linf", "--radii", "8"), "--radii should be at most 1 for linf, .* is 8/255 meant"),
        (("--curve", "--attack", "pgd", "--step-size", "0.1"), "--step-size has no meaning for --curve"),
        (("--curve", "--restarts", "2"), "--restarts has no meaning for --curve with --attack strong"),
        (("--curve", "--table", "t.csv"), "--table has no meaning for --curve"),
        (("--curve", "--diagnose"), "--diagnose has no meaning for --curve"),
        (("--curve", "--state", "s"), "--state has no meaning for --curve"),
        (("--curve", "--stop"), "--stop has no meaning for --curve with --attack strong"),
        (("--curve", "--momentum", "0.5"), "--momentum has no meaning for --curve with --attack strong"),
        (("--curve", "--attack", "ddn", "--norm", "l1"), "--attack ddn is for --norm l2, got l1; fmn takes any norm"),
        (("--curve", "--attack", "fmn", "--restarts", "3"), "--restarts has no meaning for --attack fmn"),
        (("--attack", "fmn", "--stop"), "--stop has no meaning for --attack fmn"),
        (("--curve", "--attack", "autoattack", "--steps", "3"), "--steps has no meaning for --attack autoattack"),
        (("--curve", "--out", "curve.png"), "--out should be a JSON file, beside which the picture is written"),
    ],
)
def test_options_without_a_meaning_are_refused_before_the_work(folder, capsys, monkeypatch, options, message):
    for module in (command, files):
        monkeypatch.setattr(module, "load_model", lambda _: pytest.fail("the work had begun"))
    said = fails(capsys, "evaluate", "--model", folder, *options)
    assert re.search(message, said), said


def test_an_unknown_norm_is_refused(folder, capsys):
    assert "l3" in fails(capsys, "evaluate", "--model", folder, "--curve", "--norm", "l3", status=2)


@pytest.mark.parametrize("name", ["curve.json", "curve.png"])
def test_a_result_that_cannot_be_written_is_said_before_the_work(folder, tmp_path, capsys, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(command, "load_model", lambda _: pytest.fail("the work had begun"))
    message = fails(capsys, "evaluate", "--model", folder, "--curve", "--out", tmp_path / "curve.json")
    assert f"{name} should be a file, got a folder" in message
