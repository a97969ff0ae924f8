"""Copies for attacks compute the same function, and leave the model alone."""

import copy

import pytest
import torch
from torch import nn

from advfeat import L2, PGD
from advfeat.datasets import sources
from advfeat.datasets.building import build
from advfeat.datasets.recipes import MatchRepresentation
from advfeat.models import Classifier, adapt, attack_copy, create


def trained_statistics(model):
    """Running statistics, scales and shifts as after some training."""
    g = torch.Generator().manual_seed(3)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * 0.3)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + 0.5)
            m.weight.data.copy_(torch.rand(m.weight.shape, generator=g) + 0.5)
            m.bias.data.copy_(torch.randn(m.bias.shape, generator=g) * 0.3)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["small-convnet", "resnet18"])
def test_the_same_function_without_batchnorm(arch):
    if arch == "resnet18":
        pytest.importorskip("torchvision")
    model = trained_statistics(create(arch, 10, (3, 32, 32), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25], seed=1))
    model = model.train().double()
    before = copy.deepcopy(model.state_dict())
    twin = attack_copy(model)
    assert twin is not model and not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(copy.deepcopy(model).eval()(x).square().sum(), x)
    (got,) = torch.autograd.grad(twin(x).square().sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(twin.representation(x), copy.deepcopy(model).eval().representation(x))
    assert (twin.num_classes, twin.input_shape) == (model.num_classes, model.input_shape)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in twin.parameters())


def test_convolutions_in_tensor_float_32_do_not_look_like_another_function(monkeypatch):
    """As GPUs do them by torch's default: float32 inputs and weights with ten bits of mantissa. Through fifty layers
    that may be ten per cent."""
    pytest.importorskip("torchvision")
    convolution = nn.Conv2d._conv_forward

    def rounded(t):
        if t is None or t.dtype != torch.float32:
            return t
        return ((t.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)

    monkeypatch.setattr(
        nn.Conv2d, "_conv_forward", lambda self, x, w, b: convolution(self, rounded(x), rounded(w.detach()), b)
    )
    model = create("resnet50", 10, (3, 32, 32), seed=1).train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        model(torch.rand(16, 3, 32, 32))  # statistics of its own, as after training
    twin = attack_copy(model.eval())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())


def test_attacks_find_the_same():
    model = trained_statistics(create("small-convnet", 10, (3, 16, 16), width=4, seed=1)).double()
    x, y = torch.rand(8, 3, 16, 16, dtype=torch.float64), torch.arange(8)
    attack = PGD(L2(0.5), steps=5)
    torch.testing.assert_close(attack(attack_copy(model), x, y), attack(model, x, y), rtol=0, atol=1e-8)


def test_a_default_device_changes_nothing():
    model = trained_statistics(create("small-convnet", 10, (3, 16, 16), width=4, seed=1))
    with torch.device("meta"):
        twin = attack_copy(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())


def test_under_inference_mode():
    model = trained_statistics(create("small-convnet", 10, (3, 16, 16), width=4, seed=1))
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    with torch.inference_mode():
        inside = PGD(L2(0.5), steps=2)(attack_copy(model), x, y)
    assert torch.equal(inside, PGD(L2(0.5), steps=2)(attack_copy(model), x, y))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x if x.sum() > 0 else -x


class Refuses(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("not me")


def plain_body():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_a_body_that_cannot_be_traced_keeps_its_batchnorm():
    body = Branching()
    model = Classifier(body, nn.Linear(2, 3), 3, (1, 4, 4)).train()
    twin = attack_copy(model)
    assert twin is not model and isinstance(twin.body.bn, nn.BatchNorm2d)
    assert model.training and body.training and not any(m.training for m in twin.modules())
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(twin(x), copy.deepcopy(model).eval()(x))


def test_a_model_that_cannot_be_copied_is_attacked_itself():
    model = Classifier(Refuses(*plain_body()), nn.Linear(2, 3), 3, (1, 4, 4)).train()
    assert attack_copy(model) is model and model.training


def test_layouts():
    """On the CPU weights are channels_last, and an attack takes its images there and back."""
    model = create("small-convnet", 10, (3, 32, 32), width=4).eval()
    twin = attack_copy(model)
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last) for m in twin.modules() if isinstance(m, nn.Conv2d)
    )
    assert all(m.weight.is_contiguous() for m in model.modules() if isinstance(m, nn.Conv2d))
    seen = []
    twin.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    for stop in (None, "success"):
        result = PGD(L2(0.5), steps=2, stop=stop).run(twin, x, y)
        assert result.x_adv.is_contiguous() and not any(seen) and seen
        last = PGD(L2(0.5), steps=2, stop=stop).run(twin, x.contiguous(memory_format=torch.channels_last), y)
        assert not last.x_adv.is_contiguous() and torch.equal(last.x_adv, result.x_adv)
        seen.clear()
    assert not attack_copy(create("small-convnet", 10, (1, 8, 8)).double()).training


def test_a_compiled_copy_finds_the_same():
    model = trained_statistics(create("small-convnet", 10, (3, 16, 16), width=4, seed=1)).double()
    x, y = torch.rand(8, 3, 16, 16, dtype=torch.float64), torch.arange(8)
    attack, twin = PGD(L2(0.5), steps=3), attack_copy(model, compile=True)
    assert "Optimized" in type(twin.body).__name__
    torch.testing.assert_close(attack(twin, x, y), attack(model, x, y), rtol=0, atol=1e-8)


class WithRepresentation(nn.Module):
    """A user's own module: a trace of it would have lost this method."""

    def __init__(self):
        super().__init__()
        self.body, self.head = plain_body(), nn.Linear(2, 10)

    def representation(self, x):
        return self.body(x).mean((2, 3))

    def forward(self, x):
        return self.head(self.representation(x))


def test_other_modules_keep_their_methods(tmp_path):
    module = WithRepresentation()
    assert attack_copy(module) is module
    assert attack_copy(adapt(module, num_classes=10, input_shape=(1, 8, 8), head="head")).module is module
    source = sources.load("digits", limit=6)
    made = build(MatchRepresentation("nonrobust", 2, 0.1), module, source, tmp_path / "set")
    assert len(made) == 6


class Shared(nn.Module):
    """One convolution before two BatchNorms: folding it into one changes what the other sees."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return torch.cat([self.a(self.conv(x)), self.b(self.conv(x))], dim=1)


class Rounded(nn.Module):
    """Rounds its images; with gradients by a straight-through estimator."""

    def __init__(self):
        super().__init__()
        self.layers = plain_body()

    def forward(self, x):
        return self.layers(x + (x.round() - x).detach() if torch.is_grad_enabled() else x.round())


def test_a_copy_has_the_gradient_of_the_model():
    model = trained_statistics(Classifier(Rounded(), nn.Linear(2, 3), 3, (1, 6, 6))).eval()
    x = torch.rand(3, 1, 6, 6, requires_grad=True)
    wanted, found = (torch.autograd.grad(each(x).sum(), x)[0] for each in (model, attack_copy(model)))
    torch.testing.assert_close(found, wanted)
    assert wanted.any()


@pytest.mark.parametrize("hooked", [False, True])
def test_a_body_that_folds_into_another_function_keeps_its_batchnorm(hooked):
    body = plain_body() if hooked else Shared()
    if hooked:
        body[0].register_forward_hook(lambda module, inputs, output: output + 1)
    model = trained_statistics(Classifier(body, nn.Linear(2 if hooked else 4, 3), 3, (1, 6, 6))).eval()
    x = torch.rand(3, 1, 6, 6)
    torch.testing.assert_close(attack_copy(model)(x), model(x))
    assert any(isinstance(m, nn.BatchNorm2d) for m in attack_copy(model).modules())
