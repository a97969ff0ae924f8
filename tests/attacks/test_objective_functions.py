"""Objectives given as functions, torch losses or subclasses: their names, and when success is known."""

import functools

import pytest
import torch
import torch.nn.functional as F
from support.logits import identity, logits_and_labels
from support.strategies import F64

from advfeat import APGD, CW, L2, PGD, Converged, Margin, Objective, Representation
from advfeat.objectives import Function, as_objective

X, Y = torch.rand(4, 12), torch.tensor([0, 1, 2, 0])


def test_functions_that_differ_have_names_that_differ():
    def made(k):
        return lambda model, x, target: k * model(x)[:, 0]

    def named(k=1, *, weight=None):
        def loss(model, x, target, scale=1):
            return scale * k * model(x)[:, 0] if weight is None else weight

        return loss

    def recursive(model, x, target, depth=2):
        return recursive(model, x, target, depth - 1) if depth else None

    bound = functools.partial(named(3), scale=1)
    functions = [made(1), made(2), lambda model, x, target, k=1: k, lambda model, x, target, k=2: k, named(1), named(2)]
    functions += [named(1, weight=torch.ones(2)), named(1, weight=torch.zeros(2)), bound, named(3), named(made(2))]
    functions += [recursive, functools.partial(named(3), scale=2)]
    names = [as_objective(function).name for function in functions]
    assert len(set(names)) == len(names), names
    assert names[:2] == [as_objective(made(1)).name, as_objective(made(2)).name]
    assert as_objective(named(2)).name == "loss(scale=1, k=2, weight=None)" and "0x" not in "".join(names)
    plain = as_objective(_plain)
    assert plain.name == "_plain"


def _plain(model, x, target):
    return model(x)[:, 0]


def test_a_partial_of_a_loss_of_torch_is_one():
    z, y = logits_and_labels(1)
    loss = functools.partial(F.cross_entropy, label_smoothing=0.1, reduction="mean")
    objective = as_objective(loss)
    wanted = F.cross_entropy(z, y, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(objective.value(identity, z, y), wanted)
    assert objective.name == "torch cross_entropy(label_smoothing=0.1, reduction='mean')"
    one = functools.partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor([2.0], dtype=F64))
    value = as_objective(one).value(identity, z[:, :1], y.clamp(max=1))
    wanted = F.binary_cross_entropy_with_logits(z[:, 0], y.clamp(max=1).double(), reduction="none", **one.keywords)
    torch.testing.assert_close(value, wanted)


def test_any_function_is_an_objective():
    def mine(model, x, target):
        return model(x).sum(1) + target

    objective = as_objective(mine)
    assert isinstance(objective, Function) and objective.name == "mine"
    got = objective.value(identity, torch.ones(2, 3), torch.tensor([1.0, 2.0]))
    assert torch.equal(got, torch.tensor([4.0, 5.0]))
    margin = Margin()
    assert as_objective(margin) is margin and margin.name == "Margin(scale-free)"
    assert [Margin(t).name for t in (1, 1.0, 0.5)] == ["Margin", "Margin", "Margin(0.5)"]
    for wrong in (3, "margin", Margin, None):
        with pytest.raises(TypeError, match="objective should be"):
            as_objective(wrong)
    with pytest.raises(NotImplementedError):
        Objective().value(identity, torch.rand(1, 2), torch.tensor([0]))


def test_a_subclass_of_margin_with_a_value_of_its_own_is_asked_for_it():
    class Doubled(Margin):
        def value(self, model, x, target):
            return 2 * super().value(model, x, target)

    assert Doubled().slope_rule() is None and CW().slope_rule() is None
    model = torch.nn.Linear(4, 3)
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    a, b = (PGD(L2(0.1), steps=2, objective=o).run(model, x, y) for o in (Margin(), Doubled()))
    torch.testing.assert_close(b.value, 2 * a.value)


# Objectives that call the model more than once, as TRADES, an average over views and per-sample code do.
def clean_pass_after(model, x, target):
    return (model(x).log_softmax(1) - model(torch.zeros_like(x)).log_softmax(1)).abs().sum(1)


def two_views(model, x, target):
    return (F.cross_entropy(model(x + d), target, reduction="none") for d in (0.0, 9.0))


def sample_by_sample(model, x, target):
    return torch.cat(
        [F.cross_entropy(model(row[None]), t[None], reduction="none") for row, t in zip(x, target, strict=True)]
    )


@pytest.mark.parametrize("make", [PGD, APGD])
def test_success_is_read_off_the_logits_of_the_point_itself(make):
    model = torch.nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x, y = torch.tensor([[0.5, 0.45], [0.9, 0.1]]), torch.tensor([0, 0])
    # Of zeros the model says class 0, which is no success.
    result = make(L2(0.1), steps=20, objective=clean_pass_after).run(model, x, y)
    assert result.success.tolist() == (model(result.x_adv).argmax(1) != y).tolist()
    result = make(L2(0.1), steps=20, objective=lambda m, x, t: sum(two_views(m, x, t))).run(model, x, y)
    assert result.success is None and result.first_success is None  # nobody asked for the logits of x
    result = make(L2(0.1), steps=20, objective=sample_by_sample).run(model, x, y)
    assert result.success is None


def test_success_is_no_stop_where_it_is_not_known():
    model = torch.nn.Linear(2, 2)
    x, y = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="the logits of x itself, or for logits once"):
        PGD(L2(0.1), steps=2, stop="success", objective=sample_by_sample)(model, x, y)
    # The last batch has a single sample, whose own pass could be taken for that of the batch.
    attack = PGD(L2(0.1), steps=2, stop=Converged(patience=1), objective=sample_by_sample)
    assert all(r.success is None for _, r in attack.over(model, [(x, y), (x[:1], y[:1])]))


@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        (
            lambda z, y: F.cross_entropy(z, y),
            TypeError,
            r"should take \(model, x, target\), got .*which takes \(z, y\)",
        ),
        (lambda m, x, y: F.cross_entropy(m(x), y), ValueError, r"one value per sample.*got \(\).*reduction=.none"),
        (lambda m, x, y: 1.0, TypeError, "the objective should give a tensor, one value per sample, got float"),
        (torch.nn.TripletMarginLoss(), TypeError, r"a loss of \(logits, target\), got Triplet.*which takes .anchor"),
        # Of three samples and three classes these would be compared crosswise.
        (torch.nn.MSELoss(), ValueError, r"target should be like the logits, \(4, 4\), for MSELoss.*got \(4,\)"),
        (torch.nn.SoftMarginLoss(), ValueError, "labels are for losses such as torch.nn.CrossEntropyLoss"),
        (functools.partial(F.binary_cross_entropy_with_logits, weight=None), ValueError, "should be like the logits"),
        (
            Representation(),
            ValueError,
            "features should be given, .* for a model that has no method",
        ),
    ],
)
def test_what_is_no_objective_gets_a_sentence(objective, error, message):
    model = torch.nn.Linear(12, 4)
    with pytest.raises(error, match=message):
        PGD(L2(0.1), steps=2, objective=objective)(model, X, Y)


def test_losses_by_value_take_targets_like_the_logits():
    model = torch.nn.Linear(12, 4)
    result = PGD(L2(0.1), steps=2, objective=torch.nn.MSELoss()).run(model, X, torch.zeros(4, 4))
    torch.testing.assert_close(result.value, (model(result.x_adv) ** 2).mean(1))
