"""Objectives against formulas in numpy, their gradients, and what they refuse."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.logits import identity, logits_and_labels
from support.strategies import BF16, F16, F32, F64

from advfeat import APGD, CW, DLR, L2, PGD, CrossEntropy, Margin, Representation, objectives
from advfeat.objectives import TargetedDLR


def by_hand(name, z, y):
    others = np.array([v for j, v in enumerate(z) if j != y])
    if name.startswith("Margin"):
        top = np.sort(z)[::-1]
        t = {"Margin": 1.0, "Margin(0.3)": 0.3}.get(name, 0.2 * (top[0] - top[2]))
        return t * scipy.special.logsumexp(others / t) - z[y]
    if name == "CrossEntropy":
        return scipy.special.logsumexp(z) - z[y]
    if name == "CW":
        return max(others) - z[y]
    assert name == "DLR", f"no formula for {name}"
    top = np.sort(z)[::-1]
    return (max(others) - z[y]) / (top[0] - top[2])


LOSSES = [Margin(), Margin(1.0), Margin(0.3), CrossEntropy(), CW(), DLR()]


@pytest.mark.parametrize("objective", LOSSES, ids=lambda o: o.name)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e4]), classes=st.integers(3, 12))
def test_values_are_their_formula(objective, seed, scale, classes):
    z, y = logits_and_labels(seed, classes, scale)
    got = objective.value(identity, z, y)
    want = [by_hand(objective.name, row.numpy(), int(label)) for row, label in zip(z, y, strict=True)]
    assert got.dtype == F64
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("objective", LOSSES, ids=lambda o: o.name)
@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_half_logits_are_compared_in_float32(objective, dtype):
    z, y = logits_and_labels(1, scale=3.0)
    z = z.to(dtype)
    got = objective.value(identity, z, y)
    assert got.dtype == F32
    torch.testing.assert_close(got, objective.value(identity, z.float(), y), rtol=0, atol=0)


@pytest.mark.parametrize("objective", [o for o in LOSSES if o != Margin()], ids=lambda o: o.name)
def test_gradients(objective):
    z, y = logits_and_labels(3)
    assert torch.autograd.gradcheck(lambda v: objective.value(identity, v, y), z.requires_grad_())


@given(seed=st.integers(0, 2**31))
def test_cross_entropys_gradient_is_sigmoid_times_the_margins(seed):
    """CE = log(1 + exp(margin)): the same direction, a factor for each sample."""
    z, y = logits_and_labels(seed, scale=2.0)
    z.requires_grad_()
    margin = Margin(1.0).value(identity, z, y)
    (a,) = torch.autograd.grad(margin.sum(), z, retain_graph=True)
    (b,) = torch.autograd.grad(CrossEntropy().value(identity, z, y).sum(), z)
    torch.testing.assert_close(b, torch.sigmoid(margin)[:, None] * a, rtol=1e-10, atol=1e-14)


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 12))
def test_the_scale_free_margins_temperature_is_a_constant_to_its_gradient(seed, classes):
    z, y = logits_and_labels(seed, classes)
    z.requires_grad_()
    (got,) = torch.autograd.grad(Margin().value(identity, z, y).sum(), z)
    top = z.detach().sort(dim=1, descending=True).values
    for i in range(len(z)):
        t = 0.2 * float(top[i, 0] - top[i, 2]) if classes > 2 else 1.0
        (wanted,) = torch.autograd.grad(Margin(t).value(identity, z[i : i + 1], y[i : i + 1]).sum(), z)
        torch.testing.assert_close(got[i], wanted[i], rtol=1e-10, atol=1e-12)


@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 12),
    scale=st.sampled_from([1e-30, 1e-4, 1e-2, 3.0, 1e2, 1e4, 1e30]),
    shift=st.floats(-50, 50),
)
def test_the_margins_direction_does_not_see_scale_and_shift(seed, classes, scale, shift):
    z, y = logits_and_labels(seed, classes)
    rule = Margin().slope_rule()
    value, slope = rule(z, y)
    scaled, same = rule(scale * z, y)
    torch.testing.assert_close(same, slope, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled, scale * value, rtol=1e-9, atol=1e-12 * scale)
    torch.testing.assert_close(rule(z + shift, y)[1], slope, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(rule((scale * z).float(), y)[1].double(), slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("z", "y", "wanted"),
    [
        ([2.0, 2.0, 2.0, 2.0], 0, [-1, 1 / 3, 1 / 3, 1 / 3]),  # all alike
        ([2.0, 2.0, 2.0, 0.0], 3, [1 / 3, 1 / 3, 1 / 3, -1]),  # the three largest alike
        ([4.0, 1.0, -math.inf, -math.inf], 0, [-1, 1, 0, 0]),  # one other class is left
        ([4.0, -math.inf, -math.inf, -math.inf], 0, [-1, 0, 0, 0]),  # none is
        ([-math.inf, 1.0, 1.0, -math.inf], 0, [-1, 0.5, 0.5, 0]),  # the label's own class is out
        ([0.0, 0.0], 1, [1, -1]),
    ],
)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_margins_slope_with_ties_and_classes_that_are_out(z, y, wanted, scale):
    z, y = scale * torch.tensor([z], dtype=F64), torch.tensor([y])
    for objective in (Margin(), Margin(1.0)):
        value, slope = objective.slope_rule()(z, y)
        torch.testing.assert_close(slope[0], torch.tensor(wanted, dtype=F64), rtol=0, atol=1e-12)
        assert not value.isnan().any()


def test_a_single_logit_stands_for_two_classes():
    z, y = torch.tensor([[1.5], [1.5], [-2.0]], dtype=F64, requires_grad=True), torch.tensor([0, 1, 1])
    both = torch.cat([torch.zeros_like(z), z], dim=1)
    for objective in (Margin(), Margin(1.0), Margin(0.3), CrossEntropy(), CW()):
        value = objective.value(identity, z, y)
        torch.testing.assert_close(value, objective.value(identity, both, y))
        (slope,) = torch.autograd.grad(value.sum(), z)
        if objective.slope_rule() is not None:
            got, got_slope = objective.slope_rule()(z.detach(), y)
            torch.testing.assert_close(got, value.detach())
            torch.testing.assert_close(got_slope, slope)
    with pytest.raises(ValueError, match="DLR needs at least 3 classes, the model has 2"):
        DLR().value(identity, z, y)


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, "1"])
def test_temperatures_that_are_none_are_named(wrong):
    with pytest.raises(ValueError, match="temperature should be a positive number or None, got"):
        Margin(wrong)


def test_the_margin_has_a_gradient_where_cross_entropy_has_none():
    z = torch.tensor([[300.0, 0.0, 1.0]], requires_grad=True)
    y = torch.tensor([0])
    (ce,) = torch.autograd.grad(CrossEntropy().value(identity, z, y).sum(), z)
    assert (ce == 0).all()
    for objective in (Margin(1.0), Margin()):
        (margin,) = torch.autograd.grad(objective.value(identity, z, y).sum(), z)
        assert margin[0, 0] == -1 and margin[0, 2] >= margin[0, 1] > 0


def test_two_classes_and_infinite_others():
    z = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    y = torch.tensor([0, 0])
    for objective in (Margin(), CW()):
        value = objective.value(identity, z, y)
        assert torch.equal(value, torch.tensor([-3.0, 2.5]))
        (g,) = torch.autograd.grad(value.sum(), z)
        assert torch.equal(g, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
    masked = torch.tensor([[1.0, 2.0, -math.inf]], requires_grad=True)  # a class that the model rules out
    value = Margin().value(identity, masked, torch.tensor([0]))
    (g,) = torch.autograd.grad(value.sum(), masked)
    assert value.item() == 1.0 and torch.equal(g, torch.tensor([[-1.0, 1.0, 0.0]]))


@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-50, 50))
def test_dlr_does_not_see_scale_and_shift(seed, scale, shift):
    z, y = logits_and_labels(seed)
    torch.testing.assert_close(
        DLR().value(identity, scale * z + shift, y), DLR().value(identity, z, y), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()])
@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1.0, 1e12])
def test_a_ratio_of_logits_is_the_same_at_any_scale(objective, scale):
    z, y = logits_and_labels(3)
    target = y if isinstance(objective, DLR) else torch.stack([y, (y + 1) % z.shape[1]], dim=1)
    torch.testing.assert_close(objective.value(identity, scale * z, target), objective.value(identity, z, target))


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()])
def test_a_ratio_of_logits_keeps_its_direction_where_they_are_tied_or_out(objective):
    inf = math.inf
    z = torch.tensor([[3.0, 1.0, -inf, -inf, -inf], [2.0, 2.0, 2.0, 2.0, 1.0]], requires_grad=True)
    target = torch.tensor([0, 4]) if isinstance(objective, DLR) else torch.tensor([[0, 1], [4, 1]])
    value = objective.value(identity, z, target)
    (g,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all() and g.isfinite().all()
    assert g[0, 0] < 0 < g[0, 1] and g[1, 4] < 0


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 4, dtype=F64)

    def representation(self, x):
        return self.layer(x.flatten(1)).tanh()


def test_representation_is_a_distance():
    net, g = Net(), torch.Generator().manual_seed(0)
    x, target = torch.rand(3, 2, 3, generator=g, dtype=F64), torch.rand(3, 4, generator=g, dtype=F64)
    want = np.linalg.norm(net.representation(x).detach().numpy() - target.numpy(), axis=1)
    plain = Representation().value(net, x, target)
    np.testing.assert_allclose(plain.detach().numpy(), want, rtol=1e-13)
    relative = Representation(relative=True).value(net, x, target)
    np.testing.assert_allclose(relative.detach().numpy(), want / np.linalg.norm(target.numpy(), axis=1), rtol=1e-13)
    own = Representation(features=lambda v: v * 2).value(net, x, target=torch.zeros(3, 6, dtype=F64))
    np.testing.assert_allclose(own.numpy(), 2 * np.linalg.norm(x.flatten(1).numpy(), axis=1), rtol=1e-13)
    assert torch.autograd.gradcheck(lambda v: Representation().value(net, v, target), x.requires_grad_())


def test_representation_at_its_target_has_gradient_zero():
    x = torch.rand(2, 6, requires_grad=True)
    target = x.detach().clone()
    target[1] += 1
    value = Representation(features=identity).value(None, x, target)
    (g,) = torch.autograd.grad(value.sum(), x)
    assert value[0] == 0 and (g[0] == 0).all() and (g[1] != 0).all() and g.isfinite().all()


@pytest.mark.parametrize("objective", LOSSES, ids=lambda o: o.name)
@pytest.mark.parametrize(
    "target", [torch.zeros(5), torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, dtype=torch.int32)]
)
def test_targets_that_are_no_labels_are_refused(objective, target):
    with pytest.raises(ValueError, match=r"target should be labels, int64 \[B\], got"):
        objective.value(identity, torch.rand(5, 4), target)


def test_too_few_classes_and_wrong_features_are_named():
    y = torch.zeros(5, dtype=torch.int64)
    for objective in (Margin(), CW()):
        with pytest.raises(ValueError, match=r"target should be labels, int64 \[B\], got torch.float32"):
            objective.value(identity, torch.rand(5, 2), y.float())
    with pytest.raises(ValueError, match="DLR needs at least 3 classes, the model has 2"):
        DLR().value(identity, torch.rand(5, 2), y)
    with pytest.raises(ValueError, match=r"target should be features of shape \(5, 4\), got \(5, 3\)"):
        Representation(features=identity).value(None, torch.rand(5, 4), torch.rand(5, 3))


@given(
    st.integers(1, 5),
    st.integers(2, 7),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([1e-3, 1.0, 30.0, 1e4, 1e30]),
    st.integers(0, 2**31),
)
def test_the_margins_short_form_is_its_gradient(n, classes, dtype, scale, seed):
    g = torch.Generator().manual_seed(seed)
    z = (scale * torch.randn(n, classes, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    target = torch.randint(classes, (n,), generator=g)
    wanted = Margin().value(lambda x: x, z, target)
    (slope,) = torch.autograd.grad(wanted.sum(), z)
    got, got_slope = Margin().slope_rule()(objectives.wide(z.detach()), target)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(got, wanted.detach(), **tolerance)
    torch.testing.assert_close(got_slope.to(dtype), slope, **tolerance)


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()])
@pytest.mark.parametrize("make", [lambda **more: PGD(L2(0.1), steps=2, **more), lambda **more: APGD(L2(0.1), **more)])
def test_losses_of_untargeted_attacks_are_refused_by_targeted_ones(make, objective):
    """They would strengthen the class that the attack is to leave, and count that as success."""
    with pytest.raises(ValueError, match=f"targeted should be False for {objective.name}.*got True"):
        make(targeted=True, objective=objective)
    with pytest.raises(ValueError, match="targeted should be False"):
        make(objective=objective).replace(targeted=True)


@pytest.mark.parametrize("z", [[1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0, 0.0]])
@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()])
def test_ratios_of_equal_logits_are_finite(objective, z):
    z = torch.tensor([z], requires_grad=True)
    target = torch.tensor([4]) if isinstance(objective, DLR) else torch.tensor([[4, 0]])
    value = objective.value(identity, z, target)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all() and gradient.isfinite().all() and gradient[0, 4] < 0


@pytest.mark.parametrize("pair", [[0, 4], [4, 0], [0, -1]])
@pytest.mark.parametrize("attack", [PGD(L2(0.1), 2), PGD(L2(0.1), 2, stop="success"), APGD(L2(0.1), 2)])
def test_pairs_out_of_range_are_named(attack, pair):
    """On CUDA they end the process's use of the device."""
    x, target = torch.rand(2, 3), torch.tensor([[0, 1], pair])
    message = "target should hold labels of at least 0, got -1" if -1 in pair else "target holds label 4.*4 classes"
    with pytest.raises(ValueError, match=message):
        attack.replace(objective=TargetedDLR())(torch.nn.Linear(3, 4), x, target)


def test_integers_that_are_no_labels_are_anything():
    """Say, which image of a bank each sample should be like."""
    bank, model, x = torch.rand(30, 3), torch.nn.Linear(3, 4), torch.rand(2, 3)

    def value(model, x, target):
        return (model(x).sum(1) - bank[target].sum((1, 2))).abs()

    PGD(L2(0.1), steps=2, objective=value)(model, x, torch.tensor([[29, 1], [7, 12]]))


def test_short_form_of_logits_that_are_not_finite():
    z = torch.tensor([[float("nan"), 0.0, 1.0], [float("inf"), 0.0, 1.0], [0.0, float("-inf"), 1.0]])
    value, slope = Margin().slope_rule()(z, torch.tensor([1, 1, 0]))
    assert value[0].isnan() and not value[1].isfinite() and value[2] == 1.0
    assert not slope[:2].isfinite().all() and torch.equal(slope[2], torch.tensor([-1.0, 0.0, 1.0]))
