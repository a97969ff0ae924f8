"""The ``advfeat train`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advfeat.attacks import PGD
from advfeat.cli.console import bar, say
from advfeat.cli.files import check_place
from advfeat.cli.options import option_of, radii, torch_device
from advfeat.datasets import sources
from advfeat.datasets.registry import not_taken
from advfeat.threat import NORMS
from advfeat.training import TrainConfig, fast_attack, paper_attack, train

if TYPE_CHECKING:
    from advfeat.cli import commands


def run(c: commands.Train) -> None:
    """Train a model into a run folder.

    Args:
        c: Parsed options.

    Raises:
        ValueError: If an option of adversarial training is given without ``--adversarial``, ``--adversarial`` without
            ``--eps``, or an option does not apply to the data set.
    """
    check_place(c.out, "model.json")
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
        config = config.replace(attack=_training_attack(c, radii("--eps", c.eps, NORMS[c.adversarial])))
    else:
        for option in ("eps", "attack_steps", "attack_step_size", "attack_schedule"):
            if getattr(c, option) is not None:
                raise ValueError(f"{option_of(option)} needs --adversarial l2, linf or l1")
    with bar(f"training {c.arch} on {source.name}", "steps") as report:
        result = train(
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
        say(f"{c.out} already holds a trained model, without its training metrics")
        return
    last = result.history[-1]
    say(
        f"test accuracy on {test.name}: ",
        (f"{100 * last['test_accuracy']:.1f} %", "bold"),
        f" after {last['epoch']} epoch{'s' * (last['epoch'] > 1)}; model in {c.out}",
    )


def _train_and_test(c: commands.Train) -> tuple[sources.Source, sources.Source]:
    """Load the training and the test set; ``--size`` and ``--holdout`` apply to whichever of them accepts them."""

    def load_it(name: str, split: str, limit: int | None, fitting: dict) -> sources.Source:
        taken = {option: value for option, value in given.items() if sources.takes(name, option)}
        used.update(taken)
        return sources.load(name, split, c.data.root, limit=limit, **(fitting | taken))

    given = c.data.options()
    used: dict[str, Any] = {}
    source = load_it(c.data.dataset, "train", c.data.limit, {})
    name = c.test_dataset or source.built_from or c.data.dataset
    fitting = sources.options_for(name, source.image_shape)
    if name == c.data.dataset and c.data.size is None:
        fitting.pop("size", None)  # an image of another size would be cropped silently
    elif sources.takes(name, "size"):
        fitting["size"] = source.image_shape[1:]
    test = load_it(name, "test", None, fitting)
    for option in given.keys() - used.keys():
        whose = dict.fromkeys((source.name, test.name))
        raise ValueError(not_taken(f"--{option}", whose, given[option]))
    return source, test


def _training_attack(c: commands.Train, eps: float) -> PGD:
    if c.attack_steps is None:
        attack = paper_attack(eps, c.adversarial)
    else:
        attack = fast_attack(eps, c.adversarial, c.attack_steps)
    if c.attack_schedule is not None and c.attack_schedule != "constant":
        attack = attack.replace(schedule=c.attack_schedule, step_size=eps)
    return attack if c.attack_step_size is None else attack.replace(step_size=c.attack_step_size)
