"""What each command of :mod:`advfeat.cli` does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.text import Text

import advfeat
from advfeat import L2, Linf
from advfeat.attacks import APGD, PGD, Attack, Auto, Converged
from advfeat.calling import output
from advfeat.console import bar, console, say, table
from advfeat.datasets import build as builder
from advfeat.datasets import sources
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.recipes import PRESETS, preset
from advfeat.evaluation import Evaluation, pgd_attack, strong_attack
from advfeat.evaluation import evaluate as evaluate_model
from advfeat.forward import predicted_classes
from advfeat.models import Model, check_fits, describe, fingerprint, load
from advfeat.options import option_of, radii, radius_text, torch_device
from advfeat.runs import check_writable_file, check_writable_folder, provenance, read_json, to_json, write_together
from advfeat.training import TrainConfig, paper_attack
from advfeat.training import train as train_model

if TYPE_CHECKING:
    from advfeat import cli


# What evaluate's --out could replace, and make a model, a set, an export or a result unreadable.
_OWN_FILES = re.compile(
    r"(model|config|manifest|checkpoint|step|outcome|attack|features|advfeat-classes)\.json|metrics\.jsonl|metadata\.csv|"
    r"(shard|checkpoint)-\d+\..*|.*\.safetensors"
)


def _percent(share) -> Text:
    low, high = share.interval
    return Text.assemble(f"{100 * share.value:.1f} % ", (f"({100 * low:.1f} – {100 * high:.1f})", "dim"))


def _margin(value: float | None) -> str:
    """A mean margin: none where no sample was attacked, infinite where a model puts classes out."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _preset_of(dataset: str) -> str:
    """The preset that a data set's name stands for."""
    return dataset if dataset in PRESETS else ("digits" if dataset in ("planted",) else "cifar10")


def _check_place(out: Path, done: str) -> None:
    """Looks whether there will be a place for what is made, before models and data are read; what is there already
    may lie where nothing can be written."""
    if not (out / done).is_file():
        check_writable_folder(out)


def train(c: cli.Train) -> None:
    _check_place(c.out, "model.json")
    device = torch_device(c.device)
    source, test = _train_and_test(c)
    config = TrainConfig(
        arch=c.arch,
        width=c.width,
        seed=c.seed,
        amp=c.amp,
        epochs=c.epochs,
        lr=c.lr,
        batch_size=c.train_batch_size,
        weight_decay=c.weight_decay,
        augment=c.augment,
        allow_flip=c.allow_flip,
    )
    if c.adversarial != "none":
        if c.eps is None:
            raise ValueError("--eps should be given with --adversarial: the radius, in pixel scale [0, 1]")
        radii("--eps", c.eps, c.adversarial)
        config = config.replace(attack=_training_attack(c))
    else:
        for option in ("eps", "attack_steps", "attack_step_size"):
            if getattr(c, option) is not None:
                raise ValueError(f"{option_of(option)} needs --adversarial l2 or linf")
    with bar(f"training {c.arch} on {source.name}", "steps") as report:
        result = train_model(
            config,
            source,
            test,
            c.out,
            resume=not c.restart,
            same_classes=c.same_classes,
            device=device,
            progress=report,
        )
    if not result.history:
        say(f"a trained model is in {c.out} already, without the metrics of its training")
        return
    last = result.history[-1]
    say(
        f"test accuracy on {test.name}: ",
        (f"{100 * last['test_accuracy']:.1f} %", "bold"),
        f" after {last['epoch']} epochs; model in {c.out}",
    )


def _train_and_test(c: cli.Train) -> tuple[sources.Source, sources.Source]:
    """What is trained and what is tested on; --size and --holdout are for the one of them that takes them, or both."""

    def load_it(name: str, split: str, limit: int | None, fitting: dict) -> sources.Source:
        taken = {option: value for option, value in given.items() if sources.takes(name, option)}
        used.update(taken)
        return sources.load(name, split, c.data.root, limit=limit, **(fitting | taken))

    given, used = c.data.options(), {}
    source = load_it(c.data.dataset, "train", c.data.limit, {})
    name = c.test_dataset or source.built_from or c.data.dataset
    fitting = sources.options_for(name, source.image_shape)
    if name == c.data.dataset and c.data.size is None:
        fitting.pop("size", None)  # an image of another size would be cut without a word
    elif sources.takes(name, "size"):
        fitting["size"] = source.image_shape[1:]
    test = load_it(name, "test", None, fitting)
    for option in given.keys() - used.keys():
        whose = " nor ".join(dict.fromkeys((source.name, test.name)))
        raise ValueError(f"--{option} is for image folders, not for {whose}")
    return source, test


def _training_attack(c: cli.Train) -> PGD:
    attack = paper_attack(c.eps, c.adversarial, 7 if c.attack_steps is None else c.attack_steps)
    return attack if c.attack_step_size is None else attack.replace(step_size=c.attack_step_size)


def _load(folder: Path) -> Model:
    """The model of ``--model``. Errors: as of :func:`advfeat.models.load`; ValueError for what is no run folder."""
    if (folder / "manifest.json").is_file() and not (folder / "model.json").is_file():
        raise ValueError(f"--model should be a run folder of advfeat train, got the constructed set {folder}")
    if folder.is_file():
        raise ValueError(
            f"--model should be a run folder of advfeat train, got the file {folder}; your own weights are for "
            "Python: advfeat.models.adapt(module, ...)"
        )
    return load(folder)


def build(c: cli.Build) -> None:
    _check_place(c.out, "manifest.json")
    device = c.runtime.torch_device()
    model = _load(c.model)
    source = c.data.load("train", model.input_shape)
    recipe = preset(c.preset or _preset_of(c.data.dataset), c.recipe)
    given = {"eps": c.eps, "steps": c.steps, "step_size": c.step_size, "start": c.start}
    given["stop"] = Converged() if c.converge else None
    fields = {f.name for f in dataclasses.fields(recipe)}
    for name, value in given.items():
        if value is not None and name not in fields:
            option = "--converge" if name == "stop" else option_of(name)
            raise ValueError(f"{option} has no meaning for the recipe {c.recipe!r}")
    recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
    with bar(f"building {c.recipe} from {source.name}", "images") as report:
        made = builder.build(
            recipe,
            model,
            source,
            c.out,
            seed=c.seed,
            batch_size=c.runtime.batch_size,
            shard_size=c.shard_size,
            dtype=c.dtype,
            device=device,
            autocast=c.runtime.autocast(),
            compile=c.compile,
            same_classes=c.same_classes,
            any_source=c.any_source,
            progress=report,
        )
    _describe_set(made, c.out)


def _describe_set(made, path: Path) -> None:
    success, moved = made.target_success.float().mean(), made.distance.float()
    relabelled = (made.labels != made.original_labels).float().mean()
    say(f"{len(made):,} images in {path}")
    say(f"  the source model says the label for {100 * success:.1f} %")
    say(f"  {100 * relabelled:.1f} % are relabelled")
    say(f"  moved by {moved.mean():.3f} on average, {moved.max():.3f} at most")


def _evaluation_attack(c: cli.Evaluate, eps: float) -> Attack:
    if c.attack == "pgd":
        given = {
            "steps": 40 if c.steps is None else c.steps,
            "step_size": c.step_size,
            "restarts": c.restarts,
            "seed": c.seed,
        }
        stop = "success" if c.stop else None
        return pgd_attack(eps, c.norm, **given).replace(autocast=c.runtime.autocast(), stop=stop)
    if c.step_size is not None:
        raise ValueError(f"--step-size has no meaning for --attack {c.attack}, which finds its own")
    if c.stop:
        raise ValueError(f"--stop has no meaning for --attack {c.attack}, which keeps the best iterate")
    steps = 100 if c.steps is None else c.steps
    if c.attack == "strong":
        if c.restarts != 1:
            raise ValueError("--restarts has no meaning for --attack strong, whose runs of Auto-PGD start anew each")
        return strong_attack(eps, c.norm, steps=steps, seed=c.seed, autocast=c.runtime.autocast())
    kind = APGD if c.attack == "apgd" else Auto
    threat = L2(eps) if c.norm == "l2" else Linf(eps)
    return kind(threat, steps=steps, restarts=c.restarts, seed=c.seed, autocast=c.runtime.autocast())


def _attack_in_words(c: cli.Evaluate, attack: Attack) -> str:
    if c.attack == "strong":
        auto = attack.attacks[-1]
        return (
            f"20 steps of PGD, then Auto-PGD of {auto.steps} steps on the margin and towards each of "
            f"{auto.target_classes} other classes, on what was left: the first two attacks of AutoAttack"
        )
    settings = attack.to_dict()
    words = f"{settings['attack']}, {settings['steps']} steps"
    words += " of 2.5 eps / steps unless given" if c.attack == "pgd" else ""
    words += f", {settings['restarts']} start(s), {settings['objective']}, best iterate"
    return words + ("; a stronger attack can leave much less" if c.attack == "pgd" else "")


def evaluate(c: cli.Evaluate) -> None:
    samples, failed = None, None
    if c.out is not None:
        behind = Path(os.path.realpath(c.out))
        if _OWN_FILES.fullmatch(behind.name) and behind.exists():
            raise ValueError(
                f"--out should be a file of its own, got {c.out}, which is part of a run, a set or a result"
            )
        # Of the whole name: radii have a point in them, and what stands behind it is no ending.
        samples = check_writable_file(c.out).with_name(f"{c.out.name.removesuffix('.json')}.samples.jsonl")
        check_writable_file(samples)
    eps = radii("--eps", c.eps, c.norm, l2=(0.25, 0.5), linf=(4 / 255, 8 / 255))
    attacks = [(f"{c.norm} {e:g}", _evaluation_attack(c, e)) for e in eps]
    device = c.runtime.torch_device()
    model = _load(c.model).to(device)
    source = c.data.load(c.split, model.input_shape)
    with bar(f"evaluating {c.model} on {source.name}", "samples") as report:
        result = evaluate_model(
            model,
            source,
            attacks=attacks,
            batch_size=c.runtime.batch_size,
            same_classes=c.same_classes,
            progress=report,
        )
    if c.out is not None:  # first: whatever happens to the terminal, the results are there
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in result.samples()).encode()
        of_samples = {"samples": samples.name, "samples_sha256": hashlib.sha256(lines).hexdigest()}
        results = {"model": str(c.model), **result.to_dict(), **of_samples, **provenance(device)}
        failed = _write([(samples, lines), (c.out, to_json(results))])
    rows = [["clean", _percent(result.clean), _margin(result.margin), _clean_notes(result)]]
    for r in result.robustness:
        notes = [] if r.converged else [f"{r.carried} carried over from a smaller radius"]
        notes += [f"{r.zero_gradient} with zero gradients"] if r.zero_gradient else []
        notes += [f"{r.nonfinite_gradient} with gradients not finite"] if r.nonfinite_gradient else []
        name = f"{c.norm} {radius_text(r.eps, c.norm)}"
        rows.append([name, _percent(r.accuracy), _margin(r.margin), ", ".join(notes)])
    caption = f"{result.clean.n:,} samples; 95 % Wilson intervals"
    if attacks:
        passes = sum(r.backward_passes for r in result.robustness) / max(sum(r.attacked for r in result.robustness), 1)
        caption += f"; {_attack_in_words(c, attacks[0][1])}; {passes:,.0f} gradient passes a sample attacked"
    table("accuracy", ["", "accuracy", "mean margin", "notes"], rows, caption)
    _written(c.out, failed, f"sample by sample to {samples.name}" if samples else "")


def _write(files: list[tuple[Path, bytes]]) -> OSError | None:
    """Writes results. What fails is returned, for the results are still to be shown before it is raised."""
    try:
        write_together(files)
    except OSError as error:
        return error
    return None


def _written(out: Path | None, failed: OSError | None, more: str) -> None:
    """The end of a command that writes results."""
    if failed is not None:
        raise failed
    if out is not None:
        say(f"written to {out}, {more}")


def _check_results(folder: Path, *names: str) -> None:
    """Looks whether results of these names could be written into a folder, before the work."""
    check_writable_folder(folder)
    for name in names:
        check_writable_file(folder / name)


def _clean_notes(result: Evaluation) -> str:
    notes = [f"{result.nonfinite_logits} without a prediction"] if result.nonfinite_logits else []
    return ", ".join(notes + ([result.note] if result.note else []))


def attack(c: cli.Attack) -> None:
    import safetensors.torch

    from advfeat.plots import label, sample_grid

    _check_results(c.out, "adversarial.safetensors", "samples.png", "attack.json")
    eps = radii("--eps", c.eps, c.norm, l2=0.5, linf=8 / 255)
    device = c.runtime.torch_device()
    model = _load(c.model).to(device)
    source = c.data.load(c.split, model.input_shape)
    check_fits(model, source.classes, source.image_shape, f"data set {source.name!r}", c.same_classes)
    targeted = c.target == "next"
    pgd = pgd_attack(eps, c.norm, steps=c.steps, step_size=c.step_size, restarts=c.restarts, seed=c.seed)
    pgd = pgd.replace(targeted=targeted, autocast=c.runtime.autocast())
    labels = source.labels
    target = (labels + 1) % len(source.classes) if targeted else labels
    parts, images = [], []
    with bar(f"attacking {c.model} on {source.name}", "images") as report:
        for index in torch.arange(len(source)).split(c.runtime.batch_size):
            x = source.images(index)
            images.append(x)
            parts.append(pgd.run(model, x.to(device), target[index].to(device), sample_ids=index.to(device)))
            report(int(index[-1]) + 1, len(source))
    x, x_adv = torch.cat(images), torch.cat([p.x_adv.cpu() for p in parts])
    success = torch.cat([p.success.cpu() for p in parts])
    tensors = {
        "images": x_adv,
        "label": labels,
        "target": target,
        "success": success,
        "value": torch.cat([p.value.float().cpu() for p in parts]),
        "distance": torch.cat([p.distance.float().cpu() for p in parts]),
        "zero_grad_steps": torch.cat([p.zero_grad_steps.cpu() for p in parts]),
        "nonfinite_grad_steps": torch.cat([p.nonfinite_grad_steps.cpu() for p in parts]),
    }
    # safetensors shares no memory
    own = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    summary = {"attack": pgd.to_dict(), **_of(model, source), "success": float(success.float().mean())}
    shown = success.nonzero()[:10, 0] if success.any() else torch.arange(min(10, len(source)))
    said = predicted_classes(output(model, x_adv[shown].to(device))).tolist()
    names = [label(name, 26) for name in (*source.classes, "nothing")]  # -1 is no prediction
    captions = [f"{names[int(labels[i])]}\n→ {names[s]}" for i, s in zip(shown, said, strict=True)]
    rows = [("original", x[shown]), ("attacked", x_adv[shown])]
    picture = sample_grid(rows, captions, ("difference", (x_adv - x)[shown]))
    failed = _write(
        [
            (c.out / "adversarial.safetensors", safetensors.torch.save(own)),
            (c.out / "samples.png", picture),
            (c.out / "attack.json", to_json({**summary, "model": str(c.model), **provenance(device)})),
        ]
    )
    verb = "reached the next class" if targeted else "are misclassified"
    say(f"{100 * summary['success']:.1f} % of {len(source):,} images {verb} at {c.norm} {radius_text(eps, c.norm)}")
    _written(c.out, failed, "adversarial.safetensors, attack.json and samples.png")


def _of(model: Model, source: sources.Source) -> dict:
    """What a result is of."""
    return {
        "data": source.name,
        "data_fingerprint": source.fingerprint,
        "model_fingerprint": fingerprint(model),
        "n": len(source),
    }


def features(c: cli.Features) -> None:
    from advfeat.features import attacked_ranges, check_labels, usefulness
    from advfeat.plots import label

    failed = None
    if c.out is not None:
        _check_results(c.out, "features.png", "features.json")
    eps = radii("--eps", c.eps, c.norm, l2=0.25, linf=4 / 255)
    device = c.runtime.torch_device()
    model = _load(c.model).to(device)
    source = c.data.load(c.split, model.input_shape)
    check_fits(model, source.classes, source.image_shape, f"data set {source.name!r}", c.same_classes)
    check_labels(source.labels)
    pgd = pgd_attack(eps, c.norm, steps=c.steps, step_size=c.step_size, seed=c.seed)
    pgd = pgd.replace(autocast=c.runtime.autocast())
    with bar(f"attacking the features of {c.model} on {source.name}", "attacks") as report:
        ranges = attacked_ranges(
            model.representation, source.images().to(device), pgd, batch_size=c.runtime.batch_size, progress=report
        )
    found = usefulness(ranges, source.labels)
    radius = f"{c.norm} {radius_text(eps, c.norm)}"
    if c.out is not None:
        attack = {**pgd.to_dict(), "objective": "each feature, down and up", "targeted": True, "keep": "best"}
        settings = {"attack": attack, **_of(model, source), "model": str(c.model)}
        results = {**settings, "features": found.rows(), **provenance(device)}
        picture = found.scatter_png(label(f"{c.model}: {source.name}, {radius}", 60))
        failed = _write([(c.out / "features.png", picture), (c.out / "features.json", to_json(results))])
    console.print(found.table(c.show))
    words = (
        f"rho: usefulness for the class against the rest; gamma: what is left of it at {radius} (PGD, {c.steps} steps: "
        "an upper bound, which a stronger attack lowers). ± one standard error; robust and non-robust are three of "
        "them from 0."
    )
    console.print(Text(words, "dim"))
    _written(c.out, failed, "features.json and features.png")


def info(c: cli.Info) -> None:
    if c.path is None:
        rows = [[k, _short(v)] for k, v in advfeat.build_config().items()]
        rows += [["python", platform.python_version()]]
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        rows += [["threads", str(torch.get_num_threads())], ["GPUs", ", ".join(gpus) or "none"]]
        table("advfeat", ["", ""], rows)
        return
    if (c.path / "manifest.json").is_file():
        made = ConstructedSet.open(c.path)
        _describe_set(made, c.path)
        parts = {k: made.manifest[k] for k in ("recipe", "source", "model", "seed")}
        console.print_json(json.dumps(parts), ensure_ascii=True)  # nothing that a terminal would carry out
    elif (c.path / "model.json").is_file():
        for line in describe(c.path).lines():
            say(line)
        if (c.path / "config.json").is_file():
            console.print_json(json.dumps(read_json(c.path / "config.json")), ensure_ascii=True)
    else:
        raise FileNotFoundError(f"{c.path} is neither a run folder (model.json) nor a constructed set (manifest.json)")


def _short(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
