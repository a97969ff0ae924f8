"""Representation matching where the representation says nothing: zeros, constants, values that are not finite."""

import pytest
import torch
from torch import nn

from advfeat import L2, PGD, Representation
from advfeat.datasets.base import ArraySource
from advfeat.datasets.building import build
from advfeat.datasets.recipes import MatchRepresentation
from advfeat.datasets.store import ConstructedSet
from advfeat.models import adapt

MATCH = MatchRepresentation("robust", steps=3, step_size=0.1)


def source(n=12):
    g = torch.Generator().manual_seed(0)
    return ArraySource(torch.rand(n, 3, 4, 4, generator=g), torch.arange(n) % 3, ("a", "b", "c"))


def model_with(bias: float):
    """Features that are zeros for every image at a bias low enough, for some at one in between."""
    torch.manual_seed(0)
    hidden = nn.Linear(48, 4)
    hidden.bias.data += bias
    net = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(4, 3))
    return adapt(net, num_classes=3, input_shape=(3, 4, 4), head="3")


@pytest.mark.parametrize("bias", [-0.1, -100.0])
def test_a_set_is_built_where_some_or_all_representations_are_zeros(bias, tmp_path):
    """Divided by their length of 0 the distances were infinite or NaN: the build ended, and every resume again."""
    model, data = model_with(bias), source()
    dead = (model.representation(data.images()) == 0).all(dim=1)
    assert dead.any() and bool(dead.all()) == (bias == -100)
    build(MATCH, model, data, tmp_path / "set")
    made = ConstructedSet.open(tmp_path / "set")
    start = data.images(made.start_index)
    far = torch.linalg.vector_norm(model.representation(made.images()), dim=1)
    assert made.objective.isfinite().all()
    torch.testing.assert_close(made.objective[dead], far[dead].detach(), rtol=1e-4, atol=1e-5)
    if bias == -100:  # no gradient anywhere: images stay where they start
        assert torch.equal(made.images(), start)


def test_the_relative_distance_to_zeros_is_the_distance():
    model, x = model_with(0.5), source().images()
    target = torch.zeros(len(x), 4)
    target[::2] = 2.0
    absolute, relative = (Representation(relative=r).value(model, x, target) for r in (False, True))
    assert torch.equal(relative[1::2], absolute[1::2]) and torch.equal(relative[::2], absolute[::2] / 4)
    steps = [
        PGD(L2(1.0), steps=3, objective=Representation(relative=r), targeted=True)(model, x, target)
        for r in (False, True)
    ]
    torch.testing.assert_close(*steps)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_representation_that_is_not_finite_names_the_sample(value, tmp_path):
    data = source()
    broken = data.images(torch.tensor([7]))

    class Broken(nn.Module):
        def forward(self, x):
            same = (x == broken).flatten(1).all(dim=1)
            return torch.where(same[:, None], value, x.flatten(1)[:, :4])

    net = nn.Sequential(Broken(), nn.Linear(4, 3))
    model = adapt(net, num_classes=3, input_shape=(3, 4, 4), head="1")
    with pytest.raises(ValueError, match="representation should be finite, that of sample 7 of .* NaN or infinity"):
        build(MATCH, model, data, tmp_path / "set")
