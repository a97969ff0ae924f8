"""Modules that a model holds where ``modules()`` does not look: evaluations and attacks find them all the same."""

import functools

import pytest
import torch
from support.tensor_source import TensorSource
from torch import nn

from advfeat import L2, PGD
from advfeat.evaluation import evaluate, label_agreement
from advfeat.models import evaluating
from advfeat.training import TrainConfig, train


def _net():
    torch.manual_seed(0)
    # Without eval mode each pass has other logits, and leaves other statistics.
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 3))
    net[1].running_mean.fill_(0.5)
    return net.train()


class _Called:
    def __init__(self, held):
        self.held = held

    def __call__(self, x):
        return _first(self.held)(x)


def _first(held):
    while not isinstance(held, nn.Module):
        held = next(iter(held.values())) if isinstance(held, dict) else held[0]
    return held


class _Holding(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, x):
        return self.held(x) if callable(self.held) else _first(self.held)(x)


class _Slots:
    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


def _class_attribute(base):
    def made(net):
        return type("Owner", (base,), {"held": {"net": net}, "__call__" if base is object else "forward": _through})()

    def _through(self, x):
        return _first(self.held)(x)

    return made


GLOBAL = {}


class _NamesAGlobal(nn.Module):
    def forward(self, x):
        return self.through(x)

    def through(self, x):
        return GLOBAL["net"](x)


def _a_global(net):
    GLOBAL["net"] = net
    return _NamesAGlobal()


def _a_closure(net):
    class Closure(nn.Module):
        def forward(self, x):
            return net(x)

    return nn.Sequential(Closure())


WAYS = {
    "a global that a module's method names": _a_global,
    "a closure of a module's forward": _a_closure,
    "an object's list": lambda net: _Called([net]),
    "an object's dict": lambda net: _Called({"net": net}),
    "an object's dict of lists": lambda net: _Called({"nets": [net]}),
    "an object's slot": _Slots,
    "a function of an object": lambda net: functools.partial(lambda o, x: o(x), _Called({"net": net})),
    "a class attribute": _class_attribute(object),
    "a dict of a function": lambda net: lambda x, parts={"net": net}: parts["net"](x),  # noqa: B006
    "a module's list": lambda net: _Holding([net]),
    "a module's dict of lists": lambda net: _Holding({"nets": [net]}),
    "a module's object": lambda net: _Holding(_Called({"net": net})),
    "a module's function": lambda net: _Holding(lambda x: net(x)),
    "a module's class attribute": _class_attribute(nn.Module),
    "a module in a module's list": lambda net: nn.Sequential(_Holding([_Holding([net])])),
}
# A function or object is called with a hook; of a module, what has no name is found by its attributes.
ATTACK = PGD(L2(0.05), steps=2, keep="best")


def _source(net):
    images = torch.rand(24, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = net.eval()(images).argmax(1)
    net.train()
    return TensorSource(images, labels, tuple("abc"))


@pytest.mark.parametrize("way", WAYS)
def test_hidden_modules_are_in_eval_mode_and_are_as_before(way):
    net = _net()
    source, model = _source(net), WAYS[way](net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = evaluate(model, source, attacks=[("pgd", ATTACK)], batch_size=7)
    assert found.deterministic and not found.depends_on_batch and found.clean.value == 1
    assert label_agreement(model, source)["label"].value == 1
    first, second = (ATTACK(model, source.images(), source.labels) for _ in range(2))
    assert torch.equal(first, second)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_flags_are_back_after_an_exception():
    net = _net()
    net[2].training = False
    with pytest.raises(KeyError), evaluating(_Slots(net)):
        assert net.training  # nothing names it but the call
        _Slots(net)(torch.rand(2, 3, 2, 2))
        assert not any(module.training for module in net.modules())
        raise KeyError
    assert [module.training for module in net] == [True, True, False, True]


def test_a_training_tests_with_hidden_modules_in_eval_mode():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.noise = nn.Linear(12, 3), [nn.Dropout(0.9)]

        def forward(self, x):
            return self.head(self.noise[0](x.flatten(1)))

    torch.manual_seed(0)
    model, source = Half(), _source(_net())
    config = TrainConfig(epochs=1, batch_size=8, lr=1e-9, mean=(0.0,) * 3, std=(1.0,) * 3)
    result = train(config, source, source, model=model, same_classes=True)
    with torch.no_grad():
        right = (model.head(source.images().flatten(1)).argmax(1) == source.labels).double().mean()
    assert result.history[0]["test_accuracy"] == float(right) and model.noise[0].training
