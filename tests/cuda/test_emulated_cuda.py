"""The emulator sees mistakes; and what the CUDA kernels do on other devices and in every order of their threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from emulator.emulated_cuda import Device
from support.cuda_tensors import assert_close, radius, tensors, wide
from support.strategies import F32, F64, STEPS, same_bits

from advfeat import ops, reference

MISTAKES = {
    "none": "",
    "thread_skips_barrier": "threads wait at a barrier that others never reach",
    "thread_ends_before_barrier": "threads wait at a barrier that others never reach",
    "lane_skips_shuffle": "threads wait at a barrier that others never reach",
    "no_barrier_before_read": None,
    "write_beyond_shared": "a write beyond the shared memory",
    "copy_not_waited_for": None,
    "copy_never_arrives": "ended before its asynchronous copies had arrived",
    "copy_not_aligned": "not aligned",
    "other_block_not_started": "a block that has not started or has ended",
    "other_block_ended": "a block that has not started or has ended",
    "no_cluster_barrier_before_read": None,
    "too_much_shared": "more shared memory than it was allowed",
    "too_large_cluster": "a larger cluster than it was allowed",
    "no_whole_warps": "no whole warps",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_emulator_sees_mistakes(emulator, mistake):
    # A mistake shows in some orders of the threads and not in others.
    x = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))
    want = x.reshape(4, 4, 64).double().sum((1, 2)).float()[:, None].expand(4, 4 * 64).reshape(16, 64)
    messages, wrong = set(), 0
    for seed in range(10):
        emulator.set_device(Device(seed=1000 * seed))
        out, message = emulator.run_mistake(list(MISTAKES).index(mistake), x)
        messages.add(message.split(": ")[-1].split(" (")[0])
        wrong += not message and not torch.allclose(out, want, rtol=1e-6, atol=0)
    messages.discard("")
    if MISTAKES[mistake] is None:
        assert wrong and not messages
    elif MISTAKES[mistake]:
        assert len(messages) == 1 and MISTAKES[mistake] in messages.pop()
    else:
        assert not wrong and not messages
    # the next launch is not harmed
    out, message = emulator.run_mistake(0, x)
    assert not message and torch.allclose(out, want, rtol=1e-6, atol=0)


def on(emulator, device: Device, op: str, *arguments, status=None) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """An operator on that device, and the blocks and the cluster of each launch."""
    options = {} if status is None else {"grad_status": status}

    def step() -> torch.Tensor:
        emulator.set_device(device)
        try:
            emulator.take_launches()
            with emulator.as_kernels():
                return getattr(ops, op)(*arguments, **options)
        finally:
            emulator.set_device(Device())

    # A thread asks a device once for rows of one length: a new one asks again.
    with ThreadPoolExecutor(1) as new_thread:
        got = new_thread.submit(step).result()
    return got, [(launch.blocks, launch.cluster) for launch in emulator.take_launches()]


H200 = {}
NO_16 = {"largest_cluster": 8}  # an H200 in parts, say
SMALL_BLOCKS = {"largest_cluster": 8, "shared_per_block": 99 * 1024, "shared_per_multiprocessor": 100 * 1024}  # sm_120
NO_CLUSTERS = {"largest_cluster": 0, "shared_per_block": 163 * 1024, "shared_per_multiprocessor": 164 * 1024}  # sm_80
OLD_CODE = {"ptx_version": 80}


# Float32 with a gradient: 12 bytes a value. The last column: clusters of how many blocks; 0: in tiles.
@pytest.mark.parametrize(
    "device, dim, blocks",
    [
        (H200, 3_500, 1),
        (H200, 3_930, 1),  # with the kernel's own arrays more than the 48 KB that need no asking
        (H200, 4_096, 1),
        (H200, 4_097, 1),
        (H200, 9_000, 1),
        (H200, 9_473, 2),
        (H200, 49_152, 8),
        (H200, 150_528, 16),
        (H200, 262_144, 16),
        (H200, 307_201, 0),
        (NO_16, 150_528, 8),
        (NO_16, 262_144, 0),
        (SMALL_BLOCKS, 3_072, 1),
        (SMALL_BLOCKS, 30_000, 8),
        (SMALL_BLOCKS, 60_000, 8),
        (SMALL_BLOCKS, 70_000, 0),
        (NO_CLUSTERS, 6_000, 1),
        (NO_CLUSTERS, 13_000, 1),
        (NO_CLUSTERS, 14_000, 0),
        (OLD_CODE, 9_473, 1),
        (OLD_CODE, 49_152, 0),
    ],
)
def test_where_a_row_is_held(emulator, device, dim, blocks):
    x, grad, x0 = tensors((2, dim))
    arguments = (x, grad, x0, 0.07, radius("l2", x.shape), 0.0, 1.0)
    got, launches = on(emulator, Device(**device), "l2_step", *arguments)
    assert_close(got, reference.l2_step(*wide(*arguments)))
    if blocks == 0:
        assert len(launches) == 3 and all(cluster == 1 for _, cluster in launches)
    else:
        assert launches == [(2 * blocks, blocks)]


def test_steps_and_projections_in_turn(emulator):
    """They hold the same row in different ways, and remember both."""
    x, grad, x0 = tensors((2, 9_800))
    with emulator.as_kernels():
        emulator.take_launches()
        for _ in range(2):
            for op, arguments in (("project_l2", (x, x0, 0.5)), ("l2_step", (x, grad, x0, 0.07, 0.5))):
                assert_close(getattr(ops, op)(*arguments), getattr(reference, op)(*wide(*arguments)))
    assert [launch.cluster for launch in emulator.take_launches()] == [1, 2, 1, 2]


# Another order of threads and blocks, fewer clusters, and blocks that do several rows.
RUNS = [{"seed": 1_000_000}, {"clusters_at_once": 1}, {"max_blocks": 3}, {"max_blocks": 20, "seed": 77}]
ROWS = [(7, 37), (7, 3, 32, 32), (7, 3, 64, 64), (7, 3, 224, 224), (7, 310_001)]


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize(("op", "shape"), [(op, s) for op in STEPS for s in (ROWS if op != "l1_step" else ROWS[:3])])
def test_a_step_does_not_depend_on_how_it_runs(emulator, op, shape, dtype):
    x, grad, x0 = tensors(shape, (dtype, dtype))
    grad[1], grad[2].view(-1)[-1] = 0, math.nan
    x[3] = x0[3] - grad[3]  # the step cancels the distance
    if dtype == F64:
        grad[4] *= 1e200  # squares overflow
    arguments = (x, grad, x0, 0.07, radius(op, shape), 0.0, 1.0)
    want, _ = on(emulator, Device(), op, *arguments)
    for run in RUNS:
        status = torch.zeros(7, 2, dtype=torch.int32)
        got, _ = on(emulator, Device(**run), op, *arguments, status=status)
        assert same_bits(got, want), run
        assert status.tolist() == [[0, 0], [1, 0], [0, 1], *[[0, 0]] * 4], run


@pytest.mark.parametrize("shape", ROWS[:3], ids=str)
def test_the_other_operators_do_not_depend_on_how_they_run(emulator, shape):
    src, dst, x0 = tensors(shape)
    mask = torch.tensor([True, False, False, True, True, False, True])
    for op in ("random_start_linf", "random_start_l2"):
        arguments = (x0, 0.5, 3, torch.arange(7), 0.0, 1.0)
        want, _ = on(emulator, Device(), op, *arguments)
        for run in RUNS:
            assert same_bits(on(emulator, Device(**run), op, *arguments)[0], want), (op, run)
    want = reference.hash_rows(src)
    for run in RUNS:
        assert torch.equal(on(emulator, Device(**run), "hash_rows", src)[0], want), run
    totals = [on(emulator, Device(**run), "accumulate_gradient_", dst.clone(), src, 0.9)[0] for run in [{}, *RUNS]]
    assert all(same_bits(total, totals[0]) for total in totals)
    want = reference.copy_rows(dst, src, mask)
    for run in RUNS:
        assert same_bits(on(emulator, Device(**run), "copy_rows_", dst.clone(), src, mask)[0], want), run
