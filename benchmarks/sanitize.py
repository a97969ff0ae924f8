"""Every kernel once, at sizes that take each of its paths: what ``compute-sanitizer`` watches."""

from __future__ import annotations

import argparse

import torch

from advfeat import ops

DTYPES = [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float64)]
DTYPES += [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)]
# Rows of one block: one value, odd sizes, MNIST, CIFAR, one tile and a bit. Float32 rows of clusters of 2, 4, 8, 16
# and 16 blocks (csrc/core/tuning.h, on an H100 or H200), those of 150,528 values more than run at once; rows in tiles
# in every dtype. The other dtypes take some of the same paths.
SHAPES = ((3, 1), (5, 33), (7, 1, 28, 28), (4, 3, 32, 32), (2, 8193))
SHAPES += ((2, 12_289), (2, 3, 96, 96), (2, 3, 128, 128), (20, 3, 224, 224), (1, 262_145), (2, 700_001))


def steps(device: str, shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype, offset: int) -> None:
    """The steps and projections; with an offset, at addresses that are no multiple of 16."""
    memory = torch.rand(offset + torch.Size(shape).numel(), device=device).to(dtype)
    x0 = memory[offset:].view(shape)
    x, grad = x0 + 0.01, torch.randn(shape, device=device).to(grad_dtype)
    grad[0] = 0
    counts = torch.zeros(shape[0], 2, dtype=torch.int32, device=device)
    for norm, eps in (("linf", 0.03), ("l2", 0.5)):
        step = getattr(ops, f"{norm}_step_")
        step(x, grad, x0, 0.1, eps, grad_status=counts)
        step(x, grad, x0, 0.1, eps)
        getattr(ops, f"project_{norm}")(x, x0, eps)
    # Steps that cancel the distance, and float64 values whose squares vanish: the second looks at a row.
    distance = (x - x0).double().flatten(1).norm(dim=1)
    ops.l2_step_(x, (x0 - x).to(grad_dtype), x0, distance, 1e-6)
    ops.accumulate_gradient_(x, grad, 0.9, grad_status=counts)
    if dtype == torch.float64:
        ops.accumulate_gradient_(x, grad.sign() * 1e308, 0.9)  # a norm that is taken again
        ops.l2_step_(x, grad * 1e-200, x0, 0.1, 0.5)


def every_kernel(device: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
    for dtype, grad_dtype in DTYPES:
        for shape in shapes:
            for offset in (0, 1):
                steps(device, shape, dtype, grad_dtype, offset)
            if dtype != grad_dtype:
                continue  # the rest takes no gradient
            x0 = torch.rand(shape, device=device).to(dtype)
            ids, mask = torch.arange(shape[0], device=device), torch.rand(shape[0], device=device) < 0.5
            ops.copy_rows_(ops.random_start_linf(x0, 0.03, 1, ids), ops.random_start_l2(x0, 0.5, 1, ids), mask)
            ops.hash_rows(x0)
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    every_kernel(parser.parse_args(arguments).device)
    print("every kernel ran")


if __name__ == "__main__":
    main()
