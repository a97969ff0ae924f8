"""Whether a robust accuracy can be believed: what an evaluation saw that speaks against it, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from advfeat.evaluation.diagnosis import Diagnosis
    from advfeat.evaluation.results import Evaluation, Robustness

BPDA = "advfeat.bpda(module, backward=...)"
EOT = "evaluate(draws=20)"
STRONG = "the strong attack (evaluate(attacks=[eps])) or advfeat.AutoAttack(threat)"

# A count that the honest models of docs/verdict.md do not reach. Two runs of a strong attack there differ by at most
# one or two samples of several hundred, so two samples are no evidence however few were looked at.
_BY_CHANCE, _SHARE_BY_CHANCE = 2, 0.02
# Single attacks, of which each one is known to leave samples that the others break.
_SINGLE = ("PGD", "APGD", "FAB", "Square")


@dataclass(frozen=True)
class Finding:
    """One thing that was seen, and what to do about it.

    Attributes:
        name: A stable code, such as "no-gradient".
        severity: "fault": the robust accuracy cannot be trusted, and is too high if anything. "note": the finding does
            not discredit it, but whoever reads it should know.
        attack: Name of the attack that it is about; None for the model.
        samples: Number of samples that show it.
        of: Number of samples that were looked at.
        seen: What was seen, with numbers.
        advice: What to do.
    """

    name: str
    severity: Literal["fault", "note"]
    attack: str | None
    samples: int
    of: int
    seen: str
    advice: str

    def __str__(self) -> str:
        about = "" if self.attack is None else f" ({self.attack})"
        return f"{self.severity}: {self.name}{about}: {self.seen}. {self.advice[:1].upper()}{self.advice[1:]}."

    def to_dict(self) -> dict:
        """Return the finding as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The findings of the checks that were made; :meth:`lines` has them in words.

    Even without a fault the number is only an upper bound: it says what the attacks that ran could not break.

    Attributes:
        findings: Faults first.
        checks: Names of the checks that were made; a check that is not among them was not made, and so found nothing.
        forward_passes: Samples passed forward through the model for the checks alone.
        backward_passes: Samples passed backward through the model for the checks alone.
    """

    findings: tuple[Finding, ...] = ()
    checks: tuple[str, ...] = ()
    forward_passes: int = 0
    backward_passes: int = 0

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings because of which the number cannot be trusted."""
        return tuple(f for f in self.findings if f.severity == "fault")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The other findings."""
        return tuple(f for f in self.findings if f.severity == "note")

    def __contains__(self, name: object) -> bool:
        """Whether there is a finding of this name."""
        return any(finding.name == name for finding in self.findings)

    def lines(self) -> list[str]:
        """Return one line per kind of finding, and one for the checks that found no fault.

        If several attacks have the same finding, the line has the numbers of the one with the most samples.
        """
        of_a_kind: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            of_a_kind.setdefault((finding.severity, finding.name), []).append(finding)
        lines = []
        for alike in of_a_kind.values():
            worst = max(alike, key=lambda finding: finding.samples)
            others = [f.attack for f in alike if f is not worst and f.attack is not None]
            named = (
                worst if not others else dataclasses.replace(worst, attack=f"{worst.attack}; also {', '.join(others)}")
            )
            lines.append(str(named))
        faulty = {finding.name for finding in self.faults}
        clear = [check for check in self.checks if check not in faulty]
        if clear:
            start = "no fault found by these checks" if not faulty else "no fault found by the other checks"
            lines.append(f"{start}: {', '.join(clear)}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict:
        """Return the verdict as JSON values."""
        return {
            "faults": len(self.faults),
            "findings": [finding.to_dict() for finding in self.findings],
            "checks": list(self.checks),
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
        }


def verdict(
    found: Evaluation, *, probabilities: bool = False, train_mode: int = 0, diagnosis: Diagnosis | None = None
) -> Verdict:
    """Judge an evaluation by what it saw anyway, and by a diagnosis if one was made.

    Args:
        found: The evaluation.
        probabilities: Whether the outputs look like probabilities.
        train_mode: Number of dropout and normalisation layers that were in train mode when the model was given.
        diagnosis: The costlier checks.

    Returns:
        The verdict.
    """
    findings = [*_of_model(found, probabilities, train_mode)]
    checks = ["random", "batch-dependent", "probabilities", "no-prediction"]
    for r in found.robustness:
        findings += _of_attack(r, random=not found.deterministic)
    if not any(r.eps > 0 for r in found.robustness):
        seen = "no attack ran, so robustness was not measured"
        findings.append(Finding("not-attacked", "note", None, found.clean.n, found.clean.n, seen, f"run {STRONG}"))
    else:
        checks += ["not-attacked", "no-gradient", "carried"]
        checks += ["late"] if any(r.late is not None for r in found.robustness) else []
    forward = backward = 0
    if diagnosis is not None:
        findings += diagnosis.findings
        checks += [check for check in diagnosis.checks if check not in checks]
        forward, backward = diagnosis.forward_passes, diagnosis.backward_passes
    findings.sort(key=lambda finding: finding.severity != "fault")  # stable: otherwise in the order of the checks
    return Verdict(tuple(findings), tuple(checks), forward, backward)


def _of_model(found: Evaluation, probabilities: bool, train_mode: int) -> Iterator[Finding]:
    """What speaks against any number of this model."""
    n = found.clean.n
    if not found.deterministic:
        # With an average over enough passes the attack follows the mean gradient, and what is left of the noise is
        # part of the model. Ten is where the noise of a mean has fallen to a third.
        averaged = found.draws >= 10
        seen = "two passes over the same images gave different logits in eval mode"
        advice = f"average over passes, {EOT}, for predictions and for the gradients of attacks"
        if not averaged:
            advice += "; if the model should not be random, look for dropout or noise that eval mode does not turn off"
            seen += ", so an attack follows the noise of " + ("one pass" if found.draws == 1 else "few passes")
        else:
            seen += f"; predictions and gradients are those of the mean of {found.draws} passes"
            advice = "see whether more draws, or attacks with more steps, change the number"
        yield Finding("random", "note" if averaged else "fault", None, n, n, seen, advice)
    if found.depends_on_batch:
        seen = "the output for an image depends on the other images of its batch, so an attack on one moves the others"
        advice = "give BatchNorm layers running statistics (track_running_stats=True), or evaluate with batch_size=1"
        yield Finding("batch-dependent", "fault", None, n, n, seen, advice)
    if probabilities:
        seen = "outputs are at least 0 and sum to 1: they are probabilities, whose gradients vanish where one is near 1"
        yield Finding("probabilities", "fault", None, n, n, seen, "take the softmax out of the model, to give logits")
    if found.nonfinite_logits:
        k = found.nonfinite_logits
        seen = (
            f"{k} of {n} samples have NaN or several infinite logits, and count as wrong without having been attacked"
        )
        yield Finding("no-prediction", "note", None, k, n, seen, "find out where the values come from")
    if train_mode:
        seen = f"dropout or normalisation layers in train mode: {train_mode}; all numbers are those of eval mode"
        yield Finding("train-mode", "note", None, n, n, seen, "call model.eval() where the model is used, too")


def _of_attack(r: Robustness, random: bool) -> Iterator[Finding]:
    """What speaks against the number under one attack."""
    if r.eps == 0 or not r.attacked:
        return
    standing = r.found_alone.count
    if _takes_no_step(r):
        seen = f"the attack looked at {r.attacked} samples and moved none of them: it has no steps"
        yield Finding("not-attacked", "fault", r.name, r.attacked, r.attacked, seen, f"run {STRONG}")
        return
    if r.without_gradient:
        # None of the honest models of docs/verdict.md met a single zero gradient in up to a thousand steps.
        k = r.without_gradient
        few = not more_than_chance(k, standing) and k < r.attacked
        seen = f"{k} of {standing} samples left standing met zero or non-finite gradients, which no attack can follow"
        advice = (
            f"give the part without a gradient another one, {BPDA}, or attack with advfeat.Square; if the objective "
            "saturates, take advfeat.Margin()"
        )
        yield Finding("no-gradient", "note" if few else "fault", r.name, k, standing, seen, advice)
    if r.carried:
        few = not more_than_chance(r.carried, r.attacked)
        seen = f"{r.carried} samples broke at a smaller radius and not here" + (
            ", as a few do" if few else ": the attack has not converged"
        )
        advice = f"take more steps or restarts, or {STRONG}"
        yield Finding("carried", "note" if few else "fault", r.name, r.carried, r.attacked, seen, advice)
    if r.late is not None and more_than_chance(r.late, r.attacked):
        seen = (
            f"{r.late} of {r.attacked} samples broke only in the last tenth of the steps: more steps would break more"
        )
        yield Finding("late", "fault", r.name, r.late, r.attacked, seen, f"take more or larger steps, or {STRONG}")
    if r.unconfirmed:
        seen = f"{r.unconfirmed} successes that the attack reported were lost when the model itself was asked again" + (
            ", as a random model's are by chance" if random else "; they were attacked again on the model itself"
        )
        advice = (
            f"average over passes, {EOT}" if random else "if the attack ran in full precision, see why the model varies"
        )
        yield Finding("second-look", "note", r.name, r.unconfirmed, r.attacked, seen, advice)
    if standing and r.attack.get("attack") in _SINGLE:
        seen = f"{standing} samples were left standing by {r.attack['attack']} alone, and other attacks may break them"
        yield Finding("single-attack", "note", r.name, standing, r.attacked, seen, f"run {STRONG}")


def _takes_no_step(r: Robustness) -> bool:
    return r.attack.get("steps") == 0 and r.backward_passes == 0


def more_than_chance(samples: int, of: int) -> bool:
    """Whether a count is above what two runs of a good attack differ by.

    Args:
        samples: The count.
        of: The number of samples that were looked at.

    Returns:
        True above both two samples and 2 %.
    """
    return samples > max(_BY_CHANCE, _SHARE_BY_CHANCE * of)
