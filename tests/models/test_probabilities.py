"""Probabilities taken for logits: a model that ends in a softmax is told so, once."""

import warnings

import pytest
import torch
from support.tensor_source import TensorSource
from torch import nn

from advfeat import L2, PGD
from advfeat._model_checks import are_probabilities
from advfeat.evaluation import evaluate

IMAGES = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(0))
ATTACK = ("pgd", PGD(L2(0.1), steps=1))


def _model(classes, *more):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes), *more)


def _warnings(model, classes, **options):
    source = TensorSource(IMAGES, torch.arange(20) % classes, tuple("abcdefghij"[:classes]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        evaluate(model, source, attacks=[ATTACK], **options)
    return [str(w.message) for w in said if "probabilities" in str(w.message)]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_softmax_is_told_once(classes):
    said = _warnings(_model(classes, nn.Softmax(dim=1)), classes, batch_size=5)
    assert len(said) == 1 and "the model seems to give probabilities" in said[0] and "Attacks need logits" in said[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_softmax_in_half_precision_is_told(dtype):
    assert len(_warnings(_model(10, nn.Softmax(dim=1)).to(dtype), 10)) == 1
    assert not _warnings(_model(10, nn.ReLU()).to(dtype), 10)


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_logits_are_not(classes):
    for model in (_model(classes), _model(classes, nn.ReLU()), _model(classes, nn.LogSoftmax(dim=1))):
        assert not _warnings(model, max(classes, 2))
    assert not _warnings(_model(1, nn.Sigmoid()), 2)  # one value says nothing of the other class


def test_true_logits_are_not_taken_for_probabilities_by_chance():
    soft = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert are_probabilities(soft) and are_probabilities(soft.double())
    assert not are_probabilities(soft[:3])
    assert not are_probabilities(soft[:1].expand(4, 3))  # a constant model
    assert not are_probabilities(torch.tensor([[0.0, 1.0]] * 3 + [[0.0, 1.00001]]))  # the single logit 1
    assert not are_probabilities(soft + 1e-3) and not are_probabilities(soft - soft[:, :1])
    assert not are_probabilities(torch.full((4, 3), torch.nan))
    # Two logits between 0 and 1, for many models: none of them is.
    logits = torch.rand(10_000, 4, 2, generator=torch.Generator().manual_seed(1))
    assert not any(are_probabilities(each) for each in logits[(logits.sum(2) - 1).abs().amin(1) < 1e-3])
