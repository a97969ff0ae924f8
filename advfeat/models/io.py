"""Models on disk: ``model.safetensors`` holds the weights, ``model.json`` the rest. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advfeat._arguments import check_path
from advfeat._class_names import check_same_classes
from advfeat._json_fields import SHA256
from advfeat.files import read_checked, write_together
from advfeat.json_files import read_json, to_json
from advfeat.models.memory import check_ties, fill, lay_out
from advfeat.models.model import Adapted, Model, fingerprint
from advfeat.models.networks import is_as_created, outline
from advfeat.models.state import is_extra, state_of, tensors_of
from advfeat.models.tensors import from_bytes, to_bytes, wide
from advfeat.settings import as_json

_FORMAT = "advfeat-model-1"
_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"
# Bounded, so that an altered file cannot request more memory than there is.
_ARGUMENTS = {
    "num_classes": range(2, 10**6),
    "input_shape": [range(1, 10**5)],
    "mean": (None, [float]),
    "std": (None, [float]),
    "width": (None, range(1, 10**4)),
}
_FORM = {
    "arch": (None, str),
    "arguments": (None, _ARGUMENTS),
    "module?": (None, {"class": str, "representation": str, "created?": str}),
    "num_classes?": range(1, 10**6),
    "input_shape?": [range(1, 10**5)],
    "fingerprint?": str,
    "classes?": (None, [str]),
    "weights": {"file": str, "bytes": range(2**53), "sha256": SHA256},
    "memory_format?": str,
    "extra": dict,
}


def save(model: Model, folder: str | Path, extra: dict | None = None) -> None:
    """Writes a model to a folder, atomically: it is there and complete, or :func:`load` reports that it is not.

    Links with the names of its files are replaced.

    Args:
        model: from :func:`create` or :func:`adapt`. One whose layers were changed after :func:`create` is saved as a
            user's own module, with a RuntimeWarning, since no name says how to build it.
        folder: the folder.
        extra: JSON values to store with it, see :func:`load_extra`.

    Raises:
        TypeError: another kind of module; extra state that is more than JSON values and tensors; or tensors that no
            file can hold (sparse, complex128).
        OSError: a file could not be written; the message names it.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model should come from advfeat.models.create or adapt, got {type(model).__name__}")
    check_path("folder", folder)
    folder = Path(folder)
    if extra is not None and not isinstance(extra, dict):
        raise TypeError(f"extra should be a dict of JSON values, got {type(extra).__name__}")
    data = to_bytes(tensors_of(model))
    known = model.arch is not None and is_as_created(model)
    if model.arch is not None and not known:
        warnings.warn(
            f"the model was changed after create({model.arch!r}, ...), so it is saved without a name: to load it, give "
            "load() a model that was changed in the same way",
            RuntimeWarning,
            stacklevel=2,
        )
    description = {
        "format": _FORMAT,
        "arch": model.arch if known else None,
        "arguments": _arguments_of(model) if known else None,
        "module": None if known else _module_of(model),
        "num_classes": model.num_classes,
        "classes": model.classes and list(model.classes),
        "input_shape": list(model.input_shape),
        "weights": {"file": _WEIGHTS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "memory_format": _memory_format(model),
        "fingerprint": fingerprint(model),
        "extra": as_json(extra or {}),
    }
    write_together([(folder / _WEIGHTS, data), (folder / _DESCRIPTION, to_json(description))], follow=False)


def _arguments_of(model: Model) -> dict:
    """The arguments that rebuild the model, with the normalisation it has now: its buffers may have been edited."""
    arguments = dict(model.arch_arguments or {})
    if model.normalises:
        arguments |= {"mean": model.mean.tolist(), "std": model.std.tolist()}
    return arguments


def load(folder: str | Path, model: Model | None = None) -> Model:
    """Reads a model from a folder, in eval mode.

    Without ``model`` it is built on the CPU in the dtype in which it was saved.

    Args:
        folder: the folder.
        model: for a model from :func:`adapt`, which no file can build, an adapted model of the same architecture; for a
            model whose layers were changed after :func:`create`, a new one with the same changes. It is loaded in
            place: its parameters stay the same objects, so that ties between them and optimizers stay valid, and they
            keep their device and dtype. Nothing is changed if the file does not fit.

    Returns:
        The model.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: the weights are truncated or altered (model.json holds their SHA-256); tensors are missing, unknown
            or of the wrong shape; values do not fit the model's dtype; tensors that share memory in the model have
            different values in the file; the folder has another format; or it holds a user's own module and ``model``
            is None. The message names the file.
        TypeError: ``model`` does not come from :func:`create` or :func:`adapt`.
    """
    if model is not None and not isinstance(model, Model):
        raise TypeError(f"model should come from advfeat.models.create or adapt, got {type(model).__name__}")
    check_path("folder", folder)
    folder = Path(folder)
    path, description = folder / _DESCRIPTION, read_description(folder)
    file, data = folder / description["weights"]["file"], read_weights(folder, description)
    tensors = from_bytes(data, file)
    try:
        state = state_of(tensors)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if made_here := model is None:
        if description["arch"] is None:
            raise ValueError(
                f"{path} describes a module of the user's own. {how_to_load(folder, description.get('module'))}"
            )
        try:  # without values: a damaged file may request more memory than there is
            model = outline(description["arch"], description["arguments"] or {})
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} does not describe a known network: {error}") from error
    _check_state(file, state, model, in_place=not made_here)
    _set_classes(path, description, model)
    training = description["extra"].get("training")
    model.trained_with = training if isinstance(training, dict) else None
    layout = description.get("memory_format", "contiguous")
    if layout not in _LAYOUTS:
        raise ValueError(f"{path} should have a memory_format of {', '.join(_LAYOUTS)}, got {layout!r}")
    if made_here:  # assign, so that a model keeps the dtype in which it was saved
        # Clones, since the buffer behind the tensors is read-only.
        state = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        model.load_state_dict(state, strict=True, assign=True)
    else:
        fill(model, state)
    lay_out(model, _LAYOUTS[layout])
    return model.eval()


def load_extra(folder: str | Path) -> dict:
    """The JSON values saved with a model as ``extra``.

    Args:
        folder: the folder of the model.

    Returns:
        The values.

    Raises:
        FileNotFoundError: as for :func:`load`.
        ValueError: as for :func:`load`.
    """
    check_path("folder", folder)
    return read_description(Path(folder))["extra"]


def how_to_load(folder: Path, module: dict | None) -> str:
    """One sentence on how to load a user's own module, which no command can build.

    Args:
        folder: the folder of the model.
        module: the entry of model.json that describes the module.

    Returns:
        The sentence.
    """
    if created := (module or {}).get("created"):
        return (
            "No file can build it, so no command can: in Python, advfeat.models.load("
            f"{str(folder)!r}, model) puts the weights into a model of advfeat.models.create({created!r}, ...) that "
            "was changed in the same way"
        )
    return (
        "No file can build it, so no command can: in Python, advfeat.models.load("
        f"{str(folder)!r}, advfeat.models.adapt(module, num_classes=..., input_shape=...)) puts the weights into such "
        "a module, for evaluate(), build() and train()"
    )


def read_weights(folder: Path, description: dict) -> bytes:
    """The bytes of the weights, verified by their checksum.

    Args:
        folder: the folder of the model.
        description: the contents of model.json.

    Returns:
        The bytes.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file does not match its checksum; the message names it.
    """
    weights = description["weights"]
    return read_checked(folder / weights["file"], weights["bytes"], weights["sha256"])


def read_description(folder: Path) -> dict:
    """The contents of model.json.

    Args:
        folder: the folder of the model.

    Returns:
        The JSON object.

    Raises:
        FileNotFoundError: the folder or the file is missing.
        ValueError: the file is damaged or has another format; the message names it.
    """
    path = folder / _DESCRIPTION
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected one with {_DESCRIPTION} and {_WEIGHTS}")
    if not path.is_file():
        cut = " (its weights are there: saving was interrupted)" if (folder / _WEIGHTS).is_file() else ""
        raise FileNotFoundError(f"{path} does not exist{cut}")
    description = read_json(path)
    if description.get("format") != _FORMAT:
        raise ValueError(f"{path} should have format {_FORMAT!r}, got {description.get('format')!r}")
    weights = read_json(path, _FORM)["weights"]
    if Path(weights["file"]).name != weights["file"]:
        raise ValueError(f"{path} should name a file of its own folder, got {weights['file']!r}")
    return description


def _check_state(file: Path, state: dict[str, Any], model: Model, in_place: bool) -> None:
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        lacking = f" lacks {', '.join(missing[:3])} ({len(missing)} missing)" if missing else ""
        extra = f" has {', '.join(unknown[:3])} ({len(unknown)} unknown)" if unknown else ""
        raise ValueError(f"{file} does not fit the network:{lacking}{extra}")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in expected.items():
        if is_extra(name):
            continue
        found = state[name]
        if found.shape != tensor.shape:
            classes = f"; a model of {model.num_classes} classes is expected" if name.startswith("head.") else ""
            raise ValueError(f"{file}: {name} should be {tuple(tensor.shape)}, got {tuple(found.shape)}{classes}")
        if found.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{file}: {name} should be {tensor.dtype}, got {found.dtype}")
        if not found.is_floating_point():
            continue
        finite = torch.isfinite(wide(found))
        # A buffer may hold infinities on purpose, as a mask does.
        if not bool((finite | (~wide(found).isnan() & (name not in parameters))).all()):
            raise ValueError(f"{file}: {name} holds values that are not finite")
        if in_place and not bool((torch.isfinite(wide(found.to(tensor.dtype))) | ~finite).all()):
            raise ValueError(
                f"{file}: {name} holds values beyond {tensor.dtype}, the dtype of the model that was given"
            )
    if in_place:
        try:
            check_ties(expected, state)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    for name in ("mean", "std"):  # the weights were trained with this normalisation
        found, own = state[name], expected[name]
        # After a cast of the model, compare at the precision of the narrower dtype.
        if not (torch.equal(found.to(own), own) or torch.equal(own.to(found), found)):
            raise ValueError(f"{file}: {name} is {state[name].tolist()}, the model has {expected[name].tolist()}")


def _set_classes(path: Path, description: dict, model: Model) -> None:
    """Sets the class names with which the model was saved."""
    names = description.get("classes")
    if names is None:  # saved by an older version; the training data may still be recorded
        training = description["extra"].get("training")
        data = training.get("data") if isinstance(training, dict) else None
        data = data.get("train") if isinstance(data, dict) else None
        names = data.get("classes") if isinstance(data, dict) else None
    if names is None:
        return
    if not isinstance(names, list) or len(names) != model.num_classes or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{path} is damaged: classes should be {model.num_classes} names, got {names!r}")
    check_same_classes(model.classes, "the model that was given", names, str(path))
    model.classes = names


def _module_of(model: Model) -> dict | None:
    """For a user's own module: what a person needs to rebuild it."""
    if not isinstance(model, Adapted):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        return {"class": kind, "representation": "input of head", "created": model.arch} if model.arch else None
    of_user = type(model.module)
    return {"class": f"{of_user.__module__}.{of_user.__qualname__}", "representation": model.features_from}


def _memory_format(model: Model) -> str:
    # Stored, since convolutions in another layout round differently, and a data set built with them has other bytes.
    kernels = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    last = any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    return "channels_last" if last else "contiguous"
