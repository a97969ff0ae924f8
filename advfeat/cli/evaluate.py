"""The ``advfeat evaluate`` command."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from advfeat.attacks import APGD, DDN, FMN, Attack, Auto, AutoAttack, Ensemble, Square
from advfeat.cli.breakdown import percent, show_breakdown
from advfeat.cli.console import bar, say, table
from advfeat.cli.examples_file import check_examples, examples_bytes
from advfeat.cli.files import load_model, say_written, write_results
from advfeat.cli.options import option_of, radii
from advfeat.cli.results_table import ResultsTable, check_table
from advfeat.evaluation import Evaluation, Verdict, evaluate, pgd_attack, strong_attack
from advfeat.files import check_writable_file, check_writable_folder
from advfeat.json_files import to_json
from advfeat.provenance import provenance
from advfeat.threat import NORMS, Threat

if TYPE_CHECKING:
    from advfeat.cli import commands

# Files that --out must not replace: a model, set, export or result would become unreadable.
_OWN_FILES = re.compile(
    r"(model|config|manifest|checkpoint|step|outcome|attack|features|advfeat-classes)\.json|metrics\.jsonl|metadata\.csv|"
    r"(shard|checkpoint)-\d+\..*|.*\.safetensors"
)


def run(c: commands.Evaluate) -> None:
    """Evaluate models, print tables and optionally write the results.

    Args:
        c: Parsed options.

    Raises:
        ValueError: If an output would replace a file of a run, set or result, an option does not apply
            to the attack or to several models, or a model does not fit the data set.
        OSError: If the results cannot be written; the table is printed first.
    """
    if c.radii is not None:
        raise ValueError("--radii needs --curve; without it, --eps sets the radii to attack at")
    samples = _check_places(c)
    eps = radii("--eps", c.eps, NORMS[c.norm], NORMS[c.norm].usual_radii)
    attacks = [(f"{c.norm} {e:g}", evaluation_attack(c, e)) for e in eps]
    in_words = attack_in_words(c, attacks[0][1]) if attacks else "no attack"
    device = c.runtime.torch_device()
    models = [load_model(folder) for folder in c.model]  # all, so that a wrong path is said before hours of work
    other = None if c.transfer is None else load_model(c.transfer, "--transfer").to(device)
    results = ResultsTable(c.norm, in_words)
    failed: OSError | None = None
    for number, (folder, model) in enumerate(zip(c.model, models, strict=True), start=1):
        source = c.data.load(c.split, model.input_shape)
        state = c.state if c.state is None or len(models) == 1 else c.state / f"model-{number}"
        if state is not None and (state / "evaluation.json").is_file():
            say(f"resuming from {state}")
        with bar(f"evaluating {folder} on {source.name}", "samples") as report:
            result = evaluate(
                model.to(device),
                source,
                attacks=attacks,
                batch_size=c.runtime.batch_size,
                same_classes=c.same_classes,
                diagnose=c.diagnose,
                transfer=other,
                progress=report,
                state=state,
                keep_examples=c.examples is not None,
            )
        results.add(str(folder), result)
        # Before printing, so that the results survive a failure of the terminal; and a table after each model, so that
        # it has what is done when a later one fails.
        if c.out is not None and samples is not None:
            lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in result.samples()).encode()
            of_samples = {"samples": samples.name, "samples_sha256": hashlib.sha256(lines).hexdigest()}
            found = {"model": str(folder), **result.to_dict(seconds=True), **of_samples, **provenance(device)}
            failed = write_results([(samples, lines), (c.out, to_json(found))]) or failed
        if c.examples is not None:
            about = {"model": str(folder), **provenance(device)}
            failed = write_results([(c.examples, examples_bytes(c.examples, result, about))]) or failed
        if c.table is not None:
            failed = write_results([(c.table, results.to_bytes(c.table, **provenance(device)))]) or failed
        _show(c, result, in_words)
    if len(models) > 1:
        results.show()
    say_written(c.out, failed, f"per-sample outcomes to {samples.name}" if samples else "")
    say_written(c.table, failed, "")
    say_written(c.examples, failed, "")


def _check_places(c: commands.Evaluate) -> Path | None:
    """Check the files that are to be written before the work; return that for the outcomes of the samples."""
    if c.table is not None:
        check_table(c.table)
    if c.examples is not None:
        check_examples(c.examples)
    for name in ("out", "table", "examples"):
        path = getattr(c, name)
        if path is None:
            continue
        if name != "table" and len(c.model) > 1:
            raise ValueError(f"{option_of(name)} is for one --model, got {len(c.model)}: --table takes several")
        check_writable_file(path) if name == "examples" else check_output(option_of(name), path)
    if c.state is not None:
        check_writable_folder(c.state)
    if c.out is None:
        return None
    # Not with_suffix: a name may contain a radius, whose decimal point does not start a suffix.
    return check_writable_file(c.out.with_name(f"{c.out.name.removesuffix('.json')}.samples.jsonl"))


def _show(c: commands.Evaluate, result: Evaluation, in_words: str) -> None:
    """Print the tables of one model."""
    rows: list[list[str | Text]] = [["clean", percent(result.clean), _margin(result.margin), _clean_notes(result)]]
    for r in result.robustness:
        notes = [] if r.converged else [f"{r.carried} carried over from a smaller radius"]
        notes += [f"{r.zero_gradient} with zero gradients"] if r.zero_gradient else []
        notes += [f"{r.nonfinite_gradient} with non-finite gradients"] if r.nonfinite_gradient else []
        name = f"{c.norm} {NORMS[c.norm].write_radius(r.eps)}"
        rows.append([name, percent(r.accuracy), _margin(r.margin), ", ".join(notes)])
    caption = f"{result.clean.n:,} samples; 95 % Wilson intervals"
    if result.robustness:
        of, kind = ("forward_passes", "passes") if c.attack == "square" else ("backward_passes", "gradient passes")
        passes = sum(getattr(r, of) for r in result.robustness) / max(sum(r.attacked for r in result.robustness), 1)
        caption += f"; {in_words}; {passes:,.0f} {kind} per attacked sample"
    table("accuracy", ["", "accuracy", "mean margin", "notes"], rows, caption)
    show_breakdown(result, c.norm)
    _say_verdict(result.verdict, c.diagnose)


def _say_verdict(verdict: Verdict, diagnosed: bool) -> None:
    """One line per finding: what was seen and what to do about it."""
    styles = {"fault": "red", "note": "yellow"}
    *findings, clear = verdict.lines()
    kinds = [line.partition(":")[0] for line in findings]
    counts = [f"{n} {kind}{'s' * (n > 1)}" for kind in styles if (n := kinds.count(kind))]
    say("verdict: ", ", ".join(counts) or "no fault found")
    for line in findings:
        kind, _, rest = line.partition(": ")
        say("  ", (kind, styles[kind]), f": {rest}")
    say("  ", (clear, "dim"))
    if not diagnosed:
        say("  ", ("not looked for masked gradients: --diagnose does", "dim"))


def check_output(option: str, path: Path) -> Path:
    """Check that a file of results can be written without replacing one of another kind.

    Args:
        option: The option that names it.
        path: The file.

    Returns:
        The file.

    Raises:
        ValueError: If it is part of a run, set or result.
        OSError: If it cannot be written.
    """
    behind = Path(os.path.realpath(path))
    if _OWN_FILES.fullmatch(behind.name) and behind.exists():
        raise ValueError(f"{option} should be a file of its own, got {path}, which is part of a run, a set or a result")
    return check_writable_file(path)


def evaluation_attack(c: commands.Evaluate, eps: float) -> Attack:
    """Return the attack of ``--attack`` with the other options.

    Args:
        c: Parsed options.
        eps: Radius in pixel scale [0, 1].

    Returns:
        The attack.

    Raises:
        ValueError: If an option has no meaning for the attack.
    """
    if c.attack == "pgd":
        steps = 40 if c.steps is None else c.steps
        attack = pgd_attack(
            eps,
            c.norm,
            steps=steps,
            step_size=c.step_size,
            restarts=c.restarts,
            seed=c.seed,
            schedule=c.schedule or "cosine",
            momentum=c.momentum or 0.0,
        )
        return attack.replace(autocast=c.runtime.autocast(), stop="success" if c.stop else None)
    for name in ("step_size", "schedule", "momentum"):
        if getattr(c, name) is not None:
            raise ValueError(f"{option_of(name)} has no meaning for --attack {c.attack}, which finds its own steps")
    if c.stop:
        raise ValueError(f"--stop has no meaning for --attack {c.attack}, which keeps the best iterate")
    if c.attack == "square":
        queries, threat = 5000 if c.steps is None else c.steps, Threat.of(c.norm, eps)
        return Square(threat, steps=queries, restarts=c.restarts, seed=c.seed, autocast=c.runtime.autocast())
    if c.attack == "autoattack":
        for name, given in (("steps", c.steps is not None), ("restarts", c.restarts != 1)):
            if given:
                raise ValueError(f"--{name} has no meaning for --attack autoattack, whose settings are its definition")
        return AutoAttack(Threat.of(c.norm, eps), seed=c.seed, autocast=c.runtime.autocast())
    steps = 100 if c.steps is None else c.steps
    if c.attack in ("ddn", "fmn"):
        if c.restarts != 1:
            raise ValueError(f"--restarts has no meaning for --attack {c.attack}, which starts at the sample")
        if c.attack == "ddn" and c.norm != "l2":
            raise ValueError(f"--attack ddn is for --norm l2, got {c.norm}; fmn takes any norm")
        nearest = DDN if c.attack == "ddn" else FMN
        return nearest(Threat.of(c.norm, eps), steps=steps, autocast=c.runtime.autocast())
    if c.attack == "strong":
        if c.restarts != 1:
            raise ValueError("--restarts has no meaning for --attack strong, whose runs of Auto-PGD each start afresh")
        return strong_attack(eps, c.norm, steps=steps, seed=c.seed, autocast=c.runtime.autocast())
    kind = APGD if c.attack == "apgd" else Auto
    return kind(Threat.of(c.norm, eps), steps=steps, restarts=c.restarts, seed=c.seed, autocast=c.runtime.autocast())


def attack_in_words(c: commands.Evaluate, attack: Attack) -> str:
    """Describe the attack of ``--attack`` for the caption of a table.

    Args:
        c: Parsed options.
        attack: What :func:`evaluation_attack` made of them.
    """
    if isinstance(attack, Ensemble) and isinstance(auto := attack.attacks[-1], Auto):  # --attack strong
        return (
            f"20 steps of PGD, then on the remaining samples {auto.steps} steps of Auto-PGD on the margin and towards "
            f"each of {auto.target_classes} other classes (the first two attacks of AutoAttack)"
        )
    if isinstance(attack, AutoAttack):
        return f"AutoAttack, {attack.version} version: {attack.objective}"
    settings = attack.to_dict()
    words = f"{settings['attack']}, {settings['steps']} {'queries' if c.attack == 'square' else 'steps'}"
    if c.attack == "pgd":
        words += f" of {_step_sizes(c, settings)}"
    if isinstance(attack, (DDN, FMN)):
        return f"{words}, the nearest example"
    words += f", {settings['restarts']} start(s), {settings['objective']}, best iterate"
    return words + ("; a stronger attack can give much lower accuracy" if c.attack == "pgd" else "")


def _step_sizes(c: commands.Evaluate, settings: dict) -> str:
    falls = settings.get("schedule") == "cosine"
    size = f"{c.step_size:g}" if c.step_size is not None else "2 eps" if falls else "2.5 eps / steps"
    words = f"falling size, from {size}" if falls else f"size {size}"
    return words + (f", momentum {c.momentum:g}" if c.momentum else "")


def _margin(value: float | None) -> str:
    """Format a mean margin: None if no sample was attacked, infinite if a model excludes classes."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _clean_notes(result: Evaluation) -> str:
    notes = [f"{result.nonfinite_logits} without a prediction"] if result.nonfinite_logits else []
    return ", ".join(notes + ([result.note] if result.note else []))
