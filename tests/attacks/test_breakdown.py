"""The breakdown of attacks in turn: what each broke of what those before it left, in how many passes."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tanh_network import tanh_network
from support.tensor_source import blobs
from torch import nn

from advfeat import CW, L2, PGD, Auto, AutoAttack, CrossEntropy, Ensemble, Linf
from advfeat._stopwatch import Stopwatch


def pgd(threat, **settings):
    return PGD(threat, keep="best", **settings)


def three(threat):
    """Three attacks, each of which finds more than those before it."""
    weak = {"objective": CrossEntropy(), "step_size": 0.05}
    return Ensemble((pgd(threat, steps=1, **weak), pgd(threat, steps=4, **weak), pgd(threat, steps=20, objective=CW())))


def short_autoattack(threat, steps=4):
    attack = AutoAttack(threat)
    parts = tuple((name, tuple(dataclasses.replace(a, steps=steps) for a in part)) for name, part in attack.parts)
    attack.__dict__["parts"] = parts  # cached
    return attack


def one_by_one(attack, net, x, y):
    """What each attack, run alone on what is left, breaks, and its passes; all passes of one name together."""
    ids, left = torch.arange(len(x)), torch.arange(len(x))
    broken_by, passes, pending = torch.full((len(x),), -1), dict.fromkeys(attack.turns, (0, 0)), (0, 0)
    for name, one in zip(attack.names, attack.attacks, strict=True):
        if not len(left):
            break
        found = one.run(net, x[left], y[left], sample_ids=ids[left])
        spent = found.samples_forwarded + pending[0], found.samples_backwarded + pending[1]
        pending = (0, 0) if name else spent
        if name:
            broken_by[left[found.success]] = attack.turns.index(name)
            passes[name] = passes[name][0] + spent[0], passes[name][1] + spent[1]
        left = left[~found.success]
    return broken_by, passes, len(left)


@pytest.mark.parametrize("eps", [0.0, 0.2, 0.4, 3.0])
def test_each_attack_has_what_it_finds_alone_of_what_is_left(eps):
    net, x, y = tanh_network(60, wrong=3)
    attack = three(L2(eps))
    found = attack.run(net, x, y)
    broken_by, passes, left = one_by_one(attack, net, x, y)
    assert torch.equal(found.broken_by.long(), broken_by)
    assert [turn.name for turn in found.breakdown] == ["PGD 1", "PGD 2", "PGD 3"]
    for i, turn in enumerate(found.breakdown):
        assert turn.broken == int((broken_by == i).sum())
        assert (turn.cost.samples_forwarded, turn.cost.samples_backwarded) == passes[turn.name]
        assert (turn.cost.seconds > 0) == (turn.attacked > 0)
    assert found.breakdown[-1].left == left
    if eps == 0.4:
        assert all(turn.broken for turn in found.breakdown), "or the test shows little"


def test_of_autoattack_it_names_the_four_and_not_what_was_wrong_before():
    net, x, y = tanh_network(80, classes=6, wrong=5)
    x = x[:, :, :, None]  # Square takes images [B, C, H, W]
    attack = short_autoattack(Linf(0.04))
    found = attack.run(net, x, y)
    broken_by, _, left = one_by_one(attack, net, x, y)
    assert list(found.costs) == [turn.name for turn in found.breakdown] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert torch.equal(found.broken_by.long(), broken_by)
    assert (found.broken_by[:5] == -1).all() and found.success[:5].all()
    first = found.breakdown[0]
    assert first.attacked == 75 and found.breakdown[-1].left == left == int((~found.success).sum())
    assert first.cost.samples_forwarded >= 80 + 75 * 4  # the evaluation at x, too
    assert [turn.name for turn in Auto(L2(0.3), steps=3).run(net, x, y).breakdown] == ["apgd-margin", "apgd-t"]
    assert [turn.name for turn in Auto(L2(0.3), target_classes=0).run(net, x[:2], y[:2]).breakdown] == ["apgd-margin"]


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.floats(0, 0.6),
    st.sampled_from(["three", "autoattack", "nested"]),
)
def test_counts_add_up_whatever_the_batches(sizes, eps, kind):
    net, x, y = tanh_network(sum(sizes), wrong=2)
    x = x[:, :, :, None]
    threat = L2(eps)
    attack = three(threat) if kind == "three" else short_autoattack(threat, 2)
    if kind == "nested":
        attack = Ensemble((pgd(threat, steps=1), Auto(threat, steps=2)))
    whole = attack.run(net, x, y)
    results = [r for _, r in attack.over(net, zip(x.split(sizes), y.split(sizes), strict=True))]
    for found in [whole, *results]:
        turns = found.breakdown
        wrong = int((found.success & (found.broken_by < 0)).sum())
        assert turns[0].attacked + wrong == len(found.success)
        assert [turn.attacked for turn in turns[1:]] == [turn.left for turn in turns[:-1]]
        assert turns[-1].left == int((~found.success).sum())
        for name in ("samples_forwarded", "samples_backwarded"):
            assert sum(getattr(turn.cost, name) for turn in turns) == getattr(found, name)
        assert not (~found.success & (found.broken_by >= 0)).any()
    assert torch.equal(torch.cat([r.broken_by for r in results]), whole.broken_by)
    for i, turn in enumerate(whole.breakdown):
        parts = [r.breakdown[i] for r in results]
        assert (turn.attacked, turn.broken) == (sum(p.attacked for p in parts), sum(p.broken for p in parts))
        if turn.name not in ("apgd-t", "fab-t"):  # which try as many classes at once as find room
            assert turn.cost.samples_forwarded == sum(p.cost.samples_forwarded for p in parts)
            assert turn.cost.samples_backwarded == sum(p.cost.samples_backwarded for p in parts)


def test_a_part_of_a_result_has_its_samples_and_their_share_of_the_cost():
    net, x, y = tanh_network(30, wrong=3)
    found = three(L2(0.3)).run(net, x, y)
    parts = found.split([7, 0, 23])
    for i, turn in enumerate(found.breakdown):
        assert sum(p.breakdown[i].broken for p in parts) == turn.broken
        assert sum(p.breakdown[i].cost.samples_forwarded for p in parts) == turn.cost.samples_forwarded
        assert sum(p.breakdown[i].cost.seconds for p in parts) == pytest.approx(turn.cost.seconds)


def test_a_single_attack_has_none():
    net, x, y = tanh_network(5)
    found = pgd(L2(0.3), steps=2).run(net, x, y)
    assert found.breakdown == () and found.broken_by is None


def test_time_spent_on_reading_images_is_not_the_attacks(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    source = blobs(12)

    class Net(nn.Module):
        def forward(self, x):
            now[0] += 1
            return x.flatten(1)[:, :3]

    def batches():
        for part in torch.arange(12).split(4):
            now[0] += 1000
            yield source.images(part), source.labels[part]
        now[0] += 1000

    attack = Ensemble((pgd(L2(0.01), steps=3), pgd(L2(0.01), steps=5)))
    found = [turn for _, r in attack.over(Net(), batches()) for turn in r.breakdown]
    calls = sum(turn.cost.seconds for turn in found)
    assert 3 * 4 <= calls < 100


def test_a_stopwatch_leaves_out_what_it_draws_on(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def inner():
        for i in range(3):
            now[0] += 10
            yield i

    def outer(items):
        for i in items:
            now[0] += 1
            yield i

    watch = Stopwatch()
    for _ in watch.of(outer(watch.without(inner()))):
        now[0] += 100
    assert watch.seconds == 3
