"""Wrong settings and arguments of a training: the error names them, and none is taken in silence."""

import math

import numpy as np
import pytest
import torch
from support.tensor_source import TensorSource
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfeat.training import TrainConfig, paper_attack, train

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
SOURCE = TensorSource(X, Y, tuple("abc"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": "0.1"}, TypeError, "lr should be a number, got '0.1'"),
        ({"lr": None}, TypeError, "lr should be a number, got None"),
        ({"lr": True}, TypeError, "lr should be a number, got True"),
        ({"lr": [0.1, 0.2]}, TypeError, "lr should be a number"),
        ({"momentum": "0.9"}, TypeError, "momentum should be a number, got '0.9'"),
        ({"gamma": "0.1"}, TypeError, "gamma should be a number"),
        ({"gamma": -1}, ValueError, r"gamma should be in \[0, inf\), got -1"),
        ({"peak": None}, TypeError, "peak should be a number, got None"),
        ({"epochs": True}, ValueError, "epochs should be an integer, at least 1, got True"),
        ({"batch_size": True}, ValueError, "batch_size should be an integer, at least 1, got True"),
        ({"eval_limit": "10"}, ValueError, "eval_limit should be an integer, at least 1, got '10'"),
        ({"eval_limit": 0}, ValueError, "eval_limit should be an integer, at least 1, got 0"),
        ({"width": "8"}, ValueError, "width should be an integer, at least 1, got '8'"),
        ({"nesterov": "no"}, TypeError, "nesterov should be True or False, got 'no'"),
        ({"allow_flip": "no"}, TypeError, "allow_flip should be True or False, got 'no'"),
        ({"channels_last": None}, TypeError, "channels_last should be True or False, got None"),
        ({"milestones": 50}, TypeError, r"milestones should be a list of epochs, as in \(50, 100\), got 50"),
        ({"milestones": "50,100"}, TypeError, "milestones should be a list of epochs"),
        ({"milestones": ("50",)}, ValueError, r"milestones\[0\] should be an integer"),
        ({"mean": 0.5}, TypeError, "mean should be a list of numbers, got 0.5"),
        ({"std": ["1"]}, TypeError, r"std\[0\] should be a number, got '1'"),
        ({"mean": [math.nan]}, ValueError, "mean should be finite numbers"),
        ({"arch": None}, TypeError, "arch should be a name"),
        ({"schedule": "Cosine"}, ValueError, "schedule should be one of .* got 'Cosine'; did you mean cosine."),
        ({"augment": "crop_flip"}, ValueError, "augment should be .*did you mean crop-flip."),
    ],
)
def test_settings_of_a_training(settings, error, message):
    with pytest.raises(error, match=message):
        TrainConfig(**settings)


def test_settings_of_a_training_become_pythons():
    config = TrainConfig(
        epochs=np.int64(3), lr=np.float32(0.5), nesterov=np.bool_(False), milestones=[1, 2], mean=np.zeros(3), std=[1]
    )
    assert config == TrainConfig(epochs=3, lr=0.5, nesterov=False, milestones=(1, 2), mean=(0.0, 0.0, 0.0), std=(1,))
    assert {type(config.epochs), type(config.lr), type(config.nesterov)} == {int, float, bool}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda c: train({"epochs": 1}, SOURCE),
            TypeError,
            "config should be an advfeat.training.TrainConfig, got dict",
        ),
        (lambda c: train(SOURCE, c), TypeError, "config should be .* got TensorSource"),
        (
            lambda c: train(c, DataLoader(TensorDataset(X, Y))),
            ValueError,
            "config.batch_size should be that of the DataLoader that train_source is, 1, got 128: set it, or give",
        ),
        (lambda c: train(c, SOURCE, "digits"), TypeError, "test_source should be a data set, got str"),
        (lambda c: train(c, X.numpy()), TypeError, "train_source should be a data set, got ndarray"),
        (lambda c: train(c, SOURCE, resume="no"), TypeError, "resume should be True or False, got 'no'"),
        (lambda c: train(c, SOURCE, same_classes="no"), TypeError, "same_classes should be True or False, got 'no'"),
        (lambda c: train(c, SOURCE, out=5), TypeError, "out should be a path, got 5"),
        (lambda c: train(c, SOURCE, device="gpu"), ValueError, 'device should be a device such as "cpu".* got .gpu'),
        (lambda c: train(c, SOURCE, device=1.5), TypeError, "device should be a torch.device or a text .* got 1.5"),
        (lambda c: train(c, SOURCE, device="meta"), ValueError, "device should be one that holds values, got 'meta'"),
        (lambda c: train(c, SOURCE, device="cuda:77"), ValueError, "device should be available, got 'cuda:77'"),
        (lambda c: train(c, SOURCE, model=nn.Flatten()), ValueError, "model should have parameters to train"),
        (lambda c: paper_attack("0.5"), TypeError, "eps should be a number, got '0.5'"),
        (lambda c: paper_attack(0.5, "L-inf"), ValueError, "norm should be .* got 'L-inf'; did you mean linf."),
    ],
)
def test_trainings(call, error, message):
    with pytest.raises(error, match=message):
        call(TrainConfig(epochs=1, width=2))
