"""Models: shapes, representation, initialisation, a user's own modules."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.small_model import Own, small

import advfeat
from advfeat import models

SHAPES = [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 32, 32), (2, 12, 20), (1, 4, 4)]


# --- networks


@pytest.mark.parametrize("shape", SHAPES)
def test_small_convnet_gives_logits_from_a_pooled_nonnegative_representation(shape):
    model = small(5, shape, width=3).eval()
    x = torch.rand(7, *shape)
    g = model.representation(x)
    assert g.shape == (7, 12)
    assert (g >= 0).all() and (g > 0).any()  # after the last ReLU
    torch.testing.assert_close(model(x), g @ model.head.weight.T + model.head.bias)
    assert model(x).shape == (7, 5)


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = models.fingerprint(small(seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert models.fingerprint(small(seed=3)) == first
    assert models.fingerprint(small(seed=4)) != first


@pytest.mark.slow
def test_importing_models_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from advfeat import models\n"
        "models.create('small-convnet', 3, (1, 8, 8))\n"
        "for arch in models.archs()[1:]:\n"
        "    try: models.create(arch, 3, (3, 32, 32))\n"
        "    except ImportError as error: assert f'arch {arch!r} needs torchvision' in str(error), error\n"
        "    else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("vgg", 10, (3, 32, 32)), "arch should be one of small-convnet, .*, vgg16, .*, got 'vgg'"),
        (("small-convnet", 1, (3, 32, 32)), "num_classes should be an integer, at least 2, got 1"),
        (("small-convnet", 10, (32, 32)), "input_shape should be"),
        (("small-convnet", 10, (3, 2, 2)), "at least 4x4"),
    ],
)
def test_create_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        models.create(*arguments)
    with pytest.raises(ValueError, match="width should be an integer, at least 1, for small-convnet, got 0"):
        models.create("small-convnet", 10, (3, 32, 32), width=0)


# --- normalisation and input checks


@given(mean=st.floats(0, 1), std=st.floats(0.05, 2))
def test_normalisation_happens_inside_in_pixel_scale(mean, std):
    plain, inside = small(seed=1).eval(), small(seed=1, mean=[mean], std=[std]).eval()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inside(x), plain((x - mean) / std))


def test_normalisation_is_part_of_the_fingerprint():
    assert models.fingerprint(small(mean=[0.1], std=[1.0])) != models.fingerprint(small(mean=[0.2], std=[1.0]))


def test_wrong_inputs_are_named():
    model = small().eval()
    with pytest.raises(ValueError, match=r"x should be \[B, 1, 8, 8\], got shape \(2, 3, 8, 8\)"):
        model(torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match="torch.uint8"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="std should be positive"):
        small(std=[0.0])
    with pytest.raises(ValueError, match="mean should be 1 finite numbers"):
        small(mean=[0.1, 0.2])


# --- a user's own module


@pytest.mark.parametrize("wrapped", [False, True])
def test_adapt_finds_the_input_of_the_last_layer(wrapped):
    own = Own(wrapped)
    model = models.adapt(own, num_classes=4, input_shape=(1, 8, 8), mean=[0.5], std=[0.5])
    x = torch.rand(3, 1, 8, 8)
    pixels = (x - 0.5) / 0.5
    g = own.neck(own.features(pixels).mean((2, 3))).tanh()
    torch.testing.assert_close(model.representation(x), g)
    torch.testing.assert_close(model(x), own.out(g))
    assert not own.out._forward_pre_hooks, "the hook stayed"


def test_adapt_takes_a_name_or_a_function_for_the_representation():
    own, x = Own(False), torch.rand(3, 1, 8, 8)
    pooled = own.features(x).mean((2, 3))
    for representation in ("features", own.features, lambda x: own.features(x)):
        model = models.adapt(own, num_classes=4, input_shape=(1, 8, 8), representation=representation)
        torch.testing.assert_close(model.representation(x), pooled)
        assert len(model.state_dict()) == len(own.state_dict()) + 2  # mean and std; no second copy of the features
    neck = models.adapt(own, num_classes=4, input_shape=(1, 8, 8), head="neck")
    torch.testing.assert_close(neck.representation(x), pooled)


def test_adapt_says_what_is_wrong():
    with pytest.raises(ValueError, match="representation should name a submodule, got 'feature'; there are features"):
        models.adapt(Own(False), num_classes=4, input_shape=(1, 8, 8), representation="feature")
    with pytest.raises(ValueError, match="not both"):
        models.adapt(Own(False), num_classes=4, input_shape=(1, 8, 8), representation="features", head="out")
    headless = models.adapt(Own(False), num_classes=7, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="representation=.*head="):
        headless.representation(torch.rand(1, 1, 8, 8))


def test_an_adapted_model_can_be_attacked_by_its_representation():
    model = models.adapt(Own(True), num_classes=4, input_shape=(1, 8, 8))
    x, y = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    target = model.representation(y).detach()
    attack = advfeat.PGD(
        advfeat.L2(float("inf")), steps=20, step_size=0.1, objective=advfeat.Representation(), targeted=True
    )
    found = attack(model, x, target)
    before, after = ((model.representation(z) - target).norm(dim=1) for z in (x, found))
    assert (after < 0.5 * before).all()


def test_fingerprint_sees_every_bit_and_no_layout():
    model = small(seed=2)
    first = models.fingerprint(model)
    assert models.fingerprint(model.to(memory_format=torch.channels_last)) == first
    assert models.fingerprint({k: v.clone() for k, v in model.state_dict().items()}) == first
    with torch.no_grad():
        model.body[1].running_mean[0] += 1e-6
    assert models.fingerprint(model) != first
    zeros = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3).double()]
    states = [{"a": z} for z in zeros] + [{"b": zeros[0]}, {"a": zeros[0], "b": zeros[0]}]
    assert len({models.fingerprint(state) for state in states}) == len(states)


def test_evaluating_puts_back_each_flag_after_an_exception():
    model = small().train()
    model.body[1].eval()  # a frozen BatchNorm
    flags = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError), models.evaluating(model):
        assert not any(m.training for m in model.modules())
        raise RuntimeError
    assert [m.training for m in model.modules()] == flags
