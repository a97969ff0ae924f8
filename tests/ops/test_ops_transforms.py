"""The operators under torch.func's transforms, forward-mode differentiation and double backward."""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from advfeat import ops

F64 = torch.float64
X0 = torch.full((2, 3), 0.5, dtype=F64)
# Outside and inside of both balls, with values that the box clips, none of them on a boundary.
X = torch.tensor([[0.9, 0.2, 0.7], [0.52, 0.49, 1.4]], dtype=F64)

PROJECTIONS = {
    "l2": lambda x: ops.project_l2(x, X0, 0.1),
    "linf": lambda x: ops.project_linf(x, X0, 0.1),
    "l2, centre": lambda x0: ops.project_l2(X + 0.3, x0, 0.1, 0.0, 1.2),
    "l1": lambda x: ops.project_l1(x, X0, 0.4),
    "linf, radii": lambda x: ops.project_linf(X, X0, x[:, 0] / 9),
}
STEPS = {
    "linf_step": lambda x: ops.linf_step(x, x, X0, 0.1, 1.0),
    "linf_step_": lambda x: ops.linf_step_(x.clone(), x, X0, 0.1, 1.0),
    "l2_step": lambda x: ops.l2_step(x, x, X0, 0.1, 1.0),
    "l2_step_": lambda x: ops.l2_step_(x.clone(), x, X0, 0.1, 1.0),
    "l1_step": lambda x: ops.l1_step(x, x, X0, 0.1, 1.0),
    "l1_step_": lambda x: ops.l1_step_(x.clone(), x, X0, 0.1, 1.0),
    "by the share alone": lambda x: ops.l1_step(X, X, X0, 0.1, 1.0, share=x[:, 0].clamp(max=1)),
    "by the gradient alone": lambda x: ops.l2_step(X, x, X0, 0.1, 1.0),
    "by the radii alone": lambda x: ops.l2_step(X, X, X0, 0.1, x[:, 0]),
    "with grad_status": lambda x: ops.l2_step(x, x, X0, 0.1, 1.0, grad_status=torch.zeros(2, 2, dtype=torch.int32)),
    "project_l2_": lambda x: ops.project_l2_(x.clone(), X0, 0.1),
    "project_linf_": lambda x: ops.project_linf_(x.clone(), X0, 0.1),
    "project_l1_": lambda x: ops.project_l1_(x.clone(), X0, 0.4),
    "copy_rows_": lambda x: ops.copy_rows_(X0.clone(), x, torch.tensor([True, False])),
    "accumulate_gradient_": lambda x: ops.accumulate_gradient_(x.clone(), x, 0.9),
    "fab_step_": lambda x: ops.fab_step_(x.clone(), x, X0, X0[:, 0], 2),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_have_one_derivative_in_every_mode(name):
    f = PROJECTIONS[name]
    reverse = func.jacrev(f)(X)
    assert reverse.abs().sum() > 0
    torch.testing.assert_close(func.jacfwd(f)(X), reverse)
    torch.testing.assert_close(func.jacfwd(func.jacrev(f))(X), func.jacrev(func.jacrev(f))(X))
    tangent = torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    wanted = (reverse * tangent).sum((-2, -1))
    torch.testing.assert_close(func.jvp(f, (X,), (tangent,))[1], wanted)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(f(forward_ad.make_dual(X, tangent))).tangent, wanted)
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x)


def dual(f):
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(X, torch.ones_like(X)))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    "differentiate",
    [
        lambda f: f(X.clone().requires_grad_()),
        lambda f: func.jvp(f, (X,), (X,)),
        lambda f: func.jacfwd(f)(X),
        lambda f: func.jacrev(f)(X),
        lambda f: func.grad(lambda x: f(x).sum())(X),
        lambda f: func.hessian(lambda x: f(x).sum())(X),
        lambda f: func.vmap(func.grad(lambda x: f(x).sum()))(X[None]),
        lambda f: func.grad(lambda x: func.vmap(f)(x).sum())(X[None]),
        lambda f: func.jvp(func.vmap(f), (X[None],), (X[None],)),
        lambda f: torch.autograd.functional.jvp(f, (X,), (X,)),
        dual,
    ],
)
def test_steps_refuse_to_be_differentiated_in_every_mode(name, differentiate):
    with pytest.raises(RuntimeError, match="has no gradient: call it under torch.no_grad"):
        differentiate(STEPS[name])


def test_what_is_detached_or_under_no_grad_goes_through():
    want = ops.l2_step(X, X, X0, 0.1, 1.0)
    value, tangent = func.jvp(lambda x: ops.l2_step(x.detach(), x.detach(), X0, 0.1, 1.0) + x, (X,), (X,))
    torch.testing.assert_close(value, want + X)
    assert torch.equal(tangent, X)

    def quiet(x):
        with torch.no_grad():
            moved = ops.l2_step(x, x, X0, 0.1, 1.0)
        return (moved * x).sum()

    torch.testing.assert_close(func.grad(quiet)(X), want)


@pytest.mark.parametrize("name", [*STEPS, "random_start_l2", "random_start_linf"])
def test_vmap_is_a_loop(name):
    batch = torch.stack([X, X0 + 0.1, X / 2])
    f = STEPS.get(name)
    if name == "with grad_status":
        pytest.skip("vmap itself refuses to write into a tensor from outside")
    if f is None:
        start, ids = getattr(ops, name), torch.arange(6).reshape(3, 2)
        got = func.vmap(lambda x, i: start(x, 0.3, 7, i))(batch, ids)
        want = torch.stack([start(x, 0.3, 7, i) for x, i in zip(batch, ids, strict=True)])
    elif name == "copy_rows_":
        dst, mask = batch / 3, torch.tensor([[True, False], [False, False], [False, True]])
        got = func.vmap(lambda d, s, m: ops.copy_rows_(d.clone(), s, m))(dst, batch, mask)
        want = torch.stack([ops.copy_rows_(d.clone(), s, m) for d, s, m in zip(dst, batch, mask, strict=True)])
    else:
        got, want = func.vmap(f)(batch), torch.stack([f(x) for x in batch])
    torch.testing.assert_close(got, want)


def test_a_random_start_has_no_tangent():
    ids = torch.arange(2)
    _, tangent = func.jvp(lambda x: ops.random_start_l2(x, 0.1, 0, ids) + 0 * x, (X,), (torch.ones_like(X),))
    assert torch.equal(tangent, torch.zeros_like(X))


def vmapped(f):
    return lambda x: func.vmap(f)(torch.stack([x, x]))


# Compiled with the transform inside, which torch.compile takes apart at a level of its own.
TRANSFORMS = {
    "grad": lambda f: func.grad(lambda x: (f(x) ** 2).sum()),
    "grad of grad": lambda f: func.grad(lambda x: func.grad(lambda z: (f(z) ** 3).sum())(x).sum()),
    "grad of vmap": lambda f: func.grad(lambda x: (vmapped(f)(x) ** 2).sum()),
    "vmap of grad": lambda f: vmapped(func.grad(lambda x: (f(x) ** 2).sum())),
    "jvp": lambda f: lambda x: func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "forward mode": lambda f: lambda x: tangent_of(f, x),
}


def tangent_of(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


@pytest.fixture
def compiled():
    torch.compiler.reset()
    yield lambda f: torch.compile(f, backend="aot_eager")
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["l2", "linf"])
def test_projections_have_that_derivative_in_compiled_code_too(name, transform, compiled):
    derivative = TRANSFORMS[transform](PROJECTIONS[name])
    assert derivative(X).abs().sum() > 0
    torch.testing.assert_close(compiled(derivative)(X), derivative(X))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["linf_step", "l2_step_", "by the radii alone", "project_l2_", "copy_rows_"])
def test_what_has_no_gradient_refuses_in_compiled_code_too(name, transform, compiled):
    with pytest.raises((RuntimeError, AssertionError)):  # the compiler may wrap ours, or fail beside it
        compiled(TRANSFORMS[transform](STEPS[name]))(X)


@pytest.mark.parametrize("name", ["linf_step", "l2_step", "l2_step_"])
def test_compiled_steps_that_nothing_is_differentiated_by_go_on(name, compiled):
    step = STEPS[name]
    x = func.vmap(step)(torch.stack([X, X]))
    torch.testing.assert_close(compiled(vmapped(step))(X), x)
    weighted = func.grad(lambda w: (step(X) * w).sum())
    torch.testing.assert_close(compiled(weighted)(torch.ones((), dtype=F64)), step(X).sum())
