"""The interface of models: images in [0, 1] in, logits out, and a representation separate from the head."""

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
    """Base class of :class:`Classifier` and :class:`Adapted`: shapes, and normalisation inside the model.

    Attacks thus work in pixel space, in which the paper states eps.

    Args:
        num_classes: number of logits.
        input_shape: (C, H, W) of a sample.
        mean: per channel, in pixel scale [0, 1]; None for no normalisation. A buffer of the state dict, like ``std``:
            with another normalisation it is another model, with another file, checksum and fingerprint.
        std: per channel, in pixel scale [0, 1], positive; None for no normalisation.

    Attributes:
        classes: the class names by label, which training sets; None if they are unknown.
        trained_with: {"config": ..., "data": ...} of the training as JSON values; None if unknown.
        arch: the name from which :func:`load` rebuilds the network; None for a user's own module.
        arch_arguments: the arguments for ``arch``.

    Raises:
        TypeError: ``mean`` or ``std`` is not a list of numbers.
        ValueError: ``mean`` or ``std`` is not one finite number per channel, or ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor
    arch: str | None = None  # load() rebuilds the network from this and arch_arguments; None for a user's own
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
        """The class names by label; None if they are unknown.

        Raises:
            ValueError: set to something other than one name per logit.
        """
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
        """The normalised images, ``(x - mean) / std`` per channel.

        Args:
            x: [B, C, H, W] floating-point, in [0, 1].

        Returns:
            [B, C, H, W] in the dtype of the model.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: ``x`` has another shape.
        """
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
        return self.mean.dtype  # a buffer, which is cast with the weights

    def representation(self, x: Tensor) -> Tensor:
        """The features g(x) that the head reads.

        Args:
            x: [B, C, H, W] in [0, 1].

        Returns:
            The features [B, k].
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The logits of images.

        Args:
            x: [B, C, H, W] in [0, 1].

        Returns:
            The logits [B, num_classes].
        """
        raise NotImplementedError


class Classifier(Model):
    """``head(representation(x))``: ``representation`` normalises x, runs the body and averages over the image.

    The representation is the paper's g(x), the penultimate layer (Section 3.1): [B, k], after the last ReLU and global
    average pooling.

    Args:
        body: from normalised images to feature maps.
        head: from features [B, k] to logits.
        num_classes: as for :class:`Model`.
        input_shape: as for :class:`Model`.
        mean: as for :class:`Model`.
        std: as for :class:`Model`.

    Raises:
        ValueError: on a call, x has another shape.
        TypeError: on a call, the images are integers.
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
        """See :meth:`Model.representation`."""
        return pooled(self.body(self.normalise(x)))

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Model.forward`."""
        return self.head(self.representation(x))


class Adapted(Model):
    """A user's own module with the interface of :class:`Classifier`; created by :func:`adapt`.

    Args:
        module: as for :func:`adapt`.
        num_classes: as for :func:`adapt`.
        input_shape: as for :func:`adapt`.
        mean: as for :func:`adapt`.
        std: as for :func:`adapt`.
        representation: as for :func:`adapt`.
        head: as for :func:`adapt`.

    Raises:
        TypeError: as for :func:`adapt`.
        ValueError: as for :func:`adapt`.
    """

    _representation: str | Callable[[Tensor], Tensor] | None
    _head: str | None

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
        # Bypasses nn.Module's registration: a representation that is a module is not a second set of weights.
        self.__dict__["_representation"], self.__dict__["_head"] = representation, head

    def _image_dtype(self) -> torch.dtype | None:
        return dtype_of([self.module])  # the module may have been cast before it was adapted

    @property
    def features_from(self) -> str:
        """Where the representation is taken, in words: models with equal weights may differ in it."""
        if callable(self._representation):
            return f"function {function_name(self._representation)}"
        return f"output of {self._representation}" if self._representation is not None else f"input of {self._head}"

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Model.forward`."""
        return logits_of(self.module(self.normalise(x)))

    def representation(self, x: Tensor) -> Tensor:
        """See :meth:`Model.representation`.

        Args:
            x: [B, C, H, W] in [0, 1].

        Returns:
            The features [B, k].

        Raises:
            ValueError: the module has no representation, or its submodule gives no tensor.
        """
        x = self.normalise(x)
        if callable(self._representation):
            return pooled(self._representation(x))
        seen: list[Tensor] = []
        if self._representation is not None:
            layer = self.module.get_submodule(self._representation)
            hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        elif self._head is not None:
            layer = self.module.get_submodule(self._head)
            hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        else:
            raise ValueError(
                f"the module has no single linear layer with {self.num_classes} outputs whose input could be the "
                "representation: give adapt() representation= (a submodule's name or a function) or head= (a name)"
            )
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
    """Wraps a user's own module as a model of this library: normalisation inside, logits out, a representation.

    Args:
        module: returns logits [B, num_classes] or an output with ``.logits``; it is used, not copied.
        num_classes: number of logits.
        input_shape: (C, H, W) of a sample.
        representation: the representation g(x): the name of the submodule whose output it is, or a function from the
            normalised images to the features. Feature maps [B, k, H, W] are averaged over the image.
        head: alternatively, the name of the submodule whose input is g(x). With neither, g(x) is the input of the only
            nn.Linear with ``num_classes`` outputs; if there is not exactly one, ``representation`` raises ValueError
            and everything else works.
        mean: per channel, if the module expects normalised images; None if it takes pixels in [0, 1].
        std: like ``mean``.
        classes: the class names by label, compared with those of the data; None if they are unknown.

    Returns:
        The model.

    Raises:
        ValueError: a name that the module lacks, or both ``representation`` and ``head`` are given.
        TypeError: an argument has the wrong type; the message names it.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module should be a torch.nn.Module, got {type(module).__name__}")
    if representation is not None and head is not None:
        raise ValueError("give representation or head, not both: each says where the features are")
    model = Adapted(module, num_classes, input_shape, mean, std, representation, head)
    model.classes = classes
    return model


def pooled(features: Tensor) -> Tensor:
    """Feature maps [B, k, H, W] averaged over the image; anything else flattened.

    Args:
        features: [B, ...].

    Returns:
        [B, k].

    Raises:
        TypeError: ``features`` is not a tensor.
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"representation should give a tensor [B, k], got {type(features).__name__}")
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)


def fingerprint(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of the state dict, sorted by name.

    It is the same on every device and in every memory format. Extra state counts; buffers outside the state dict do
    not.

    Args:
        model: a module or a state dict.

    Returns:
        64 hex digits.

    Raises:
        TypeError: the state is more than tensors and JSON values.
    """
    state = tensors_of(model)
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = resolved(state[name]).contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_fits(
    model: Callable, classes: Sequence[str], image_shape: Sequence[int], what: str, same_classes: bool = False
) -> None:
    """Checks that a model's classes and input shape are those of the data.

    A module without the attributes ``num_classes``, ``classes`` or ``input_shape`` passes.

    Args:
        model: the model.
        classes: the class names of the data by label.
        image_shape: (C, H, W) of the data.
        what: the data, for the message, as in "data set 'digits'".
        same_classes: accept any class names if their number is equal.

    Raises:
        ValueError: the number or names of classes, or the input shape, differ.
    """
    own_classes, own_shape = known(model, "num_classes"), known(model, "input_shape")
    own_classes = len(classes) if own_classes is None else own_classes
    own_shape = tuple(image_shape) if own_shape is None else own_shape
    if own_classes == 1:  # one logit means two classes
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
        raise TypeError(f"{name} should be {channels} numbers, one per channel, got {values!r}") from error
    if tensor.shape != (channels,) or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} should be {channels} finite numbers, one per channel, got {values!r}")
    return tensor


def _some(names: Mapping[str, object], most: int = 8) -> str:
    listed = [name for name in names if name]
    return ", ".join(listed[-most:]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
