"""Purpose-bound randomness: seeds derived from what they are for, and Philox streams keyed by sample.

The streams equal those of the compiled kernels, so that a random start does not depend on the batch, the device or the
number of processes.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def derive_seed(*parts: int | str) -> int:
    """A seed derived from its purpose, as in ``derive_seed(config.seed, "order", epoch)``.

    It is the first 63 bits of the SHA-256 of the parts: the same on every platform, and unrelated for neighbouring
    seeds.

    Args:
        *parts: integers and texts that identify the purpose.

    Returns:
        A seed in [0, 2**63).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def fresh_seed() -> int:
    """A new seed, drawn from torch's global generator: ``torch.manual_seed`` makes a script reproducible.

    Returns:
        A seed in [0, 2**62).
    """
    return int(torch.randint(2**62, (), device="cpu"))


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with :func:`derive_seed`; the global random state is neither read nor changed.

    Args:
        *parts: as for :func:`derive_seed`.

    Returns:
        The generator.
    """
    return torch.Generator().manual_seed(derive_seed(*parts))


def _mul32(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product of 32-bit words held in int64, without overflowing int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(seed: int, sample_ids: Tensor, quads: Tensor, stream: int) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words for each sample and quad of positions.

    Args:
        seed: a 64-bit integer.
        sample_ids: int64 [B].
        quads: int64 [Q], indices of groups of four positions.
        stream: 0 for the values of a random start, 1 for its radius.

    Returns:
        The words as int64 [B, Q, 4].
    """
    ids = sample_ids.reshape(-1, 1).expand(-1, quads.numel())
    c0 = quads.reshape(1, -1).expand_as(ids)
    c1 = torch.full_like(c0, stream)
    c2, c3 = ids & _WORD, (ids >> 32) & _WORD
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        hi0, lo0 = _mul32(c0, 0xD2511F53)
        hi1, lo1 = _mul32(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _open_unit(words: Tensor) -> Tensor:
    # float64 where the device supports it (mps does not)
    dtype = torch.float32 if words.device.type == "mps" else torch.float64
    return (words.to(dtype) + 0.5) * 2.0**-32


def uniforms(x0: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
    """Uniform numbers, one for each value of a batch shaped like x0.

    Args:
        x0: [B, ...], D values per sample.
        seed: a 64-bit integer.
        sample_ids: int64 [B].

    Returns:
        Numbers in (0, 1), [B, at least D].
    """
    dim = math.prod(x0.shape[1:])
    quads = torch.arange((dim + 3) // 4, device=x0.device)
    return _open_unit(philox(seed, sample_ids, quads, 0)).reshape(x0.shape[0], 4 * quads.numel())


def normals(x0: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
    """Standard normal numbers by Box-Muller, keyed like the random starts: two words give two normals.

    Args:
        x0: [B, ...], D values per sample.
        seed: a 64-bit integer.
        sample_ids: int64 [B].

    Returns:
        [B, D].
    """
    dim = math.prod(x0.shape[1:])
    u = uniforms(x0, seed, sample_ids)
    radius, angle = (-2 * u[:, 0::2].log()).sqrt(), 2 * math.pi * u[:, 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).reshape(u.shape)[:, :dim]


def uniform_numbers(seed: int, sample_ids: Tensor, stream: int) -> Tensor:
    """One uniform number for each sample.

    Args:
        seed: a 64-bit integer.
        sample_ids: int64 [B].
        stream: identifies independent draws (0 and 1 are reserved for random starts).

    Returns:
        Numbers in (0, 1), [B].
    """
    quad = torch.zeros(1, dtype=torch.int64, device=sample_ids.device)
    return _open_unit(philox(seed, sample_ids, quad, stream))[:, 0, 0]
