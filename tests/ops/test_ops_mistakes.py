"""Invalid arguments of the operators: kernels and plain torch raise the same errors."""

import math

import numpy as np
import pytest
import torch
from torch import func

from advfeat import ops

X = torch.full((4, 3, 2, 2), 0.5)
ROWS, IDS = torch.full((4,), 0.1), torch.arange(4)
CHANNELS, MASK = torch.zeros(3), torch.tensor([True, False, True, False])


@pytest.fixture(params=["kernel", "plain"])
def path(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(ops, "_has_kernel", lambda x, name="x": False)
    elif ops._C is None:
        pytest.skip("the extension is not built")
    return request.param


@pytest.mark.parametrize("step", [ops.linf_step, ops.l2_step, ops.linf_step_, ops.l2_step_])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.tensor(1.0)}, "x should be a batch"),
        ({"x": X.long()}, "x should be float32, float64, float16 or bfloat16, got Long"),
        ({"grad": X[:1]}, r"grad should have the shape of x \(4, 3, 2, 2\), got \(1, 3, 2, 2\)"),
        ({"grad": X[:, :1]}, r"grad should have the shape of x"),
        ({"grad": X.double()}, "grad should have the dtype of x, or be .* x is Float and grad Double"),
        ({"grad": X.long()}, "grad should be float32, .* got Long"),
        ({"x0": X[0]}, r"x0 should have the shape of x \(4, 3, 2, 2\), got \(3, 2, 2\)"),
        ({"x0": X.double()}, "x0 should have the dtype of x, Float, got Double"),
        ({"x0": X.to("meta")}, "x0 should be on the device of x, cpu, got meta"),
        ({"step_size": math.inf}, "step_size should be finite in the arithmetic type, got inf"),
        ({"step_size": math.nan}, "step_size should be finite"),
        ({"step_size": 1e300}, r"step_size should be finite in the arithmetic type, got 1e\+300"),
        ({"step_size": torch.full((4,), math.nan)}, "step_size should be finite in the .* got nan at index 0"),
        ({"eps": -0.1}, "eps should be at least 0, got -0.1"),
        ({"eps": math.nan}, "eps should be at least 0, got nan"),
        ({"eps": torch.tensor([0.1, 0.1, -0.1, 0.1])}, "eps should be at least 0, got -0.1 at index 2"),
        ({"eps": ROWS[:3]}, r"eps should be a float or a tensor \[B\] = \(4,\), got shape \(3,\)"),
        ({"eps": ROWS[:, None]}, r"eps should be a float or a tensor \[B\] = \(4,\), got shape \(4, 1\)"),
        ({"eps": ROWS.long()}, "eps should be float32, .* got Long"),
        ({"lo": 1, "hi": 0}, "lo should be at most hi, got lo=1 and hi=0"),
        ({"lo": math.nan}, "lo should be at most hi"),
        ({"lo": torch.zeros(4)}, r"lo should be a float or a tensor \[C\] = \(3,\), got shape \(4,\)"),
        ({"lo": CHANNELS + 2}, "lo should be at most hi, got lo=2 and hi=1 for channel 0"),
        ({"hi": CHANNELS.long()}, "hi should be float32, .* got Long"),
        ({"grad_status": torch.zeros(4, 2)}, r"grad_status should be a contiguous int32 tensor \[B, 2\] = \(4, 2\)"),
        ({"grad_status": torch.zeros(4, dtype=torch.int32)}, r"grad_status should .* got Int of shape \(4,\)"),
    ],
)
def test_steps_refuse_the_same_on_every_path(path, step, changes, message):
    arguments = {"x": X.clone(), "grad": X, "x0": X, "step_size": 0.1, "eps": 0.1} | changes
    with pytest.raises(RuntimeError, match=message):
        step(**arguments)


@pytest.mark.parametrize("project", [ops.project_linf, ops.project_l2, ops.project_linf_, ops.project_l2_])
def test_projections_refuse_the_same_on_every_path(path, project):
    for changes, message in (
        ({"x0": X[:1]}, "x0 should have the shape of x"),
        ({"eps": -1}, "eps should be at least 0, got -1"),
        ({"lo": CHANNELS + 2}, "lo should be at most hi"),
    ):
        with pytest.raises(RuntimeError, match=message):
            project(**{"x": X.clone(), "x0": X, "eps": 0.1} | changes)


@pytest.mark.parametrize("start", [ops.random_start_linf, ops.random_start_l2])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x0": X.long()}, "x0 should be float32, float64"),
        ({"sample_ids": IDS[:1]}, r"sample_ids should be an int64 tensor \[B\] = \(4,\), got Long of shape \(1,\)"),
        ({"sample_ids": IDS.int()}, "sample_ids should be an int64 tensor .* got Int"),
        ({"sample_ids": [0, 1, 2, 3]}, "sample_ids should be a torch tensor, got list"),
        ({"sample_ids": None}, "sample_ids should be a torch tensor, got NoneType"),
        ({"eps": math.inf}, "eps should be finite for a random start"),
        ({"eps": ROWS * math.inf}, "eps should be finite for a random start, got inf at index 0"),
        ({"eps": -0.1}, "eps should be at least 0, got -0.1"),
        ({"seed": "0"}, "seed should be an integer of 64 bits, got '0'"),
        ({"seed": 1.5}, "seed should be an integer of 64 bits, got 1.5"),
        ({"seed": 2**63}, "seed should be an integer of 64 bits, got 9223372036854775808"),
    ],
)
def test_random_starts_refuse_the_same_on_every_path(path, start, changes, message):
    with pytest.raises(RuntimeError, match=message):
        start(**{"x0": X, "eps": 0.1, "seed": 0, "sample_ids": IDS} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dst": torch.tensor(1.0)}, r"dst should be a batch \[B, ...\], got a tensor without dimensions"),
        ({"src": X[:1]}, r"src should have the shape of dst \(4, 3, 2, 2\), got \(1, 3, 2, 2\)"),
        ({"src": X.double()}, "src should have the dtype of dst, Float, got Double"),
        ({"mask": MASK[:1]}, r"mask should be a bool tensor \[B\] = \(4,\), got Bool of shape \(1,\)"),
        ({"mask": MASK[:, None]}, r"mask should be a bool tensor \[B\] = \(4,\), got Bool of shape \(4, 1\)"),
        ({"mask": IDS}, r"mask should be a bool tensor \[B\] = \(4,\), got Long of shape \(4,\)"),
    ],
)
def test_copy_rows_refuses_the_same_on_every_path(path, changes, message):
    with pytest.raises(RuntimeError, match=message):
        ops.copy_rows_(**{"dst": X.clone(), "src": X, "mask": MASK} | changes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor(1.0), r"x should be a batch \[B, ...\], got a tensor without dimensions"),
        (X.long(), "x should be float32, float64, float16 or bfloat16, got Long"),
    ],
)
def test_hash_rows_refuses_the_same_on_every_path(path, wrong, message):
    with pytest.raises(RuntimeError, match=message):
        ops.hash_rows(wrong)


@pytest.mark.parametrize("wrong", [X.numpy(), X.tolist(), None])
def test_what_is_no_tensor_is_named(path, wrong):
    for call, name in (
        (lambda: ops.l2_step(wrong, X, X, 0.1, 0.1), "x"),
        (lambda: ops.l2_step(X, wrong, X, 0.1, 0.1), "grad"),
        (lambda: ops.linf_step_(X.clone(), X, wrong, 0.1, 0.1), "x0"),
        (lambda: ops.project_linf_(wrong, X, 0.1), "x"),
        (lambda: ops.random_start_l2(wrong, 0.1, 0, IDS), "x0"),
        (lambda: ops.copy_rows_(wrong, X, MASK), "dst"),
        (lambda: ops.hash_rows(wrong), "x"),
        (lambda: ops.copy_rows_(X.clone(), X, wrong), "mask"),
    ):
        with pytest.raises(RuntimeError, match=rf"\b{name}\b") as raised:
            call()
        if name in ("x", "dst") or path == "plain":
            assert f"{name} should be a torch tensor, got {type(wrong).__name__}" in str(raised.value)


@pytest.mark.parametrize("wrong", ["0.1", [0.1] * 4, np.full(4, 0.1)])
def test_what_is_no_number_is_named(path, wrong):
    for changes in ({"step_size": wrong}, {"eps": wrong}, {"lo": wrong}):
        with pytest.raises(RuntimeError, match=rf"\b{next(iter(changes))}\b.*{type(wrong).__name__}"):
            ops.linf_step(X, X, X, **{"step_size": 0.1, "eps": 0.1} | changes)


def test_shapes_and_radii_are_looked_at_under_transforms_and_where_a_gradient_is_wanted():
    with pytest.raises(RuntimeError, match="grad should have the shape of x"):
        func.vmap(lambda x: ops.l2_step(x, x[:, :1], x, 0.1, 0.1))(X)
    with pytest.raises(RuntimeError, match="eps should be at least 0, got -0.1"):
        func.vmap(lambda x: ops.project_l2(x, x, -0.1))(X)
    with pytest.raises(RuntimeError, match="x0 should have the shape of x"):
        ops.project_linf(X.clone().requires_grad_(), X[:1], 0.1)
    # Of values in tensors nothing can be seen there.
    assert func.vmap(lambda x, eps: ops.project_l2(x, x, eps), in_dims=(0, 0))(X[:, None], ROWS[:, None]).shape


def test_integers_of_numpy_are_seeds(path):
    start = ops.random_start_linf(X, 0.1, np.int64(3), IDS)
    assert torch.equal(start, ops.random_start_linf(X, 0.1, 3, IDS))
