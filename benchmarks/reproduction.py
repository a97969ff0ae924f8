"""What ``advfeat reproduce`` would take on a GPU that is not at hand: from operations counted and shares assumed.

    python -m benchmarks.reproduction --preset cifar10 [--arch resnet18]

An estimate and no measurement: passes of each experiment (advfeat.experiments.cost), times the floating-point
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

# Dense bfloat16 of an H100 or H200, by its datasheet; and the shares of it that small images leave: convolutions of
# 32x32 images are short of work for so wide a processor, and training runs BatchNorm and launches its kernels one by
# one. The shares are guesses.
PEAK = 989e12
SHARES = {"attack": 0.25, "inner": 0.12, "train": 0.12}
# Convolutions in float32 are done in TensorFloat-32, torch's default, at half of bfloat16's rate.
FLOAT32_SHARE = 0.12


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
                share = SHARES[kind] if net.amp == "bf16" else FLOAT32_SHARE
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
