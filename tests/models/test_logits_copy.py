"""Faster copies of any module: the same logits, or none."""

import copy

import pytest
import torch
from torch import nn

from advfeat.compat.autoattack import AutoAttack
from advfeat.models import create
from advfeat.models.logits_copy import logits_copy


class Block(nn.Module):
    """A residual block, and around it what torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        return y + self.second(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head, self.calls = Block(), nn.Linear(4, 10), 0

    def forward(self, x):
        if float(x.max()) > 2:  # a branch on values
            raise ValueError("not an image")
        self.calls += len(x)
        return self.head(self.block(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    for _ in range(3):
        net.train()(torch.rand(8, 1, 8, 8))
    return net.eval()


def test_batch_norm_is_folded_in_the_parts_that_can_be_traced(net):
    x = torch.rand(5, 1, 8, 8)
    twin = logits_copy(net, x[:2])
    assert twin is not net and not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    torch.testing.assert_close(twin(x), net(x), rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in twin.parameters()) and all(p.requires_grad for p in net.parameters())
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    ours = create("small-convnet", 10, (1, 8, 8), width=8).eval()
    torch.testing.assert_close(logits_copy(ours, x[:2])(x), ours(x), rtol=1e-4, atol=1e-5)


def test_what_a_copy_would_change_is_left_alone(net):
    x = torch.rand(2, 1, 8, 8)
    assert logits_copy(net, x[:0]) is net and logits_copy(net.forward, x) == net.forward
    hooked = copy.deepcopy(net)
    hooked.block.register_forward_hook(lambda *_: None)
    random = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    random.forward = lambda z: z.flatten(1)[:, :10] + torch.rand(len(z), 10)
    for model in (copy.deepcopy(net).train(), hooked, random.eval(), torch.jit.trace(net, x)):
        assert logits_copy(model, x) is model


class WithoutGradients(nn.Module):
    """Parts that run without gradients, or otherwise with them: a trace would not have what an attack sees."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        super().__init__()
        self.norm, self.body, self.kind = nn.BatchNorm2d(1), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), kind

    def forward(self, x):
        if self.kind == "hidden":
            with torch.no_grad():
                x = self.norm(x)
        elif torch.is_grad_enabled():  # a straight-through estimator where an attack asks for gradients
            x = x + (x.round() - x).detach()
        else:
            x = x.round()
        return self.body(self.norm(x))


@pytest.mark.parametrize("kind", ["hidden", "straight-through"])
def test_a_copy_has_the_gradients_of_the_model(net, kind):
    model, x = WithoutGradients(net, kind).eval(), torch.rand(4, 1, 8, 8)
    gradients = []
    for each in (model, logits_copy(model, x[:2])):
        point = x.clone().requires_grad_()
        logits = each(point)
        # Only the parameters need gradients where the image is hidden.
        found = torch.autograd.grad(logits.sum(), point, allow_unused=True)[0] if logits.requires_grad else None
        gradients.append(torch.zeros_like(x) if found is None else found)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].any() == (kind != "hidden")


def test_what_the_model_does_not_confirm_is_attacked_on_the_model_itself(net):
    """Here the copy is of another network altogether."""
    torch.manual_seed(1)
    x = torch.rand(20, 1, 8, 8)
    y = net(x).argmax(1)
    attack = AutoAttack(net, eps=0.3, version="custom", attacks_to_run=["apgd-ce"], device="cpu", verbose=False, seed=0)
    plain = AutoAttack(net.forward, eps=0.3, version="custom", attacks_to_run=["apgd-ce"], device="cpu", verbose=False)
    plain.seed = 0
    expected = plain.run_standard_evaluation(x, y)
    found = attack.run_standard_evaluation(x, y)
    broken = net(expected).argmax(1) != y
    assert torch.equal(net(found).argmax(1) != y, broken) and 0 < broken.sum()
    attack._quick = lambda z: -net(z)  # claims a success at once
    examples = attack._attacked("apgd-ce", x, y, torch.arange(20), 20)
    assert torch.equal(net(examples).argmax(1) != y, broken)
