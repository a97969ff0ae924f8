"""The file of ``advfeat evaluate --examples``: adversarial examples with labels, flags and distances."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advfeat.evaluation import Evaluation

_KIND = "advfeat adversarial examples"


def check_examples(path: Path) -> None:
    """Check the name of a file for examples, and that it replaces nothing but such a file.

    Args:
        path: The file.

    Raises:
        ValueError: If it ends in neither .safetensors nor .npz, or holds something else.
    """
    if path.suffix.lower() not in (".safetensors", ".npz"):
        raise ValueError(f"--examples should end in .safetensors or .npz, the format, got {path}")
    if path.is_file() and path.suffix.lower() == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                ours = _KIND in (file.metadata() or {})
        except SafetensorError:
            ours = False
        if not ours:
            raise ValueError(f"--examples should be a file of its own, got {path}, which holds something else")


def examples_bytes(path: Path, result: Evaluation, about: dict) -> bytes:
    """Return the contents of the file.

    ``index``, ``label`` and ``prediction`` (on the clean image, -1 for none) are int64 [n], ``correct`` bool [n]. For
    each attack there are ``NAME/images`` [n, C, H, W], ``NAME/robust`` bool [n], ``NAME/broken_by`` int64 [n] and
    ``NAME/distance`` float32 [n]. A description, JSON in the metadata (in .npz: in an array) of the name "advfeat
    adversarial examples", lists the attacks of which ``broken_by`` holds the position.

    Args:
        path: The file, whose suffix is the format.
        result: The evaluation, with examples.
        about: Further JSON values for the description.
    """
    tensors = {
        "index": result.index,
        "label": result.labels,
        "prediction": result.prediction,
        "correct": result.correct,
    }
    for name, examples in result.examples.items():
        of_attack = {"images": examples.images, "distance": examples.distance}
        of_attack |= {"robust": result.robust[name], "broken_by": result.broken_by[name]}
        tensors |= {f"{name}/{kind}": tensor for kind, tensor in of_attack.items()}
    attacks = {r.name: {"broken_by": [row.name for row in r.breakdown], "attack": r.attack} for r in result.robustness}
    fingerprints = {"model_fingerprint": result.model_fingerprint, "data_fingerprint": result.data_fingerprint}
    text = json.dumps({"data": result.data, **fingerprints, "attacks": attacks, **about}, allow_nan=False)
    if path.suffix.lower() == ".npz":
        return _npz(tensors, text)
    # safetensors refuses tensors that share memory
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(own, {_KIND: text})


def _npz(tensors: dict[str, Tensor], text: str) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = {_KIND: np.array(text), **{name: tensor.numpy() for name, tensor in tensors.items()}}
    np.savez(file, **arrays)
    return file.getvalue()
