"""Numbers over seeds, verdicts, tables beside the paper's; and verdicts of experiments that can be the opposite."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from advfeat.experiments.claims import Measured, more_robust
from advfeat.experiments.paper import figure2, figure3, figure8, table1
from advfeat.experiments.result import Cell, Finding, Number, Plain, Table, compare, worst
from advfeat.intervals import wilson

counts = st.lists(st.integers(0, 50), min_size=1, max_size=5)


@given(counts)
def test_a_number_is_its_mean_with_an_interval_around_all_seeds(counts):
    number = Number(tuple(counts), 50)
    low, high = number.interval
    assert number.mean == pytest.approx(100 * np.mean(counts) / 50)
    assert low <= min(number.values) <= number.mean <= max(number.values) <= high
    if len(counts) == 1:
        assert (low, high) == pytest.approx([100 * v for v in wilson(counts[0], 50)])


@given(counts, counts)
def test_comparing_is_antisymmetric_and_never_sure_of_a_tie(a, b):
    first, second = Number(tuple(a), 50), Number(tuple(b), 50)
    mirror = {"supported": "contradicted", "contradicted": "supported", "inconclusive": "inconclusive"}
    assert compare(first, second) == mirror[compare(second, first)]
    assert compare(first, first) == "inconclusive"
    if compare(first, second) == "supported":
        assert min(first.values) > max(second.values)


def test_more_seeds_make_no_claim_easier():
    """Seeds share the test samples: the interval never gets smaller than that of one evaluation."""
    one, many = Number((25,), 50), Number((25,) * 5, 50)
    assert many.interval == one.interval


def test_a_number_of_different_sizes_is_refused():
    with pytest.raises(ValueError, match=r"same number of samples, got \[10, 20\]"):
        Number.of([{"count": 1, "n": 10}, {"count": 1, "n": 20}])


def test_compare_with_a_constant():
    assert compare(Number((30,), 100), 20.0) == "supported"
    assert compare(Number((22,), 100), 20.0) == "inconclusive"
    assert compare(Number((5,), 100), 20.0) == "contradicted"
    assert compare(Plain((0.5, 0.6)), 0.4) == "supported"


def test_worst():
    assert worst(["supported", "inconclusive"]) == "inconclusive"
    assert worst(["supported", "contradicted", "inconclusive"]) == "contradicted"


def test_a_table_says_how_far_apart_we_are():
    table = Table(
        "t",
        ("", "accuracy", "other"),
        (
            ("D", (Cell(Number((90,), 100), 95.3), Cell(Plain((0.5,)), 0.25))),
            ("E", (Cell(Number((50,), 100), 50.0, True), Cell(Number((1,), 100)))),
        ),
    )
    assert table.differences() == [
        "D, accuracy: 90.0 %, 5.3 points below the paper's 95.3.",
        "D, other: 0.50, 0.25 above the paper's 0.25.",
        "E, accuracy: 50.0 %, the same as the paper's about 50.",
    ]
    with pytest.raises(ValueError, match="row 'D' should have 1 cells, got 2"):
        Table("t", ("", "a"), (("D", (Cell(), Cell())),))


def share(percent: float) -> Number:
    return Number((round(10 * percent),), 1000)


def verdicts(findings: list[Finding]) -> list[str]:
    assert all(f.against for f in findings)  # every claim says what would count against it
    assert {f.seeds for f in findings} == {1} and not any(f.verdict in ("supported", "contradicted") for f in findings)
    return [f.verdict.removesuffix(" once") for f in findings]


def test_table1_can_fail():
    def of(rand, det, follows):
        return verdicts(table1.findings({"rand": share(rand), "det": share(det)}, share(follows), 10.0))

    assert of(63.3, 43.7, 16.2) == ["supported", "supported"]
    assert of(12, 43.7, 16.2) == ["contradicted", "supported"]
    assert of(63.3, 30, 50) == ["supported", "contradicted"]
    assert of(21, 30, 29) == ["inconclusive", "inconclusive"]


def test_figure2_can_fail():
    paper = {"standard": (4.5, 0), "adversarial": (82.5, 70.9), "robust": (48.2, 21.9), "nonrobust": (0.8, 0)}

    def of(failed=(), **changes):
        rows = {key: [share(v) for v in values] for key, values in (paper | changes).items()}
        accuracy = {key: share(10 if key in failed else 85) for key in rows}
        return verdicts(figure2.findings(rows, (0.25, 0.5), accuracy, 10))

    assert of() == ["supported"] * 3
    assert of(robust=(5, 0)) == ["supported", "inconclusive", "supported"]
    assert of(nonrobust=(60, 40)) == ["supported", "supported", "contradicted"]
    assert of(adversarial=(1, 0)) == ["contradicted", "supported", "supported"]
    # From a model at chance nothing follows, in either direction.
    assert of(failed=["nonrobust"], nonrobust=(10, 10)) == ["supported", "supported", "inconclusive"]
    assert of(failed=["nonrobust"], nonrobust=(90, 90)) == ["supported", "supported", "inconclusive"]
    del paper["adversarial"]
    assert of() == ["supported"] * 2  # a claim is left out with its models


def test_radii_that_disagree_are_told():
    models = [
        Measured(name, share(90), [share(v) for v in values]) for name, values in (("a", (40, 20)), ("b", (60, 5)))
    ]
    found = more_robust("", "", *models, (0.5, 0.75), 10.0)
    assert found.verdict == "contradicted once"
    assert (
        found.observed
        == "At radius 0.5: 40.0 % (a) against 60.0 % (b). At 0.75 the other way round: 20.0 % against 5.0 %."
    )


def test_figure8_can_fail():
    def of(pgd, cw, strong):
        curves = {"PGD": [share(v) for v in pgd], "CW": [share(v) for v in cw]}
        return verdicts(figure8.findings(curves, share(strong), (20, 200, 2000), 10.0))

    assert of((49.2, 48.4, 48.3), (49.5, 48.5, 48.3), 47) == ["supported"] * 3
    assert of((49.2, 40, 30), (49.5, 40, 30), 29) == ["contradicted", "supported", "supported"]
    assert of((49.2, 48.4, 48.3), (49, 40, 30), 30) == ["supported", "contradicted", "contradicted"]
    # A CW that finds nothing checks nothing.
    assert of((49.2, 48.4, 48.3), (99, 98, 97), 48) == ["supported", "inconclusive", "supported"]
    assert of((10.2, 10, 10), (10, 10, 10), 10) == ["inconclusive"] * 3  # as much as by guessing


def test_figure3_can_fail():
    def of(y):
        points = [(str(i), float(i), float(v)) for i, v in enumerate(y)]
        return figure3._finding("untargeted", points, "Figure 3").verdict

    assert of([1, 2, 3, 4, 5]) == "supported once"
    assert of([5, 4, 3, 2, 1]) == "contradicted once"
    assert of([1, 5, 2, 4, 3]) == "inconclusive"
    assert of([1, 2, 3]) == "inconclusive"  # three points in order come by chance one time in six


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=6))
def test_correlations_are_scipy_s(points):
    x, y = [p[0] for p in points], [p[1] for p in points]
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert figure3.pearson(x, y) == 0 and figure3.spearman(x, y) == 0
        return
    assert figure3.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-9)
    rank = scipy.stats.spearmanr(x, y).statistic
    assert figure3.spearman(x, y) == pytest.approx(rank, abs=1e-9)
    by_chance = [scipy.stats.spearmanr(x, order).statistic >= rank - 1e-9 for order in itertools.permutations(y)]
    assert figure3.permutation_p(x, y) == pytest.approx(np.mean(by_chance))


def test_the_paper_s_own_points_are_in_order():
    x, targeted = [v[0] for v in figure3.PAPER.values()], [v[2] for v in figure3.PAPER.values()]
    assert figure3.spearman(x, targeted) == pytest.approx(1) and figure3.permutation_p(x, targeted) < 0.05
