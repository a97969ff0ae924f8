"""Time of each experiment without cached stages, in minutes."""

from __future__ import annotations

CAPTION = (
    "digits and cifar10-cpu: two cores of an AMD EPYC. cifar10: an estimate for one H200, not measured. "
    "Stages are shared, so all experiments together take less."
)

# digits and cifar10-cpu: advfeat reproduce --measure, 2026-11-21, torch 2.14.1, AVX-512, with the presets' three seeds;
# cifar10: python -m benchmarks.reproduction.
MINUTES: dict[str, dict[str, float]] = {
    "digits": {
        "table1": 2,
        "figure2": 4,
        "table9": 4,
        "table10": 2,
        "leakage-control": 4,
        "table8": 3,
        "figure8": 2,
        "cats-vs-dogs": 0.17,
        "cross-architecture": 2,
        "settings": 3,
        "figure3": 1.15,
        "table7": 5,
        "released": 0.22,
    },
    "cifar10-cpu": {
        "table1": 23,
        "figure2": 86,
        "table9": 77,
        "table10": 37,
        "leakage-control": 69,
        "table8": 54,
        "figure8": 34,
        "cats-vs-dogs": 7,
        "cross-architecture": 59,
        "settings": 46,
        "figure3": 84,
        "table7": 120,
        "released": 3,
        "cifar10.1": 20,
        "restricted-imagenet": 1044,
    },
    "cifar10": {
        "table1": 10,
        "figure2": 51,
        "table9": 25,
        "table10": 15,
        "leakage-control": 28,
        "table8": 35,
        "figure8": 29,
        "cats-vs-dogs": 1,
        "cross-architecture": 51,
        "settings": 40,
        "figure3": 22,
        "table7": 127,
        "released": 3.4,
        "cifar10.1": 9,
        "restricted-imagenet": 852,
    },
}
