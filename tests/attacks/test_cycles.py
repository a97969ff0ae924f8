"""``skip_cycles``: an attack that walks in circles ends early, with bit for bit the result of all steps."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.recorded_graph import record
from support.tanh_network import tanh_network
from torch import nn

from advfeat import L2, PGD, Converged, Linf, Representation, ops
from advfeat.attacks import pool, replay
from advfeat.attacks.cycles import HISTORY, Cycles

F64 = torch.float64
ENDLESS = Converged(patience=10**9, tolerance=0.0)  # the pool, with all steps


class OneByOne(nn.Module):
    """A model whose outputs do not depend on the batch in a single bit: it takes one sample at a time."""

    def __init__(self, net):
        super().__init__()
        self.net, self.samples = net, 0

    def forward(self, x):
        self.samples += len(x)
        return torch.cat([self.net(row) for row in x.split(1)])


def problem(dtype=F64, n=12, seed=0):
    """A smooth network one by one, images, and labels drawn at random."""
    net, _, _ = tanh_network(1)
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand(n, 3, 4, generator=g).to(dtype), torch.randint(5, (n,), generator=g)
    return OneByOne(net.to(dtype)), x, y


def assert_equal(skipped, full, value_too=True):
    for f in dataclasses.fields(full):
        a, b = getattr(skipped, f.name), getattr(full, f.name)
        if isinstance(b, torch.Tensor) and (value_too or f.name != "value"):
            assert torch.equal(a, b), f.name


def run_both(attack, *arguments, **options):
    """The results with cycles skipped, and of all steps from the same loop, with whatever stop there is."""
    full = attack.replace(stop=attack.stop or ENDLESS)
    return attack.replace(skip_cycles=True).run(*arguments, **options), full.run(*arguments, **options)


@pytest.mark.parametrize("stop", [None, "success", Converged(7, 0.01), Converged(30, 0.0)], ids=str)
@given(
    targeted=st.booleans(),
    keep=st.sampled_from(["last", "best"]),
    dtype=st.sampled_from([torch.float32, F64]),
    steps=st.integers(0, 60),
    eps=st.sampled_from([0.02, 0.1, 0.3]),
    part=st.sampled_from([1.0, 0.25, 0.3, 0.05]),
    restarts=st.integers(1, 2),
    random=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_result_is_that_of_all_steps(keep, stop, targeted, dtype, steps, eps, part, restarts, random, seed):
    net, x, y = problem(dtype, 3, seed)
    starts = {"random_start": random or restarts > 1, "restarts": restarts, "seed": seed}
    attack = PGD(Linf(eps), steps, part * eps, keep=keep, stop=stop, targeted=targeted, **starts)
    skipped, full = run_both(attack, net, x, y)
    assert_equal(skipped, full)
    assert skipped.samples_forwarded <= full.samples_forwarded
    assert skipped.samples_forwarded + full.samples_forwarded == net.samples


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_it_is_the_result_of_the_loop_in_step(dtype, keep, restarts):
    net, x, y = problem(dtype)
    attack = PGD(Linf(0.1), 200, 0.025, keep=keep, random_start=restarts > 1, restarts=restarts, seed=0)
    skipped, full = attack.replace(skip_cycles=True).run(net, x, y), attack.run(net, x, y)
    # The loop in step computes its last value without a gradient, which rounds otherwise.
    assert_equal(skipped, full, value_too=False)
    torch.testing.assert_close(skipped.value, full.value)
    assert skipped.samples_forwarded < 0.3 * full.samples_forwarded
    assert torch.equal(attack.replace(skip_cycles=True)(net, x, y), attack(net, x, y) if restarts == 1 else full.x_adv)


@pytest.mark.parametrize("steps", range(20, 33))
def test_the_last_iterate_is_that_of_the_last_step_whatever_is_left_of_a_lap(steps):
    """A model whose iterates go round three corners: what is left of the steps modulo three decides."""

    class Circle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.stack([x.sum(1), -x.sum(1)], dim=1)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            high = x > 0.5
            # (low, low) to (high, low) to (high, high) to (low, low)
            both, one = high[:, 0] & high[:, 1], high[:, 0] & ~high[:, 1]
            way = torch.stack([torch.where(both, -1.0, 1.0), torch.where(one, 1.0, -1.0)], dim=1)
            return way.to(x.dtype)

    x = torch.tensor([[0.5, 0.5], [0.4, 0.3]])
    attack = PGD(Linf(0.3), steps, 1.0, objective=lambda model, v, y: model(v)[:, 0])
    skipped, full = run_both(attack, Circle.apply, x, torch.zeros(2, dtype=torch.int64))
    assert_equal(skipped, full)
    # the start, the circle twice, the iterate that proves it, and up to two steps that are left of a lap
    assert skipped.samples_forwarded <= 2 * (1 + 3 + 3 + 1 + 2) < full.samples_forwarded
    later = attack.replace(steps=steps + 1).run(Circle.apply, x, torch.zeros(2, dtype=torch.int64))
    assert not torch.equal(full.x_adv, later.x_adv)


def test_the_passes_saved_are_those_after_a_cycle_is_proven():
    """A linear model: from the corner of the ball nothing moves, and two steps later that is known."""
    w = torch.tensor([[1.0, -2.0, 3.0]], dtype=F64)
    x, y = torch.full((5, 3), 0.5, dtype=F64), torch.zeros(5, dtype=torch.int64)
    attack = PGD(Linf(0.1), 1000, 0.025, skip_cycles=True)
    result = attack.run(lambda v: v @ torch.cat([w, -w]).T, x, y)
    # at the corner after step 4, where it is seen again (5), comes back (6), and has no step left
    assert result.samples_forwarded == 5 * 7
    assert torch.equal(result.x_adv, 0.5 - 0.1 * w.sign().expand(5, 3))


@pytest.mark.parametrize("kind", [L2, Linf])
def test_counts_of_bad_gradients_are_those_of_all_steps(kind):
    """Dead gradients hold a sample where it is, for either norm: a cycle of one."""
    net, x, y = problem(n=6)
    first = x[:, 0, 0].clone()

    def model(v):
        scale = torch.ones(len(v), 1, 1, dtype=F64)
        scale[torch.isin(v[:, 0, 0], first[:3])] = 0.0
        scale[torch.isin(v[:, 0, 0], first[3:4])] = float("nan")
        v = v.clone()
        if v.requires_grad:
            v.register_hook(lambda gradient: gradient * scale)
        return net(v)

    attack = PGD(kind(0.1), 500, 0.025)
    skipped, full = run_both(attack, model, x, y)
    assert torch.equal(full.zero_grad_steps[:3], torch.full((3,), 500, dtype=torch.int32))
    assert full.nonfinite_grad_steps[3] == 500
    assert_equal(skipped, full)
    assert skipped.samples_forwarded <= full.samples_forwarded - 4 * 490


@pytest.mark.parametrize("hashed", [torch.zeros, torch.ones])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_hashes_that_collide_end_nothing(monkeypatch, keep, hashed):
    net, x, y = problem()
    attack = PGD(Linf(0.1), 60, 0.004, keep=keep)
    monkeypatch.setattr(ops, "hash_rows", lambda v: hashed(len(v), dtype=torch.int64))
    skipped, full = run_both(attack, net, x, y)
    assert_equal(skipped, full)
    assert skipped.samples_forwarded > 12 * 25


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 2 * HISTORY))
def test_a_cycle_is_proven_only_where_the_iterate_has_been_before(tail, period):
    """Any sequence of iterates: what is said is true, and a cycle that lasts is found unless it is too long."""
    sequence = tail + [100 + i % period for i in range(3 * period + HISTORY)]
    x = torch.tensor(sequence, dtype=torch.float32)[:, None].expand(-1, 3)
    found = Cycles(x[:1])
    proven = []
    for k, row in enumerate(x):
        length, counts = found.closed(row[None], torch.tensor([k]), torch.full((1, 2), 5 * k, dtype=torch.int32))
        if length > 0:
            assert sequence[k] == sequence[k - int(length)]
            assert (counts == 5 * length).all()
            proven.append((k, int(length)))
    inside = [(k, length) for k, length in proven if k - length >= len(tail)]
    assert bool(inside) == (period <= HISTORY)
    if inside:
        assert inside[0][1] == period
        # two lengths after the cycle began, or after an iterate of the tail that was waited for
        assert inside[0][0] <= len(tail) + 2 * period + HISTORY


def test_zeros_of_either_sign_are_different_iterates_and_a_nan_is_itself():
    x = torch.tensor([[0.0], [-0.0], [0.0], [-0.0], [0.0]])
    found = Cycles(x[:1])
    counts = torch.zeros(1, 2, dtype=torch.int32)
    lengths = [int(found.closed(v[None], torch.tensor([k]), counts)[0]) for k, v in enumerate(x)]
    assert lengths == [0, 0, 0, 0, 2]
    found.forget(torch.tensor([0]))
    nan = torch.full((1, 1), float("nan"))
    assert [int(found.closed(nan, torch.tensor([k]), counts)[0]) for k in range(3)] == [0, 0, 1]


def test_what_was_seen_of_the_sample_before_is_forgotten():
    x, counts = torch.rand(2, 5), torch.zeros(2, 2, dtype=torch.int32)
    found = Cycles(x)
    for k in range(2):
        found.closed(x, torch.full((2,), k), counts)
    found.forget(torch.tensor([0]))
    assert found.closed(x, torch.tensor([0, 2]), counts)[0].tolist() == [0, 1]
    assert found.rows(torch.tensor([1])).closed(x[1:], torch.tensor([3]), counts[1:])[0].tolist() == [1]


@pytest.mark.parametrize("stop", [None, "success"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_places_that_become_free_are_filled(keep, stop):
    net, x, y = problem(n=40)
    attack = PGD(Linf(0.1), 120, 0.025, keep=keep, stop=stop, random_start=True, restarts=2, seed=0)
    batches = [(x[i : i + 8], y[i : i + 8], torch.arange(i, i + 8)) for i in range(0, 40, 8)]
    calls = []
    net.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    full = [attack.replace(stop=stop or ENDLESS).run(net, a, b, sample_ids=ids) for a, b, ids in batches]
    passes_full = len(calls)
    calls.clear()
    pairs = list(attack.replace(skip_cycles=True).over(net, batches))
    for (given_batch, got), want, batch in zip(pairs, full, batches, strict=True):
        assert given_batch is batch
        assert_equal(got, want)
    assert sum(got.samples_forwarded for _, got in pairs) == sum(calls) < sum(want.samples_forwarded for want in full)
    assert len(calls) < (0.3 if stop is None else 1.0) * passes_full


def test_radii_and_steps_by_sample():
    net, x, y = problem()
    eps = torch.linspace(0.0, 0.3, 12, dtype=F64)
    attack = PGD(Linf(eps), 150, eps / 4)
    skipped, full = run_both(attack, net, x, y)
    assert_equal(skipped, full)
    assert skipped.samples_forwarded < 0.5 * full.samples_forwarded
    (_, over), *_ = attack.replace(skip_cycles=True).over(net, [(x, y)])
    assert_equal(over, full)


def test_images_in_channels_last_and_an_empty_batch():
    net = OneByOne(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(80, 4))).double()
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 3, 4, 4, generator=g, dtype=F64), torch.randint(4, (6,), generator=g)
    attack = PGD(Linf(0.1), 200, 0.025)
    skipped, full = run_both(attack, net, x.to(memory_format=torch.channels_last), y)
    assert_equal(skipped, full)
    assert skipped.samples_forwarded < 0.5 * full.samples_forwarded
    assert attack.replace(skip_cycles=True).run(net, x[:0], y[:0]).samples_forwarded == 0


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("stop", [None, "success"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_replayed_step_is_an_eager_step(monkeypatch, keep, stop, lag):
    """As on CUDA: one graph, nothing that waits for the device, and a host that learns who is done a step late."""
    recorded = []

    def captured(body, device):
        recorded.append(device)
        return record(body, device)

    net, x, y = problem(n=36)
    attack = PGD(Linf(0.02), 100, 0.005, keep=keep, stop=stop, random_start=True, restarts=2, seed=0)
    batches = list(zip(x.split(12), y.split(12), torch.arange(36).split(12), strict=True))
    full = [attack.replace(stop=stop or ENDLESS, graph=False).run(net, a, b, sample_ids=ids) for a, b, ids in batches]
    monkeypatch.setattr(replay, "_why_not", lambda device: None)
    monkeypatch.setattr(replay, "_aside", lambda body, device: body())
    monkeypatch.setattr(replay, "_captured", captured)
    monkeypatch.setattr(pool, "_lag_on", lambda device: lag)
    monkeypatch.setattr(pool, "_pack_at", lambda device: 0.5)
    for (_, got), want in zip(attack.replace(skip_cycles=True).over(net, batches), full, strict=True):
        assert_equal(got, want)
    assert recorded


def test_memory_for_one_more_image_a_sample():
    found = Cycles(torch.zeros(8, 3, 32, 32))
    held = sum(t.nbytes for t in vars(found).values() if isinstance(t, torch.Tensor))
    assert held <= 8 * (3 * 32 * 32 * 4 + 16 * HISTORY + 24)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "cosine"}, "skip_cycles should be False with schedule='cosine', .* got True"),
        ({"momentum": 0.5}, "skip_cycles should be False with momentum=0.5, .* got True"),
        (
            {"step_size": "polyak", "objective": Representation(), "targeted": True},
            "skip_cycles should be False with step_size='polyak', .* got True",
        ),
    ],
)
def test_steps_that_differ_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1), 10, **{"skip_cycles": True} | wrong)
    PGD(Linf(0.1), 10, **wrong)
    with pytest.raises(TypeError, match="skip_cycles should be"):
        PGD(Linf(0.1), 10, skip_cycles="yes")
