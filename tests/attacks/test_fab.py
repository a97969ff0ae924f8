"""FAB: smallest perturbations where they are known, its counts, and AutoAttack's own code beside it."""

import math

import pytest
import torch
from support.digits_network import digits_network
from torch import nn

import advfeat
from advfeat import FAB, L1, L2, Ensemble, Linf, Threat
from advfeat.datasets import load

NORMS = ["linf", "l2", "l1"]
RADII = {"linf": 0.12, "l2": 0.75, "l1": 2.0}


@pytest.fixture(scope="module")
def digits():
    test = load("digits", "test")
    return test.images()[:80].contiguous(), test.labels[:80]


@pytest.fixture(scope="module", params=["standard", "adversarial"])
def net(request):
    return digits_network(request.param == "adversarial")


@pytest.mark.parametrize("targets", [None, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_models_smallest_perturbation_is_found(norm, targets):
    """(z_y - z_c) over the dual norm of the gradient, for the nearest class; the images are far from the box."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x = 0.45 + 0.1 * torch.rand(50, 3, 2, 2, dtype=torch.float64)
    threat = Threat.of(norm, math.inf)
    logits, w = model(x), model[1].weight.detach()
    y = logits.argmax(1)
    distances = []
    for c in range(4):
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, c]
        distances.append(
            torch.where(y == c, math.inf, gap / torch.linalg.vector_norm(w[y] - w[c], threat.dual_order, dim=1))
        )
    want = torch.stack(distances).amin(0).detach()
    found = FAB(threat, targets=targets, minimise=True, steps=40).run(model, x, y)
    assert found.success.all() and torch.equal(model(found.x_adv).argmax(1) != y, found.success)
    assert (found.distance >= want * (1 - 1e-9)).all()
    assert (found.distance <= want * 1.02).all(), (found.distance / want).max()


@pytest.mark.parametrize("targets", [None, 9])
@pytest.mark.parametrize("norm", NORMS)
def test_examples_lie_in_ball_and_box_and_every_pass_counts(net, digits, norm, targets):
    x, y = (t[:40] for t in digits)
    passes = [0, 0]
    net.zero_grad(set_to_none=True)

    def model(z):
        passes[0] += len(z)
        if z.requires_grad:
            z.register_hook(lambda g: passes.__setitem__(1, passes[1] + len(g)))
        return net(z)

    attack = FAB(Threat.of(norm, RADII[norm]), steps=20, targets=targets, restarts=2)
    result = attack.run(model, x, y)
    assert [result.samples_forwarded, result.samples_backwarded] == passes
    assert result.distance.max() <= RADII[norm] * (1 + 1e-5)
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    clean = net(x).argmax(1) == y
    assert torch.equal(result.x_adv[~result.success | ~clean], x[~result.success | ~clean])
    assert (result.first_success[~clean] == 0).all() and (result.first_success[~result.success] == -1).all()
    assert all(p.grad is None for p in net.parameters())


def test_a_step_takes_one_backward_pass(net, digits):
    """And a second forward pass once a walk has crossed the boundary; a third pair where it crosses first."""
    x, y = (t[:40] for t in digits)
    x, y = x[net(x).argmax(1) == y], y[net(x).argmax(1) == y]
    result = FAB(Linf(math.inf), steps=20, targets=3, minimise=True).run(net, x, y)
    walks = 3 * len(x)
    assert result.samples_backwarded <= walks * (20 + 1)
    assert result.samples_forwarded <= len(x) + walks * (2 * 20 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_minimising_finds_nearer_examples_and_within_eps_those_of_the_question(net, digits, norm):
    x, y = digits
    threat, free = Threat.of(norm, RADII[norm]), Threat.of(norm, math.inf)
    asked = FAB(threat, steps=30, targets=9).run(net, x, y)
    smallest = FAB(free, steps=30, targets=9, minimise=True).run(net, x, y)
    assert smallest.success.all()
    assert torch.equal(smallest.distance <= RADII[norm], asked.success)
    both = asked.success & (asked.distance > 0)
    assert (smallest.distance[both] <= asked.distance[both] + 1e-6).all()
    assert smallest.samples_forwarded > asked.samples_forwarded  # which leave once they are within eps


@pytest.mark.parametrize("targets", [None, 2])
def test_results_do_not_depend_on_the_batch(digits, targets):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5)).double()
    x = digits[0].double()
    y = net(x).argmax(1)
    attack = FAB(L2(torch.linspace(0, 1, 80)), steps=15, targets=targets, restarts=2)
    whole = attack.run(net, x, y, sample_ids=torch.arange(80))
    order = torch.randperm(80)
    mixed = attack.replace(threat=attack.threat.rows(order)).run(net, x[order], y[order], sample_ids=order)
    torch.testing.assert_close(mixed.x_adv, whole.x_adv[order], rtol=0, atol=1e-9)
    last = attack.run(net, x.contiguous(memory_format=torch.channels_last), y)
    torch.testing.assert_close(last.x_adv, whole.x_adv, rtol=0, atol=1e-9)


def test_other_models_and_boxes(net, digits):
    x, y = (t[:20] for t in digits)
    assert len(FAB(L2(1.0)).run(net, x[:0], y[:0]).x_adv) == 0
    one_logit = FAB(L2(2.0), steps=10).run(lambda z: z.flatten(1).mean(1) - 0.3, x, torch.zeros(20).long())
    assert one_logit.success.any()
    two = FAB(Linf(0.5), steps=10, targets=9).run(lambda z: net(z)[:, :2], x, net(x)[:, :2].argmax(1))
    assert two.success.any()
    flat = FAB(L1(5.0), steps=5).run(lambda z: net(z) * 0 + torch.tensor([1.0] + 9 * [0.0]), x, torch.zeros(20).long())
    assert not flat.success.any() and (flat.zero_grad_steps > 0).all()
    inputs = (x - 0.3) / 0.4
    for norm in NORMS:
        images = FAB(Threat.of(norm, RADII[norm]), steps=10).run(net, x, y)
        threat = type(Threat.of(norm, 1.0)).normalised(RADII[norm], 0.3, 0.4)
        normalised = FAB(threat, steps=10).run(lambda z: net(z * 0.4 + 0.3), inputs, y)
        assert (normalised.success == images.success).double().mean() >= 0.9
        assert normalised.distance.max() <= RADII[norm] * (1 + 1e-5)
    after = Ensemble((advfeat.PGD(L2(0.5), steps=5), FAB(L2(0.5), steps=10))).run(net, x, y)
    assert after.success.sum() >= advfeat.PGD(L2(0.5), steps=5).run(net, x, y).success.sum()


@pytest.mark.compare
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_it_breaks_what_auto_attacks_breaks(net, digits, norm, targeted):
    reference = pytest.importorskip("pyautoattack.fab_pt")
    x, y = digits
    settings = {"norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm], "eps": RADII[norm], "targeted": targeted}
    attack = reference.FABAttack_PT(net, n_restarts=1, n_iter=30, n_target_classes=9, device="cpu", **settings)
    theirs = net(attack.perturb(x, y)).argmax(1) != y
    ours = FAB(Threat.of(norm, RADII[norm]), steps=30, targets=9 if targeted else None).run(net, x, y).success
    assert (ours != theirs).sum() <= 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FAB(L2(1.0), alpha_max=1.5), r"alpha_max should be in \[0, 1\], got 1.5"),
        (lambda: FAB(L2(1.0), eta=0.5), r"eta should be in \[1, inf\], got 0.5"),
        (lambda: FAB(L2(1.0), targets=0), "targets should be an integer, at least 1"),
        (lambda: FAB(L2(math.inf), restarts=2), "random_start needs a finite eps"),
        (
            lambda: FAB(L2(1.0)).run(lambda z: torch.ones(len(z), 3), torch.rand(2, 4), torch.zeros(2).long()),
            "differentiable",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
