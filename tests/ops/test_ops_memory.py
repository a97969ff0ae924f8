"""Where the tensors of an operator lie: on which device, and whether what is written overlaps what is read."""

import pytest
import torch

from advfeat import ops

B, D = 5, 7


def tensors(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(B, D, generator=g).to(dtype)
    return x0 + 0.1, torch.randn(B, D, generator=g).to(dtype), x0


CALLS = {
    "l2_step": lambda a: ops.l2_step(a["x"], a["grad"], a["x0"], a["step_size"], a["eps"], a["lo"], a["hi"]),
    "linf_step_": lambda a: ops.linf_step_(
        a["x"], a["grad"], a["x0"], a["step_size"], a["eps"], a["lo"], a["hi"], grad_status=a["grad_status"]
    ),
    "project_l2": lambda a: ops.project_l2(a["x"], a["x0"], a["eps"], a["lo"], a["hi"]),
    "project_linf_": lambda a: ops.project_linf_(a["x"], a["x0"], a["eps"], a["lo"], a["hi"]),
    "random_start_linf": lambda a: ops.random_start_linf(a["x0"], a["eps"], 0, a["sample_ids"], a["lo"], a["hi"]),
    "random_start_l2": lambda a: ops.random_start_l2(a["x0"], a["eps"], 0, a["sample_ids"], a["lo"], a["hi"]),
    "copy_rows_": lambda a: ops.copy_rows_(a["dst"], a["src"], a["mask"]),
    "accumulate_gradient_": lambda a: ops.accumulate_gradient_(
        a["total"], a["grad"], 0.9, grad_status=a["grad_status"]
    ),
    "l1_step": lambda a: ops.l1_step(
        a["x"], a["grad"], a["x0"], a["step_size"], a["eps"], a["lo"], a["hi"], share=a["share"]
    ),
    "l1_step_": lambda a: ops.l1_step_(
        a["x"],
        a["grad"],
        a["x0"],
        a["step_size"],
        a["eps"],
        share=a["share"],
        velocity=a["total"],
        momentum=0.5,
        grad_status=a["grad_status"],
    ),
    "project_l1": lambda a: ops.project_l1(a["x"], a["x0"], a["eps"], a["lo"], a["hi"]),
    "project_l1_": lambda a: ops.project_l1_(a["x"], a["x0"], a["eps"], a["lo"], a["hi"]),
    "fab_step_": lambda a: ops.fab_step_(
        a["x"], a["grad"], a["x0"], a["gap"], 2, lo=a["lo"], hi=a["hi"], grad_status=a["grad_status"]
    ),
}
USED = {
    "l2_step": ("x", "grad", "x0", "step_size", "eps", "lo", "hi"),
    "linf_step_": ("x", "grad", "x0", "step_size", "eps", "lo", "hi", "grad_status"),
    "project_l2": ("x", "x0", "eps", "lo", "hi"),
    "project_linf_": ("x", "x0", "eps", "lo", "hi"),
    "random_start_linf": ("x0", "eps", "sample_ids", "lo", "hi"),
    "random_start_l2": ("x0", "eps", "sample_ids", "lo", "hi"),
    "copy_rows_": ("dst", "src", "mask"),
    "accumulate_gradient_": ("total", "grad", "grad_status"),
    "l1_step": ("x", "grad", "x0", "step_size", "eps", "lo", "hi", "share"),
    "l1_step_": ("x", "grad", "x0", "step_size", "eps", "share", "grad_status"),
    "project_l1": ("x", "x0", "eps", "lo", "hi"),
    "project_l1_": ("x", "x0", "eps", "lo", "hi"),
    "fab_step_": ("x", "grad", "x0", "gap", "lo", "hi", "grad_status"),
}


def arguments() -> dict[str, torch.Tensor]:
    x, grad, x0 = tensors()
    rows, channels = torch.full((B,), 0.3), torch.zeros(D)
    return {
        **{"x": x, "grad": grad, "x0": x0, "step_size": rows, "eps": rows + 0.1, "lo": channels, "hi": channels + 1},
        **{"dst": x.clone(), "src": x0, "mask": torch.arange(B) % 2 == 0, "total": x.clone()},
        **{
            "sample_ids": torch.arange(B),
            "gap": rows - 0.2,
            "share": rows,
            "grad_status": torch.zeros(B, 2, dtype=torch.int32),
        },
    }


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, names in USED.items() for name in names])
def test_a_tensor_on_the_meta_device_among_others_is_named(call, name):
    """It brought the dispatcher to the function that only makes room: the result was memory that nobody had written."""
    given = arguments()
    given[name] = given[name].to("meta")
    first = USED[call][0]
    wanted = f"{name} should be on the device of {first}, cpu, got meta" if name != first else "should be on the device"
    with pytest.raises(RuntimeError, match=wanted):
        CALLS[call](given)


@pytest.mark.parametrize("call", CALLS)
def test_all_on_the_meta_device_give_shapes(call):
    result = CALLS[call]({name: tensor.to("meta") for name, tensor in arguments().items()})
    first = result[0] if isinstance(result, tuple) else result
    assert first.device.type == "meta" and first.shape == (B, D)


@pytest.mark.parametrize("call", CALLS)
def test_torchs_defaults_change_nothing(call):
    want = CALLS[call](arguments())
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            given = {name: tensor for name, tensor in _made_before().items()}
            got = CALLS[call](given)
    finally:
        torch.set_default_dtype(dtype)
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True):
        assert a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _made_before() -> dict[str, torch.Tensor]:
    with torch.device("cpu"):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return arguments()
        finally:
            torch.set_default_dtype(dtype)


STEPS = {
    "linf_step_": lambda x, g, x0: ops.linf_step_(x, g, x0, 0.1, 0.3),
    "l2_step_": lambda x, g, x0: ops.l2_step_(x, g, x0, 0.1, 0.3),
    "l1_step_": lambda x, g, x0: ops.l1_step_(x, g, x0, 0.1, 0.3),
    "project_linf_": lambda x, g, x0: ops.project_linf_(x, x0, 0.3),
    "project_l2_": lambda x, g, x0: ops.project_l2_(x, x0, 0.3),
    "project_l1_": lambda x, g, x0: ops.project_l1_(x, x0, 0.3),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shift", [-D * (B - 1) - 1, -D, -3, -1, 1, 3, D, D * (B - 1)])
@pytest.mark.parametrize("name", ["x0", "grad"])
def test_memory_that_is_read_after_it_is_written_is_refused(step, shift, name):
    if name == "grad" and step.startswith("project"):
        pytest.skip("a projection has no gradient")
    buffer, at = torch.rand(4 * B * D), 2 * B * D - B * D // 2
    x, other = (buffer[start : start + B * D].view(B, D) for start in (at, at + shift))
    _, grad, x0 = tensors()
    given = {"grad": grad, "x0": x0} | {name: other}
    before = buffer.clone()
    with pytest.raises(RuntimeError, match=f"{name} should not share a part of its memory with x"):
        STEPS[step](x, given["grad"], given["x0"])
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("step", STEPS)
def test_neighbours_in_one_buffer_and_the_same_tensor_twice_are_fine(step):
    x, grad, x0 = tensors()
    want = STEPS[step](x.clone(), grad, x0)
    # Behind one another, row beside row, and value beside value, which is copied.
    for buffer in (torch.stack([x, grad, x0]), torch.stack([x, grad, x0], 1).transpose(0, 1)):
        got = STEPS[step](*buffer.unbind(0))
        assert torch.equal(got, want)
    mixed = torch.stack([x, grad, x0], -1)
    assert torch.equal(STEPS[step](*mixed.unbind(-1)), want)
    assert torch.equal(STEPS[step](x.clone(), x0, x0), STEPS[step](x.clone(), x0.clone(), x0))
    same = x.clone()
    assert torch.equal(STEPS[step](same, grad, same), STEPS[step](x.clone(), grad, x.clone()))


@pytest.mark.parametrize("name", ["eps", "step_size"])
def test_numbers_in_the_memory_of_x_are_refused(name):
    x = torch.full((B, 1), 0.5, dtype=torch.float64)
    settings = {"step_size": 0.1, "eps": 0.3} | {name: x[:, 0].roll(0).set_(x.untyped_storage(), 0, (B,), (1,))}
    with pytest.raises(RuntimeError, match=f"{name} should not share a part of its memory with x"):
        ops.l2_step_(
            x[1:], torch.ones(B - 1, 1, dtype=torch.float64), x[1:] * 1, **(settings | {name: settings[name][:-1]})
        )


def test_copy_rows_refuses_what_it_writes_over():
    buffer = torch.rand(2 * B * D)
    with pytest.raises(RuntimeError, match="src should not share a part of its memory with dst"):
        ops.copy_rows_(buffer[: B * D].view(B, D), buffer[3 : 3 + B * D].view(B, D), torch.ones(B, dtype=torch.bool))
    flags = torch.ones(B + 1, 1, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="mask should not share a part of its memory with dst"):
        ops.copy_rows_(flags[1:], ~flags[1:], flags[:-1, 0])
    with pytest.raises(RuntimeError, match="dst is written to, so its values should not share memory"):
        ops.copy_rows_(torch.zeros(1, D).expand(B, D), torch.ones(B, D), flags[1:, 0])
    x = torch.rand(B, D)
    before = x.clone()
    assert torch.equal(ops.copy_rows_(x, x, flags[1:, 0]), before)  # the same place


def test_copy_rows_takes_the_mask_from_the_rows_it_writes():
    flags = torch.tensor([[True], [False], [True]])
    assert ops.copy_rows_(flags, torch.zeros_like(flags), flags[:, 0]).tolist() == [[False], [False], [False]]
