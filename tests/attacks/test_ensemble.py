"""Attacks in turn: what one leaves standing goes to the next, sample by sample as if each were attacked alone."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tanh_network import tanh_network
from support.tensor_source import TensorSource
from torch import nn

from advfeat import APGD, CW, L2, PGD, Auto, CrossEntropy, Ensemble, Linf, Margin, Representation
from advfeat.evaluation import evaluate

F64 = torch.float64
KINDS = {
    "shrinking": {"keep": "best", "stop": "success"},
    "best": {"keep": "best"},
    "last": {},
    "restarts": {"keep": "best", "stop": "success", "random_start": True, "restarts": 2},
}


def pair(threat, kind="shrinking", **changes):
    """A weak attack, and one that finds more."""
    short = 0.1 if threat.norm == "l2" else 0.02
    return Ensemble(
        (
            PGD(threat, steps=1, step_size=short, objective=CrossEntropy(), **KINDS[kind], **changes),
            PGD(threat, steps=20, objective=CW(), **KINDS[kind], **changes),
        )
    )


def test_one_loss_finds_what_another_misses_which_is_why_this_exists():
    net, x, y = tanh_network(400, wrong=3)
    smooth, nearest = (
        PGD(L2(0.3), steps=20, keep="best", objective=objective).run(net, x, y).success
        for objective in (Margin(1.0), CW())
    )
    assert (nearest & ~smooth).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threat", [L2(0.3), Linf(0.06), L2(torch.linspace(0, 0.6, 40, dtype=F64))])
def test_a_sample_has_the_first_attack_that_breaks_it(kind, threat):
    net, x, y = tanh_network(40, wrong=3)
    ids = torch.arange(40) * 7
    both = pair(threat, kind)
    found = both.run(net, x, y, sample_ids=ids)
    one, two = (attack.run(net, x, y, sample_ids=ids) for attack in both.attacks)
    took = ~one.success & two.success
    assert took.any() and one.success.any()
    assert torch.equal(found.success, one.success | two.success)
    for name in ("x_adv", "value", "distance", "first_success"):
        a, b, c = (getattr(r, name) for r in (found, one, two))
        rows = took.reshape(-1, *[1] * (a.dim() - 1))
        torch.testing.assert_close(a, torch.where(rows, c, b), rtol=0, atol=1e-9)
    assert torch.equal(found.success, net(found.x_adv).argmax(1) != y)
    assert torch.equal(both(net, x, y, sample_ids=ids), found.x_adv)


@pytest.mark.slow
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.sampled_from(["shrinking", "best", "restarts"]))
def test_over_a_data_set_it_is_the_same_whatever_the_batches(sizes, kind):
    net, x, y = tanh_network(sum(sizes), wrong=3)
    attack = pair(L2(0.3), kind).replace(seed=0)
    whole = attack.run(net, x, y)
    results = [r for _, r in attack.over(net, zip(x.split(sizes), y.split(sizes), strict=True))]
    assert [len(r.x_adv) for r in results] == sizes
    for name in ("x_adv", "value", "success", "distance", "first_success", "zero_grad_steps"):
        joined = torch.cat([getattr(r, name) for r in results])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-9)
    assert sum(r.samples_backwarded for r in results) == whole.samples_backwarded


def test_the_next_attack_sees_only_what_is_left():
    net, x, y = tanh_network(40, wrong=3)
    seen = []

    class Watched(PGD):
        def _run(self, run):
            seen.append(len(run))
            return super()._run(run)

    threat = L2(0.3)
    first = PGD(threat, steps=10, keep="best")
    left = int((~first.run(net, x, y).success).sum())
    second = Watched(threat, steps=10, keep="best", objective=CW())
    found = Ensemble((first, second)).run(net, x, y)
    assert seen == [left] and 0 < left < 40
    assert found.samples_backwarded == 40 * 10 + left * 10

    seen.clear()
    batches = [(x[i : i + 5], y[i : i + 5]) for i in range(0, 40, 5)]
    list(Ensemble((first, second)).over(net, batches))
    assert sum(seen) == left and all(n >= 5 for n in seen[:-1]), "what is left of several batches should go together"


def test_results_come_in_time_and_little_is_held():
    """Where the first attack breaks nearly all, the rest does not wait for the end of the data."""
    net, x, y = tanh_network(400, wrong=3)
    pulled = []

    def batches():
        for i in range(0, 400, 4):
            pulled.append(i)
            yield x[i : i + 4], y[i : i + 4]

    for eps, most in ((5.0, 4), (0.45, 16)):
        pulled.clear()
        attack = pair(L2(eps), "best")
        results = attack.over(net, batches())
        for n, _ in enumerate(results):
            assert len(pulled) <= n + most
        assert len(pulled) == 100 == n + 1


def test_images_of_several_sizes():
    g = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)).to(F64)
    batches = [(torch.rand(5, 3, n, n, generator=g, dtype=F64), torch.arange(5) % 4) for n in (8, 8, 10, 12, 12, 8)]
    attack = pair(L2(0.3), "best")
    for (x, y), r in attack.over(net, batches):
        torch.testing.assert_close(r.x_adv, attack(net, x, y), rtol=0, atol=1e-9)


def test_a_start_that_one_of_them_cannot_take_is_refused_whatever_the_data():
    net, x, y = tanh_network(40, wrong=3)
    for eps in (0.05, 5.0):
        attack = Ensemble((PGD(L2(eps), steps=5, keep="best"), Ensemble((Auto(L2(eps), steps=5),))))
        with pytest.raises(ValueError, match="start should be None"):
            attack.run(net, x, y, start=x)


def test_why_a_step_was_eager_is_not_lost():
    net, x, y = tanh_network(40, wrong=3)
    first, more = (attack.run(net, x, y) for attack in pair(L2(0.01)).attacks)
    first.why_eager, more.why_eager = None, "the model cannot be captured"
    first.take_over(torch.arange(40), more)
    assert first.why_eager == "the model cannot be captured"


def test_nobody_left_and_nobody_there():
    net, x, y = tanh_network(40, wrong=3)
    attack = pair(L2(5.0))
    assert attack.run(net, x, y).success.all()
    assert attack(net, x[:0], y[:0]).shape == (0, 3, 4)
    assert list(attack.over(net, [])) == []


def test_a_loader_may_fill_the_same_tensor_again():
    net, x, y = tanh_network(40, wrong=3)
    attack = pair(L2(0.3))
    buffer, labels = torch.empty(8, 3, 4, dtype=F64), torch.empty(8, dtype=torch.int64)

    def reused():
        for i in range(0, 40, 8):
            yield buffer.copy_(x[i : i + 8]), labels.copy_(y[i : i + 8])

    found = torch.cat([r.x_adv for _, r in attack.over(net, reused())])
    torch.testing.assert_close(found, attack(net, x, y), rtol=0, atol=1e-9)


def test_targeted_attacks_and_a_start():
    net, x, y = tanh_network(40, wrong=3)
    target = (y + 1) % 5
    found = pair(L2(1.0), targeted=True).run(net, x, target)
    assert torch.equal(found.success, net(found.x_adv).argmax(1) == target)
    start = x + 0.05
    both = pair(L2(0.3))
    one, two = (attack.run(net, x, y, start=start).success for attack in both.attacks)
    assert torch.equal(both.run(net, x, y, start=start).success, one | two)


def test_it_holds_any_attack_and_itself():
    net, x, y = tanh_network(40, wrong=3)
    threat = L2(0.25)
    parts = (PGD(threat, steps=2, keep="best"), APGD(threat, steps=10), Auto(threat, steps=10))
    expected = torch.stack([a.run(net, x, y).success for a in parts]).any(0)
    assert torch.equal(Ensemble(parts).run(net, x, y).success, expected)
    nested = Ensemble((parts[0], Ensemble(parts[1:])))
    assert torch.equal(nested.run(net, x, y).success, expected)
    assert json.dumps(nested.to_dict()).count("Ensemble") == 2


def test_settings_are_changed_in_each():
    both = pair(L2(0.3), autocast=torch.bfloat16)
    assert both.autocast == torch.bfloat16 and not both.targeted
    plain = both.replace(autocast=None)
    assert plain.autocast is None and all(a.autocast is None for a in plain.attacks)
    assert plain.replace(threat=L2(0.5)).threat.eps == 0.5
    assert len(both.replace(attacks=both.attacks[:1]).attacks) == 1


def test_evaluation_takes_it_and_is_right_under_low_precision():
    net, x, y = tanh_network(120, wrong=3)
    source = TensorSource(x.float(), y, tuple("abcde"))

    both = pair(L2(0.3))
    attacks = [("both", both), ("one", both.attacks[0]), ("two", both.attacks[1])]
    found = evaluate(net.float(), source, attacks=attacks, batch_size=16)
    assert torch.equal(found.robust["both"], found.robust["one"] & found.robust["two"])
    assert found.robustness[0].accuracy.value < found.robustness[1].accuracy.value
    low = evaluate(net, source, attacks=[both.replace(autocast=torch.bfloat16)], batch_size=16)
    assert abs(low.robustness[0].accuracy.value - found.robustness[0].accuracy.value) < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble(()), "attacks should hold at least one attack"),
        (lambda: Ensemble((0.5,)), "attacks should be attacks, .* got float"),
        (lambda: Ensemble((PGD(L2(1.0), steps=1), PGD(L2(2.0), steps=1))), "the same threat"),
        (lambda: Ensemble((PGD(L2(1.0), steps=1), PGD(L2(1.0), steps=1, targeted=True))), "the same targeted"),
        (lambda: Ensemble((PGD(L2(1.0), steps=1, step_size=torch.ones(4)),)), "one step_size"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_an_objective_that_tells_no_success_is_refused():
    class Body(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3]

        representation = forward

    threat = L2(0.5)
    attack = Ensemble((PGD(threat, steps=1, objective=Representation()), PGD(threat, steps=1, objective=Margin())))
    with pytest.raises(ValueError, match="should report successes"):
        attack.run(Body(), torch.rand(4, 3, 4), torch.rand(4, 3))


def test_random_starts_are_new_at_every_call_without_ids():
    """As those of PGD: numbering the samples for the later attacks made them the same each time."""
    x, y = torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64)

    def model(z):
        return z.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.0])

    attack = PGD(Linf(0.1), steps=0, random_start=True)
    both = Ensemble((attack, attack.replace(objective=CW())))
    ids = torch.arange(6)
    for call in (lambda: both(model, x, y), lambda: next(both.over(model, [(x, y)]))[1].x_adv):
        assert not torch.equal(call(), call())
        torch.manual_seed(3)
        first = call()
        torch.manual_seed(3)
        assert torch.equal(call(), first)
    keyed = both(model, x, y, sample_ids=ids)
    assert torch.equal(both(model, x, y, sample_ids=ids), keyed)
    assert torch.equal(next(both.over(model, [(x, y, ids)]))[1].x_adv, keyed)
    seeded = both.replace(seed=5)
    assert torch.equal(seeded(model, x, y), seeded(model, x, y))
