"""Predictions, and attacks on models whose output is not one finite logit per class."""

import math

import pytest
import torch
from torch import nn

import advfeat
from advfeat import PGD, CrossEntropy, Linf, Margin
from advfeat.forward import class_margins, predicted_classes


def convnet():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    )
    return net.eval()


def images():
    return torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(1)), None


def test_margins_of_classes_that_are_out():
    z = torch.tensor([[2.0, 1.0, -math.inf], [2.0, -math.inf, -math.inf], [-math.inf, 1.0, 0.0]])
    assert class_margins(z, torch.tensor([0, 0, 0])).tolist() == [1.0, math.inf, -math.inf]
    assert class_margins(torch.tensor([[1.5], [-1.0]]), torch.tensor([0, 0])).tolist() == [-1.5, 1.0]


MASK = torch.tensor([0.0, 0, 0, -math.inf, -math.inf])


def attacks_of_every_kind(threat):
    base = PGD(threat, steps=20, objective=Margin())
    return [base, base.replace(stop="success"), base.replace(keep="best"), advfeat.APGD(threat, steps=20)]


@pytest.mark.parametrize("attack", attacks_of_every_kind(Linf(0.2)), ids=["pgd", "stop", "best", "apgd"])
def test_classes_that_are_out_are_as_if_they_were_not_there(attack):
    """Logits of -inf: class-incremental models, ImageNet-R."""
    net, (x, _) = convnet(), images()
    masked, without = (lambda z: net(z) + MASK), (lambda z: net(z)[:, :3])
    y = without(x).argmax(1)
    got, want = attack.run(masked, x, y), attack.run(without, x, y)
    assert torch.equal(got.success, want.success) and got.success.any() and got.value.isfinite().all()
    torch.testing.assert_close(got.x_adv, want.x_adv, rtol=0, atol=1e-6)


def test_no_prediction_is_no_success():
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[nan, 0, 1], [inf, inf, 0], [-inf, -inf, -inf], [0, inf, 1], [0, 1, -inf]])
    assert predicted_classes(logits).tolist() == [-1, -1, -1, 1, 1]
    x, y = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    result = PGD(Linf(0.0), steps=0).run(lambda z: logits + 0 * z, x, y)
    assert result.success.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
@pytest.mark.parametrize(
    "objective",
    [
        Margin(),
        CrossEntropy(),
        advfeat.CW(),
        lambda m, z, t: nn.functional.binary_cross_entropy_with_logits(m(z)[:, 0], t.float(), reduction="none"),
    ],
)
def test_the_sign_of_a_single_logit_is_its_class(shape, objective):
    torch.manual_seed(0)
    layer = nn.Linear(12, 1)
    x = torch.rand(40, 3, 2, 2)
    y = (layer(x.flatten(1))[:, 0] > 0).long()
    layer.bias.data -= layer(x.flatten(1)).median().detach()
    y = (layer(x.flatten(1))[:, 0] > 0).long()
    assert 0 < y.sum() < len(y)

    def model(z):
        return layer(z.flatten(1)).reshape(shape)

    threat = Linf(0.5)
    attack = PGD(threat, steps=20, objective=objective)
    result = attack.run(model, x, y)
    after = layer(result.x_adv.flatten(1))[:, 0] > 0
    assert torch.equal(result.success, after != y.bool()) and result.success.all()
    assert attack.replace(stop="success").run(model, x, y).samples_forwarded < len(x) * 21
    reached = attack.replace(targeted=True).run(model, x, 1 - y)
    assert reached.success.all()
    # All labels alike, so that the largest label says nothing of the number of classes.
    ones = y == 0
    assert attack.run(model, x[ones], y[ones]).success.all()
    with pytest.raises(ValueError, match="target should hold 0 or 1 for a model with one logit, got label 3"):
        attack.run(model, x, y + 2)


def test_auto_takes_a_single_logit():
    torch.manual_seed(0)
    layer = nn.Linear(12, 1)
    x = torch.rand(20, 12)
    y = (layer(x)[:, 0] > 0).long()
    corner = (layer.weight[0] > 0).float() if y[0] == 0 else (layer.weight[0] < 0).float()
    eps = 0.5
    reached = (layer(torch.minimum(torch.maximum(corner.expand_as(x), x - eps), x + eps))[:, 0] > 0) != y.bool()
    assert len(set(y.tolist())) == 1 and reached.any() and not reached.all()
    assert torch.equal(advfeat.Auto(Linf(eps), steps=20).run(layer, x, y).success, reached)
