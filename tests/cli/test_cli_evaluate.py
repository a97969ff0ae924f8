"""What ``advfeat evaluate`` says of attacks in turn."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.commands import fails, run
from support.digits_network import digits_network

from advfeat import L2, Ensemble
from advfeat.attacks import AutoAttack, Square, autoattack
from advfeat.cli import evaluate as command
from advfeat.evaluation import pgd_attack
from advfeat.models import save

SHORT = ("--limit", 30, "--eps", 0.4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The run folder of a model of the digits, standard."""
    folder = tmp_path_factory.mktemp("run") / "model"
    made = digits_network(adversarial=False)
    made.classes = tuple("0123456789")
    save(made, folder)
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """AutoAttack takes few steps and queries."""
    monkeypatch.setattr(autoattack, "_STEPS", 3)
    monkeypatch.setattr(autoattack, "_QUERIES", 5)
    assert AutoAttack(L2(0.5)).attacks[-1].steps == 5


def test_it_shows_what_each_attack_broke(model, tmp_path, capsys):
    run("evaluate", "--model", model, *SHORT, "--attack", "autoattack", "--out", tmp_path / "r.json")
    out = capsys.readouterr().out
    told = json.loads((tmp_path / "r.json").read_text())["robustness"][0]["breakdown"]
    rows = re.findall(r"│ ([a-z-]+) +│ +(\d+) │ +([\d.]+) % \([\d.]+ – [\d.]+\) │ +([^│]+) │ +([\d.]+) │", out)
    assert [row[0] for row in rows] == [row["name"] for row in told] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for (_, broken, left, *_), row in zip(rows, told, strict=True):
        assert int(broken) == row["broken"] and left == f"{100 * row['robust_accuracy']['value']:.1f}"
        assert row["seconds"] >= 0
    samples = [json.loads(line) for line in (tmp_path / "r.samples.jsonl").read_text().splitlines()]
    for row in told:
        assert sum(s["broken_by"]["l2 0.4"] == row["name"] for s in samples) == row["broken"]
    assert told[0]["broken"] > 0


def test_a_single_attack_has_no_second_table(model, capsys):
    run("evaluate", "--model", model, *SHORT, "--attack", "pgd", "--steps", 2)
    assert "those before it left" not in capsys.readouterr().out


def test_what_a_smaller_radius_broke_has_a_row(model, capsys, monkeypatch):
    weak = {"steps": 1, "step_size": 1e-4}

    def attacks(c, eps):
        return Ensemble((pgd_attack(eps, **weak), pgd_attack(eps, **({} if eps < 0.5 else weak))))

    monkeypatch.setattr(command, "evaluation_attack", attacks)
    monkeypatch.setattr(command, "attack_in_words", lambda *_: "two")
    run("evaluate", "--model", model, "--limit", 30, "--eps", 0.4, 0.5)
    assert re.search(r"smaller radius │ +[1-9]\d* │", capsys.readouterr().out)


@pytest.mark.parametrize("suffix", ["csv", "md", "tex", "json"])
def test_several_models_are_rows_of_one_table(model, tmp_path, capsys, suffix):
    shutil.copytree(model, tmp_path / "a_b")
    out = tmp_path / f"table.{suffix}"
    run("evaluate", "--model", model, tmp_path / "a_b", *SHORT, "--attack", "autoattack", "--table", out)
    told, text = capsys.readouterr().out, out.read_text()
    assert f"written to {out}" in told and "the models side by side" in told
    assert told.count("those before it left") == 2
    name = str(tmp_path / "a_b")
    written = {"csv": name, "json": json.dumps(name)}.get(suffix, name.replace("_", "\\_"))
    assert str(model).replace("_", "\\_" if suffix in ("md", "tex") else "_") in text and written in text
    assert "apgd-ce" in text and "square" in text


def test_a_table_or_a_result_that_cannot_be_is_said_before_the_work(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda _: pytest.fail("the work had begun"))
    for arguments, message in (
        (["--table", tmp_path / "t.xlsx"], "--table should end in .csv, .md, .tex or .json"),
        ([model, "--examples", tmp_path / "e.npz"], "--examples is for one --model, got 2"),
        (["--examples", tmp_path / "e.pt"], "--examples should end in .safetensors or .npz"),
        (["--examples", next(model.glob("*.safetensors"))], "--examples should be a file of its own"),
        (["--table", model / "model.json"], "--table should be a file of its own"),
        ([model, "--out", tmp_path / "r.json"], "--out is for one --model, got 2"),
    ):
        assert message in fails(capsys, "evaluate", "--model", model, *arguments)
    assert "at least one path" in fails(capsys, "evaluate", "--model", status=2)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_evaluation_resumes_and_another_is_refused(model, tmp_path, capsys, monkeypatch):
    arguments = ["evaluate", "--model", model, *SHORT, "--attack", "autoattack", "--state", tmp_path / "state"]
    run(*arguments[:-2], "--out", tmp_path / "whole.json")
    square = Square._run

    def interrupted(self, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(Square, "_run", interrupted)
    assert "interrupted; the same command resumes" in fails(capsys, *arguments, status=130)
    monkeypatch.setattr(Square, "_run", square)
    for other in ("FAB", "APGD"):  # which have nothing left to do
        monkeypatch.setattr(f"advfeat.{other}._run", lambda *_: pytest.fail("done again"))
    capsys.readouterr()
    run(*arguments, "--batch-size", 7, "--out", tmp_path / "r.json")
    assert f"resuming from {tmp_path / 'state'}" in capsys.readouterr().out
    wanted, found = (json.loads((tmp_path / name).read_text())["robustness"][0] for name in ("whole.json", "r.json"))
    for row in (*wanted["breakdown"], *found["breakdown"]):
        del row["seconds"], row["forward_passes"]
    assert wanted["breakdown"] == found["breakdown"]
    message = fails(capsys, *arguments, "--seed", 3)
    assert (
        "--state should be a folder of this evaluation or a new one" in message and "seed is 0 there and 3" in message
    )


def test_each_of_several_models_has_a_state_of_its_own(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "other")
    arguments = ["--attack", "pgd", "--steps", 1, "--state", tmp_path / "state"]
    run("evaluate", "--model", model, tmp_path / "other", *SHORT, *arguments)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["model-1", "model-2"]
    run("evaluate", "--model", model, tmp_path / "other", *SHORT, *arguments)
    assert capsys.readouterr().out.count("resuming from") == 2


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_the_examples_are_what_the_results_say(model, tmp_path, suffix):
    out, name = tmp_path / f"e.{suffix}", "l2 0.4"
    arguments = ("--limit", 30, "--eps", 0.2, 0.4, "--attack", "auto", "--steps", 3, "--out", tmp_path / "r.json")
    for _ in range(2):  # the second replaces the first
        run("evaluate", "--model", model, *arguments, "--examples", out)
    if suffix == "npz":
        with np.load(out) as file:
            found = {key: file[key] for key in file.files}
        about = json.loads(str(found["advfeat adversarial examples"]))
    else:
        with safe_open(out, framework="np") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = json.loads(file.metadata()["advfeat adversarial examples"])
    told = [json.loads(line) for line in (tmp_path / "r.samples.jsonl").read_text().splitlines()]
    names = [*about["attacks"][name]["broken_by"], None]
    assert names == ["apgd-margin", "apgd-t", None]
    assert [names[i] for i in found[f"{name}/broken_by"]] == [sample["broken_by"][name] for sample in told]
    assert found["label"].tolist() == [sample["label"] for sample in told]
    assert found["index"].tolist() == [sample["index"] for sample in told]
    with torch.no_grad():
        said = digits_network(adversarial=False)(torch.from_numpy(found[f"{name}/images"])).argmax(1).numpy()
    robust = found[f"{name}/robust"]
    assert ((said == found["label"]) == robust).all() and 0 < robust.sum() < 29
    assert found[f"{name}/distance"].max() <= 0.4 * (1 + 1e-5) and (found[f"{name}/distance"][~robust] > 0).any()
