"""Usefulness and robust usefulness: closed forms against attacks, brute force and the Gaussian task of the theory."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import advfeat
from advfeat import models
from advfeat.features import (
    INCONCLUSIVE,
    NON_ROBUST,
    ROBUST,
    USELESS,
    Ranges,
    attacked_ranges,
    containment,
    linear_ranges,
    usefulness,
)


def plain_l2(eps, steps=20):
    return advfeat.PGD(advfeat.L2(eps, lo=-math.inf, hi=math.inf), steps=steps)


def plain_linf(eps, steps=20):
    return advfeat.PGD(advfeat.Linf(eps, lo=-math.inf, hi=math.inf), steps=steps)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]), eps=st.sampled_from([0.0, 0.01, 0.5, 3.0]))
def test_linear_features_in_closed_form_and_by_attack(seed, norm, eps):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False, dtype=torch.float64))
    closed = linear_ranges(layer[1].weight.detach(), x, eps, norm)
    found = attacked_ranges(layer, x, (plain_l2 if norm == "l2" else plain_linf)(eps))
    for name in ("value", "low", "high"):
        torch.testing.assert_close(getattr(found, name), getattr(closed, name), rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.05, 0.3, 2.0]))
def test_an_linf_ball_cut_by_the_box(seed, eps):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 1, 2, 2, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    closed = linear_ranges(weights, x, eps, "linf", box=(0.0, 1.0))

    # Brute force over the corners of the box-ball intersection.
    down, up = (x - eps).clamp(min=0).flatten(1), (x + eps).clamp(max=1).flatten(1)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    points = down[:, None] + corners * (up - down)[:, None]
    values = points @ weights.T
    torch.testing.assert_close(closed.low, values.amin(1))
    torch.testing.assert_close(closed.high, values.amax(1))
    found = attacked_ranges(lambda z: z.flatten(1) @ weights.T, x, advfeat.PGD(advfeat.Linf(eps), steps=20))
    torch.testing.assert_close(found.low, closed.low, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.high, closed.high, rtol=1e-9, atol=1e-9)


def test_a_nonlinear_feature_with_a_known_range():
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eps, length = 0.4, x.norm(dim=1)
    found = attacked_ranges(lambda z: z.square().sum(1, keepdim=True), x, plain_l2(eps, steps=60))
    torch.testing.assert_close(found.high[:, 0], (length + eps) ** 2, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.low[:, 0], (length - eps).clamp(min=0) ** 2, rtol=1e-3, atol=1e-4)


def test_the_gaussian_task_has_closed_forms():
    from advfeat.theory import GaussianTask

    task = GaussianTask(np.array([1.0, 0.3, 0.1]), np.array([1.0, 0.2, 0.01]))
    n, eps = 100_000, 0.15
    x, y = task.sample(n, 0)
    weights = torch.eye(3, dtype=torch.float64)
    found = usefulness(linear_ranges(weights, torch.from_numpy(x), eps), torch.from_numpy(y).to(torch.int64))
    deviation = np.sqrt(task.variances + task.mean**2)  # of y mean + noise
    rho = task.mean / deviation
    np.testing.assert_allclose(found.rho[:, 0], rho, atol=4 / math.sqrt(n))
    np.testing.assert_allclose(found.gamma[:, 0], rho - eps / deviation, atol=6 / math.sqrt(n))
    assert found.kinds == [ROBUST, ROBUST, NON_ROBUST]
    np.testing.assert_allclose(found.rho_error[:, 0], np.sqrt(task.variances) / deviation / math.sqrt(n), rtol=0.02)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), classes=st.sampled_from([2, 3, 5]))
def test_the_definition_sample_by_sample(seed, classes):
    rng = np.random.default_rng(seed)
    n = 40
    value = rng.standard_normal((n, 3)) * 5 + 2
    low, high = value - rng.exponential(1, (n, 3)), value + rng.exponential(1, (n, 3))
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    found = usefulness(Ranges(*(torch.from_numpy(a) for a in (value, low, high))), torch.from_numpy(labels))
    columns = [1] if classes == 2 else list(range(classes))
    assert list(found.classes) == columns
    for j in range(3):
        mean, spread = value[:, j].mean(), value[:, j].std()
        for c, label in enumerate(columns):
            y = np.where(labels == label, 1, -1)
            candidates = []
            for s in (1, -1):
                rho = np.mean([y[i] * s * (value[i, j] - mean) / spread for i in range(n)])
                worst = [min(y[i] * s * (end[i, j] - mean) / spread for end in (low, high)) for i in range(n)]
                candidates.append((rho, np.mean(worst), s))
            rho, gamma, s = max(candidates)
            assert found.rho[j, c] == pytest.approx(rho, abs=1e-9)
            assert found.gamma[j, c] == pytest.approx(gamma, abs=1e-9)
            assert rho < 1e-9 or found.sign[j, c] == s


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([-1e6, -1.0, 1e-3, 50.0]), shift=st.sampled_from([0.0, 10.0]))
def test_units_offset_and_sign_of_a_feature_do_not_matter(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    width = torch.rand(50, 2, generator=generator, dtype=torch.float64)
    labels = torch.arange(50) % 3
    first = usefulness(Ranges(value, value - width, value + 2 * width), labels)
    ends = [scale * (value - width) + shift, scale * (value + 2 * width) + shift]
    second = usefulness(Ranges(scale * value + shift, *sorted(ends, key=lambda e: e.mean())), labels)
    np.testing.assert_allclose(second.rho, first.rho, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(second.gamma, first.gamma, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(second.sign, math.copysign(1, scale) * first.sign)
    assert first.kinds == second.kinds


def test_kinds_and_the_constant_feature():
    n = 2000
    y = torch.arange(n) % 2
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = noise.clone()
    value[:, 0] += 2.0 * y  # useful
    value[:, 1] += 2.0 * y  # useful, but the adversary reaches far
    value[:, 3] = 0.1 + 0.2  # constant but for nothing
    reach = torch.tensor([0.1, 5.0, 0.1, 0.0], dtype=torch.float64)
    found = usefulness(Ranges(value, value - reach, value + reach), y)
    assert found.kinds == [ROBUST, NON_ROBUST, USELESS, USELESS]
    assert found.rho[3, 0] == 0 and found.gamma[3, 0] == 0 and not np.isnan(found.rho).any()
    rows = found.rows()
    assert [row["feature"] for row in rows[:2]] in ([0, 1], [1, 0]) and rows[0]["rho"] >= rows[1]["rho"]
    text = io.StringIO()
    Console(file=text, width=100).print(found.table(limit=2))
    assert "1 robust, 1 non-robust, 2 useless" in text.getvalue() and text.getvalue().count("±") == 4


def test_a_feature_that_is_robust_for_one_class_only_counts_as_robust():
    rho = np.array([[0.1, 0.5], [0.0, 0.4], [0.1, 0.3], [0.02, 0.3]])
    gamma = np.array([[0.05, -0.3], [-0.2, -0.1], [-0.02, -0.1], [-0.01, -0.1]])
    error = np.full((4, 2), 0.01)
    found = advfeat.features.Usefulness(rho, error, gamma, error, np.ones((4, 2)), (3, 7), 100)
    # -0.02 is within three errors of 0, but not if the feature is useless for that class.
    assert found.kinds == [ROBUST, NON_ROBUST, INCONCLUSIVE, NON_ROBUST]
    rows = {row["feature"]: row for row in found.rows()}
    assert rows[0]["class"] == 3 and rows[0]["rho"] == 0.1 and rows[1]["class"] == 7


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5))


def test_results_do_not_depend_on_the_batch_size_or_on_the_selection():
    network, x = small_network(), torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    attack = advfeat.PGD(advfeat.L2(0.5), steps=5, random_start=True, restarts=2, seed=3)
    whole = attacked_ranges(network, x, attack)
    for size in (1, 4, 1000):
        parts = attacked_ranges(network, x, attack, batch_size=size)
        for name in ("value", "low", "high"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    some = attacked_ranges(network, x, attack, select=[4, 1])
    torch.testing.assert_close(some.low, whole.low[:, [4, 1]], rtol=1e-4, atol=1e-5)
    assert (whole.low <= whole.value).all() and (whole.value <= whole.high).all()
    wider = attacked_ranges(network, x, attack.replace(threat=advfeat.L2(1.0)))
    assert (wider.high - wider.low > whole.high - whole.low).double().mean() > 0.95


def test_no_trace_is_left():
    network = small_network().train()
    network[2].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    x = torch.rand(4, 1, 4, 4)
    torch.set_rng_state(state)
    attacked_ranges(network, x, advfeat.PGD(advfeat.L2(0.5), steps=2))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert network.training and network[1].training and not network[2].training
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_attacks_that_see_no_gradient_are_counted():
    x = torch.rand(6, 1, 2, 2)
    features = lambda z: torch.stack([z.flatten(1).sum(1), torch.relu(z.flatten(1).sum(1) - 100)], 1)  # noqa: E731
    found = attacked_ranges(features, x, advfeat.PGD(advfeat.L2(0.1), steps=3))
    assert found.stuck.tolist() == [0.0, 1.0]
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    assert usefulness(found, labels).stuck.tolist() == [0.0, 1.0]


def test_robust_training_makes_features_more_robustly_useful_on_real_digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels)
    found = {}
    for eps in (0.0, 0.5):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh())
        model = nn.Sequential(body, nn.Linear(32, 10))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        attack = advfeat.PGD(advfeat.L2(eps), steps=5)
        for epoch in range(20):
            for rows in torch.randperm(1297, generator=torch.Generator().manual_seed(epoch)).split(100):
                batch = attack(model, x[rows], y[rows]) if eps else x[rows]
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(batch), y[rows]).backward()
                optimiser.step()
        ranges = attacked_ranges(body, x[1297:], advfeat.PGD(advfeat.L2(0.2), steps=10))
        found[eps] = usefulness(ranges, y[1297:])
        # tanh is monotone, so the ends cannot pass tanh of the linear part's, which are closed forms without the box.
        linear, bias = linear_ranges(body[1].weight.detach(), x[1297:], 0.2), body[1].bias.detach().double()
        assert (ranges.high <= torch.tanh(linear.high + bias) + 1e-5).all()
        assert (ranges.low >= torch.tanh(linear.low + bias) - 1e-5).all()
    assert found[0.0].rho.max(1).min() > 0.15  # every unit of a trained representation is useful for some digit
    assert found[0.5].gamma.max(1).mean() > found[0.0].gamma.max(1).mean() + 0.01
    assert found[0.5].kinds.count(ROBUST) > found[0.0].kinds.count(ROBUST)


def test_gohs_published_containment():
    # Distill, R3: the feature shown at (log robustness, log usefulness) = (-10.854, -1.2533) mixes these two.
    robust, non_robust = (math.exp(-4.445), math.exp(-1.158)), (math.exp(-11.616), math.exp(-4.098))
    shown = containment(robust, non_robust, 0.0014551)
    assert math.log(shown[0]) == pytest.approx(-10.854, abs=1e-3)
    assert math.log(shown[1]) == pytest.approx(-1.2533, abs=5e-4)
    assert containment(robust, non_robust, 1.0) == pytest.approx(robust)
    assert containment(robust, non_robust, 0.0) == pytest.approx(non_robust)


def test_containment_against_data():
    rng = np.random.default_rng(0)
    n = 200_000
    y = rng.integers(0, 2, n) * 2.0 - 1
    z = rng.standard_normal((n, 2)) + np.outer(y, [0.8, 0.1])
    x = z * [2.0, 0.05]
    x -= x.mean(0)
    second = x.T @ x / n
    alpha, single = 0.01, []
    axes = np.linalg.eigh(second)[1].T[::-1]
    for a in axes:
        single.append((math.sqrt(a @ second @ a), (y * (x @ a)).mean() / math.sqrt(a @ second @ a)))
    mixed = np.array([alpha, 1 - alpha]) @ axes
    norm = math.sqrt(mixed @ second @ mixed)
    expected = (norm / np.linalg.norm(mixed), (y * (x @ mixed)).mean() / norm)
    assert containment(*single, alpha) == pytest.approx(expected, rel=1e-9)


def test_the_scatter_is_a_picture(tmp_path):
    value = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    found = usefulness(Ranges(value, value - 0.1, value + 0.1), torch.arange(100) % 2)
    path = found.scatter(tmp_path / "sub" / "scatter.png", "a title")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


def test_bad_arguments_are_named():
    x, network = torch.rand(4, 1, 4, 4), small_network()
    attack = advfeat.PGD(advfeat.L2(0.5), steps=2)
    with pytest.raises(TypeError, match="attack should be advfeat.PGD, got L2"):
        attacked_ranges(network, x, advfeat.L2(0.5))
    with pytest.raises(ValueError, match=r"select should be features between 0 and 4, got \[5\]"):
        attacked_ranges(network, x, attack, select=[5])
    with pytest.raises(ValueError, match="batch_size should be an integer, at least 1, got 0"):
        attacked_ranges(network, x, attack, batch_size=0)
    with pytest.raises(ValueError, match=r"x should be \[N, ...\] with N at least 1, got shape \(0, 1, 4, 4\)"):
        attacked_ranges(network, x[:0], attack)
    with pytest.raises(ValueError, match=r"features should give a tensor \[1, k\], got \(\)"):
        attacked_ranges(lambda z: z.sum(), x, attack)
    with pytest.raises(ValueError, match=r"weights should be \[k, 16\] for x of that size, got shape \(2, 5\)"):
        linear_ranges(torch.ones(2, 5), x, 0.1)
    with pytest.raises(ValueError, match="eps should be finite and at least 0, got -1"):
        linear_ranges(torch.ones(2, 16), x, -1.0)
    with pytest.raises(ValueError, match="box should be None with norm='l2'"):
        linear_ranges(torch.ones(2, 16), x, 0.1, box=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"x should lie in the box \[0.0, 0.1\]"):
        linear_ranges(torch.ones(2, 16), x, 0.1, "linf", box=(0.0, 0.1))
    with pytest.raises(ValueError, match='norm should be "l2", "linf" or "l1", got \'l3\''):
        linear_ranges(torch.ones(2, 16), x, 0.1, "l3")
    good = linear_ranges(torch.ones(2, 16), x, 0.1)
    with pytest.raises(ValueError, match=r"labels should be integers \[4\], got torch.float32"):
        usefulness(good, torch.ones(4))
    with pytest.raises(ValueError, match=r"labels should hold at least two classes, got \[3\]"):
        usefulness(good, torch.full((4,), 3))
    bad = Ranges(good.value, good.low, good.high.clone())
    bad.high[0, 1] = math.inf
    with pytest.raises(ValueError, match="ranges.high should be finite, feature 1 is not"):
        usefulness(bad, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="alpha should be between 0 and 1, got 2"):
        containment((1.0, 0.1), (0.1, 0.1), 2.0)
    with pytest.raises(ValueError, match="second robustness should be > 0, got 0"):
        containment((1.0, 0.1), (0.0, 0.1), 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_a_model_in_another_precision_are_measured(dtype):
    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).to(dtype)
    attack = advfeat.PGD(advfeat.L2(0.2), steps=3)
    for features in (net, lambda x: net(x), net.forward):
        found = attacked_ranges(features, x, attack)
        assert (found.low < found.value).all() and (found.value < found.high).all()
    model = models.create("small-convnet", 3, (1, 8, 8), mean=[0.4], std=[0.2], width=4).to(dtype).eval()
    assert attacked_ranges(model.representation, torch.rand(4, 1, 8, 8), attack).value.isfinite().all()


def test_features_that_are_random_are_said_to_be_so():
    x, net = torch.rand(12, 1, 4, 4), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with pytest.warns(RuntimeWarning, match="random in eval mode.*usefulness and its ranges are of single draws"):
        attacked_ranges(lambda x: net(x + 0.01 * torch.randn_like(x)), x, advfeat.PGD(advfeat.L2(0.2), steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacked_ranges(net, x, advfeat.PGD(advfeat.L2(0.2), steps=2))
