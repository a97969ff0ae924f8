"""Evaluation: clean and robust accuracy, what is reported with them, and what it leaves behind."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.distributed_model import Distributed
from support.halfspace import halfspace_data
from support.tensor_source import TensorSource, blobs
from torch import nn

import advfeat
from advfeat import L2, PGD, models
from advfeat.evaluation import accuracy, evaluate, label_agreement, pgd_attack, strong_attack
from advfeat.intervals import Share, wilson
from advfeat.training import TrainConfig, train


@pytest.fixture(scope="module")
def trained():
    """A model of the blobs, and fresh blobs, noisy enough for some to be wrong and for every radius to break some."""
    torch.manual_seed(0)
    source, test = blobs(120), blobs(90, seed=1)
    test._images = (test._images + 0.3 * torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(2))).clamp(
        0, 1
    )
    result = train(TrainConfig(width=4, epochs=4, batch_size=16, lr=0.05), source)
    return result.model, test


# --- accuracy


def test_robust_accuracy_of_a_linear_model_is_the_closed_form():
    model, source, distance, right = halfspace_data()
    radii = [0.0, 0.02, 0.05, 0.1, 0.2]
    result = evaluate(model, source, attacks=radii)
    assert result.clean.count == int(right.sum()) and result.clean.n == 200
    for eps, robustness in zip(radii, result.robustness, strict=True):
        assert robustness.eps == eps
        expected, clear = right & (distance > eps), (distance - eps).abs() > 1e-5  # not on the boundary itself
        assert clear.sum() >= 198
        assert torch.equal(result.robust[robustness.name][clear], expected[clear])
        assert robustness.accuracy == Share(int(result.robust[robustness.name].sum()), 200)
        assert eps / 2 <= robustness.largest_distance <= eps + 1e-6  # some are left at their first success
        assert robustness.attacked == int(right.sum())
    linf = evaluate(model, source, attacks=[0.02], norm="linf")
    expected = right & (distance * model.w.norm() / model.w.abs().sum() > 0.02)
    assert torch.equal(linf.robust["linf 0.02"], expected)


def test_margins_and_predictions_are_the_models(trained):
    model, test = trained
    result = evaluate(model, test, batch_size=7)
    with torch.no_grad():
        logits = model(test.images())
    assert torch.equal(result.prediction, logits.argmax(1))
    assert torch.equal(result.correct, logits.argmax(1) == test.labels)
    for i in range(len(test)):
        y = test.labels[i]
        others = max(float(logits[i, j]) for j in range(3) if j != y)
        assert float(result.margins[i]) == pytest.approx(float(logits[i, y]) - others, abs=1e-5)
    assert result.margin == pytest.approx(float(result.margins.mean()), abs=1e-6)
    assert torch.equal(result.correct, result.margins > 0)
    assert accuracy(model, test) == result.clean


@given(
    radii=st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0, 2.0]), unique=True, min_size=1), steps=st.integers(1, 6)
)
def test_robust_accuracy_falls_with_the_radius(trained, radii, steps):
    model, test = trained
    attacks = [(f"{r}", pgd_attack(r, steps=steps)) for r in radii]
    result = evaluate(model, test, attacks=attacks)
    in_order = [result.clean.count] + [r.accuracy.count for r in sorted(result.robustness, key=lambda r: r.eps)]
    assert in_order == sorted(in_order, reverse=True)
    for robustness in result.robustness:
        assert robustness.accuracy.count == robustness.found_alone.count - robustness.carried
        if robustness.eps == 0:
            assert robustness.accuracy == result.clean
        assert not (result.robust[robustness.name] & ~result.correct).any()
    assert [r.eps for r in result.robustness] == radii


def test_what_a_smaller_radius_broke_is_carried_to_a_larger_one(trained):
    model, test = trained
    strong, weak = pgd_attack(0.6), advfeat.PGD(advfeat.L2(1.2), steps=1, step_size=1e-4)
    attacks = [("weak", weak), ("strong", strong), ("linf", pgd_attack(0.7, "linf", steps=1, step_size=1e-6))]
    alone = {name: evaluate(model, test, attacks=[(name, attack)]).robustness[0] for name, attack in attacks}
    assert alone["weak"].accuracy.count > alone["strong"].accuracy.count  # or the test shows nothing
    both = {r.name: r for r in evaluate(model, test, attacks=attacks).robustness}
    assert both["weak"].accuracy == both["strong"].accuracy == alone["strong"].accuracy
    assert both["weak"].found_alone == alone["weak"].accuracy
    assert both["weak"].carried == alone["weak"].accuracy.count - alone["strong"].accuracy.count
    assert not both["weak"].converged and both["strong"].converged
    assert "attack not converged" in both["weak"].to_dict()["note"]
    assert both["linf"].carried == 0  # another norm: the L2 examples are not in its ball
    box = pgd_attack(1.2, steps=1, step_size=1e-4).replace(threat=advfeat.L2(1.2, lo=-1.0))
    other_box = evaluate(model, test, attacks=[("strong", strong), ("box", box)]).robustness[1]
    assert other_box.carried == 0


def test_a_success_on_the_way_counts_though_the_last_iterate_is_none():
    """Wrong only where one pixel is between 0.4 and 0.6; steps of 0.3 from 0.25 jump in, and out again."""

    class Net(nn.Module):
        def forward(self, x):
            score = 100 * (x[:, 0, 0, 0] - 0.5).square() - 1
            return torch.stack([score, -score], dim=1)

    images = torch.zeros(4, 1, 4, 4)
    images[:, 0, 0, 0] = torch.tensor([0.25, 0.25, 0.05, 0.12])
    source = TensorSource(images, torch.zeros(4, dtype=torch.int64), ("a", "b"))
    attack = advfeat.PGD(advfeat.L2(0.4), steps=2, step_size=0.3, keep="last")
    assert attack(Net(), images, source.labels)[:, 0, 0, 0].tolist() == pytest.approx([0.25, 0.25, 0.45, 0.52])
    result = evaluate(Net(), source, attacks=[("jumps", attack), ("short", attack.replace(steps=1))])
    assert result.robust["jumps"].tolist() == [False, False, False, False]
    assert result.robust["short"].tolist() == [False, False, True, False]


def test_results_do_not_depend_on_the_batch_size(trained):
    model, test = trained
    start = advfeat.PGD(advfeat.L2(1.5), steps=0, step_size=0.1, random_start=True)
    attacks = [pgd_attack(0.3), ("start", start), ("restarts", pgd_attack(0.3, restarts=2, steps=5))]
    results = [evaluate(model, test, attacks=attacks, batch_size=b) for b in (7, 90)]
    assert 0 < results[0].robust["start"].sum() < results[0].clean.count
    for a, b in zip(results[0].robustness, results[1].robustness, strict=True):
        assert torch.equal(results[0].robust[a.name], results[1].robust[b.name])
        assert a.margin == pytest.approx(b.margin, rel=1e-4)  # the same random starts


def test_limit_takes_evenly_spaced_samples(trained):
    model, test = trained
    result = evaluate(model, test, limit=9)
    assert result.index.tolist() == list(range(0, 90, 10)) and result.clean.n == 9
    everything = evaluate(model, test)
    assert torch.equal(result.prediction, everything.prediction[result.index])
    assert evaluate(model, test, limit=1000).clean.n == 90


# --- what goes with a number


def test_every_number_comes_with_its_settings(trained):
    model, test = trained
    attack = pgd_attack(0.4, steps=8, restarts=2, seed=3, objective=advfeat.CW())
    result = evaluate(model, test, attacks=[0.2, ("CW", attack)], limit=30).to_dict()
    result = json.loads(json.dumps(result, allow_nan=False))
    assert result["data"] == "blobs" and result["n"] == 30
    first, second = result["robustness"]
    assert first["name"] == "l2 0.2"
    settings = {
        "norm": "l2",
        "eps": 0.2,
        "steps": 20,
        "step_size": 2 * 0.2,
        "schedule": "cosine",
        "restarts": 1,
        "random_start": False,
        "objective": "Margin(scale-free)",
        "keep": "best",
        "stop": "success",
    }
    pgd, auto = first["attack"]["attacks"]
    assert first["attack"]["attack"] == "Ensemble" and pgd | settings == pgd
    assert auto | {"attack": "Auto", "eps": 0.2, "steps": 100, "target_classes": 9, "seed": 0} == auto
    assert 0 < first["backward_passes"] <= first["forward_passes"]
    settings = {"eps": 0.4, "steps": 8, "restarts": 2, "random_start": True, "seed": 3, "objective": "CW"}
    assert second["attack"] | settings == second["attack"] and second["name"] == "CW"
    share = second["robust_accuracy"]
    assert share["interval"] == list(wilson(share["count"], 30)) and share["value"] == share["count"] / 30


def test_samples_that_could_not_be_attacked_are_counted():
    """Zero gradients on one half of the inputs, NaN gradients on a third; neither counts as robust in silence."""

    class Gradients(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, x):
            ctx.save_for_backward(x)
            return logits

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            kind = x[:, 0, 0, 0]
            grad = torch.where((kind < 0.1)[:, None], torch.zeros_like(grad), grad)
            return torch.where((kind > 0.9)[:, None], torch.full_like(grad, float("nan")), grad), None

    class Net(nn.Module):
        def forward(self, x):
            score = x.flatten(1).mean(1)
            return Gradients.apply(torch.stack([score, 1 - score], 1), x)

    images = torch.full((10, 1, 4, 4), 0.8)
    images[:5, 0, 0, 0], images[5:8, 0, 0, 0] = 0.0, 1.0
    source = TensorSource(images, torch.zeros(10, dtype=torch.int64), ("a", "b"))
    result = evaluate(Net(), source, attacks=[0.05]).robustness[0]
    assert (result.zero_gradient, result.nonfinite_gradient, result.attacked) == (5, 3, 10)


def test_logits_that_are_not_finite_are_not_correct():
    class Net(nn.Module):
        def forward(self, x):
            logits = torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)
            return logits + torch.where(x[:, 0, 0, 0] > 0.5, float("nan"), 0.0)[:, None]

    images = torch.full((6, 1, 4, 4), 0.4)
    images[:2, 0, 0, 0] = 1.0
    result = evaluate(Net(), TensorSource(images, torch.zeros(6, dtype=torch.int64), ("a", "b")))
    assert result.clean.count == 4 and result.nonfinite_logits == 2
    json.dumps(result.to_dict(), allow_nan=False)


def test_an_attack_that_leaves_its_ball_is_an_error(trained, monkeypatch):
    model, test = trained
    over = advfeat.PGD._over

    def cheating(self, *args):
        for batch, result in over(self, *args):
            result.x_adv = (result.x_adv + 0.1).clamp(0, 1)
            yield batch, result

    monkeypatch.setattr(advfeat.PGD, "_over", cheating)
    with pytest.raises(RuntimeError, match="the attack left its ball: an example is .* away, eps is 0.1"):
        evaluate(model, test, attacks=[0.1])


# --- what is left behind


def test_a_default_device_changes_nothing(trained):
    model, source = trained
    attacks = [0.5, advfeat.PGD(advfeat.L2(0.4), steps=3, stop="success"), advfeat.Auto(advfeat.L2(0.3), steps=3)]
    wanted = evaluate(model, source, attacks=attacks, limit=20, batch_size=6).to_dict()
    with torch.device("meta"):
        assert evaluate(model, source, attacks=attacks, limit=20, batch_size=6).to_dict() == wanted


def test_a_distributed_model_is_evaluated_without_the_other_processes(trained):
    model, source = trained[:2]
    wanted, got = (evaluate(m, source, attacks=[0.5], limit=20).to_dict() for m in (model, Distributed(model)))
    assert got == wanted
    assert label_agreement(Distributed(model), source, limit=20) == label_agreement(model, source, limit=20)


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_leaves_no_trace(trained, fails):
    source = trained[1]
    model = models.create("small-convnet", 3, (1, 8, 8), width=4).train()
    model.body[1].eval()  # a frozen BatchNorm, which eval() and train() would un-freeze
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(3)
    before = models.fingerprint(model)
    flags, needs = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    random, images = torch.get_rng_state(), source.images().clone()
    attack = pgd_attack(0.3, restarts=2, steps=3)
    if fails:
        attack = attack.replace(objective=lambda model, x, y: 1 / 0)
    with torch.inference_mode() if not fails else torch.enable_grad():
        try:
            evaluate(model, source, attacks=[attack])
        except ZeroDivisionError:
            assert fails
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == needs
    assert [p.grad is None for n, p in model.named_parameters()] == [
        n != "head.bias" for n, _ in model.named_parameters()
    ]
    assert torch.equal(model.head.bias.grad, torch.ones(3))
    assert models.fingerprint(model) == before, "BatchNorm moved"
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(source.images(), images)
    assert torch.is_grad_enabled()


def test_progress_ends_at_its_total(trained):
    model, test = trained
    calls = []
    evaluate(model, test, attacks=[0.1, 0.2], batch_size=40, progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 270) and calls[-1] == (270, 270)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


# --- relabelling, own modules, errors


def test_label_agreement_counts_both_labels():
    images = torch.zeros(8, 1, 4, 4)
    images[:, 0, 0, 0] = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]) / 2  # what the model says
    source = TensorSource(images, torch.tensor([0, 2, 1, 1, 0, 2, 1, 0]), ("a", "b", "c"))

    class Net(nn.Module):
        def forward(self, x):
            said = (2 * x[:, 0, 0, 0]).long()
            return SimpleNamespace(logits=nn.functional.one_hot(said, 3).float())

    found = label_agreement(Net(), source)
    assert (found["label"].count, found["relabelled"].count, found["other"].count) == (3, 3, 2)
    constant = label_agreement(Net(), source, lambda y: torch.full_like(y, 2))
    assert constant["relabelled"].count == 3
    assert label_agreement(Net(), source, limit=4)["label"].n == 4
    with pytest.raises(ValueError, match=r"relabel should give labels of shape \(8,\), got \(1,\)"):
        label_agreement(Net(), source, lambda y: y[:1])


def test_a_module_of_the_users_own_needs_no_adapter():
    model, source, distance, right = halfspace_data()
    wrapped = nn.Module()
    wrapped.inner = model
    wrapped.forward = lambda x: SimpleNamespace(logits=model(x))
    plain, own = (evaluate(m, source, attacks=[0.05]) for m in (model, wrapped))
    assert plain.model_fingerprint != own.model_fingerprint  # other names in the state dict
    assert {**plain.to_dict(), "model_fingerprint": None} == {**own.to_dict(), "model_fingerprint": None}


def test_pgd_attack_says_what_is_wrong():
    falling, constant = pgd_attack(0.5).to_dict(), pgd_attack(0.5, schedule="constant").to_dict()
    assert (falling["step_size"], falling["schedule"]) == (1.0, "cosine")
    assert constant["step_size"] == pytest.approx(2.5 * 0.5 / 20) and "schedule" not in constant
    assert pgd_attack(0.5, "linf", step_size=0.1).to_dict()["step_size"] == 0.1
    assert isinstance(pgd_attack(0.5, "linf").threat, advfeat.Linf)
    with pytest.raises(ValueError, match='norm should be "l2", "linf" or "l1", got \'l3\''):
        pgd_attack(0.5, "l3")


def test_errors_name_what_is_wrong(trained):
    model, test = trained
    with pytest.raises(ValueError, match="different names, got l2 0.1, l2 0.1"):
        evaluate(model, test, attacks=[0.1, 0.1])
    with pytest.raises(ValueError, match="attack 'x' is targeted"):
        evaluate(model, test, attacks=[("x", pgd_attack(0.1).replace(targeted=True))])
    with pytest.raises(ValueError, match="one radius for all samples"):
        evaluate(model, test, attacks=[advfeat.PGD(advfeat.L2(torch.ones(90)), 2, 0.1)])
    with pytest.raises(TypeError, match="pairs of a name and one, got int"):
        evaluate(model, test, attacks=[("x", 3)])
    with pytest.raises(ValueError, match="limit should be an integer, at least 1, got 0"):
        evaluate(model, test, limit=0)
    with pytest.raises(ValueError, match="the model has 3 classes, data set 'blobs' has 4"):
        evaluate(model, blobs(60, classes=4))
    with pytest.raises(ValueError, match=r"should give logits \(60, 4\) for this data, got \(60, 3\)"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), blobs(60, classes=4))
    wrong = blobs(60)
    wrong.labels = wrong.labels + 1
    with pytest.raises(ValueError, match="sample 2 has label 3"):
        evaluate(model, wrong)
    wrong = blobs(60)
    wrong._images[41] = math.inf
    with pytest.raises(ValueError, match="sample 41 holds NaN or infinity"):
        evaluate(model, wrong, batch_size=25)


def test_a_bare_radius_finds_what_auto_finds(trained):
    """And PGD alone leaves more: the number that people print is the strong attack's."""
    model, test = trained
    threat = advfeat.L2(1.2)
    found = evaluate(model, test, attacks=[1.2, ("auto", advfeat.Auto(threat)), ("pgd", pgd_attack(1.2, steps=1))])
    strong, auto, pgd = (r.accuracy.count for r in found.robustness)
    assert strong <= auto and strong < pgd
    assert strong_attack(1.2).to_dict() == found.robustness[0].attack
    with pytest.raises(ValueError, match='norm should be "l2", "linf" or "l1"'):
        strong_attack(0.5, "l3")


@pytest.mark.parametrize("kind", ["zero", "nan", "none"])
def test_samples_without_a_gradient_are_told_not_to_be_robust(kind):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 3)

        def forward(self, x):
            x = x.flatten(1)
            if kind == "zero":
                x = (x * 255).round() / 255
            logits = self.layer(x)
            return logits + (0 * x.sum(1, keepdim=True)).sqrt() if kind == "nan" else logits

    torch.manual_seed(0)
    source, model = blobs(12), Net().eval()
    source.labels = model(source.images()).argmax(1)
    attack = [("attack", PGD(L2(0.5), steps=3))]
    if kind == "none":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = evaluate(model, source, attacks=attack)
        assert found.robustness[0].unattacked is None and found.robustness[0].to_dict()["note"] is None
        return
    with pytest.warns(RuntimeWarning, match="attack: 12 of 12 samples met zero or non-finite gradients"):
        found = evaluate(model, source, attacks=attack)
    assert "their robustness is not shown" in found.robustness[0].to_dict()["note"]


def test_a_data_set_that_changes_is_told():
    class Drawn(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return torch.rand(1, 8, 8), i % 3

    model = models.create("small-convnet", 3, (1, 8, 8), width=2)
    with pytest.warns(RuntimeWarning, match="images of 'Drawn' should not change from one reading to the next"):
        evaluate(model, Drawn(), attacks=[])


def test_radii_in_other_units_are_not_carried_over():
    from advfeat.evaluation.measure import _inside

    small, large = (PGD(L2(eps, lo=-9.0, hi=9.0, unit=unit), steps=1) for eps, unit in ((0.1, 1.0), (0.2, 0.1)))
    assert not _inside(small, large) and _inside(small, small.replace(threat=L2(0.2, lo=-9.0, hi=9.0)))
