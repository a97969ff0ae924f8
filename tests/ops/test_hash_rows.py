"""The hash of each sample: the same bits everywhere, and others for other samples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import BF16, F16, F32, F64, INNER, LAYOUTS, LONG, bits, place

from advfeat import ops, reference

DTYPES = [F32, F64, F16, BF16]
EVER = [-8182346516161043889, 3904410441450043451]  # of the rows of the test below


def by_hand(row: torch.Tensor) -> int:
    """One row, with Python's integers."""
    total = 0
    for i, pattern in enumerate(bits(row.reshape(-1)).tolist()):
        z = (pattern % 2 ** (8 * row.element_size()) + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        total += z ^ z >> 31
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.sampled_from([shape for shape in INNER if math.prod(shape) < 100]), st.integers(0, 3), st.integers(0, 2**31))
def test_the_hash_is_what_its_definition_says(dtype, inner, rows, seed):
    x = torch.randn(rows, *inner, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)
    assert ops.hash_rows(x).tolist() == [by_hand(row) for row in x]
    assert reference.hash_rows(x).tolist() == [by_hand(row) for row in x]


def test_the_hash_never_changes():
    x = torch.tensor([[0.0, 1.0, -0.5], [math.inf, math.nan, -0.0]])
    assert ops.hash_rows(x).tolist() == [by_hand(row) for row in x] == EVER


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@given(st.sampled_from(INNER + LONG), st.integers(0, 5), st.sampled_from([math.nan, -math.inf, -0.0, 0.25]))
def test_layout_batch_and_threads_change_no_bit(dtype, layout, inner, rows, special):
    values = torch.randn(rows, *inner).to(dtype)
    values.view(-1)[::7] = special
    placed = place(values, layout)
    want = reference.hash_rows(placed.view.contiguous())
    got = ops.hash_rows(placed.view)
    assert got.dtype == torch.int64 and torch.equal(got, want)
    assert torch.equal(reference.hash_rows(placed.view), want)
    for i in range(rows):
        assert torch.equal(ops.hash_rows(placed.view[i : i + 1]), want[i : i + 1])
    placed.check(view_too=True)


def test_threads_change_no_bit():
    x = torch.randn(9, 40_000)
    want, threads = ops.hash_rows(x), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(ops.hash_rows(x), want)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_that_differ_a_little_have_other_hashes(dtype):
    """Every value one step up or down, any two exchanged, and either zero: as neighbours on a lattice differ."""
    x = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)
    x[7], words = 0.0, bits(x)
    neighbours = [words] + [words + by * torch.eye(60, dtype=words.dtype)[i] for i in range(60) for by in (-1, 1)]
    for i in range(60):
        for j in range(i):
            order = torch.arange(60)
            order[i], order[j] = j, i
            neighbours.append(words[order])
    rows = torch.stack(neighbours)
    rows = torch.cat([rows, rows[:1]])
    rows[-1, 7] = bits(torch.tensor([-0.0], dtype=dtype))[0]
    different = len(rows.unique(dim=0))
    assert len(ops.hash_rows(rows.view(dtype)).unique()) == different > 1000


def test_hashes_of_a_lattice_are_spread_over_all_bits():
    g = torch.Generator().manual_seed(0)
    hashes = ops.hash_rows(0.5 + 0.025 * torch.randint(-4, 5, (20_000, 12), generator=g))
    set_bits = torch.stack([(hashes >> b) & 1 for b in range(64)], dim=1).double().mean(0)
    assert (set_bits - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 4, 4), (4,), (1, 1)])
def test_samples_without_values_and_no_samples(shape):
    x = torch.rand(shape)
    got = ops.hash_rows(x)
    assert got.shape == shape[:1] and torch.equal(got, reference.hash_rows(x))
    if x.numel() == 0:
        assert not got.any()


def test_a_leaf_that_requires_grad_is_hashed():
    x = torch.rand(3, 4, requires_grad=True)
    got = ops.hash_rows(x)
    assert not got.requires_grad and torch.equal(got, ops.hash_rows(x.detach()))
    grads = torch.func.grad(lambda v: v.sum() + 0 * ops.hash_rows(v).sum())(x.detach())
    assert torch.equal(grads, torch.ones(3, 4))


def test_vmap_hashes_each_sample():
    x = torch.rand(3, 2, 5)
    try:
        hashes = torch.func.vmap(ops.hash_rows)(x)
    except RuntimeError as error:
        if "aten::view.dtype" not in str(error):
            raise
        pytest.skip("this torch cannot take the bits of a number under vmap: 2.11")
    assert torch.equal(hashes, torch.stack([ops.hash_rows(row) for row in x]))
