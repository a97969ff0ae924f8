"""Time of each experiment without cached stages, in minutes."""

from __future__ import annotations

CAPTION = (
    "digits and cifar10-cpu: two cores of an AMD EPYC. cifar10: estimated for one H200 from its rates. "
    "Stages are shared, so all experiments together take less."
)

# digits and cifar10-cpu: advfeat reproduce --measure, 2026-11-27, torch 2.14.1, AVX-512, with the presets' three seeds;
# cifar10: python -m benchmarks.reproduction.
MINUTES: dict[str, dict[str, float]] = {
    "digits": {
        "table1": 3,
        "figure2": 5,
        "table9": 2,
        "table10": 1.5,
        "leakage-control": 2,
        "table8": 3,
        "figure8": 1.3,
        "cats-vs-dogs": 0.1,
        "cross-architecture": 2,
        "settings": 2,
        "figure3": 0.7,
        "table7": 6,
        "released": 0.12,
    },
    "cifar10-cpu": {
        "table1": 56,
        "figure2": 138,
        "table9": 84,
        "table10": 42,
        "leakage-control": 76,
        "table8": 76,
        "figure8": 38,
        "cats-vs-dogs": 7,
        "cross-architecture": 102,
        "settings": 59,
        "figure3": 70,
        "table7": 192,
        "released": 3,
        "cifar10.1": 21,
        "restricted-imagenet": 1248,
    },
    "cifar10": {
        "table1": 27,
        "figure2": 133,
        "table9": 59,
        "table10": 32,
        "leakage-control": 67,
        "table8": 88,
        "figure8": 71,
        "cats-vs-dogs": 3,
        "cross-architecture": 130,
        "settings": 100,
        "figure3": 56,
        "table7": 343,
        "released": 9,
        "cifar10.1": 23,
        "restricted-imagenet": 2218,
    },
}
