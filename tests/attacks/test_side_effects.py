"""An attack leaves no trace, whatever the model, the mode it is called in, and however it ends."""

import functools
import gc
import threading
import warnings

import pytest
import torch
from torch import nn

from advfeat import APGD, L2, PGD, Converged, Representation
from advfeat.attacks.no_trace import no_trace
from advfeat.eval_mode import evaluating
from advfeat.objectives import Objective


class Frozen(nn.BatchNorm1d):
    """A BatchNorm that its owner keeps in eval mode, by overriding train()."""

    def train(self, mode=True):
        return super().train(False)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), Frozen(8), nn.Linear(8, 4)
    )
    net.train()
    net[5].training = False
    net[1].weight.requires_grad_(False)
    net[6].weight.grad = torch.full_like(net[6].weight, 3.0)
    return net


def state(net):
    return {
        "training": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "buffers": {k: v.clone() for k, v in net.state_dict().items()},
        "rng": torch.get_rng_state(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def assert_same(a, b):
    assert a["training"] == b["training"] and a["requires_grad"] == b["requires_grad"] and a["modes"] == b["modes"]
    assert torch.equal(a["rng"], b["rng"])
    for x, y in zip(a["grad"], b["grad"], strict=True):
        assert (x is None) == (y is None) and (x is None or torch.equal(x, y))
    assert all(torch.equal(a["buffers"][k], b["buffers"][k]) for k in a["buffers"])


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)

    def method(self, x):
        return self.net(x)

    def first(self, x):
        return self.net[0](x)


class Pipeline:
    """Not callable itself, and its network is in a list in a slot."""

    __slots__ = ("stages",)

    def __init__(self, net):
        self.stages = [net]

    def predict(self, x):
        return self.stages[0](x)


_GLOBAL = None


def _through_a_global(x):
    return _GLOBAL(x)


def _through_a_nested_function(x):
    def inner():
        return _GLOBAL(x)

    return inner()


def in_a_list(net):
    nets = [net]
    return lambda x: nets[0](x)


WRAPPERS = {
    "module": lambda net: net,
    "bound method": lambda net: net.forward,
    "lambda": lambda net: lambda x: net(x),
    "partial": lambda net: functools.partial(lambda m, x: m(x), net),
    "object": Holder,
    "method of an object": lambda net: Holder(net).method,
    "global": lambda net: _through_a_global,
    "global in a nested function": lambda net: _through_a_nested_function,
    "method of a pipeline": lambda net: Pipeline(net).predict,
    "default argument": lambda net: lambda x, m=net: m(x),
    "list": in_a_list,
    "compiled method of a pipeline": lambda net: torch.compile(Holder([net]).first, backend="aot_eager"),
    "script": lambda net: torch.jit.script(net),
    "function of a script": lambda net: in_a_list(torch.jit.script(net)),
}


@pytest.mark.parametrize("stop", [None, "success", Converged(2)])
@pytest.mark.parametrize("kind", ["call", "over"])
def test_under_inference_mode_with_any_stop(stop, kind):
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 2, 2), torch.arange(4) % 3
    attack = PGD(L2(0.5), steps=3, stop=stop)
    want = attack(model, x, y)
    with torch.inference_mode():
        made = (x + 0).clone()
        got = attack(model, made, y) if kind == "call" else next(attack.over(model, [(made, y)]))[1].x_adv
    assert torch.equal(got, want)


@pytest.mark.parametrize("attack", [PGD(L2(0.5), steps=2), PGD(L2(0.5), 2, stop="success"), APGD(L2(0.5), 2)])
def test_autocast_keeps_nothing(attack):
    """Its cache lives as long as the outermost autocast: half copies of the iterate would pile up, one a step, and a
    replayed graph would read weights that were cast in an earlier pass and freed since."""
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 2, 2), torch.arange(4) % 3
    cached = []
    model[1].register_forward_pre_hook(lambda module, inputs: cached.append(torch.is_autocast_cache_enabled()))
    attack.replace(autocast=torch.bfloat16)(model, x, y)
    assert cached and not any(cached)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_everything_is_as_before(wrapper, mode, monkeypatch):
    net = network()
    monkeypatch.setitem(globals(), "_GLOBAL", net)
    model = WRAPPERS[wrapper](net)
    x, y = torch.rand(6, 3, 2, 2), torch.randint(4, (6,))
    x_before, before = x.clone(), state(net)
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    attack = PGD(L2(0.5), steps=4, random_start=True, restarts=2, seed=0)
    with context():
        inside = state(net)
        first = attack.run(model, x, y).x_adv
        assert_same(state(net), inside)
        again = attack(model, x, y)
    assert_same(state(net), before)
    assert torch.equal(x, x_before) and x.grad is None
    assert torch.equal(first, again)  # dropout was off: the same both times
    assert not first.requires_grad and not torch.equal(first, x)


class Distance(Objective):
    """A module that is nobody's attribute takes part."""

    def value(self, model, x, target):
        return -(_GLOBAL(x) - target).norm(dim=1)


@pytest.mark.parametrize("attack", [PGD(L2(0.5), steps=3), PGD(L2(0.5), 3, stop=Converged(2)), APGD(L2(0.5), 3)])
@pytest.mark.parametrize("kind", ["features", "method", "function", "class"])
def test_modules_of_the_objective_are_as_before(attack, kind, monkeypatch):
    net, other = network(), network()
    monkeypatch.setitem(globals(), "_GLOBAL", other)
    objective = {
        "features": Representation(features=other),
        "method": Representation(features=Pipeline(other).predict),
        "function": lambda model, x, target: (Pipeline(other).predict(x) - target).norm(dim=1),
        "class": Distance(),
    }[kind]
    x, target = torch.rand(6, 3, 2, 2), torch.rand(6, 4)
    before = state(other)
    first = attack.replace(objective=objective).run(net, x, target)
    again = attack.replace(objective=objective).run(net, x, target)
    assert_same(state(other), before)
    assert torch.equal(first.x_adv, again.x_adv)  # dropout was off


def test_modules_that_only_a_call_reveals_are_as_before_after_an_exception():
    net = network()
    seen = []

    def fails(module, inputs):
        seen.append(module.training)
        raise RuntimeError("out of memory, say")

    net[6].register_forward_pre_hook(fails)
    x, y = torch.rand(6, 3, 2, 2), torch.zeros(6, dtype=torch.int64)
    before = state(net)
    with pytest.raises(RuntimeError, match="out of memory"):
        PGD(L2(0.5), steps=2)(Pipeline(net).predict, x, y)
    assert seen == [False]
    assert_same(state(net), before)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_modules_of_other_threads_keep_their_mode():
    net, other = network(), network()

    def model(x):
        thread = threading.Thread(target=other, args=(x.detach(),))
        thread.start()
        thread.join()
        assert other.training
        return net(x)

    mean = other[2].running_mean.clone()
    PGD(L2(0.5), steps=2)(Pipeline(model).predict, torch.rand(6, 3, 2, 2), torch.zeros(6, dtype=torch.int64))
    assert other.training and not torch.equal(other[2].running_mean, mean)


def test_no_hook_where_every_module_is_known():
    """A global hook slows every call of every module down, and makes a compiled one complain."""
    hooks = []
    net = network()
    net.register_forward_pre_hook(lambda *_: hooks.append(len(torch.nn.modules.module._global_forward_pre_hooks)))
    x, y = torch.rand(6, 3, 2, 2), torch.zeros(6, dtype=torch.int64)
    for attack in (PGD(L2(0.5), steps=2), PGD(L2(0.5), 2, stop="success"), APGD(L2(0.5), 2)):
        attack(net, x, y)
    assert hooks and not any(hooks)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_frozen_script():
    net = network().eval()
    x, y = torch.rand(6, 3, 2, 2), torch.zeros(6, dtype=torch.int64)
    script = torch.jit.freeze(torch.jit.script(net))
    got = PGD(L2(0.5), steps=2)(script, x, y)
    torch.testing.assert_close(got, PGD(L2(0.5), steps=2)(net, x, y))
    with evaluating(script):
        script(x)


def test_after_an_exception(monkeypatch):
    monkeypatch.setattr("advfeat.attacks.no_trace._is_only_thread", lambda: True)  # whatever other tests left running
    net = network()
    calls = []

    def model(x):
        calls.append(net.training)
        if len(calls) == 3:
            raise RuntimeError("out of memory, say")
        torch.rand(5)  # a model that draws random numbers
        return net(x)

    x, y = torch.rand(6, 3, 2, 2), torch.zeros(6, dtype=torch.int64)
    before = state(net)
    with pytest.raises(RuntimeError, match="out of memory"):
        PGD(L2(0.5), steps=9)(model, x, y)
    assert calls == [False] * 3
    assert_same(state(net), before)


def test_inputs_that_require_grad_or_come_from_inference_mode():
    net, y = network().eval(), torch.zeros(4, dtype=torch.int64)
    x = torch.rand(4, 3, 2, 2, requires_grad=True)
    x_adv = PGD(L2(0.5), steps=2)(net, x, y)
    assert x.grad is None and x.is_leaf and not x_adv.requires_grad
    with torch.inference_mode():
        made, labels = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)
        assert made.is_inference()
        PGD(L2(0.5), steps=2)(net, made, labels)


def test_a_compiled_model():
    net = network()
    compiled = torch.compile(net, backend="aot_eager")
    x, y = torch.rand(6, 3, 2, 2), torch.randint(4, (6,))
    before = state(net)
    a = PGD(L2(0.5), steps=3)(compiled, x, y)
    assert_same(state(net), before)
    torch.testing.assert_close(a, PGD(L2(0.5), steps=3)(net, x, y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["module", "in place", "function"])
def test_a_function_of_a_compiled_model_compiles_once(kind):
    net = network()
    compiled = network()
    times = []

    def backend(graph, inputs):
        times.append(1)
        return graph

    if kind == "in place":
        compiled.compile(backend=backend)
    else:
        compiled = torch.compile(compiled if kind == "module" else compiled.forward, backend=backend)
    x, y = torch.rand(6, 3, 2, 2), torch.randint(4, (6,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # compiled modules complain of global hooks
        a = PGD(L2(0.5), steps=3)(lambda z: compiled(z), x, y)
        once = len(times)
        PGD(L2(0.5), steps=3)(lambda z: compiled(z), x, y)
    assert 0 < once == len(times)
    torch.testing.assert_close(a, PGD(L2(0.5), steps=3)(net, x, y), rtol=0, atol=1e-5)


def test_no_trace_puts_each_flag_back():
    net = network()
    flags = [m.training for m in net.modules()]
    with no_trace(net, torch.device("cpu")):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == flags and any(flags) and not all(flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        PGD(L2(0.5), steps=3),
        PGD(L2(0.5), steps=3, keep="best", random_start=True, restarts=2, seed=0),
        PGD(L2(0.5), steps=3, stop="success"),
        PGD(L2(0.5), steps=3, stop=Converged(2)),
        APGD(L2(0.5), steps=3),
    ],
)
def test_no_tensor_waits_for_the_collector(attack):
    """Images in a reference cycle stay in memory until Python's collector runs, which knows nothing of their size."""
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 2, 2), torch.arange(4) % 3
    attack.run(model, x, y)  # first calls import
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        attack(model, x, y)
        list(attack.over(model, [(x, y), (x, y)]))
        gc.collect()
        left = [o for o in gc.garbage if type(o) is torch.Tensor and o.shape[:1] == x.shape[:1]]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not left
