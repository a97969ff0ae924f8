"""Conversion of tensors to the bytes of a safetensors file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from advfeat._names import printable

# The dtypes that safetensors can both write and read; it cannot read everything that it writes.
_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
}  # fmt: skip


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file; equal tensors give equal bytes on every device and in every memory format.

    Args:
        tensors: the tensors by name.

    Returns:
        The bytes.

    Raises:
        TypeError: a tensor has a dtype that such a file cannot hold; the message names it.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} should have a dtype that a file of safetensors can hold, got {tensor.dtype}")
    # Clones where two names share memory, which safetensors rejects, and for weights in channels_last.
    return safetensors.torch.save(
        {name: resolved(tensor).clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    )


def from_bytes(data: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU and read-only: they are views of ``data``.

    Args:
        data: the bytes of the file.
        file: its path, for error messages.

    Returns:
        The tensors by name.

    Raises:
        ValueError: the bytes are not such a file, or hold a dtype that torch lacks.
    """
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{printable(file)} is not a safetensors file: {error}") from error
    except KeyError as error:  # from the dtype table
        raise ValueError(f"{printable(file)} holds a tensor of dtype {error}, which cannot be read") from error


def resolved(tensor: Tensor) -> Tensor:
    """The values of a tensor on the CPU, with lazy conjugation and negation applied.

    Args:
        tensor: any tensor.

    Returns:
        A tensor without the conjugate and negative bits.
    """
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def wide(tensor: Tensor) -> Tensor:
    """The same values in a dtype that torch can compare: it cannot tell which 8-bit floats are finite.

    Args:
        tensor: any tensor.

    Returns:
        float32 for 8-bit floats, otherwise the tensor itself.
    """
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
