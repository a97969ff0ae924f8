"""Tensors of a module that share memory: loading them together, and changing layouts without breaking ties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from advfeat.models.tensors import wide

_ALIGNED = 16  # bytes: the largest element


def fill(model: nn.Module, state: Mapping[str, Any]) -> None:
    """In-place ``load_state_dict``: tensors of the model stay the same objects in the same memory.

    Also fills tensors whose elements repeat (from ``expand``), to which torch does not write.

    Args:
        model: the module.
        state: its state dict.

    Raises:
        RuntimeError: as for ``load_state_dict``, or the names differ.
    """
    repeated = {}
    for name, tensor in model.state_dict().items():
        value = state.get(name)
        if isinstance(tensor, Tensor) and _repeats(tensor) and getattr(value, "shape", None) == tensor.shape:
            repeated[name] = tensor
    rest = {name: value for name, value in state.items() if name not in repeated}
    missing, unexpected = model.load_state_dict(rest, strict=not repeated)
    if unexpected or set(missing) != repeated.keys():
        names = ", ".join([*unexpected, *(name for name in missing if name not in repeated)])
        raise RuntimeError(f"the state should be that of the model, but they differ in {names}")
    for name, tensor in repeated.items():
        _write(tensor, state[name])


def lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Puts the model's kernels (4-D parameters) into a memory format.

    A parameter that shares its memory with another tensor is left as it is: in its own memory it would no longer be
    tied. Buffers are left too: layouts are for the weights of convolutions.

    Args:
        model: the module, changed in place.
        memory_format: such as ``torch.channels_last``.
    """
    parameters = dict.fromkeys(model.parameters())
    sharing = Counter(_memory(t) for t in [*parameters, *dict.fromkeys(model.buffers())] if _is_dense(t))
    for parameter in parameters:
        if parameter.dim() == 4 and _is_dense(parameter) and sharing[_memory(parameter)] == 1:
            parameter.data = parameter.data.to(memory_format=memory_format)


def check_ties(expected: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Checks that tensors that share memory can hold all their values in a state.

    Non-tensors are skipped, and nothing is written.

    Args:
        expected: the tensors of the model, by name.
        state: the values, by name, of equal shapes.

    Raises:
        ValueError: tensors of ``expected`` share memory but have different values in ``state``.
    """
    groups: dict[tuple, dict[str, Tensor]] = {}
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor) and _is_dense(tensor) and tensor.numel():
            groups.setdefault(_memory(tensor), {})[name] = tensor
    for group in groups.values():
        if len(group) > 1 or any(map(_repeats, group.values())):
            _check_group(group, state)


def _check_group(group: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes the values into memory that is shared in the same way, and checks which survive."""
    places = {name: _place(tensor) for name, tensor in group.items()}
    start = min(first for first, _ in places.values()) // _ALIGNED * _ALIGNED
    memory = torch.UntypedStorage(max(end for _, end in places.values()) - start, device="cpu")
    twins = {}
    for name, tensor in group.items():
        twin = torch.empty(0, dtype=tensor.dtype, device="cpu")
        offset = (places[name][0] - start) // tensor.itemsize
        twins[name] = twin.set_(memory, offset, tensor.size(), tensor.stride())
        _write(twins[name], state[name])
    for name, twin in twins.items():
        if torch.equal(wide(twin), wide(state[name].to(twin.dtype))):
            continue
        first, end = places[name]
        others = [other for other in group if other != name and places[other][0] < end and first < places[other][1]]
        if not others:
            raise ValueError(f"{name} repeats its elements in the model, but not in the file")
        one = "are one tensor" if _same(group[name], group[others[-1]]) else "share memory"
        raise ValueError(f"{name} and {others[-1]} {one} in the model, but differ in the file")


def _write(tensor: Tensor, value: Tensor) -> None:
    """Copies a value of the same shape into a tensor; where elements repeat, only the first is written."""
    for dim in range(tensor.dim()):
        if tensor.stride(dim) == 0 and tensor.shape[dim] > 1:
            tensor, value = tensor.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
    with torch.no_grad():
        tensor.copy_(value)


def _repeats(tensor: Tensor) -> bool:
    return _is_dense(tensor) and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def _memory(tensor: Tensor) -> tuple:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> tuple[int, int]:
    """The byte range of its memory that a tensor occupies: first and end."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset())
    return first * tensor.itemsize, (first + last + 1) * tensor.itemsize
