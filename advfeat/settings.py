"""Settings as JSON values, as they are written beside results and hashed to find them again."""

from __future__ import annotations

import dataclasses
import math

import torch


def as_json(value: object) -> object:
    """A setting as JSON values: dataclasses and objects with ``to_dict`` as dicts, infinity as "inf", paths as text."""
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return as_json(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, torch.Tensor):
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
