"""Steps replayed as graphs give what eager steps give; and a model that cannot be captured still runs, and says why."""

import itertools
import warnings

import pytest
import torch
from support.recorded_graph import record
from torch import nn

from advfeat import APGD, L2, PGD, Auto, Converged, Linf, Representation
from advfeat.attacks import pool, replay


@pytest.fixture
def graphs(monkeypatch):
    """Recorded graphs for the CPU; returns what was recorded."""
    recorded = []

    def captured(body, device):
        recorded.append(device)
        return record(body, device)

    monkeypatch.setattr(replay, "_why_not", lambda device: None)
    monkeypatch.setattr(replay, "_aside", lambda body, device: body())
    monkeypatch.setattr(replay, "_captured", captured)
    monkeypatch.setattr(replay, "_said", set())
    return recorded


@pytest.fixture
def net():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 4))
    return net.eval()


def data(n=12):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 2, 4, 4, generator=g), torch.randint(4, (n,), generator=g)


def same(a, b):
    torch.testing.assert_close(a.x_adv, b.x_adv, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.value, b.value, rtol=1e-5, atol=1e-5, equal_nan=True)
    for name in ("success", "first_success", "zero_grad_steps", "nonfinite_grad_steps"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.samples_forwarded == b.samples_forwarded and a.samples_backwarded == b.samples_backwarded


CASES = list(
    itertools.product(
        [L2(0.3), Linf(0.1), L2(torch.linspace(0, 0.6, 12))], ["last", "best"], [(1, False), (2, True)], [False, True]
    )
)


@pytest.mark.parametrize(("threat", "keep", "starts", "targeted"), CASES)
def test_a_replayed_step_is_an_eager_step(graphs, net, threat, keep, starts, targeted):
    x, y = data()
    settings = {"keep": keep, "restarts": starts[0], "random_start": starts[1], "targeted": targeted, "step_size": 0.05}
    attack = PGD(threat, steps=40, seed=0, **settings)
    replayed, eager = attack.run(net, x, y), attack.replace(graph=False).run(net, x, y)
    same(replayed, eager)
    assert len(graphs) == 1, "one graph serves all steps and restarts"
    assert replayed.why_eager is None and eager.why_eager == "graph=False"
    assert torch.equal(attack(net, x, y), replayed.x_adv) and len(graphs) == 2


@pytest.mark.parametrize("stop", [None, "success"])
@pytest.mark.parametrize("kind", [L2, Linf])
@pytest.mark.parametrize(
    "extra",
    [
        {"schedule": "cosine"},
        {"momentum": 0.5},
        {"schedule": "cosine", "momentum": 0.75},
        {"momentum": 1.0, "momentum_form": "mi-fgsm"},
    ],
    ids=str,
)
def test_step_sizes_and_velocities_move_in_a_replayed_graph(graphs, net, kind, extra, stop):
    net, (x, y) = net.double(), data(36)  # in float32 another batch has other roundings, and signs with them
    x = x.double()
    attack = PGD(kind(0.2), steps=40, keep="best", stop=stop, random_start=True, restarts=2, seed=0, **extra)
    batches = list(zip(x.split(12), y.split(12), torch.arange(36).split(12), strict=True))
    eager = [attack.replace(graph=False).run(net, a, b, sample_ids=ids) for a, b, ids in batches]
    for (_, got), want in zip(attack.over(net, batches), eager, strict=True):
        same(got, want)
        assert got.why_eager is None or stop == "success"  # its last samples are too few for a graph of their own
    assert graphs


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_polyaks_step_is_replayed(graphs, net, momentum):
    x, _ = data()
    settings = {"objective": Representation(features=net[:4]), "targeted": True, "momentum": momentum}
    attack = PGD(L2(float("inf")), 40, "polyak", schedule="cosine", **settings)
    target = net[:4](x.flip(0)).detach()
    replayed, eager = attack.run(net, x, target), attack.replace(graph=False).run(net, x, target)
    torch.testing.assert_close(replayed.x_adv, eager.x_adv, rtol=0, atol=1e-6)
    assert len(graphs) == 1 and replayed.why_eager is None


def test_a_replayed_step_under_autocast_and_a_custom_objective(graphs, net):
    x, y = data()
    attack = PGD(L2(0.3), steps=40, autocast=torch.bfloat16)
    same(attack.run(net, x, y), attack.replace(graph=False).run(net, x, y))
    match = PGD(L2(float("inf")), 40, 0.05, objective=Representation(features=net[:4]), targeted=True)
    target = net[:4](x.flip(0)).detach()
    a, b = match.run(net, x, target), match.replace(graph=False).run(net, x, target)
    torch.testing.assert_close(a.x_adv, b.x_adv, rtol=0, atol=1e-6)
    assert a.success is None and b.success is None and len(graphs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("starts", [(1, False), (3, True)])
@pytest.mark.parametrize("stop", ["success", Converged(4, 0.05)])
def test_a_full_batch_replayed_and_read_late(graphs, monkeypatch, net, keep, starts, stop):
    """As on CUDA: static places, one graph, and a host that learns who is done a step late."""
    x, y = data(36)
    attack = PGD(L2(0.25), steps=25, stop=stop, keep=keep, restarts=starts[0], random_start=starts[1], seed=0)
    batches = list(zip(x.split(12), y.split(12), torch.arange(36).split(12), strict=True))
    eager = [attack.replace(graph=False).run(net, a, b, sample_ids=ids) for a, b, ids in batches]
    for lag, pack_at, replays in itertools.product((0, 1), (0.5, 1.0), (False, True)):
        graphs.clear()
        monkeypatch.setattr(pool, "_lag_on", lambda device, lag=lag: lag)
        monkeypatch.setattr(pool, "_pack_at", lambda device, pack_at=pack_at: pack_at)
        for (_, got), want in zip(attack.replace(graph=replays).over(net, batches), eager, strict=True):
            same(got, want)
        assert bool(graphs) == replays and len(graphs) < 10


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("starts", [(1, False), (2, True)])
def test_batches_of_a_kind_share_one_graph(graphs, net, keep, starts):
    x, y = data(40)
    attack = PGD(L2(0.3), steps=12, keep=keep, restarts=starts[0], random_start=starts[1], seed=0)
    batches = list(zip(x.split(12), y.split(12), torch.arange(40).split(12), strict=True))
    batches[1:1] = [(x[:0], y[:0], torch.arange(0))]
    alone = [attack.replace(graph=False).run(net, a, b, sample_ids=ids) for a, b, ids in batches]
    results = [result for _, result in attack.over(net, batches)]  # all held: none may change when the next comes
    for got, want in zip(results, alone, strict=True):
        same(got, want)
    assert len(graphs) == 3  # before and after the empty batch, and for the last four samples
    with pytest.raises(ValueError, match="target holds label 4, but the model has 4 classes"):
        list(attack.over(net, [(x[:12], y[:12]), (x[12:24], torch.full((12,), 4))]))


@pytest.mark.parametrize("stop", [None, "success", Converged(3)])
def test_counts_of_bad_gradients_are_each_batchs_own(net, stop):
    x, y = data(36)
    bad = {float(v) for v in x[:12, 0, 0, 0]}

    def model(v):
        zero = torch.tensor([w in bad for w in v[:, 0, 0, 0].tolist()])
        return torch.where(zero[:, None], net(v).detach() + 0 * v.sum(), net(v))

    model_of = net(x).argmax(1)  # nobody is wrong from the start
    attack = PGD(L2(0.02), steps=6, stop=stop)
    batches = list(zip(x.split(12), model_of.split(12), strict=True))
    first, *others = (result for _, result in attack.over(model, batches))
    assert (first.zero_grad_steps > 0).sum() >= 11
    for got, (a, b) in zip(others, batches[1:], strict=True):
        assert torch.equal(got.zero_grad_steps, attack.run(model, a, b).zero_grad_steps)
        assert not got.zero_grad_steps.any()


@pytest.mark.parametrize("stop", ["success", Converged(3, 0.1)])
def test_a_start_of_ones_own_with_a_stop(net, stop):
    x, y = data()
    start = (x + 0.05).clamp(0, 1)
    attack = PGD(L2(0.3), steps=9, stop=stop)
    together = attack.run(net, x, y, start=start)
    for i in range(12):
        same_sample = attack.run(net, x[i : i + 1], y[i : i + 1], start=start[i : i + 1])
        torch.testing.assert_close(together.x_adv[i : i + 1], same_sample.x_adv, rtol=0, atol=1e-6)
    assert not torch.equal(together.x_adv, attack.run(net, x, y).x_adv)


def test_batches_of_another_kind_are_named(net):
    x, y = data(24)
    attack = PGD(L2(0.3), steps=5, stop="success")
    wrong = (net(x[:12]).argmax(1) + 1) % 4  # all of them leave at once
    with pytest.raises(ValueError, match=r"x should be like that of the batches before, torch.float32 of shape \[B, 2"):
        list(attack.over(net, [(x[:12], wrong), (x[12:].double(), y[12:])]))
    with pytest.raises(ValueError, match="target should be like that of the batches before"):
        list(attack.over(net, [(x[:12], wrong), (x[12:], y[12:].float())]))
    assert len(list(attack.over(net, [(x[:12], wrong), (x[12:], y[12:].to(torch.int32))]))) == 2  # labels all the same


def test_converged_from_an_infinite_value(net):
    """The first finite value after an infinite one is a gain."""
    x, y = data(4)
    calls = []

    def objective(model, v, t):
        calls.append(1)
        return model(v)[:, 0] + (-float("inf") if len(calls) <= 2 else len(calls))

    result = PGD(L2(0.3), steps=12, stop=Converged(3), objective=objective).run(net, x, y)
    assert result.samples_forwarded == 4 * 13 and result.value.isfinite().all()


def test_nothing_of_a_batch_is_left_in_the_next(net):
    """Where every value is NaN no iterate is better than another, and the sample itself is returned."""
    x, y = data(24)
    broken = nn.Sequential(net, nn.Threshold(-1e9, 0))
    broken.forward = lambda v: net(v) * torch.where(v[:, :1, 0, 0] == x[12, 0, 0, 0], float("nan"), 1.0)
    for attack in (PGD(L2(0.3), steps=3, keep="best"), PGD(L2(0.3), steps=3)):
        results = [r for _, r in attack.over(broken, [(x[:12], y[:12]), (x[12:], y[12:])])]
        assert torch.equal(results[1].x_adv[0], x[12])
        same(results[1], attack.run(broken, x[12:], y[12:]))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda v: v * float(v.amax().item() > 0), "capturing: _local_scalar_dense"),
        (lambda v: v if bool((v > 0).any()) else -v, "capturing: (is_nonzero|_local_scalar_dense)"),
        (lambda v: v * len(v[v > 2]) + v, "capturing: index"),
    ],
)
def test_a_model_that_cannot_be_captured_runs_and_says_why(graphs, net, fault, reason):
    x, y = data()
    attack = PGD(L2(0.3), steps=40)
    with pytest.warns(RuntimeWarning, match=f"cannot be captured into a CUDA graph.*{reason}"):
        result = attack.run(lambda v: fault(net(v)), x, y)
    assert "RuntimeError: operation not permitted" in result.why_eager
    same(result, attack.replace(graph=False).run(lambda v: fault(net(v)), x, y))
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        attack.run(lambda v: fault(net(v)), x, y)


def test_few_steps_are_not_worth_a_graph(graphs, net):
    x, y = data()
    result = PGD(L2(0.3), steps=31).run(net, x, y)
    assert not graphs and "too few steps" in result.why_eager
    PGD(L2(0.3), steps=32).run(net, x, y)
    assert len(graphs) == 1
    list(PGD(L2(0.3), steps=8).over(net, [(x, y)]))  # more batches may follow
    assert len(graphs) == 2


def test_a_model_that_changes_from_call_to_call_wants_no_graph(graphs, net):
    """The documented limit: what Python decides is decided once in a graph, every time without."""
    x, y = data()
    calls = []

    def model(v):
        calls.append(len(v))
        return net(v) * (1 if len(calls) % 2 else -1)

    PGD(L2(0.3), steps=40).run(model, x, y)
    assert len(calls) == 4  # two eager steps, the capture, the last look
    calls.clear()
    PGD(L2(0.3), steps=40, graph=False).run(model, x, y)
    assert len(calls) == 41


@pytest.mark.parametrize("threat", [L2(0.3), Linf(0.05), L2(torch.linspace(0.1, 0.6, 12))])
@pytest.mark.parametrize(("restarts", "random_start"), [(1, False), (2, True)])
@pytest.mark.parametrize("steps", [1, 2, 9, 40])
def test_auto_pgd_replayed(graphs, net, threat, restarts, random_start, steps):
    x, y = data()
    attack = APGD(threat, steps=steps, restarts=restarts, random_start=random_start)
    replayed, eager = attack.run(net, x, y), attack.replace(graph=False).run(net, x, y)
    same(replayed, eager)
    assert (replayed.why_eager is None) == (steps == 40) == bool(graphs)


@pytest.mark.parametrize("over", [False, True])
def test_the_look_at_the_samples_does_not_say_that_auto_runs_eagerly(graphs, net, over):
    """A look has no step to replay; the attacks after it do, and they are what the result speaks of."""
    x, _ = data()
    y = net(x).argmax(1)  # none is wrong from the start
    attack = Auto(L2(0.02), steps=60, target_classes=1)
    result = next(attack.over(net, [(x, y)]))[1] if over else attack.run(net, x, y)
    assert graphs and not result.success.all() and result.why_eager is None
