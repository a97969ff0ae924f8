"""The model as objectives see it: logits in the model's own dtype, with those of the iterate remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from advfeat._modules import modules_of
from advfeat._precision import cast, dtype_of
from advfeat.forward import logits_of, unwrapped


class AttackedModel:
    """A wrapper that returns logits, remembers those of the current iterate, and otherwise behaves as the model.

    Inputs are cast to the dtype of the model. Attributes that the wrapper lacks are looked up on the model;
    ``representation`` casts its input too.

    Args:
        model: a module or function from images [B, ...] to logits [B, classes].
        largest_label: the largest label of the batch, checked against the number of classes; None for no labels.

    Raises:
        TypeError: ``model`` is not callable.
    """

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
        """Sets the batch whose logits :attr:`logits` holds, from the calls that follow.

        Args:
            point: the iterate [B, ...], or None.
        """
        self._point, self._calls, self._saw_point = point, 0, False
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor | None:
        """The logits [B, classes] of the point; None where the objective did not ask for them.

        Objectives call the model as they like: on the clean images too, on several views, or sample by sample. A call
        with the point itself counts; otherwise the only call counts, if it had as many samples.
        """
        return self._logits if self._saw_point or self._calls == 1 else None

    def expect_label(self, label: int | None) -> None:
        """Sets the largest label of another batch.

        Args:
            label: the largest label; None for no labels.

        Raises:
            ValueError: the model is known to have fewer classes.
        """
        if label is not None:
            self._largest_label = max(label, self._largest_label or 0)
            self._check_label()

    def _check_label(self) -> None:
        label, classes = self._largest_label, self._classes
        if label is None or classes is None or label < max(classes, 2):
            return
        if classes == 1:
            raise ValueError(f"target should hold 0 or 1 for a model with one logit, got label {label}")
        raise ValueError(f"target holds label {label}, but the model has {classes} classes")

    def __call__(self, x: Tensor) -> Tensor:
        """The logits of a batch.

        Args:
            x: images [B, ...].

        Returns:
            The logits [B, classes], with gradients; [B, 1] for a binary model that gives one logit per sample.

        Raises:
            ValueError: the output is not [B, classes], a label exceeds the number of classes, the model changes its
                input in place, or x is on another device.
        """
        with _refusing_changes_of(x, self._model):
            logits = logits_of(self._model(cast(x, self._dtype)))
        if logits.shape == x.shape[:1]:  # one logit per sample, of a binary model
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
    """Refuses models that change their input in place, and explains failures due to another device, both as ValueError.

    A change in place would replace the iterate.
    """
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
