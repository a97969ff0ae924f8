"""Step for step beside other libraries, where they are installed (the extra ``compare``).

Without random starts and on samples that are not saturated all of them compute the same iterates; see test_compat.py
for torchattacks and MadryLab/robustness through their own names.
"""

import importlib

import pytest
import torch
from torch import nn

from advfeat import L2, PGD, CrossEntropy, Linf, Margin, ops

pytestmark = pytest.mark.compare


def peer(name):
    return pytest.importorskip(name, reason=f"{name} is not installed; pip install 'advfeat[compare]'")


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.Softplus(), nn.Linear(32, 10)).eval()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.1
    return net, torch.rand(16, 3, 8, 8, generator=g), torch.randint(10, (16,), generator=g)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize(("threat", "size"), [(L2(0.5), 0.1), (Linf(8 / 255), 2 / 255)])
def test_foolbox(case, threat, size, steps):
    foolbox = peer("foolbox")
    net, x, y = case
    attacks = importlib.import_module("foolbox.attacks")
    kind = (
        attacks.L2ProjectedGradientDescentAttack if threat.norm == "l2" else attacks.LinfProjectedGradientDescentAttack
    )
    theirs = kind(abs_stepsize=size, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    raw, clipped, success = theirs(model, x, y, epsilons=threat.eps)
    for objective in (Margin(1.0), CrossEntropy()):
        result = PGD(threat, steps=steps, step_size=size, objective=objective).run(net, x, y)
        torch.testing.assert_close(result.x_adv, raw, rtol=0, atol=2e-6 if threat.norm == "l2" else 1e-6)
        assert torch.equal(result.success, success)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize(("threat", "size"), [(L2(0.5), 0.1), (Linf(8 / 255), 2 / 255)])
def test_torchattacks(case, threat, size, steps):
    torchattacks = peer("torchattacks")
    net, x, y = case
    kind = torchattacks.PGDL2 if threat.norm == "l2" else torchattacks.PGD
    theirs = kind(net, eps=threat.eps, alpha=size, steps=steps, random_start=False)(x, y)
    ours = PGD(threat, steps=steps, step_size=size, objective=Margin(1.0))(net, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 if threat.norm == "l2" else 1e-6)


@pytest.mark.parametrize(
    ("name", "step", "project"), [("L2Step", "l2_step", "project_l2"), ("LinfStep", "linf_step", "project_linf")]
)
def test_robustness_steps(case, name, step, project):
    peer("robustness")
    net, x0, _ = case
    theirs = getattr(importlib.import_module("robustness.attack_steps"), name)(x0, 0.5, 0.1)
    g = torch.Generator().manual_seed(1)
    x = (x0 + 0.2 * torch.randn(x0.shape, generator=g)).clamp(0, 1)
    grad = torch.randn(x0.shape, generator=g)
    torch.testing.assert_close(getattr(ops, project)(x, x0, 0.5), theirs.project(x), rtol=0, atol=1e-6)
    ours = getattr(ops, step)(x, grad, x0, 0.1, 0.5)
    torch.testing.assert_close(ours, theirs.project(theirs.step(x, grad)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("threat", "size"), [(L2(0.5), 0.1), (Linf(8 / 255), 2 / 255)])
def test_targeted(case, threat, size):
    torchattacks, foolbox = peer("torchattacks"), peer("foolbox")
    net, x, y = case
    target = (y + 3) % 10
    ours = PGD(threat, steps=5, step_size=size, objective=Margin(1.0), targeted=True)(net, x, target)
    atol = 2e-6 if threat.norm == "l2" else 1e-6
    attack = (torchattacks.PGDL2 if threat.norm == "l2" else torchattacks.PGD)(
        net, eps=threat.eps, alpha=size, steps=5, random_start=False
    )
    attack.set_mode_targeted_by_label(quiet=True)
    torch.testing.assert_close(ours, attack(x, target), rtol=0, atol=atol)
    attacks = importlib.import_module("foolbox.attacks")
    kind = attacks.L2PGD if threat.norm == "l2" else attacks.LinfPGD
    theirs = kind(abs_stepsize=size, steps=5, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    raw, _, _ = theirs(model, x, foolbox.criteria.TargetedMisclassification(target), epsilons=threat.eps)
    torch.testing.assert_close(ours, raw, rtol=0, atol=atol)


def test_where_an_additive_floor_stops_others(case):
    """Where the agreement ends, and should: logits times 500, cross-entropy's gradient falls below the 1e-10 that
    torchattacks adds to its norm, and its samples stay. Ours are broken as at scale 1."""
    torchattacks = peer("torchattacks")
    net, x, _ = case
    y = net(x).argmax(1)
    loud = nn.Sequential(net, Times(500.0))
    theirs = torchattacks.PGDL2(loud, eps=2.0, alpha=0.4, steps=10, random_start=False)(x, y)
    ours = PGD(L2(2.0), steps=10, step_size=0.4, objective=Margin(1.0))(loud, x, y)
    moved = (theirs - x).flatten(1).norm(dim=1)
    assert (moved < 0.1).float().mean() > 0.5
    assert ((ours - x).flatten(1).norm(dim=1) > 1.0).all()
    assert (net(ours).argmax(1) != y).sum() > (net(theirs).argmax(1) != y).sum()


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor
