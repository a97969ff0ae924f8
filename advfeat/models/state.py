"""Conversion of a module's state to tensors alone, as a safetensors file holds it, and back.

A module's ``get_extra_state`` may return anything; JSON values and tensors are supported: as JSON text in a uint8
tensor under the name of the entry, with the tensors in it alongside. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_EXTRA = "_extra_state"  # torch's suffix for the names of such entries
_TENSOR, _TUPLE, _FLOAT = "$tensor", "$tuple", "$float"


def tensors_of(model: nn.Module | Mapping[str, object]) -> dict[str, Tensor]:
    """A state dict as tensors; extra state becomes uint8 [bytes] and the tensors that it holds.

    Args:
        model: a module or a state dict.

    Returns:
        The tensors by name.

    Raises:
        TypeError: an entry holds something other than dense tensors and JSON values; the message names it.
    """
    if not isinstance(model, (nn.Module, Mapping)):
        raise TypeError(f"model should be a torch.nn.Module or a state dict, got {type(model).__name__}")
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if is_extra(name):
            inside: list[Tensor] = []
            text = json.dumps(_encoded(value, name, name, inside), allow_nan=False)
            tensors[name] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
            tensors |= {f"{name}.{i}": tensor for i, tensor in enumerate(inside)}
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type == "meta":
                kind = f"a tensor on the device {value.device}" if value.device.type == "meta" else str(value.layout)
                raise TypeError(f"the state dict should hold dense tensors with values, got {kind} at {name}")
            tensors[name] = value
        else:
            raise TypeError(_refusal(name, name, value))
    return tensors


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict from the tensors of :func:`tensors_of`.

    Args:
        tensors: the tensors by name.

    Returns:
        The state dict.

    Raises:
        ValueError: an entry is damaged; the message names it.
    """
    state: dict[str, object] = {}
    for name, tensor in tensors.items():
        if not is_extra(name):
            if not _is_inside_extra(name):
                state[name] = tensor
            continue
        try:
            state[name] = _decoded(json.loads(tensor.numpy().tobytes()), name, tensors)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise ValueError(f"{name} is damaged: {error}") from error
    return state


def is_extra(name: str) -> bool:
    """Whether an entry of a state dict comes from a module's ``get_extra_state``.

    Args:
        name: the name of the entry.

    Returns:
        True for extra state.
    """
    return name.rpartition(".")[2] == _EXTRA


def _is_inside_extra(name: str) -> bool:
    before, _, last = name.rpartition(".")
    return last.isdecimal() and is_extra(before)


def _encoded(value: object, name: str, place: str, inside: list[Tensor]) -> object:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, Tensor):
        inside.append(value)
        return {_TENSOR: len(inside) - 1}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        items = [_encoded(item, name, f"{place}[{i}]", inside) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        # Sorted, so that equal values have the same text and fingerprint.
        return {key: _encoded(value[key], name, f"{place}[{key!r}]", inside) for key in sorted(value)}
    raise TypeError(_refusal(name, place, value))


def _decoded(value: object, name: str, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, list):
        return [_decoded(item, name, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[f"{name}.{int(value[_TENSOR])}"].clone()
    if _TUPLE in value:
        return tuple(_decoded(item, name, tensors) for item in value[_TUPLE])
    if _FLOAT in value:
        return float(value[_FLOAT])
    return {key: _decoded(item, name, tensors) for key, item in value.items()}


def _refusal(name: str, place: str, value: object) -> str:
    kind = type(value).__name__
    if is_extra(name):
        module = name.rpartition(".")[0]
        owner = f"module {module!r}" if module else "the model"
        return (
            f"get_extra_state() of {owner} should return JSON values and tensors, got {kind} at {place}: files and "
            "fingerprints hold nothing that would have to be pickled"
        )
    return f"the state dict should hold tensors, got {kind} at {place}"
