"""Models that are random in eval mode under evaluation: said to be so, and averaged over draws."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from support.linear_net import Then, labelled_images
from torch import nn

import advfeat
from advfeat import models
from advfeat.evaluation import evaluate, label_agreement


class _Noisy(nn.Module):
    def __init__(self, net, scale=0.02):
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x):
        return self.net(x + self.scale * torch.randn_like(x))


class _Masked(nn.Module):
    """Sees half of the pixels at a time: so does its gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(2 * x * (torch.rand_like(x) < 0.5))


def test_a_model_that_is_random_in_eval_mode_is_said_to_be_so():
    net, source = labelled_images()
    with pytest.warns(RuntimeWarning, match="the model is random in eval mode: two passes .* evaluate.draws=20"):
        found = evaluate(_Noisy(net), source, attacks=[advfeat.PGD(advfeat.L2(1e-5), steps=4, keep="best")])
    assert not found.deterministic and found.to_dict()["deterministic"] is False
    assert "random in eval mode" in found.to_dict()["note"] and "evaluate(draws=20)" in found.note
    with pytest.warns(RuntimeWarning, match="random in eval mode"):
        label_agreement(_Noisy(net), source)
    with pytest.warns(RuntimeWarning, match="random in eval mode"):
        evaluate(Then(net, lambda x, z: nn.functional.dropout(z, 0.5, training=True)), source)


def test_a_model_that_says_the_same_twice_is_not():
    net, source = labelled_images(40)
    batch_norm = models.create("small-convnet", 10, (3, 8, 8), width=4).train()
    nan = Then(net, lambda x, z: torch.where(x[:, 0, 0, :1] > 0.5, math.nan, z))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (net, batch_norm, nan, nn.Sequential(net, nn.Dropout(0.5)), net.double(), net.half()):
            found = evaluate(model, source)
            assert found.deterministic and found.note is None and found.to_dict()["note"] is None


def test_predictions_of_a_random_model_are_averaged_over_draws():
    net, source = labelled_images()
    attack = advfeat.PGD(advfeat.L2(1e-5), steps=20, keep="last")  # keep="last" would count every iterate
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning):
        once = evaluate(_Noisy(net), source, attacks=[attack])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        often = evaluate(_Noisy(net), source, attacks=[attack], draws=50)
    lost = [r.clean.count - r.robustness[0].accuracy.count for r in (once, often)]
    assert often.clean.count > once.clean.count and often.draws == 50 and "of the mean of 50 passes" in often.note
    assert lost[1] < lost[0] < 0.2 * len(source)  # of twenty iterates one in five would be a lucky draw
    with pytest.raises(ValueError, match="draws should be an integer, at least 1, got 0"):
        evaluate(net, source, draws=0)


def test_the_average_of_a_random_model_is_attacked_along_its_mean_gradient():
    net, source = labelled_images(100)
    x, y = source.images(), source.labels
    masked = _Masked(net)
    attack = advfeat.PGD(advfeat.L2(0.1), steps=3)
    exact = attack.run(net, x, y).x_adv - x
    agreement = {}
    for name, model in (
        ("one", masked),
        ("many", models.averaged(masked, 30)),
        ("function", models.averaged(lambda x: masked(x), 30)),
    ):
        moved = attack.run(model, x, y).x_adv - x
        agreement[name] = nn.functional.cosine_similarity(moved.flatten(1), exact.flatten(1)).mean()
    assert agreement["many"] > agreement["one"] + 0.05 and agreement["function"] > agreement["one"] + 0.05
    assert models.averaged(net, 1) is net
    with pytest.raises(ValueError, match="draws should be an integer, at least 1, got 1.5"):
        models.averaged(net, 1.5)
