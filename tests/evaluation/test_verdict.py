"""The verdict on a robust accuracy: faults of masked models are named, and honest models raise no alarm."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.digits_network import digits_network
from support.linear_net import Then, labelled_images, linear_net
from torch import nn

import advfeat
from advfeat.datasets import load
from advfeat.evaluation import Finding, Verdict, diagnosis, evaluate, probes
from advfeat.evaluation.verdict import more_than_chance

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import zoo  # noqa: E402

LINF = advfeat.Linf(0.1)
QUICK = advfeat.PGD(LINF, steps=10, step_size=0.2, schedule="cosine", keep="best")


def quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return evaluate(*args, **kwargs)


def judged(model, attacks=(QUICK,), limit=24, **settings) -> Verdict:
    return quietly(model, load("digits", "test", limit=limit), attacks=attacks, **settings).verdict


def names(verdict: Verdict) -> set[str]:
    return {finding.name for finding in verdict.faults}


def before(function, net=None):
    return nn.Sequential(zoo.Calls(function, "before"), net or digits_network(True)).eval()


def after(function, net=None):
    return nn.Sequential(net or digits_network(True), zoo.Calls(function, "after")).eval()


class TestWithoutADiagnosis:
    def test_zero_gradients_are_a_fault_and_come_with_advice(self):
        verdict = judged(before(zoo.to_levels))
        assert names(verdict) == {"no-gradient"} and "advfeat.bpda" in str(verdict.faults[0])
        finding = verdict.faults[0]
        assert finding.samples == finding.of > 12 and finding.attack == "linf 0.1"
        assert "not-converged" not in verdict.checks  # and nobody has looked for what else there is

    def test_a_random_model_is_a_fault_until_it_is_averaged(self):
        noisy = before(zoo.noisy)
        assert "random" in names(judged(noisy)) and "draws=20" in str(judged(noisy))
        averaged = judged(noisy, limit=8, draws=10)
        assert "random" in averaged and not averaged.faults

    def test_probabilities_and_dependence_on_the_batch_are_faults(self):
        assert "probabilities" in names(judged(after(lambda z: z.softmax(1))))
        assert "batch-dependent" in names(judged(after(lambda z: z - z.mean(0, keepdim=True))))

    def test_layers_in_train_mode_are_a_note_and_containers_in_it_are_none(self):
        net = nn.Sequential(digits_network(True), nn.Dropout(0.5))
        verdict = judged(net.train())
        assert "train-mode" in verdict and not verdict.faults
        net.eval().training = True
        assert "train-mode" not in judged(net)

    def test_an_attack_without_steps_is_no_attack(self):
        assert "not-attacked" in names(judged(digits_network(True), [dataclasses.replace(QUICK, steps=0)]))
        verdict = judged(digits_network(True), [])
        assert "not-attacked" in verdict and not verdict.faults
        assert "not-attacked" in judged(digits_network(True), [0])

    def test_successes_that_still_come_at_the_end_are_a_fault(self):
        creeping = advfeat.PGD(LINF, steps=5, step_size=0.012, keep="best")
        verdict = judged(digits_network(False), [creeping], limit=100)
        assert "late" in names(verdict) and "more steps" in str(verdict)
        assert "late" not in judged(digits_network(False), limit=100)
        assert (
            "late" not in judged(digits_network(False), [advfeat.Auto(LINF, steps=2)]).checks
        )  # steps of several parts

    def test_one_attack_alone_is_noted_and_the_strong_one_is_not(self):
        assert "single-attack" in judged(digits_network(True))
        assert "single-attack" not in judged(digits_network(True), [advfeat.Ensemble((QUICK, QUICK.replace(steps=3)))])

    def test_samples_that_only_a_smaller_radius_broke_are_a_fault(self):
        weak = advfeat.PGD(advfeat.Linf(0.3), steps=1, step_size=0.001)
        assert "carried" in names(judged(digits_network(False), [QUICK, ("weak", weak)]))


class TestDiagnosis:
    @pytest.mark.parametrize("adversarial", [False, True])
    def test_honest_networks_raise_no_alarm(self, adversarial):
        net, eps = digits_network(adversarial), 0.1 if adversarial else 0.05
        attack = advfeat.Auto(advfeat.Linf(eps), steps=20, target_classes=3)
        verdict = judged(net, [attack], limit=8, diagnose=True, transfer=digits_network(True))
        assert not verdict.faults
        assert {"not-converged", "black-box", "transfer", "seeds", "whole-box", "quantised"} <= set(verdict.checks)

    def test_a_quantised_input_is_named_and_repaired(self):
        verdict = judged(before(zoo.to_levels), limit=8, diagnose=True)
        assert {"quantised", "whole-box", "no-gradient"} <= names(verdict)
        repaired = nn.Sequential(advfeat.bpda(zoo.to_levels), digits_network(True))
        verdict = judged(repaired, [advfeat.Auto(LINF, steps=20, target_classes=3)], limit=8, diagnose=True)
        assert not {"quantised", "whole-box", "no-gradient"} & names(verdict) and "discontinuous" in verdict.lines()[0]

    def test_saturated_outputs_are_named_though_the_numbers_are_those_of_the_logits(self):
        source = load("digits", "test", limit=12)
        plain = quietly(digits_network(True), source, attacks=[QUICK])
        for function in (lambda z: 1e4 * z, lambda z: torch.tanh(2 * z)):
            found = quietly(after(function), source, attacks=[QUICK], diagnose=True)
            assert "saturated" in found.verdict and "saturated" not in names(found.verdict)
            assert abs(found.robustness[0].accuracy.count - plain.robustness[0].accuracy.count) <= 1

    def test_a_gradient_of_another_function_is_named(self):
        wrong = advfeat.bpda(lambda x: x.clone(), lambda x: x.flip(-1))
        verdict = judged(nn.Sequential(wrong, digits_network(True)), limit=8, diagnose=True)
        assert "wrong-gradient" in names(verdict)

    def test_logits_without_any_gradient_are_named_and_still_attacked_by_square(self):
        net, source = labelled_images(30)
        detached = Then(net, lambda x, z: z.detach())
        found = evaluate(detached, source, attacks=[advfeat.Square(advfeat.Linf(0.02), steps=3)], diagnose=True)
        assert {"no-gradient", "black-box"} <= names(found.verdict) and "not-converged" not in found.verdict.checks

    def test_a_weak_attack_is_told_from_a_masked_gradient(self):
        verdict = judged(digits_network(False), [QUICK.replace(steps=1, step_size=0.001)], limit=8, diagnose=True)
        assert "not-converged" in names(verdict) and "black-box" not in names(verdict)

    def test_examples_of_another_model_are_tried(self):
        masked = before(zoo.to_levels)
        verdict = judged(masked, transfer=digits_network(True), limit=100)
        assert "transfer" in names(verdict) and "black-box" not in verdict.checks

    def test_neither_numbers_nor_the_model_nor_random_numbers_change(self):
        net, source = digits_network(True).train(), load("digits", "test", limit=8)
        without = quietly(net, source, attacks=[QUICK])
        state, modes = torch.get_rng_state(), [m.training for m in net.modules()]
        found = quietly(net, source, attacks=[QUICK], diagnose=True)
        assert torch.equal(state, torch.get_rng_state()) and modes == [m.training for m in net.modules()]
        assert all(p.grad is None for p in net.parameters())
        kept = {key: value for key, value in found.to_dict(samples=True).items() if key != "verdict"}
        assert kept == {key: value for key, value in without.to_dict(samples=True).items() if key != "verdict"}
        assert found.verdict.forward_passes > found.verdict.backward_passes > without.verdict.backward_passes == 0

    def test_models_and_data_of_any_kind_are_diagnosed(self):
        net, source = labelled_images(20)
        one_class = source.labels.clone().fill_(0)
        for model, labels in (
            (lambda x: net(x), source.labels),  # a function
            (net, one_class),  # images of one class have no partner
            (net, (source.labels + 1) % 10),  # no image is classified correctly
        ):
            data = type(source)(source.images(), labels, source.classes)
            assert (
                not evaluate(model, data, attacks=[QUICK.replace(steps=2)], limit=8, diagnose=True).verdict.checks == ()
            )
        single = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))  # one logit, which stands for two classes
        data = type(source)(source.images(), (single(source.images())[:, 0] > 0).long(), source.classes[:2])
        assert not evaluate(single, data, attacks=[0.01], limit=8, diagnose=True).verdict.faults

    def test_mistakes_are_told(self):
        net, source = labelled_images(8)
        with pytest.raises(TypeError, match="diagnose should be"):
            evaluate(net, source, diagnose="yes")
        with pytest.raises(TypeError, match="should be a module or a function that gives logits, got int"):
            evaluate(net, source, transfer=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MASKED)
def test_the_fault_of_each_masked_model_of_the_zoo_is_named(name):
    verdict = judged(zoo.masked(name), limit=16, diagnose=True)
    assert zoo.MASKED[name][1] in verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, setting",
    [
        *(("standard", setting) for setting in zoo.SETTINGS),
        *(("adversarially trained", setting) for setting in zoo.SETTINGS),
        ("transformer", "linf"),
    ],
)
def test_honest_models_of_the_zoo_raise_no_alarm(name, setting):
    norm, radii = zoo.SETTINGS[setting]
    assert not zoo.judged(zoo.honest(name), zoo.digits("test", 16), norm, radii).verdict.faults


class TestProbes:
    def test_gradients_of_a_linear_model_account_for_all_of_the_change(self):
        net, source = linear_net(64), load("digits", "test", limit=20)
        x, y = source.images(), source.labels
        first, second = probes.partners(y)
        way = probes.measure_way(net, x[first], y[first], x[second], y[second])
        torch.testing.assert_close(way.explained, way.change, rtol=1e-4, atol=1e-5)
        assert way.missed < 1e-4 and float(way.zero.max()) == 0
        torch.testing.assert_close(way.jump, torch.full_like(way.jump, 1 / 4096), rtol=0.3, atol=0)
        torch.testing.assert_close(way.at_ends, torch.ones_like(way.at_ends))

    def test_a_step_jumps_and_has_no_gradient(self):
        net = before(lambda x: (x > 0.5).float(), linear_net(64))
        x, y = load("digits", "test", limit=20).images(), load("digits", "test", limit=20).labels
        first, second = probes.partners(y)
        way = probes.measure_way(net, x[first], y[first], x[second], y[second])
        assert way.missed == 1 and float(way.zero.min()) == 1 and float(way.jump.min()) > 0.1

    @given(st.lists(st.integers(0, 3), max_size=12))
    def test_partners_are_of_another_class_and_all_who_have_one_get_one(self, labels):
        y = torch.tensor(labels, dtype=torch.int64)
        first, second = probes.partners(y)
        assert bool((y[first] != y[second]).all())
        assert first.tolist() == (list(range(len(labels))) if len(set(labels)) > 1 else [])

    def test_no_classifier_with_gradients_survives_the_whole_box(self):
        source = load("digits", "test", limit=30)
        net = digits_network(True)
        right = net(source.images()).argmax(1) == source.labels
        x, y = source.images()[right], source.labels[right]
        left, passes = probes.left_in_the_whole_box(net, x, y)
        assert not bool(left.any()) and passes <= 50 * len(x)
        masked, _ = probes.left_in_the_whole_box(before(zoo.to_levels), x, y)
        assert int(masked.sum()) > len(x) // 2

    def test_a_lucky_draw_of_a_random_model_is_no_break(self):
        x, y = torch.rand(400, 1, 8, 8), torch.zeros(400, dtype=torch.int64)
        torch.manual_seed(0)

        def coin(x):
            return torch.where(torch.rand(len(x), 1) < 0.5, 1.0, -1.0) * torch.tensor([1.0, -1.0])

        broken = [int((~probes.still_correct(coin, x, y, looks)).sum()) for looks in (1, 3)]
        assert 150 < broken[0] < 250 and 25 < broken[1] < 80

    @pytest.mark.parametrize("scale", [1.0, 1e3])
    def test_a_cross_entropy_underflows_where_logits_are_a_hundred_apart(self, scale):
        logits = scale * torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]], requires_grad=True)
        underflows = probes.cross_entropy_underflows(logits.detach(), torch.tensor([0, 1]))
        grad = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([0, 1])), logits)[0]
        assert underflows.tolist() == (grad == 0).all(1).tolist() == [scale > 1] * 2


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_count_is_never_above_chance_when_a_smaller_one_is_not(samples, of):
    samples = min(samples, of)
    if samples + 1 <= of and more_than_chance(samples, of):
        assert more_than_chance(samples + 1, of)
    assert not more_than_chance(min(2, of), of)


def test_a_few_samples_are_a_note_and_many_a_fault():
    assert diagnosis.black_box("linf 0.1", 0, 64) is None
    few, many = diagnosis.black_box("linf 0.1", 2, 64), diagnosis.black_box("linf 0.1", 3, 64)
    assert (few.severity, many.severity) == ("note", "fault") and "bpda" in many.advice and "bpda" not in few.advice
    assert diagnosis.black_box("linf 0.1", 1, 1).severity == "note"  # the last survivor of an honest model
    assert diagnosis.whole_box(2, 64) is None and diagnosis.whole_box(1, 1).severity == "fault"
    assert diagnosis.over_seeds("linf 0.1", 2, 1, 64) is None
    assert diagnosis.over_seeds("linf 0.1", 2, 5, 64).samples == 5


def test_a_verdict_has_one_line_for_each_kind_of_finding_and_names_what_was_checked():
    def finding(attack, samples, severity="fault"):
        return Finding("no-gradient", severity, attack, samples, 10, "seen", "do this")

    verdict = Verdict((finding("a", 3), finding("b", 7), finding(None, 1, "note")), ("no-gradient", "random"))
    assert verdict.lines() == [
        "fault: no-gradient (b; also a): seen. Do this.",
        "note: no-gradient: seen. Do this.",
        "no fault found by the other checks: random",
    ]
    assert verdict.to_dict()["faults"] == 2 and verdict.to_dict()["findings"][1]["samples"] == 7
    assert str(Verdict()) == "" and "no-gradient" not in Verdict()
