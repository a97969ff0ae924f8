"""One integer seed for each purpose, so that no part of a run depends on how much randomness another part used."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from what it is for, as in ``derive_seed(config.seed, "order", epoch)``.

    The first 63 bits of the SHA-256 of the parts: the same on every platform, and unrelated for neighbouring seeds.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def fresh_seed() -> int:
    """A new seed, drawn from torch's global generator: ``torch.manual_seed`` makes a script repeatable."""
    return int(torch.randint(2**62, (), device="cpu"))


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with :func:`derive_seed`; the global random state is neither read nor moved."""
    return torch.Generator().manual_seed(derive_seed(*parts))
