"""Settings as JSON values, as they are recorded beside results and hashed to look results up.

They are the fields of a dataclass, so that none can be forgotten; a field that does not affect the result is declared
with ``field(metadata=CHANGES_NO_RESULT)``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

CHANGES_NO_RESULT = {"changes_result": False}
# Of fields that were added later: at its default the field is not written, and results of earlier versions are found.
OMITTED_AT_DEFAULT = {"omitted_at_default": True}


def settings_of(thing: Any) -> dict[str, object]:
    """The settings of a dataclass that affect its result.

    Args:
        thing: an instance of a dataclass.

    Returns:
        The values by field name, in the order of the fields.
    """
    written = {}
    for f in dataclasses.fields(thing):
        value = getattr(thing, f.name)
        omitted = f.metadata.get("omitted_at_default", False) and value == f.default
        if f.metadata.get("changes_result", True) and not omitted:
            written[f.name] = value
    return written


def as_json(value: object) -> object:
    """A setting as JSON values.

    Args:
        value: the setting.

    Returns:
        Dataclasses and objects with ``to_dict`` as dicts, infinity as "inf", paths as text, a dtype as its name.
    """
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
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
