"""Random starts: the right distribution, and numbers that belong to the sample alone."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import BF16, F16, F32, F64, same_bits

from advfeat import PGD, Linf, ops, reference
from advfeat.random import philox

BOTH = ["random_start_linf", "random_start_l2"]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_has_the_published_values(counter, key, words):
    """Known answers of Random123 for philox4x32-10."""
    sample_id = counter[2] | counter[3] << 32
    sample_id -= 2**64 if sample_id >= 2**63 else 0
    seed = key[0] | key[1] << 32
    got = philox(seed, torch.tensor([sample_id]), torch.tensor([counter[0]]), counter[1])
    assert [f"{w:08x}" for w in got.flatten().tolist()] == words.split()


@pytest.mark.parametrize("op", BOTH)
@given(
    seed=st.integers(0, 2**63 - 1),
    shape=st.sampled_from([(1,), (3,), (7,), (3, 5, 4), (4099,)]),
    dtype=st.sampled_from([F32, F64, F16, BF16]),
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
)
def test_agrees_with_the_reference(op, seed, shape, dtype, ids):
    ids = torch.tensor(ids)
    x0 = torch.rand(len(ids), *shape, generator=torch.Generator().manual_seed(seed % 1000)).to(dtype)
    got = getattr(ops, op)(x0, 0.3, seed, ids)
    want = getattr(reference, op)(x0.double(), 0.3, seed, ids)
    assert got.dtype == dtype
    assert ((got.double() - want).abs() <= 3 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("op", BOTH)
@given(seed=st.integers(0, 2**40), cut=st.integers(0, 6), order=st.permutations(range(6)))
def test_numbers_belong_to_the_sample(op, seed, cut, order):
    x0, ids = torch.rand(6, 3, 4, 5), torch.arange(6) * 10**12
    start = getattr(ops, op)
    whole = start(x0, 0.2, seed, ids)
    assert same_bits(torch.cat([start(x0[:cut], 0.2, seed, ids[:cut]), start(x0[cut:], 0.2, seed, ids[cut:])]), whole)
    order = torch.tensor(order)
    assert same_bits(start(x0[order], 0.2, seed, ids[order]), whole[order])
    last = x0.to(memory_format=torch.channels_last)
    result = start(last, 0.2, seed, ids)
    assert same_bits(result, whole) and result.is_contiguous(memory_format=torch.channels_last)
    eps = torch.full((6,), 0.2, dtype=F64)
    assert same_bits(start(x0, eps, seed, ids), whole)
    assert not torch.equal(start(x0, 0.2, seed + 1, ids), whole)


@pytest.mark.parametrize("dim", [1, 2, 50])
def test_l2_start_is_uniform_in_the_ball(dim):
    n, eps = 4000, 0.7
    x0 = torch.zeros(n, dim, dtype=F64)
    d = ops.random_start_l2(x0, eps, 5, torch.arange(n), -math.inf, math.inf)
    radius = d.norm(dim=1)
    assert radius.max() <= eps * (1 + 1e-12)
    assert scipy.stats.kstest((radius / eps).numpy() ** dim, "uniform").pvalue > 1e-3
    if dim > 1:  # a direction's first coordinate, and its sign
        first = (d[:, 0] / radius).numpy()
        assert abs(first.mean()) < 5 / math.sqrt(dim * n) and abs(first.var() * dim - 1) < 0.15


def test_linf_start_is_uniform_in_the_box():
    x0 = torch.full((50, 400), 0.5, dtype=F64)
    d = (ops.random_start_linf(x0, 0.1, 5, torch.arange(50)) - x0) / 0.1
    assert d.abs().max() <= 1
    assert scipy.stats.kstest((d.flatten().numpy() + 1) / 2, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("op", BOTH)
def test_start_is_clipped_and_eps_zero_is_the_identity(op):
    x0 = torch.rand(8, 3, 6, 6)
    start = getattr(ops, op)
    far = start(x0, 5.0, 1, torch.arange(8))
    assert far.min() >= 0 and far.max() <= 1
    assert torch.equal(start(x0, 0.0, 1, torch.arange(8)), x0)
    by_channel = start(x0, 5.0, 1, torch.arange(8), torch.tensor([0.2, 0.0, 0.4]), 0.5)
    assert (by_channel.amin((0, 2, 3)) >= torch.tensor([0.2, 0.0, 0.4])).all() and by_channel.max() <= 0.5
    assert start(x0[:0], 0.3, 1, torch.arange(0)).shape == (0, 3, 6, 6)


@pytest.mark.parametrize("op", BOTH)
def test_errors_name_the_argument(op):
    x0, ids = torch.rand(2, 3), torch.arange(2)
    start = getattr(ops, op)
    with pytest.raises(RuntimeError, match="eps should be finite for a random start"):
        start(x0, math.inf, 0, ids)
    with pytest.raises(RuntimeError, match="eps should be finite"):
        start(x0, torch.tensor([0.1, math.inf]), 0, ids)
    with pytest.raises(RuntimeError, match=r"sample_ids should be an int64 tensor \[B\] = \(2,\), got Int"):
        start(x0, 0.1, 0, ids.int())
    with pytest.raises(RuntimeError, match=r"sample_ids .* of shape \(3,\)"):
        start(x0, 0.1, 0, torch.arange(3))


MODEL = torch.nn.Linear(6, 4)


def starts_of(attack, x, y, **more):
    return attack(MODEL, x, y, **more) - x


@pytest.mark.parametrize("settings", [{}, {"stop": "success"}, {"keep": "best", "restarts": 2}])
def test_random_starts_are_new_at_every_call_unless_a_seed_or_ids_are_given(settings):
    """In a training loop the same noise at every step would be a trap."""
    x, y = torch.full((5, 6), 0.5), torch.arange(5) % 4
    attack = PGD(Linf(0.1), steps=0, random_start=True, **settings)
    torch.manual_seed(3)
    first, second = (starts_of(attack, x, y) for _ in range(2))
    assert (first - second).abs().max() > 0.01
    torch.manual_seed(3)
    assert torch.equal(starts_of(attack, x, y), first) and torch.equal(starts_of(attack, x, y), second)
    keyed, ids = attack.replace(seed=0), torch.arange(5)
    state = torch.get_rng_state()
    assert torch.equal(starts_of(keyed, x, y), starts_of(keyed, x, y))
    assert torch.equal(starts_of(attack, x, y, sample_ids=ids), starts_of(keyed, x, y))
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn for these
    assert attack.to_dict() == keyed.to_dict()


def test_random_starts_over_a_loader_are_new_each_time_and_by_sample():
    x, y = torch.full((7, 6), 0.5), torch.arange(7) % 4
    attack = PGD(Linf(0.1), steps=0, random_start=True)

    def over(size, *ids):
        batches = zip(*(part.split(size) for part in (x, y, *ids)), strict=True)
        return torch.cat([r.x_adv for _, r in attack.over(MODEL, batches)])

    torch.manual_seed(0)
    first, second = over(3), over(3)
    assert not torch.equal(first, second) and len({tuple(row) for row in first.tolist()}) == 7
    torch.manual_seed(0)
    assert torch.equal(over(2), first)  # whatever the batch size
    assert torch.equal(over(3, torch.arange(7)), over(3, torch.arange(7)))
    assert list(attack.over(MODEL, [])) == []
