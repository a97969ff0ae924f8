"""What every part above expects of a model: images in [0, 1] in, logits out, a representation apart from the head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from advfeat._arguments import image_shape, whole_number
from advfeat._class_names import check_same_classes, class_names, known
from advfeat._names import function_name
from advfeat._precision import cast, dtype_of
from advfeat.forward import logits_of
from advfeat.models.state import tensors_of
from advfeat.models.tensors import resolved


class Model(nn.Module):
    """Base of :class:`Classifier` and :class:`Adapted`: the shapes, and the normalisation inside the model.

    num_classes: number of logits. classes: their names by label, which a training sets, or None where nobody said them.
    trained_with: what a training was done with, {"config": ..., "data": ...} as JSON values; None if that is not known.
    input_shape: (C, H, W) of a sample. mean, std: per channel, in pixel scale [0, 1]; None leaves the input as it is.
    They are buffers of the state dict: with another normalisation it is another model, and its file, checksum and
    fingerprint should say so. Attacks thus work in pixel space, where the paper states eps.
    """

    arch: str | None = None  # with arch_arguments what load() needs to build the same network; None for a user's own
    arch_arguments: dict | None = None

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self._classes: tuple[str, ...] | None = None
        self.trained_with: dict | None = None
        self.num_classes = whole_number("num_classes", num_classes, 2)
        self.input_shape = image_shape("input_shape", input_shape)
        self.normalises = mean is not None or std is not None
        self.register_buffer("mean", _per_channel("mean", mean, 0.0, self.input_shape[0]))
        self.register_buffer("std", _per_channel("std", std, 1.0, self.input_shape[0]))
        if not bool((self.std > 0).all()):
            raise ValueError(f"std should be positive in every channel, got {self.std.tolist()}")

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes by label, None where they are not known."""
        return self._classes

    @classes.setter
    def classes(self, names: Sequence[str] | None) -> None:
        if names is None:
            self._classes = None
            return
        given = [] if isinstance(names, str) or not hasattr(names, "__iter__") else list(names)
        if len(given) != self.num_classes or not all(isinstance(name, str) for name in given):
            raise ValueError(f"classes should be {self.num_classes} names, one for each logit, got {names!r}")
        self._classes = tuple(given)

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, in the dtype of the model; x [B, C, H, W] in [0, 1]."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x should be a torch tensor [B, C, H, W], got {type(x).__name__}")
        if tuple(x.shape[1:]) != self.input_shape:
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x should be [B, {expected}], got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x should be floating point with values in [0, 1], got {x.dtype}")
        if self.normalises:
            x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return cast(x, self._image_dtype())

    def _image_dtype(self) -> torch.dtype | None:
        return self.mean.dtype  # which is cast with the weights

    def representation(self, x: Tensor) -> Tensor:
        """The features g(x) [B, k] that the head reads; x [B, C, H, W] in [0, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The logits [B, num_classes]; x [B, C, H, W] in [0, 1]."""
        raise NotImplementedError


class Classifier(Model):
    """``head(representation(x))``, where ``representation`` normalises x, runs the body and averages over the image.

    The representation is the paper's g(x), the penultimate layer: [B, k], after the last ReLU and the global average
    (Section 3.1). Errors: ValueError for x of another shape, TypeError for integer images.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        num_classes: int,
        input_shape: Sequence[int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_classes, input_shape, mean, std)
        self.body = body
        self.head = head

    def representation(self, x: Tensor) -> Tensor:
        return pooled(self.body(self.normalise(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.representation(x))


class Adapted(Model):
    """A user's own module with the interface of :class:`Classifier`; made by :func:`adapt`."""

    def __init__(
        self,
        module: nn.Module,
        num_classes: int,
        input_shape: Sequence[int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        representation: str | Callable[[Tensor], Tensor] | None,
        head: str | None,
    ) -> None:
        super().__init__(num_classes, input_shape, mean, std)
        self.module = module
        names = dict(module.named_modules())
        if not (representation is None or isinstance(representation, str) or callable(representation)):
            raise TypeError(f"representation should be a submodule's name or a function, got {representation!r}")
        if not (head is None or isinstance(head, str)):
            raise TypeError(f"head should be a submodule's name, got {type(head).__name__}")
        for argument, name in (("representation", representation), ("head", head)):
            if isinstance(name, str) and name not in names:
                raise ValueError(f"{argument} should name a submodule, got {name!r}; there are {_some(names)}")
        if representation is None and head is None:
            linear = [n for n, m in names.items() if isinstance(m, nn.Linear) and m.out_features == num_classes]
            head = linear[0] if len(linear) == 1 else None
        # Past nn.Module's own bookkeeping: a representation that is itself a module is not a second copy of weights.
        self.__dict__["_representation"], self.__dict__["_head"] = representation, head

    def _image_dtype(self) -> torch.dtype | None:
        return dtype_of([self.module])  # which may have been cast before it was adapted

    @property
    def features_from(self) -> str:
        """Where the representation is taken, in words: two models of the same weights may differ in it."""
        if callable(self._representation):
            return f"function {function_name(self._representation)}"
        return f"output of {self._representation}" if self._representation is not None else f"input of {self._head}"

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.module(self.normalise(x)))

    def representation(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        if callable(self._representation):
            return pooled(self._representation(x))
        if self._representation is None and self._head is None:
            raise ValueError(
                f"the module has no single linear layer with {self.num_classes} outputs whose input could be the "
                "representation: give adapt() representation= (a submodule's name or a function) or head= (a name)"
            )
        seen: list[Tensor] = []
        if self._representation is not None:
            layer = self.module.get_submodule(self._representation)
            hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        else:
            layer = self.module.get_submodule(self._head)
            hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.module(x)
        finally:
            hook.remove()
        name = self._representation or self._head
        if not seen or not isinstance(seen[-1], Tensor):
            raise ValueError(f"the submodule {name!r} did not see a tensor in a forward pass: it cannot give features")
        return pooled(seen[-1])


def adapt(
    module: nn.Module,
    *,
    num_classes: int,
    input_shape: Sequence[int],
    representation: str | Callable[[Tensor], Tensor] | None = None,
    head: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
) -> Adapted:
    """A user's own module as a model of this library: normalisation inside, logits out, a representation.

    module: gives logits [B, num_classes] or an output with ``.logits``; it is used, not copied.
    representation: what counts as g(x): the name of the submodule whose output it is, or a function from the normalised
        images to the features. Feature maps [B, k, H, W] are averaged over the image.
    head: or the name of the submodule whose input it is. With neither, the input of the only nn.Linear with num_classes
        outputs; if there is not exactly one, ``representation`` raises ValueError and everything else works.
    mean, std: per channel, where the module expects normalised images; None where it takes pixels in [0, 1].
    classes: the names of the classes by label, compared with those of the data; None where they are not known.
    Errors: ValueError for a name that the module lacks; TypeError naming an argument of another kind.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module should be a torch.nn.Module, got {type(module).__name__}")
    if representation is not None and head is not None:
        raise ValueError("give representation or head, not both: each says where the features are")
    model = Adapted(module, num_classes, input_shape, mean, std, representation, head)
    model.classes = classes
    return model


def pooled(features: Tensor) -> Tensor:
    """Feature maps [B, k, H, W] averaged over the image, [B, k]; anything else flattened to [B, k]."""
    if not isinstance(features, Tensor):
        raise TypeError(f"representation should give a tensor [B, k], got {type(features).__name__}")
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)


def fingerprint(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of the state dict, in the order of the names.

    The same on every device and in every memory format. Extra state counts, buffers outside the state dict do not.
    Errors: TypeError for a state that is more than tensors and JSON values.
    """
    state = tensors_of(model)
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = resolved(state[name]).contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_fits(
    model: nn.Module, classes: Sequence[str], image_shape: Sequence[int], what: str, same_classes: bool = False
) -> None:
    """Raises ValueError where the model's number or names of classes or its input shape are not those of the data.

    classes: names of the data's classes by label. what: the data in the message, as in "data set 'digits'".
    same_classes: take classes of the same number for the same, whatever their names are. A module without the
    attributes ``num_classes``, ``classes`` or ``input_shape`` passes.
    """
    own_classes, own_shape = known(model, "num_classes"), known(model, "input_shape")
    own_classes = len(classes) if own_classes is None else own_classes
    own_shape = tuple(image_shape) if own_shape is None else own_shape
    if own_classes == 1:  # of one logit, which is two classes
        own_classes = 2
    if own_classes != len(classes):
        raise ValueError(f"the model has {own_classes} classes, {what} has {len(classes)}")
    if not same_classes:
        check_same_classes(class_names(model), "the model", classes, what)
    if tuple(own_shape) != tuple(image_shape):
        raise ValueError(f"the model takes images of shape {tuple(own_shape)}, {what} has {tuple(image_shape)}")


def _per_channel(name: str, values: Sequence[float] | None, default: float, channels: int) -> Tensor:
    if values is None:
        return torch.full((channels,), default, dtype=torch.float32, device="cpu")
    try:
        tensor = torch.as_tensor(values, dtype=torch.float32, device="cpu").clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} should be {channels} numbers, one a channel, got {values!r}") from error
    if tensor.shape != (channels,) or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} should be {channels} finite numbers, one a channel, got {values!r}")
    return tensor


def _some(names: Mapping[str, object], most: int = 8) -> str:
    listed = [name for name in names if name]
    return ", ".join(listed[-most:]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
