"""Wrong arguments of an evaluation: the error names them, and none is taken in silence."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.tensor_source import TensorSource
from torch import nn
from torch.utils.data import TensorDataset

from advfeat.evaluation import accuracy, evaluate, label_agreement, pgd_attack, strong_attack

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
SOURCE = TensorSource(X, Y, tuple("abc"))
NET = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
META = torch.device("meta")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: evaluate(NET, SOURCE, same_classes="no"), TypeError, "same_classes should be True or False, got 'no'"),
        (lambda: accuracy(NET, SOURCE, same_classes=1), TypeError, "same_classes should be True or False, got 1"),
        (lambda: evaluate(NET, SOURCE, attacks=[0.1], norm="L2"), ValueError, "norm .* got 'L2'; did you mean l2."),
        (lambda: evaluate(NET, SOURCE, norm="inf"), ValueError, "norm should be .* got 'inf'; did you mean linf."),
        (lambda: evaluate(NET, SOURCE, norm=math.inf), ValueError, "norm should be .l2., .linf. or .l1., got inf"),
        (lambda: evaluate(NET, SOURCE, limit="10"), ValueError, "limit should be an integer, at least 1, got '10'"),
        (lambda: evaluate(NET, SOURCE, draws=0), ValueError, "draws should be an integer, at least 1, got 0"),
        (lambda: evaluate(NET, X.numpy()), TypeError, "source should be a data set, got ndarray"),
        (lambda: evaluate(NET, TensorSource(X, Y.to(META), tuple("abc"))), ValueError, "on the CPU, got them on meta"),
        (lambda: evaluate(NET, TensorDataset(X, F.one_hot(Y))), TypeError, "labels of .* should be integers"),
        (lambda: evaluate(NET, TensorDataset(X, Y + 0.5)), TypeError, "labels of .* should be integers"),
        (lambda: label_agreement(NET, SOURCE, [1, 2]), TypeError, "relabel should be a function of labels, got list"),
        (lambda: label_agreement(NET, SOURCE, lambda y: y + 0.5), TypeError, "relabel should give labels, int64, got"),
        (lambda: label_agreement(NET, SOURCE, lambda y: y + 9), ValueError, "relabel should give labels from 0 to"),
        (lambda: label_agreement(NET, SOURCE, lambda y: y - 9), ValueError, "relabel should give labels from 0 to"),
        (lambda: label_agreement(NET, SOURCE, lambda y: y.to(META)), ValueError, "relabel .* on the device of its own"),
        (lambda: strong_attack("8/255"), TypeError, "eps should be a number, got '8/255'"),
        (lambda: strong_attack(None), TypeError, "eps should be a number, got None"),
        (lambda: pgd_attack(True), TypeError, "eps should be a number, got True"),
        (lambda: pgd_attack(0.5, restarts="2"), ValueError, "restarts should be an integer, at least 1, got '2'"),
        (lambda: pgd_attack(0.5, objective=False), TypeError, "objective should be an Objective"),
    ],
)
def test_evaluations(call, error, message):
    with pytest.raises(error, match=message):
        call()
