"""Attacks on a GPU: a replayed step is an eager one, also in bfloat16 and over batches; failures leave no mess."""

import pytest
import torch
from torch import nn

from advfeat import APGD, L2, PGD, Converged, Linf
from advfeat.attacks.pgd import InLockstep

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

N = 48


@pytest.fixture
def net():
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 64, 10)]
    return nn.Sequential(*layers).cuda().eval()


def data(n=N):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 16, 16, generator=g).cuda(), torch.randint(10, (n,), generator=g).cuda()


def same(a, b, tolerance):
    close = (a.x_adv - b.x_adv).flatten(1).norm(dim=1)
    assert (close <= tolerance).float().mean() >= 0.95, close  # rounding may send a sample elsewhere
    assert (a.success == b.success).float().mean() >= 0.95


@pytest.fixture
def deterministic():
    """Convolutions that give the same bits each time: a targeted attack takes the last of them to other places."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


ATTACKS = [
    PGD(L2(0.5), steps=40),
    PGD(Linf(8 / 255), steps=40, keep="best", random_start=True, restarts=2, seed=0),
    PGD(L2(torch.linspace(0.1, 1, N)), steps=40, targeted=True),
    PGD(L2(0.05), steps=40, stop="success"),
    PGD(L2(0.5), steps=60, stop=Converged(5)),
    APGD(L2(0.5), steps=60),
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_replayed_and_eager(net, deterministic, attack, autocast):
    x, y = data()
    if not attack.targeted:
        y = net(x).argmax(1)  # so that there is something to do
    attack = attack.replace(autocast=autocast)
    replayed, eager = attack.run(net, x, y), attack.replace(graph=False).run(net, x, y)
    assert replayed.why_eager is None and eager.why_eager == "graph=False"
    same(replayed, eager, 1e-3 if autocast is None else 0.1)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("stop", [None, "success"])
def test_batches_of_a_kind(net, deterministic, autocast, stop):
    """Parameters that need gradients, and memory that is used for other things between two batches."""
    x, y = data(4 * N)
    attack = PGD(L2(0.5), steps=30, autocast=autocast, stop=stop)
    alone = [attack.replace(graph=False).run(net, a, b) for a, b in zip(x.split(N), y.split(N), strict=True)]
    results = []
    for _, result in attack.over(net, zip(x.split(N), y.split(N), strict=True)):
        results.append(result)
        for size in (1000, 10_000, 100_000, 1_000_000):
            torch.full((size,), float("nan"), device="cuda", dtype=torch.bfloat16)
    assert results[0].why_eager is None
    for got, want in zip(results, alone, strict=True):
        same(got, want, 1e-3 if autocast is None else 0.1)


def test_a_capture_that_fails_leaves_the_device_usable(net):
    x, y = data()
    attack = PGD(L2(0.5), steps=40)

    def model(v):
        return net(v) * (1 if v.amax().item() >= 0 else -1)

    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        result = attack.run(model, x, y)
    assert result.why_eager
    torch.cuda.empty_cache()
    assert bool(torch.rand(1000, device="cuda").isfinite().all())
    same(result, attack.run(net, x, y), 1e-3)
    assert attack.run(net, x, y).why_eager is None


def test_memory_does_not_grow_from_call_to_call(net):
    x, y = data()
    attack = PGD(L2(0.5), steps=40)
    attack(net, x, y)
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        attack(net, x, y)
    assert torch.cuda.memory_allocated() <= before


def test_weights_may_change_between_two_batches_in_lockstep(net, deterministic):
    """As in adversarial training, whose attack is captured once."""
    x, y = data()
    attack = PGD(L2(0.5), steps=7)
    in_lockstep, results = InLockstep(attack, net, statistics=False), []
    for _ in range(4):
        results.append(in_lockstep(x, y, torch.arange(N, device="cuda")))
        assert torch.equal(results[-1].x_adv, attack.replace(graph=False)(net, x, y))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(0.9).add_(0.01 * torch.randn_like(parameter))
    assert results[0].why_eager == "too few steps for a capture to pay" and results[-1].why_eager is None
    assert not torch.equal(results[0].x_adv, results[-1].x_adv)
