"""The planted images: what is in them is what they say is in them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from advfeat.datasets import sources
from advfeat.datasets.planted import Planted, PlantedConfig

CONFIGS = [
    PlantedConfig(),
    PlantedConfig(shape=(1, 16, 16), classes=3),
    PlantedConfig(shape=(3, 12, 20), classes=2),
    PlantedConfig(shape=(3, 32, 32), fast_base=0.0, slow_base=0.0),
]
IDS = [f"{'x'.join(map(str, c.shape))}-{c.classes}" for c in CONFIGS]


def _set(split: str = "train", n: int | None = 300, seed: int = 0, **settings) -> Planted:
    return Planted(split, n, seed, PlantedConfig(**settings))


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_patterns_are_orthogonal_and_of_their_norms(config):
    slow, fast = Planted(n=8, config=config).patterns()
    assert slow.shape == fast.shape == (config.classes, *config.shape)
    both = torch.cat([slow, fast]).flatten(1)
    squares = [config.slow_norm**2] * config.classes + [config.fast_norm**2] * config.classes
    torch.testing.assert_close(
        both @ both.T, torch.diag(torch.tensor(squares, dtype=torch.float64)), atol=1e-12, rtol=0
    )
    assert float(both.sum(1).abs().max()) < 1e-10  # no pattern changes the brightness


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_slow_is_low_and_fast_is_high_in_frequency(config):
    slow, fast = Planted(n=8, config=config).patterns()
    height, width = config.shape[1:]
    down, across = torch.fft.fftfreq(height)[:, None].abs(), torch.fft.fftfreq(width)[None].abs()
    highest = torch.maximum(down.expand(height, width), across.expand(height, width))
    for patterns, outside in ((slow, highest > 0.25), (fast, highest < 0.5)):
        spectrum = torch.fft.fft2(patterns).abs()
        assert float(spectrum[..., outside].max()) < 1e-9 * float(spectrum.max())


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_measure_finds_what_was_planted(config):
    planted = Planted("train", 300, seed=1, config=config)
    slow, fast = planted.measure(planted.images())
    # The images are float32: that is what they are off by.
    torch.testing.assert_close(fast, F.one_hot(planted.labels, config.classes).double(), atol=2e-6, rtol=0)
    torch.testing.assert_close(slow, F.one_hot(planted.slow_label, config.classes).double(), atol=2e-6, rtol=0)


@given(
    amounts=st.lists(st.floats(-2, 2), min_size=8, max_size=8),
    noise=st.floats(0, 0.02),
)
def test_measure_is_linear_and_apart(amounts, noise):
    """Any mixture of patterns comes out as it went in: exchanging one feature leaves the other where it was."""
    planted = _set(n=5, noise=noise)
    slow, fast = planted.patterns()
    amount = torch.tensor(amounts, dtype=torch.float64)
    moved = planted.images().double() + (amount[:4] @ slow.flatten(1) + amount[4:] @ fast.flatten(1)).view(1, 3, 16, 16)
    before, after = planted.measure(planted.images()), planted.measure(moved)
    torch.testing.assert_close(after[0] - before[0], amount[:4].expand(5, 4), atol=1e-9, rtol=0)
    torch.testing.assert_close(after[1] - before[1], amount[4:].expand(5, 4), atol=1e-9, rtol=0)


@given(n=st.integers(1, 200), p=st.floats(0.05, 1.0), classes=st.integers(2, 4), seed=st.integers(0, 5))
def test_slow_label_agrees_as_often_as_it_should(n, p, classes, seed):
    planted = _set(n=n, p_robust=p, classes=classes, seed=seed)
    assert int((planted.slow_label == planted.labels).sum()) == round(p * n)
    counts = planted.labels.bincount(minlength=classes)
    assert int(counts.max() - counts.min()) <= 1
    assert 0 <= int(planted.slow_label.min()) and int(planted.slow_label.max()) < classes


def test_disagreeing_slow_labels_are_spread_over_the_other_classes():
    planted = _set(n=4000, p_robust=0.5)
    astray = planted.slow_label != planted.labels
    shift = (planted.slow_label - planted.labels)[astray] % 4
    assert shift.bincount(minlength=4).tolist() in ([0, 667, 667, 666], [0, 667, 666, 667], [0, 666, 667, 667])
    per_class = planted.labels[astray].bincount(minlength=4)
    assert int(per_class.min()) > 400  # 500 expected


def test_noise_is_what_was_asked_for_and_apart_from_the_patterns():
    quiet, noisy = _set(n=500, noise=0.0), _set(n=500, noise=0.04)
    noise = (noisy.images() - quiet.images()).double()
    assert float(noise.std()) == pytest.approx(0.04 * math.sqrt(1 - 8 / 768), rel=0.01)
    patterns = torch.cat(noisy.patterns()).flatten(1)
    assert float((noise.flatten(1) @ patterns.T).abs().max()) < 1e-5
    # One sample's noise says nothing about another's.
    rows = F.normalize(noise.flatten(1), dim=1)
    assert float((rows @ rows.T - torch.eye(500, dtype=torch.float64)).abs().max()) < 0.25


def test_radii_are_the_distances_of_an_exchange():
    planted = _set()
    slow, fast = planted.patterns()
    assert planted.nonrobust_radius == pytest.approx(float((fast[0] - fast[1]).norm()))
    assert planted.robust_radius == pytest.approx(float((slow[2] - slow[3]).norm()))
    exchanged = planted.images() + (fast.roll(-1, 0) - fast)[planted.labels].float()
    slow_scores, fast_scores = planted.measure(exchanged)
    assert torch.equal(fast_scores.argmax(1), (planted.labels + 1) % 4)
    assert torch.equal(slow_scores.argmax(1), planted.slow_label)


def test_images_repeat_by_seed_and_split():
    a = _set(seed=3)
    torch.manual_seed(99)
    assert a.fingerprint == _set(seed=3).fingerprint
    others = [_set(seed=4), _set("test", seed=3), _set(seed=3, noise=0.02), _set(n=299, seed=3)]
    assert len({o.fingerprint for o in others} | {a.fingerprint}) == 5
    assert torch.equal(_set(seed=3).patterns()[1], _set("test", seed=8).patterns()[1])


def test_subset_keeps_what_is_known():
    planted = _set()
    part = planted.subset([7, 2, 9])
    assert isinstance(part, Planted) and torch.equal(part.slow_label, planted.slow_label[[7, 2, 9]])
    slow, _ = part.measure(part.images())
    assert torch.equal(slow.argmax(1), part.slow_label)


def test_by_name():
    train, test = sources.load("planted", "train"), sources.load("planted", "test", seed=1)
    assert (len(train), len(test)) == (2000, 500) and train.image_shape == (3, 16, 16)
    assert sources.load("planted", size=24).image_shape == (3, 24, 24)
    part = sources.load("planted", limit=40)
    assert isinstance(part, Planted) and part.labels.bincount().tolist() == [10] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shape": (2, 16, 16)}, r"1 or 3 channels and even sides from 8 on, got \(2, 16, 16\)"),
        ({"shape": (3, 15, 16)}, "even sides"),
        ({"shape": (1, 16, 16)}, r"classes should be in 2 .. 3 for 1 channel\(s\), got 4"),
        ({"classes": 1}, "classes should be in 2 .. 4"),
        ({"p_robust": 0.0}, r"p_robust should be in \(0, 1\]"),
        ({"fast_norm": 0.0}, "fast_norm should be above 0"),
        ({"noise": -0.1}, "noise should be at least 0"),
        ({"slow_norm": 9.0}, r"planted images should lie in \[0, 1\], got"),
        ({"n": 0}, "n should be an integer, at least 1, got 0"),
        ({"split": "valid"}, "split should be train or test, got 'valid'"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        _set(**settings)


@pytest.mark.parametrize("feature", ["faint", "large"])
def test_a_linear_model_learns_each_feature(feature):
    """Least squares on the pixels: the fast pattern is worth 100 %, the slow one, with that taken out, p_robust."""

    def data(split: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        planted = _set(split, n)
        x = planted.images().double().flatten(1)
        if feature == "large":
            fast = planted.patterns()[1].flatten(1)
            x = x - fast[planted.labels]
        return x - 0.5, planted.labels

    x, y = data("train", 1500)
    ridge = x.T @ x + 1.0 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(ridge, x.T @ (F.one_hot(y, 4).double() - 0.25))
    x, y = data("test", 400)
    accuracy = float(((x @ weights).argmax(1) == y).double().mean())
    if feature == "faint":
        assert accuracy > 0.99
    else:
        assert accuracy == pytest.approx(0.9, abs=0.02)
