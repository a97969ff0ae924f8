"""Steps of experiments: known by what they are made from, done once, stopped and gone on with."""

import contextlib
import dataclasses
import json
import time

import pytest
import torch
from tiny_preset import tiny_preset

from advfeat.experiments import lab as lab_module
from advfeat.experiments.lab import Lab, Pause
from advfeat.experiments.pieces import constructed, data, evaluated, model
from advfeat.experiments.steps import Data, Step, all_steps


@contextlib.contextmanager
def no_bar(title, unit):
    yield lambda done, total: None


def make_lab(path, **settings) -> Lab:
    return Lab(path, bar=no_bar, device="cpu", **settings)


def test_the_key_is_the_hash_of_everything_but_the_label():
    p = tiny_preset()
    step = evaluated(p, model(p, "det", 0))
    assert step.key == dataclasses.replace(step, label="another name").key
    assert len(step.key) == 12 and int(step.key, 16) >= 0
    # A change anywhere below is another step: of the training, the recipe, the source's training, the data, the seed.
    other = [
        dataclasses.replace(step, limit=3),
        evaluated(p.replace(attack_steps=3), model(p, "det", 0)),
        evaluated(p, model(p, "det", 1)),
        evaluated(p, model(p, "rand", 0)),
        evaluated(p, model(p.replace(limit=50), "det", 0)),
        evaluated(p, model(p.replace(standard=p.standard.replace(lr=0.05)), "det", 0)),
        evaluated(p, model(p.replace(recipes=p.recipes | {"det": p.recipes["rand"]}), "det", 0)),
    ]
    keys = [s.key for s in other]
    assert step.key not in keys and len(set(keys)) == len(keys)
    # What it does not rest on does not matter.
    assert evaluated(p, model(p.replace(adversarial=p.standard), "det", 0)).key == step.key


def test_descriptions_are_json_and_hold_what_they_are_made_from():
    p = tiny_preset()
    described = evaluated(p, model(p, "robust", 0)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["model"]["data"]["model"]["config"]["attack"]["eps"] == 0.75
    assert described["model"]["data"]["recipe"]["name"] == "robust"


def test_all_steps_come_after_what_they_need():
    p = tiny_preset()
    steps = all_steps([evaluated(p, model(p, key, 0)) for key in ("det", "rand", "standard")])
    seen = set()
    for key, step in steps.items():
        assert key == step.key and all(needed.key in seen for needed in step.needs())
        seen.add(key)
    assert sum(step.kind == "model" for step in steps.values()) == 3  # the standard model counts once


def test_a_step_is_done_once_and_found_under_another_label(tmp_path, monkeypatch):
    p = tiny_preset()
    step = evaluated(p, model(p, "det", 0))
    lab = make_lab(tmp_path)
    outcome = lab.open(step)
    assert outcome["clean"]["n"] == 40 and 0 <= outcome["next"]["count"] <= 40
    assert [r["eps"] for r in outcome["robust"]] == list(p.radii)
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    # Another process, another name: nothing is done.
    monkeypatch.setattr(lab_module.Lab, "_make", lambda *_: pytest.fail("done again"))
    again = make_lab(tmp_path)
    assert again.open(dataclasses.replace(step, label="renamed")) == outcome
    assert again.is_done(step) and again.seconds(step) > 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == files
    assert set(again.cost(all_steps([step]).values())) == {"model D", "set D_det", "model D_det", "evaluation D_det"}


def test_the_record_says_what_a_step_is_and_what_made_it(tmp_path):
    p = tiny_preset()
    step = model(p, "standard", 0)
    lab = make_lab(tmp_path)
    lab.open(step)
    record = json.loads((lab.folder(step) / "step.json").read_text())
    assert record["step"] == step.describe() and record["done"] and record["label"] == "D"
    assert {"versions", "device", "threads", "git"} <= record.keys()
    assert lab.history(step)[0]["epoch"] == 1


def test_out_of_time_stops_and_goes_on_to_the_same_bytes(tmp_path):
    p = tiny_preset()
    step = model(p.replace(standard=p.standard.replace(epochs=4)), "standard", 0)
    whole = make_lab(tmp_path / "whole")
    whole.open(step)
    pieces = 0
    while True:
        lab = make_lab(tmp_path / "pieces", deadline=time.monotonic())

        ticks = iter(range(100))
        lab._check_time = lambda ticks=ticks: _pause_after(ticks, 4)  # two steps an epoch: past one checkpoint
        try:
            lab.open(step)
            break
        except Pause:
            pieces += 1
            assert not lab.is_done(step)
            assert json.loads((lab.folder(step) / "step.json").read_text())["done"] is False
    assert pieces >= 1
    name = "model.safetensors"
    assert (lab.folder(step) / name).read_bytes() == (whole.folder(step) / name).read_bytes()
    assert lab.history(step)[-1]["epoch"] == 4


def _pause_after(ticks, n):
    if next(ticks) >= n:
        raise Pause


def test_no_time_at_all_does_nothing(tmp_path):
    lab = make_lab(tmp_path, deadline=time.monotonic() - 1)
    with pytest.raises(Pause):
        lab.open(model(tiny_preset(), "standard", 0))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_classes_of_a_data_set_are_renumbered(tmp_path):
    lab = make_lab(tmp_path)
    every, two = lab.open(Data("digits")), lab.open(Data("digits", classes=("9", "4")))
    assert two.classes == ("9", "4") and len(two) == int(((every.labels == 9) | (every.labels == 4)).sum())
    nines = every.images(every.labels == 9)
    assert torch.equal(two.images(two.labels == 0), nines)
    assert len(lab.open(Data("digits", limit=7, classes=("9", "4")))) == 7
    with pytest.raises(ValueError, match="no class 'cat': it has 0, 1"):
        lab.open(Data("digits", classes=("cat",)))


def test_a_set_rests_on_its_own_source_model():
    p = tiny_preset()
    assert constructed(p, "robust", 0).model == model(p, "adversarial", 0)
    assert constructed(p, "det", 0).model == model(p, "standard", 0)
    assert constructed(p, "robust", 0, of="test").data == data(p, "test")


def test_steps_are_values():
    assert Data("digits") == Data("digits", label="D") and isinstance(Data("digits"), Step)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Data("digits").name = "mnist"
