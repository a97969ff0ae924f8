"""Results of an evaluation, with everything needed to judge them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from advfeat.evaluation.breakdown import AfterAttack
from advfeat.evaluation.verdict import Verdict
from advfeat.intervals import Share
from advfeat.settings import as_json

RANDOM = "the model is random in eval mode"
DRAWS = "a prediction is a single draw, and the success of an attack is partly chance"
BATCHES = "numbers depend on batch_size, and an attack on one image moves others"
AVERAGE = "evaluate(draws=20) takes the mean of 20 passes, for predictions and for the gradients of attacks"


@dataclass(frozen=True)
class Robustness:
    """Robust accuracy under one attack.

    Attributes:
        name: Name of the attack.
        eps: Radius in pixel scale [0, 1].
        attack: Settings of the attack.
        accuracy: Samples that are classified correctly and that no iterate of any restart of this attack broke, nor any
            attack of the same evaluation with the same norm and box at a smaller radius (whose examples lie in this
            ball too).
        found_alone: The same without the examples from smaller radii.
        carried: Samples that a smaller radius broke and this attack did not; more than a few mean that it has not
            converged.
        attacked: Number of attacked samples, which are the correctly classified ones; the counts below refer to them.
        margin: Mean of ``z_y - max_{j != y} z_j`` at the returned examples; negative means broken. Infinite if a model
            excludes all other classes by -inf, None if undefined (no samples, or no prediction).
        zero_gradient: Samples that met at least one zero gradient. A sample does not move at such a step: if there are
            many, "robust" means "not attacked".
        nonfinite_gradient: Samples that met at least one gradient with NaN or infinity, where they do not move either.
        largest_distance: Largest distance of an example from its sample, in the attack's norm; at most the radius.
        forward_passes: Samples passed forward through the model, over all parts of the attack.
        backward_passes: Samples passed backward through the model, over all parts of the attack.
        breakdown: What each attack of an ensemble broke of what those before it left; one row for a single attack.
            Without the examples from smaller radii.
        without_gradient: Samples that met a zero or non-finite gradient and were not broken.
        unconfirmed: Successes that the attack reported and the model itself did not confirm, then or when the sample
            was attacked again.
        late: Samples that broke only in the last tenth of the steps; None for an attack of several parts.
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
    breakdown: tuple[AfterAttack, ...] = ()
    without_gradient: int = 0
    unconfirmed: int = 0
    late: int | None = None

    @property
    def converged(self) -> bool:
        """Whether no smaller radius broke samples that this attack could not."""
        return self.carried == 0

    @property
    def unattacked(self) -> str | None:
        """A warning if most samples gave the attack no gradient to follow, else None."""
        without = self.zero_gradient + self.nonfinite_gradient
        if 2 * without <= self.attacked or self.eps == 0:
            return None
        return (
            f"{without} of {self.attacked} samples met zero or non-finite gradients, which no attack can follow: "
            "their robustness is not shown"
        )

    def to_dict(self, seconds: bool = False) -> dict:
        """Return the results as JSON values.

        Args:
            seconds: Include the time of each attack, which differs from one run to the next.
        """
        carried = None if self.converged else f"attack not converged: {self.carried} samples broke at a smaller radius"
        found = {
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
            "breakdown": [row.to_dict(seconds) for row in self.breakdown],
            "attack": self.attack,
        }
        return {key: as_json(value) for key, value in found.items()}


@dataclass(frozen=True)
class Examples:
    """Adversarial examples of all samples for one attack, on the CPU.

    Attributes:
        images: [n, C, H, W] in [0, 1]: of a broken sample an example that the model misclassifies (with
            ``PGD(keep="last")`` the last iterate, which need not be one); of a robust sample what the first attack that
            takes steps ended with; of one that is wrong without an attack the image itself.
        distance: float32 [n], distance from the image, in the attack's norm.
    """

    images: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Clean accuracy of a model on a data set, and one :class:`Robustness` per attack, in the order given.

    Per-sample tensors are on the CPU.

    Attributes:
        data: Name of the data set.
        clean: Clean accuracy.
        margin: Mean clean margin, None if undefined.
        robustness: Results of each attack.
        nonfinite_logits: Samples without a prediction, which count as wrong: a logit is NaN, or several are +inf.
        deterministic: Whether two passes over the same images gave the same logits; the numbers of a random model are
            single draws.
        depends_on_batch: Whether images got other logits in a smaller batch.
        draws: Number of passes that a prediction averages.
        model_fingerprint: See :func:`advfeat.models.fingerprint`; None for a function, and for a module whose state
            cannot be hashed.
        data_fingerprint: Fingerprint of the evaluated samples; None if the source has none.
        index: int64 [n], position of each sample in the data set.
        labels: int64 [n].
        prediction: int64 [n], -1 for none.
        correct: bool [n].
        margins: float32 [n], clean margins; positive is correct.
        robust: bool [n] for each attack, by name.
        broken_by: int64 [n] for each attack, by name: position in :attr:`Robustness.breakdown` of the attack that broke
            the sample; -1 for none, and for samples that are wrong without an attack or that only a smaller radius
            broke.
        examples: Adversarial examples for each attack, by name, if they were to be kept.
        verdict: Whether the numbers can be believed.
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
    broken_by: dict[str, Tensor] = field(repr=False, default_factory=dict)
    examples: dict[str, Examples] = field(repr=False, default_factory=dict)
    verdict: Verdict = field(default=Verdict(), repr=False)

    @property
    def note(self) -> str | None:
        """A caveat about the numbers, None if there is none."""
        if self.depends_on_batch:
            return f"the model's output for an image depends on its batch: {BATCHES}"
        if self.deterministic:
            return None
        if self.draws == 1:
            return f"{RANDOM}: {DRAWS}. {AVERAGE}"
        return f"{RANDOM}: predictions and the gradients of attacks are those of the mean of {self.draws} passes"

    def samples(self) -> list[dict]:
        """Return the outcome of each sample as a dict of JSON values.

        Returns:
            For each sample: index, label, prediction (None for none), margin, whether it is robust to each attack, and
            which attack of an ensemble broke it (None for none, see :attr:`broken_by`).
        """
        columns = zip(
            self.index.tolist(), self.labels.tolist(), self.prediction.tolist(), self.margins.tolist(), strict=True
        )
        robust = {name: kept.tolist() for name, kept in self.robust.items()}
        # The last name is that of -1.
        names = {r.name: [*(row.name for row in r.breakdown), None] for r in self.robustness}
        broken_by = {name: [names[name][i] for i in by.tolist()] for name, by in self.broken_by.items()}
        return [
            {
                "index": index,
                "label": label,
                "prediction": None if prediction < 0 else prediction,
                "margin": as_json(margin),
                "robust": {name: kept[row] for name, kept in robust.items()},
                "broken_by": {name: by[row] for name, by in broken_by.items()},
            }
            for row, (index, label, prediction, margin) in enumerate(columns)
        ]

    def to_dict(self, samples: bool = False, seconds: bool = False) -> dict:
        """Return the results as JSON values.

        Args:
            samples: Include the outcome of each sample.
            seconds: Include the time of each attack, which differs from one run to the next.
        """
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
            "robustness": [r.to_dict(seconds) for r in self.robustness],
            "verdict": self.verdict.to_dict(),
        }
        return result | {"samples": self.samples()} if samples else result
