"""Estimate of the time of ``advfeat reproduce`` on a GPU, from counted operations and shares of the peak measured once.

    python -m benchmarks.reproduction --preset cifar10 [--arch resnet18]

An estimate: passes of each experiment (advfeat.experiments.cost), times the floating-point
operations of a pass, over a share of the processor's rate. On the machine itself ``advfeat reproduce --measure`` is
better.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from advfeat.experiments import catalogue, presets
from advfeat.experiments.cost import Network, passes
from advfeat.models import create

# Dense bfloat16 of an H100 or H200, by its datasheet; and the shares of it that an H200 reached on images of 32x32
# (2026-11-27, torch 2.11, batches of the presets' sizes): convolutions of such images are short of work for so wide a
# processor, and training launches its kernels one by one. Training with a ResNet-50, and every other network, was not
# measured: they are taken to reach the ResNet-18's shares.
PEAK = 989e12
SHARES = {"attack": 0.20, "inner": 0.10, "train": 0.047}
SHARES_OF = {"resnet50": {**SHARES, "attack": 0.09, "inner": 0.09}}
# Convolutions in float32 are done in TensorFloat-32, torch's default.
FLOAT32_SHARE = 0.10
FLOAT32_SHARE_OF = {"resnet50": 0.053}


def operations(net: Network, kind: str) -> float:
    """Of one image's pass: twice the forward pass's for an attack, three times to train."""
    model = create(net.arch, 10, net.shape, width=net.width).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *net.shape, device="meta"))
    return counter.get_total_flops() * (3 if kind == "train" else 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets.names(), default="cifar10")
    parser.add_argument("--arch", help="another network in the place of the preset's own")
    options = parser.parse_args(arguments)
    preset = presets.preset(options.preset)
    if options.arch:
        preset = preset.with_arch(options.arch)
    known: dict[tuple[Network, str], float] = {}

    def minutes(steps) -> float:
        total = 0.0
        for (net, kind), n in passes(steps).items():
            if (net, kind) not in known:
                of_kind = SHARES_OF.get(net.arch, SHARES)[kind]
                share = of_kind if net.amp == "bf16" else FLOAT32_SHARE_OF.get(net.arch, FLOAT32_SHARE)
                known[net, kind] = operations(net, kind) / (share * PEAK)
            total += n * known[net, kind] / 60
        return total

    done: set[str] = set()
    print(f"{'experiment':22s} {'alone, min':>12s} {'after those above':>20s}")
    for name, found in catalogue.EXPERIMENTS.items():
        steps = found.stages(preset)
        left = [step for key, step in steps.items() if key not in done]
        done |= steps.keys()
        print(f"{name:22s} {minutes(steps.values()):12.1f} {minutes(left):20.1f}")
    print(f"assumed: {PEAK / 1e12:.0f} TFLOP/s, of which {SHARES}; float32 {FLOAT32_SHARE}")


if __name__ == "__main__":
    main()
