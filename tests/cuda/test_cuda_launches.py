"""Launches of the CUDA kernels: every stream, device and graph gives the same bits, without synchronisation."""

from __future__ import annotations

import pytest
import torch
from support.cuda_tensors import TILED, radius, tensors
from support.strategies import DTYPE_PAIRS, PROJECTIONS, STEPS, same_bits
from torch import Tensor

from advfeat import ops

# Skipped without a device or a CUDA build.
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        ops._C is None or not ops._C.build_config()["cuda"], reason="the extension was built without CUDA"
    ),
]
CUDA = torch.device("cuda")


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [t.to(CUDA) for t in tensors]


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
def test_rows_that_clusters_hold_need_no_second_look_at_memory(dtypes):
    if torch.cuda.get_device_capability() not in ((9, 0), (10, 0)):
        pytest.skip("the lengths are those of a device with clusters and 227 KB of shared memory a block")

    def allocations(dim: int) -> int:
        x, grad, x0 = on_device(*tensors((2, dim), dtypes))
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        ops.l2_step_(x, grad, x0, 0.07, 0.5)
        return torch.cuda.memory_stats()["allocation.all.allocated"] - before

    # Rows in tiles keep their sums in memory of torch's allocator; nothing else of a step does.
    assert allocations(TILED) == 1
    held = [dim for dim in (49_152, 150_528, 262_144) if dim * dtypes[0].itemsize <= 4 * 307_200]
    assert len(held) >= 2 and [allocations(dim) for dim in held] == [0] * len(held)


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (2, 3, 224, 224), (2, TILED)], ids=str)
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
    best, mask = x.clone(), torch.rand(4, device=CUDA) < 0.5
    torch.cuda.set_sync_debug_mode("error")
    try:
        for op in STEPS:
            getattr(ops, op)(x, grad, x0, eps, eps, lo, hi, grad_status=status)
        for op in PROJECTIONS:
            getattr(ops, op)(x, x0, eps, lo, hi)
        ops.random_start_linf(x0, eps, 0, ids, lo, hi)
        ops.random_start_l2(x0, eps, 0, ids, lo, hi)
        ops.copy_rows_(best, x, mask)
        ops.hash_rows(x)
        ops.accumulate_gradient_(best, grad, 0.9, grad_status=status)
        for order in (1, 2, float("inf")):
            ops.fab_step_(best, grad, x0, eps, order, lo=lo, hi=hi, grad_status=status)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (4, 3, 224, 224), (2, TILED)], ids=str)
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


def test_tensors_on_two_devices_are_refused():
    x, grad, x0 = tensors((3, 5))
    with pytest.raises(RuntimeError, match="x0 should be on the device of x"):
        ops.l2_step(*on_device(x, grad), x0, 0.1, 0.5)
    with pytest.raises(RuntimeError, match="eps should be on the device of x"):
        ops.l2_step(*on_device(x, grad, x0), 0.1, torch.rand(3))
    with pytest.raises(RuntimeError, match="sample_ids should be on the device of x"):
        ops.random_start_l2(x0.to(CUDA), 0.1, 0, torch.arange(3))


@pytest.mark.parametrize("given", ["numbers", "tensors"])
@pytest.mark.parametrize(
    "op", sorted(n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if "advfeat::" in n)
)
def test_opcheck(op, given):
    x, grad, x0, velocity = on_device(*tensors((3, 3, 4, 5)), torch.zeros(3, 3, 4, 5))
    rows, lo, hi = on_device(torch.rand(3), torch.zeros(3), torch.ones(3))
    values = {"x": x, "grad": grad, "x0": x0, "dst": x, "src": x0, "total": x, "velocity": velocity}
    values |= {"mask": rows < 0.5, "sample_ids": torch.arange(3, device=CUDA), "seed": 1, "decay": 0.9}
    values |= {"order": 2.0, "eta": 1.05, "alpha_max": 0.1, "share": 0.3, "gap": rows}
    values |= {"step_size": 0.1, "eps": 0.5, "lo": 0.0, "hi": 1.0, "momentum": 0.75}
    if given == "tensors":
        values |= {"step_size_rows": rows, "eps_rows": rows, "lo_channels": lo, "hi_channels": hi}
        values["grad_status"] = torch.zeros(3, 2, dtype=torch.int32, device=CUDA)
    overload = getattr(torch.ops.advfeat, op).default
    torch.library.opcheck(overload, tuple(values.get(argument.name) for argument in overload._schema.arguments))
