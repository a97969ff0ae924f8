"""Square: its schedule and windows, its rules, and AutoAttack's own code beside it."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.digits_network import digits_network
from torch import nn

import advfeat
from advfeat import L1, L2, Ensemble, Linf, Square, Threat
from advfeat.attacks import square, square_moves
from advfeat.datasets import load

THREATS = [Linf(0.15), L2(1.0), L1(4.0)]


@pytest.fixture(scope="module")
def digits():
    test = load("digits", "test")
    return test.images()[:100].contiguous(), test.labels[:100]


@pytest.fixture(scope="module")
def net():
    return digits_network(adversarial=True)


@pytest.mark.parametrize(
    ("threat", "side", "sides"),
    [
        (Linf(0.1), 32, [29, 20, 14, 10, 7, 5, 4, 3]),
        (L2(0.1), 32, [29, 21, 15, 11, 7, 5, 5, 3]),
        (Linf(0.1), 224, [200, 142, 100, 71, 50, 35, 25, 18]),
        (L2(0.1), 224, [201, 143, 101, 71, 51, 35, 25, 19]),
        (L1(12.0), 224, [201, 143, 101, 71, 51, 35, 25, 19]),
    ],
)
def test_windows_shrink_as_in_auto_attack(threat, side, sides):
    attack = Square(threat)
    ends = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001]
    for first, end, expected in zip(ends, ends[1:], sides, strict=False):
        assert {attack.side_of(query, side, side) for query in range(first, min(end, 5000))} == {expected}
    rescaled = Square(threat, steps=100, rescale_schedule=True)
    assert rescaled.side_of(0, side, side) == sides[0] and rescaled.side_of(99, side, side) <= sides[-1]
    assert Square(Linf(0.1), p_init=1.0).side_of(0, 9, 4) == 4


def test_a_bump_is_two_hills_of_opposite_sign():
    bump = square_moves.Bumps(torch.Size([1, 1, 9, 9]))._bump(5)
    assert bump.shape == (5, 5) and float(bump.norm()) == pytest.approx(1)
    assert (bump[:2] > 0).all() and (bump[2:] < 0).all()
    # The hill of 3x5: 1 at the middle, 1/4 on the square around it, 1/9 on what is left.
    hill = square_moves.Bumps(torch.Size([1, 1, 9, 9]))._hill(3, 5)
    ring, rest = 1 / 4 + 1 / 9, 1 / 9
    row = [rest, ring, ring, ring, rest]
    want = torch.tensor([row, [rest, ring, 1 + ring, ring, rest], row])
    torch.testing.assert_close(hill, want.double() / want.double().norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_examples_lie_in_ball_and_box_and_every_pass_counts(net, digits, threat):
    x, y = digits
    seen = [0]

    def model(z):
        seen[0] += len(z)
        assert not torch.is_grad_enabled()
        return net(z)

    result = Square(threat, steps=60, restarts=2).run(model, x, y)
    assert result.samples_forwarded == seen[0] and result.samples_backwarded == 0
    assert result.distance.max() <= threat.eps * (1 + 1e-5)
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    clean = net(x).argmax(1) == y
    assert 0 < result.success[clean].sum() and (result.first_success[~clean] == 0).all()
    assert (result.first_success[~result.success] == -1).all() and result.first_success.max() <= 60
    logits = net(result.x_adv)
    own = logits.gather(1, y[:, None])[:, 0]
    margin = logits.scatter(1, y[:, None], float("-inf")).amax(1) - own
    torch.testing.assert_close(result.value, margin, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(5, 7), st.integers(5, 9))
def test_a_window_holds_the_pixels_of_its_square(seed, side, height, width):
    g = torch.Generator().manual_seed(seed)
    images, uniform = torch.rand(4, 3, height, width, generator=g), torch.rand(4, 4, generator=g)
    windows = square_moves.Windows(side, (3, height, width), images.device)
    corners = windows.corner(uniform.reshape(4, 2, 2))  # of two windows in each image
    window, other = (windows.pixels(corners[0][:, i] * width + corners[1][:, i]) for i in range(2))
    down, across = (c[:, 0] - c[:, 1] for c in corners)
    for i in range(4):
        masks = []
        for k in range(2):
            top, left = (int(c[i, k]) for c in corners)
            masks.append(torch.zeros(height, width, dtype=torch.bool))
            masks[-1][top : top + side, left : left + side] = True
            assert masks[-1].sum() == side * side
        assert torch.equal(images.flatten(2).gather(2, window)[i], images[i][:, masks[0]])
        assert torch.equal(images.flatten(2).gather(2, other)[i], images[i][:, masks[1]])
        assert torch.equal(windows.outside(down, across)[i, 0], ~masks[1][masks[0]])


class _Two(nn.Module):
    """Logits of 32x32 images; under autocast they have errors, or another prediction altogether."""

    def __init__(self, lies: bool) -> None:
        super().__init__()
        self.linear, self.lies, self.low, self.samples = nn.Linear(3072, 4), lies, 0, 0

    def forward(self, x):
        low = torch.is_autocast_enabled("cpu")
        self.low, self.samples = self.low + len(x) * low, self.samples + len(x)
        logits = self.linear(x.flatten(1))
        return -logits if low and self.lies else logits


@pytest.mark.parametrize("lies", [False, True])
def test_queries_in_bfloat16_count_once_the_model_itself_confirms(lies, monkeypatch):
    monkeypatch.setattr(square, "has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    net, x = _Two(lies), torch.rand(12, 3, 32, 32)
    y = net(x).argmax(1)
    net.low = net.samples = 0
    result = Square(Linf(0.02), steps=80, bf16_queries=True).run(net, x, y)
    assert net.low > 12 and net.samples == result.samples_forwarded
    logits = net(result.x_adv)
    assert torch.equal(result.success, logits.argmax(1) != y)
    assert result.success.any() != lies or not result.success.all()
    own = logits.gather(1, y[:, None])[:, 0]
    margin = logits.scatter(1, y[:, None], float("-inf")).amax(1) - own
    torch.testing.assert_close(result.value, margin.detach())  # not that in bfloat16
    net.low = 0
    Square(Linf(0.02), steps=5).run(net, x, y)
    Square(Linf(0.02), steps=5, bf16_queries=True).run(
        lambda z: net(z.flatten(1).repeat(1, 48)), x[..., :8, :8][:, :1], y
    )
    assert net.low == 0  # not asked for; images too small


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_more_queries_never_lose_and_the_random_state_stays(net, digits, threat):
    x, y = digits
    state = torch.get_rng_state()
    few, many = (Square(threat, steps=n).run(net, x, y) for n in (10, 80))
    assert torch.equal(torch.get_rng_state(), state)
    assert (many.success | ~few.success).all() and many.success.sum() > few.success.sum()
    assert (many.value >= few.value - 1e-6)[~many.success].all()  # every accepted query is better


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_results_do_not_depend_on_the_batch(digits, threat):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    x, y = digits[0].double(), net(digits[0].double()).argmax(1)
    whole = Square(threat, steps=70).run(net, x, y, sample_ids=torch.arange(100))
    order = torch.randperm(100)
    mixed = Square(threat, steps=70).run(net, x[order], y[order], sample_ids=order)
    torch.testing.assert_close(mixed.x_adv, whole.x_adv[order], rtol=0, atol=1e-9)
    parts = [r.x_adv for _, r in Square(threat, steps=70).over(net, zip(x.split(33), y.split(33), strict=True))]
    torch.testing.assert_close(torch.cat(parts), whole.x_adv, rtol=0, atol=1e-9)
    assert not torch.equal(Square(threat, steps=70, seed=1).run(net, x, y).x_adv, whole.x_adv)


@given(
    st.sampled_from(["linf", "l2", "l1"]), st.integers(1, 4), st.integers(1, 13), st.integers(1, 13), st.integers(2, 5)
)
def test_any_image_shape_number_of_classes_and_box(norm, channels, height, width, classes):
    g = torch.Generator().manual_seed(channels + 10 * height + 100 * width)
    lo, hi = -torch.ones(channels), torch.full((channels,), 2.0)
    x = 3 * torch.rand(3, channels, height, width, generator=g) - 1
    weight = torch.randn(channels * height * width, classes, generator=g)
    eps = torch.tensor([0.0, 0.5, 2.0])
    result = Square(Threat.of(norm, eps, lo, hi), steps=12).run(
        lambda z: z.flatten(1) @ weight, x, torch.zeros(3, dtype=torch.int64)
    )
    assert (result.distance <= eps * (1 + 1e-5) + 1e-6).all()
    assert result.x_adv.min() >= -1 and result.x_adv.max() <= 2 and torch.equal(result.x_adv[0], x[0])


def test_settings_of_other_kinds(net, digits):
    x, y = (t[:30] for t in digits)
    target = (y + 1) % 10
    towards = Square(L2(3.0), steps=200, targeted=True).run(net, x, target)
    assert torch.equal(towards.success, net(towards.x_adv).argmax(1) == target) and towards.success.any()
    assert Square(Linf(0.1), steps=0).run(net, x, y).samples_forwarded <= 60
    assert len(Square(Linf(0.1)).run(net, x[:0], y[:0]).x_adv) == 0
    binary = Square(Linf(0.5), steps=50).run(
        lambda z: z.flatten(1).mean(1) - 0.3, x, torch.zeros(30, dtype=torch.int64)
    )
    assert binary.success.any()
    both = Ensemble((advfeat.PGD(Linf(0.1), steps=5), Square(Linf(0.1), steps=30))).run(net, x, y)
    assert both.success.sum() >= advfeat.PGD(Linf(0.1), steps=5).run(net, x, y).success.sum()
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        Square(L2(1.0), steps=20).run(net, last, y).x_adv, Square(L2(1.0), steps=20).run(net, x, y).x_adv
    )
    normalised = nn.Sequential(_Undo(), net)
    for norm in ("linf", "l2", "l1"):
        attack = Square(Threat.of(norm, 0.5), steps=30)
        images = attack.run(net, x, y)
        threat = type(attack.threat).normalised(0.5, 0.3, 0.4)
        inputs = dataclasses.replace(attack, threat=threat).run(normalised, (x - 0.3) / 0.4, y)
        assert (inputs.success == images.success).double().mean() > 0.9 and inputs.distance.max() <= 0.5 * (1 + 1e-5)


class _Undo(nn.Module):
    def forward(self, x):
        return x * 0.4 + 0.3


@pytest.mark.compare
@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_it_leaves_no_more_than_auto_attacks(net, digits, threat):
    """It leaves fewer, for windows of its own for each sample, which reach the last row and column too."""
    reference = pytest.importorskip("pyautoattack.square")
    x, y = digits
    left, theirs = [], []
    for seed in range(3):
        settings = {"norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm], "eps": threat.eps, "seed": seed}
        attack = reference.SquareAttack(
            net, n_queries=200, resc_schedule=False, verbose=False, device="cpu", **settings
        )
        theirs.append(int((net(attack.perturb(x, y)).argmax(1) == y).sum()))
        left.append(int((~Square(threat, steps=200, seed=seed).run(net, x, y).success).sum()))
    assert sum(left) <= sum(theirs) + 3, (left, theirs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Square(L2(float("inf"))), "finite eps"),
        (lambda: Square(L2(1.0), p_init=0.0), "p_init should be above 0 and at most 1"),
        (lambda: Square(L2(1.0), steps=-1), "steps should be an integer, at least 0"),
        (lambda: Square(L2(1.0)).run(nn.Flatten(), torch.rand(2, 5), torch.zeros(2).long()), r"images \[B, C, H, W\]"),
        (
            lambda: Square(L2(1.0), objective=lambda m, x, y: x.sum((1, 2, 3))).run(
                nn.Flatten(), torch.rand(2, 1, 2, 2), torch.zeros(2).long()
            ),
            "Square needs labels",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
