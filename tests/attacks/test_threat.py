"""Threat models: each method is its operator, numbers by sample follow their samples, settings survive as JSON."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import F16, F32, F64, same_bits

from advfeat import APGD, L2, PGD, Auto, Linf, ops
from advfeat.datasets.rounding import quantise
from advfeat.threat import Threat

IDS = torch.tensor([3, 9, 2**40])
PAIRS = [(L2, "l2"), (Linf, "linf")]


def tensors(dtype=F32):
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(3, 2, 4, generator=g).to(dtype)
    return x0 + torch.randn(3, 2, 4, generator=g).to(dtype), torch.randn(3, 2, 4, generator=g).to(dtype), x0


@pytest.mark.parametrize(("kind", "norm"), PAIRS)
@pytest.mark.parametrize("eps", [0.3, torch.tensor([0.0, 0.2, 0.9])])
@pytest.mark.parametrize(
    "box", [(0.0, 1.0), (torch.tensor([0.0, 0.2]), torch.tensor([0.5, 1.0])), (-math.inf, math.inf)]
)
def test_methods_are_the_operators(kind, norm, eps, box):
    x, grad, x0 = tensors()
    threat = kind(eps, *box)
    assert threat.norm == norm
    status, expected_status = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.int32)
    grad[1] = 0
    moved = x.clone()
    assert threat.step_(moved, grad, x0, 0.25, grad_status=status) is moved
    want = getattr(ops, f"{norm}_step")(x, grad, x0, 0.25, eps, *box, grad_status=expected_status)
    assert same_bits(moved, want) and torch.equal(status, expected_status) and status[1, 0] == 1
    projected = x.clone()
    assert threat.project_(projected, x0) is projected
    assert same_bits(projected, getattr(ops, f"project_{norm}")(x, x0, eps, *box))
    start = threat.random_start(x0, 7, IDS)
    assert same_bits(start, getattr(ops, f"random_start_{norm}")(x0, eps, 7, IDS, *box))


@pytest.mark.parametrize("dtype", [F32, F64, F16])
def test_distance_is_the_norm(dtype):
    x, _, x0 = tensors(dtype)
    d = (x.double() - x0.double()).flatten(1)
    wide = F64 if dtype == F64 else F32
    for threat, want in ((L2(1.0), d.square().sum(1).sqrt()), (Linf(1.0), d.abs().amax(1))):
        got = threat.distance(x, x0)
        assert got.dtype == wide and got.shape == (3,)
        torch.testing.assert_close(got.double(), want, rtol=1e-6 if wide == F32 else 1e-14, atol=0)
    large = torch.full((1, 4), 3e4, dtype=F16)  # whose difference and square half numbers cannot hold
    assert L2(1.0).distance(large, -large).item() == pytest.approx(12e4, rel=1e-2)
    assert Linf(1.0).distance(large, -large).item() == pytest.approx(6e4, rel=1e-2)


@pytest.mark.parametrize("kind", [L2, Linf])
@pytest.mark.parametrize("shape", [(0, 3), (0,), (2, 0), (4,), (2, 3, 4, 4)])
def test_distance_of_any_shape(kind, shape):
    x = torch.rand(shape)
    got = kind(1.0).distance(x, x + 0.5)
    assert got.shape == shape[:1]
    inner = math.prod(shape[1:])
    want = 0.5 * (math.sqrt(inner) if kind is L2 else min(inner, 1))
    torch.testing.assert_close(got, torch.full(shape[:1], want), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [L2, Linf])
def test_rows_take_their_own_radius(kind):
    by_sample = kind(torch.tensor([0.1, 0.2, 0.3]), -1.0, 2.0)
    some = by_sample.rows(torch.tensor([2, 0]))
    assert type(some) is kind and torch.equal(some.eps, torch.tensor([0.3, 0.1])) and (some.lo, some.hi) == (-1.0, 2.0)
    shared, zero_dim = kind(0.5), kind(torch.tensor(0.5))
    assert shared.rows(torch.tensor([0])) is shared
    assert torch.equal(zero_dim.rows(torch.tensor([1, 1])).eps, torch.tensor(0.5))


def test_moving_keeps_the_values():
    eps = torch.tensor([0.1, 0.2], requires_grad=True)
    moved = L2(eps, torch.zeros(3), 1.0).to(torch.device("cpu"))
    assert moved.eps.dtype == F64 and not moved.eps.requires_grad and torch.equal(moved.eps.float(), eps.detach())
    assert moved.lo.dtype == F64 and moved.hi == 1.0


def test_settings_as_json():
    plain = Linf(8 / 255).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == {"norm": "linf", "eps": 8 / 255, "lo": 0.0, "hi": 1.0}
    tensor = L2(torch.tensor([0.5, 1.0]), torch.tensor([0.0, -1.0]), 2.0).to_dict()
    assert json.loads(json.dumps(tensor, allow_nan=False)) == {
        "norm": "l2",
        "eps": [0.5, 1.0],
        "lo": [0.0, -1.0],
        "hi": 2.0,
    }
    unbounded = L2(math.inf, -math.inf, math.inf).to_dict()
    assert unbounded["eps"] == "inf"


def test_settings_with_infinities_are_valid_json():
    """JSON has no Infinity: other readers refuse a manifest that holds one."""
    for threat in (
        L2(math.inf, -math.inf, math.inf),
        Linf(torch.tensor([0.1, math.inf])),
        L2(1.0, torch.tensor(-math.inf)),
    ):
        json.dumps(threat.to_dict(), allow_nan=False)


@pytest.mark.parametrize("kind", [L2, Linf])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -0.1}, "eps should be at least 0, got -0.1"),
        ({"eps": math.nan}, "eps should be at least 0, got nan"),
        ({"eps": torch.zeros(2, 1)}, r"eps should be a float or a tensor \[B\], got shape \(2, 1\)"),
        ({"eps": 0.1, "lo": 1.0, "hi": 0.0}, "lo should be at most hi, got lo=1.0 and hi=0.0"),
        ({"eps": 0.1, "lo": math.nan}, "lo should be at most hi"),
    ],
)
def test_wrong_settings_are_named(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_the_base_class_is_no_threat():
    x = torch.rand(2, 3)
    for call in (
        lambda t: t.step_(x, x, x, 0.1),
        lambda t: t.project_(x, x),
        lambda t: t.random_start(x, 0, IDS[:2]),
        lambda t: t.distance(x, x),
    ):
        with pytest.raises((NotImplementedError, AttributeError)):
            call(Threat(0.5))


def test_settings_do_not_change():
    with pytest.raises(AttributeError):
        L2(0.5).eps = 1.0


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize("attack", [PGD, APGD, Auto, "restarts"])
@pytest.mark.parametrize(
    ("kind", "mean", "std"), [(L2, MEAN, STD), (Linf, MEAN, STD), (L2, 0.5, 0.25), (Linf, MEAN, 0.25), (Linf, 0.0, STD)]
)
def test_the_normalised_threat_is_the_pixel_threat_in_other_units(attack, kind, mean, std):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))
    net = net.double()
    shift, scale = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (mean, std))
    x = torch.rand(6, 3, 2, 2, dtype=torch.float64)
    y = net((x - shift) / scale).argmax(1)
    made = (
        (lambda threat: PGD(threat, steps=4, random_start=True, restarts=2, seed=1, step_size=0.03))
        if attack == "restarts"
        else lambda threat: attack(threat, steps=4)
    )
    pixel = made(kind(0.1)).run(lambda z: net((z - shift) / scale), x, y)
    moved = made(kind.normalised(0.1, mean, std)).run(net, (x - shift) / scale, y)
    torch.testing.assert_close(moved.x_adv * scale + shift, pixel.x_adv)
    torch.testing.assert_close(moved.distance, pixel.distance)
    assert (pixel.x_adv - x).abs().max() > 0.01


@given(
    kind=st.sampled_from([L2, Linf]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    eps=st.floats(0.001, 0.5),
    seed=st.integers(0, 2**31),
)
def test_what_a_normalised_threat_moves_stays_in_the_pixel_ball_and_the_box(kind, dtype, eps, seed):
    draw = torch.Generator().manual_seed(seed)
    shift, scale = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (MEAN, STD))
    pixels = torch.rand(4, 3, 5, 5, generator=draw, dtype=torch.float64).round(decimals=1)
    threat = kind.normalised(eps, MEAN, STD)
    x0 = ((pixels - shift) / scale).to(dtype)
    x0 = torch.clamp(x0, *(v.reshape(-1, 1, 1).to(dtype) for v in (threat.lo, threat.hi)))
    x = threat.random_start(x0, seed, torch.arange(4))
    for _ in range(3):
        grad = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(dtype)
        assert threat.step_(x, grad, x0, eps / 2) is x
    assert threat.project_(x, x0) is x and x.dtype == dtype
    lo, hi = (v.reshape(-1, 1, 1).to(dtype) for v in (threat.lo, threat.hi))
    assert bool(((x >= lo) & (x <= hi)).all())
    rounding = torch.finfo(dtype).eps * 3 * scale.max()  # of inputs of up to 2.64, twice
    bound = rounding * (75**0.5 if kind is L2 else 1)
    assert bool((kind(eps).distance(x.double() * scale, x0.double() * scale) <= eps + bound).all())


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, [0.2, 0.2, 0.0], "std should be finite and above 0"),
        (MEAN, -1.0, "std should be finite and above 0"),
        (MEAN, [0.2, 0.2], "mean and std should have one value per channel, got 3 and 2"),
        ("0.5", 0.2, "mean should be a number or a tensor, got the text"),
    ],
)
def test_a_mean_and_a_std_that_are_none_are_refused(mean, std, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Linf.normalised(8 / 255, mean, std)


def test_a_unit_is_told_where_it_matters():
    threat = L2.normalised(0.5, MEAN, STD)
    assert threat.to_dict()["unit"] == [1 / s for s in STD] and "unit" not in L2(0.5).to_dict()
    with pytest.raises(ValueError, match="unit should be a float or a tensor .C. with one value per channel"):
        PGD(L2(0.5, unit=torch.ones(3)), steps=1)(lambda z: z.flatten(1), torch.rand(2, 4, 2, 2), torch.arange(2))
    with pytest.raises(ValueError, match="unit should be finite and above 0"):
        L2(0.5, unit=0)
    with pytest.raises(ValueError, match="threat should be in pixel scale"):
        quantise(torch.rand(2, 3, 2, 2), torch.rand(2, 3, 2, 2), threat, "uint8")
    with pytest.warns(RuntimeWarning, match="eps=8 is more than the whole box"):
        Linf.normalised(8, MEAN, STD)


def test_a_result_prints_as_one_line():
    x = torch.rand(5, 3, 8, 8)
    result = PGD(Linf(0.0), steps=0).run(lambda z: z.flatten(1)[:, :4], x, torch.arange(5) % 4)
    assert repr(result).startswith("AttackResult(5 samples of shape (3, 8, 8), ") and "\n" not in repr(result)


def test_a_threat_prints_short():
    assert repr(L2(0.5)) == "L2(eps=0.5)" and repr(Linf(0.5, hi=255)) == "Linf(eps=0.5, hi=255.0)"
    assert repr(L2(torch.rand(100), lo=[0, 0, 0])) == "L2(eps=tensor [100], lo=tensor [3])"
    assert repr(L2(torch.tensor(0.5))) == "L2(eps=0.5)"
    assert "unit=tensor [3]" in repr(Linf.normalised(0.1, MEAN, STD))


@given(
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]), st.booleans(), st.integers(0, 99)
)
def test_into_the_box_changes_what_lies_outside_alone(dtype, by_channel, seed):
    """As the projection of a centre on its own ball, which with a unit would round what lies inside, too."""
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(3, 2, 4, generator=g) * 1.4 - 0.2).to(dtype)
    lo, hi = (torch.tensor([0.0, 0.1]), torch.tensor([1.0, 0.7])) if by_channel else (0.1, 0.9)
    for threat in (L2(0.5, lo, hi), Linf(0.1, lo, hi), L2(0.5, lo, hi, unit=0.3)):
        boxed = threat.into_box_(x.clone())
        low, high = (torch.as_tensor(b, dtype=F64).reshape(-1, 1).to(dtype) for b in (lo, hi))
        inside = (x >= low) & (x <= high)
        assert torch.equal(boxed[inside], x[inside]) and ((boxed >= low) & (boxed <= high)).all()
        if not threat.has_unit:
            assert torch.equal(boxed, threat.project_(x.clone(), x.clone()))
