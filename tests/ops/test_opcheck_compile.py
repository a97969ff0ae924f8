"""The operators as torch sees them: schemas, fakes and mutation (opcheck), and loops under torch.compile."""

import math

import pytest
import torch
from support.strategies import BF16, F16, F32, F64, place, same_bits

from advfeat import ops

pytestmark = pytest.mark.skipif(ops._C is None, reason="the extension is not built")

IDS = torch.tensor([4, 2**40])


def _by_row(eps, size):
    return torch.tensor(eps, dtype=F64), torch.tensor(size, dtype=F64)


def _tensors(layout, dtype, grad_dtype):
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 3, 4, 5, generator=g).to(dtype)
    x = (x0.double() + 0.1 * torch.randn(2, 3, 4, 5, generator=g, dtype=F64)).to(dtype)
    grad = torch.randn(2, 3, 4, 5, generator=g).to(grad_dtype)
    return [place(t, layout).view for t in (x, grad, x0)]


OPERATORS = sorted(n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("advfeat::"))


def _samples():
    """(operator, arguments) over layouts, dtypes and forms of the numbers, for every operator there is: arguments of
    one name are alike in all of them."""
    eps, size = _by_row([0.1, 0.5], [0.2, 0.0])
    lo, hi = torch.tensor([0.0, 0.1, 0.2], dtype=F64), torch.tensor([1.0, 0.9, 0.8])
    forms = [
        ("contiguous", F32, F32, None, None, None, None),
        ("channels_last", F32, BF16, size, eps, lo, hi),
        ("rows_apart", F64, F64, None, eps, None, hi),
        ("batch_last", F16, F16, size, None, lo, None),
        ("every_second", BF16, BF16, None, None, None, None),
    ]
    for layout, dtype, grad_dtype, size_rows, eps_rows, lo_channels, hi_channels in forms:
        x, grad, x0 = _tensors(layout, dtype, grad_dtype)
        given = {"x": x, "grad": grad, "x0": x0, "dst": x, "src": x0, "mask": torch.tensor([True, False])}
        given |= {
            "total": x,
            "decay": 0.75,
            "gap": torch.tensor([0.5, -2.0], dtype=F64),
            "order": 2.0,
            "eta": 1.05,
            "alpha_max": 0.1,
            "share": 0.3,
            "step_size": 0.1,
            "eps": 0.3,
            "lo": 0.0,
            "hi": 1.0,
            "seed": 7,
            "sample_ids": IDS,
        }
        given |= {"step_size_rows": size_rows, "eps_rows": eps_rows, "velocity": torch.zeros_like(x), "momentum": 0.75}
        given["share_rows"] = None if size_rows is None else size_rows + 0.5
        given |= {"lo_channels": lo_channels, "hi_channels": hi_channels}
        for op in OPERATORS:
            schema = getattr(torch.ops.advfeat, op).default._schema.arguments
            counts = "grad_status" in [argument.name for argument in schema]
            for status in (None, torch.zeros(2, 2, dtype=torch.int32)) if counts else (None,):
                values = [(given | {"grad_status": status})[argument.name] for argument in schema]
                yield op, (values[0].clone() if op.endswith("_") else values[0], *values[1:])


SAMPLES = list(_samples())


def test_opcheck_sees_the_operators():
    assert (
        {"l2_step_", "project_linf", "random_start_l2", "copy_rows_", "hash_rows"}
        <= {op for op, _ in SAMPLES}
        == set(OPERATORS)
    )


@pytest.mark.parametrize(("op", "arguments"), SAMPLES, ids=[f"{op}-{i}" for i, (op, _) in enumerate(SAMPLES)])
def test_opcheck(op, arguments):
    """The schema tells what is written and what aliases; the fake has the shape, dtype and strides of the result."""
    torch.library.opcheck(getattr(torch.ops.advfeat, op).default, arguments)


def _strided_like_the_fake(op, *arguments):
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = getattr(torch.ops.advfeat, op)(*arguments)
    with FakeTensorMode() as mode:
        fake = getattr(torch.ops.advfeat, op)(
            *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
        )
    return real.stride() == fake.stride() and real.shape == fake.shape and real.dtype == fake.dtype


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (4,), (1, 3, 1, 1), (2, 1, 4, 4), (2, 3, 2, 5, 2)])
def test_fakes_agree_on_unusual_shapes(shape):
    x = torch.rand(shape)
    none = (None, None, None)
    assert _strided_like_the_fake("project_l2", x, x, 0.5, 0.0, 1.0, *none)
    assert _strided_like_the_fake("random_start_l2", x, 0.5, 0, torch.arange(shape[0]), 0.0, 1.0, *none)
    if x.dim() == 4:
        last = x.contiguous(memory_format=torch.channels_last)
        assert _strided_like_the_fake("linf_step", last, x, x, 0.1, 0.5, 0.0, 1.0, None, *none)


def _loop(x, grad, x0, eps, lo, start, best_x, best_value):
    """A small attack with in-place and functional operators, views and a reused buffer."""
    status, total = torch.zeros(x.shape[0], 2, dtype=torch.int32), torch.zeros_like(x)
    x = ops.random_start_linf(x0, 0.1, 3, start)
    for k in range(3):
        g = grad * (k + 1) - x
        ops.accumulate_gradient_(total, g, 0.9, grad_status=status)
        ops.fab_step_(x, g, x0, eps, 2, lo=lo, hi=0.95, grad_status=status)
        ops.l2_step_(x, g, x0, 0.1, eps, lo, 0.95, grad_status=status)
        ops.l1_step_(x, g, x0, 0.1, 2.0, lo, 0.95, share=0.5, grad_status=status)
        y = ops.linf_step(x, g, x0, 0.02, 0.3)
        value = y.flatten(1).sum(1)
        better = value > best_value
        ops.copy_rows_(best_x, y, better)
        ops.copy_rows_(best_value, value, better)
        ops.project_l2_(x[1:], x0[1:], 0.05)
    x = ops.project_linf(x, x0, eps, lo) + 0 * y
    return x, best_x, best_value, status, total


def _loop_arguments():
    x, grad, x0 = (t.contiguous() for t in _tensors("contiguous", F32, F32))
    return (
        x,
        grad,
        x0,
        torch.tensor([0.1, 0.5]),
        torch.tensor([0.0, 0.1, 0.2]),
        IDS,
        x0.clone(),
        torch.full((2,), -math.inf),
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_compiled_loop_is_the_eager_loop(backend):
    """fullgraph: no operator breaks the graph; in-place changes and those through views are seen."""
    torch._dynamo.reset()
    expected = _loop(*_loop_arguments())
    arguments = _loop_arguments()
    result = torch.compile(_loop, fullgraph=True, backend=backend)(*arguments)
    for a, b in zip(result, expected, strict=True):
        assert same_bits(a, b)
    assert same_bits(arguments[6], expected[1])  # best_x was an input, written in place


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
@pytest.mark.slow
@torch.no_grad()
def test_inductor_loop_is_the_eager_loop():
    torch._dynamo.reset()
    expected = _loop(*_loop_arguments())
    with torch._inductor.config.patch(force_disable_caches=True):
        result = torch.compile(_loop, fullgraph=True)(*_loop_arguments())
    # inductor may contract grad * k - x into one rounding, and sums y in another order: last bits may differ
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
@torch.no_grad()
def test_inductor_computes_a_gradient_once_for_two_steps_in_place():
    """torch.compile recomputed grad - x for the second step, after the first had moved x."""
    torch._dynamo.reset()

    def two_steps(x, grad, x0):
        x = ops.project_linf(x, x0, 0.5)
        g = grad - x
        ops.l2_step_(x, g, x0, 0.1, 0.5)
        ops.l2_step_(x, g, x0, 0.1, 0.5)
        return x

    x, grad, x0 = torch.rand(3, 2, 3, 4, 5)
    expected = two_steps(x, grad, x0)
    with torch._inductor.config.patch(force_disable_caches=True):  # a stored graph would hide the fault
        result = torch.compile(two_steps, fullgraph=True)(x, grad, x0)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_compiled_step_takes_other_shapes_and_numbers():
    """A change of the batch size or of eps recompiles or generalises, but never gives the old result."""
    torch._dynamo.reset()

    def step(x, grad, x0, eps):
        return ops.l2_step(x, grad, x0, 0.2, eps)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n, eps in ((2, 0.1), (3, 0.1), (5, 0.25), (1, 0.3), (4, math.inf)):
        x0, grad = torch.rand(n, 7), torch.randn(n, 7)
        assert same_bits(compiled(x0, grad, x0, eps), step(x0, grad, x0, eps))


def test_compiled_projection_has_its_gradient():
    torch._dynamo.reset()
    x0 = torch.rand(3, 6, dtype=F64)

    def loss(x):
        return (ops.project_l2(x, x0, 0.5, -9.0, 9.0) ** 2).sum()

    x = x0 + torch.randn(3, 6, dtype=F64)
    grads = []
    for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        f(leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0])


def test_inference_mode_and_inference_tensors():
    x0, grad = torch.rand(2, 5), torch.randn(2, 5)
    expected = ops.l2_step(x0, grad, x0, 0.1, 0.5)
    with torch.inference_mode():
        made = x0.clone()
        assert same_bits(ops.l2_step_(made, grad, x0, 0.1, 0.5), expected)
        ordinary = ops.project_l2(expected, x0, 0.5)
    assert same_bits(ordinary, expected)
    normal = x0.clone()
    with torch.inference_mode():
        assert same_bits(ops.l2_step_(normal, grad, x0, 0.1, 0.5), expected)
