"""RadiusSearch: smallest distances that are known, what it adds to a minimum-norm attack, and its accounts."""

import json
import math

import pytest
import torch
from torch import nn

import advfeat
from advfeat import APGD, DDN, FAB, FMN, L1, L2, PGD, Auto, Ensemble, Linf, RadiusSearch, Square, Threat
from advfeat.datasets import load
from advfeat.training import TrainConfig, train

NORMS = ["linf", "l2", "l1"]
LARGEST = {"linf": 1.0, "l2": 8.0, "l1": 64.0}


@pytest.fixture(scope="module")
def digits():
    test = load("digits", "test")
    return test.images()[:60].contiguous(), test.labels[:60]


@pytest.fixture(scope="module")
def net():
    return train(TrainConfig(epochs=8, lr=0.1, batch_size=32, width=8), load("digits"), device="cpu").model.eval()


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 5)).double()


def pgd(threat, **settings):
    return PGD(threat, **{"steps": 15, "schedule": "cosine", "keep": "best"} | settings)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_models_smallest_radius_is_found(norm, first):
    """The margin over the dual norm of the gradient, far from the box: within the tolerance of the search."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    model[1].bias.data.copy_(-0.5 * model[1].weight.data.sum(1))
    x = 0.4 + 0.2 * torch.rand(40, 3, 2, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    w = model[1].weight.detach()
    threat = Threat.of(norm, 3.0 if norm != "linf" else 1.0)
    gap = (model(x)[:, 0] - model(x)[:, 1]).abs().detach()
    want = gap / torch.linalg.vector_norm(w[0] - w[1], threat.dual_order)
    start = FMN(threat, steps=3) if first else None
    found = RadiusSearch(pgd(threat, steps=30), rounds=25, first=start, tolerance=1e-3).run(model, x, y)
    assert (found.smallest_distance >= want * (1 - 1e-9)).all()
    slack = 1.01 if norm != "l1" else 1.06  # PGD's steps in L1 move several values at a time
    assert (found.smallest_distance <= want * slack).all(), (found.smallest_distance / want).max()
    assert torch.equal(model(found.x_adv).argmax(1) != y, found.success) and found.success.all()


@pytest.mark.parametrize("norm", NORMS)
def test_it_comes_nearer_than_the_attack_it_starts_from(net, digits, norm):
    x, y = digits
    threat = Threat.of(norm, LARGEST[norm])
    first = FMN(threat, steps=40)
    alone = first.run(net, x, y).smallest_distance
    search = RadiusSearch(APGD(threat, steps=20), rounds=6, first=first)
    found = search.run(net, x, y)
    order = threat.order
    there = torch.linalg.vector_norm((found.x_adv.double() - x.double()).flatten(1), order, dim=1)
    assert found.success.all() and torch.equal(net(found.x_adv).argmax(1) != y, found.success)
    torch.testing.assert_close(found.smallest_distance, there, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.distance.double(), there, rtol=1e-5, atol=1e-9)
    assert (found.smallest_distance <= alone).all()
    assert (found.smallest_distance < 0.97 * alone).double().mean() > 0.1
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    fewer = search.replace(rounds=2).run(net, x, y)
    assert (found.smallest_distance <= fewer.smallest_distance).all()
    none = search.replace(rounds=0).run(net, x, y)
    assert torch.equal(none.smallest_distance, alone)


@pytest.mark.parametrize("norm", NORMS)
def test_a_budget_attack_alone_agrees_with_itself_at_single_radii(net, digits, norm):
    """The share of samples within a radius is at least about what the attack breaks at that radius."""
    x, y = digits
    attack = pgd(Threat.of(norm, LARGEST[norm]))
    found = RadiusSearch(attack, rounds=12).run(net, x, y).smallest_distance
    for quantile in (0.2, 0.5, 0.8):
        eps = float(found.quantile(quantile))
        there = attack.replace(threat=Threat.of(norm, eps)).run(net, x, y).success
        assert (there & (found > eps * 1.02)).sum() <= 3


def test_the_largest_radius_bounds_what_is_found(net, digits):
    x, y = digits
    free = RadiusSearch(APGD(L2(8.0), steps=20), first=DDN(L2(8.0))).run(net, x, y)
    eps = float(free.smallest_distance.median())
    found = RadiusSearch(APGD(L2(eps), steps=20), first=DDN(L2(eps))).run(net, x, y)
    within = free.smallest_distance <= eps
    assert (within == found.success).double().mean() >= 0.95
    assert (found.distance <= eps * (1 + 1e-6)).all()
    assert torch.equal(found.x_adv[~found.success], x[~found.success])
    # Beyond eps the distances are those of the first attack, which does not ask for it.
    assert torch.equal(
        found.smallest_distance[~found.success], DDN(L2(eps)).run(net, x, y).smallest_distance[~found.success]
    )
    alone = RadiusSearch(APGD(L2(eps), steps=20)).run(net, x, y)
    assert (alone.smallest_distance[~alone.success] == math.inf).all()


def test_smaller_radii_are_tried_where_the_largest_shows_nothing():
    """Only a shell of small radius is adversarial, which steps in the large ball jump over."""

    def model(z):
        r = (z - 0.5).flatten(1).norm(dim=1)
        inside = (r > 0.05) & (r < 0.3)
        rise = (z - 0.5).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(r), torch.where(inside, 1.0, -1.0) + rise - rise.detach()], 1)

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3).long()
    attack = PGD(L2(1.0), steps=3, step_size=2.0, keep="best")
    assert not attack.run(model, x, y).success.any()
    found = RadiusSearch(attack, rounds=12).run(model, x, y)
    assert found.success.all() and (found.smallest_distance < 0.06).all() and (found.smallest_distance > 0.05).all()


@pytest.mark.parametrize("norm", NORMS)
def test_results_do_not_depend_on_the_batch(mlp, digits, norm):
    x = digits[0].double()
    y = mlp(x).argmax(1)
    threat = Threat.of(norm, torch.linspace(0.05, LARGEST[norm], 60, dtype=torch.float64))
    attack = RadiusSearch(APGD(threat, steps=10), rounds=4, first=FMN(threat, steps=10))
    whole = attack.run(mlp, x, y, sample_ids=torch.arange(60))
    order = torch.randperm(60)
    mixed = attack.replace(threat=threat.rows(order)).run(mlp, x[order], y[order], sample_ids=order)
    torch.testing.assert_close(mixed.smallest_distance, whole.smallest_distance[order], rtol=1e-8, atol=0)
    torch.testing.assert_close(mixed.x_adv, whole.x_adv[order], rtol=0, atol=1e-8)
    one = attack.replace(threat=threat.rows(slice(9, 10))).run(mlp, x[9:10], y[9:10], sample_ids=torch.tensor([9]))
    torch.testing.assert_close(one.smallest_distance, whole.smallest_distance[9:10], rtol=1e-8, atol=0)
    none = attack.replace(threat=threat.rows(slice(0, 0))).run(mlp, x[:0], y[:0])
    assert len(none.x_adv) == 0 and none.smallest_distance.shape == (0,)


@pytest.mark.parametrize("attack", [PGD, APGD, Auto, Square, FAB, Ensemble])
def test_any_attack_can_be_searched_with_and_every_pass_counts(net, digits, attack):
    x, y = digits
    passes = [0, 0]

    def model(z):
        passes[0] += len(z)
        if z.requires_grad:
            z.register_hook(lambda g: passes.__setitem__(1, passes[1] + len(g)))
        return net(z)

    of = {
        PGD: lambda: PGD(L2(8.0), steps=8, stop="success", schedule="cosine"),
        APGD: lambda: APGD(L2(8.0), steps=8, restarts=2),
        Auto: lambda: Auto(L2(8.0), steps=5, target_classes=2),
        Square: lambda: Square(L2(8.0), steps=60),
        FAB: lambda: FAB(L2(8.0), steps=6),
        Ensemble: lambda: Ensemble((pgd(L2(8.0), steps=5), APGD(L2(8.0), steps=5))),
    }[attack]()
    found = RadiusSearch(of, rounds=6).run(model, x, y)
    assert [found.samples_forwarded, found.samples_backwarded] == passes
    assert torch.equal(net(found.x_adv).argmax(1) != y, found.success) and found.success.all()
    assert found.smallest_distance.median() < 2.5
    wrong = net(x).argmax(1) != y
    assert (found.smallest_distance[wrong] == 0).all() and torch.equal(found.x_adv[wrong], x[wrong])


def test_targeted_searches_end_at_the_target(net, digits):
    x, y = digits
    target = (y + 1) % 10
    search = RadiusSearch(
        APGD(Linf(1.0), steps=20, targeted=True), rounds=6, first=FMN(Linf(1.0), steps=30, targeted=True)
    )
    found = search.run(net, x, target)
    assert search.targeted and torch.equal(net(found.x_adv).argmax(1) == target, found.success)
    assert found.success.double().mean() > 0.95
    for (given, _), result in search.over(net, [(x[:10], target[:10])]):
        assert given is x[:10] or torch.equal(given, x[:10])
        torch.testing.assert_close(result.smallest_distance, found.smallest_distance[:10], rtol=0.05, atol=0.01)


def test_settings_of_the_parts_are_changed_together():
    search = RadiusSearch(APGD(L2(3.0), autocast=torch.bfloat16), first=DDN(L2(3.0), autocast=torch.bfloat16))
    plain = search.replace(autocast=None, rounds=3)
    assert (plain.attack.autocast, plain.first.autocast, plain.rounds) == (None, None, 3)
    assert search.autocast == torch.bfloat16 and plain.autocast is None
    assert search.replace(threat=L2(1.0)).first.threat.eps == search.replace(threat=L2(1.0)).threat.eps == 1.0
    written = search.to_dict()
    json.dumps(written, allow_nan=False)
    assert written["attack"] == "RadiusSearch" and written["of"]["attack"] == "APGD" and written["eps"] == 3.0
    assert written != search.replace(tolerance=0.1).to_dict()
    unseeded = RadiusSearch(PGD(L2(1.0), steps=2, random_start=True))
    assert unseeded.lacks_seed and not unseeded.with_seed(3).lacks_seed and unseeded.with_seed(3).attack.seed == 3
    assert "RadiusSearch" in advfeat.__all__ and advfeat.attacks.RadiusSearch is RadiusSearch


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RadiusSearch(PGD), TypeError, "attack should be an attack"),
        (lambda: RadiusSearch(PGD(L2(1.0), steps=1), first=3), TypeError, "first should be an attack"),
        (lambda: RadiusSearch(PGD(L2(math.inf), steps=1, step_size=1.0)), ValueError, "finite eps"),
        (lambda: RadiusSearch(PGD(L2(1.0), steps=1), first=FMN(L1(1.0))), ValueError, "first should have the norm"),
        (lambda: RadiusSearch(PGD(L2(1.0), steps=1), first=DDN(L2(1.0, 0, 2))), ValueError, "the box"),
        (lambda: RadiusSearch(PGD(L2(1.0), steps=1), first=DDN(L2(1.0), targeted=True)), ValueError, "the goal"),
        (lambda: RadiusSearch(PGD(L2(1.0), steps=1), rounds=-1), ValueError, "rounds should be an integer, at least 0"),
        (lambda: RadiusSearch(PGD(L2(1.0), steps=1), tolerance=1.0), ValueError, "tolerance should be at least 0"),
        (
            lambda: RadiusSearch(PGD(L2(1.0), steps=1)).run(
                lambda z: z, torch.rand(2, 4), torch.zeros(2).long(), start=torch.rand(2, 4)
            ),
            ValueError,
            "start should be None",
        ),
        (
            lambda: RadiusSearch(PGD(L2(1.0), steps=1, objective=lambda m, z, t: z.sum(1))).run(
                lambda z: z, torch.eye(4), torch.arange(4)
            ),
            ValueError,
            "should report successes",
        ),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
