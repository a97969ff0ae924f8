"""Models that a recipe should not be carried out with: trained in another way, at chance, random, of another kind."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch
from support.tensor_source import TensorSource, blobs
from torch import nn

from advfeat import L2, PGD, models
from advfeat.datasets.building import build
from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget
from advfeat.training import TrainConfig, train

CONFIG = TrainConfig(width=4, epochs=4, batch_size=16, lr=0.05)
ADVERSARIAL = dataclasses.replace(CONFIG, attack=PGD(L2(0.1), steps=1))
RECIPES = {
    "robust": MatchRepresentation("robust", 2, 0.1),
    "nonrobust": MatchRepresentation("nonrobust", 2, 0.1),
    "rand": PerturbTowardsTarget("rand", 0.5, 1, 0.1),
    "det": PerturbTowardsTarget("det", 0.5, 1, 0.1),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a standard and an adversarial training."""
    out = tmp_path_factory.mktemp("runs")
    for name, config in (("standard", CONFIG), ("adversarial", ADVERSARIAL)):
        train(config, blobs(120), out=out / name)
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_trained_in_another_way_than_the_recipe_asks_for_is_refused(runs, tmp_path, name):
    right, wrong = ("adversarial", "standard") if name == "robust" else ("standard", "adversarial")
    build(RECIPES[name], models.load(runs / right), blobs(30), tmp_path / "right")
    message = "D_R.*needs an adversarially trained model.*D_NR under the name of D_R.*any_source=True .--any-source"
    if name != "robust":
        message = r"needs a standard model, got an adversarially trained one .l2, eps 0.1"
    with pytest.raises(ValueError, match=message):
        build(RECIPES[name], models.load(runs / wrong), blobs(30), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    build(RECIPES[name], models.load(runs / wrong), blobs(30), tmp_path / "wrong", any_source=True)


def test_a_model_says_how_it_was_trained_when_it_comes_from_the_training_itself(runs, tmp_path):
    for model in (train(CONFIG, blobs(120)).model, train(CONFIG, blobs(120), out=runs / "standard").model):
        assert model.trained_with["config"]["attack"] is None
        with pytest.raises(ValueError, match="got one trained by standard training"):
            build(RECIPES["robust"], model, blobs(30), tmp_path / "set")


def test_a_model_without_a_record_passes(runs, tmp_path):
    model = models.load(runs / "standard")
    adapted = models.adapt(model, num_classes=3, input_shape=(1, 8, 8))
    build(RECIPES["robust"], adapted, blobs(30), tmp_path / "adapted")
    models.save(model, tmp_path / "saved")
    build(RECIPES["robust"], models.load(tmp_path / "saved"), blobs(30), tmp_path / "set")


def test_the_command_line_says_it_too(runs, tmp_path, capsys):
    from advfeat.cli import main

    train(CONFIG, _digits(), out=tmp_path / "run")
    command = ["build", "robust", "--model", str(tmp_path / "run"), "--limit", "20", "--steps", "1"]
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "set")])
    assert "--any-source" in capsys.readouterr().err
    main([*command, "--out", str(tmp_path / "set"), "--any-source"])
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["complete"]


def _digits():
    from advfeat.datasets import sources

    return sources.load("digits", limit=300)


# --- accuracy on the source


class _Constant(nn.Module):
    def __init__(self, inputs=64, classes=3):
        super().__init__()
        self.layer = nn.Linear(inputs, classes)
        self.layer.weight.data.mul_(1e-3)
        self.layer.bias.data[1] = 5.0

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_a_model_at_chance_on_the_source_is_said_to_be_so(runs, tmp_path):
    unnormalised = models.load(runs / "standard")
    unnormalised.mean += 3
    with pytest.warns(
        RuntimeWarning, match=r"% of 60 images of 'blobs' correctly.*chance is 33.3 %.*normalisation missing"
    ):
        build(RECIPES["det"], unnormalised, blobs(60), tmp_path / "unnormalised")
    with pytest.warns(RuntimeWarning, match="predicts 'b' for all of them"):
        build(RECIPES["det"], _Constant(), blobs(60), tmp_path / "constant")
    lopsided = blobs(60)
    lopsided.labels = torch.where(torch.arange(60) % 6 == 0, lopsided.labels, 1)  # 1 is right for most
    with pytest.warns(RuntimeWarning, match="predicts 'b' for all of them"):
        build(RECIPES["det"], _Constant(), lopsided, tmp_path / "lopsided")


@pytest.mark.parametrize("n", [2, 5, 60])
def test_a_model_that_knows_the_source_is_not_however_few_images_there_are(runs, tmp_path, n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(RECIPES["det"], models.load(runs / "standard"), blobs(n), tmp_path / "set")


def test_the_accuracy_is_not_looked_at_again_for_a_finished_set(runs, tmp_path):
    with pytest.warns(RuntimeWarning, match="chance"):
        build(RECIPES["det"], _Constant_of(0), blobs(30), tmp_path / "set")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(RECIPES["det"], _Constant_of(0), blobs(30), tmp_path / "set")


def _Constant_of(seed):
    torch.manual_seed(seed)
    return _Constant()


# --- random models, and what is no model


class _Noisy(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.02 * torch.randn_like(x))


def test_a_set_says_that_its_model_was_random(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("advfeat.attacks.no_trace._is_only_thread", lambda: True)  # whatever other tests left running
    net = models.load(runs / "standard")
    state = torch.get_rng_state()
    with pytest.warns(RuntimeWarning, match="the model is random in eval mode"):
        made = build(RECIPES["det"], _Noisy(net), blobs(30), tmp_path / "noisy")
    assert made.manifest["deterministic"] is False
    assert torch.equal(torch.get_rng_state(), state)
    assert "deterministic" not in build(RECIPES["det"], net, blobs(30), tmp_path / "still").manifest


def test_what_is_no_model_gets_a_sentence(runs, tmp_path):
    net = models.load(runs / "standard")
    for given, message in (
        (lambda x: net(x), "should be a torch.nn.Module, got function"),
        (net.state_dict(), "a state dict holds weights alone"),
        (str(runs / "standard"), "give advfeat.models.load"),
    ):
        with pytest.raises(TypeError, match=message):
            build(RECIPES["det"], given, blobs(30), tmp_path / "set")
    with pytest.raises(ValueError, match="batch_size should be an integer, at least 1, got 0"):
        build(RECIPES["det"], net, blobs(30), tmp_path / "set", batch_size=0)
    assert not (tmp_path / "set").exists()


def test_a_binary_model_with_one_logit_builds_sets(tmp_path):
    source = blobs(40, classes=2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[0, 16:32] = 1.0  # the rows of class 1
        net[1].bias.fill_(-float(net(source.images()).mean()))
    made = build(PerturbTowardsTarget("det", 4.0, 10, 1.0), net, source, tmp_path / "set")
    assert torch.equal(made.labels, 1 - source.labels) and made.target_success.all()


def test_a_tensor_source_of_one_class_is_not_said_to_be_at_chance(tmp_path):
    source = TensorSource(blobs(30).images(), torch.ones(30, dtype=torch.int64), ("a", "b", "c"), "ones")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(RECIPES["det"], _Constant(), source, tmp_path / "set")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: models.averaged(model, 2)])
def test_the_training_of_a_wrapped_model_is_looked_at(runs, tmp_path, wrap):
    with pytest.raises(ValueError, match="needs a standard model, got an adversarially trained one"):
        build(RECIPES["det"], wrap(models.load(runs / "adversarial")), blobs(30), tmp_path / "set")
