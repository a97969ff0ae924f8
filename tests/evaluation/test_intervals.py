"""Intervals of shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from advfeat.intervals import Share, wilson


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts):
    k, n = counts
    expected = stats.binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high


def test_a_share_is_a_number_with_its_interval():
    share = Share(30, 40)
    assert share.value == 0.75
    assert share.to_dict() == {"value": 0.75, "count": 30, "n": 40, "interval": list(wilson(30, 40))}
    for k, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="successes should be in 0 .. n"):
            wilson(k, n)
