"""The CUDA kernels, against the reference in float64 and the CPU kernels. Skipped without a device or a CUDA build."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import BF16, DTYPE_PAIRS, F16, F32, F64, PROJECTIONS, STEPS, arithmetic, bits, same_bits, unit_roundoff
from torch import Tensor

from advfeat import ops, reference

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda")
# One value, less than one group of 16 bytes, odd sizes; MNIST, CIFAR; one chunk and a bit.
SHAPES = [(1, 1), (5, 3), (1, 33), (3, 1001), (7, 1, 28, 28), (5, 3, 32, 32), (2, 8193)]
# What the clusters of an H100 or H200 hold, ImageNet among them; beyond them in every dtype: rows cut into chunks.
CHUNKED = 700_001
LONG = [(3, 3, 128, 128), (3, 3, 224, 224), (1, 262144), (2, 262145), (2, CHUNKED)]
# csrc/cuda/tuning.h on these devices: blocks of a cluster, bytes of a row that each holds
HOLDINGS = [(1, 113_664), (2, 113_664), (4, 113_664), (8, 113_664), (16, 113_664), (8, 230_400), (16, 230_400)]


@pytest.fixture(autouse=True, scope="module")
def cuda_build():
    if ops._C is None or not ops._C.build_config()["cuda"]:
        pytest.skip("the extension was built without CUDA")


def on_device(*values):
    """Tensors on the device; all else as it is."""
    return [v.to(CUDA) if isinstance(v, Tensor) else v for v in values]


def tensors(shape, dtypes=(F32, F32), *, spread=0.1, grad_scale=1.0, seed=0) -> tuple[Tensor, Tensor, Tensor]:
    """x, grad, x0 on the CPU."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(shape, generator=g, dtype=F64)
    x = x0 + spread * torch.randn(shape, generator=g, dtype=F64)
    grad = torch.randn(shape, generator=g, dtype=F64) * grad_scale
    return x.to(dtypes[0]), grad.to(dtypes[1]), x0.to(dtypes[0])


def radius(op: str, shape) -> float:
    """A radius that some values (L-inf) or samples (L2) leave and others do not."""
    return 0.15 if "linf" in op else 0.1 * math.sqrt(math.prod(shape[1:]))


def wide(*values):
    return [v.double() if isinstance(v, Tensor) else v for v in values]


def assert_close(got: Tensor, want: Tensor, what: str = "", roundings: int = 1) -> None:
    """Within some roundings of the arithmetic, and one (or more) of the dtype."""
    got, want = got.detach().cpu(), want.detach().cpu().double()
    finite = want[want.isfinite()]
    largest = max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
    torch.testing.assert_close(
        got.double(),
        want,
        rtol=1.01 * roundings * unit_roundoff(got.dtype),
        atol=8 * unit_roundoff(arithmetic(got.dtype)) * largest,
        equal_nan=True,
        msg=lambda message: f"{what}: {message}",
    )


def assert_same(got: Tensor, want: Tensor, what: str = "") -> None:
    """Bit for bit; any NaN equals any other."""
    got, want = got.detach().cpu(), want.detach().cpu()
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=lambda message: f"{what}: {message}")
    assert torch.equal(torch.signbit(got[~got.isnan()]), torch.signbit(want[~want.isnan()])), f"{what}: sign of zero"


def check_step(op: str, arguments: list) -> Tensor:
    """Runs op on the device; compares with the reference and with the CPU kernel."""
    got = getattr(ops, op)(*on_device(*arguments))
    assert got.device.type == CUDA.type and got.stride() == torch.empty_like(arguments[0]).stride()
    assert_close(got, getattr(reference, op)(*wide(*arguments)), f"{op} and its reference")
    on_cpu = getattr(ops, op)(*arguments)
    if "linf" in op:
        assert_same(got, on_cpu, f"{op} on CUDA and on the CPU")
    else:  # the order of the sums differs
        assert_close(got, on_cpu, f"{op} on CUDA and on the CPU", roundings=2)
    return got


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_steps(op, shape, dtypes):
    x, grad, x0 = tensors(shape, dtypes)
    for step_size, eps in [(0.07, radius(op, shape)), (-0.2, math.inf), (1.0, 0.0)]:
        got = check_step(op, [x, grad, x0, step_size, eps, 0.0, 1.0])
    assert_same(got, x0.clamp(0, 1), "eps = 0")


def lengths_at_the_edges(value: torch.dtype, grad: torch.dtype | None) -> list[int]:
    """One value less than each way of holding a row takes, all of it, one more; the blocks' shares are of odd size."""
    width = 16 // value.itemsize
    group = width * (2 * value.itemsize + (grad.itemsize if grad else 0))
    full = [blocks * (shared // group) * width for blocks, shared in HOLDINGS]
    return [length + more for length in full for more in (-1, 0, 1)]


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
def test_rows_at_the_edges_of_what_is_held_on_chip(dtypes):
    for dim in lengths_at_the_edges(*dtypes):
        x, grad, x0 = tensors((2, dim), dtypes)
        check_step("l2_step", [x, grad, x0, 0.07, radius("l2", x.shape), 0.0, 1.0])
    for dim in lengths_at_the_edges(dtypes[0], None):
        x, _, x0 = tensors((2, dim), dtypes)
        check_step("project_l2", [x, x0, 0.8 * radius("l2", x.shape), 0.1, 0.9])


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
def test_rows_that_clusters_hold_need_no_second_look_at_memory(dtypes):
    if torch.cuda.get_device_capability() not in ((9, 0), (10, 0)):
        pytest.skip("the lengths are those of a device with clusters and 227 KB of shared memory a block")

    def allocations(dim: int) -> int:
        x, grad, x0 = on_device(*tensors((2, dim), dtypes))
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        ops.l2_step_(x, grad, x0, 0.07, 0.5)
        return torch.cuda.memory_stats()["allocation.all.allocated"] - before

    # Rows in chunks keep their sums in memory of torch's allocator; nothing else of a step does.
    assert allocations(CHUNKED) == 1
    held = [dim for dim in (49_152, 150_528, 262_144) if dim * dtypes[0].itemsize <= 4 * 307_200]
    assert len(held) >= 2 and [allocations(dim) for dim in held] == [0] * len(held)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
@pytest.mark.parametrize("op", PROJECTIONS)
def test_projections(op, shape, dtype):
    x, _, x0 = tensors(shape, (dtype, dtype))
    check_step(op, [x, x0, 0.8 * radius(op, shape), 0.1, 0.9])
    check_step(op, [x, x0, 0.8 * radius(op, shape), -math.inf, math.inf])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 0), (4,)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_empty_and_scalar_samples(op, shape):
    x, grad, x0 = tensors(shape)
    got = getattr(ops, op)(*on_device(x, grad, x0), 0.1, 0.2)
    assert_same(got, getattr(ops, op)(x, grad, x0, 0.1, 0.2))


@pytest.mark.parametrize("number", [F32, F64], ids=str)
@pytest.mark.parametrize("shape", [(6, 3, 9, 11), (3, 3, 224, 224), (1000, 3)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_numbers_by_sample_and_channel(op, shape, number):
    x, grad, x0 = tensors(shape)
    g = torch.Generator().manual_seed(1)
    step_size = torch.rand(shape[0], generator=g, dtype=number)
    eps = torch.rand(shape[0], generator=g, dtype=number) * 2 * radius(op, shape)
    eps[0] = math.inf
    lo = torch.rand(shape[1], generator=g, dtype=number) * 0.4
    hi = lo + 0.4
    for bounds in [(lo, hi), (lo, 0.9), (-math.inf, hi)]:
        check_step(op, [x, grad, x0, step_size, eps, *bounds])
        if len(shape) == 4:
            last = [t.to(memory_format=torch.channels_last) for t in (x, grad, x0)]
            check_step(op, [*last, step_size, eps, *bounds])


def place(values: Tensor, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """The values inside a buffer of NaN on the device; the buffer, and which of its places are not the values'."""
    shape, dim = values.shape, math.prod(values.shape[1:])
    # 16 bytes are at most 8 values, so a gap of 5 values misaligns all rows but the first
    row_stride, offset = {"dense": (dim, 16), "odd_start": (dim, 1), "apart": (dim + 8, 16), "odd_rows": (dim + 5, 3)}[
        layout.removesuffix("_last")
    ]
    memory_format = torch.channels_last if layout.endswith("_last") else torch.contiguous_format
    inner = values[:1].contiguous(memory_format=memory_format)
    buffer = torch.full((offset + shape[0] * row_stride + 16,), math.nan, dtype=values.dtype, device=CUDA)
    strides = (row_stride, *inner.stride()[1:])
    outside = torch.ones(buffer.shape, dtype=torch.bool, device=CUDA)
    outside.as_strided(shape, strides, offset).fill_(False)
    view = buffer.as_strided(shape, strides, offset)
    view.copy_(values)
    return view, buffer, outside


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("layout", ["dense", "odd_start", "apart", "odd_rows", "odd_start_last", "odd_rows_last"])
@pytest.mark.parametrize(
    "shape",
    [(4, 3, 6, 7), (3, 3, 32, 32), (2, 3, 128, 128), (2, 3, 224, 224), (2, 4, 256, 256), (2, 7, 11, 9091)],
    ids=str,
)
@pytest.mark.parametrize("op", STEPS)
def test_layouts_and_stray_accesses(op, shape, layout, dtypes):
    x, grad, x0 = tensors(shape, dtypes)
    rest = (0.07, radius(op, shape), 0.0, 1.0)
    memory_format = torch.channels_last if layout.endswith("_last") else torch.contiguous_format
    plain = [t.to(CUDA).contiguous(memory_format=memory_format) for t in (x, grad, x0)]
    want = getattr(ops, op)(*plain, *rest)
    placed = [place(t, layout) for t in (x, grad, x0)]
    got = getattr(ops, op)(*[view for view, _, _ in placed], *rest)
    assert same_bits(got, want), "alignment and gaps should not change a bit"
    view, buffer, outside = placed[0]
    before = bits(buffer)[outside]
    assert getattr(ops, op + "_")(view, placed[1][0], placed[2][0], *rest) is view
    assert same_bits(view, want), "in place"
    assert torch.equal(bits(buffer)[outside], before), "written outside of x"
    # one tensor misaligned, the others not
    for i in range(3):
        mixed = [place(t, layout)[0] if i == j else plain[j] for j, t in enumerate((x, grad, x0))]
        assert same_bits(getattr(ops, op)(*mixed, *rest), want)


@pytest.mark.parametrize("op", STEPS)
def test_other_layouts(op):
    x, grad, x0 = tensors((6, 5, 4, 3))
    rest = (0.07, radius(op, x.shape), 0.0, 1.0)
    want = getattr(ops, op)(*on_device(x, grad, x0), *rest)
    batch_last, cut = lambda t: t.transpose(0, 3).contiguous().transpose(0, 3), lambda t: torch.cat([t, t], 3)[..., :3]
    for rearranged in (batch_last, cut):
        views = [rearranged(t.to(CUDA)) for t in (x, grad, x0)]
        assert_same(getattr(ops, op)(*views, *rest), want)
        getattr(ops, op + "_")(*views, *rest)
        assert_same(views[0], want)
    one = x0[:1].to(CUDA).expand(6, 5, 4, 3)
    assert_same(
        getattr(ops, op)(*on_device(x, grad), one, *rest), getattr(ops, op)(*on_device(x, grad), one.clone(), *rest)
    )


@pytest.mark.parametrize("shape", [(3, 5), (3, 3, 32, 32), (2, 3, 224, 224), (2, CHUNKED)], ids=str)
@pytest.mark.parametrize(
    "dtypes, scale",
    [((F32, F32), s) for s in (1e-44, 1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e37)]
    + [((F64, F64), s) for s in (1e-320, 1e-300, 1e-160, 1e160, 1e300)]
    + [((F32, F16), 1e-6), ((F16, F16), 1e4), ((F32, BF16), 1e-38), ((BF16, BF16), 1e37)],
    ids=str,
)
def test_gradients_of_any_scale(dtypes, scale, shape):
    x, grad, x0 = tensors(shape, dtypes, grad_scale=scale)
    assert grad.count_nonzero() > 0
    for eps in (radius("l2", shape), math.inf):
        check_step("l2_step", [x, grad, x0, 0.5, eps, -math.inf, math.inf])


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-160, 1e155, 1e200, 1e300])
@pytest.mark.parametrize("dim", [7, 3072, 50001, CHUNKED])
def test_float64_differences_of_any_scale(dim, scale):
    # Squares vanish or overflow: the second look of the kernels. Results have the size of scale: compare them scaled.
    x, grad, x0 = tensors((3, dim), (F64, F64), spread=1.0)
    eps = 0.5 * math.sqrt(dim) * scale
    arguments = [x * scale, grad, torch.zeros_like(x0), 0.3 * scale, eps, -math.inf, math.inf]
    got, on_cpu = ops.l2_step(*on_device(*arguments)), ops.l2_step(*arguments)
    want = reference.l2_step(x, grad, torch.zeros_like(x0), 0.3, 0.5 * math.sqrt(dim), -math.inf, math.inf)
    # subnormal numbers have few digits
    atol = 1e-14 + (8 * 5e-324 / scale if scale < 1e-300 else 0.0)
    torch.testing.assert_close(got.cpu() / scale, want, rtol=1e-13, atol=atol)
    torch.testing.assert_close(got.cpu() / scale, on_cpu / scale, rtol=1e-13, atol=atol)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 32, 32), (4, 3, 224, 224), (4, CHUNKED)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
def test_a_step_that_cancels_the_distance(shape, dtype):
    # d + step is nearly zero: its norm has to be measured, or the shrinkage would be that of rounding errors.
    x, _, x0 = tensors(shape, (dtype, dtype), spread=1.0)
    grad = x0 - x
    norm = (x.double() - x0.double()).flatten(1).norm(dim=1)
    step_size = norm * torch.tensor([1.0, 0.999, 1.0001, 1.5], dtype=F64)
    eps = norm * 1e-6
    check_step("l2_step", [x, grad, x0, step_size, eps, -math.inf, math.inf])


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize(
    "shape", [(6, 1), (6, 37), (6, 3, 32, 32), (6, 3, 128, 128), (6, 3, 224, 224), (6, CHUNKED)], ids=str
)
@pytest.mark.parametrize("op", STEPS)
def test_bad_gradients_stay_in_their_sample_and_are_counted(op, shape, dtypes):
    x, grad, x0 = tensors(shape, dtypes)
    rest = (0.07, radius(op, shape), 0.0, 1.0)
    good = getattr(ops, op)(*on_device(x, grad, x0), *rest)
    last = math.prod(shape[1:]) - 1
    grad[1] = 0
    grad[2].view(-1)[last] = math.nan
    grad[3].view(-1)[last // 2] = math.inf
    grad[4] = 0
    grad[4].view(-1)[last] = -math.inf
    status, status_cpu = torch.full((6, 2), 3, dtype=torch.int32, device=CUDA), torch.full((6, 2), 3, dtype=torch.int32)
    for _ in range(2):
        got = getattr(ops, op)(*on_device(x, grad, x0), *rest, grad_status=status)
        on_cpu = getattr(ops, op)(x, grad, x0, *rest, grad_status=status_cpu)
    assert (status.cpu() - 3).tolist() == [[0, 0], [2, 0], [0, 2], [0, 2], [0, 2], [0, 0]]
    assert torch.equal(status.cpu(), status_cpu)
    assert same_bits(got[[0, 5]], good[[0, 5]]), "samples with good gradients"
    assert got.isfinite().all()
    if op == "l2_step":
        want = ops.project_l2(*on_device(x, x0), *rest[1:])
        assert_same(got[1:5], want[1:5], "samples whose gradient is no direction")
    assert_close(got, on_cpu, roundings=2)
    assert same_bits(getattr(ops, op)(*on_device(x, grad, x0), *rest), got), "counting should not change the step"


@pytest.mark.parametrize("op", STEPS + PROJECTIONS)
@pytest.mark.parametrize("shape", [(3, 37), (3, 3, 32, 32), (3, 3, 224, 224), (3, CHUNKED)], ids=str)
def test_nan_values_stay_in_their_sample(op, shape):
    x, grad, x0 = tensors(shape)
    arguments = [x, x0] if op in PROJECTIONS else [x, grad, x0, 0.07]
    good = getattr(ops, op)(*on_device(*arguments), radius(op, shape))
    x[1].view(-1)[2] = math.nan
    got = getattr(ops, op)(*on_device(*arguments), radius(op, shape))
    assert same_bits(got[[0, 2]], good[[0, 2]])
    assert_same(got.isnan(), getattr(ops, op)(*arguments, radius(op, shape)).isnan())


# Beside the large ones, more rows than an H200 has places for clusters: each of them does several rows.
@pytest.mark.parametrize(
    "shape", [(9, 37), (9, 3, 32, 32), (150, 3, 128, 128), (50, 3, 224, 224), (30, 262_144), (9, CHUNKED)], ids=str
)
@pytest.mark.parametrize("op", STEPS)
def test_results_repeat_and_do_not_depend_on_the_batch(op, shape):
    x, grad, x0 = on_device(*tensors(shape))
    step = getattr(ops, op)
    rest = (0.07, radius(op, shape))
    want = step(x, grad, x0, *rest)
    assert_close(want[-1:], getattr(reference, op)(*wide(x[-1:].cpu(), grad[-1:].cpu(), x0[-1:].cpu()), *rest))
    for _ in range(3):
        assert same_bits(step(x, grad, x0, *rest), want)
    for part in (slice(0, 1), slice(3, 8)):
        assert same_bits(step(x[part], grad[part], x0[part], *rest), want[part])


def test_more_rows_than_threads_of_a_wave():
    x, grad, x0 = tensors((300_001, 3))
    for op in STEPS:
        check_step(op, [x, grad, x0, 0.1, 0.2, 0.0, 1.0])


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (2, 3, 224, 224), (2, CHUNKED)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_graph_capture(op, shape):
    step = getattr(ops, op + "_")
    x, grad, x0 = on_device(*tensors(shape))
    eps = torch.full(shape[:1], radius(op, shape), device=CUDA)
    status = torch.zeros(shape[0], 2, dtype=torch.int32, device=CUDA)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a warm-up, as capturing asks for
        step(x.clone(), grad, x0, 0.05, eps)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            step(x, grad, x0, 0.05, eps, grad_status=status)
    for seed in (1, 2):
        new_x, new_grad, new_x0 = on_device(*tensors(shape, seed=seed))
        if seed == 2:
            new_grad[0] = 0
        for captured, new in ((x, new_x), (grad, new_grad), (x0, new_x0)):
            captured.copy_(new)
        want = new_x
        for _ in range(3):
            want = getattr(ops, op)(want, new_grad, new_x0, 0.05, eps)
        graph.replay()
        assert same_bits(x, want)
    assert status[:, 0].tolist() == [3] + [0] * (shape[0] - 1) and not status[:, 1].any()


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (7, 33_334)], ids=str)
def test_nothing_synchronises(size):
    x, grad, x0 = on_device(*tensors((4, 3, *size)))
    eps, ids = torch.full((4,), 0.5, device=CUDA), torch.arange(4, device=CUDA)
    lo, hi = torch.zeros(3, device=CUDA), torch.ones(3, device=CUDA)
    status = torch.zeros(4, 2, dtype=torch.int32, device=CUDA)
    best, value = x.clone(), torch.rand(4, device=CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for op in STEPS:
            getattr(ops, op)(x, grad, x0, eps, eps, lo, hi, grad_status=status)
        for op in PROJECTIONS:
            getattr(ops, op)(x, x0, eps, lo, hi)
        ops.random_start_linf(x0, eps, 0, ids, lo, hi)
        ops.random_start_l2(x0, eps, 0, ids, lo, hi)
        ops.update_best_(best, value.clone(), x, value)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (4, 3, 224, 224), (2, CHUNKED)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_another_stream(op, shape):
    x, grad, x0 = on_device(*tensors(shape))
    want = getattr(ops, op)(x, grad, x0, 0.07, radius(op, shape))
    late = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # some 30 ms: a kernel on any other stream would read the zeros
        late.copy_(x)
        got = getattr(ops, op)(late, grad, x0, 0.07, radius(op, shape))
    side.synchronize()
    assert same_bits(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 3, 224, 224)], ids=str)
def test_a_device_that_is_not_the_current_one(shape):
    x, grad, x0 = tensors(shape)
    ids = torch.arange(shape[0])
    for op in STEPS:
        want = getattr(ops, op)(*[t.to("cuda:0") for t in (x, grad, x0)], 0.07, radius(op, shape))
        got = getattr(ops, op)(*[t.to("cuda:1") for t in (x, grad, x0)], 0.07, radius(op, shape))
        assert got.device.index == 1 and torch.cuda.current_device() == 0
        assert same_bits(got.cpu(), want.cpu())
    got = ops.random_start_l2(x0.to("cuda:1"), 0.5, 0, ids.to("cuda:1"))
    assert same_bits(got.cpu(), ops.random_start_l2(x0.to("cuda:0"), 0.5, 0, ids.to("cuda:0")).cpu())


@pytest.mark.parametrize("op", STEPS)
def test_compile(op):
    def two_steps(x, grad, x0, status):
        y = getattr(ops, op)(x, grad * 2, x0, 0.07, 0.5)
        getattr(ops, op + "_")(y, grad, x0, 0.07, 0.5, grad_status=status)
        return y + 1

    x, grad, x0 = on_device(*tensors((5, 3, 8, 8)))
    grad[1] = 0
    status, status_eager = (torch.zeros(5, 2, dtype=torch.int32, device=CUDA) for _ in range(2))
    want = two_steps(x, grad, x0, status_eager)
    got = torch.compile(two_steps, fullgraph=True)(x, grad, x0, status)
    assert same_bits(got, want)
    assert torch.equal(status, status_eager) and status.sum() == 1


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (5, 3, 7, 5), (4, 3, 32, 32), (2, 3, 224, 224)], ids=str)
@pytest.mark.parametrize("op", ["random_start_linf", "random_start_l2"])
def test_random_starts(op, shape, dtype):
    x0 = tensors(shape, (dtype, dtype))[2]
    ids = torch.arange(shape[0]) * 1_000_003 + (1 << 40)
    eps = torch.linspace(0.1, 0.5, shape[0], dtype=F64) * (1 if "linf" in op else math.sqrt(math.prod(shape[1:])))
    lo, hi = 0.05, torch.linspace(0.9, 0.95, shape[1])
    start = getattr(ops, op)
    got = start(*on_device(x0, eps), 77, *on_device(ids, lo, hi))
    on_cpu = start(x0, eps, 77, ids, lo, hi)
    # The logarithm, sine and cosine of the two devices differ by a unit or two in the last place of float64.
    tolerance = {"rtol": 2e-15, "atol": 2e-14} if dtype == F64 else {"rtol": 2 * unit_roundoff(dtype), "atol": 1e-7}
    if op == "random_start_linf":
        assert_same(got, on_cpu, "uniform numbers are exact")
    else:
        torch.testing.assert_close(got.cpu(), on_cpu, **tolerance)
    unbounded = start(*on_device(x0, eps), 77, *on_device(ids), -math.inf, math.inf)
    offset = (unbounded.cpu().double() - x0.double()).flatten(1)
    size = offset.abs().amax(1) if "linf" in op else offset.norm(dim=1)
    slack = 4 * unit_roundoff(dtype) * math.sqrt(offset.shape[1]) * (1 + eps.max())
    assert (size <= eps + slack).all() and (size > 0).all()
    # independent of the batch, its order and the layout
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    shuffled = start(*on_device(x0[order], eps[order]), 77, *on_device(ids[order], lo, hi))
    assert same_bits(shuffled.cpu(), got.cpu()[order])
    if len(shape) == 4:
        last = x0.to(CUDA).to(memory_format=torch.channels_last)
        assert same_bits(start(last, eps.to(CUDA), 77, *on_device(ids, lo, hi)), got)


@pytest.mark.parametrize("value_dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 33), (9, 3, 32, 32), (9, 3, 224, 224), (9, 0)], ids=str)
def test_update_best(shape, dtype, value_dtype):
    x, best, _ = tensors(shape, (dtype, dtype), spread=1.0)
    nan, inf = math.nan, math.inf
    best_value = torch.tensor([0.0, 1.0, 2.0, nan, nan, 0.0, -inf, inf, 5.0], dtype=value_dtype)
    value = torch.tensor([1.0, 1.0, 1.0, 0.0, nan, nan, -5.0, inf, inf], dtype=value_dtype)
    want_x, want_value = reference.update_best(best, best_value, x, value)
    for move in (lambda t: t.to(CUDA), lambda t: place(t, "odd_rows")[0] if t.numel() else t.to(CUDA)):
        got_x, got_value = move(best), best_value.to(CUDA)
        assert ops.update_best_(got_x, got_value, move(x), value.to(CUDA))[0] is got_x
        assert_same(got_x, want_x)
        assert_same(got_value, want_value)
    if len(shape) == 4:
        got_x = best.to(CUDA).to(memory_format=torch.channels_last)
        ops.update_best_(got_x, best_value.to(CUDA), x.to(CUDA), value.to(CUDA))
        assert_same(got_x, want_x)


def test_tensors_on_two_devices_are_refused():
    x, grad, x0 = tensors((3, 5))
    with pytest.raises(RuntimeError, match="x0 should be on the device of x"):
        ops.l2_step(*on_device(x, grad), x0, 0.1, 0.5)
    with pytest.raises(RuntimeError, match="eps should be on the device of x"):
        ops.l2_step(*on_device(x, grad, x0), 0.1, torch.rand(3))
    with pytest.raises(RuntimeError, match="sample_ids should be on the device of x"):
        ops.random_start_l2(x0.to(CUDA), 0.1, 0, torch.arange(3))


def test_opcheck():
    x, grad, x0 = on_device(*tensors((3, 3, 4, 5)))
    rows, lo, hi = on_device(torch.rand(3), torch.zeros(3), torch.ones(3))
    ids, value = torch.arange(3, device=CUDA), torch.rand(3, device=CUDA)
    status = torch.zeros(3, 2, dtype=torch.int32, device=CUDA)
    raw = torch.ops.advfeat
    plain, tensors_instead = (0.1, 0.5, 0.0, 1.0, *[None] * 5), (0.0, 0.0, 0.0, 0.0, rows, rows, lo, hi, status)
    for op in ("linf_step", "linf_step_", "l2_step", "l2_step_"):
        packet = getattr(raw, op)
        for overload in map(packet.__getattr__, packet.overloads()):
            count = len(overload._schema.arguments)
            torch.library.opcheck(overload, (x.clone(), grad, x0, *tensors_instead)[:count])
        torch.library.opcheck(packet.default, (x.clone(), grad, x0, *plain)[: len(packet.default._schema.arguments)])
    for op in ("project_linf", "project_linf_", "project_l2", "project_l2_"):
        torch.library.opcheck(getattr(raw, op).default, (x.clone(), x0, 0.5, 0.0, 1.0, None, lo, hi))
    for op in ("random_start_linf", "random_start_l2"):
        torch.library.opcheck(getattr(raw, op).default, (x0, 0.5, 1, ids, 0.0, 1.0, None, lo, hi))
    torch.library.opcheck(raw.update_best_.default, (x.clone(), value.clone(), x0, value + 0.1))
