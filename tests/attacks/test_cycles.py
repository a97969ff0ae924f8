"""Attacks that end once an iterate returns have the result of all steps, in fewer passes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advfeat import L2, PGD, Converged, Linf, Representation
from advfeat.attacks import cycles


class Bumps(nn.Module):
    """Four logits, each a sum of sines, in float64."""

    def __init__(self, seed=0, values=6):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, values, generator=g, dtype=torch.float64) * 3)
        self.slope = nn.Parameter(torch.randn(4, values, generator=g, dtype=torch.float64) * 9)

    def forward(self, x):
        bumps = self.weight[:, None] * torch.sin(self.slope[:, None] * x.flatten(1))  # [4, B, values]
        return bumps.sum(dim=2).T


def data(n=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, 3, generator=g, dtype=torch.float64)
    return x, Bumps()(x).argmax(1)


def same(a, b):
    for name in ("x_adv", "success", "first_success", "distance"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    # sine and exponential have another last bit where the sample lies elsewhere in the batch
    torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-12)


CASES = list(itertools.product(["last", "best"], [None, "success"], [(1, False), (3, True)], [False, True]))


@pytest.mark.parametrize(("keep", "stop", "starts", "targeted"), CASES)
@pytest.mark.parametrize("step_size", [0.02, torch.linspace(0.005, 0.06, 24)], ids=["one", "each"])
def test_the_result_is_that_of_all_steps(keep, stop, starts, targeted, step_size):
    net, (x, y) = Bumps(), data()
    target = (y + 1) % 4 if targeted else y
    settings = {"keep": keep, "stop": stop, "restarts": starts[0], "random_start": starts[1], "targeted": targeted}
    for steps in (0, 1, 61, 202, 203):
        whole = PGD(Linf(0.1), steps=steps, step_size=step_size, seed=0, **settings)
        full, short = whole.run(net, x, target), whole.replace(skip_cycles=True).run(net, x, target)
        same(short, full)
        assert short.samples_forwarded <= full.samples_forwarded
        if steps > 200 and stop is None:
            assert short.samples_forwarded < 0.6 * full.samples_forwarded


@given(
    seed=st.integers(0, 2**31),
    steps=st.integers(0, 90),
    step=st.floats(0.003, 0.2),
    kind=st.sampled_from([Linf, L2]),
    keep=st.sampled_from(["last", "best"]),
    batch=st.integers(1, 9),
)
def test_over_a_data_set_too(seed, steps, step, kind, keep, batch):
    net, (x, y) = Bumps(seed), data(20, seed)
    attack = PGD(kind(0.1), steps=steps, step_size=step, keep=keep, seed=0)
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    skipping = attack.replace(skip_cycles=True).over(net, batches)
    for (_, short), (_, full) in zip(skipping, attack.over(net, batches), strict=True):
        same(short, full)


def test_passes_no_longer_grow_with_the_steps():
    """The passes of each sample are those until its cycle is found; and the next sample takes its place."""
    net, (x, y) = Bumps(), data(60)
    attack = PGD(Linf(0.1), steps=1000, step_size=0.04, keep="best", skip_cycles=True)
    batches = list(zip(x.split(20), y.split(20), strict=True))
    at_1000 = sum(result.samples_forwarded for _, result in attack.over(net, batches))
    at_9000 = sum(result.samples_forwarded for _, result in attack.replace(steps=9000).over(net, batches))
    assert at_1000 == at_9000 < 60 * 200


def test_what_only_nearly_returns_ends_nothing():
    """A value of another bit is another iterate."""
    x, _ = data(4)
    attack = PGD(Linf(0.1), steps=3, step_size=0.04)
    found = cycles.Cycles(attack, x)
    live = torch.ones(4, dtype=torch.bool)
    assert not found.end(x, torch.zeros(4, dtype=torch.int64), live).any()
    almost = x.clone()
    almost[0, 0, 0] = torch.nextafter(almost[0, 0, 0], torch.tensor(2.0, dtype=x.dtype))
    best = cycles.Cycles(attack.replace(keep="best"), x)
    best.end(x, torch.zeros(4, dtype=torch.int64), live)
    live[3] = False
    assert best.end(almost, torch.ones(4, dtype=torch.int64), live).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"schedule": "cosine"},
            "skip_cycles should be False with schedule='cosine', for which an iterate",
        ),
        ({"momentum": 0.5}, "skip_cycles should be False with momentum=0.5"),
        ({"stop": Converged()}, "skip_cycles should be False with stop=Converged"),
        (
            {"step_size": "polyak", "objective": Representation(), "targeted": True},
            "skip_cycles should be False with step_size='polyak'",
        ),
    ],
)
def test_it_is_refused_where_a_return_proves_nothing(wrong, message):
    with pytest.raises(ValueError, match=message):
        PGD(Linf(0.1), steps=5, skip_cycles=True, **wrong)
    with pytest.raises(TypeError, match="skip_cycles should be"):
        PGD(Linf(0.1), steps=5, skip_cycles="yes")
