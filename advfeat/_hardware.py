"""What a device computes natively."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are instructions of the device, and so faster than in float32.

    Args:
        device: any device.

    Returns:
        True for CUDA from sm_80 on and for CPUs with AVX512-BF16 or AMX; False where it is not known.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch's own test of the same; a private name, so that its absence must not be an error.
        known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in known)
    return False
