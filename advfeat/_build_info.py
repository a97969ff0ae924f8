"""Build information: the facts compiled into the extension, and those of the running process."""

from __future__ import annotations

from typing import Any

import torch

from advfeat._version import __version__


def build_config() -> dict[str, Any]:
    """How the extension was built and on what it runs; never fails, so that it can be used to diagnose problems.

    Returns:
        A dict of plain values, ready for JSON. Always present: ``version`` (advfeat), ``extension`` (its file, or None
        if it is missing), ``torch_running``. With an extension: ``torch`` (compiled against), ``stable_abi`` (the
        LibTorch stable ABI that it targets: the library loads in that torch and all later ones), ``compiler``,
        ``cxx_standard``, ``cxx11_abi``, ``python_abi``, ``build_type``, ``simd_levels`` (compiled in), ``simd_level``
        (chosen on this processor), ``cuda`` (bool), ``cuda_version``, ``cuda_architectures``, ``cuda_reason`` (why CUDA
        was compiled, or was not). Without one: ``error``.
    """
    config: dict[str, Any] = {"version": __version__, "torch_running": torch.__version__, "extension": None}
    try:
        from advfeat import _C

        extension: Any = _C  # compiled, so it declares no types
        config.update(extension.build_config(), extension=extension.__file__)
    except Exception as error:
        config["error"] = f"{type(error).__name__}: {error}"
    return config
