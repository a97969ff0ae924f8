"""Attacks on models, inputs and modes as users have them: half types, layouts, autocast, compiled modules, wrappers."""

import math
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from support.distributed_model import Distributed
from support.strategies import BF16, F16, F32, F64, place
from torch import nn

import advfeat
from advfeat import L2, PGD, CrossEntropy, Linf, Margin


def convnet(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    return net.eval()


def images(n=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=g), torch.randint(5, (n,), generator=g)


THREATS = [L2(0.5), Linf(8 / 255)]


@pytest.mark.parametrize("threat", THREATS, ids=["l2", "linf"])
@pytest.mark.parametrize("dtype", [F16, BF16, F64])
def test_models_in_other_dtypes(threat, dtype):
    net, (x, y) = convnet().to(dtype), images()
    x = x.to(dtype)
    result = PGD(threat, steps=5).run(net, x, y)
    assert result.x_adv.dtype == dtype and result.x_adv.isfinite().all() and not torch.equal(result.x_adv, x)
    assert (result.x_adv >= 0).all() and (result.x_adv <= 1).all()
    rounding = torch.finfo(dtype).eps * (math.sqrt(192) if threat.norm == "l2" else 1)
    assert (result.distance <= threat.eps + rounding).all()
    wide = PGD(threat, steps=5).run(convnet().to(dtype).double(), x.double(), y)
    assert (result.value.double() - wide.value).abs().max() < (1e-10 if dtype == F64 else 0.2)


@pytest.mark.parametrize("threat", THREATS, ids=["l2", "linf"])
@pytest.mark.parametrize(
    "settings", [{}, {"keep": "best"}, {"stop": "success"}, {"random_start": True, "restarts": 2, "seed": 0}]
)
@pytest.mark.parametrize("layout", ["channels_last", "batch_last", "every_second", "expanded"])
def test_layout_of_the_images(threat, settings, layout):
    net, (x, y) = convnet().double(), images()
    placed = place(x.double(), layout)
    x = placed.view
    result = PGD(threat, steps=4, **settings)(net, x, y)
    plain = PGD(threat, steps=4, **settings)(net, x.contiguous(), y)
    torch.testing.assert_close(result, plain, rtol=0, atol=1e-10)
    placed.check(view_too=True)
    if layout == "channels_last":
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("threat", [L2(0.5), Linf(4 / 255)], ids=["l2", "linf"])
def test_autocast_computes_in_half_and_moves_in_float32(dtype, threat):
    """The model sees half numbers; the iterates stay float32 and in the ball of float32."""
    net, (x, y) = convnet(), images()
    seen = set()
    net[0].register_forward_hook(lambda module, args, output: seen.add((args[0].dtype, output.dtype)))
    x_adv = PGD(threat, steps=5, autocast=dtype)(net, x, y)
    assert seen == {(F32, dtype)}
    assert x_adv.dtype == F32 and (x_adv >= 0).all() and (x_adv <= 1).all()
    d = (x_adv.double() - x.double()).flatten(1)
    if threat.norm == "linf":
        eps = torch.tensor(threat.eps)
        assert ((x_adv >= x - eps) & (x_adv <= x + eps)).all()
        assert len(x_adv.sub(x).unique()) > 10  # not on a half grid
    else:
        assert (d.norm(dim=1) <= threat.eps + 1e-6).all() and (d.norm(dim=1) > 0.4).all()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("autocast", [None, BF16])
def test_inside_the_users_own_autocast(mode, autocast):
    """An evaluation loop: clean forward, attack, forward, all under autocast. The attack takes its own setting, and the
    casts of weights that autocast keeps must not cut a later training step off from its parameters."""
    net, (x, y) = convnet(), images()
    attack = PGD(L2(0.5), steps=3, autocast=autocast)
    want = attack(net, x, y)
    with torch.autocast("cpu", dtype=BF16):
        with mode():
            net(x)
            assert torch.equal(attack(net, x, y), want)
        attack.replace(steps=0).run(net, x, y)
        loss = net(want).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())


class Output(OrderedDict):
    """As transformers.ModelOutput: a dict with attributes."""

    @property
    def logits(self):
        return self["logits"]


def test_forms_of_a_models_output():
    net, (x, y) = convnet(), images()
    attack = PGD(L2(0.5), steps=3, keep="best")
    want = attack(net, x, y)
    for wrap in (
        lambda z: Output(logits=z, loss=None),
        lambda z: SimpleNamespace(logits=z, hidden=3),
        lambda z: {"features": z * 2, "logits": z},
    ):
        assert torch.equal(attack(lambda v, wrap=wrap: wrap(net(v)), x, y), want)
    for wrong, kind in ((lambda z: (z, z), "tuple"), (lambda z: {"output": z}, "dict"), (lambda z: None, "NoneType")):
        with pytest.raises(TypeError, match=f"logits as a tensor or an output with .logits, got {kind}"):
            attack(lambda v, wrong=wrong: wrong(net(v)), x, y)
    for wrong in (lambda z: z[:, :0], lambda z: z[:3], lambda z: z[:, :, None]):
        with pytest.raises(ValueError, match=r"logits \[B, classes\] with B = 6, got"):
            attack(lambda v, wrong=wrong: wrong(net(v)), x, y)


class Overridden(nn.Module):
    """train() is the user's own; calling it would be seen."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = convnet(), []

    def train(self, mode=True):
        self.calls.append(mode)
        return super().train(mode)

    def forward(self, x):
        assert not self.training and not self.net.training
        return self.net(x)


def test_modules_that_override_train_are_not_asked():
    module, (x, y) = Overridden(), images()
    module.train()
    calls = list(module.calls)
    PGD(L2(0.5), steps=2)(module, x, y)
    assert module.calls == calls and module.training and module.net.training and module.net[1].training


@pytest.mark.slow
def test_scripted_and_compiled_modules():
    net, (x, y) = convnet(), images()
    attack = PGD(L2(0.5), steps=3, keep="best")
    want = attack(net, x, y)
    traced = torch.jit.trace(net, x)
    torch.testing.assert_close(attack(traced, x, y), want, rtol=0, atol=1e-5)
    torch._dynamo.reset()
    net.train()
    compiled = torch.compile(net, backend="aot_eager")
    statistics = net[1].running_mean.clone()
    torch.testing.assert_close(attack(compiled, x, y), want, rtol=0, atol=1e-5)
    assert torch.equal(net[1].running_mean, statistics) and net.training and compiled.training


def test_shared_and_nested_wrappers():
    net, (x, y) = convnet(), images()
    want = PGD(L2(0.5), steps=3)(net, x, y)
    net.train()
    statistics = net[1].running_mean.clone()
    parallel = nn.DataParallel(net)
    ensemble = SimpleNamespace(parts=[net, net])

    def averaged(v):
        return sum(part(v) for part in ensemble.parts) / 2

    assert torch.equal(PGD(L2(0.5), steps=3)(parallel, x, y), want)
    assert torch.equal(net[1].running_mean, statistics) and net.training
    net.eval()
    torch.testing.assert_close(PGD(L2(0.5), steps=3)(averaged, x, y), want, rtol=0, atol=1e-6)


def test_exceptions_from_anywhere_leave_the_model_as_it_was():
    net, (x, y) = convnet().train(), images()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    flags, rng = [m.training for m in net.modules()], torch.get_rng_state()

    def objective(model, v, t):
        model(v)
        raise KeyboardInterrupt

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.clone()

        @staticmethod
        def backward(ctx, g):
            raise MemoryError

    for error, model, settings in (
        (KeyboardInterrupt, net, {"objective": objective}),
        (MemoryError, lambda v: net(Backward.apply(v)), {}),
        (ValueError, net, {"objective": lambda m, v, t: m(v)}),  # not one value a sample
        (TypeError, lambda v: [net(v)], {}),
    ):
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode(), pytest.raises(error):
                PGD(L2(0.5), steps=3, random_start=True, seed=0, **settings).run(model, x, y)
    assert [m.training for m in net.modules()] == flags and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters()) and torch.is_grad_enabled()


@pytest.mark.parametrize("wrap", [Distributed, lambda net: torch.compile(Distributed(net))])
@pytest.mark.parametrize(
    "attack",
    [
        PGD(L2(0.5), steps=2),
        PGD(L2(0.5), steps=2, stop="success"),
        advfeat.APGD(L2(0.5), steps=2),
        advfeat.Auto(L2(0.5), steps=2, target_classes=1),
    ],
)
def test_processes_do_not_wait_for_each_other(attack, wrap):
    net, (x, _) = convnet(), images()
    y = net(x).argmax(dim=1)
    model = wrap(net).train()
    got = attack(model, x, y)
    assert all(m.training for m in model.modules())
    assert torch.equal(got, attack(net, x, y))


def test_iterates_do_not_share_memory():
    """What comes back belongs to the caller: not the input, not the start, not the last iterate of another call."""
    net, (x, y) = convnet(), images()
    for settings in ({"steps": 0}, {"steps": 2}, {"steps": 0, "keep": "best"}, {"steps": 2, "stop": "success"}):
        attack = PGD(L2(0.5), step_size=0.1, **settings)
        start = x + 0.01
        kept, kept_start = x.clone(), start.clone()
        for out in (attack(net, x, y), attack(net, x, y, start=start), attack.run(net, x, y).x_adv):
            out.fill_(-1.0)
        assert torch.equal(x, kept) and torch.equal(start, kept_start)


def test_a_start_is_projected():
    net, (x, y) = convnet(), images()
    start = torch.rand(6, 3, 8, 8) * 5 - 2
    for threat in (L2(0.3), Linf(0.1)):
        want = threat.project_(start.clone(), x)
        assert torch.equal(PGD(threat, steps=0, step_size=0.1)(net, x, y, start=start), want)
        assert (PGD(threat, steps=3).run(net, x, y, start=start).distance <= threat.eps + 1e-6).all()


@pytest.mark.parametrize("settings", [{}, {"keep": "best"}, {"stop": "success"}])
def test_eps_zero_is_the_input(settings):
    net, (x, y) = convnet(), images()
    for threat in (L2(0.0), Linf(0.0)):
        assert torch.equal(PGD(threat, steps=3, step_size=0.1, random_start=True, **settings)(net, x, y), x)


def test_numbers_without_dimensions_and_for_one_channel():
    net, (x, y) = convnet(), images()
    want = PGD(L2(0.4, 0.0, 1.0), steps=4, step_size=0.125)(net, x, y)
    for threat in (
        L2(torch.tensor(0.4, dtype=F64)),
        L2(torch.full((6,), 0.4, dtype=F64), torch.zeros(3), torch.ones(1, 3, 1, 1)),
        L2(0.4, torch.tensor(0.0), torch.tensor(1.0)),
    ):
        assert torch.equal(PGD(threat, steps=4, step_size=torch.tensor(0.125))(net, x, y), want)
        stopped = PGD(threat, steps=4, step_size=torch.tensor(0.125), stop="success").run(net, x, y)
        assert torch.equal(
            stopped.success, PGD(L2(0.4), steps=4, step_size=0.125, stop="success").run(net, x, y).success
        )


def test_normalised_linf_is_the_pixel_attack_scaled():
    """With one std for all channels; the box by channel stands for the pixels' [0, 1]."""
    net, (x, y) = convnet().double(), images(1)
    x, eps, std = x.double(), 0.05, 0.25
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=F64)
    column = mean[:, None, None]
    pixel = PGD(Linf(eps), steps=6, step_size=0.02)(lambda v: net((v - column) / std), x, y)
    threat = Linf(eps / std, lo=(0 - mean) / std, hi=(1 - mean) / std)
    normalised = PGD(threat, steps=6, step_size=0.02 / std)(net, (x - column) / std, y)
    torch.testing.assert_close(normalised * std + column, pixel, rtol=0, atol=1e-14)
    assert (pixel - x).abs().max() > 0.9 * eps


def test_over_a_data_set():
    net, (x, y) = convnet().double(), images(10)
    x = x.double()
    attack = PGD(L2(0.4), steps=3, random_start=True, seed=0, keep="best")
    whole = attack.run(net, x, y)
    for cut in (1, 4, 10):
        results = [r for _, r in attack.over(net, ((x[i : i + cut], y[i : i + cut]) for i in range(0, 10, cut)))]
        torch.testing.assert_close(torch.cat([r.x_adv for r in results]), whole.x_adv, rtol=0, atol=1e-12)
        assert torch.equal(torch.cat([r.success for r in results]), whole.success)
    ids = torch.arange(10).flip(0)
    named = torch.cat([r.x_adv for _, r in attack.over(net, [(x[:5], y[:5], ids[:5]), (x[5:], y[5:], ids[5:])])])
    torch.testing.assert_close(named, attack(net, x, y, sample_ids=ids), rtol=0, atol=1e-12)
    assert not torch.allclose(named, whole.x_adv)


def test_objectives_may_call_the_model_more_than_once():
    """The prediction is read off the last call; every call is the user's own wish."""
    net, (x, y) = convnet(), images()
    calls = []

    def trades(model, v, t):
        clean = model(v.detach() * 0 + 0.5).softmax(1)
        calls.append(len(v))
        return nn.functional.kl_div(model(v).log_softmax(1), clean, reduction="none").sum(1)

    result = PGD(L2(0.5), steps=4, objective=trades, keep="best").run(net, x, y)
    assert calls == [6] * 5 and torch.equal(net(result.x_adv).argmax(1) != y, result.success)


def test_models_attributes_are_reached_through_the_attack():
    """An objective sees the model as it is, its methods and submodules included."""
    net = advfeat.models.create("small-convnet", 5, (3, 8, 8), width=4).eval()
    x, y = images()
    seen = []

    def objective(model, v, t):
        seen.append((model.num_classes, model.head is net.head))
        return CrossEntropy().value(model, v, t) + 0 * model.representation(v).sum(1)

    got = PGD(L2(0.5), steps=2, objective=objective)(net, x, y)
    assert seen == [(5, True)] * 2
    torch.testing.assert_close(got, PGD(L2(0.5), steps=2, objective=Margin(1.0))(net, x, y), rtol=0, atol=1e-4)
