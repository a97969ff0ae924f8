"""What an evaluation says of each attack in turn: counts that add up, and the attack that broke each sample."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tanh_network import tanh_network
from support.tensor_source import TensorSource

from advfeat import CW, L2, PGD, Auto, CrossEntropy, Ensemble
from advfeat.evaluation import evaluate

WEAK = {"keep": "best", "objective": CrossEntropy(), "step_size": 0.05}


def three(eps, steps=20):
    threat = L2(eps)
    return Ensemble(
        (
            PGD(threat, steps=1, **WEAK),
            PGD(threat, steps=4, **WEAK),
            PGD(threat, steps=steps, keep="best", objective=CW()),
        )
    )


@pytest.fixture(scope="module")
def task():
    net, x, y = tanh_network(60, wrong=4)
    return net, TensorSource(x[:, :, :, None].float(), y, tuple("abcde"), "tanh")


def test_each_attack_has_what_it_finds_alone_of_what_is_left(task):
    net, source = task
    found = evaluate(net, source, attacks=[("three", three(0.4))])
    (r,), by = found.robustness, found.broken_by["three"]
    left = found.correct.nonzero()[:, 0]
    assert len(left) == 56 and (by[~found.correct] == -1).all()
    for i, (attack, row) in enumerate(zip(three(0.4).attacks, r.breakdown, strict=True)):
        alone = attack.run(net, source.images(left).double(), source.labels[left], sample_ids=left)
        assert torch.equal(left[alone.success], (by == i).nonzero()[:, 0])
        assert (row.attacked, row.broken) == (len(left), int(alone.success.sum())) and row.broken > 0
        assert row.forward_passes == alone.samples_forwarded and row.backward_passes == alone.samples_backwarded
        left = left[~alone.success]
        assert row.accuracy.count == len(left) and row.accuracy.n == 60
    assert r.breakdown[-1].accuracy == r.found_alone == r.accuracy
    assert torch.equal(by >= 0, found.correct & ~found.robust["three"])


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.6]), min_size=1, max_size=2, unique=True), st.sampled_from([9, 25, 61])
)
def test_counts_add_up_whatever_the_batches(task, radii, batch_size):
    net, source = task
    attacks = [(f"{eps:g}", three(eps, steps=8)) for eps in radii]
    found, other = (evaluate(net, source, attacks=attacks, batch_size=b) for b in (60, batch_size))
    for r, same in zip(found.robustness, other.robustness, strict=True):
        assert r.breakdown == same.breakdown and torch.equal(found.broken_by[r.name], other.broken_by[r.name])
        rows = r.breakdown
        assert rows[0].attacked == r.attacked == found.clean.count
        assert [row.attacked for row in rows[1:]] == [row.accuracy.count for row in rows[:-1]]
        assert all(row.attacked - row.broken == row.accuracy.count for row in rows)
        assert rows[-1].accuracy == r.found_alone and r.found_alone.count - r.carried == r.accuracy.count
        assert sum(row.forward_passes for row in rows) == r.forward_passes
        assert sum(row.backward_passes for row in rows) == r.backward_passes


def test_it_is_in_the_json_with_seconds_where_they_are_asked_for(task):
    net, source = task
    found = evaluate(net, source, attacks=[("three", three(0.4)), ("one", PGD(L2(0.2), steps=3, keep="best"))])
    told = json.loads(json.dumps(found.to_dict(samples=True, seconds=True), allow_nan=False))
    three_rows, one_row = (r["breakdown"] for r in told["robustness"])
    assert [row["name"] for row in three_rows] == ["PGD 1", "PGD 2", "PGD 3"]
    assert [row["name"] for row in one_row] == ["PGD"] and one_row[0]["seconds"] > 0
    assert one_row[0]["robust_accuracy"] == told["robustness"][1]["found_alone"]
    for i, sample in enumerate(told["samples"]):
        by = int(found.broken_by["three"][i])
        assert sample["broken_by"]["three"] == (None if by < 0 else f"PGD {by + 1}")
    without = found.to_dict()["robustness"][0]["breakdown"]
    assert all("seconds" not in row for row in without)


def test_a_false_success_of_the_copy_is_attacked_again_and_its_passes_count(task, monkeypatch):
    net, source = task
    attack = Ensemble((PGD(L2(0.2), steps=2, **WEAK), Auto(L2(0.2), steps=3)))
    plain = evaluate(net, source, attacks=[("a", attack)])
    from advfeat.evaluation import under_attack

    real, calls = under_attack.attack_copy, []

    def shifted(model, **settings):  # sees classes that the model itself does not
        calls.append(1)
        return lambda x: real(model, **settings)(x) + 0.3 * torch.eye(5, dtype=torch.float64)[0]

    monkeypatch.setattr(under_attack, "attack_copy", shifted)
    found = evaluate(net, source, attacks=[("a", attack)])
    assert calls and found.robustness[0].forward_passes > plain.robustness[0].forward_passes
    rows = found.robustness[0].breakdown
    assert sum(row.forward_passes for row in rows) == found.robustness[0].forward_passes
    assert rows[-1].accuracy == found.robustness[0].found_alone
    by = found.broken_by["a"]
    assert torch.equal(by >= 0, found.correct & ~found.robust["a"])
