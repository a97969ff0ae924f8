"""What an evaluation found, with all that a reader needs to judge it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advfeat.intervals import Share
from advfeat.settings import as_json

RANDOM = "the model is random in eval mode"
DRAWS = "a prediction is a single draw, and what an attack meets is luck"
BATCHES = "numbers depend on batch_size, and an attack on one image moves others"
AVERAGE = "evaluate(draws=20) takes the mean of 20 passes, for predictions and for the gradients of attacks"


@dataclass(frozen=True)
class Robustness:
    """What one attack left standing.

    accuracy: samples that are classified correctly and that no iterate of any restart of this attack broke, nor any
        attack of the same evaluation with the same norm and box at a smaller radius (those lie in this ball too).
    found_alone: the same without the smaller radii's examples.
    carried: samples that a smaller radius broke and this attack did not; more than a few mean it has not converged.
    attacked: samples that were attacked, which are the correctly classified ones; the counts below are of these.
    margin: mean of ``z_y - max_{j != y} z_j`` at the examples returned; negative is broken. Infinite where a model puts
        all other classes out by -inf, None where there is none (no samples, no prediction).
    zero_gradient, nonfinite_gradient: samples that met at least one gradient that was zero, or held NaN or infinity.
        The sample did not move at such a step: where there are many, "robust" means "not attacked".
    largest_distance: of the examples from their samples, in the attack's norm; at most the radius.
    forward_passes, backward_passes: what the attack cost, in samples through the model, all of its parts together.
    """

    name: str
    eps: float
    attack: dict
    accuracy: Share
    found_alone: Share
    carried: int
    attacked: int
    margin: float | None
    zero_gradient: int
    nonfinite_gradient: int
    largest_distance: float
    forward_passes: int
    backward_passes: int

    @property
    def converged(self) -> bool:
        """False where a smaller radius broke samples that this attack could not."""
        return self.carried == 0

    @property
    def unattacked(self) -> str | None:
        """What a reader has to know where most samples gave the attack no gradient to follow; None elsewhere."""
        without = self.zero_gradient + self.nonfinite_gradient
        if 2 * without <= self.attacked or self.eps == 0:
            return None
        return (
            f"{without} of {self.attacked} samples met gradients that are zero or not finite, which no attack can "
            "follow: their robustness is not shown"
        )

    def to_dict(self) -> dict:
        carried = None if self.converged else f"attack not converged: {self.carried} samples broke at a smaller radius"
        return as_json(
            {
                "name": self.name,
                "eps": self.eps,
                "robust_accuracy": self.accuracy.to_dict(),
                "found_alone": self.found_alone.to_dict(),
                "carried_from_smaller_radii": self.carried,
                "note": "; ".join(filter(None, (carried, self.unattacked))) or None,
                "attacked": self.attacked,
                "mean_margin": self.margin,
                "zero_gradient_samples": self.zero_gradient,
                "nonfinite_gradient_samples": self.nonfinite_gradient,
                "largest_distance": self.largest_distance,
                "forward_passes": self.forward_passes,
                "backward_passes": self.backward_passes,
                "attack": self.attack,
            }
        )


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set: clean accuracy, and one :class:`Robustness` an attack, in the order they were given.

    nonfinite_logits: samples without a prediction, which count as wrong: a logit is NaN, or several are +inf.
    deterministic: whether two passes over the same images gave the same logits; a random model's numbers are single
        draws. draws: over how many a prediction averages. depends_on_batch: whether images got other logits in a
        smaller batch. model_fingerprint: see :func:`advfeat.models.fingerprint`; None for a function, and for a module
        with a state that cannot be hashed. data_fingerprint: of the samples that were evaluated; None where the source
        has none.
    Per sample, on the CPU: ``index`` int64 [n] (its position in the data set), ``labels`` int64 [n], ``prediction``
    int64 [n] (-1 for none), ``correct`` bool [n], ``margins`` float32 [n] (clean, positive is correct), ``robust`` a
    bool [n] for each attack's name.
    """

    data: str
    clean: Share
    margin: float | None
    robustness: list[Robustness]
    nonfinite_logits: int
    deterministic: bool
    depends_on_batch: bool
    draws: int
    model_fingerprint: str | None
    data_fingerprint: str | None
    index: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    prediction: Tensor = field(repr=False)
    correct: Tensor = field(repr=False)
    margins: Tensor = field(repr=False)
    robust: dict[str, Tensor] = field(repr=False)

    @property
    def note(self) -> str | None:
        """What a reader has to know about the numbers; None where there is nothing."""
        if self.depends_on_batch:
            return f"what the model says of an image depends on its batch: {BATCHES}"
        if self.deterministic:
            return None
        if self.draws == 1:
            return f"{RANDOM}: {DRAWS}. {AVERAGE}"
        return f"{RANDOM}: predictions and the gradients of attacks are those of the mean of {self.draws} passes"

    def samples(self) -> list[dict]:
        """A dict of JSON values for each sample: index, label, prediction (None for none), margin, and whether each
        attack left it standing."""
        columns = zip(
            self.index.tolist(), self.labels.tolist(), self.prediction.tolist(), self.margins.tolist(), strict=True
        )
        robust = {name: kept.tolist() for name, kept in self.robust.items()}
        return [
            {
                "index": index,
                "label": label,
                "prediction": None if prediction < 0 else prediction,
                "margin": as_json(margin),
                "robust": {name: kept[row] for name, kept in robust.items()},
            }
            for row, (index, label, prediction, margin) in enumerate(columns)
        ]

    def to_dict(self, samples: bool = False) -> dict:
        """The results as JSON values; with ``samples``, the per-sample outcomes too."""
        result = {
            "data": self.data,
            "data_fingerprint": self.data_fingerprint,
            "model_fingerprint": self.model_fingerprint,
            "n": self.clean.n,
            "clean_accuracy": self.clean.to_dict(),
            "mean_margin": as_json(self.margin),
            "nonfinite_logits_samples": self.nonfinite_logits,
            "deterministic": self.deterministic,
            "depends_on_batch": self.depends_on_batch,
            "draws": self.draws,
            "note": self.note,
            "robustness": [r.to_dict() for r in self.robustness],
        }
        return result | {"samples": self.samples()} if samples else result
