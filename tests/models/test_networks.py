"""The paper's families: shapes at all sizes, torchvision's networks at full width, scaled ones, attack copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advfeat import models
from advfeat.models import attack_copy, create

FEATURES = {"resnet18": 8, "resnet50": 32, "vgg16": 8, "inception_v3": 64, "densenet121": 16}  # per channel of width
# The side of the last feature map, by that of the image: digits, MNIST, CIFAR-10, the largest small one, torchvision's.
SIDES = {
    "resnet18": {8: 1, 28: 4, 32: 4, 95: 12, 96: 3, 224: 7},
    "resnet50": {8: 1, 28: 4, 32: 4, 95: 12, 96: 3, 224: 7},
    "vgg16": {8: 1, 28: 1, 32: 1, 95: 2, 96: 3, 224: 7},
    "inception_v3": {8: 1, 28: 6, 32: 7, 95: 23, 96: 1, 224: 5},
    "densenet121": {8: 1, 28: 3, 32: 4, 95: 11, 96: 3, 224: 7},
}
SMALLEST = {"resnet18": 4, "resnet50": 4, "vgg16": 4, "inception_v3": 7, "densenet121": 8}
# BatchNorms before a convolution stay: in DenseNet one in each of 58 layers and three transitions, and the last.
KEPT = {"densenet121": 62}

every_arch = pytest.mark.parametrize("arch", FEATURES)


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def _trained(model: models.Classifier) -> models.Classifier:
    """Running statistics, scales and shifts as after some training."""
    g = torch.Generator().manual_seed(3)
    for m in _batch_norms(model):
        m.running_mean.normal_(0, 0.3, generator=g)
        m.running_var.uniform_(0.5, 1.5, generator=g)
        m.weight.data.uniform_(0.5, 1.5, generator=g)
        m.bias.data.normal_(0, 0.3, generator=g)
    return model


# --- shapes


@every_arch
@pytest.mark.parametrize("channels, side", [(1, 8), (1, 28), (3, 32), (2, 95), (3, 96), (1, 224)])
def test_logits_from_a_pooled_nonnegative_representation(arch, channels, side):
    model = create(arch, 5, (channels, side, side), width=2).eval()
    x = torch.rand(2, channels, side, side)
    with torch.no_grad():
        maps, g = model.body(x), model.representation(x)
        assert maps.shape == (2, 2 * FEATURES[arch], SIDES[arch][side], SIDES[arch][side])
        assert (g >= 0).all() and (g > 0).any()  # after the last ReLU
        torch.testing.assert_close(g, maps.mean((2, 3)))
        torch.testing.assert_close(model(x), model.head(g))


@every_arch
def test_the_shorter_side_chooses_the_stem(arch):
    model = create(arch, 5, (3, 20, 100), width=2).eval()
    first = next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert model(torch.rand(2, 3, 20, 100)).shape == (2, 5)


@every_arch
def test_the_smallest_image(arch):
    side = SMALLEST[arch]
    model = create(arch, 3, (1, side, side + 1), width=2).eval()
    assert model.body(torch.rand(1, 1, side, side + 1)).shape == (1, 2 * FEATURES[arch], 1, 1)
    with pytest.raises(ValueError, match=f"of at least {side}x{side} for {arch}, got .1, {side}, {side - 1}."):
        create(arch, 3, (1, side, side - 1), width=2)


@every_arch
def test_the_width_is_that_of_the_first_layer_and_scales_the_rest(arch):
    full = 32 if arch == "inception_v3" else 64
    for width in (None, 6):
        model = create(arch, 4, (3, 32, 32), width=width)
        shapes = [m.weight.shape[:2] for m in model.body.modules() if isinstance(m, nn.Conv2d)]
        assert shapes[0] == (width or full, 3)
        assert model.head.in_features == (width or full) * FEATURES[arch]
        if width is None:
            wide = shapes
    assert [outs * full for outs, _ in shapes] == [outs * 6 for outs, _ in wide]
    assert [ins * full for _, ins in shapes[1:]] == [ins * 6 for _, ins in wide[1:]]


# --- torchvision's networks


def _torchvision(arch: str) -> nn.Module:
    # Not at the top: torchvision takes two seconds, in each process that collects.
    torchvision = pytest.importorskip("torchvision")
    """The network without weights, up to its averaged features."""
    options = {"aux_logits": False, "init_weights": False} if arch == "inception_v3" else {}
    with torch.device("meta"):
        net = getattr(torchvision.models, "vgg16_bn" if arch == "vgg16" else arch)(weights=None, **options)
    if arch == "vgg16":
        net.avgpool = nn.AdaptiveAvgPool2d(1)
    setattr(net, "fc" if hasattr(net, "fc") else "classifier", nn.Identity())
    return net.eval()


def _by_torchvision_names(arch: str, body: nn.Module) -> dict[str, torch.Tensor]:
    resnet = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    state = {}
    for name, tensor in body.state_dict().items():
        first, rest = name.split(".", 1)
        if arch.startswith("resnet"):
            name = f"{resnet[int(first)]}.{rest}"
        state["features." + name if arch in ("vgg16", "densenet121") else name] = tensor
    return state


@every_arch
def test_at_full_width_and_from_96_pixels_on_it_is_torchvisions(arch):
    model, net = _trained(create(arch, 10, (3, 96, 96))).eval(), _torchvision(arch)
    net.load_state_dict(_by_torchvision_names(arch, model.body), strict=True, assign=True)
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.representation(x), net(x), rtol=1e-4, atol=1e-5)


@every_arch
def test_for_cifar_only_the_first_layers_kernel_differs(arch):
    """7x7 in torchvision's ResNets and DenseNets, 3x3 in all others."""
    theirs, ours = (
        sum(p.numel() for p in net.parameters()) for net in (_torchvision(arch), create(arch, 10, (3, 32, 32)).body)
    )
    assert theirs - ours == (0 if arch in ("vgg16", "inception_v3") else 3 * 64 * (7 * 7 - 3 * 3))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 96, 96), (1, 96, 96)])
def test_a_seed_gives_a_resnet_the_weights_it_always_gave(arch, shape):
    """Saved models are compared by fingerprint, and runs repeated by seed: so the first version's way to make them."""
    model = create(arch, 7, shape, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        net = getattr(pytest.importorskip("torchvision").models, arch)(weights=None)
        if shape[1] == 28:
            net.conv1 = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False)
        elif shape[0] != 3:
            net.conv1 = nn.Conv2d(shape[0], 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        stem = [net.conv1, net.bn1, net.relu] + ([] if shape[1] == 28 else [net.maxpool])
        body = nn.Sequential(*stem, net.layer1, net.layer2, net.layer3, net.layer4)
        head = nn.Linear(net.fc.in_features, 7)
    expected = {"body." + name: tensor for name, tensor in body.state_dict().items()}
    expected |= {"head.weight": head.weight, "head.bias": head.bias}
    state = model.state_dict()
    assert [name for name in state if name not in ("mean", "std")] == list(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


# --- weights and files


@every_arch
def test_initial_weights_depend_on_the_seed_alone(arch):
    before = torch.get_rng_state()
    first = models.fingerprint(create(arch, 3, (1, 8, 8), width=2, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert models.fingerprint(create(arch, 3, (1, 8, 8), width=2, seed=3)) == first
    assert models.fingerprint(create(arch, 3, (1, 8, 8), width=2, seed=4)) != first


@every_arch
def test_no_layer_starts_at_another_scale_or_drops_out(arch):
    """He et al.: a deviation of (2 / fan)^(1/2) in each convolution, by outputs but in DenseNet."""
    model = create(arch, 3, (3, 32, 32), width=16)
    for m in (m for m in model.body.modules() if isinstance(m, nn.Conv2d)):
        fan = m.weight[0].numel() if arch == "densenet121" else m.weight.numel() / m.in_channels
        # Of n weights the deviation is known to 1 / (2 n)^(1/2) of it.
        assert abs(m.weight.std().item() * (fan / 2) ** 0.5 - 1) < 5 * (2 * m.weight.numel()) ** -0.5
        assert m.bias is None or not m.bias.any()
    assert all((m.weight == 1).all() and not m.bias.any() for m in _batch_norms(model))
    assert not any("Dropout" in type(m).__name__ for m in model.modules())


@every_arch
def test_a_scaled_model_is_saved_and_loaded(tmp_path, arch):
    model = _trained(create(arch, 4, (1, 8, 8), mean=[0.3], std=[0.7], width=2, seed=5))
    model = model.to(memory_format=torch.channels_last).eval()
    models.save(model, tmp_path)
    again, x = models.load(tmp_path), torch.rand(3, 1, 8, 8)
    assert (again.arch, again.arch_arguments["width"]) == (arch, 2)
    assert models.fingerprint(again) == models.fingerprint(model)
    assert torch.equal(again(x), model(x))


# --- attacks and training


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 96, 96)])
def test_an_attack_copy_folds_batchnorm_and_computes_the_same(arch, shape):
    model = _trained(create(arch, 10, shape, mean=[0.4] * shape[0], std=[0.2] * shape[0], width=2)).double().eval()
    twin = attack_copy(model)
    assert len(_batch_norms(twin)) == KEPT.get(arch, 0) < len(_batch_norms(model))
    x = torch.rand(2, *shape, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(model(x).square().sum(), x)
    (got,) = torch.autograd.grad(twin(x).square().sum(), x)
    assert wanted.any()
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9 * wanted.abs().max().item())
    torch.testing.assert_close(twin.representation(x), model.representation(x))


@every_arch
def test_channels_last_computes_the_same_gradients(arch):
    model, x = create(arch, 3, (3, 16, 16), width=2).double(), torch.rand(4, 3, 16, 16).double()
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model, x = model.to(memory_format=layout), x.to(memory_format=layout)
        assert model.body(x).is_contiguous(memory_format=layout)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    # By the largest: a bias before a BatchNorm has a gradient of 0 but for rounding.
    largest = max(g.abs().max().item() for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9 * largest)


@every_arch
def test_bf16_autocast_comes_close_and_has_gradients(arch):
    model = _trained(create(arch, 3, (3, 32, 32), width=4)).eval()
    x = torch.rand(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    exact = model.representation(x)
    with torch.autocast("cpu", torch.bfloat16):
        g, logits = model.representation(x), model.train()(x)
    assert (g.float() - exact).norm() < 0.1 * exact.norm()  # 8 bits, 0.4 % a layer
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


# --- errors


@pytest.mark.parametrize(
    "arch, width, message",
    [
        ("resnet18", 0, "width should be an integer, at least 1, for resnet18, got 0"),
        ("vgg16", 4.0, "width should be an integer, at least 1, for vgg16, got 4.0"),
        ("inception_v3", 7, "width should be an even integer, at least 2, for inception_v3, got 7"),
        ("densenet121", 1, "width should be an even integer, at least 2, for densenet121, got 1"),
        ("densenet121", -2, "width should be an even integer"),
    ],
)
def test_a_width_that_a_family_does_not_take(arch, width, message):
    with pytest.raises(ValueError, match=message):
        create(arch, 10, (3, 32, 32), width=width)
