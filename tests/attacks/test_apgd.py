"""Auto-PGD and the ensemble: against the published algorithm written out, and for what they promise."""

import math

import pytest
import torch
from support.tanh_network import tanh_network
from support.tensor_source import TensorSource
from torch import nn

from advfeat import APGD, CW, DLR, L2, PGD, Auto, CrossEntropy, Linf, Margin, TargetedDLR
from advfeat.attacks.apgd import checkpoints
from advfeat.evaluation import evaluate

F64 = torch.float64


def published(net, x, y, norm, eps, steps, start, value):
    """Algorithm 1 of Croce and Hein 2020 with the details of their code, one batch, for one start."""

    def rows(v):
        return v.reshape(-1, *[1] * (x.dim() - 1))

    def length(v):
        return rows(v.flatten(1).norm(dim=1))

    def project(z):
        if norm == "linf":
            return torch.clamp(torch.min(torch.max(z, x - eps), x + eps), 0, 1)
        d = z - x
        return torch.clamp(x + d / length(d).clamp(min=1e-300) * length(d).clamp(max=eps), 0, 1)

    def look(z):
        z = z.clone().requires_grad_()
        v = value(net, z, y)
        (g,) = torch.autograd.grad(v.sum(), z)
        return v.detach(), g

    interval, shrink, least = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    z = project(start)
    f, g = look(z)
    best, best_z, best_g = f.clone(), z.clone(), g.clone()
    eta = torch.full((len(x),), 2 * eps, dtype=F64)
    old, history, since = z.clone(), [f], 0
    best_before, reduced_before = best.clone(), torch.ones(len(x), dtype=torch.bool)
    for i in range(steps):
        momentum, old = z - old, z.clone()
        a = 0.75 if i > 0 else 1.0
        direction = g.sign() if norm == "linf" else g / length(g)
        moved = project(z + rows(eta) * direction)
        z = project(z + (moved - z) * a + momentum * (1 - a))
        f, g = look(z)
        history.append(f)
        better = f > best
        best_z[better], best_g[better], best[better] = z[better], g[better], f[better]
        since += 1
        if since == interval:
            gained = sum((history[-1 - c] > history[-2 - c]).double() for c in range(interval))
            stalled = (gained <= 0.75 * interval) | (~reduced_before & (best_before >= best))
            reduced_before, best_before = stalled, best.clone()
            eta[stalled] /= 2
            z[stalled], g[stalled] = best_z[stalled], best_g[stalled]
            since, interval = 0, max(interval - shrink, least)
    return best_z, best


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("objective", [Margin(1.0), CrossEntropy(), CW(), DLR()])
@pytest.mark.parametrize("steps", [1, 10, 57, 100])
def test_agrees_with_the_published_algorithm(norm, objective, steps):
    net, x, y = tanh_network(12)
    eps = 0.6 if norm == "l2" else 0.15
    start = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=F64)).clamp(0, 1)
    threat = L2(eps) if norm == "l2" else Linf(eps)
    # Labels that no model says: nothing counts as a success before anything else, so the best value alone decides.
    plain = APGD(threat, steps=steps, objective=lambda m, v, t: objective.value(m, v, y), random_start=False)
    got = plain.run(net, x, torch.zeros(len(x), dtype=F64), start=start)
    want_x, want = published(net, x, y, norm, eps, steps, start, objective.value)
    same = torch.isclose(got.value, want, rtol=1e-9, atol=1e-11)
    same &= ((got.x_adv - want_x).abs() <= 1e-7).flatten(1).all(dim=1)
    # Close to an optimum a gain of one rounding decides whether a step is halved, and the paths part; on some
    # processors one of these samples gets there, a corner of the L-inf ball, within ten steps.
    assert same.all() if steps == 1 else same.float().mean() > (0.9 if steps < 57 else 0.7)
    torch.testing.assert_close(got.value, want, rtol=0.05, atol=0.01)
    assert got.success is None and got.samples_backwarded == steps * len(x)


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1] and checkpoints(0) == []


@pytest.mark.parametrize("threat", [L2(0.3), Linf(0.08), L2(torch.linspace(0, 0.5, 12, dtype=F64))])
def test_stays_in_the_ball_and_reports_what_it_returns(threat):
    net, x, y = tanh_network(12)
    result = APGD(threat, steps=20, restarts=2).run(net, x, y)
    eps = torch.as_tensor(threat.eps, dtype=F64).expand(len(x))
    d = (result.x_adv - x).flatten(1)
    distance = d.norm(dim=1) if threat.norm == "l2" else d.abs().amax(1)
    assert (distance <= eps + 1e-12).all() and ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    torch.testing.assert_close(result.distance, distance)
    torch.testing.assert_close(result.value, Margin().value(net, result.x_adv, y).detach())
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    assert ((result.first_success >= 0) == result.success).all()


def test_finds_what_pgd_of_as_many_steps_finds_and_the_objective_is_no_smaller():
    net, x, y = tanh_network(60)
    for threat in (L2(0.35), Linf(0.08)):
        pgd = PGD(threat, steps=50, keep="best").run(net, x, y)
        apgd = APGD(threat, steps=50, random_start=False).run(net, x, y)
        assert (apgd.success | ~pgd.success).float().mean() >= 0.98
        missed = ~apgd.success & ~pgd.success  # where neither got through, values compare
        assert (apgd.value - pgd.value)[missed].mean() >= -0.005


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_the_scale_of_the_logits_changes_nothing(scale):
    net, x, y = tanh_network(40)
    loud, _, _ = tanh_network(40, scale=scale)
    attack = Auto(L2(0.25), steps=20)
    assert torch.equal(attack.run(net, x, y).success, attack.run(loud, x, y).success)


def test_targeted_goes_to_the_target():
    net, x, y = tanh_network(12)
    target = (y + 1) % 5
    result = APGD(L2(2.0), steps=40, targeted=True).run(net, x, target)
    assert torch.equal(result.success, net(result.x_adv).argmax(1) == target) and result.success.float().mean() > 0.8
    torch.testing.assert_close(result.value, Margin().value(net, result.x_adv, target).detach())


def test_a_sample_does_not_know_its_batch():
    net, x, y = tanh_network(12)
    ids = torch.arange(12) * 3
    for attack in (APGD(L2(0.3), steps=15, restarts=3), Auto(Linf(0.08), steps=10)):
        whole = attack.run(net, x, y, sample_ids=ids)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        for part in (order[:5], order[5:6], order[6:]):
            alone = attack.run(net, x[part], y[part], sample_ids=ids[part])
            torch.testing.assert_close(alone.x_adv, whole.x_adv[part], rtol=0, atol=1e-9)
            assert torch.equal(alone.success, whole.success[part])


def test_restarts_attack_only_what_stands():
    net, x, y = tanh_network(12)
    one = APGD(L2(0.3), steps=15).run(net, x, y)
    three = APGD(L2(0.3), steps=15, restarts=3).run(net, x, y)
    assert 0 < one.success.sum() < len(x)
    assert (three.success | ~one.success).all()
    assert three.samples_backwarded <= 15 * (len(x) + 2 * int((~one.success).sum()))
    assert torch.equal(three.x_adv[one.success], one.x_adv[one.success])


def test_auto_is_apgd_and_then_every_target():
    net, x, y = tanh_network(40)
    threat = L2(0.25)
    first = APGD(threat, steps=20).run(net, x, y)
    auto = Auto(threat, steps=20).run(net, x, y)
    assert (auto.success | ~first.success).all()
    assert torch.equal(auto.success, net(auto.x_adv).argmax(1) != y)
    left = ~first.success
    expected = first.success.clone()
    others = net(x).scatter(1, y[:, None], -math.inf).argsort(dim=1, descending=True)[:, :4]
    for rank in range(4):
        rows = (left & ~expected).nonzero()[:, 0]
        pairs = torch.stack([y[rows], others[rows, rank]], dim=1)
        run = APGD(threat, steps=20, objective=TargetedDLR(), seed=1 + rank).run(net, x[rows], pairs, sample_ids=rows)
        expected[rows] |= run.success
    assert torch.equal(auto.success, expected)


def test_targeted_dlr_is_equation_7():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(9, 6, generator=g, dtype=F64)
    y, t = torch.arange(9) % 6, (torch.arange(9) + 2) % 6
    value = TargetedDLR().value(lambda x: x, z, torch.stack([y, t], 1))
    for i in range(9):
        pi = z[i].sort(descending=True).values
        assert value[i] == pytest.approx(float(-(z[i, y[i]] - z[i, t[i]]) / (pi[0] - (pi[2] + pi[3]) / 2)))
    with pytest.raises(ValueError, match=r"pairs \(y, t\)"):
        TargetedDLR().value(lambda x: x, z, y)
    with pytest.raises(ValueError, match="4 classes"):
        TargetedDLR().value(lambda x: x, z[:, :3], torch.stack([y, t], 1))


def test_two_classes_leave_the_margin_alone():
    net, x, y = tanh_network(12, classes=2)
    assert torch.equal(Auto(L2(0.3), steps=10)(net, x, y), APGD(L2(0.3), steps=10)(net, x, y))


def test_auto_leaves_what_is_wrong_already():
    """AutoAttack takes them out first; around them the model may be right everywhere."""

    def model(x):  # right but at the centre of the box
        right = (x - 0.5).abs().amax(1) > 1e-3
        steep = (x - 0.2).square().sum(1)
        return torch.stack([right * (1 + steep), 0.5 + 0 * steep, 0.1 * steep, 0 * steep], dim=1)

    x, y = torch.tensor([[0.5, 0.5], [0.3, 0.9], [0.9, 0.2]]), torch.zeros(3, dtype=torch.int64)
    forwarded = []
    attack = Auto(Linf(0.05), steps=10)
    result = attack.run(lambda v: forwarded.append(len(v)) or model(v), x, y)
    assert result.success.tolist() == [True, False, False] and result.first_success.tolist() == [0, -1, -1]
    assert torch.equal(result.x_adv[0], x[0]) and result.distance[0] == 0
    assert torch.equal(result.value[:1], Margin().value(model, x[:1], y[:1]))
    assert result.samples_forwarded == 3 + 2 * 11 * (1 + 3) + 2 == sum(forwarded)  # the last: the classes at x
    others = attack.run(model, x[1:], y[1:], sample_ids=torch.tensor([1, 2]))
    assert torch.equal(result.x_adv[1:], others.x_adv) and torch.equal(result.value[1:], others.value)


def test_leaves_no_trace():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)).train()
    net[1].eval()
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 4
    before, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            Auto(L2(0.5), steps=4).run(net, x, y)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and not net[1].training and torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", [APGD, Auto])
def test_empty_batches_and_no_steps(kind):
    net, x, y = tanh_network(12)
    assert kind(L2(0.3), steps=5)(net, x[:0], y[:0]).shape == (0, 3, 4)
    still = kind(L2(0.3), steps=0).run(net, x, y)
    assert (still.distance <= 0.3 + 1e-12).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(0.5), "threat should be"),
        (lambda: APGD(L2(math.inf)), "finite eps"),
        (lambda: APGD(L2(math.inf), random_start=False), "eps should be finite.*got inf"),
        (lambda: APGD(L2(1.0), steps=-1), "steps should be"),
        (lambda: APGD(L2(1.0), restarts=2, random_start=False), "needs random_start"),
        (lambda: Auto(L2(1.0), target_classes=-1), "target_classes should be"),
        (lambda: Auto(L2(1.0)).run(*tanh_network(12), start=tanh_network(12)[1]), "start should be None"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_evaluation_takes_it():
    net, x, y = tanh_network(40)
    source = TensorSource(x.float(), y, tuple("abcde"))

    net = net.float()
    strong = evaluate(net, source, attacks=[("auto", Auto(L2(0.25), steps=20)), ("pgd", PGD(L2(0.25), steps=20))])
    assert strong.robustness[0].accuracy.value <= strong.robustness[1].accuracy.value
    assert strong.robustness[0].attack["attack"] == "Auto"
