"""The order in which targeted attacks take the other classes: by logits, and that of MALT."""

import pytest
import torch
from support.short_evaluation import task
from torch import nn

from advfeat import FAB, L1, L2, Auto, Linf, Threat
from advfeat.attacks import PGD, auto, fab
from advfeat.attacks.auto import RankedAPGD
from advfeat.attacks.context import Run
from advfeat.attacks.target_order import other_classes, ranks_at_once

CLASSES = 20


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).double()
    with torch.no_grad():  # gradients of very different lengths, so that logits say little of distances
        model[1].weight *= torch.logspace(-1, 1, CLASSES, dtype=torch.float64)[torch.randperm(CLASSES), None]
    x = torch.rand(12, 3, 4, 4, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def by_hand(model, x, y, order, unit=1.0):
    """The other classes by their exact distance, which a linear model has."""
    logits, w = model(x).detach(), model[1].weight.detach().reshape(CLASSES, *x.shape[1:]) * unit
    found = []
    for i in range(len(x)):
        lengths = torch.linalg.vector_norm((w[y[i]] - w).flatten(1), order, dim=1)
        distance = (logits[i, y[i]] - logits[i]) / lengths
        distance[y[i]] = float("inf")
        found.append(distance.argsort()[:-1])
    return torch.stack(found)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_malt_takes_the_nearest_boundary_of_a_linear_model_first(norm):
    model, x, y = problem()
    threat = Threat.of(norm, 0.1)
    run = Run(PGD(threat, steps=0), model, x, y)
    classes, exist, forwarded, backwarded = other_classes(run, model(x), "malt", 9)
    assert torch.equal(classes, by_hand(model, x, y, threat.dual_order)) and exist.all()
    assert (forwarded, backwarded) == (12, 12 * (CLASSES - 1))
    plain = other_classes(run, model(x), "logits", 9)
    assert plain[2:] == (0, 0) and not torch.equal(plain[0], classes)
    enough = other_classes(run, model(x), "malt", CLASSES - 1)  # all of them anyway
    assert enough[2:] == (0, 0) and torch.equal(enough[0], plain[0])


def test_distances_are_in_the_unit_of_eps():
    model, x, y = problem()
    unit = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    threat = Linf(0.1, lo=-9.0, hi=9.0, unit=unit)
    run = Run(PGD(threat, steps=0), model, x, y)
    assert torch.equal(other_classes(run, model(x), "malt", 9)[0], by_hand(model, x, y, 1, unit.reshape(3, 1, 1)))


@pytest.mark.parametrize("kind", [RankedAPGD, FAB])
def test_one_target_of_malt_breaks_what_can_be_broken_of_a_linear_model(kind):
    model, x, y = problem(1)
    nearest = by_hand(model, x, y, 2)[:, 0]
    w, logits = model[1].weight.detach(), model(x).detach()
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, nearest[:, None]))[:, 0]
    eps = 1.1 * gap / torch.linalg.vector_norm(w[y] - w[nearest], dim=1)
    one = {"targets": 1} if kind is FAB else {"ranks": 1}
    attack = kind(L2(eps, lo=-9.0, hi=9.0), steps=50, **one)
    assert attack.replace(target_order="malt").run(model, x, y).success.all()
    assert not attack.run(model, x, y).success.all()


def test_ranks_in_one_attack_are_those_of_single_attacks():
    model, x, y = problem(2)
    whole = RankedAPGD(L2(0.2), steps=10, rank=1, ranks=3, seed=5).run(model, x, y)
    left, success = torch.arange(12), torch.zeros(12, dtype=torch.bool)
    for k in range(3):
        single = RankedAPGD(L2(0.2), steps=10, rank=1 + k, seed=5 + k).run(model, x[left], y[left], sample_ids=left)
        torch.testing.assert_close(single.x_adv[single.success], whole.x_adv[left[single.success]])
        success[left[single.success]] = True
        left = left[~single.success]
    assert torch.equal(whole.success, success) and 0 < success.sum() < 12


@pytest.mark.parametrize("norm, eps", [("linf", 0.08), ("l2", 0.25), ("l1", 1.5)])
@pytest.mark.parametrize("kind", ["apgd-t", "large radii", "fab-t", "fab-t, nearest", "fab-t, five starts"])
def test_classes_tried_at_once_give_what_they_give_one_after_the_other(monkeypatch, kind, norm, eps):
    net, source = task()
    x, y = source.images()[2:], source.labels[2:]
    threat = Threat.of(norm, eps)
    more = {"large_radii": norm == "l1"} if kind == "large radii" else {}
    if kind.startswith("fab"):
        attack = FAB(threat, steps=6, targets=4, minimise="nearest" in kind, restarts=5 if "five" in kind else 1)
    else:
        attack = RankedAPGD(threat, steps=6, ranks=4, seed=3, **more)
    tried = []

    def result(room):
        def recorded(*args):
            for ranks in ranks_at_once(*args):
                tried.append(len(ranks))
                yield ranks

        for module in (auto, fab):
            monkeypatch.setattr(module, "ranks_at_once", recorded)
        tried.clear()
        return attack.part_of(Run(attack, net, x, y, room=room))

    whole = result(10 * len(x))
    assert tried == [1, 3]  # the first breaks the most
    monkeypatch.setattr(Run, "room", property(lambda self: 0, lambda self, value: None), raising=False)
    single = result(None)
    assert tried == [1, 1, 1, 1]
    for name in ("x_adv", "value", "success", "distance", "first_success", "zero_grad_steps", "nonfinite_grad_steps"):
        assert torch.equal(getattr(whole, name), getattr(single, name)), name
    assert 0 < whole.success.sum() < len(x)
    if kind.startswith("fab"):
        assert torch.equal(whole.smallest_distance, single.smallest_distance)
    passes = [(r.samples_forwarded, r.samples_backwarded) for r in (whole, single)]
    assert passes[0] >= passes[1]


def test_the_room_of_a_batch_is_kept_by_its_parts_and_taken_by_the_classes():
    net, source = task()
    x, y = source.images(), source.labels
    largest = [0]

    def counted(z):
        largest[0] = max(largest[0], len(z))
        return net(z)

    attack = Auto(Linf(0.03), steps=5)
    attack.run(counted, x, y)
    assert largest == [len(x)]
    largest[0] = 0
    for _ in attack.over(counted, zip(x.split(7), y.split(7), strict=True)):
        pass
    assert largest[0] <= 2 * 7  # what several batches leave is pooled, from 7 samples on


def test_auto_takes_the_order_and_counts_its_passes():
    model, x, y = problem(3)
    passes = [0]

    def counted(z):
        passes[0] += len(z)
        return model(z)

    attack = Auto(L2(0.2), steps=5, target_classes=2, target_order="malt")
    result = attack.run(counted, x, y)
    assert result.samples_forwarded == passes[0]
    assert [type(a).__name__ for a in attack.attacks] == ["PGD", "APGD", "RankedAPGD"]
    assert len(Auto(L1(1.0), target_classes=0, target_order="malt").attacks) == 2
    pooled = [r for _, r in attack.over(model, zip(x.split(5), y.split(5), strict=True))]
    assert torch.equal(torch.cat([r.success for r in pooled]), result.success)


def test_another_name_is_refused():
    for attack in (Auto, FAB):
        with pytest.raises(ValueError, match='target_order should be "logits" or "malt", got "size"|got \'size\''):
            attack(L2(1.0), target_order="size")
