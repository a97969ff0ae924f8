"""The paper's main experiment (Figure 2, Tables 1 and 7): six models, four constructed sets, one table.

A standard and an adversarially trained model are trained on D; with them D_R, D_NR, D_rand and D_det are built; a fresh
model is trained on each by standard training; all six are tested on the true test set, clean and under attack. Each
step is kept in a folder of its own and not done again when it is there.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from advfeat.datasets import build, sources
from advfeat.datasets.recipes import PRESETS, MatchRepresentation, Recipe
from advfeat.evaluation import default_attack, evaluate, label_agreement
from advfeat.runs import plain, provenance, read_json, write_json
from advfeat.training import TrainConfig, paper_attack, train

Bar = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]

SETS = ("robust", "nonrobust", "rand", "det")

# Accuracy and robust accuracy at L2 0.25 and 0.5, in percent: Table 7 (rows "from images") and Table 1; CIFAR-10,
# ResNet-50.
PAPER = {
    "standard": (95.25, (4.49, 0.0)),
    "adversarial": (90.83, (82.48, 70.90)),
    "robust": (85.40, (48.20, 21.85)),
    "nonrobust": (87.68, (0.82, 0.0)),
    "rand": (63.3, (None, None)),
    "det": (43.7, (None, None)),
}


@dataclass(frozen=True)
class MainExperiment:
    """Everything the experiment's result depends on.

    dataset, limit, test_limit: the data, see :func:`advfeat.datasets.sources.load`. standard, adversarial: trainings on
    D. on: the training on each constructed set. recipes: how each is built. norm, radii, attack_steps, attack_restarts:
    the evaluation. seed: of everything; model k of the six has its own, derived from it.
    """

    name: str
    dataset: str
    standard: TrainConfig
    adversarial: TrainConfig
    on: dict[str, TrainConfig]
    recipes: dict[str, Recipe]
    radii: tuple[float, float]
    norm: str = "l2"
    attack_steps: int = 40
    attack_restarts: int = 1
    limit: int | None = None
    test_limit: int | None = None
    batch_size: int = 250
    amp: str = "none"
    threads: int | None = None
    seed: int = 0

    def to_dict(self) -> dict:
        """The settings as JSON values."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass
class Outcome:
    """What a run gives: ``results`` as JSON values, and the folders of its models and sets, for pictures and further
    work."""

    results: dict
    models: dict[str, Path] = field(default_factory=dict)
    sets: dict[str, Path] = field(default_factory=dict)


def run(
    config: MainExperiment,
    out: Path,
    *,
    root: Path | None = None,
    device: torch.device | str | None = None,
    bar: Bar,
) -> Outcome:
    """Runs the experiment in ``out`` (``models/``, ``sets/``, ``results.json``); what is finished there is not done
    again.

    root: where the data set lies. bar: gives a progress report for a title and a unit, as :func:`advfeat.console.bar`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        return _run(config, out, root, device, bar)
    finally:
        torch.set_num_threads(threads)


def _run(config: MainExperiment, out: Path, root: Path | None, device: torch.device | str | None, bar: Bar) -> Outcome:
    began = time.monotonic()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    true_train = sources.load(config.dataset, split="train", root=root, limit=config.limit)
    true_test = sources.load(config.dataset, split="test", root=root, limit=config.test_limit)
    outcome = Outcome(results={})
    models, histories, seconds = {}, {}, {}

    def train_model(key: str, settings: TrainConfig, source: sources.Source, title: str) -> None:
        started, folder = time.monotonic(), out / "models" / key
        settings = settings.replace(seed=_seed(config.seed, key))
        with bar(title, "steps") as report:
            result = train(settings, source, true_test, folder, device=device, progress=report)
        models[key], histories[key], outcome.models[key] = result.model, result.history, folder
        seconds[key] = time.monotonic() - started

    train_model("standard", config.standard, true_train, "standard training on D")
    train_model("adversarial", config.adversarial, true_train, "adversarial training on D")

    built = {}
    for key in SETS:
        recipe, started = config.recipes[key], time.monotonic()
        model = models["adversarial" if recipe.source_model == "robust" else "standard"]
        with bar(f"building {TITLES[key]}", "images") as report:
            built[key] = build.build(
                recipe,
                model,
                true_train,
                out / "sets" / key,
                seed=config.seed,
                batch_size=config.batch_size,
                device=device,
                autocast=torch.bfloat16 if config.amp == "bf16" else None,
                progress=report,
            )
        outcome.sets[key] = out / "sets" / key
        seconds[f"set {key}"] = time.monotonic() - started
    for key in SETS:
        train_model(key, config.on[key], built[key], f"standard training on {TITLES[key]}")

    rows = []
    attacks = [
        (
            f"{config.norm} {eps}",
            default_attack(eps, config.norm, steps=config.attack_steps, restarts=config.attack_restarts),
        )
        for eps in config.radii
    ]
    with bar("evaluating the six models", "samples") as report:
        for i, (key, model) in enumerate(models.items()):
            per_model = len(true_test) * (1 + len(attacks))
            evaluation = evaluate(
                model,
                true_test,
                attacks=attacks,
                progress=lambda done, total, i=i, per=per_model: report(i * per + done, per * len(models)),
            )
            agreement = label_agreement(model, true_test)
            rows.append(_row(key, evaluation, agreement, seconds[key]))

    results = {
        "config": config.to_dict(),
        "dataset": {
            "name": config.dataset,
            "train_samples": len(true_train),
            "test_samples": len(true_test),
            "image_shape": list(true_train.image_shape),
            "classes": list(true_train.classes),
            "fingerprint": {"train": true_train.fingerprint, "test": true_test.fingerprint},
        },
        "rows": rows,
        "sets": [_set_row(key, built[key], config.recipes[key], seconds[f"set {key}"]) for key in SETS],
        "curves": histories,
        "attack": attacks[0][1].to_dict(),
        "seconds": round(time.monotonic() - began, 1),
        **provenance(device),
    }
    results["findings"] = findings(results)
    _keep_first_times(out / "results.json", results)
    write_json(out / "results.json", results)
    outcome.results = results
    return outcome


TITLES = {"robust": "D_R", "nonrobust": "D_NR", "rand": "D_rand", "det": "D_det"}
LABELS = {
    "standard": "D",
    "adversarial": "D, adversarially",
    **TITLES,
}


def _seed(seed: int, key: str) -> int:
    """Each model has its own initial weights and order: D_det's model is a fresh one, not the standard model's twin."""
    return 100 * seed + ("standard", "adversarial", *SETS).index(key)


def _share(share) -> dict:
    low, high = share.interval
    return {"value": share.value, "low": low, "high": high, "count": share.count, "n": share.n}


def _row(key: str, evaluation, agreement: dict, seconds: float) -> dict:
    accuracy, robust = PAPER[key]
    return {
        "key": key,
        "accuracy": _share(evaluation.clean),
        "robust": [{"eps": r.eps, **_share(r.accuracy), "details": r.to_dict()} for r in evaluation.robustness],
        "next_class": agreement["relabelled"].value,
        "seconds": round(seconds, 1),
        "paper": {"accuracy": accuracy, "robust": list(robust)},
    }


def _set_row(key: str, made, recipe: Recipe, seconds: float) -> dict:
    return {
        "key": key,
        "n": len(made),
        "recipe": recipe.to_dict(),
        "target_success": float(made.target_success.float().mean()),
        "distance": float(made.distance.float().mean()),
        "objective": float(made.objective.float().mean()),
        "relabelled": float((made.labels != made.original_labels).float().mean()),
        "seconds": round(seconds, 1),
    }


def _keep_first_times(path: Path, results: dict) -> None:
    """A run that finds its steps done takes no time; the times that count are those of the run that did them."""
    if not path.is_file():
        return
    before = read_json(path)
    if before.get("config") != results["config"]:
        return
    for kind in ("rows", "sets"):
        for old, new in zip(before[kind], results[kind], strict=True):
            new["seconds"] = max(old["seconds"], new["seconds"])
    results["seconds"] = max(before["seconds"], results["seconds"])


def findings(results: dict) -> list[dict]:
    """The paper's claims, each with what would count against it and whether it was seen here.

    A comparison counts as seen only where the two 95 % intervals do not overlap.
    """
    rows = {row["key"]: row for row in results["rows"]}
    classes = len(results["dataset"]["classes"])
    chance = 1 / classes

    def pct(share: dict) -> str:
        return f"{100 * share['value']:.1f} %"

    def above(a: dict, b: dict) -> bool:
        return a["low"] > b["high"]

    def most_telling(a: str, b: str) -> int:
        """The radius at which a and b lie furthest apart."""
        return max(range(2), key=lambda i: abs(rows[a]["robust"][i]["value"] - rows[b]["robust"][i]["value"]))

    standard, adversarial, robust, nonrobust = (rows[k] for k in ("standard", "adversarial", "robust", "nonrobust"))
    i, j, k = (
        most_telling("adversarial", "standard"),
        most_telling("robust", "standard"),
        most_telling("robust", "nonrobust"),
    )
    eps = [r["eps"] for r in standard["robust"]]
    found = [
        {
            "claim": "Adversarial training gives a more robust model than standard training.",
            "seen": f"At radius {eps[i]}: {pct(adversarial['robust'][i])} against {pct(standard['robust'][i])}.",
            "holds": above(adversarial["robust"][i], standard["robust"][i]),
        },
        {
            "claim": "Standard training on D_R gives a more robust model than standard training on D.",
            "seen": f"At radius {eps[j]}: {pct(robust['robust'][j])} against {pct(standard['robust'][j])}.",
            "holds": above(robust["robust"][j], standard["robust"][j]),
        },
        {
            "claim": "The source model does it: the same construction with a standard one (D_NR) gives less.",
            "seen": f"At radius {eps[k]}: {pct(robust['robust'][k])} against {pct(nonrobust['robust'][k])}.",
            "holds": above(robust["robust"][k], nonrobust["robust"][k]),
        },
    ]
    for key in ("rand", "det"):
        accuracy = rows[key]["accuracy"]
        found.append(
            {
                "claim": f"A model trained on {TITLES[key]}, whose labels look wrong, is right on the true test set.",
                "seen": f"{pct(accuracy)} where chance is {100 * chance:.0f} %; "
                f"{100 * rows[key]['next_class']:.1f} % of the test set put one class too high.",
                "holds": accuracy["low"] > max(2 * chance, rows[key]["next_class"] if key == "det" else 0),
            }
        )
    return found


def describe_set(recipe: Recipe) -> str:
    """One or two sentences on what a set holds."""
    if isinstance(recipe, MatchRepresentation):
        model = "adversarially trained" if recipe.source_model == "robust" else "standard"
        start = "another, random training image" if recipe.start == "image" else "noise"
        return (
            f"Each image starts as {start} and is moved, in {recipe.steps} steps of length {recipe.step_size:g}, until "
            f"the {model} model's representation of it is that of the labelled image. What that model does not use "
            "stays that of the start, which has nothing to do with the label."
        )
    target = "drawn at random, possibly the true one" if recipe.name == "rand" else "the class after the true one"
    radius = "no limit" if not math.isfinite(recipe.eps) else f"{recipe.norm} distance at most {recipe.eps:g}"
    return (
        f"Each image is moved towards a target class ({target}) as the standard model sees it, {recipe.steps} steps of "
        f"length {recipe.step_size:g}, {radius}, and labelled with that target."
    )


def preset_config(name: str, seed: int = 0) -> MainExperiment:
    """The experiment on "digits" (minutes on two cores, no download) or "cifar10-cpu" (a part of CIFAR-10)."""
    if name not in _PRESETS:
        raise ValueError(f"preset should be one of {', '.join(_PRESETS)}, got {name!r}")
    return dataclasses.replace(_PRESETS[name](), seed=seed)


def _digits() -> MainExperiment:
    # No augmentation: a robustness that comes from D_R alone is what is looked for. Adversarial training beyond 0.75
    # costs accuracy; at 0.5 and 0.75 the six models lie furthest apart. Weight decay ten times the usual: with 5e-4,
    # 1,347 images are learnt by heart, and D_det's model follows its wrong-looking strokes at one seed in three.
    standard = TrainConfig(epochs=20, lr=0.1, batch_size=32, weight_decay=5e-3, width=16)
    return MainExperiment(
        name="digits",
        dataset="digits",
        standard=standard,
        adversarial=standard.replace(attack=paper_attack(0.75)),
        on=dict.fromkeys(SETS, standard),
        recipes=PRESETS["digits"],
        radii=(0.5, 0.75),
        attack_steps=40,
        threads=1,  # a layer of 8x8 images is too small to share: two threads wait for each other longer than they work
    )


def _cifar10_cpu() -> MainExperiment:
    # Measured on 15,000 images: at the paper's radius of 0.5 this network takes only 69 % of D_det's images for their
    # targets, and its D_rand and D_det teach 20 and 17 %; at 1.5 it takes all of them, and they teach 40 and 34 %.
    standard = TrainConfig(
        epochs=20, lr=0.1, batch_size=128, weight_decay=5e-3, augment="crop-flip", width=24, amp="bf16"
    )
    return MainExperiment(
        name="cifar10-cpu",
        dataset="cifar10",
        limit=18_000,
        test_limit=2_000,
        standard=standard,
        adversarial=standard.replace(epochs=15, attack=paper_attack(0.5)),
        on={**dict.fromkeys(SETS, standard), "det": standard.replace(augment="none")},
        recipes=PRESETS["cifar10-cpu"],
        radii=(0.25, 0.5),
        attack_steps=20,
        amp="bf16",
    )


_PRESETS = {"digits": _digits, "cifar10-cpu": _cifar10_cpu}
