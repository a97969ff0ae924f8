"""Recipes: the paper's settings, and what is drawn for each sample."""

import pytest
import torch

from advfeat.datasets.recipes import (
    PRESETS,
    MatchRepresentation,
    PerturbTowardsTarget,
    noise_start,
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
