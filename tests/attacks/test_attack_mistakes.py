"""First mistakes with attacks get a sentence, and what can be taken is taken: lists of radii, losses of torch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advfeat
from advfeat import APGD, L2, PGD, Auto, Converged, Ensemble, Linf, Margin, Representation

X = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


def _model(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes))


ATTACK = PGD(Linf(0.03), steps=2)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ATTACK(_model(), X.numpy(), Y.numpy()), TypeError, "x should be a torch tensor, .* got ndarray"),
        (lambda: ATTACK(_model(), X, Y.tolist()), TypeError, "target should be a torch tensor .*, got list"),
        (lambda: ATTACK(_model(), X, 3), TypeError, "target should be a torch tensor, .*, got int"),
        (lambda: ATTACK(_model(), X, Y, start=X.numpy()), TypeError, "start should be a torch tensor, like x"),
        (lambda: ATTACK(_model(), X, Y, sample_ids=[0, 1, 2, 3]), TypeError, "sample_ids should be a torch tensor"),
        (
            lambda: next(iter(ATTACK.over(_model(), [{"pixels": X, "labels": Y}]))),
            TypeError,
            "got a dict with 'pixels'",
        ),
        (
            lambda: next(iter(ATTACK.over(_model(), [(X, Y, ["p"] * 4)]))),
            TypeError,
            "third entry of a batch should be sample",
        ),
        (lambda: next(iter(ATTACK.over(_model(), [(X,)]))), TypeError, r"should be \(x, target\) .* got a tuple of 1"),
        (lambda: next(iter(ATTACK.over(_model(), [X]))), TypeError, r"should be \(x, target\) .* got a Tensor"),
        (lambda: next(iter(ATTACK.over(_model(), [(X.numpy(), Y)]))), TypeError, "x should be a torch tensor"),
        (lambda: Linf("8/255"), TypeError, "eps should be a number or a tensor, got the text '8/255': .* 8 / 255"),
        (lambda: L2(None), TypeError, "eps should be a number or a tensor, got NoneType"),
        (lambda: Linf(0.1, lo="0"), TypeError, "lo should be a number or a tensor, got the text '0'"),
        (lambda: Linf(["a"]), TypeError, "eps should hold numbers"),
        (lambda: Linf([[0.1]]), ValueError, r"eps should be a float or a tensor \[B\], got shape \(1, 1\)"),
        (lambda: ATTACK.replace(objective=nn.CrossEntropyLoss), TypeError, "class CrossEntropyLoss: give an instance"),
        (lambda: ATTACK.replace(objective="ce"), TypeError, "objective should be an Objective, a loss of torch or a"),
        # A text is true, whatever it says.
        (lambda: ATTACK.replace(targeted="no"), TypeError, "targeted should be True or False, got 'no'"),
        (lambda: ATTACK.replace(random_start="yes"), TypeError, "random_start should be True or False, got 'yes'"),
        (lambda: APGD(L2(0.1), graph=0), TypeError, "graph should be True or False, got 0"),
        (lambda: ATTACK.replace(step_size="0.1"), TypeError, "step_size should be a number .* got the text '0.1'"),
        (lambda: ATTACK.replace(step_size=True), TypeError, "step_size should be a number or a tensor, got True"),
        (lambda: ATTACK.replace(autocast="bf16"), TypeError, "autocast should be torch.bfloat16, .* got 'bf16'"),
        (lambda: Auto(L2(0.1), autocast=torch.float32), TypeError, "autocast should be .* got torch.float32"),
        (lambda: ATTACK.replace(steps=True), ValueError, "steps should be an integer, at least 0, got True"),
        (lambda: Linf(True), TypeError, "eps should be a number or a tensor, got True"),
        (lambda: Margin(True), ValueError, "temperature should be a positive number or None, got True"),
        (lambda: Ensemble(ATTACK), TypeError, "attacks should be a list of attacks, got PGD"),
        (lambda: PGD(advfeat.threat.Threat(0.5), steps=1), TypeError, r"threat should be advfeat.L2\(eps\)"),
        (lambda: Linf(10**400), TypeError, "eps should be a number or a tensor, got int"),
        (lambda: Linf(0.1, lo=torch.ones(3) * 2, hi=torch.ones(3)), ValueError, "lo should be at most hi"),
        (lambda: Linf(0.1, lo=[0.0, float("nan"), 0.0]), ValueError, "lo should be at most hi"),
        (lambda: L2.normalised(0.5, float("nan"), 1), ValueError, r"mean should be finite, got \[nan\]"),
        (lambda: Converged(True), ValueError, "patience should be an integer, at least 1, got True"),
        (lambda: Converged(5, "0.1"), TypeError, "tolerance should be a number, got '0.1'"),
        (lambda: Representation("fc"), TypeError, "features should be a function of images, or None, got 'fc'"),
        (lambda: Representation(relative="no"), TypeError, "relative should be True or False, got 'no'"),
        (
            lambda: ATTACK(_model().to("meta"), X, Y),
            ValueError,
            "x should be on the device of the model, meta, got cpu",
        ),
        (lambda: ATTACK(_model(), X, Y.to("meta")), ValueError, "target should be on the device of x, cpu, got meta"),
    ],
)
def test_first_mistakes_get_a_sentence(call, error, message):
    with pytest.raises(error, match=message.replace(" .*, got", ".* got")):
        call()


def test_a_radius_beyond_the_whole_box_is_said_to_bound_nothing():
    with pytest.warns(RuntimeWarning, match=r"eps=8 is more than the whole box \[0, 1\].*8 / 255 in pixel scale"):
        Linf(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for threat in (Linf(8 / 255), Linf(1), Linf(float("inf")), Linf(8, lo=0, hi=255), L2(8), Linf([8.0, 1.0])):
            assert threat.norm in ("l2", "linf")


def test_normalised_inputs_are_told_to_have_their_radius_in_their_own_units():
    with pytest.raises(ValueError, match=r"the radius is in other units too.*adapt.*L2.normalised.*in pixel scale"):
        ATTACK(_model(), 4 * X - 2, Y)


def test_lists_and_arrays_are_radii_and_bounds():
    wanted = PGD(Linf(torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64)), steps=3)(_model(), X, Y)
    for eps in ([0.01, 0.02, 0.03, 0.04], np.array([0.01, 0.02, 0.03, 0.04]), (0.01, 0.02, 0.03, 0.04)):
        assert torch.equal(PGD(Linf(eps), steps=3)(_model(), X, Y), wanted)
    bounds = Linf(0.1, lo=[0, 0, 0], hi=np.ones(3, dtype=np.float32))
    assert torch.equal(PGD(bounds, steps=3)(_model(), X, Y), PGD(Linf(0.1), steps=3)(_model(), X, Y))
    assert isinstance(Linf(np.float32(0.5)).eps, float) and isinstance(Linf(np.array(0.5)).eps, float)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")])
def test_the_cross_entropy_of_torch_is_an_objective(loss):
    wanted = ATTACK.replace(objective=advfeat.CrossEntropy()).run(_model(), X, Y)
    for attack in (ATTACK.replace(objective=loss), PGD(Linf(0.03), steps=2, objective=loss)):
        found = attack.run(_model(), X, Y)
        assert torch.equal(found.x_adv, wanted.x_adv)
        torch.testing.assert_close(found.value, wanted.value)
        assert torch.equal(found.success, wanted.success)
    assert getattr(loss, "reduction", "sum") in ("mean", "sum")  # as it was


def test_settings_of_a_loss_are_kept_and_written_down():
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
    found = ATTACK.replace(objective=smooth).run(_model(), X, Y)
    each = F.cross_entropy(_model()(found.x_adv), Y, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(found.value, each.detach())
    assert ATTACK.replace(objective=smooth).to_dict()["objective"] == "CrossEntropyLoss(label_smoothing=0.2)"
    assert ATTACK.replace(objective=F.cross_entropy).to_dict()["objective"] == "torch cross_entropy"


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
def test_the_binary_cross_entropy_takes_labels_of_0_and_1(loss):
    labels = torch.tensor([0, 1, 0, 1])
    found = PGD(Linf(0.5), steps=10, objective=loss).run(_model(1), X, labels)
    wanted = PGD(Linf(0.5), steps=10, objective=advfeat.CrossEntropy()).run(_model(1), X, labels)
    torch.testing.assert_close(found.value, wanted.value)
    assert torch.equal(found.success, wanted.success) and found.success.all()


def test_other_losses_of_torch_are_taken_sample_by_sample():
    found = ATTACK.replace(objective=nn.MultiMarginLoss()).run(_model(), X, Y)
    each = F.multi_margin_loss(_model()(found.x_adv), Y, reduction="none").detach()
    torch.testing.assert_close(found.value, each)


EVERY = [ATTACK, ATTACK.replace(stop="success"), advfeat.APGD(Linf(0.03), steps=2), advfeat.Auto(Linf(0.03), steps=2)]
EVERY.append(advfeat.Ensemble((ATTACK, EVERY[2])))


@pytest.mark.parametrize("attack", EVERY, ids=lambda attack: type(attack).__name__)
def test_every_attack_names_what_it_cannot_take(attack):
    with pytest.raises(TypeError, match="x should be a torch tensor, .*, got list"):
        attack(_model(), X.tolist(), Y)
    with pytest.raises(TypeError, match="model should be a module or a function of images, got list"):
        attack([_model()], X, Y)
    with pytest.raises(ValueError, match="target should be on the device of x, cpu, got meta"):
        attack(_model(), X, Y.to("meta"))
    with pytest.raises(ValueError, match="sample_ids should be on the device of x, cpu, got meta"):
        attack(_model(), X, Y, sample_ids=Y.to("meta"))


@pytest.mark.parametrize("eps", [[0.1, -0.1, 0.1, 0.1], [0.1, 0.1, float("nan"), 0.1]])
def test_a_radius_is_blamed_for_itself_and_not_the_step_that_comes_from_it(eps):
    with pytest.raises(ValueError, match="eps should be at least 0, got"):
        PGD(Linf(eps), steps=2)(_model(), X, Y)


def test_an_l2_radius_beyond_the_diagonal_of_the_box_is_told():
    """128 for 128 / 255: any image would do."""
    with pytest.warns(
        RuntimeWarning, match=r"eps=128 is more than the diagonal of the box \[0, 1\] of 48 values, 6.93"
    ):
        PGD(L2(128), steps=1)(_model(), X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(L2(6.9), steps=1)(_model(), X, Y)
        PGD(L2(float("inf")), steps=1, step_size=0.1)(_model(), X, Y)
        PGD(L2(128, 0, 255), steps=1)(_model(), X, Y)


def test_losses_that_differ_have_names_that_differ():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    losses = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(weight=weights)]
    losses += [nn.CrossEntropyLoss(weight=weights.flip(0)), nn.MultiMarginLoss(), nn.MultiMarginLoss(margin=0.5)]
    names = [ATTACK.replace(objective=loss).to_dict()["objective"] for loss in losses]
    assert len(set(names)) == len(names) and names[0] == "CrossEntropyLoss()"


def test_flags_and_step_sizes_of_numpy_are_taken():
    flagged = PGD(Linf(0.1), steps=2, targeted=np.bool_(True), random_start=torch.tensor(False))
    assert flagged.targeted is True and flagged.random_start is False
    wanted = PGD(Linf(0.1), steps=2, step_size=torch.tensor([0.01, 0.02, 0.03, 0.04]))(_model(), X, Y)
    for size in ([0.01, 0.02, 0.03, 0.04], np.array([0.01, 0.02, 0.03, 0.04])):
        assert torch.equal(PGD(Linf(0.1), steps=2, step_size=size)(_model(), X, Y), wanted)
