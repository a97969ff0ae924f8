"""Recipes: the paper's settings, and what is drawn for each sample."""

import dataclasses

import pytest
import torch

from advfeat import Converged
from advfeat.datasets.recipes import (
    PRESETS,
    MatchRepresentation,
    PerturbTowardsTarget,
    describe_steps,
    fast_version,
    noise_start,
    own_recipe,
    preset,
    random_integers,
    start_indices,
)


def test_paper_presets_are_the_papers():
    """Tables 5 and 6 of the appendix."""
    assert preset("cifar10", "robust") == MatchRepresentation("robust", steps=1000, step_size=0.1, start="image")
    assert preset("cifar10", "nonrobust") == MatchRepresentation("nonrobust", steps=1000, step_size=0.1)
    assert preset("cifar10", "det") == PerturbTowardsTarget("det", eps=0.5, steps=100, step_size=0.1)
    assert preset("cifar10", "rand") == PerturbTowardsTarget("rand", eps=0.5, steps=100, step_size=0.1)
    assert preset("restricted-imagenet", "robust") == MatchRepresentation("robust", steps=2000, step_size=1.0)
    assert preset("restricted-imagenet", "det") == PerturbTowardsTarget("det", eps=3.0, steps=100, step_size=0.1)
    assert PRESETS["cifar10"]["robust"].source_model == "robust"
    assert {PRESETS["cifar10"][k].source_model for k in ("nonrobust", "rand", "det")} == {"standard"}


@pytest.mark.parametrize("name", ["cifar10", "restricted-imagenet", "digits", "cifar10-cpu"])
@pytest.mark.parametrize("recipe", ["robust", "nonrobust", "rand", "det"])
def test_fast_presets_differ_in_how_they_step_alone(name, recipe):
    plain, fast = preset(name, recipe), preset(f"{name}-fast", recipe)
    stepping = {"steps", "step_size", "schedule", "momentum"}
    kept = {f.name for f in dataclasses.fields(plain)} - stepping
    assert all(getattr(fast, field) == getattr(plain, field) for field in kept)
    # CIFAR-10 on two cores has a third for D_rand and D_det, whose 30 steps are few already
    share = 10 if recipe in ("robust", "nonrobust") else 3 if name == "cifar10-cpu" else 5
    assert fast.steps * share == plain.steps
    assert (
        (fast.attack().schedule, fast.attack().momentum) == (fast.schedule, fast.momentum) == ("cosine", fast.momentum)
    )
    assert 0 < fast.momentum < 1 and (plain.attack().schedule, plain.attack().momentum) == ("constant", 0.0)


def test_the_fast_version_of_a_preset():
    assert fast_version("digits") == fast_version("digits-fast") == "digits-fast"
    assert own_recipe("digits", "det", fast=True) == preset("digits-fast", "det")
    assert own_recipe("mnist", "det", fast=True) is None


def test_a_manifest_says_how_it_was_stepped_where_that_is_not_the_papers_way():
    assert preset("digits", "det").to_dict() == {
        "kind": "perturb-towards-target",
        "name": "det",
        "eps": 1.5,
        "steps": 100,
        "step_size": 0.1,
        "norm": "l2",
    }, "sets that were built before are found"
    assert preset("digits-fast", "det").to_dict().items() >= {"schedule": "cosine", "momentum": 0.5}.items()
    polyak = dataclasses.replace(preset("digits", "robust"), step_size="polyak")
    assert polyak.attack().step_size == polyak.to_dict()["step_size"] == "polyak"


def test_steps_are_described():
    assert describe_steps(preset("cifar10", "robust")) == "1,000 steps of length 0.1"
    assert describe_steps(preset("digits-fast", "robust")) == (
        "15 steps of length 1, falling along a cosine, with momentum 0.5"
    )
    until = MatchRepresentation("robust", 50, "polyak", stop=Converged())
    assert describe_steps(until) == "at most 50 steps of Polyak's length"


def test_recipe_errors_name_the_choices():
    with pytest.raises(ValueError, match="preset should be one of cifar10"):
        preset("cifar", "det")
    with pytest.raises(ValueError, match="recipe should be one of robust"):
        preset("cifar10", "dett")
    with pytest.raises(ValueError, match="start should be one of image, noise"):
        MatchRepresentation("robust", 1, 0.1, start="zeros")


def test_draws_belong_to_the_sample_and_are_uniform():
    ids = torch.arange(20_000)
    draws = random_integers(7, 3, ids, stream=2)
    assert torch.equal(draws[torch.tensor([5, 17_000])], random_integers(7, 3, torch.tensor([5, 17_000]), stream=2))
    counts = draws.bincount(minlength=7).double()
    chi2 = ((counts - 20_000 / 7) ** 2 / (20_000 / 7)).sum()
    assert len(counts) == 7 and chi2 < 22.5  # the 99.9 % quantile with 6 degrees of freedom
    assert not torch.equal(draws, random_integers(7, 4, ids, stream=2))
    starts = start_indices(20_000, 3, ids)
    assert not (starts == ids).any() and starts.min() >= 0 and starts.max() < 20_000
    assert set(start_indices(2, 0, torch.arange(2)).tolist()) == {0, 1}
    with pytest.raises(ValueError, match="at least 2 samples"):
        start_indices(1, 0, torch.tensor([0]))


def test_noise_start_has_the_notebooks_moments():
    noise = noise_start(torch.empty(200, 3, 8, 8), seed=1, sample_ids=torch.arange(200))
    assert abs(float(noise.mean()) - 0.5) < 1e-3 and abs(float(noise.std()) - 0.05) < 1e-3
