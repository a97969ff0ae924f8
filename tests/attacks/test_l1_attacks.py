"""Attacks in the L1 ball: PGD's sparse steps, and Auto-PGD with a share of values that adapts."""

import dataclasses

import pytest
import torch
from support.digits_network import digits_network
from torch import nn

import advfeat
from advfeat import APGD, L1, PGD, Auto, ops
from advfeat.attacks import apgd
from advfeat.datasets import load


@pytest.fixture(scope="module")
def digits():
    test = load("digits", "test")
    return test.images()[:120].contiguous(), test.labels[:120]


@pytest.fixture(scope="module", params=["standard", "adversarial"])
def net(request):
    return digits_network(request.param == "adversarial")


ATTACKS = [
    PGD(L1(2.0), steps=30),
    PGD(L1(2.0, share=0.2), steps=20, schedule="cosine", momentum=0.5, random_start=True, seed=1),
    PGD(L1(torch.linspace(0, 3, 120)), steps=10, stop="success"),
    APGD(L1(2.0), steps=40),
    APGD(L1(2.0), steps=40, large_radii=True, restarts=2),
    APGD(L1(torch.linspace(0, 3, 120)), steps=30, random_start=False),
    Auto(L1(2.0), steps=20),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)
def test_examples_lie_in_ball_and_box_and_count(net, digits, attack):
    x, y = digits
    result = attack.run(net, x, y)
    assert (result.distance <= torch.as_tensor(attack.threat.eps) * (1 + 1e-5) + 1e-6).all()
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    assert attack.to_dict()["norm"] == "l1" and attack.to_dict()["share"] == attack.threat.share


def test_a_linear_model_is_attacked_where_its_weights_are_largest():
    """The best point of the ball moves the values with the largest weights to the edge of the box, one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    x, y = torch.rand(20, 1, 4, 4, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    order = w.abs().argsort(descending=True)
    best = x.flatten(1).clone()
    left = torch.full((20,), 1.5, dtype=torch.float64)
    for i in order.tolist():
        room = torch.minimum(1 - best[:, i] if w[i] > 0 else best[:, i], left)
        best[:, i] += w[i].sign() * room
        left -= room
    want = (best @ w).mean()
    for attack in (APGD(L1(1.5), steps=100), APGD(L1(1.5), steps=100, large_radii=True)):
        got = (attack(model, x, y).flatten(1) @ w).mean()
        assert got <= want + 1e-9 and want - got < 0.02 * (want - (x.flatten(1) @ w).mean()), attack


def test_the_schedule_is_the_papers(net, digits, monkeypatch):
    x, y = (t[:20] for t in digits)
    steps, step = [], ops.l1_step_

    def recorded(moving, grad, x0, size, eps, lo, hi, *, share, **more):
        steps.append((size.clone(), share.clone(), eps))
        return step(moving, grad, x0, size, eps, lo, hi, share=share, **more)

    monkeypatch.setattr(ops, "l1_step_", recorded)
    APGD(L1(2.0), steps=50).run(net, x, y)
    assert len(steps) == 50
    assert all((size == 2).all() and torch.allclose(share, torch.tensor(0.2).double()) for size, share, _ in steps[:2])
    for size, share, _ in steps[2:]:
        assert (size <= 2).all() and (size >= 0.2 - 1e-12).all()
        assert (share >= 1 / 64 - 1e-12).all() and (share <= 1 / 1.5 + 1e-12).all()
    constant = [i for i in range(1, 50) if torch.equal(steps[i][1], steps[i - 1][1])]
    assert set(range(1, 50)) - set(constant) <= {i for i in range(2, 50, 2)}  # every 4 % of the steps
    steps.clear()
    APGD(L1(2.0), steps=50, large_radii=True).run(net, x, y)
    assert [eps for _, _, eps in steps] == [6.0] * 15 + [4.0] * 15 + [2.0] * 20


def test_passes_are_counted_and_results_do_not_depend_on_the_batch(net, digits):
    x, y = digits
    ids, seen = torch.arange(len(x)), [0]

    def model(z):
        seen[0] += len(z)
        return net(z)

    for attack in (APGD(L1(1.0), steps=20), APGD(L1(1.0), steps=20, large_radii=True), PGD(L1(1.0), steps=20)):
        seen[0] = 0
        whole = attack.run(model, x, y, sample_ids=ids)
        assert seen[0] == whole.samples_forwarded
        parts = [
            attack.run(net, a, b, sample_ids=i).x_adv
            for a, b, i in zip(*(t.split(50) for t in (x, y, ids)), strict=True)
        ]
        close = (torch.cat(parts) - whole.x_adv).flatten(1).abs().amax(1) < 1e-4
        assert close.double().mean() > 0.9  # the model's rounding depends on the batch, and a tie may go the other way


def test_normalised_inputs_are_attacked_as_images_are(net, digits):
    x, y = (t[:40] for t in digits)
    mean, std = 0.3, 0.4
    normalised = nn.Sequential(_Undo(mean, std), net)
    for attack in (PGD(L1(2.0), steps=10), APGD(L1(2.0), steps=10, random_start=False)):
        images = attack.run(net, x, y)
        inputs = dataclasses.replace(attack, threat=L1.normalised(2.0, mean, std)).run(normalised, (x - mean) / std, y)
        assert inputs.distance.max() <= 2 * (1 + 1e-5)
        assert (inputs.success == images.success).double().mean() > 0.9


class _Undo(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        return x * self.std + self.mean


@pytest.mark.parametrize("large_radii", [False, True])
@pytest.mark.compare
def test_auto_pgd_leaves_no_more_than_auto_attack(net, digits, large_radii):
    """Over three seeds. It leaves fewer, for it starts anywhere in the ball, and theirs at a projected normal."""
    base = pytest.importorskip("pyautoattack.autopgd_base")
    x, y = digits
    theirs, ours = [], []
    for seed in range(3):
        settings = {
            "n_iter": 50,
            "norm": "L1",
            "eps": 2.0,
            "n_restarts": 1,
            "seed": seed,
            "loss": "ce",
            "device": "cpu",
        }
        attack = base.APGDAttack(net, use_largereps=large_radii, **settings)
        theirs.append(int((net(attack.perturb(x, y)).argmax(1) == y).sum()))
        attack = APGD(L1(2.0), steps=50, objective=advfeat.CrossEntropy(), seed=seed, large_radii=large_radii)
        ours.append(int((~attack.run(net, x, y).success).sum()))
    assert sum(ours) <= sum(theirs) + max(3, max(theirs) - min(theirs)), (ours, theirs)
    assert sum(ours) >= 0.5 * sum(theirs) - 6, (ours, theirs)


def test_mistakes():
    with pytest.raises(ValueError, match="large_radii should be False for L2, it is for L1 alone"):
        APGD(advfeat.L2(1.0), large_radii=True)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share should be above 0 and at most 1"):
            L1(1.0, share=share)
    assert apgd.checkpoints(100)[-1] == 99
