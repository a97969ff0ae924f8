"""What an experiment will cost: the images that go through each network, and the rate at which this machine takes them.

Three kinds of passes count: "train", forward, backward and update; "attack", forward and backward to the image, of an
attack of many steps; "inner", the same in adversarial training. A test is a third of a pass of the second kind. Of an
attack that leaves samples early all steps are counted, and of one after others in an ensemble those of the samples that
usually stand by then: the estimate is an upper bound for models that are not robust.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from advfeat.attacks import PGD, Attack, Ensemble
from advfeat.experiments.measurements import StepSweep, Transferred
from advfeat.experiments.steps import Constructed, Data, DataStep, Evaluated, Step, Trained
from advfeat.models import attack_copy, create
from advfeat.threat import L2
from advfeat.training import TrainConfig

# Images and shape of what the presets use, by data set: training and test samples.
_SIZES = {
    "digits": (1347, 450, (1, 8, 8)),
    "cifar10": (50_000, 10_000, (3, 32, 32)),
    "cifar10.1": (0, 2000, (3, 32, 32)),
    "restricted-imagenet": (257_748, 10_150, (3, 224, 224)),
}
_TEST = 1 / 3
# The share of the samples that the first attack of an ensemble leaves: half of those of a robust model stood on digits
# and on CIFAR-10, a third of D_R's, hardly any of the others.
_STANDING = 1 / 3
_CLASSES = 10


@dataclass(frozen=True)
class Network:
    """A network in a precision, which is what a rate depends on."""

    arch: str
    width: int | None
    amp: str
    batch_size: int
    shape: tuple[int, int, int]


Passes = Counter[tuple[Network, str]]


def passes(steps: Iterable[Step]) -> Passes:
    """Images through each network by kind of pass, for the steps themselves and not for what they need."""
    total: Passes = Counter()
    for step in steps:
        if isinstance(step, Trained):
            config, n = step.config, samples(step.data)
            net = _network(config, step.data)
            total[net, "train"] += n * config.epochs
            if config.attack is not None:
                total[net, "inner"] += n * config.epochs * config.attack.steps
            tests = config.epochs // config.eval_every if config.eval_every else 1
            total[net, "attack"] += samples(step.test) * tests * _TEST
        elif isinstance(step, Constructed):
            net = _network(step.model.config, step.data, step.batch_size, step.amp)
            total[net, "attack"] += samples(step.data) * step.recipe.steps
        elif isinstance(step, Evaluated):
            n = min(samples(step.data), step.limit or samples(step.data))
            total[_attacked(step, step.model, step.attacks), "attack"] += n * (_TEST + _steps(step.attacks))
        elif isinstance(step, Transferred):
            net = _attacked(step, step.source, (step.attack,))
            total[net, "attack"] += samples(step.data) * step.attack.steps
            for target in step.targets:
                total[_attacked(step, target, ()), "attack"] += samples(step.data) * 2 * _TEST
        elif isinstance(step, StepSweep):
            net = _attacked(step, step.model, step.attacks)
            total[net, "attack"] += samples(step.data) * _steps(step.attacks)
    return total


def _steps(attacks: Iterable[Attack]) -> float:
    """Gradients a sample, about and at most."""
    total = 0.0
    for attack in attacks:
        if isinstance(attack, Ensemble):
            first, *rest = attack.attacks
            total += _steps((first,)) + _STANDING * _steps(rest)
        else:
            total += attack.steps * (attack.restarts + getattr(attack, "target_classes", 0))
    return total


def samples(step: DataStep) -> int:
    """How many samples a data step has, as far as that is known without opening it."""
    if isinstance(step, Data):
        train, test, _ = _SIZES[step.name]
        n = train if step.split == "train" else test
        n = n * len(step.classes) // _CLASSES if step.classes else n
        return min(n, step.limit or n)
    below = next((s for s in step.needs() if isinstance(s, DataStep)), None)
    return 0 if below is None else samples(below)


def _shape(step: DataStep) -> tuple[int, int, int]:
    while not isinstance(step, Data):
        below = next((s for s in step.needs() if isinstance(s, DataStep)), None)
        if below is None:
            return _SIZES["cifar10"][2]
        step = below
    channels, *side = _SIZES[step.name][2]
    return (channels, step.size, step.size) if step.size else (channels, *side)


def _network(config: TrainConfig, data: DataStep, batch_size: int | None = None, amp: str | None = None) -> Network:
    return Network(config.arch, config.width, amp or config.amp, batch_size or config.batch_size, _shape(data))


def _attacked(step: Evaluated | Transferred | StepSweep, model: Trained, attacks: Iterable[Attack]) -> Network:
    low = any(attack.autocast is not None for attack in attacks)
    return _network(model.config, step.data, step.batch_size, "bf16" if low else "none")


def seconds(work: Passes, rates: dict[tuple[Network, str], float]) -> float:
    """The time for passes at rates in images a second."""
    return sum(n / rates[key] for key, n in work.items() if n)


def measure_rate(net: Network, kind: str, device: torch.device, *, at_least: float = 1.0) -> float:
    """Images a second through a network on this machine, timed for about so many seconds after one batch."""
    amp = torch.bfloat16 if net.amp == "bf16" else None
    # A CPU shows its rate on a few images, and a large network would take minutes for a GPU's batch.
    batch = net.batch_size if device.type == "cuda" else min(net.batch_size, 64)
    model = create(net.arch, _CLASSES, net.shape, width=net.width).to(device=device, memory_format=torch.channels_last)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *net.shape, generator=g).to(device=device, memory_format=torch.channels_last)
    y = torch.randint(_CLASSES, (batch,), generator=g, device="cpu").to(device)
    if kind != "train":
        # Long enough for a graph of the step on a GPU, which a short attack does without.
        steps = 7 if kind == "inner" else 64 if device.type == "cuda" else 4
        model = model.eval() if kind == "inner" else attack_copy(model.eval(), autocast=amp)
        attack = PGD(L2(0.5), steps=steps, step_size=0.1, autocast=amp)

        def work() -> int:
            attack(model, x, y)
            return attack.steps * batch

    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

        def work() -> int:
            with torch.autocast(device.type, torch.bfloat16, enabled=amp is not None):
                loss = F.cross_entropy(model(x).float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return batch

    work()
    done, began = 0, _now(device)
    while _now(device) - began < at_least:
        done += work()
    return done / (_now(device) - began)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
