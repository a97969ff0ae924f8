"""Wrong arguments of features: the error names them, and none is taken in silence."""

import pytest
import torch
from torch import nn

from advfeat import L2, PGD, Auto, features

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
NET = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
ATTACK = PGD(L2(0.1), steps=1)


RANGES = features.Ranges(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2))
WEIGHTS = torch.ones(2, 192)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: features.linear_ranges(WEIGHTS.numpy(), X, 0.1), TypeError, "weights should be a torch tensor"),
        (lambda: features.linear_ranges(WEIGHTS, X.numpy(), 0.1), TypeError, "x should be a torch tensor, .N"),
        (lambda: features.linear_ranges(WEIGHTS, torch.tensor(1.0), 0.1), ValueError, r"x should be \[N, ...\]"),
        (lambda: features.linear_ranges(WEIGHTS, X, "0.1"), TypeError, "eps should be a number, got '0.1'"),
        (lambda: features.linear_ranges(WEIGHTS, X, 0.1, "L2"), ValueError, "norm should be .* did you mean l2."),
        (
            lambda: features.linear_ranges(WEIGHTS, X, 0.1, "linf", box=1.0),
            TypeError,
            r"box should be \(lo, hi\), got 1",
        ),
        (lambda: features.linear_ranges(WEIGHTS, X, 0.1, "linf", box=(1, 0)), ValueError, "with lo at most hi, got"),
        (lambda: features.attacked_ranges(NET, X.numpy(), ATTACK), TypeError, "x should be a torch tensor"),
        (lambda: features.attacked_ranges(NET, X.long(), ATTACK), ValueError, "x should be floating point with values"),
        (lambda: features.attacked_ranges(NET, X, Auto(L2(0.1))), TypeError, "attack should be advfeat.PGD, got Auto"),
        (lambda: features.attacked_ranges("fc", X, ATTACK), TypeError, "features should be a module or a function"),
        (
            lambda: features.attacked_ranges(NET, X, ATTACK, select=1),
            TypeError,
            "select should be a list of numbers of",
        ),
        (lambda: features.attacked_ranges(NET, X, ATTACK, select="01"), TypeError, "select should be .* got '01'"),
        (lambda: features.attacked_ranges(NET, X, ATTACK, select=[0.5]), TypeError, r"select should be .* got \[0.5\]"),
        # A mask would be the numbers 1, 0, 1.
        (
            lambda: features.attacked_ranges(NET, X, ATTACK, select=[True, False, True]),
            TypeError,
            "select should be .* T",
        ),
        (
            lambda: features.attacked_ranges(NET, X, ATTACK, batch_size="4"),
            ValueError,
            "batch_size should be an integer",
        ),
        (lambda: features.attacked_ranges(NET, X, ATTACK, progress=1), TypeError, "progress should be a function"),
        (lambda: features.usefulness(X, Y), TypeError, "ranges should be the Ranges of .* got Tensor"),
        (lambda: features.usefulness(RANGES, "0120"), TypeError, r"labels should be integers \[N\], got str"),
        (
            lambda: features.usefulness(RANGES, Y, significance="3"),
            TypeError,
            "significance should be a number, got '3'",
        ),
        (lambda: features.usefulness(RANGES, Y, significance=-3), ValueError, "significance should be at least 0"),
        (
            lambda: features.usefulness(features.Ranges(RANGES.value, X[:, 0, 0], RANGES.high), Y),
            ValueError,
            r"ranges.low should be \[N, k\], as ranges.value is, got shape \(4, 8\)",
        ),
        (
            lambda: features.containment(1.0, (1, 1), 0.5),
            TypeError,
            r"first should be \(robustness, usefulness\), got 1",
        ),
        (lambda: features.containment((1, 1), (1, 1), "0.5"), TypeError, "alpha should be a number, got '0.5'"),
    ],
)
def test_features(call, error, message):
    with pytest.raises(error, match=message):
        call()
