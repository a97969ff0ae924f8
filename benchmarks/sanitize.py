"""Every kernel once, at sizes that take each of its paths: what ``compute-sanitizer`` watches."""

from __future__ import annotations

import argparse

import torch

from advfeat import ops

SHAPES = ((3, 1), (5, 33), (7, 1, 28, 28), (4, 3, 32, 32), (2, 8193), (2, 3, 224, 224), (1, 262145))


def every_kernel(device: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in shapes:
            x0 = torch.rand(shape, device=device).to(dtype)
            x, grad = x0 + 0.01, torch.randn(shape, device=device).to(dtype)
            ids = torch.arange(shape[0], device=device)
            counts = torch.zeros(shape[0], 2, dtype=torch.int32, device=device)
            for norm, eps in (("linf", 0.03), ("l2", 0.5)):
                getattr(ops, f"{norm}_step_")(x, grad, x0, 0.1, eps, grad_status=counts)
                getattr(ops, f"project_{norm}")(x, x0, eps)
                getattr(ops, f"random_start_{norm}")(x0, eps, 1, ids)
            value = torch.rand(shape[0], device=device)
            ops.update_best_(x, value.clone(), x0, value + 1)
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    every_kernel(parser.parse_args(arguments).device)
    print("every kernel ran")


if __name__ == "__main__":
    main()
