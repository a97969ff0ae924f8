"""Wrong arguments for making, saving and loading models: the error names them."""

import numpy as np
import pytest
import torch
from torch import nn

from advfeat import models

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
NET = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def _adapt(**settings):
    return models.adapt(NET, **{"num_classes": 3, "input_shape": (3, 8, 8), **settings})


def _create(arch="small-convnet", num_classes=3, input_shape=(3, 8, 8), **settings):
    return models.create(arch, num_classes, input_shape, **settings)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _adapt(mean=0.5), ValueError, "mean should be 3 finite numbers, one per channel, got 0.5"),
        (lambda: _adapt(mean=[0.5] * 2), ValueError, "mean should be 3 finite numbers, one per channel"),
        (lambda: _adapt(mean="0.5"), TypeError, "mean should be 3 numbers, one per channel, got '0.5'"),
        (lambda: _adapt(std=["a"] * 3), TypeError, "std should be 3 numbers, one per channel"),
        (lambda: _adapt(num_classes="3"), ValueError, "num_classes should be an integer, at least 2, got '3'"),
        (lambda: _adapt(num_classes=True), ValueError, "num_classes should be an integer, at least 2, got True"),
        (lambda: _adapt(input_shape=8), TypeError, r"input_shape should be \(channels, height, width\), got 8"),
        (lambda: _adapt(input_shape="388"), TypeError, r"input_shape should be .* got '388'"),
        (lambda: _adapt(input_shape=(3, 8.5, 8)), ValueError, "input_shape should be .* three integers"),
        (
            lambda: _adapt(representation=1),
            TypeError,
            "representation should be a submodule's name or a function, got 1",
        ),
        (lambda: _adapt(head=nn.Linear(2, 2)), TypeError, "head should be a submodule's name, got Linear"),
        (lambda: _adapt(classes=3), ValueError, "classes should be 3 names, one for each logit, got 3"),
        (
            lambda: _adapt(representation=lambda x: 5).representation(X),
            TypeError,
            "should give a tensor .B, k., got int",
        ),
        (lambda: _adapt()(X.numpy()), TypeError, "x should be a torch tensor .B, C, H, W., got ndarray"),
        (lambda: _adapt()(X[0]), ValueError, r"x should be \[B, 3, 8, 8\], got shape \(3, 8, 8\)"),
        (lambda: _create("resnet8"), ValueError, "arch should be one of .* got 'resnet8'; did you mean resnet18."),
        (lambda: _create("ResNet-50"), ValueError, "did you mean resnet50."),
        (lambda: _create(["resnet18"]), ValueError, "arch should be one of"),
        (lambda: _create(num_classes="3"), ValueError, "num_classes should be an integer, at least 2, got '3'"),
        (lambda: _create(num_classes=-1), ValueError, "num_classes should be an integer, at least 2, got -1"),
        (lambda: _create(input_shape=8), TypeError, "input_shape should be .* got 8"),
        (lambda: _create(input_shape=("3", "8", "8")), ValueError, "input_shape should be .* three integers"),
        (lambda: _create(seed="a"), ValueError, "seed should be an integer, got 'a'"),
        (lambda: _create(seed=None), ValueError, "seed should be an integer, got None"),
        (lambda: _create(width=True), ValueError, "width should be an integer, at least 1, .* got True"),
        (lambda: models.load("nowhere"), FileNotFoundError, "nowhere is not a folder: expected one with model.json"),
        (lambda: models.load(None), TypeError, "folder should be a path, got None"),
        (lambda: models.save(_create(width=1), 3), TypeError, "folder should be a path, got 3"),
        (
            lambda: models.save(_create(width=1), "x", extra=[1]),
            TypeError,
            "extra should be a dict of JSON values, got l",
        ),
        (lambda: models.load_extra(None), TypeError, "folder should be a path"),
        (lambda: models.describe(_create(width=1)), TypeError, "folder should be a path, got Classifier"),
        (lambda: models.fingerprint("run"), TypeError, "model should be a torch.nn.Module or a state dict, got str"),
        (lambda: models.averaged(None, 2), TypeError, "model should be a module or a function that gives logits"),
        (lambda: models.attack_copy(None), TypeError, "model should be a torch.nn.Module, got None"),
        (
            lambda: models.attack_copy(NET, autocast="bf16"),
            TypeError,
            "autocast should be torch.bfloat16, .* got 'bf16'",
        ),
        (lambda: models.attack_copy(NET, compile="no"), TypeError, "compile should be True or False, got 'no'"),
    ],
)
def test_models(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_numbers_of_classes_may_be_numpys():
    assert type(_create(num_classes=np.int64(4), input_shape=np.array([3, 8, 8]), width=2).num_classes) is int
