"""Rows that are copied by a mask, and the operator that this one replaced."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import (
    BF16,
    F16,
    F32,
    F64,
    INNER,
    LAYOUTS,
    LONG,
    place,
    same_bits,
)

from advfeat import ops, reference


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
@pytest.mark.parametrize("layout", LAYOUTS)
@given(st.sampled_from(INNER + LONG), st.sampled_from([*LAYOUTS, "expanded"]), st.lists(st.booleans(), max_size=5))
def test_copy_rows_copies_the_rows_of_the_mask_and_no_others(dtype, layout, inner, src_layout, rows):
    shape, which = (len(rows), *inner), torch.tensor(rows, dtype=torch.bool)
    old, new = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    if inner == (5,):  # what a value is makes no difference
        old[:, 0], new[:, 1] = math.nan, -math.inf
    dst, src = place(old, layout), place(new, src_layout)
    mask = torch.stack([which, ~which], dim=1)[:, 0]  # its values lie apart
    assert ops.copy_rows_(dst.view, src.view, mask) is dst.view
    for row, copied in enumerate(rows):
        assert same_bits(dst.view[row], src.view[row] if copied else old[row])
    assert same_bits(dst.view, reference.copy_rows(old, src.view, which))
    dst.check()
    src.check(view_too=True)
    assert torch.equal(mask, which)
    # the other rows as well: the whole
    ops.copy_rows_(dst.view, src.view, ~mask)
    assert same_bits(dst.view, src.view)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.complex64])
def test_copy_rows_takes_any_dtype(dtype):
    dst, src = (torch.arange(6).reshape(3, 2) % n for n in (2, 5))
    dst, src = dst.to(dtype), src.to(dtype)
    mask = torch.tensor([True, False, True])
    want = torch.stack([src[0], dst[1], src[2]])
    assert torch.equal(ops.copy_rows_(dst, src, mask), want)


@pytest.mark.parametrize("dtype", [F32, F64])
@given(value=st.lists(st.sampled_from([-1.0, 0.0, 2.0, math.nan, -math.inf]), min_size=4, max_size=4))
def test_update_best_is_deprecated_and_keeps_the_larger(dtype, value):
    best_x, best_value = torch.zeros(4, 3), torch.tensor([0.0, math.nan, 1.0, 0.0], dtype=dtype)
    x, value = torch.ones(4, 3), torch.tensor(value, dtype=dtype)
    better = (value > best_value) | (best_value.isnan() & ~value.isnan())
    want = torch.where(better, value, best_value)
    with pytest.warns(FutureWarning, match="use copy_rows_") as warned:
        got_x, got_value = ops.update_best_(best_x, best_value, x, value)
    assert got_x is best_x and got_value is best_value and warned[0].filename == __file__
    assert torch.equal(best_x, better[:, None].float().expand(4, 3)) and torch.equal(
        got_value.nan_to_num(9), want.nan_to_num(9)
    )
