"""Steps of experiments: known by what they are made from, done once, stopped and gone on with."""

import dataclasses
import json
import time

import pytest
import torch
from support.tiny_preset import make_lab, tiny_preset

from advfeat import L2, PGD
from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget
from advfeat.experiments import stages as stages_module
from advfeat.experiments import workspace as lab_module
from advfeat.experiments.base import Stage, all_stages
from advfeat.experiments.measurements import StepSweep, Transferred
from advfeat.experiments.shared_stages import constructed, data, evaluated, model
from advfeat.experiments.stages import Constructed, Data, Evaluated, Trained
from advfeat.experiments.workspace import Pause
from advfeat.training import TrainConfig


def test_the_key_is_the_hash_of_everything_but_the_label():
    p = tiny_preset()
    step = evaluated(p, model(p, "det", 0))
    assert step.key == dataclasses.replace(step, label="another name").key
    assert len(step.key) == 12 and int(step.key, 16) >= 0
    # A change anywhere below is another step: of the training, the recipe, the source's training, the data, the seed.
    other = [
        dataclasses.replace(step, limit=3),
        evaluated(p.replace(strong_steps=3), model(p, "det", 0)),
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


def test_the_keys_are_those_under_which_finished_stages_are_kept():
    """Another key would not be found in a workspace: every model would be trained again."""
    attack = PGD(L2(0.5), steps=7, step_size=0.1)
    train, test = Data("cifar10", limit=1000), Data("cifar10", "test", classes=("cat", "dog"))
    source = Trained(train, test, TrainConfig(epochs=3, width=16, seed=2))
    robust = Trained(train, test, TrainConfig(epochs=3, width=16, attack=attack))
    det = Constructed(PerturbTowardsTarget("det", 0.5, 100, 0.1), source, train, seed=1)
    d_r = Constructed(MatchRepresentation("robust", 1000, 0.1), robust, train, batch_size=100, dtype="uint8")
    on_det = Trained(det, test, TrainConfig())
    stages = {
        "data": train,
        "data of two classes": test,
        "model": source,
        "robust model": robust,
        "D_det": det,
        "D_R": d_r,
        "model on D_det": on_det,
        "evaluation": Evaluated(on_det, test, (attack,), limit=50),
        "transfer": Transferred(source, (robust, on_det), test, attack),
        "sweep": StepSweep(source, test, (attack,), (10, 20)),
    }
    assert {name: stage.key for name, stage in stages.items()} == {
        "data": "dbe818066b9e",
        "data of two classes": "321ce7223fdd",
        "model": "2ccf8ff8e4a7",
        "robust model": "1de5b891b273",
        "D_det": "8c2d3c49dc34",
        "D_R": "4a447b35e28a",
        "model on D_det": "d615e1b0d173",
        "evaluation": "eb705df9c776",
        "transfer": "3c8c67183429",
        "sweep": "c4ca7792355b",
    }


def test_descriptions_are_json_and_hold_what_they_are_made_from():
    p = tiny_preset()
    described = evaluated(p, model(p, "robust", 0)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["model"]["data"]["model"]["config"]["attack"]["eps"] == 0.75
    assert described["model"]["data"]["recipe"]["name"] == "robust"


def test_all_steps_come_after_what_they_need():
    p = tiny_preset()
    steps = all_stages([evaluated(p, model(p, key, 0)) for key in ("det", "rand", "standard")])
    seen = set()
    for key, step in steps.items():
        assert key == step.key and all(needed.key in seen for needed in step.needs())
        seen.add(key)
    assert sum(step.kind == "model" for step in steps.values()) == 3  # the standard model counts once


def test_a_step_is_done_once_and_found_under_another_label(tmp_path, monkeypatch):
    p = tiny_preset()
    step = evaluated(p, model(p, "det", 0))
    workspace = make_lab(tmp_path)
    outcome = workspace.open(step)
    assert outcome["clean"]["n"] == 40 and 0 <= outcome["next"]["count"] <= 40
    assert [r["eps"] for r in outcome["robust"]] == list(p.radii)
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    # Another process, another name: nothing is done.
    monkeypatch.setattr(lab_module.Workspace, "_make", lambda *_: pytest.fail("done again"))
    again = make_lab(tmp_path)
    assert again.open(dataclasses.replace(step, label="renamed")) == outcome
    assert again.is_done(step) and again.seconds(step) > 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == files
    assert set(again.cost(all_stages([step]).values())) == {"model D", "set D_det", "model D_det", "evaluation D_det"}


def test_the_record_says_what_a_step_is_and_what_made_it(tmp_path):
    p = tiny_preset()
    step = model(p, "standard", 0)
    workspace = make_lab(tmp_path)
    workspace.open(step)
    record = json.loads((workspace.folder(step) / "step.json").read_text())
    assert record["step"] == step.describe() and record["done"] and record["label"] == "D"
    assert {"versions", "device", "threads", "git"} <= record.keys()
    assert workspace.history(step)[0]["epoch"] == 1


def test_out_of_time_stops_and_goes_on_to_the_same_bytes(tmp_path):
    p = tiny_preset()
    step = model(p.replace(standard=p.standard.replace(epochs=4)), "standard", 0)
    whole = make_lab(tmp_path / "whole")
    whole.open(step)
    pieces = [stopped_once(make_lab(tmp_path / "pieces"), step) for _ in range(10)]
    assert pieces[:4] == [True] * 3 + [False]  # an epoch a piece, and at the end of the last one it is done
    workspace = make_lab(tmp_path / "pieces")
    name = "model.safetensors"
    assert (workspace.folder(step) / name).read_bytes() == (whole.folder(step) / name).read_bytes()
    assert [row["epoch"] for row in workspace.history(step)] == [1, 2, 3, 4]
    assert workspace.seconds(step) > 0


def test_a_training_stops_where_it_has_a_checkpoint(tmp_path):
    p = tiny_preset()
    config = p.standard.replace(epochs=5, checkpoint_every=2)
    step = model(p.replace(standard=config), "standard", 0)
    assert [stopped_once(make_lab(tmp_path / "two"), step) for _ in range(3)] == [True, True, False]
    never = model(p.replace(standard=config.replace(checkpoint_every=0)), "standard", 0)
    assert not stopped_once(make_lab(tmp_path / "none"), never)


def test_a_set_stops_after_a_shard_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "_SHARD", 2)
    p = tiny_preset(batch_size=10)
    step = constructed(p, "det", 0)
    whole = make_lab(tmp_path / "whole")
    whole.open(step)
    make_lab(tmp_path / "pieces").open(step.model)
    assert [stopped_once(make_lab(tmp_path / "pieces"), step) for _ in range(4)] == [True, True, False, False]
    workspace = make_lab(tmp_path / "pieces")
    for i in range(3):
        name = f"shard-{i:05d}.safetensors"
        assert (workspace.folder(step) / name).read_bytes() == (whole.folder(step) / name).read_bytes()


def stopped_once(workspace, step) -> bool:
    """Whether a piece of the step ended with a pause, at the first place where it may."""
    checks = iter(range(100))

    def over():
        if next(checks):  # the first is before the step
            raise Pause

    workspace._check_time = over
    try:
        workspace.open(step)
    except Pause:
        assert not workspace.is_done(step)
        assert json.loads((workspace.folder(step) / "step.json").read_text())["done"] is False
        return True
    return False


def test_a_measurement_that_has_begun_is_finished(tmp_path):
    p = tiny_preset()
    step = evaluated(p, model(p, "standard", 0))
    make_lab(tmp_path).open(step.model)
    assert not stopped_once(make_lab(tmp_path), step)


def test_a_folder_may_move(tmp_path):
    """A constructed set is named after its folder; a model trained on it is the same model elsewhere."""
    p = tiny_preset()
    make_lab(tmp_path / "a").open(model(p, "det", 0))
    (tmp_path / "a").rename(tmp_path / "b")
    workspace = make_lab(tmp_path / "b")
    workspace._make = None  # nothing is done again
    assert workspace.open(model(p, "det", 0)).arch == "small-convnet"
    # Also one that was stopped goes on there.
    longer = dataclasses.replace(model(p, "det", 0), config=p.standard.replace(epochs=3, width=5))
    assert stopped_once(make_lab(tmp_path / "b"), longer)
    (tmp_path / "b").rename(tmp_path / "c")
    assert make_lab(tmp_path / "c").open(longer) is not None


def test_a_finished_set_is_read_and_not_written(tmp_path, monkeypatch):
    """Also by a later version, whose builds would refuse to go on with it."""
    p = tiny_preset()
    workspace = make_lab(tmp_path)
    workspace.open(constructed(p, "det", 0))
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    monkeypatch.setattr("advfeat.datasets.store.__version__", "99.0")
    assert len(make_lab(tmp_path).open(constructed(p, "det", 0))) == 60
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == files


def test_a_set_that_was_never_begun_leaves_an_empty_place(tmp_path, monkeypatch):
    """A record of a step beside nothing would be a stranger to the next build."""
    p = tiny_preset()
    step = constructed(p, "det", 0)
    workspace = make_lab(tmp_path)
    workspace.open(step.model)
    with monkeypatch.context() as patch:
        fail = lambda *_, **__: workspace.folder(step).mkdir(parents=True) or 1 / 0  # noqa: E731
        patch.setattr(stages_module, "build", fail)
        with pytest.raises(ZeroDivisionError):
            workspace.open(step)
    assert len(workspace.open(step)) == 60


def test_no_time_at_all_does_nothing(tmp_path):
    workspace = make_lab(tmp_path, deadline=time.monotonic() - 1)
    with pytest.raises(Pause):
        workspace.open(model(tiny_preset(), "standard", 0))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_classes_of_a_data_set_are_renumbered(tmp_path):
    workspace = make_lab(tmp_path)
    every, two = workspace.open(Data("digits")), workspace.open(Data("digits", classes=("9", "4")))
    assert two.classes == ("9", "4") and len(two) == int(((every.labels == 9) | (every.labels == 4)).sum())
    nines = every.images(every.labels == 9)
    assert torch.equal(two.images(two.labels == 0), nines)
    few = workspace.open(Data("digits", limit=7, classes=("9", "4")))
    assert len(few) == 7 and sorted(few.labels.bincount().tolist()) == [3, 4]
    with pytest.raises(ValueError, match="no class 'cat': it has 0, 1"):
        workspace.open(Data("digits", classes=("cat",)))


def test_a_set_rests_on_its_own_source_model():
    p = tiny_preset()
    assert constructed(p, "robust", 0).model == model(p, "adversarial", 0)
    assert constructed(p, "det", 0).model == model(p, "standard", 0)
    assert constructed(p, "robust", 0, of="test").data == data(p, "test")


def test_steps_are_values():
    assert Data("digits") == Data("digits", label="D") and isinstance(Data("digits"), Stage)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Data("digits").name = "mnist"
