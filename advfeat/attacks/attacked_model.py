"""A model as objectives see it under attack: it gives logits, in its own dtype, and remembers those of the iterate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from advfeat._modules import modules_of
from advfeat._precision import cast, dtype_of
from advfeat.forward import logits_of, unwrapped


class AttackedModel:
    """The model as objectives see it: gives logits, remembers those of the point looked at, and is otherwise the
    model."""

    def __init__(self, model: Callable, largest_label: int | None = None) -> None:
        if not callable(model):
            raise TypeError(f"model should be a module or a function of images, got {type(model).__name__}")
        self._model = unwrapped(model)
        modules = [self._model] if isinstance(self._model, nn.Module) else modules_of(self._model)
        self._dtype = dtype_of(modules)
        self._largest_label = largest_label
        self._classes: int | None = None  # once the model has been called
        self.look_at(None)

    def look_at(self, point: Tensor | None) -> None:
        """The batch whose logits :attr:`logits` are to be, from the calls that follow."""
        self._point, self._calls, self._saw_point = point, 0, False
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor | None:
        """The logits [B, classes] of the point; None where an objective did not ask for them.

        Objectives call the model as they like: with the clean images too, with several views, or sample by sample. A
        call with the point itself counts; else the only call there was, if it had as many samples.
        """
        return self._logits if self._saw_point or self._calls == 1 else None

    def expect_label(self, label: int | None) -> None:
        """Another batch's largest label, None for no labels."""
        if label is not None:
            self._largest_label = max(label, self._largest_label or 0)
            self._check_label()

    def _check_label(self) -> None:
        if None in (self._largest_label, self._classes) or self._largest_label < max(self._classes, 2):
            return
        if self._classes == 1:
            raise ValueError(f"target should hold 0 or 1 for a model with one logit, got label {self._largest_label}")
        raise ValueError(f"target holds label {self._largest_label}, but the model has {self._classes} classes")

    def __call__(self, x: Tensor) -> Tensor:
        with _refusing_changes_of(x, self._model):
            logits = logits_of(self._model(cast(x, self._dtype)))
        if logits.shape == x.shape[:1]:  # one logit a sample, of a binary model
            logits = logits[:, None]
        if logits.dim() != 2 or logits.shape[0] != x.shape[0] or logits.shape[1] == 0:
            raise ValueError(
                f"the model should give logits [B, classes] with B = {x.shape[0]}, got {tuple(logits.shape)}"
            )
        self._classes = logits.shape[1]
        self._check_label()
        if x is self._point or not self._saw_point:
            self._saw_point |= x is self._point
            same_size = self._point is None or len(x) == len(self._point)
            self._logits = logits.detach() if same_size else None
        self._calls += 1
        return logits

    def __getattr__(self, name: str) -> object:
        found = getattr(self._model, name)
        if name == "representation" and callable(found):  # takes images, as the model does
            return lambda x: found(cast(x, self._dtype))
        return found


@contextmanager
def _refusing_changes_of(x: Tensor, model: Callable) -> Iterator[None]:
    """Raises ValueError where a model changes its input in place: the iterate would be another one afterwards; and for
    one that fails as it is on another device."""
    message = "the model should not change its input in place: let it work on a copy, x.clone()"
    version = x._version
    try:
        yield
    except RuntimeError as error:
        if "a leaf Variable that requires grad is being used in an in-place operation" in str(error) and x.is_leaf:
            raise ValueError(message) from error
        place = next((p.device for p in model.parameters()), x.device) if isinstance(model, nn.Module) else x.device
        if place != x.device and "device" in str(error):
            raise ValueError(f"x should be on the device of the model, {place}, got {x.device}") from error
        raise
    if x._version != version:
        raise ValueError(message)
