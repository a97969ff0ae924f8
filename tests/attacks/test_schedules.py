"""Schedules, both forms of momentum and Polyak's step of PGD: against runs by hand, and what holds for any of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advfeat import L2, PGD, Converged, Linf, Margin, Representation, reference

F64 = torch.float64
STEP = {"l2": reference.l2_step, "linf": reference.linf_step}
MI_FGSM = {"momentum": 1.0, "momentum_form": "mi-fgsm"}
SETTINGS = {
    "cosine": {"schedule": "cosine"},
    "momentum": {"momentum": 0.75},
    "both": {"schedule": "cosine", "momentum": 0.5, "step_size": 0.3},
    "mi-fgsm": MI_FGSM,
    "mi-fgsm-decaying": MI_FGSM | {"schedule": "cosine", "momentum": 0.5},
}
SIZES = torch.linspace(0.01, 0.4, 10)
BY_SAMPLE = {
    "sizes-by-sample": {"schedule": "cosine", "step_size": SIZES},
    "mi-fgsm-by-sample": MI_FGSM | {"step_size": SIZES},
}


def each(settings):
    return pytest.mark.parametrize("extra", settings.values(), ids=settings)


KINDS = [L2(0.4), Linf(0.1), L2(torch.linspace(0.0, 0.6, 10))]


class TanhNetwork(nn.Module):
    """Smooth, so that gradients of other batches differ by rounding alone; with a representation."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.first, self.last = nn.Linear(48, 24), nn.Linear(24, 5)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g) * 0.4

    def representation(self, x):
        return self.first(x.flatten(1)).tanh()

    def forward(self, x):
        return self.last(self.representation(x))


@pytest.fixture
def net():
    return TanhNetwork(seed=3)


def data(n=10, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 4, 4, generator=g, dtype=F64).to(dtype), torch.randint(5, (n,), generator=g)


def by_hand(net, attack, x, target, start=None):
    """The attack as its definition says, in plain torch."""
    sign, n = (-1.0 if attack.targeted else 1.0), attack.steps
    here, before, total = (x if start is None else start).clone(), None, torch.zeros_like(x)
    for k in range(n):
        point = here.detach().requires_grad_()
        value = attack.objective.value(net, point, target)
        (grad,) = torch.autograd.grad(value.sum(), point)
        if attack.step_size == "polyak":
            order = 2.0 if attack.threat.norm == "l2" else 1.0
            size = (1 - attack.momentum) * value.detach() / grad.flatten(1).norm(order, dim=1)
        else:
            size = torch.as_tensor(attack.step_length, dtype=F64)
        if attack.schedule == "cosine":
            size = size * (1 + math.cos(math.pi * k / n)) / 2
        from_here = here
        if attack.momentum_form == "mi-fgsm":
            total = attack.momentum * total + grad / grad.abs().sum(dim=(1, 2, 3), keepdim=True)
            grad = total
        elif before is not None:
            from_here = here + attack.momentum * (here - before)
        step = STEP[attack.threat.norm]
        before, here = (
            here,
            step(from_here, grad, x, sign * size, attack.threat.eps, attack.threat.lo, attack.threat.hi),
        )
    return here


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("threat", KINDS, ids=["l2", "linf", "by-sample"])
@each(SETTINGS | BY_SAMPLE)
def test_a_run_is_what_its_definition_says(net, threat, extra, targeted):
    net, (x, y) = net.double(), data(dtype=F64)
    attack = PGD(threat, steps=12, targeted=targeted, objective=Margin(1.0), **extra)
    torch.testing.assert_close(attack(net, x, y), by_hand(net, attack, x, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("threat", [L2(math.inf), Linf(0.3)])
def test_polyaks_step_is_what_its_definition_says(net, threat, momentum, schedule):
    net, (x, _) = net.double(), data(dtype=F64)
    goal, start = net.representation(x).detach(), x.flip(0)
    objective = Representation(features=net.representation)
    settings = {"step_size": "polyak", "momentum": momentum, "schedule": schedule}
    attack = PGD(threat, steps=12, targeted=True, objective=objective, **settings)
    result = attack.run(net, x, goal, start=threat.project_(start.clone(), x))
    torch.testing.assert_close(
        result.x_adv, by_hand(net, attack, x, goal, threat.project_(start.clone(), x)), rtol=0, atol=1e-9
    )
    assert (result.value < 0.7 * objective.value(net, threat.project_(start.clone(), x), goal)).all()


def test_polyaks_step_ends_on_the_optimum_of_a_line():
    """For ||A z - b|| of one output it is the exact step, however the objective is scaled."""
    w = torch.tensor([[3.0, -4.0]])
    for scale in (1e-30, 1.0, 1e30):
        objective = Representation(features=lambda z, scale=scale: (z @ w.T) * scale)
        attack = PGD(L2(math.inf, -9, 9), 1, "polyak", objective=objective, targeted=True)
        x_adv = attack(lambda z: z, torch.tensor([[2.0, 1.0]]), torch.tensor([[-5.0]]) * scale)
        torch.testing.assert_close(x_adv @ w.T, torch.tensor([[-5.0]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threat", [L2(0.5), Linf(0.5)])
def test_polyaks_step_stays_put_without_a_slope(threat):
    """At the optimum, on a plateau, and where the gradient is so small or bad that there is no finite step."""
    x = torch.full((4, 2), 0.5)
    weights = torch.tensor([[0.0, 0.0], [1e-44, 0.0], [math.nan, 0.0], [1.0, 1.0]])
    objective = Representation(features=lambda z: (z * weights).sum(1, keepdim=True))
    result = PGD(threat, 3, "polyak", objective=objective, targeted=True).run(
        lambda z: z, x, torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    )
    assert torch.equal(result.x_adv[[0, 2, 3]], x[[0, 2, 3]]) and result.x_adv.isfinite().all()


# --- MI-FGSM


def blocked(x):
    """An objective that grows up to 0.6; beyond it the gradient is zero, and at 0 infinite."""
    return torch.where(x < 0.6, x.sqrt(), 0.6**0.5).flatten(1).sum(1)


@pytest.mark.parametrize("stop", [None, Converged(patience=99)])
@pytest.mark.parametrize("kind", [L2, Linf])
def test_mi_fgsm_counts_the_gradients_and_not_what_it_steps_along(kind, stop):
    x = torch.tensor([0.5, 0.7, 0.0])[:, None].expand(3, 4).contiguous()
    attack = PGD(kind(9.0, 0.0, 9.0), 6, 0.08, objective=lambda model, z, y: blocked(z), stop=stop, **MI_FGSM)
    result = attack.run(lambda z: z, x, torch.zeros(3, dtype=torch.int64))
    step = 0.08 if kind is Linf else 0.04
    reaches = math.ceil(0.1 / step)  # it then goes on along the gradients before
    assert result.zero_grad_steps.tolist() == [6 - reaches, 6, 0]
    assert result.nonfinite_grad_steps.tolist() == [0, 0, 6]
    if stop is None:
        torch.testing.assert_close(result.x_adv[0], torch.full((4,), 0.5 + 6 * step))
    assert torch.equal(result.x_adv[1:], x[1:])


@pytest.mark.parametrize("stop", [None, Converged(patience=10**6, tolerance=0.0)])
@pytest.mark.parametrize("extra", [{"momentum": 0.75}, MI_FGSM], ids=["heavy-ball", "mi-fgsm"])
def test_a_restart_knows_nothing_of_the_start_before(net, extra, stop):
    net, (x, y) = net.double(), data(dtype=F64)
    ids = torch.arange(10)
    attack = PGD(L2(0.4), 6, random_start=True, keep="best", seed=3, stop=stop, **extra)
    alone = [attack.replace(seed=3 + (restart << 40)).run(net, x, y, sample_ids=ids) for restart in range(3)]
    together = attack.replace(restarts=3).run(net, x, y, sample_ids=ids)
    ranks = torch.stack([result.value + 1e6 * result.success for result in alone])
    want = torch.stack([result.x_adv for result in alone])[ranks.argmax(dim=0), ids]
    torch.testing.assert_close(together.x_adv, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [L2, Linf])
def test_mi_fgsm_of_half_precision_images(net, kind, dtype):
    net, (x, y) = net.to(dtype), data(dtype=dtype)
    result = PGD(kind(0.2), steps=6, **MI_FGSM).run(net, x, y)
    assert result.x_adv.dtype == dtype and (result.distance > 0.1).all() and (result.distance < 0.21).all()


def test_without_decay_the_first_step_is_the_plain_one_and_later_ones_remember(net):
    net, (x, y) = net.double(), data(dtype=F64)
    plain, mi_fgsm = PGD(Linf(0.1), steps=1), PGD(Linf(0.1), steps=1, **MI_FGSM)
    assert torch.equal(plain(net, x, y), mi_fgsm(net, x, y))
    assert not torch.equal(plain.replace(steps=9)(net, x, y), mi_fgsm.replace(steps=9)(net, x, y))


# --- what holds for any


def settings():
    sizes = st.one_of(st.none(), st.floats(0.0, 3.0))
    momenta = [(0.0, "heavy-ball"), (0.5, "heavy-ball"), (0.9, "heavy-ball"), (0.5, "mi-fgsm"), (1.0, "mi-fgsm")]
    others = st.fixed_dictionaries(
        {
            "schedule": st.sampled_from(["constant", "cosine"]),
            "step_size": sizes,
            "steps": st.integers(0, 9),
            "random_start": st.booleans(),
            "targeted": st.booleans(),
            "keep": st.sampled_from(["last", "best"]),
        }
    )
    return st.builds(
        lambda given, moving: given | {"momentum": moving[0], "momentum_form": moving[1]},
        others,
        st.sampled_from(momenta),
    )


@given(settings(), st.sampled_from([L2, Linf]), st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_every_result_is_feasible(given_settings, kind, eps, seed):
    x, y = data(seed=seed)
    result = PGD(kind(eps), seed=seed, **given_settings).run(TanhNetwork(seed=1), x, y)
    assert (result.x_adv >= 0).all() and (result.x_adv <= 1).all()
    assert (result.distance <= eps * (1 + 1e-6) + 1e-6).all()


@given(settings(), st.sampled_from(KINDS[:2]), st.integers(1, 9))
def test_a_split_of_the_batch_changes_nothing(given_settings, threat, cut):
    net, (x, y) = TanhNetwork(seed=2).double(), data(dtype=F64)
    attack, ids = PGD(threat, seed=5, **given_settings), torch.arange(10)
    whole = attack(net, x, y, sample_ids=ids)
    parts = [attack(net, x[a:b], y[a:b], sample_ids=ids[a:b]) for a, b in ((0, cut), (cut, 10))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)


@given(settings(), st.sampled_from(KINDS[:2]), st.integers(-30, 30))
def test_the_scale_of_the_objective_changes_nothing(given_settings, threat, exponent):
    net, (x, y) = TanhNetwork(seed=2).double(), data(dtype=F64)
    attack = PGD(threat, seed=5, objective=Margin(1.0), **given_settings)
    scaled = attack.replace(objective=lambda model, x, y: Margin(1.0).value(model, x, y) * 10.0**exponent)
    torch.testing.assert_close(scaled(net, x, y), attack(net, x, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("keep", ["last", "best"])
@each(SETTINGS)
def test_continuous_batching_gives_the_result_of_a_run_by_itself(net, extra, keep, restarts):
    """Every sample has its own step of the schedule and its own velocity, from its own first step on."""
    net, (x, y) = net.double(), data(40, dtype=F64)
    attack = PGD(L2(0.3), steps=9, keep=keep, seed=0, random_start=restarts > 1, restarts=restarts, **extra)
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 40, 10)]
    early = attack.replace(stop="success", keep="best")
    want = torch.cat([early.run(net, *b, sample_ids=torch.arange(10) + 10 * i).x_adv for i, b in enumerate(batches)])
    got = torch.cat([result.x_adv for _, result in early.over(net, batches)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    # a rule that never stops is no rule
    endless = attack.replace(stop=Converged(patience=10**6, tolerance=0.0))
    torch.testing.assert_close(endless(net, x, y), attack(net, x, y), rtol=0, atol=1e-9)


@each(SETTINGS)
def test_batches_of_one_kind_start_afresh(net, extra):
    net, (x, y) = net.double(), data(30, dtype=F64)
    attack = PGD(Linf(0.1), steps=7, **extra)
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 30, 10)]
    for (given_x, given_y), result in attack.over(net, batches):
        assert torch.equal(result.x_adv, attack(net, given_x, given_y))


@each(SETTINGS)
@pytest.mark.parametrize("kind", [L2, Linf])
def test_normalised_inputs_are_attacked_as_their_images_are(net, kind, extra):
    net, (x, y) = net.double(), data(dtype=F64)
    mean, std = torch.tensor([0.4, 0.5, 0.6], dtype=F64), torch.tensor([0.2, 0.25, 0.3], dtype=F64)
    mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
    attack = PGD(kind(0.2), steps=9, **extra)
    inner = attack.replace(threat=kind.normalised(0.2, mean.flatten(), std.flatten()))
    normalised = inner(lambda z: net(z * std + mean), (x - mean) / std, y)
    torch.testing.assert_close(normalised * std + mean, attack(net, x, y), rtol=0, atol=1e-7)


def test_the_defaults_of_the_step_size():
    assert PGD(L2(0.5), steps=10).step_length == 2.5 * 0.5 / 10
    assert PGD(L2(0.5), steps=10, schedule="cosine").step_length == 1.0
    polyak = {"step_size": "polyak", "objective": Representation(), "targeted": True}
    assert PGD(L2(0.5), steps=10, **polyak).step_length is None
    with pytest.raises(ValueError, match="step_size should be given when eps is infinite"):
        PGD(L2(math.inf), steps=10, schedule="cosine")


def test_settings_are_recorded_where_they_differ_from_what_was_always_so():
    plain = PGD(L2(0.5), steps=10).to_dict()
    new = {"schedule", "momentum", "momentum_form"}
    assert not new & plain.keys(), "results of earlier versions are found"
    assert "momentum_form" not in PGD(L2(0.5), steps=10, momentum=0.5).to_dict()
    mi_fgsm = PGD(L2(0.5), steps=10, momentum=1, momentum_form="mi-fgsm").to_dict()
    assert (mi_fgsm["momentum"], mi_fgsm["momentum_form"]) == (1.0, "mi-fgsm") and str(mi_fgsm["momentum"]) == "1.0"
    changed = PGD(L2(0.5), steps=10, schedule="cosine", momentum=0.5).to_dict()
    assert (changed["schedule"], changed["momentum"], changed["step_size"]) == ("cosine", 0.5, 1.0)
    polyak = PGD(L2(0.5), steps=10, step_size="polyak", objective=Representation(), targeted=True).to_dict()
    assert polyak["step_size"] == "polyak"


@pytest.mark.parametrize(
    ("error", "wrong", "message"),
    [
        (ValueError, {"schedule": "cosin"}, 'schedule should be "constant" or "cosine", got \'cosin\'; did you mean'),
        (ValueError, {"schedule": None}, "schedule should be .*, got None"),
        (ValueError, {"momentum": 1}, "momentum should be at least 0 and below 1, got 1"),
        (ValueError, {"momentum": math.nan}, "momentum should be at least 0 and below 1, got nan"),
        (TypeError, {"momentum": "0.5"}, "momentum should be a number, got '0.5'"),
        (ValueError, {"momentum_form": "mi-fgsm"}, 'momentum_form should be "heavy-ball", .*is 0, got "mi-fgsm"'),
        (
            ValueError,
            {"momentum": 0.5, "momentum_form": "mifgsm"},
            'momentum_form should be "heavy-ball" or "mi-fgsm", got \'mifgsm\'; did you mean mi-fgsm',
        ),
        (ValueError, {"momentum": 0.5, "momentum_form": None}, "momentum_form should be .*, got None"),
        (ValueError, MI_FGSM | {"momentum": 1.1}, "momentum should be above 0 and at most 1 with .*, got 1.1"),
        (ValueError, MI_FGSM | {"momentum": math.nan}, "momentum should be above 0 and at most 1 with .*, got nan"),
        (ValueError, MI_FGSM | {"skip_cycles": True}, "skip_cycles should be False with momentum=1.0"),
        (
            ValueError,
            MI_FGSM | {"step_size": "polyak", "objective": Representation(), "targeted": True},
            'step_size should be a number with momentum_form="mi-fgsm", .* got "polyak"',
        ),
        (ValueError, {"step_size": "polyak"}, r"step_size should be a number for Margin.*, got \"polyak\""),
        (
            ValueError,
            {"step_size": "polyak", "objective": Representation()},
            'step_size should be a number for an untargeted attack, got "polyak"',
        ),
        (TypeError, {"step_size": "polyack"}, "step_size should be a number or a tensor, got the text 'polyack'"),
    ],
)
def test_mistakes_are_named(error, wrong, message):
    with pytest.raises(error, match=message):
        PGD(L2(0.5), steps=3, **wrong)
