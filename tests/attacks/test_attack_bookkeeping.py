"""keep, stop, restarts, targeted and their mixtures against a plain loop over samples, written from the docstrings."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn

from advfeat import APGD, L2, PGD, Auto, Converged, CrossEntropy, Linf, Margin, reference

F64 = torch.float64
EPS = torch.tensor([0.15, 0.3, 0.0, 0.5, 0.25, 0.4, 0.05, 0.35, 0.2, 0.6], dtype=F64)
SIZE = torch.tensor([0.1, 0.3, 0.1, 0.2, 0.05, 0.4, 0.1, 0.15, 0.2, 0.02], dtype=F64)
BOX = (0.1, 0.9)
STEPS = 6


def model_and_data():
    g = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 4)).to(F64)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=F64) * 0.7
    x = torch.rand(len(EPS), 2, 4, generator=g, dtype=F64) * 0.8 + 0.1
    y = net(x).argmax(1)
    y[3] = (y[3] + 1) % 4  # misclassified from the start
    return net, x, y


def value_and_grad(net, x, y):
    x = x.clone().requires_grad_()
    z = net(x[None])[0]
    value = torch.logsumexp(torch.cat([z[:y], z[y + 1 :]]), 0) - z[y]
    (grad,) = torch.autograd.grad(value, x)
    return value.item(), int(z.argmax()), grad


@functools.cache
def _plain_run(norm, eps, size, targeted, seed, i):
    """All visited (x, value, success) of one sample's six steps: what keep, stop and restarts choose from.

    seed: None without a random start. Cached, for the cases differ in what they choose more than in where they go.
    """
    net, data, labels = model_and_data()
    x0, y, sign = data[i], int(labels[i]), -1 if targeted else 1
    y = (y + 1) % 4 if targeted else y
    step, project = getattr(reference, f"{norm}_step"), getattr(reference, f"project_{norm}")
    x = x0[None]
    if seed is not None:
        x = getattr(reference, f"random_start_{norm}")(x, eps, seed, torch.tensor([i]), *BOX)
    x, visited = project(x, x0[None], eps, *BOX)[0], []
    for _ in range(STEPS + 1):
        value, label, grad = value_and_grad(net, x, y)
        visited.append((x.clone(), value, label == y if targeted else label != y))
        x = step(x[None], grad[None], x0[None], sign * size, eps, *BOX)[0]
    return visited


def one_sample(i, *, norm, eps, size, steps, keep, stop, restarts, random_start, targeted, seed):
    """What the documentation promises for one sample: x_adv, value, success, first_success."""
    sign, chosen, first_success = (-1 if targeted else 1), None, -1
    for restart in range(restarts):
        if stop == "success" and chosen and chosen[2]:
            break
        start = seed + (restart << 40) if random_start else None
        visited, record, since = [], None, 0
        for k, (x, value, success) in enumerate(_plain_run(norm, eps, size, targeted, start, i)[: steps + 1]):
            visited.append((x, value, success))
            if success and first_success < 0:
                first_success = k
            if stop == "success" and success:
                break
            if isinstance(stop, Converged):
                rank = sign * value
                if record is None or rank > record + stop.tolerance * abs(record):
                    record, since = rank, 0
                else:
                    since += 1
                if since >= stop.patience:
                    break
        candidates = visited if keep == "best" else visited[-1:]
        if chosen:
            candidates = [chosen, *candidates]
        chosen = max(candidates, key=lambda c: (c[2], sign * c[1]))  # a success first, then the objective
    return *chosen, first_success


ALL = list(
    itertools.product(
        ["l2", "linf"],
        ["last", "best"],
        [None, "success", Converged(2, 0.3)],
        [(1, False), (1, True), (3, True)],
        [False, True],
    )
)


@pytest.mark.parametrize(("norm", "keep", "stop", "starts", "targeted"), ALL)
@pytest.mark.parametrize("steps", [0, STEPS])
def test_bookkeeping_is_the_plain_loops(norm, keep, stop, starts, targeted, steps):
    restarts, random_start = starts
    net, x, y = model_and_data()
    target = (y + 1) % 4 if targeted else y
    settings = {"steps": steps, "keep": keep, "stop": stop, "restarts": restarts, "random_start": random_start}
    settings |= {"targeted": targeted, "seed": 11}
    threat = {"l2": L2, "linf": Linf}[norm](EPS, *BOX)
    size = SIZE if norm == "l2" else SIZE / 4
    result = PGD(threat, step_size=size, objective=Margin(1.0), **settings).run(net, x, target)
    for i in range(len(x)):
        numbers = {"norm": norm, "eps": float(EPS[i]), "size": float(size[i])}
        x_adv, value, success, first = one_sample(i, **numbers, **settings)
        assert bool(result.success[i]) == success, i
        assert int(result.first_success[i]) == first, i
        torch.testing.assert_close(result.x_adv[i], x_adv, rtol=0, atol=1e-10)
        torch.testing.assert_close(float(result.value[i]), value, rtol=0, atol=1e-9)
        order = 2 if norm == "l2" else math.inf
        distance = float(torch.linalg.vector_norm(result.x_adv[i] - x[i], order))
        torch.testing.assert_close(float(result.distance[i]), distance, rtol=1e-12, atol=1e-15)
    assert torch.equal((net(result.x_adv).argmax(1) == target) == targeted, result.success)
    called = PGD(threat, step_size=size, objective=Margin(1.0), **settings)(net, x, target)
    assert torch.equal(called, result.x_adv)


def test_the_settings_above_tell_the_variants_apart():
    """The table of cases is worth something only if keep, stop and restarts lead to different results there."""
    net, x, y = model_and_data()
    base = PGD(L2(EPS, *BOX), steps=6, step_size=SIZE, random_start=True, seed=11)
    plain = base.run(net, x, y)
    assert 2 < plain.success.sum() < 9 and len(set(plain.first_success.tolist())) > 3
    for change in ({"keep": "best"}, {"stop": "success"}, {"stop": Converged(2, 0.3)}, {"restarts": 3}):
        assert not torch.equal(base.replace(**change).run(net, x, y).x_adv, plain.x_adv), change


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type(dtype):
    net, x, y = model_and_data()
    attack = PGD(L2(0.3, *BOX), steps=4, stop="success")
    want, got = attack.run(net, x, y), attack.run(net, x, y.to(dtype))
    assert torch.equal(got.x_adv, want.x_adv) and torch.equal(got.success, want.success)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "settings", [{}, {"keep": "best"}, {"stop": "success"}, {"random_start": True, "restarts": 2, "seed": 0}]
)
def test_objectives_may_give_any_floating_type(dtype, settings):
    net, x, y = model_and_data()
    for data_dtype in (torch.float32, torch.float64):
        model, data = net.to(data_dtype), x.to(data_dtype)
        attack = PGD(L2(0.3, *BOX), steps=3, objective=lambda m, v, t: Margin().value(m, v, t).to(dtype), **settings)
        result = attack.run(model, data, y)
        assert result.value.dtype == data_dtype and result.value.isfinite().all()
        assert result.x_adv.dtype == data_dtype and not torch.equal(result.x_adv, data)


def test_forwards_and_backwards_are_counted():
    """samples_forwarded is what went through the model; a batch that shrinks costs less from the step after."""
    net, x, y = model_and_data()
    sizes = []

    def model(v):
        sizes.append(len(v))
        return net(v)

    for settings in (
        {},
        {"keep": "best"},
        {"stop": "success"},
        {"random_start": True, "restarts": 3, "stop": "success", "seed": 0},
    ):
        sizes.clear()
        attack = PGD(L2(EPS, *BOX), steps=5, step_size=SIZE, **settings)
        result = attack.run(model, x, y)
        assert result.samples_forwarded == sum(sizes)
        runs = settings.get("restarts", 1)
        if attack.stop is None:
            assert sizes == [10] * 6 * runs and result.samples_backwarded == 50 * runs
        else:
            assert sizes[1] == 10 - int((result.first_success == 0).sum()) < 10
            assert len(sizes) <= 6 * runs and result.samples_backwarded < 50 * runs
        sizes.clear()
        attack(model, x, y)
        assert len(sizes) == (5 if settings == {} else 6 if runs == 1 else len(sizes))


def test_all_samples_leave():
    net, x, y = model_and_data()
    sizes = []

    def model(v):
        sizes.append(len(v))
        return net(v)

    result = PGD(L2(1e-3, *BOX), steps=50, stop="success", random_start=True, restarts=4).run(model, x, (y + 1) % 4)
    assert result.success.all() and (result.first_success == 0).all()
    assert sizes == [10]  # one look, and nobody is left: not for the other steps, nor for the other restarts


def test_gradient_counts_follow_their_samples_through_a_shrinking_batch():
    net, x, y = model_and_data()

    class Zero(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return v.clone()

        @staticmethod
        def backward(
            ctx, g
        ):  # a sample is known by its own values: no gradient where the first one is that of sample 6
            (v,) = ctx.saved_tensors
            frozen = (v[:, 0, 0] == x[6, 0, 0])[:, None, None]
            return torch.where(frozen, torch.zeros_like(g), g)

    attack = PGD(L2(EPS, *BOX), steps=6, step_size=SIZE, stop="success")
    result = attack.run(lambda v: net(Zero.apply(v)), x, y)
    assert 0 < result.success.sum() < 10 and not result.success[6]
    assert result.zero_grad_steps.tolist() == [0, 0, 0, 0, 0, 0, 6, 0, 0, 0]
    assert (result.nonfinite_grad_steps == 0).all()


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
@pytest.mark.parametrize(
    "settings", [{}, {"keep": "best", "random_start": True, "restarts": 2, "seed": 0}, {"stop": "success"}]
)
def test_a_sample_does_not_know_its_batch(objective, settings):
    net, x, y = model_and_data()
    ids = torch.arange(10) * 7
    whole = PGD(L2(0.3, *BOX), steps=5, objective=objective, **settings).run(net, x, y, sample_ids=ids)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    for part in (order[:3], order[3:4], order[4:]):
        alone = PGD(L2(0.3, *BOX), steps=5, objective=objective, **settings).run(
            net, x[part], y[part], sample_ids=ids[part]
        )
        torch.testing.assert_close(alone.x_adv, whole.x_adv[part], rtol=0, atol=1e-12)
        assert torch.equal(alone.success, whole.success[part])
        assert torch.equal(alone.first_success, whole.first_success[part])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("starts", [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("sizes", [(4, 4, 4, 4, 4), (7, 0, 1, 12), (20,), (1, 19)])
def test_a_full_batch_finds_what_each_batch_finds(norm, keep, starts, targeted, sizes):
    restarts, random_start = starts
    net, x, y = model_and_data()
    x, y = torch.cat([x, 1 - x]), torch.cat([y, y])
    target = (y + 1) % 4 if targeted else y
    threat = {"l2": L2(0.3, *BOX), "linf": Linf(0.12, *BOX)}[norm]
    attack = PGD(threat, steps=6, keep=keep, restarts=restarts, random_start=random_start, targeted=targeted, seed=0)
    attack = attack.replace(stop="success", seed=3)
    assert sum(sizes) == len(x)
    parts = list(zip(x.split(sizes), target.split(sizes), torch.arange(20).split(sizes), strict=True))
    pulled = []

    def batches():
        for part in parts:
            pulled.append(torch.is_grad_enabled())
            yield part[:2]

    with torch.no_grad():
        results = [result for _, result in attack.over(net, batches())]
    assert pulled == [False] * len(sizes)  # the loader runs in the caller's own modes
    assert [len(r.x_adv) for r in results] == list(sizes)
    for result, (x_part, target_part, ids) in zip(results, parts, strict=True):
        alone = attack.run(net, x_part, target_part, sample_ids=ids)
        torch.testing.assert_close(result.x_adv, alone.x_adv, rtol=0, atol=1e-12)
        torch.testing.assert_close(result.value.double(), alone.value.double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(result.distance.double(), alone.distance.double(), rtol=0, atol=1e-12)
        for name in ("success", "first_success", "zero_grad_steps", "nonfinite_grad_steps"):
            assert torch.equal(getattr(result, name), getattr(alone, name)), name


def test_passes_are_full_until_the_data_run_out():
    net, x, y = model_and_data()
    x, y = x.repeat(6, 1, 1), y.repeat(6)
    sizes = []

    def model(v):
        sizes.append(len(v))
        return net(v)

    attack = PGD(L2(0.3, *BOX), steps=20, stop="success")
    list(attack.over(model, zip(x.split(10), y.split(10), strict=True)))
    pooled = list(sizes)
    assert pooled == sorted(pooled, reverse=True) and pooled.count(10) >= 0.6 * len(pooled)
    sizes.clear()
    for a, b in zip(x.split(10), y.split(10), strict=True):
        attack.run(model, a, b)
    assert len(pooled) < 0.6 * len(sizes)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(L2(0.1, *BOX), steps=6, random_start=True, restarts=2, seed=0),
        PGD(L2(0.1, *BOX), steps=6, random_start=True, restarts=2, seed=0, stop="success"),
        APGD(L2(0.1, *BOX), steps=6),
        Auto(L2(0.1, *BOX), steps=6),
    ],
)
def test_a_default_device_changes_nothing(attack):
    net, x, y = model_and_data()
    wanted = [r.x_adv for _, r in attack.over(net, zip(x.split(3), y.split(3), strict=True))]
    with torch.device("meta"):
        found = [r.x_adv for _, r in attack.over(net, zip(x.split(3), y.split(3), strict=True))]
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_slow_sample_holds_few_batches_up():
    """The first sample takes all the steps, and what waits for it lies in the device's memory."""
    net, x, y = model_and_data()
    attack = PGD(L2(0.1, *BOX), steps=150, step_size=0.05, stop="success")
    alone = attack.run(net, x, y)
    slow, fast = (~alone.success).nonzero()[0], (alone.success & (alone.first_success < 4)).nonzero()[:, 0]
    rows = torch.cat([slow, fast.repeat(120)])
    pulled = []

    def batches():
        for part in rows.split(3):
            pulled.append(len(part))
            yield x[part], y[part]

    waiting = []
    for k, (_, result) in enumerate(attack.over(net, batches())):
        waiting.append(len(pulled) - k)
        part = rows.split(3)[k]
        torch.testing.assert_close(result.x_adv, alone.x_adv[part], rtol=0, atol=1e-12)
        assert torch.equal(result.first_success, alone.first_success[part])
    assert len(rows.split(3)) > 50 and max(waiting) == 32


def test_a_full_batch_leaves_the_model_alone_between_results():
    net, x, y = model_and_data()
    net.train()
    attack = PGD(L2(0.3, *BOX), steps=6, stop="success")
    for _ in attack.over(net, zip(x.split(3), y.split(3), strict=True)):
        assert net.training and all(m.training for m in net)
    with pytest.raises(ValueError, match="target holds label 9"):
        list(attack.over(net, [(x[:3], y[:3]), (x[3:5], torch.tensor([1, 9]))]))
    assert net.training
