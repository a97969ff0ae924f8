"""A model attacked, and left exactly as it was.

A peer's usual ``model.eval(); attack; model.train()`` un-freezes frozen BatchNorm layers, is skipped when an exception
passes, and fails under ``torch.no_grad()``. Here each submodule's own flag is put back, whatever happens.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def logits_of(output: object) -> Tensor:
    """The logits in a model's output: a tensor, an object with ``.logits`` (Hugging Face), or a dict with that key."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model should return logits as a tensor or an output with .logits, got {type(output).__name__}"
    )


class Watched:
    """The model as objectives see it: gives logits, remembers the last ones, and is otherwise the model."""

    def __init__(self, model: Callable, largest_label: int | None = None) -> None:
        self._model = model
        self._largest_label = largest_label
        self._classes: int | None = None  # once the model has been called
        self.last_logits: Tensor | None = None

    def expect_label(self, label: int | None) -> None:
        """Another batch's largest label, None for no labels."""
        if label is not None:
            self._largest_label = max(label, self._largest_label or 0)
            self._check_label()

    def _check_label(self) -> None:
        if None not in (self._largest_label, self._classes) and self._largest_label >= self._classes:
            raise ValueError(f"target holds label {self._largest_label}, but the model has {self._classes} classes")

    def __call__(self, x: Tensor) -> Tensor:
        logits = logits_of(self._model(x))
        if logits.dim() != 2 or logits.shape[0] != x.shape[0]:
            raise ValueError(
                f"the model should give logits [B, classes] with B = {x.shape[0]}, got {tuple(logits.shape)}"
            )
        self._classes = logits.shape[1]
        self._check_label()
        self.last_logits = logits.detach()
        return logits

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


def _modules(model: Callable, depth: int = 3) -> list[nn.Module]:
    """Every module that a callable can reach: itself, what a method, partial or lambda is bound to, and what it
    names."""
    if isinstance(model, nn.Module):
        return list(model.modules())
    if depth == 0:
        return []
    reached: list[object] = [getattr(model, "__self__", None), getattr(model, "__wrapped__", None)]
    if isinstance(model, functools.partial):
        reached += [model.func, *model.args, *model.keywords.values()]
    if isinstance(model, types.FunctionType):
        names = model.__code__.co_names
        reached += [model.__globals__[name] for name in names if name in model.__globals__]
        reached += [cell.cell_contents for cell in model.__closure__ or () if _filled(cell)]
    elif not isinstance(model, type):
        reached += list(getattr(model, "__dict__", {}).values())
    found: dict[int, nn.Module] = {}
    for other in reached:
        if isinstance(other, nn.Module) or (callable(other) and not isinstance(other, (type, types.ModuleType))):
            found.update((id(m), m) for m in _modules(other, depth - 1))
    return list(found.values())


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not assigned yet
        return False


@contextmanager
def no_trace(model: Callable, device: torch.device) -> Iterator[None]:
    """Inside: gradients are on, and every submodule that ``model`` is or refers to is in eval mode.

    Afterwards, also after an exception: the training flag of every submodule, the global random state (CPU and this
    device) and the grad and inference modes are as before. Parameters' ``.grad`` and ``requires_grad`` and BatchNorm's
    statistics are never touched in between. A function's modules are found through what it is bound to, its closure and
    the global names it uses.
    """
    flags = [(m, m.training) for m in _modules(model)]
    on_cuda = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if on_cuda else None
    try:
        for m, training in flags:
            if training:
                m.training = False  # not m.eval(), which walks the children and which modules override
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for m, training in flags:
            if m.training != training:
                m.training = training
        torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
