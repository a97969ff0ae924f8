"""AutoAttack: its settings are the published ones, and its numbers those of its authors' code."""

import dataclasses

import pytest
import torch
from support.digits_network import digits_network
from torch import nn

from advfeat import APGD, FAB, L1, L2, Auto, AutoAttack, Linf, Square
from advfeat.attacks.auto import RankedAPGD
from advfeat.datasets import load


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(12.0)])
def test_the_standard_version_is_as_published(threat):
    attack, in_l1 = AutoAttack(threat), isinstance(threat, L1)
    parts = dict(attack.parts)
    assert attack.objective == "apgd-ce, apgd-t, fab-t, square" and list(parts) == attack.objective.split(", ")
    (first,), targeted, (fab,), (square,) = parts.values()
    assert type(first) is APGD and first.objective.name == "CrossEntropy"
    assert (first.steps, first.restarts, first.large_radii) == (100, 5 if in_l1 else 1, in_l1)
    assert [type(a) for a in targeted] == [RankedAPGD] * 2
    ranks = [k for a in targeted for k in range(a.rank, a.rank + a.ranks)]
    assert ranks == list(range(5 if in_l1 else 9))
    assert all((a.steps, a.restarts, a.large_radii) == (100, 1, in_l1) for a in targeted)
    seeds = {a.seed + k for a in targeted for k in range(a.ranks)}  # of each class its own
    assert len(seeds | {first.seed}) == len(ranks) + 1
    assert isinstance(fab, FAB) and (fab.steps, fab.restarts, fab.targets) == (100, 1, 9)
    assert (fab.alpha_max, fab.eta, fab.beta) == (0.1, 1.05, 0.9)
    assert isinstance(square, Square)
    assert (square.steps, square.p_init, square.restarts, square.rescale_schedule) == (5000, 0.8, 1, False)
    assert square.objective.name == "CW"


def test_plus_is_as_published():
    attack = AutoAttack(L2(0.5), version="plus")
    parts = dict(attack.parts)
    assert list(parts) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [parts[name][0].restarts for name in ("apgd-ce", "apgd-dlr", "fab", "square", "fab-t")] == [5, 5, 5, 1, 1]
    assert parts["apgd-dlr"][0].objective.name == "DLR" and parts["fab"][0].targets is None
    assert attack.to_dict()["version"] == "plus" and attack.to_dict() != AutoAttack(L2(0.5)).to_dict()


@pytest.fixture(scope="module")
def digits():
    test = load("digits", "test")
    return test.images()[:40].contiguous(), test.labels[:40]


@pytest.fixture(scope="module")
def net():
    return digits_network(adversarial=True)


def short(attack, steps=10):
    """The same attack with fewer steps and queries."""
    return dataclasses.replace(attack, steps=steps)


def test_it_breaks_what_any_of_its_attacks_breaks_and_counts_all_passes(net, digits, monkeypatch):
    x, y = digits
    passes = [0]

    def model(z):
        passes[0] += len(z)
        return net(z)

    attack = AutoAttack(Linf(0.12))
    parts = tuple((name, tuple(short(a) for a in attacks)) for name, attacks in attack.parts)
    attack.__dict__["parts"] = parts  # cached
    result = attack.run(model, x, y)
    assert result.samples_forwarded == passes[0]
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    assert result.distance.max() <= 0.12 * (1 + 1e-5)
    broken = net(x).argmax(1) != y
    left = (~broken).nonzero()[:, 0]
    ids = torch.arange(len(x))
    for _, attacks in parts:
        for one in attacks:
            found = one.run(net, x[left], y[left], sample_ids=ids[left])
            broken[left[found.success]] = True
            left = left[~found.success]
    assert (broken == result.success).double().mean() > 0.95  # the model's rounding depends on the batch
    over = torch.cat([r.success for _, r in attack.over(net, zip(x.split(15), y.split(15), strict=True))])
    assert (over == result.success).double().mean() > 0.95


def test_few_classes_and_no_samples(digits):
    torch.manual_seed(0)
    for classes in (2, 3):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
        x = digits[0][:10]
        attack = AutoAttack(L2(0.5))
        attack.__dict__["parts"] = tuple((name, tuple(short(a) for a in attacks)) for name, attacks in attack.parts)
        result = attack.run(net, x, net(x).argmax(1))
        assert torch.equal(result.success, net(result.x_adv).argmax(1) != net(x).argmax(1)) and result.success.any()
    assert len(AutoAttack(L2(0.5)).run(net, x[:0], torch.zeros(0).long()).x_adv) == 0


@pytest.mark.parametrize("threat", [Linf(0.004), L2(0.02), L1(0.2)], ids=lambda t: t.norm)
def test_a_thousand_classes_images_that_are_not_square_and_any_batch(threat):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 9, 1000)).double()
    x = torch.rand(9, 3, 6, 9, dtype=torch.float64)
    y, ids = net(x).argmax(1), torch.arange(9)
    attack = AutoAttack(threat)
    attack.__dict__["parts"] = tuple((name, tuple(short(a, 6) for a in attacks)) for name, attacks in attack.parts)
    whole = attack.run(net, x, y, sample_ids=ids)
    assert 0 < whole.success.sum() < 9 and whole.distance.max() <= threat.eps * (1 + 1e-9)
    order = torch.randperm(9)
    for rows in (order, *(ids[i : i + 1] for i in (0, 4))):
        part = attack.run(net, x[rows], y[rows], sample_ids=rows)
        assert torch.equal(part.success, whole.success[rows])
        torch.testing.assert_close(part.x_adv, whole.x_adv[rows], rtol=0, atol=1e-9)


@pytest.mark.compare
@pytest.mark.slow
@pytest.mark.parametrize(("norm", "threat"), [("Linf", Linf(0.12)), ("L2", L2(0.75)), ("L1", L1(2.0))])
def test_it_leaves_the_samples_that_the_authors_code_leaves(net, digits, norm, threat):
    reference = pytest.importorskip("pyautoattack")
    x, y = digits
    attack = reference.AutoAttack(model=net, norm=norm, eps=threat.eps, seed=0, device="cpu", version="standard")
    theirs = attack.run_standard_evaluation(x, y, batch_size=40)[0]
    ours = AutoAttack(threat).run(net, x, y)
    assert (ours.success != (net(theirs).argmax(1) != y)).sum() <= 1
    auto = Auto(threat).run(net, x, y)
    assert (ours.success | ~auto.success).double().mean() > 0.95  # Auto is an upper bound, up to its starts


def test_mistakes():
    with pytest.raises(ValueError, match='version should be "standard" or "plus", got \'rand\''):
        AutoAttack(L2(0.5), version="rand")
    with pytest.raises(ValueError, match="finite"):
        AutoAttack(L2(float("inf")))
