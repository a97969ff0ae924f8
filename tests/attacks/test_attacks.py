"""PGD against closed forms, against runs by hand, and at scales where others stop moving."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import advfeat
from advfeat import L2, PGD, CrossEntropy, Linf, Margin


class Linear(nn.Module):
    """Two classes whose margin is w.x + b: the optimum of an attack is known."""

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x):
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)


def network(seed=0, inputs=12, classes=5, width=16, dtype=torch.float32, scale=0.6):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, classes))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) * scale
    return net.to(dtype)


def batch(n=32, shape=(3, 2, 2), classes=5, seed=1, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g).to(dtype), torch.randint(classes, (n,), generator=g)


# --- closed forms


@given(seed=st.integers(0, 10**6), eps=st.floats(0.01, 1.5))
def test_linear_model_linf_optimum_exactly(seed, eps):
    g = torch.Generator().manual_seed(seed)
    w, x = torch.randn(20, generator=g, dtype=torch.float64), torch.rand(4, 20, generator=g, dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    result = PGD(Linf(eps), steps=40).run(Linear(w), x, y)
    away = torch.where(y[:, None] == 0, 1.0, -1.0) * w.sign()
    assert torch.equal(result.x_adv, torch.minimum(torch.maximum(x + eps * away, x - eps), x + eps).clamp(0, 1))


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), eps=st.floats(0.05, 2.0))
def test_linear_model_l2_optimum_in_the_box(seed, eps):
    """max w.x over the ball and the box is clip(x + t w) for one t: found by a search in one dimension.

    Clipping to the box after the ball shortens what the ball allowed, so a step of length a ends within O(a) of it.
    """
    g = torch.Generator().manual_seed(seed)
    w, x = torch.randn(10, generator=g, dtype=torch.float64), torch.rand(1, 10, generator=g, dtype=torch.float64)

    def moved(t):
        return (x + t * w).clamp(0, 1)

    reach = 1e6
    if (moved(reach) - x).norm() <= eps:
        best = moved(reach)
    else:
        best = moved(scipy.optimize.brentq(lambda t: float((moved(t) - x).norm()) - eps, 0, reach, xtol=1e-14))
    x_adv = PGD(L2(eps), steps=500, step_size=eps / 50)(Linear(w), x, torch.tensor([0]))
    optimum, found = float((best - x) @ w), float((x_adv - x) @ w)
    assert found <= optimum + 1e-9
    assert found >= optimum - eps / 50 * float(w.norm())


def test_margin_is_cross_entropys_direction():
    """In float64 the two give the same iterates: bit for bit with signs, to rounding with the L2 norm."""
    model, (x, y) = network(dtype=torch.float64), batch(dtype=torch.float64)
    for threat, tolerance in ((L2(0.5), 1e-12), (Linf(0.1), 0.0)):
        for targeted in (False, True):
            ours, theirs = (
                PGD(threat, steps=10, objective=o, targeted=targeted)(model, x, y)
                for o in (
                    Margin(1.0),
                    CrossEntropy(),
                )
            )
            assert (ours - theirs).abs().max() <= tolerance
            assert (ours - x).abs().max() > 0.01


@pytest.mark.parametrize("threat", [L2(0.3), Linf(0.06)])
def test_scale_of_the_logits_does_not_weaken_the_attack(threat):
    """Logits times 10^k: the same model. The margin finds the same; cross-entropy saturates and stops moving."""
    model, (x, _) = network(scale=0.8), batch(n=200)
    y = model(x).argmax(1)

    def robust(objective, scale):
        attack = PGD(threat, steps=20, objective=objective)
        return float((~attack.run(lambda z: scale * model(z), x, y).success).float().mean())

    ours = [robust(Margin(), 10.0**k) for k in range(-4, 5)]
    assert max(ours) == min(ours)
    assert robust(CrossEntropy(), 1e4) > ours[0] + 0.2 and robust(Margin(1.0), 1e-4) > ours[0] + 0.02


# --- numbers by sample, batches, restarts


@pytest.mark.parametrize("norm", [L2, Linf])
def test_numbers_by_sample_are_single_runs(norm):
    model, (x, y) = network(), batch(n=4)
    eps, size = torch.tensor([0.0, 0.1, 0.3, 0.7]), torch.tensor([0.1, 0.02, 0.1, 0.2])
    together = PGD(norm(eps), steps=7, step_size=size)(model, x, y)
    for i in range(4):
        alone = PGD(norm(float(eps[i])), steps=7, step_size=float(size[i]))(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-6)
    assert torch.equal(together[0], x[0])  # eps = 0


@given(cut=st.integers(1, 7), seed=st.integers(0, 100))
def test_random_starts_do_not_depend_on_the_split(cut, seed):
    model, (x, y) = network(), batch(n=8)
    attack = PGD(L2(0.4), steps=0, random_start=True, seed=seed)
    ids = torch.arange(8) + 100
    whole = attack(model, x, y, sample_ids=ids)
    parts = [attack(model, x[a:b], y[a:b], sample_ids=ids[a:b]) for a, b in ((0, cut), (cut, 8))]
    assert torch.equal(torch.cat(parts), whole)
    over = [r for _, r in attack.over(model, [(x[:cut], y[:cut]), (x[cut:], y[cut:])])]
    assert torch.equal(torch.cat([r.x_adv for r in over]), attack(model, x, y))


@pytest.mark.parametrize("stop", [None, "success"])
def test_restarts_keep_the_union_of_successes(stop):
    model, (x, y) = network(scale=1.0), batch(n=100)
    y = model(x).argmax(1)
    settings = {"threat": L2(0.5), "steps": 1, "step_size": 0.02, "random_start": True}
    attack = PGD(**settings, restarts=4, stop=stop, seed=0)
    result = attack.run(model, x, y)
    single = [PGD(**settings, seed=r << 40).run(model, x, y).success for r in range(4)]
    union = torch.stack(single).any(0)
    assert union.sum() > max(s.sum() for s in single)  # otherwise this test sees nothing
    assert (result.success | ~union).all()
    assert torch.equal(model(result.x_adv).argmax(1) != y, result.success)


def test_best_is_at_least_the_last_and_the_start():
    model, (x, y) = network(scale=1.5), batch(n=64)
    last = PGD(L2(0.5), steps=9, step_size=0.5).run(model, x, y)
    best = PGD(L2(0.5), steps=9, step_size=0.5, keep="best").run(model, x, y)
    start = PGD(L2(0.5), steps=0).run(model, x, y)
    assert (best.success >= last.success).all() and (best.success >= start.success).all()
    same = best.success == last.success
    assert (best.value[same] >= last.value[same]).all()
    assert (best.value > last.value).any()  # steps this long do get worse at times
    assert (last.first_success[best.success] >= 0).all()


def test_stop_finds_the_same_successes_for_fewer_forwards():
    model, (x, y) = network(scale=1.0), batch(n=100)
    plain = PGD(L2(0.3), steps=20, keep="best").run(model, x, y)
    stopped = PGD(L2(0.3), steps=20, stop="success").run(model, x, y)
    assert torch.equal(plain.success, stopped.success) and 0 < plain.success.float().mean() < 1
    assert torch.equal(plain.first_success, stopped.first_success)
    assert stopped.samples_forwarded < 0.8 * plain.samples_forwarded
    assert torch.equal(model(stopped.x_adv).argmax(1) != y, stopped.success)
    unbroken = ~plain.success
    last = PGD(L2(0.3), steps=20).run(model, x, y)
    torch.testing.assert_close(stopped.x_adv[unbroken], last.x_adv[unbroken], rtol=0, atol=1e-5)


def test_first_success_is_the_step_at_which_it_is_seen():
    model, (x, y) = network(), batch(n=20)
    result = PGD(Linf(0.3), steps=12).run(model, x, y)
    for i in range(20):
        steps = [PGD(Linf(0.3), steps=k, step_size=2.5 * 0.3 / 12) for k in range(13)]
        hits = [bool(a.run(model, x[i : i + 1], y[i : i + 1]).success) for a in steps]
        assert int(result.first_success[i]) == (hits.index(True) if any(hits) else -1)


def test_targeted_reaches_the_target():
    model, (x, y) = network(), batch()
    target = (model(x).argmax(1) + 1) % 5
    result = PGD(Linf(1.0), steps=60, targeted=True).run(model, x, target)
    assert torch.equal(model(result.x_adv).argmax(1) == target, result.success)
    assert result.success.float().mean() > 0.9
    assert torch.equal(PGD(L2(0.5), steps=0)(model, x, y), x)


# --- objectives and models of one's own


def test_a_custom_objective_costs_one_forward_a_step():
    calls = []

    def model(z):
        calls.append(len(z))
        return net(z)

    net, (x, y) = network(), batch()

    def objective(m, z, target):
        return m(z).gather(1, target[:, None])[:, 0].neg()

    attack = PGD(L2(0.5), steps=6, objective=objective)
    x_adv = attack(model, x, y)
    assert len(calls) == 6
    calls.clear()
    result = attack.run(model, x, y)
    assert len(calls) == 7 and result.samples_forwarded == 7 * len(x) and result.samples_backwarded == 6 * len(x)
    assert torch.equal(result.x_adv, x_adv) and result.success is not None
    torch.testing.assert_close(result.value, objective(net, x_adv, y).detach())


@pytest.mark.parametrize("wrap", [lambda t: SimpleNamespace(logits=t), lambda t: {"logits": t}])
def test_outputs_with_logits(wrap):
    net, (x, y) = network(), batch()
    attack = PGD(L2(0.5), steps=3)
    assert torch.equal(attack(lambda z: wrap(net(z)), x, y), attack(net, x, y))


def test_representation_matching_with_a_start_that_is_the_target():
    """The gradient of a norm at 0 is NaN in many places; here the sample stays where it is."""
    net = advfeat.models.create("small-convnet", 4, (1, 8, 8), width=4).eval()
    x = torch.rand(3, 1, 8, 8)
    target = net.representation(x).detach()
    attack = PGD(L2(math.inf), steps=5, step_size=0.1, objective=advfeat.Representation(), targeted=True)
    result = attack.run(net, x, target)
    assert torch.equal(result.x_adv, x) and (result.value == 0).all() and result.success is None
    moved = attack.run(net, torch.rand(3, 1, 8, 8), target)
    assert moved.x_adv.isfinite().all() and (moved.value > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_stays_in_its_sample_and_is_counted(bad):
    net, (x, y) = network(), batch(n=6)

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, g):
            g = g.clone()
            g[2, 0, 0, 0] = bad
            return g

    result = PGD(L2(0.5), steps=4).run(lambda z: net(Poison.apply(z)), x, y)
    clean = PGD(L2(0.5), steps=4).run(net, x, y)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(result.x_adv[others], clean.x_adv[others])
    assert torch.equal(result.x_adv[2], x[2])
    assert result.nonfinite_grad_steps.tolist() == [0, 0, 4, 0, 0, 0]


def test_nan_logits_are_no_success():
    x, y = batch(n=3)
    result = PGD(L2(0.5), steps=2).run(lambda z: network()(z) * torch.tensor(math.nan), x, y)
    assert not result.success.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda n, f: PGD(L2(f(0.5)), steps=n(3), step_size=f(0.1), random_start=True, restarts=n(2), seed=n(4)),
        lambda n, f: PGD(Linf(f(0.5), lo=f(-1), hi=f(2)), steps=n(3)),
        lambda n, f: advfeat.APGD(L2(f(0.5)), steps=n(3), restarts=n(2), seed=n(4)),
        lambda n, f: advfeat.Auto(L2(f(0.5)), steps=n(3), target_classes=n(2), seed=n(4)),
    ],
)
def test_numbers_of_numpy_are_numbers(make):
    attack, same = make(np.int64, np.float32), make(int, lambda v: float(np.float32(v)))
    assert json.dumps(attack.to_dict()) == json.dumps(same.to_dict())
    x, y = batch(4)
    assert torch.equal(attack(network(), x, y), same(network(), x, y))


@pytest.mark.parametrize(("name", "value"), [("steps", 2.0), ("steps", "3"), ("restarts", None), ("seed", 0.5)])
def test_what_is_no_integer_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} should be an integer.*got {value!r}"):
        PGD(**{"threat": L2(0.5), "steps": 3, name: value})


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_a_model_that_detaches_its_input_is_told(objective):
    net = network()
    with pytest.raises(ValueError, match="does not depend on x through anything differentiable"):
        PGD(L2(0.5), steps=2, objective=objective)(lambda x: net(x.detach()), *batch(4))


@pytest.mark.parametrize(
    "attack",
    [
        PGD(Linf(1e-3), steps=3),
        PGD(Linf(1e-3), steps=3, stop=advfeat.Converged(2)),
        advfeat.APGD(Linf(1e-3), steps=3),
        PGD(Linf(0.0), steps=1, keep="best"),
    ],
)
def test_a_centre_outside_the_box_by_rounding_is_clipped(attack):
    x, y = batch(8)
    x = torch.where(x < 0.5, -5e-5, 1 + 5e-5)
    clipped, net = x.clamp(0, 1), network()
    for _, result in attack.over(net, [(x, y), (x, y)]):  # the second in the tensors of the first
        assert torch.equal(result.x_adv, attack(net, clipped, y))
        assert (result.x_adv - clipped).abs().max() <= attack.threat.eps * (1 + 1e-6)
        assert result.distance.max() <= attack.threat.eps * (1 + 1e-6)


def test_zero_gradients_are_counted():
    x, y = batch(n=3)
    net = network()
    result = PGD(L2(0.5), steps=5).run(lambda z: net(z * 0), x, y)
    assert (result.zero_grad_steps == 5).all() and torch.equal(result.x_adv, x)


def test_autocast_keeps_the_ball_exact():
    net = advfeat.models.create("small-convnet", 5, (3, 8, 8), width=4).eval()
    x, y = batch(shape=(3, 8, 8))
    x_adv = PGD(Linf(4 / 255), steps=5, autocast=torch.bfloat16)(net, x, y)
    assert x_adv.dtype == torch.float32
    eps = torch.tensor(4 / 255)
    assert ((x_adv >= x - eps) & (x_adv <= x + eps)).all() and not torch.equal(x_adv, x)


def test_normalised_inputs_with_a_box_by_channel():
    """With one std for all channels the normalised attack is the pixel attack, scaled."""
    net, (x, y) = network(dtype=torch.float64), batch(dtype=torch.float64)
    mean, std = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64), 0.25
    column = mean[:, None, None]
    inside = PGD(L2(0.5), steps=8)(lambda z: net((z - column) / std), x, y)
    outside = PGD(L2(0.5 / std, lo=(0 - mean) / std, hi=(1 - mean) / std), steps=8)(net, (x - column) / std, y)
    torch.testing.assert_close(outside * std + column, inside, rtol=0, atol=1e-12)


def test_empty_batches():
    x, y = batch(n=0)
    result = PGD(L2(0.5), steps=3, keep="best").run(network(), x, y)
    assert result.x_adv.shape == (0, 3, 2, 2) and len(result.success) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps should be an integer, at least 0, got -1"),
        ({"step_size": -0.1}, "step_size should be finite and at least 0"),
        ({"threat": L2(math.inf)}, "step_size should be given when eps is infinite"),
        ({"threat": 0.5}, "threat should be"),
        ({"restarts": 2}, "needs random_start=True"),
        ({"restarts": 0}, "restarts should be an integer, at least 1"),
        ({"keep": "first"}, 'keep should be "last" or "best"'),
        ({"stop": "now"}, 'stop should be None, "success" or advfeat.Converged'),
        ({"objective": 3}, "objective should be"),
        ({"threat": L2(math.inf), "step_size": 0.1, "random_start": True}, "random_start needs a finite eps"),
        ({"seed": 0.5}, "seed should be an integer"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PGD(**({"threat": L2(0.5), "steps": 3} | settings))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": torch.full((8,), 5)}, "target holds label 5, but the model has 5 classes"),
        ({"target": torch.full((8,), -1)}, "labels of at least 0, got -1"),
        ({"target": torch.zeros(7, dtype=torch.int64)}, "target should have one entry per sample, 8"),
        ({"target": torch.rand(8)}, "target should be labels"),
        ({"x": torch.rand(8, 3, 2, 2) * 2 - 1}, r"x should lie in the box \[0.0, 1.0\]"),
        ({"x": torch.zeros(8, 3, 2, 2, dtype=torch.int64)}, "x should be a floating-point batch"),
        ({"start": torch.rand(4, 3, 2, 2)}, "start should be like x"),
        ({"sample_ids": torch.arange(3)}, "sample_ids should be int64"),
    ],
)
def test_wrong_inputs_are_named(arguments, message):
    x, y = batch(n=8)
    given_ = {"x": x, "target": y} | arguments
    with pytest.raises(ValueError, match=message):
        PGD(L2(0.5), steps=2)(network(), given_.pop("x"), given_.pop("target"), **given_)


def test_images_that_are_not_finite_are_named():
    x, y = batch(n=8)
    x[5, 0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="sample 5 of the batch holds NaN or inf"):
        PGD(L2(0.5), steps=2)(network(), x, y)
    with pytest.raises(ValueError, match=r"eps should be a float or a tensor \[B\] = \(8,\), got shape \(3,\)"):
        PGD(L2(torch.rand(3)), steps=2)(network(), batch(n=8)[0], y)
    with pytest.raises(TypeError, match="logits"):
        PGD(L2(0.5), steps=2)(lambda z: "no", batch(n=8)[0], y)
    with pytest.raises(ValueError, match="does not depend on x"):
        PGD(L2(0.5), steps=2)(lambda z: torch.rand(8, 5), batch(n=8)[0], y)


def test_settings_are_plain_values():
    attack = PGD(L2(math.inf), steps=5, step_size=0.1)
    assert attack.to_dict()["eps"] == "inf" and attack.to_dict()["objective"] == "Margin(scale-free)"
    assert PGD(L2(0.5), steps=10).replace(steps=20).step_length == 2.5 * 0.5 / 20
