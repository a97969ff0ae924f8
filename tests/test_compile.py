"""torch's own checks of the operators, torch.compile, and the fallback to plain torch."""

import os
import subprocess
import sys

import pytest
import torch

from advfeat import ops

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def tensors(layout="contiguous"):
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 3, 4, 5, generator=g)
    x, grad = x0 + 0.1 * torch.randn(x0.shape, generator=g), torch.randn(x0.shape, generator=g)
    if layout == "channels_last":
        x, grad, x0 = (t.to(memory_format=torch.channels_last) for t in (x, grad, x0))
    if layout == "transposed":
        x, grad, x0 = (t.transpose(2, 3) for t in (x, grad, x0))
    return x, grad, x0


ROWS, CHANNELS = torch.tensor([0.1, 0.2]), torch.tensor([0.0, 0.1, 0.2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("by_tensor", [False, True])
@pytest.mark.parametrize("name", ["linf_step", "l2_step", "linf_step_", "l2_step_"])
def test_opcheck_steps(name, by_tensor, layout):
    numbers = (ROWS, ROWS, CHANNELS, CHANNELS + 0.5) if by_tensor else (None,) * 4
    status = ((torch.zeros(2, 2, dtype=torch.int32) if by_tensor else None),) if name.endswith("_") else ()
    op = getattr(torch.ops.advfeat, name).default
    torch.library.opcheck(op, (*tensors(layout), 0.1, 0.3, 0.0, 1.0, *numbers, *status), test_utils=TESTS)


@pytest.mark.parametrize("by_tensor", [False, True])
@pytest.mark.parametrize("name", ["project_linf", "project_l2", "project_linf_", "project_l2_"])
def test_opcheck_projections(name, by_tensor):
    x, _, x0 = tensors()
    numbers = (ROWS, CHANNELS, CHANNELS + 0.5) if by_tensor else (None,) * 3
    op = getattr(torch.ops.advfeat, name).default
    torch.library.opcheck(op, (x, x0, 0.3, 0.0, 1.0, *numbers), test_utils=TESTS)


@pytest.mark.parametrize("name", ["random_start_linf", "random_start_l2"])
def test_opcheck_random_starts(name):
    op = getattr(torch.ops.advfeat, name).default
    arguments = (tensors("channels_last")[2], 0.3, 7, torch.arange(2), 0.0, 1.0, None, None, None)
    torch.library.opcheck(op, arguments, test_utils=TESTS)


def test_opcheck_update_best():
    x, best, _ = tensors()
    op = torch.ops.advfeat.update_best_.default
    torch.library.opcheck(op, (best.clone(), torch.zeros(2), x, torch.tensor([1.0, -1.0])), test_utils=TESTS)


def _loop(x, grad, x0, size, eps):
    status = torch.zeros(x.shape[0], 2, dtype=torch.int32)
    x = x.clone()
    for _ in range(2):
        ops.l2_step_(x, grad * 2, x0, size, eps, grad_status=status)
        ops.linf_step_(x, grad - 1, x0, 0.01, 0.3)
    y = ops.l2_step(x, grad, x0, 0.1, 0.3)
    ops.project_l2_(y, x0, 0.2)
    start = ops.random_start_l2(x0, 0.1, 3, torch.arange(x.shape[0]))
    best, _ = ops.update_best_(y, torch.zeros(x.shape[0]), start, torch.ones(x.shape[0]))
    return best + 1, status, ops.linf_step(x, grad, x0, size, eps)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_loop_compiles_without_a_graph_break(backend):
    torch._dynamo.reset()
    arguments = (*tensors(), 0.1, torch.tensor([0.1, 0.4]))
    with torch.no_grad():
        compiled = torch.compile(_loop, fullgraph=True, backend=backend)(*arguments)
        for a, b in zip(compiled, _loop(*arguments), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


_WITHOUT = """
import sys, warnings
sys.modules["advfeat._C"] = None  # an import of it fails
import torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from advfeat import PGD, L2, Linf, ops
    x0 = torch.rand(4, 3)
    x = ops.l2_step(x0, torch.randn(4, 3), x0, 0.1, 0.5)
    assert abs(float((x - x0).norm(dim=1).max())) <= 0.1 + 1e-6
    y = x0.clone()
    status = torch.zeros(4, 2, dtype=torch.int32)
    assert ops.linf_step_(y, torch.zeros(4, 3), x0, 0.1, 0.5, None, None, grad_status=status) is y
    assert status[:, 0].tolist() == [1] * 4
    for threat in (L2(0.5), Linf(0.1)):
        attack = PGD(threat, steps=2, random_start=True, restarts=2)
        attack(torch.nn.Linear(3, 2), x0, torch.zeros(4, dtype=torch.int64))
print(len([w for w in seen if "advfeat.ops runs in plain torch on cpu" in str(w.message)]))
"""


def test_without_the_extension_plain_torch_does_the_work_and_says_so_once():
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
