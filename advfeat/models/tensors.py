"""Tensors as the bytes of a safetensors file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from advfeat._names import printable

# What safetensors writes and reads again; some of what it writes it does not read.
_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
}  # fmt: skip


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; the same tensors give the same bytes, on every device and in every memory format.

    Errors: TypeError naming a tensor of a dtype that such a file cannot hold.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} should have a dtype that a file of safetensors can hold, got {tensor.dtype}")
    # Clones where two names share memory, which safetensors refuses, and for weights in channels_last.
    return safetensors.torch.save(
        {name: resolved(tensor).clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    )


def from_bytes(data: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, read-only: they lie in ``data``.

    file: named in errors. Errors: ValueError for what is no such file, or holds a dtype that torch does not have.
    """
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{printable(file)} is not a safetensors file: {error}") from error
    except KeyError as error:  # of the table of dtypes
        raise ValueError(f"{printable(file)} holds a tensor of dtype {error}, which cannot be read") from error


def resolved(tensor: Tensor) -> Tensor:
    """The tensor's values on the CPU as they are, where it may be marked as the conjugate or the negative of them."""
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def wide(tensor: Tensor) -> Tensor:
    """The same values in a dtype that torch compares: of floats of 8 bits it does not know which are finite."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
