"""Robust accuracy as a function of the radius, from the smallest adversarial distance of each sample."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advfeat._arguments import number
from advfeat.files import write_bytes
from advfeat.intervals import Share
from advfeat.json_files import read_json, to_json
from advfeat.settings import as_json
from advfeat.threat import NORMS

# What every file of a curve says about its numbers.
MEANING = (
    "upper bounds: a sample counts as robust at a radius if it is classified correctly and no adversarial example was "
    "found at that distance or less"
)
_POINTS = 100  # intervals between the points of the curve in JSON
_COUNT, _INFINITE = range(0, 2**63), re.compile("inf")
_FORM = {
    "data": str,
    "data_fingerprint": (str, None),
    "model_fingerprint": (str, None),
    "norm": re.compile("|".join(NORMS)),
    "largest_radius": (float, _INFINITE),
    "robustness": [{"eps": float}],
    "moved_samples": _COUNT,
    "unconfirmed_samples": _COUNT,
    "attacked": _COUNT,
    "zero_gradient_samples": _COUNT,
    "nonfinite_gradient_samples": _COUNT,
    "forward_passes": _COUNT,
    "backward_passes": _COUNT,
    "note": (str, None),
    "attack": dict,
    "samples": [
        {"index": _COUNT, "label": _COUNT, "prediction": (_COUNT, None), "smallest_distance": (float, _INFINITE)}
    ],
}


@dataclass(frozen=True)
class RobustnessCurve:
    """Smallest adversarial distance of each sample, and the robust accuracy at every radius.

    A sample is robust at a radius if it is classified correctly and no adversarial example at that distance or less was
    found. The distances are those of examples that the model itself misclassifies, measured in float64; a smaller one
    may exist, so the curve is an upper bound on robust accuracy. Per-sample tensors are on the CPU.

    Attributes:
        data: Name of the data set.
        norm: Norm of the distances.
        eps: Largest radius of the search; no example was looked for beyond it.
        distances: float64 [n], in pixel scale [0, 1]: 0 for a misclassified sample, inf where no example was found.
        radii: Radii of the table, in increasing order.
        attack: Settings of the attack.
        moved: Samples whose example was moved away from the image, by at most 1 %, until the model itself misclassified
            it.
        unconfirmed: Samples for which the attack claimed an example that the model does not misclassify; they count as
            not broken.
        zero_gradient: Attacked samples that met at least one zero gradient.
        nonfinite_gradient: Attacked samples that met at least one gradient with NaN or infinity.
        attacked: Number of attacked samples, which are the correctly classified ones.
        forward_passes: Samples passed forward through the model by the attack.
        backward_passes: Samples passed backward through the model.
        note: A caveat about the model, as for :class:`advfeat.evaluation.Evaluation`; None if there is none.
        model_fingerprint: As for :class:`advfeat.evaluation.Evaluation`.
        data_fingerprint: As for :class:`advfeat.evaluation.Evaluation`.
        index: int64 [n], position of each sample in the data set.
        labels: int64 [n].
        prediction: int64 [n], of the image itself; -1 for none.
    """

    data: str
    norm: str
    eps: float
    distances: Tensor = field(repr=False)
    radii: tuple[float, ...]
    attack: dict = field(repr=False)
    moved: int
    unconfirmed: int
    zero_gradient: int
    nonfinite_gradient: int
    attacked: int
    forward_passes: int
    backward_passes: int
    note: str | None
    model_fingerprint: str | None
    data_fingerprint: str | None
    index: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    prediction: Tensor = field(repr=False)

    def at(self, radius: float) -> Share:
        """Return the robust accuracy at a radius.

        Args:
            radius: Radius in pixel scale, at least 0; 0 gives clean accuracy, inf the share that was never broken.

        Returns:
            The share of samples that are robust there, with its 95 % Wilson interval.

        Raises:
            ValueError: If the radius is negative or NaN.
            TypeError: If it is not a number.
        """
        radius = float(number("radius", radius))
        if not radius >= 0:
            raise ValueError(f"radius should be at least 0, got {radius:g}")
        robust = (self.distances > radius) | (self.distances == math.inf)
        return Share(int(robust.sum()), len(self.distances))

    @property
    def clean(self) -> Share:
        """Clean accuracy."""
        return self.at(0.0)

    @property
    def never_broken(self) -> Share:
        """The share of samples for which no example was found at any radius: the floor of the curve."""
        return self.at(math.inf)

    @property
    def median(self) -> float:
        """Median smallest distance of all samples, misclassified ones with 0; inf if half were not broken."""
        values = self.distances.sort().values
        return float((values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2)

    @property
    def unattacked(self) -> str | None:
        """A warning if most samples gave the attack no gradient to follow, else None."""
        without = self.zero_gradient + self.nonfinite_gradient
        lost = self.never_broken.count
        if 2 * without <= self.attacked or not lost:
            return None
        return (
            f"{without} of {self.attacked} samples met zero or non-finite gradients, which no attack can follow: the "
            f"robustness of the {lost} that were never broken is not shown"
        )

    def steps(self) -> tuple[Tensor, Tensor]:
        """Return the curve as the steps of a function of the radius.

        Returns:
            The radii at which it falls, float64 [k], in increasing order and without repetition, 0 first; and the
            number of robust samples from each of them up to the next, int64 [k].
        """
        finite = self.distances[self.distances < math.inf]
        radii = torch.cat([finite.new_zeros(1), finite]).unique(sorted=True)
        return radii, len(self.distances) - torch.searchsorted(finite.sort().values, radii, right=True)

    def samples(self) -> list[dict]:
        """Return the outcome of each sample as a dict of JSON values.

        Returns:
            For each sample: index, label, prediction (None for none), smallest distance ("inf" for none).
        """
        columns = (self.index, self.labels, self.prediction, self.distances)
        return [
            {
                "index": index,
                "label": label,
                "prediction": None if prediction < 0 else prediction,
                "smallest_distance": as_json(distance),
            }
            for index, label, prediction, distance in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def to_dict(self, samples: bool = False) -> dict:
        """Return the results as JSON values.

        Args:
            samples: Include the outcome of each sample.
        """
        farthest = float(self.steps()[0][-1])
        radii = sorted({farthest * k / _POINTS for k in range(_POINTS + 1)})
        points = [self.at(radius) for radius in radii]
        found: dict[str, object] = {
            "meaning": MEANING,
            "data": self.data,
            "data_fingerprint": self.data_fingerprint,
            "model_fingerprint": self.model_fingerprint,
            "n": len(self.distances),
            "norm": self.norm,
            "largest_radius": self.eps,
            "clean_accuracy": self.clean.to_dict(),
            "never_broken": self.never_broken.to_dict(),
            "median_smallest_distance": self.median,
            "robustness": [{"eps": eps, "robust_accuracy": self.at(eps).to_dict()} for eps in self.radii],
            "curve": {
                "radius": radii,
                "robust_accuracy": [share.value for share in points],
                "low": [share.interval[0] for share in points],
                "high": [share.interval[1] for share in points],
            },
            "moved_samples": self.moved,
            "unconfirmed_samples": self.unconfirmed,
            "attacked": self.attacked,
            "zero_gradient_samples": self.zero_gradient,
            "nonfinite_gradient_samples": self.nonfinite_gradient,
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
            "note": self.note,
            "warning": self.unattacked,
            "attack": self.attack,
        }
        written = {key: as_json(value) for key, value in found.items()}
        return written | ({"samples": self.samples()} if samples else {})

    def save(self, path: str | Path) -> Path:
        """Write the results and the outcome of each sample as JSON, which :meth:`load` reads.

        Args:
            path: The file.

        Returns:
            The path.

        Raises:
            OSError: If the file cannot be written.
        """
        write_bytes(Path(path), to_json(self.to_dict(samples=True)))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> RobustnessCurve:
        """Read a curve that :meth:`save` or ``advfeat evaluate --curve --out`` wrote.

        Args:
            path: The file.

        Returns:
            The curve, with the same distances bit for bit.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it does not hold a curve with the outcomes of its samples; the message names the key.
        """
        saved = read_json(Path(path), _FORM)
        if not (samples := saved["samples"]):
            raise ValueError(f"{path} is damaged: samples should hold at least one sample, got none")
        distances = torch.tensor(
            [float(row["smallest_distance"]) for row in samples], dtype=torch.float64, device="cpu"
        )
        if (distances < 0).any():
            raise ValueError(
                f"{path} is damaged: smallest_distance should be at least 0, got {float(distances.min()):g}"
            )
        prediction = [-1 if row["prediction"] is None else row["prediction"] for row in samples]
        return cls(
            data=saved["data"],
            norm=saved["norm"],
            eps=float(saved["largest_radius"]),
            distances=distances,
            radii=checked_radii([row["eps"] for row in saved["robustness"]]),
            attack=saved["attack"],
            moved=saved["moved_samples"],
            unconfirmed=saved["unconfirmed_samples"],
            zero_gradient=saved["zero_gradient_samples"],
            nonfinite_gradient=saved["nonfinite_gradient_samples"],
            attacked=saved["attacked"],
            forward_passes=saved["forward_passes"],
            backward_passes=saved["backward_passes"],
            note=saved["note"],
            model_fingerprint=saved["model_fingerprint"],
            data_fingerprint=saved["data_fingerprint"],
            index=torch.tensor([row["index"] for row in samples], device="cpu"),
            labels=torch.tensor([row["label"] for row in samples], device="cpu"),
            prediction=torch.tensor(prediction, device="cpu"),
        )

    def png(self, title: str = "") -> bytes:
        """Draw the curve with its pointwise 95 % interval.

        Args:
            title: Title of the picture.

        Returns:
            The PNG file.
        """
        from advfeat.plots import accuracy_against_radius, label

        radii, robust = self.steps()
        bounds = [Share(int(count), len(self.distances)) for count in robust]
        marks = [(eps, self.at(eps).value) for eps in self.radii if eps <= radii[-1]]
        return accuracy_against_radius(
            radii.tolist(),
            [share.value for share in bounds],
            [share.interval for share in bounds],
            marks=marks,
            median=self.median if 0 < self.median < math.inf else None,
            x_label=f"{NORMS[self.norm].title} radius, images in [0, 1]",
            title=label(title, 80),
        )

    def draw(self, path: str | Path, title: str = "") -> Path:
        """Write :meth:`png` to a file.

        Args:
            path: The file, whose name ends in ``.png``.
            title: Title of the picture.

        Returns:
            The path.

        Raises:
            ValueError: If the name ends otherwise.
            OSError: If the file cannot be written.
        """
        path = check_png("path", path)
        write_bytes(path, self.png(title))
        return path


def check_png(name: str, path: str | Path) -> Path:
    """Check that the name of a picture ends in ``.png``.

    Args:
        name: Name of the argument, for the message.
        path: The file.

    Returns:
        The path.

    Raises:
        ValueError: If it ends otherwise.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{name} should end in .png, got {path}")
    return Path(path)


def checked_radii(radii: Any) -> tuple[float, ...]:
    """Check the radii of a table.

    Args:
        radii: Radii in pixel scale.

    Returns:
        The radii in increasing order, without repetition.

    Raises:
        TypeError: If they are not a list of numbers.
        ValueError: If one is negative, infinite or NaN.
    """
    if isinstance(radii, (str, bytes)) or not hasattr(radii, "__iter__"):
        raise TypeError(f"radii should be a list of numbers, got {radii!r}")
    found = sorted({float(number("radii", radius)) for radius in radii})
    if not all(0 <= radius < math.inf for radius in found):
        raise ValueError(f"radii should be finite and at least 0, got {found}")
    return tuple(found)
