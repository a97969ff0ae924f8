"""Cost of an experiment: the images that pass through each network, and the rate of this machine.

Three kinds of passes count: "train" is forward, backward and update; "attack" is forward and backward to the image in
an attack of many steps; "inner" is the same in adversarial training. A test counts as a third of an "attack" pass. All
steps of an attack count, even if it stops early; for a later member of an ensemble, the steps of the samples that
usually remain. The estimate is an upper bound for models that are not robust.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from advfeat.attacks import PGD, Attack, Auto, Ensemble
from advfeat.attacks.base import GradientAttack
from advfeat.experiments.base import DataStage, Stage
from advfeat.experiments.measurements import StepSweep, Transferred
from advfeat.experiments.stages import Constructed, Data, Evaluated, Trained
from advfeat.models import attack_copy, create
from advfeat.threat import L2
from advfeat.training import TrainConfig

# By data set: training samples, test samples, and image shape.
_SIZES = {
    "digits": (1347, 450, (1, 8, 8)),
    "cifar10": (50_000, 10_000, (3, 32, 32)),
    "cifar10.1": (0, 2000, (3, 32, 32)),
    "restricted-imagenet": (257_748, 10_150, (3, 224, 224)),
}
_TEST = 1 / 3
# Share of samples that the first attack of an ensemble leaves: on digits and CIFAR-10 half for a robust model, a third
# for D_R's model, hardly any for the others.
_STANDING = 1 / 3
_CLASSES = 10


@dataclass(frozen=True)
class Network:
    """A network and how it runs, on which the rate depends.

    Attributes:
        arch: Name of the network.
        width: Channels of its first layer, None for the default.
        amp: Precision, "none" or "bf16".
        batch_size: Images per batch.
        shape: Shape (C, H, W) of an image.
    """

    arch: str
    width: int | None
    amp: str
    batch_size: int
    shape: tuple[int, int, int]


Passes = defaultdict[tuple[Network, str], float]


def passes(stages: Iterable[Stage]) -> Passes:
    """Count the images through each network by kind of pass.

    Args:
        stages: The stages, which are counted without those they need.

    Returns:
        Number of images by (network, kind).
    """
    total: Passes = defaultdict(float)
    for stage in stages:
        if isinstance(stage, Trained):
            config, n = stage.config, samples(stage.data)
            net = _network(config, stage.data)
            total[net, "train"] += n * config.epochs
            if config.attack is not None:
                total[net, "inner"] += n * config.epochs * config.attack.steps
            tests = config.epochs // config.eval_every if config.eval_every else 1
            total[net, "attack"] += samples(stage.test) * tests * _TEST
        elif isinstance(stage, Constructed):
            net = _network(stage.model.trained_with(), stage.data, stage.batch_size, stage.amp)
            total[net, "attack"] += samples(stage.data) * stage.recipe.steps
        elif isinstance(stage, Evaluated):
            n = min(samples(stage.data), stage.limit or samples(stage.data))
            total[_attacked(stage, stage.model, stage.attacks), "attack"] += n * (_TEST + _steps(stage.attacks))
        elif isinstance(stage, Transferred):
            net = _attacked(stage, stage.source, (stage.attack,))
            total[net, "attack"] += samples(stage.data) * stage.attack.steps
            for target in stage.targets:
                total[_attacked(stage, target, ()), "attack"] += samples(stage.data) * 2 * _TEST
        elif isinstance(stage, StepSweep):
            net = _attacked(stage, stage.model, stage.attacks)
            total[net, "attack"] += samples(stage.data) * _steps(stage.attacks)
    return total


def _steps(attacks: Iterable[Attack]) -> float:
    """Return an upper estimate of the gradients per sample."""
    total = 0.0
    for attack in attacks:
        if isinstance(attack, Ensemble):
            first, *rest = attack.attacks
            total += _steps((first,)) + _STANDING * _steps(rest)
        elif isinstance(attack, (GradientAttack, Auto)):
            total += attack.steps * (attack.restarts + getattr(attack, "target_classes", 0))
        else:
            raise TypeError(f"the steps of {type(attack).__name__} are not known")
    return total


def samples(stage: DataStage) -> int:
    """Return the number of samples of a data stage, as far as it is known without opening it.

    Args:
        stage: The stage.

    Returns:
        The number, 0 if it is unknown.
    """
    if isinstance(stage, Data):
        train, test, _ = _SIZES[stage.name]
        n = train if stage.split == "train" else test
        n = n * len(stage.classes) // _CLASSES if stage.classes else n
        return min(n, stage.limit or n)
    below = next((s for s in stage.needs() if isinstance(s, DataStage)), None)
    return 0 if below is None else samples(below)


def _shape(stage: DataStage) -> tuple[int, int, int]:
    while not isinstance(stage, Data):
        below = next((s for s in stage.needs() if isinstance(s, DataStage)), None)
        if below is None:
            return _SIZES["cifar10"][2]
        stage = below
    channels, height, width = _SIZES[stage.name][2]
    return (channels, stage.size, stage.size) if stage.size else (channels, height, width)


def _network(config: TrainConfig, data: DataStage, batch_size: int | None = None, amp: str | None = None) -> Network:
    return Network(config.arch, config.width, amp or config.amp, batch_size or config.batch_size, _shape(data))


def _attacked(stage: Evaluated | Transferred | StepSweep, model: Trained, attacks: Iterable[Attack]) -> Network:
    low = any(attack.autocast is not None for attack in attacks)
    return _network(model.config, stage.data, stage.batch_size, "bf16" if low else "none")


def seconds(work: Passes, rates: dict[tuple[Network, str], float]) -> float:
    """Return the time for passes.

    Args:
        work: Number of images by (network, kind).
        rates: Images per second by (network, kind).

    Returns:
        Seconds.
    """
    return sum(n / rates[key] for key, n in work.items() if n)


def measure_rate(net: Network, kind: str, device: torch.device, *, at_least: float = 1.0) -> float:
    """Measure the throughput of a network on this machine, after one warm-up batch.

    Args:
        net: The network.
        kind: "train", "attack" or "inner".
        device: Device to run on.
        at_least: Seconds to measure for.

    Returns:
        Images per second.
    """
    amp = torch.bfloat16 if net.amp == "bf16" else None
    # A few images suffice on a CPU, where a large network would take minutes for a GPU-sized batch.
    batch = net.batch_size if device.type == "cuda" else min(net.batch_size, 64)
    model = create(net.arch, _CLASSES, net.shape, width=net.width).to(device).to(memory_format=torch.channels_last)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *net.shape, generator=g).to(device=device, memory_format=torch.channels_last)
    y = torch.randint(_CLASSES, (batch,), generator=g, device="cpu").to(device)
    if kind != "train":
        # Long enough for a CUDA graph to be captured on a GPU; a short attack runs without one.
        steps = 7 if kind == "inner" else 64 if device.type == "cuda" else 4
        attacked = model.eval() if kind == "inner" else attack_copy(model.eval(), autocast=amp)
        attack = PGD(L2(0.5), steps=steps, step_size=0.1, autocast=amp)

        def work() -> int:
            attack(attacked, x, y)
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
