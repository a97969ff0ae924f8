"""BPDA: the wrapped module's own forward pass, and the gradient of its approximation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import advfeat
from advfeat import models


def to_levels(x):
    return (x * 7).round() / 7


@pytest.fixture
def x():
    return torch.rand(4, 3, 5, 5)


def gradient_of(module, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(module(x).pow(2).sum(), x)[0]


def test_the_output_is_the_modules_own_bit_for_bit(x):
    wrapped = advfeat.bpda(to_levels)
    assert torch.equal(wrapped(x), to_levels(x)) and torch.equal(wrapped(x.clone().requires_grad_()), to_levels(x))
    wild = torch.tensor([1e-30, 1e30, torch.inf, 3.0]).requires_grad_()  # near + (exact - near) would round or be NaN
    assert torch.equal(advfeat.bpda(lambda x: 1 / x.floor())(wild), 1 / wild.detach().floor())


def test_without_an_approximation_the_gradient_goes_straight_through(x):
    assert not gradient_of(to_levels, x).any()
    assert torch.equal(gradient_of(advfeat.bpda(to_levels), x), 2 * to_levels(x))


def test_the_gradient_is_that_of_the_approximation_at_the_same_input(x):
    smooth = advfeat.bpda(lambda x: x.heaviside(x), backward=torch.sigmoid)
    own = x.clone().requires_grad_()
    slope = torch.autograd.grad(torch.sigmoid(own).sum(), own)[0]
    assert torch.allclose(gradient_of(smooth, x), 2 * x.heaviside(x) * slope)
    other_shape = advfeat.bpda(lambda x: x.flatten(1).round(), backward=nn.Flatten())
    assert torch.equal(gradient_of(other_shape, x), 2 * x.round())


def test_second_derivatives_are_those_of_the_approximation(x):
    x = x.double().requires_grad_()
    cube = advfeat.bpda(torch.round, backward=lambda x: x**3)
    (first,) = torch.autograd.grad(cube(x).sum(), x, create_graph=True)
    assert torch.allclose(torch.autograd.grad(first.sum(), x)[0], 6 * x)


def test_without_gradients_the_approximation_is_not_run(x):
    def fails(x):
        raise AssertionError

    wrapped = advfeat.bpda(to_levels, backward=fails)
    with torch.no_grad():
        assert torch.equal(wrapped(x.clone().requires_grad_()), to_levels(x))
    with torch.inference_mode():
        assert torch.equal(wrapped(x), to_levels(x))
    assert torch.equal(wrapped.eval()(x), to_levels(x))
    with pytest.raises(AssertionError):
        wrapped(x.clone().requires_grad_())


def test_it_can_be_used_twice_in_one_pass(x):
    wrapped = advfeat.bpda(to_levels)
    own = x.clone().requires_grad_()
    (wrapped(own) + wrapped(3 * own)).sum().backward()
    assert torch.equal(own.grad, torch.full_like(x, 4.0))


def test_a_module_that_works_in_place_changes_nothing_else(x):
    before, own = x.clone(), x.clone().requires_grad_()
    advfeat.bpda(lambda x: x.mul_(2).round_(), backward=lambda x: x * x)(own).sum().backward()
    assert torch.equal(own.detach(), before) and torch.allclose(own.grad, 2 * before)


def test_half_precision_and_a_wider_approximation_agree(x):
    wrapped = advfeat.bpda(to_levels, backward=lambda x: x.float())
    own = x.half().requires_grad_()
    assert wrapped(own).dtype == torch.float16
    wrapped(own).sum().backward()
    assert torch.equal(own.grad, torch.ones_like(own))


def test_checkpoints_load_with_and_without_the_wrapper():
    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))

    plain, wrapped = net(), net()
    wrapped[1] = advfeat.bpda(wrapped[1], backward=nn.Conv2d(4, 4, 1))
    before = copy.deepcopy(wrapped[1].approximation.state_dict())
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    wrapped.load_state_dict(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(wrapped.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert all(torch.equal(before[k], v) for k, v in wrapped[1].approximation.state_dict().items())
    plain.load_state_dict(wrapped.state_dict())
    outer = advfeat.bpda(net())
    outer.load_state_dict(plain.state_dict())
    assert torch.equal(outer.module[3].weight, plain[3].weight)
    with pytest.raises(RuntimeError, match="nothing_there"):
        wrapped.load_state_dict(plain.state_dict() | {"1.nothing_there": torch.ones(1)})


def test_moves_and_modes_reach_both_parts():
    wrapped = advfeat.bpda(nn.Linear(3, 3), backward=nn.Sequential(nn.Linear(3, 3), nn.Dropout())).double().eval()
    assert {p.dtype for p in wrapped.parameters()} == {torch.float64}
    assert not any(m.training for m in wrapped.modules())
    assert {p.device.type for p in copy.deepcopy(wrapped).to("meta").parameters()} == {"meta"}


def test_an_attack_copy_keeps_the_approximation(x):
    """It is made by a trace without gradients, in which the wrapper would be its forward pass alone."""
    body = nn.Sequential(advfeat.bpda(to_levels), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
    model = models.Classifier(body, nn.Linear(4, 5), 5, (3, 5, 5)).eval()
    copied = models.attack_copy(model)
    assert copied is not model
    expected, found = gradient_of(model, x), gradient_of(copied, x)
    assert found.any() and torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_mistakes_are_named(x):
    for given in (nn.ReLU, "round", None):
        with pytest.raises(TypeError, match="module should be a module or a function, got"):
            advfeat.bpda(given)
    with pytest.raises(TypeError, match="backward should be a module or a function, got the class Tanh"):
        advfeat.bpda(torch.round, nn.Tanh)
    own = x.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"output, \(4, 75\), its input has shape \(4, 3, 5, 5\)"):
        advfeat.bpda(nn.Flatten())(own)
    with pytest.raises(ValueError, match="backward gave NoneType"):
        advfeat.bpda(torch.round, backward=lambda x: None)(own)
    with pytest.raises(TypeError, match="module should give a floating-point tensor, got torch.int64"):
        advfeat.bpda(lambda x: x.long())(x)


def test_it_says_what_it_wraps():
    assert "module=to_levels, backward=identity" in repr(advfeat.bpda(to_levels))
    assert "backward=tanh" in repr(advfeat.bpda(nn.ReLU(), torch.tanh))
