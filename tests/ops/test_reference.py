"""The float64 reference itself, against formulas in extended precision (mpmath, 50 digits) and optimisation (scipy).

Every kernel is compared with ``advfeat.reference``; so the reference is compared with something that shares no code,
no formula and no library with it.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import BF16, F16, F32, F64

from advfeat import reference
from advfeat.random import philox

mpmath = pytest.importorskip("mpmath")
mpmath.mp.dps = 50
mpf = mpmath.mpf


def _numbers(seed, n, spread, exponent):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(n, generator=g, dtype=F64)
    x = x0 + spread * torch.randn(n, generator=g, dtype=F64)
    grad = torch.randn(n, generator=g, dtype=F64) * (torch.rand(n, generator=g) < 0.8) * 10.0**exponent
    return x, grad, x0


def _exactly(values):
    return [mpf(v) for v in values.tolist()]


def _clip(v, lo, hi):
    return min(max(v, mpf(lo)), mpf(hi))


def _l2_by_hand(x, grad, x0, size, eps, lo, hi):
    """Sample by sample, in the order of the definition: direction, ball, box."""
    norm = mpmath.sqrt(sum(g * g for g in grad))
    y = [v + (mpf(size) * g / norm if norm else 0) for v, g in zip(x, grad, strict=True)]
    length = mpmath.sqrt(sum((v - c) ** 2 for v, c in zip(y, x0, strict=True)))
    if length > eps:
        y = [c + (v - c) * mpf(eps) / length for v, c in zip(y, x0, strict=True)]
    return [_clip(v, lo, hi) for v in y]


def _linf_by_hand(x, grad, x0, size, eps, lo, hi):
    y = [v + mpf(size) * int(mpmath.sign(g)) for v, g in zip(x, grad, strict=True)]
    return [_clip(c + _clip(v - c, -mpf(eps), eps), lo, hi) for v, c in zip(y, x0, strict=True)]


ordinary = {
    "seed": st.integers(0, 2**31),
    "n": st.integers(1, 30),
    "spread": st.sampled_from([0.0, 1e-6, 0.1, 2.0]),
    "size": st.sampled_from([0.0, 1e-4, 0.1, -0.3, 5.0]),
    "eps": st.sampled_from([0.0, 1e-5, 0.05, 0.7, 30.0, math.inf]),
    "box": st.sampled_from([(0.0, 1.0), (-math.inf, math.inf), (0.25, 0.5)]),
    "exponent": st.sampled_from([-300, -40, 0, 40, 300]),
}


@pytest.mark.parametrize(
    ("op", "by_hand"), [("l2_step", _l2_by_hand), ("linf_step", _linf_by_hand)], ids=["l2_step", "linf_step"]
)
@given(**ordinary)
def test_steps_are_their_definition(op, by_hand, seed, n, spread, size, eps, box, exponent):
    x, grad, x0 = _numbers(seed, n, spread, exponent)
    got = getattr(reference, op)(x[None], grad[None], x0[None], size, eps, *box)[0]
    want = by_hand(_exactly(x), _exactly(grad), _exactly(x0), size, eps, *box)
    # A dozen roundings of numbers no larger than |x|, |x0|, the step and the radius; norms of n terms.
    largest = float(x.abs().max() + x0.abs().max()) + abs(size)
    for a, b in zip(got.tolist(), want, strict=True):
        assert abs(mpf(a) - b) <= (12 + n) * 2.0**-53 * largest


@given(
    seed=st.integers(0, 2**31), n=st.integers(1, 30), decay=st.floats(0, 1), exponent=st.sampled_from([-300, 0, 300])
)
def test_accumulated_gradients_are_their_definition(seed, n, decay, exponent):
    total, grad, _ = _numbers(seed, n, 1.0, exponent)
    got = reference.accumulate_gradient(total[None], grad[None], decay)[0]
    exact = _exactly(grad)
    norm = sum(map(abs, exact))
    for value, before, g in zip(got.tolist(), _exactly(total), exact, strict=True):
        want = mpf(decay) * before + (g / norm if norm else 0)
        assert abs(mpf(value) - want) <= (6 + n) * 2.0**-53 * (abs(before) + 1)


@pytest.mark.parametrize("op", ["project_l2", "project_linf"])
@given(**{k: v for k, v in ordinary.items() if k not in ("size", "exponent")})
def test_projections_are_steps_without_a_step(op, seed, n, spread, eps, box):
    x, grad, x0 = _numbers(seed, n, spread, 0)
    by_hand = _l2_by_hand if op == "project_l2" else _linf_by_hand
    got = getattr(reference, op)(x[None], x0[None], eps, *box)[0]
    want = by_hand(_exactly(x), [mpf(0)] * n, _exactly(x0), 0, eps, *box)
    largest = float(x.abs().max() + x0.abs().max())
    for a, b in zip(got.tolist(), want, strict=True):
        assert abs(mpf(a) - b) <= (12 + n) * 2.0**-53 * largest


@given(seed=st.integers(0, 2**31))
def test_projection_is_the_nearest_point_of_the_ball(seed):
    """Without a box the L2 projection is the minimiser of ||z - x|| over the ball; an optimiser finds it, too."""
    x, _, x0 = _numbers(seed, 3, 1.0, 0)
    eps = 0.4
    got = reference.project_l2(x[None], x0[None], eps, -math.inf, math.inf)[0].numpy()
    found = scipy.optimize.minimize(
        lambda z: ((z - x.numpy()) ** 2).sum(),
        x0.numpy(),
        jac=lambda z: 2 * (z - x.numpy()),
        constraints={
            "type": "ineq",
            "fun": lambda z: eps**2 - ((z - x0.numpy()) ** 2).sum(),
            "jac": lambda z: -2 * (z - x0.numpy()),
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    ).x
    assert np.abs(got - found).max() < 1e-5


@given(seed=st.integers(0, 2**31), eps=st.floats(0.05, 2.0))
def test_linf_projection_is_the_nearest_point_of_ball_and_box(seed, eps):
    x, _, x0 = _numbers(seed, 6, 1.0, 0)
    got = reference.project_linf(x[None], x0[None], eps)[0].numpy()
    assert (np.abs(got - x0.numpy()) <= eps * (1 + 1e-15) + 1e-16).all() and ((got >= 0) & (got <= 1)).all()
    rng = np.random.default_rng(seed)
    others = np.clip(rng.uniform(x0.numpy() - eps, x0.numpy() + eps, (2000, 6)), 0, 1)
    assert (np.abs(others - x.numpy()) >= np.abs(got - x.numpy()) - 1e-12).all()  # value by value


def test_a_square_with_known_corners():
    """By hand: x0 the centre of the unit square, a step of 0.5 along (3, 4), a ball of 0.25."""
    x0, grad = torch.full((1, 2), 0.5, dtype=F64), torch.tensor([[3.0, 4.0]], dtype=F64)
    torch.testing.assert_close(reference.l2_step(x0, grad, x0, 0.5, 1.0), torch.tensor([[0.8, 0.9]], dtype=F64))
    torch.testing.assert_close(reference.l2_step(x0, grad, x0, 0.5, 0.25), torch.tensor([[0.65, 0.7]], dtype=F64))
    torch.testing.assert_close(reference.l2_step(x0, grad, x0, 5.0, 1.5), torch.tensor([[1.0, 1.0]], dtype=F64))
    torch.testing.assert_close(reference.linf_step(x0, grad, x0, 0.5, 0.25), torch.full((1, 2), 0.75, dtype=F64))
    torch.testing.assert_close(reference.linf_step(x0, -grad, x0, 0.5, 0.9), torch.zeros(1, 2, dtype=F64))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("op", ["l2_step", "linf_step"])
def test_other_dtypes_are_float32_arithmetic_rounded_once(op, dtype):
    g = torch.Generator().manual_seed(2)
    x0 = torch.rand(4, 50, generator=g).to(dtype)
    x, grad = (x0.float() + 0.2 * torch.randn(4, 50, generator=g)).to(dtype), torch.randn(4, 50, generator=g).to(dtype)
    run = getattr(reference, op)
    got = run(x, grad, x0, 0.1, 0.7)
    assert got.dtype == dtype
    assert torch.equal(got, run(x.float(), grad.float(), x0.float(), 0.1, 0.7).to(dtype))


def test_box_by_channel_and_numbers_by_row():
    g = torch.Generator().manual_seed(3)
    x0 = torch.rand(2, 3, 4, generator=g, dtype=F64)
    x = x0 + torch.randn(2, 3, 4, generator=g, dtype=F64)
    eps, lo, hi = torch.tensor([0.1, 0.9]), torch.tensor([0.0, 0.3, 0.6]), torch.tensor([0.2, 0.7, 0.9])
    got = reference.project_linf(x, x0, eps, lo, hi)
    for b in range(2):
        for c in range(3):
            for i in range(4):
                e, low, high = float(eps[b].double()), float(lo[c]), float(hi[c])
                centre, value = float(x0[b, c, i]), float(x[b, c, i])
                want = min(max(min(max(value, centre - e), centre + e), low), high)
                assert abs(float(got[b, c, i]) - want) < 1e-15


def test_random_numbers_of_whole_words():
    """The first four values of a start, spelled out from Philox words by the definition in numpy."""
    words = philox(99, torch.tensor([7]), torch.tensor([0]), 0)[0, 0].numpy().astype(np.float64)
    u = (words + 0.5) / 2**32
    x0 = torch.full((1, 4), 0.5, dtype=F64)
    linf = reference.random_start_linf(x0, 0.25, 99, torch.tensor([7]))[0].numpy()
    np.testing.assert_allclose(linf, 0.5 + 0.25 * (2 * u - 1), rtol=0, atol=1e-15)
    radius = np.sqrt(-2 * np.log(u[0::2]))
    normal = np.stack([radius * np.cos(2 * np.pi * u[1::2]), radius * np.sin(2 * np.pi * u[1::2])], 1).ravel()
    v = (float(philox(99, torch.tensor([7]), torch.tensor([0]), 1)[0, 0, 0]) + 0.5) / 2**32
    l2 = reference.random_start_l2(x0, 0.25, 99, torch.tensor([7]))[0].numpy()
    np.testing.assert_allclose(l2, 0.5 + 0.25 * v**0.25 * normal / np.linalg.norm(normal), rtol=0, atol=1e-15)


@given(
    st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
def test_philox_in_whole_numbers(seed, sample_id, quad, stream):
    """The ten rounds of Philox4x32 in Python's integers, which cannot overflow."""
    word = 0xFFFFFFFF
    c = [quad, stream, sample_id & word, (sample_id >> 32) & word]
    k = [seed & word, seed >> 32]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(q >> 32) ^ c[1] ^ k[0], q & word, (p >> 32) ^ c[3] ^ k[1], p & word]
        k = [(k[0] + 0x9E3779B9) & word, (k[1] + 0xBB67AE85) & word]
    got = philox(seed, torch.tensor([sample_id]), torch.tensor([quad]), stream)
    assert got.flatten().tolist() == c


def test_empty_batches_and_samples():
    empty, nothing = torch.rand(0, 3), torch.rand(3, 0)
    status = torch.zeros(0, 2, dtype=torch.int32)
    assert reference.l2_step(empty, empty, empty, 0.1, 0.5, grad_status=status).shape == (0, 3)
    for start in (reference.random_start_linf, reference.random_start_l2):
        assert start(empty, 0.1, 0, torch.arange(0)).shape == (0, 3)
        assert start(nothing, 0.1, 0, torch.arange(3)).shape == (3, 0)
    assert reference.project_l2(nothing, nothing, 0.5).shape == (3, 0)


@pytest.mark.parametrize("op", ["project_l2", "project_linf"])
def test_projections_differentiate_in_every_argument(op):
    project = getattr(reference, op)
    g = torch.Generator().manual_seed(1)
    x0 = torch.rand(3, 5, generator=g, dtype=F64).requires_grad_()
    x = (x0.detach() + torch.randn(3, 5, generator=g, dtype=F64)).requires_grad_()
    eps = torch.tensor([0.3, 0.5, 50.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: project(*a, -9.0, 9.0), (x, x0, eps))


_BLOCKED = """
import sys, warnings
sys.modules["advfeat._C"] = None  # as if it had not been built
import torch
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import advfeat
    from advfeat import ops, reference
    x0 = torch.rand(4, 3, 5)
    x, grad = x0 + 0.1, torch.randn(4, 3, 5)
    assert torch.equal(ops.l2_step(x, grad, x0, 0.1, 0.5), reference.l2_step(x, grad, x0, 0.1, 0.5))
    y = x.clone()
    assert ops.linf_step_(y, grad, x0, 0.1, 0.05) is y
    assert torch.equal(y, reference.linf_step(x, grad, x0, 0.1, 0.05))
    best = x0.clone()
    assert ops.copy_rows_(best, x, torch.tensor([True, False, True, False])) is best
    assert torch.equal(best, torch.stack([x[0], x0[1], x[2], x0[3]]))
    start = ops.random_start_l2(x0, 0.2, 3, torch.arange(4))
    assert ((start - x0).flatten(1).norm(dim=1) <= 0.2).all()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(15, 4))
    result = advfeat.PGD(advfeat.L2(0.5), steps=3, keep="best").run(net, x0, torch.zeros(4, dtype=torch.int64))
    assert (result.distance > 0.1).all() and (result.distance <= 0.500001).all()
lines = [str(w.message) for w in said if "advfeat" in str(w.message)]
assert len(lines) == 1 and "\\n" not in lines[0] and "plain torch on cpu" in lines[0], lines
config = advfeat.build_config()
assert config["extension"] is None and config["error"], config
print("OK")
"""


def test_without_the_extension_the_reference_does_the_work():
    done = subprocess.run([sys.executable, "-W", "default", "-c", _BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "OK", done.stderr
